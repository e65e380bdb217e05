"""Landsat-8 added to a model of five other sensors: what it gains, and what is forgotten at which share of rehearsal.

    python benchmarks/continue_landsat.py --init runs/real/seed0/model --store runs/real/store --out runs/landsat

Without --init the base model is first made by `real_five_sensors.py`. Landsat-8 (level 1, reflectance at the top of the
atmosphere; R, G, B and NIR in 96 px): the five scenes of 38-Cloud and a scene of Madagascar, three whole places held
out. The recipe `continue` then runs once for every row; every row is judged on the held-out places of all sensors, by
its own forgetting.json, and by a logistic regression on frozen features of EuroSAT: RGB 2,000 images (five folds) and
13 bands 100 (five folds, ten times), paired image by image with the base model.

A run that was interrupted continues when the command is given again.
"""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from real_five_sensors import CROPS, items, pack_all, reading, tiles

from dofa.corpus.items import Item, Reading, Sample
from dofa.corpus.pack import pack
from dofa.corpus.store import open_stores
from dofa.datasets.folds import split_folds
from dofa.datasets.opening import LabelledImages, open_labelled
from dofa.evaluation.cross_validation import bootstrap, choose_penalty, fit_logistic
from dofa.evaluation.frozen_features import band_statistics, encode
from dofa.model.checkpoint import load
from dofa.model.encoder import DOFA
from dofa.train.pretrain import pretrain
from dofa.train.recipes import load_config

TILE = 96
BANDS = ("B4", "B3", "B2", "B5")  # 38-Cloud's R, G, B and NIR
# Scenes (path and row) of 38-Cloud that are held out, the first three by name, chosen before the first run; the other
# two and Madagascar are trained on.
HELD_OUT = ("061017", "063016", "064014")
PENALTIES = (0.003, 0.03, 0.3)
REPEATS = {"eurosat-rgb": 1, "eurosat-ms": 10}
ROWS: dict[str, list[str]] = {
    "none": ["data.rehearsal=0"],
    "0.25": ["data.rehearsal=0.25"],
    "0.5": ["data.rehearsal=0.5"],
    "0.75": ["data.rehearsal=0.75"],
    "recipe": [],
}


def landsat(data: Path) -> Reading:
    """Six places; those held out in tiles side by side, the others in tiles that overlap by half."""
    clouds = np.load(data / "landsat" / "l8_38cloud_5.npz")
    found = []
    for image, name in zip(clouds["x"], clouds["names"].tolist(), strict=True):
        place = name.split("_")[7]
        held = place in HELD_OUT
        found += items(name, place, "val" if held else "train", image, TILE, TILE if held else TILE // 2)
    scene = np.load(data / "landsat" / "l8_madagascar_2017.npz")
    at = [scene["bands"].tolist().index(f"B0{band[1]}") for band in BANDS]
    image = scene["x"][at]
    measured = (image > 0).all(0, keepdims=True)
    for top, left, window in tiles(np.concatenate([image, measured]), TILE, TILE // 2):
        valid = window[-1] > 0
        if valid.mean() > 0.5:
            sample = Sample(window[:-1], valid)
            source = f"madagascar@{top},{left}"
            found.append(Item(source, "madagascar", lambda sample=sample: sample, split="train"))
    return reading("landsat-8-l1-toa", found, BANDS)


def settings(init: Path, stores: Sequence[Path], run: Path, extra: Sequence[str]) -> list[str]:
    """Of one row, over the recipe."""
    names = ", ".join(map(str, stores))
    return [f"model.init={init}", f"data.stores=[{names}]", f"run.out={run}", *extra]


def right(model: DOFA, images: LabelledImages, name: str, cache: Path) -> NDArray[np.float64]:
    """(N,) how often each image is judged right, from the pooled features of a frozen encoder.

    All models are fed by the images' own statistics, so that only weights differ.
    """
    mean, std = band_statistics(images, cache).over(np.arange(len(images)))
    scaling = images.scaling.with_stats(mean, std, "user")
    features = encode(model, images, scaling, ("pooled",), cache=cache)["pooled"]
    out = np.zeros(len(images))
    for repeat in range(REPEATS[name]):
        for part in split_folds(images.labels, 5, repeat):
            fit, labels = features[part.train], images.labels[part.train]
            penalty = choose_penalty(fit, labels, PENALTIES, repeat)
            said = fit_logistic(fit, labels, penalty).predict(features[part.test])
            out[part.test] += said == images.labels[part.test]
    return out / REPEATS[name]


def probe(models: dict[str, Path], data: Path, out: Path) -> dict[str, dict[str, list[float | None]]]:
    """EuroSAT's accuracy in points for every model, and its paired change from the first."""
    rows: dict[str, dict[str, list[float | None]]] = {name: {} for name in models}
    for name, folder in (("eurosat-rgb", "eurosat_rgb"), ("eurosat-ms", "eurosat_ms")):
        images = open_labelled(f"{name}:{next((data / folder).glob('*.zip'))}")
        base = None
        for row, model in models.items():
            judged = 100 * right(load(model), images, name, out / "features")
            base = judged if base is None else base
            rows[row][name] = [float(judged.mean())]
            gap = bootstrap(judged - base, np.arange(len(judged)), 0)
            rows[row][f"{name} change"] = [gap.value, gap.low, gap.high]
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table of the docs."""
    names = [c["sensor"] for c in rows[-1]["sensors"]]
    print(f"\n| rehearsal | {' | '.join(names)} | EuroSAT RGB | EuroSAT MS |")
    print("|---" * (len(names) + 3) + "|")
    for row in rows:
        cells = []
        for change in row.get("sensors", []):
            interval = change["interval"]
            between = f" ({interval[0]:+.3f} … {interval[1]:+.3f})" if interval else ""
            cells.append(f"{change['difference']:+.3f}{between}")
        cells = cells or ["–"] * len(names)
        for data in ("eurosat-rgb", "eurosat-ms"):
            value, low, high = row[f"{data} change"]
            cells.append(f"{row[data][0]:.1f}, {value:+.1f} ({low:+.1f} … {high:+.1f})")
        print(f"| {row['row']} | {' | '.join(cells)} |")


def main() -> None:
    """Pack, train every row, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=["none", "0.25", "0.5", "0.75"], help=f"of {', '.join(ROWS)}")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--init", type=Path, help="model folder of real_five_sensors.py")
    parser.add_argument("--store", type=Path, help="its store")
    parser.add_argument("--out", type=Path, default=Path("runs/landsat"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="*", default=[], help="further settings of all rows, key.key=value")
    parser.add_argument("--tag", default="", help="of rows with further settings")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    store = args.store or args.out / "five"
    if args.store is None and not store.exists():
        pack_all(args.data, store)
    init = args.init or args.out / "base" / "model"
    if args.init is None:
        base = ["data.weights=equal", f"data.crop={json.dumps(CROPS)}", "run.updates=6000"]
        base += [f"data.stores=[{store}]", f"run.out={args.out / 'base'}"]
        pretrain(load_config("cpu-tiny", base), resume=True)
    new = args.out / "landsat-8"
    if not new.exists():
        print(*pack(landsat(args.data), new).lines(), sep="\n")
    (opened,) = open_stores([str(new)]).values()
    print({split: len(opened.indices(split)) for split in ("train", "val")}, "tiles of Landsat-8")

    rows: list[dict[str, Any]] = [{"row": "base"}]
    models = {"base": init}
    for row in args.rows:
        for seed in args.seeds:
            name = "-".join(p for p in (row, args.tag, f"seed{seed}") if p)
            run = args.out / name
            extra = [*ROWS[row], f"run.seed={seed}", *args.set]
            used = time.process_time()
            pretrain(load_config("continue", settings(init, [store, new], run, extra)), resume=True)
            used = time.process_time() - used
            report = json.loads((run / "forgetting.json").read_text())
            for change in report["sensors"]:
                del change["images"]
            rows.append({"row": name, "processor_seconds": round(used), **report})
            models[name] = run / "model"
    probed = probe(models, args.data, args.out)
    rows = [row | probed[row["row"]] for row in rows]
    show(rows)
    if args.json:
        machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
        args.json.write_text(json.dumps({"machine": machine, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
