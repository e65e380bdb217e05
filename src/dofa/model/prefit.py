"""The weight generator, fitted to a teacher's patch kernel before training: RGB features are then the teacher's."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from dofa.errors import CheckpointError, ConfigError
from dofa.model.convert import unpickle
from dofa.model.encoder import DOFA, Wavelengths
from dofa.model.kernels import KERNEL_SCALE, WEIGHT_TOKENS, DynamicPatchEmbedding
from dofa.model.native import fill
from dofa.model.teacher import Teacher
from dofa.sensors import Sensor

Method = Literal["closed-form", "iterative"]
CUT = 1e-3  # of the largest singular value
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
    updates: int = 200,
    sensors: Sequence[Sensor] = (),
) -> Fit:
    """Makes the generated kernel at three wavelengths the teacher's patch kernel.

    `closed-form` replaces the generator's last linear maps by the least ones that are exact. `iterative` trains the
    whole generator from where it stands, as the paper does (its recipe is not published).

    Args:
        model: patch_offset 0, the teacher's width and patch.
        teacher: whose kernel is imitated.
        wavelengths: of red, green and blue.
        method: see above.
        updates: L-BFGS steps of the iterative fit.
        sensors: whose bands the closed form starts well, too, as far as that leaves red, green and blue exact: each
            optical band of a whole image with the kernel of the nearest colour, divided by how many bands share it, so
            that an image is to the encoder what its broad-band colours are to the teacher.

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
    generating(model)  # refuses before any work
    before = residual(model, teacher, wavelengths)
    if method == "closed-form":
        _solve(model, wavelengths, sensors, target_weight, target_bias)
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


@torch.no_grad()
def feature_difference(model: DOFA, teacher: Teacher, wavelengths: Wavelengths = RGB_UM) -> float:
    """The largest relative difference of any block's tokens, model against teacher.

    Both see the same noise of unit variance as their normalised input, at the model's image size; |a − b| / |b| is
    taken over all tokens of a block.

    Args:
        model: the student.
        teacher: of the same depth.
        wavelengths: micrometres of the teacher's three bands, in its order.

    Raises:
        ConfigError: the depths differ.
    """
    depth, side = model.config.depth, model.config.image_size
    if depth != teacher.config.depth:
        raise ConfigError(f"{teacher.name} has {teacher.config.depth} blocks, the model {depth}: nothing to compare")
    noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(model.cls_token.device)
    theirs = teacher(noise, range(depth), normalised=True)
    keep = torch.arange((side // model.config.patch) ** 2, device=noise.device).expand(2, -1)
    _, _, mine = model.forward_visible(noise, wavelengths, keep, range(depth))
    return max(float((a - b).norm() / b.norm()) for a, b in zip(mine, theirs, strict=True))


def load_generator(model: DOFA, file: str | Path) -> None:
    """Puts a weight generator that was fitted elsewhere into a model, in place of `prefit`.

    Args:
        model: of the generator's width and patch.
        file: as the authors release it (`weight_generator_1000_0.01_er50k.pt`): the dicts `weight_generator` and
            `fclayer`.

    Raises:
        CheckpointError: unreadable, another layout, another width or patch, or a key too many or too few.
    """
    path = Path(file)
    if not path.is_file():
        raise CheckpointError(f"no file {path}")
    content = unpickle(path)
    parts = ("weight_generator", "fclayer")
    if (
        not isinstance(content, dict)
        or set(content) != set(parts)
        or not all(isinstance(content[p], dict) for p in parts)
    ):
        raise CheckpointError(
            f"{path} is no weight generator: exactly the dicts weight_generator and fclayer are expected"
        )
    tensors = {f"{part}.{key}": value for part in parts for key, value in content[part].items()}
    if odd := [key for key, value in tensors.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{path}: {', '.join(odd[:4])} are no tensors")
    own, generator = model.config, generating(model).weight_generator
    kernel, bias = (tensors.get(f"weight_generator.{key}.bias") for key in ("fc_weight", "fc_bias"))
    if kernel is not None and bias is not None and kernel.shape != generator.fc_weight.bias.shape:
        patch = math.sqrt(len(kernel) / max(1, len(bias)))
        raise CheckpointError(
            f"{path} generates kernels of width {len(bias)} and patch {patch:.4g}, "
            f"the model has {own.width} and {own.patch}"
        )
    fill(model.patch_embed, tensors, str(path))


def generating(model: DOFA) -> DynamicPatchEmbedding:
    """The model's weight generator with what feeds it.

    Raises:
        ConfigError: it has one patch embedding a sensor instead.
    """
    if not isinstance(model.patch_embed, DynamicPatchEmbedding):
        raise ConfigError("this model has one patch embedding a sensor and no weight generator that could be fitted")
    return model.patch_embed


def patch_kernel(model: DOFA, teacher: Teacher) -> tuple[Tensor, Tensor]:
    """The teacher's kernel as the generator lays it out, (3, p·p·D) float32, and its bias (D,).

    Args:
        model: the student.
        teacher: of its width and patch.

    Raises:
        ConfigError: the model's cells begin before their patches.
        CheckpointError: another width or patch.
    """
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
def _solve(
    model: DOFA, wavelengths: Wavelengths, sensors: Sequence[Sensor], target_weight: Tensor, target_bias: Tensor
) -> None:
    """The least last linear maps that are exact for red, green and blue."""
    generator = generating(model).weight_generator
    assert generator.fc_bias is not None
    colours, target = _states(model, wavelengths), target_weight.double() / KERNEL_SCALE
    others, shared = [], []
    for sensor in (s for s in sensors if any(band.kind == "optical" for band in s.bands)):
        for bands in [sensor] + [sensor.select(three) for three in list(sensor.renderings.values())[:1]]:
            share = _shares(model, bands, wavelengths)
            # A whole spectrometer weighs as much as three bands.
            weight = (share.sum(1, keepdim=True) > 0) / len(share) ** 0.5
            others.append(weight * _states(model, bands))
            shared.append(weight * share @ target)
    # Three equations in 129 unknowns for each value of a kernel. The least solution, not the least change: what a
    # random start leaves in the other 126 directions is noise as large as the teacher's kernels on every other band
    # (docs/teachers.md). Neighbouring bands of a spectrometer are nearly one equation: what they would add is cut off.
    least = torch.linalg.pinv(torch.cat([colours, *others]), rtol=CUT) @ torch.cat([target, *shared])
    least += torch.linalg.pinv(colours) @ (target - colours @ least)
    generator.fc_weight.weight.copy_(least[:-1].T)
    generator.fc_weight.bias.copy_(least[-1])
    # A bias belongs to no band: as a constant it is the teacher's for other bands, too.
    generator.fc_bias.weight.zero_()
    generator.fc_bias.bias.copy_(target_bias / KERNEL_SCALE)


def _states(model: DOFA, wavelengths: Wavelengths) -> Tensor:
    """(C, 129) float64: what the last linear map makes each band's kernel from, and the 1 of its bias."""
    generator = generating(model).weight_generator
    waves = generating(model).fclayer(model.encode_bands(wavelengths))
    tokens = generator.transformer_encoder(torch.cat([generator.weight_tokens, waves, generator.bias_token]))
    state = (tokens[WEIGHT_TOKENS:-1] + waves).double()
    return torch.cat([state, torch.ones_like(state[:, :1])], dim=1)


def _shares(model: DOFA, sensor: Sensor, wavelengths: Wavelengths) -> Tensor:
    """(C, 3) float64: how much of each colour's kernel a band begins with; nothing for bands that are not optical."""
    colours = model.band_inputs(wavelengths)[0]
    nearest = (model.band_inputs(sensor)[0][:, None] - colours).abs().argmin(1)
    share = torch.nn.functional.one_hot(nearest, 3).double()
    share *= torch.tensor([[band.kind == "optical"] for band in sensor.bands], device=share.device)
    return share / share.sum(0).clamp(min=1)


def _train(model: DOFA, wavelengths: Wavelengths, target_weight: Tensor, target_bias: Tensor, updates: int) -> None:
    """L-BFGS on the squared error of kernel and bias, relative to the teacher's; all of the generator moves."""
    generator = generating(model)
    with torch.no_grad():
        waves = model.encode_bands(wavelengths)
    scale = target_weight.square().sum() + target_bias.square().sum()
    # Adam is at 0.19 after 300 updates, L-BFGS at 0.0016 after 100 that take as long each (ViT-S/14).
    optimiser = torch.optim.LBFGS(
        generator.parameters(), max_iter=updates, history_size=5, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def relative_error() -> Tensor:
        optimiser.zero_grad()
        weight, bias, _ = generator.kernel(waves)
        error = (weight.reshape(target_weight.shape) - target_weight).square().sum()
        loss = (error + (bias - target_bias).square().sum()) / scale
        torch.autograd.backward(loss)
        return loss.detach()

    with torch.enable_grad():
        optimiser.step(relative_error)  # type: ignore[no-untyped-call]
    optimiser.zero_grad()
