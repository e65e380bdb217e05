"""Random draws of one sample: windows, flips, band subsets, spectral jitter; all functions of a given generator."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dofa.sensors import Band
from dofa.train.config import DataConfig, JitterConfig

Float = NDArray[np.float32]
ASPECT = (3 / 4, 4 / 3)  # of a random resized crop, as everyone draws it
HYPERSPECTRAL = 32  # more bands than that are samples of a curve rather than bands of their own


def generator(*numbers: int) -> np.random.Generator:
    """A random generator that is a function of the numbers alone, well mixed."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(numbers)))


def draw_window(
    rng: np.random.Generator, shape: Sequence[int], side: int, area: tuple[float, float] | None
) -> tuple[int, int, int, int]:
    """A random window (top, left, height, width) within an image.

    Args:
        shape: (H, W) of the image.
        side: of the window where `area` is None; it fits into the image.
        area: range of the window's share of the image's area; its aspect lies between 3/4 and 4/3.
    """
    height, width = shape
    h = w = side
    if area is not None:
        pixels = rng.uniform(*area) * height * width
        aspect = np.exp(rng.uniform(*np.log(ASPECT)))
        h = int(np.clip(round(np.sqrt(pixels / aspect)), 1, height))
        w = int(np.clip(round(np.sqrt(pixels * aspect)), 1, width))
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def resize(image: Float, valid: NDArray[np.bool_] | None, side: int) -> tuple[Float, NDArray[np.bool_] | None]:
    """(C, h, w) to (C, side, side), bicubic with antialiasing; a pixel that an invalid one reached is invalid.

    Args:
        image: normalised.
        valid: (h, w), None where every pixel is valid.
        side: in pixels.
    """
    if image.shape[1:] == (side, side):
        return image, valid

    def scale(array: NDArray[Any], mode: str) -> Tensor:
        return functional.interpolate(
            torch.from_numpy(np.ascontiguousarray(array, np.float32))[None],
            size=(side, side),
            mode=mode,
            align_corners=False,
            antialias=True,
        )[0]

    out: Float = scale(image, "bicubic").numpy()
    if valid is None or valid.all():
        return out, None
    reached = scale(~valid[None], "bilinear")[0].numpy() > 1e-3
    out[:, reached] = 0
    return out, ~reached


def flip(
    rng: np.random.Generator, image: Float, valid: NDArray[np.bool_] | None, axes: str
) -> tuple[Float, NDArray[np.bool_] | None]:
    """Mirror left to right, and for `both` top to bottom too, each with probability ½.

    Args:
        image: (C, h, w).
        valid: (h, w), None where every pixel is valid.
        axes: `none`, `horizontal` or `both`.
    """
    across, down = rng.random(2) < 0.5
    steps = (
        slice(None, None, -1 if down and axes == "both" else 1),
        slice(None, None, -1 if across and axes != "none" else 1),
    )
    return image[:, steps[0], steps[1]], None if valid is None else valid[steps]


def draw_bands(
    seed: int, update: int, order: int, count: int, rgb: Sequence[int] | None, data: DataConfig
) -> NDArray[np.int64]:
    """Which bands a micro-batch keeps: red, green and blue, all, or a random subset, by `data.band_sets`.

    Args:
        order: of the micro-batch within the update.
        rgb: positions of red, green and blue, None where the sensor has no rendering.
        data: band_sets and band_keep.

    Returns:
        Positions in ascending order.
    """
    if data.band_sets:
        drawn = generator(seed, update, order, 3).random()
        colour, whole = data.band_sets.get("rgb", 0.0), data.band_sets.get("all", 0.0)
        if drawn < colour + whole:
            return np.unique(np.array(rgb if rgb and drawn < colour else range(count), np.int64))
    return keep_bands(generator(seed, update, order, 1), count, data.band_keep)


def keep_bands(rng: np.random.Generator, count: int, least: float) -> NDArray[np.int64]:
    """A random subset of at least the share `least` of the bands, in their order."""
    kept = int(rng.integers(int(np.ceil(least * count - 1e-9)), count + 1))
    return np.sort(rng.permutation(count)[:kept])


def spectral_jitter(
    rng: np.random.Generator,
    image: Float,
    valid: NDArray[np.bool_] | None,
    jitter: JitterConfig,
    basis: Float | None,
) -> Float:
    """x·exp(gain·ε) + offset·ε′ with one ε and ε′ a band, for a share of the images.

    Args:
        image: (C, h, w) normalised.
        valid: (h, w); what is not stays 0.
        jitter: its share and strengths.
        basis: (C, C) that correlates ε and ε′ along the spectrum (`jitter_basis`), or None.
    """
    chosen = rng.random() < jitter.share
    draws = rng.standard_normal((2, len(image)), dtype=np.float32)
    if not chosen:
        return np.ascontiguousarray(image)
    if basis is not None:
        draws = draws @ basis.T
    out = image * np.exp(jitter.gain * draws[0])[:, None, None] + (jitter.offset * draws[1])[:, None, None]
    return out if valid is None else np.where(valid, out, np.float32(0))


@lru_cache(maxsize=64)
def _basis(wavelengths_um: tuple[float, ...], smooth_um: float) -> Float:
    distance = np.subtract.outer(wavelengths_um, wavelengths_um) / smooth_um
    # The ridge keeps the factorisation of nearly equal neighbours positive; it is a hundredth in amplitude.
    covariance = np.exp(-0.5 * distance**2) + 1e-4 * np.eye(len(wavelengths_um))
    # NumPy's BLAS starts threads of its own in every loader worker; on busy cores they take 80 ms for what takes 0.4.
    factor: Float = torch.linalg.cholesky(torch.from_numpy(covariance / (1 + 1e-4))).numpy().astype(np.float32)
    return factor


def jitter_basis(bands: Sequence[Band], jitter: JitterConfig) -> Float | None:
    """(C, C) that turns independent draws into smooth curves of unit variance, for hyperspectral bands; else None.

    Args:
        jitter: its share and smoothness.
    """
    wavelengths = [b.wavelength_um for b in bands]
    if jitter.share == 0 or len(wavelengths) <= HYPERSPECTRAL or any(w is None for w in wavelengths):
        return None
    return _basis(tuple(w for w in wavelengths if w is not None), jitter.smooth_um)
