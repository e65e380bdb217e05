"""SSL4EO-S12 in its published layout: one folder a sensor, a location, a date, and one GeoTIFF a band.

<folder>/{s1,s2c,s2a}/<location, 7 digits>/<scene>/<band>.tif, and a metadata.json beside the bands; of the release of
2022 (arXiv 2211.07044). The release 1.1 (tar archives of zipped Zarr) is recognised and not read.
"""

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dofa import sensors
from dofa.corpus.items import Bounds, Item, Reading, Refusal, Sample
from dofa.corpus.readers.band_files import PIXELS, Stack, coarser, footprint, part, read_stack, subfolders
from dofa.corpus.readers.folders import check_tile, content, hint, windows
from dofa.documents import read_json
from dofa.errors import ConfigError, DataError
from dofa.pixels import Scaling
from dofa.raster import physical_values
from dofa.raster.factors import FileNumbers, with_dn_offset
from dofa.sensors import Sensor

FOLDERS = {"sentinel-1-grd": "s1", "sentinel-2-l1c": "s2c", "sentinel-2-l2a": "s2a"}
TREE = "{s1,s2c,s2a}/<7 digits>/<scene>/<band>.tif"
LOCATION = re.compile(r"\d{7}")
SCENE = re.compile(r"S1[AB]_IW_GRDH_.+|\d{8}T\d{6}_\d{8}T\d{6}_T\w{5}")
ANY = re.compile(r".+")
NEWER = {"S1GRD", "S1RTC", "S2L1C", "S2L2A", "S2RGB"}  # folders of the release 1.1, below train/ and val/
SHIFTED = (
    "of 60 m were cropped at another corner than the finer bands when SSL4EO-S12 was made: they lie 20 to 50 m off, by "
    "another amount at each date (measured; docs/corpora.md)"
)


def read_ssl4eo_s12(
    folder: str | Path,
    sensor: Sensor | str | None = None,
    *,
    tile: int | None = None,
    stride: int | None = None,
    dn_offset: float | None = None,
) -> Reading:
    """SSL4EO-S12 as published: about 250,000 locations, four dates each, 264×264 pixels of 10 m.

    One header a location is opened to plan, no other file. Locations were sampled around cities and overlap (the
    published script lets them come as near as 2 km, at 2.6 km of width), so a place is a group of locations whose
    ground overlaps, directly or by way of others, named after its first location; all its dates belong to it.

    A pixel is valid unless it is 0 in every band, which is how the export writes what Earth Engine masked: no tag says
    it, but 0 is Sentinel-2's own mark of missing data, and no radar echo is 0 dB exactly in two polarisations.

    Args:
        folder: the corpus, or the folder of one sensor in it.
        sensor: `sentinel-1-grd` (dB), `sentinel-2-l1c` or `sentinel-2-l2a` (reflectance × 10⁴), or one of these with
            fewer bands.
        tile: side in pixels to cut the images into; None keeps them whole.
        stride: pixels from tile to tile, `tile` where absent.
        dn_offset: added to Sentinel-2's numbers first: −1000 takes off what processing baseline 04.00 adds, 0 says
            that there is nothing. Without this word each image's metadata.json decides: before 04.00 there is none;
            an image that carries one, or may carry one, is refused.

    Raises:
        DataError: another folder or level; what was expected, found and meant is said.
        ConfigError: a sensor this corpus has no images of, or settings that do not hold.
    """
    if sensor is None:
        raise ConfigError(f"say whose images of SSL4EO-S12 are wanted: sensor {' or '.join(FOLDERS)}")
    chosen = sensors.get(sensor) if isinstance(sensor, str) else sensor
    check_tile(tile, stride)
    if chosen.name not in FOLDERS:
        raise ConfigError(f"SSL4EO-S12 has no images of {chosen.name}: it has {', '.join(FOLDERS)}")
    if dn_offset is not None and chosen.platform != "sentinel-2":
        raise ConfigError(f"--dn-offset is a matter of Sentinel-2, not of {chosen.name}")
    root = _find(Path(folder), chosen)
    scaling = chosen.scaling
    assert scaling is not None  # all three products have one
    if dn_offset is not None:
        scaling = with_dn_offset(scaling, [dn_offset] * len(chosen.bands))
        scaling = replace(scaling, physical_source="user")
    finest = min(chosen.bands, key=lambda band: band.gsd_m or chosen.gsd_m).name
    with ThreadPoolExecutor(max(4, os.cpu_count() or 1)) as pool:
        looked = list(pool.map(lambda name: _look(root / name, finest), sorted(subfolders(root, LOCATION))))
    refused = [Refusal(str(root / one.name), one.doubt) for one in looked if one.doubt]
    locations = [one for one in looked if not one.doubt]
    if not locations:
        raise DataError(f"{root}: no location can be read; the first, {refused[0].source}: {refused[0].reason}")
    size = max(set(sizes := [one.size for one in locations]), key=sizes.count)
    shape = (tile, tile) if tile else size
    if shape[0] > size[0] or shape[1] > size[1]:
        raise ConfigError(f"tile {tile} is larger than the images of {size[0]}×{size[1]} pixels")
    places = overlapping({one.name: (one.frame, one.bounds) for one in locations})
    cuts = [(top, left, *shape) for top, left in windows(size, shape, stride or shape[0])]
    say_offset = chosen.platform == "sentinel-2" and dn_offset is None
    items = []
    for one in locations:
        bounds = [part(one.bounds, size, window) for window in cuts]
        for scene in one.scenes:
            source = f"{root}/{one.name}/{scene}"
            for window, lies in zip(cuts, bounds, strict=True):
                items.append(
                    Item(
                        source=source if shape == size else f"{source}@{window[0]},{window[1]}",
                        place=places[one.name],
                        load=_Load(source, scaling, window, size, say_offset),
                        bounds=lies,
                        frame=one.frame,
                        files=(source,),
                    )
                )
    notes = [coarser(chosen)]
    if shifted := [band.name for band in chosen.bands if band.gsd_m == 60]:
        notes.append(f"bands {', '.join(shifted)} {SHIFTED}")
    return Reading(
        sensor=replace(chosen, scaling=scaling),
        items=items,
        tile=shape,
        dtype="float32" if chosen.platform == "sentinel-1" else "uint16",
        refused=tuple(refused),
        notes=tuple(note for note in notes if note),
    )


def overlapping(grounds: Mapping[str, tuple[str, Bounds]]) -> dict[str, str]:
    """Groups of images whose ground overlaps, directly or by way of others.

    Args:
        grounds: frame and bounds by name; those without a reference system overlap with none.

    Returns:
        For each name the first name of its group.
    """
    parent = {name: name for name in grounds}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    sides = [max(right - left, top - bottom) for _, (left, bottom, right, top) in grounds.values()]
    cell = max(sides, default=1.0)  # what overlaps lies in the same cell or the next
    cells: dict[tuple[str, int, int], list[str]] = {}
    for name, (frame, (left, bottom, right, top)) in grounds.items():
        if frame == PIXELS:  # where it lies is not known
            continue
        x, y = int(left // cell), int(bottom // cell)
        for key in ((frame, x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
            for other in cells.get(key, ()):
                west, south, east, north = grounds[other][1]
                if left < east and west < right and bottom < north and south < top:
                    first, second = sorted((root(name), root(other)))
                    parent[second] = first
        cells.setdefault((frame, x, y), []).append(name)
    return {name: root(name) for name in grounds}


@dataclass(frozen=True)
class _Location:
    """One location: its dates and where it lies; or why it cannot be read."""

    name: str
    scenes: tuple[str, ...] = ()
    bounds: Bounds = (0.0, 0.0, 0.0, 0.0)
    frame: str = ""
    size: tuple[int, int] = (0, 0)
    doubt: str = ""


@dataclass(frozen=True, slots=True)  # a million of them
class _Load:
    """Reads one window of one scene; what an `Item` calls."""

    scene: str
    scaling: Scaling
    window: tuple[int, int, int, int]
    size: tuple[int, int]
    say_offset: bool

    def __call__(self) -> Sample:
        names = [_file(band) for band in self.scaling.bands]
        stack = read_stack([f"{self.scene}/{name}" for name in names])
        if stack.valid.shape != self.size:
            height, width = stack.valid.shape
            raise DataError(f"is {height}×{width} pixels, the others are {self.size[0]}×{self.size[1]}")
        stack.valid[(stack.image == 0).all(axis=0)] = False
        if self.say_offset:
            self._check_offset(stack)
        return stack.cut(*self.window)

    def _check_offset(self, stack: Stack) -> None:
        """Refuse numbers that carry the offset of processing baseline 04.00, or may."""
        metadata, n = _metadata(self.scene), len(self.scaling.bands)
        tags = {key.upper(): str(value) for key, value in metadata.items()}
        numbers = FileNumbers((1.0,) * n, (0.0,) * n, ("",) * n, tags, ({},) * n, {})
        offset = physical_values.sentinel2_offset(numbers, self.scaling.bands)
        if offset is None:
            if doubt := physical_values.offset_doubt(numbers, stack.image[:, stack.valid]):
                raise DataError(doubt[1])
        elif any(offset):
            raise DataError(
                f"carries an offset by its metadata.json ({offset[0]:g} is to be added), and the corpus as published "
                "has none: say --dn-offset -1000 for a folder where all do"
            )


def _look(location: Path, finest: str) -> _Location:
    """The dates of one location, and where it lies by the first header that opens."""
    scenes = tuple(sorted(subfolders(location, SCENE)))
    if not scenes:
        return _Location(location.name, doubt="holds no scene")
    doubt = ""
    for scene in scenes:
        try:
            bounds, frame, size = footprint(location / scene / _file(finest))
        except DataError as error:
            doubt = doubt or " ".join(str(error).split())
            continue
        return _Location(location.name, scenes, bounds, frame, size)
    return _Location(location.name, doubt=doubt)


def _find(folder: Path, sensor: Sensor) -> Path:
    """The folder of a sensor's images.

    Raises:
        DataError: it is not there.
    """
    wanted = FOLDERS[sensor.name]
    expected = f"expected {wanted}/<7 digits>/<scene>/<band>.tif for {sensor.name}"
    here = next((f for f in (folder / wanted, folder) if next(subfolders(f, LOCATION), None)), None)
    if here is not None:
        held = _held(here)
        if held in (wanted, None):
            return here
        other = next(name for name, short in FOLDERS.items() if short == held)
        raise DataError(f"{here} holds {other} ({held}): {expected}; name the folder above, or take that sensor")
    there = [short for short in FOLDERS.values() if next(subfolders(folder / short, LOCATION), None)]
    if there:
        raise DataError(f"{folder} holds {', '.join(there)} and not {wanted}: {expected}; extract it beside them")
    name = Path(os.path.abspath(folder)).name
    if LOCATION.fullmatch(name) or next(subfolders(folder, SCENE), None):
        raise DataError(f"{folder} is one location of SSL4EO-S12: {expected}; give the folder two levels above")
    if SCENE.fullmatch(name):
        raise DataError(f"{folder} is one scene of SSL4EO-S12: {expected}; give the folder three levels above")
    names = {name for part in (folder, folder / "train", folder / "val") for name in subfolders(part, ANY)}
    if newer := sorted(NEWER & names):
        raise DataError(
            f"{folder} holds the release 1.1 of SSL4EO-S12 ({', '.join(newer)}), which is not read: {expected}, the "
            "release of 2022"
        )
    raise DataError(f"{folder} is no SSL4EO-S12: expected {TREE}, found {content(folder)}{hint(folder, 'ssl4eo-s12')}")


def _held(folder: Path) -> str | None:
    """Which of the three a folder of locations holds, by the first scene; None where it is not told."""
    location = next(subfolders(folder, LOCATION), None)
    scene = next(subfolders(folder / location, SCENE), None) if location else None
    if not location or not scene:
        return None
    inside = folder / location / scene
    if (inside / "VV.tif").exists():
        return "s1"
    product = str(_metadata(inside).get("PRODUCT_ID", ""))
    if "MSIL1C" in product or (inside / "B10.tif").exists():
        return "s2c"
    return "s2a" if "MSIL2A" in product or (inside / "B1.tif").exists() else None


def _metadata(scene: str | Path) -> Mapping[str, Any]:
    """The properties beside the bands; empty where there are none."""
    path = Path(scene) / "metadata.json"
    try:
        found = read_json(path)
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def _file(band: str) -> str:
    """The file of a band: Earth Engine writes B1 for B01."""
    return re.sub(r"^B0", "B", band) + ".tif"
