"""What GDAL knows of a file, in the words of the rest of the package; its options are set here and nowhere else."""

import math
import os
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.io import DatasetReader
from rasterio.warp import transform, transform_bounds

from dofa.addresses import redact
from dofa.errors import DataError
from dofa.raster import gdal, remote, subdatasets
from dofa.raster.band_descriptions import Said
from dofa.raster.factors import FileNumbers
from dofa.raster.formats import check_virtual, drivers_for, why_unopened

# How GDAL behaves over a network; a variable of that name in the environment wins. docs/scenes-remote.md
HTTP: dict[str, str] = {
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    # No limit for a whole request, which would end a large one over a slow line: one that stands still is ended.
    "GDAL_HTTP_LOW_SPEED_TIME": "10",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "100",
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "0.5",  # seconds, doubled each time
}
OPTIONS: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",  # no listing of folders of 100,000 tiles; side files are still found
    # Truncated pictures are errors: the lost part of a JPEG would be grey, and of a PNG GDAL 3.10's short cut for whole
    # images gives back whatever lay in memory.
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "TRUE",
    "GDAL_VRT_ENABLE_PYTHON": "NO",  # a file's own code is never run
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
    # With more, GDAL 3.10 gives back zeros without an error where a server cuts off the tiles of an uncompressed file.
    "GDAL_NUM_THREADS": "1",
    # A twentieth of the memory otherwise: a reader of large scenes would grow with what it has read.
    "GDAL_CACHEMAX": 64 * 2**20,
    # A closed file is forgotten, or an answer that was cut off would be met again at each new attempt.
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/:/vsiaz/",
    **{key: os.environ.get(key, value) for key, value in HTTP.items()},
}
WITHOUT_SIDE_FILES = (".tif", ".tiff", ".jp2")
reason = remote.reason
ControlPoints: TypeAlias = tuple[str, tuple[tuple[float, ...], ...]]  # WKT; row, column, x, y, z of each point
SEMI_MAJOR_M, ECCENTRICITY_2 = 6_378_137.0, 0.00669437999014  # of WGS 84
SHEARED = 0.95  # area of a pixel, of the product of its sides: 18 degrees from a right angle
PROJECTED_APART = 0.01  # a projection's metres that are off by less count as true: UTM is off by .1 % within its zone

# Many pictures have no place; `Raster.crs` says so, without a warning for each file.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)


def options(path: str) -> dict[str, Any]:
    """GDAL's options for a file.

    Beside a GeoTIFF on a server nothing is looked for: it would be asked for some forty files that are not there, and a
    mask whose request is lost would be a mask that does not exist.
    """
    if remote.is_remote(path) and remote.suffix(path) in WITHOUT_SIDE_FILES:
        return {**OPTIONS, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
    return OPTIONS


def open_dataset(path: str) -> Any:
    """Open a file.

    Raises:
        DataError: it cannot be opened; one line with its name, the reason, and the cure where one is known.
    """

    def act() -> Any:
        with rasterio.Env(**options(path)):
            try:
                for named in far:  # opened here as images alone, before a virtual file opens them as whatever they are
                    DatasetReader(remote.gdal_name(named), driver=drivers_for(named), sharing=False).close()
                # rasterio.open takes one driver, its class any number of them
                dataset = DatasetReader(remote.gdal_name(path), driver=drivers_for(path), sharing=False)
                return subdatasets.open_only_image(dataset)
            except UnicodeDecodeError:  # of GDAL's own error, which names what stands in the file
                raise RasterioIOError("a name in it is no text in UTF-8") from None
            except CRSError as error:
                raise RasterioIOError(f"its reference system cannot be understood ({error})") from None

    far = check_virtual(path)
    local = Path(path)
    if local.exists() and not local.is_file() and not local.is_dir():
        raise DataError(f"{path} cannot be opened: it is a pipe or a device, no file")
    try:
        return remote.with_retries(path, act, lambda: None, lost=RasterioError)
    except RasterioError as error:
        why = why_unopened(path, remote.reason(error), driver_names())
    raise DataError(f"{redact(path)} cannot be opened: {why}")


def check_text(dataset: Any) -> None:
    """Refuse a file whose band names or tags are no text in UTF-8, which rasterio cannot give.

    Raises:
        DataError: with the cure.
    """
    try:
        for ask in ("descriptions", "units", "tags"):
            found = getattr(dataset, ask)
            if ask == "tags":
                for number in range(dataset.count + 1):
                    found(number)
                    found(number, ns="IMAGERY")
                found(ns="ENVI")
    except UnicodeDecodeError as error:
        raise DataError(
            f"its band names or tags are no text in UTF-8 ({error.object[:20]!r}): write them anew, such as with "
            "gdal_translate -if GTiff -nomd and gdal_edit.py -mo"
        ) from None


def driver_names() -> set[str]:
    """What formats this build of GDAL knows, by GDAL's short names."""
    with rasterio.Env() as env:
        return set(env.drivers())


def check_kind(dataset: Any) -> None:
    """Refuse files whose numbers are no measurements of bands.

    Raises:
        DataError: no bands, complex numbers, a colour table, inks or a bit mask.
    """
    if dataset.count == 0:
        found = subdatasets.images(dataset)
        if not found and (why := subdatasets.unreadable(dataset)):
            raise DataError(why_unopened(dataset.name, why, driver_names()))
        found = found or dataset.subdatasets
        some = ", ".join(found[:4]) + (", …" if len(found) > 4 else "")
        raise DataError(
            f"name one of its {len(found)} images ({some}), or those that are bands of one scene with --stack"
            if found
            else "it holds no bands"
        )
    if dataset.dtypes[0].startswith("complex"):
        raise DataError("its numbers are complex (single-look SAR): detect them to power or amplitude first")
    if dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "1":
        raise DataError("one bit a pixel is a mask, not a band of measurements")
    if dataset.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK":
        raise DataError(
            "it is marked as cyan, magenta, yellow, black, which would be turned into RGB: open GTIFF_RAW:PATH for the "
            "numbers in it (dofa pack five-billion-pixels does)"
        )
    if dataset.colorinterp[0].name == "palette":
        raise DataError("its numbers are indices of a colour table: expand it first (gdal_translate -expand rgb)")


def file_numbers(dataset: Any, numbers: Sequence[int]) -> FileNumbers:
    """What the file says of the numbers in these bands.

    Args:
        numbers: of the bands, from 1.
    """
    scales, offsets, units = dataset.scales, dataset.offsets, dataset.units
    return FileNumbers(
        scales=tuple(float(scales[n - 1]) for n in numbers),
        offsets=tuple(float(offsets[n - 1]) for n in numbers),
        units=tuple(units[n - 1] or "" for n in numbers),
        amplitude=_named_amplitude(dataset, numbers),
        tags={k.upper(): v for k, v in dataset.tags().items()},
        band_tags=tuple({k.upper(): v for k, v in dataset.tags(n).items()} for n in numbers),
        envi={k.lower(): v for k, v in dataset.tags(ns="ENVI").items()},
    )


def _named_amplitude(dataset: Any, numbers: Sequence[int]) -> bool:
    """Whether a band's description or the name of a file of one band says so: Amplitude_VV, as SNAP writes them."""
    descriptions = dataset.descriptions  # each access walks over all bands
    texts = [descriptions[n - 1] or "" for n in numbers] + [Path(dataset.name).stem] * (dataset.count == 1)
    return any(re.search(r"(?<![a-z])amplitude(?![a-z])", text, re.IGNORECASE) for text in texts)


def fits(value: float, dtype: np.dtype[Any]) -> bool:
    """Whether a number of this type can have the value.

    Args:
        value: such as a nodata value.
    """
    if dtype.kind == "f":
        return True
    info = np.iinfo(dtype)
    return bool(math.isfinite(value) and float(value).is_integer() and info.min <= value <= info.max)


def usable_crs(dataset: Any) -> tuple[Any, Said | None]:
    """The reference system that gives a file's pixels a place on Earth, None where there is none; and why not.

    A system without a transform says where nothing lies, a local one (LOCAL_CS, an engineering system) leads to no
    longitude and latitude, ground control points and rational polynomials are no grid.
    """
    crs, name = dataset.crs, os.path.basename(redact(dataset.name))
    if crs is not None and not (crs.is_projected or crs.is_geographic):
        known = re.match(r'\w+\["([^"]*)"', crs.to_wkt())
        called = f" ({known[1]})" if known and known[1] else ""
        cure = f"if you know which it is, write it into the file: gdal_edit.py -a_srs EPSG:… {name}"
        return None, ("no-place", f"its coordinate system{called} is local and leads to no place on Earth; {cure}")
    if not dataset.transform.is_identity:
        return crs, None
    if dataset.gcps[0]:
        text = (
            f"{len(dataset.gcps[0])} ground control points and no grid: what is made of it has no place, only a GeoTIFF"
        )
        return None, ("no-place", f"it has {text} keeps the points; warp it first (gdalwarp -tps {name} warped.tif)")
    if dataset.rpcs is not None:
        text = "it has rational polynomial coefficients (RPC) and no grid, so what is made of it has no place"
        return None, ("no-place", f"{text}: warp it to a grid first (gdalwarp -rpc {name} warped.tif)")
    if crs is None:
        return None, None
    cure = f"write its corners into the file: gdal_edit.py -a_ullr LEFT TOP RIGHT BOTTOM {name}"
    return None, ("no-place", f"its reference system {crs.to_string()[:60]} comes without a transform; {cure}")


def control_points(dataset: Any) -> ControlPoints | None:
    """The ground control points of a file without a grid, None where it has none."""
    points, crs = dataset.gcps
    if not points or crs is None or not dataset.transform.is_identity:
        return None
    return crs.to_wkt(), tuple((p.row, p.col, p.x, p.y, p.z or 0.0) for p in points)


def pixel_size_m(dataset: Any) -> tuple[float, float] | None:
    """Metres on the ground that a pixel at the centre measures across and down; None without a place.

    In a projection true to scale there, as UTM is, these are its own metres, to the last bit. Where they are off by
    more than PROJECTED_APART (Web Mercator away from the equator, a global cylindrical grid), and for degrees, the
    pixel is measured on the ellipsoid.

    Args:
        dataset: with `crs`, `transform`, `width` and `height`.
    """
    crs, affine = dataset.crs, dataset.transform
    if crs is None or not affine.determinant:
        return None
    own = _projected_size(dataset) if crs.is_projected else None
    found = _on_ellipsoid(crs, affine, dataset.width / 2, dataset.height / 2)
    if found is None or (
        own is not None and all(abs(f / o - 1) < PROJECTED_APART for f, o in zip(found, own, strict=True))
    ):
        return own
    return found


def _on_ellipsoid(crs: Any, affine: Any, col: float, row: float) -> tuple[float, float] | None:
    """Metres across and down of a pixel around a point in pixels, on the ellipsoid of WGS 84; None where it is none."""
    sides = _sides(crs, affine, col, row)
    across, down = (math.hypot(*side) for side in sides) if sides else (0.0, 0.0)
    return (across, down) if across > 0 and down > 0 else None


def _sides(crs: Any, affine: Any, col: float, row: float) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """East and north in metres of a pixel's way across and down, on the ellipsoid; None where it has no place."""
    ends = [at(affine, col + dx, row + dy) for dx, dy in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))]
    points = _lonlat(crs, *zip(*ends, strict=True))
    if not all(math.isfinite(lon) and abs(lat) <= 90 for lon, lat in points):
        return None
    west, east, north, south = ((math.radians(lon), math.radians(lat)) for lon, lat in points)

    def way(one: tuple[float, float], two: tuple[float, float]) -> tuple[float, float]:
        middle = (one[1] + two[1]) / 2
        curved = 1 - ECCENTRICITY_2 * math.sin(middle) ** 2
        along = math.remainder(two[0] - one[0], 2 * math.pi) * math.cos(middle) * SEMI_MAJOR_M / math.sqrt(curved)
        return along, (two[1] - one[1]) * SEMI_MAJOR_M * (1 - ECCENTRICITY_2) / curved**1.5

    return way(west, east), way(north, south)


def sheared(dataset: Any) -> bool:
    """Whether rows and columns are far from a right angle on the ground: a sinusoidal grid far from its meridian.

    Args:
        dataset: with `crs`, `transform`, `width` and `height`.
    """
    if dataset.crs is None or not dataset.transform.determinant:
        return False
    sides = _sides(dataset.crs, dataset.transform, dataset.width / 2, dataset.height / 2)
    return sides is not None and _area(sides) < SHEARED * math.hypot(*sides[0]) * math.hypot(*sides[1])


def _area(sides: tuple[tuple[float, float], tuple[float, float]]) -> float:
    """Square metres between two sides."""
    (x, y), (u, v) = sides
    return abs(x * v - y * u)


def gsd_m(dataset: Any) -> float | None:
    """Metres a pixel at the centre: the root of its area; None without a place.

    Args:
        dataset: with `crs`, `transform`, `width` and `height`.
    """
    size, affine = pixel_size_m(dataset), dataset.transform
    if size is None:
        return None
    side = math.sqrt(abs(affine.determinant))
    if dataset.crs.is_projected and size == _projected_size(dataset):
        return float(side * dataset.crs.linear_units_factor[1])
    sides = _sides(dataset.crs, affine, dataset.width / 2, dataset.height / 2)
    return math.sqrt(_area(sides)) if sides is not None else None


def _projected_size(dataset: Any) -> tuple[float, float]:
    """Across and down in metres of the projection."""
    affine, metre = dataset.transform, float(dataset.crs.linear_units_factor[1])
    return math.hypot(affine.a, affine.d) * metre, math.hypot(affine.b, affine.e) * metre


def at(affine: Any, column: float, row: float) -> tuple[float, float]:
    """Coordinates of a place in pixels (affine 3 deprecates the product, affine 2 knows no other).

    Args:
        affine: from pixels to coordinates.
        column, row: in pixels, with fractions.

    Returns:
        (x, y).
    """
    return (
        float(affine.a * column + affine.b * row + affine.c),
        float(affine.d * column + affine.e * row + affine.f),
    )


def point_lonlat(crs: Any, point: tuple[float, float]) -> tuple[float, float] | None:
    """(longitude, latitude) of a point; None where the reference system leads to none.

    Args:
        point: (x, y).
    """
    if crs is None:
        return None
    ((lon, lat),) = _lonlat(crs, [point[0]], [point[1]])
    return (lon, lat) if math.isfinite(lon) and math.isfinite(lat) else None


def _lonlat(crs: Any, xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """(longitude, latitude) of points, NaN where the reference system leads to none."""
    try:
        lons, lats = transform(crs, "EPSG:4326", xs, ys)
    except (CRSError, RasterioError, CPLE_BaseError):
        return [(math.nan, math.nan)] * len(xs)
    return [(float(lon), float(lat)) for lon, lat in zip(lons, lats, strict=True)]


def bounds_lonlat(crs: Any, affine: Any, width: int, height: int) -> tuple[float, float, float, float] | None:
    """(west, south, east, north) of all four corners, so that rotated grids are inside.

    Args:
        affine: from its pixels to coordinates.
        width, height: in pixels.
    """
    if crs is None:
        return None
    corners = [at(affine, *corner) for corner in ((0, 0), (width, 0), (0, height), (width, height))]
    xs, ys = zip(*corners, strict=True)
    try:
        west, south, east, north = transform_bounds(crs, "EPSG:4326", min(xs), min(ys), max(xs), max(ys))
    except (CRSError, RasterioError, CPLE_BaseError):
        return None
    return west, south, east, north


# -- A file's open GDAL datasets: one for each thread, opened again where a network lost an answer.


class OpenDatasets:
    """Datasets of one file; any thread may ask, each gets its own.

    Args:
        path: anything GDAL opens.
    """

    def __init__(self, path: str, name: str) -> None:
        self._path, self._name = path, name
        self._open: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()
        self._closed = False
        # A virtual file may be made of others that come over a network.
        try:
            parts = self.dataset().files if path.lower().endswith(".vrt") else ()
        except UnicodeDecodeError:
            raise DataError(f"{name}: the name of a file in it is no text in UTF-8") from None
        self._fetched = next((part for part in parts if remote.is_remote(part)), path)

    def dataset(self) -> Any:
        """This thread's. A forked child opens its own: a shared file position would mix up their reads.

        Raises:
            DataError: the file cannot be opened, or is closed.
        """
        key = (os.getpid(), threading.get_ident())
        with self._lock:
            if self._closed:
                raise DataError(f"{self._name}: the raster is closed")
            found = self._open.get(key)
        if found is None:
            found = gdal.open_dataset(self._path)
            with self._lock:
                self._open[key] = found
        return found

    def read(self, ask: Callable[[Any], NDArray[Any]], what: str) -> NDArray[Any]:
        """What this thread's dataset answers; over a network a new one is asked when an answer was lost.

        Args:
            what: they are, for messages.

        Raises:
            DataError: they cannot be decoded, or the network gave none.
        """

        def act() -> NDArray[Any]:
            dataset = self.dataset()
            with rasterio.Env(**gdal.options(self._path)):
                return ask(dataset)

        try:
            return remote.with_retries(self._fetched, act, self._forget, lost=RasterioError)
        except RasterioError as error:
            far = remote.is_remote(self._fetched)
            why = f"its {what} cannot be decoded: {remote.reason(error, 'the server sent' if far else 'the file has')}"
            if far:
                raise DataError(f"{redact(self._path)}: {why} (asked {1 + len(remote.WAITS_S)} times)") from None
            raise DataError(f"{self._name}: truncated or damaged, {why}: copy or download it again") from None

    def _forget(self) -> None:
        """Close this thread's dataset; the next look opens another."""
        with self._lock:
            found = self._open.pop((os.getpid(), threading.get_ident()), None)
        if found is not None:
            with rasterio.Env(**gdal.options(self._path)):
                found.close()

    def close(self) -> None:
        """Close all of this process; asking afterwards is an error."""
        with self._lock:
            self._closed = True
            closing, self._open = self._open, {}
        for (pid, _), dataset in closing.items():
            if pid == os.getpid():
                dataset.close()
