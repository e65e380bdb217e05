"""A saved head's answers to labelled images, and what they are worth."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dofa.addresses import redact_values
from dofa.datasets.labelled import LabelledImages, Part
from dofa.datasets.opening import open_labelled
from dofa.errors import ConfigError, DataError
from dofa.evaluation.backbones import DofaBackbone
from dofa.evaluation.judged_images import draw_panels
from dofa.evaluation.overlap import as_blocks, choose_test_images
from dofa.evaluation.pixel_features import TilePixels, plan_for_backbone
from dofa.evaluation.scores import ANSWERED, draw_confusion, logits_of, score_predictions
from dofa.finetuning.evaluate import Evaluation
from dofa.finetuning.samples import Samples
from dofa.finetuning.settings import Precision
from dofa.inference.band_statistics import head_logits, in_unit
from dofa.inference.predict import GSD_APART, HeadTiles
from dofa.inference.tile_encoder import EncoderTiles
from dofa.io import write_atomically
from dofa.model import checkpoint
from dofa.model.decoders import on_image, resize
from dofa.model.devices import choose_device
from dofa.model.encoder import DOFA
from dofa.model.heads import Head, load_head
from dofa.progress import Progress
from dofa.sensors import Sensor

RESULT, PICTURE, PANELS = "evaluate.json", "confusion.png", "panels.png"


def score_head(
    head: str | Path | Head,
    weights: str | DOFA | None,
    data: str | LabelledImages,
    split: Part | None,
    stride: int | None,
    folder: Path | None,
    batch: int,
    precision: Precision,
    seed: int,
    device: str | None,
) -> Evaluation:
    """Score a saved head; arguments as of `evaluate`, with its `out` as `folder`."""
    trained = head if isinstance(head, Head) else load_head(head)
    model = weights if isinstance(weights, DOFA) or weights is None else checkpoint.load(weights)
    trained.require(model)
    images = open_labelled(data) if isinstance(data, str) else data
    try:
        images = images.select_bands(trained.sensor.band_names)
    except ConfigError as error:
        raise ConfigError(
            f"{images.name}: the head was trained on {trained.sensor.name}, these images are of {images.sensor.name}: "
            f"{error}"
        ) from None
    images = as_blocks(matched(images, trained), trained.split)
    step = stride_of(trained, stride)
    judged = choose_test_images(images, trained.split, split)
    rows, notes = judged.rows, list(images.notes)
    with Progress("judging", len(rows), 0, True) as bar:
        found: Iterable[tuple[Tensor, Tensor]]
        if model is None:
            found = band_statistics_predictions(trained, images, rows, bar.advance)
        else:
            size, said = size_for(trained, images)
            notes += said
            samples, target = Samples(images, trained.scaling, size), choose_device(device)
            answer = HeadPredictions(model.to(target).eval(), trained, images.sensor, max(samples.shape))
            found = (
                logits_of(
                    answer, samples.batch, rows, batch=batch, device=target, bf16=precision == "bf16",
                    progress=bar.advance,
                )
                if step is None
                else answer.shifted(samples, rows, step, batch, precision, bar.advance)
            )  # fmt: skip
        score = score_predictions(found, images, rows, seed)
    setting = {
        "head": {"sha256": trained.sha256, "task": trained.task, "validation": trained.validation},
        "encoder_sha256": trained.encoder_sha256,
        "data": {"name": images.name, "fingerprint": images.fingerprint, "part": judged.part},
        "overlap": judged.to_dict(),
        "stride": step,
        "seed": seed,
    }
    evaluation = Evaluation(score, setting, tuple(notes), judged.words)
    if folder is not None:
        title = f"{images.name}, {judged.part}{', learned from' if judged.learned else ''}"
        write_atomically(folder / RESULT, (json.dumps(redact_values(evaluation.to_dict()), indent=1) + "\n").encode())
        if images.task != "multilabel":
            draw_confusion(score, folder / PICTURE, title)
        if score.panels is not None:
            draw_panels(folder / PANELS, {ANSWERED: (score.panels, ANSWERED)}, title)
    return evaluation


def size_for(head: Head, images: LabelledImages) -> tuple[tuple[int, int] | None, list[str]]:
    """Height and width at which images have the head's pixel size, None for their own, and what is to be said of it.

    Args:
        head: with the pixel size it was trained at.
    """
    ratio = images.sensor.gsd_m / head.gsd_m
    if abs(ratio - 1) <= 0.01:
        return None, []
    said = f"pixels of {images.sensor.gsd_m:g} m are brought to the {head.gsd_m:g} m that the head was trained on"
    return (round(images.shape[1] * ratio), round(images.shape[2] * ratio)), [said]


def band_statistics_predictions(
    head: Head, images: LabelledImages, rows: NDArray[np.int64], progress: Callable[[int], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of images with their targets, for `score_predictions`, from a head of band statistics.

    Args:
        images: in its bands.
        progress: called with the number of images just answered.

    Raises:
        ConfigError: images of another pixel size, or no way from their unit to the head's.
        DataError: measured pixels that are not finite.
    """
    apart = max(images.sensor.gsd_m / head.gsd_m, head.gsd_m / images.sensor.gsd_m)
    if apart > GSD_APART:
        raise ConfigError(
            f"{images.name}: pixels of {images.sensor.gsd_m:g} m, the head of band statistics was trained on "
            f"{head.gsd_m:g} m: train one on images of this size"
        )
    samples = Samples(images, images.scaling)
    for row in rows.tolist():
        raw, valid = images.read(row)
        seen = np.ones(raw.shape[1:], bool) if valid is None else valid
        if not seen.any():
            raise DataError(f"{images.sources[row]} has no valid pixel: leave it out")
        values = in_unit(images.scaling.physical(raw), seen, images.sensor, images.scaling, head.scaling)
        logits = torch.from_numpy(head_logits(head, values, seen))[None]
        yield (logits if head.task == "segmentation" else logits[..., 0, 0]), samples.target(row, valid)[None]
        progress(1)


class HeadPredictions:
    """An encoder with a head, from normalised images to logits.

    Maps come the way that `dofa predict` takes: in one pass for a tile as large as the image, or in shifted ones.

    Args:
        model: the head's encoder, on its device.
        sensor: the images' bands in the head's order.
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
        """Logits (1, K, H, W) of images, and their masks: the mean over passes, as in a probe and a map.

        Args:
            stride: pixels between passes.
            precision: float32 or bf16.
            progress: called with the number of images just answered.

        Raises:
            ConfigError: a stride that is no divisor of the patch.
        """
        assert self.tiles is not None
        plan = plan_for_backbone(self.backbone, *samples.shape, stride, self.head.tile_size)
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
        said: as the user did, None for what the head was judged with.

    Raises:
        ConfigError: a stride for a head that answers for whole images, or for every pixel by itself.
    """
    if said is not None and head.task != "segmentation":
        raise ConfigError(f"--stride {said} is for maps: the head is for {head.task}")
    if said is not None and head.decoder is not None:
        raise ConfigError(f"--stride {said}: a {head.decoder.kind} decoder answers for every pixel: leave it out")
    if head.encoder_sha256 is None:
        if said is not None:
            raise ConfigError(f"--stride {said}: band statistics are of every pixel: leave it out")
        return None
    if said is None and head.task == "segmentation" and head.decoder is None:
        return head.validation.get("stride")
    return said


def matched(images: LabelledImages, head: Head) -> LabelledImages:
    """The images with their labels in the head's order of classes.

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
