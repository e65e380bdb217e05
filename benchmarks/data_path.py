"""Samples a second of the data path: from a packed store, from the corpus as published, and what a step consumes.

    python benchmarks/data_path.py --repeats 5 --json out.json

Training data in their published formats are written to a temporary folder, packed, and then read by the very same
`dofa.train.data.MicroBatches` with the recipe cpu-tiny (crops of 96 pixels, flips, band subsets, jitter, one loader
worker) twice: from the store, and from the files, of which only the bands and rows wanted are decoded where the format
allows it. Both must give the same micro-batches to the bit before anything is timed. The third rate is that of the
recipe's training step (tiny, patch 8, decoder 128 × 2, batch 16 or 8) on micro-batches that lie in memory, the fourth
that of the same step fed from the store. The rates of a repeat follow each other within one process, with all cores for
each. Files and stores are warm in the page cache.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image
from rasterio.windows import Window

from dofa import sensors
from dofa.corpus.items import Item, Reading, Sample
from dofa.corpus.pack import pack
from dofa.corpus.store import SensorStore, open_stores
from dofa.pixels import convert_units
from dofa.simulate.landscape import landscape
from dofa.simulate.layouts import CLASSES
from dofa.simulate.observe import observe
from dofa.train.data import MicroBatches, describe_sources, make_mixture
from dofa.train.launch import launch
from dofa.train.loop import train
from dofa.train.objective import Pretraining, build_model, learn_sensors
from dofa.train.optim import adamw
from dofa.train.recipes import load_config

Pixels = NDArray[Any]
SECONDS = 2.5  # a rate is taken over
ENDLESS = 10**6
TARGETS = {"files": 3.0, "step": 1.5}
# SatlasPretrain's Sentinel-2: one PNG for the true-colour image, one for each other band.
SATLAS = {"tci": (0, 1, 2), "b05": (3,), "b06": (4,), "b07": (5,), "b08": (6,), "b11": (7,), "b12": (8,)}


# -- the corpora as published -----------------------------------------------------------------------------------------


def sentinel2_tile(number: int) -> Pixels:
    """(12, 512, 512) uint16: a real Sentinel-2 L2A picture of the package, mirrored at its edges and moved about."""
    sample = resources.files("dofa") / "samples/sentinel-2-l2a/ssl4eo_june.tif"
    with resources.as_file(sample) as path, rasterio.open(path) as file:
        image = file.read()
    rng = np.random.default_rng(number)
    image = np.roll(image, tuple(rng.integers(image.shape[1:]) // 6 * 6), (1, 2))  # keeps bands of 60 m whole
    image = np.pad(image, ((0, 0), (0, 512 - image.shape[1]), (0, 512 - image.shape[2])), "symmetric")
    return np.ascontiguousarray(np.rot90(image, number % 4, (1, 2)))


def write_geotiff(folder: Path, number: int) -> Path:
    """Twelve bands of 512 × 512 in one file, deflated, strips as GDAL lays them by default."""
    path = folder / f"{number:04d}.tif"
    write_raster(path, sentinel2_tile(number))
    return path


def write_satlas(folder: Path, number: int) -> Path:
    """SatlasPretrain: <scene>/<band>/<column>_<row>.png, nine 8-bit bands in seven files of 512 × 512."""
    bands = sensors.get("sentinel-2-dofa9").band_names
    l2a = sensors.get("sentinel-2-l2a")
    reflectance = sentinel2_tile(number)[l2a.index(bands)] * np.float32(1e-4)
    image = convert_units(reflectance, bands, "reflectance", "uint8", "sentinel-2").astype(np.uint8)
    scene = folder / f"scene_{number // 16}"
    name = f"{number % 16}_{number}.png"
    for band, at in SATLAS.items():
        (scene / band).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[at[0]] if len(at) == 1 else image[list(at)].transpose(1, 2, 0)).save(scene / band / name)
    return scene / "tci" / name


def write_hyspecnet(folder: Path, number: int) -> Path:
    """HySpecNet-11k: <tile>/<patch>/<patch>-SPECTRAL_IMAGE.TIF, 224 bands of int16, deflated in strips of 3 rows."""
    enmap = sensors.get("enmap")
    scene = landscape(CLASSES[number % len(CLASSES)], number, 128, 30.0)
    image = observe(scene, enmap).astype(np.int16)
    tile = f"ENMAP01-____L2A-DT{number // 8:010d}_20221103T162438Z_001_V010110_20221118T145147Z"
    patch = f"{tile}-Y{128 * (number % 8):04d}1272_X02000327"
    path = folder / tile / patch / f"{patch}-SPECTRAL_IMAGE.TIF"
    path.parent.mkdir(parents=True)
    write_raster(path, image, nodata=-32768, blockysize=3)
    return path


def write_raster(path: Path, image: Pixels, **more: Any) -> None:
    count, height, width = image.shape
    profile = {"driver": "GTiff", "compress": "deflate", "interleave": "band", "crs": "EPSG:32632", **more}
    at = rasterio.Affine(10, 0, 5e5, 0, -10, 6e6)
    with rasterio.open(
        path, "w", width=width, height=height, count=count, dtype=image.dtype, transform=at, **profile
    ) as file:
        file.write(image)


# -- reading them -----------------------------------------------------------------------------------------------------


def read_raster(channels: Sequence[int], path: str, window: tuple[int, int, int, int], bands: Sequence[int]) -> Pixels:
    """Rows and bands wanted; GDAL decodes the strips that hold them."""
    top, left, height, width = window
    with rasterio.open(path) as file:
        return file.read([channels[b] for b in bands], window=Window(left, top, width, height))


def read_satlas(path: str, window: tuple[int, int, int, int], bands: Sequence[int]) -> Pixels:
    """The files of the bands wanted, each decoded whole, as PNG must be."""
    top, left, height, width = window
    out = np.empty((len(bands), height, width), np.uint8)
    scene, name = Path(path).parents[1], Path(path).name
    for band, at in SATLAS.items():
        wanted = [(n, at.index(b)) for n, b in enumerate(bands) if b in at]
        if wanted:
            with Image.open(scene / band / name) as file:
                crop = np.asarray(file.crop((left, top, left + width, top + height))).reshape(height, width, -1)
            for n, channel in wanted:
                out[n] = crop[..., channel]
    return out


class Files:
    """Published files where `MicroBatches` expects a store: the same images in the same order, read where they lie."""

    def __init__(self, store: SensorStore, read: Callable[..., Pixels]) -> None:
        self.sensor, self.shape, self.indices = store.sensor, store.shape, store.indices
        self._paths, self._read = store.sources(range(store.count)), read

    def read(
        self, index: int, top: int, left: int, height: int, width: int, bands: Sequence[int] | None = None
    ) -> tuple[Pixels, None]:
        """See `SensorStore.read`."""
        chosen = range(self.shape[0]) if bands is None else bands
        return self._read(self._paths[index], (top, left, height, width), chosen), None


@dataclass(frozen=True)
class Case:
    """A sensor, its corpus as published, and how it is read."""

    sensor: str
    format: str
    count: int
    side: int
    dtype: str
    write: Callable[[Path, int], Path]
    read: Callable[..., Pixels]


def cases() -> list[Case]:
    """The three corpora."""
    enmap, kept = sensors.get("enmap"), sensors.get("enmap-202").band_names
    channels = [n + 1 for n in enmap.index(kept)]
    return [
        Case("sentinel-2-dofa9", "PNG", 128, 512, "uint8", write_satlas, read_satlas),
        Case("sentinel-2-l2a", "GeoTIFF", 64, 512, "uint16", write_geotiff, lambda *a: read_raster(range(1, 13), *a)),
        Case("enmap-202", "HySpecNet", 64, 128, "int16", write_hyspecnet, lambda *a: read_raster(channels, *a)),
    ]


# -- measuring --------------------------------------------------------------------------------------------------------


class Measured:
    """One sensor: its corpus on disk twice, its micro-batches from both, its model, and the four rates."""

    def __init__(self, case: Case, folder: Path, seconds: float) -> None:
        self.case, self.seconds = case, seconds
        published, packed = folder / "published" / case.sensor, folder / "store"
        if not (packed / case.sensor / "labels").exists():
            published.mkdir(parents=True)
            with ThreadPoolExecutor() as pool:
                paths = list(pool.map(lambda n: case.write(published, n), range(case.count)))
            pack(reading(case, paths), packed, progress=False)
        self.store = open_stores(packed)[case.sensor]
        self.config = load_config("cpu-tiny", [f"data.stores=[{packed}]", "run.device=cpu"])
        torch.manual_seed(0)
        mae = build_model(self.config.model)
        scalings = learn_sensors(mae, {case.sensor: self.store})
        patch = mae.encoder.config.patch
        sources = describe_sources({case.sensor: self.store}, scalings, self.config.data, patch)
        mixture = make_mixture(sources, self.config)
        self.model = Pretraining(mae.train(), {case.sensor: sources[case.sensor].sensor})
        self.sides = {
            side: MicroBatches(self.config, {case.sensor: held}, sources, mixture, patch)  # type: ignore[dict-item]
            for side, held in {"files": Files(self.store, case.read), "store": self.store}.items()
        }
        self.memory = [self.sides["store"][n] for n in range(4)]
        self.check()
        raw = self.store.count * float(np.prod(self.store.shape)) * self.store.dtype.itemsize
        self.size = {"raw": raw, "files": size(published), "store": size(packed / case.sensor)}
        self.kilobytes = {side: kilobytes_read(data) for side, data in self.sides.items()}

    def check(self) -> None:
        """Stop unless files and store give the same micro-batches to the bit."""
        for ours, theirs in zip(self.memory, (self.sides["files"][n] for n in range(4)), strict=True):
            same = ours["bands"] == theirs["bands"] and ours["indices"] == theirs["indices"]
            if not same or not torch.equal(ours["image"], theirs["image"]):
                raise SystemExit(f"{self.case.sensor}: store and files give different micro-batches")

    def loading(self, data: MicroBatches) -> float:
        """Samples a second out of the recipe's loader."""
        return rate((len(batch["image"]) for batch in data.loader(0, ENDLESS)), self.seconds)

    def training(self, batches: Iterable[dict[str, Any]]) -> float:
        """Samples a second through the recipe's training loop."""
        fabric = launch(self.config.run)
        steps = train(
            fabric,
            fabric.setup_module(self.model),
            fabric.setup_optimizers(adamw(self.model, self.config.optim)),
            batches,
            sensors=[self.case.sensor],
            start=0,
            updates=ENDLESS,
            accumulation=1,
            rate=lambda update: 0.0,  # weights stay as they are, and cost what they cost
            clip=self.config.optim.clip,
            seed=0,
            describe=self.sides["store"].describe,
        )
        return rate((step.images for step in steps), self.seconds)

    def rates(self) -> dict[str, float]:
        """One repeat."""
        return {
            **{side: self.loading(data) for side, data in self.sides.items()},
            "step": self.training(itertools.cycle(self.memory)),
            "fed": self.training(self.sides["store"].loader(0, ENDLESS)),
        }

    def report(self, repeats: int) -> list[dict[str, Any]]:
        """Measure, print, and give the rows."""
        sensor, shape = self.case.sensor, "×".join(map(str, self.store.shape))
        megabytes = {name: f"{count / 1e6:.0f} MB" for name, count in self.size.items()}
        print(
            f"\n{sensor}: {self.store.count} images of {shape} {self.store.dtype}, {megabytes['raw']}; "
            f"{self.case.format} {megabytes['files']}, store {megabytes['store']}; "
            f"a sample reads {self.kilobytes['files']:.0f} and {self.kilobytes['store']:.0f} KB",
            flush=True,
        )
        taken = [self.rates() for _ in range(repeats)]
        rates = {name: [t[name] for t in taken] for name in taken[0]}
        for name, values in rates.items():
            print(f"  {name:26}{statistics.median(values):7.0f}  ({min(values):.0f}–{max(values):.0f})")
        rows = [row(name, sensor, rates[name], rates["store"]) for name in TARGETS]
        rows.append(row("fed", sensor, rates["step"], rates["fed"]))
        for r in rows:
            aim = f"  at least {r['target']:g} wanted" if r["target"] else ""
            print(f"  {r['name']:26}{r['ratio']:7.2f}  ({r['low']:.2f}–{r['high']:.2f}){aim}", flush=True)
        return rows


def rate(counts: Iterator[int], seconds: float) -> float:
    """Counts a second, from the third on, for so many seconds and at least three of them."""
    for _ in range(3):
        next(counts)
    began, total = time.perf_counter(), 0
    for n, count in enumerate(counts, 1):
        total, elapsed = total + count, time.perf_counter() - began
        if n >= 3 and elapsed > seconds:
            return total / elapsed
    raise AssertionError("the counts came to an end")


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def kilobytes_read(data: MicroBatches) -> float:
    """What a sample reads, page cache or not, by the kernel's count of this process."""

    def count() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = count()
    samples = sum(len(data[n]["image"]) for n in range(4, 8))
    return (count() - before) / samples / 1e3


def reading(case: Case, paths: Sequence[Path]) -> Reading:
    """The files for packing, whole."""
    sensor = sensors.get(case.sensor)
    bands, whole = range(len(sensor.bands)), (0, 0, case.side, case.side)

    def item(path: Path) -> Item:
        return Item(str(path), str(path), lambda: Sample(case.read(str(path), whole, bands)))

    return Reading(sensor, [item(p) for p in paths], whole[2:], case.dtype)


def row(name: str, sensor: str, reference: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """Ratios of rates taken in the same repeat."""
    ratios = sorted(o / r for o, r in zip(ours, reference, strict=True))
    return {
        "name": f"{name}-{sensor}",
        "reference": statistics.median(reference),
        "ours": statistics.median(ours),
        "ratio": statistics.median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
        "unit": "samples/s",
        "target": TARGETS.get(name),
    }


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "unknown processor")
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} cores, torch {torch.__version__} with {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repeat of a second a rate")
    parser.add_argument("--folder", type=Path, help="keep files and stores there, and find them there the next time")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    repeats, seconds = (1, 1.0) if args.quick else (args.repeats, SECONDS)
    print(f"{machine()}; samples/s, median of {repeats} (lowest–highest); page cache warm", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for case in cases():
            rows += Measured(case, args.folder or Path(temporary), seconds).report(repeats)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
