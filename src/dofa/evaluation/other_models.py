"""Models that are no DOFA, as tasks want them: one patch embedding a sensor, and what timm and TorchGeo offer.

Neither timm nor TorchGeo is a dependency: both are imported when a user who has installed them asks for one.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dofa.datasets.labelled import LabelledImages, digest
from dofa.errors import CheckpointError, ConfigError
from dofa.evaluation.backbones import DATASET, Backbone, DofaBackbone, PictureBackbone
from dofa.model import checkpoint
from dofa.model.config import TrainedSensor
from dofa.model.convert import unpickle
from dofa.model.encoder import DOFA
from dofa.model.heads import Block
from dofa.model.model_folder import read_safetensors
from dofa.model.separate import SeparatePatchEmbedding
from dofa.pixels import Scaling
from dofa.sensors import Band, Sensor

NEIGHBOURHOOD_UM = 0.05  # how far a band's centre may lie from that of the embedding it is fed through


class SeparateBackbone(DofaBackbone):
    """A model with one patch embedding a sensor, and the sensor whose embedding images are fed through.

    Args:
        model: trained with `model.changes.embedding: separate`.
        sensor: whose embedding; None for the images' own sensor, else the one of its platform with most of its bands.

    Raises:
        ConfigError: a model whose embedding is dynamic, or without this sensor.
    """

    def __init__(self, model: DOFA, name: str, sensor: str | None = None) -> None:
        super().__init__(model, name)
        if not isinstance(model.patch_embed, SeparatePatchEmbedding):
            raise ConfigError(f"{name}: its embedding is dynamic, for any bands: name the folder without separate:")
        self.embedding = model.patch_embed
        if sensor is not None and sensor not in self.embedding.sensors:
            raise ConfigError(f"{name} has no embedding for {sensor}: it has {', '.join(self.embedding.sensors)}")
        self.sensor = sensor

    def take(self, data: LabelledImages, stats: str | None = None) -> LabelledImages:
        """The bands the embedding has, under the names it knows them by; the others are left out.

        A band is found by its name or an alias, and where the embedding's sensor was named, else by its wavelength.

        Args:
            stats: as for `scaling`; changes nothing here.

        Returns:
            Images under the embedding's sensor and band names; `data` itself where nothing changes.

        Raises:
            ConfigError: no band of theirs has an embedding.
        """
        own = data.sensor
        names = self.embedding.candidates(own) if self.sensor is None else [self.sensor]
        found = {name: _pairs(own, self.embedding.sensors[name], self.sensor is not None) for name in names}
        chosen = max(found, key=lambda name: len(found[name]), default="")
        if not chosen or not found[chosen]:
            raise ConfigError(
                f"{self.name} has no patch embedding for {own.name}: name the one to feed it through, "
                + " or ".join(f"separate:FOLDER#{name}" for name in self.embedding.sensors)
            )
        pairs, trained = found[chosen], self.embedding.sensors[chosen]
        if own.name == chosen and own.band_names == tuple(known for _, known in pairs):
            return data
        data = data.select_bands([band for band, _ in pairs])
        called = tuple(known for _, known in pairs)
        both = zip(data.sensor.bands, called, strict=True)
        bands = tuple(replace(band, name=known, aliases=()) for band, known in both)
        corpus = data.corpus_scaling
        return replace(
            data,
            sensor=Sensor(chosen, bands, own.gsd_m, title=own.title, platform=trained.platform),
            scaling=replace(data.scaling, bands=called),
            fingerprint=digest([data.fingerprint, chosen, called]),
            corpus_scaling=None if corpus is None else replace(corpus, bands=called),
        )

    def scaling(self, data: LabelledImages, stats: str | None = None, dataset: Scaling | None = None) -> Scaling:
        """The embedding's own statistics, or those asked for; arguments as of `Backbone.scaling`.

        Raises:
            ConfigError: there are none.
        """
        try:
            return super().scaling(data, stats, dataset)
        except ConfigError as error:
            cure = "" if stats else f"; for images of another kind than {data.sensor.name}'s: --stats {DATASET}"
            raise ConfigError(f"{error}{cure}") from None


def _pairs(sensor: Sensor, trained: TrainedSensor, by_wavelength: bool) -> list[tuple[str, str]]:
    """(a band's name, what the embedding calls it) for every band that it has, in the sensor's order."""
    free = dict(zip(trained.bands, trained.wavelength_um, strict=True))
    found: dict[str, str] = {}
    for band in sensor.bands:
        names = {name.lower() for name in (band.name, *band.aliases)}
        if same := [known for known in free if known.lower() in names]:
            found[band.name] = same[0]
            del free[same[0]]
    for band in sensor.bands if by_wavelength else ():
        near = sorted(free, key=lambda known: _distance_um(band, free[known]))
        if band.name not in found and near and _distance_um(band, free[near[0]]) <= NEIGHBOURHOOD_UM:
            found[band.name] = near[0]
            del free[near[0]]
    return [(band.name, found[band.name]) for band in sensor.bands if band.name in found]


def _distance_um(band: Band, wavelength_um: float) -> float:
    return float("inf") if band.wavelength_um is None else abs(band.wavelength_um - wavelength_um)


class _TimmFeatures(Backbone):
    """What timm's models have in common, whatever they are fed.

    Of a Vision Transformer the blocks are numbered, of a pyramid (a ResNet, a Swin) its levels. These differ in width:
    vectors of each can be had, maps only of those that are as wide as the last.
    """

    def _hold(self, model: nn.Module, name: str, image_size: int) -> None:
        told: Any = model
        if not hasattr(told, "forward_intermediates"):
            raise ConfigError(f"{name}: {type(model).__name__} has no forward_intermediates: timm >= 1.0 gives it one")
        self.module, self.name, self.sha256 = model.eval(), name, weights_sha256(model)
        self.width, self.image_size = int(told.num_features), image_size
        if hasattr(told, "blocks") and hasattr(told, "patch_embed"):
            side = told.patch_embed.patch_size
            self.depth, self.patch = len(told.blocks), int(side[0] if isinstance(side, tuple) else side)
        else:  # a pyramid: its levels stand for blocks
            self.depth, self.patch = len(told.feature_info), int(told.feature_info[-1]["reduction"])

    def key(self, data: LabelledImages) -> dict[str, Any]:
        """Name, weights."""
        return {"weights": self.sha256, "adapter": self.name.partition(":")[0]}

    def maps(self, images: Tensor, sensor: Sensor, blocks: Sequence[int]) -> list[Tensor]:
        """As the class says."""
        found = self._levels(images, blocks)
        if narrow := [block for block, level in zip(blocks, found, strict=True) if level.shape[1] != self.width]:
            raise ConfigError(
                f"{self.name}: level {narrow[0]} is no map of {self.width} channels: take {self.depth - 1}"
            )
        return found

    def _levels(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        self._check(images)
        asked = sorted(set(blocks))  # timm answers in the order of its blocks, whatever the order asked
        told: Any = self.module
        found = told.forward_intermediates(
            images, indices=asked, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        by_block: dict[int, Tensor] = dict(zip(asked, found, strict=True))
        return [by_block[block] for block in blocks]

    def vectors(self, images: Tensor, sensor: Sensor, levels: Sequence[Block]) -> dict[Block, Tensor]:
        """As the class says; `pooled` is what the model's own classifier would see."""
        inner = [level for level in levels if isinstance(level, int)]
        out: dict[Block, Tensor] = {}
        if inner:
            maps = self._levels(images, inner)
            out |= {level: tokens.float().mean((2, 3)) for level, tokens in zip(inner, maps, strict=True)}
        if "pooled" in levels:
            self._check(images)
            told: Any = self.module
            out["pooled"] = told.forward_head(told.forward_features(images), pre_logits=True)
        return out

    def _check(self, images: Tensor) -> None:
        fixed = getattr(getattr(self.module, "patch_embed", None), "strict_img_size", False)
        if fixed and images.shape[-2:] != (self.image_size, self.image_size):
            raise ConfigError(
                f"{self.name} takes images of {self.image_size} pixels, not {images.shape[-2]} × {images.shape[-1]}: "
                f"pass --size {self.image_size}"
            )


class TimmBackbone(_TimmFeatures, PictureBackbone):
    """A model of timm for photographs, in its own normalisation.

    Args:
        model: as `timm.create_model` makes it, without a classifier.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        told: dict[str, Any] = cast(Any, model).pretrained_cfg
        if told["input_size"][0] != 3:
            raise ConfigError(f"{name} takes {told['input_size'][0]} bands and does not say which: only RGB is known")
        self.mean, self.std = tuple(told["mean"]), tuple(told["std"])
        self._hold(model, name, int(told["input_size"][1]))

    def maps(self, images: Tensor, sensor: Sensor, blocks: Sequence[int]) -> list[Tensor]:
        """As the class says; a single band stands for all three colours."""
        return super().maps(images.expand(-1, 3, -1, -1), sensor, blocks)

    def vectors(self, images: Tensor, sensor: Sensor, levels: Sequence[Block]) -> dict[Block, Tensor]:
        """As the class says, and as `maps`."""
        return super().vectors(images.expand(-1, 3, -1, -1), sensor, levels)


class TorchGeoBackbone(_TimmFeatures):
    """A model with weights of TorchGeo, fed the bands that they name.

    Args:
        model: as `torchgeo.models.get_model` makes it.
        bands: it was trained with, in order.
        divides: whether its own preparation is a division of the product's numbers by 10,000: reflectance as it is.
    """

    def __init__(self, model: nn.Module, name: str, bands: Sequence[str], divides: bool) -> None:
        self.bands, self.divides = tuple(bands), divides
        self._hold(model, name, int(cast(Any, model).pretrained_cfg["input_size"][1]))

    def take(self, data: LabelledImages, stats: str | None = None) -> LabelledImages:
        """The bands the weights name, in their order.

        Args:
            stats: as for `scaling`; changes nothing here.

        Raises:
            ConfigError: the images lack some.
        """
        known = {n.lower(): band.name for band in data.sensor.bands for n in (band.name, *band.aliases)}
        if missing := [band for band in self.bands if band.lower() not in known]:
            raise ConfigError(f"{self.name} needs {', '.join(missing)}, which {data.sensor.name} does not have")
        names = [known[band.lower()] for band in self.bands]
        return data if names == list(data.sensor.band_names) else data.select_bands(names)

    def scaling(self, data: LabelledImages, stats: str | None = None, dataset: Scaling | None = None) -> Scaling:
        """Reflectance as it is, where the weights were trained so; else `dataset`; arguments as of `Backbone.scaling`.

        Raises:
            ConfigError: what the weights want is not known, and `stats` is not `dataset`.
        """
        if stats == DATASET and dataset is not None:
            return dataset
        if stats is None and self.divides and data.scaling.unit == "reflectance":
            bands = len(self.bands)
            return data.scaling.with_stats([0.0] * bands, [1.0] * bands, "checkpoint")
        raise ConfigError(
            f"{self.name}: how these weights want {data.scaling.unit} normalised is not known: pass --stats {DATASET}"
        )


def open_separate(spec: str, name: str) -> Backbone:
    """`FOLDER[#SENSOR]`: a model with one patch embedding a sensor, and the one to use.

    Args:
        spec: what stands behind `separate:`.
    """
    folder, _, sensor = spec.partition("#")
    return SeparateBackbone(checkpoint.load(folder), name, sensor or None)


def open_timm(spec: str, name: str) -> Backbone:
    """`NAME[#FILE]`: a model of timm, with its published weights or those of a file.

    Args:
        spec: what stands behind `timm:`.

    Raises:
        ConfigError: timm is not installed, or has no such model.
        CheckpointError: weights that cannot be fetched or do not fit.
    """
    model_name, _, file = spec.partition("#")
    timm = _installed("timm", "timm")
    try:
        model = _any_size(timm.create_model, model_name, pretrained=not file, num_classes=0)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"timm has no {model_name}: {_line(error)}") from None
    except OSError as error:
        raise CheckpointError(f"timm could not fetch {model_name}: {_line(error)}") from None
    if file:
        _fill(model, Path(file), str(model.pretrained_cfg.get("classifier") or "head"))
    return TimmBackbone(model, name)


def open_torchgeo(spec: str, name: str) -> Backbone:
    """`WEIGHTS`, such as `ViTSmall16_Weights.SENTINEL2_ALL_MOCO`: a model with weights of TorchGeo.

    Args:
        spec: what stands behind `torchgeo:`.

    Raises:
        ConfigError: TorchGeo is not installed, has no such weights, or does not say their bands.
        CheckpointError: weights that cannot be fetched.
    """
    models = _installed("torchgeo.models", "torchgeo")
    try:
        weights = models.get_weight(spec)
    except ValueError as error:
        raise ConfigError(f"torchgeo has no weights {spec}: {_line(error)}") from None
    bands = weights.meta.get("bands")
    if not bands:
        raise ConfigError(f"torchgeo does not say the bands of {spec}: a newer torchgeo may")
    try:
        model = _any_size(models.get_model, weights.meta["model"], weights=weights, num_classes=0)
    except OSError as error:
        raise CheckpointError(f"torchgeo could not fetch {spec}: {_line(error)}") from None
    return TorchGeoBackbone(model, name, bands, _divides(weights.transforms, len(bands)))


def _any_size(make: Callable[..., Any], name: str, **options: Any) -> Any:
    """The model, for images of any size where it can take them."""
    try:
        return make(name, **options, dynamic_img_size=True)
    except TypeError:
        return make(name, **options)


def weights_sha256(model: nn.Module) -> str:
    """Digest of a module's state."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _divides(transforms: Any, bands: int) -> bool:
    """Whether a preparation turns 0 and 10,000 into 0 and 1, whatever it does to an image's size."""
    flat = [transforms({"image": torch.full((1, bands, 256, 256), value)})["image"] for value in (0.0, 10_000.0)]
    return all(bool((image - value).abs().max() < 1e-6) for image, value in zip(flat, (0.0, 1.0), strict=True))


def _installed(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except (ImportError, RuntimeError) as error:  # torchvision beside another torch raises the latter
        raise ConfigError(f"{package} cannot be imported ({_line(error)}): pip install {package}") from None


def _fill(model: nn.Module, file: Path, classifier: str) -> None:
    """Weights of a safetensors file, or of a torch file that holds tensors alone; a classifier in it is left out."""
    if not file.is_file():
        raise CheckpointError(f"no weights {file}")
    if file.suffix == ".safetensors":
        tensors: dict[str, Any] = read_safetensors(file)
    else:
        tensors = unpickle(file)
        if not isinstance(tensors, dict):
            raise CheckpointError(f"{file} is no file of tensors alone")
        tensors = next((tensors[key] for key in ("state_dict", "model") if key in tensors), tensors)
    try:
        model.load_state_dict({key: t for key, t in tensors.items() if not key.startswith(f"{classifier}.")})
    except RuntimeError as error:
        raise CheckpointError(f"{file} does not fit: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
