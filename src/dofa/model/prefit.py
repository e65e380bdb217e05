"""The weight generator, fitted to a teacher's patch kernel before training: RGB features are then the teacher's."""

import time
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from dofa.errors import CheckpointError, ConfigError
from dofa.model.encoder import DOFA, Wavelengths
from dofa.model.kernels import KERNEL_SCALE, WEIGHT_TOKENS
from dofa.model.teacher import Teacher

Method = Literal["closed-form", "iterative"]
RGB_UM = (0.665, 0.56, 0.49)  # what the published models are told of red, green and blue


@dataclass(frozen=True)
class Fit:
    """How well the generator imitates the teacher's patch embedding.

    Attributes:
        before: |generated − teacher's| / |teacher's| over kernel and bias together, before the fit.
        residual: the same after it.
        seconds: it took.
    """

    before: float
    residual: float
    seconds: float


def prefit(
    model: DOFA,
    teacher: Teacher,
    wavelengths: Wavelengths = RGB_UM,
    *,
    method: Method = "closed-form",
    updates: int = 1000,
) -> Fit:
    """Makes the generated kernel at three wavelengths the teacher's patch kernel.

    `closed-form` changes the generator's last linear maps alone, by the least change that is exact. `iterative` trains
    the whole generator, as the paper does (its recipe is not published).

    Args:
        model: patch_offset 0, the teacher's width and patch.
        teacher: whose kernel is imitated.
        wavelengths: of red, green and blue.
        method: see above.
        updates: of the iterative fit.

    Returns:
        The residual before and after.

    Raises:
        ConfigError: patch_offset is 1, not three wavelengths, two that are equal, or an unknown method.
        CheckpointError: another width or patch.

    Source: arXiv 2403.15356, section 3.4 for the fit; the closed form is ours.
    """
    target_weight, target_bias = patch_kernel(model, teacher)
    if method not in get_args(Method):
        raise ConfigError(f"method is {method!r}; {' or '.join(get_args(Method))}")
    numbers = model.band_inputs(wavelengths)[0].tolist()
    if len(numbers) != 3 or len(set(numbers)) != 3:
        raise ConfigError(
            f"the teacher's kernel is for red, green and blue: three different wavelengths, not {numbers}"
        )
    start = time.perf_counter()
    before = residual(model, teacher, wavelengths)
    if method == "closed-form":
        _solve(model, wavelengths, target_weight, target_bias)
    else:
        _train(model, wavelengths, target_weight, target_bias, updates)
    return Fit(before, residual(model, teacher, wavelengths), time.perf_counter() - start)


@torch.no_grad()
def residual(model: DOFA, teacher: Teacher, wavelengths: Wavelengths = RGB_UM) -> float:
    """|generated − teacher's| / |teacher's| over kernel and bias together; arguments and errors as `prefit`."""
    weight, bias = patch_kernel(model, teacher)
    made_weight, made_bias, _ = model.patch_embed.kernel(model.encode_bands(wavelengths))
    difference = torch.cat([(made_weight.reshape(weight.shape) - weight).flatten(), made_bias - bias])
    return float(difference.double().norm() / torch.cat([weight.flatten(), bias]).double().norm())


def patch_kernel(model: DOFA, teacher: Teacher) -> tuple[Tensor, Tensor]:
    """The teacher's kernel as the generator lays it out, (3, p·p·D) float32, and its bias (D,)."""
    own, its = model.config, teacher.config
    if own.patch_offset:
        raise ConfigError(
            f"patch_offset is {own.patch_offset}, but the windows of {teacher.name} start at their cells: "
            "build the model with patch_offset: 0"
        )
    if (own.width, own.patch) != (its.width, its.patch):
        raise CheckpointError(
            f"{teacher.name} has width {its.width} and patch {its.patch}, the model {own.width} and {own.patch}: "
            "its kernel cannot be imitated; as a distillation teacher it is welcome"
        )
    proj = teacher.vit.patch_embed["proj"]
    device = model.cls_token.device
    kernel = cast(Tensor, proj.weight).float().permute(1, 2, 3, 0).reshape(3, -1)
    return kernel.to(device), cast(Tensor, proj.bias).float().to(device)


@torch.no_grad()
def _solve(model: DOFA, wavelengths: Wavelengths, target_weight: Tensor, target_bias: Tensor) -> None:
    """The least change of the last linear map that is exact, in float64; the bias goes into a constant."""
    generator = model.patch_embed.weight_generator
    assert generator.fc_bias is not None
    waves = model.patch_embed.fclayer(model.encode_bands(wavelengths))
    tokens = generator.transformer_encoder(torch.cat([generator.weight_tokens, waves, generator.bias_token]))
    state = (tokens[WEIGHT_TOKENS:-1] + waves).double()
    state = torch.cat([state, torch.ones_like(state[:, :1])], dim=1)
    made_weight, made_bias = generator(waves)
    # Three equations in 129 unknowns for each value of a kernel: the pseudo-inverse answers with the least change.
    missing = (target_weight.double() - made_weight.double()) / KERNEL_SCALE
    change = torch.linalg.pinv(state).float() @ missing.float()
    generator.fc_weight.weight.add_(change[:-1].T)
    generator.fc_weight.bias.add_(change[-1])
    # A bias belongs to no band: in the constant it is the teacher's for other bands, too.
    generator.fc_bias.bias.add_((target_bias - made_bias) / KERNEL_SCALE)


def _train(model: DOFA, wavelengths: Wavelengths, target_weight: Tensor, target_bias: Tensor, updates: int) -> None:
    """Adam on the squared error of kernel and bias, relative to the teacher's."""
    generator = model.patch_embed
    optimiser = torch.optim.Adam(generator.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    with torch.no_grad():
        waves = model.encode_bands(wavelengths)
    scale = target_weight.square().sum() + target_bias.square().sum()
    with torch.enable_grad():
        for _ in range(updates):
            weight, bias, _ = generator.kernel(waves)
            error = (weight.reshape(target_weight.shape) - target_weight).square().sum()
            loss = (error + (bias - target_bias).square().sum()) / scale
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
    optimiser.zero_grad()
