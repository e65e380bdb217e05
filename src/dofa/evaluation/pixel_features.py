"""Features of every pixel of labelled images, from an encoder or from no model at all.

The feature of a pixel is the one of a scene (docs/features.md): the average over passes shifted by a stride, made by
the very engine that makes maps, so that a head trained on them sees on a map what it has learned from.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dofa.datasets.labelled import Ints, LabelledImages
from dofa.evaluation.backbones import Backbone
from dofa.evaluation.frozen_features import Precision, Progress, prepare
from dofa.inference import engine
from dofa.inference.band_statistics import local_statistics
from dofa.inference.inputs import Inputs
from dofa.inference.tiles import Plan
from dofa.inference.workers import TileModel
from dofa.model.devices import choose_device
from dofa.pixels import Scaling
from dofa.scene.grid import Window
from dofa.sensors import Sensor

Floats = NDArray[np.float32]
KEPT = 2**31  # bytes of feature maps that stay in memory; more are made again when they are needed


class PixelFeatures(Protocol):
    """Features of every pixel of labelled images, several levels side by side."""

    def maps(self, rows: Sequence[int]) -> Iterator[tuple[int, Floats]]:
        """(row, (h, w, D)) of images, in the order asked."""

    def cells(self, length: int, axis: int) -> Ints:
        """(length,) the row (axis 0) or column (axis 1) of the map that each row or column of pixels has.

        Args:
            length: pixels along the axis.
            axis: 0 down, 1 right.
        """


class TilePixels:
    """What a model of tiles answers for every pixel of images: the mean of its passes, as on a map.

    Args:
        plan: how an image is cut, of the size the model is fed.
        precision: float32 or bf16.
        device: None for CUDA where there is one.
        blank: (K,) what stands where fewer than half the pixels of a cell were measured.
        progress: called with the number of images just run.
    """

    def __init__(
        self,
        tiles: TileModel,
        plan: Plan,
        data: LabelledImages,
        scaling: Scaling,
        *,
        batch: int,
        precision: Precision,
        device: str | None,
        blank: Floats,
        progress: Progress = lambda images: None,
    ) -> None:
        self.plan, self.data, self.scaling = plan, data, scaling
        self._tiles, self._blank = tiles, blank
        self._batch, self._precision, self._device, self._progress = batch, precision, device, progress

    def maps(self, rows: Sequence[int]) -> Iterator[tuple[int, Floats]]:
        """See `PixelFeatures`."""
        for start in range(0, len(rows), self._batch):
            group = rows[start : start + self._batch]
            jobs = [engine.Job(cast(Inputs, self._picture(row)), self.plan, self._tiles) for row in group]
            found = [np.empty((*self.plan.shape, self._tiles.channels), np.float32) for _ in group]
            for block in engine.run(jobs, batch=self._batch, precision=self._precision, device=self._device):
                values = np.where(block.valid[..., None], block.values.transpose(1, 2, 0), self._blank)
                found[block.job][block.window.rows, block.window.cols] = values
            self._progress(len(group))
            yield from zip(group, found, strict=True)

    def cells(self, length: int, axis: int) -> Ints:
        """See `PixelFeatures`."""
        side = (self.plan.height, self.plan.width)[axis]
        pixel = ((np.arange(length) + 0.5) * side / length).astype(np.int64)  # of the image the encoder was fed
        return np.minimum((pixel + self.plan.offset) // self.plan.stride, self.plan.shape[axis] - 1)

    def _picture(self, row: int) -> "_Picture":
        image, valid = prepare(self.data, row, self.scaling), self.data.read(row)[1]
        seen = np.ones(image.shape[1:], bool) if valid is None else valid
        sides = (self.plan.height, self.plan.width)
        if image.shape[1:] != sides:
            resized = F.interpolate(
                torch.from_numpy(image)[None], sides, mode="bilinear", antialias=True, align_corners=False
            )
            image = resized[0].numpy()
            seen = F.interpolate(torch.from_numpy(seen)[None, None].float(), sides, mode="nearest")[0, 0].numpy() > 0
        return _Picture(self.data.sources[row], image, seen)


class EncoderPixels(TilePixels):
    """What an encoder says of every pixel; kept in memory as long as there is room.

    Args:
        blocks: numbers, whose outputs stand side by side.
        stride: pixels between shifted passes.
        size: side in pixels the images are resized to, None for their own.
        precision: float32 or bf16.
        device: None for CUDA where there is one.
        progress: called with the number of images just encoded.
    """

    def __init__(
        self,
        backbone: Backbone,
        data: LabelledImages,
        scaling: Scaling,
        blocks: Sequence[int],
        *,
        stride: int,
        size: int | None,
        batch: int,
        precision: Precision,
        device: str | None,
        progress: Progress = lambda images: None,
    ) -> None:
        backbone.module.to(choose_device(device)).eval()
        tiles = _BackboneTiles(backbone, data.sensor, blocks)
        height, width = (size, size) if size is not None else data.shape[1:]
        plan = plan_for_backbone(backbone, height, width, stride)
        super().__init__(
            tiles, plan, data, scaling, batch=batch, precision=precision, device=device,
            blank=np.zeros(tiles.channels, np.float32), progress=progress,
        )  # fmt: skip
        total = len(data) * plan.shape[0] * plan.shape[1] * tiles.channels * 4
        self._kept: dict[int, Floats] | None = {} if total <= KEPT else None

    def maps(self, rows: Sequence[int]) -> Iterator[tuple[int, Floats]]:
        """See `PixelFeatures`."""
        if self._kept is None:
            yield from super().maps(rows)
            return
        self._kept.update(super().maps([row for row in rows if row not in self._kept]))
        yield from ((row, self._kept[row]) for row in rows)


def plan_for_backbone(backbone: Backbone, height: int, width: int, stride: int, tile: int | None = None) -> Plan:
    """How an image is cut for a model: tiles of the size it was trained at unless told, as scenes are.

    Args:
        backbone: whose patch, offset and image size count.
        height: of the image, in pixels.
        width: of the image, in pixels.
        stride: pixels between shifted passes.
        tile: side in pixels, None for the model's.

    Raises:
        ConfigError: a stride that does not fit.
    """
    patch = backbone.patch
    side = min(patch * -(-(tile or backbone.image_size) // patch), patch * -(-max(height, width) // patch))
    overlap = patch * min(round(side / 3 / patch), side // patch - 1)
    return Plan(height, width, side, overlap, patch, patch, stride, backbone.patch_offset)


class _Picture:
    """An image in memory, as the engine reads scenes."""

    def __init__(self, name: str, image: Floats, valid: NDArray[np.bool_]) -> None:
        self.name, self._image, self._valid = name, image, valid
        self.count, self.height, self.width = image.shape
        self.pixel_bytes = 4 * self.count
        self.scene = self.chunks = self

    def hold(self, height: int, width: int) -> None:
        """Nothing to do: all of it is in memory."""

    def normalised(self, window: Window, out: Floats | None = None) -> tuple[Floats, NDArray[np.bool_]]:
        """As `Inputs.normalised`: the last row and column repeated beyond the border, written to `out` where given."""
        rows, cols = (np.arange(w, w + n) for w, n in ((window.row, window.height), (window.col, window.width)))
        inside = self._image[:, rows.clip(0, self.height - 1)][:, :, cols.clip(0, self.width - 1)]
        if out is not None:
            out[:] = inside
        return inside if out is None else out, self.valid(window)

    def valid(self, window: Window) -> NDArray[np.bool_]:
        """False outside."""
        out = np.zeros((window.height, window.width), bool)
        top, left = max(window.row, 0), max(window.col, 0)
        part = self._valid[top : window.row + window.height, left : window.col + window.width]
        out[top - window.row :, left - window.col :][: part.shape[0], : part.shape[1]] = part
        return out


class _BackboneTiles:
    """A backbone as the engine runs it."""

    def __init__(self, backbone: Backbone, sensor: Sensor, blocks: Sequence[int]) -> None:
        self._backbone, self._sensor, self._blocks = backbone, sensor, list(blocks)
        self.channels = backbone.width * len(self._blocks)
        self.patch = self.cell = backbone.patch
        self.offset = backbone.patch_offset

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised (B, C, h, w) to (B, K, h / patch, w / patch)."""
        return torch.cat([level.float() for level in self._backbone.maps(images, self._sensor, self._blocks)], dim=1)


class BandPixels:
    """No model at all: the spectrum of a pixel, and mean and spread of each band in a small window around it."""

    def __init__(self, data: LabelledImages) -> None:
        self.data = data

    def maps(self, rows: Sequence[int]) -> Iterator[tuple[int, Floats]]:
        """See `PixelFeatures`; in physical values, of measured pixels only."""
        for row in rows:
            raw, valid = self.data.read(row)
            yield row, local_statistics(self.data.scaling.physical(raw), valid).transpose(1, 2, 0)

    def cells(self, length: int, axis: int) -> Ints:
        """See `PixelFeatures`."""
        return np.arange(length)
