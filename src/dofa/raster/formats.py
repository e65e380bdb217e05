"""Why a file was not opened: formats and compressions that builds of GDAL leave out, and what is no image at all."""

import re
from functools import cache
from pathlib import Path

import rasterio

from dofa.addresses import redact
from dofa.documents import parse_xml, read_bytes
from dofa.errors import DataError, shorten
from dofa.raster import remote

# Formats that builds of GDAL may leave out: by the first bytes of a file, and by its ending.
SIGNATURES = {
    b"\x0e\x03\x13\x01": "HDF4",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"CDF": "netCDF",
    b"msid": "MrSID",
    b"\x00\x00\x00\x0cjP  ": "JP2OpenJPEG",
    b"\xffO\xffQ": "JP2OpenJPEG",
    b"GRIB": "GRIB",
    b"SIMPLE  =": "FITS",
}
ENDINGS = {
    ".nc": "netCDF", ".nc4": "netCDF", ".zarr": "Zarr", ".h5": "HDF5", ".he5": "HDF5", ".jp2": "JP2OpenJPEG",
    ".sid": "MrSID", ".ecw": "ECW", ".grib": "GRIB", ".grb2": "GRIB", ".fits": "FITS", ".jxl": "JPEGXL",
    ".avif": "AVIF",
}  # fmt: skip
# Formats whose driver conda-forge has in a package of its own, libgdal-hdf4 and so on.
PACKAGED = ("HDF4", "HDF5", "netCDF", "JP2OpenJPEG", "GRIB", "FITS")
# MrSID and ECW need their owners' libraries, which few builds have.
OWNED = ("MrSID", "ECW")
ARCHIVE = re.compile(r"\.(tar|tgz|tar\.gz|tar\.bz2|tar\.xz|gz|7z|rar|zip)$", re.IGNORECASE)


def why_unopened(path: str, why: str, drivers: set[str]) -> str:
    """The reason why a file was not opened, with the cure.

    Args:
        path: as given.
        drivers: the formats that this build of GDAL reads.
    """
    if "missing codec" in why:
        return f"{_codec(why)}, which this build of GDAL does not decode: {_convert('')} -co COMPRESS=DEFLATE)"
    if why.startswith("Unsupported codec"):
        return (
            f"{why}: GDAL {rasterio.__gdal_version__} reads no sharded Zarr and none of version 3: write it with "
            "zarr_format=2, or as GeoTIFF"
        )
    if "AWS_NO_SIGN_REQUEST" in why:
        return "set AWS_NO_SIGN_REQUEST=YES for a public bucket, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    head = _head(path)
    driver = next((name for start, name in SIGNATURES.items() if head.startswith(start)), None)
    driver = driver or ENDINGS.get(remote.suffix(path))
    if driver is not None and driver not in drivers:
        where = f"of conda-forge, with libgdal-{driver.lower()}" if driver in PACKAGED else ""
        where = "the one of QGIS for Windows" if driver in OWNED else where
        return f"the GDAL of this rasterio reads no {driver} files: {_convert(where)})"
    if not Path(path).is_file():
        return why
    return _no_image(path, head) or f"{why.rstrip('.')}: no image, or a truncated one: copy or download it again"


def _codec(why: str) -> str:
    found = re.search(r"missing codec (?:of code )?(\w+)", why)
    return f"it is compressed with {'code ' if found and found[1].isdigit() else ''}{found[1] if found else 'a codec'}"


def _convert(where: str) -> str:
    return f"convert it with a GDAL that does ({where + ': ' if where else ''}gdal_translate IN OUT.tif"


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(512)
    except OSError:
        return b""


def _no_image(path: str, head: bytes) -> str | None:
    """What a file is that is no image; None where that is not known."""
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    name = Path(path).name.lower()
    if not head:
        return "it is empty: download it again"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself: git lfs pull"
    if text.startswith((b"<!doctype html", b"<html")):
        return "it is a web page, as servers send in place of a file that needs a log-in: download it again, logged in"
    if ARCHIVE.search(name) or head[257:262] == b"ustar" or head.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        return "it is an archive: unpack it and name the folder or the file in it"
    if name.endswith(("_mtl.txt", "_mtl.xml", "_mtl.json", "_ang.txt", ".met")):
        return "it holds metadata: name the folder that it lies in"
    if text.startswith(b"<?xml") or name.endswith(".xml"):
        return "it holds metadata: name the product's folder (of Sentinel-2 the .SAFE), or the image itself"
    return None


# -- Formats that name other files or services: read only where they are meant.

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
        raise DataError(f"{redact(path)} is a virtual file from the network, which may read files here: {cure}")
    if remote.is_remote(path) or not path.lower().endswith(".vrt") or not Path(path).is_file():
        return []
    far: dict[str, None] = {}
    for element in parse_xml(read_bytes(Path(path)), path).iter():
        named = (element.text or "").strip()
        if not remote.is_remote(named):
            continue
        if remote.suffix(named) == ".vrt" or "vrt://" in named.lower():
            raise DataError(f"{path} names a virtual file from the network, {shorten(redact(named))}: {cure}")
        far[named] = None
    return list(far)
