"""Bands in files, brought to a scene's grid: the layers a scene is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dofa.errors import DataError
from dofa.pixels import Scaling
from dofa.raster import Raster, open_known, physical_values, remote
from dofa.raster.factors import FileNumbers
from dofa.raster.physical_values import ResolvedScaling
from dofa.scene.grid import Grid, Mask, Window, place, resample, span
from dofa.scene.metadata import basename
from dofa.sensors import Sensor

AT_ONCE = 64 * 2**20  # bytes of a file that are resampled together


@dataclass(frozen=True)
class BandFile:
    """Bands of one file, of which everything is known.

    Attributes:
        href: what GDAL opens.
        bands: names, those of the sensor.
        numbers: GDAL's number of each in the file.
        nodata: the number that stands for no measurement; None for what the file says.
        fill_values: numbers that stand for none either, although nobody declares them.
        alpha: numbers of the bands that are alpha masks; None for those that the file's header marks.
    """

    href: str
    bands: tuple[str, ...]
    numbers: tuple[int, ...] = (1,)
    nodata: float | None = None
    fill_values: tuple[float, ...] = ()
    alpha: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings; what is not said is left out."""
        out: dict[str, Any] = {"href": self.href, "bands": list(self.bands), "numbers": list(self.numbers)}
        out["nodata"] = self.nodata
        if self.fill_values:
            out["fill_values"] = list(self.fill_values)
        if self.alpha is not None:
            out["alpha"] = list(self.alpha)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "BandFile":
        """The inverse of `to_dict`."""
        lists = {key: tuple(data[key]) for key in ("bands", "numbers", "fill_values", "alpha") if key in data}
        return cls(data["href"], nodata=data["nodata"], **lists)


class Pixels(NamedTuple):
    """What a layer gives of a window.

    Attributes:
        values: (C, h, w) raw numbers.
        measured: (h, w), where no band by itself lacks a measurement.
        drawn: (h, w), where not all bands have a number that means no measurement only in all of them, such as 0; None
            where there is no such number.
    """

    values: NDArray[Any]
    measured: Mask
    drawn: Mask | None


class Layer:
    """An open file on a grid.

    Args:
        raster: open, with the bands to read.
        zero_is_missing: whether 0 in all its bands may be a border without measurements.

    Raises:
        DataError: the file lies elsewhere, or turned against the grid.
    """

    def __init__(self, raster: Raster, grid: Grid, zero_is_missing: bool) -> None:
        self.raster, self.zero_is_missing = raster, zero_is_missing
        name = basename(raster.path)
        try:
            self._place = place(grid, raster)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        if not self._place.overlaps(grid):
            raise DataError(f"{name} shows other ground than the other files: name files of one place")

    @property
    def aligned(self) -> bool:
        """Whether its pixels are the grid's."""
        return self._place.offset is not None

    def read(self, window: Window) -> Pixels:
        """A window of the grid, inside it; 0 and not measured where the file has no pixels."""
        offset = self._place.offset
        return self._resampled(window) if offset is None else self._shifted(window, *offset)

    def _shifted(self, window: Window, down: int, right: int) -> Pixels:
        top, left = window.row + down, window.col + right
        bottom, end = top + window.height, left + window.width
        first, begin = max(top, 0), max(left, 0)
        last, stop = min(bottom, self.raster.height), min(end, self.raster.width)
        if (first, begin, last, stop) == (top, left, bottom, end):
            return self._pixels(first, last, begin, stop)
        count = len(self.raster.numbers)
        values = np.zeros((count, window.height, window.width), self.raster.dtype)
        measured = np.zeros((window.height, window.width), bool)
        drawn = measured.copy() if self.zero_is_missing or self.raster.validity.by_all_bands else None
        if first < last and begin < stop:
            found = self._pixels(first, last, begin, stop)
            into = np.s_[first - top : last - top, begin - left : stop - left]
            values[:, *into] = found.values
            measured[into] = found.measured
            if drawn is not None and found.drawn is not None:
                drawn[into] = found.drawn
        return Pixels(values, measured, drawn)

    def _resampled(self, window: Window) -> Pixels:
        pixels = window.height * window.width * self._place.rows.scale * self._place.cols.scale
        if window.height > 1 and pixels * len(self.raster.numbers) * self.raster.dtype.itemsize > AT_ONCE:
            half = window.height // 2  # a coarser grid has many pixels of the file under few of its own
            upper = self._resampled(Window(window.row, window.col, half, window.width))
            lower = self._resampled(Window(window.row + half, window.col, window.height - half, window.width))
            drawn = None if upper.drawn is None or lower.drawn is None else np.concatenate([upper.drawn, lower.drawn])
            values = np.concatenate([upper.values, lower.values], axis=1)
            return Pixels(values, np.concatenate([upper.measured, lower.measured]), drawn)
        rows, row_weights = self._place.rows.taps(window.row, window.height)
        cols, col_weights = self._place.cols.taps(window.col, window.width)
        top, bottom = span(rows)
        left, right = span(cols)
        found = self._pixels(top, bottom, left, right)
        taps = (rows - top, row_weights), (cols - left, col_weights)
        if found.drawn is None:
            return Pixels(*resample(found.values, found.measured, *taps), None)
        # A border of zeros must not darken its neighbours; where it lies is told apart, for a whole part at once.
        values, measured = resample(found.values, found.measured & found.drawn, *taps)
        _, known = resample(found.values[:0], found.measured, *taps)
        return Pixels(values, known, measured)

    def _pixels(self, top: int, bottom: int, left: int, right: int) -> Pixels:
        values, measured, drawn = self.raster.read_apart(((top, bottom), (left, right)))
        if self.zero_is_missing:
            zero = (values != 0).any(axis=0)
            drawn = zero if drawn is None else drawn & zero
        return Pixels(values, measured, drawn)


@dataclass(frozen=True)
class Part:
    """One sensor's share of a scene.

    Attributes:
        sensor: its bands in the order they are read.
        scaling: from raw to physical values of these bands, without statistics.
        files: that hold them, in this order.
        zero_border: whether pixels that are 0 in all bands count as border, without measurement.
    """

    sensor: Sensor
    scaling: Scaling
    files: tuple[BandFile, ...]
    zero_border: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings: `from_dict` gives the same part back."""
        return {
            "sensor": self.sensor.to_dict(),
            "scaling": self.scaling.to_dict(),
            "files": [file.to_dict() for file in self.files],
            "zero_border": self.zero_border,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Part":
        """The inverse of `to_dict`."""
        files = tuple(BandFile.from_dict(file) for file in data["files"])
        scaling = Scaling.from_dict(data["scaling"])
        return cls(Sensor.from_dict(data["sensor"]), scaling, files, data["zero_border"])


@dataclass(frozen=True)
class Product:
    """What the metadata of a product say, which is all that is needed to open it.

    Attributes:
        name: of the product.
        part: its bands.
        classes: file and band number of its class bands by name, such as SCL.
        warnings: what was assumed, left out or looks wrong.
        settled: what of the numbers can still be doubted; None where the metadata are the producer's own.
        said: what the metadata say of the numbers, for those doubts.
    """

    name: str
    part: Part
    classes: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    settled: ResolvedScaling | None = None
    said: FileNumbers | None = None


class Stack:
    """The open files of one part."""

    def __init__(self, part: Part, rasters: Sequence[Raster], grid: Grid) -> None:
        self.part = part
        self.layers = [Layer(r, grid, part.zero_border) for r in rasters]
        self.dtype = np.result_type(*(r.dtype for r in rasters))
        order = [name for file in part.files for name in file.bands]
        self._order = [order.index(name) for name in part.sensor.band_names]
        # 0 is no number of a product whose offset makes it a reflectance far below 0: one band without it is enough.
        alone = part.scaling.unit == "reflectance" and min(part.scaling.offset) < physical_values.NEGATIVE
        self._join = np.logical_and if alone else np.logical_or
        self._plain = self._order == list(range(len(order)))

    def read(self, window: Window) -> tuple[NDArray[Any], Mask]:
        """(C, h, w) raw numbers in one type, and (h, w) validity, of a window inside the grid."""
        found = [layer.read(window) for layer in self.layers]
        valid = found[0].measured if len(found) == 1 else np.logical_and.reduce([one.measured for one in found])
        drawn = [one.drawn for one in found if one.drawn is not None]
        if drawn:
            valid = valid & self._join.reduce(drawn)
        if len(found) == 1 and self._plain:
            return found[0].values, valid
        bands = [band for one in found for band in one.values]
        out = np.empty((len(bands), *valid.shape), self.dtype)
        for into, i in enumerate(self._order):
            out[into] = bands[i]
        return out, valid


def open_files(part: Part) -> list[Raster]:
    """Its files, by their headers alone.

    Raises:
        DataError: one cannot be read.
    """
    opened: list[Raster] = []
    try:
        for file in part.files:
            sensor, scaling = part.sensor.select(file.bands), part.scaling.select(file.bands)
            told: dict[str, Any] = {"nodata": file.nodata, "fill_values": file.fill_values, "alpha": file.alpha}
            opened.append(open_known(file.href, sensor, scaling, file.numbers, **told))
    except DataError:
        for raster in opened:
            raster.close()
        raise
    return opened


def file_identity(raster: Raster) -> list[list[Any]]:
    """What tells whether a file changed: of each file it consists of the path, the size and the time of change."""
    out: list[list[Any]] = []
    for name in raster.files:
        path = Path(name)
        if path.exists():
            told = path.stat()
            out.append([str(path.resolve()), told.st_size, told.st_mtime_ns])
        else:
            out.append([name, remote.version(name)])
    return out
