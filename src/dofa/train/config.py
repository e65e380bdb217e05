"""What a pretraining run is told, as nested dataclasses that check themselves; `recipes` reads them from YAML.

Nothing here imports torch: the command line shows, prints and refuses configurations at once.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from dofa.errors import ConfigError
from dofa.model.config import DecoderConfig, DistillConfig, MaskConfig, preset
from dofa.settings import check_version

FORMAT_VERSION = 1
FITTED_GENERATOR_LR = 0.05  # where a pre-fit made the kernels; measured (docs/distillation.md)


@dataclass(frozen=True)
class ModelConfig:
    """The model that is trained.

    Attributes:
        size: tiny, small, base, large, huge, plus-small, plus-base or plus-large.
        changes: fields of the encoder that differ from that size, such as patch and image_size; `embedding: separate`
            trains one patch embedding for each sensor of the stores in place of generated ones (docs/comparisons.md).
        decoder: of masked image modelling.
        mask: the hidden share.
        gradient_checkpointing: recompute blocks in the backward pass: less memory, a third more time.
        init: a model folder or released name to start from; `size` and `changes` are then left alone.
        start: where weights begin without `init`: `random`; `teacher`, with the blocks, CLS, positions and norm of
            `distill.teacher`; or `prefit`, where the weight generator is fitted to its patch kernel, too.
    """

    size: str = "base"
    changes: dict[str, Any] = field(default_factory=dict)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    gradient_checkpointing: bool = False
    init: str | None = None
    start: Literal["random", "teacher", "prefit"] = "random"

    def __post_init__(self) -> None:
        preset(self.size, **self.changes)
        if self.init is not None and self.start != "random":
            raise ConfigError(f"model.init brings its own weights: leave model.start {self.start!r} out")
        if self.init is not None and self.changes:
            raise ConfigError("model.init brings its own architecture: leave model.changes empty")
        if "sensors" in self.changes:
            raise ConfigError("model.changes.sensors: a model's sensors are those of data.stores")
        if self.changes.get("embedding") == "separate" and self.start == "prefit":
            raise ConfigError(
                "model.start prefit fits a weight generator, and embedding separate has none: say teacher"
            )


@dataclass(frozen=True)
class JitterConfig:
    """Spectral jitter of normalised input, x·exp(gain·ε) + offset·ε′ with one ε and ε′ a band (reference §8).

    Without it a small corpus' average spectrum is memorised instead of read off the visible patches.

    Attributes:
        share: of the samples that are jittered; 0 for none.
        gain: standard deviation of the logarithm of the factor.
        offset: standard deviation of what is added, in standard deviations of the band.
        smooth_um: length in µm over which ε and ε′ are correlated in hyperspectral images (more than 32 bands).
    """

    share: float = 0.0
    gain: float = 0.2
    offset: float = 0.35
    smooth_um: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"data.jitter.share is {self.share}; a share of the samples, 0 to 1")
        if self.gain < 0 or self.offset < 0 or self.smooth_um <= 0:
            raise ConfigError("data.jitter: gain and offset are at least 0, smooth_um is above 0")


@dataclass(frozen=True)
class DataConfig:
    """What the model sees.

    Attributes:
        stores: packed corpora (`dofa pack`), local folders or URLs.
        crop: side of the training image in pixels, one number or one a sensor. Without crop_area it is cut at the
            image's own resolution, and a smaller image gives the largest multiple of the patch that it holds.
        crop_area: share of the image's area that a random crop covers before it is resized to `crop`; None cuts
            without resizing.
        flips: none, horizontal, or both axes.
        batch: images of a micro-batch, one number or one a sensor. In both mappings `default` stands for the sensors
            that are not named, and catalogued sensors that are not in the stores may be named.
        weights: share of the micro-batches of every sensor; natural gives every image the same chance, equal every
            sensor.
        band_keep: least share of the bands kept; every micro-batch of more than two bands draws its own subset.
        band_sets: shares of the micro-batches that keep `rgb`, the three bands of the sensor's first rendering, or
            `all` bands instead; sensors without a rendering keep all for `rgb`.
        jitter: spectral jitter.
        statistics: `corpus`, each band standardised over the stores' training images, or `display`, all bands of a
            sensor scaled as its pictures are, in the teacher's normalisation (`dofa.pixels.display_statistics`): what a
            patch kernel taken from a teacher expects.
        rehearsal: share of the micro-batches for sensors that `model.init` knows, the rest for new ones; the weights
            hold within each. 0 only measures what is forgotten, None leaves it to the weights.
    """

    stores: tuple[str, ...] = ()
    crop: int | dict[str, int] = 224
    crop_area: tuple[float, float] | None = None
    flips: Literal["none", "horizontal", "both"] = "both"
    batch: int | dict[str, int] = 64
    weights: Literal["natural", "equal"] | dict[str, float] = "natural"
    band_keep: float = 1.0
    band_sets: dict[str, float] = field(default_factory=dict)
    jitter: JitterConfig = field(default_factory=JitterConfig)
    statistics: Literal["corpus", "display"] = "corpus"
    rehearsal: float | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.band_sets if name not in ("rgb", "all")]
        if unknown or min(self.band_sets.values(), default=0) < 0 or sum(self.band_sets.values()) > 1 + 1e-9:
            raise ConfigError(f"data.band_sets is {self.band_sets}; shares of rgb and all, together at most 1")
        if self.rehearsal is not None and not 0 <= self.rehearsal < 1:
            raise ConfigError(f"data.rehearsal is {self.rehearsal}; a share of the micro-batches, at least 0, below 1")
        for name in ("crop", "batch"):
            value = getattr(self, name)
            numbers = value.values() if isinstance(value, dict) else [value]
            if any(n < 1 for n in numbers):
                raise ConfigError(f"data.{name} is {value}; every number is at least 1")
        if self.crop_area is not None and not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ConfigError(f"data.crop_area is {self.crop_area}; (low, high) shares of the area, above 0, at most 1")
        if not 0 < self.band_keep <= 1:
            raise ConfigError(f"data.band_keep is {self.band_keep}; a share of the bands, above 0, at most 1")
        if isinstance(self.weights, dict) and (
            min(self.weights.values(), default=0) < 0 or not any(self.weights.values())
        ):
            raise ConfigError("data.weights are shares: none below 0, one at least above")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and half a cosine.

    Attributes:
        lr: highest learning rate, as it is (no scaling by batch).
        betas: of Adam.
        weight_decay: of matrices; biases, norms, tokens and positions have none.
        warmup_ratio: share of the updates over which the rate grows from 0 to lr; the first update already moves.
        warmup_updates: their number, in place of the share.
        min_lr: what the cosine ends at.
        clip: largest norm of the gradient, None for no limit.
        encoder_lr: factor on the rate of everything in the encoder but its weight generator; below 1 where it starts
            from trained weights.
        generator_lr: factor on the rate of the encoder's weight generator. None is 0.05 with `model.start` prefit, for
            every band's kernel moves with every step and a fitted one is soon destroyed (docs/distillation.md), else 1;
            a run's configuration holds the number. After `dofa prefit` and `model.init`, say it yourself.
        keep_initial: share of the encoder's initial weights in the model that is saved (Wortsman et al. 2022).
    """

    lr: float = 1.5e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warmup_ratio: float = 0.0
    warmup_updates: int | None = None
    min_lr: float = 0.0
    clip: float | None = None
    encoder_lr: float = 1.0
    generator_lr: float | None = None
    keep_initial: float = 0.0

    def __post_init__(self) -> None:
        rates = [self.encoder_lr, *([] if self.generator_lr is None else [self.generator_lr])]
        if min(rates) <= 0 or not 0 <= self.keep_initial < 1:
            raise ConfigError("optim: encoder_lr and generator_lr are above 0, keep_initial at least 0 and below 1")
        if not self.lr > 0 or not 0 <= self.min_lr <= self.lr:
            raise ConfigError(f"optim: lr {self.lr} is above 0 and min_lr {self.min_lr} between 0 and lr")
        if not all(0 <= b < 1 for b in self.betas):
            raise ConfigError(f"optim.betas are {self.betas}; each at least 0 and below 1")
        if not 0 <= self.warmup_ratio < 1:
            raise ConfigError(f"optim.warmup_ratio is {self.warmup_ratio}; a share of the updates, at least 0, below 1")
        if min(self.weight_decay, self.warmup_updates or 0) < 0 or (self.clip is not None and self.clip <= 0):
            raise ConfigError("optim: weight_decay and warmup_updates are at least 0, clip is above 0 or null")

    def warmup(self, updates: int) -> int:
        """Updates of the warm-up in a run of `updates`."""
        return round(self.warmup_ratio * updates) if self.warmup_updates is None else self.warmup_updates


@dataclass(frozen=True)
class RunConfig:
    """How long, where and how often.

    Attributes:
        out: the run folder: model/, checkpoints/, log.jsonl, log.csv, pictures/.
        updates: steps of the optimiser; give this or epochs, one epoch where both are absent.
        epochs: passes over the samples that the weights imply.
        micro_batches: of one update, over all processes together: a multiple of their number.
        precision: 32-true or bf16-mixed.
        seed: of every draw.
        save_every: updates between checkpoints; the end always saves.
        keep: newest checkpoints kept.
        log_every: updates between log lines.
        evaluate_every: updates between measurements on the held-out split; 0 for none.
        evaluate_images: of each sensor, at most.
        pictures_every: updates between reconstruction pictures; 0 for none.
        workers: processes a rank that read and augment.
        strategy: auto (DDP where there is more than one process), ddp, or fully-shard.
        device: auto, cpu or cuda.
        devices: processes a node; torchrun's number holds under torchrun.
        nodes: torchrun's number holds under torchrun.
    """

    out: str = "runs/pretrain"
    updates: int | None = None
    epochs: float | None = None
    micro_batches: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    seed: int = 0
    save_every: int = 500
    keep: int = 2
    log_every: int = 10
    evaluate_every: int = 0
    evaluate_images: int = 64
    pictures_every: int = 0
    workers: int = 0
    strategy: Literal["auto", "ddp", "fully-shard"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        if self.updates is not None and self.epochs is not None:
            raise ConfigError("run: give updates or epochs, not both")
        if (self.updates is not None and self.updates < 1) or (self.epochs is not None and self.epochs <= 0):
            raise ConfigError("run: updates are at least 1, epochs above 0")
        for name in ("micro_batches", "save_every", "keep", "log_every", "evaluate_images", "devices", "nodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"run.{name} is {getattr(self, name)}; at least 1")
        for name in ("seed", "evaluate_every", "pictures_every", "workers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"run.{name} is {getattr(self, name)}; at least 0")


@dataclass(frozen=True)
class PretrainConfig:
    """A whole pretraining run: `recipes.load_config` reads it, `pretrain.pretrain` runs it."""

    format_version: int = FORMAT_VERSION
    model: ModelConfig = field(default_factory=ModelConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.distill.reconstruction == 0 and (self.run.evaluate_every or self.run.pictures_every):
            raise ConfigError(
                "distill.reconstruction is 0, so no decoder is trained that could be judged or drawn: set "
                "run.evaluate_every and run.pictures_every to 0"
            )
        if self.model.changes.get("embedding") == "separate" and self.distill.anchor:
            raise ConfigError("distill.anchor holds generated kernels, and embedding separate has none: set it to 0")
        if self.model.start != "random" and self.distill.teacher is None:
            raise ConfigError(f"model.start is {self.model.start!r}, but distill.teacher names no teacher")
        usual = DistillConfig()
        idle = [f"distill.{f.name}" for f in fields(usual) if getattr(self.distill, f.name) != getattr(usual, f.name)]
        if idle and self.distill.teacher is None:
            raise ConfigError(
                f"without distill.teacher {', '.join(idle)} would do nothing: name a teacher, or leave the section out "
                "(distill={} takes a recipe's away)"
            )
        if self.optim.generator_lr is None:  # in here, so that what is printed, kept and compared is the number
            factor = FITTED_GENERATOR_LR if self.model.start == "prefit" else 1.0
            object.__setattr__(self, "optim", replace(self.optim, generator_lr=factor))
        check_version(self.format_version, FORMAT_VERSION, "this configuration", ConfigError)

    def check_init(self) -> None:
        """Refuse to train without the model that is to be trained further; a recipe may leave its name to the user.

        Raises:
            ConfigError: `data.rehearsal` is set and `model.init` is not.
        """
        if self.data.rehearsal is not None and self.model.init is None:
            raise ConfigError(
                "model.init is not set, and data.rehearsal rehearses the sensors it knows: name the model to start "
                "from, a folder such as runs/first/model or a released one such as dofa-v2-base"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings, lists and numbers, whole."""
        return _plain(asdict(self))  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
