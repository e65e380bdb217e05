"""Which windows a scene is cut into, and how their answers are joined: pure arithmetic, no pixel is read here.

A *cell* is what one vector of the output stands for: a patch, or a square of `stride` pixels where passes shifted by
the stride are averaged (docs/features.md). Tiles overlap; between two neighbours lies a zone in which one fades into
the other. Weights are multiples of 1/256 that sum to one exactly, so that tiles which agree give their common value
back to the last bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError
from dofa.scene.grid import Window

WHOLE = 256  # the sum of weights: small integers, exact in any order of summation


ControlPoints: TypeAlias = tuple[str, tuple[tuple[float, ...], ...]]  # WKT; row, column, x, y, z of each point


@dataclass(frozen=True)
class Axis:
    """The tiles of one pass along one axis.

    Attributes:
        starts: first pixel of each tile.
        tile: pixels a tile, a multiple of the patch.
        cell: pixels a cell of one pass.
        zones: between each tile and the next, first and last cell (exclusive, from the pass's first cell) of the zone
            in which one fades into the other.
    """

    starts: tuple[int, ...]
    tile: int
    cell: int
    zones: tuple[tuple[int, int], ...]

    @cached_property
    def weights(self) -> list[NDArray[np.int64]]:
        """(tile / cell,) for each tile how much of each of its cells counts, in 256ths."""
        return [self._weights(index) for index in range(len(self.starts))]

    @cached_property
    def counted(self) -> list[tuple[int, int]]:
        """First and last pixel (exclusive) on which each tile has weight."""
        some = [np.flatnonzero(weights) for weights in self.weights]
        pairs = zip(self.starts, some, strict=True)
        return [(start + int(s[0]) * self.cell, start + (int(s[-1]) + 1) * self.cell) for start, s in pairs]

    def _weights(self, index: int) -> NDArray[np.int64]:
        shift = self.starts[0]
        first = (self.starts[index] - shift) // self.cell
        places = first + np.arange(self.tile // self.cell)
        out = np.full(len(places), WHOLE, np.int64)
        if index > 0:
            out = np.minimum(out, _rising(places, *self.zones[index - 1]))
        if index < len(self.zones):
            out = np.minimum(out, WHOLE - _rising(places, *self.zones[index]))
        return out


def _rising(places: NDArray[np.int64], first: int, last: int) -> NDArray[np.int64]:
    """0 before a zone, 256 behind it, half a period of a raised cosine within."""
    share = np.clip((places + 0.5 - first) / max(last - first, 1), 0, 1)
    inside = np.rint(WHOLE * np.sin(0.5 * np.pi * share) ** 2).astype(np.int64)
    return np.where(places < first, 0, np.where(places >= last, WHOLE, inside))


def cut(length: int, tile: int, overlap: int, patch: int, cell: int, halo: int = 0, shift: int = 0) -> Axis:
    """Cut one axis of a scene into tiles, evenly.

    Args:
        length: pixels of the scene.
        tile: pixels a tile; a shorter scene is one tile, as long as its whole patches.
        overlap: least number of pixels two neighbours share.
        patch: of the model; tiles begin at multiples of it, counted from `shift`.
        cell: pixels a cell of the model's answer, a divisor of the patch.
        halo: pixels at the inner edges of a tile that never count.
        shift: pixels left out at the start, for one of several shifted passes.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    if tile < patch or tile % patch:
        raise ConfigError(f"a tile of {tile} pixels: a multiple of the patch of {patch} is needed")
    idle = math.ceil(halo / cell)  # cells at an inner edge
    if not 0 <= 2 * idle * cell <= overlap <= tile - patch:
        raise ConfigError(
            f"--overlap {overlap}: at least {2 * idle * cell}, twice what is left out at an edge, and at most the tile "
            f"of {tile} less a patch of {patch}"
        )
    whole = patch * math.ceil((length - shift) / patch)
    if whole <= tile:
        return Axis((shift,), whole, cell, ())
    step = patch * ((tile - overlap) // patch)
    count = math.ceil((whole - tile) / step) + 1
    last = (whole - tile) // patch  # in patches: the last tile ends with the last whole patch
    starts = [patch * round(last * i / (count - 1)) for i in range(count)]
    # From here on in cells. Zones lie in the middle of what two tiles share and never reach into one another.
    begins, cells = [s // cell for s in starts], tile // cell
    middles = [(a + b + cells) / 2 for a, b in pairwise(begins)]
    zones = []
    for i, middle in enumerate(middles):
        half = (begins[i] + cells - begins[i + 1]) / 2 - idle
        half = min([half, *(abs(middle - other) / 2 for other in middles[max(0, i - 1) : i + 2] if other != middle)])
        first, end = math.ceil(middle - half), math.floor(middle + half)
        zones.append((first, end) if first <= end else (end, end))
    return Axis(tuple(s + shift for s in starts), tile, cell, tuple(zones))


@dataclass(frozen=True)
class Tile:
    """One run of the model.

    Attributes:
        window: pixels of the scene it is fed; it may reach over the lower and right border by less than a patch.
        group: of the tile rows that are run together.
        rows: weights of its rows of cells, in 256ths.
        cols: weights of its columns of cells.
    """

    window: Window
    group: int
    rows: NDArray[np.int64]
    cols: NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """How a scene is cut, run and joined.

    The output lies in *swaths*, columns narrow enough to be held in memory, each of them in *blocks* of rows that are
    finished one after another.

    Attributes:
        height: of the scene, in pixels.
        width: of the scene, in pixels.
        tile: pixels a side of a tile.
        overlap: pixels that neighbouring tiles share at least.
        patch: of the model.
        cell: pixels a side of a cell of one pass.
        stride: pixels between shifted passes, a divisor of the cell; the cell where there is one pass.
        offset: patch_offset of the model: cell (0, 0) begins that many pixels above and left of the scene.
        halo: pixels at the inner edges of tiles that never count.
        swath: largest number of pixels across a swath, a multiple of the patch; 0 for no limit.
    """

    height: int
    width: int
    tile: int
    overlap: int
    patch: int
    cell: int
    stride: int
    offset: int = 0
    halo: int = 0
    swath: int = 0

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"a scene of {self.height} × {self.width} pixels")
        if self.stride < 1 or self.cell % self.stride or self.patch % self.cell:
            raise ConfigError(
                f"--stride {self.stride}: a divisor of {self.cell} is needed "
                f"({', '.join(str(s) for s in range(1, self.cell + 1) if self.cell % s == 0)})"
            )
        if self.swath % self.patch or (self.swath and self.swath < self.tile):
            raise ConfigError(f"swath {self.swath}: a multiple of the patch, at least a tile")
        _ = self.row_passes, self.col_passes  # what does not fit is told at once

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return -(-self.height // self.stride), -(-self.width // self.stride)

    def _passes(self, length: int) -> list[Axis]:
        """One cut for each shift along an axis; shifts that leave less than a patch are left out."""
        shifts = [a for a in range(0, self.cell, self.stride) if a == 0 or length - a >= self.patch]
        return [cut(length, self.tile, self.overlap, self.patch, self.cell, self.halo, a) for a in shifts]

    @cached_property
    def row_passes(self) -> list[Axis]:
        """The cuts from top to bottom."""
        return self._passes(self.height)

    @cached_property
    def col_passes(self) -> list[Axis]:
        """The cuts from left to right."""
        return self._passes(self.width)

    @cached_property
    def _groups(self) -> list[list[tuple[Axis, int]]]:
        """Tile rows that are run together: those of all passes that begin within a patch of each other."""
        rows = sorted((start, k, i) for k, axis in enumerate(self.row_passes) for i, start in enumerate(axis.starts))
        groups: list[list[tuple[Axis, int]]] = []
        began = -self.patch
        for start, k, i in rows:
            if start - began >= self.patch:
                groups.append([])
                began = start
            groups[-1].append((self.row_passes[k], i))
        return groups

    @cached_property
    def swaths(self) -> list[tuple[int, int]]:
        """First and last column (exclusive) of each swath, in cells of the output."""
        columns = self.shape[1]
        if not self.swath or self.width <= self.swath:
            return [(0, columns)]
        count = math.ceil(self.width / self.swath)
        step = self.patch * math.ceil(self.width / count / self.patch) // self.stride
        return [(first, min(first + step, columns)) for first in range(0, columns, step)]

    @cached_property
    def _row_edges(self) -> list[tuple[int, int]]:
        """Rows of the output that are finished with each group."""
        begins = [min(axis.starts[i] for axis, i in group) // self.stride for group in self._groups]
        ends = [*begins[1:], self.shape[0]]
        return [(0 if g == 0 else begins[g], ends[g]) for g in range(len(begins))]

    @cached_property
    def blocks(self) -> list[Window]:
        """What is finished one after another, in cells: swath by swath, from top to bottom. They cover the output."""
        return [
            Window(top, left, bottom - top, right - left)
            for left, right in self.swaths
            for top, bottom in self._row_edges
        ]

    @cached_property
    def _columns(self) -> list[list[tuple[Axis, int]]]:
        """The tiles across each swath, of all passes: those with weight in it."""
        return [
            [
                (axis, j)
                for axis in self.col_passes
                for j, (first, end) in enumerate(axis.counted)
                if first // self.stride < right and end // self.stride > left
            ]
            for left, right in self.swaths
        ]

    @property
    def tile_count(self) -> int:
        """Tiles of all blocks together; counted, for at a fine stride there are millions to list."""
        return sum(len(axis.starts) for axis in self.row_passes) * sum(map(len, self._columns))

    def tiles_of(self, block: int) -> list[Tile]:
        """The tiles that are run for a block and not already for the one above it in its swath."""
        swath, group = self._place(block)
        return [
            Tile(Window(rows.starts[i], cols.starts[j], rows.tile, cols.tile), group, rows.weights[i], cols.weights[j])
            for rows, i in self._groups[group]
            for cols, j in self._columns[swath]
        ]

    def begins(self, block: int) -> int:
        """The first block whose tiles reach into this one: where a run that was interrupted before it begins again."""
        _, group = self._place(block)
        top = self._row_edges[group][0]
        first = group
        for g in range(group - 1, -1, -1):
            if any(axis.counted[i][1] // self.stride > top for axis, i in self._groups[g]):
                first = g
        return block - (group - first)

    def _place(self, block: int) -> tuple[int, int]:
        return divmod(block, len(self._row_edges))

    def pixels_of(self, block: Window) -> Window:
        """The pixels under a block of cells; they may reach over the border of the scene."""
        s, o = self.stride, self.offset
        return Window(block.row * s - o, block.col * s - o, block.height * s, block.width * s)

    def control_points(self, scene: ControlPoints | None) -> ControlPoints | None:
        """The scene's ground control points (WKT; row, column, x, y, z of each) in cells; None where it has none."""
        if scene is None:
            return None
        crs, points = scene
        moved = (((p[0] + self.offset) / self.stride, (p[1] + self.offset) / self.stride, *p[2:]) for p in points)
        return crs, tuple(moved)

    def transform(self, scene: Sequence[float]) -> tuple[float, float, float, float, float, float]:
        """The output's affine coefficients (a, b, c, d, e, f) from the scene's."""
        a, b, c, d, e, f = tuple(scene)[:6]
        s, o = self.stride, self.offset
        return a * s, b * s, c - o * (a + b), d * s, e * s, f - o * (d + e)
