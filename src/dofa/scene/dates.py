"""When a scene was taken, from its files' tags or the name of its product."""

import re
from collections.abc import Iterator
from datetime import date, timedelta
from typing import TYPE_CHECKING

from dofa.scene.names import basename

if TYPE_CHECKING:
    from dofa.scene.scene import Scene

# GDAL's IMAGERY domain, Earth Engine, ENVI, Planet and others; TIFFTAG_DATETIME may be when a program wrote the file.
TAGS = ("ACQUISITIONDATETIME", "ACQUISITION_DATE", "ACQUISITION_TIME", "DATE_ACQUIRED", "SENSING_TIME", "DATETIME")
DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)([-:_/]?)(\d\d)\2(\d\d)(?!\d)")
DAY_OF_YEAR = re.compile(r"(?<!\d)((?:19|20)\d\d)(\d{3})(?!\d)")  # HLS.S30.T10TEK.2020283T185941


def acquisition_date(scene: "Scene") -> date | None:
    """The day a scene was taken; None where nothing says it.

    Args:
        scene: open.
    """
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
