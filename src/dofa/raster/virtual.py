"""Which of GDAL's formats a name may be of: files that name other files or services are read only where they are meant.

GDAL tells formats by content. A `.tif` from a server may be the text of a VRT, which reads any file of this machine, or
of a web service, which asks other servers and writes a cache here.
"""

from functools import cache
from pathlib import Path

import rasterio

from dofa.addresses import shown
from dofa.documents import parse_xml, read_bytes
from dofa.errors import DataError, short
from dofa.raster import remote

# Descriptions of services, and lists of files elsewhere: they fetch, and some write a cache into the working directory.
_SERVICES = frozenset(
    {"WMS", "WMTS", "WCS", "OGCAPI", "EEDA", "EEDAI", "PLMOSAIC", "DAAS", "NGW", "HTTP", "STACIT", "STACTA", "GTI",
     "MRF", "RPFTOC", "ECRGTOC", "PLSCENES", "RASTERLITE", "PostGISRaster", "GeoRaster"}
)  # fmt: skip
# Over a network only what holds its pixels itself.
_FROM_NETWORK = (
    "GTiff", "COG", "LIBERTIFF", "JP2OpenJPEG", "JP2KAK", "JP2ECW", "JP2MrSID", "PNG", "JPEG", "WEBP", "GIF", "BMP",
    "netCDF", "HDF5", "HDF5Image", "BAG", "HDF4", "HDF4Image", "Zarr", "ENVI", "EHdr", "HFA", "GRIB", "NITF", "AAIGrid",
    "SRTMHGT", "JPEGXL",
)  # fmt: skip


def drivers_for(path: str) -> list[str]:
    """GDAL's drivers that may open a file, by their short names.

    Args:
        path: as the user or an item names it.
    """
    if remote.is_remote(path):
        return [name for name in _FROM_NETWORK if name in _all()]
    virtual = path.lower().endswith(".vrt") or path.lower().startswith("vrt://")
    return [name for name in _all() if name not in _SERVICES and (virtual or name != "VRT")]


@cache
def _all() -> tuple[str, ...]:
    with rasterio.Env() as env:
        return tuple(env.drivers())


def check_virtual(path: str) -> list[str]:
    """Refuse a virtual file (VRT) that comes over a network, and one here that leads to such a file.

    Args:
        path: as the user or an item names it.

    Returns:
        What of the network it names, each once. Whether those are images their content tells, not their names: open
        them with `drivers_for` first.

    Raises:
        DataError: it, or a source in it, is a VRT from the network, which may name any file of this machine; or it is
            no XML.
    """
    cure = "download it, look which files it names, and open it here"
    if remote.is_remote(path) and (remote.suffix(path) == ".vrt" or path.lower().startswith("vrt:")):
        raise DataError(f"{shown(path)} is a virtual file from the network, which may read files here: {cure}")
    if remote.is_remote(path) or not path.lower().endswith(".vrt") or not Path(path).is_file():
        return []
    far: dict[str, None] = {}
    for element in parse_xml(read_bytes(Path(path)), path).iter():
        named = (element.text or "").strip()
        if not remote.is_remote(named):
            continue
        if remote.suffix(named) == ".vrt" or "vrt://" in named.lower():
            raise DataError(f"{path} names a virtual file from the network, {short(shown(named))}: {cure}")
        far[named] = None
    return list(far)
