"""Features of levels: blocks of an encoder, and `pooled`, the last one with the norm of the pooled vector."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dofa.model.encoder import DOFA, StaticViT
from dofa.model.heads import Block


def level_features(
    vit: DOFA | StaticViT, intermediates: Callable[..., Any], image: Tensor, levels: Sequence[Block], maps: bool
) -> dict[str, Tensor]:
    """Features of levels by name: of whole images (B, D), or of single patches (B, D, h, w).

    Args:
        vit: whose pool and norm are used.
        intermediates: its `forward_intermediates`, the bands filled in.
        image: (B, C, H, W) normalised.
        levels: block numbers, whose patch tokens are averaged, and `pooled`.
        maps: of single patches.
    """
    last = len(vit.blocks) - 1
    wanted = sorted({last if level == "pooled" else level for level in levels})
    found = dict(zip(wanted, intermediates(image, indices=wanted, return_prefix_tokens=True), strict=True))
    out = {}
    for level in levels:
        grid, cls = found[last if level == "pooled" else level]
        if level != "pooled":
            features = grid if maps else grid.float().mean((2, 3))
        elif maps:
            features = vit.fc_norm(grid.movedim(1, -1)).movedim(-1, 1)
        else:
            features = vit.forward_head(torch.cat([cls, grid.flatten(2).transpose(1, 2)], dim=1), pre_logits=True)
        out[level_name(level)] = features
    return out


def level_name(level: Block) -> str:
    """`pooled`, or `block` and its number."""
    return level if level == "pooled" else f"block{level}"
