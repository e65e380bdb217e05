"""Which images are held out: whole places, or blocks of ground within a place."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from dofa.corpus.items import Item, Split
from dofa.errors import ConfigError, DataError, nearest

Method = Literal["place", "blocks", "none"]


@dataclass(frozen=True)
class SplitConfig:
    """What is held out from training.

    Attributes:
        method: `place` holds out whole places; `blocks` a stretch at one end of every place, at least one image wide,
            with a gap of at least one image; `none` nothing. A layout that brings its own split keeps it.
        val_fraction: share of the places, or of a place's longer side, that is held out.
        seed: which places, or which end.
    """

    method: Method = "place"
    val_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError(f"split is {self.method!r}: {nearest(str(self.method), get_args(Method))}")
        if not 0 < self.val_fraction < 1:
            raise ConfigError(
                f"--val-fraction {self.val_fraction}: a share between 0 and 1 (--split none holds out nothing)"
            )


def assign(items: Sequence[Item], config: SplitConfig) -> list[Split | None]:
    """The split of every item; None for those in the gap between training and held-out blocks.

    Args:
        items: to deal out; a pure function of their places, bounds and the seed, not of their order.

    Raises:
        DataError: blocks of items without position, or a place too small to be cut.
    """
    if items and all(i.split is not None for i in items):
        return [i.split for i in items]
    if config.method == "none":
        return ["train"] * len(items)
    if config.method == "place":
        held_out = held_out_places({i.place for i in items}, config)
        return ["val" if i.place in held_out else "train" for i in items]
    out: list[Split | None] = ["train"] * len(items)
    members: dict[str, list[int]] = {}
    for n, item in enumerate(items):
        members.setdefault(item.place, []).append(n)
    for place, numbers in members.items():
        for n, split in zip(numbers, _blocks(place, [items[n] for n in numbers], config), strict=True):
            out[n] = split
    return out


def held_out_places(places: set[str], config: SplitConfig) -> set[str]:
    """The fraction of places that the seed holds out: one at least, and one at least is left, where there are two.

    Args:
        config: seed and fraction.
    """
    ranked = sorted(places, key=lambda place: _hash(config.seed, place))
    return set(ranked[: min(max(1, round(config.val_fraction * len(ranked))), len(ranked) - 1)])


def _blocks(place: str, items: list[Item], config: SplitConfig) -> list[Split | None]:
    """Cut one place across its longer side: the same ground is held out in every image that shows it."""
    cure = "hold out whole places (--split place) or nothing (--split none)"
    bounds = [i.bounds for i in items if i.bounds is not None]
    if len(bounds) < len(items):
        lost = next(i.source for i in items if i.bounds is None)
        raise DataError(f"--split blocks needs positions, and {lost} has none: {cure}")
    frames = sorted({i.frame for i in items})
    if len(frames) > 1:
        raise DataError(f"place {place} has images in {' and '.join(frames)}: blocks need one frame; {cure}")
    sides = [max(b[a + 2] for b in bounds) - min(b[a] for b in bounds) for a in (0, 1)]
    axis = int(sides[1] > sides[0])
    # Measured from the end that the seed picks, so that both ends are one case.
    spans = [(b[axis], b[axis + 2]) for b in bounds]
    if _hash(config.seed, place)[0] % 2:
        spans = [(-high, -low) for low, high in spans]
    start = min(low for low, _ in spans)
    crop = max(high - low for low, high in spans)
    # Dates of one place may lie a few metres apart: a tenth of an image over the edge still counts as inside.
    reach = start + max(crop, config.val_fraction * sides[axis]) + crop / 10
    held_out = [high <= reach for _, high in spans]
    edge = max(high for (low, high), out in zip(spans, held_out, strict=True) if out)
    # A hair of tolerance: the same grid written to two files differs in the last digits.
    kept = [low >= edge + crop * (1 - 1e-6) for low, _ in spans]
    if not any(kept):
        raise DataError(
            f"place {place} is too small for blocks: held-out images, a gap of one image and training images need more "
            f"than {sides[axis] / crop:.1f} images in a row; pack smaller tiles (--tile), or {cure}"
        )
    return ["val" if out else "train" if keep else None for out, keep in zip(held_out, kept, strict=True)]


def _hash(seed: int, place: str) -> bytes:
    return hashlib.sha256(f"{seed}:{place}".encode()).digest()
