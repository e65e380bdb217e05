"""BigEarthNet v2 (reBEN) in its published layout: one folder a product, a patch, and one GeoTIFF a band.

<folder>/BigEarthNet-S2/<product>/<patch>/<patch>_B02.tif and <folder>/BigEarthNet-S1/<product>/<patch>/<patch>_VV.tif,
with metadata.parquet beside them (arXiv 2407.03653; 549,488 pairs of patches of 1.2 km in ten countries).
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dofa import sensors
from dofa.corpus.items import Bounds, Item, Reading, Refusal, Sample, Split
from dofa.corpus.readers.band_files import Stack, coarser, part, read_stack, subfolders
from dofa.corpus.readers.folders import check_tile, content, hint, windows
from dofa.errors import ConfigError, DataError
from dofa.sensors import Sensor

FOLDERS = {"sentinel-1-grd": "BigEarthNet-S1", "sentinel-2-l2a": "BigEarthNet-S2"}
TREE = "<product>/<patch>/<patch>_<band>.tif"
PRODUCT = re.compile(r"S2[AB]_MSIL2A_\d{8}T\d{6}_N\d{4}_R\d{3}_T\w{5}|S1[AB]_IW_GRDH_1SDV_\d{8}T\d{6}")
PATCH = re.compile(r"(?P<product>S[12][AB]_.+?)_T?(?P<tile>\d\d[A-Z]{3})_(?P<column>\d+)_(?P<row>\d+)")
FIRST_VERSION = re.compile(r"S2[AB]_MSIL2A_\d{8}T\d{6}_\d+_\d+|S1[AB]_IW_GRDH_1SDV_\d{8}T\d{6}_\d\d[A-Z]{3}_\d+_\d+")
SPLITS: dict[str, Split] = {"train": "train", "validation": "val", "test": "test"}
METADATA = ("metadata.parquet", "metadata_for_patches_with_snow_cloud_or_shadow.parquet")
PLACE_M = 100_000  # side of the square that counts as one place
TRIES = 5  # patches of one tile that are opened to learn where the tile lies


def read_bigearthnet(
    folder: str | Path, sensor: Sensor | str | None = None, *, tile: int | None = None, stride: int | None = None
) -> Reading:
    """BigEarthNet v2 as published: patches of 120×120 pixels of 10 m.

    Folders are listed and one patch of every Sentinel-2 tile is opened to plan (the name of a patch says its column and
    row in the tile); the others only when they are read, and one that lies elsewhere than its name says is refused.

    Where metadata.parquet lies beside the folders, its split into train, validation and test is kept, which its authors
    drew by region; patches it does not list are left out and counted (they show snow, clouds or shadow, and are packed
    where metadata_for_patches_with_snow_cloud_or_shadow.parquet lies there too). Its labels name several classes a
    patch, which a store does not hold. Without it a place is a square of 100 km of the patch's UTM zone. Patches touch
    their neighbours, so one patch is no place; nor is a Sentinel-2 tile, since tiles overlap by 10 km.

    A pixel is valid where not all bands hold the files' nodata value (0 in Sentinel-2) and each number is finite.
    Sentinel-2 was made from products of processing baselines 02.05 and 02.06, which carry no offset.

    Args:
        folder: the corpus, or its folder of one sensor.
        sensor: `sentinel-1-grd` (dB) or `sentinel-2-l2a` (reflectance × 10⁴), or one of these with fewer bands.
        tile: side in pixels to cut the patches into; None keeps them whole.
        stride: pixels from tile to tile, `tile` where absent.

    Raises:
        DataError: another folder, level or version; what was expected, found and meant is said. Or metadata.parquet
            cannot be read.
        ConfigError: a sensor this corpus has no images of, or settings that do not hold.
    """
    if sensor is None:
        raise ConfigError(f"say whose images of BigEarthNet v2 are wanted: sensor {' or '.join(FOLDERS)}")
    chosen = sensors.get(sensor) if isinstance(sensor, str) else sensor
    check_tile(tile, stride)
    if chosen.name not in FOLDERS:
        raise ConfigError(f"BigEarthNet v2 has no images of {chosen.name}: it has {', '.join(FOLDERS)}")
    root = _find(Path(folder), chosen)
    with ThreadPoolExecutor(max(4, os.cpu_count() or 1)) as pool:
        listed = list(pool.map(lambda name: _patches(root / name), sorted(subfolders(root, PRODUCT))))
    patches = [patch for of_product in listed for patch in of_product]
    beside = Path(os.path.abspath(root)).parent
    splits, notes = _published(beside, "s1_name" if chosen.platform == "sentinel-1" else "patch_id")
    if splits is not None:
        known = [patch for patch in patches if patch.name in splits]
        if not known:
            raise DataError(f"{beside / METADATA[0]} lists none of the {len(patches)} patches below {root}")
        if len(known) < len(patches):
            notes.append(f"{len(patches) - len(known)} patches are left out: {METADATA[0]} does not list them")
        patches = known
    tiles, refused = _tiles(patches, chosen)
    patches = [patch for patch in patches if patch.tile in tiles]
    if not patches:
        raise DataError(f"{root}: no patch can be read; the first, {refused[0].source}: {refused[0].reason}")
    size = next(iter(tiles.values())).size
    shape = (tile, tile) if tile else size
    if shape[0] > size[0] or shape[1] > size[1]:
        raise ConfigError(f"tile {tile} is larger than the patches of {size[0]}×{size[1]} pixels")
    cuts = list(windows(size, shape, stride or shape[0]))
    items = []
    for patch in patches:
        lies = tiles[patch.tile]
        bounds = lies.bounds(patch)
        place = f"{lies.frame} {PLACE_M // 1000} km {_square(bounds)}"
        for top, left in cuts:
            window = (top, left, *shape)
            items.append(
                Item(
                    source=patch.path if shape == size else f"{patch.path}@{top},{left}",
                    place=place,
                    load=_Load(patch.path, chosen.band_names, bounds, window, size),
                    bounds=part(bounds, size, window),
                    frame=lies.frame,
                    split=None if splits is None else splits[patch.name],
                    files=(str(patch.path),),
                )
            )
    return Reading(
        sensor=chosen,
        items=items,
        tile=shape,
        dtype="float32" if chosen.platform == "sentinel-1" else "uint16",
        refused=tuple(refused),
        notes=tuple(note for note in (coarser(chosen), *notes) if note),
    )


@dataclass(frozen=True, slots=True)
class _Patch:
    """A patch by its name."""

    path: str
    name: str
    tile: str
    column: int
    row: int


@dataclass(frozen=True)
class _Tile:
    """Where the patches of a Sentinel-2 tile lie: the corner of patch 0, 0, and the side of a patch."""

    left: float
    top: float
    side: tuple[float, float]
    frame: str
    size: tuple[int, int]

    def bounds(self, patch: _Patch) -> Bounds:
        width, height = self.side
        left, top = self.left + patch.column * width, self.top - patch.row * height
        return left, top - height, left + width, top


@dataclass(frozen=True, slots=True)  # half a million of them
class _Load:
    """Reads one window of one patch; what an `Item` calls."""

    path: str
    bands: tuple[str, ...]
    bounds: Bounds
    window: tuple[int, int, int, int]
    size: tuple[int, int]

    def __call__(self) -> Sample:
        stack = _read(self.path, self.bands)
        height, width = stack.valid.shape
        if (height, width) != self.size:
            raise DataError(f"is {height}×{width} pixels, the others are {self.size[0]}×{self.size[1]}")
        pixel = (self.bounds[2] - self.bounds[0]) / width
        if max(abs(own - said) for own, said in zip(stack.bounds, self.bounds, strict=True)) > pixel:
            raise DataError(
                f"begins at {stack.bounds[0]:.0f}, {stack.bounds[3]:.0f} by its files and at {self.bounds[0]:.0f}, "
                f"{self.bounds[3]:.0f} by its name"
            )
        return stack.cut(*self.window)


def _read(patch: str, bands: Sequence[str]) -> Stack:
    name = os.path.basename(patch)
    return read_stack([f"{patch}/{name}_{band}.tif" for band in bands])


def _patches(product: Path) -> list[_Patch]:
    """Patches of a product, by their folders' names."""
    found = []
    for name in sorted(subfolders(product, PATCH)):
        said = PATCH.fullmatch(name)
        assert said is not None  # only such names are listed
        found.append(_Patch(f"{product}/{name}", name, said["tile"], int(said["column"]), int(said["row"])))
    return found


def _tiles(patches: Sequence[_Patch], sensor: Sensor) -> tuple[dict[str, _Tile], list[Refusal]]:
    """Where every tile lies, by the first of its patches that can be read; the others are told."""
    candidates: dict[str, list[_Patch]] = {}
    for patch in patches:
        of_tile = candidates.setdefault(patch.tile, [])
        if len(of_tile) < TRIES:
            of_tile.append(patch)
    tiles, refused = {}, []
    for tile, of_tile in candidates.items():
        doubts = []
        for patch in of_tile:
            try:
                stack = _read(patch.path, sensor.band_names)
            except DataError as error:
                doubts.append(Refusal(patch.path, " ".join(str(error).split())))
                continue
            left, bottom, right, top = stack.bounds
            width, height = right - left, top - bottom
            corner = (left - patch.column * width, top + patch.row * height)
            rows, columns = stack.valid.shape
            tiles[tile] = _Tile(*corner, (width, height), stack.frame, (rows, columns))
            break
        else:
            refused += doubts
            others = sum(patch.tile == tile for patch in patches) - len(doubts)
            if others:
                refused.append(Refusal(f"tile {tile}", f"its other {others} patches: where they lie is not known"))
    return tiles, refused


def _square(bounds: Bounds) -> str:
    """The square of the UTM grid in which a patch has its centre."""
    x, y = (bounds[0] + bounds[2]) / 2, (bounds[1] + bounds[3]) / 2
    return f"{int(x // PLACE_M)} E {int(y // PLACE_M)} N"


def _published(folder: Path, column: str) -> tuple[dict[str, Split] | None, list[str]]:
    """The published split by patch, and notes; None without metadata.parquet.

    Raises:
        DataError: it cannot be read.
    """
    if not (folder / METADATA[0]).is_file():
        return None, [f"without {METADATA[0]} beside {' and '.join(FOLDERS.values())} the published split is not known"]
    splits: dict[str, Split] = {}
    for name in METADATA:
        path = folder / name
        if not path.is_file():
            continue
        try:
            import pyarrow.parquet
        except ImportError:
            raise DataError(f"{path} holds the published split and needs pyarrow: pip install pyarrow") from None
        try:
            table = pyarrow.parquet.read_table(path, columns=[column, "split"])
            pairs = list(zip(table[column].to_pylist(), table["split"].to_pylist(), strict=True))
        except (OSError, KeyError, pyarrow.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{path} cannot be read, or lacks the columns {column} and split: {reason}") from None
        unknown = sorted({str(split) for _, split in pairs} - SPLITS.keys())
        if unknown:
            raise DataError(f"{path} has the split {unknown[0]!r}: expected {', '.join(SPLITS)}")
        splits |= {str(patch): SPLITS[split] for patch, split in pairs}
    return splits, []


def _find(folder: Path, sensor: Sensor) -> Path:
    """The folder of a sensor's products.

    Raises:
        DataError: it is not there.
    """
    wanted = FOLDERS[sensor.name]
    expected = f"expected {wanted}/{TREE} for {sensor.name}"
    letters = wanted[-2:]
    for root in (folder / wanted, folder):
        products = sorted(subfolders(root, PRODUCT))
        if products and not (own := [name for name in products if name.startswith(letters)]):
            other = next(name for name, short in FOLDERS.items() if products[0].startswith(short[-2:]))
            raise DataError(f"{root} holds {other}: {expected}; name the folder above, or take that sensor")
        if products:
            first = next((f"{root}/{name}/{patch}" for name in own for patch in subfolders(root / name, PATCH)), None)
            names = sorted(os.listdir(first)) if first else []
            if any(re.fullmatch(r".+_(B\w\w|V[VH])\.tiff?", name) for name in names):
                return root
            raise DataError(
                f"{root} holds no bands, its first patch has {', '.join(names[:3]) or 'no file'}: {expected}"
            )
    if there := [name for name in FOLDERS.values() if next(subfolders(folder / name, PRODUCT), None)]:
        raise DataError(f"{folder} holds {', '.join(there)} and not {wanted}: {expected}; extract it beside them")
    name = Path(os.path.abspath(folder)).name
    if PRODUCT.fullmatch(name) and next(subfolders(folder, PATCH), None):
        raise DataError(f"{folder} is one product of BigEarthNet: {expected}; give the folder two levels above")
    first_version = next(subfolders(folder, FIRST_VERSION), None)
    if first_version:
        raise DataError(
            f"{folder} holds patches without a folder for each product ({first_version}), as BigEarthNet v1 does: "
            f"{expected}, which is version 2"
        )
    if PATCH.fullmatch(name) or FIRST_VERSION.fullmatch(name):
        raise DataError(f"{folder} is one patch of BigEarthNet: {expected}; give the folder three levels above")
    raise DataError(
        f"{folder} is no BigEarthNet v2: expected {{BigEarthNet-S1,BigEarthNet-S2}}/{TREE}, found {content(folder)}"
        f"{hint(folder, 'bigearthnet')}"
    )
