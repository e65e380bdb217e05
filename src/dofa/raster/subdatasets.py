"""Several images in one file: pages of a TIFF, variables of netCDF, HDF5 and Zarr."""

import re
from collections.abc import Sequence
from typing import Any

import rasterio
from rasterio.errors import RasterioError

from dofa.errors import listed
from dofa.raster import remote

PAGE = re.compile(r"(?:GTIFF_DIR|NITF_IM):\d+:")
# Variables that describe others rather than being images.
NO_IMAGE = re.compile(r"(spatial_ref|crs|transverse_mercator|x|y|lat(itude)?|lon(gitude)?|time|.*_bnds)", re.IGNORECASE)
MOST = 64  # parts that are looked at


def pages(dataset: Any) -> list[str]:
    """GDAL's names of the pages of a TIFF, the one that is open first; none of a file with a single page.

    Overviews and masks are no pages. Nor are smaller copies of the first that are not marked as such, as other programs
    write them.
    """
    names = [name for name in dataset.subdatasets if PAGE.match(name)]
    if len(names) < 2 or remote.is_remote(dataset.name):  # each page would be asked for
        return names if len(names) > 1 else []
    sizes = [_size(name) for name in names[:MOST]]
    whole = dataset.height, dataset.width
    kept = [n for n, size in zip(names[:MOST], sizes, strict=True) if size is not None and not _smaller(size, whole)]
    kept += names[MOST:]
    return kept if len(kept) > 1 else []


def pages_of_one_band(dataset: Any) -> list[str]:
    """The pages of a TIFF that has one band in each, all of one size and type, as programs write that know no bands."""
    names = pages(dataset)
    if remote.is_remote(dataset.name):
        return []
    kinds = set()
    for name in names:
        with rasterio.open(name) as page:
            kinds.add((page.count, page.shape, page.dtypes[0]))
    return names if len(kinds) == 1 and next(iter(kinds))[0] == 1 else []


def described(names: Sequence[str]) -> str:
    """What is said of pages that are not read.

    Args:
        names: GDAL's, of all pages.
    """
    return f"it holds {len(names)} pages, of which the first is read: name another one by {listed(names[1:], 3)}"


def images(dataset: Any) -> list[str]:
    """GDAL's names of the variables of a netCDF, HDF5 or Zarr file that are images."""
    texts = dataset.tags(ns="SUBDATASETS")
    out = []
    for i, name in enumerate(dataset.subdatasets[:MOST], 1):
        if texts.get(f"SUBDATASET_{i}_DESC", "").endswith("(8-bit character)") or NO_IMAGE.fullmatch(variable(name)):
            continue
        size = _size(name)
        if size is not None and min(size) > 1:
            out.append(name)
    return out


def unreadable(dataset: Any) -> str:
    """Why GDAL opens none of a file's variables, as of Zarr of version 3; nothing where it opens one."""
    reasons = []
    for name in dataset.subdatasets[:MOST]:
        try:
            rasterio.open(name).close()
            return ""
        except (RasterioError, IndexError) as error:
            reasons.append(remote.reason(error))
    return next((why for why in reasons if "codec" in why), reasons[0] if reasons else "")


def variable(name: str) -> str:
    """The name of a variable in GDAL's name of it: B02 of NETCDF:"x.nc":B02; the last part of any other name.

    Args:
        name: GDAL's.
    """
    return re.split(r"[:/]", name)[-1].strip('"')


def open_only_image(dataset: Any) -> Any:
    """The only image of a file of variables, opened; the data set itself where there are several, or none.

    Args:
        dataset: opened with rasterio; closed where its image is opened.
    """
    if dataset.count or not dataset.subdatasets:
        return dataset
    found = images(dataset)
    if len(found) != 1:
        return dataset
    dataset.close()
    return rasterio.open(found[0])


def _size(name: str) -> tuple[int, int] | None:
    try:
        with rasterio.open(name) as part:
            return (part.height, part.width) if part.count else None
    except (RasterioError, IndexError):
        return None


def _smaller(size: tuple[int, int], whole: tuple[int, int]) -> bool:
    """Whether a page is the whole at a lower resolution."""
    (height, width), (rows, columns) = size, whole
    if height >= rows or width >= columns:
        return False
    return abs(height * columns - width * rows) <= max(rows, columns)  # a pixel more or less from rounding
