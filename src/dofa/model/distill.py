"""Distillation: a student's tokens held to those of a frozen teacher, block by block.

Sources: arXiv 2403.15356, section 3.4 (pooled features of one block, cosine) and DOFA+ (several blocks, a projector
each). The other forms are ours and named in `DistillConfig`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dofa.errors import ConfigError
from dofa.model.config import DistillConfig
from dofa.model.patch_embed import pad_to_patch, patchify


class Distillation(nn.Module):
    """The distance between a student's and a teacher's blocks, with the projectors that are trained for it.

    Attributes:
        mean: (blocks, 1, D) of the teacher's features, for standardising; zeros until `standardise`.
        std: like mean, ones until then.

    Raises:
        ConfigError: the widths differ and there is no projector.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: DistillConfig, width: int, teacher_width: int) -> None:
        super().__init__()
        self.config = config
        blocks = len(config.blocks)
        if config.projector:
            self.projectors = nn.ModuleList(nn.Linear(width, teacher_width) for _ in range(blocks))
        elif width != teacher_width:
            raise ConfigError(
                f"distill.projector is off, but the student is {width} wide and the teacher {teacher_width}: "
                "switch it on"
            )
        self.register_buffer("mean", torch.zeros(blocks, 1, teacher_width))
        self.register_buffer("std", torch.ones(blocks, 1, teacher_width))

    @torch.no_grad()
    def standardise(self, targets: Tensor) -> None:
        """Take mean and deviation of every channel from a sample of the teacher's features (B, blocks, T, D)."""
        sample = targets.float().transpose(0, 1).flatten(1, 2)
        self.mean.copy_(sample.mean(1, keepdim=True))
        # A channel that hardly varies would shout: none is blown up beyond a hundredth of the typical deviation.
        std = sample.std(1, keepdim=True)
        self.std.copy_(std.clamp(min=float(std.median()) / 100))

    def forward(
        self, student: Sequence[Tensor], teacher: Tensor, keep: Tensor | None = None, weight: Tensor | None = None
    ) -> Tensor:
        """The mean distance over blocks, images and tokens.

        Args:
            student: raw block outputs (B, 1 + K, D), CLS first.
            teacher: (B, blocks, T, D'), as `reduce_tokens` leaves them.
            keep: (B, K) which patches the student's tokens are, None for all in order.
            weight: (B, N) how much each patch counts; pooled features count alike.

        Returns:
            Scalar, float32.
        """
        pooled = self.config.target == "pooled"
        parts = []
        for i, tokens in enumerate(student):
            mine = reduce_tokens(tokens, self.config.target)
            if self.config.projector:
                mine = self.projectors[i](mine)
            theirs = teacher[:, i]
            if not pooled and keep is not None:
                theirs = theirs.gather(1, keep[..., None].expand(-1, -1, theirs.shape[-1]))
            parts.append(self._distance(mine.float(), theirs.float(), i))
        distance = torch.stack(parts).mean(0)
        if pooled or weight is None:
            return distance.mean()
        weight = weight if keep is None else weight.gather(1, keep)
        return (distance * weight).sum() / weight.sum().clamp(min=1)

    def _distance(self, mine: Tensor, theirs: Tensor, block: int) -> Tensor:
        """(B, T)."""
        if self.config.loss == "cosine":
            return 1 - F.cosine_similarity(mine, theirs, dim=-1)
        mean, std = self.mean[block], self.std[block]
        return F.smooth_l1_loss((mine - mean) / std, (theirs - mean) / std, reduction="none").mean(-1)


def reduce_tokens(tokens: Tensor, target: str) -> Tensor:
    """What is compared: the mean over all tokens, CLS included, (B, 1, D), or the patch tokens (B, N, D).

    Args:
        tokens: (B, 1 + N, D), CLS first.
        target: `pooled` or `tokens`.
    """
    return tokens.mean(1, keepdim=True) if target == "pooled" else tokens[:, 1:]


def patch_validity(valid: Tensor, patch: int) -> Tensor:
    """(B, H, W) bool to (B, N) float: the share of each patch's pixels that hold a measurement.

    Args:
        valid: where there is a measurement.
        patch: side in pixels.
    """
    return patchify(pad_to_patch(valid[:, None].float(), patch), patch).mean(-1)
