"""What a model is made of, without importing torch: sizes, conventions, and the sensors it was trained with."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from dofa.errors import ConfigError, nearest, shorten
from dofa.pixels import Scaling
from dofa.settings import check_keys, check_types, field_names, list_of, numbers

Polarisation = Literal["VV", "VH", "HH", "HV"]
Embedding = Literal["dynamic", "separate"]
POLARISATIONS: tuple[str, ...] = ("VV", "VH", "HH", "HV")
SAR_WAVELENGTH_V1 = 3.75  # what the v1 weights were given for both polarisations
SAR_WAVELENGTH_V2 = 5.405  # Sentinel-1's frequency in GHz, what v2 was given; also the default of new models


# What a configuration may ask for at all: whoever loads a model takes memory and time by these.
_LIMITS = {
    "width": (1, 2**15), "depth": (1, 256), "heads": (1, 2**10), "patch": (1, 256), "image_size": (1, 2**15),
    "wave_dim": (2, 2**14), "num_classes": (0, 2**20),
}  # fmt: skip


@dataclass(frozen=True)
class TrainedSensor:
    """What a checkpoint knows of one sensor: the numbers it was trained with override the catalogue's.

    Attributes:
        bands: names, in the order of the other fields.
        wavelength_um: the number the model was given for each band (SAR included).
        scaling: with statistics, or None if the checkpoint has none for it.
        gsd_m: metres the training images had.
        platform: of the catalogue sensor; sensors of one platform share band names.
    """

    bands: tuple[str, ...]
    wavelength_um: tuple[float, ...]
    scaling: Scaling | None = None
    gsd_m: float | None = None
    platform: str = ""

    def __post_init__(self) -> None:
        check_types(self, "trained sensor: ")
        if not all(wave > 0 for wave in self.wavelength_um):
            raise ConfigError(f"trained sensor: wavelength_um holds {min(self.wavelength_um):g}; numbers above 0")
        if self.gsd_m is not None and not self.gsd_m > 0:
            raise ConfigError(f"trained sensor: gsd_m is {self.gsd_m:g}; metres, above 0")
        if len(set(self.bands)) < len(self.bands):
            raise ConfigError(f"trained sensor: a band is named twice: {', '.join(self.bands)}")
        if len(self.wavelength_um) != len(self.bands):
            raise ConfigError(f"trained sensor: {len(self.wavelength_um)} wavelengths for {len(self.bands)} bands")
        if self.scaling is not None and self.scaling.bands != self.bands:
            raise ConfigError(f"trained sensor: scaling is for bands {self.scaling.bands}, not {self.bands}")

    def to_dict(self) -> dict[str, Any]:
        """Plain form, for config.json."""
        return {
            "bands": list(self.bands),
            "wavelength_um": list(self.wavelength_um),
            "scaling": None if self.scaling is None else self.scaling.to_dict(),
            "gsd_m": self.gsd_m,
            "platform": self.platform,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TrainedSensor":
        """The inverse of `to_dict`.

        Raises:
            ConfigError: a key is missing or unknown, or figures do not fit.
        """
        check_keys(data, field_names(cls), "trained sensor", ("bands", "wavelength_um"))
        return cls(
            bands=tuple(list_of(data["bands"], str, "trained sensor: bands")),
            wavelength_um=numbers(data["wavelength_um"], "trained sensor: wavelength_um"),
            scaling=None if data.get("scaling") is None else Scaling.from_dict(data["scaling"]),
            gsd_m=data.get("gsd_m"),
            platform=data.get("platform", ""),
        )


@dataclass(frozen=True)
class Origin:
    """Where weights come from and on what terms; it travels with a model from `load` to `save`.

    Attributes:
        licence: SPDX identifier, empty if nobody said.
        attribution: whom the licence wants named.
        provenance: source file and digest, corpus, steps: whatever tells how the weights came about.
    """

    licence: str = ""
    attribution: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderConfig:
    """Architecture and conventions of a DOFA encoder.

    Attributes:
        width: of the Transformer.
        depth: number of blocks.
        heads: of the attention.
        patch: side of a patch in pixels.
        image_size: side in pixels of the images it was trained at; the position table has (image_size / patch)² rows.
        patch_offset: token (i, j) covers pixels [i·patch − offset, (i+1)·patch − offset); 1 in released weights.
        wave_dim: of the wavelength encoding.
        layer_scale: initial value of LayerScale, None without it.
        pooled_norm: whether `fc_norm` belongs to the pooled vector (released v1: yes, released v2: none defined).
        sar_wavelength: the number that stands for a SAR band.
        polarisation_embedding: whether a learned vector per polarisation is added to the encoded wavelength.
        num_classes: of the linear head, 0 for none.
        sensors: what the weights were trained with, by sensor name.
        embedding: of patches: `dynamic`, generated from wavelengths, or `separate`, one for each of `sensors`.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    image_size: int = 224
    patch_offset: int = 0
    wave_dim: int = 128
    layer_scale: float | None = None
    pooled_norm: bool = True
    sar_wavelength: float = SAR_WAVELENGTH_V2
    polarisation_embedding: bool = True
    num_classes: int = 0
    sensors: dict[str, TrainedSensor] = field(default_factory=dict)
    embedding: Embedding = "dynamic"

    def __post_init__(self) -> None:
        if self.embedding not in [*get_args(Embedding)]:
            raise ConfigError(f"embedding is {shorten(repr(self.embedding))}; one of {', '.join(get_args(Embedding))}")
        check_types(self, "encoder: ")
        for name, (low, high) in _LIMITS.items():
            if not low <= (value := getattr(self, name)) <= high:
                raise ConfigError(f"encoder: {name} is {value}; from {low} to {high}")
        if self.layer_scale is not None:
            if not 0 < self.layer_scale <= 1e3:
                raise ConfigError(f"encoder: layer_scale is {self.layer_scale:g}; above 0, or null for none")
            object.__setattr__(self, "layer_scale", float(self.layer_scale))  # torch would fill with whole numbers
        if not self.sar_wavelength > 0:
            raise ConfigError(f"encoder: sar_wavelength is {self.sar_wavelength:g}; above 0")
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.width % 4:
            raise ConfigError(f"width {self.width} is not divisible by 4, which sine-cosine positions need")
        if self.image_size % self.patch:
            raise ConfigError(f"image_size {self.image_size} is not a multiple of patch {self.patch}")
        if self.patch_offset not in (0, 1):
            raise ConfigError(f"patch_offset is {self.patch_offset}; 0 for new models, 1 for released weights")
        if self.wave_dim % 2:
            raise ConfigError(f"wave_dim is {self.wave_dim}; an even number is expected")

    @property
    def grid(self) -> int:
        """Side of the position table in patches."""
        return self.image_size // self.patch

    def to_dict(self) -> dict[str, Any]:
        """Plain form, for config.json."""
        plain = {k: v for k, v in asdict(replace(self, sensors={})).items() if k != "sensors"}
        if self.embedding == "dynamic":
            del plain["embedding"]  # as in every folder written before there was another
        return {**plain, "sensors": {name: s.to_dict() for name, s in self.sensors.items()}}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "EncoderConfig":
        """The inverse of `to_dict`.

        Raises:
            ConfigError: an unknown key (the nearest known one is named), a value of another type or out of range.
        """
        check_keys(data, field_names(cls), "encoder")
        said = data.get("sensors") or {}
        check_keys(said, said if isinstance(said, dict) else (), "encoder: sensors")
        sensors = {}
        for name, entry in said.items():
            try:
                sensors[name] = TrainedSensor.from_dict(entry)
            except ConfigError as error:
                raise ConfigError(f"sensor {shorten(name)}: {error}") from None
        return cls(**{**data, "sensors": sensors})

    def fewest_weights(self) -> int:
        """How many weights a model of this configuration has at least, before one is made."""
        kernels = self.wave_dim * self.patch**2 * self.width if self.embedding == "dynamic" else 0
        return 12 * self.depth * self.width**2 + kernels + (self.grid**2 + self.num_classes) * self.width


@dataclass(frozen=True)
class DecoderConfig:
    """The dynamic decoder of masked image modelling: 512 × 8 as published, smaller for small models."""

    width: int = 512
    depth: int = 8
    heads: int = 16

    def __post_init__(self) -> None:
        check_types(self, "decoder: ")
        for name in ("width", "depth", "heads"):
            low, high = _LIMITS[name]
            if not low <= (value := getattr(self, name)) <= high:
                raise ConfigError(f"decoder: {name} is {value}; from {low} to {high}")
        if self.width % self.heads or self.width % 4:
            raise ConfigError(f"decoder width {self.width} must be divisible by its {self.heads} heads and by 4")


@dataclass(frozen=True)
class MaskConfig:
    """How much of an image the encoder does not see."""

    ratio: float = 0.75  # He et al. 2022; DOFA keeps it for every sensor

    def __post_init__(self) -> None:
        check_types(self, "mask: ")
        if not 0 < self.ratio < 1:
            raise ConfigError(f"mask.ratio is {self.ratio}; it is the hidden share, between 0 and 1")

    def visible(self, patches: int) -> int:
        """How many of an image's patches the encoder sees: at least one, rounded down otherwise."""
        # 10 · (1 − 0.9) is a little under 1 in floating point, and meant as 1.
        return max(1, int(patches * (1 - self.ratio) + 1e-6))


@dataclass(frozen=True)
class DistillConfig:
    """How the student is held to a frozen teacher of photographs, beside masked image modelling or instead of it.

    The paper's: view proxy, target pooled, the last block but one, cosine, one projector. DOFA+: several blocks. What
    taught a student more than the teacher's RGB knows (docs/distillation.md): view full, target tokens, several
    renderings, smooth-l1, no projector, an anchor.

    Attributes:
        teacher: a file, a folder or a name on the hub (docs/teachers.md); None for no distillation.
        view: what of the student is compared: `proxy`, a second, unmasked pass on three bands; `visible`, the visible
            tokens of the masked pass, which costs no second pass; `full`, a second, unmasked pass on all bands given.
        renderings: three-band pictures the teacher is shown, by the names the sensors give them; its features are
            averaged over those a sensor has. A sensor that has none of them shows its first one.
        proxies: three bands a sensor, by sensor name: the one picture the teacher is shown of it, in place of its
            renderings and of `sar_proxy`, in every view.
        sar_proxy: of a SAR sensor, `channels` (first, second, zeros; the published code) or `random` (one channel three
            times, another in every micro-batch; the paper's text). Both only with the view `proxy`.
        blocks: of the student, negative from the end.
        teacher_blocks: as many; None for the same numbers.
        target: `pooled`, the mean over all tokens, or `tokens`, every patch with the teacher's at the same place.
        loss: 1 − `cosine`, or `smooth-l1` on values standardised with the teacher's mean and deviation per channel.
        projector: a linear map from the student's width to the teacher's for each block; needed where they differ.
        weight: of distillation.
        reconstruction: weight of masked image modelling beside it; 0 trains no decoder.
        input: what the teacher sees: `display`, physical values in [0, 1] (`dofa.pixels.DISPLAY_MAPS`) and its own
            normalisation, or `sensor`, the sensor's normalised values as they are (published).
        anchor: weight of the squared relative distance between the kernels generated at the wavelengths of red, green
            and blue and the teacher's patch kernel.
        crops: fixed crops of every image, whose teacher features are computed once and kept on disk; 0 draws new crops
            for ever and runs the teacher in every step.
    """

    teacher: str | None = None
    view: Literal["proxy", "visible", "full"] = "proxy"
    renderings: tuple[str, ...] = ("rgb",)
    proxies: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    sar_proxy: Literal["channels", "random"] = "channels"
    blocks: tuple[int, ...] = (-2,)
    teacher_blocks: tuple[int, ...] | None = None
    target: Literal["pooled", "tokens"] = "pooled"
    loss: Literal["cosine", "smooth-l1"] = "cosine"
    projector: bool = True
    weight: float = 1.0
    reconstruction: float = 1.0
    input: Literal["display", "sensor"] = "display"
    anchor: float = 0.0
    crops: int = 0

    def __post_init__(self) -> None:
        if not self.blocks or not self.renderings:
            raise ConfigError("distill.blocks and distill.renderings name one block and one rendering at least")
        if self.teacher_blocks is not None and len(self.teacher_blocks) != len(self.blocks):
            raise ConfigError(
                f"distill.teacher_blocks names {len(self.teacher_blocks)} blocks for the student's {len(self.blocks)}"
            )
        if min(self.weight, self.reconstruction, self.anchor, self.crops) < 0:
            raise ConfigError("distill: weight, reconstruction, anchor and crops are at least 0")
        if self.reconstruction == 0 and (self.teacher is None or self.weight == 0):
            lacking = "there is no teacher" if self.teacher is None else "so is distill.weight"
            raise ConfigError(f"distill.reconstruction is 0 and {lacking}: nothing is left to learn from")
        if self.loss == "smooth-l1" and self.projector:
            raise ConfigError("distill.loss smooth-l1 compares values as they are: set distill.projector to false")
        if self.view == "proxy" and len(self.renderings) > 1:
            raise ConfigError("distill.view proxy shows student and teacher the same three bands: name one rendering")
        if self.view != "proxy" and self.input == "sensor" and len(self.renderings) > 1:
            raise ConfigError("distill.input sensor is the published form with one picture: name one rendering")


# arXiv 2403.15356 for base and large; small and huge from the published code; plus from the DOFA+ files. The huge
# model has 16 heads there although 64 channels a head would say 20.
PRESETS: dict[str, EncoderConfig] = {
    "tiny": EncoderConfig(192, 12, 3, 16),
    "tiny-p8": EncoderConfig(192, 12, 3, 8, image_size=96),
    "small": EncoderConfig(384, 12, 6, 16),
    "base": EncoderConfig(768, 12, 12, 16),
    "large": EncoderConfig(1024, 24, 16, 16),
    "huge": EncoderConfig(1280, 32, 16, 14),
    "plus-small": EncoderConfig(384, 12, 6, 14, layer_scale=1e-5, pooled_norm=False),
    "plus-base": EncoderConfig(768, 12, 12, 14, layer_scale=1e-5, pooled_norm=False),
    "plus-large": EncoderConfig(1024, 24, 16, 14, layer_scale=1e-5, pooled_norm=False),
}


def preset(name: str, **changes: Any) -> EncoderConfig:
    """A named size, with fields changed by keyword: `preset("tiny", patch=8, image_size=96)`.

    Raises:
        ConfigError: unknown name (the nearest are said) or field.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown model size {name!r}: {nearest(name, PRESETS)}")
    for key in changes:
        if key not in EncoderConfig.__dataclass_fields__:
            raise ConfigError(f"unknown model setting {key!r}: {nearest(key, EncoderConfig.__dataclass_fields__)}")
    return replace(PRESETS[name], **changes)
