"""AdamW's parameter groups and the learning rate of every update."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dofa.errors import ConfigError
from dofa.model.encoder import DOFA
from dofa.model.vit import VisionTransformer
from dofa.train.config import OptimConfig


def parameter_groups(
    module: nn.Module, weight_decay: float, encoder_lr: float = 1.0, generator_lr: float = 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters in groups: matrices, which decay, and the rest, which does not; each at its rate.

    Biases, norms, LayerScale, tokens and positions do not decay: towards zero means nothing for them.

    Args:
        module: whatever is trained; any submodule may name further ones in `no_weight_decay()`, relative to itself.
        encoder_lr: factor on the rate of an encoder (`DOFA`) without what makes its kernels.
        generator_lr: factor on the rate of what makes its kernels.

    Returns:
        groups for torch.optim.AdamW, with `lr_scale`; parameters keep the order of `named_parameters`.
    """
    factor: dict[str, float] = {}
    for path, part in _parts(module):
        if isinstance(part, DOFA):
            for name, _ in part.named_parameters():
                makes_kernels = name.startswith("patch_embed.") or name == "polarisation_embed"
                factor[path + name] = generator_lr if makes_kernels else encoder_lr
    return _groups(module, weight_decay, factor)


def layer_decay(module: nn.Module, rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for fine-tuning: the nearer to the input, the smaller the steps.

    Of an encoder with L blocks, what lies before them (patch embedding with its generator, CLS, positions) learns at
    rate^(L+1) of the learning rate, block i (from 0) at rate^(L−i), and what lies behind (norms, head) at the learning
    rate itself, as does everything outside the encoder, such as a decoder.

    Args:
        module: an encoder, or whatever holds one.
        rate: of the decay, in (0, 1]; 1 gives all the same.
        weight_decay: of matrices, as in `parameter_groups`.

    Returns:
        groups for torch.optim.AdamW, with `lr_scale`; none is empty.

    Raises:
        ConfigError: a rate outside (0, 1], or no encoder in the module.

    Source: Clark et al. 2020 (arXiv 2003.10555), for ViTs Bao et al. 2021 (arXiv 2106.08254).
    """
    if not 0 < rate <= 1:
        raise ConfigError(f"layer decay is {rate}; a factor a block, above 0 and at most 1")
    factor: dict[str, float] = {}
    for path, part in _parts(module):
        if isinstance(part, VisionTransformer):
            depth = len(part.blocks)
            for name, _ in part.named_parameters():
                first, *rest = name.split(".")
                layer = int(rest[0]) + 1 if first == "blocks" else depth + 1 if first in _BEHIND else 0
                factor[path + name] = rate ** (depth + 1 - layer)
    if not factor:
        raise ConfigError("layer decay without an encoder: there are no blocks to count")
    return [group for group in _groups(module, weight_decay, factor) if group["params"]]


_BEHIND = ("norm", "fc_norm", "head")  # of an encoder, what its blocks feed


def _parts(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """All submodules, and what the names of their parameters begin with."""
    return [(f"{name}." if name else "", part) for name, part in module.named_modules()]


def _groups(module: nn.Module, weight_decay: float, factor: Mapping[str, float]) -> list[dict[str, Any]]:
    """One group a factor and decay; parameters that `factor` does not name have 1."""
    exempt: set[str] = set()
    for path, part in _parts(module):
        named = getattr(part, "no_weight_decay", None)
        if callable(named):
            exempt |= {path + name for name in named()}
    scales = (1.0, *sorted({*factor.values()} - {1.0}))
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(s, decays): [] for s in scales for decays in (True, False)}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[factor.get(name, 1.0), parameter.ndim > 1 and name not in exempt].append(parameter)
    return [
        {"params": found, "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale}
        for (scale, decays), found in groups.items()
    ]


def adamw(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the groups of `parameter_groups`; create it after the module is sharded.

    Args:
        config: rates, decay and betas.
    """
    generator_lr = 1.0 if config.generator_lr is None else config.generator_lr  # a run's configuration has the number
    groups = parameter_groups(module, config.weight_decay, config.encoder_lr, generator_lr)
    # One pass over the memory instead of several: 4 to 6 times faster on a CPU, where it is a tenth of a tiny step.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(update: int, updates: int, config: OptimConfig) -> float:
    """The rate of one update: a linear rise over the warm-up, then half a cosine down to min_lr.

    Args:
        update: 0 for the first.
        config: peak, warm-up and end.
    """
    warmup = config.warmup(updates)
    if update < warmup:
        return config.lr * (update + 1) / warmup
    span = max(updates - warmup, 1)
    done = min((update - warmup) / span, 1.0)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


# -- LARS, the optimiser of linear probes: every matrix takes steps in proportion to its own size.


class LARS(Optimizer):
    """Momentum with a trust ratio per matrix (You et al. 2017, arXiv 1708.03888).

    For a parameter w of two or more dimensions with gradient g:

        d = g + weight_decay · w
        d = d · trust · ‖w‖ / ‖d‖      (no ratio where either norm is 0)
        m = momentum · m + d
        w = w − lr · m

    Parameters of one dimension (biases, norms) take d = g: neither decay nor ratio. The paper writes the ratio as
    ‖w‖ / (‖g‖ + β ‖w‖) and the rate inside the momentum; this is the form linear probes of masked autoencoders use
    (He et al. 2022, appendix A.1; from MoCo v3, Chen et al. 2021), the form that published rates belong to.

    Args:
        params: parameters or groups of them.
        lr: rate; with the ratio, the share of its own size that a matrix moves is about trust · lr in a step.
        momentum: share of the last step kept.
        trust: the coefficient of the ratio, η in the paper.

    Raises:
        ConfigError: a setting out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 1e-3,
    ) -> None:
        if not (lr >= 0 and weight_decay >= 0 and 0 <= momentum < 1 and trust > 0):
            raise ConfigError(
                f"LARS with lr {lr}, weight_decay {weight_decay}, momentum {momentum}, trust {trust}: "
                "none below 0, a momentum below 1, a trust above 0"
            )
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update.

        Args:
            closure: computes the loss and its gradients anew, and returns it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                d = w.grad
                if w.ndim > 1:
                    d = d + group["weight_decay"] * w
                    size, slope = w.norm(), d.norm()
                    # On the device: asking for the norms would wait for it at every matrix.
                    ratio = torch.where((size > 0) & (slope > 0), group["trust"] * size / slope, 1.0)
                    d = d * ratio
                state = self.state[w]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(w)
                state["momentum"].mul_(group["momentum"]).add_(d)
                w.sub_(group["lr"] * state["momentum"])
        return loss
