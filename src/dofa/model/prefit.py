"""The weight generator, fitted to a teacher's patch kernel before training: RGB features are then the teacher's."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from rich.console import Console
from torch import Tensor

from dofa.errors import CheckpointError, ConfigError
from dofa.model.checkpoint import create, load, save
from dofa.model.config import Origin
from dofa.model.convert import unpickle
from dofa.model.encoder import DOFA, Wavelengths
from dofa.model.model_folder import CONFIG, fill
from dofa.model.patch_embed import KERNEL_SCALE, WEIGHT_TOKENS, DynamicPatchEmbedding
from dofa.model.teacher import Teacher, load_teacher
from dofa.model.vit import interpolate_positions
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


# -- A student that starts from an ordinary ViT: everything behind the patch embedding is the teacher's.


@torch.no_grad()
def initialise(model: DOFA, teacher: Teacher) -> None:
    """Copies CLS, positions (interpolated to the model's grid), blocks and norm from a teacher.

    The patch embedding stays as it is: `prefit` makes it the teacher's at the RGB wavelengths. The model's origin tells
    the teacher, its digest and its licence from here on.

    Args:
        teacher: an ordinary ViT of the same width, depth, heads, patch and LayerScale.

    Raises:
        CheckpointError: something differs; all of it is named.

    Source: arXiv 2403.15356, section 3.4.
    """
    own, its = model.config, teacher.config
    faults = [
        f"{what} {getattr(its, what)} instead of {getattr(own, what)}"
        for what in ("width", "depth", "heads", "patch")
        if getattr(its, what) != getattr(own, what)
    ]
    if (own.layer_scale is None) != (its.layer_scale is None):
        faults.append(
            "no LayerScale (build the model without layer_scale)"
            if its.layer_scale is None
            else "LayerScale (build the model with layer_scale: 1e-5)"
        )
    if faults:
        raise CheckpointError(
            f"{teacher.name} cannot start this model: it has {', '.join(faults)}; "
            "as a distillation teacher it is welcome"
        )
    state = teacher.vit.state_dict()
    state["pos_embed"] = interpolate_positions(teacher.vit.pos_embed, teacher.vit.grid, model.grid)
    for name, tensor in model.state_dict().items():
        if name in ("cls_token", "pos_embed") or name.startswith(("blocks.", "norm.")):
            tensor.copy_(state[name])
    before = model.origin
    licences = {teacher.licence, before.licence} if before.provenance else {teacher.licence}
    model.origin = Origin(
        "" if "" in licences else " AND ".join(sorted(licences)),
        before.attribution,
        {"teacher": teacher.name, "teacher_sha256": teacher.sha256}
        | ({"generator_from": before.provenance} if before.provenance else {}),
    )


# -- `dofa prefit`: a model folder that starts from an ordinary RGB Vision Transformer.

IMITATES = 0.1  # a kernel further from the teacher's than this is another kernel


@dataclass(frozen=True)
class PrefitResult:
    """What `dofa prefit` made.

    Attributes:
        folder: of the model.
        teacher: what it starts from, with what was assumed or dropped while loading.
        notes: on the teacher and the fit.
        fit: of the generator; None where one was loaded.
        residual: |generated − teacher's| / |teacher's| patch embedding at the RGB wavelengths.
        difference: the largest relative difference of RGB features, over all blocks.
    """

    folder: Path
    teacher: str
    notes: tuple[str, ...]
    fit: Fit | None
    residual: float
    difference: float

    def print(self) -> None:
        """One fact a line."""
        lines = [f"teacher {self.teacher}", *(f"  {note}" for note in self.notes)]
        how = "" if self.fit is None else f", {self.fit.before:.2g} before; {self.fit.seconds:.1f} s"
        lines.append(f"patch kernel at the RGB wavelengths: relative residual {self.residual:.1e}{how}")
        lines.append(f"RGB features: largest relative difference of a block {self.difference:.1e}")
        if self.residual > IMITATES:
            lines.append("this generator does not imitate this teacher: RGB features are not the teacher's")
        lines.append(f"written {self.folder}")
        for line in lines:
            Console().print(line, markup=False, highlight=False, soft_wrap=True)


def prefit_command(
    teacher: str,
    out: Path,
    size: str | None = None,
    init: str | None = None,
    *,
    image_size: int | None = None,
    method: Method = "closed-form",
    generator: Path | None = None,
    wavelengths: Sequence[float] = RGB_UM,
) -> PrefitResult:
    """Start a model from an RGB teacher: its blocks copied, its patch kernel imitated at the RGB wavelengths.

    Args:
        teacher: a file (timm, DINOv2 or MAE layout), a folder with config.json and model.safetensors, or owner/model
            on the hub.
        out: model folder to create.
        size: of the new model: small, base, large, huge, plus-small, plus-base or plus-large.
        init: instead of a size, a model folder or name whose architecture, sensors and generator are taken.
        image_size: side in pixels of the new model's position table, by default 224.
        method: closed-form is exact and takes a second; iterative trains the whole generator, as the paper does.
        generator: the authors' file of a fitted generator, taken instead of a fit.
        wavelengths: of red, green and blue in µm.

    Returns:
        What was made, and how close it is to the teacher.

    Raises:
        ConfigError: options that contradict each other, a size or image size that does not exist, patch_offset 1.
        CheckpointError: files that cannot be read or do not fit each other, or `out` already holds a model.
    """
    if (out / CONFIG).exists():
        raise CheckpointError(f"{out} already holds a model: choose another folder")
    if (size is None) == (init is None):
        raise ConfigError("say either --size (plus-small, base, …) for a new model or --init for a model folder")
    if init is not None and image_size is not None:
        raise ConfigError("--image-size belongs to a new model; the one of --init has its own")
    if generator is not None and method != "closed-form":
        raise ConfigError(f"--generator takes the place of a fit: leave out --method {method}")
    if size is not None:
        model = create(size, **({} if image_size is None else {"image_size": image_size})).eval()
    else:
        model = load(str(init))
    source = load_teacher(teacher, image_size=model.config.image_size)
    initialise(model, source)
    numbers, fit = list(wavelengths), None
    if generator is None:
        fit = prefit(model, source, numbers, method=method)
    else:
        load_generator(model, generator)
    left = residual(model, source, numbers)
    difference = feature_difference(model, source, numbers)
    how = method if generator is None else generator.name
    save(model, out, provenance={"prefit": how, "prefit_wavelength_um": numbers, "prefit_residual": left})
    licence = f"licence: {source.licence or 'unknown, the source says none; mind it before you share the model'}"
    name = f"{source.name}, sha256 {source.sha256[:12]}…"
    return PrefitResult(out, name, (*source.notes, licence), fit, left, difference)
