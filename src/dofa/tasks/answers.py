"""A saved head's answers to labelled images, and what they are worth."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dofa.errors import ConfigError, DataError
from dofa.files import write_atomically
from dofa.model import checkpoint
from dofa.model.decoders import on_image, resize
from dofa.model.devices import choose
from dofa.model.encoder import DOFA
from dofa.model.heads import Head, load_head
from dofa.progress import Progress
from dofa.scene.encoder import EncoderTiles
from dofa.scene.predict import HeadTiles
from dofa.sensors import Sensor
from dofa.tasks.backbones import DofaBackbone
from dofa.tasks.datasets import open_labelled
from dofa.tasks.evaluate import Evaluation, Part
from dofa.tasks.labelled import LabelledImages
from dofa.tasks.panels import draw_panels
from dofa.tasks.pixelmaps import TilePixels, plan_of
from dofa.tasks.samples import Samples
from dofa.tasks.scoring import ANSWERED, draw_confusion, judge, logits_of
from dofa.tasks.tuning import Precision

RESULT, PICTURE, PANELS = "evaluate.json", "confusion.png", "panels.png"


def judge_head(
    head: str | Path | Head,
    weights: str | DOFA,
    data: str | LabelledImages,
    split: Part,
    stride: int | None,
    folder: Path | None,
    batch: int,
    precision: Precision,
    seed: int,
    device: str | None,
) -> Evaluation:
    """Score a saved head; arguments as of `evaluate`, with its `out` as `folder`."""
    model = weights if isinstance(weights, DOFA) else checkpoint.load(weights)
    trained = head if isinstance(head, Head) else load_head(head)
    trained.require(model)
    images = open_labelled(data) if isinstance(data, str) else data
    images = matched(images.select_bands(trained.sensor.band_names), trained)
    if split != "all" and images.splits is None:
        raise DataError(f"{images.name} has no published split: --split all judges all its images")
    rows = np.arange(len(images)) if split == "all" else np.flatnonzero(np.array(images.splits) == split)
    notes = list(images.notes)
    ratio = images.sensor.gsd_m / trained.gsd_m
    size = None
    if abs(ratio - 1) > 0.01:
        size = (round(images.shape[1] * ratio), round(images.shape[2] * ratio))
        notes.append(
            f"pixels of {images.sensor.gsd_m:g} m are brought to the {trained.gsd_m:g} m that the head was trained on"
        )
    samples = Samples(images, trained.scaling, size)
    step = stride_of(trained, stride)
    target = choose(device)
    answer = Answers(model.to(target).eval(), trained, images.sensor, max(samples.shape))
    with Progress("judging", len(rows), 0, True) as bar:
        found = (
            logits_of(
                answer, samples.batch, rows, batch=batch, device=target, bf16=precision == "bf16", progress=bar.advance
            )
            if step is None
            else answer.shifted(samples, rows, step, batch, precision, bar.advance)
        )
        score = judge(found, images, rows, seed)
    setting = {
        "head": {"sha256": trained.sha256, "task": trained.task, "validation": trained.validation},
        "encoder_sha256": trained.encoder_sha256,
        "data": {"name": images.name, "fingerprint": images.fingerprint, "part": split},
        "stride": step,
        "seed": seed,
    }
    evaluation = Evaluation(score, setting, tuple(notes))
    if folder is not None:
        write_atomically(folder / RESULT, (json.dumps(evaluation.to_dict(), indent=1) + "\n").encode())
        if images.task != "multilabel":
            draw_confusion(score, folder / PICTURE, f"{images.name}, {split}")
        if score.panels is not None:
            draw_panels(folder / PANELS, {ANSWERED: (score.panels, ANSWERED)}, f"{images.name}, {split}")
    return evaluation


class Answers:
    """An encoder with a head, from normalised images to logits.

    Maps come the way that `dofa predict` takes: in one pass for a tile as large as the image, or in shifted ones.

    Args:
        model: the head's encoder, on its device.
        head: what was learned.
        sensor: the images' bands in the head's order.
        side: of the images.
    """

    def __init__(self, model: DOFA, head: Head, sensor: Sensor, side: int) -> None:
        self.head, self.sensor = head, sensor
        self.backbone = DofaBackbone(model, "encoder")
        self.tiles = None
        if head.task == "segmentation":
            self.tiles = HeadTiles(EncoderTiles(model.specialize(sensor), "patch", head.levels, side), head).eval()

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K) or (B, K, H, W)."""
        if self.tiles is None:
            found = self.backbone.vectors(images, self.sensor, self.head.levels)
            return self.head.apply(torch.cat([found[level].float() for level in self.head.levels], 1))
        logits = self.tiles(images)
        cell = self.tiles.cell
        if cell > 1:
            logits = resize(logits, (cell * logits.shape[-2], cell * logits.shape[-1]))
        return on_image(logits, (images.shape[-2], images.shape[-1]), self.head.patch_offset)

    def shifted(
        self,
        samples: Samples,
        rows: NDArray[np.int64],
        stride: int,
        batch: int,
        precision: Precision,
        progress: Callable[[int], None],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (1, K, H, W) of images with their masks, for `judge`: the mean over passes, as a probe's and a map's.

        Args:
            samples: the images.
            rows: which.
            stride: pixels between passes.
            batch: tiles at a time.
            precision: float32 or bf16.
            progress: called with the number of images just answered.

        Raises:
            ConfigError: a stride that is no divisor of the patch.
        """
        assert self.tiles is not None
        plan = plan_of(self.backbone, *samples.shape, stride, self.head.tile_size)
        pixels = TilePixels(
            self.tiles, plan, samples.data, samples.scaling, batch=batch, precision=precision,
            device=str(next(self.backbone.module.parameters()).device), blank=self.head.bias.astype(np.float32),
            progress=progress,
        )  # fmt: skip
        down, across = (pixels.cells(side, axis) for axis, side in enumerate(samples.data.shape[1:]))
        for row, found in pixels.maps(rows.tolist()):
            logits = torch.from_numpy(found[np.ix_(down, across)])
            yield logits.permute(2, 0, 1)[None], samples.batch([row])[1]


def stride_of(head: Head, said: int | None) -> int | None:
    """Pixels between shifted passes, None for one pass.

    Args:
        head: that answers.
        said: as the user did, None for what the head was judged with.

    Raises:
        ConfigError: a stride for a head that answers for whole images, or for every pixel by itself.
    """
    if said is not None and head.task != "segmentation":
        raise ConfigError(f"--stride {said} is for maps: the head is for {head.task}")
    if said is not None and head.decoder is not None:
        raise ConfigError(f"--stride {said}: a {head.decoder.kind} decoder answers for every pixel: leave it out")
    if said is None and head.task == "segmentation" and head.decoder is None:
        return head.validation.get("stride")
    return said


def matched(images: LabelledImages, head: Head) -> LabelledImages:
    """The images with their labels in the head's order of classes.

    Args:
        images: with labels.
        head: with its task and classes.

    Raises:
        ConfigError: another task.
        DataError: a class that the head does not know.
    """
    if images.task != head.task:
        raise ConfigError(f"the head is for {head.task}, {images.name} for {images.task}")
    if images.class_names == head.class_names:
        return images
    shown = set(range(len(images.class_names)))
    if images.task == "classification":
        shown = set(images.labels.tolist())
    unknown = [images.class_names[k] for k in sorted(shown) if images.class_names[k] not in head.class_names]
    if unknown:
        raise DataError(
            f"{images.name} has the classes {', '.join(unknown)}, which the head does not know: it knows "
            f"{', '.join(head.class_names)}"
        )
    place = np.array([head.class_names.index(n) if n in head.class_names else -1 for n in images.class_names])
    if images.task == "classification":
        return replace(images, class_names=head.class_names, labels=place[images.labels].astype(np.int64))
    if images.task == "multilabel":
        labels = np.zeros((len(images), len(head.class_names)), np.int64)
        labels[:, place] = images.labels
        return replace(images, class_names=head.class_names, labels=labels)
    read = images.read_mask
    assert read is not None

    def read_mask(index: int) -> NDArray[np.int16]:
        mask = read(index)
        inside = (mask >= 0) & (mask < len(place))
        if images.ignore is not None:
            inside &= mask != images.ignore
        moved = mask.copy()
        moved[inside] = place[mask[inside]]
        return moved

    return replace(images, class_names=head.class_names, read_mask=read_mask)
