"""What a teacher is shown of each sensor, and what the student's second pass is fed: three bands at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError, nearest
from dofa.model.config import DistillConfig
from dofa.pixels import HIDDEN, IMAGENET_MEAN, IMAGENET_STD, DisplayMap, Scaling, display_map, display_statistics, show
from dofa.sensors import Sensor, catalogue

Float = NDArray[np.float32]


@dataclass(frozen=True)
class TeacherInput:
    """The pictures of one sensor.

    Attributes:
        pictures: band indices of each rendering.
        blank: the third band of a picture is zeros: two polarisations make no third.
        channels: how many bands one is drawn from that is shown three times; 0 for the pictures as they are.
        maps: one a band of the sensor, to [0, 1]; None shows the normalised values.
    """

    pictures: tuple[tuple[int, int, int], ...]
    blank: bool
    channels: int
    maps: tuple[DisplayMap, ...] | None

    def draw(self, rng: np.random.Generator) -> "TeacherInput":
        """The view of one micro-batch: with the channel drawn that is shown three times, where one is."""
        if not self.channels:
            return self
        channel = int(rng.integers(self.channels))
        return replace(self, pictures=((channel,) * 3,), channels=0)

    def proxy(self, image_chw: Float) -> Float:
        """(3, h, w): the first picture in the sensor's own normalisation, from all its bands."""
        three: Float = image_chw[list(self.pictures[0])]
        if self.blank:
            three[2] = 0
        return three

    def show(self, image_chw: Float, scaling: Scaling, valid_hw: NDArray[np.bool_] | None) -> Float:
        """(R, 3, h, w): every picture as the teacher is shown it, from all the sensor's normalised bands.

        Args:
            image_chw: (C, H, W), normalised.
            scaling: that normalised it.
            valid_hw: (H, W), None where every pixel is valid.
        """
        if self.maps is None:
            return np.stack([self.proxy(image_chw)])
        wanted = sorted({band for three in self.pictures for band in three})
        shown = show(
            image_chw[wanted], scaling.select([scaling.bands[b] for b in wanted]), [self.maps[b] for b in wanted]
        )
        if valid_hw is not None:
            shown[:, ~valid_hw] = HIDDEN
        pictures: Float = np.stack([shown[[wanted.index(band) for band in three]] for three in self.pictures])
        if self.blank:
            pictures[:, 2] = 0
        return pictures


def plan_teacher_input(sensor: Sensor, config: DistillConfig) -> TeacherInput:
    """Which bands of a sensor make the pictures.

    Args:
        config: what the teacher is to be shown.

    Raises:
        ConfigError: a proxy names a band the sensor lacks, the sensor has no rendering, or no display map fits it.
    """
    radar = all(band.kind == "sar" for band in sensor.bands)
    maps = None if config.input == "sensor" else band_maps(sensor)
    if sensor.name in config.proxies:
        return TeacherInput((_three(sensor, config.proxies[sensor.name]),), False, 0, maps)
    if radar and config.view == "proxy":
        count = len(sensor.bands)
        if config.sar_proxy == "random" or count == 1:
            return TeacherInput(((0, 0, 0),), False, count, maps)
        # The third band repeats the first's wavelength, and holds zeros (the published code).
        return TeacherInput(((0, 1, 0),), True, 0, maps)
    if not sensor.renderings:
        raise ConfigError(
            f"sensor {sensor.name} names no three bands that make a picture: say them in distill.proxies, such as "
            f"{sensor.name}: [{', '.join((sensor.band_names * 3)[:3])}]"
        )
    chosen = [three for name, three in sensor.renderings.items() if name in config.renderings]
    chosen = chosen or [next(iter(sensor.renderings.values()))]
    return TeacherInput(tuple(_three(sensor, three) for three in chosen), False, 0, maps)


def plan_teacher_inputs(sensors: Mapping[str, Sensor], config: DistillConfig) -> dict[str, TeacherInput]:
    """`plan_teacher_input` for every sensor of a run.

    Args:
        config: what the teacher is to be shown.

    Raises:
        ConfigError: `distill.proxies` names a sensor that is neither here nor catalogued (a recipe names those of its
            corpora, and a run may lack some), or `distill.renderings` a picture nobody has.
    """
    for name in config.proxies:
        if name not in sensors and name not in catalogue():
            raise ConfigError(f"distill.proxies names {name!r}: {nearest(name, sensors)}")
    known = {"rgb", "colour-infrared", "swir-nir-red"} | {r for s in sensors.values() for r in s.renderings}
    for name in config.renderings:
        if name not in known:
            raise ConfigError(f"distill.renderings names {name!r}: {nearest(name, known)}")
    if (
        config.crops
        and config.sar_proxy == "random"
        and any(b.kind == "sar" for s in sensors.values() for b in s.bands)
    ):
        raise ConfigError("distill.crops keeps one teacher's answer a crop: sar_proxy random would need one a channel")
    return {name: plan_teacher_input(sensor, config) for name, sensor in sensors.items()}


def band_maps(sensor: Sensor) -> tuple[DisplayMap, ...]:
    """How each band of a sensor is shown in [0, 1].

    Raises:
        ConfigError: the sensor's values are in no unit with a display map.
    """
    if sensor.scaling is None:
        raise ConfigError(f"sensor {sensor.name}: nothing says in which unit its values are, so they cannot be shown")
    try:
        return tuple(display_map(sensor.scaling.unit, b.wavelength_um, b.polarisation) for b in sensor.bands)
    except ConfigError as error:
        raise ConfigError(f"sensor {sensor.name}: {error}") from None


def display_scaling(
    sensor: Sensor,
    scaling: Scaling,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Scaling:
    """A sensor's scaling with the statistics of its pictures (`data.statistics=display`).

    Args:
        sensor: its first rendering says which bands are red, green and blue.
        scaling: the step to physical values.
        std: like mean.
    """
    colours: list[int | None] = [None] * len(sensor.bands)
    if "rgb" in sensor.renderings:
        for colour, band in enumerate(sensor.index(sensor.renderings["rgb"])):
            colours[band] = colour
    return display_statistics(scaling, band_maps(replace(sensor, scaling=scaling)), colours, mean, std)


def _three(sensor: Sensor, names: tuple[str, str, str]) -> tuple[int, int, int]:
    red, green, blue = sensor.index(names)
    return red, green, blue
