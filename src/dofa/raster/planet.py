"""Planet's analytic products: radiance × 100 unless the name says surface reflectance, and the XML file beside them."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dofa.documents import LARGEST, parse_json, parse_xml
from dofa.errors import DataError
from dofa.pixels import Scaling
from dofa.raster.factors import FileNumbers
from dofa.raster.physical_values import ResolvedScaling
from dofa.sensors import Sensor

RADIANCE_SCALE = 0.01  # radiometricScaleFactor of every analytic product: counts to W m-2 sr-1 um-1
# 20240601_100031_45_2440_3B_AnalyticMS_8b.tif; with _SR behind it is surface reflectance.
ANALYTIC = re.compile(r"_(1B|3A|3B)_(Basic_?)?Analytic(MS)?(?!.*_SR)(_|\.|$)", re.IGNORECASE)


def resolve_analytic(path: str, sensor: Sensor, numbers: FileNumbers, places: Sequence[int]) -> ResolvedScaling | None:
    """What the numbers of a file of top-of-atmosphere radiance mean; None where it is none, or its tags say it.

    With Planet's XML file beside it they become top-of-atmosphere reflectance by the coefficients in it. Without, they
    are read as radiance, which is another unit than that of the sensor's surface reflectance.

    Args:
        numbers: what the file says of them.
        places: GDAL's number of each band.

    Raises:
        DataError: an XML file that cannot be read.
    """
    product = sensor.scaling
    if not sensor.platform.startswith("planetscope") or product is None or product.unit != "reflectance":
        return None
    if numbers.scaled or any(numbers.units) or not (ANALYTIC.search(Path(path).name) or _uncorrected(numbers)):
        return None
    names = sensor.band_names
    side = _side_file(Path(path))
    found = None if side is None else coefficients(side)
    if side is not None and found is not None and all(place in found for place in places):
        scaling = Scaling.uniform("reflectance", names, [found[place] for place in places], physical_source="file")
        text = (
            f"radiance, made top-of-atmosphere reflectance by the reflectanceCoefficient of {side.name}; "
            f"{sensor.name} is surface reflectance (_SR)"
        )
        return ResolvedScaling(scaling, notes=(("toa-reflectance", text),))
    text = (
        "an analytic product without _SR is radiance × 100, not surface reflectance, and is read so: take the _SR "
        "product, put its _metadata.xml beside it for top-of-atmosphere reflectance, or, if it is surface reflectance, "
        "say --unit dn"
    )
    scaling = Scaling.uniform("radiance", names, RADIANCE_SCALE, physical_source="file")
    return ResolvedScaling(scaling, assumptions=(("radiance", text),))


def coefficients(path: Path) -> dict[int, float] | None:
    """Factor from counts to top-of-atmosphere reflectance by number of band; None where the file has none.

    Raises:
        DataError: no XML, or factors that are no numbers.
    """
    with path.open("rb") as file:
        tree = parse_xml(file.read(LARGEST + 1), str(path))
    out = {}
    for band in tree.iter("bandSpecificMetadata"):
        number, factor = (band.findtext(name) for name in ("bandNumber", "reflectanceCoefficient"))
        if number is None or factor is None:
            continue
        try:
            out[int(number)] = float(factor)
        except ValueError:
            raise DataError(f"{path}: band {number} has the reflectanceCoefficient {factor!r}, no number") from None
    if not all(np.isfinite(value) and value > 0 for value in out.values()):
        raise DataError(f"{path}: a reflectanceCoefficient is not above 0")
    return out or None


def _side_file(path: Path) -> Path | None:
    """The _metadata.xml of a product, clipped or not."""
    if not path.parent.is_dir():
        return None
    stem = re.sub(r"_clip$", "", path.stem, flags=re.IGNORECASE)
    known = {f"{stem}{end}".lower() for end in ("_metadata.xml", "_metadata_clip.xml", "_clip_metadata.xml")}
    # Orders of a file name it after the asset, which a clip or a mosaic may have left behind.
    known |= {f"{path.stem}.xml".lower(), f"{path.stem}_metadata.xml".lower()}
    return next((side for side in sorted(path.parent.glob("*.[xX][mM][lL]")) if side.name.lower() in known), None)


def _uncorrected(numbers: FileNumbers) -> bool:
    """Whether Planet's own tag says that nothing was corrected for the atmosphere; a renamed file keeps it."""
    try:
        said = parse_json(numbers.tags.get("TIFFTAG_IMAGEDESCRIPTION", ""), "TIFFTAG_IMAGEDESCRIPTION")
    except DataError:
        return False
    return isinstance(said, dict) and "atmospheric_correction" in said and not said["atmospheric_correction"]
