"""`dofa probe`: how much a frozen encoder's features are worth, beside random weights and beside no model at all.

From top to bottom: images and folds, features of every contender, out-of-fold predictions, intervals and paired
differences, and a head on everything, saved.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from dofa.errors import ConfigError, DataError
from dofa.files import write_atomically
from dofa.model import checkpoint
from dofa.model.encoder import DOFA
from dofa.model.heads import Block, Head, palette
from dofa.pixels import Scaling, unit_map
from dofa.tasks.backbones import DATASET, input_scaling, random_encoder
from dofa.tasks.datasets import LabelledImages, open_labelled
from dofa.tasks.evaluation import (
    PENALTIES,
    Fold,
    bootstrap,
    check_features,
    choose_penalty,
    fit_logistic,
    knn_predict,
    split_folds,
)
from dofa.tasks.features import Floats, Precision, band_statistics, block_number, encode
from dofa.tasks.result import CLASSIFIERS, Classifier, Difference, ProbeResult, Row

By = Literal["auto", "image", "place", "split"]
RESULT, HEAD = "probe.json", "head"


def probe(
    weights: str | Path | DOFA,
    data: str | LabelledImages,
    *,
    blocks: Sequence[int | str] = ("pooled",),
    folds: int = 5,
    by: By = "auto",
    bands: Sequence[str] | None = None,
    size: int | None = None,
    stats: str | None = None,
    baselines: bool = True,
    random_seeds: int = 3,
    neighbours: int = 20,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
    batch: int = 64,
    precision: Precision = "float32",
    device: str | None = None,
    cache: str | Path | None = None,
    out: str | Path | None = None,
) -> ProbeResult:
    """Linear and nearest-neighbour probes of a frozen encoder on labelled images.

    Args:
        weights: what `dofa.load` takes, or a model.
        data: `eurosat-rgb:PATH`, `eurosat-ms:PATH`, a labelled store `PATH[#sensor]`, or images already opened.
        blocks: `pooled` (the model's own pooled vector) and block numbers (mean of that block's patch tokens).
        folds: of the cross-validation.
        by: image spreads classes evenly over folds; place keeps whole places together; auto takes places where there
            are enough of them; split learns on the published train and val and judges on test, without folds.
        bands: names of the bands to use, in order; all where absent.
        size: side in pixels the images are resized to.
        stats: whose statistics normalise; see `features.input_scaling`. `dataset` computes them from each fold's
            training images, so that every fold is encoded anew.
        baselines: compare with random weights of the same architecture and with band statistics.
        random_seeds: how many random encoders the baseline averages over.
        neighbours: k of the nearest-neighbour probe.
        penalties: candidates for C of the logistic regression, chosen on inner folds of the training images.
        seed: of folds, random encoders and bootstrap.
        batch: images encoded at a time.
        precision: float32 or bf16.
        device: None for CUDA where there is one.
        cache: folder of the feature cache; where absent, `cache` in `out`.
        out: folder for probe.json and the head folder `head`; nothing is written where absent.

    Returns:
        The findings, and the head if it was saved.

    Raises:
        DofaError: any input that cannot be used; see the readers, `input_scaling` and `split_folds`.
    """
    images = open_labelled(data) if isinstance(data, str) else data
    images = images if bands is None else images.select_bands(bands)
    model = weights if isinstance(weights, DOFA) else checkpoint.load(weights)
    levels = tuple(dict.fromkeys(block_number(block, model.config.depth) for block in blocks))
    if not levels or random_seeds < 1 or not penalties or min(penalties) <= 0:
        raise ConfigError("a probe needs at least one block, one random seed and one penalty above 0")
    if out is not None and cache is None:
        cache = Path(out) / "cache"
    cache = None if cache is None else Path(cache)

    parts, places, notes = _split(images, folds, by, seed)
    fewest = min(len(part.train) for part in parts)
    if not 1 <= neighbours <= fewest:
        raise ConfigError(f"k is {neighbours} neighbours; between 1 and the {fewest} training images of a fold")
    judged = np.concatenate([part.test for part in parts])
    units = judged if places is None else np.unique(places, return_inverse=True)[1][judged]
    learnt = parts[0].train if by == "split" else np.arange(len(images))  # what the saved head is fitted on

    statistics = band_statistics(images, cache) if baselines or stats == DATASET else None

    def scaling_of(rows: NDArray[np.int64]) -> Scaling:
        dataset = None
        if stats == DATASET and statistics is not None:
            mean, std = statistics.over(rows)
            dataset = images.scaling.with_stats(mean.tolist(), std.tolist(), "user")
        return input_scaling(images, model.config, stats, dataset)

    scalings = [scaling_of(part.train) for part in parts]
    if scalings[0].unit != images.scaling.unit:
        mapped = unit_map(images.scaling.unit, scalings[0].unit, images.sensor.platform)
        notes.append(f"pixels reach the encoder through {mapped.name}{', an approximation' * mapped.approximate}")

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:

        def encoded(encoder: DOFA, title: str, over: Sequence[Scaling]) -> dict[Block, list[Floats]]:
            """(N, D) for each level and each scaling; equal scalings are encoded once."""
            total = len(images) * len(set(over))
            task = progress.add_task(title, total=total)
            if not console.is_terminal:
                console.print(f"{images.name}, {title}: {total} images", highlight=False)
            found = {
                scaling: encode(
                    encoder, images, scaling, levels, size=size, batch=batch, precision=precision, device=device,
                    cache=cache, progress=lambda count: progress.advance(task, count),
                )
                for scaling in dict.fromkeys(over)
            }  # fmt: skip
            return {level: [found[scaling][level] for scaling in over] for level in levels}

        # Features by name: one entry a run (random weights have several), each with one array a fold.
        contenders: dict[str, list[list[Floats]]] = {}
        for level, of_folds in encoded(model, "encoder", scalings).items():
            contenders[_name(level)] = [of_folds]
        if baselines and statistics is not None:
            for number in range(random_seeds):
                untrained = random_encoder(model.config, seed + number)
                for level, of_folds in encoded(untrained, f"random weights, seed {seed + number}", scalings).items():
                    contenders.setdefault(f"random {_name(level)}", []).append(of_folds)
            contenders["band statistics"] = [[statistics.features] * len(parts)]

        task = progress.add_task("classifiers", total=2 * len(contenders))
        rows: list[Row] = []
        for name, runs in contenders.items():
            for of_folds in runs:
                for features in {id(f): f for f in of_folds}.values():
                    check_features(features, images.labels, images.sources, name)
            for classifier in CLASSIFIERS:
                scored = [
                    _judge(classifier, of_folds, images.labels, parts, places, penalties, neighbours, seed)
                    for of_folds in runs
                ]
                rows.append(_row(name, classifier, scored, parts, units, seed))
                progress.advance(task)

        protocol = {
            "by": "split" if by == "split" else "image" if places is None else "place",
            "folds": len(parts),
            "places": None if places is None else len(set(places)),
            "seed": seed,
            "neighbours": neighbours,
            "penalties": sorted(penalties),
            "random_seeds": random_seeds if baselines else 0,
        }
        setting = _setting(images, model, len(judged), scalings[0], size, stats, precision) | {"protocol": protocol}
        result = ProbeResult(setting, tuple(rows), _differences(rows, levels, units, seed), tuple(notes))
        if out is None:
            return result
        best = max(levels, key=lambda level: result.row(_name(level)).accuracy.value)
        scaling = scaling_of(learnt)
        features = encoded(model, "head", [scaling])[best][0]
        chosen = None if places is None else [places[row] for row in learnt]
        penalty = choose_penalty(features[learnt], images.labels[learnt], penalties, seed, chosen)
        layer = fit_logistic(features[learnt], images.labels[learnt], penalty)
    score = asdict(result.row(_name(best)).accuracy)
    head = Head(
        task="classification",
        class_names=tuple(images.class_names[label] for label in layer.classes),
        colours=(
            palette(len(layer.classes))
            if images.colours is None
            else tuple(images.colours[label] for label in layer.classes)
        ),
        encoder_sha256=checkpoint.encoder_sha256(model),
        levels=(best,),
        sensor=replace(images.sensor, scaling=images.scaling),
        scaling=scaling,
        patch_offset=model.config.patch_offset,
        tile_size=size or images.shape[1],
        gsd_m=images.sensor.gsd_m * images.shape[1] / (size or images.shape[1]),
        weight=layer.weight,
        bias=layer.bias,
        validation={"accuracy": score, "penalty": penalty, "levels_compared": list(levels), **protocol},
    )
    head.save(Path(out) / HEAD)
    write_atomically(Path(out) / RESULT, (json.dumps(result.to_dict(), indent=1) + "\n").encode())
    return replace(result, head=head)


def _name(level: Block) -> str:
    return "pooled" if level == "pooled" else f"block {level}"


def _split(
    images: LabelledImages, folds: int, by: By, seed: int
) -> tuple[list[Fold], tuple[str, ...] | None, list[str]]:
    """Folds, the places they keep together (None for a split by image), and what the reader should know of them."""
    notes: list[str] = []
    if len(np.unique(images.labels)) < 2:
        raise DataError(f"all {len(images)} images of {images.name} are of one class: a probe needs at least two")
    if by == "split":
        if images.splits is None:
            raise DataError(f"{images.name} has no published split beside it: use folds, by image or by place")
        names = np.array(images.splits)
        part = Fold(np.flatnonzero(names != "test"), np.flatnonzero(names == "test"))
        for what, count in (("test", len(part.test)), ("train", len(part.train))):
            if not count:
                raise DataError(f"{images.name} has no {what} images in its split: use folds")
        return [part], images.places, notes
    places = None if by == "image" else images.places
    if by == "place" and places is None:
        raise DataError(f"{images.name} does not say where its images lie: split by image")
    if by == "auto" and places is not None and len(set(places)) < folds:
        notes.append(
            f"{len(set(places))} places do not fill {folds} folds, so images of one place are on both sides of the "
            "split: expect less elsewhere"
        )
        places = None
    parts = split_folds(images.labels, folds, seed, places, images.class_names)
    for label in np.unique(images.labels):
        unseen = sum(label in images.labels[p.test] and label not in images.labels[p.train] for p in parts)
        if unseen:
            notes.append(
                f"class {images.class_names[label]} lies in too few places: {unseen} of {len(parts)} folds judge it "
                "without having seen it"
            )
    return parts, places, notes


def _judge(
    classifier: Classifier,
    of_folds: list[Floats],
    labels: NDArray[np.int64],
    parts: list[Fold],
    places: tuple[str, ...] | None,
    penalties: Sequence[float],
    neighbours: int,
    seed: int,
) -> tuple[list[NDArray[np.float64]], list[float]]:
    """For each fold, 1 where a judged image is right and 0 where not; and the penalties chosen."""
    correct, chosen = [], []
    for part, features in zip(parts, of_folds, strict=True):
        train, train_labels = features[part.train], labels[part.train]
        if classifier == "k-NN":
            predicted = knn_predict(train, train_labels, features[part.test], neighbours)
        else:
            groups = None if places is None else [places[row] for row in part.train]
            chosen.append(choose_penalty(train, train_labels, penalties, seed, groups))
            predicted = fit_logistic(train, train_labels, chosen[-1]).predict(features[part.test])
        correct.append((predicted == labels[part.test]).astype(np.float64))
    return correct, chosen


def _row(
    name: str,
    classifier: Classifier,
    scored: list[tuple[list[NDArray[np.float64]], list[float]]],
    parts: list[Fold],
    units: NDArray[np.int64],
    seed: int,
) -> Row:
    """One line of the table; several runs (seeds of random weights) are averaged image by image."""
    per_fold = [np.mean([correct[k] for correct, _ in scored], axis=0) for k in range(len(parts))]
    correct = np.concatenate(per_fold)
    return Row(
        features=name,
        classifier=classifier,
        accuracy=bootstrap(correct, units, seed),
        per_fold=tuple(float(fold.mean()) for fold in per_fold),
        penalties=tuple(penalty for _, chosen in scored for penalty in chosen),
        correct=correct,
    )


def _differences(
    rows: list[Row], levels: Sequence[Block], units: NDArray[np.int64], seed: int
) -> tuple[Difference, ...]:
    by_name = {(row.features, row.classifier): row for row in rows}
    return tuple(
        Difference(_name(level), against, classifier, bootstrap(mine.correct - theirs.correct, units, seed))
        for level in levels
        for against in (f"random {_name(level)}", "band statistics")
        for classifier in CLASSIFIERS
        if (theirs := by_name.get((against, classifier))) and (mine := by_name[_name(level), classifier])
    )


def _setting(
    images: LabelledImages,
    model: DOFA,
    judged: int,
    scaling: Scaling,
    size: int | None,
    stats: str | None,
    precision: Precision,
) -> dict[str, Any]:
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    return {
        "data": {
            "name": images.name,
            "fingerprint": images.fingerprint,
            "images": len(images),
            "judged": judged,
            "classes": {n: int(c) for n, c in zip(images.class_names, counts, strict=True) if c},
            "sensor": images.sensor.name,
            "bands": list(images.sensor.band_names),
            "shape": list(images.shape),
        },
        "encoder": {
            "sha256": checkpoint.encoder_sha256(model),
            "width": model.config.width,
            "depth": model.config.depth,
            "patch": model.config.patch,
            "size": size,
            "precision": precision,
            "unit": scaling.unit,
            "statistics": stats or scaling.stats_source,
        },
    }
