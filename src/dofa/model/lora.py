"""LoRA: a frozen encoder that learns a low-rank change of its linear layers, in a hundredth of the parameters.

y = W x + b + (alpha / rank) · B A x, of which only A (rank, in) and B (out, rank) are trained (Hu et al. 2021,
arXiv 2106.09685, section 4.1). B starts at zero, so that an encoder with fresh adapters gives what it gave before.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dofa.errors import CheckpointError, ConfigError, nearest
from dofa.model.vit import VisionTransformer

TARGETS = ("qkv", "proj", "fc1", "fc2")  # the linear layers of a block
NAME = "lora"  # of the adapter within its layer: blocks.0.attn.qkv.lora.a


class Adapter(nn.Module):
    """The low-rank change of one linear layer.

    Args:
        linear: the layer it is added to; gives sizes, device and number type.
        rank: rows of A.
        alpha: the change is scaled by alpha / rank.
    """

    scale: Tensor

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        weight = linear.weight
        self.a = nn.Parameter(weight.new_empty(rank, linear.in_features))
        self.b = nn.Parameter(weight.new_zeros(linear.out_features, rank))
        # With the weights, so that a file of adapters needs no word beside it.
        self.register_buffer("scale", torch.tensor(alpha / rank, dtype=torch.float32, device=weight.device))
        nn.init.normal_(self.a, std=linear.in_features**-0.5)
        self.hook = linear.register_forward_hook(_add_change)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to the change of the layer's output, (..., out)."""
        return F.linear(F.linear(x, self.a) * self.scale, self.b)

    def change(self) -> Tensor:
        """What is added to the layer's weight, (out, in) float64."""
        return self.b.double() @ self.a.double() * self.scale.double()


def _add_change(linear: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output + cast(Tensor, cast(Adapter, linear.lora)(inputs[0]))


def add_lora(
    model: VisionTransformer, rank: int = 8, alpha: float | None = None, targets: Sequence[str] = TARGETS
) -> int:
    """Adds adapters to the blocks' linear layers, in place, and freezes everything else.

    A classification head that is to be trained too needs `model.head.requires_grad_(True)` afterwards. The adapters
    belong to the state dict (`blocks.0.attn.qkv.lora.a`); `merge_lora` makes an ordinary model of it again.

    Args:
        model: without adapters.
        alpha: its scale times the rank; the rank itself where None, a scale of 1.
        targets: which layers of a block: qkv, proj, fc1, fc2.

    Returns:
        The number of parameters that are trained.

    Raises:
        ConfigError: no such layer, a rank below 1 or above a layer's own, an alpha of 0 or less, or adapters already.
    """
    if unknown := [name for name in targets if name not in TARGETS]:
        raise ConfigError(f"LoRA target {unknown[0]!r} is no linear layer of a block: {nearest(unknown[0], TARGETS)}")
    if not targets:
        raise ConfigError(f"LoRA without a target: any of {', '.join(TARGETS)}")
    if not 1 <= rank <= model.config.width:
        raise ConfigError(f"LoRA rank is {rank}; between 1 and the {model.config.width} of the model's width")
    alpha = rank if alpha is None else alpha
    if not 0 < alpha < float("inf"):
        raise ConfigError(f"LoRA alpha is {alpha}; a number above 0")
    require_merged(model)
    model.requires_grad_(False)
    for name, linear in linears(model).items():
        if name.rsplit(".", 1)[1] in targets:
            linear.add_module(NAME, Adapter(linear, rank, alpha))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def merge_lora(model: VisionTransformer) -> None:
    """Adds every adapter's change to the weight of its layer, in place, and removes the adapters.

    The sum is formed in float64 and rounded once; an adapter that never learned leaves its weight as it was. The model
    stays frozen: training it further needs `requires_grad_(True)`.

    Raises:
        ConfigError: it has no adapters.
    """
    adapted = adapters(model)
    if not adapted:
        raise ConfigError("the model has no LoRA adapters to merge")
    of = linears(model)
    for name, adapter in adapted.items():
        linear = of[name]
        linear.weight.copy_(linear.weight.double() + adapter.change())
        adapter.hook.remove()
        delattr(linear, NAME)


def lora_state(model: VisionTransformer) -> dict[str, Tensor]:
    """The adapters alone, by their names in the model: a (rank, in), b (out, rank) and scale of each layer.

    Raises:
        ConfigError: there are none.
    """
    state = {
        f"{name}.{NAME}.{key}": tensor
        for name, adapter in adapters(model).items()
        for key, tensor in adapter.state_dict().items()
    }
    if not state:
        raise ConfigError("the model has no LoRA adapters to save")
    return state


def load_lora(model: VisionTransformer, state: Mapping[str, Tensor]) -> None:
    """Gives a model the adapters of `lora_state`, every key accounted for; layers, rank and scale are taken from them.

    Args:
        model: without adapters, of the architecture they were trained on; otherwise as `add_lora` leaves it.
        state: by name; on any device, copied.

    Raises:
        CheckpointError: keys or shapes that do not fit the model; it is then unchanged.
        ConfigError: the model has adapters already.
    """
    require_merged(model)
    of = linears(model)
    faults = []
    names = dict.fromkeys(key.rsplit(f".{NAME}.", 1)[0] for key in state)
    for name in names:
        linear = of.get(name)
        given = {key: state.get(f"{name}.{NAME}.{key}") for key in ("a", "b", "scale")}
        a, b, scale = given.values()
        if linear is None:
            faults.append(f"{name} is no linear layer of a block of this model")
        elif a is None or b is None or scale is None:
            faults.append(f"{name} has no {' and no '.join(k for k, v in given.items() if v is None)}")
        elif a.ndim != 2 or a.shape[1] != linear.in_features or b.shape != (linear.out_features, len(a)) or scale.ndim:
            faults.append(
                f"{name} has a {tuple(a.shape)}, b {tuple(b.shape)} and scale {tuple(scale.shape)} "
                f"for a layer of {linear.in_features} → {linear.out_features}"
            )
    extra = len(state) - 3 * len(names)
    if not state or (extra and not faults):
        faults.append("no adapters in it" if not state else f"{extra} keys are none of a, b and scale")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(f"these LoRA adapters do not fit the model: {'; '.join(faults[:3])}{more}")
    model.requires_grad_(False)
    for name in names:
        linear = of[name]
        part = {key: state[f"{name}.{NAME}.{key}"] for key in ("a", "b", "scale")}
        adapter = Adapter(linear, len(part["a"]), 1.0)
        adapter.load_state_dict(part)
        linear.add_module(NAME, adapter)


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The adapters in a module by the names of their layers."""
    return {name.removesuffix(f".{NAME}"): part for name, part in model.named_modules() if isinstance(part, Adapter)}


def linears(model: VisionTransformer) -> dict[str, nn.Linear]:
    """The linear layers of the blocks by name."""
    return {f"blocks.{n}": part for n, part in model.blocks.named_modules() if isinstance(part, nn.Linear)}


def require_merged(model: nn.Module) -> None:
    """Refuse a model with adapters.

    Raises:
        ConfigError: it has some.
    """
    if adapters(model):
        raise ConfigError("the model has LoRA adapters: merge them first (dofa.model.lora.merge_lora)")
