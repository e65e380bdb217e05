"""Five sensors learned from real imagery, judged on held-out ground against the mean spectrum of the visible patches.

    python benchmarks/real_five_sensors.py --data ../shared/data --out runs/real --json real.json

Packs Sentinel-1, Sentinel-2, NAIP, EnMAP and a four-band stand-in for Gaofen-2 (NAIP: there is no open Gaofen-2) into
stores, trains the recipe cpu-tiny on them and writes, for every sensor, the paired difference between the masked error
and the floor on images that were held out by place, or by blocks of ground where there is one place.
"""

import argparse
import json
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dofa import sensors
from dofa.corpus.items import Item, Reading, Sample, Split
from dofa.corpus.pack import pack
from dofa.corpus.store import open_stores
from dofa.model.checkpoint import load_mae
from dofa.train.evaluate import Evaluation, evaluate_store
from dofa.train.pretrain import pretrain
from dofa.train.recipes import load_config

# Whole places held out, chosen before the first run: one of two continents each.
S1_HELD_OUT = ("Spain_7370579", "Nigeria_812045", "282D_485L_3_3", "637U_59R_1_3")
# The level-2A tile whose every band starts at 1,000: processed with baseline >= 04.00, as its level-1C neighbour was.
S2_SHIFTED = ("433D_629L_3_1",)
CROPS = {"sentinel-1-grd": 96, "sentinel-2-l2a": 64, "naip-rgb": 96, "gaofen-2": 96, "enmap-202": 24}
NAIP_HELD_OUT = 0.25  # of the longer side, with a gap of one crop before it


def read(file: Path, bands: Sequence[int] | None = None, dtype: str | None = None) -> NDArray:
    """Bands (from 0) of a GeoTIFF as they are; a machine that only trains on a packed store needs no rasterio."""
    import rasterio

    with rasterio.open(file) as source:
        return source.read(None if bands is None else [b + 1 for b in bands], out_dtype=dtype)


def on_one_grid(folder: Path, pattern: str, bands: Sequence[str], side: int) -> NDArray:
    """Single-band files of one place, brought to the grid of the finest by repeating pixels, as (C, H, W)."""
    import rasterio

    out = []
    for band in bands:
        (file,) = folder.glob(pattern.format(band))
        with rasterio.open(file) as source:
            out.append(source.read(1, out_shape=(side, side)))
    return np.stack(out)


def tiles(image: NDArray, tile: int, stride: int) -> Iterator[tuple[int, int, NDArray]]:
    """Windows of an image (C, H, W), whole ones only, with their rows and columns."""
    for top in range(0, image.shape[1] - tile + 1, stride):
        for left in range(0, image.shape[2] - tile + 1, stride):
            yield top, left, image[:, top : top + tile, left : left + tile]


def items(name: str, place: str, split: Split, image: NDArray, tile: int, stride: int) -> list[Item]:
    """Items of one image; NaN and -32768 mark pixels without a measurement."""
    out = []
    for top, left, window in tiles(image, tile, stride):
        valid = (np.isfinite(window) & (window != -32768)).all(0)
        sample = Sample(np.nan_to_num(window), None if valid.all() else valid)
        out.append(Item(f"{name}@{top},{left}", place, lambda sample=sample: sample, split=split))
    return out


def reading(sensor: str, found: Sequence[Item], bands: Sequence[str] | None = None) -> Reading:
    """What `pack` takes, from items of one shape."""
    image = found[0].load().image
    known = sensors.get(sensor)
    return Reading(known.select(bands) if bands else known, found, image.shape[1:], str(image.dtype))


def fresh(data: Path, sensor: str, level: str, names: Sequence[str], tile: int) -> list[Item]:
    """Places of other corpora that no choice was made on: SSL4EO-S12 (India, two dates), BigEarthNet v2 (Austria)."""
    known = sensors.get(sensor).band_names
    found = []
    for folder in sorted((data / "true_formats" / "SSL4EO-S12").glob(f"{level}/*/*")):
        found += items(folder.name, "india", "test", on_one_grid(folder, "{}.tif", names, 264), tile, (264 - tile) // 2)
    for folder in sorted((data / "true_formats" / "BigEarthNet").glob(f"BigEarthNet-{level[:2].upper()}/*/*")):
        found += items(folder.name, "austria", "test", on_one_grid(folder, "*_{}.tif", known, 120), tile, 120 - tile)
    return found


def sentinel_1(data: Path) -> Reading:
    """Six flood chips and five co-located tiles, dB, eleven places."""
    found = []
    files = [*data.glob("sen1floods11/S1Hand/*.tif"), *data.glob("colocated_s1_s2/S1RTC/*.tif")]
    for file in sorted(files):
        place = file.stem.removesuffix("_S1Hand")
        image = read(file, dtype="float32")
        split: Split = "val" if place in S1_HELD_OUT else "train"
        found += items(file.name, place, split, image, 96, 96 if split == "val" else 64)
    found += fresh(data, "sentinel-1-grd", "s1", ("VV", "VH"), 96)
    return reading("sentinel-1-grd", found)


def sentinel_2(data: Path) -> Reading:
    """320 chips without location for training, five co-located places to judge."""
    chips = np.load(data / "sentinel2_l2a" / "chips_320.npz")["x"]
    found = [i for n, chip in enumerate(chips) for i in items(f"chip {n}", f"chip {n}", "train", chip, 64, 64)]
    for file in sorted(data.glob("colocated_s1_s2/S2L2A/*.tif")):
        image = read(file).astype("uint16")
        if file.stem in S2_SHIFTED:
            image = np.maximum(image, 1000) - 1000
        found += items(file.name, file.stem, "val", image, 64, 64)
    names = [b if b == "B8A" else f"B{int(b[1:])}" for b in sensors.get("sentinel-2-l2a").band_names]
    found += fresh(data, "sentinel-2-l2a", "s2a", names, 64)
    return reading("sentinel-2-l2a", found)


def naip(data: Path, sensor: str, order: Sequence[int]) -> Reading:
    """One place at three dates; the same eastern ground is held out at all of them, after a gap of one crop."""
    found = []
    for file in sorted(data.glob("naip/*.tif")):
        image = read(file, order)
        edge = int(image.shape[2] * (1 - NAIP_HELD_OUT))
        found += items(file.name, "north-dakota", "train", image[:, :, : edge - 96], 96, 64)
        found += items(f"{file.name} east", "north-dakota", "val", image[:, :, edge:], 96, 96)
    return reading(sensor, found)


def enmap(data: Path) -> Reading:
    """Potsdam (land) and two patches of a lake; held out: Potsdam's south after a gap of one crop, the second patch."""
    keep = sensors.get("enmap").index(sensors.get("enmap-202").band_names)
    land = np.load(data / "enmap_potsdam" / "west_96x64.npz")["x"][keep]
    found = items("potsdam north", "potsdam", "train", land[:, :48], 24, 8)
    found += items("potsdam south", "potsdam", "val", land[:, 72:], 24, 8)
    for n, file in enumerate(sorted(data.glob("enmap_hyspecnet11k/*/*-SPECTRAL_IMAGE.TIF"))):
        image = read(file, keep)
        found += items(f"lake {n}", f"lake {n}", "train" if n == 0 else "val", image, 24, 24)
    return reading("enmap-202", found)


def judge(run: Path, store: Path, split: Split) -> list[dict[str, object]]:
    """Every sensor's error against its floor on one split of a store."""
    mae = load_mae(run / "model")
    rows: list[dict[str, object]] = []
    for name, opened in open_stores([str(store)]).items():
        if not len(opened.indices(split)):
            continue
        judged = evaluate_store(mae, opened, crop=CROPS[name], split=split, masks=8)
        rows.append({"name": name, "split": split, **judged.summary(), **by_place(judged)})
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()})
    return rows


def draw(run: Path, store: Path, folder: Path) -> None:
    """Reconstructions of the held-out image (EnMAP: of land) in the middle of the ranking, and curves over the run."""
    from dofa import plots
    from dofa.demo import pictures
    from dofa.train.log import read_log

    mae = load_mae(run / "model")
    rows = []
    for name, opened in open_stores([str(store)]).items():
        judged = evaluate_store(mae, opened, crop=CROPS[name], masks=8)
        judging = np.array([not p.startswith("lake") for p in judged.places])
        ranked = judged.indices[judging][np.argsort((judged.error - judged.floor)[judging])]
        middle = int(ranked[len(ranked) // 2])
        image = pictures.stored_image(opened, middle, mae.encoder.config.sensors[name].scaling)
        rows.append(plots.Row(f"{name}\n{opened.places([middle])[0]}", pictures.reconstruction(mae, image, 0)))
    plots.reconstruction_panel(folder / "real_five_sensors.png", rows)
    log = [line for line in read_log(run) if any(k.startswith("difference/") for k in line)]
    series = {name: ([line["update"] for line in log], [line[f"difference/{name}"] for line in log]) for name in CROPS}
    plots.curves(
        folder / "real_five_sensors_curves.png", series, y_label="held-out error − floor", levels={"floor": 0.0}
    )


def by_place(judged: Evaluation) -> dict[str, object]:
    """Difference and number of images at every place; EnMAP's land and dark lake are judged apart."""
    gap, out = judged.error - judged.floor, {}
    for place in sorted(set(judged.places)):
        here = np.array(judged.places) == place
        out[place] = (round(float(gap[here].mean()), 4), int(here.sum()))
    return {"by_place": out}


def pack_all(data: Path, store: Path) -> None:
    """Pack the five sensors into one store."""
    found = (
        sentinel_1(data),
        sentinel_2(data),
        naip(data, "naip-rgb", (0, 1, 2)),
        naip(data, "gaofen-2", (2, 1, 0, 3)),
        enmap(data),
    )
    for each in found:
        print(*pack(each, store).lines(), sep="\n")


def main() -> None:
    """Pack, train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder for two PNGs")
    parser.add_argument("--updates", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packed", type=Path, help="a store that an earlier run packed")
    parser.add_argument("--set", nargs="*", default=[], help="further settings of the recipe, key.key=value")
    args = parser.parse_args()
    store = args.packed or args.out / "store"
    if not args.packed:
        pack_all(args.data, store)
    config = load_config(
        "cpu-tiny",
        [
            f"data.stores=[{store}]",
            f"data.crop={json.dumps(CROPS)}",
            "data.weights={sentinel-1-grd: 1, sentinel-2-l2a: 1.5, naip-rgb: 1, gaofen-2: 1, enmap-202: 1}",
            f"run.updates={args.updates}",
            f"run.seed={args.seed}",
            f"run.out={args.out / f'seed{args.seed}'}",
            *args.set,
        ],
    )
    began = time.monotonic()
    run = pretrain(config)
    minutes = (time.monotonic() - began) / 60
    rows = judge(run, store, "val") + judge(run, store, "test")
    result = {
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "updates": args.updates,
        "seed": args.seed,
        "minutes": minutes,
        "rows": rows,
    }
    if args.pictures:
        draw(run, store, args.pictures)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
