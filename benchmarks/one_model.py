"""One model for all sensors against one a sensor, and against one patch embedding a sensor: the same loop for all.

    python benchmarks/one_model.py --data ../shared/data --out runs/one --json docs/one_model.json
    python benchmarks/one_model.py --data ../shared/data --out /tmp/one --short

Tiny models (recipe cpu-tiny) learn Sentinel-2 (12 bands of level 2A) and RGB (NAIP) by masked modelling. An update has
two micro-batches: one of each sensor, or two of the same where there is one. Rows, each over several training seeds:

    dynamic    both sensors, kernels generated from wavelengths
    separate   both sensors, one patch embedding and one output layer each, the Transformer shared
    s2, rgb    one sensor, as many updates: **equal total images**, twice as many of the sensor in question
    …-half     one sensor, half the updates: **equal images of the sensor in question**
    random     never trained;  statistics: band means and deviations, no model

Frozen mean patch tokens are judged on EuroSAT by logistic regression, five folds, on the same images for every row:

    ms         13-band EuroSAT (100 images), the 12 bands that level 2A has, five folds ten times
    rgb-naip   EuroSAT RGB (2,000 images) told as NAIP's red, green and blue: NAIP's wavelengths or its embedding
    rgb-s2     the same told as Sentinel-2's bands 4, 3 and 2: three of the twelve rows of a separate embedding

Bands are standardised by the judged images' own means and deviations, alike for every row: no row has learned level 1C.
A finished training run is found again by its folder and features' verdicts by their file, so that a killed benchmark
goes on where it was; `--seeds 1` in another process shares the folder. The last call, with all seeds, makes the table.
"""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from real_five_sensors import naip, sentinel_2

from dofa import sensors
from dofa.corpus.pack import pack
from dofa.corpus.store import open_stores
from dofa.datasets.folds import split_folds
from dofa.datasets.opening import LabelledImages, open_labelled
from dofa.evaluation.backbones import open_backbone, random_encoder
from dofa.evaluation.cross_validation import PENALTIES, choose_penalty, knn_predict
from dofa.evaluation.frozen_features import band_statistics, encode
from dofa.evaluation.linear import fit_logistic
from dofa.model.checkpoint import load, load_mae
from dofa.train.config import PretrainConfig
from dofa.train.evaluate import evaluate_store
from dofa.train.log import read_log
from dofa.train.pretrain import pretrain
from dofa.train.recipes import load_config

S2, RGB = "sentinel-2-l2a", "naip-rgb"
SIDE = 64
LEVELS = (6, 11)  # of twelve blocks: a middle one and the last
VIEWS = ("ms", "rgb-naip", "rgb-s2")
REPEATS = {"ms": 10, "rgb-naip": 1, "rgb-s2": 1}
NEIGHBOURS = {"ms": 5, "rgb-naip": 10, "rgb-s2": 10}
DRAWS = 2000
# Sensors, share of the updates, embedding.
ROWS: dict[str, tuple[tuple[str, ...], float, str]] = {
    "dynamic": ((S2, RGB), 1.0, "dynamic"),
    "separate": ((S2, RGB), 1.0, "separate"),
    "s2": ((S2,), 1.0, "dynamic"),
    "s2-half": ((S2,), 0.5, "dynamic"),
    "rgb": ((RGB,), 1.0, "dynamic"),
    "rgb-half": ((RGB,), 0.5, "dynamic"),
}
SEEN = {"s2": ("ms", "rgb-s2"), "s2-half": ("ms", "rgb-s2"), "rgb": ("rgb-naip",), "rgb-half": ("rgb-naip",)}
PAIRS = [("dynamic", other) for other in ("separate", "s2", "s2-half", "rgb", "rgb-half", "random", "statistics")]


def settings(row: str, seed: int, store: Path, out: Path, updates: int) -> PretrainConfig:
    """The recipe of one run; rows differ in sensors, length and embedding, and in nothing else."""
    names, share, embedding = ROWS[row]
    length = max(2, round(updates * share))
    return load_config(
        "cpu-tiny",
        [
            f"model.changes={{patch: 8, image_size: {SIDE}, embedding: {embedding}}}",
            f"data.stores=[{', '.join(str(store / name) for name in names)}]",
            f"data.crop={SIDE}",
            "data.batch=8",
            f"optim.warmup_updates={length // 10}",
            f"run={{updates: {length}, micro_batches: 2, seed: {seed}, out: '{out / f'{row}-seed{seed}'}'}}",
            "run.precision=32-true",
            "run.log_every=50",
            "run.evaluate_every=0",
            "run.pictures_every=0",
            "run.save_every=500",
            "run.workers=0",
        ],
    )


def train(row: str, seed: int, store: Path, out: Path, updates: int) -> None:
    """One run, or the rest of it; nothing where it is finished."""
    config = settings(row, seed, store, out, updates)
    folder = Path(config.run.out)
    if (folder / "cost.json").is_file():
        before = json.loads((folder / "cost.json").read_text())["updates"]
        if before != config.run.updates:
            raise SystemExit(f"{folder} has {before} updates and not {config.run.updates}: choose another --out")
        return
    began, used = time.monotonic(), time.process_time()
    pretrain(config, resume=True)
    rows = {}
    mae = load_mae(folder / "model")
    for name, opened in open_stores(list(config.data.stores)).items():
        rows[name] = evaluate_store(mae, opened, crop=SIDE, masks=4).summary()
    done = [line["update"] for line in read_log(folder)][-1]
    images = {name: 16 * done // len(ROWS[row][0]) for name in ROWS[row][0]}
    cost = {
        "seconds": time.monotonic() - began,
        "processor_seconds": time.process_time() - used,
        "updates": done,
        "images": images,
        "held_out": rows,
    }
    (folder / "cost.json").write_text(json.dumps(cost, indent=1))


def told_as(images: LabelledImages, name: str) -> LabelledImages:
    """The same pixels under another sensor's name and bands, in that sensor's order."""
    sensor = sensors.get(name)
    bands = sensor.band_names
    return replace(
        images,
        sensor=replace(sensor, scaling=None),
        scaling=replace(images.scaling, bands=bands),
        fingerprint=f"{images.fingerprint} as {name}",
    )


def judged_images(data: Path, view: str, short: bool) -> LabelledImages:
    """What one view shows of EuroSAT."""
    kind = "eurosat-ms" if view == "ms" else "eurosat-rgb"
    images = open_labelled(f"{kind}:{next((data / kind.replace('-', '_')).glob('*.zip'))}")
    if short and view != "ms":
        images = every(images, 20)
    if view == "ms":
        shared = sensors.get(S2).band_names
        images = images.select_bands([name for name in images.sensor.band_names if name in shared])
    return told_as(images, RGB) if view == "rgb-naip" else images


def every(images: LabelledImages, step: int) -> LabelledImages:
    """Each so manieth image."""
    rows = np.arange(0, len(images), step)
    return replace(
        images,
        labels=images.labels[rows],
        sources=tuple(images.sources[row] for row in rows),
        read=lambda index: images.read(int(rows[index])),
        fingerprint=f"{images.fingerprint} every {step}",
    )


def verdicts(features: NDArray[Any], labels: NDArray[np.int64], view: str, repeats: int) -> dict[str, NDArray[Any]]:
    """For each repeat and image whether it was right, (R, N) bool, and its fold, by both classifiers."""
    found: dict[str, list[NDArray[Any]]] = {"logistic": [], "k-NN": [], "fold": []}
    for repeat in range(repeats):
        right = {name: np.zeros(len(labels), bool) for name in ("logistic", "k-NN")}
        fold = np.zeros(len(labels), np.int8)
        for number, part in enumerate(split_folds(labels, 5, repeat)):
            known, own = features[part.train], labels[part.train]
            penalty = choose_penalty(known, own, PENALTIES, repeat)
            said = fit_logistic(known, own, penalty).predict(features[part.test])
            right["logistic"][part.test] = said == labels[part.test]
            near = min(NEIGHBOURS[view], len(own))
            right["k-NN"][part.test] = knn_predict(known, own, features[part.test], near) == labels[part.test]
            fold[part.test] = number
        for name, values in {**right, "fold": fold}.items():
            found[name].append(values)
    return {name: np.stack(values) for name, values in found.items()}


def judge(row: str, seed: int, data: Path, out: Path, short: bool) -> None:
    """Frozen features of one row in every view it can see, and whether each image was right."""
    file = out / f"{row}-seed{seed}.npz"
    if file.is_file():
        return
    result: dict[str, NDArray[Any]] = {}
    for view in SEEN.get(row, VIEWS):
        images = judged_images(data, view, short)
        statistics = band_statistics(images, out / "cache")
        mean, std = statistics.over(np.arange(len(images)))
        scaling = images.scaling.with_stats(mean.tolist(), std.tolist(), "user")
        if row == "statistics":
            sets: dict[str, NDArray[Any]] = {"": statistics.features}
        else:
            if row == "random":
                model = random_encoder(load(out / f"dynamic-seed{seed}" / "model").config, 1000 + seed)
            else:
                model = load(out / f"{row}-seed{seed}" / "model")
            encoded = encode(open_backbone(model), images, scaling, LEVELS)
            sets = {f"block {level}": encoded[level] for level in LEVELS}
        for title, features in sets.items():
            told = verdicts(features, images.labels, view, 1 if short else REPEATS[view])
            result |= {f"{view}|{title}|{name}": values for name, values in told.items()}
            print(f"{row:9} seed {seed}  {view:9} {title:9} {100 * told['logistic'].mean():5.1f}", flush=True)
    temporary = file.with_suffix(".tmp.npz")
    np.savez(temporary, **result)
    temporary.replace(file)


def load_row(row: str, seeds: Sequence[int], out: Path) -> list[dict[str, NDArray[Any]]]:
    """What was judged of a row, a seed each; band statistics have one."""
    wanted = [0] if row == "statistics" else seeds
    return [dict(np.load(file)) for s in wanted if (file := out / f"{row}-seed{s}.npz").is_file()]


def interval(right: NDArray[Any], rng: np.random.Generator) -> tuple[float, float]:
    """95 % of the mean of (seeds, N): seeds and images drawn again."""
    draws = []
    for _ in range(DRAWS):
        chosen = rng.integers(0, len(right), len(right))
        draws.append(right[chosen][:, rng.integers(0, right.shape[1], right.shape[1])].mean())
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def table(seeds: Sequence[int], out: Path) -> list[dict[str, Any]]:
    """Accuracies, and paired differences of the dynamic model to every other row."""
    found = {row: load_row(row, seeds, out) for row in (*ROWS, "random", "statistics")}
    rows: list[dict[str, Any]] = []
    for row, runs in found.items():
        for key in runs[0] if runs else ():
            view, level, classifier = key.split("|")
            if classifier == "fold":
                continue
            right = 100 * np.stack([run[key].astype(float).mean(0) for run in runs])
            folds = [100 * np.mean([run[key][run[f"{view}|{level}|fold"] == k] for run in runs]) for k in range(5)]
            low, high = interval(right, np.random.default_rng(0))
            rows.append(
                {
                    "row": row,
                    "view": view,
                    "features": level,
                    "classifier": classifier,
                    "accuracy": float(right.mean()),
                    "low": low,
                    "high": high,
                    "by_seed": right.mean(1).round(2).tolist(),
                    "by_fold": np.round(folds, 2).tolist(),
                }
            )
    for mine, theirs in PAIRS:
        for key in found[mine][0] if found[mine] and found[theirs] else ():
            view, level, classifier = key.split("|")
            other = f"{view}||{classifier}" if theirs == "statistics" else key
            if classifier == "fold" or other not in found[theirs][0]:
                continue
            ours = np.stack([run[key].astype(float).mean(0) for run in found[mine]])
            against = np.stack([run[other].astype(float).mean(0) for run in found[theirs]])
            if len(ours) != len(against) and len(against) > 1:
                continue  # a row that is not finished yet
            gap = 100 * (ours - against)
            low, high = interval(gap, np.random.default_rng(0))
            rows.append(
                {
                    "row": f"{mine} − {theirs}",
                    "view": view,
                    "features": level,
                    "classifier": classifier,
                    "difference": float(gap.mean()),
                    "low": low,
                    "high": high,
                    "by_seed": gap.mean(1).round(2).tolist(),
                }
            )
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Logistic regression, as lines."""
    for row in rows:
        if row["classifier"] == "logistic":
            value = f"{row['difference']:+6.2f}" if "difference" in row else f"{row['accuracy']:6.2f}"
            print(
                f"{row['row']:22} {row['view']:9} {row['features']:9} {value} "
                f"({row['low']:.2f} … {row['high']:.2f})  by seed {row['by_seed']}"
            )


def main() -> None:
    """Pack, train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/one"))
    parser.add_argument("--packed", type=Path, help="the two stores of an earlier run")
    parser.add_argument("--updates", type=int, default=2000, help="of 16 images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--short", action="store_true", help="20 updates, one seed, a twentieth of EuroSAT RGB")
    args = parser.parse_args()
    if args.short:
        args.updates, args.seeds = 20, [0]
    args.out.mkdir(parents=True, exist_ok=True)
    store = args.packed or args.out / "store"
    if not args.packed:
        for reading in (sentinel_2(args.data), naip(args.data, RGB, (0, 1, 2))):
            print(*pack(reading, store / reading.sensor.name).lines(), sep="\n")
    for seed in args.seeds:
        for row in args.rows:
            train(row, seed, store, args.out, args.updates)
            judge(row, seed, args.data, args.out, args.short)
        if "dynamic" in args.rows:
            judge("random", seed, args.data, args.out, args.short)
    judge("statistics", 0, args.data, args.out, args.short)
    rows = table(args.seeds, args.out)
    show(rows)
    runs = {
        f"{row}-seed{seed}": json.loads(file.read_text())
        for row in ROWS
        for seed in args.seeds
        if (file := args.out / f"{row}-seed{seed}" / "cost.json").is_file()
    }
    if args.json:
        machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
        told = {"machine": machine, "torch": torch.__version__, "seeds": args.seeds, "runs": runs, "rows": rows}
        args.json.write_text(json.dumps(told, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
