"""The twelve sets of GEO-Bench v1 as data: what their files say, what is true of it, and what the published runs read.

Sources: ServiceNow/geo-bench (converters), torchgeo-bench, terratorch, DOFA-pytorch (bands and wavelengths of the
published evaluation), and an opened file of m-eurosat. What is inferred and not seen is said in `notes` as doubtful.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dofa import sensors
from dofa.datasets.labelled import IGNORE, Task
from dofa.pixels import Scaling
from dofa.pixels.units import Unit
from dofa.sensors import Band, Sensor

Variant = Literal["corrected", "published", "s1"]
Pairs = tuple[tuple[str, str], ...]
Spectrum = tuple[tuple[str, float], ...]

_S2: dict[str, tuple[str, float]] = {  # band of the files: our name, wavelength in DOFA's evaluation
    "01 - Coastal aerosol": ("B01", 0.443),
    "02 - Blue": ("B02", 0.49),
    "03 - Green": ("B03", 0.56),
    "04 - Red": ("B04", 0.665),
    "05 - Vegetation Red Edge": ("B05", 0.705),
    "06 - Vegetation Red Edge": ("B06", 0.74),
    "07 - Vegetation Red Edge": ("B07", 0.783),
    "08 - NIR": ("B08", 0.842),
    "08A - Vegetation Red Edge": ("B8A", 0.865),
    "09 - Water vapour": ("B09", 0.945),
    "10 - SWIR - Cirrus": ("B10", 1.375),
    "11 - SWIR": ("B11", 1.61),
    "12 - SWIR": ("B12", 2.19),
}
_BY_NUMBER = {key.split()[0]: key for key in _S2}


def _s2(*numbers: str) -> Pairs:
    return tuple((_BY_NUMBER[n], _S2[_BY_NUMBER[n]][0]) for n in numbers)


def _s2_published(*numbers: str) -> Spectrum:
    return tuple((_BY_NUMBER[n], _S2[_BY_NUMBER[n]][1]) for n in numbers)


_S2_13 = tuple(_BY_NUMBER)
_S2_12 = tuple(n for n in _S2_13 if n != "10")
_S2_10 = tuple(n for n in _S2_12 if n not in ("01", "09"))
_NINE = ("04", "03", "02", "05", "06", "07", "08", "11", "12")
_RGB: Pairs = (("Red", "R"), ("Green", "G"), ("Blue", "B"))
_BGR_DEFAULT: Spectrum = (("Blue", 0.49), ("Green", 0.56), ("Red", 0.665))
_BGR_AERIAL: Spectrum = (("Blue", 0.48), ("Green", 0.56), ("Red", 0.66))

_BIGEARTHNET = (
    "Agro-forestry areas", "Airports", "Annual crops associated with permanent crops", "Bare rock",
    "Beaches, dunes, sands", "Broad-leaved forest", "Burnt areas", "Coastal lagoons", "Complex cultivation patterns",
    "Coniferous forest", "Construction sites", "Continuous urban fabric", "Discontinuous urban fabric", "Dump sites",
    "Estuaries", "Fruit trees and berry plantations", "Green urban areas", "Industrial or commercial units",
    "Inland marshes", "Intertidal flats",
    "Land principally occupied by agriculture, with significant areas of natural vegetation",
    "Mineral extraction sites", "Mixed forest", "Moors and heathland", "Natural grassland",
    "Non-irrigated arable land", "Olive groves", "Pastures", "Peatbogs", "Permanently irrigated land", "Port areas",
    "Rice fields", "Road and rail networks and associated land", "Salines", "Salt marshes",
    "Sclerophyllous vegetation", "Sea and ocean", "Sparsely vegetated areas", "Sport and leisure facilities",
    "Transitional woodland/shrub", "Vineyards", "Water bodies", "Water courses",
)  # fmt: skip
_FORESTNET = (
    "oil palm plantation", "timber plantation", "other large-scale plantation", "grassland or shrubland",
    "small-scale agriculture", "small-scale mixed plantation", "small-scale oil palm plantation", "mining",
    "fish pond", "logging", "secondary forest", "other",
)  # fmt: skip
_SO2SAT = (
    "compact high rise", "compact mid rise", "compact low rise", "open high rise", "open mid rise", "open low rise",
    "lightweight low rise", "large low rise", "sparsely built", "heavy industry", "dense trees", "scattered trees",
    "bush or scrub", "low plants", "bare rock or paved", "bare soil or sand", "water",
)  # fmt: skip
_EUROSAT = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
    "Residential", "River", "SeaLake",
)  # fmt: skip
_CASHEW = (
    "no data", "well-managed plantation", "poorly-managed plantation", "non-plantation", "residential", "background",
    "uncertain",
)  # fmt: skip
_CROPS = (
    "no data", "lucerne or medics", "planted pastures", "fallow", "wine grapes", "weeds", "small grain grazing",
    "wheat", "canola", "rooibos",
)  # fmt: skip
# Whether the masks hold the source's codes (0 no data, 1 water …) or the position in this list is open.
_CHESAPEAKE = (
    "water (or no data)", "tree canopy (or water)", "low vegetation (or tree canopy)", "barren (or low vegetation)",
    "impervious, other (or barren)", "impervious, roads (or impervious, other)", "no data (or impervious, roads)",
)  # fmt: skip


@dataclass(frozen=True)
class GeoBenchSet:
    """One set as it is published.

    Attributes:
        task: classification, multilabel or segmentation.
        size: pixels of a side.
        gsd_m: metres a pixel.
        sensor: of the catalogue, whose bands these are.
        unit: of the physical values.
        scale: from the file's numbers to them.
        bands: name in the files and in the catalogue, of the bands that are what the catalogue says.
        published: name in the files and wavelength in micrometres, as the published evaluation fed them; a band that it
            fed twice stands twice.
        classes: names by the label in the files.
        no_data: the label in masks that stands for no data, or None.
        notes: what is wrong or doubtful, and how it is handled.
        published_notes: instead of these with `#published`.
        named: whether the sensor keeps the catalogue's name, and with it an encoder's statistics for it.
    """

    task: Task
    size: int
    gsd_m: float
    sensor: str
    unit: Unit
    scale: float
    bands: Pairs
    published: Spectrum
    classes: tuple[str, ...]
    no_data: int | None = None
    binary: bool = False
    notes: tuple[str, ...] = ()
    published_notes: tuple[str, ...] = ()
    named: bool = True


SETS: dict[str, GeoBenchSet] = {
    "m-bigearthnet": GeoBenchSet(
        "multilabel", 120, 10.0, "sentinel-2-l2a", "reflectance", 1e-4, _s2(*_S2_12), _s2_published(*_S2_12),
        _BIGEARTHNET,
        notes=("doubtful: read as surface reflectance (L2A); one other reader says top of atmosphere",),
    ),
    "m-forestnet": GeoBenchSet(
        "classification", 332, 15.0, "landsat-8-l1-toa", "uint8", 1.0,
        (("04 - Red", "B4"), ("03 - Green", "B3"), ("02 - Blue", "B2"), ("05 - NIR", "B5"), ("06 - SWIR1", "B6"),
         ("07 - SWIR2", "B7")),
        (("04 - Red", 0.66), ("03 - Green", 0.56), ("02 - Blue", 0.49), *(("05 - NIR", 0.86),) * 4,
         ("06 - SWIR1", 1.61), ("07 - SWIR2", 2.2)),
        _FORESTNET,
        named=False,
        notes=(
            "Landsat-8 rendered to 8 bits, pan-sharpened to 15 m: taken as such, not as Sentinel-2",
            "pixels outside the polygon of forest loss are blended a quarter towards white, infrared too: an image "
            "shows where it was annotated",
        ),
        published_notes=("the near infrared stands four times, in the places of Sentinel-2's bands",),
    ),
    "m-brick-kiln": GeoBenchSet(
        "classification", 64, 10.0, "sentinel-2-l1c", "reflectance", 1e-4,
        (*_s2(*_S2_13[:8]), ("08A - Vegetation Red Edge", "B11"), ("09 - Water vapour", "B12")),
        _s2_published("01", "02", "02", "03", "04", "05", "06", "07", "08", "08A", "09", "10", "12"),
        ("not a brick kiln", "brick kiln"),
        notes=(
            "bands 10, 11 and 12 of the files are 8-bit renderings of red, green and blue: left out",
            "doubtful: 08A and 09 of the files are taken as B11 and B12, which their means look like",
            "doubtful: read as top-of-atmosphere reflectance (L1C)",
        ),
        published_notes=("band names of the files, wrong from 08A on; 02 stands twice, as in the published list",),
    ),
    "m-pv4ger": GeoBenchSet(
        "classification", 320, 0.1, "rgb-aerial", "uint8", 1.0, _RGB, _BGR_DEFAULT, ("no solar pv", "solar pv"),
    ),
    "m-so2sat": GeoBenchSet(
        "classification", 32, 10.0, "sentinel-2-l1c", "reflectance", 1.0, _s2(*_S2_10), _s2_published(*_S2_10),
        _SO2SAT,
        notes=(
            "Sentinel-2 is stored as reflectance itself, 0 to 2.8: no factor",
            "doubtful: read as top-of-atmosphere reflectance (L1C)",
            "the eight Sentinel-1 channels are left out here; the two that are intensities: #s1",
        ),
    ),
    "m-eurosat": GeoBenchSet(
        "classification", 64, 10.0, "sentinel-2-l1c", "reflectance", 1e-4,
        (*_s2(*_S2_13[:8]), ("08A - Vegetation Red Edge", "B09"), ("09 - Water vapour", "B10"),
         ("10 - SWIR - Cirrus", "B11"), ("11 - SWIR", "B12"), ("12 - SWIR", "B8A")),
        _s2_published(*_S2_13),
        _EUROSAT,
        notes=(
            "band names of the files are shifted (08A holds B09, 09 B10, 10 B11, 11 B12, 12 B8A): corrected",
            "class names in task_specs.pkl stand in another order than the labels, which are alphabetical: corrected",
            "the georeference of the files is that of the set's first image: not used",
        ),
        published_notes=(
            "band names of the files, shifted from 08A on (08A holds B09, 09 B10, 10 B11, 11 B12, 12 B8A)",
        ),
    ),
    "m-pv4ger-seg": GeoBenchSet(
        "segmentation", 320, 0.1, "rgb-aerial", "uint8", 1.0, _RGB, _BGR_AERIAL, ("no solar pv", "solar pv"),
        binary=True,
    ),
    "m-nz-cattle": GeoBenchSet(
        "segmentation", 500, 0.1, "rgb-aerial", "uint8", 1.0, _RGB,
        (("Red", 0.66), ("Green", 0.56), ("Blue", 0.48)), ("no cattle", "cattle"),
        notes=("masks are discs of 6 pixels round points, not outlines of animals",),
    ),
    "m-NeonTree": GeoBenchSet(
        "segmentation", 400, 0.1, "rgb-aerial", "uint8", 1.0, _RGB, _BGR_DEFAULT, ("no tree", "tree"),
        notes=(
            "masks are ellipses at 0.6 of the crowns' boxes, not outlines of crowns",
            "canopy height is no band, and the 369 hyperspectral ones have no wavelengths stored: only the aerial "
            "image is read",
        ),
    ),
    "m-cashew-plant": GeoBenchSet(
        "segmentation", 256, 10.0, "sentinel-2-l2a", "reflectance", 1e-4, _s2(*_S2_12), _s2_published(*_NINE),
        _CASHEW, no_data=0,
        notes=(
            "areas of the test chips occur in training chips, which overlap by half and were split at random: what is "
            "learnt by heart counts as skill",
            "the files say 0.5 m; the pixels are of 10 m",
            "label 0, no data, is left out of learning and judging",
            "doubtful: read as surface reflectance (L2A)",
        ),
        published_notes=(
            "areas of the test chips occur in training chips, which overlap by half and were split at random",
            "label 0, no data, counts as a class",
        ),
    ),
    "m-SA-crop-type": GeoBenchSet(
        "segmentation", 256, 10.0, "sentinel-2-l2a", "reflectance", 1 / 255, _s2(*_S2_12),
        _s2_published(*_S2_12[:10], "11", *_S2_12[10:]), _CROPS, no_data=0,
        notes=(
            "doubtful: the numbers are 8-bit and taken as surface reflectance × 255",
            "label 0, no data, is left out of learning and judging",
            "up to five dates of one field stand as separate chips with the same mask",
        ),
        published_notes=("11 stands twice, as in the published list", "label 0, no data, counts as a class"),
    ),
    "m-chesapeake": GeoBenchSet(
        "segmentation", 256, 1.0, "naip-rgbn", "uint8", 255.0, (*_RGB, ("NearInfrared", "NIR")), _BGR_AERIAL,
        _CHESAPEAKE,
        notes=(
            "numbers are stored as 0–1 and given back as 8 bits, 0–255",
            "doubtful: whether label 0 is water or no data is not said anywhere; all seven labels count as classes",
        ),
    ),
}  # fmt: skip

_SO2SAT_S1: Pairs = (("06 - VV.LEE Filtered", "VV"), ("05 - VH.LEE Filtered", "VH"))
_SO2SAT_S1_NOTES = (
    "the two Lee-filtered channels, which are intensities; real and imaginary parts are left out",
    "doubtful: calibration unknown, read as linear power; tails are heavy",
)


@dataclass(frozen=True)
class Reading:
    """How a set is read in one variant.

    Attributes:
        sensor: bands in the order they are read.
        scaling: raw to physical.
        keys: name in the files of each band.
        classes: names of the classes that are learned.
        codes: label in the files to class, `IGNORE` for none.
        notes: told beside the numbers.
    """

    sensor: Sensor
    scaling: Scaling
    keys: tuple[str, ...]
    classes: tuple[str, ...]
    codes: Mapping[int, int]
    notes: tuple[str, ...]


def reading(name: str, variant: Variant) -> Reading:
    """How the set of that name is read.

    Args:
        name: one of `SETS`.
        variant: `corrected`, what the content is; `published`, bands, wavelengths and labels as the published
            evaluation read them; `s1`, Sentinel-1 of m-so2sat.
    """
    known = SETS[name]
    classes, ignored = known.classes, known.no_data
    if variant == "published":
        keys = tuple(key for key, _ in known.published)
        names = tuple(f"{key} {keys[:i].count(key) + 1}" if key in keys[:i] else key for i, key in enumerate(keys))
        bands = tuple(Band(n, wavelength) for n, (_, wavelength) in zip(names, known.published, strict=True))
        base = sensors.get(known.sensor)
        sensor = Sensor(f"{name}-published", bands, known.gsd_m, platform=base.platform, level=base.level)
        notes = ("bands, wavelengths and labels as published (DOFA-pytorch)", *known.published_notes)
        ignored = None
    else:
        pairs = _SO2SAT_S1 if variant == "s1" else known.bands
        keys = tuple(key for key, _ in pairs)
        base = sensors.get("sentinel-1-rtc" if variant == "s1" else known.sensor)
        sensor = replace(base.select([band for _, band in pairs]), gsd_m=known.gsd_m, scaling=None)
        if not known.named:
            sensor = replace(sensor, name=name, aliases=(), level="8-bit rendering")
        notes = _SO2SAT_S1_NOTES if variant == "s1" else known.notes
    if ignored is not None:
        classes = classes[:ignored] + classes[ignored + 1 :]
    codes = {code: code for code in range(len(known.classes))}
    if known.binary:
        codes = {code: int(code > 0) for code in range(256)}
    elif ignored is not None:
        codes = {code: code - (code > ignored) for code in codes}
        codes[ignored] = IGNORE
    unit: Unit = "linear_power" if variant == "s1" else known.unit
    scaling = Scaling.uniform(unit, sensor.band_names, known.scale)
    return Reading(sensor, scaling, keys, classes, codes, notes)
