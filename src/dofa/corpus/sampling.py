"""A part of a corpus, drawn by seed and evenly over places."""

import hashlib
import os
from dataclasses import replace

import numpy as np

from dofa.corpus.items import Reading
from dofa.errors import ConfigError


def sample(reading: Reading, count: int, seed: int = 0) -> Reading:
    """Draw images: one of every place, then a second one of every place that has it, and so on.

    A function of the seed and of what lies in the corpus, neither of the folder it lies in nor of the order of its
    files; a smaller draw with the same seed is part of a larger one.

    Args:
        reading: the corpus.
        count: images wanted; all where there are no more.
        seed: which ones.

    Returns:
        The same reading with the images drawn, in their order.

    Raises:
        ConfigError: count is less than one.
    """
    if count < 1:
        raise ConfigError(f"sample is {count}: at least one image has to be drawn")
    total = len(reading.items)
    if count >= total:
        note = f"{count} images were asked for, and the corpus has {total}: all are taken"
        return replace(reading, notes=(*reading.notes, note))
    first = last = reading.items[0].source
    for item in reading.items:  # made anew at each pass where a corpus is large, so few passes
        first, last = min(first, item.source), max(last, item.source)
    # The two furthest apart as text: what they share, all share.
    root = os.path.dirname(os.path.commonprefix([first, last]))  # noqa: RUF071
    numbers: dict[str, int] = {}
    place, draw = np.empty(total, np.int64), np.empty(total, np.uint64)
    for n, item in enumerate(reading.items):
        place[n] = numbers.setdefault(item.place, len(numbers))
        draw[n] = _draw(seed, "image", item.source.removeprefix(root))
    order = np.lexsort((draw, place))
    starts = np.flatnonzero(np.r_[True, np.diff(place[order]) > 0])
    turn = np.empty(total, np.int64)  # which image of its place it is
    turn[order] = np.arange(total) - np.repeat(starts, np.diff(np.r_[starts, total]))
    of_place = np.array([_draw(seed, "place", p.removeprefix(root)) for p in numbers], np.uint64)
    chosen = np.sort(np.lexsort((of_place[place], turn))[:count])
    places = len(np.unique(place[chosen]))
    note = f"{count} of {total} images are taken, of {places} of {len(numbers)} places, drawn with seed {seed}"
    return replace(reading, items=[reading.items[n] for n in chosen], notes=(*reading.notes, note))


def _draw(seed: int, what: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{what}:{name}".encode()).digest()[:8])
