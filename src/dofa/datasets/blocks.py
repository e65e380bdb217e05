"""Blocks of ground: chips of one block stay on one side of a split, so that neighbours do not judge each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.warp import transform

from dofa.corpus.items import Split
from dofa.errors import ConfigError, DataError
from dofa.raster import gdal
from dofa.scene.grid import Grid, Window

SPLITS: tuple[Split, ...] = ("train", "val", "test")
DRAWS = 512  # ways to deal blocks out, of which the one nearest to the shares is taken
SHARED = 0.05  # of a chip's ground: less is the noise of two reference systems
TOUCH = 1.0  # pixels that chips of two blocks may share where rasters lie askew by fractions of a pixel
ROUNDING = 1e-6  # pixels: what computing with coordinates may be off by


@dataclass(frozen=True)
class Blocks:
    """The blocks of one scene, on a grid it shares with all scenes whose pixels lie parallel to its own.

    Attributes:
        frame: which of several grids of blocks it is.
        name: of the frame, the beginning of each block's name.
        down: where row 0 lies on the frame, in pixels.
        right: where column 0 lies.
        side: of a block in pixels.
    """

    frame: int
    name: str
    down: float
    right: float
    side: int

    def starts(self, length: int, size: int, axis: int) -> list[int]:
        """First pixels of the chips along an axis (0 down, 1 right): cut from block to block, and one at each end.

        Chips at an end share pixels with their neighbours, so that no strip of a raster is lost.

        Args:
            length: of the raster along the axis, in pixels.
            size: of a chip, in pixels.
            axis: 0 or 1.
        """
        shift = (self.down, self.right)[axis]
        first = math.ceil(-shift % size - ROUNDING) % size
        regular = range(first, length - size + 1, size)
        return sorted({*regular, 0, length - size}) if length >= size else []

    def of(self, window: Window) -> str | None:
        """Name of the block that a window lies in; None where it lies across two."""
        span = ((self.down + window.row, window.height), (self.right + window.col, window.width))
        cells = [
            (math.floor((low + TOUCH / 2) / self.side), math.floor((low + n - TOUCH) / self.side)) for low, n in span
        ]
        return f"{self.name} {cells[0][0]},{cells[1][0]}" if all(a == b for a, b in cells) else None

    def around(self, row: float, col: float, size: int, shape: tuple[int, int]) -> Window | None:
        """A window around a point, moved as far as its block and the raster ask.

        Args:
            shape: rows and columns of the raster.

        Returns:
            None where it would have to move by more than a quarter of its side: the point is in its middle half.
        """
        corner = []
        for at, shift, length in ((row, self.down, shape[0]), (col, self.right, shape[1])):
            wanted = round(at - size / 2)
            low = math.floor((at + shift) / self.side) * self.side - shift
            first, last = max(0, math.ceil(low - ROUNDING)), min(length, math.ceil(low + self.side - ROUNDING)) - size
            start = min(max(wanted, first), last)
            if start < first or abs(start - wanted) > size / 4:
                return None
            corner.append(start)
        return Window(corner[0], corner[1], size, size)


def lay_blocks(grids: Sequence[Grid], names: Sequence[str], side: int) -> list[Blocks]:
    """Blocks for every scene; scenes of one reference system and pixel size share theirs.

    Args:
        side: of a block in pixels.
    """
    frames: list[Grid] = []
    out = []
    for grid, name in zip(grids, names, strict=True):
        shared = [(n, shift) for n, frame in enumerate(frames) if (shift := _shift(grid, frame)) is not None]
        if not shared:
            frames.append(grid)
        number, (down, right) = shared[0] if shared else (len(frames) - 1, (0.0, 0.0))
        label = name if grid.crs is None else grid.crs.to_string()[:40]
        out.append(Blocks(number, label if number == 0 else f"{label} #{number}", down, right, side))
    return out


def _shift(grid: Grid, frame: Grid) -> tuple[float, float] | None:
    """(row, column) on the frame of a grid's corner; None where its pixels are others, or turned."""
    if grid.crs is None or grid.crs != frame.crs:
        return None
    inverse = ~frame.transform

    def on_frame(col: float, row: float) -> NDArray[np.float64]:
        return np.array(gdal.at(inverse, *gdal.at(grid.transform, col, row)))

    corner = on_frame(0, 0)
    opposite = on_frame(grid.width, grid.height) - corner
    drift = np.abs(opposite - (grid.width, grid.height)).max()
    # To a thousandth of a pixel: subtracted coordinates carry noise.
    return (round(float(corner[1]), 3), round(float(corner[0]), 3)) if drift < TOUCH / 2 else None


def check_frames(scenes: Sequence[Grid], blocks: Sequence[Blocks], chips: Sequence[tuple[int, Window]]) -> None:
    """Refuse chips of one ground in two frames, which blocks cannot keep together.

    Args:
        chips: (scene, window).

    Raises:
        DataError: two such chips.
    """
    if len({b.frame for b in blocks}) < 2:
        return
    import shapely

    corners = [
        [
            gdal.at(grid.transform, w.col + c * w.width, w.row + r * w.height)
            for c, r in ((0, 0), (1, 0), (1, 1), (0, 1))
        ]
        for grid, w in ((scenes[scene], window) for scene, window in chips)
    ]
    of = np.array([scene for scene, _ in chips])
    shapes = np.empty(len(chips), object)
    for scene in np.unique(of).tolist():
        crs, rows = scenes[scene].crs, np.flatnonzero(of == scene)
        if crs is None:
            continue
        x, y = zip(*(xy for row in rows for xy in corners[row]), strict=True)
        ring = np.array(transform(crs, "EPSG:4326", x, y)).T.reshape(len(rows), 4, 2)
        shapes[rows] = shapely.polygons(ring)
    tree = shapely.STRtree(shapes)
    for one, two in tree.query(shapes, predicate="intersects").T.tolist():
        first, second = blocks[of[one]], blocks[of[two]]
        if first.frame == second.frame:
            continue
        if shapely.intersection(shapes[one], shapes[two]).area > SHARED * shapes[one].area:
            raise DataError(
                f"rasters on different grids ({first.name}, {second.name}) show the same ground, which blocks cannot "
                "keep together: bring them to one grid (gdalwarp -t_srs … -tr …), or give --split random"
            )


def check_shares(val: float, test: float) -> None:
    """Refuse shares of validation and test that leave nothing to learn from, before any chip is cut.

    Args:
        val: share of the blocks for validation.
        test: share for the test.

    Raises:
        ConfigError: a negative share, NaN, or 1 and more together.
    """
    if min(val, test) < 0 or not val + test < 1:
        raise ConfigError(f"--val-fraction {val:g} and --test-fraction {test:g}: shares that leave some for training")


def assign_blocks(counts: NDArray[Any], val: float, test: float, seed: int, names: Sequence[str]) -> NDArray[np.int64]:
    """Deal units out to training, validation and test, so that classes come near to the shares in each.

    Of many draws by the seed the best is taken: first every class in training, then every class in the others, then
    shares.

    Args:
        counts: (U, K) how much of each class a unit holds.
        val: share of validation, 0 for none.
        test: share of test, 0 for none.

    Returns:
        (U,) numbers of `SPLITS`.

    Raises:
        DataError: too few units, or a class that no draw brings into training.
        ConfigError: shares that leave nothing.
    """
    check_shares(val, test)
    units, cure = len(counts), "make --block or --size smaller, label more ground, or give --split random"
    held = [max(1, round(share * units)) if share else 0 for share in (val, test)]
    if units <= sum(held):
        raise DataError(f"blocks of ground: {units}, too few for training, validation and test: {cure}")
    shares = np.array([1 - val - test, val, test])
    total = counts.sum(0)
    weight = counts / np.maximum(total, 1)
    rng = np.random.default_rng(seed)
    quota = np.repeat([0, 1, 2], [units - sum(held), *held])
    best, lowest = quota, math.inf
    for _ in range(DRAWS):
        drawn = rng.permutation(quota)
        got = np.stack([weight[drawn == part].sum(0) for part in range(3)])
        lacking = (got == 0) & (total > 0) & (shares > 0)[:, None]
        cost = 1e6 * lacking[0].sum() + 1e3 * lacking[1:].sum() + np.abs(got - shares[:, None]).sum()
        if cost < lowest:
            best, lowest = drawn, float(cost)
    absent = [n for n, t, g in zip(names, total, counts[best == 0].sum(0), strict=True) if t and not g]
    if absent:
        raise DataError(
            f"class {', '.join(absent)} is missing from training: its ground fills too few blocks: {cure}, or try "
            "another --seed"
        )
    return best
