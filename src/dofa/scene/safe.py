"""Sentinel-2 products as ESA hands them out: a SAFE folder, or the zip it came in, of level 1C or 2A.

Everything is in the product's own metadata: which file holds which band, the quantification, the offset that processing
baseline 04.00 introduced, and the number for no data. Each band is taken at the resolution the instrument measured it.
"""

import re
import zipfile
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from dofa import sensors
from dofa.errors import DataError
from dofa.pixels import Scaling
from dofa.scene.files import BandFile, Part, Product
from dofa.sensors import Sensor

METADATA = {"MTD_MSIL1C.xml": "sentinel-2-l1c", "MTD_MSIL2A.xml": "sentinel-2-l2a"}
# Which band a band_id of the metadata means (the list Spectral_Information_List repeats it where it is present).
BAND_IDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
IMAGE = re.compile(r".*[_/](B\d[\dA]|SCL)(?:_(\d\d)m)?")
LARGEST = 64 * 2**20  # bytes of metadata; real ones have some hundred thousand
SCL_GSD_M = 20
Folder = Path | zipfile.Path


def is_safe(path: Path) -> bool:
    """Whether this is a Sentinel-2 product: its folder, its metadata file, or a zip of the folder."""
    return path.name in METADATA or (path.suffix.lower() in ("", ".safe", ".zip") and _root(path) is not None)


def read_safe(path: Path) -> Product:
    """Understand a product from its metadata; no image is opened.

    Raises:
        DataError: incomplete or contradictory; one line with the file and the cure.
    """
    root = path.parent if path.name in METADATA else _root(path)
    if root is None:
        raise DataError(f"{path} holds no {' or '.join(METADATA)}")
    title = next(name for name in METADATA if (root / name).is_file())
    sensor = sensors.get(METADATA[title])
    tree = parse_xml((root / title).read_bytes(), f"{root.name}/{title}")
    images = _images(root, tree, title)
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


def parse_xml(data: bytes, what: str) -> Element:
    """An XML document as a tree; one that declares its own grammar or entities is refused, unread.

    Args:
        data: the document.
        what: its name, for messages.

    Raises:
        DataError: damaged, too large, or not plain.
    """
    if len(data) > LARGEST:
        raise DataError(f"{what} is larger than {LARGEST // 2**20} MB: it is no metadata")
    builder, parser = TreeBuilder(), expat.ParserCreate(namespace_separator="}")

    def refuse(*_: object) -> None:
        raise DataError(f"{what} declares a document type, which product metadata never do: it is not read")

    parser.StartDoctypeDeclHandler = refuse  # without one there are no entities: no bombs, no files from elsewhere
    parser.StartElementHandler = lambda tag, attributes: builder.start(tag.rsplit("}", 1)[-1], attributes)
    parser.EndElementHandler = lambda tag: builder.end(tag.rsplit("}", 1)[-1])
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
        return builder.close()
    except expat.ExpatError as error:
        raise DataError(f"{what} is damaged: {error}: download it again") from None


def _root(path: Path) -> Folder | None:
    """The folder that holds the metadata; a zip holds it one level down."""
    if path.is_dir():
        return path if any((path / name).is_file() for name in METADATA) else None
    if path.suffix.lower() != ".zip" or not zipfile.is_zipfile(path):
        return None
    inside = list(zipfile.Path(path).iterdir())
    return next((f for f in inside if f.is_dir() and any((f / name).is_file() for name in METADATA)), None)


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
        if found is None or ".." in parts or parts[0] == "":
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
            return float(text or "")
        except ValueError:
            raise DataError(f"{name}: {told.tag} is {text!r} in its metadata, which is no number") from None

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
        if special.findtext("SPECIAL_VALUE_TEXT", "").strip() == "NODATA" and text.isdigit():
            return float(text)
    return 0.0
