"""Places that people name, by longitude and latitude or by row and column, and where they lie in a scene."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform

from dofa.errors import ConfigError, DataError
from dofa.raster import gdal
from dofa.scene.scene import Scene


class Pixel(NamedTuple):
    """A pixel of a scene."""

    row: int
    col: int


class Ground(NamedTuple):
    """Metres that a pixel measures."""

    across: float
    down: float


def pixels(scene: Scene, at: Sequence[str] = (), pixel: Sequence[str] = ()) -> list[Pixel]:
    """The pixels that a command line names.

    Args:
        scene: they lie in.
        at: LON,LAT in degrees each.
        pixel: ROW,COL each, counted from 0 at the top left.

    Raises:
        ConfigError: words that are no two numbers.
        DataError: a place outside the scene, or coordinates for a scene without a place; its bounds are said.
    """
    named = [pixel_at(scene, *_two(text, "--at", "LON,LAT in degrees, such as 13.07,52.39")) for text in at]
    for text in pixel:
        row, col = _two(text, "--pixel", "ROW,COL, such as 120,340")
        if not (row.is_integer() and col.is_integer()):
            raise ConfigError(f"--pixel {text.strip()}: rows and columns are whole numbers, counted from 0")
        if not (0 <= row < scene.height and 0 <= col < scene.width):
            raise DataError(f"{scene.name}: row {row:g}, column {col:g} lies outside: {_size(scene)}")
        named.append(Pixel(int(row), int(col)))
    return named


def pixel_at(scene: Scene, lon: float, lat: float) -> Pixel:
    """The pixel at a place.

    Args:
        lon: degrees, east is positive.
        lat: degrees, north is positive.

    Raises:
        DataError: the scene does not hold it, or has no place; its bounds are said.
    """
    if scene.crs is None:
        raise DataError(f"{scene.name} has no reference system: name the pixel with --pixel ROW,COL ({_size(scene)})")
    found = _pixel(scene, lon, lat)
    if found is not None:
        return found
    bounds = gdal.bounds_lonlat(scene.crs, scene.transform, scene.width, scene.height)
    extent = (
        ""
        if bounds is None
        else "lon {:.5f} to {:.5f}, lat {:.5f} to {:.5f}".format(*(bounds[i] for i in (0, 2, 1, 3)))
    )
    hint = "; LON comes before LAT: exchange them" if _pixel(scene, lat, lon) is not None else ""
    raise DataError(f"{scene.name}: lon {lon:g}, lat {lat:g} lies outside the scene ({extent}){hint}")


def lonlat(scene: Scene, row: float, col: float) -> tuple[float, float] | None:
    """(longitude, latitude) of a point counted in pixels from the scene's corner; None without a place.

    Args:
        scene: with or without a place.
        row, col: in pixels, with fractions.
    """
    return gdal.point_lonlat(scene.crs, gdal.at(scene.transform, col, row))


def ground(scene: Scene) -> Ground | None:
    """Metres a pixel measures at the scene's centre; None without a place."""
    size = gdal.pixel_size_m(scene)
    return None if size is None else Ground(*size)


def _pixel(scene: Scene, lon: float, lat: float) -> Pixel | None:
    try:
        (x,), (y,) = transform("EPSG:4326", scene.crs, [lon], [lat])
    except (CRSError, RasterioError, CPLE_BaseError):  # far from where the projection holds
        return None
    if not (math.isfinite(x) and math.isfinite(y)):
        return None
    col, row = gdal.at(~scene.transform, x, y)
    inside = 0 <= row < scene.height and 0 <= col < scene.width
    return Pixel(int(row), int(col)) if inside else None


def _size(scene: Scene) -> str:
    return f"rows 0 to {scene.height - 1}, columns 0 to {scene.width - 1}"


def _two(text: str, option: str, form: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text.strip()!r}: it is {form}") from None
    if not (math.isfinite(first) and math.isfinite(second)):
        raise ConfigError(f"{option} {text.strip()!r}: it is {form}")
    return first, second
