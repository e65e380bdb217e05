"""Pictures of what the model does: reconstructions of held-out images, features of real ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dofa import plots, sensors
from dofa.corpus.store import SensorStore
from dofa.demo.corpora import SIDE, samples
from dofa.model.encoder import DOFA
from dofa.model.mae import MaskedAutoencoder
from dofa.pixels import RunningStats, Scaling
from dofa.plots import Picture
from dofa.raster import open_raster
from dofa.sensors import Sensor

SHIFT = 4  # pixels between the positions that feature maps are averaged over
# Real pictures shown: file, top left corner of the part shown, and what it is.
SHOWN = (
    ("landsat-8-l1-toa/delta", (16, 16), "Landsat 8, a delta in Madagascar"),
    ("naip-rgbn/east_2016", (64, 32), "NAIP, lakes and fields"),
    ("sentinel-2-l2a/ssl4eo_june", (40, 40), "Sentinel-2, fields in India"),
    ("landsat-5-l1/rondonia", (40, 20), "Landsat 5, Rondônia"),
    ("rgb-aerial/street", (64, 64), "Aerial RGB, a street"),
)
SHOWN_SIDE = 128


@dataclass(frozen=True)
class Image:
    """One image as the model is fed.

    Attributes:
        sensor: its bands.
        values: (C, H, W) normalised.
        valid: (H, W), or None where every pixel is.
    """

    sensor: Sensor
    values: NDArray[np.float32]
    valid: NDArray[np.bool_] | None = None

    @property
    def three(self) -> list[int]:
        """Bands drawn as red, green and blue."""
        if self.sensor.renderings:
            return self.sensor.index(next(iter(self.sensor.renderings.values())))
        return [0, len(self.values) // 2, len(self.values) - 1]

    def picture(self, values: NDArray[np.float32] | None = None) -> Picture:
        """The image, or other values of it, stretched as the image is."""
        limits = plots.stretch_limits(self.values, self.three, valid_hw=self.valid)
        shown = self.values if values is None else values
        return plots.composite(shown, self.three, valid_hw=self.valid, limits=limits)


def stored_image(store: SensorStore, index: int, scaling: Scaling | None) -> Image:
    """An image of a store, its middle cut to SIDE pixels, normalised as the model was trained or by the store.

    Args:
        store: of one sensor.
        index: of the image.
        scaling: of the model, None for the store's.
    """
    side = min(SIDE, *store.shape[1:])
    top, left = ((n - side) // 2 for n in store.shape[1:])
    raw, valid = store.read(index, top, left, side, side)
    return Image(store.sensor, (scaling or store.scaling).normalise(raw, valid), valid)


def real_image(name: str, corner: tuple[int, int], side: int) -> Image:
    """Part of a real picture, normalised by the statistics of the whole picture: the model may never have met it.

    Args:
        name: `SENSOR/PICTURE` among the samples.
        corner: (row, column) of the part.
        side: of the part, in pixels.
    """
    sensor = sensors.get(name.split("/")[0])
    with open_raster(samples() / f"{name}.tif", sensor) as raster:
        values, valid = raster.read_physical()
        stats = RunningStats(raster.sensor.band_names)
        stats.update(values, valid)
        scaling = raster.scaling.with_stats(stats.mean.tolist(), stats.std.tolist(), "scene")
        part = np.s_[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
        normalised = scaling.normalise_physical(values[:, *part], valid[part])
        return Image(raster.sensor, normalised, None if valid[part].all() else valid[part])


@torch.inference_mode()
def reconstruction(mae: MaskedAutoencoder, image: Image, seed: int) -> list[tuple[str, Picture]]:
    """Original, what the model saw, prediction and error of one image.

    Args:
        mae: trained.
        image: normalised.
        seed: of what is hidden.

    Returns:
        (caption, picture) of each.
    """
    height, width = image.values.shape[1:]
    patch, ratio = mae.encoder.config.patch, mae.mask_config.ratio
    grid = (height // patch, width // patch)
    noise = torch.rand(1, grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))
    x = torch.from_numpy(image.values)[None]
    valid = None if image.valid is None else torch.from_numpy(image.valid)[None]
    made = mae.reconstruct(x, image.sensor, noise, valid)[0].numpy()
    hidden = np.ones(grid[0] * grid[1], bool)
    hidden[noise[0].argsort(stable=True)[: mae.mask_config.visible(len(hidden))].numpy()] = False
    error = np.abs(made - image.values).mean(axis=0)
    return [
        ("original", image.picture()),
        (f"seen: {1 - ratio:.0%} of it", plots.hide_patches(image.picture(), hidden.reshape(grid), patch)),
        ("predicted", image.picture(made)),
        ("error", plots.error_picture(error, 1.5)),
    ]


@torch.inference_mode()
def feature_map(model: DOFA, image: Image) -> NDArray[np.float32]:
    """Patch tokens after the last block, averaged over windows of SIDE pixels that overlap: finer than the patches.

    Args:
        model: trained.
        image: normalised.

    Returns:
        (D, H / SHIFT, W / SHIFT).
    """
    patch, step = model.config.patch, 3 * SHIFT
    _, height, width = image.values.shape
    tops, lefts = ([*range(0, n - SIDE, step), n - SIDE] for n in (height, width))
    corners = [(t, s) for t in tops for s in lefts]
    windows = np.stack([image.values[:, t : t + SIDE, s : s + SIDE] for t, s in corners])
    total = np.zeros((model.config.width, height // SHIFT, width // SHIFT), np.float32)
    count = np.zeros(total.shape[1:], np.float32)
    side, cells = SIDE // patch, patch // SHIFT
    for start in range(0, len(windows), 32):
        tokens = model.forward_features(torch.from_numpy(windows[start : start + 32]), image.sensor)[:, 1:]
        maps = tokens.float().numpy().reshape(-1, side, side, tokens.shape[-1]).transpose(0, 3, 1, 2)
        for (top, left), one in zip(corners[start : start + 32], maps, strict=True):
            part = np.s_[top // SHIFT : (top + SIDE) // SHIFT, left // SHIFT : (left + SIDE) // SHIFT]
            total[:, *part] += one.repeat(cells, axis=1).repeat(cells, axis=2)
            count[part] += 1
    return np.asarray(total / count, np.float32)


def real_features(model: DOFA) -> list[tuple[str, Picture, Picture]]:
    """Title, composite and features in false colour of the real pictures that are shown."""
    images = [(title, real_image(name, corner, SHOWN_SIDE)) for name, corner, title in SHOWN]
    maps: list[NDArray[Any]] = [feature_map(model, image) for _, image in images]
    # Each picture has colours of its own: what differs most within a street is not what differs most within a delta.
    colours = [plots.pca_colours([m])[0] for m in maps]
    return [(title, image.picture(), colour) for (title, image), colour in zip(images, colours, strict=True)]


def real_files() -> list[Path]:
    """All real pictures of the package."""
    return sorted(samples().glob("*/*.tif"))
