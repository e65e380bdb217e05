"""What the names of files say: the band, and the product."""

import re
from collections.abc import Iterator
from datetime import date, timedelta
from typing import TYPE_CHECKING

from dofa.addresses import redact
from dofa.raster.band_names import match
from dofa.sensors import Sensor

# What producers put before everything else in the names of their files.
PRODUCTS = {
    r"S2[A-D]_MSIL1C_": "sentinel-2-l1c",
    r"S2[A-D]_MSIL2A_": "sentinel-2-l2a",
    r"(?:L2A_)?T\d\d[A-Z]{3}_\d{8}T\d{6}_[A-Z0-9]{3}_[126]0m\.": "sentinel-2-l2a",
    r"L[CE]0([789])_L2S[PR]_": "landsat-{}-l2-sr",
    r"LT0(5)_L2S[PR]_": "landsat-{}-l2-sr",
    r"L[CO]0([89])_L1(TP|GT|GS)_": "landsat-{}-l1-toa",
    r"L[TE]0([57])_L1(TP|GT|GS)_": "landsat-{}-l1",
    r"HLS\.S30\.": "hls-s30",
    r"HLS\.L30\.": "hls-l30",
}
# Band files of Sentinel-2 without the pixel size that sen2cor adds: Level-1C, unless somebody renamed them.
LEVEL_1C = re.compile(r"T\d\d[A-Z]{3}_\d{8}T\d{6}_(B\d[\dA]|TCI)\.")


def basename(path: str) -> str:
    """The last part of a path or address, without its query."""
    return redact(path).removesuffix("?…").rstrip("/").rsplit("/", 1)[-1]


def tokens(path: str) -> list[str]:
    """Words of a file's name that may name its band, the last first: SR_B4 before B4 before what stands further on."""
    stem = re.sub(r"\.[A-Za-z0-9]+$", "", basename(path.split("?")[0]))
    parts = [p for p in re.split(r"[_.\-\s:\"]+", stem) if p and not re.fullmatch(r"\d+m?", p, re.IGNORECASE)]
    out = []
    for i in range(len(parts) - 1, -1, -1):
        out += [f"{parts[i - 1]}_{parts[i]}", parts[i]] if i else [parts[i]]
    return out


def band_by_name(path: str, sensor: Sensor) -> str | None:
    """The band that a file's name tells.

    Args:
        path: or address, of which only the last name counts.
    """
    found = (match(text, sensor) for text in tokens(path))
    return next((band.name for band in found if band is not None), None)


def product_sensor(path: str) -> str | None:
    """The sensor of a file or its folder, by the form of the name its producer gives."""
    for part in reversed(path.split("/")[-2:]):
        for pattern, sensor in PRODUCTS.items():
            found = re.match(pattern, part)
            if found is not None:
                return sensor.format(*found.groups())
    return None


# -- When a scene was taken, from its files' tags or the name of its product.

if TYPE_CHECKING:
    from dofa.scene.scene import Scene

# GDAL's IMAGERY domain, Earth Engine, ENVI, Planet and others; TIFFTAG_DATETIME may be when a program wrote the file.
TAGS = ("ACQUISITIONDATETIME", "ACQUISITION_DATE", "ACQUISITION_TIME", "DATE_ACQUIRED", "SENSING_TIME", "DATETIME")
DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)([-:_/]?)(\d\d)\2(\d\d)(?!\d)")
DAY_OF_YEAR = re.compile(r"(?<!\d)((?:19|20)\d\d)(\d{3})(?!\d)")  # HLS.S30.T10TEK.2020283T185941


def acquisition_date(scene: "Scene") -> date | None:
    """The day a scene was taken; None where nothing says it."""
    for text in _told(scene):
        found = day_in(text)
        if found is not None:
            return found
    return None


def iso_date(scene: "Scene") -> str | None:
    """`acquisition_date` as text, for files."""
    day = acquisition_date(scene)
    return None if day is None else day.isoformat()


def _told(scene: "Scene") -> Iterator[str]:
    """Texts that may name the day, the most telling first."""
    rasters = [layer.raster for stack in scene.stacks for layer in stack.layers]
    tags = rasters[0].tags if rasters else {}
    yield from (tags[key] for key in TAGS if key in tags)
    yield scene.name
    yield from (basename(raster.path) for raster in rasters[:1])
    yield tags.get("TIFFTAG_DATETIME", "")


def day_in(text: str) -> date | None:
    """The first day that a text names, as 20240601, 2024-06-01, 2024:06:01 or 2024153.

    Args:
        text: a tag's value or a name.
    """
    for pattern in (DAY, DAY_OF_YEAR):
        for found in pattern.finditer(text):
            numbers = [int(part) for part in found.groups() if part.isdecimal()]
            try:
                day = date(*numbers) if len(numbers) == 3 else date(numbers[0], 1, 1) + timedelta(numbers[1] - 1)
            except ValueError:
                continue
            if date(1957, 10, 4) < day <= date.today() + timedelta(1) and day.year == numbers[0]:
                return day
    return None
