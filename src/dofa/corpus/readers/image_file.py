"""One image file as readers need it: its header at once, its pixels when asked, whatever the format."""

import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.corpus.items import Bounds
from dofa.errors import DataError
from dofa.pixels import Scaling
from dofa.raster import Raster, open_raster, physical_values
from dofa.raster.factors import FileNumbers, UserNumbers
from dofa.raster.masks import Header, Validity
from dofa.sensors import Sensor

Window = tuple[int, int, int, int]
SAMPLED = 64  # images of an archive whose values are looked at where nobody says the factor of its numbers
UNREADABLE = (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, ValueError)
_thread = threading.local()  # .latest: the raster that this thread read last, kept open for its next tile


class ImageFile(ABC):
    """A file with one image or several of one shape.

    Attributes:
        path: of the file.
        bands: it holds, in the sensor's order.
        size: (height, width) of its images in pixels.
        count: of images.
        dtype: of the raw numbers.
        scaling: from raw to physical, without statistics.
        centre_lonlat: degrees; None where it is not known.
        frame: what `bounds` are measured in.
        warnings: what was assumed in opening it.
        places: of each image, where the file says it.
        labels: class of each image, where the file says it.
    """

    path: str
    bands: tuple[str, ...]
    size: tuple[int, int]
    count: int = 1
    dtype: np.dtype[Any]
    scaling: Scaling
    centre_lonlat: tuple[float, float] | None = None
    frame: str = "pixels"
    warnings: Sequence[str] = ()
    places: Sequence[str] = ()
    labels: Sequence[int] = ()

    @abstractmethod
    def read(self, index: int, window: Window, bands: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """(C, h, w) raw numbers of the named bands and (h, w) validity of a window (top, left, h, w).

        Args:
            index: of the image in the file.
            window: in pixels.
            bands: names, in the order wanted.

        Raises:
            DataError: the file cannot be read.
        """

    def bounds(self, top: int, left: int, height: int, width: int) -> Bounds | None:
        """(left, bottom, right, top) of a window in `frame`; None where images of one file have no common frame.

        Args:
            top, left: first row and column, in pixels.
            height, width: of the window, in pixels.
        """
        return None if self.count > 1 else (left, top, left + width, top + height)


class RasterFile(ImageFile):
    """Anything GDAL opens."""

    def __init__(
        self,
        path: str,
        sensor: Sensor,
        bands: Sequence[str | None] | None,
        numbers: UserNumbers,
        nodata: float | None,
    ) -> None:
        self.path = path
        self._opener: Callable[[], Raster] = partial(
            open_raster,
            path,
            sensor,
            bands,
            scaling=numbers.scaling,
            dn_offset=numbers.dn_offset,
            dn_scale=numbers.dn_scale,
            unit=numbers.unit,
            nodata=nodata,
        )
        with self._open() as raster:
            found = raster.sensor.band_names
            self.bands = tuple(b for b in sensor.band_names if b in found)
            self.size = (raster.height, raster.width)
            self.dtype = np.dtype(raster.dtype)
            self.scaling = raster.scaling
            self.warnings = tuple(raster.warnings)
            self.centre_lonlat = raster.centre_lonlat
            if raster.crs is not None:
                self.frame = raster.crs.to_string()
            self._transform: Any = raster.transform if raster.crs is not None else None
            if 0 in raster.fill_values:
                text = "a corner is 0 in every band: such pixels count as not measured"
                self.warnings += (f"zero-border: {path}: {text}",)

    def _open(self) -> Raster:
        raster = self._opener()
        raster.leave_out_zero_border()
        return raster

    def read(self, index: int, window: Window, bands: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """See `ImageFile.read`."""
        top, left, height, width = window
        file, raster = getattr(_thread, "latest", (None, None))
        if file is not self or raster is None:
            if raster is not None:
                raster.close()
            raster = self._open()
            _thread.latest = (self, raster)
        return raster.read(((top, top + height), (left, left + width)), bands)

    def bounds(self, top: int, left: int, height: int, width: int) -> Bounds | None:
        """See `ImageFile.bounds`."""
        if self._transform is None:
            return super().bounds(top, left, height, width)
        t = self._transform  # its product operator changed name between versions of affine
        corners = [(x, y) for x in (left, left + width) for y in (top, top + height)]
        xs = [t.a * x + t.b * y + t.c for x, y in corners]
        ys = [t.d * x + t.e * y + t.f for x, y in corners]
        return min(xs), min(ys), max(xs), max(ys)


class Archives:
    """Arrays of the last two NumPy archives read, shared by all threads: archives are read in order, and whole."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, NDArray[Any]] = OrderedDict()

    def images(self, path: str) -> NDArray[Any]:
        """The array `x` of an archive.

        Raises:
            DataError: it cannot be read.
        """
        with self._lock:
            if path not in self._kept:
                while len(self._kept) > 1:
                    self._kept.popitem(last=False)
                try:
                    with np.load(path, allow_pickle=False) as archive:
                        self._kept[path] = archive["x"]
                except UNREADABLE as error:
                    raise _unreadable(path, error) from None
            return self._kept[path]


class ArrayFile(ImageFile):
    """A NumPy archive: `x`, and perhaps `bands`, `place` and `label`."""

    def __init__(
        self,
        path: str,
        sensor: Sensor,
        bands: Sequence[str | None] | None,
        numbers: UserNumbers,
        nodata: float | None,
        archives: Archives,
    ) -> None:
        self.path = path
        self._nodata = nodata
        self._archives = archives
        try:
            with np.load(path, allow_pickle=False) as archive:
                names = set(archive.files)
                own = [str(b) for b in archive["bands"]] if "bands" in names else None
                self.places = [str(p) for p in archive["place"]] if "place" in names else ()
                self.labels = [int(v) for v in archive["label"]] if "label" in names else ()
            shape, self.dtype = _header(path) if "x" in names else ((), np.dtype(float))
        except UNREADABLE as error:
            raise _unreadable(path, error) from None
        if "x" not in names:
            raise DataError(f"{path} holds {', '.join(sorted(names)) or 'nothing'}; images are expected under x")
        if self.dtype.kind not in "uif":
            raise DataError(f"{path}: x is of type {self.dtype}, not of numbers")
        if len(shape) not in (3, 4):
            raise DataError(f"x has shape {shape}; (C, H, W) or (N, C, H, W) is expected")
        self.count = shape[0] if len(shape) == 4 else 1
        channels, *size = shape[-3:]
        self.size = (size[0], size[1])
        for what, given in (("place", self.places), ("label", self.labels)):
            if given and len(given) != self.count:
                raise DataError(f"{what} has {len(given)} entries for {self.count} images")
        names_in_order: Sequence[str | None] = bands or own or sensor.band_names
        if len(names_in_order) != channels:
            raise DataError(f"x has {channels} bands, {len(names_in_order)} are named or are those of {sensor.name}")
        self._channel = {sensor.band(b).name: n for n, b in enumerate(names_in_order) if b is not None}
        self.bands = tuple(b for b in sensor.band_names if b in self._channel)
        if numbers.scaling is None and sensor.scaling is None:
            raise DataError(f"sensor {sensor.name} has no default scaling: give one")
        taken, n = sensor.select(self.bands), len(self.bands)
        nothing = FileNumbers((1.0,) * n, (0.0,) * n, ("",) * n, {}, ({},) * n, {})
        settled = physical_values.resolve_scaling(taken, nothing, self.dtype.name, numbers, path)
        if settled.scale_open:
            some = archives.images(path).reshape(-1, channels, *size)[:: max(1, self.count // SAMPLED)]
            some = some[:, [self._channel[b] for b in self.bands]]
            settled = physical_values.infer_scaling(
                settled, taken, nothing, some if nodata is None else some[some != nodata]
            )
        self.scaling = settled.scaling
        self.warnings = tuple(f"{title}: {path}: {text}" for title, text in settled.assumptions)

    def read(self, index: int, window: Window, bands: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """See `ImageFile.read`."""
        top, left, height, width = window
        images = self._archives.images(self.path)
        image = images[index] if images.ndim == 4 else images
        raw = image[[self._channel[b] for b in bands], top : top + height, left : left + width]
        if self._nodata is None:
            return raw, None
        validity = Validity(Header.plain(raw.dtype, len(raw)), range(1, len(raw) + 1), self._nodata)
        return raw, validity.by_value(raw)


def harmonise(raw: NDArray[Any], own: Scaling, common: Scaling) -> NDArray[Any]:
    """Raw numbers of a file as numbers that mean the same under the store's scaling.

    Providers mix processing baselines: the same reflectance is 1000 higher in one Sentinel-2 file than in the next. A
    shift by whole numbers is exact and done; anything else is refused, since it would round.

    Args:
        raw: (C, h, w).

    Raises:
        DataError: the file's numbers are in another unit or of another scale.
    """
    if (own.unit, own.scale, own.offset) == (common.unit, common.scale, common.offset):
        return raw
    if own.unit != common.unit or not np.allclose(own.scale, common.scale, rtol=1e-6, atol=0):
        raise DataError(
            f"its numbers are {own.unit} × {own.scale[0]:g}, those of the others {common.unit} × {common.scale[0]:g}: "
            "pack it into a store of its own"
        )
    shift = (np.array(own.offset) - np.array(common.offset)) / np.array(common.scale)
    if raw.dtype.kind == "f":
        return np.asarray(raw + shift[:, None, None], raw.dtype)
    if np.abs(shift - shift.round()).max() > 1e-3:
        raise DataError(f"its offset differs from the others' by {shift[0]:g}, no whole number: pack it on its own")
    info = np.iinfo(raw.dtype)
    moved = raw.astype(np.int64) + shift.round().astype(np.int64)[:, None, None]
    return np.asarray(moved.clip(info.min, info.max), raw.dtype)


def _header(path: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of `x` without reading it."""
    with zipfile.ZipFile(path) as archive, archive.open("x.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, dtype


def _unreadable(path: str, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read, truncated or damaged: {' '.join(str(error).split())}")
