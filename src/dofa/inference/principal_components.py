"""Principal components of features: fewer numbers a pixel, and the three that are drawn as a picture."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dofa.errors import ConfigError


class Projection(nn.Module):
    """Principal components of features, fitted on a sample.

    Args:
        mean: (D,).
        axes: (k, D), orthonormal rows, the sign of each fixed by its largest entry.
        explained: (k,) share of the variance.
    """

    def __init__(self, mean: NDArray[Any], axes: NDArray[Any], explained: NDArray[Any]) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.from_numpy(np.asarray(mean, np.float32)))
        self.axes = nn.Buffer(torch.from_numpy(np.asarray(axes, np.float32)))
        self.explained = explained

    def forward(self, maps: Tensor) -> Tensor:
        """(B, D, h, w) to (B, k, h, w) float32."""
        with torch.autocast(maps.device.type, enabled=False):
            return torch.einsum("kd,bdhw->bkhw", self.axes, maps.float() - self.mean[:, None, None])

    @classmethod
    def fit(cls, features: NDArray[Any], components: int) -> "Projection":
        """Fit to (n, D) features.

        Args:
            features: (n, D).

        Raises:
            ConfigError: fewer features or dimensions than components.
        """
        if not 0 < components <= min(features.shape):
            raise ConfigError(f"--pca {components}: between 1 and {min(features.shape)} for {features.shape} features")
        wide = features.astype(np.float64)
        mean = wide.mean(0)
        values, vectors = np.linalg.eigh(np.cov(wide.T, bias=True).reshape(wide.shape[1], -1))
        order = np.argsort(values)[::-1][:components]
        axes = vectors[:, order].T
        axes = axes * np.sign(axes[np.arange(components), np.abs(axes).argmax(1)])[:, None]
        return cls(mean, axes, values[order] / max(values.sum(), 1e-30))
