"""Reader of images in folders: files in, a `Reading` for `dofa.corpus.pack.pack` out.

Opening a file's header is enough to plan: sizes, bands, types, places. Pixels are read when packing asks for them.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dofa import sensors
from dofa.corpus.items import Item, Reading, Refusal, Sample, Split
from dofa.corpus.readers.folders import check_tile, content, files_in, windows
from dofa.corpus.readers.image_file import Archives, ArrayFile, ImageFile, RasterFile, harmonise
from dofa.errors import ConfigError, DataError, listed
from dofa.pixels import Scaling
from dofa.raster.factors import UserNumbers
from dofa.sensors import Sensor

__all__ = ["Item", "Reading", "Refusal", "Sample", "Split", "read_images"]

SUFFIXES = (".tif", ".tiff", ".gtif", ".jp2", ".png", ".jpg", ".jpeg", ".npz")
PLACE_DEGREES = 0.1  # images whose centres lie closer than this (11 km of latitude) to a place's first image show it


def read_images(
    sources: str | Path | Sequence[str | Path],
    sensor: Sensor | str,
    *,
    tile: int | None = None,
    stride: int | None = None,
    bands: str | Sequence[str | None] | None = None,
    scaling: Scaling | None = None,
    dn_offset: float | None = None,
    dn_scale: float | None = None,
    unit: str | None = None,
    nodata: float | None = None,
    place: str = "auto",
    labels: bool = False,
) -> Reading:
    """Images of one sensor: GeoTIFF, PNG, JPEG and whatever GDAL opens, and NumPy archives.

    An .npz holds `x`, (C, H, W) or (N, C, H, W), and may name its channels (`bands`), the place of each image (`place`)
    and its class (`label`).

    Args:
        sources: folders (searched to the bottom), files, glob patterns, and .txt lists of these, one a line.
        sensor: by name or as a Sensor.
        tile: side in pixels of the tiles that images are cut into; None where all images have one size and stay whole.
        stride: pixels from tile to tile, `tile` where absent. The last tiles are moved inwards, so that none is lost.
        bands: where files do not name their bands: names in the files' order, None for a band to leave out, or the name
            of the sensor whose order it is ("enmap" for 224 bands of which `enmap-202` keeps 202).
        scaling: what the numbers mean, where neither the files nor the product say it.
        dn_offset: added to the numbers first: −1000 for Sentinel-2 of baseline ≥ 04.00, 0 to say that there is none.
        dn_scale: factor from the numbers to their unit, in place of the files' and the product's.
        unit: what the numbers are, as a unit tag would say it; see `dofa.raster.open_raster`.
        nodata: the number that stands for no measurement, where files do not say it.
        place: what counts as one place: `georeference` (centres within 0.1°), `path` (each file), `folder`, a regular
            expression whose first group is found in the source (file, or file#index in an .npz), or `auto`:
            georeference where a file has one, else path.
        labels: the name of a file's folder is its class.

    Returns:
        Tiles of the files' own numbers, bands in the sensor's order. Files that cannot be opened, lack bands or are
        smaller than a tile are listed as refused.

    Raises:
        DataError: nothing that can be read was found, or sizes differ and no tile is given.
        ConfigError: an unknown sensor, or settings that do not hold.
    """
    if isinstance(sensor, str):
        sensor = sensors.get(sensor)
    check_tile(tile, stride)
    if isinstance(bands, str):
        bands = [b if b in sensor.band_names else None for b in sensors.get(bands).band_names]
    find_place = _place_rule(place)
    paths = find_files([sources] if isinstance(sources, str | Path) else sources)
    archives = Archives()
    numbers = UserNumbers(scaling, dn_offset, dn_scale, unit)

    def open_file(path: str) -> ImageFile | Refusal:
        try:
            if path.lower().endswith(".npz"):
                return ArrayFile(path, sensor, bands, numbers, nodata, archives)
            return RasterFile(path, sensor, bands, numbers, nodata)
        except DataError as error:
            return Refusal(path, " ".join(str(error).split()))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        opened = list(pool.map(open_file, paths))
    files = [f for f in opened if isinstance(f, ImageFile)]
    refused = [f for f in opened if isinstance(f, Refusal)]
    if not files:
        raise DataError(f"none of {len(paths)} files can be read; the first, {refused[0].source}: {refused[0].reason}")

    kept = _common_bands(files)
    lacking = [f for f in files if not set(kept) <= set(f.bands)]
    refused += [Refusal(f.path, f"lacks {listed(b for b in kept if b not in f.bands)}") for f in lacking]
    files = [f for f in files if set(kept) <= set(f.bands)]
    if tile is None:
        sizes = Counter(f.size for f in files)
        if len(sizes) > 1:
            several = " and ".join(f"{h}×{w}" for (h, w), _ in sizes.most_common(2))
            raise DataError(f"images differ in size ({several} pixels): pass --tile, a size to cut them into")
    shape = (tile, tile) if tile else files[0].size
    too_small = [f.size[0] < shape[0] or f.size[1] < shape[1] for f in files]
    for file in (f for f, small in zip(files, too_small, strict=True) if small):
        refused.append(Refusal(file.path, f"{file.size[0]}×{file.size[1]} pixels are smaller than a tile of {tile}"))
    files = [f for f, small in zip(files, too_small, strict=True) if not small]
    if not files:
        raise DataError(f"every image is smaller than a tile of {tile} pixels: pass a smaller --tile")

    # Numbers of another offset are shifted to the lowest one, where nothing falls below the type's range.
    common = min((f.scaling.select(kept) for f in files), key=lambda s: sum(s.offset))
    chosen = replace(sensor.select(kept), scaling=common)
    class_names = sorted({Path(f.path).parent.name for f in files}) if labels else []
    places = Places()
    items: list[Item] = []
    for file in files:
        label = class_names.index(Path(file.path).parent.name) if labels else None
        for index in range(file.count):
            source = file.path if file.count == 1 else f"{file.path}#{index}"
            name = file.places[index] if file.places else find_place(file, source, places)
            for top, left in windows(file.size, shape, stride or shape[0]):
                whole = file.size == shape
                items.append(
                    Item(
                        source=source if whole else f"{source}@{top},{left}",
                        place=name,
                        load=_Load(file, index, (top, left, *shape), common, label),
                        bounds=file.bounds(top, left, *shape),
                        frame=file.frame,
                        files=(file.path,),
                    )
                )
    return Reading(
        sensor=chosen,
        items=items,
        tile=shape,
        dtype=_common_dtype(files),
        class_names=tuple(class_names) or _class_names(files),
        refused=tuple(refused),
        notes=_notes(files, sensor, kept),
    )


def find_files(sources: Iterable[str | Path]) -> list[str]:
    """Image files of folders, files, glob patterns and .txt lists, sorted, each once.

    Raises:
        DataError: a source that is not there, or holds no image; what it holds is said.
    """
    found: set[str] = set()
    for source in map(str, sources):
        path = Path(source)
        if path.is_dir():
            here = [p for p in files_in(path) if Path(p).suffix.lower() in SUFFIXES and os.path.isfile(p)]
            if not here:
                raise DataError(f"{path} holds no images ({', '.join(SUFFIXES)}): found {content(path)}")
        elif path.suffix.lower() == ".txt" and path.is_file():
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            here = find_files(path.parent / line for line in lines if line)
        elif path.is_file():
            here = [source]
        else:
            here = [p for p in glob.glob(source, recursive=True) if os.path.isfile(p)]
            if not here:
                raise DataError(f"{source} is no file, no folder and no pattern that matches a file")
        found.update(here)
    if not found:
        raise DataError("no images to read: name files, folders, patterns or a .txt list of them")
    return sorted(found)


@dataclass(frozen=True)
class _Load:
    """Reads one window of one image; what an `Item` calls."""

    file: ImageFile
    index: int
    window: tuple[int, int, int, int]
    common: Scaling
    label: int | None

    def __call__(self) -> Sample:
        raw, valid = self.file.read(self.index, self.window, self.common.bands)
        raw = harmonise(raw, self.file.scaling.select(self.common.bands), self.common)
        label = self.file.labels[self.index] if self.file.labels else self.label
        return Sample(raw, valid, label)


class Places:
    """Places by position: an image belongs to the first place whose first image has its centre within 0.1°.

    Fixed cells would not do: the same ground, taken again a few metres aside, could fall into the next cell.
    """

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int], list[tuple[float, float]]] = {}

    def find(self, lon: float, lat: float) -> str:
        """The name of the place that (`lon`, `lat`), in degrees, lies in; a new one where there is none near."""
        column, row = int(lon // PLACE_DEGREES), int(lat // PLACE_DEGREES)
        near = [a for c in (-1, 0, 1) for r in (-1, 0, 1) for a in self._cells.get((column + c, row + r), ())]
        anchor = next((a for a in near if max(abs(a[0] - lon), abs(a[1] - lat)) < PLACE_DEGREES), None)
        if anchor is None:
            anchor = (lon, lat)
            self._cells.setdefault((column, row), []).append(anchor)
        return f"{abs(anchor[1]):.2f}{'NS'[anchor[1] < 0]} {abs(anchor[0]):.2f}{'EW'[anchor[0] < 0]}"


def _place_rule(place: str) -> Callable[[ImageFile, str, Places], str]:
    def by_georeference(file: ImageFile, source: str, places: Places) -> str:
        if file.centre_lonlat is None:
            raise DataError(f"{source} has no georeference: name its place by path, folder or a regular expression")
        return places.find(*file.centre_lonlat)

    def automatic(file: ImageFile, source: str, places: Places) -> str:
        return file.path if file.centre_lonlat is None else places.find(*file.centre_lonlat)

    known: dict[str, Callable[[ImageFile, str, Places], str]] = {
        "auto": automatic,
        "georeference": by_georeference,
        "path": lambda file, source, places: file.path,
        "folder": lambda file, source, places: str(Path(file.path).parent),
    }
    if place in known:
        return known[place]
    try:
        pattern = re.compile(place)
    except re.error as error:
        raise ConfigError(
            f"place {place!r} is neither of {', '.join(known)} nor a regular expression: {error}"
        ) from None

    def by_pattern(file: ImageFile, source: str, places: Places) -> str:
        match = pattern.search(source)
        if match is None:
            raise DataError(f"place {place!r} is not found in {source}")
        return match[pattern.groups and 1]

    return by_pattern


def _common_bands(files: Sequence[ImageFile]) -> tuple[str, ...]:
    """The bands that most files have, in the sensor's order."""
    return Counter(f.bands for f in files).most_common(1)[0][0]


def _common_dtype(files: Sequence[ImageFile]) -> str:
    """A type that holds the numbers of all files; 64-bit floats become 32-bit ones."""
    name = np.result_type(*(f.dtype for f in files)).name
    return "float32" if name == "float64" else name


def _class_names(files: Sequence[ImageFile]) -> tuple[str, ...]:
    """Classes of archives that number them without naming them."""
    classes = [label for f in files for label in f.labels]
    return tuple(map(str, range(max(classes) + 1))) if classes else ()


def _notes(files: Sequence[ImageFile], sensor: Sensor, kept: Sequence[str]) -> tuple[str, ...]:
    """What the files made the reader assume, each kind once."""
    notes = []
    if len(kept) < len(sensor.bands):
        absent = [b for b in sensor.band_names if b not in kept]
        notes.append(f"{len(kept)} of the {len(sensor.bands)} bands of {sensor.name}: without {listed(absent)}")
    kinds: dict[str, list[str]] = {}
    for warning in (w for f in files for w in f.warnings):
        kinds.setdefault(warning.partition(":")[0], []).append(warning)
    notes += [first if not more else f"{first} (and {len(more)} files more)" for first, *more in kinds.values()]
    return tuple(notes)
