"""GeoParquet 1.1: one row a valid cell with polygon, vector, scene, day, sensor and model, for tables and geopandas."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rasterio.crs import CRS

from dofa.errors import DataError
from dofa.outputs.layout import PIECE_BYTES, Layout, parse_meta
from dofa.scene.grid import Window

if TYPE_CHECKING:
    from dofa.outputs.work_file import Values

SIDES = ("xmin", "ymin", "xmax", "ymax")
# Well-known binary of a polygon of one ring of four corners, little-endian.
WKB = np.dtype([("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("ring", "<f8", (5, 2))])
CELL_BYTES = WKB.itemsize + 4 * 8 + 2 * 4  # of a row beside its vector


def write_geoparquet(layout: Layout, values: "Values", target: Path) -> None:
    """Write the valid cells of (H, W, K) numbers in row-major order, some rows of cells a row group.

    Args:
        values: in swaths of rows.
        target: file to write.
    """
    item = pa.from_numpy_dtype(layout.numpy_dtype)
    schema = pa.schema(
        [
            pa.field("geometry", pa.binary(), nullable=False),
            pa.field("bbox", pa.struct([pa.field(s, pa.float64(), nullable=False) for s in SIDES]), nullable=False),
            pa.field("row", pa.int32(), nullable=False),
            pa.field("col", pa.int32(), nullable=False),
            pa.field("vector", pa.list_(pa.field("item", item, nullable=False), layout.channels), nullable=False),
            pa.field("scene", pa.string()),
            pa.field("date", pa.date32()),
            pa.field("sensor", pa.string()),
            pa.field("model", pa.string()),
        ]
    )
    origin = _origin(layout)
    rows = max(1, PIECE_BYTES // (layout.width * (layout.cell_bytes + CELL_BYTES)))
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    told = ["row", "col", *(f"bbox.{s}" for s in SIDES)]
    with pq.ParquetWriter(
        target,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=["scene", "sensor", "model"],
        write_statistics=told,
    ) as writer:
        for first in range(0, layout.height, rows):
            window = Window(first, 0, min(rows, layout.height - first), layout.width)
            stored = values.read(window)
            row, col = np.nonzero(~layout.invalid(stored))
            if not len(row):
                continue
            vectors = np.ascontiguousarray(stored[:, row, col].T)
            row = row + first
            rings = _rings(layout, row, col)
            least, most = rings.min(axis=1), rings.max(axis=1)
            low, high = np.minimum(low, least.min(axis=0)), np.maximum(high, most.max(axis=0))
            sides = [*least.T, *most.T]
            columns = [
                _polygons(rings),
                pa.StructArray.from_arrays([pa.array(s) for s in sides], fields=list(schema.field("bbox").type)),
                pa.array(row, pa.int32()),
                pa.array(col, pa.int32()),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=schema.field("vector").type),
                *(pa.repeat(pa.scalar(origin[name], schema.field(name).type), len(row)) for name in origin),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(row))
        bounds = [*low.tolist(), *high.tolist()] if np.isfinite(low).all() else None
        writer.add_key_value_metadata({"geo": json.dumps(_geo(layout, bounds)), "DOFA_META": layout.to_text()})


def _origin(layout: Layout) -> dict[str, Any]:
    """Scene, day, sensor and model, alike in all rows: tables of many scenes are read together."""
    meta = layout.meta
    day, digest = meta.get("date"), meta.get("encoder_sha256")
    name = meta.get("model") or meta.get("features")
    return {
        "scene": meta.get("scene"),
        "date": None if day is None else date.fromisoformat(day),
        "sensor": "+".join(meta["sensors"]) if meta.get("sensors") else None,
        "model": " ".join(part for part in (name, digest and f"sha256:{digest[:12]}") if part) or None,
    }


def _rings(layout: Layout, row: NDArray[Any], col: NDArray[Any]) -> NDArray[np.float64]:
    """(n, 5, 2) corners of cells, counterclockwise, the first one again at the end."""
    a, b, c, d, e, f = layout.transform
    around = np.array([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)])  # (right, down)
    if a * e - b * d > 0:  # rows run upwards
        around = around[::-1]
    i, j = col[:, None] + around[:, 0], row[:, None] + around[:, 1]
    return np.stack([a * i + b * j + c, d * i + e * j + f], axis=-1)


def _polygons(rings: NDArray[np.float64]) -> pa.Array:
    binary = np.zeros(len(rings), WKB)
    binary["order"], binary["kind"], binary["rings"], binary["points"] = 1, 3, 1, 5
    binary["ring"] = rings
    ends = np.arange(len(rings) + 1, dtype=np.int32) * WKB.itemsize
    return pa.BinaryArray.from_buffers(pa.binary(), len(rings), [None, pa.py_buffer(ends), pa.py_buffer(binary)])


def _geo(layout: Layout, bounds: list[float] | None) -> dict[str, Any]:
    """The `geo` metadata of the GeoParquet specification, version 1.1.0."""
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": CRS.from_user_input(layout.crs).to_dict(projjson=True),
        "orientation": "counterclockwise",
        "covering": {"bbox": {s: ["bbox", s] for s in SIDES}},
    }
    if bounds is not None:
        column["bbox"] = bounds
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def open_geoparquet(path: Path) -> tuple[Layout, Callable[[Window], NDArray[Any]]]:
    """The layout of a file that `write_geoparquet` wrote, and how its numbers are read.

    Raises:
        DataError: another file, or one that cannot be read.
    """
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be opened as Parquet: {error}") from None
    layout = parse_meta(path, (file.metadata.metadata or {}).get(b"DOFA_META"))
    damaged = (pa.ArrowException, OSError, LookupError, ValueError, AttributeError, TypeError)
    try:
        spans = _row_spans(file)
    except damaged as error:
        raise DataError(f"{path} is damaged ({error}): write it again") from None

    def stored(window: Window) -> NDArray[Any]:
        try:
            return cells(window)
        except damaged as error:
            raise DataError(f"{path} is damaged ({error}): write it again") from None

    def cells(window: Window) -> NDArray[Any]:
        out = np.full((window.height, window.width, layout.channels), layout.nothing, layout.numpy_dtype)
        for group, (first, last) in enumerate(spans):
            if last < window.row or first >= window.row + window.height:
                continue
            table = file.read_row_group(group, columns=["row", "col", "vector"]).combine_chunks()
            row, col = (table[name].to_numpy() - start for name, start in (("row", window.row), ("col", window.col)))
            inside = (row >= 0) & (row < window.height) & (col >= 0) & (col < window.width)
            vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, layout.channels)
            out[row[inside], col[inside]] = vectors[inside]
        return out.transpose(2, 0, 1)

    return layout, stored


def _row_spans(file: Any) -> list[tuple[int, int]]:
    """First and last row of cells in each row group."""
    column = [file.schema.column(i).path for i in range(len(file.schema))].index("row")
    spans = []
    for group in range(file.num_row_groups):
        told = file.metadata.row_group(group).column(column).statistics
        spans.append((told.min, told.max))
    return spans
