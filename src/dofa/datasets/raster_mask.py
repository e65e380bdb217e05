"""Raster masks: a class map whose numbers are labels, on any grid."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.datasets.labelled import IGNORE
from dofa.datasets.labels import UNLABELLED, Bounds, Classes, Codes, Labels, Placed
from dofa.errors import ConfigError, DataError
from dofa.raster import gdal
from dofa.scene.grid import Grid, Window


@dataclass(frozen=True)
class MaskLabels(Labels):
    """A raster of one band whose numbers are classes.

    Attributes:
        path: of the file.
        grid: of its pixels.
    """

    path: str
    grid: Grid

    @classmethod
    def read(cls, path: Path, told: Any) -> "MaskLabels":
        """Look through a mask once for the classes it holds.

        Args:
            told: reference system the user named, None for the file's own.

        Raises:
            DataError: several bands, numbers that are no classes, or pixels that cannot be decoded.
        """
        from rasterio.crs import CRS
        from rasterio.errors import RasterioError

        counts: Counter[int] = Counter()
        with gdal.open_dataset(str(path)) as mask:
            if mask.count != 1:
                raise DataError(f"{path.name} has {mask.count} bands; a mask has one, whose numbers are classes")
            try:
                for _, block in mask.block_windows(1):
                    numbers = mask.read(1, window=block)
                    seen = mask.read_masks(1, window=block) > 0
                    if numbers.dtype.kind == "f":
                        seen &= np.isfinite(numbers)
                        if (numbers[seen] % 1).any():
                            raise DataError(f"{path.name} holds broken numbers, which are no classes: give a class map")
                    found, times = np.unique(numbers[seen], return_counts=True)
                    counts.update({int(v): int(n) for v, n in zip(found, times, strict=True)})
                    if len(counts) > 4 * IGNORE:
                        raise DataError(f"{path.name} holds over {4 * IGNORE} different numbers: a picture, no mask?")
                colormap = mask.colormap(1) if mask.colorinterp[0].name == "palette" else {}
            except (RasterioError, OSError) as error:
                raise DataError(f"{path} cannot be read as a mask: {gdal.reason(error)}") from None
            crs = mask.crs if told is None else CRS.from_wkt(told.to_wkt())
            grid = Grid(crs, mask.transform, mask.width, mask.height)
            # As class maps of `dofa predict` say it.
            tags = {m[1]: v for k, v in mask.tags(1).items() if (m := re.fullmatch(r"CLASS_(-?\d+)", k))}
            marked = mask.nodata is not None
        notes = []
        if not marked and 0 in counts and len(counts) > 1 and "0" not in tags:
            notes.append(f"0 is a class in {path.name}: pass --ignore 0 if it stands for pixels without a label")
        if not counts:
            raise DataError(f"{path.name} holds no label: every pixel is nodata")
        return cls(
            name=path.name,
            things="pixels",
            path=str(path),
            grid=grid,
            counts={str(v): n for v, n in sorted(counts.items())},
            titles={v: t for v, t in tags.items() if t},
            colours={str(v): (c[0], c[1], c[2]) for v, c in colormap.items() if v in counts},
            notes=tuple(notes),
        )

    @property
    def bounds(self) -> Bounds | None:
        """(west, south, east, north) in degrees; None without a place."""
        return gdal.bounds_lonlat(self.grid.crs, self.grid.transform, self.grid.width, self.grid.height)

    def on(self, grid: Grid, classes: Classes, scene: str) -> Placed:
        """Brought to the pixels of a scene, each with the class of the mask's pixel that its centre lies in.

        Raises:
            DataError: without a place, another size.
        """
        if classes.background is not None:
            raise ConfigError(f"--background is what lies outside polygons; {self.name} says itself what each pixel is")
        placed = grid.crs is not None and self.grid.crs is not None
        if not placed and (self.grid.height, self.grid.width) != (grid.height, grid.width):
            which = self.name if self.grid.crs is None else scene
            raise DataError(
                f"{self.name} has {self.grid.height} × {self.grid.width} pixels and {scene} {grid.height} × "
                f"{grid.width}, and {which} has no reference system by which to place them: give a mask of that size, "
                "or georeference it"
            )
        return PlacedMask(self, grid, classes, placed)


class PlacedMask:
    """A mask on the pixels of a scene, read a window at a time; see `Placed`."""

    points: tuple[tuple[float, float, int], ...] = ()
    shapes: tuple[tuple[float, float, int], ...] = ()
    features: tuple[int, ...] = ()

    def __init__(self, mask: MaskLabels, grid: Grid, classes: Classes, placed: bool) -> None:
        self._mask, self._grid, self._placed = mask, grid, placed
        self._dataset = gdal.open_dataset(mask.path)
        self._values = np.array(sorted(map(int, classes.codes)), np.int64)
        self._codes = np.array([classes.codes[str(v)] for v in self._values.tolist()], np.int16)

    def codes(self, window: Window) -> Codes:
        """(h, w), UNLABELLED outside the mask and where it has no data."""
        out: Codes = np.full((window.height, window.width), UNLABELLED, np.int16)
        row, col = self._under(window)
        height, width = self._mask.grid.height, self._mask.grid.width
        within = (row >= 0) & (row < height) & (col >= 0) & (col < width)
        if not within.any():
            return out
        top, left = int(row[within].min()), int(col[within].min())
        span = ((top, int(row[within].max()) + 1), (left, int(col[within].max()) + 1))
        numbers = self._dataset.read(1, window=span)
        seen = self._dataset.read_masks(1, window=span) > 0
        at = row[within] - top, col[within] - left
        values, known = numbers[at], seen[at]
        if values.dtype.kind == "f":
            known &= np.isfinite(values)
        codes = self._codes[np.searchsorted(self._values, np.where(known, values, self._values[0]).astype(np.int64))]
        out[within] = np.where(known, codes, UNLABELLED)
        return out

    def inside(self, window: Window) -> list[int]:
        """A mask has no shapes."""
        return []

    def _under(self, window: Window) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(h, w) rows and columns of the mask under the centres of a window's pixels; -1 where there is none."""
        row, col = np.mgrid[window.row : window.row + window.height, window.col : window.col + window.width] + 0.5
        mask, grid = self._mask.grid, self._grid
        if self._placed:
            x = grid.transform.a * col + grid.transform.b * row + grid.transform.c
            y = grid.transform.d * col + grid.transform.e * row + grid.transform.f
            if mask.crs != grid.crs:
                from rasterio.warp import transform

                xs, ys = transform(grid.crs, mask.crs, x.ravel(), y.ravel())
                x, y = np.reshape(xs, x.shape), np.reshape(ys, y.shape)
            back = ~mask.transform
            col, row = back.a * x + back.b * y + back.c, back.d * x + back.e * y + back.f
        lost = ~(np.isfinite(row) & np.isfinite(col))
        # A centre on an edge belongs to the right; its last bits must not decide.
        down, right = (np.floor(np.where(lost, -1, v) + 1e-6).astype(np.int64) for v in (row, col))
        return down, right
