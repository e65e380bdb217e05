"""Statistics of bands, gathered piece by piece: what a corpus or a scene is normalised with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError, DataError


class RunningStats:
    """Count, mean, standard deviation and extremes of each band, in float64.

    Pieces gathered apart (by several workers) merge to what one pass over everything gives: counts, means and sums of
    squared deviations combine exactly (Chan, Golub and LeVeque 1979), up to float64 rounding.

    Attributes:
        bands: names, in the order of the arrays.
        count: valid pixels seen.
        minimum: (C,) float64; infinite before the first pixel, like `maximum`.
        maximum: (C,) float64.
    """

    def __init__(self, bands: Sequence[str]) -> None:
        self.bands = tuple(bands)
        self.count = 0
        self._mean = np.zeros(len(self.bands))
        self._squares = np.zeros(len(self.bands))  # sum of squared deviations from the mean
        self.minimum = np.full(len(self.bands), np.inf)
        self.maximum = np.full(len(self.bands), -np.inf)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(C,) float64 mean of the physical values.

        Raises:
            DataError: not one valid pixel was seen.
        """
        self._require_pixels()
        return self._mean

    @property
    def std(self) -> NDArray[np.float64]:
        """(C,) float64 population standard deviation.

        Raises:
            DataError: not one valid pixel was seen.
        """
        self._require_pixels()
        return np.asarray(np.sqrt(self._squares / self.count), np.float64)

    def _require_pixels(self) -> None:
        if not self.count:
            raise DataError("no valid pixel to take statistics from")

    def update(self, physical_chw: NDArray[Any], valid_hw: NDArray[np.bool_] | None = None) -> None:
        """Take in one image.

        Args:
            physical_chw: (C, H, W) physical values.
            valid_hw: (H, W), False where there is no measurement; those pixels are not counted.

        Raises:
            DataError: another number of bands, or a valid pixel is not finite (nothing is taken in then).
        """
        if physical_chw.ndim != 3 or len(physical_chw) != len(self.bands):
            raise DataError(f"image of shape {physical_chw.shape} does not have the {len(self.bands)} bands counted")
        keep = slice(None) if valid_hw is None else np.asarray(valid_hw, bool).ravel()
        values = physical_chw.reshape(len(self.bands), -1)[:, keep].astype(np.float64)
        if not values.size:
            return
        if not np.isfinite(values).all():
            bad = [b for b, row in zip(self.bands, values, strict=True) if not np.isfinite(row).all()]
            raise DataError(f"band {', '.join(bad[:8])} is NaN or infinite where pixels count as valid")
        piece = RunningStats(self.bands)
        piece.count = values.shape[1]
        piece._mean = values.mean(axis=1)
        piece._squares = np.square(values - piece._mean[:, None]).sum(axis=1)
        piece.minimum, piece.maximum = values.min(axis=1), values.max(axis=1)
        self.merge(piece)

    def merge(self, other: "RunningStats") -> None:
        """Take in what another gathered for the same bands."""
        if other.bands != self.bands:
            raise ConfigError(f"statistics of bands {', '.join(other.bands)} do not merge with {', '.join(self.bands)}")
        if not other.count:
            return
        total = self.count + other.count
        delta = other._mean - self._mean
        self._mean = self._mean + delta * (other.count / total)
        self._squares = self._squares + other._squares + delta**2 * (self.count * other.count / total)
        self.minimum = np.minimum(self.minimum, other.minimum)
        self.maximum = np.maximum(self.maximum, other.maximum)
        self.count = total

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON; `from_dict` continues where this stopped, bit by bit."""
        seen = bool(self.count)
        return {
            "bands": list(self.bands),
            "count": self.count,
            "mean": self._mean.tolist(),
            "squares": self._squares.tolist(),
            "minimum": self.minimum.tolist() if seen else None,  # JSON has no infinity
            "maximum": self.maximum.tolist() if seen else None,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "RunningStats":
        """The inverse of `to_dict`."""
        stats = cls(data["bands"])
        stats.count = int(data["count"])
        stats._mean, stats._squares = np.array(data["mean"], float), np.array(data["squares"], float)
        if stats.count:
            stats.minimum, stats.maximum = np.array(data["minimum"], float), np.array(data["maximum"], float)
        return stats
