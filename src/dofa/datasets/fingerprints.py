"""What tells images again: a digest of all pixels of an image, and hashes of some small windows of it.

The digest is the same under another name, path, order or number type. The windows are chosen by their own hash, so that
the same ground is recognised in chips that were cut at another place or size.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dofa.datasets.labelled import Ints, LabelledImages, Raw

Hashes = NDArray[np.uint64]
SIDE = 4  # pixels of a window
FINEST = 16  # one of so many windows is kept at most
KEPT = 1 << 18  # windows kept of a data set, about: 2 MB
FEWEST, SHARE = 2, 0.1  # windows, and share of an image's windows, that have to be known for its ground to be known
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def _canonical(raw: Raw) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Values as little-endian float32 with 0 for what was not measured, and where it was; None for everywhere."""
    image, valid = raw
    values = image.astype("<f4") + np.float32(0)  # -0 is 0
    if valid is None or valid.all():
        return values, None
    values[:, ~valid] = 0  # what stands in gaps is no measurement
    return values, valid


def image_digest(raw: Raw) -> int:
    """Digest of an image's pixels: equal for equal numbers, whatever the file's name, place or number type.

    Labels are left out: an image whose label was corrected has been learned from all the same.

    Args:
        raw: (C, H, W) and (H, W) valid or None.

    Returns:
        64 bits.
    """
    values, valid = _canonical(raw)
    found = hashlib.blake2b(str(values.shape).encode(), digest_size=8)
    if valid is not None:
        found.update(np.packbits(valid).tobytes())
    found.update(np.ascontiguousarray(values).tobytes())
    return int.from_bytes(found.digest(), "little")


def image_digests(data: LabelledImages, rows: Ints) -> Hashes:
    """`image_digest` of several images.

    Args:
        rows: (n,) which images.

    Returns:
        (n,) uint64.
    """
    return np.array([image_digest(data.read(row)) for row in rows.tolist()], np.uint64)


def window_rate(data: LabelledImages) -> int:
    """One of how many windows to keep of a data set: a power of two that keeps the record small."""
    windows, rate = len(data) * data.shape[1] * data.shape[2], FINEST
    while windows > KEPT * rate:
        rate *= 2
    return rate


def window_hashes(raw: Raw, rate: int) -> Hashes:
    """Hashes of windows of an image, those that a power of two divides; without windows of plain colour.

    Args:
        raw: (C, H, W) and (H, W) valid or None.
        rate: the power of two: one of so many windows is kept on average.

    Returns:
        (n,) uint64, ascending, each once.
    """
    values, valid = _canonical(raw)
    height, width = (side - SIDE + 1 for side in values.shape[1:])
    if height < 1 or width < 1:
        return np.zeros(0, np.uint64)
    pixel = np.zeros(values.shape[1:], np.uint64)
    for band in np.ascontiguousarray(values).view("<u4"):
        pixel = (pixel ^ band) * _PRIME
        pixel ^= pixel >> np.uint64(29)
    changes = np.zeros(pixel.shape, np.uint64)
    changes[:, 1:] = pixel[:, 1:] != pixel[:, :-1]
    seen = np.ones(pixel.shape, bool) if valid is None else valid
    found, told, whole = np.zeros((height, width), np.uint64), np.zeros((height, width)), np.ones((height, width), bool)
    for row in range(SIDE):
        for col in range(SIDE):
            here = np.s_[row : row + height, col : col + width]
            found = (found ^ pixel[here]) * _PRIME
            found ^= found >> np.uint64(32)
            told += changes[here] if col else 0
            whole &= seen[here]
    # A window of plain colour, as of saturated or filled ground, is met in many places.
    chosen = whole & (told >= SIDE * (SIDE - 1) / 2) & (found & np.uint64(rate - 1) == 0)
    return np.unique(found[chosen])


def known_ground(data: LabelledImages, rows: Sequence[int], windows: Hashes, rate: int) -> NDArray[np.bool_]:
    """(n,) which images show ground whose windows are known.

    Args:
        rows: (n,) which images.
        windows: ascending: `window_hashes` of known images together.
        rate: they were kept at.
    """
    out = np.zeros(len(rows), bool)
    for i, row in enumerate(rows if len(windows) else ()):
        own = window_hashes(data.read(row), rate)
        met = int(np.isin(own, windows, assume_unique=True).sum())
        out[i] = met >= FEWEST and met >= SHARE * len(own)
    return out
