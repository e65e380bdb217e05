"""What an output holds and where it lies, the same for every format."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dofa.addresses import redact_values
from dofa.documents import parse_json
from dofa.errors import ConfigError, DataError
from dofa.options import Format
from dofa.scene.grid import Window
from dofa.settings import check_version

Dtype: TypeAlias = Literal["float32", "float16", "int8", "uint8"]
Affine: TypeAlias = tuple[float, float, float, float, float, float]

FORMAT_VERSION = 1  # of DOFA_META
FORMATS: dict[str, Format] = {
    ".tif": "cog", ".tiff": "cog", ".zarr": "zarr", ".parquet": "geoparquet", ".geoparquet": "geoparquet",
}  # fmt: skip
CHUNK_BYTES = 1 << 20  # of a tile or chunk: about what one request to an object store should bring
PIECE_BYTES = 1 << 23  # of what is held in memory at once while a file is written


@dataclass(frozen=True, eq=False)
class Layout:
    """The grid, the channels and the meaning of an output.

    Attributes:
        height: rows of cells.
        width: columns of cells.
        channels: numbers a cell.
        dtype: of the stored numbers; `uint8` is a class map.
        crs: anything rasterio takes as a reference system; None where the scene has none.
        transform: affine coefficients (a, b, c, d, e, f) from (column, row) of a cell's corner to coordinates.
        control_points: WKT and (row, column, x, y, z) of points that give cells without a grid a place, for GeoTIFF.
        nodata: the stored number of invalid cells, in every channel; None where all are valid. A NaN is always invalid.
        names: of the channels.
        scale: (channels,) value = stored · scale + zero; for int8.
        zero: (channels,) with scale.
        meta: JSON: where the numbers come from. Nothing in it may change from one run to the next of the same job.
        class_names: of the classes 0, 1, … of a class map.
        colours: (red, green, blue) of each class, 0–255.

    Raises:
        ConfigError: parts that do not fit together.
    """

    height: int
    width: int
    channels: int
    dtype: Dtype
    names: tuple[str, ...]
    crs: Any = None
    transform: Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    control_points: tuple[str, tuple[tuple[float, ...], ...]] | None = None
    nodata: float | None = None
    scale: NDArray[Any] | None = None
    zero: NDArray[Any] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    colours: tuple[tuple[int, int, int], ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "transform", tuple(float(x) for x in tuple(self.transform)[:6]))
        object.__setattr__(self, "nodata", None if self.nodata is None else float(self.nodata))
        for name in ("scale", "zero"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else np.asarray(value, np.float64).reshape(-1))
        if min(self.height, self.width, self.channels) < 1:
            raise ConfigError(f"an output of {self.height} × {self.width} cells and {self.channels} channels")
        if len(self.names) != self.channels or len(set(self.names)) < self.channels:
            raise ConfigError(f"{self.channels} channels need as many different names, not {', '.join(self.names)}")
        scaled = [v for v in (self.scale, self.zero) if v is not None]
        if (self.dtype == "int8") != (len(scaled) == 2) or any(v.shape != (self.channels,) for v in scaled):
            raise ConfigError(f"{self.dtype} with {len(scaled)} of scale and zero: int8 needs both, a number a channel")
        if self.nodata is not None and self.dtype.endswith("8"):
            info = np.iinfo(self.dtype)
            if not (self.nodata.is_integer() and info.min <= self.nodata <= info.max):
                raise ConfigError(f"nodata {self.nodata} is no number of type {self.dtype}")
        of_classes = [v for v in (self.class_names, self.colours) if v is not None]
        if of_classes and (self.dtype, self.channels) != ("uint8", 1):
            raise ConfigError("class names and colours belong to an output of one uint8 channel")
        if any(len(v) > 256 for v in of_classes) or len({len(v) for v in of_classes}) > 1:
            raise ConfigError("a class map has up to 256 classes, each with a name and a colour")

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Of the stored numbers, little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def cell_bytes(self) -> int:
        """Bytes a cell."""
        return self.channels * self.numpy_dtype.itemsize

    @property
    def variable(self) -> str:
        """What the array is called where a format wants a name."""
        return "classes" if self.dtype == "uint8" else "features"

    @property
    def wkt(self) -> str | None:
        """The reference system as WKT 2."""
        if self.crs is None:
            return None
        from rasterio.crs import CRS

        return str(CRS.from_user_input(self.crs).to_wkt(version="WKT2_2019"))

    @property
    def nothing(self) -> float:
        """The stored number where nothing was written."""
        return self.nodata if self.nodata is not None else float("nan") if self.dtype.startswith("float") else 0

    @property
    def centres(self) -> dict[str, NDArray[np.float64]] | None:
        """Coordinates y (H,) and x (W,) of the cells' centres; None where the grid is rotated."""
        a, b, c, d, e, f = self.transform
        if b or d:
            return None
        rows, cols = (np.arange(n, dtype=np.float64) + 0.5 for n in (self.height, self.width))
        return {"y": np.asarray(e * rows + f), "x": np.asarray(a * cols + c)}

    @property
    def place_words(self) -> dict[str, str]:
        """CF attributes of `spatial_ref`, with GDAL's GeoTransform."""
        a, b, c, d, e, f = self.transform
        words = {"GeoTransform": " ".join(repr(x) for x in (c, a, b, f, d, e))}
        return words if self.crs is None else {**words, "crs_wkt": str(self.wkt), "spatial_ref": str(self.wkt)}

    def axis_words(self, axis: str) -> dict[str, str]:
        """CF attributes of a coordinate."""
        if self.crs is None:
            return {}
        from rasterio.crs import CRS

        crs = CRS.from_user_input(self.crs)
        if crs.is_geographic:
            name = {"x": "longitude", "y": "latitude"}[axis]
            return {"standard_name": name, "units": {"x": "degrees_east", "y": "degrees_north"}[axis]}
        return {"standard_name": f"projection_{axis}_coordinate", "units": crs.linear_units}

    def side(self, least: int, most: int, itemsize: int = 0) -> int:
        """Cells a side of a square tile or chunk of about CHUNK_BYTES, a power of two.

        Args:
            least, most: powers of two that it stays between.
            itemsize: bytes a number, 0 for those of the layout.
        """
        room = CHUNK_BYTES / (self.channels * (itemsize or self.numpy_dtype.itemsize))
        side = most
        while side > least and side * side > 2 * room:
            side //= 2
        return side

    def invalid(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        """(K, h, w) stored numbers -> (h, w) cells that hold nodata in every channel."""
        missing = np.isnan(stored) if stored.dtype.kind == "f" else np.zeros(stored.shape, bool)
        if self.nodata is not None and not np.isnan(self.nodata):
            missing |= stored == self.nodata
        return np.asarray(missing.all(axis=0))

    def values(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """(K, h, w) stored numbers -> float32 values, NaN where invalid."""
        out = stored.astype(np.float32)
        if self.scale is not None and self.zero is not None:
            out = (stored * self.scale[:, None, None] + self.zero[:, None, None]).astype(np.float32)
        out[:, self.invalid(stored)] = np.nan
        return out

    def check(self, kind: Format) -> None:
        """Refuse what a format cannot hold, before anything is computed.

        Raises:
            DataError: GeoParquet without a reference system.
        """
        if kind == "geoparquet" and self.crs is None:
            raise DataError(
                "the scene has no reference system, which GeoParquet needs: give it one (gdal_edit.py -a_srs EPSG:…) "
                "or write a .tif or .zarr"
            )

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it; numbers come back to the last bit."""
        return {
            "format_version": FORMAT_VERSION,
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
            "dtype": self.dtype,
            "names": list(self.names),
            "crs": self.wkt,
            "transform": list(self.transform),
            "nodata": "nan" if self.nodata is not None and np.isnan(self.nodata) else self.nodata,
            "scale": None if self.scale is None else self.scale.tolist(),
            "zero": None if self.zero is None else self.zero.tolist(),
            "class_names": None if self.class_names is None else list(self.class_names),
            "colours": None if self.colours is None else [list(c) for c in self.colours],
            "meta": redact_values(self.meta),
            **({} if self.control_points is None else {"control_points": self.control_points}),
        }

    def to_text(self) -> str:
        """The JSON of DOFA_META, on one line."""
        return json.dumps(self.to_json(), allow_nan=False, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Layout":
        """What `to_json` wrote.

        Raises:
            DataError: a newer format, or a record that is not whole.
        """
        check_version(record.get("format_version") if isinstance(record, dict) else None, FORMAT_VERSION, "DOFA_META")
        nodata, points = record.get("nodata"), record.get("control_points")
        try:
            return cls(
                height=int(record["height"]),
                width=int(record["width"]),
                channels=int(record["channels"]),
                dtype=record["dtype"],
                names=tuple(record["names"]),
                crs=record["crs"],
                transform=_affine(record["transform"]),
                control_points=None if points is None else (str(points[0]), tuple(map(tuple, points[1]))),
                nodata=None if nodata is None else float(nodata),
                scale=record["scale"],
                zero=record["zero"],
                meta=dict(record["meta"]),
                class_names=None if record["class_names"] is None else tuple(record["class_names"]),
                colours=None if record["colours"] is None else tuple((r, g, b) for r, g, b in record["colours"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"DOFA_META is not whole: {error}") from None


def _affine(numbers: Sequence[float]) -> Affine:
    a, b, c, d, e, f = (float(x) for x in numbers)
    return a, b, c, d, e, f


def pieces(height: int, width: int, side: int, cell_bytes: int) -> Iterator[Window]:
    """Windows of `side` rows and whole tiles of `side` columns that cover a grid, small enough to be held in memory.

    Args:
        height, width: of the grid, in cells.
        cell_bytes: of all channels of a cell.
    """
    step = side * max(1, PIECE_BYTES // (side * side * cell_bytes))
    for row in range(0, height, side):
        for col in range(0, width, step):
            yield Window(row, col, min(side, height - row), min(step, width - col))


def parse_meta(path: Path, told: Any) -> Layout:
    """The layout in a file's DOFA_META, its text or its JSON.

    Args:
        told: what the file has there, None for nothing.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    if not told:
        raise DataError(f"{path} was not written by dofa: it has no DOFA_META")
    try:
        return Layout.from_json(told if isinstance(told, dict) else parse_json(told, "its DOFA_META"))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
