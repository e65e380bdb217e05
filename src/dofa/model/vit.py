"""The Vision Transformer behind the patch embedding: blocks, positions, pooled vector, intermediate maps.

Nothing here knows a wavelength. Parameter names are those of timm and of the released weights.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dofa.errors import ConfigError
from dofa.model.attention import Attention
from dofa.model.config import EncoderConfig
from dofa.model.patch_embed import infers_on_cpu

Grid = tuple[int, int]
NORM_EPS = 1e-6
# Values between an MLP's layers that inference on a CPU takes at once (8 images of 197 tokens for base): buffers that
# large are used again from block to block, those of larger batches come from the system (docs/inference.md).
HIDDEN_AT_ONCE = 9 * 2**19


class Mlp(nn.Module):
    """Two linear layers, four times as wide between them, with GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.recompute = False
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        hidden = self.fc1(x)
        if self.recompute and hidden.requires_grad and not torch.compiler.is_compiling():
            return gelu_kept_once(hidden, self.fc2)
        return cast(Tensor, self.fc2(F.gelu(hidden)))


def gelu_kept_once(hidden: Tensor, linear: nn.Module) -> Tensor:
    """GELU and a linear layer; of GELU only the input is kept for the backward pass, its output is computed again.

    Args:
        hidden: (..., width) before GELU.
    """
    active = F.gelu(hidden)
    place, before = active.data_ptr(), hidden.detach()

    def pack(saved: Tensor) -> Tensor | torch.Size:
        return saved.shape if saved.data_ptr() == place else saved

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        return kept if isinstance(kept, Tensor) else F.gelu(before).reshape(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return cast(Tensor, linear(active))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (Touvron et al. 2021), as in DINOv2 and DOFA+."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm Transformer block."""

    def __init__(self, width: int, heads: int, layer_scale: float | None = None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = 0.0
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        x = x + self.dropped(self.ls1(self.attn(self.norm1(x))))
        return x + self.dropped(self.ls2(self.mlp(self.norm2(x))))

    def dropped(self, branch: Tensor) -> Tensor:
        """A residual branch, in training left out of an image with the probability `drop_path`, its mean kept."""
        if not (self.training and self.drop_path):
            return branch
        keep = 1 - self.drop_path
        drawn = torch.rand(len(branch), 1, 1, device=branch.device) < keep
        return branch * (drawn / keep).to(branch.dtype)


def set_drop_path(model: "VisionTransformer", rate: float) -> None:
    """Leave residual branches out at random in training (stochastic depth), deeper blocks more often.

    Args:
        model: whose blocks get probabilities that rise evenly from 0 in the first to `rate` in the last.
        rate: of the last block, in [0, 1); 0 turns it off. Each image draws for itself, from torch's own generator.

    Raises:
        ConfigError: a rate outside [0, 1).

    Source: Huang et al. 2016, with the linear rule of its section 3.
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"drop path is {rate}; a probability from 0 to below 1")
    blocks = cast(Sequence[Block], model.blocks)
    for i, block in enumerate(blocks):
        block.drop_path = rate * i / max(len(blocks) - 1, 1)


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases, the usual start of a masked autoencoder (He et al. 2022)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def recompute_activations(module: nn.Module, enabled: bool = True) -> None:
    """Keep neither attention scores nor GELU's outputs of these blocks for the backward pass.

    The numbers are the same; a step of the paper's objective takes a quarter less memory and a twentieth more time
    (docs/step.md). `set_grad_checkpointing` spares more and costs a third.

    Args:
        enabled: False keeps them again.
    """
    for part in module.modules():
        if isinstance(part, Attention | Mlp):
            part.recompute = enabled


def run_block(block: nn.Module, x: Tensor, checkpointing: bool) -> Tensor:
    """One block, its activations recomputed in the backward pass if asked: less memory, the same numbers.

    Args:
        x: (B, L, D).
        checkpointing: whether to recompute.
    """
    if checkpointing and torch.is_grad_enabled():
        return cast(Tensor, checkpoint(block, x, use_reentrant=False))
    return cast(Tensor, block(x))


def sincos_positions(width: int, grid: Grid) -> Tensor:
    """Fixed two-dimensional positions.

    Args:
        width: of a token, a multiple of 4.
        grid: rows and columns of patches.

    Returns:
        (1, 1 + rows·columns, width): zeros for CLS, then row by row; the first half of a vector encodes the row, the
        second the column, each as sines then cosines at width/4 geometric frequencies.
    """
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float32) / (width / 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in grid), indexing="ij")
    angles = [place.reshape(-1, 1) * frequency for place in (rows, columns)]
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, width), table])[None]


def interpolate_positions(table: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
    """A position table (1, 1 + N, D) carried to another grid: bicubic with antialiasing, CLS as it is.

    Args:
        table: (1, 1 + N, D), CLS first.
        from_grid: (rows, columns) that N is made of.
        to_grid: (rows, columns) wanted.
    """
    if from_grid == to_grid:
        return table
    square = table[:, 1:].float().reshape(1, *from_grid, -1).permute(0, 3, 1, 2)
    moved = F.interpolate(square, size=to_grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:, :1], moved.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


class VisionTransformer(nn.Module):
    """Everything behind the patch embedding.

    Args:
        config: sizes and conventions.
        grid: of the position table, None for the config's own.
    """

    def __init__(self, config: EncoderConfig, grid: Grid | None = None) -> None:
        super().__init__()
        self.config = config
        self.grid = grid or (config.grid, config.grid)
        self.grad_checkpointing = False
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = nn.Parameter(sincos_positions(config.width, self.grid), requires_grad=False)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.layer_scale) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)  # for pretraining and feature levels, not for the pool
        self.fc_norm = nn.LayerNorm(config.width, eps=NORM_EPS) if config.pooled_norm else nn.Identity()
        self.head: nn.Module = nn.Identity()
        nn.init.normal_(self.cls_token, std=0.02)
        self.reset_classifier(config.num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh linear head, or none for 0 classes."""
        self.config = replace(self.config, num_classes=num_classes)
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.config.width, num_classes)
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)
            self.head.to(self.cls_token.device, self.cls_token.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass: less memory, the same numbers."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone, beside biases and norms."""
        return {"cls_token", "pos_embed"}

    def add_positions(self, patch_tokens: Tensor, grid: Grid, keep: Tensor | None = None) -> Tensor:
        """Puts the CLS token in front and positions onto everything.

        Args:
            patch_tokens: (B, N or K, D).
            grid: rows and columns the image has in patches.
            keep: (B, K) which patches these are, None for all in order.

        Returns:
            (B, 1 + N or K, D).
        """
        table = interpolate_positions(self.pos_embed, self.grid, grid)
        places = table[:, 1:] if keep is None else table[0, 1:][keep]
        cls = (self.cls_token + table[:, :1]).expand(patch_tokens.shape[0], -1, -1)
        return torch.cat([cls, patch_tokens + places], dim=1)

    def run_blocks(self, x: Tensor) -> Tensor:
        """(B, L, D) through all blocks."""
        return self.run_blocks_keeping(x, ())[0]

    def run_blocks_keeping(
        self, x: Tensor, blocks: Sequence[int], no_deeper: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """(B, L, D) through all blocks, and the outputs of those named, in the order named (negative from the end).

        With `no_deeper`, only through the blocks up to the last one named.
        """
        wanted = block_indices(blocks, len(self.blocks)) if blocks else []
        depth = max(wanted, default=-1) + 1 if no_deeper else len(self.blocks)
        pieces = x.chunk(max(1, 4 * x.numel() // HIDDEN_AT_ONCE)) if infers_on_cpu(x) else [x]
        ran = [self.through(piece, wanted, depth) for piece in pieces]
        if len(ran) == 1:
            return ran[0]
        outputs, levels = zip(*ran, strict=True)
        return torch.cat(outputs), [torch.cat(level) for level in zip(*levels, strict=True)]

    def through(self, x: Tensor, wanted: Sequence[int], depth: int) -> tuple[Tensor, list[Tensor]]:
        """(B, L, D) through the first `depth` blocks at once, and the outputs of those wanted.

        Args:
            wanted: numbers of blocks from 0.
        """
        found: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks[:depth]):
            x = run_block(block, x, self.grad_checkpointing)
            if i in wanted:
                found[i] = x
        return x, [found[i] for i in wanted]

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """The pooled vector, and the head's output from it.

        Args:
            tokens: (B, 1 + N, D) of `forward_features`.
            pre_logits: stop before the head.

        Returns:
            (B, D) mean of the patch tokens, normed where the config says so, or (B, classes).
        """
        pooled = self.fc_norm(tokens[:, 1:].mean(dim=1))
        return cast(Tensor, pooled if pre_logits else self.head(pooled))

    def intermediates(
        self,
        x: Tensor,
        grid: Grid,
        indices: int | Sequence[int] | None,
        norm: bool,
        output_fmt: Literal["NCHW", "NLC"],
        return_prefix_tokens: bool,
        intermediates_only: bool,
    ) -> "Intermediates":
        """Outputs of chosen blocks; the arguments are those of `DOFA.forward_intermediates`."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ConfigError(f"output_fmt is {output_fmt!r}; NCHW (maps) or NLC (tokens)")
        wanted = block_indices(indices, len(self.blocks))
        x, found = self.run_blocks_keeping(x, wanted, no_deeper=intermediates_only)
        if norm:
            found = [self.norm(level) for level in found]
        levels: list[Tensor] | list[tuple[Tensor, Tensor]]
        patches = [level[:, 1:] for level in found]
        if output_fmt == "NCHW":
            patches = [p.transpose(1, 2).reshape(p.shape[0], -1, *grid) for p in patches]
        levels = (
            [(p, level[:, :1]) for p, level in zip(patches, found, strict=True)] if return_prefix_tokens else patches
        )
        return levels if intermediates_only else (x, levels)


Levels = list[Tensor] | list[tuple[Tensor, Tensor]]
Intermediates = Levels | tuple[Tensor, Levels]


def block_indices(indices: int | Sequence[int] | None, depth: int) -> list[int]:
    """Block numbers from 0: None for all, an integer n for the last n, negatives counted from the end.

    Args:
        indices: as timm writes them.

    Raises:
        ConfigError: there is no such block.
    """
    if indices is None:
        return list(range(depth))
    # A count beyond the depth starts below −depth, where there is no block, and is refused with the others.
    wanted = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
    if not wanted or any(not -depth <= i < depth for i in wanted):
        raise ConfigError(f"indices {indices} do not name blocks of a model that has {depth} (0 to {depth - 1})")
    return [i % depth for i in wanted]
