"""The scene classes: what is drawn where, at the same composition.

A layout is a *score* over the ground: the cover that makes the class visible takes the cells with the highest scores,
as many as a drawn area fraction asks for. Classes that share a palette draw fraction, covers and states from the same
distributions, so that only layout and texture tell them apart; the two of a pair resemble each other most.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]  # (h, w)
# From the source of its draws and the places of the cells, u across and v along, turned and in shares of the scene's
# side from its middle, to a score.
Layout = Callable[[np.random.Generator, Field, Field], Field]


@dataclass(frozen=True)
class Palette:
    """What the classes that share it are painted with.

    Attributes:
        ground: covers of the patchwork below, of which one to three are drawn.
        feature: covers of which one is drawn for the layout itself.
        second: covers of the inner part of the layout (roofs along streets), or none.
        fraction: (low, high) of the area the layout takes, inner part included.
    """

    ground: tuple[str, ...]
    feature: tuple[str, ...]
    fraction: tuple[float, float]
    second: tuple[str, ...] = ()


def noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> Field:
    """Smooth random field with zero mean and unit variance.

    Args:
        rng: source of the draw.
        shape: (h, w) in cells.
        scale: size of its features as a share of the scene's side.
    """
    spread = 1 / (2.5 * scale)  # of the frequencies, in periods across the scene
    cut = min(int(np.ceil(3 * spread)), min(shape) // 2 - 1)
    rows, cols = np.r_[0 : cut + 1, -cut:0][:, None], np.arange(cut + 1)
    amplitude = np.exp(-0.5 * (rows**2 + cols**2) / spread**2)
    amplitude[0, 0] = 0
    spectrum = np.zeros((shape[0], shape[1] // 2 + 1), complex)
    spectrum[rows, cols] = amplitude * (
        rng.standard_normal(amplitude.shape) + 1j * rng.standard_normal(amplitude.shape)
    )
    field = np.fft.irfft2(spectrum, s=shape)
    return np.asarray(field / max(float(field.std()), 1e-12))


def patchwork(rng: np.random.Generator, u: Field, v: Field, cells: int) -> tuple[NDArray[np.int64], Field]:
    """Voronoi fields: the index of each cell's field, and by how much the second nearest seed is farther.

    Args:
        rng: source of the draw.
        u, v: places of the cells, as a `Layout` takes them.
        cells: fields drawn.
    """
    field = np.zeros(u.shape, np.int64)
    first, second = np.full_like(u, np.inf), np.full_like(u, np.inf)
    for i, (x, y) in enumerate(rng.uniform(-0.75, 0.75, (cells, 2))):
        distance = (u - x) ** 2 + (v - y) ** 2
        field[distance < first] = i
        second = np.minimum(second, np.maximum(first, distance))
        first = np.minimum(first, distance)
    return field, np.sqrt(second) - np.sqrt(first)


def orchard_rows(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Rows of trees, in one or two plots of different direction; see `Layout`."""
    rows, trees = rng.uniform(7, 11), rng.uniform(5, 9)
    score = np.cos(2 * np.pi * rows * u + rng.uniform(0, 6.3)) + 0.35 * np.cos(2 * np.pi * trees * v)
    if rng.random() < 0.5:
        turned = np.cos(2 * np.pi * rows * v + rng.uniform(0, 6.3)) + 0.35 * np.cos(2 * np.pi * trees * u)
        score = np.where(u + rng.uniform(-0.3, 0.3) * v > rng.uniform(-0.2, 0.2), turned, score)
    return score + 0.15 * noise(rng, u.shape, 0.05)


def hedged_meadow(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Meadows of irregular outline, with hedges and single trees along their borders; see `Layout`."""
    bend = 0.02
    _, border = patchwork(
        rng, u + bend * noise(rng, u.shape, 0.12), v + bend * noise(rng, u.shape, 0.12), int(rng.integers(14, 30))
    )
    return 0.015 * noise(rng, u.shape, 0.03) - border


def street_grid(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Streets crossing at right angles; see `Layout`."""
    spacing = rng.uniform(0.15, 0.24, 2)
    across = np.abs((u / spacing[0] + rng.random()) % 1 - 0.5) * spacing[0]
    along = np.abs((v / spacing[1] + rng.random()) % 1 - 0.5) * spacing[1]
    return np.asarray(0.002 * noise(rng, u.shape, 0.05) - np.minimum(across, along))


def scattered_farms(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Yards lying about in the fields, each of its own size; see `Layout`."""
    yards = int(rng.integers(14, 26))
    at, size = rng.uniform(-0.7, 0.7, (yards, 2)), rng.uniform(0.6, 1.4, yards)
    distance = [np.maximum(np.abs(u - x), np.abs(v - y)) / s for (x, y), s in zip(at, size, strict=True)]
    return np.asarray(0.01 * noise(rng, u.shape, 0.05) - np.min(distance, axis=0))


def meandering_river(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """One winding course of varying width; see `Layout`."""
    bends, swing = rng.uniform(1.2, 2.2), rng.uniform(0.10, 0.2)
    phase = 2 * np.pi * bends * v + rng.uniform(0, 6.3) + 0.5 * noise(rng, u.shape, 0.35)
    course = swing * np.sin(phase) + rng.uniform(-0.15, 0.15)
    slope = 2 * np.pi * bends * swing * np.cos(phase)
    return -np.abs(u - course) / np.sqrt(1 + slope**2) + 0.006 * noise(rng, u.shape, 0.08)


def straight_canal(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """One straight course, sometimes with a branch at an angle; see `Layout`."""
    score = -np.abs(u - rng.uniform(-0.2, 0.2))
    if rng.random() < 0.5:
        branch = -np.abs(v - rng.uniform(-0.25, 0.25) - rng.uniform(-0.4, 0.4) * u) - 0.01
        score = np.maximum(score, np.where(u > 0, branch, -1.0))
    return score + 0.002 * noise(rng, u.shape, 0.08)


def contour_strips(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Strips that follow the slope of a hill; see `Layout`."""
    hill = 0.14 * noise(rng, u.shape, 0.35) + rng.uniform(0.7, 1.2) * u
    return np.cos(2 * np.pi * rng.uniform(4.5, 6.5) * hill + rng.uniform(0, 6.3))


def block_fields(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Rectangular fields, split again and again at random lines; see `Layout`."""
    score = np.zeros_like(u)
    todo = [(-0.75, 0.75, -0.75, 0.75)]
    while todo:
        left, right, low, high = todo.pop()
        wide, tall = right - left, high - low
        if max(wide, tall) < rng.uniform(0.16, 0.32):
            inside = (u >= left) & (u < right) & (v >= low) & (v < high)
            score[inside] = rng.random()
        elif wide > tall:
            cut = left + wide * rng.uniform(0.35, 0.65)
            todo += [(left, cut, low, high), (cut, right, low, high)]
        else:
            cut = low + tall * rng.uniform(0.35, 0.65)
            todo += [(left, right, low, cut), (left, right, cut, high)]
    return score + 1e-3 * u  # the field at the threshold is divided by a straight line


def _lattice(rng: np.random.Generator, u: Field, v: Field) -> tuple[Field, Field, Field]:
    """Distances from the nearest point of a square lattice, and 1 where that point is left out."""
    spacing = rng.uniform(0.25, 0.36)
    a, b = u / spacing + rng.random(), v / spacing + rng.random()
    left_out = rng.random((16, 16)) < 0.2
    missing = left_out[np.floor(a).astype(int) % 16, np.floor(b).astype(int) % 16]
    return np.abs(a % 1 - 0.5), np.abs(b % 1 - 0.5), missing.astype(float)


def centre_pivots(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Circles watered by an arm that turns about their centre; see `Layout`."""
    a, b, missing = _lattice(rng, u, v)
    return np.asarray(-np.hypot(a, b) - missing)


def square_fields(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Squares on the same lattice as the pivots; see `Layout`."""
    a, b, missing = _lattice(rng, u, v)
    return -np.maximum(a, b) - missing


def woodland_patches(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Woods of irregular outline; see `Layout`."""
    return noise(rng, u.shape, rng.uniform(0.07, 0.1)) + 0.1 * noise(rng, u.shape, 0.03)


def shelterbelts(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Parallel belts that shelter fields from the wind, of uneven length; see `Layout`."""
    score = np.cos(2 * np.pi * rng.uniform(3.5, 6) * u + rng.uniform(0, 6.3))
    return score + 0.25 * noise(rng, u.shape, 0.25) + 0.1 * noise(rng, u.shape, 0.03)


# Eight classes of farmed and wooded land share one palette, two of towns and two of water another each: between those,
# too, nothing but the layout differs.
_GREEN = Palette(("grass", "soil"), ("broadleaf", "conifer", "crop"), (0.25, 0.45))
_TOWN = Palette(("grass", "crop", "soil"), ("asphalt",), (0.2, 0.36), second=("roof",))
_WATER = Palette(("grass", "crop", "soil", "broadleaf", "sand"), ("water",), (0.08, 0.2))
_PAIRS: tuple[tuple[Palette, tuple[Layout, Layout]], ...] = (
    (_GREEN, (orchard_rows, hedged_meadow)),
    (_TOWN, (street_grid, scattered_farms)),
    (_WATER, (meandering_river, straight_canal)),
    (_GREEN, (contour_strips, block_fields)),
    (_GREEN, (centre_pivots, square_fields)),
    (_GREEN, (woodland_patches, shelterbelts)),
)
LAYOUTS: dict[str, tuple[Palette, Layout]] = {
    layout.__name__: (palette, layout) for palette, pair in _PAIRS for layout in pair
}
CLASSES: tuple[str, ...] = tuple(LAYOUTS)
PAIRS: tuple[tuple[str, str], ...] = tuple((a.__name__, b.__name__) for _, (a, b) in _PAIRS)
