"""Cloud-optimised GeoTIFF: one file that QGIS, GDAL and rasterio open as it is."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint

from dofa.io import format_bytes, free_bytes
from dofa.outputs.layout import Layout, pieces
from dofa.raster.gdal import OPTIONS
from dofa.scene.grid import Window

if TYPE_CHECKING:
    from dofa.outputs.work_file import Values

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # no place: what is read where none is written
CACHE_BYTES = 1 << 24  # at least; GDAL's own default is 5 % of the machine


def write_cog(layout: Layout, values: "Values", target: Path) -> None:
    """Write (H, W, K) numbers as a COG.

    The tiles hold all channels of a place, so their side shrinks as channels grow, from 512 cells for about 1 MB down
    to 64, the least that GDAL's overviews have. Overviews of class maps are the commonest class of 2 × 2 cells, others
    the mean; nodata counts for nothing.

    float16 is written as float32 of the same values: a GDAL before 3.11 has no such type, and its way of storing
    float32 in 16 bits (NBITS) leaves in the edge tiles what lay in memory, so that no two files are the same. The
    compression takes the empty bits back, all but 8 %.

    GDAL's driver copies a file into a COG, so the numbers and overviews lie in plain GeoTIFFs beside it for that while.
    The overviews are ours because GDAL goes through the file once a channel for them: minutes for 768.

    Args:
        values: in swaths of rows.
        target: file to write.

    Raises:
        OSError: no room, or what was written is not what is read back: a full disk makes no error in GDAL where the
            last bytes of a file are lost.
    """
    side = layout.side(64, 512)
    sizes = [(layout.height, layout.width)]
    while max(sizes[-1]) > side:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    plain = [target.with_name(f"plain.tif{'.ovr' * level}") for level in range(len(sizes))]  # GDAL finds them by name
    half = layout.dtype == "float16"
    cell_bytes = 4 * layout.channels if half else layout.cell_bytes
    whole = [side * side * -(-h // side) * -(-w // side) * cell_bytes for h, w in sizes]
    _check_room(target.parent, int((1.62 if half else 2.02) * sum(whole)) + (1 << 20))
    cache = max(CACHE_BYTES, 2 * side * side * cell_bytes)  # whole blocks, or they are read again for each channel
    with rasterio.Env(**{**OPTIONS, "GDAL_CACHEMAX": cache}):
        for level, (height, width) in enumerate(sizes):
            read = values.read if level == 0 else _halved(layout, plain[level - 1], sizes[level - 1])
            with rasterio.open(
                plain[level],
                "w",
                driver="GTiff",
                width=width,
                height=height,
                count=layout.channels,
                dtype="float32" if half else layout.dtype,
                crs=None if layout.crs is None else rasterio.crs.CRS.from_user_input(layout.crs),
                transform=None
                if layout.transform == IDENTITY or layout.control_points
                else rasterio.Affine(*layout.transform),
                nodata=layout.nodata,
                tiled=True,
                blockxsize=side,
                blockysize=side,
                interleave="pixel",
                BIGTIFF="IF_SAFER",
            ) as dataset:
                if level == 0:
                    _describe(dataset, layout)
                for window in pieces(height, width, side, cell_bytes):
                    dataset.write(read(window).astype(dataset.dtypes[0], copy=False), window=_at(window))
            if plain[level].stat().st_size < whole[level]:
                raise OSError(errno.ENOSPC, "the disk is full")
        rasterio.shutil.copy(
            plain[0],
            target,
            driver="COG",
            BLOCKSIZE=side,
            BIGTIFF="IF_SAFER",
            NUM_THREADS="ALL_CPUS",
            **_coding(layout),
        )
        with rasterio.open(target) as dataset:
            for window in pieces(*sizes[0], side, cell_bytes):
                found = dataset.read(window=_at(window))
                if not np.array_equal(found, values.read(window), equal_nan=found.dtype.kind == "f"):
                    raise OSError(errno.EIO, f"{window} is read back with other numbers")
    for file in plain:
        file.unlink()
    if layout.class_names is not None:
        _write_names(target.with_name(f"{target.name}.aux.xml"), layout.class_names)


def _at(window: Window) -> Any:
    return rasterio.windows.Window(window.col, window.row, window.width, window.height)


def _check_room(folder: Path, need: int) -> None:
    if free_bytes(folder) < need:
        raise OSError(errno.ENOSPC, f"up to {format_bytes(need)} are needed while it is made")


def _coding(layout: Layout) -> dict[str, Any]:
    """Class maps are compressed as every reader can read it."""
    if layout.dtype == "uint8":
        return {"COMPRESS": "DEFLATE"}
    return {"COMPRESS": "ZSTD", "LEVEL": 6, "PREDICTOR": "YES"}


def _halved(layout: Layout, source: Path, size: tuple[int, int]) -> Callable[[Window], NDArray[Any]]:
    """How a window of the next overview is read from the level below it."""

    def read(window: Window) -> NDArray[Any]:
        row, col = 2 * window.row, 2 * window.col
        height, width = min(2 * window.height, size[0] - row), min(2 * window.width, size[1] - col)
        with rasterio.open(source) as dataset:
            below = dataset.read(window=_at(Window(row, col, height, width))).astype(layout.dtype, copy=False)
        return halve(layout, below)

    return read


def halve(layout: Layout, stored: NDArray[Any]) -> NDArray[Any]:
    """(K, h, w) stored numbers -> (K, h / 2, w / 2), rounded up: the mean of the valid ones, or their commonest class.

    The mean is of float32 and in one order, so that a file made again is the same file.

    Args:
        stored: as they lie in the file.
    """
    channels, height, width = stored.shape
    shape = -(-height // 2), -(-width // 2)
    four = np.full((4, channels, *shape), layout.nothing, layout.dtype)
    valid = np.zeros((4, 1, *shape), bool)
    for k in range(4):
        part = stored[:, k // 2 :: 2, k % 2 :: 2]
        within = np.s_[: part.shape[1], : part.shape[2]]
        four[k][:, *within], valid[k][0, *within] = part, ~layout.invalid(part)
    if layout.dtype == "uint8":
        votes = np.stack([(four == one).sum(axis=0) for one in four]) * valid
        return np.asarray(np.take_along_axis(four, votes.argmax(axis=0)[None], axis=0)[0])
    count = valid.sum(axis=0)
    mean = np.where(valid, four, 0).sum(axis=0, dtype=np.float32) / np.maximum(count, 1)
    mean = np.rint(mean) if layout.dtype == "int8" else mean
    return np.asarray(np.where(count, mean, layout.nothing).astype(layout.dtype))


def _describe(dataset: Any, layout: Layout) -> None:
    if layout.control_points is not None:
        crs, points = layout.control_points
        dataset.gcps = [GroundControlPoint(*point) for point in points], rasterio.crs.CRS.from_wkt(crs)
    dataset.descriptions = layout.names
    dataset.update_tags(DOFA_META=layout.to_text())
    if layout.scale is not None and layout.zero is not None:
        dataset.scales, dataset.offsets = layout.scale.tolist(), layout.zero.tolist()
    if layout.colours is not None:
        dataset.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(layout.colours)})
    if layout.class_names is not None:
        dataset.update_tags(1, **{f"CLASS_{i}": name for i, name in enumerate(layout.class_names)})


def _write_names(path: Path, class_names: tuple[str, ...]) -> None:
    """Names of classes as GDAL and QGIS look for them: a GeoTIFF has no place for them inside."""
    names = "".join(f"<Category>{escape(name)}</Category>" for name in class_names)
    path.write_text(
        f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand></PAMDataset>\n',
        encoding="utf-8",
    )
