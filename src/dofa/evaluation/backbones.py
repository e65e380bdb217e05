"""What the tasks ask of any model: pixels of a sensor in, vectors and maps out.

A probe, a fine-tuning or a table of many models knows no more of a model than this.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from dofa.datasets.labelled import LabelledImages
from dofa.errors import ConfigError, nearest
from dofa.model import checkpoint
from dofa.model.config import EncoderConfig
from dofa.model.encoder import DOFA
from dofa.model.heads import Block, level_features, level_name
from dofa.model.sensor_matching import SensorMatch, known_statistics, match_by_name, match_by_wavelength
from dofa.model.teacher import Teacher, load_teacher
from dofa.pixels import Scaling, display_map, display_statistics, resolve_stats
from dofa.sensors import Sensor

DATASET = "dataset"  # --stats dataset: statistics of the training images
DISPLAY = "display"  # --stats display: what a teacher of photographs is fed


class Backbone(ABC):
    """A model behind a task.

    Attributes:
        name: what tables call it.
        module: the network, for moving it to a device and for training it.
        sha256: of its weights.
        depth: blocks.
        width: of a token.
        patch: pixels a side.
        image_size: side in pixels it was made for.
        patch_offset: token (i, j) covers the pixels from i · patch − patch_offset on (docs/architecture.md).
    """

    name: str
    module: nn.Module
    sha256: str
    depth: int
    width: int
    patch: int
    image_size: int
    patch_offset: int = 0

    def take(self, data: LabelledImages, stats: str | None = None) -> LabelledImages:
        """The images with the bands that the model reads, in its order; all of them unless it says otherwise.

        Args:
            stats: as for `scaling`; bands without statistics are left out.

        Raises:
            ConfigError: the images lack them.
        """
        return data

    @abstractmethod
    def scaling(self, data: LabelledImages, stats: str | None = None, dataset: Scaling | None = None) -> Scaling:
        """What normalises its input, with statistics; in the model's unit where that is another than the images'.

        Args:
            data: what `take` gave.
            stats: None for the model's usual ones, `dataset`, or a name that the model knows.
            dataset: statistics of the training images, for `stats="dataset"`.

        Raises:
            ConfigError: no statistics, an unknown name, or no way between the units.
        """

    @abstractmethod
    def key(self, data: LabelledImages) -> dict[str, Any]:
        """All that its features depend on beside pixels, scaling, size and precision, for the cache."""

    @abstractmethod
    def maps(self, images: Tensor, sensor: Sensor, blocks: Sequence[int]) -> list[Tensor]:
        """Raw outputs of blocks as maps.

        Args:
            images: (B, C, H, W), normalised.
            blocks: numbers from 0.

        Returns:
            (B, D, h, w) a block, in the order asked.
        """

    @abstractmethod
    def vectors(self, images: Tensor, sensor: Sensor, levels: Sequence[Block]) -> dict[Block, Tensor]:
        """(B, D) for each level from one pass: the mean of a block's patch tokens, or the model's `pooled` vector.

        Args:
            images: (B, C, H, W), normalised.
            levels: numbers of blocks from 0, or `pooled`.
        """

    def pooled(self, images: Tensor, sensor: Sensor) -> Tensor:
        """(B, D), the model's own summary of an image.

        Args:
            images: (B, C, H, W), normalised.
        """
        return self.vectors(images, sensor, ["pooled"])["pooled"]


class DofaBackbone(Backbone):
    """A DOFA encoder: any bands, by their wavelengths.

    Args:
        model: without a classifier.
    """

    module: DOFA

    def __init__(self, model: DOFA, name: str) -> None:
        config = model.config
        self.module, self.name, self.sha256 = model, name, checkpoint.encoder_sha256(model)
        self.depth, self.width, self.patch = config.depth, config.width, config.patch
        self.image_size, self.patch_offset = config.image_size, config.patch_offset

    def take(self, data: LabelledImages, stats: str | None = None) -> LabelledImages:
        """The bands that the checkpoint has statistics of; with --stats dataset, or where nothing fits, all.

        Args:
            stats: as for `scaling`.
        """
        found = _match(data, self.module.config, stats)
        return data if found is None or not found.left_out else data.select_bands(found.bands)

    def scaling(self, data: LabelledImages, stats: str | None = None, dataset: Scaling | None = None) -> Scaling:
        """As the class says; weights that expect another unit (released v1: 8 bits) are fed through the unit map."""
        return input_scaling(data, self.module.config, stats, dataset)

    def key(self, data: LabelledImages) -> dict[str, Any]:
        """Weights, architecture, and what number stands for each band: that is the model's word."""
        numbers, polarisations = self.module.band_inputs(data.sensor)
        config = self.module.config.to_dict()
        del config["sensors"]
        return {
            "weights": self.sha256,
            "config": config,
            "bands": [numbers.tolist(), polarisations.tolist()],
        }

    def maps(self, images: Tensor, sensor: Sensor, blocks: Sequence[int]) -> list[Tensor]:
        """As the class says."""
        found: Any = self.module.forward_intermediates(images, sensor, blocks, intermediates_only=True)
        return list(found)

    def vectors(self, images: Tensor, sensor: Sensor, levels: Sequence[Block]) -> dict[Block, Tensor]:
        """As the class says; blocks behind the last one wanted do not run."""
        through = partial(self.module.forward_intermediates, wavelengths=sensor)
        found = level_features(self.module, through, images, levels, maps=False)
        return {level: found[level_name(level)] for level in levels}


class PictureBackbone(Backbone):
    """A model of photographs: it sees the picture of the images, in the ranges of `pixels.display`.

    Attributes:
        mean: of its red, green and blue in [0, 1].
        std: like mean.
    """

    mean: Sequence[float]
    std: Sequence[float]

    def take(self, data: LabelledImages, stats: str | None = None) -> LabelledImages:
        """Red, green and blue by the sensor's own rendering; a single band, as of radar, three times in `maps`.

        Args:
            stats: as for `scaling`; changes nothing here.

        Raises:
            ConfigError: the sensor has no such rendering, and more than two bands.
        """
        rgb = data.sensor.renderings.get("rgb")
        if rgb is not None:
            return data.select_bands(rgb)
        if len(data.sensor.bands) in (1, 2):
            return data.select_bands([data.sensor.band_names[0]])
        raise ConfigError(
            f"{data.sensor.name} names no red, green and blue ({', '.join(data.sensor.band_names)}): {self.name} sees "
            "pictures only"
        )

    def scaling(self, data: LabelledImages, stats: str | None = None, dataset: Scaling | None = None) -> Scaling:
        """The display ranges with the teacher's own mean and std, or `dataset`."""
        if stats == DATASET and dataset is not None:
            return dataset
        if stats not in (None, DISPLAY):
            raise ConfigError(f"--stats {stats}: {self.name} knows {DISPLAY} and {DATASET}")
        colours = (0, 1, 2) if len(data.sensor.bands) == 3 else (None,)
        maps = [display_map(data.scaling.unit, b.wavelength_um, b.polarisation) for b in data.sensor.bands]
        return display_statistics(data.scaling, maps, colours, self.mean, self.std)


class TeacherBackbone(PictureBackbone):
    """An ordinary RGB ViT.

    Its pooled vector is the mean of the last block's patch tokens.
    """

    module: Teacher

    def __init__(self, teacher: Teacher, name: str) -> None:
        config = teacher.config
        self.module, self.name, self.sha256 = teacher, name, teacher.sha256
        self.mean, self.std = teacher.mean.tolist(), teacher.std.tolist()
        self.depth, self.width, self.patch, self.image_size = (
            config.depth, config.width, config.patch, config.image_size,
        )  # fmt: skip

    def key(self, data: LabelledImages) -> dict[str, Any]:
        """Weights."""
        return {"weights": self.sha256, "teacher": True, "config": self.module.config.to_dict()}

    def maps(self, images: Tensor, sensor: Sensor, blocks: Sequence[int]) -> list[Tensor]:
        """As the class says."""
        rows, columns = (-(-side // self.patch) for side in images.shape[-2:])
        found = self.module(images.expand(-1, 3, -1, -1), blocks, normalised=True)
        return [level[:, 1:].transpose(1, 2).unflatten(2, (rows, columns)) for level in found]

    def vectors(self, images: Tensor, sensor: Sensor, levels: Sequence[Block]) -> dict[Block, Tensor]:
        """As the class says."""
        numbers = [self.depth - 1 if level == "pooled" else level for level in levels]
        found = self.module(images.expand(-1, 3, -1, -1), numbers, normalised=True)
        return {level: tokens[:, 1:].float().mean(1) for level, tokens in zip(levels, found, strict=True)}


def open_backbone(spec: str | DOFA, name: str | None = None) -> Backbone:
    """A model from one word.

    Args:
        spec: a model folder, a released name or a file, as `dofa.load` takes them; `random:MODEL#SEED`, the same
            architecture never trained; `teacher:FILE`, an ordinary RGB ViT; `separate:FOLDER`, a model with one patch
            embedding a sensor; `timm:NAME[#FILE]` or `torchgeo:NAME`, where the user has installed them; or an encoder.
        name: what tables call it; the spec where absent.

    Raises:
        CheckpointError: weights that cannot be used.
        ConfigError: a package that is not installed, or a seed that is no number.
    """
    if isinstance(spec, DOFA):
        return DofaBackbone(spec, name or "encoder")
    kind, _, rest = spec.partition(":")
    if kind == "random":
        source, _, seed = rest.partition("#")
        if not re.fullmatch(r"\d*", seed):
            raise ConfigError(f"{spec}: random:MODEL#SEED with a whole number")
        config = checkpoint.load(source).config
        return DofaBackbone(random_encoder(config, int(seed or 0)), name or spec)
    if kind == "teacher":
        return TeacherBackbone(load_teacher(rest), name or spec)
    if kind in ("separate", "timm", "torchgeo"):
        module, function = ("dofa.evaluation.other_models", f"open_{kind}")
        opened: Backbone = getattr(import_module(module), function)(rest, name or spec)
        return opened
    return DofaBackbone(checkpoint.load(spec), name or spec)


def input_scaling(
    data: LabelledImages, config: EncoderConfig, stats: str | None = None, dataset: Scaling | None = None
) -> Scaling:
    """What normalises the images for an encoder: the checkpoint's statistics, then the store's.

    Weights that expect another unit than the data set has (released v1: 8 bits) are fed through the named unit map;
    the scaling returned is then in their unit and starts from values already mapped.

    Args:
        config: of the encoder, with the statistics it was trained with.
        stats: None for the encoder's (of this sensor, of its platform), then the store's, then those of the nearest
            trained bands (`dofa.model.sensor_matching`); `dataset`; or the name of a sensor the encoder knows.
        dataset: statistics of the training images, for `stats="dataset"`.

    Raises:
        ConfigError: no statistics for this sensor, an unknown name, or no way between the units.
    """
    trained = {name: sensor.scaling for name, sensor in config.sensors.items()}
    if stats == DATASET:
        return resolve_stats(data.scaling, data.sensor.name, stats=dataset, checkpoint=trained)
    found = _match(data, config, stats)
    if found is None:
        return resolve_stats(data.scaling, data.sensor.name, checkpoint=trained, store=data.corpus_scaling)
    if found.left_out:
        raise ConfigError(
            f"the statistics of {found.trained} lack band {', '.join(found.left_out)} of {data.name}: leave it out, or "
            "pass --stats dataset"
        )
    return found.scaling.select(data.sensor.band_names)


def _match(data: LabelledImages, config: EncoderConfig, stats: str | None) -> SensorMatch | None:
    """The checkpoint's statistics for images, None where others come first: those asked for, or the store's."""
    if stats == DATASET:
        return None
    if stats is not None and stats not in (known := known_statistics(config)):
        raise ConfigError(f"--stats {stats}: the encoder has no such statistics: {nearest(stats, [*known, DATASET])}")
    found = match_by_name(config, data.sensor, data.scaling, stats)
    if found is None and (stats is not None or data.corpus_scaling is None or data.corpus_scaling.mean is None):
        found = match_by_wavelength(config, data.sensor, data.scaling, stats)
    return found


def random_encoder(config: EncoderConfig, seed: int) -> DOFA:
    """The same architecture, never trained: what a frozen encoder has to beat. The caller's generator is untouched.

    Args:
        config: of the encoder to stand beside; its classifier is left out.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DOFA(replace(config, num_classes=0))
