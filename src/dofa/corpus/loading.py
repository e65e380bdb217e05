"""Loading and checking images ahead of the one that writes them, in threads and in order."""

import hashlib
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.corpus.items import Item, Reading, Refusal, Split
from dofa.corpus.shards import Chunks, Cut
from dofa.errors import DataError
from dofa.pixels import RunningStats, Scaling
from dofa.raster import nodata
from dofa.raster.masks import HUGE


@dataclass(frozen=True)
class Loaded:
    """One image, checked, measured and compressed.

    Attributes:
        image: its chunks.
        mask: chunks of its validity; all None where every pixel is valid.
        nbytes: of the image as it was.
        label: class index, −1 for none.
        stats: of its physical values, where it belongs to the training split.
        digest: sha256 of image and validity.
    """

    image: Chunks
    mask: Chunks
    nbytes: int
    label: int
    stats: RunningStats | None
    digest: bytes


@dataclass(frozen=True)
class Loader:
    """Loads, checks and compresses images in threads, ahead of where they are consumed and in their order.

    Threads, not processes: GDAL, NumPy and Blosc leave the interpreter lock while they work.
    """

    reading: Reading
    scaling: Scaling
    cut: Cut
    min_valid: float
    workers: int

    def run(self, work: Iterable[tuple[Item, Split]]) -> Generator[tuple[Item, Split, Loaded | Refusal]]:
        """Every item with its split and what came of it, in order."""
        waiting: deque[tuple[Item, Split, Future[Loaded | Refusal]]] = deque()
        rest = iter(work)
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="dofa-pack")
        try:
            while True:
                for item, split in islice(rest, 2 * self.workers - len(waiting)):
                    waiting.append((item, split, pool.submit(self.load, item, split)))
                if not waiting:
                    return
                item, split, future = waiting.popleft()
                yield item, split, future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def load(self, item: Item, split: Split) -> Loaded | Refusal:
        """Read one image; a reason where it cannot be packed.

        Args:
            item: to read.
            split: statistics are taken of `train` alone.
        """
        try:
            sample = item.load()
            image, valid = self._check(sample.image, sample.valid)
            stats = None
            if split == "train":
                stats = RunningStats(self.scaling.bands)
                stats.update(self.scaling.physical(image), valid)
        except DataError as error:
            return Refusal(item.source, " ".join(str(error).split()))
        digest = hashlib.sha256(np.ascontiguousarray(image).data)
        if valid is not None:
            digest.update(np.ascontiguousarray(valid).data)
        return Loaded(
            image=self.cut.encode(image),
            mask=self.cut.encode_mask(valid),
            nbytes=image.nbytes,
            label=-1 if sample.label is None else sample.label,
            stats=stats,
            digest=digest.digest(),
        )

    def _check(
        self, image: NDArray[Any], valid: NDArray[np.bool_] | None
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        bands, height, width = len(self.reading.sensor.bands), *self.reading.tile
        if image.ndim != 3 or len(image) != bands:
            raise DataError(f"has {len(image)} bands; sensor {self.reading.sensor.name} has {bands}")
        if image.shape[1:] != (height, width):
            raise DataError(f"is {image.shape[1]}×{image.shape[2]} pixels, not {height}×{width}")
        if valid is not None and valid.all():
            valid = None
        if valid is not None:
            share = float(valid.mean())
            if not share:
                raise DataError("has no valid pixel: all nodata")
            if share < self.min_valid:
                raise DataError(f"has {share:.1%} valid pixels, less than the {self.min_valid:.1%} asked for")
        exact = (
            np.can_cast(image.dtype, self.reading.dtype) or image.dtype.kind == np.dtype(self.reading.dtype).kind == "f"
        )
        if not exact:
            raise DataError(f"is of type {image.dtype}; the store holds {self.reading.dtype}")
        image = image.astype(self.reading.dtype, copy=False)
        if nodata.may_hold(image):
            good = np.broadcast_to(True if valid is None else valid.ravel(), (bands, height * width))
            for found in nodata.find_fill(image.reshape(bands, -1), good):
                if found.value < 0 or found.value >= HUGE:  # what lies above may be saturation
                    raise DataError(f"{found.seen}: pass --nodata {found.text}")
        if image.dtype.kind == "f":
            bad = ~np.isfinite(image).all(axis=0)
            count = int((bad if valid is None else bad & valid).sum())
            if count:
                raise DataError(f"has {count} NaN or infinite pixels where pixels count as valid")
        return image, valid
