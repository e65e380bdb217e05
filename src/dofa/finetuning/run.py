"""A fine-tuning from top to bottom: images and their split, the model with its decoder, epochs of `train.loop` with a
validation after each, the test, and the folders. A run that is killed goes on from its last epoch to the same bits.
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from dofa.addresses import redact_values
from dofa.datasets.folds import fewer_labels
from dofa.datasets.labelled import Ints, LabelledImages
from dofa.datasets.opening import open_labelled
from dofa.datasets.splits import classes_without_training, three_way_split
from dofa.documents import read_json
from dofa.errors import CheckpointError, ConfigError, DataError
from dofa.evaluation.backbones import DATASET, Backbone, DofaBackbone, open_backbone
from dofa.evaluation.frozen_features import band_statistics
from dofa.evaluation.overlap import record_split, split_table
from dofa.evaluation.pixel_probe import cut_blocks
from dofa.evaluation.scores import Score
from dofa.finetuning.epochs import BEST, STATE, Epochs, features_once
from dofa.finetuning.finetune import FORMAT_VERSION, HEAD, MODEL, PANELS, RESULT, SPLIT, FinetuneResult
from dofa.finetuning.learner import Learner, freeze_unreached, transformer
from dofa.finetuning.samples import Samples
from dofa.finetuning.settings import FinetuneConfig
from dofa.io import place_folder, restore_folder, write_atomically
from dofa.model import checkpoint
from dofa.model.decoders import LinearDecoder
from dofa.model.devices import choose_device
from dofa.model.encoder import DOFA
from dofa.model.head_split import Role, SplitRecord
from dofa.model.heads import Head, Kind, palette, split_decoder
from dofa.model.lora import merge_lora
from dofa.pixels import unit_path
from dofa.settings import check_version
from dofa.train.checkpoint import checkpoints, lock_run, read_run_info


def run(
    weights: str | DOFA,
    data: str | LabelledImages,
    folder: Path,
    tuning: FinetuneConfig,
    *,
    bands: Sequence[str] | None,
    seed: int,
    device: str | None,
    cache: Path | None,
    resume: bool,
    overwrite: bool,
) -> FinetuneResult:
    """Adapt a model and test it; arguments as of `finetune`, with its settings as `tuning` and `out` as `folder`."""
    backbone = open_backbone(weights)
    images = open_labelled(data) if isinstance(data, str) else data
    given = images if bands is None else images.select_bands(bands)
    images = backbone.take(given, tuning.stats)
    left_out = [name for name in given.sensor.band_names if name not in images.sensor.band_names]
    whole = None
    if images.task == "segmentation" and len(images) == 1:
        whole, (images, _) = images, cut_blocks(images)
    if tuning.size is not None and images.shape[1] != images.shape[2]:
        raise ConfigError(f"size {tuning.size} would distort images of {images.shape[1]} × {images.shape[2]}")
    rows = three_way_split(images, seed)
    rows = replace(rows, train=fewer_labels(images.labels, rows.train, tuning.fraction, seed))
    batch_size = min(tuning.batch, len(rows.train)) // tuning.accumulate * tuning.accumulate
    if batch_size < 2 * tuning.accumulate:
        raise DataError(f"{images.name}: {len(rows.train)} training images are fewer than a batch needs: label more")
    dataset = None
    if tuning.stats == DATASET:
        mean, std = band_statistics(images, cache).over(rows.train)
        dataset = images.scaling.with_stats(mean.tolist(), std.tolist(), "user")
    scaling = backbone.scaling(images, tuning.stats, dataset)
    notes = [*images.notes, *rows.notes]
    if left_out and isinstance(backbone, DofaBackbone):
        notes.append(f"{backbone.name} is not fed {', '.join(left_out)}: it has no statistics of them")
    if absent := classes_without_training(images, rows.train):
        notes.append(f"no training image shows {', '.join(absent)}: it cannot be learned")
    for mapped in unit_path(images.scaling.unit, scaling.unit, images.sensor.platform):
        notes.append(f"pixels reach the encoder through {mapped.name}{', an approximation' * mapped.approximate}")
    samples = Samples(images, scaling, None if tuning.size is None else (tuning.size, tuning.size))
    setting = {
        "method": tuning.method,
        "decoder": tuning.decoder,
        "model": {"name": backbone.name, "sha256": backbone.sha256},
        "data": {
            "name": images.name, "fingerprint": images.fingerprint, "sensor": images.sensor.name,
            "bands": list(images.sensor.band_names), "shape": list(images.shape),
            "train": len(rows.train), "val": len(rows.val), "test": len(rows.test),
        },
        "settings": {**tuning.to_dict(), "lr": tuning.rate, "batch": batch_size},
    }  # fmt: skip
    digest = redact_values(json.loads(json.dumps({**setting, "seed": seed, "scaling": scaling.to_dict()})))

    target = choose_device(device)
    fabric = Fabric(
        accelerator=target.type,
        devices=1 if target.index is None or target.type == "cpu" else [target.index],
        precision="bf16-mixed" if tuning.precision == "bf16" else "32-true",
    )
    fabric.launch()
    work = folder.absolute().with_name(f".{folder.absolute().name}.part")
    restore_folder(folder, work / "previous")
    with lock_run(fabric, folder):
        place = _place(folder, work, digest, resume, overwrite)
        if place == folder and (finished := _found(folder, digest, resume)) is not None:
            return finished
        learner = _learner(backbone, images, tuning, seed, samples, rows.train)
        epochs = Epochs(fabric, learner, samples, rows, tuning, batch_size, seed, place, digest)
        if tuning.cached:
            kept = folder / "cache" if cache is None else cache
            epochs.cache = features_once(learner, samples, tuning, rows, target, kept)
        validation, epoch, seconds = epochs.learn()
        began = time.perf_counter()
        if tuning.method == "lora" and (vit := transformer(learner.encoder)) is not None:
            merge_lora(vit)
        score = epochs.score(rows.test)
        used: dict[Role, Ints] = {"train": rows.train, "val": rows.val, "test": rows.test}
        made_from = record_split(images, used, None if images.splits else seed, whole)
        write_atomically(folder / SPLIT, split_table(images, used))
        about = setting | {"seed": seed}
        notes += _save(place, backbone, learner, samples, tuning, score, about, str(weights), made_from)
        result = FinetuneResult(
            test=score.to_dict(),
            validation=tuple(validation),
            epoch=epoch,
            setting=setting,
            seed=seed,
            seconds=round(seconds + time.perf_counter() - began, 3),
            notes=tuple(notes),
            folder=folder,
            drawn=score.drawn,
        )
        if score.panels is not None:
            score.panels.save(place / PANELS)
        record = result.to_dict() | {"digest": digest, "drawn": list(score.drawn)}
        write_atomically(place / RESULT, (json.dumps(redact_values(record), indent=1) + "\n").encode())
        if place != folder:
            _carry(folder, place)
            place_folder(place, folder, work / "previous")
        _clear(folder)
        shutil.rmtree(work, ignore_errors=True)
    return result


def _learner(
    backbone: Backbone, images: LabelledImages, tuning: FinetuneConfig, seed: int, samples: Samples, rows: Ints
) -> Learner:
    """The model with its decoder, whose weights the seed decides; the caller's generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner = Learner(backbone, images, tuning)
    two = [samples.augmented(int(row), np.random.default_rng(seed), None) for row in rows[:2]]
    freeze_unreached(learner, *(torch.stack(parts) for parts in zip(*two, strict=True)))
    return learner.train()


def _place(folder: Path, work: Path, digest: dict[str, Any], resume: bool, overwrite: bool) -> Path:
    """Where the run goes on: in its folder, or beside a finished one that it replaces when it is finished itself."""
    anew = work / "new"
    begun = checkpoints(anew / STATE)
    if resume and begun and read_run_info(begun[-1]).get("digest") == digest:
        return anew
    if not overwrite or resume:
        return folder
    if anew.exists():
        _carry(anew, folder)
    shutil.rmtree(work, ignore_errors=True)
    if not (folder / RESULT).is_file():
        _clear(folder)
        return folder
    anew.mkdir(parents=True)
    return anew


def _carry(old: Path, new: Path) -> None:
    """Move what is no part of a run, such as features or notes of the user's, to the folder of another run."""
    own = {RESULT, HEAD, MODEL, PANELS, STATE, "log.jsonl", "log.csv", ".lock"}
    for entry in old.iterdir():
        if entry.name not in own and not entry.name.endswith(f".{BEST}") and not (new / entry.name).exists():
            os.replace(entry, new / entry.name)


def _found(folder: Path, digest: dict[str, Any], resume: bool) -> FinetuneResult | None:
    """What is finished already.

    Raises:
        ConfigError: it holds a run, and nobody said what to do with it, or one of other settings.
    """
    finished, begun = folder / RESULT, checkpoints(folder / STATE)
    if not (finished.is_file() or begun):
        return None
    if not resume:
        raise ConfigError(f"{folder} holds a run: go on with --resume, replace it with --overwrite, or name another")
    record = read_json(finished, CheckpointError) if finished.is_file() else read_run_info(begun[-1])
    if not isinstance(record, dict):
        raise CheckpointError(f"{finished} is no result of a fine-tuning: replace it with --overwrite")
    before = record.get("digest")
    if before != digest:
        changed = [key for key in digest if not isinstance(before, dict) or before.get(key) != digest[key]]
        raise ConfigError(f"{folder} holds a run of another {', '.join(changed)}: name another folder, or --overwrite")
    if not finished.is_file():
        return None
    check_version(record.get("format_version"), FORMAT_VERSION, str(finished), CheckpointError)
    return FinetuneResult(
        test={key: record[key] for key in ("metric", "score", "images", "classes", "confusion")},
        validation=tuple(record["validation"]),
        epoch=record["epoch"],
        setting={key: record[key] for key in ("method", "decoder", "model", "data", "settings")},
        seed=record["seed"],
        seconds=record["seconds"],
        notes=tuple(record["notes"]),
        folder=folder,
        drawn=tuple(record.get("drawn", ())),
    )


def _clear(folder: Path) -> None:
    """Remove what only a continuation needs."""
    shutil.rmtree(folder / STATE, ignore_errors=True)
    for file in folder.glob(f"*.{BEST}"):
        file.unlink()


def _save(
    folder: Path,
    backbone: Backbone,
    learner: Learner,
    samples: Samples,
    tuning: FinetuneConfig,
    score: Score,
    about: dict[str, Any],
    weights: str,
    record: SplitRecord,
) -> list[str]:
    """Write the head folder, and the encoder where it is another than before; what has to be said of it."""
    if not isinstance(backbone, DofaBackbone) or type(backbone.module) is not DOFA:
        return [f"no head is saved: dofa predict maps with DOFA encoders, not with {backbone.name}"]
    data, model = samples.data, backbone.module
    if tuning.method != "frozen" or weights.startswith("random:"):
        model.requires_grad_(True)
        checkpoint.save(model, folder / MODEL, provenance={"finetune": about})
    decoder, height = learner.decoder.cpu(), data.shape[1]
    before = None
    if isinstance(decoder, LinearDecoder):
        weight, bias = (tensor.numpy() for tensor in decoder.folded())
    else:
        kind: Kind = "upernet" if tuning.decoder == "upernet" else "dpt"
        before, weight, bias = split_decoder(decoder, kind)
    side = samples.shape[0]
    Head(
        task=data.task,
        class_names=data.class_names,
        colours=palette(len(data.class_names)) if data.colours is None else data.colours,
        encoder_sha256=checkpoint.encoder_sha256(model),
        levels=tuple(learner.levels) if learner.dense else ("pooled",),
        sensor=replace(data.sensor, scaling=data.scaling),
        scaling=samples.scaling,
        patch_offset=backbone.patch_offset,
        tile_size=side,
        gsd_m=data.sensor.gsd_m * height / side,
        weight=weight,
        bias=bias,
        validation={"metric": score.metric, "score": score.to_dict()["score"], "images": score.images, "of": "test",
                    "method": tuning.method, "decoder": tuning.decoder, "seed": about["seed"]},
        ignore=data.ignore,
        decoder=before,
        split=record,
    ).save(folder / HEAD)  # fmt: skip
    return []
