"""Simulated scenes as files: one GeoTIFF each, a folder a class."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dofa.errors import ConfigError
from dofa.sensors import Sensor
from dofa.simulate.landscape import landscape
from dofa.simulate.layouts import CLASSES
from dofa.simulate.observe import observe

WEST_M, NORTH_M = 200_000.0, 6_000_000.0  # in UTM zone 32 north; every landscape lies somewhere else
APART_M = 5_000.0


def write_corpus(
    folder: str | Path,
    sensor: Sensor,
    count: int,
    seed: int = 0,
    size: int = 64,
    gsd_m: float = 10.0,
    classes: Sequence[str] = CLASSES,
    progress: Callable[[], None] | None = None,
) -> list[Path]:
    """Write `count` scenes of every class as one sensor sees them.

    The same seed gives the same ground for every sensor, at the same place: the files are co-registered. Scene i of a
    class is landscape `seed + i`, so corpora whose seeds lie `count` or more apart share no landscape.

    Args:
        folder: gets a folder a class with `CLASS_SEED.tif` in it.
        sensor: who looks.
        count: scenes a class.
        seed: of the first scene.
        size: side in pixels.
        gsd_m: metres a pixel has.
        classes: which scene classes.
        progress: called after every file.

    Returns:
        the files, class by class. Band names are in their descriptions, `simulated` among their tags.

    Raises:
        ConfigError: rasterio is not installed, or a class is unknown.
    """
    try:
        import rasterio
    except ModuleNotFoundError:
        raise ConfigError('writing GeoTIFFs needs rasterio: pip install "dofa[scene]"') from None

    paths = []
    for k, kind in enumerate(classes):
        (Path(folder) / kind).mkdir(parents=True, exist_ok=True)
        for i in range(seed, seed + count):
            image = observe(landscape(kind, i, size, gsd_m), sensor)
            path = Path(folder) / kind / f"{kind}_{i:05d}.tif"
            corner = (WEST_M + APART_M * (i % 100), NORTH_M - APART_M * (i // 100 * len(CLASSES) + k))
            with rasterio.open(
                path,
                "w",
                driver="GTiff",
                width=size,
                height=size,
                count=len(image),
                dtype=image.dtype,
                crs="EPSG:32632",
                transform=rasterio.Affine(gsd_m, 0, corner[0], 0, -gsd_m, corner[1]),
                interleave="band",
            ) as file:
                file.write(image)
                file.descriptions = sensor.band_names
                file.update_tags(sensor=sensor.name, scene_class=kind, simulated="yes", seed=i)
            paths.append(path)
            if progress is not None:
                progress()
    return paths
