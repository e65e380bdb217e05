"""What `dofa embed` adds to the bare model in time, and what it takes in memory whatever the scene's size.

    python benchmarks/scene.py --weights tiny base --json speed.json          # end to end against the bare model
    python benchmarks/scene.py --memory --json memory.json                    # peak of fresh processes, three sizes

Speed: one side is the model on the batches of a run, normalised and in memory beforehand; the other opens the scene,
reads, normalises, runs the same batches, joins the tiles and writes the finished file; a third does so with one batch
at a time instead of two (`scene.streams`). They alternate in one process;
the ratio of pixels per second is that of the seconds, of which the median of all repeats is told and the spread.

Memory: the real command in a process of its own for each scene, its highest resident memory as the kernel counts it.

Scenes are simulated landscapes, mosaicked: ten Sentinel-2 bands, or EnMAP's 224, in uint16, tiled and deflated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.transform import from_origin

import dofa
from dofa import sensors
from dofa.inference import engine
from dofa.inference.features import embed_all
from dofa.inference.saving import save as write
from dofa.inference.workers import WorkerThreads, fast_bf16
from dofa.model.checkpoint import save
from dofa.model.config import TrainedSensor
from dofa.model.encoder import DOFA
from dofa.sensors import Sensor
from dofa.simulate import CLASSES, landscape, observe

S2 = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
SIDE = 256  # of the landscapes that a scene is put together from
SUFFIX = {"cog": "tif", "zarr": "zarr", "geoparquet": "parquet"}


def sensor_of(name: str) -> Sensor:
    """Ten bands of Sentinel-2, or all of EnMAP's."""
    return sensors.get("sentinel-2-l2a").select(S2) if name == "s2" else sensors.get("enmap")


def landscapes(sensor: Sensor) -> list[NDArray[Any]]:
    """What scenes are put together from."""
    return [observe(landscape(kind, 1, SIDE), sensor, 1) for kind in CLASSES[: 12 if len(sensor.bands) < 20 else 4]]


def model_of(size: str, sensor: Sensor) -> DOFA:
    """A model with random weights that knows the statistics of the landscapes."""
    torch.manual_seed(0)
    assert sensor.scaling is not None
    raw = np.stack(landscapes(sensor)).transpose(1, 0, 2, 3).reshape(len(sensor.bands), -1)
    physical = sensor.scaling.physical(raw[:, :, None])[:, :, 0].astype(np.float64)
    scaling = sensor.scaling.with_stats(physical.mean(1).tolist(), physical.std(1).tolist(), "checkpoint")
    waves = tuple(band.wavelength_um for band in sensor.bands)
    return dofa.create(size, sensors={sensor.name: TrainedSensor(sensor.band_names, waves, scaling)}).eval()


def write_scene(path: Path, sensor: Sensor, height: int, width: int) -> Path:
    """A mosaic of simulated landscapes, tiled and deflated; made once."""
    if path.exists():
        return path
    views = landscapes(sensor)
    rng = np.random.default_rng(0)
    part = path.with_name(f".{path.name}")
    with rasterio.open(
        part, "w", driver="GTiff", height=height, width=width, count=len(sensor.bands), dtype=views[0].dtype,
        crs="EPSG:32632", transform=from_origin(400_000, 5_400_000, 10, 10), nodata=0, tiled=True, blockxsize=SIDE,
        blockysize=SIDE, compress="deflate", predictor=2, interleave="pixel", BIGTIFF="IF_SAFER", num_threads=2,
    ) as out:  # fmt: skip
        for i, name in enumerate(sensor.band_names, 1):
            out.set_band_description(i, name)
        for row in range(0, height, SIDE):
            for col in range(0, width, SIDE):
                view = np.rot90(views[rng.integers(len(views))], rng.integers(4), (1, 2))
                view = view[:, : height - row, : width - col]
                out.write(view, window=rasterio.windows.Window(col, row, view.shape[2], view.shape[1]))
    os.replace(part, path)
    return path


def seconds_of(run: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def preloaded(jobs: list[engine.Job], batch: int) -> list[torch.Tensor]:
    """The batches of a run, normalised."""
    return [
        torch.from_numpy(np.stack([jobs[i.job].inputs.normalised(i.tile.window)[0] for i in items]))
        for items in engine.batches(jobs, batch)
    ]


def speed(model: DOFA, path: Path, sensor: Sensor, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row: the bare model's seconds and those from end to end."""

    def embeddings() -> list[Any]:
        return embed_all([path], model, sensor=sensor, dn_offset=0, batch=args.batch, precision=args.precision)

    (one,) = embeddings()
    images = preloaded([one.job], args.batch)
    low = args.precision == "bf16" or (args.precision == "auto" and fast_bf16(torch.device("cpu")))

    @torch.inference_mode()
    def bare() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            for image in images:
                one.tiles(image)

    def whole() -> None:
        write(embeddings(), [path.with_name(f"features.{SUFFIX[kind]}")], overwrite=True)

    def one_by_one() -> None:
        engine.Streams = partial(WorkerThreads, count=1)  # type: ignore[misc, assignment]
        whole()
        engine.Streams = WorkerThreads  # type: ignore[misc]

    bare(), whole()
    sides: dict[str, list[float]] = {"bare": [], "whole": [], "one_by_one": []}
    for _ in range(args.repeats):
        sides["bare"].append(seconds_of(bare))
        sides["whole"].append(seconds_of(whole))
        sides["one_by_one"].append(seconds_of(one_by_one))
    pixels = sum(image.shape[0] * image.shape[2] * image.shape[3] for image in images)
    ratios = [b / w for b, w in zip(sides["bare"], sides["whole"], strict=True)]
    alone = [b / w for b, w in zip(sides["bare"], sides["one_by_one"], strict=True)]
    return {
        "reference": pixels / statistics.median(sides["bare"]),
        "ours": pixels / statistics.median(sides["whole"]),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "one_by_one": [statistics.median(alone), min(alone), max(alone)],
        "unit": "pixels/s",
        "seconds": sides,
    }


def peak(command: list[str]) -> tuple[int, float]:
    """Bytes of resident memory at the peak of a fresh process, and its seconds."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return used.ru_maxrss * 1024, time.perf_counter() - began


def memory(size: str, scene: str, shape: tuple[int, int], kind: str, folder: Path, batch: int) -> dict[str, Any]:
    """One row: the peak of `dofa embed` on a scene of this size."""
    sensor = sensor_of(scene)
    path = write_scene(folder / f"{scene}-{shape[0]}.tif", sensor, *shape)
    weights = folder / f"{size}-{scene}"
    if not weights.exists():
        save(model_of(size, sensor), weights)
    out = folder / f"{path.stem}-features.{SUFFIX[kind]}"
    command = [
        *(sys.executable, "-m", "dofa", "embed", str(path), "--weights", str(weights), "--out", str(out)),
        *("--sensor", sensor.name, "--dn-offset", "0", "--batch", str(batch), "--overwrite"),
    ]
    got, seconds = peak(command)
    return {"name": f"{size}-{scene}-{shape[0]}x{shape[1]}-{kind}", "ours": got, "unit": "bytes", "seconds": seconds}


def processor() -> str:
    """Its name."""
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.partition(":")[2].strip() for line in about.splitlines() if line.startswith("model name")]
    return names[0] if names else os.uname().machine


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "base"])
    parser.add_argument("--scenes", nargs="+", choices=("s2", "enmap"), default=["s2", "enmap"])
    parser.add_argument("--formats", nargs="+", choices=tuple(SUFFIX), default=["cog"])
    parser.add_argument("--side", type=int, default=1500, help="pixels of the Sentinel-2 scene for speed")
    parser.add_argument("--sides", type=int, nargs="+", default=[2048, 5490, 10980], help="of those for memory")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=("auto", "float32", "bf16"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of the model; 0 leaves PyTorch's choice")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--folder", type=Path, help="where scenes are kept; else made anew")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    record = {"machine": f"{processor()}, {threads}, torch {torch.__version__}"}
    print(record["machine"])
    rows: list[dict[str, Any]] = []

    def told(row: dict[str, Any], line: str) -> None:
        print(line, flush=True)
        rows.append(row)
        if args.json:
            args.json.write_text(json.dumps({**record, "rows": rows}, indent=1))

    with tempfile.TemporaryDirectory() as made:
        folder = args.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        for scene in args.scenes:
            for size in args.models:
                for kind in args.formats:
                    if args.memory:
                        shapes = [(side, side) for side in args.sides] if scene == "s2" else [(1000, 1200)]
                        first = 0
                        for shape in shapes:
                            row = memory(size, scene, shape, kind, folder, args.batch)
                            first = first or row["ours"]
                            share = row["ours"] / first
                            told(
                                row,
                                f"{row['name']:30} {row['ours'] / 1e9:.3f} GB ({share:.3f}), {row['seconds']:.0f} s",
                            )
                        continue
                    shape = (args.side, args.side) if scene == "s2" else (1000, 1200)
                    sensor = sensor_of(scene)
                    path = write_scene(folder / f"{scene}-{shape[0]}.tif", sensor, *shape)
                    row = {"name": f"{size}-{scene}-{kind}", **speed(model_of(size, sensor), path, sensor, kind, args)}
                    told(
                        row,
                        f"{row['name']:22} {row['reference'] / 1e6:.2f} Mpx/s bare, {row['ours'] / 1e6:.2f} whole: "
                        f"{row['ratio']:.3f} ({row['low']:.3f}–{row['high']:.3f}), one batch at a time "
                        "{:.3f} ({:.3f}–{:.3f})".format(*row["one_by_one"]),
                    )


if __name__ == "__main__":
    main()
