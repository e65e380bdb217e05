"""What `dofa export` writes, as modules that torch can trace: normalisation, encoder levels, head."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dofa.model.encoder import StaticViT
from dofa.model.heads import Block, Head
from dofa.model.levels import level_features
from dofa.pixels import Scaling

Numbers = Literal["physical", "raw"]


class Normalisation(nn.Module):
    """`Scaling.normalise` as a module; NaN says no measurement and gives 0, the mean.

    Args:
        scaling: with statistics.
        numbers: what comes in: raw numbers of the product, or physical values.
    """

    def __init__(self, scaling: Scaling, numbers: Numbers) -> None:
        super().__init__()
        self.raw = numbers == "raw"
        clips = [(-np.inf, np.inf) if clip is None else clip for clip in scaling.clip]
        factors = [
            0.0 if band in scaling.constant else 1 / std
            for band, std in zip(scaling.bands, scaling.std or (), strict=True)
        ]
        self.scale, self.offset = _column(scaling.scale), _column(scaling.offset)
        self.low, self.high = _column([low for low, _ in clips]), _column([high for _, high in clips])
        self.mean, self.factor = _column(scaling.mean or ()), _column(factors)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) to what the encoder is fed."""
        physical = image * self.scale + self.offset if self.raw else image
        normalised = (torch.clamp(physical, self.low, self.high) - self.mean) * self.factor
        return torch.where(torch.isnan(image), 0.0, normalised)


class Exported(nn.Module):
    """What is written.

    Args:
        vit: specialised for the bands at the image size.
        levels: whose features.
        maps: one answer a patch, else one an image.
        head: that reads the features; None gives them as they are.
        normalisation: None where images come normalised.
    """

    def __init__(
        self, vit: StaticViT, levels: Sequence[Block], maps: bool, head: Head | None, normalisation: nn.Module | None
    ) -> None:
        super().__init__()
        self.vit, self.levels, self.maps = vit, tuple(levels), maps
        self.task = None if head is None else head.task
        self.normalisation = normalisation
        if head is not None:
            self.weight = nn.Buffer(torch.from_numpy(head.weight))
            self.bias = nn.Buffer(torch.from_numpy(head.bias))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) to (B, K) an output, or to (B, K, h, w) maps."""
        if self.normalisation is not None:
            image = self.normalisation(image)
        features = level_features(self.vit, self.vit.forward_intermediates, image, self.levels, self.maps)
        if self.task is None:
            return features
        # In float64, as `Head.apply` says.
        joined = torch.cat(list(features.values()), dim=1).double().movedim(1, -1)
        answer = (joined @ self.weight.T + self.bias).movedim(-1, 1).float()
        if self.task == "regression":
            return {"values": answer}
        # `Head.probabilities`, as torch can trace it.
        return {"logits": answer, "probabilities": answer.sigmoid() if self.task == "multilabel" else answer.softmax(1)}


def _column(values: Sequence[float]) -> nn.Buffer:
    return nn.Buffer(torch.tensor(values, dtype=torch.float32)[:, None, None])
