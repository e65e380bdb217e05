"""How much of a map each class covers: pixels, hectares on the ground and percent.

These are pixel counts: a map that is wrong more often about one class than about another has wrong areas, too. Areas
with a confidence interval come from a sample of reference labels (Olofsson et al. 2014, doi:10.1016/j.rse.2014.02.015).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from dofa.addresses import redact_values
from dofa.inference.many import Written
from dofa.io import write_atomically
from dofa.outputs.layout import Layout, pieces
from dofa.outputs.reading import open_features
from dofa.scene.grid import Grid

FORMAT_VERSION = 1
CAVEAT = "areas are pixel counts, not corrected for the map's errors (Olofsson et al. 2014)"
HECTARE = 10_000.0  # square metres
SAMPLED = 257  # rows whose area is computed; between them it is interpolated


@dataclass(frozen=True)
class ClassArea:
    """What a class covers.

    Attributes:
        name: of the class.
        pixels: of the map.
        hectares: on the ground; None where the map has no place.
        percent: of the pixels that have a class.
        certainty: mean probability of the class in its pixels, 0–1; None in a map of classes alone.
    """

    name: str
    pixels: int
    hectares: float | None
    percent: float
    certainty: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain form, for JSON."""
        return dict(vars(self))


def class_areas(path: Path, exclusive: bool = True) -> tuple[ClassArea, ...]:
    """The classes of a finished map, read a piece at a time.

    Args:
        path: of a map of classes, or of their probabilities.
        exclusive: whether a pixel has one class, the likeliest; else each with a probability above a half.
    """
    features = open_features(path)
    layout = features.layout
    names = layout.names if layout.class_names is None else layout.class_names
    counts = np.zeros((layout.height, len(names)), np.int64)
    certain = np.zeros(len(names))
    valid = 0
    for window in pieces(layout.height, layout.width, layout.side(256, 1024), layout.cell_bytes):
        stored = features.read_stored(window)
        seen = ~layout.invalid(stored)
        valid += int(seen.sum())
        for k in range(len(names)):
            if layout.class_names is not None:
                here = seen & (stored[0] == k)
            elif exclusive:
                here = seen & (stored.argmax(0) == k)
            else:
                here = seen & (stored[k] > 0.5)
            counts[window.rows, k] += here.sum(1)
            if layout.class_names is None:
                certain[k] += stored[k][here].sum(dtype=np.float64)
    area = row_areas(layout)
    total = counts.sum(0)
    return tuple(
        ClassArea(
            name,
            int(total[k]),
            None if area is None else float(counts[:, k] @ area / HECTARE),
            100 * float(total[k]) / max(valid, 1),
            None if layout.class_names is not None or not total[k] else float(certain[k] / total[k]),
        )
        for k, name in enumerate(names)
    )


def row_areas(layout: Layout) -> NDArray[np.float64] | None:
    """(H,) square metres on the ground of a pixel in each row, at its middle column; None without a place."""
    if layout.crs is None:
        return None
    from rasterio.crs import CRS

    crs, (a, b, c, d, e, f) = CRS.from_user_input(layout.crs), layout.transform
    rows = np.unique(np.linspace(0, layout.height - 1, min(layout.height, SAMPLED)).round().astype(int))
    sides = [Grid(crs, Affine(a, b, c + b * row, d, e, f + e * row), layout.width, 1).gsd_m for row in rows.tolist()]
    if any(side is None for side in sides):
        return None
    return np.asarray(np.interp(np.arange(layout.height), rows, np.array(sides, np.float64) ** 2))


def area_table(areas: Sequence[ClassArea], title: str) -> Table:
    """For the terminal."""
    placed, certain = areas[0].hectares is not None, any(a.certainty is not None for a in areas)
    table = Table("class", "pixels", *(["hectares"] * placed), "%", *(["mean certainty %"] * certain), title=title)
    for a in areas:
        cells = [a.name, f"{a.pixels:,}", *([f"{a.hectares:,.2f}"] * placed), f"{a.percent:.1f}"]
        table.add_row(*cells, *(["–" if a.certainty is None else f"{100 * a.certainty:.1f}"] * certain))
    return table


def beside(path: Path) -> Path:
    """The JSON of a map's areas."""
    return path.with_name(f"{path.name}.areas.json")


@dataclass(frozen=True)
class Mapped(Written):
    """What `dofa predict` wrote.

    Attributes:
        areas: of the classes of each map, by its path; none of a regression.
    """

    areas: tuple[tuple[Path, tuple[ClassArea, ...]], ...] = ()

    def print(self) -> None:
        """As `Written`, and a table a map."""
        self.print_files()
        for path, areas in self.areas:
            Console().print(area_table(areas, path.name))
        if self.areas:
            Console().print(f"note: {CAVEAT}", highlight=False, soft_wrap=True)
        self.print_failed()


def with_areas(written: Written, task: str) -> Mapped:
    """What was written with the areas of its classes, which are kept as JSON beside each map.

    Args:
        written: maps, finished.
    """
    found = []
    for path in written.paths if task != "regression" else ():
        areas = class_areas(path, task != "multilabel")
        record = {"format_version": FORMAT_VERSION, "map": path.name, "note": CAVEAT}
        record |= {"classes": [area.to_dict() for area in areas]}
        write_atomically(
            beside(path), (json.dumps(redact_values(record), indent=1, ensure_ascii=False) + "\n").encode()
        )
        found.append((path, areas))
    return Mapped(**vars(written), areas=tuple(found))
