"""What a real teacher gives a small multi-band student: rows of the same model, started and trained in different ways.

    python benchmarks/distillation.py corpus --data ../shared/data --out runs/lift
    python benchmarks/distillation.py train renderings --teacher vits14.safetensors --out runs/lift
    python benchmarks/distillation.py probe renderings --teacher vits14.safetensors --out runs/lift
    python benchmarks/distillation.py table --out runs/lift --json lift.json
    python benchmarks/distillation.py compare mim+visible-short mim+proxy-short --out runs/lift --json compare.json

`corpus` packs Sentinel-2 (levels 2A and 1C), Sentinel-1, NAIP and EnMAP from real imagery, without images of EuroSAT.
`train` runs one row with `dofa pretrain`'s function; `--tag short --seed 1` writes `<row>-short-seed1`. `probe` judges
frozen features on EuroSAT: RGB 2,000 (five folds) and 13 bands 100 (five folds, ten times), logistic regression and
k-NN, block 6 and the last, alone and beside band statistics. `table` puts the rows together: paired differences to the
teacher with intervals of a bootstrap over images. `compare` pairs two rows of several seeds, resampling both.

The teacher is a DINOv2-style ViT-S/14, fine-tuned for saliency: its last blocks are degraded, block 6 is compared.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from real_five_sensors import enmap, items, naip, on_one_grid, read, reading, sentinel_1, sentinel_2

from dofa import sensors
from dofa.corpus.items import Item, Reading
from dofa.corpus.pack import pack
from dofa.datasets.folds import split_folds
from dofa.datasets.opening import LabelledImages, open_labelled
from dofa.evaluation.cross_validation import bootstrap, choose_penalty, fit_logistic, knn_predict
from dofa.evaluation.frozen_features import band_statistics, encode, prepare
from dofa.model.checkpoint import create, load
from dofa.model.encoder import DOFA
from dofa.model.prefit import initialise, prefit
from dofa.model.teacher import Teacher, load_teacher
from dofa.train.log import read_log
from dofa.train.pretrain import pretrain
from dofa.train.recipes import load_config
from dofa.train.teacher_inputs import display_scaling

SIDE = 112  # pixels; EuroSAT's 64 are resized
BLOCK = 6
SENSORS = ("sentinel-2-l2a", "sentinel-2-l1c", "sentinel-1-grd", "naip-rgb", "enmap-202")
SHIFTED = ("282D_485L_3_3", "433D_629L_3_1")  # level-1C tiles whose B10 sits at 1,000: baseline >= 04.00
CLOUDY = ("609U_541L_3_0",)
PENALTIES = (0.003, 0.03, 0.3)
REPEATS = {"eurosat-rgb": 1, "eurosat-ms": 10}
COMMON = [
    "model={size: plus-small, changes: {image_size: 112}, decoder: {width: 192, depth: 2, heads: 6}, start: prefit}",
    "data.crop=112",
    "data.crop_area=[0.5, 1.0]",
    "data.statistics=display",
    "data.jitter.share=0.0",
    "data.batch={default: 16, enmap-202: 8}",
    "data.weights={sentinel-2-l2a: 4, sentinel-2-l1c: 3, naip-rgb: 1, sentinel-1-grd: 1, enmap-202: 0.25}",
    "data.band_keep=0.3",
    "data.band_sets={rgb: 0.25, all: 0.4}",
    "optim={lr: 5.0e-4, encoder_lr: 0.25, generator_lr: 0.05, warmup_updates: 50, clip: 1.0}",
    "run={precision: bf16-mixed, evaluate_every: 100, evaluate_images: 24, save_every: 250, log_every: 25}",
]
DISTILL_ONLY = ["distill.reconstruction=0", "run.evaluate_every=0"]
RENDERINGS = [
    "distill={view: full, renderings: [rgb, swir-nir-red, colour-infrared], target: tokens, loss: smooth-l1}",
    "distill.blocks=[6]",
    "distill.projector=false",
    "distill.anchor=1.0",
    "distill.crops=6",
    "optim.keep_initial=0.2",
]
MASKED = ["data.jitter={share: 0.7, gain: 0.2, offset: 0.35}"]
ROWS: dict[str, list[str]] = {
    "mim": ["distill.weight=0", *MASKED],
    "mim-random": ["distill.weight=0", "model.start=random", "optim.encoder_lr=1.0", "optim.generator_lr=1.0", *MASKED],
    "proxy": ["distill={view: proxy, blocks: [6]}", *DISTILL_ONLY],
    "visible": ["distill={view: visible, blocks: [6], target: tokens}", *DISTILL_ONLY],
    "renderings": [*RENDERINGS, *DISTILL_ONLY],
    "mim+proxy": ["distill={view: proxy, blocks: [6]}", *MASKED],
    "mim+visible": ["distill={view: visible, blocks: [6], target: tokens}", *MASKED],
    "mim+renderings": [*RENDERINGS],
}
UNTRAINED = ("random", "initialised", "prefit")


def level_1c(data: Path) -> Reading:
    """Sentinel-2 level 1C, 13 bands: four clear co-located places, a flood chip, a place of SSL4EO-S12 at two dates."""
    found: list[Item] = []
    for file in sorted(data.glob("colocated_s1_s2/S2L1C/*.tif")):
        if file.stem in CLOUDY:
            continue
        image = read(file).astype("uint16")
        if file.stem in SHIFTED:
            image = np.maximum(image, 1000) - 1000
        found += items(file.name, file.stem, "train", image, 64, 40)
    for file in sorted(data.glob("sen1floods11/S2Hand/*.tif")):
        image = read(file).astype("uint16")
        found += items(file.name, file.stem, "train", image, 64, 64)
    names = [b if b == "B8A" else f"B{int(b[1:])}" for b in sensors.get("sentinel-2-l1c").band_names]
    for folder in sorted((data / "true_formats" / "SSL4EO-S12").glob("s2c/*/*")):
        found += items(folder.name, "india", "train", on_one_grid(folder, "{}.tif", names, 264), 64, 50)
    return reading("sentinel-2-l1c", found)


def corpus(data: Path, out: Path) -> None:
    """Pack the training images."""
    for each in (sentinel_2(data), level_1c(data), sentinel_1(data), naip(data, "naip-rgb", (0, 1, 2)), enmap(data)):
        print(*pack(each, out / "store").lines(), sep="\n")


def train(row: str, teacher: Path, out: Path, updates: int, seed: int, tag: str, extra: Sequence[str]) -> None:
    """One row."""
    name = f"{row}-{tag}-seed{seed}" if tag else row
    settings = [*COMMON, *ROWS[row], f"distill.teacher={teacher}"]
    settings += [f"data.stores=[{out / 'store'}]", f"run.updates={updates}", f"run.seed={seed}"]
    settings += [f"run.out={out / name}", *extra]
    began, used = time.monotonic(), time.process_time()
    pretrain(load_config("cpu-tiny", settings))
    # On a shared machine the wall says little: what the one process computed is told beside it.
    cost = {"seconds": time.monotonic() - began, "processor_seconds": time.process_time() - used}
    (out / name / "cost.json").write_text(json.dumps(cost))


def untrained(row: str, teacher: Teacher) -> DOFA:
    """The student before training."""
    torch.manual_seed(0)
    model = create("plus-small", image_size=SIDE)
    if row == "random":
        return create("plus-small", image_size=SIDE, layer_scale=None)  # with 1e-5 its blocks would do nothing
    initialise(model, teacher)
    if row == "prefit":
        prefit(model, teacher, sensors=[sensors.get(name) for name in SENSORS])
    return model


def teacher_features(teacher: Teacher, images: LabelledImages, renderings: Sequence[str]) -> dict[str, NDArray]:
    """The teacher's own mean patch tokens on pictures of the images."""
    scaling = display_scaling(images.sensor, images.scaling)
    found: dict[str, list[NDArray]] = {"6": [], "last": []}
    depth = teacher.config.depth
    for first in range(0, len(images), 64):
        x = torch.stack(
            [torch.from_numpy(prepare(images, i, scaling)) for i in range(first, min(first + 64, len(images)))]
        )
        x = torch.nn.functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        views = []
        for title in renderings:
            at = images.sensor.index(images.sensor.renderings[title])
            # In the display's own statistics a rendering's bands are normalised as the teacher wants its colours.
            views.append(teacher(x[:, at], (BLOCK, depth - 1), normalised=True))
        for key, level in zip(found, zip(*views, strict=True), strict=True):
            found[key].append(torch.stack([v[:, 1:].float().mean(1) for v in level]).mean(0).numpy())
    return {key: np.concatenate(parts) for key, parts in found.items()}


def probe(row: str, teacher_file: Path, data: Path, out: Path) -> None:
    """Frozen features of one row, and for every image how often it was right."""
    teacher = load_teacher(teacher_file, image_size=SIDE)
    result: dict[str, NDArray] = {}
    for name, folder in (("eurosat-rgb", "eurosat_rgb"), ("eurosat-ms", "eurosat_ms")):
        images = open_labelled(f"{name}:{next((data / folder).glob('*.zip'))}")
        statistics = band_statistics(images).features
        if row == "band statistics":
            sets = {"": statistics}
        elif row.startswith("teacher"):
            three = (
                ("rgb", "swir-nir-red", "colour-infrared") if row != "teacher" and name == "eurosat-ms" else ("rgb",)
            )
            sets = teacher_features(teacher, images, three)
        else:
            model = untrained(row, teacher) if row in UNTRAINED else load(out / row / "model")
            known = model.config.sensors.get(images.sensor.name)
            own = None if known is None else known.scaling
            scaling = own if own is not None else display_scaling(images.sensor, images.scaling)
            encoded = encode(model, images, scaling, (BLOCK, model.config.depth - 1), size=SIDE, precision="bf16")
            sets = {"6": encoded[BLOCK], "last": encoded[model.config.depth - 1]}
        if row != "band statistics":
            sets |= {f"{key} + statistics": np.concatenate([value, statistics], 1) for key, value in sets.items()}
        for key, features in sets.items():
            for classifier in ("logistic", "k-NN"):
                right = np.zeros(len(images))
                for repeat in range(REPEATS[name]):
                    for part in split_folds(images.labels, 5, repeat):
                        fit, judged = features[part.train], features[part.test]
                        labels = images.labels[part.train]
                        if classifier == "k-NN":
                            said = knn_predict(fit, labels, judged, 10 if name == "eurosat-rgb" else 5)
                        else:
                            penalty = choose_penalty(fit, labels, PENALTIES, repeat)
                            said = fit_logistic(fit, labels, penalty).predict(judged)
                        right[part.test] += said == images.labels[part.test]
                result[f"{name}|{key}|{classifier}"] = right / REPEATS[name]
                print(
                    f"{row:24} {name:12} {key:18} {classifier:9} {100 * right.mean() / REPEATS[name]:.1f}", flush=True
                )
    np.savez(out / f"{row.replace(' ', '-')}.npz", **result)


def table(out: Path, file: Path | None) -> None:
    """All rows probed so far, against the teacher."""
    found = {f.stem: dict(np.load(f)) for f in sorted(out.glob("*.npz"))}
    rows = []
    for name, values in found.items():
        row: dict[str, Any] = {"row": name}
        if (out / name / "log.jsonl").is_file():
            log = read_log(out / name)
            row["updates"] = log[-1]["update"]
            row["held-out error − floor"] = {
                str(line["update"]): {k.partition("/")[2]: line[k] for k in line if k.startswith("difference/")}
                for line in log
                if any(k.startswith("difference/") for k in line)
            }
        if (out / name / "cost.json").is_file():
            row |= json.loads((out / name / "cost.json").read_text())
        for key, right in values.items():
            data, features, classifier = key.split("|")
            own = bootstrap(100 * right, np.arange(len(right)), 0)
            row[key] = [own.value, own.low, own.high]
            against = "6 + statistics" if features.endswith("statistics") else "6"
            theirs = found.get("teacher", {}).get(f"{data}|{against}|{classifier}")
            if theirs is not None:
                gap = bootstrap(100 * (right - theirs), np.arange(len(right)), 0)
                row[f"{key}|to teacher"] = [gap.value, gap.low, gap.high]
        rows.append(row)
    if file:
        file.write_text(
            json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}, indent=1)
        )
    for data in ("eurosat-rgb", "eurosat-ms"):
        print(f"\n{data}, logistic regression: accuracy, paired difference to the teacher's block 6 (95 %)")
        for row in rows:
            for features in ("", "6", "last", "6 + statistics", "last + statistics"):
                key = f"{data}|{features}|logistic"
                if key in row:
                    gap = row.get(f"{key}|to teacher")
                    told = f"{gap[0]:+5.1f} ({gap[1]:+.1f} … {gap[2]:+.1f})" if gap else ""
                    knn = row[f"{data}|{features}|k-NN"][0]
                    print(f"{row['row']:20} {features:18} {row[key][0]:5.1f}  {told:24} k-NN {knn:5.1f}")


def compare(first: str, second: str, out: Path, file: Path | None) -> None:
    """The paired difference of two rows over their seeds, with the interval of resampled seeds and images."""
    seeds = sorted(f.stem.removeprefix(f"{first}-seed") for f in out.glob(f"{first}-seed*.npz"))
    result: dict[str, Any] = {"rows": [first, second], "seeds": seeds, "cost": {}}
    for name in (first, second):
        costs = [json.loads((out / f"{name}-seed{s}" / "cost.json").read_text()) for s in seeds]
        result["cost"][name] = [round(c["processor_seconds"]) for c in costs]
    pairs = [[dict(np.load(out / f"{name}-seed{s}.npz")) for name in (first, second)] for s in seeds]
    rng = np.random.default_rng(0)
    for key in pairs[0][0]:
        gaps = np.stack([100 * (mine[key] - theirs[key]) for mine, theirs in pairs])  # (seeds, images)
        draws = []
        for _ in range(2000):
            chosen = rng.integers(0, len(gaps), len(gaps))
            draws.append(gaps[chosen][:, rng.integers(0, gaps.shape[1], gaps.shape[1])].mean())
        low, high = np.quantile(draws, (0.025, 0.975))
        result[key] = [float(gaps.mean()), float(low), float(high), [float(g) for g in gaps.mean(1)]]
        print(f"{key:44} {gaps.mean():+5.2f} ({low:+.2f} … {high:+.2f})  by seed {np.round(gaps.mean(1), 2)}")
    if file:
        file.write_text(json.dumps(result, indent=1))


def main() -> None:
    """One step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("corpus", "train", "probe", "table", "compare"))
    known = f"of {', '.join([*ROWS, *UNTRAINED])}, band statistics, teacher, teacher renderings"
    parser.add_argument("rows", nargs="*", help=known)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--teacher", type=Path, default=Path("vits14.safetensors"))
    parser.add_argument("--out", type=Path, default=Path("runs/lift"))
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tag", default="", help="a further row of the same kind")
    parser.add_argument("--set", nargs="*", default=[], help="further settings, key.key=value")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.step == "corpus":
        corpus(args.data, args.out)
    elif args.step == "table":
        table(args.out, args.json)
    elif args.step == "compare":
        compare(args.rows[0], args.rows[1], args.out, args.json)
    for row in args.rows if args.step in ("train", "probe") else ():
        if args.step == "train":
            train(row, args.teacher, args.out, args.updates, args.seed, args.tag, args.set)
        elif args.step == "probe":
            probe(row, args.teacher, args.data, args.out)


if __name__ == "__main__":
    main()
