"""Losses of tasks, with labels that count nowhere."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dofa.errors import DataError


def cross_entropy(logits: Tensor, labels: Tensor, ignore: int | None = None) -> Tensor:
    """Mean cross-entropy over the labels that count; 0 where none does, so that a step without labels changes nothing.

    Args:
        logits: (B, K) or (B, K, H, W), float32 inside whatever the precision outside.
        labels: (B,) or (B, H, W) integers, 0 to K − 1 or `ignore`.
        ignore: label that counts nowhere.

    Raises:
        DataError: other shapes, or on a CPU labels that are no class (a GPU asserts).
    """
    classes = logits.shape[1]
    if labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise DataError(f"labels of shape {tuple(labels.shape)} for logits of shape {tuple(logits.shape)}")
    labels = labels.long()
    counted = torch.ones_like(labels, dtype=torch.bool) if ignore is None else labels != ignore
    if labels.device.type == "cpu":
        outside = counted & ((labels < 0) | (labels >= classes))
        if outside.any():
            found = ", ".join(str(v) for v in sorted(set(labels[outside].tolist()))[:5])
            besides = "" if ignore is None else f" or {ignore} (ignored)"
            raise DataError(f"labels hold {found}; classes are 0 to {classes - 1}{besides}")
    each = F.cross_entropy(logits.float(), torch.where(counted, labels, 0), reduction="none")
    return torch.where(counted, each, 0.0).sum() / counted.sum().clamp(min=1)


def soft_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of every class of every image: the multi-label soft margin loss.

    Args:
        logits: (B, K).
        labels: (B, K), 0 or 1.

    Raises:
        DataError: other shapes.
    """
    if labels.shape != logits.shape:
        raise DataError(f"labels of shape {tuple(labels.shape)} for logits of shape {tuple(logits.shape)}")
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
