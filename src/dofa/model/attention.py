"""Multi-head self-attention, in the form that is quickest on the device and spares memory where it is asked to."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

# Attention scores in bf16 that the C library's allocator still keeps (24 of 32 MB): what is larger comes from the
# system page by page each time, which costs a third more (docs/step.md).
SCORES_AT_ONCE = 12 * 2**20


class QueryKeyValue(nn.Linear):
    """The linear layer to queries, keys and values, whose keys' bias is not trained."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., 3·D)."""
        # A bias of the keys shifts all scores of a query alike, which softmax ignores. Its gradient is rounding noise
        # that Adam would scale up to full steps, different ones on every machine: it stays as it was loaded.
        bias: Tensor = self.bias
        if torch.is_grad_enabled():
            to_q, to_k, to_v = bias.chunk(3)
            bias = torch.cat([to_q, to_k.detach(), to_v])
        return F.linear(x, self.weight, bias)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.recompute = False
        self.qkv = QueryKeyValue(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        batch, length, width = x.shape
        qkv: Tensor = self.qkv(x)
        q, k, v = qkv.reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, self.recompute)
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(batch, length, width)))


def attend(q: Tensor, k: Tensor, v: Tensor, recompute: bool = False) -> Tensor:
    """Scaled dot-product attention, (B, heads, N, d) each.

    PyTorch's fused kernel, except for training in bf16 on a CPU: its backward is slow there, and plain products take a
    half to a quarter of the time (docs/log.md; 37 to 197 tokens).

    Args:
        recompute: where plain products are used, keep no scores for the backward pass.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        if torch.compiler.is_compiling():
            return probabilities(q, k) @ v
        if recompute:
            return cast(Tensor, MemoryEfficientAttention.apply(q, k, v))  # type: ignore[no-untyped-call]
        return torch.cat([probabilities(q[part], k[part]) @ v[part] for part in parts(q)])
    return F.scaled_dot_product_attention(q, k, v)


class MemoryEfficientAttention(torch.autograd.Function):
    """Attention by plain products, a few images at a time, that keeps no scores for the backward pass.

    They are computed again there: one product in six more.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The mixed values, (B, heads, N, d).

        Args:
            ctx: keeps `q`, `k` and `v` for the backward pass.
            q, k, v: (B, heads, N, d).
        """
        ctx.save_for_backward(q, k, v)
        mixed = torch.empty_like(q, memory_format=torch.contiguous_format)
        for part in parts(q):
            torch.matmul(probabilities(q[part], k[part]), v[part], out=mixed[part])
        return mixed

    @staticmethod
    def backward(ctx: Any, to_mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v.

        Args:
            ctx: what `forward` kept.
            to_mixed: (B, heads, N, d) gradient of what it gave.
        """
        q, k, v = ctx.saved_tensors
        to_q, to_k, to_v = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
        scale = q.shape[-1] ** -0.5
        for part in parts(q):
            p = probabilities(q[part], k[part])
            torch.matmul(p.transpose(-2, -1), to_mixed[part], out=to_v[part])
            to_p = to_mixed[part] @ v[part].transpose(-2, -1)
            to_scores = torch._softmax_backward_data(to_p, p, -1, p.dtype)
            torch.matmul(to_scores, k[part] * scale, out=to_q[part])
            torch.matmul(to_scores.transpose(-2, -1), q[part] * scale, out=to_k[part])
        return to_q, to_k, to_v


def parts(q: Tensor) -> list[slice]:
    """The batch in runs of images whose scores fit in SCORES_AT_ONCE together."""
    images = max(1, SCORES_AT_ONCE // (q.shape[1] * q.shape[2] ** 2))
    return [slice(first, first + images) for first in range(0, len(q), images)]


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """How much every query takes of every value, (B, heads, N, N).

    Args:
        q, k: (B, heads, N, d).
    """
    scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.softmax(-1)
