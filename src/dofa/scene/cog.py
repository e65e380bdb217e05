"""Cloud-optimised GeoTIFF: one file that QGIS, GDAL and rasterio open as it is."""

from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import rasterio
import rasterio.shutil

from dofa.raster.gdal import OPTIONS
from dofa.scene.layout import Layout

if TYPE_CHECKING:
    from dofa.scene.outputs import Values

CACHE_BYTES = 1 << 26  # GDAL's own default is 5 % of the machine


def write_cog(layout: Layout, values: "Values", target: Path) -> None:
    """Write (H, W, K) numbers as a COG.

    The tiles hold all channels of a place, so their side shrinks as channels grow, from 512 cells down to 32: about
    1 MB a tile. Class maps get overviews by the most frequent class, others by the mean. GDAL before 3.11 knows 16-bit
    floats only as a way to store float32: readers see float32.

    GDAL copies a file into a COG, so the numbers lie in a plain GeoTIFF beside it for that while.
    """
    side = layout.side(32, 512)
    half = {"NBITS": 16} if layout.dtype == "float16" else {}
    plain = target.with_name("plain.tif")
    with rasterio.Env(**OPTIONS, GDAL_CACHEMAX=CACHE_BYTES):
        with rasterio.open(
            plain,
            "w",
            driver="GTiff",
            width=layout.width,
            height=layout.height,
            count=layout.channels,
            dtype="float32" if half else layout.dtype,
            crs=None if layout.crs is None else rasterio.crs.CRS.from_user_input(layout.crs),
            transform=rasterio.Affine(*layout.transform),
            nodata=layout.nodata,
            tiled=True,
            blockxsize=side,
            blockysize=side,
            interleave="pixel",
            BIGTIFF="IF_SAFER",
            **half,
        ) as dataset:
            _describe(dataset, layout)
            for window in layout.pieces(side):
                at = rasterio.windows.Window(window.col, window.row, window.width, window.height)
                dataset.write(values.read(window).astype(dataset.dtypes[0], copy=False), window=at)
        rasterio.shutil.copy(
            plain,
            target,
            driver="COG",
            BLOCKSIZE=side,
            BIGTIFF="IF_SAFER",
            NUM_THREADS="ALL_CPUS",
            OVERVIEWS="IGNORE_EXISTING",
            **_coding(layout),
            **half,
        )
    plain.unlink()
    if layout.class_names is not None:
        _write_names(target.with_name(f"{target.name}.aux.xml"), layout.class_names)


def _coding(layout: Layout) -> dict[str, Any]:
    """Class maps are compressed as every reader can read it, features as fast as GDAL can."""
    if layout.dtype == "uint8":
        return {"COMPRESS": "DEFLATE", "OVERVIEW_RESAMPLING": "MODE"}
    return {"COMPRESS": "ZSTD", "LEVEL": 1, "PREDICTOR": "YES", "OVERVIEW_RESAMPLING": "AVERAGE"}


def _describe(dataset: Any, layout: Layout) -> None:
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
