"""A piece of simulated ground: which cover lies where, in what state, under what light."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError, nearest
from dofa.simulate.covers import COVER_NAMES
from dofa.simulate.layouts import LAYOUTS, noise, patchwork

FINE = 2  # cells of ground along the side of a pixel, so that pixels at borders are mixed
WINTER = 0.01  # share of the scenes whose ground lies under snow
TURN = 0.2  # radians by which layouts lie off the axes; parcels and streets do follow the compass in many countries
STATE_SPREAD = 0.15  # of the state between fields, as a share of the way from the low to the high end


@dataclass(frozen=True)
class Landscape:
    """The ground, before any sensor looks at it.

    Attributes:
        kind: scene class, one of CLASSES.
        seed: which landscape of that class.
        cover: (FINE · size)² indices into COVER_NAMES: the label of every cell.
        state: like cover, 0 (low) to 1 (high): dry or green, sparse or dense, clear or turbid.
        light: like cover, illumination of the slopes around 1.
        gsd_m: metres a pixel of size² has.
    """

    kind: str
    seed: int
    cover: NDArray[np.uint8]
    state: NDArray[np.float32]
    light: NDArray[np.float32]
    gsd_m: float

    @property
    def size(self) -> int:
        """Side in pixels."""
        return int(self.cover.shape[0]) // FINE

    def label_map(self) -> NDArray[np.uint8]:
        """(size, size): the cover with the largest share of each pixel."""
        shares = np.stack([pixel_mean((self.cover == i).astype(np.float32)) for i in range(len(COVER_NAMES))])
        return np.asarray(shares.argmax(axis=0), np.uint8)

    def fractions(self) -> dict[str, float]:
        """Area share of every cover that occurs."""
        counts = np.bincount(self.cover.ravel(), minlength=len(COVER_NAMES)) / self.cover.size
        return {name: float(c) for name, c in zip(COVER_NAMES, counts, strict=True) if c}


def landscape(kind: str, seed: int, size: int = 64, gsd_m: float = 10.0) -> Landscape:
    """Draw one landscape; the same arguments always give the same one.

    The patterns are drawn for a scene of `size` pixels, whatever a pixel measures: all sensors look at one common grid,
    on which every layout can be seen. That EnMAP would not resolve a real orchard is left out.

    Args:
        kind: one of CLASSES.
        seed: any integer ≥ 0.
        size: side in pixels.
        gsd_m: metres a pixel has.

    Raises:
        ConfigError: an unknown class (the nearest are said), or fewer than 16 pixels.
    """
    if kind not in LAYOUTS:
        raise ConfigError(f"unknown scene class {kind!r}: {nearest(kind, LAYOUTS)}")
    if size < 16:
        raise ConfigError(f"a landscape of {size} pixels is too small to show its layout: 16 at least")
    palette, layout = LAYOUTS[kind]
    rng = np.random.default_rng([seed, list(LAYOUTS).index(kind)])
    side = FINE * size
    u, v = _axes(rng, side)

    # The ground: fields of up to three covers. Each field has its own state, about one that the season sets for all.
    fields, _ = patchwork(rng, u, v, int(rng.integers(3, 9)))
    count = int(rng.integers(1, min(3, len(palette.ground)) + 1))
    kinds = rng.choice(palette.ground, size=count, replace=False)
    of_field = [COVER_NAMES.index(k) for k in rng.choice(kinds, size=fields.max() + 1)]
    cover = np.asarray(of_field, np.uint8)[fields]
    if rng.random() < WINTER:
        cover[:] = COVER_NAMES.index("snow")
    season = rng.uniform(0.2, 0.8)
    state = (season + STATE_SPREAD * rng.standard_normal(fields.max() + 1))[fields]

    # The layout: its cover takes the best cells, its second cover the best of those.
    score = layout(rng, *_axes(rng, side))
    fraction = rng.uniform(*palette.fraction)
    feature = score >= np.quantile(score, 1 - fraction)
    cover[feature] = COVER_NAMES.index(str(rng.choice(palette.feature)))
    state[feature] = rng.uniform(0.1, 0.9)
    if palette.second:
        # Along a street as around a yard: roofs lie outside, and are given or left out by lots of some pixels.
        outer = feature & (score < np.quantile(score, 1 - rng.uniform(0.3, 0.5) * fraction))
        lots = noise(rng, u.shape, 0.015)
        roof = outer & (lots > np.quantile(lots[outer], 0.25))
        cover[roof] = COVER_NAMES.index(str(rng.choice(palette.second)))
        state[roof] = (0.5 + 0.3 * noise(rng, u.shape, 0.02))[roof]
    state = state + 0.06 * noise(rng, u.shape, 0.02) + 0.05 * noise(rng, u.shape, 0.2)

    relief = noise(rng, u.shape, rng.uniform(0.15, 0.4)) * rng.uniform(0.0, 0.08)
    return Landscape(
        kind,
        seed,
        cover,
        np.clip(state, 0, 1).astype(np.float32),
        np.clip(1 + relief, 0.5, 1.5).astype(np.float32),
        gsd_m,
    )


def _axes(rng: np.random.Generator, side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates of the cells, −½ to ½ across the scene, turned by some ten degrees and perhaps by a right angle."""
    x, y = np.meshgrid(*[(np.arange(side) + 0.5) / side - 0.5] * 2)
    angle = np.pi / 2 * rng.integers(4) + rng.normal(0, TURN)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def pixel_mean(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means over FINE × FINE cells: (…, FINE · h, FINE · w) to (…, h, w)."""
    *rest, height, width = cells.shape
    blocks = cells.reshape(*rest, height // FINE, FINE, width // FINE, FINE)
    return np.asarray(blocks.mean(axis=(-3, -1), dtype=np.float32))
