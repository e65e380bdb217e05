"""`dofa probe`: how much a frozen encoder's features are worth, beside random weights and beside no model at all.

From top to bottom: images and folds, features of every contender, out-of-fold predictions, intervals and paired
differences, and a head on everything, saved.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from dofa.addresses import redact_values
from dofa.datasets.labelled import Ints
from dofa.datasets.opening import LabelledImages, open_labelled
from dofa.datasets.splits import By, EvaluationSplits, make_splits
from dofa.errors import ConfigError
from dofa.evaluation.backbones import DATASET, Backbone, DofaBackbone, open_backbone, random_encoder
from dofa.evaluation.bootstrap import CrossValidated, interval
from dofa.evaluation.cross_validation import PENALTIES, RATES, LinearModel, Optimizer
from dofa.evaluation.frozen_features import Precision, band_statistics, block_number
from dofa.evaluation.metrics import class_scores
from dofa.evaluation.pixel_features import plan_for_backbone
from dofa.evaluation.pixel_probe import cut_blocks
from dofa.evaluation.probe_heads import BANDS, HEAD, band_head, encoder_head, split_of
from dofa.evaluation.probe_images import ImageProbe
from dofa.evaluation.probe_pixels import PixelProbe
from dofa.evaluation.probe_result import Classifier, Difference, Metric, ProbeResult, Row
from dofa.evaluation.probe_settings import BAND_STATISTICS, Probe, ProbeSettings, Runs, level_name
from dofa.evaluation.verdict import Kind, map_command, verdict
from dofa.io import write_atomically
from dofa.model.encoder import DOFA
from dofa.model.heads import CONFIG, Block
from dofa.pixels import Scaling, unit_path

RESULT = "probe.json"
METRICS: dict[str, Metric] = {"classification": "accuracy", "multilabel": "micro AP", "segmentation": "mIoU"}
GAP = 8  # pixels between blocks of one image that are learned from and judged


def probe(
    weights: str | Path | DOFA | Backbone,
    data: str | LabelledImages,
    *,
    blocks: Sequence[int | str] = ("pooled",),
    folds: int = 5,
    by: By = "auto",
    bands: Sequence[str] | None = None,
    size: int | None = None,
    stats: str | None = None,
    fraction: float = 1.0,
    optimizer: Optimizer = "lbfgs",
    penalties: Sequence[float] | None = None,
    neighbours: int = 20,
    stride: int | None = None,
    pixels: int = 10_000,
    block_side: int | None = None,
    gap: int = GAP,
    baselines: bool = True,
    random_seeds: int = 3,
    seed: int = 0,
    batch: int = 64,
    precision: Precision = "float32",
    device: str | None = None,
    cache: str | Path | None = None,
    out: str | Path | None = None,
) -> ProbeResult:
    """Linear and nearest-neighbour probes of a frozen encoder on labelled images, pixel probes of segmentations.

    Args:
        weights: a model folder or released name, `teacher:FILE`, `random:MODEL#SEED` or another that `open_backbone`
            knows (docs/comparisons.md); from Python also an open model or backbone.
        data: labelled images, such as `eurosat-rgb:PATH`, `chips:FOLDER` or a labelled store `PATH[#sensor]`
            (docs/datasets.md); from Python also images already opened. Their task decides: accuracy of classes, micro
            AP of several labels, mIoU of masks.
        blocks: `pooled` (the model's own pooled vector; of a segmentation the last block) and block numbers (mean of
            that block's patch tokens, or its map).
        folds: of the cross-validation.
        by: image spreads classes evenly over folds; place keeps whole places together; auto takes places where there
            are enough of them; split learns on the published train and val and judges on test, without folds. A single
            image is cut into blocks.
        bands: names of the bands to use, in order; all where absent.
        size: side in pixels the images are resized to.
        stats: whose statistics normalise; see `Backbone.scaling`. `dataset` computes them from each fold's
            training images, so that every fold is encoded anew.
        fraction: of the training labels to learn from.
        optimizer: lbfgs finds the optimum of a logistic regression; lars is the paper's recipe, on features that are
            computed once and so not augmented.
        penalties: candidates for C of the logistic regression, or rates of LARS, chosen on inner folds of the training
            images; 1e-4 … 100, or 0.5, 1, 10, 20, where absent.
        neighbours: k of the nearest-neighbour probe.
        stride: of a segmentation: pixels between the shifted passes that are averaged, a divisor of the patch; the
            largest below the patch where absent.
        pixels: of a segmentation: how many to learn from in a fold, classes alike.
        block_side: of a single image: pixels a side of a block; some 25 blocks where absent.
        gap: of a single image: pixels between what is learned from and what is judged.
        baselines: compare with random weights of the same architecture and with band statistics.
        random_seeds: how many random encoders the baseline averages over.
        seed: of folds, random encoders, sampled pixels and bootstrap.
        batch: images encoded at a time.
        precision: float32 or bf16.
        device: cpu, cuda, cuda:1, …; CUDA where there is one.
        cache: folder of the feature cache; where absent, `cache` in `out`. Maps of pixels are not kept.
        out: folder for probe.json, the head folder `head`, and beside it `band-statistics`, a head that needs no
            encoder; nothing is written where absent.

    Returns:
        The findings, and the head if it was saved.

    Raises:
        DofaError: any input that cannot be used; see the readers, `Backbone.scaling` and `make_splits`.
    """
    if gap < 0 or pixels < 1 or (block_side is not None and block_side < 1):
        side = "" if block_side is None else f", --block-side {block_side}"
        raise ConfigError(f"--gap {gap}, --pixels {pixels}{side}: a gap of at least 0, the others of at least 1")
    images = open_labelled(data) if isinstance(data, str) else data
    images = images if bands is None else images.select_bands(bands)
    dense = images.task == "segmentation"
    across, uncut = 0, None
    if dense and len(images) == 1:
        uncut, (images, across) = images, cut_blocks(images, block_side)
        folds = min(folds, len(images))
    if isinstance(weights, Backbone):
        backbone = weights
    else:
        backbone = open_backbone(weights if isinstance(weights, DOFA) else str(weights))
    levels = _levels(blocks, backbone, dense)
    step = stride if stride is not None else max(d for d in range(1, backbone.patch) if backbone.patch % d == 0)
    if dense:
        plan_for_backbone(backbone, 1, 1, step)  # a stride that does not fit is told before anything is read
    candidates = tuple(penalties) if penalties is not None else PENALTIES if optimizer == "lbfgs" else RATES
    if not levels or random_seeds < 1 or not candidates or not all(0 < candidate < inf for candidate in candidates):
        raise ConfigError("a probe needs one of --blocks, --random-seeds of at least 1, and --penalties above 0")
    if out is not None and cache is None:
        cache = Path(out) / "cache"
    cache = None if cache is None else Path(cache)

    splits = make_splits(images, folds, by, seed, fraction, across > 0)
    inputs = backbone.take(images, stats)
    measured = band_statistics(inputs, cache) if stats == DATASET else None

    def scaling_of(rows: Ints) -> Scaling:
        dataset = None
        if measured is not None:
            mean, std = measured.over(rows)
            dataset = inputs.scaling.with_stats(mean.tolist(), std.tolist(), "user")
        return backbone.scaling(inputs, stats, dataset)

    scalings = [scaling_of(part.train) for part in splits.parts]
    notes = [*images.notes, *splits.notes, *_input_notes(backbone, images, inputs, scalings[0])]
    contenders = [("", "encoder", backbone)]
    if baselines and isinstance(backbone.module, DOFA):
        config = backbone.module.config
        contenders += [
            ("random ", f"random weights, seed {number}", open_backbone(random_encoder(config, number)))
            for number in range(seed, seed + random_seeds)
        ]
    elif baselines:
        notes.append(f"{backbone.name} has no random weights beside it: only DOFA's architectures are drawn")

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:

        def announce(title: str, times: int) -> Callable[[int], None]:
            task = progress.add_task(title, total=len(images) * times)
            if not console.is_terminal:
                each = f", by {times} statistics" if times > 1 else ""
                console.print(f"{images.name}, {title}: {len(images)} images{each}", highlight=False)
            return lambda count: progress.advance(task, count)

        settings = ProbeSettings(
            images, inputs, splits, levels, candidates, optimizer, seed, size, batch, precision, device, cache, announce
        )
        task: Probe = PixelProbe(settings, step, pixels, across, gap) if dense else ImageProbe(settings, neighbours)
        runs: Runs = {}
        for prefix, title, encoder in contenders:
            for name, found in task.score(encoder, prefix, title, scalings).items():
                runs.setdefault(name, []).extend(found)
        if baselines:
            runs |= task.score_bands()
        rows = tuple(_row(name, classifier, images, of_name, seed) for (name, classifier), of_name in runs.items())
        protocol = splits.protocol | {
            "seed": seed,
            "optimizer": optimizer,
            "penalties": sorted(candidates),
            "random_seeds": random_seeds if baselines else 0,
        }
        protocol |= task.protocol
        setting = _setting(images, backbone, splits, scalings[0]) | {"protocol": protocol}
        setting["encoder"] |= {
            "levels": [level_name(level) for level in levels],
            "size": size,
            "precision": precision,
            "statistics": stats or scalings[0].stats_source,
        }
        differences = _differences(rows, levels, seed)
        result = ProbeResult(setting, rows, differences, tuple(notes), panels=task.panels(runs))
        if out is None:
            return replace(result, verdict=verdict(result.contenders, {}, seed))
        for stale in (HEAD, BANDS):  # of an earlier probe, and maybe of no contender of this one
            (Path(out) / stale / CONFIG).unlink(missing_ok=True)
        split = split_of(images, splits, seed, uncut, block_side)
        commands: dict[Kind, list[str]] = {}
        if isinstance(backbone.module, DOFA):
            best = next(level for level in levels if level_name(level) == result.best.features)
            scaling = scaling_of(splits.learnt)
            layer, tile = task.fit(backbone, best, scaling)
            told = _validation(result.best, layer, protocol | {"levels_compared": list(levels)})
            head = encoder_head(inputs, backbone.module, backbone.sha256, best, scaling, layer, tile, size, told, split)
            head.save(Path(out) / HEAD)
            result = replace(result, head=head)
            if not isinstance(weights, DOFA | Backbone):
                commands["model"] = map_command(Path(out) / HEAD, images.task, str(weights), step if dense else None)
        if baselines:
            layer = task.fit_bands()
            bands_head = band_head(images, layer, _validation(result.row(BAND_STATISTICS), layer, protocol), split)
            bands_head.save(Path(out) / BANDS)
            commands[BAND_STATISTICS] = map_command(Path(out) / BANDS, images.task)
            result = replace(result, band_head=bands_head)
        result = replace(result, verdict=verdict(result.contenders, commands, seed))
    write_atomically(Path(out) / RESULT, (json.dumps(redact_values(result.to_dict()), indent=1) + "\n").encode())
    return result


def _levels(blocks: Sequence[int | str], backbone: Backbone, dense: bool) -> tuple[Block, ...]:
    """Numbers of the blocks, each once; of pixels the last block stands for the pooled vector."""
    levels = [block_number(block, backbone.depth) for block in blocks]
    last = backbone.depth - 1
    return tuple(dict.fromkeys(last if dense and level == "pooled" else level for level in levels))


def _input_notes(backbone: Backbone, images: LabelledImages, inputs: LabelledImages, scaling: Scaling) -> Iterator[str]:
    """Bands that the model is not fed, and how units are mapped."""
    left_out = [name for name in images.sensor.band_names if name not in inputs.sensor.band_names]
    if left_out and isinstance(backbone, DofaBackbone):
        yield f"{backbone.name} is not fed {', '.join(left_out)}: it has no statistics of them"
    for mapped in unit_path(inputs.scaling.unit, scaling.unit, inputs.sensor.platform):
        yield f"pixels reach the encoder through {mapped.name}{', an approximation' * mapped.approximate}"


def _validation(row: Row, layer: LinearModel, protocol: dict[str, Any]) -> dict[str, Any]:
    """What a head says of its score: that of the folds, not of the layer that was then fitted on all of them."""
    return {"metric": row.metric, "score": asdict(row.score), "penalty": layer.penalty, **protocol}


def _row(name: str, classifier: Classifier, images: LabelledImages, runs: Sequence[CrossValidated], seed: int) -> Row:
    """One line of the table; several runs (seeds of random weights) are averaged."""
    counts = [run.confusion for run in runs if run.confusion is not None]
    of_classes = [run.by_class for run in runs if run.by_class is not None]
    classes = class_scores(images.class_names, np.sum(of_classes, axis=0), images.task) if of_classes else ()
    return Row(
        features=name,
        classifier=classifier,
        metric=METRICS[images.task],
        classes=tuple({**row, "count": row["count"] // len(runs)} for row in classes),
        score=interval([run.judged for run in runs], seed),
        per_fold=tuple(float(fold) for fold in np.mean([run.per_fold for run in runs], axis=0)),
        chosen=tuple(value for run in runs for value in run.chosen),
        confusion=tuple(tuple(int(n) for n in true) for true in np.sum(counts, axis=0)) if counts else None,
        judged=tuple(run.judged for run in runs),
    )


def _differences(rows: Sequence[Row], levels: Sequence[Block], seed: int) -> tuple[Difference, ...]:
    by_name = {(row.features, row.classifier): row for row in rows}
    return tuple(
        Difference(level_name(level), against, classifier, interval(mine.judged, seed, theirs.judged))
        for level in levels
        for against in (f"random {level_name(level)}", BAND_STATISTICS)
        for classifier in dict.fromkeys(row.classifier for row in rows)
        if (theirs := by_name.get((against, classifier))) and (mine := by_name[level_name(level), classifier])
    )


def _setting(images: LabelledImages, backbone: Backbone, shared: EvaluationSplits, scaling: Scaling) -> dict[str, Any]:
    return {
        "data": {
            "name": images.name,
            "fingerprint": images.fingerprint,
            "task": images.task,
            "unit": shared.unit,
            "images": len(images),
            "judged": sum(len(part.test) for part in shared.parts),
            "classes": shared.classes,
            "sensor": images.sensor.name,
            "bands": list(images.sensor.band_names),
            "shape": list(images.shape),
        },
        "encoder": {
            "name": backbone.name,
            "sha256": backbone.sha256,
            "width": backbone.width,
            "depth": backbone.depth,
            "patch": backbone.patch,
            "unit": scaling.unit,
        },
    }
