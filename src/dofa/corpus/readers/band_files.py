"""Images whose bands lie in files of their own, of several sampling distances: one array on the finest grid.

Coarser bands are brought to the finest grid by repeating each number k × k times (nearest, k whole). Every number stays
one that was measured, in the file's type; means, deviations and nodata of a band stay what they are, and nothing is
averaged. Smooth interpolation would invent numbers between two measurements and smear the edge of missing ones.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from dofa.corpus.items import Bounds, Sample
from dofa.errors import DataError
from dofa.raster import gdal
from dofa.raster.masks import Header, Validity
from dofa.sensors import Sensor

PIXELS = "pixels"  # the frame of files without a reference system


@dataclass(frozen=True)
class Stack:
    """One image from several files.

    Attributes:
        image: (C, H, W) raw numbers, bands in the order of the files.
        valid: (H, W), False where a band lacks a measurement: by its file's nodata value, or by not being finite. Where
            that value is 0, all bands lack it together.
        bounds: (left, bottom, right, top) of the finest band in `frame`.
        frame: its CRS; PIXELS where it has none.
    """

    image: NDArray[Any]
    valid: NDArray[np.bool_]
    bounds: Bounds
    frame: str

    def cut(self, top: int, left: int, height: int, width: int) -> Sample:
        """A window of it; its validity is None where every pixel has a measurement.

        Args:
            top, left: first row and column, in pixels.
            height, width: of the window, in pixels.
        """
        rows, columns = slice(top, top + height), slice(left, left + width)
        valid = self.valid[rows, columns]
        return Sample(self.image[:, rows, columns], None if valid.all() else valid)


def read_stack(paths: Sequence[str | Path]) -> Stack:
    """Read single-band files as one image on the grid of the finest.

    Args:
        paths: one file a band.

    Raises:
        DataError: a file is missing or damaged, holds several bands or another type, shows other ground than the
            first, or its size is no whole part of the largest; the file is named.
    """
    with ExitStack() as opened, rasterio.Env(**gdal.OPTIONS):
        files = [opened.enter_context(_open(path)) for path in paths]
        finest = max(files, key=lambda file: int(file.height))
        bounds, frame = _footprint(finest)
        height, width, dtype = int(finest.height), int(finest.width), finest.dtypes[0]
        image = np.empty((len(files), height, width), dtype)
        valid = np.ones((height, width), bool)
        drawn: NDArray[np.bool_] | None = None
        for band, path, file in zip(image, paths, files, strict=True):
            times = height // int(file.height)
            if (int(file.height) * times, int(file.width) * times) != (height, width):
                raise DataError(
                    f"{path} has {file.height}×{file.width} pixels, no whole part of the {height}×{width} of the finest"
                )
            if file.dtypes[0] != dtype:
                raise DataError(f"{path} is of type {file.dtypes[0]}, the finest band of {dtype}")
            _check_ground(path, file, finest)
            try:
                raw = file.read(1)
            except RasterioError as error:
                raise DataError(f"{path}: truncated or damaged, cannot be decoded: {gdal.reason(error)}") from None
            repeat(raw, band)
            validity, mask = Validity(Header.of(file), (1,)), np.empty_like(valid)
            measured = validity.measured(raw[None], (1,))
            if not measured.all():
                repeat(measured, mask)
                valid &= mask
            here = validity.drawn(raw[None], (1,))
            if here is not None:
                repeat(here, mask)
                drawn = mask.copy() if drawn is None else drawn | mask
        if drawn is not None:
            valid &= drawn
    return Stack(image, valid, bounds, frame)


def footprint(path: str | Path) -> tuple[Bounds, str, tuple[int, int]]:
    """Bounds, frame and (height, width) of a file, by its header alone.

    Raises:
        DataError: it cannot be opened.
    """
    with rasterio.Env(**gdal.OPTIONS), _open(path) as file:
        return *_footprint(file), (int(file.height), int(file.width))


def subfolders(folder: str | Path, pattern: re.Pattern[str]) -> Iterator[str]:
    """Names of the folders in a folder that match, as the file system gives them; none where it is no folder.

    Args:
        folder: to look into.
        pattern: that the whole name has to match.
    """
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if pattern.fullmatch(entry.name) and entry.is_dir())
    except OSError:
        return


def part(bounds: Bounds, size: tuple[int, int], window: tuple[int, int, int, int]) -> Bounds:
    """Bounds of a window (top, left, height, width) of an image of `size` pixels, north up.

    Args:
        bounds: (west, south, east, north) of the image.
        size: (height, width) of the image.
        window: in pixels of the image.

    Returns:
        (west, south, east, north).
    """
    west, south, east, north = bounds
    top, left, height, width = window
    x, y = (east - west) / size[1], (north - south) / size[0]
    return west + left * x, north - (top + height) * y, west + (left + width) * x, north - top * y


def coarser(sensor: Sensor) -> str:
    """A note on the bands that are repeated onto the finest grid; empty where all have one sampling distance."""
    distances = {band.name: band.gsd_m or sensor.gsd_m for band in sensor.bands}
    finest = min(distances.values())
    lists = [
        f"{', '.join(n for n, d in distances.items() if d == gsd)} of {gsd:g} m"
        for gsd in sorted(set(distances.values()) - {finest})
    ]
    if not lists:
        return ""
    return f"bands {' and '.join(lists)} are repeated onto the grid of {finest:g} m (nearest): nothing is averaged"


def repeat(coarse: NDArray[Any], fine: NDArray[Any]) -> None:
    """Fill a (k·h, k·w) array with a (h, w) one, every number k × k times.

    Args:
        coarse: (h, w).
        fine: (k·h, k·w), written in place.
    """
    height, width = coarse.shape
    times = fine.shape[0] // height
    fine.reshape(height, times, width, times)[...] = coarse[:, None, :, None]


def _open(path: str | Path) -> Any:
    try:
        file = rasterio.open(path)
    except RasterioError as error:
        raise DataError(f"{path} cannot be opened: {gdal.reason(error)}") from None
    if file.count != 1:
        file.close()
        raise DataError(f"{path} holds {file.count} bands; one is expected in a file of one band")
    return file


def _footprint(file: Any) -> tuple[Bounds, str]:
    if file.crs is None:
        return (0.0, 0.0, float(file.width), float(file.height)), PIXELS
    left, bottom, right, top = file.bounds
    return (left, bottom, right, top), file.crs.to_string()


def _check_ground(path: str | Path, file: Any, finest: Any) -> None:
    """Refuse a band whose corner lies more than one of its own pixels from the finest band's.

    One pixel, since files are known whose corners are off by half of one (SSL4EO-S12).
    """
    if (file.crs is None) != (finest.crs is None) or (file.crs is not None and file.crs != finest.crs):
        raise DataError(f"{path} lies in {file.crs}, the finest band in {finest.crs}")
    own, other = file.transform, finest.transform
    if file.crs is not None and (abs(own.c - other.c) > abs(own.a) or abs(own.f - other.f) > abs(own.e)):
        raise DataError(
            f"{path} begins at {own.c:.6g}, {own.f:.6g}, the finest band at {other.c:.6g}, {other.f:.6g}: they show "
            "other ground"
        )
