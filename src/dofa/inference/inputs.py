"""From a scene's raw numbers to what the model is fed: whose statistics, in which unit, and where nothing is known."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError, DataError, nearest
from dofa.inference.chunks import Chunks
from dofa.inference.scene_statistics import measure, scene_statistics
from dofa.model.config import EncoderConfig
from dofa.model.heads import Head
from dofa.model.sensor_matching import SensorMatch, known_statistics, match_sensor, own_statistics
from dofa.pixels import Float, Scaling, convert_units, resolve_stats, unit_path
from dofa.scene.grid import Window
from dofa.sensors import Sensor

if TYPE_CHECKING:
    from dofa.scene.layers import Part
    from dofa.scene.scene import Scene

OWN = ("scene", "dataset")  # --stats: measured, on each scene or on all of a command
KEPT = 96 * 2**20  # bytes of decoded pixels that stay for the tiles to come: two rows of chunks of a swath


class OwnStatisticsWarning(UserWarning):
    """A sensor the checkpoint knows nothing of is normalised with its scenes' own statistics."""


class Inputs:
    """A scene and what normalises it.

    Args:
        scalings: one a part of the scene, with statistics; in another unit than the part's own where a unit map of
            `pixels` stands between. Their bands are those that are fed, in order.
        matches: how the bands and statistics were chosen, one a part where that was done here.

    Attributes:
        sensors: of the parts, with the bands that are fed.
        count: of bands.
    """

    def __init__(self, scene: "Scene", scalings: Sequence[Scaling], matches: Sequence[SensorMatch] = ()) -> None:
        self.scene = scene
        self.scalings = tuple(scalings)
        self.matches = tuple(matches)
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
        return self.normalise(parts, valid, out), valid

    def normalise(self, parts: Sequence[NDArray[Any]], valid: NDArray[np.bool_], out: Float | None = None) -> Float:
        """What the model is fed for pixels of the scene.

        Args:
            parts: raw numbers (C, h, w) of every part, all its bands, as `Scene.read` gives them.
            valid: (h, w), where there is a measurement.
            out: (C, h, w) float32 to write it to.

        Returns:
            (C, h, w) float32 of the bands that are fed, `out` where it is given.

        Raises:
            DataError: values that are not finite.
        """
        out = np.empty((self.count, *valid.shape), np.float32) if out is None else out
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
        return out


def resolve_inputs(
    scene: "Scene",
    config: EncoderConfig,
    *,
    stats: str | None = None,
    measured: Sequence[Scaling] | None = None,
    head: Head | None = None,
    force: bool = False,
    strict: bool = False,
) -> Inputs:
    """Decide which bands of a scene are fed and whose statistics normalise them.

    The head's come first, then what `stats` says, then the checkpoint's for this sensor, for another product of its
    platform or for the nearest trained bands (`dofa.model.sensor_matching`), and last the scene's own.

    Args:
        stats: None for that order; `scene` or `dataset` for the statistics `measured`; `checkpoint` for the encoder's
            or none, or the name of a sensor it knows, whose statistics are taken.
        measured: one a part of the scene, of this scene or of all that are run together; see `measure`.
        head: whose bands are fed, in its order, with its statistics.
        force: let `stats` win over a head.
        strict: statistics of other sensors, or the scene's own without `stats`, are an error.

    Raises:
        ConfigError: statistics that the checkpoint does not have, statistics beside a head without `force`, no way
            between two units, or a band that the head needs and the scene lacks; the cures are named.
    """
    if head is not None:
        return _with_head(scene, config, head, stats, measured, force)
    matches = []
    for number, part in enumerate(scene.parts):
        found = None if stats in OWN else _of_checkpoint(scene, config, part, stats)
        if found is None:
            measured = measure([scene], "scene")[0] if measured is None else measured
            assert measured is not None  # `scene` measures every part
            found = own_statistics(config, part.sensor, measured[number], stats in OWN)
        if strict and found.chosen_by in ("wavelength", "scene") and found.approximated:
            raise ConfigError(f"{scene.name}: {found.approximated[0]} (an error under --strict)", {"--stats": "scene"})
        matches.append(found)
    return Inputs(scene, [m.scaling for m in matches], matches)


def print_inputs(inputs: Sequence[Inputs]) -> None:
    """Two lines on the error stream for every way in which scenes are fed to the model.

    Args:
        inputs: of all scenes of a command.
    """
    alike: dict[tuple[str, str], list[str]] = {}
    for one in inputs:
        for match in one.matches:
            if not match.plain and match.chosen_by != "scene":  # that is a warning
                alike.setdefault(match.lines(), []).append(one.scene.name)
    for lines, names in alike.items():
        scenes = names[0] if len(names) == 1 else f"{len(names)} scenes"
        for line in lines:
            print(f"dofa: {scenes}: {line}", file=sys.stderr)


def warn_of_own_statistics(inputs: Sequence[Inputs]) -> None:
    """A warning for every sensor that takes the scenes' own statistics although nobody asked for it.

    Args:
        inputs: of all scenes of a call.
    """
    told = {
        text: one.scene.name for one in inputs for m in one.matches if m.chosen_by == "scene" for text in m.approximated
    }
    for text, name in told.items():
        warnings.warn(f"{name}: {text}", OwnStatisticsWarning, stacklevel=3)


def _of_checkpoint(scene: "Scene", config: EncoderConfig, part: "Part", stats: str | None) -> SensorMatch | None:
    """The checkpoint's statistics for a part of a scene; None where it has none and `stats` does not ask for them."""
    known = known_statistics(config)
    if stats is not None and stats not in ("checkpoint", *known):
        raise ConfigError(f"--stats {stats}: the checkpoint has no such statistics: {nearest(stats, [*known, *OWN])}")
    found = match_sensor(config, part.sensor, part.scaling, None if stats == "checkpoint" else stats)
    if found is None and stats is not None:
        raise ConfigError(
            f"{scene.name}: --stats {stats}: nothing the checkpoint knows ({', '.join(known) or 'no sensor'}) fits "
            f"{part.sensor.name} in {part.scaling.unit}: take the scene's own statistics, --stats scene",
            {"--stats": "scene"},
        )
    return found


def _with_head(
    scene: "Scene",
    config: EncoderConfig,
    head: Head,
    stats: str | None,
    measured: Sequence[Scaling] | None,
    force: bool,
) -> Inputs:
    """The bands of a head in its order, with its statistics unless others are forced on it."""
    part = scene.parts[0]
    sensor, physical = bands_for_head(scene, head)
    own, said = replace(head.scaling, bands=sensor.band_names), None
    if stats in OWN:
        said = (measured or scene_statistics([scene]))[0].select(sensor.band_names)
    elif stats is not None:
        found = _of_checkpoint(scene, config, replace(part, sensor=sensor, scaling=physical), stats)
        said = None if found is None else found.scaling
        if found is not None and found.left_out:
            raise ConfigError(
                f"{scene.name}: --stats {stats} lacks band {', '.join(found.left_out)}, which the head needs: leave "
                "--stats out",
                {"--stats": None},
            )
    chosen = own if said is None else said
    if chosen.unit != physical.unit:
        unit_path(physical.unit, chosen.unit, sensor.platform)  # refuses what cannot be mapped, before any work
        physical = Scaling.uniform(chosen.unit, physical.bands, physical_source=physical.physical_source)
    try:
        return Inputs(scene, [resolve_stats(physical, sensor.name, head=own, stats=said, force=force)])
    except ConfigError as error:
        raise ConfigError(f"{scene.name}: {error}", {"--stats": None}) from None


def bands_for_head(scene: "Scene", head: Head) -> tuple[Sensor, Scaling]:
    """A head's bands in a scene, in the head's order under the scene's names, and how they become physical values.

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
