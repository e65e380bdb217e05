"""Zarr v3: chunks of about a megabyte with coordinates and reference system, as xarray and object stores like it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from dofa.errors import DataError
from dofa.outputs.layout import Layout, parse_meta, pieces
from dofa.scene.grid import Window

if TYPE_CHECKING:
    from dofa.outputs.work_file import Values


def write_zarr(layout: Layout, values: "Values", target: Path) -> None:
    """Write (H, W, K) numbers as a group with the array (band, y, x), its coordinates and `spatial_ref`.

    The attributes follow the CF conventions as rioxarray writes them. A rotated grid has no coordinates of one
    axis: its place is in the GeoTransform of `spatial_ref` alone.

    Args:
        values: in swaths of rows.
        target: folder to write.
    """
    side = layout.side(16, 1024)
    group = zarr.create_group(store=target, zarr_format=3, attributes={"DOFA_META": layout.to_json()})
    attributes: dict[str, Any] = {"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"}
    if layout.scale is not None and layout.zero is not None:
        attributes["coordinates"] = "spatial_ref scale zero"
        _coordinate(group, "scale", layout.scale, "band", {"comment": "value = stored * scale + zero"})
        _coordinate(group, "zero", layout.zero, "band", {})
    if layout.numpy_dtype.kind in "iu" and layout.nodata is not None:
        attributes["_FillValue"] = int(layout.nodata)
    if layout.class_names is not None:
        attributes["flag_values"] = list(range(len(layout.class_names)))
        attributes["flag_meanings"] = " ".join("_".join(name.split()) for name in layout.class_names)
    array = group.create_array(
        layout.variable,
        shape=(layout.channels, layout.height, layout.width),
        chunks=(layout.channels, min(side, layout.height), min(side, layout.width)),
        dtype=layout.numpy_dtype,
        fill_value=layout.numpy_dtype.type(layout.nothing),
        dimension_names=("band", "y", "x"),
        compressors=ZstdCodec(level=1),
        attributes=attributes,
    )
    _coordinate(group, "band", np.array(layout.names), "band", {"long_name": "channel"})
    _place(group, layout)
    for window in pieces(layout.height, layout.width, side, layout.cell_bytes):
        array[:, window.rows, window.cols] = values.read(window)
    with warnings.catch_warnings():  # one read opens the group then; readers of v3 that do not know it leave it alone
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(target)


def _coordinate(group: Any, name: str, numbers: NDArray[Any], dim: str, attributes: dict[str, Any]) -> None:
    kind = {"data": numbers} if numbers.dtype.kind != "U" else {"shape": numbers.shape, "dtype": str}
    array = group.create_array(name, **kind, dimension_names=(dim,), attributes=attributes)
    if numbers.dtype.kind == "U":
        array[:] = numbers.astype(object)


def _place(group: Any, layout: Layout) -> None:
    group.create_array("spatial_ref", shape=(), dtype="int64", attributes=layout.place_words)
    for axis, numbers in (layout.centres or {}).items():
        _coordinate(group, axis, numbers, axis, {"axis": axis.upper(), **layout.axis_words(axis)})


def open_zarr(path: Path) -> tuple[Layout, Callable[[Window], NDArray[Any]]]:
    """The layout of a group that `write_zarr` wrote, and how its numbers are read.

    Raises:
        DataError: another group, or one that cannot be read.
    """
    try:
        group = zarr.open_group(path, mode="r")
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{path} cannot be opened as Zarr: {error}") from None
    layout = parse_meta(path, group.attrs.get("DOFA_META"))
    array: Any = group.get(layout.variable)
    if getattr(array, "shape", None) != (layout.channels, layout.height, layout.width):
        raise DataError(f"{path} does not hold the array {layout.variable} that its DOFA_META tells of: write it again")
    return layout, lambda window: np.asarray(array[:, window.rows, window.cols])
