"""Sentinel-2 products as ESA hands them out: a SAFE folder, or the zip it came in, of level 1C or 2A.

Everything is in the product's own metadata: which file holds which band, the quantification, the offset that processing
baseline 04.00 introduced, and the number for no data. Each band is taken at the resolution the instrument measured it.
"""

import math
import re
import zipfile
import zlib
from pathlib import Path
from xml.etree.ElementTree import Element

from dofa import sensors
from dofa.documents import LARGEST, parse_xml
from dofa.errors import DataError, shorten
from dofa.pixels import Scaling
from dofa.scene.layers import BandFile, Part, Product
from dofa.sensors import Sensor

METADATA = {"MTD_MSIL1C.xml": "sentinel-2-l1c", "MTD_MSIL2A.xml": "sentinel-2-l2a"}
# Which band a band_id of the metadata means (the list Spectral_Information_List repeats it where it is present).
BAND_IDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
IMAGE = re.compile(r".*[_/](B\d[\dA]|SCL)(?:_(\d\d)m)?")
SCL_GSD_M = 20
Folder = Path | zipfile.Path
# What zipfile says of archives cut off, overwritten, encrypted or of a compression it lacks.
_DAMAGED = (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError, LookupError)


def is_safe(path: Path) -> bool:
    """Whether this is a Sentinel-2 product: its folder, its metadata file, or a zip of the folder."""
    return path.name in METADATA or (path.suffix.lower() in ("", ".safe", ".zip") and _root(path) is not None)


def read_safe(path: Path) -> Product:
    """Understand a product from its metadata; no image is opened.

    Raises:
        DataError: incomplete or contradictory; one line with the file and the cure.
    """
    root = path.parent if path.name in METADATA else _root(path)
    title = None if root is None else next((name for name in METADATA if (root / name).is_file()), None)
    if root is None or title is None:
        raise DataError(f"{path} holds no {' or '.join(METADATA)}")
    sensor = sensors.get(METADATA[title])
    try:
        with (root / title).open("rb") as file:  # of a zip no more is unpacked than metadata have
            tree = parse_xml(file.read(LARGEST + 1), f"{root.name}/{title}")
        images = _images(root, tree, title)
    except _DAMAGED as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged ({error}): download it again") from None
    bands = tuple(band for band in sensor.bands if band.name in images)
    if not bands:
        raise DataError(f"{root.name}: not one of the images its metadata name is there: download it again")
    sensor = sensor.select([band.name for band in bands])
    warnings = []
    lost = [b.name for b in sensors.get(METADATA[title]).bands if b.name not in images]
    if lost:
        warnings.append(f"bands-left-out: {root.name}: no images of {', '.join(lost)} in it")
    files = []
    for band in bands:
        at = images[band.name]
        gsd = band.gsd_m or sensor.gsd_m
        best = min(at, key=lambda g: (g != gsd, g))
        files.append(BandFile(at[best], (band.name,), (1,), _no_data(tree)))
    classes = {"SCL": (images["SCL"][min(images["SCL"])], 1)} if "SCL" in images else {}
    return Product(root.name, Part(sensor, _scaling(tree, sensor, root.name), tuple(files)), classes, tuple(warnings))


def _root(path: Path) -> Folder | None:
    """The folder that holds the metadata; a zip holds it one level down."""
    if path.is_dir():
        return path if any((path / name).is_file() for name in METADATA) else None
    if path.suffix.lower() != ".zip" or not zipfile.is_zipfile(path):
        return None
    try:
        inside = list(zipfile.Path(path).iterdir())
        return next((f for f in inside if f.is_dir() and any((f / name).is_file() for name in METADATA)), None)
    except _DAMAGED as error:
        raise DataError(f"{path} is a damaged zip ({error}): download it again") from None


def _images(root: Folder, tree: Element, title: str) -> dict[str, dict[float, str]]:
    """What GDAL opens for each band by resolution in metres; only files that are there."""
    granules = [g for g in tree.iter() if g.tag in ("Granule", "Granules")]
    if len(granules) != 1:
        raise DataError(f"{root.name}: {title} names {len(granules)} granules; one tile a product is read")
    native = {band.name: band.gsd_m or 10.0 for band in sensors.get(METADATA[title]).bands}
    out: dict[str, dict[float, str]] = {}
    for named in [e.text or "" for e in granules[0] if e.tag in ("IMAGE_FILE", "IMAGE_ID")]:
        found = IMAGE.fullmatch(named.strip())
        parts = named.strip().split("/")
        if found is None or ".." in parts or parts[0] == "" or max(map(len, parts)) > 200:
            continue  # true colour, aerosol, water vapour; or a way out of the folder
        for ending in ("jp2", "tif"):
            file = root.joinpath(*parts[:-1], f"{parts[-1]}.{ending}")
            if file.is_file():
                gsd = float(found[2]) if found[2] else native.get(found[1], SCL_GSD_M)
                out.setdefault(found[1], {})[gsd] = _href(file)
                break
    return out


def _href(file: Folder) -> str:
    if isinstance(file, zipfile.Path):
        return f"/vsizip/{Path(str(file.root.filename)).absolute()}/{file.at}"
    return str(file.absolute())


def _scaling(tree: Element, sensor: Sensor, name: str) -> Scaling:
    """Reflectance = (number + offset) / quantification, each from the metadata."""

    def figure(told: Element, text: str | None) -> float:
        try:
            found = float(text or "")
        except ValueError:
            found = math.nan
        if not abs(found) < 1e9:
            raise DataError(f"{name}: {told.tag} is {shorten(repr(text))} in its metadata, which is no such number")
        return found

    quantities = [e for e in tree.iter() if e.tag in ("BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE")]
    quantity = figure(quantities[0], quantities[0].text) if quantities else 0.0
    if not quantity > 0:
        raise DataError(f"{name}: its metadata lack the quantification value: download it again")
    known = {alias.lower(): band.name for band in sensor.bands for alias in (band.name, *band.aliases)}
    names = {str(number): band for number, band in enumerate(BAND_IDS)}
    names |= {e.get("bandId", ""): e.get("physicalBand", "") for e in tree.iter("Spectral_Information")}
    told = [e for e in tree.iter() if e.tag in ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET")]
    by_band = {known.get(names.get(e.get("band_id", ""), "").lower()): figure(e, e.text) for e in told}
    baseline = next((figure(e, e.text) for e in tree.iter("PROCESSING_BASELINE")), 0.0)
    lacking = [band for band in sensor.band_names if band not in by_band]
    if lacking and (told or baseline >= 4):
        raise DataError(
            f"{name}: processing baseline {baseline:05.2f}, but its metadata give no offset for {', '.join(lacking)}: "
            "download it again, or open the band files as a list with --dn-offset"
        )
    offset = [by_band.get(band, 0.0) / quantity for band in sensor.band_names]
    return Scaling.uniform("reflectance", sensor.band_names, 1 / quantity, offset, None, "file")


def _no_data(tree: Element) -> float:
    """The number for no data; 0 in every product there is."""
    for special in tree.iter("Special_Values"):
        text = special.findtext("SPECIAL_VALUE_INDEX", "").strip()
        if special.findtext("SPECIAL_VALUE_TEXT", "").strip() == "NODATA" and re.fullmatch("[0-9]{1,5}", text):
            return float(text)
    return 0.0
