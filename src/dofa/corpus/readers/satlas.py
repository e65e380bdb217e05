"""SatlasPretrain as published: 8-bit PNG tiles of 512 pixels on a grid in Web Mercator, a folder a scene and a band.

Planning lists folders and opens no file: the corpus has millions of them. A file that is not what its name says is
refused when it is read.

Facts: allenai/satlas, SatlasPretrain.md (layout, grid), Normalization.md (8-bit scale) and satlas/model/dataset.py.
"""

import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dofa import sensors
from dofa.corpus.items import Item, Reading, Refusal, Sample
from dofa.corpus.readers.folders import check_tile, content, hint, recognise, windows
from dofa.errors import ConfigError, DataError

SIDE = 512  # of every tile, in pixels
COARSE = ("b05", "b06", "b07", "b11", "b12")  # bands of 20 m, which may be stored with half as many pixels
PLACE_ZOOM = 13  # of the tiles by which the corpus itself is split, NAIP's too
HALF_WORLD_M = 20037508.342789244  # EPSG:3857: half the equator of its sphere
NAME = re.compile(r"(0|[1-9]\d*)_(0|[1-9]\d*)\.png")
MODES = {1: "L", 3: "RGB"}  # of a picture, by the number of its bands
OTHER_MODES = {"I;16": "16-bit numbers", "P": "a colour table", "RGBA": "four bands", "L": "one band", "RGB": "three"}
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_thread = threading.local()  # .latest: the tile that this thread decoded last, for its next window


@dataclass(frozen=True)
class Product:
    """One kind of image of the corpus.

    Attributes:
        layout: as `dofa pack` names it.
        title: for people.
        sensor: that took it.
        zoom: of its grid, which has 2^zoom columns and rows.
        bands: in each of a scene's folders, in the order of its picture; together they are the image.
        expected: the path of a file below the corpus' folder.
        alone: whether the folder given may itself be a scene.
    """

    layout: str
    title: str
    sensor: str
    zoom: int
    bands: dict[str, tuple[str, ...]]
    expected: str
    alone: bool


SENTINEL_1 = Product(
    "satlas-s1",
    "Sentinel-1 of SatlasPretrain",
    "sentinel-1-satlas",
    13,
    {"vv": ("VV",), "vh": ("VH",)},
    "<scene>/{vv,vh}/<col>_<row>.png",
    alone=True,
)
SENTINEL_2 = Product(
    "satlas-s2",
    "Sentinel-2 of SatlasPretrain",
    "sentinel-2-dofa9",
    13,
    {"tci": ("B04", "B03", "B02"), **{f"b{b}": (f"B{b}",) for b in ("05", "06", "07", "08", "11", "12")}},
    "<scene>/{tci,b05,b06,b07,b08,b11,b12}/<col>_<row>.png",
    alone=False,
)
NAIP = Product(
    "satlas-naip",
    "NAIP of SatlasPretrain",
    "naip-rgb",
    17,
    {"tci": ("R", "G", "B")},
    "<scene>/tci/<col>_<row>.png",
    alone=True,
)


def read_satlas_s1(folder: str | Path, *, tile: int | None = None, stride: int | None = None) -> Reading:
    """Sentinel-1 of SatlasPretrain: <scene>/{vv,vh}/<col>_<row>.png, a scene being a month such as 2022-01.

    See `read_satlas_s2` for arguments, places, validity and errors. The folder may also hold vv and vh itself, as the
    published pretraining code had them.
    """
    return _read(SENTINEL_1, Path(folder), tile, stride)


def read_satlas_s2(folder: str | Path, *, tile: int | None = None, stride: int | None = None) -> Reading:
    """Sentinel-2 of SatlasPretrain: <scene>/{tci,b05,b06,b07,b08,b11,b12}/<col>_<row>.png.

    A tile has the nine bands of DOFA: red, green, blue of the true-colour image, then the six others. Bands of 20 m
    that are stored with 256 pixels are repeated to 512, as the corpus' own loader does. A pixel that is 0 in all bands
    is no measurement: that is how the corpus fills what a scene does not cover. A place is a tile of the grid (zoom 13,
    4.9 km at the equator), whatever the scene.

    Args:
        folder: the one that holds the scenes.
        tile: side in pixels to cut the tiles of 512 into; None keeps them whole.
        stride: pixels from one to the next, `tile` where absent.

    Returns:
        Images on the 8-bit scale of the catalogue, positions in EPSG:3857. Tiles that lack a band or lie outside the
        grid are listed as refused.

    Raises:
        DataError: no such tiles in the folder; what it holds, and where they seem to lie, is said.
        ConfigError: a tile or stride that cuts nothing, or is larger than 512.
    """
    return _read(SENTINEL_2, Path(folder), tile, stride)


def read_satlas_naip(folder: str | Path, *, tile: int | None = None, stride: int | None = None) -> Reading:
    """NAIP of SatlasPretrain: <scene>/tci/<col>_<row>.png; <scene>/<col>_<row>.png and <col>_<row>.png are read too.

    See `read_satlas_s2` for arguments, validity and errors. Infrared (`ir`) is left out: the paper's NAIP has three
    bands. The grid has zoom 17; a place is a tile of zoom 13, 16 × 16 of these, by which the corpus itself is split.
    """
    return _read(NAIP, Path(folder), tile, stride)


class _Tile(NamedTuple):
    """One tile of one scene."""

    product: Product
    scene: str
    flat: bool
    col: int
    row: int

    @property
    def files(self) -> list[str]:
        """Its files, in the order of its bands."""
        folders = [""] if self.flat else self.product.bands
        return [os.path.join(self.scene, folder, f"{self.col}_{self.row}.png") for folder in folders]

    @property
    def source(self) -> str:
        """Its file, or the pattern that matches its files."""
        inner = () if self.flat else ("*",) if len(self.product.bands) > 1 else self.product.bands
        return os.sep.join((self.scene, *inner, f"{self.col}_{self.row}.png"))

    @property
    def fault(self) -> str:
        """Why it cannot lie where its name says; empty where it can."""
        zoom = self.product.zoom
        if max(self.col, self.row) >= 2**zoom:
            return f"its column or row is outside the grid, which has 2^{zoom} of each"
        if zoom > PLACE_ZOOM and self.row < 2**PLACE_ZOOM:
            return f"at zoom {zoom} its row lies north of 82°: is it a tile of zoom {PLACE_ZOOM}, of a Sentinel?"
        return ""


@dataclass(frozen=True)
class _Scene:
    """One folder: what lies in it.

    Attributes:
        path: of the folder.
        flat: whether the tiles lie in it directly, not in a folder for each band.
        tiles: (N, 2) column and row of those that have every band.
        refused: the others, with the reason.
    """

    path: str
    flat: bool
    tiles: NDArray[np.int32]
    refused: list[Refusal]

    @property
    def empty(self) -> bool:
        """Whether it holds nothing of the corpus."""
        return not len(self.tiles) and not self.refused


def _read(product: Product, root: Path, tile: int | None, stride: int | None) -> Reading:
    check_tile(tile, stride)
    side = tile or SIDE
    if side > SIDE:
        raise ConfigError(f"tile is {tile}; {product.title} has tiles of {SIDE} pixels")
    known = root.is_dir() and recognise(root, product.layout) in (None, product.layout)
    scenes = _scenes(product, root) if known else []
    refused = tuple(refusal for scene in scenes for refusal in scene.refused)
    if not any(len(scene.tiles) for scene in scenes):
        first = f"; the first of {len(refused)} refused, {refused[0].source}: {refused[0].reason}" if refused else ""
        raise DataError(
            f"{root} is no {product.title}: expected {product.expected}, found {content(root)}"
            f"{first or hint(root, product.layout)}"
        )
    notes = ["pixels that are 0 in all bands count as no measurement: SatlasPretrain fills with 0 what a scene lacks"]
    if other := [scene.path for scene in scenes if scene.empty]:
        notes.append(f"{len(other)} folders without tiles are left out, the first: {other[0]}")
    return Reading(
        sensor=sensors.get(product.sensor).select([name for names in product.bands.values() for name in names]),
        items=_Tiles(
            product,
            [scene.path for scene in scenes],
            [scene.flat for scene in scenes],
            np.repeat(np.arange(len(scenes)), [len(scene.tiles) for scene in scenes]),
            np.concatenate([scene.tiles for scene in scenes]),
            tuple(windows((SIDE, SIDE), (side, side), stride or side)),
            side,
        ),
        tile=(side, side),
        dtype="uint8",
        refused=refused,
        notes=tuple(notes),
    )


def _scenes(product: Product, root: Path) -> list[_Scene]:
    """Every scene of a folder, by name, and the folder itself where it is one."""
    itself = [_scan(product, str(root))] if product.alone else []
    with os.scandir(root) as entries:
        inner = sorted(entry.path for entry in entries if entry.is_dir())
    if itself and not itself[0].empty:
        inner = [path for path in inner if os.path.basename(path) not in (*product.bands, "ir")]
    else:
        itself = []
    # Listing waits for the disk, often one across a network.
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        return [*itself, *pool.map(lambda path: _scan(product, path), inner)]


def _scan(product: Product, path: str) -> _Scene:
    """List the tiles of one scene."""
    listed = {folder: _pictures(os.path.join(path, folder)) for folder in product.bands}
    flat = len(listed) == 1 and not any(listed.values())
    if flat:
        listed = {"": _pictures(path)}
    found: dict[tuple[int, int], list[str]] = {}
    refused, tiles = [], []
    for folder, names in listed.items():
        for name in names:
            if match := NAME.fullmatch(name):
                found.setdefault((int(match[1]), int(match[2])), []).append(folder)
            else:
                refused.append(Refusal(os.path.join(path, folder, name), "is not named <col>_<row>.png"))
    if flat and not found:  # pictures of something else
        refused = []
    for (col, row), folders in sorted(found.items()):
        tile = _Tile(product, path, flat, col, row)
        lacking = [folder for folder in listed if folder not in folders]
        if reason := f"lacks {', '.join(lacking)}" if lacking else tile.fault:
            refused.append(Refusal(tile.source, reason))
        else:
            tiles.append((col, row))
    return _Scene(path, flat, np.array(tiles, np.int32).reshape(-1, 2), sorted(refused, key=lambda r: r.source))


def _pictures(folder: str) -> list[str]:
    """Names of the PNG files of a folder; none where there is no folder.

    Raises:
        DataError: it may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.name.lower().endswith(".png")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from None


@dataclass(frozen=True)
class _Tiles(Sequence[Item]):
    """The images, made when they are asked for: as objects, millions of them would fill the memory.

    Attributes:
        product: what they are.
        scenes: folders.
        flat: of each, whether its tiles lie in it directly.
        scene: (N,) the scene of each tile.
        where: (N, 2) its column and row.
        corners: top left corners of the windows cut from each tile.
        side: of the windows, in pixels.
    """

    product: Product
    scenes: list[str]
    flat: list[bool]
    scene: NDArray[np.int64]
    where: NDArray[np.int32]
    corners: tuple[tuple[int, int], ...]
    side: int

    def __len__(self) -> int:
        return len(self.where) * len(self.corners)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        number, corner = divmod(range(len(self))[index], len(self.corners))
        scene = int(self.scene[number])
        tile = _Tile(self.product, self.scenes[scene], self.flat[scene], *self.where[number].tolist())
        top, left = self.corners[corner]
        size = 2 * HALF_WORLD_M / 2**self.product.zoom
        pixel = size / SIDE
        west, north = tile.col * size + left * pixel - HALF_WORLD_M, HALF_WORLD_M - tile.row * size - top * pixel
        up = self.product.zoom - PLACE_ZOOM
        return Item(
            source=tile.source if len(self.corners) == 1 else f"{tile.source}@{top},{left}",
            place=f"{tile.col >> up}_{tile.row >> up}",
            load=_Load(tile, top, left, self.side),
            bounds=(west, north - self.side * pixel, west + self.side * pixel, north),
            frame="EPSG:3857",
            files=tuple(tile.files),
        )


@dataclass(frozen=True, slots=True)
class _Load:
    """Reads one window of one tile; what an `Item` calls."""

    tile: _Tile
    top: int
    left: int
    side: int

    def __call__(self) -> Sample:
        latest, image = getattr(_thread, "latest", (None, None))
        if image is None or latest != self.tile:
            bands = self.tile.product.bands.values()
            parts = [_decode(file, self.tile.scene, len(b)) for file, b in zip(self.tile.files, bands, strict=True)]
            image = np.concatenate(parts)
            if self.side < SIDE:
                _thread.latest = (self.tile, image)
        window = image[:, self.top : self.top + self.side, self.left : self.left + self.side]
        return Sample(window, np.asarray(window.any(axis=0)))


def _decode(file: str, scene: str, bands: int) -> NDArray[np.uint8]:
    """(bands, 512, 512) numbers of one PNG.

    Raises:
        DataError: it cannot be read, or has other bands, numbers or pixels.
    """
    name = os.path.relpath(file, scene)
    side = SIDE // 2 if os.path.dirname(name) in COARSE else SIDE  # the smallest it may have
    try:
        with Image.open(file, formats=("PNG",)) as picture:
            mode, size = picture.mode, picture.size
            fits = mode == MODES[bands] and size in ((SIDE, SIDE), (side, side))
            pixels = np.asarray(picture) if fits else np.empty(0, np.uint8)
    except BROKEN as error:
        raise DataError(f"{name} cannot be read, truncated or damaged: {' '.join(str(error).split())}") from None
    if mode != MODES[bands]:
        has = OTHER_MODES.get(mode, f"mode {mode}")
        raise DataError(f"{name} has {has}, not {'one band' if bands == 1 else f'{bands} bands'} of 8 bits")
    if not fits:
        raise DataError(f"{name} is {size[1]}×{size[0]} pixels, not {SIDE}×{SIDE}")
    if len(pixels) < SIDE:
        pixels = pixels.repeat(2, axis=0).repeat(2, axis=1)
    return pixels.reshape(SIDE, SIDE, bands).transpose(2, 0, 1)
