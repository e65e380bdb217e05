"""The settings of a fine-tuning, in one place; recipes are YAML files of them. Nothing here imports torch."""

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import resources
from math import inf
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from dofa.documents import LARGEST_YAML, as_mapping, parse_yaml, read_bytes
from dofa.errors import ConfigError, nearest
from dofa.settings import check_keys, check_types, field_names

Method = Literal["frozen", "full", "lora"]
DecoderName = Literal["linear", "upernet", "dpt"]
Precision = Literal["float32", "bf16"]
LEARNING_RATES: dict[Method, float] = {"frozen": 5e-3, "full": 1e-4, "lora": 1e-3}
LINEAR_RATE = 5e-2  # of a linear layer alone (docs/finetuning.md)


@dataclass(frozen=True)
class FinetuneConfig:
    """How a model is adapted to a task.

    Attributes:
        method: frozen: only what stands on the encoder learns; full: everything; lora: a low-rank change of it.
        decoder: of segmentation: linear, upernet (with an FCN beside it in training) or dpt. Classification is linear.
        blocks: whose outputs are read; None for the pooled vector (classification), the last block (linear) or four,
            at a third, a half, two thirds and the end of the depth, as the paper's.
        channels: of a decoder; None for the published 512 (upernet) and 256 (dpt).
        auxiliary: weight of the FCN's loss beside upernet; 0 for none.
        epochs: passes over the training images.
        batch: images an update.
        accumulate: micro-batches an update is computed in.
        lr: highest learning rate; None for 5e-3 (frozen; 5e-2 under linear), 1e-4 (full), 1e-3 (lora).
        warmup_epochs: over which it grows; half a cosine follows.
        weight_decay: of matrices.
        layer_decay: factor on the rate from block to block towards the input; 1 for none.
        drop_path: largest probability that a residual branch is left out.
        clip: largest norm of the gradient, None for no limit.
        rank: of LoRA.
        augment: random crops, flips and quarter turns; frozen features under a linear decoder are computed once,
            without.
        crop: smallest share of an image's area that a random crop keeps; it is resized to the whole.
        size: side in pixels the images are resized to; None leaves them.
        fraction: of the training labels.
        stats: whose statistics normalise; see `Backbone.scaling`.
        checkpointing: compute activations of the encoder again in the backward pass: less memory, a third more time.
        precision: float32 or bf16.
    """

    method: Method = "frozen"
    decoder: DecoderName = "linear"
    blocks: tuple[int, ...] | None = None
    channels: int | None = None
    auxiliary: float = 0.4
    epochs: int = 20
    batch: int = 64
    accumulate: int = 1
    lr: float | None = None
    warmup_epochs: float = 0.0
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    drop_path: float = 0.0
    clip: float | None = None
    rank: int = 8
    augment: bool = True
    crop: float = 0.8
    size: int | None = None
    fraction: float = 1.0
    stats: str | None = None
    checkpointing: bool = False
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        hints = get_type_hints(FinetuneConfig)
        for name in ("method", "decoder", "precision"):
            if (said := getattr(self, name)) not in get_args(hints[name]):
                raise ConfigError(f"{name} {said!r}: {nearest(str(said), get_args(hints[name]))}")
        check_types(self, "")
        for name in ("epochs", "batch", "accumulate", "rank", "channels", "size"):
            said = getattr(self, name)
            if said is not None and said < 1:
                raise ConfigError(f"{name} is {said}; a whole number above 0")
        if self.batch < 2 * self.accumulate:
            raise ConfigError(
                f"batch {self.batch} in {self.accumulate} parts: at least two images each, for batch norm"
            )
        for name in ("lr", "clip"):
            if (said := getattr(self, name)) is not None and not 0 < said < inf:
                raise ConfigError(f"{name} is {said}; above 0")
        for name in ("auxiliary", "weight_decay"):
            if not 0 <= (said := getattr(self, name)) < inf:
                raise ConfigError(f"{name} is {said}; at least 0")
        for name in ("crop", "fraction", "layer_decay"):
            if not 0 < (said := getattr(self, name)) <= 1:
                raise ConfigError(f"{name} is {said}; above 0 and at most 1")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path is {self.drop_path}; a probability, from 0 to below 1")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ConfigError(
                f"{self.warmup_epochs:g} epochs of warm-up do not fit in {self.epochs}: pass --warmup-epochs 0, or "
                "more --epochs"
            )
        if self.method == "frozen" and (self.drop_path or self.layer_decay != 1 or self.checkpointing):
            raise ConfigError("a frozen encoder takes no drop_path, layer_decay or checkpointing: leave them out")

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        if self.lr is not None:
            return self.lr
        return LINEAR_RATE if self.cached else LEARNING_RATES[self.method]

    @property
    def cached(self) -> bool:
        """Whether features are computed once, of images as they are."""
        return self.method == "frozen" and self.decoder == "linear"

    def to_dict(self) -> dict[str, Any]:
        """Plain form, for JSON."""
        return asdict(self)


def resolve_settings(recipe: str | Path | None, said: dict[str, Any]) -> FinetuneConfig:
    """A recipe with what is said over it.

    Args:
        recipe: a YAML file, or the name of one that comes with the package; None for the defaults.
        said: settings that win; None stands for not said.

    Returns:
        The settings, checked.

    Raises:
        ConfigError: no such recipe or setting, or values that do not hold together.
    """
    found = {} if recipe is None else dict(check_keys(_read(recipe), field_names(FinetuneConfig), f"recipe {recipe}"))
    said = {key: value for key, value in said.items() if value is not None}
    for settings in (found, said):
        if isinstance(settings.get("blocks"), list):
            settings["blocks"] = tuple(settings["blocks"])
    for key in ("lr", "weight_decay", "clip"):  # YAML reads 1e-4 (no dot) as a text
        if isinstance(found.get(key), str):
            with suppress(ValueError):
                found[key] = float(found[key])
    try:
        tuning = replace(FinetuneConfig(), **found)  # by itself first: a flag over a value hides no mistake in it
    except ConfigError as error:
        raise ConfigError(f"recipe {recipe}: {error}") from None
    tuning = replace(tuning, **said)
    if said.get("rank", FinetuneConfig.rank) != FinetuneConfig.rank and tuning.method != "lora":
        raise ConfigError(f"--rank is of --method lora, this is --method {tuning.method}: leave it out")
    return tuning


def recipes() -> list[str]:
    """Names of the fine-tuning recipes that come with the package."""
    return sorted(f.name.removesuffix(".yaml") for f in _home().iterdir() if f.name.endswith(".yaml"))


def _home() -> Any:
    return resources.files("dofa") / "recipes" / "finetune"


def _read(recipe: str | Path) -> dict[str, Any]:
    path = Path(recipe)
    if path.is_file():
        text: str | bytes = read_bytes(path, ConfigError, LARGEST_YAML)
    elif str(recipe) in recipes():
        text = (_home() / f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigError(f"no recipe or file {recipe}: {nearest(str(recipe), recipes())}")
    return dict(as_mapping(parse_yaml(text, str(recipe)), str(recipe)))
