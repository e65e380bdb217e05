"""Pixels of a scene in chunks aligned with its file's blocks, each decoded once although tiles overlap."""

import math
import mmap
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dofa.scene.grid import Window

SIDE = 256  # pixels a side of a chunk, at least
LARGEST = 48 * 2**20  # bytes of one chunk, where the file's blocks allow it
VALID = 8 * 2**20  # bytes of validity that stay when the pixels are forgotten


class Pixels(NamedTuple):
    """Raw numbers of a window.

    Attributes:
        parts: (C, h, w) for each part of the scene, in its file's type.
        valid: (h, w), False where there is no measurement, and outside the scene.
    """

    parts: list[NDArray[Any]]
    valid: NDArray[np.bool_]


class Source(Protocol):
    """What chunks need of a scene."""

    @property
    def height(self) -> int:
        """Rows of pixels."""

    @property
    def width(self) -> int:
        """Columns of pixels."""

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of pixels that are best read together."""

    @property
    def pixel_bytes(self) -> int:
        """Bytes of all bands at one pixel."""

    def read(self, window: Window) -> tuple[list[NDArray[Any]], NDArray[np.bool_]]:
        """Raw numbers of each part, and validity."""


class Chunks:
    """Reads windows through a cache of chunks; threads share it, and no chunk is decoded by two of them at once.

    Args:
        budget: bytes of decoded chunks to keep; those used last stay.
    """

    def __init__(self, scene: Source, budget: int) -> None:
        self.scene = scene
        self.side = chunk_side(scene)
        self._budget = budget
        self._held = 0
        self._kept: OrderedDict[tuple[int, int], Future[Pixels]] = OrderedDict()
        self._seen: OrderedDict[tuple[int, int], NDArray[np.bool_]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, window: Window) -> Pixels:
        """Raw numbers and validity of a window, which may reach over the border of the scene: 0 and invalid there.

        Raises:
            DataError: pixels that cannot be decoded.
        """
        parts: list[NDArray[Any]] = []
        valid = np.zeros((window.height, window.width), bool)
        for at, into, out_of in self._under(window):
            found = self._chunk(*at)
            if not parts:
                parts = [np.zeros((len(p), window.height, window.width), p.dtype) for p in found.parts]
            for part, theirs in zip(parts, found.parts, strict=True):
                part[:, *into] = theirs[:, *out_of]
            valid[into] = found.valid[out_of]
        return Pixels(parts, valid)

    def hold(self, height: int, width: int) -> None:
        """Keep as many chunks as windows of `height` rows reach that pass over `width` columns, row upon row."""
        rows, cols = self.side
        down = min(-(-height // rows) + 1, -(-self.scene.height // rows))
        across = min(-(-width // cols) + 1, -(-self.scene.width // cols))
        self._budget = max(self._budget, down * across * rows * cols * (self.scene.pixel_bytes + 1))

    def valid(self, window: Window) -> NDArray[np.bool_]:
        """Validity alone, (h, w). It is asked for when tiles are joined, long after their pixels were forgotten."""
        valid = np.zeros((window.height, window.width), bool)
        for at, into, out_of in self._under(window):
            with self._lock:
                seen = self._seen.get(at)
            valid[into] = (self._chunk(*at).valid if seen is None else seen)[out_of]
        return valid

    def _under(self, window: Window) -> Iterator[tuple[tuple[int, int], tuple[slice, ...], tuple[slice, ...]]]:
        """The chunks under a window: which, where in the window, and which part of them."""
        top, left = max(window.row, 0), max(window.col, 0)
        bottom = min(window.row + window.height, self.scene.height)
        right = min(window.col + window.width, self.scene.width)
        rows, cols = self.side
        for i in range(top // rows, -(-bottom // rows)):
            for j in range(left // cols, -(-right // cols)):
                first, last = max(top, i * rows), min(bottom, (i + 1) * rows)
                begin, end = max(left, j * cols), min(right, (j + 1) * cols)
                into = np.s_[first - window.row : last - window.row, begin - window.col : end - window.col]
                out_of = np.s_[first - i * rows : last - i * rows, begin - j * cols : end - j * cols]
                yield (i, j), into, out_of

    def _chunk(self, i: int, j: int) -> Pixels:
        with self._lock:
            found = self._kept.get((i, j))
            mine = found is None
            if found is None:
                found = self._kept[i, j] = Future()
            self._kept.move_to_end((i, j))
        if mine:
            self._decode(i, j, found)
        return found.result()

    def _decode(self, i: int, j: int, promise: "Future[Pixels]") -> None:
        rows, cols = self.side
        window = Window(
            i * rows, j * cols, min(rows, self.scene.height - i * rows), min(cols, self.scene.width - j * cols)
        )
        try:
            parts, valid = self.scene.read(window)
            pixels = Pixels([_apart(part) for part in parts], _apart(valid))
        except BaseException as error:
            with self._lock:
                del self._kept[i, j]  # whoever asks next tries again
            promise.set_exception(error)
            return
        promise.set_result(pixels)
        with self._lock:
            self._seen[i, j] = pixels.valid
            if len(self._seen) > 1 and len(self._seen) * rows * cols > VALID:
                self._seen.popitem(last=False)
            self._held += _size(pixels)
            for key in list(self._kept):
                if self._held <= self._budget or key == (i, j):
                    break
                if self._kept[key].done():
                    self._held -= _size(self._kept.pop(key).result())


def chunk_side(scene: Source) -> tuple[int, int]:
    """Rows and columns of a chunk: whole blocks of the file, SIDE pixels at least, no larger than the scene."""
    rows, cols = (
        min(block * math.ceil(SIDE / block), -(-length // block) * block)
        for block, length in zip(scene.block, (scene.height, scene.width), strict=True)
    )
    rows, cols = min(rows, max(scene.height, 1)), min(cols, max(scene.width, 1))
    # Files in strips as wide as the scene: fewer rows at a time.
    most = max(1, LARGEST // (cols * scene.pixel_bytes))
    if rows > most:
        rows = max(scene.block[0], most // scene.block[0] * scene.block[0])
    return min(rows, scene.height), cols


def _apart(array: NDArray[Any]) -> NDArray[Any]:
    """A copy in pages of its own.

    Chunks live long among tiles that do not. On the heap they leave holes between them when they are forgotten, and a
    process over a large scene would take a hundred megabytes more than over a small one.
    """
    pages = np.frombuffer(mmap.mmap(-1, max(array.nbytes, 1)), np.uint8, array.nbytes)
    out = pages.view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def _size(pixels: Pixels) -> int:
    return sum(p.nbytes for p in pixels.parts) + pixels.valid.nbytes
