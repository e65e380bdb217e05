"""The heads that a probe leaves behind: fitted anew on all training images, one of the encoder and one of the bands."""

from dataclasses import replace
from typing import Any

import numpy as np

from dofa.datasets.labelled import Ints, LabelledImages
from dofa.datasets.splits import EvaluationSplits
from dofa.evaluation.cross_validation import LinearModel
from dofa.evaluation.overlap import record_split
from dofa.inference.band_statistics import TILE
from dofa.model.encoder import DOFA
from dofa.model.head_split import Role, SplitRecord
from dofa.model.heads import Block, Head, palette
from dofa.pixels import Scaling

HEAD, BANDS = "head", "band-statistics"


def split_of(
    images: LabelledImages, shared: EvaluationSplits, seed: int, whole: LabelledImages | None, block_side: int | None
) -> SplitRecord:
    """What the heads of a probe keep of its images: learned from, and of a published split tested.

    Args:
        images: probed, or blocks of a single one.
        shared: folds or the published split.
        whole: the image that was cut into blocks, None where images are whole.
        block_side: of the blocks, as the user said it.
    """
    used: dict[Role, Ints] = {"train": shared.learnt}
    published = shared.protocol["by"] == "split"
    if published:
        used["test"] = shared.parts[0].test
    return record_split(images, used, None if published else seed, whole, block_side)


def encoder_head(
    data: LabelledImages,
    model: DOFA,
    sha256: str,
    level: Block,
    scaling: Scaling,
    layer: LinearModel,
    tile: int,
    size: int | None,
    validation: dict[str, Any],
    split: SplitRecord,
) -> Head:
    """A head on an encoder's features.

    Args:
        data: learned from, in the bands that the encoder reads.
        scaling: that normalised the images.
        tile: pixels a side that the encoder was fed.
        size: that images were resized to, None for their own.
        validation: the score and how it was measured.
    """
    return replace(
        band_head(data, layer, validation, split, sha256, scaling, (level,)),
        patch_offset=model.config.patch_offset,
        tile_size=tile,
        gsd_m=data.sensor.gsd_m * data.shape[1] / (size or data.shape[1]),
    )


def band_head(
    data: LabelledImages,
    layer: LinearModel,
    validation: dict[str, Any],
    split: SplitRecord,
    sha256: str | None = None,
    scaling: Scaling | None = None,
    levels: tuple[Block, ...] = (),
) -> Head:
    """A head on band statistics.

    Args:
        data: learned from.
        validation: the score and how it was measured.
        sha256: of an encoder; None for band statistics.
        scaling: that normalised the images for the encoder; None for the physical values of band statistics.
    """
    classes = [int(label) for label in layer.classes]
    return Head(
        task=data.task,
        class_names=tuple(data.class_names[label] for label in classes),
        colours=palette(len(classes)) if data.colours is None else tuple(data.colours[label] for label in classes),
        encoder_sha256=sha256,
        levels=levels,
        sensor=replace(data.sensor, scaling=data.scaling),
        scaling=scaling or data.scaling,
        patch_offset=0,
        tile_size=TILE if data.task == "segmentation" else round(float(np.sqrt(np.prod(data.shape[1:])))),
        gsd_m=data.sensor.gsd_m,
        weight=layer.weight,
        bias=layer.bias,
        validation=validation,
        split=split,
    )
