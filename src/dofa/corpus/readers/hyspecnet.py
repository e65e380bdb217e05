"""HySpecNet-11k in its published layout: a folder a scene, a patch, and one GeoTIFF of 224 bands of EnMAP L2A in it.

Planning lists folders and opens one file: to open all 11,483 as `dofa.raster` does, with a look at pixels, took 0.2 s
each, which is 40 minutes.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window

from dofa import sensors
from dofa.corpus.items import Item, Reading, Refusal, Sample
from dofa.corpus.readers.folders import check_tile, content, files_in, hint, windows
from dofa.errors import ConfigError, DataError
from dofa.raster import gdal
from dofa.sensors import Sensor

SUFFIX = "-SPECTRAL_IMAGE.TIF"
ORDER = "enmap"  # the sensor whose bands lie in the files, in its order
SIDE, COUNT = 128, 224
NODATA = -32768
# Rows and columns of a patch in its scene, first and last: …-Y01460273_X03110438
PATCH = re.compile(r"(?P<scene>.+)-Y(?P<top>\d{4})\d{4}_X(?P<left>\d{4})\d{4}" + re.escape(SUFFIX), re.IGNORECASE)


def read_hyspecnet(
    folder: str | Path, sensor: Sensor | str = "enmap-202", *, tile: int | None = None, stride: int | None = None
) -> Reading:
    """HySpecNet-11k as published: <tile>/<patch>/<patch>-SPECTRAL_IMAGE.TIF, patches of 128×128 pixels of 30 m.

    Validity comes from the nodata value of the bands kept. The QL_* layers are not used: clouds and haze are
    measurements, and the published corpus was selected for few of them. A place is one EnMAP scene (the patch's name
    without its position), so that the held-out places are those of a hard split.

    Args:
        folder: the corpus, its `patches` folder, or any part of it; patches without the tile's folder are found too.
        sensor: `enmap-202` leaves out the bands 127–141 and 161–167 of water vapour as the publications do; `enmap`
            leaves out those without one measurement in the first patch, which are the same in the corpus.
        tile: side in pixels to cut the patches of 128 into; None keeps them whole.
        stride: pixels from tile to tile, `tile` where absent.

    Raises:
        DataError: the folder holds no such file; what it holds is said.
        ConfigError: a sensor with other bands than EnMAP's, or settings that do not hold.
    """
    chosen = sensors.get(sensor) if isinstance(sensor, str) else sensor
    check_tile(tile, stride)
    side = tile or SIDE
    if side > SIDE:
        raise ConfigError(f"tile is {tile}; HySpecNet-11k has patches of {SIDE} pixels")
    numbers = [i + 1 for i in sensors.get(ORDER).index(chosen.band_names)]
    root = Path(folder)
    found = [path for path in files_in(root) if path.endswith(SUFFIX)]
    if not found:
        raise DataError(
            f"{root} is no HySpecNet-11k: expected <tile>/<patch>/<patch>{SUFFIX}, found {content(root)}"
            f"{hint(root, 'hyspecnet')}"
        )
    chosen, numbers, notes = _measured(chosen, numbers, found)
    items, refused = [], []
    for path in found:
        name = PATCH.fullmatch(os.path.basename(path))
        if name is None:
            refused.append(Refusal(path, "is not named <scene>-Y<rows>_X<columns>, which says what it shows"))
            continue
        for top, left in windows((SIDE, SIDE), (side, side), stride or side):
            y, x = int(name["top"]) + top, int(name["left"]) + left
            items.append(
                Item(
                    source=path if side == SIDE else f"{path}@{top},{left}",
                    place=name["scene"],
                    load=_Load(path, tuple(numbers), top, left, side),
                    bounds=(x, -(y + side), x + side, -y),
                    frame=f"pixels of {name['scene']}",
                    files=(path,),
                )
            )
    return Reading(chosen, items, (side, side), "int16", refused=tuple(refused), notes=notes)


@dataclass(frozen=True, slots=True)
class _Load:
    """Reads one window of one patch; what an `Item` calls."""

    path: str
    numbers: tuple[int, ...]
    top: int
    left: int
    side: int

    def __call__(self) -> Sample:
        name = os.path.basename(self.path)
        try:
            with rasterio.Env(**gdal.OPTIONS), rasterio.open(self.path) as file:
                if (file.count, file.height, file.width, file.dtypes[0]) != (COUNT, SIDE, SIDE, "int16"):
                    raise DataError(
                        f"{name} has {file.count} bands of {file.height}×{file.width} {file.dtypes[0]} numbers; "
                        f"{COUNT} of {SIDE}×{SIDE} int16 are expected"
                    )
                raw = file.read(list(self.numbers), window=Window(self.left, self.top, self.side, self.side))
                nodata = NODATA if file.nodata is None else file.nodata
        except RasterioError as error:
            raise DataError(f"{name} cannot be read, truncated or damaged: {gdal.reason(error)}") from None
        valid = np.asarray((raw != nodata).all(axis=0))
        return Sample(raw, None if valid.all() else valid)


def _measured(sensor: Sensor, numbers: list[int], found: list[str]) -> tuple[Sensor, list[int], tuple[str, ...]]:
    """Leave out the bands without one measurement in the first patch that can be read."""
    for path in found:
        try:
            raw = _Load(path, tuple(numbers), 0, 0, SIDE)().image
        except DataError:
            continue  # it will be refused when it is packed
        kept = np.flatnonzero((raw != NODATA).any(axis=(1, 2)))
        if not len(kept):
            continue
        names = [sensor.band_names[i] for i in kept]
        if len(kept) == len(numbers):
            return sensor, numbers, ()
        note = f"{len(kept)} of the {len(numbers)} bands of {sensor.name}: the others hold no measurement in {path}"
        return sensor.select(names), [numbers[i] for i in kept], (note,)
    return sensor, numbers, ()
