"""Which bands of an image a checkpoint is fed, and with which of its statistics.

The checkpoint's own name for the sensor comes first, then another product of the same platform (bands by name, units by
the named maps of `pixels`), then the trained sensor whose bands lie nearest in wavelength. See docs/checkpoints.md.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from dofa.errors import ConfigError, listed, nearest
from dofa.model.config import EncoderConfig, TrainedSensor
from dofa.pixels import Scaling, UnitMap, resolve_stats, satlas_white, unit_path
from dofa.sensors import Band, Sensor

ChosenBy = Literal["sensor", "platform", "wavelength", "scene"]
NEAR = 0.05  # of a wavelength: Landsat's red (.655) is Sentinel-2's (.665), its coastal band (.443) is not blue (.49)
NARROW = 0.2  # of a wavelength: a wider band is panchromatic and like none of several colours
# The published statistics of Gaofen-2 are probably of other bands than they say (docs/corpora.md): good enough for
# images of Gaofen-2, which were trained with them, and for nobody else's.
DOUBTFUL = ("gaofen-2",)


@dataclass(frozen=True)
class SensorMatch:
    """How the bands of an image are fed to a checkpoint.

    Attributes:
        sensor: of the image.
        chosen_by: the checkpoint knows the sensor, another product of its `platform`, or bands near in `wavelength`; or
            the statistics are the `scene`'s own.
        trained: the checkpoint's name of the sensor whose statistics are used; None where they are the scene's own.
        bands: of the image, those that are fed, in order.
        as_bands: the checkpoint's name of each.
        left_out: bands of the image that are not fed.
        absent: bands that the checkpoint learned and the image lacks.
        scaling: with the statistics; in another unit than the image's where `unit_maps` stand between.
        unit_maps: from the image's unit to the scaling's, one after another.
        approximated: what is not as the checkpoint learned it.
    """

    sensor: str
    chosen_by: ChosenBy
    trained: str | None
    bands: tuple[str, ...]
    as_bands: tuple[str, ...]
    left_out: tuple[str, ...]
    absent: tuple[str, ...]
    scaling: Scaling
    unit_maps: tuple[UnitMap, ...] = ()
    approximated: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether there is nothing to say: all bands of a sensor the checkpoint knows, or statistics asked for."""
        known = self.chosen_by == "sensor" and not (self.left_out or self.absent or self.unit_maps)
        return known or (self.chosen_by == "scene" and not self.approximated)

    def lines(self) -> tuple[str, str]:
        """What was chosen and left out, and how the values get there: two lines for people."""
        bands = f"{len(self.bands)} of {len(self.bands) + len(self.left_out)} bands"
        fed = f"{self.sensor}: {bands} are fed as {self.trained or 'they are'}: {listed(self.bands, 16)}"
        values = " and ".join(m.name for m in self.unit_maps)
        how = f"by {values}" if values else f"as they are ({self.scaling.unit})"
        whose = f"the checkpoint's statistics of {self.trained}" if self.trained else "the scene's own statistics"
        return (
            f"{fed}; left out: {listed(self.left_out, 16) or 'none'}",
            f"{self.sensor}: values {how}; {whose}; approximated: {'; '.join(self.approximated) or 'nothing'}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, for the metadata of outputs."""
        return {
            "sensor": self.sensor,
            "chosen_by": self.chosen_by,
            "statistics_of": self.trained,
            "bands": list(self.bands),
            "as_bands": list(self.as_bands),
            "left_out": list(self.left_out),
            "absent": list(self.absent),
            "unit_maps": [m.name for m in self.unit_maps],
            "approximated": list(self.approximated),
        }


def match_sensor(
    config: EncoderConfig, sensor: Sensor, physical: Scaling, only: str | None = None
) -> SensorMatch | None:
    """The checkpoint's statistics for an image: of its sensor, of its platform, or of the nearest trained bands.

    Args:
        config: of the encoder, with the sensors it was trained on.
        sensor: of the image, with the bands it has.
        physical: from the image's numbers to physical values, for these bands.
        only: the one trained sensor that may be taken; None for the best.

    Returns:
        None where no statistics fit.

    Raises:
        ConfigError: the checkpoint has no statistics under the name `only`.
    """
    return match_by_name(config, sensor, physical, only) or match_by_wavelength(config, sensor, physical, only)


def match_by_name(
    config: EncoderConfig, sensor: Sensor, physical: Scaling, only: str | None = None
) -> SensorMatch | None:
    """Like `match_sensor`, of the sensor itself or another product of its platform, whose bands have the same names.

    Args:
        physical: from the image's numbers to physical values.
        only: the one trained sensor that may be taken; None for the best.
    """
    found = []
    for name, trained in _with_statistics(config, only).items():
        # Names mean the same bands on one platform alone: B5 is Landsat's infrared and Sentinel-2's red edge.
        asked = name == only and not trained.platform
        if not (name == sensor.name or asked or (trained.platform and trained.platform == sensor.platform)):
            continue
        maps = _path(physical, trained, sensor.platform)
        pairs = {} if maps is None else _by_name(trained, sensor)
        if maps is None or not pairs:
            continue
        # In the image's order under its own name; of another product in the order that was trained.
        ordered = [b for b in sensor.band_names if b in pairs] if name == sensor.name else list(pairs)
        as_bands = tuple(pairs[b] for b in ordered)
        assert trained.scaling is not None  # _with_statistics
        theirs = replace(trained.scaling.select(as_bands), bands=tuple(ordered))
        base = physical.select(ordered)
        if maps:
            base = Scaling.uniform(theirs.unit, ordered, physical_source=physical.physical_source)
        scaling = resolve_stats(base, sensor.name, checkpoint={sensor.name: theirs})
        approximated = tuple(f"{m.name} is not documented by its authors" for m in maps if m.approximate)
        how: ChosenBy = "sensor" if name == sensor.name else "platform"
        one = _match(sensor, how, name, trained, dict(zip(ordered, as_bands, strict=True)), scaling, maps, approximated)
        found.append(((name == sensor.name, len(ordered), -len(maps), name), one))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def match_by_wavelength(
    config: EncoderConfig, sensor: Sensor, physical: Scaling, only: str | None = None
) -> SensorMatch | None:
    """Like `match_sensor`, for a sensor the checkpoint never saw: the trained bands nearest in wavelength.

    Each is the other's nearest and at most 5 % away. Of several trained sensors the one is taken that shares the
    largest part of all bands of both. The values must mean the same: equal units, or reflectance against Sentinel-2's
    8-bit scale, whose statistics are then brought back to reflectance. At least half of the bands must be met.

    Args:
        physical: from the image's numbers to physical values.
        only: the one trained sensor that may be taken; None for the best.
    """
    if config.embedding != "dynamic":
        return None  # what has an embedding a sensor reads no other
    found = []
    for name, trained in _with_statistics(config, only).items():
        if only is None and name in DOUBTFUL:
            continue
        pairs = _nearest(sensor, trained)
        theirs = _same_values(trained, pairs, physical)
        if theirs is None or 2 * len(pairs) < len(sensor.bands):
            continue
        base = physical.select(theirs.bands)
        clip = tuple(_both(a, b) for a, b in zip(base.clip, theirs.clip, strict=True))
        scaling = replace(base, clip=clip, mean=theirs.mean, std=theirs.std, stats_source="checkpoint")
        read_as = listed(f"{own} as {other}" for own, other in pairs.items())
        approximated = (f"a sensor the checkpoint never saw, by the nearest bands ({read_as})",)
        shared = len(pairs) / (len(trained.bands) + len(sensor.bands) - len(pairs))
        found.append(((shared, name), _match(sensor, "wavelength", name, trained, pairs, scaling, (), approximated)))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def own_statistics(config: EncoderConfig, sensor: Sensor, measured: Scaling, asked: bool) -> SensorMatch:
    """The scenes' own statistics.

    Args:
        asked: the user wants them; otherwise nothing of the checkpoint fits, which `approximated` says.
    """
    names = sensor.band_names
    known = known_statistics(config)
    text = (
        f"the checkpoint has no statistics for {sensor.name} or a sensor like it (it knows "
        f"{', '.join(known) or 'none'}): those of the scenes given are used, so that features of another run do not "
        "compare with these"
    )
    approximated = () if asked else (text,)
    return SensorMatch(
        sensor.name, "scene", None, names, names, (), (), measured.select(names), approximated=approximated
    )


def known_statistics(config: EncoderConfig) -> list[str]:
    """Names of the sensors that a checkpoint has statistics of."""
    return [n for n, t in config.sensors.items() if t.scaling is not None and t.scaling.mean is not None]


def _with_statistics(config: EncoderConfig, only: str | None) -> dict[str, TrainedSensor]:
    known = known_statistics(config)
    if only is not None and only not in known:
        raise ConfigError(f"the checkpoint has no statistics of {only}: {nearest(only, known)}")
    return {name: config.sensors[name] for name in known if only in (None, name)}


def _match(
    sensor: Sensor,
    how: ChosenBy,
    name: str,
    trained: TrainedSensor,
    pairs: dict[str, str],
    scaling: Scaling,
    maps: tuple[UnitMap, ...],
    approximated: tuple[str, ...],
) -> SensorMatch:
    absent = tuple(b for b in trained.bands if b not in pairs.values())
    if absent:
        approximated = (*approximated, f"without {listed(absent)}, which it learned together with these")
    left_out = tuple(b for b in sensor.band_names if b not in pairs)
    return SensorMatch(
        sensor.name, how, name, tuple(pairs), tuple(pairs.values()), left_out, absent, scaling, maps, approximated
    )


def _path(physical: Scaling, trained: TrainedSensor, platform: str) -> tuple[UnitMap, ...] | None:
    assert trained.scaling is not None  # _with_statistics
    try:
        return unit_path(physical.unit, trained.scaling.unit, platform)
    except ConfigError:
        return None


def _by_name(trained: TrainedSensor, sensor: Sensor) -> dict[str, str]:
    """The image's bands in trained order, each with the checkpoint's name of it."""
    own = {n.lower(): band.name for band in sensor.bands for n in (band.name, *band.aliases)}
    return {own[b.lower()]: b for b in trained.bands if b.lower() in own}


def _nearest(sensor: Sensor, trained: TrainedSensor) -> dict[str, str]:
    """Bands of the image and of the checkpoint that are each other's nearest, in the image's order."""
    optical = [band for band in sensor.bands if _has_colour(band)]
    if not optical or trained.platform == "sentinel-1":
        return {}
    own, theirs = np.array([b.wavelength_um for b in optical], float), np.array(trained.wavelength_um)
    apart = np.abs(own[:, None] - theirs)
    pairs = {}
    for i, band in enumerate(optical):
        j = int(apart[i].argmin())
        if int(apart[:, j].argmin()) == i and apart[i, j] <= NEAR * theirs[j]:
            pairs[band.name] = trained.bands[j]
    return pairs


def _has_colour(band: Band) -> bool:
    if band.kind != "optical" or band.wavelength_um is None:
        return False
    return band.fwhm_um is None or band.fwhm_um <= NARROW * band.wavelength_um


def _same_values(trained: TrainedSensor, pairs: dict[str, str], physical: Scaling) -> Scaling | None:
    """The checkpoint's statistics for the image's bands in the image's unit; None where values mean something else."""
    assert trained.scaling is not None  # _with_statistics
    theirs = replace(trained.scaling.select(list(pairs.values())), bands=tuple(pairs))
    if not pairs or theirs.unit == physical.unit:
        return theirs if pairs and physical.unit in ("reflectance", "uint8") else None
    if (physical.unit, theirs.unit, trained.platform) != ("reflectance", "uint8", "sentinel-2"):
        return None
    assert theirs.mean is not None  # _with_statistics
    assert theirs.std is not None
    white = satlas_white(list(pairs.values()))
    return replace(
        theirs,
        unit="reflectance",
        clip=tuple((0.0, w) for w in white),
        mean=tuple(m / 255 * w for m, w in zip(theirs.mean, white, strict=True)),
        std=tuple(s / 255 * w for s, w in zip(theirs.std, white, strict=True)),
    )


def _both(one: tuple[float, float] | None, other: tuple[float, float] | None) -> tuple[float, float] | None:
    """What two clips leave together."""
    if one is None or other is None:
        return one or other
    low, high = max(one[0], other[0]), min(one[1], other[1])
    return (low, high) if low < high else one
