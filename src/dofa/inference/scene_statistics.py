"""Mean and deviation of scenes, for sensors that a checkpoint does not know (`--stats scene`, `--stats dataset`)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.errors import DataError
from dofa.inference.chunks import chunk_side
from dofa.model.config import EncoderConfig
from dofa.model.sensor_matching import match_sensor
from dofa.pixels import RunningStats, Scaling
from dofa.raster import nodata
from dofa.scene.grid import Window
from dofa.scene.scene import Scene

SAMPLE_PIXELS = 2**23  # of all scenes together: 128 windows of 256 × 256
AT_ONCE = 2**21  # values counted at a time: 16 MB as float64


def measure(
    scenes: Sequence[Scene], stats: str | None, config: EncoderConfig | None = None
) -> list[list[Scaling] | None]:
    """Statistics of scenes where they are asked for, or where a checkpoint has none that fit.

    Args:
        stats: `scene` for each scene's, `dataset` for those of all together.
        config: of an encoder, to measure where `stats` is None and it has no statistics for a scene; scenes of the same
            bands are then measured together, so that one run feeds all of them alike.

    Returns:
        For each scene one scaling a part, None where nothing had to be measured.

    Raises:
        DataError: as `scene_statistics`.
    """
    if stats == "scene":
        return [scene_statistics([scene]) for scene in scenes]
    if stats == "dataset":
        return [scene_statistics(scenes)] * len(scenes)
    if stats is not None or config is None:
        return [None] * len(scenes)
    alike: dict[tuple[tuple[str, str, tuple[str, ...]], ...], list[Scene]] = {}
    for scene in scenes:
        if any(match_sensor(config, part.sensor, part.scaling) is None for part in scene.parts):
            alike.setdefault(_bands(scene), []).append(scene)
    measured = {key: scene_statistics(together) for key, together in alike.items()}
    return [measured.get(_bands(scene)) for scene in scenes]


def _bands(scene: Scene) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """What scenes whose statistics can be shared have in common."""
    return tuple((part.sensor.name, part.scaling.unit, tuple(sorted(part.sensor.band_names))) for part in scene.parts)


def scene_statistics(scenes: Sequence[Scene], pixels: int = SAMPLE_PIXELS) -> list[Scaling]:
    """Statistics of the valid pixels of scenes, in physical values.

    Scenes with more pixels than that are sampled: whole windows of them, in an order that is always the same, until
    enough valid pixels were met. Each scene gives a share of the sample by its size.

    Args:
        scenes: of the same sensors and bands; one for its own statistics, all of a call for those of the data set.
        pixels: valid pixels to look at; a window more at most, for each scene.

    Returns:
        For each part of the first scene its scaling with mean and std, source `scene`.

    Raises:
        DataError: a scene without a valid pixel, or scenes of different bands; it is named.
    """
    first = scenes[0]
    names = [part.sensor.band_names for part in first.parts]
    totals = [RunningStats(bands) for bands in names]
    area = sum(scene.height * scene.width for scene in scenes)
    for scene in scenes:
        _refuse_other_bands(scene, first)
        for total, one in zip(totals, _gather(scene, names, pixels * scene.height * scene.width / area), strict=True):
            total.merge(one)
    return [
        part.scaling.with_stats(total.mean.tolist(), total.std.tolist(), "scene")
        for part, total in zip(first.parts, totals, strict=True)
    ]


def _refuse_other_bands(scene: Scene, first: Scene) -> None:
    """Statistics of several scenes are those of the same bands in the same unit."""
    told = [_bands(one) for one in (scene, first)]
    if told[0] != told[1]:
        said = [" + ".join(f"{name} in {unit} ({', '.join(bands[:13])})" for name, unit, bands in one) for one in told]
        raise DataError(
            f"{scene.name} has {said[0]}, {first.name} has {said[1]}: scenes of one data set have the same bands; "
            "pass --stats scene, or open them apart"
        )


def _gather(scene: Scene, names: Sequence[tuple[str, ...]], pixels: float) -> list[RunningStats]:
    """Statistics of one scene's parts, their bands in the order of `names`."""
    stats = [RunningStats(bands) for bands in names]
    picked = [part.sensor.index(bands) for part, bands in zip(scene.parts, names, strict=True)]
    scalings = [part.scaling.select(bands) for part, bands in zip(scene.parts, names, strict=True)]
    for window in _windows(scene):
        parts, valid = scene.read(window)
        _refuse_fill(scene, parts, valid)
        for raw, bands, scaling, stat in zip(parts, picked, scalings, stats, strict=True):
            rows = max(1, AT_ONCE // (len(bands) * window.width))
            for top in range(0, window.height, rows):
                strip = slice(top, top + rows)
                stat.update(scaling.physical(raw[bands, strip]), valid[strip])
        if stats[0].count >= pixels:
            break
    if not stats[0].count:
        raise DataError(
            f"{scene.name} has no valid pixel to take statistics from: look at its nodata value and its mask"
        )
    return stats


def _refuse_fill(scene: Scene, parts: Sequence[NDArray[Any]], valid: NDArray[np.bool_]) -> None:
    """Statistics are not taken of fill values that nobody declared and that lay between the windows seen on opening."""
    for part, raw in zip(scene.parts, parts, strict=True):
        told = any(file.nodata is not None for file in part.files)
        if told or not nodata.may_hold(raw):
            continue
        good = np.broadcast_to(valid.ravel(), (len(raw), valid.size))
        for found in nodata.find_fill(raw.reshape(len(raw), -1), good):
            raise DataError(f"{scene.name}: in one of its windows {found.seen}: pass --nodata {found.text}")


def _windows(scene: Scene) -> Iterator[Window]:
    """All windows of a scene, aligned with its file's blocks, in an order without pattern that is always the same."""
    rows, cols = chunk_side(scene)
    down, across = -(-scene.height // rows), -(-scene.width // cols)
    for place in np.random.default_rng(0).permutation(down * across).tolist():
        row, col = place // across * rows, place % across * cols
        yield Window(row, col, min(rows, scene.height - row), min(cols, scene.width - col))
