"""Polygons and points with a class each, from vector files and tables of coordinates."""

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.datasets.labelled import IGNORE
from dofa.datasets.labels import (
    UNLABELLED,
    Bounds,
    Classes,
    Codes,
    Labels,
    Placed,
    class_column,
    class_value,
    named_crs,
    parse_colour,
)
from dofa.errors import ConfigError, DataError, DofaError, nearest, shorten
from dofa.model.heads import Colour
from dofa.raster import gdal
from dofa.scene.grid import Grid, Window

COLOUR_FIELDS = ("fill", "marker-color", "color", "colour")  # the first two: simplestyle 1.1, as GeoJSON carries it
LONGITUDE, LATITUDE = ("lon", "lng", "long", "longitude"), ("lat", "latitude")
FARTHEST = 1e12  # no system of the Earth has coordinates beyond, were they in millimetres
EAST, NORTH = ("x", "easting", "east"), ("y", "northing", "north")


@dataclass(frozen=True)
class VectorLabels(Labels):
    """Polygons and points with a class each.

    Attributes:
        geometries: shapely's, polygons and points of one part each.
        values: of each.
        crs: pyproj's, what the coordinates are measured in.
    """

    geometries: NDArray[Any] = field(repr=False)
    values: tuple[str, ...] = field(repr=False)
    crs: Any = field(repr=False)

    @classmethod
    def of(
        cls,
        name: str,
        shapes: NDArray[Any],
        values: Sequence[str | None],
        crs: Any,
        column: str,
        colours: Mapping[str, Colour],
    ) -> "VectorLabels":
        """From the shapes of a file and their values, whatever has no class or place left out with a note.

        Args:
            shapes: (N,) geometries of shapely.
            values: (N,) class as text, None where there is none.
            crs: reference system of the shapes.
            column: where the class stands, for messages.

        Raises:
            DataError: lines, or nothing that is left.
        """
        geometries, kept, notes = _parts(name, shapes, values)
        lost = sum(value is None for value in values)
        if lost:
            notes.append(f"{lost} of {len(values)} features of {name} have no {column} and are left out")
        return cls(
            name=name,
            counts=Counter(kept),
            things="shapes",
            titles={},
            colours=colours,
            notes=(*notes, *_alike(name, kept)),
            geometries=geometries,
            values=tuple(kept),
            crs=crs,
        )

    @property
    def bounds(self) -> Bounds | None:
        """(west, south, east, north) in degrees; None where the coordinates lead to no place on Earth."""
        import geopandas

        series = geopandas.GeoSeries(self.geometries, crs=self.crs)
        try:
            west, south, east, north = series.to_crs("EPSG:4326").total_bounds
        except (RuntimeError, ValueError):  # pyproj's: a system of its own, with no way to degrees
            return None
        return (west, south, east, north) if np.isfinite([west, south, east, north]).all() else None

    def on(self, grid: Grid, classes: Classes, scene: str) -> Placed:
        """Brought to the pixels of a scene.

        Raises:
            DataError: the scene has no reference system.
        """
        import geopandas
        import shapely

        if grid.crs is None:
            raise DataError(
                f"{scene} has no reference system, so {self.name} cannot be placed on it: georeference it, or give a "
                "raster mask of its size"
            )
        if classes.background is not None and not shapely.get_dimensions(self.geometries).any():
            raise ConfigError(f"--background is what lies outside polygons, and {self.name} holds only points")
        try:
            moved = geopandas.GeoSeries(self.geometries, crs=self.crs).to_crs(grid.crs.to_wkt()).to_numpy()
        except (RuntimeError, ValueError) as error:  # pyproj's
            raise DataError(f"{self.name} cannot be placed on {scene}: {error}: say its --labels-crs") from None
        inverse = ~grid.transform

        def pixels(xy: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.stack([inverse.a * xy[:, 0] + inverse.b * xy[:, 1] + inverse.c,
                             inverse.d * xy[:, 0] + inverse.e * xy[:, 1] + inverse.f], axis=1)  # fmt: skip

        # Coordinates that the scene's system cannot express are infinite, and lie outside.
        finite = [i for i, b in enumerate(shapely.bounds(moved)) if np.isfinite(b).all()]
        drawn = shapely.transform(moved[finite], pixels)
        seen = np.flatnonzero(shapely.intersects(drawn, shapely.box(0, 0, grid.width, grid.height)))
        features = [finite[i] for i in seen]
        return PlacedVectors(
            drawn[seen], [classes.codes[self.values[i]] for i in features], classes.background, features
        )


class PlacedVectors:
    """Polygons and points in pixels of a scene; see `Placed`.

    Args:
        geometries: polygons and points, x the column and y the row.
        background: code of what lies outside all polygons, or None.
        features: which of the file's shapes they are.
    """

    def __init__(
        self, geometries: NDArray[Any], codes: Sequence[int], background: int | None, features: Sequence[int]
    ) -> None:
        import shapely

        self.features = tuple(features)
        flat = shapely.get_dimensions(geometries) == 0 if len(geometries) else np.zeros(0, bool)
        spots = [(g.y, g.x, code) for g, code, point in zip(geometries, codes, flat, strict=True) if point]
        self.points = tuple(spot for spot in spots if spot[2] != IGNORE)
        self._polygons = [g for g, point in zip(geometries, flat, strict=True) if not point]
        self._spots = [g for g, point in zip(geometries, flat, strict=True) if point]
        self._spot_codes = [code for code, point in zip(codes, flat, strict=True) if point]
        self._codes = [code for code, point in zip(codes, flat, strict=True) if not point]
        self._background = UNLABELLED if background is None else background
        inner = [polygon.representative_point() for polygon in self._polygons]
        self.shapes = tuple((p.y, p.x, code) for p, code in zip(inner, self._codes, strict=True))
        self._tree = shapely.STRtree([*self._polygons, *self._spots])

    def codes(self, window: Window) -> Codes:
        """(h, w): a pixel has the class of the polygon that its centre lies in, or of a point in it."""
        from rasterio.features import rasterize
        from rasterio.transform import Affine

        out: Codes = np.full((window.height, window.width), self._background, np.int16)
        found = sorted(self._tree.query(_box(window)).tolist())
        if not found:
            return out
        drawn = [*zip(self._polygons, self._codes, strict=True), *zip(self._spots, self._spot_codes, strict=True)]
        shapes = [drawn[i] for i in found]
        to_window = Affine.translation(window.col, window.row)

        def burn(order: list[Any]) -> Codes:
            burnt: Codes = rasterize(order, out.shape, fill=UNLABELLED, transform=to_window, dtype="int16")
            return burnt

        first = burn(shapes)
        # Where the last one to be drawn is not the same in both orders, classes lie over each other.
        last = first if len({code for _, code in shapes}) == 1 else burn(shapes[::-1])
        labelled = first != UNLABELLED
        out[labelled] = np.where(first == last, first, IGNORE)[labelled]
        return out

    def inside(self, window: Window) -> list[int]:
        """Which polygons reach into a window."""
        found = self._tree.query(_box(window), predicate="intersects").tolist()
        return [i for i in found if i < len(self._polygons)]


def _box(window: Window) -> Any:
    import shapely

    return shapely.box(window.col, window.row, window.col + window.width, window.row + window.height)


def read_vectors(path: Path, class_field: str | None, layer: str | None, told: Any) -> VectorLabels:
    """Features of GeoJSON, GeoPackage, Shapefile and whatever else GDAL reads.

    Args:
        class_field: attribute with the class, or None to find it.
        layer: of several, or None.
        told: reference system over the file's own, or None.

    Raises:
        DataError: not such a file, nothing in it, lines, no reference system, or numbers that are no classes.
        ConfigError: an unknown field or layer; the nearest names are said.
    """
    import geopandas
    import pyogrio
    from shapely.errors import ShapelyError

    try:
        with path.open("rb") as file:
            if b"<OGRVRT" in file.read(4096):  # whatever its name ends in, GDAL would follow it
                raise DataError(f"{path} is a virtual file that names other sources: give the file with the shapes")
        layers = [str(name) for name, _ in pyogrio.list_layers(path)]
        if layer is not None and layer not in layers:
            raise ConfigError(f"{path.name} has no layer {layer!r}: {nearest(layer, layers)}")
        if layer is None and len(layers) > 1:
            raise ConfigError(f"{path.name} has several layers, choose one with --layer: {', '.join(layers)}")
        table = geopandas.read_file(path, layer=layer or (layers[0] if layers else None), engine="pyogrio")
    except DofaError:
        raise
    # What pyogrio, shapely, pandas and pyproj say of damaged files: geometries of odd rings, dates that are none,
    # numbers beyond 64 bits, text in another encoding.
    except (RuntimeError, ShapelyError, ValueError, TypeError, LookupError, OSError, ArithmeticError) as error:
        raise DataError(f"{path} cannot be read as a vector file: {gdal.reason(error)}") from None
    if not isinstance(table, geopandas.GeoDataFrame) or not len(table):
        raise DataError(f"{path} holds no features with a geometry: draw polygons or points")
    crs = told or table.crs
    if crs is None:
        raise DataError(
            f"{path.name} says no reference system: say what its coordinates are measured in with --labels-crs, such "
            "as EPSG:4326 for longitude and latitude"
        )
    columns = [str(c) for c in table.columns if c != table.geometry.name]
    chosen = class_column(path.name, columns, class_field)
    values = [class_value(v, path.name, chosen) for v in table[chosen].tolist()]
    colours: dict[str, Colour] = {}
    for column in (c for c in columns if c.lower() in COLOUR_FIELDS and c != chosen):
        for value, text in zip(values, table[column].tolist(), strict=True):
            found = None if value is None or not isinstance(text, str) else parse_colour(text)
            if found is not None and value is not None:
                colours.setdefault(value, found)
    return VectorLabels.of(path.name, table.geometry.to_numpy(), values, crs, chosen, colours)


def _parts(name: str, shapes: NDArray[Any], values: Sequence[str | None]) -> tuple[NDArray[Any], list[str], list[str]]:
    """Single valid polygons and points with their values, and notes on what was left out."""
    import shapely

    parts: list[Any] = []
    kept: list[str] = []
    empty = mended = 0
    for shape, value in zip(shapes, values, strict=True):
        if shape is None or shape.is_empty:
            empty += 1
            continue
        if shape.geom_type in ("LineString", "MultiLineString", "LinearRing"):
            raise DataError(f"{name} holds lines, which have no inside: buffer them to polygons, or give points")
        if value is None:
            continue
        whole = shapely.force_2d(shape)
        if not (np.abs(shapely.get_coordinates(whole)) < FARTHEST).all():  # nor where they are NaN
            raise DataError(f"{name} holds a shape of class {shorten(value)} with coordinates that are no place")
        if not whole.is_valid:
            mended += 1
            try:
                whole = shapely.make_valid(whole)
            except shapely.errors.ShapelyError as error:
                raise DataError(f"{name} holds a shape that cannot be mended ({error}): draw it anew") from None
        single = [p for p in shapely.get_parts(shapely.get_parts(whole)) if p.geom_type in ("Polygon", "Point")]
        parts += single
        kept += [value] * len(single)
    if not parts:
        raise DataError(f"{name} holds no polygon or point with a class: draw some, or name their --class-field")
    notes = [f"{empty} features of {name} have no geometry and are left out"] if empty else []
    if mended:
        notes.append(f"{mended} polygons of {name} cross themselves and were mended")
    array = np.empty(len(parts), object)
    array[:] = parts
    return array, kept, notes


def read_table(path: Path, class_field: str | None, told: Any) -> VectorLabels:
    """Points of a table: lon and lat, or x and y in a reference system that is told.

    Args:
        path: of a text with columns parted by commas, semicolons or tabs.
        class_field: column with the class, or None to find it.
        told: reference system of the coordinates; longitude and latitude need none.

    Raises:
        DataError: no such text, no coordinates, or none that say where they are; the line is named.
        ConfigError: an unknown column.
    """
    import shapely

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} is no text in UTF-8 ({error}): save it so") from None
    if "\0" in text:
        raise DataError(f"{path} holds NUL characters: it is no table, or in UTF-16: save it as text in UTF-8")
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
    try:
        columns = [c.strip() for c in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"{path} is no table of columns: {error}") from None
    low = {c.lower(): c for c in columns}
    if len(low) < len([c for c in columns if c]) + ("" in low):
        raise DataError(f"{path.name} has two columns of one name ({shorten(', '.join(columns))}): rename one")
    pairs = [(LONGITUDE, LATITUDE, "EPSG:4326"), (EAST, NORTH, None)]
    found = [
        (low[next(n for n in xs if n in low)], low[next(n for n in ys if n in low)], known)
        for xs, ys, known in pairs
        if any(n in low for n in xs) and any(n in low for n in ys)
    ]
    if not found:
        raise DataError(
            f"{path.name} has the columns {shorten(', '.join(columns), 200) or 'none'}: coordinates are lon and lat, "
            "or x and y with --labels-crs"
        )
    across, up, known = found[0]
    if told is None and known is None:
        raise DataError(f"{path.name} has {across} and {up}: say their reference system with --labels-crs EPSG:…")
    chosen = class_column(path.name, [c for c in columns if c not in (across, up)], class_field)
    values: list[str | None] = []
    places: list[tuple[float, float]] = []
    for number, row in enumerate(rows, 2):
        if any(row.get(None) or ()):  # where csv puts what has no column
            raise DataError(
                f"{path.name}, row {number}: more fields than the {len(columns)} columns: put text with a "
                f"{delimiter!r} in quotes"
            )
        try:
            place = float(row[across]), float(row[up])
        except (TypeError, ValueError):
            place = math.nan, math.nan
        if not (abs(place[0]) < FARTHEST and abs(place[1]) < FARTHEST):
            said = f"{shorten(repr(row[across]))}, {shorten(repr(row[up]))}"
            raise DataError(f"{path.name}, line {number}: {said} are no coordinates")
        places.append(place)
        values.append(class_value(row[chosen], path.name, chosen))
    crs = told or named_crs(str(known))
    points = np.array([shapely.Point(p) for p in places], object)
    return VectorLabels.of(path.name, points, values, crs, chosen, {})


def _alike(name: str, values: Sequence[str]) -> list[str]:
    """A note on classes that differ only in upper and lower case."""
    groups: dict[str, set[str]] = {}
    for value in values:
        groups.setdefault(value.lower(), set()).add(value)
    pairs = [" and ".join(sorted(group)) for group in groups.values() if len(group) > 1]
    return [f"classes of {name} that differ only in upper and lower case: {'; '.join(pairs)}"] if pairs else []
