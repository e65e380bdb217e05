"""The sets of GEO-Bench-2 that are read, as data: what their parts are, whose bands these have, what the labels are.

Sources: opened files of benv2, treesatai and pastis (upstream's test fixtures, nine samples each), and the band and
class lists of The-AI-Alliance/GEO-Bench-2; of spacenet7 those lists and upstream's writer of the file alone. Where the
content contradicts the lists, `notes` say so.
"""

from dataclasses import dataclass, replace

from dofa import sensors
from dofa.datasets.labelled import Task
from dofa.pixels import Scaling
from dofa.pixels.units import Unit
from dofa.sensors import Sensor


@dataclass(frozen=True)
class Modality:
    """The part of every sample that is an image.

    Attributes:
        sensor: of the catalogue.
        bands: of that sensor, in the order of the file; None for a channel that is no band.
        unit: of the physical values.
        scale: from the file's numbers to them.
        gsd_m: metres a pixel.
        series: whether the part is (T, C, H, W), one image a date.
        notes: what is wrong or doubtful.
    """

    sensor: str
    bands: tuple[str | None, ...]
    unit: Unit
    scale: float
    gsd_m: float
    series: bool = False
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[int]:
        """The channels that are bands."""
        return [i for i, band in enumerate(self.bands) if band is not None]

    def described(self) -> Sensor:
        """The sensor with these bands and the set's own scaling."""
        sensor = replace(sensors.get(self.sensor), scaling=None)
        sensor = sensor.select([band for band in self.bands if band is not None])
        return replace(
            sensor, gsd_m=self.gsd_m, scaling=Scaling.uniform(self.unit, sensor.band_names, self.scale), aliases=()
        )


@dataclass(frozen=True)
class TortillaSet:
    """One set of GEO-Bench-2.

    Attributes:
        task: multilabel or segmentation.
        modalities: by the id of the part; the first one is read where none is named.
        classes: names in the order of the labels.
        labels: column with the names of a sample's classes, of multilabel.
        mask: part that is the mask, of segmentation.
        ignored: label in the mask that is not learned, or None.
        place: column that names the place, or None for cells of one degree.
        notes: what is wrong or doubtful with all of it.
    """

    task: Task
    modalities: dict[str, Modality]
    classes: tuple[str, ...]
    labels: str = ""
    mask: str = ""
    ignored: int | None = None
    place: str | None = None
    notes: tuple[str, ...] = ()


_RATIO = "the third channel, a ratio of the other two, is no band: left out"

SETS: dict[str, TortillaSet] = {
    "benv2": TortillaSet(
        "multilabel",
        {
            "s2": Modality(
                "sentinel-2-l2a",
                ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"),
                "reflectance", 1e-4, 10.0,
            ),
            "s1": Modality(
                "sentinel-1-grd", ("VH", "VV"), "db", 1.0, 10.0,
                notes=("the lists upstream say VV, VH; in every opened sample the first band is 5 to 15 dB below the "
                       "second, as VH is below VV: read as VH, VV",),
            ),
        },
        (
            "Urban fabric", "Industrial or commercial units", "Arable land", "Permanent crops", "Pastures",
            "Complex cultivation patterns",
            "Land principally occupied by agriculture, with significant areas of natural vegetation",
            "Agro-forestry areas", "Broad-leaved forest", "Coniferous forest", "Mixed forest",
            "Natural grassland and sparsely vegetated areas", "Moors, heathland and sclerophyllous vegetation",
            "Transitional woodland, shrub", "Beaches, dunes, sands", "Inland wetlands", "Coastal wetlands",
            "Inland waters", "Marine waters",
        ),
        labels="labels",
        notes=("the georeference of Sentinel-2 says 60 m at 120 pixels and is wrong: not used",),
    ),
    "treesatai": TortillaSet(
        "multilabel",
        {
            "aerial": Modality(
                "naip-rgbn", ("NIR", "G", "B", "R"), "uint8", 1.0, 0.2,
                notes=("doubtful: the list upstream says red, green, blue, infrared; over trees the first channel is "
                       "the brightest and the last the darkest, and the statistics upstream say infrared, green, "
                       "blue, red: read so",),
            ),
            "s2": Modality(
                "sentinel-2-l2a",
                ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09"),
                "reflectance", 1e-4, 10.0,
            ),
        },
        ("Abies", "Acer", "Alnus", "Betula", "Cleared", "Fagus", "Fraxinus", "Larix", "Picea", "Pinus", "Populus",
         "Prunus", "Pseudotsuga", "Quercus", "Tilia"),
        labels="species_labels",
    ),
    "pastis": TortillaSet(
        "segmentation",
        {
            "s2": Modality(
                "sentinel-2-l2a", ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
                "reflectance", 1e-4, 10.0, series=True,
            ),
            "s1a": Modality("sentinel-1-grd", ("VV", "VH", None), "db", 1.0, 10.0, True, (_RATIO,)),
            "s1d": Modality("sentinel-1-grd", ("VV", "VH", None), "db", 1.0, 10.0, True, (_RATIO,)),
        },
        (
            "background", "meadow", "soft winter wheat", "corn", "winter barley", "winter rapeseed", "spring barley",
            "sunflower", "grapevine", "beet", "winter triticale", "winter durum wheat", "fruits, vegetables, flowers",
            "potatoes", "leguminous fodder", "soybeans", "orchard", "mixed cereal", "sorghum",
        ),
        mask="semantic",
        ignored=19,
        place="tile",
        notes=("label 19, void, is left out of learning and judging",),
    ),
    "spacenet7": TortillaSet(
        "segmentation",
        {
            "images": Modality(
                "planetscope-4", ("red", "green", "blue", None), "uint8", 1.0, 4.0,
                notes=("doubtful: the list upstream calls the fourth channel infrared, but reads three by default; "
                       "8-bit colour mosaics of Planet have their opacity there: left out",),
            ),
        },
        ("no building", "building"),
        mask="mask",
        place="aoi",
        notes=("the mask holds 0 and 1; upstream adds 1 and counts three classes, of which the first never occurs",),
    ),
}  # fmt: skip

BOXES = {"everwatch", "nzcattle"}  # whose labels are boxes around things
