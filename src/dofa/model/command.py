"""`dofa prefit`: a model folder that starts from an ordinary RGB Vision Transformer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dofa.errors import CheckpointError, ConfigError
from dofa.model.checkpoint import create, load, save
from dofa.model.initialise import initialise
from dofa.model.native import CONFIG
from dofa.model.prefit import RGB_UM, Fit, Method, feature_difference, load_generator, prefit, residual
from dofa.model.teacher import load_teacher

IMITATES = 0.1  # a kernel further from the teacher's than this is another kernel


@dataclass(frozen=True)
class Prefitted:
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
) -> Prefitted:
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
    return Prefitted(out, name, (*source.notes, licence), fit, left, difference)
