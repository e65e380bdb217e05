"""One grid for files of several resolutions, by arithmetic without windows: any window equals its part of the whole.

Files share a reference system and its axes, so rows and columns are resampled apart. A pixel is the mean of a file's
pixels weighted by a triangle over its centre: bilinear towards a finer grid, the same triangle widened to the new pixel
towards a coarser one. Weights depend on the pixel's place in the whole and numbers are added one by one in a fixed
order, which no library of windowed warping promises.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.transform import Affine

from dofa.errors import DataError
from dofa.raster import gdal


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels or cells.

    Attributes:
        row: of its upper edge; negative above the scene.
        col: of its left edge.
        height: rows.
        width: columns.
    """

    row: int
    col: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """Its rows, for an array that begins at the same origin."""
        return slice(self.row, self.row + self.height)

    @property
    def cols(self) -> slice:
        """Its columns, for an array that begins at the same origin."""
        return slice(self.col, self.col + self.width)


NOT_SQUARE = 0.02  # difference of a pixel's sides on the ground that is said and made even by --gsd
FINEST = 100  # times finer than its own pixels --gsd may make a scene: beyond it only memory is spent
ALIGNED = 0.01  # of a pixel: closer corners are one grid, written with rounded numbers
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Grid:
    """Where pixels lie.

    Attributes:
        crs: coordinate reference system, or None.
        transform: affine, from (column, row) to coordinates.
        width: columns.
        height: rows.
    """

    crs: Any
    transform: Affine
    width: int
    height: int

    @property
    def gsd_m(self) -> float | None:
        """Metres a pixel at the centre, None without a place."""
        return gdal.gsd_m(self)

    @property
    def pixel_size_m(self) -> tuple[float, float] | None:
        """Metres on the ground across and down a pixel at the centre, None without a place."""
        return gdal.pixel_size_m(self)

    @property
    def square(self) -> bool:
        """Whether pixels are as wide as they are high on the ground, within 2 %; True without a place, or sheared."""
        size = self.pixel_size_m
        return size is None or gdal.sheared(self) or abs(size[0] / size[1] - 1) < NOT_SQUARE

    def at_gsd(self, gsd_m: float) -> "Grid":
        """The same ground in square pixels of another size, from the same corner.

        Args:
            gsd_m: metres a pixel at the centre.

        Raises:
            DataError: not above 0, or without a place, where there are no metres.
        """
        if not gsd_m > 0:
            raise DataError(f"--gsd {gsd_m:g}: metres a pixel, above 0")
        own = self.gsd_m
        if own is None:
            raise DataError(
                f"it has no place on Earth, so its pixels have no metres to bring to {gsd_m:g} m: leave out --gsd"
            )
        across = down = gsd_m / own
        if not self.square and self.pixel_size_m is not None:
            across, down = (gsd_m / side for side in self.pixel_size_m)
        if min(across, down) < 1 / FINEST:
            raise DataError(f"--gsd {gsd_m:g}: its pixels are {own:g} m; at most {FINEST} times finer")
        if abs(across - 1) < 1e-3 and abs(down - 1) < 1e-3:
            return self
        a, b, c, d, e, f = tuple(self.transform)[:6]
        width, height = max(1, round(self.width / across)), max(1, round(self.height / down))
        return Grid(self.crs, Affine(a * across, b * down, c, d * across, e * down, f), width, height)

    def part(self, window: Window) -> "Grid":
        """The pixels of a window as a grid of their own."""
        a, b, _, d, e, _ = tuple(self.transform)[:6]
        corner = gdal.at(self.transform, window.col, window.row)
        return Grid(self.crs, Affine(a, b, corner[0], d, e, corner[1]), window.width, window.height)


@dataclass(frozen=True)
class Axis:
    """How the rows (or columns) of a grid lie on those of a file.

    Attributes:
        scale: the file's pixels a pixel of the grid.
        shift: where the grid's edge lies, in the file's pixels.
        length: pixels of the file.
    """

    scale: float
    shift: float
    length: int

    @property
    def offset(self) -> int | None:
        """The file's pixel at the grid's edge where both have the same pixels, else None."""
        whole = round(self.shift)
        same = abs(self.scale - 1) * self.length < ALIGNED and abs(self.shift - whole) < ALIGNED
        return whole if same else None

    def centres(self, first: int, count: int) -> NDArray[np.float64]:
        """(n,) where the centres of the grid's pixels lie, in the file's pixels.

        Args:
            first: pixel of the grid.
        """
        return np.asarray(self.shift + (np.arange(first, first + count) + 0.5) * self.scale, np.float64)

    def nearest(self, first: int, count: int) -> NDArray[np.int64]:
        """(n,) the file's pixel under each centre, which may lie outside.

        Args:
            first: pixel of the grid.
        """
        # A centre on an edge belongs to the right; its last bits must not decide.
        return np.floor(self.centres(first, count) + 1e-6).astype(np.int64)

    def taps(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The file's pixels that make each pixel of the grid: (n, k) numbers and weights, 0 for those outside.

        Args:
            first: pixel of the grid.
        """
        centre, radius = self.centres(first, count), max(1.0, self.scale)
        begin = np.floor(centre - radius - 0.5).astype(np.int64) + 1
        index = begin[:, None] + np.arange(math.ceil(2 * radius))
        weight = np.maximum(0, 1 - np.abs(index + 0.5 - centre[:, None]) / radius)
        under = self.nearest(first, count)
        weight[(index < 0) | (index >= self.length)] = 0
        weight[(under < 0) | (under >= self.length)] = 0
        return np.clip(index, 0, self.length - 1), weight


@dataclass(frozen=True)
class Placement:
    """How a grid lies on a file.

    Attributes:
        rows: of the grid on the file's.
        cols: likewise.
    """

    rows: Axis
    cols: Axis

    @property
    def offset(self) -> tuple[int, int] | None:
        """(row, column) of the file at the grid's corner where both have the same pixels, else None."""
        row, col = self.rows.offset, self.cols.offset
        return None if row is None or col is None else (row, col)

    def overlaps(self, grid: Grid) -> bool:
        """Whether the grid and the file share ground."""
        return all(
            axis.shift < axis.length and axis.shift + count * axis.scale > 0
            for axis, count in ((self.rows, grid.height), (self.cols, grid.width))
        )


def place(grid: Grid, file: Any) -> Placement:
    """How a grid lies on a file.

    Args:
        grid: with the file's reference system, or both without.
        file: with `crs`, `transform`, `width` and `height`.

    Raises:
        DataError: axes that are turned against each other or mirrored; without a place, other proportions.
    """
    same = file.transform == grid.transform
    if same and (file.height, file.width) == (grid.height, grid.width):
        return Placement(Axis(1.0, 0.0, file.height), Axis(1.0, 0.0, file.width))
    if same and file.crs is None and file.transform.is_identity:
        # Pictures without a place: the same ground in other numbers of pixels.
        rows, cols = file.height / grid.height, file.width / grid.width
        if abs(rows / cols - 1) > 0.01:
            raise DataError(
                f"{file.width} × {file.height} pixels without a place, others have {grid.width} × {grid.height}"
            )
        return Placement(Axis(rows, 0.0, file.height), Axis(cols, 0.0, file.width))
    inverse = ~file.transform
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    corner = gdal.at(inverse, c, f)
    across, down = gdal.at(inverse, c + a, f + d), gdal.at(inverse, c + b, f + e)
    right, skew = across[0] - corner[0], across[1] - corner[1]
    lean, below = down[0] - corner[0], down[1] - corner[1]
    if max(abs(skew) * grid.width, abs(lean) * grid.height) > 0.5 or right <= 0 or below <= 0:
        raise DataError("its rows and columns are turned or mirrored against the other files': bring them to one grid")
    return Placement(_axis(below, corner[1], file.height), _axis(right, corner[0], file.width))


def _axis(scale: float, shift: float, length: int) -> Axis:
    """Without the noise of subtracted coordinates, so that pixel edges that meet do."""
    return Axis(round(scale, 9), round(shift, 6), length)


def resample(
    values: NDArray[Any], measured: Mask, rows: tuple[NDArray[Any], NDArray[Any]], cols: tuple[NDArray[Any], Any]
) -> tuple[NDArray[Any], Mask]:
    """Weighted means of the pixels that are measurements.

    Args:
        values: (C, h, w) of the file.
        measured: (h, w), whether they count.
        rows: numbers, from the first row of `values`, and weights of the pixels for each row of the result.

    Returns:
        (C, H, W) in the type of `values`, 0 where nothing counts; (H, W), where at least half the weight does.
    """
    work = np.float64 if values.dtype.itemsize > 4 or values.dtype in (np.int32, np.uint32) else np.float32
    weight = _along(_along(measured.astype(np.float64), rows, 0), cols, 1)
    total = _sum(rows[1])[:, None] * _sum(cols[1])[None]
    share = np.where(weight > 0, weight, 1).astype(work)
    out = np.empty((len(values), *weight.shape), values.dtype)
    for band, into in zip(values, out, strict=True):  # one at a time: hyperspectral windows are large
        mean = _along(_along(np.where(measured, band, 0).astype(work), rows, 0), cols, 1)
        mean /= share
        into[:] = np.rint(mean, out=mean) if values.dtype.kind in "iu" else mean
    return out, (weight >= 0.5 * total) & (total > 0)


def _along(values: NDArray[Any], taps: tuple[NDArray[Any], NDArray[Any]], axis: int) -> NDArray[Any]:
    """Weighted sums along one axis, added in the order of the taps."""
    index, weight = taps
    shape = [1] * values.ndim
    shape[axis] = len(index)
    out = np.zeros((*values.shape[:axis], len(index), *values.shape[axis + 1 :]), values.dtype)
    for k in range(index.shape[1]):
        out += np.take(values, index[:, k], axis) * weight[:, k].astype(values.dtype).reshape(shape)
    return out


def _sum(weight: NDArray[Any]) -> NDArray[Any]:
    total = np.zeros(len(weight))
    for k in range(weight.shape[1]):
        total += weight[:, k]
    return total


def span(index: NDArray[np.int64]) -> tuple[int, int]:
    """First and last (exclusive) of a file's pixels that are needed."""
    return int(index.min()), int(index.max()) + 1


def finest(files: Sequence[Any]) -> Any:
    """The file with the smallest pixels, the first of several.

    Args:
        files: with `transform`, `width`, `height`; those without a place are compared by their number of pixels.
    """
    placeless = all(file.crs is None and file.transform.is_identity for file in files)
    return min(files, key=lambda f: -f.width * f.height if placeless else abs(f.transform.determinant))
