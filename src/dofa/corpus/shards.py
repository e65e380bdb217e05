"""The arrays of pixels in a store: how images are cut into chunks, and chunks put into shards.

Reading is left to Zarr. Writing through it costs three quarters of a millisecond a chunk, all in one thread; here the
threads that load images compress them too, and a shard is one plain file, written whole (Zarr v3, sharding_indexed:
chunks one after the other, then offset and length of each, then a checksum of these).
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import Blosc  # type: ignore[import-untyped]
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

CHUNK_BYTES = 2**20  # raw: a crop of 202 bands should not read four megabytes a corner
ABSENT = 2**64 - 1  # offset and length of a chunk that holds only the fill value
LEVEL = 3  # of zstd, behind a shuffle of bits

Chunks = Sequence[bytes | None]


@dataclass(frozen=True)
class Cut:
    """How the images of a sensor lie in chunks and shards.

    Attributes:
        shape: (C, H, W) of an image.
        dtype: of the raw numbers.
        chunk: side of a chunk in pixels.
        shard: images in a shard.
    """

    shape: tuple[int, int, int]
    dtype: str
    chunk: int
    shard: int

    def create(self, folder: Path, count: int) -> None:
        """Make the arrays `images` and `valid`, sized for so many images, where they are not there."""
        bands, *tile = self.shape
        cover = [-(-side // self.chunk) * self.chunk for side in tile]
        for name, middle, kind, fill in (("images", [bands], self.dtype, 0), ("valid", [], "bool", True)):
            if not (folder / name / "zarr.json").exists():
                zarr.create_array(
                    folder / name,
                    shape=(count, *middle, *tile),
                    dtype=kind,
                    chunks=(1, *middle, self.chunk, self.chunk),
                    shards=(self.shard, *middle, *cover),
                    compressors=BloscCodec(cname="zstd", clevel=LEVEL, shuffle="bitshuffle"),
                    fill_value=fill,
                )

    def encode(self, image: NDArray[Any]) -> Chunks:
        """(…, H, W) as compressed chunks, row by row. A chunk of zeros is kept: one that is not there is a lost one."""
        squeeze = Blosc("zstd", LEVEL, Blosc.BITSHUFFLE)
        return [squeeze.encode(chunk) for chunk in self._chunks(image, 0)]

    def encode_mask(self, valid: NDArray[np.bool_] | None) -> Chunks:
        """(H, W) validity as compressed chunks; those that are True everywhere take no room."""
        squeeze = Blosc("zstd", LEVEL, Blosc.BITSHUFFLE)
        whole = np.ones(self.shape[1:], bool) if valid is None else valid
        return [None if chunk.all() else squeeze.encode(chunk) for chunk in self._chunks(whole, True)]

    def write(self, array: Path, number: int, images: Sequence[Chunks]) -> None:
        """Write a shard as one whole file; nothing where not a single chunk is present."""
        present = [chunk for chunks in images for chunk in chunks]
        if not any(present):
            return
        index = np.full((self.shard * len(images[0]), 2), ABSENT, "<u8")
        offset = 0
        for n, chunk in enumerate(present):
            if chunk is not None:
                index[n] = offset, len(chunk)
                offset += len(chunk)
        axes = 3 if array.name == "images" else 2
        file = array.joinpath("c", str(number), *["0"] * axes)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name("part")
        with part.open("wb") as handle:
            handle.writelines(chunk for chunk in present if chunk is not None)
            handle.write(index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little"))
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, file)

    def _chunks(self, pixels: NDArray[Any], fill: int) -> Iterator[NDArray[Any]]:
        """Chunks row by row; those at the edge are filled up."""
        side = self.chunk
        *_, height, width = pixels.shape
        edge = [(0, 0)] * (pixels.ndim - 2) + [(0, -height % side), (0, -width % side)]
        padded = np.pad(pixels, edge, constant_values=fill)
        for top in range(0, height, side):
            for left in range(0, width, side):
                yield np.ascontiguousarray(padded[..., top : top + side, left : left + side])


def chunk_side(shape: tuple[int, int, int], itemsize: int) -> int:
    """The largest power of two up to 64 whose chunk of all bands stays under a megabyte, and no more than the image."""
    side = 64
    while side > 8 and shape[0] * side * side * itemsize > CHUNK_BYTES:
        side //= 2
    return min(side, max(shape[1:]))


def sync(file: Path) -> None:
    """See that a file is on disk."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
