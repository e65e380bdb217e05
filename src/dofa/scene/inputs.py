"""From a scene's raw numbers to what the model is fed: whose statistics, in which unit, and where nothing is known."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError, DataError, nearest
from dofa.model.config import EncoderConfig
from dofa.model.heads import Head
from dofa.pixels import Float, Scaling, convert_units, resolve_stats, unit_map
from dofa.scene.chunks import Chunks
from dofa.scene.tiles import Window
from dofa.sensors import Sensor

if TYPE_CHECKING:
    from dofa.scene.scene import Scene

KEPT = 96 * 2**20  # bytes of decoded pixels that stay for the tiles to come: two rows of chunks of a swath


class Inputs:
    """A scene and what normalises it.

    Args:
        scene: open.
        scalings: one a part of the scene, with statistics; in another unit than the part's own where a unit map of
            `pixels` stands between. Their bands are those that are fed, in order.

    Attributes:
        sensors: of the parts, with the bands that are fed.
        count: of bands.
    """

    def __init__(self, scene: "Scene", scalings: Sequence[Scaling]) -> None:
        self.scene = scene
        self.scalings = tuple(scalings)
        self.chunks = Chunks(scene, KEPT)
        pairs = list(zip(scene.parts, self.scalings, strict=True))
        self.sensors = tuple(part.sensor.select(s.bands) for part, s in pairs)
        self._picked = [part.sensor.index(list(s.bands)) for part, s in pairs]
        self._physical = [part.scaling.select(s.bands) for part, s in pairs]
        self.count = sum(len(s.bands) for s in self.scalings)

    @property
    def wavelengths(self) -> Sensor | tuple[Sensor, ...]:
        """What tells the model its bands."""
        return self.sensors[0] if len(self.sensors) == 1 else self.sensors

    def normalised(self, window: Window, out: Float | None = None) -> tuple[Float, NDArray[np.bool_]]:
        """The model's input.

        Args:
            window: of pixels; beyond the border the last row and column are repeated, as the encoder itself pads.
            out: (C, h, w) float32 to write it to.

        Returns:
            (C, h, w) float32, 0 (the mean) where there is no measurement, `out` where it is given; and (h, w) where
            there is one.

        Raises:
            DataError: pixels that cannot be decoded, or values that are not finite.
        """
        top, left = max(window.row, 0), max(window.col, 0)
        bottom = min(window.row + window.height, self.scene.height)
        right = min(window.col + window.width, self.scene.width)
        over = (
            (top - window.row, window.row + window.height - bottom),
            (left - window.col, window.col + window.width - right),
        )
        if any(n for side in over for n in side):
            inside, seen = self.normalised(Window(top, left, bottom - top, right - left))
            padded = np.pad(inside, ((0, 0), *over), "edge")
            if out is not None:
                out[:] = padded
            return padded if out is None else out, np.pad(seen, over)
        parts, valid = self.chunks.read(window)
        out = np.empty((self.count, window.height, window.width), np.float32) if out is None else out
        first = 0
        for raw, picked, physical, scaling, sensor in zip(
            parts, self._picked, self._physical, self.scalings, self.sensors, strict=True
        ):
            into = out[first : first + len(picked)]
            first += len(picked)
            chosen = raw if picked == list(range(len(raw))) else raw[picked]
            try:
                if physical.unit == scaling.unit:
                    scaling.normalise(chosen, valid, into)
                else:
                    values = physical.physical(chosen)
                    values[:, ~valid] = 0
                    mapped = convert_units(values, sensor.band_names, physical.unit, scaling.unit, sensor.platform)
                    into[:] = scaling.normalise_physical(mapped, valid)
            except DataError as error:
                raise DataError(f"{self.scene.name}: {error}") from None
        return out, valid


def settle(
    scene: "Scene",
    config: EncoderConfig,
    *,
    stats: str | None = None,
    measured: Sequence[Scaling] | None = None,
    head: Head | None = None,
    force: bool = False,
) -> Inputs:
    """Decide whose statistics normalise a scene, by the precedence of `pixels.resolve_stats`.

    Args:
        scene: open.
        config: of the encoder.
        stats: None for the precedence; `scene` or `dataset` for the statistics `measured`; `checkpoint` for the
            encoder's own of this sensor, or the name of a sensor it knows, whose statistics are taken.
        measured: one a part of the scene, of this scene or of all that are run together.
        head: whose bands are fed, in its order, with its statistics.
        force: let `stats` win over a head.

    Raises:
        ConfigError: no statistics, statistics beside a head without `force`, no way between two units, or a band that
            the head needs and the scene lacks; the cures are named.
    """
    trained = {name: sensor.scaling for name, sensor in config.sensors.items()}
    scalings = []
    for number, part in enumerate(scene.parts):
        sensor, physical = part.sensor, part.scaling
        if head is not None:
            sensor, physical = bands_for_head(scene, head)
        said = _said(stats, sensor.name, trained, measured[number] if measured is not None else None)
        own = None if head is None else _renamed(head.scaling, sensor.band_names)
        chosen = said or own or trained.get(sensor.name)
        if chosen is not None and chosen.unit != physical.unit:
            unit_map(physical.unit, chosen.unit, sensor.platform)  # refuses what cannot be mapped, before any work
            physical = Scaling.uniform(chosen.unit, physical.bands, physical_source=physical.physical_source)
        try:
            scalings.append(resolve_stats(physical, sensor.name, head=own, stats=said, checkpoint=trained, force=force))
        except ConfigError as error:
            raise ConfigError(f"{scene.name}: {error}") from None
    return Inputs(scene, scalings)


def bands_for_head(scene: "Scene", head: Head) -> tuple[Sensor, Scaling]:
    """A head's bands in a scene, in the head's order under the scene's names, and how they become physical values.

    Args:
        scene: open, of one sensor.
        head: whose bands are wanted.

    Raises:
        ConfigError: several sensors, or a band that the head needs and the scene lacks.
    """
    if len(scene.parts) > 1:
        raise ConfigError(f"{scene.name}: a head reads one sensor, this scene stacks {len(scene.parts)}: open one")
    sensor = scene.parts[0].sensor
    lacking = [b.name for b in head.sensor.bands if not _has(sensor, b.name)]
    if lacking:
        raise ConfigError(
            f"{scene.name}: the head needs band {', '.join(lacking)} of {head.sensor.name}, the scene has "
            f"{', '.join(sensor.band_names)}: map a scene of the head's sensor"
        )
    sensor = sensor.select([sensor.bands[i].name for i in sensor.index(list(head.sensor.band_names))])
    return sensor, scene.parts[0].scaling.select(sensor.band_names)


def _has(sensor: Sensor, name: str) -> bool:
    try:
        sensor.index([name])
    except ConfigError:
        return False
    return True


def _renamed(scaling: Scaling, names: Sequence[str]) -> Scaling:
    """The same numbers under the scene's names of the same bands."""
    return replace(scaling, bands=tuple(names))


def _said(
    stats: str | None, sensor: str, trained: Mapping[str, Scaling | None], measured: Scaling | None
) -> Scaling | None:
    """What `--stats` says."""
    if stats is None:
        return None
    if stats in ("scene", "dataset"):
        return measured
    found = trained.get(sensor if stats == "checkpoint" else stats)
    if found is None or found.mean is None:
        known = [name for name, s in trained.items() if s is not None and s.mean is not None]
        raise ConfigError(
            f"--stats {stats}: the checkpoint has no statistics for "
            f"{sensor if stats == 'checkpoint' else stats}: {nearest(stats, [*known, 'scene', 'dataset'])}"
        )
    return replace(found, stats_source="checkpoint")
