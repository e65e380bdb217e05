"""Five-Billion-Pixels as published: 150 Gaofen-2 scenes of four 8-bit bands, cut into overlapping windows.

Facts: x-ytong/DPA, issue 8 (the author on the colour space and order of the 8-bit files); the folder names of the
release; windows and stride of the published DOFA corpus (reference/dofa.md section 2).
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dofa import sensors
from dofa.corpus.items import Item, Reading, Refusal, Sample
from dofa.corpus.readers.folders import check_tile, content, files_in, hint, windows
from dofa.corpus.readers.image_file import RasterFile, Window
from dofa.corpus.readers.images import Places
from dofa.errors import DataError
from dofa.raster.factors import UserNumbers

TILE, STRIDE = 512, 256
FOLDER = "Image__8bit_NirRGB"
ORDER = ("NIR", "R", "G", "B")  # of the bands in a file, as its folder is named
SCENE = re.compile(r"(GF2_PMS\d__L1A\d+-MSS\d)\.tiff?", re.IGNORECASE)
CENTRE = re.compile(r"\b(lat|long)Offset\s*=\s*([-+.\d]+(?:[eE][-+]?\d+)?)")  # of a scene's polynomials, in degrees


def read_five_billion_pixels(folder: str | Path, *, tile: int | None = None, stride: int | None = None) -> Reading:
    """Five-Billion-Pixels: Image__8bit_NirRGB/GF2_PMS?__L1A*-MSS?.tif, found at any depth.

    The files hold NIR, red, green and blue under the label of cyan, magenta, yellow and black, which GDAL would turn
    into red, green, blue and alpha: their numbers are read as they are, and stored in the sensor's order, B, G, R, NIR.
    Pixels that are 0 in all bands are the scenes' borders, no measurement. Annotations and 16-bit copies are left out.

    A place is a scene; where the corpus' `Coordinate_files` (.rpb) are there, scenes whose centres lie within 0.1° are
    one place, since they show the same ground at several dates. The files themselves have no georeference.

    Args:
        folder: the corpus, or any part of it that holds images.
        tile: side in pixels of the windows; 512 where neither is given, with a stride of 256.
        stride: pixels from one to the next, `tile` where only that is given. The last ones are moved inwards: 728 a
            scene of 6800×7200, where the published script counts 783 by writing some of them twice.

    Raises:
        DataError: no such image in the folder; what it holds, and where they seem to lie, is said.
        ConfigError: a tile or stride that cuts nothing.
    """
    stride = stride or (STRIDE if tile is None else tile)
    tile = tile or TILE
    check_tile(tile, stride)
    root = Path(folder)
    found = [Path(path) for path in files_in(root)]
    images = [path for path in found if SCENE.fullmatch(path.name) and "16bit" not in path.parent.name]
    if not images:
        raise DataError(
            f"{root} is no Five-Billion-Pixels: expected {FOLDER}/GF2_PMS?__L1A*-MSS?.tif, found {content(root)}"
            f"{hint(root, 'five-billion-pixels')}"
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        opened = list(pool.map(lambda path: _open(path, tile), images))
    sensor = sensors.get("gaofen-2")
    centres = {path.stem: _centre(path) for path in found if path.suffix.lower() == ".rpb"}
    places, names, items = Places(), dict[str, Path](), list[Item]()
    refused = [f for f in opened if isinstance(f, Refusal)]
    for path, file in zip(images, opened, strict=True):
        if isinstance(file, Refusal):
            continue
        if first := names.get(path.stem):
            refused.append(Refusal(str(path), f"is the scene of {first} once more"))
            continue
        names[path.stem] = path
        centre = centres.get(path.stem)
        for top, left in windows(file.size, (tile, tile), stride):
            items.append(
                Item(
                    source=f"{path}@{top},{left}",
                    place=path.stem if centre is None else places.find(*centre),
                    load=_Load(file, (top, left, tile, tile), sensor.band_names),
                    bounds=file.bounds(top, left, tile, tile),
                    frame=f"pixels of {path.stem}",
                    files=(str(path),),
                )
            )
    if not items:
        raise DataError(
            f"none of {len(images)} scenes can be read; the first, {refused[0].source}: {refused[0].reason}"
        )
    located = sum(centres.get(stem) is not None for stem in names)
    return Reading(
        sensor=sensor,
        items=items,
        tile=(tile, tile),
        dtype="uint8",
        refused=tuple(refused),
        notes=(
            f"files are read as {', '.join(ORDER)}, as their folder is named and their author says; the statistics "
            "published for gaofen-2 name them B, G, R, NIR, in doubt: those of this store are its own",
            f"places: {located} of {len(names)} scenes have a centre (.rpb); the others are places by name",
        ),
    )


@dataclass(frozen=True)
class _Load:
    """Reads one window of one scene; what an `Item` calls."""

    file: RasterFile
    window: Window
    bands: tuple[str, ...]

    def __call__(self) -> Sample:
        return Sample(*self.file.read(0, self.window, self.bands))


def _open(path: Path, tile: int) -> RasterFile | Refusal:
    """The header of one scene."""
    try:
        # Without the prefix GDAL converts what is marked as cyan, magenta, yellow and black.
        file = RasterFile(f"GTIFF_RAW:{path}", sensors.get("gaofen-2"), ORDER, UserNumbers(), 0)
    except DataError as error:
        return Refusal(str(path), " ".join(str(error).split()))
    if file.dtype != "uint8":
        return Refusal(str(path), f"holds {file.dtype} numbers; {FOLDER} has 8 bits")
    if min(file.size) < tile:
        return Refusal(str(path), f"{file.size[0]}×{file.size[1]} pixels are smaller than a window of {tile}")
    return file


def _centre(rpb: Path) -> tuple[float, float] | None:
    """Longitude and latitude of a scene's centre; None where the file does not say them."""
    try:
        found = dict(CENTRE.findall(rpb.read_text(encoding="utf-8", errors="replace")))
        return float(found["long"]), float(found["lat"])
    except (OSError, KeyError, ValueError):
        return None
