"""Our own reader of what we write: values and their place, whatever the format, a window at a time."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from dofa.errors import DataError
from dofa.io import os_error_reason
from dofa.outputs.layout import FORMATS, Affine, Layout, parse_meta
from dofa.pixels import Float
from dofa.raster.gdal import OPTIONS
from dofa.scene.grid import Window

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Features:
    """An output that was opened; nothing is read until it is asked for.

    Attributes:
        path: of the file.
        layout: what it holds, as it was written.
    """

    path: Path
    layout: Layout
    _stored: Callable[[Window], NDArray[Any]] = field(repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # the libraries' handles serve one thread

    @property
    def crs(self) -> Any:
        """rasterio's reference system; None where there is none."""
        return None if self.layout.crs is None else rasterio.crs.CRS.from_user_input(self.layout.crs)

    @property
    def transform(self) -> Affine:
        """Affine coefficients (a, b, c, d, e, f) from (column, row) of a cell's corner to coordinates."""
        return self.layout.transform

    @property
    def names(self) -> tuple[str, ...]:
        """Of the channels."""
        return self.layout.names

    @property
    def meta(self) -> dict[str, Any]:
        """Where the numbers come from."""
        return self.layout.meta

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, rows, columns)."""
        return self.layout.channels, self.layout.height, self.layout.width

    def read_stored(self, window: Window | None = None) -> NDArray[Any]:
        """(K, h, w) numbers as they are stored.

        Raises:
            DataError: a window that reaches over the border, or a file that cannot be read.
        """
        layout = self.layout
        window = window or Window(0, 0, layout.height, layout.width)
        inside = 0 <= window.row <= layout.height - window.height and 0 <= window.col <= layout.width - window.width
        if not inside or window.height < 1 or window.width < 1:
            raise DataError(f"{self.path}: {window} does not lie in its {layout.height} × {layout.width} cells")
        try:
            with self._lock:
                return self._stored(window)
        except (RasterioError, OSError) as error:
            raise DataError(f"{self.path}: {window} cannot be read: {os_error_reason(error)}") from None

    def read(self, window: Window | None = None) -> NDArray[np.float32]:
        """(K, h, w) float32 values of a window of cells, or of all; NaN where invalid. int8 is scaled back.

        Raises:
            DataError: a window that reaches over the border, or a file that cannot be read.
        """
        return self.layout.values(self.read_stored(window))

    def to_xarray(self) -> "xarray.DataArray":
        """The values as a DataArray (band, y, x) with coordinates of the centres, read where it is indexed.

        `spatial_ref` and the attribute `grid_mapping` are what rioxarray looks for. Rotated grids have no y and x.
        """
        import xarray
        from xarray.core import indexing

        layout = self.layout
        coordinates: dict[str, Any] = {"band": ("band", list(layout.names)), "spatial_ref": ((), 0, layout.place_words)}
        for axis, numbers in (layout.centres or {}).items():
            coordinates[axis] = (axis, numbers, layout.axis_words(axis))
        return xarray.DataArray(
            xarray.Variable(("band", "y", "x"), indexing.LazilyIndexedArray(_backend(self))),
            coords=coordinates,
            name=layout.variable,
            attrs={"grid_mapping": "spatial_ref", "DOFA_META": layout.meta},
        )


def _backend(features: Features) -> Any:
    """What xarray reads from, an array that is indexed by numbers and slices."""
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class Values(BackendArray):
        shape = features.shape
        dtype = np.dtype(np.float32)

        def __getitem__(self, key: Any) -> NDArray[np.float32]:
            basic = indexing.IndexingSupport.BASIC
            found: NDArray[np.float32] = indexing.explicit_indexing_adapter(key, self.shape, basic, self._read)
            return found

        def _read(self, key: tuple[Any, ...]) -> NDArray[np.float32]:
            bands, (top, rows, row), (left, cols, col) = (
                key[0],
                _span(key[1], self.shape[1]),
                _span(key[2], self.shape[2]),
            )
            if rows and cols:
                values = features.read(Window(top, left, rows, cols))
            else:
                values = np.empty((self.shape[0], rows, cols), np.float32)
            return np.asarray(values[bands][..., row, col])

    return Values()


def _span(key: int | slice, length: int) -> tuple[int, int, int | slice]:
    """First place and number of places that an index reaches over, and the index counted from the first."""
    if not isinstance(key, slice):
        return int(key), 1, 0
    places = range(*key.indices(length))
    if not places:
        return 0, 0, slice(0, 0)
    first = min(places[0], places[-1])
    return first, abs(places[-1] - places[0]) + 1, slice(None, None, key.step)


def open_features(path: str | Path) -> Features:
    """Open a .tif, .zarr or .parquet that `dofa embed` or `dofa predict` wrote.

    Raises:
        DataError: a file that is not there, cannot be read or was not written by dofa.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        kind = "zarr" if path.is_dir() else "cog"
    if kind == "zarr":
        from dofa.outputs.zarr_store import open_zarr

        layout, stored = open_zarr(path)
    elif kind == "geoparquet":
        from dofa.outputs.geoparquet import open_geoparquet

        layout, stored = open_geoparquet(path)
    else:
        layout, stored = _open_cog(path)
    return Features(path, layout, stored)


def _open_cog(path: Path) -> tuple[Layout, Callable[[Window], NDArray[Any]]]:
    try:
        with rasterio.Env(**OPTIONS):
            dataset = rasterio.open(path)
    except RasterioError as error:
        raise DataError(f"{path} cannot be opened: {os_error_reason(error)}") from None
    layout = parse_meta(path, dataset.tags().get("DOFA_META"))
    if (dataset.count, dataset.height, dataset.width) != (layout.channels, layout.height, layout.width):
        raise DataError(
            f"{path} was changed since dofa wrote it: {dataset.count} bands of {dataset.height} × {dataset.width}, not "
            f"{layout.channels} of {layout.height} × {layout.width}: write it again"
        )
    # What a person corrected with gdal_edit holds: the file's own words go before ours.
    layout = replace(layout, crs=dataset.crs, transform=tuple(dataset.transform)[:6])

    def stored(window: Window) -> NDArray[Any]:
        at = rasterio.windows.Window(window.col, window.row, window.width, window.height)
        return np.asarray(dataset.read(window=at), dtype=layout.dtype)

    return layout, stored


# -- Cells as a labelled array: coordinates at their centres, names of channels, reference system.

if TYPE_CHECKING:
    import xarray


def data_array(values: Float, layout: Layout) -> "xarray.DataArray":
    """Values in memory as xarray knows them.

    Args:
        values: (K, h, w) float32, NaN where invalid.
        layout: of the file they are, or would be, written to.

    Returns:
        (channel, y, x), with `spatial_ref` as rioxarray writes it; a rotated grid has `row` and `col` numbers for
        coordinates, since no single x belongs to a column.
    """
    import xarray

    a, b, c, d, e, f = layout.transform
    coords: dict[str, object] = {"channel": list(layout.names)}
    if b == 0 and d == 0:
        coords |= {"y": f + e * (np.arange(layout.height) + 0.5), "x": c + a * (np.arange(layout.width) + 0.5)}
    if layout.wkt is not None:
        geo = " ".join(f"{v:.17g}" for v in (c, a, b, f, d, e))
        coords["spatial_ref"] = xarray.Variable((), 0, {"crs_wkt": layout.wkt, "GeoTransform": geo})
    return xarray.DataArray(values, dims=("channel", "y", "x"), coords=coords, name=layout.variable, attrs=layout.meta)
