"""What a pretraining run costs in arithmetic, from its configuration alone: no torch, no model, no data.

`dofa.train.cost` counts one micro-batch; here are the images of each sensor, the teacher, and the table. Measurements
on held-out images are not counted.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from dofa import sensors
from dofa.corpus.mixture import Mixture
from dofa.documents import read_json
from dofa.errors import ConfigError
from dofa.model.config import PRESETS, DecoderConfig, DistillConfig, EncoderConfig, MaskConfig, preset
from dofa.model.released import RELEASED, trained_sensors
from dofa.sensors import Sensor
from dofa.settings import check_keys, field_names
from dofa.train.config import DataConfig, ModelConfig, PretrainConfig
from dofa.train.teacher_inputs import plan_teacher_input

TRAINED = 3  # forward, and backward to the input and to the weights
PIXELS = 2  # the same without the gradient of the input
GENERATOR_TOKENS = 128 + 1  # learned tokens and the bias token beside the bands, as in `dofa.model.patch_embed`
GENERATOR_MLP = 2048  # hidden width of the generator's Transformer layer
PARTS = ("masked pass", "decoder", "second pass", "teacher", "kernels")


@dataclass(frozen=True)
class TeacherSize:
    """An ordinary RGB ViT, as far as its arithmetic goes."""

    width: int
    depth: int
    patch: int


@dataclass(frozen=True)
class Step:
    """The shapes of one micro-batch.

    Attributes:
        batch: images.
        bands: fed to the model; an average where micro-batches draw their bands.
        side: of the training image in pixels.
        pictures: that the teacher is shown of each image.
    """

    batch: int
    bands: float
    side: int
    pictures: int = 1


def linear(rows: float, inside: float, out: float) -> float:
    """FLOPs of rows × inside by inside × out: two for each multiply-and-add.

    Args:
        rows: vectors that are multiplied.
        out: width of the results.
    """
    return 2 * rows * inside * out


def block(tokens: float, width: int) -> float:
    """FLOPs of a Transformer block on one image, forward.

    24·T·D² for queries, keys, values (3·D²), projection (D²) and MLP (8·D²); 4·T²·D for scores and their mixture.

    Args:
        tokens: T, of an image.
        width: D.
    """
    return linear(tokens, width, 12 * width) + 2 * linear(tokens, tokens, width)


def kernels(bands: float, dim: int, out: int, bias: int = 0) -> float:
    """FLOPs of generating kernels for the bands of one micro-batch, forward.

    One Transformer layer over bands and learned tokens, then a linear map from each band to its `out` values and from
    the last token to the bias.

    Args:
        bands: C.
        dim: of the encoded wavelengths.
        bias: length of the generated bias, 0 for none.
    """
    tokens = GENERATOR_TOKENS + bands
    layer = linear(tokens, dim, 4 * dim + 2 * GENERATOR_MLP) + 2 * linear(tokens, tokens, dim)
    return layer + linear(bands, dim, out) + linear(1, dim, bias)


def teacher_flops(teacher: TeacherSize, blocks: Sequence[int], patches: int) -> float:
    """FLOPs of one picture through a frozen teacher, as deep as its deepest block of those named.

    Args:
        blocks: numbers asked for, negative from the end.
    """
    embed = linear(patches, 3 * teacher.patch**2, teacher.width)
    return embed + deepest(blocks, teacher.depth, "teacher") * block(patches + 1, teacher.width)


def step_flops(
    encoder: EncoderConfig,
    decoder: DecoderConfig,
    mask: MaskConfig,
    distill: DistillConfig,
    teacher: TeacherSize | None,
    step: Step,
    recompute: bool = False,
) -> dict[str, float]:
    """FLOPs of one micro-batch, forward and backward.

    Args:
        mask: the hidden share.
        distill: how the student is held to the teacher.
        teacher: None for no distillation.
        step: shapes of the micro-batch.
        recompute: whether blocks are computed again in the backward pass.

    Returns:
        By the names of `PARTS`. Projectors count with the teacher.
    """
    batch, bands, width, patch, dim = step.batch, step.bands, encoder.width, encoder.patch, encoder.wave_dim
    patches = (step.side // patch) ** 2
    seen = mask.visible(patches)
    deep = 0 if teacher is None else deepest(distill.blocks, encoder.depth, "student")
    reconstructs = distill.reconstruction > 0
    visible = teacher is not None and distill.view == "visible"

    def embedding(count: int, channels: float) -> float:
        return PIXELS * linear(count, channels * patch**2, width)

    def trained(tokens: int, wide: int) -> float:
        # Computing a block again ends before its last product, whose result nobody needs.
        again = block(tokens, wide) - linear(tokens, 4 * wide, wide) if recompute else 0.0
        return TRAINED * block(tokens, wide) + again

    def embedding_kernels(channels: float) -> float:
        corrected = 2 * linear(channels, dim, dim)
        return TRAINED * (corrected + kernels(channels, dim, patch**2 * width, width))

    parts = dict.fromkeys(PARTS, 0.0)
    if reconstructs or visible:
        body = (encoder.depth if reconstructs else deep) * trained(seen + 1, width)
        parts["masked pass"] = batch * (embedding(seen, bands) + body)
        parts["kernels"] += embedding_kernels(bands)
    if reconstructs:
        hidden, pixels = patches - seen, bands * patch**2
        ends = linear(seen + 1, width, decoder.width) + linear(hidden, decoder.width, pixels)
        parts["decoder"] = batch * (TRAINED * ends + decoder.depth * trained(patches + 1, decoder.width))
        parts["kernels"] += TRAINED * kernels(bands, dim, patch**2 * decoder.width)
    if teacher is not None:
        if not visible:
            channels = 3 if distill.view == "proxy" else bands
            parts["second pass"] = batch * (embedding(patches, channels) + deep * trained(patches + 1, width))
            parts["kernels"] += embedding_kernels(channels)
        if distill.projector:
            rows = 1 if distill.target == "pooled" else seen if visible else patches
            parts["teacher"] += batch * len(distill.blocks) * TRAINED * linear(rows, width, teacher.width)
        if not distill.crops:
            shown = teacher_flops(teacher, distill.teacher_blocks or distill.blocks, patches)
            parts["teacher"] += batch * step.pictures * shown
        if distill.anchor:
            parts["kernels"] += embedding_kernels(3)
    if encoder.embedding == "separate":
        parts["kernels"] = 0.0  # they are read from a table
    return parts


def deepest(blocks: Sequence[int], depth: int, whose: str) -> int:
    """How many blocks run for those named.

    Args:
        blocks: numbers, negative from the end.
        whose: student or teacher, for the message.

    Raises:
        ConfigError: there is no such block.
    """
    if any(not -depth <= i < depth for i in blocks):
        raise ConfigError(f"distill compares blocks {list(blocks)}, but the {whose} has {depth} (0 to {depth - 1})")
    return 1 + max(i % depth for i in blocks)


# -- What a pretraining run costs in arithmetic, from its configuration alone: no torch, no model, no data.

A100_BF16 = 312e12  # FLOP/s, dense, NVIDIA's data sheet
L40_BF16 = 181e12  # likewise; what DOFA+ was trained on
UTILISATION = 0.35  # assumed share of the peak, not measured: what well-fed Vision Transformers reach in bf16
PUBLISHED = {  # sensor: images and their side, as the published script trained (arXiv 2403.15356)
    "sentinel-1-satlas": (100_000, 512),
    "sentinel-2-dofa9": (100_000, 512),
    "gaofen-2": (100_000, 512),
    "naip-rgb": (100_000, 512),
    "enmap-202": (10_000, 128),
}


@dataclass(frozen=True)
class Corpus:
    """One sensor's training images.

    Attributes:
        sensor: bands and renderings.
        images: of the training split.
        side: the shorter one of an image, in pixels.
    """

    sensor: Sensor
    images: int
    side: int


@dataclass(frozen=True)
class SensorCost:
    """What one sensor's share of a run costs.

    Attributes:
        sensor: its name.
        images: seen in the whole run.
        bands: fed to the model, on average.
        side: of the training image in pixels.
        parts: FLOPs an image, by the names of `PARTS`.
    """

    sensor: str
    images: float
    bands: float
    side: int
    parts: dict[str, float]

    @property
    def per_image(self) -> float:
        """FLOPs, forward and backward."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Cost:
    """What a run costs.

    Attributes:
        updates: of the optimiser.
        epochs: passes over the corpora.
        sensors: one by one.
        answers: FLOPs of the teacher's answers that are computed once (`distill.crops`).
        notes: what was assumed.
    """

    updates: int
    epochs: float
    sensors: tuple[SensorCost, ...]
    answers: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> float:
        """Seen in the whole run, repeats included."""
        return sum(s.images for s in self.sensors)

    @property
    def flops(self) -> float:
        """Of the whole run."""
        return self.answers + sum(s.images * s.per_image for s in self.sensors)

    def gpu_hours(self, peak: float = A100_BF16, utilisation: float = UTILISATION) -> float:
        """Hours of one GPU, extrapolated: nothing here was measured.

        Args:
            peak: FLOP/s of the GPU in the run's precision.
            utilisation: share of it that the run reaches.
        """
        return self.flops / (peak * utilisation) / 3600

    def lines(self) -> list[str]:
        """A table for people; recipes carry it in their headers."""
        wide = max(len("all"), *(len(s.sensor) for s in self.sensors))
        used = [part for part in PARTS if any(s.parts[part] for s in self.sensors)]
        whole = {p: sum(s.images * s.parts[p] for s in self.sensors) / self.images for p in used}
        head = ["bands", "pixels", "images", "GFLOP each", *used]
        rows = [
            [f"{s.bands:.4g}", f"{s.side}²", _big(s.images), *(f"{v / 1e9:.1f}" for v in (s.per_image, *_of(s, used)))]
            for s in self.sensors
        ]
        each = (sum(whole.values()), *whole.values())
        rows.append(["", "", _big(self.images), *(f"{v / 1e9:.1f}" for v in each)])
        names = [*(s.sensor for s in self.sensors), "all"]
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        table = [
            f"{name:{wide}}  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True))
            for name, row in zip(["", *names], [head, *rows], strict=True)
        ]
        a100, l40 = (_hours(self.gpu_hours(peak)) for peak in (A100_BF16, L40_BF16))
        once = [f"the teacher's answers, once: {self.answers:.2e} FLOPs"] if self.answers else []
        return [
            f"{_big(self.images)} images seen in {self.updates:,} updates, {self.epochs:.4g} epochs",
            *table,
            *once,
            f"{self.flops:.2e} FLOPs = {a100} GPU-hours of an A100 or {l40} of an L40,",
            f"extrapolated at {UTILISATION * 100:.0f} % of their {A100_BF16 / 1e12:.0f} and {L40_BF16 / 1e12:.0f} "
            "TFLOP/s in bf16, not measured",
            *self.notes,
        ]


def published() -> list[Corpus]:
    """The corpora of the published script: 100,000 tiles a sensor, 10,000 of EnMAP."""
    return [Corpus(sensors.get(name), images, side) for name, (images, side) in PUBLISHED.items()]


def cost(config: PretrainConfig, corpora: Sequence[Corpus] | None = None) -> Cost:
    """What a run of this configuration costs.

    Args:
        config: of the run; its stores are not looked at.
        corpora: what it is trained on; the published ones by default.

    Raises:
        ConfigError: settings that do not fit the sensors, or weights to start from that are not here.
    """
    corpora = published() if corpora is None else list(corpora)
    encoder, decoder, known = _architecture(config.model)
    distill = config.distill
    taught = distill.teacher is not None and distill.weight > 0
    teacher, notes = _teacher(distill.teacher or "", encoder) if taught else (None, ())
    batches = {c.sensor.name: _one(config.data.batch, c.sensor.name, "batch") for c in corpora}
    mixture = Mixture(
        counts={c.sensor.name: c.images for c in corpora},
        batch=batches,
        micro_batches_per_update=config.run.micro_batches,
        weights=_weights(config, corpora, batches, known),
        seed=config.run.seed,
    )
    updates = config.run.updates or mixture.updates(config.run.epochs or 1)
    found, answers = [], 0.0
    for corpus in corpora:
        name = corpus.sensor.name
        if name not in mixture.sensors:
            continue
        side = _side(config.data, corpus, encoder.patch)
        pictures = len(plan_teacher_input(corpus.sensor, distill).pictures) if taught else 1
        parts, mean = dict.fromkeys(PARTS, 0.0), 0.0
        for share, bands in _band_sets(config.data, corpus.sensor):
            step = Step(batches[name], bands, side, pictures)
            made = step_flops(
                encoder, decoder, config.model.mask, distill, teacher, step, config.model.gradient_checkpointing
            )
            parts = {part: total + share * made[part] / step.batch for part, total in parts.items()}
            mean += share * bands
        images = updates * float(mixture.shares[name]) * batches[name]
        found.append(SensorCost(name, images, mean, side, parts))
        if teacher is not None and distill.crops:
            patches = (side // encoder.patch) ** 2
            shown = teacher_flops(teacher, distill.teacher_blocks or distill.blocks, patches)
            answers += corpus.images * distill.crops * pictures * shown
    return Cost(updates, updates / mixture.updates_per_epoch, tuple(found), answers, notes)


def _architecture(model: ModelConfig) -> tuple[EncoderConfig, DecoderConfig, set[str]]:
    """Encoder and decoder of a run, and the sensors that `model.init` knows."""
    if model.init is None:
        return preset(model.size, **model.changes), model.decoder, set()
    if model.init in RELEASED:
        version, size = re.fullmatch(r"dofa-v(\d)-(\w+)", model.init).groups()  # type: ignore[union-attr]
        return PRESETS[size if version == "1" else f"plus-{size}"], model.decoder, set(trained_sensors(int(version)))
    file = Path(model.init).expanduser() / "config.json"
    if not file.is_file():
        raise ConfigError(f"model.init {model.init} is no folder here, so its size is not known: fetch it first")
    record = read_json(file, ConfigError)
    if not isinstance(record, dict) or "encoder" not in record:
        raise ConfigError(f"model.init {model.init}: {file} is no config.json of dofa")
    try:
        encoder = EncoderConfig.from_dict(record["encoder"])
        decoder = model.decoder
        if "decoder" in record:
            decoder = DecoderConfig(**check_keys(record["decoder"], field_names(DecoderConfig), "decoder"))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    return encoder, decoder, set(encoder.sensors)


_NAMED = re.compile(r"vit_?(tiny|small|base|large|huge|[sbl](?=\d))(?:_?(?:patch)?(\d+))?", re.IGNORECASE)
_LETTERS = {"s": "small", "b": "base", "l": "large"}


def _teacher(name: str, student: EncoderConfig) -> tuple[TeacherSize, tuple[str, ...]]:
    """Sizes off the name of a teacher, such as vit_base_patch16_224, dinov2_vitb14 or vits14.safetensors."""
    match = _NAMED.search(Path(name).name)
    if match is None:
        size = TeacherSize(student.width, student.depth, student.patch)
        return size, (f"{name} tells no size by its name: counted as large as the student",)
    named = PRESETS[_LETTERS.get(match[1].lower(), match[1].lower())]
    return TeacherSize(named.width, named.depth, int(match[2] or named.patch)), ()


def _weights(
    config: PretrainConfig, corpora: Sequence[Corpus], batches: dict[str, int], known: Collection[str]
) -> dict[str, float] | None:
    """Shares of the micro-batches, as `dofa.train.data.make_mixture` deals them."""
    given = config.data.weights
    weights = {c.sensor.name: 1.0 for c in corpora} if given == "equal" else None
    if isinstance(given, dict):
        weights = given
    if config.data.rehearsal is None:
        return weights
    from dofa.train.data import rehearse  # with torch, for the one recipe that rehearses

    return rehearse(weights or {c.sensor.name: c.images / batches[c.sensor.name] for c in corpora}, known, config)


def _side(data: DataConfig, corpus: Corpus, patch: int) -> int:
    """Of the training image, as `dofa.train.data.describe_sources` has it."""
    crop = _one(data.crop, corpus.sensor.name, "crop")
    return crop if data.crop_area is not None else min(crop, corpus.side) // patch * patch


def _one(value: int | dict[str, int], sensor: str, name: str) -> int:
    if isinstance(value, int):
        return value
    found = value.get(sensor, value.get("default"))
    if found is None:
        raise ConfigError(f"data.{name} has no entry for {sensor} and no default, only {', '.join(value)}")
    return found


def _band_sets(data: DataConfig, sensor: Sensor) -> list[tuple[float, float]]:
    """Shares of the micro-batches, and how many bands they keep (on average), as `dofa.train.augment.draw_bands`."""
    count = len(sensor.bands)
    rgb = len(set(next(iter(sensor.renderings.values()), sensor.band_names)))
    colour, whole = data.band_sets.get("rgb", 0.0), data.band_sets.get("all", 0.0)
    drawn = (ceil(data.band_keep * count - 1e-9) + count) / 2
    sets = [(colour, rgb), (whole, count), (1 - colour - whole, drawn)]
    return [(share, bands) for share, bands in sets if share > 1e-9]


def _of(sensor: SensorCost, used: Sequence[str]) -> list[float]:
    return [sensor.parts[part] for part in used]


def _big(number: float) -> str:
    """49.2 M, 820 K, 512."""
    for unit, size in (("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _hours(hours: float) -> str:
    return f"{hours:.2g}" if hours < 100 else f"{hours:.0f}"
