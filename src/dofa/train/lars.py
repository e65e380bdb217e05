"""LARS, the optimiser of linear probes: every matrix takes steps in proportion to its own size."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dofa.errors import ConfigError


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
        weight_decay: of matrices.
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
