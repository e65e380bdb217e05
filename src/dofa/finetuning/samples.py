"""Labelled images as tensors for training and judging: normalised, resized, augmented by draws that a seed decides."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dofa.datasets.labelled import IGNORE, LabelledImages
from dofa.errors import DataError
from dofa.evaluation.frozen_features import prepare
from dofa.evaluation.metrics import require_classes
from dofa.pixels import Scaling

Ints = NDArray[np.int64]
AHEAD = 2  # micro-batches read while the model learns from another


@dataclass(frozen=True)
class Samples:
    """Images of a data set as the model takes them, with their targets.

    Attributes:
        data: the images.
        scaling: with statistics.
        size: height and width the images are resized to; None leaves them.
    """

    data: LabelledImages
    scaling: Scaling
    size: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width that the model is fed."""
        return self.size or self.data.shape[1:]

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """One image with its target.

        Returns:
            (C, h, w) float32, and the class (), the classes (K,) of 0 and 1, or the mask (H, W) of the image as it
            comes, IGNORE where there is no label or no measurement; all int64.

        Raises:
            DataError: an image without a valid pixel or with values that are not finite, a mask of another size or
                with values that are no class; the source is named.
        """
        data = self.data
        raw = data.read(index)
        # `prepare` reads for itself; what was read is handed to it, as the mask needs to know where pixels are valid.
        image = torch.from_numpy(prepare(replace(data, read=lambda _: raw), index, self.scaling))
        image = bilinear(image, self.shape)
        return image, self.target(index, raw[1])

    def target(self, index: int, valid: NDArray[np.bool_] | None) -> Tensor:
        """The class (), the classes (K,) of 0 and 1, or the mask (H, W), IGNORE where `valid` is False; int64.

        Args:
            valid: (H, W) measured pixels, None where all are.

        Raises:
            DataError: a mask of another size, or with values that are no class; the source is named.
        """
        data = self.data
        if data.read_mask is None:
            return torch.as_tensor(data.labels[index], dtype=torch.int64)
        mask = data.read_mask(index).astype(np.int64)
        if mask.shape != data.shape[1:]:
            raise DataError(
                f"{data.sources[index]}: the mask has {mask.shape[0]} × {mask.shape[1]} pixels, the image "
                f"{data.shape[1]} × {data.shape[2]}"
            )
        skipped = np.zeros(mask.shape, bool) if data.ignore is None else mask == data.ignore
        try:
            require_classes(mask[~skipped], len(data.class_names), "mask values", data.ignore)
        except DataError as error:
            raise DataError(f"{data.sources[index]}: {error}") from None
        if valid is not None:
            skipped |= ~valid
        mask[skipped] = IGNORE
        return torch.from_numpy(mask)

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (B, C, h, w) and their targets, as `read` gives them."""
        images, targets = zip(*(self.read(row) for row in rows), strict=True)
        return torch.stack(images), torch.stack(targets)

    def augmented(self, index: int, rng: np.random.Generator, crop: float | None) -> tuple[Tensor, Tensor]:
        """Like `read`, with a random crop, flips and a quarter turn; a mask has the size of the image fed.

        Args:
            crop: smallest share of the area that is kept; None for the image as it is.
        """
        image, target = self.read(index)
        if crop is None:
            return image, target if target.ndim < 2 else nearest(target[None].float(), self.shape)[0].long()
        layers = [(image, bilinear)]
        if target.ndim >= 2:
            layers.append((nearest(target[None].float(), self.shape), nearest))
        height, width = (max(1, round(side)) for side in np.multiply(self.shape, rng.uniform(crop, 1) ** 0.5))
        top, left = (int(rng.integers(0, n - m + 1)) for n, m in zip(self.shape, (height, width), strict=True))
        flips = [axis for axis in (-2, -1) if rng.random() < 0.5]
        turned = bool(rng.random() < 0.5) and self.shape[0] == self.shape[1]  # with the flips, any quarter turn
        out = []
        for layer, resized in layers:
            part = resized(layer[:, top : top + height, left : left + width], self.shape).flip(flips)
            out.append((part.transpose(-2, -1) if turned else part).contiguous())
        return out[0], target if target.ndim < 2 else out[1][0].long()


def bilinear(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """An image (C, H, W) at another size, with antialiasing.

    Args:
        x: (C, H, W).
        shape: (H, W) wanted.
    """
    if tuple(x.shape[-2:]) == shape:
        return x
    return F.interpolate(x[None], shape, mode="bilinear", antialias=True, align_corners=False)[0]


def nearest(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """A mask (1, H, W) at another size: classes keep their numbers.

    Args:
        x: (1, H, W).
        shape: (H, W) wanted.
    """
    return F.interpolate(x[None], shape, mode="nearest-exact")[0]


def training_batches(
    samples: Samples,
    rows: Ints,
    updates: range,
    *,
    batch: int,
    accumulate: int,
    crop: float | None,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Micro-batches of `train.loop` from one update to another; what an update sees depends on nothing but the seed.

    Args:
        samples: to draw from.
        rows: training images.
        batch: images an update, at most as many as there are rows.
        accumulate: micro-batches it comes in, a divisor of `batch`.
        crop: see `Samples.augmented`.
        seed: of order and augmentation.
    """

    def made(update: int, part: int) -> dict[str, Any]:
        count = batch // accumulate
        places = range(part * count, (part + 1) * count)
        chosen = order(rows, batch, update, seed)[part * count : (part + 1) * count]
        rngs = [np.random.default_rng([seed, update, place]) for place in places]
        drawn = [samples.augmented(int(row), rng, crop) for row, rng in zip(chosen, rngs, strict=True)]
        images, targets = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        return micro_batch(samples.data, images, targets, chosen, part)

    todo = iter((update, part) for update in updates for part in range(accumulate))
    with ThreadPoolExecutor(1, "dofa-samples") as reader:
        ahead: deque[Future[dict[str, Any]]] = deque()
        try:
            while True:
                while len(ahead) < AHEAD and (one := next(todo, None)) is not None:
                    ahead.append(reader.submit(made, *one))
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def micro_batch(data: LabelledImages, images: Tensor, targets: Tensor, rows: Ints, part: int) -> dict[str, Any]:
    """What `train.loop` takes.

    Args:
        images: (B, C, H, W).
        targets: (B, …) labels or masks.
        rows: (B,) numbers of the images.
        part: which of the update's micro-batches it is.
    """
    return {
        "sensor": data.sensor.name,
        "image": images,
        "label": targets,
        "order": part,
        "source": [data.sources[row] for row in rows.tolist()],
    }


def order(rows: Ints, batch: int, update: int, seed: int) -> Ints:
    """(batch,) the images of an update: every pass its own permutation, its last images left out if they fill none.

    Args:
        rows: (n,) training images.
        batch: images an update, at most n.
        update: number from 0.
    """
    epoch, place = divmod(update, len(rows) // batch)
    shuffled = np.random.default_rng([seed, epoch]).permutation(rows)
    return shuffled[place * batch : (place + 1) * batch]
