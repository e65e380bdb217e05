"""Simulated scenes as files: one GeoTIFF each, a folder a sensor and in it a folder a class."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError
from dofa.sensors import Sensor
from dofa.simulate.landscape import landscape
from dofa.simulate.layouts import CLASSES
from dofa.simulate.observe import observe

WEST_M, NORTH_M = 200_000.0, 6_000_000.0  # in UTM zone 32 north; every landscape lies somewhere else
APART_M = 5_000.0


def write_corpus(
    folder: str | Path,
    sensors: Sequence[Sensor],
    count: int,
    seed: int = 0,
    size: int = 64,
    gsd_m: float = 10.0,
    classes: Sequence[str] = CLASSES,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, list[Path]]:
    """Write `count` scenes of every class as several sensors see them: the same ground at the same place.

    Scene i of a class is landscape `seed + i`: corpora whose seeds lie `count` or more apart share no landscape, and
    a corpus of another sensor with the same seed is co-registered.

    Args:
        folder: gets SENSOR/CLASS/CLASS_SEED.tif.
        sensors: who looks.
        count: scenes a class.
        seed: of the first scene.
        size: side in pixels.
        gsd_m: metres a pixel has.
        classes: which scene classes.
        progress: called after every file.

    Returns:
        By sensor name, the files class by class. Band names are in their descriptions, `simulated` among their tags.

    Raises:
        ConfigError: rasterio is not installed, or a class is unknown.
    """
    try:
        import rasterio
    except ModuleNotFoundError:
        raise ConfigError('writing GeoTIFFs needs rasterio: pip install "dofa[scene]"') from None

    paths: dict[str, list[Path]] = {sensor.name: [] for sensor in sensors}
    for k, kind in enumerate(classes):
        for i in range(seed, seed + count):
            ground = landscape(kind, i, size, gsd_m)
            west, north = WEST_M + APART_M * (i % 100), NORTH_M - APART_M * (i // 100 * len(CLASSES) + k)
            for sensor in sensors:
                image = observe(ground, sensor)
                path = Path(folder) / sensor.name / kind / f"{kind}_{i:05d}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                with rasterio.open(
                    path,
                    "w",
                    driver="GTiff",
                    width=size,
                    height=size,
                    count=len(image),
                    dtype=image.dtype,
                    crs="EPSG:32632",
                    transform=rasterio.Affine(gsd_m, 0, west, 0, -gsd_m, north),
                    interleave="band",
                ) as file:
                    file.write(image)
                    file.descriptions = sensor.band_names
                    file.update_tags(sensor=sensor.name, scene_class=kind, simulated="yes", seed=i)
                paths[sensor.name].append(path)
                progress()
    return paths


def observe_scenes(sensor: Sensor, scenes: Sequence[tuple[str, int]], size: int = 64) -> NDArray[Any]:
    """Images of several scenes in memory, for processes that share the work.

    Args:
        sensor: who looks.
        scenes: (class, seed) each.
        size: side in pixels.

    Returns:
        (N, C, size, size) in the raw numbers of `observe`.
    """
    return np.stack([observe(landscape(kind, seed, size), sensor) for kind, seed in scenes])
