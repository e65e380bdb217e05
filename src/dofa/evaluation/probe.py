"""`dofa probe`: how much a frozen encoder's features are worth, beside random weights and beside no model at all.

From top to bottom: images and folds, features of every contender, out-of-fold predictions, intervals and paired
differences, and a head on everything, saved.
"""

import json
from collections.abc import Callable, Sequence
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
from dofa.evaluation.bootstrap import CrossValidated, interval, score_images
from dofa.evaluation.cross_validation import PENALTIES, RATES, LinearModel, Optimizer, check_features
from dofa.evaluation.frozen_features import Floats, Precision, band_statistics, block_number, encode
from dofa.evaluation.judged_images import choose_images, make_panels
from dofa.evaluation.metrics import class_scores
from dofa.evaluation.pixel_features import BandPixels, EncoderPixels, plan_for_backbone
from dofa.evaluation.pixel_probe import Ground, PixelTask, cut_blocks, draw_sample, gather, label_map
from dofa.evaluation.probe_heads import BANDS, HEAD, band_head, encoder_head, fit_images, split_of
from dofa.evaluation.probe_result import Classifier, Difference, Metric, ProbeResult, Row
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
    backbone = (
        weights
        if isinstance(weights, Backbone)
        else open_backbone(weights if isinstance(weights, DOFA) else str(weights))
    )
    levels = tuple(dict.fromkeys(block_number(block, backbone.depth) for block in blocks))
    if dense:
        levels = tuple(dict.fromkeys(backbone.depth - 1 if level == "pooled" else level for level in levels))
    step = stride if stride is not None else max(d for d in range(1, backbone.patch) if backbone.patch % d == 0)
    if dense:
        plan_for_backbone(backbone, 1, 1, step)  # a stride that does not fit is told before anything is read
    candidates = tuple(penalties) if penalties is not None else PENALTIES if optimizer == "lbfgs" else RATES
    if not levels or random_seeds < 1 or not candidates or not all(0 < candidate < inf for candidate in candidates):
        raise ConfigError("a probe needs one of --blocks, --random-seeds of at least 1, and --penalties above 0")
    if out is not None and cache is None:
        cache = Path(out) / "cache"
    cache = None if cache is None else Path(cache)

    shared = make_splits(images, folds, by, seed, fraction, across > 0)
    parts, notes = shared.parts, [*images.notes, *shared.notes]
    fewest = min(len(part.train) for part in parts)
    if not dense and not 1 <= neighbours <= fewest:
        raise ConfigError(f"--neighbours {neighbours}: between 1 and the {fewest} training images of a fold")

    seen = backbone.take(images, stats)
    left_out = [name for name in images.sensor.band_names if name not in seen.sensor.band_names]
    if left_out and isinstance(backbone, DofaBackbone):
        notes.append(f"{backbone.name} is not fed {', '.join(left_out)}: it has no statistics of them")
    measured = band_statistics(seen, cache) if stats == DATASET else None

    def scaling_of(rows: Ints) -> Scaling:
        dataset = None
        if measured is not None:
            mean, std = measured.over(rows)
            dataset = seen.scaling.with_stats(mean.tolist(), std.tolist(), "user")
        return backbone.scaling(seen, stats, dataset)

    scalings = [scaling_of(part.train) for part in parts]
    for mapped in unit_path(seen.scaling.unit, scalings[0].unit, seen.sensor.platform):
        notes.append(f"pixels reach the encoder through {mapped.name}{', an approximation' * mapped.approximate}")

    statistics = band_statistics(images, cache) if baselines and not dense else None
    linear: Classifier = "LARS" if optimizer == "lars" else "logistic"
    classifiers: tuple[Classifier, ...] = (linear,) if dense else (linear, "k-NN")
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:

        def announced(title: str, over: Sequence[Scaling]) -> Callable[[int], None]:
            times = len(set(over))
            task = progress.add_task(title, total=len(images) * times)
            if not console.is_terminal:
                each = f", by {times} statistics" if times > 1 else ""
                console.print(f"{images.name}, {title}: {len(images)} images{each}", highlight=False)
            return lambda count: progress.advance(task, count)

        def encoded(encoder: Backbone, title: str, over: Sequence[Scaling]) -> dict[Block, list[Floats]]:
            """(N, D) for each level and each scaling; equal scalings are encoded once."""
            advance = announced(title, over)
            found = {
                scaling: encode(
                    encoder, seen, scaling, levels, size=size, batch=batch, precision=precision, device=device,
                    cache=cache, progress=advance,
                )
                for scaling in dict.fromkeys(over)
            }  # fmt: skip
            return {level: [found[scaling][level] for scaling in over] for level in levels}

        def pixels_of(encoder: Backbone, title: str, over: Sequence[Scaling]) -> list[EncoderPixels]:
            """The maps of every scaling, made when they are asked for."""
            advance, numbers = announced(title, over), [int(level) for level in levels]
            found = {
                scaling: EncoderPixels(
                    encoder, seen, scaling, numbers, stride=step, size=size, batch=batch, precision=precision,
                    device=device, progress=advance,
                )
                for scaling in dict.fromkeys(over)
            }  # fmt: skip
            return [found[scaling] for scaling in over]

        contenders = [("", "encoder", backbone)]
        if baselines and isinstance(backbone.module, DOFA):
            config = backbone.module.config
            contenders += [
                (
                    "random ",
                    f"random weights, seed {seed + number}",
                    open_backbone(random_encoder(config, seed + number)),
                )
                for number in range(random_seeds)
            ]
        elif baselines:
            notes.append(f"{backbone.name} has no random weights beside it: only DOFA's architectures are drawn")

        runs: dict[tuple[str, Classifier], list[CrossValidated]] = {}
        if dense:
            sample = draw_sample(images, shared.groups, pixels, seed)
            ground = Ground(across, images.shape[1:], gap if across else 0)
            judged = sorted({int(row) for part in parts for row in part.test})
            shown = frozenset(judged if across else choose_images(images, judged))
            task = PixelTask(images, parts, shared.units, sample, ground, pixels, candidates, optimizer, seed, shown)
            for before, title, encoder in contenders:
                found = task.judge(pixels_of(encoder, title, scalings), encoder.width, title)
                for level, run in zip(levels, found, strict=True):
                    runs.setdefault((before + _name(level), linear), []).append(run)
            if baselines:
                width = 3 * len(images.sensor.bands)
                runs["band statistics", linear] = task.judge(
                    [BandPixels(images)] * len(parts), width, "band statistics"
                )
        else:
            of: list[tuple[str, list[Floats]]] = []
            for before, title, encoder in contenders:
                of += [(before + _name(level), f) for level, f in encoded(encoder, title, scalings).items()]
            if statistics is not None:
                of.append(("band statistics", [statistics.features] * len(parts)))
            for name, of_folds in of:
                for features in {id(f): f for f in of_folds}.values():
                    check_features(features, images.labels, images.sources, name)
                for classifier in classifiers:
                    run = score_images(
                        classifier, of_folds, images.labels, parts, shared.units, classes=len(images.class_names),
                        places=shared.places, candidates=candidates, neighbours=neighbours, seed=seed,
                    )  # fmt: skip
                    runs.setdefault((name, classifier), []).append(run)

        rows = tuple(_row(name, classifier, images, of_name, seed) for (name, classifier), of_name in runs.items())
        protocol = shared.protocol | {
            "seed": seed,
            "optimizer": optimizer,
            "penalties": sorted(candidates),
            "random_seeds": random_seeds if baselines else 0,
        }
        protocol |= (
            {"stride": step, "pixels": pixels, "gap": ground.gap, "shape": list(images.shape[1:])}
            if dense
            else {"neighbours": neighbours}
        )
        setting = _setting(images, backbone, shared, scalings[0]) | {"protocol": protocol}
        setting["encoder"] |= {
            "levels": [_name(level) for level in levels],
            "size": size,
            "precision": precision,
            "statistics": stats or scalings[0].stats_source,
        }
        panels = None
        if dense:
            answers = {name: of_name[0].answers for (name, _), of_name in runs.items()}
            panels = make_panels(images, {row: label_map(images, row) for row in sorted(shown)}, answers, across)
        result = ProbeResult(setting, rows, _differences(rows, levels, seed), tuple(notes), panels=panels)
        if out is None:
            return replace(result, verdict=verdict(result.contenders, {}, seed))
        for stale in (HEAD, BANDS):  # of an earlier probe, and maybe of no contender of this one
            (Path(out) / stale / CONFIG).unlink(missing_ok=True)
        split = split_of(images, shared, seed, uncut, block_side)
        commands: dict[Kind, list[str]] = {}
        if isinstance(backbone.module, DOFA):
            best = next(level for level in levels if _name(level) == result.best.features)
            scaling = scaling_of(shared.learnt)
            if dense:
                maps = pixels_of(backbone, "head", [scaling])[0]
                first = levels.index(best) * backbone.width
                gathered = gather(maps, sample, images.shape[1:])[:, first : first + backbone.width]
                layer = task.learn(gathered, shared.learnt, np.zeros(0, np.int64))
                tile = maps.plan.tile
            else:
                whole = encoded(backbone, "head", [scaling])[best][0]
                layer = fit_images(whole, images, shared, candidates, seed, optimizer)
                tile = size or images.shape[1]
            told = _validation(result.best, layer, protocol | {"levels_compared": list(levels)})
            head = encoder_head(seen, backbone.module, backbone.sha256, best, scaling, layer, tile, size, told, split)
            head.save(Path(out) / HEAD)
            result = replace(result, head=head)
            if not isinstance(weights, DOFA | Backbone):
                commands["model"] = map_command(Path(out) / HEAD, images.task, str(weights), step if dense else None)
        if baselines:
            if dense:
                gathered = gather(BandPixels(images), sample, images.shape[1:])
                layer = task.learn(gathered, shared.learnt, np.zeros(0, np.int64))
            else:
                assert statistics is not None
                layer = fit_images(statistics.features, images, shared, candidates, seed, optimizer)
            told = _validation(result.row("band statistics"), layer, protocol)
            bands_head = band_head(images, layer, told, split)
            bands_head.save(Path(out) / BANDS)
            commands["band statistics"] = map_command(Path(out) / BANDS, images.task)
            result = replace(result, band_head=bands_head)
        result = replace(result, verdict=verdict(result.contenders, commands, seed))
    write_atomically(Path(out) / RESULT, (json.dumps(redact_values(result.to_dict()), indent=1) + "\n").encode())
    return result


def _name(level: Block) -> str:
    return "pooled" if level == "pooled" else f"block {level}"


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
        Difference(_name(level), against, classifier, interval(mine.judged, seed, theirs.judged))
        for level in levels
        for against in (f"random {_name(level)}", "band statistics")
        for classifier in dict.fromkeys(row.classifier for row in rows)
        if (theirs := by_name.get((against, classifier))) and (mine := by_name[_name(level), classifier])
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
