"""What a folder holds, for errors: in a few words, and which published corpus it looks like.

A corpus is often named one level too high or too low, or as another one. A few names are looked at, never all: these
folders may hold millions.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from dofa.corpus.items import Reading
from dofa.errors import ConfigError

FILES = 10_000  # looked at to say what a folder holds
BREADTH = 50  # names of one folder that are looked at to recognise a corpus
LEVELS = 2  # above and below the folder given, where a corpus is looked for

ANY = r".+"
TILE = r"\d+_\d+\.png"
# The names on the way from a corpus' folder down to one of its images.
SIGNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "satlas-s2": ((ANY, r"b(05|06|07|08|11|12)", TILE), (r"S2\w_MSIL1C_.+", r"tci|b(05|06|07|08|11|12)", TILE)),
    "satlas-s1": ((ANY, r"v[vh]", TILE), (r"v[vh]", TILE)),
    "satlas-naip": ((r"m_\d+_[ns][ew]_.+", r"tci", TILE),),
    "five-billion-pixels": ((r"Image__8bit_NirRGB", r"GF2_PMS.+\.tiff?"),),
    "hyspecnet": ((ANY, ANY, r".+-SPECTRAL_IMAGE\.TIF"),),
    "ssl4eo-s12": ((r"s1|s2a|s2c", r"\d{7}", ANY, r"(B\d+A?|V[VH])\.tif"),),
    "bigearthnet": ((r"BigEarthNet-S[12]", r"S[12].+", ANY, r"S[12].+_(B\w+|V[VH])\.tiff?"),),
}


def content(folder: Path) -> str:
    """What a folder holds, in a few words."""
    if not folder.exists():
        return "no such folder"
    if not folder.is_dir():
        return "a file"
    names = list(islice((name for _, _, files in os.walk(folder) for name in files), FILES))
    suffixes = Counter(Path(name).suffix.lower() or "no suffix" for name in names)
    said = ", ".join(f"{n} × {s}" for s, n in suffixes.most_common(4)) or "an empty folder"
    return f"{said} among its first {FILES} files" if len(names) == FILES else said


def recognise(folder: Path, wanted: str) -> str | None:
    """The layout whose images lie where it puts them, the one wanted before all others; None for none.

    Args:
        folder: to look into.
        wanted: the layout that the user named.
    """
    layouts = sorted(SIGNS, key=lambda layout: layout != wanted)
    return next((x for x in layouts if _looks_like(folder, x)), None)


def hint(folder: Path, wanted: str) -> str:
    """Where a corpus seems to lie: another one in the folder itself, or one up to two levels below and above.

    Args:
        folder: where the layout was looked for.
        wanted: the layout that the user named.

    Returns:
        The end of an error message, with the command to run; empty where nothing is recognised.
    """
    itself = recognise(folder, wanted)
    if itself is not None and itself != wanted:
        return _advice(folder, itself)
    for layout in sorted(SIGNS, key=lambda layout: layout != wanted):
        for below in _below(folder, LEVELS):
            if _looks_like(below, layout):
                return _advice(below, layout)
        here = Path(os.path.abspath(folder))
        for level, above in enumerate(list(here.parents)[:LEVELS], 1):
            for sign in SIGNS[layout]:
                # Where any name may come first, only the folder given counts: its neighbours are other matters.
                way = here.parts[-level:] if sign[0] == ANY else ()
                if len(sign) > len(way) and _holds(above, sign, way):
                    return _advice(above, layout)
    return ""


def _looks_like(folder: Path, layout: str) -> bool:
    return any(_holds(folder, sign) for sign in SIGNS[layout])


def _advice(folder: Path, layout: str) -> str:
    return f"; it looks as if you want: dofa pack {layout} {folder}"


def _holds(folder: Path, sign: tuple[str, ...], way: tuple[str, ...] = ()) -> bool:
    """Whether some path below a folder has these names; its first folders are those of `way`."""
    head, *rest = sign
    names = [way[0]] if way else _names(folder)
    for name in names:
        if re.fullmatch(head, name, re.IGNORECASE) and (
            _holds(folder / name, tuple(rest), way[1:]) if rest else (folder / name).is_file()
        ):
            return True
    return False


def _below(folder: Path, levels: int) -> Iterator[Path]:
    """Folders below, the nearer ones first."""
    inner = [folder / name for name in _names(folder) if (folder / name).is_dir()]
    yield from inner
    if levels > 1:
        for one in inner:
            yield from _below(one, levels - 1)


def _names(folder: Path) -> list[str]:
    """The first few names of a folder; none of what is no folder or may not be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in islice(entries, BREADTH))
    except OSError:
        return []


def files_in(folder: str | Path) -> list[str]:
    """Paths of all files below a folder, sorted; links to folders are followed, each folder is listed once.

    Args:
        folder: of a person's own, where links point to wherever the data lie.
    """
    out, seen = [], set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()  # a link to a folder above it would lead round for ever
            continue
        seen.add(real)
        out += [os.path.join(here, name) for name in names]
    return sorted(out)


# -- How images are cut into tiles.

Size = tuple[int, int]


def check_tile(tile: int | None, stride: int | None) -> None:
    """Refuse tiles and strides that cut nothing.

    Args:
        tile: side in pixels, None for whole images.
        stride: pixels from tile to tile, None for the tile's side.

    Raises:
        ConfigError: a tile without a pixel, a stride without a tile, or one that would leave gaps.
    """
    if (tile is not None and tile < 1) or (stride is not None and (tile is None or not 0 < stride <= tile)):
        raise ConfigError(f"tile {tile} and stride {stride}: a tile has 1 pixel at least, a stride 1 to tile pixels")


def windows(size: Size, tile: Size, stride: int) -> Iterator[Size]:
    """Top left corners of the tiles that cover an image; the last ones are moved inwards, so that none is lost.

    Args:
        size: (H, W) of the image.
        tile: (h, w).
        stride: pixels from tile to tile.
    """
    tops, lefts = (
        sorted({*range(0, full - side + 1, stride), full - side}) for full, side in zip(size, tile, strict=True)
    )
    return ((top, left) for top in tops for left in lefts)


# -- A part of a corpus, drawn by seed and evenly over places.


def sample(reading: Reading, count: int, seed: int = 0) -> Reading:
    """Draw images: one of every place, then a second one of every place that has it, and so on.

    A function of the seed and of what lies in the corpus, neither of the folder it lies in nor of the order of its
    files; a smaller draw with the same seed is part of a larger one.

    Args:
        count: images wanted; all where there are no more.

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
