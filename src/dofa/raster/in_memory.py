"""GeoTIFFs and pictures that lie in memory or in an archive, decoded only where their size is what one expects."""

import io
import struct
import warnings
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from dofa.errors import DataError

LARGEST = 2**30  # bytes of pixels; the largest part of a published set, a year of Sentinel-2, has 150 MB


@contextmanager
def decoding(what: str, kind: str) -> Iterator[None]:
    """Whatever GDAL or Pillow says of a damaged file, told as a DataError with its name.

    Args:
        kind: of file that it should be.
    """
    try:
        yield
    except DataError:
        raise
    # GDAL's and Pillow's words for files that are cut off, overwritten or larger than they decode, tags that are no
    # text, types that NumPy does not have, sizes beyond a machine's.
    except (RasterioError, CPLE_BaseError, OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError,
            MemoryError, struct.error, zlib.error, Image.DecompressionBombError) as error:  # fmt: skip
        raise DataError(f"{what} is no whole {kind} ({error}): fetch it again") from None


def read_geotiff(data: bytes, what: str, largest: int = LARGEST) -> NDArray[Any]:
    """The bands of a GeoTIFF.

    Args:
        largest: bytes of pixels that are decoded.

    Returns:
        (C, H, W) in the file's type.

    Raises:
        DataError: no whole GeoTIFF, or a header that promises more pixels than are expected.
    """
    with decoding(what, "GeoTIFF"):
        if not data:
            raise DataError(f"{what} is empty: fetch it again")
        with warnings.catch_warnings(), MemoryFile(data) as memory:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with memory.open(driver="GTiff") as dataset:
                pixels = dataset.count * dataset.height * dataset.width
                if pixels * max((np.dtype(kind).itemsize for kind in dataset.dtypes), default=1) > largest:
                    size = f"{dataset.count} × {dataset.height} × {dataset.width}"
                    raise DataError(f"{what} claims {size} pixels, more than it can be: fetch it again")
                array: NDArray[Any] = dataset.read()
    return array


def read_picture(
    data: bytes, what: str, formats: Collection[str], modes: Collection[str] = ("RGB",), largest: int = LARGEST
) -> NDArray[np.uint8]:
    """A JPEG or PNG as Pillow decodes it.

    Args:
        formats: Pillow's names of those it may be of.
        modes: Pillow's names of the pixels it may have.
        largest: bytes of pixels that are decoded.

    Returns:
        (H, W) or (H, W, C).

    Raises:
        DataError: no whole picture, of other pixels, or with a header that promises more than are expected.
    """
    with decoding(what, " or ".join(formats)), Image.open(io.BytesIO(data), formats=[*formats]) as image:
        if image.mode not in modes:
            raise DataError(f"{what} has mode {image.mode}; {' or '.join(modes)} is expected")
        if image.width * image.height * len(image.getbands()) > largest:
            raise DataError(f"{what} claims {image.height} × {image.width} pixels: fetch it again")
        return np.asarray(image)
