"""Labels as people keep them: polygons and points of GIS files, raster masks, tables of coordinates.

Everything is brought to the pixels of a scene, where it says of any window which class each pixel has.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dofa.addresses import redact
from dofa.datasets.labelled import IGNORE
from dofa.errors import CONTROLS, ConfigError, DataError, nearest, shorten
from dofa.model.heads import Colour, palette
from dofa.scene.grid import Grid, Window

Codes = NDArray[np.int16]
Bounds = tuple[float, float, float, float]

UNLABELLED = -1  # a pixel that no label says anything about
VECTORS = (".geojson", ".json", ".gpkg", ".shp", ".fgb", ".kml", ".gml", ".zip")
TABLES = (".csv", ".tsv")
FIELDS = ("class", "label")  # taken unless a field is named


@dataclass(frozen=True)
class Classes:
    """What is learned, and which words or numbers of the labels stand for it.

    Attributes:
        names: by code.
        colours: (red, green, blue) by code.
        codes: of each value of the labels: several may stand for one class, IGNORE for none.
        background: code of what lies outside all polygons; None where it belongs to no class.
        declared: whether the user named the classes, so that each of them has to be there.
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    codes: Mapping[str, int]
    background: int | None = None
    declared: bool = False


class Placed(Protocol):
    """Labels in the pixels of one scene.

    Attributes:
        points: (row, column, code) of labels without an extent.
        shapes: (row, column, code) of a place inside each polygon; none of a mask.
        features: numbers of the file's shapes that reach into the scene; none of a mask.
    """

    points: tuple[tuple[float, float, int], ...]
    shapes: tuple[tuple[float, float, int], ...]
    features: tuple[int, ...]

    def codes(self, window: Window) -> Codes:
        """(h, w) class of each pixel, IGNORE where labels contradict each other or say so, or UNLABELLED."""

    def inside(self, window: Window) -> list[int]:
        """Which of `shapes` reach into a window."""


@dataclass(frozen=True)
class Labels(ABC):
    """Labels of one file.

    Attributes:
        name: of the file.
        counts: how often each value occurs.
        things: what is counted: shapes (polygons and points of one part each) or pixels.
        titles: names of values, where the file has them.
        colours: of values, where the file has them.
        notes: what the user should know.
    """

    name: str
    counts: Mapping[str, int]
    things: Literal["shapes", "pixels"]
    titles: Mapping[str, str]
    colours: Mapping[str, Colour]
    notes: tuple[str, ...]

    @property
    @abstractmethod
    def bounds(self) -> Bounds | None:
        """(west, south, east, north) in degrees; None without a place on Earth."""

    @abstractmethod
    def on(self, grid: Grid, classes: Classes, scene: str) -> Placed:
        """Brought to the pixels of a scene.

        Args:
            grid: size, place and reference system of the scene.
            classes: which values are classes, in their order.

        Raises:
            DataError: they cannot be placed on it.
            ConfigError: a background, where there are no polygons that something lies outside of.
        """


def read_labels(
    path: str | Path, *, class_field: str | None = None, layer: str | None = None, crs: str | None = None
) -> Labels:
    """Labels of a file, by what its name ends in.

    Args:
        path: GeoJSON, GeoPackage, Shapefile or another vector file; a .csv of coordinates; anything else is a raster
            mask.
        class_field: attribute or column with the class; `class`, `label` or the only one there is unless given.
        crs: what the coordinates are measured in, over the word of the file.

    Raises:
        DataError: a file that cannot be read, or labels without a reference system; one line with the cure.
        ConfigError: an unknown field, layer or reference system; the nearest names are said.
    """
    from dofa.datasets.raster_mask import MaskLabels
    from dofa.datasets.vectors import read_table, read_vectors

    path = Path(path)
    if not path.is_file() and not path.is_dir():  # a pipe would be waited for
        raise DataError(
            f"labels {redact(str(path))} do not exist: name a vector file, a raster mask or a .csv of coordinates"
        )
    told = None if crs is None else named_crs(crs)
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return read_table(path, class_field, told)
    if suffix in VECTORS:
        return read_vectors(path, class_field, layer, told)
    for option, value in (("--class-field", class_field), ("--layer", layer)):
        if value is not None:
            raise ConfigError(f"{path.name} is read as a raster mask, which has no {option}")
    return MaskLabels.read(path, told)


def resolve_classes(
    sources: Sequence[Labels],
    declared: Sequence[str] = (),
    ignored: Sequence[str] = (),
    background: str | None = None,
) -> Classes:
    """Which classes are learned from several files of labels.

    Args:
        declared: `VALUE`, `VALUE=NAME` or `VALUE=NAME=#RRGGBB`, in the order of the classes; all values unless given.
        ignored: values that stand for no class.
        background: name of the class outside all polygons.

    Raises:
        ConfigError: words that say no class, or a value that no label has.
        DataError: labels with values that are not among the classes, or more classes than 8 bits hold.
    """
    counts: Counter[str] = Counter()
    titles: dict[str, str] = {}
    colours: dict[str, Colour] = {}
    for source in sources:
        counts.update(source.counts)
        titles |= source.titles
        colours |= source.colours
    name = ", ".join(dict.fromkeys(s.name for s in sources))
    for value in ignored:
        if value not in counts:
            raise ConfigError(f"--ignore {value}: no label of {name} has that value: {nearest(value, counts)}")
    wanted = [_declared(word) for word in declared] or [
        (value, titles.get(value, value), None) for value in sorted(counts, key=_order) if value not in ignored
    ]
    named = {value for value, _, _ in wanted}
    for value in named - set(counts):
        raise ConfigError(f"--classes {value}: no label of {name} has that value: {nearest(value, counts)}")
    strange = {v: n for v, n in counts.items() if v not in named and v not in ignored}
    if strange:
        some = ", ".join(f"{v!r} ({n} {sources[0].things})" for v, n in list(strange.items())[:5])
        raise DataError(
            f"{name} has values that --classes does not name: {some}{', …' if len(strange) > 5 else ''}: name them "
            "too, or leave them out with --ignore"
        )
    names: list[str] = [] if background is None else [background]
    painted: dict[str, Colour] = {}
    codes = dict.fromkeys(ignored, IGNORE)
    for value, said, colour in wanted:
        title = CONTROLS.sub(" ", said)  # names are printed as they are
        if title not in names:
            names.append(title)
        codes[value] = names.index(title)
        found = colour or colours.get(value)
        if found is not None:
            painted.setdefault(title, found)
    if not wanted or len(names) > IGNORE:
        raise DataError(
            f"{name} has {len(names)} classes; 1 to {IGNORE} can be learned: is it the right --class-field?"
        )
    spare = palette(len(names))
    return Classes(
        names=tuple(names),
        colours=tuple(painted.get(title, spare[i]) for i, title in enumerate(names)),
        codes=codes,
        background=None if background is None else 0,
        declared=bool(declared),
    )


# -- words -------------------------------------------------------------------------------------------------------------


def named_crs(text: str) -> Any:
    """The reference system that a user names.

    Raises:
        ConfigError: there is none of that name.
    """
    import pyproj
    from pyproj.exceptions import CRSError

    try:
        return pyproj.CRS.from_user_input(text)
    except CRSError:
        raise ConfigError(f"--labels-crs {text}: no reference system; write EPSG:4326, EPSG:32614, …") from None


def class_column(name: str, fields: Sequence[str], wanted: str | None) -> str:
    """The field with the class: the one named, `class`, `label`, or the only one.

    Args:
        wanted: as the user said, whatever the case; None where nothing was said.

    Raises:
        ConfigError: no such field, or several and none is usual.
    """
    low = {f.lower(): f for f in fields}
    if wanted is not None:
        if wanted.lower() not in low:
            raise ConfigError(f"{name} has no field {wanted!r}: {nearest(wanted, fields)}")
        return wanted if wanted in fields else low[wanted.lower()]
    for usual in FIELDS:
        if usual in low:
            return low[usual]
    if len(fields) == 1:
        return fields[0]
    raise ConfigError(f"which field of {name} is the class? Name it with --class-field: {', '.join(fields) or 'none'}")


def class_value(value: Any, name: str, column: str) -> str | None:
    """A class as text, whole numbers without a point; None where there is none.

    Args:
        value: of a feature or a row.

    Raises:
        DataError: a number with a fraction.
    """
    if value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        said = shorten(str(value))
        raise DataError(f"field {column} of {name} holds {said}, which is no class: name another --class-field")
    return str(value).strip() or None


def _order(value: str) -> tuple[int, float, str]:
    """Numbers by size, then words by the alphabet."""
    return (0, float(value), "") if re.fullmatch(r"-?\d+", value) else (1, 0.0, value.lower())


def _declared(word: str) -> tuple[str, str, Colour | None]:
    value, _, rest = word.partition("=")
    title, _, colour = rest.partition("=")
    painted = parse_colour(colour)
    if not value or (colour and painted is None):
        raise ConfigError(f"--classes {word!r}: write VALUE, VALUE=NAME or VALUE=NAME=#RRGGBB")
    return value, title or value, painted


def parse_colour(text: str) -> Colour | None:
    """(red, green, blue) of #RRGGBB, None of anything else."""
    found = re.fullmatch(r"#?([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})", text.strip().lower())
    return None if found is None else (int(found[1], 16), int(found[2], 16), int(found[3], 16))
