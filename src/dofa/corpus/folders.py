"""What a folder holds, for errors: in a few words, and which published corpus it looks like.

A corpus is often named one level too high or too low, or as another one. A few names are looked at, never all: these
folders may hold millions.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

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
