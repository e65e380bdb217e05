"""The arrays of pixels in a store: how images are cut into chunks, chunks put into shards, and crops taken from them.

A shard is one plain file (Zarr v3, sharding_indexed: chunks one after the other, each with its crc32c, then offset and
length of each, then a checksum of these; chunks of format version 1 have none). Through Zarr a chunk costs three
quarters of a millisecond to write and a third to read, all in one thread, which is many times what its pixels cost
(docs/data-path.md). So the threads that load images compress them too, and crops are read from local shards here; Zarr
reads what is elsewhere.
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
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from dofa.io import name_os_errors

CHUNK_BYTES = 2**20  # raw: a crop of 202 bands should not read four megabytes a corner
ABSENT = 2**64 - 1  # offset and length of a chunk that holds only the fill value
# Of few bands zstd behind a shuffle of bytes leaves within 4 % as many bytes as behind one of bits,
# and gives them back up to twice as fast. Of a curve of many bands LZ4 behind a shuffle of bits leaves as few as zstd,
# and gives them back two to three times as fast; of few it leaves up to a quarter more (docs/data-path.md).
FEW, MANY = Blosc("zstd", 3, Blosc.SHUFFLE), Blosc("lz4hc", 5, Blosc.BITSHUFFLE)
MASKS = Blosc("zstd", 3, Blosc.BITSHUFFLE)
MANY_BANDS = 32
LITTLE = {"endian": "little"}
CHECKSUM, BLOSC_HEADER = 4, 16  # bytes

Chunks = Sequence[bytes | None]


@dataclass(frozen=True)
class Layout:
    """How an array of pixels lies in its files.

    Attributes:
        shape: of the array; images first, rows and columns last.
        dtype: of its numbers.
        chunk: side of a chunk in pixels.
        shard: images in a shard.
        fill: value of the chunks that are not there.
        checked: whether each chunk ends in its crc32c.
    """

    shape: tuple[int, ...]
    dtype: str
    chunk: int
    shard: int
    fill: int | bool
    checked: bool

    @classmethod
    def read(cls, metadata: dict[str, Any]) -> "Layout | None":
        """The layout in an array's zarr.json; None where it is another than `Cut.create` makes.

        Args:
            metadata: contents of zarr.json.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: it is damaged.
        """
        if [c["name"] for c in metadata["codecs"]] != ["sharding_indexed"]:
            return None
        sharding = metadata["codecs"][0]["configuration"]
        shape = [int(n) for n in metadata["shape"]]
        *middle, height, width = shape[1:]
        chunk, shard = sharding["chunk_shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
        side = int(chunk[-1])
        inner = [c["name"] for c in sharding["codecs"]]
        laid_out = (
            side > 0
            and shard[0] > 0
            and chunk == [1, *middle, side, side]
            and shard[1:] == [*middle, -(-height // side) * side, -(-width // side) * side]
            and inner in (["bytes", "blosc"], ["bytes", "blosc", "crc32c"])
            and sharding["codecs"][0].get("configuration", LITTLE) == LITTLE  # absent for single bytes
            and [c["name"] for c in sharding["index_codecs"]] == ["bytes", "crc32c"]
            and sharding["index_codecs"][0].get("configuration", LITTLE) == LITTLE
            and sharding["index_location"] == "end"
            and metadata["chunk_grid"]["name"] == "regular"
            and metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and (metadata["zarr_format"], metadata["node_type"]) == (3, "array")
        )
        if not laid_out:
            return None
        dtype = str(np.dtype(metadata["data_type"]))
        return cls(tuple(shape), dtype, side, int(shard[0]), metadata["fill_value"], len(inner) == 3)


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
        for name, codec in (("images", self._codec), ("valid", MASKS)):
            layout = self.layout(name, count)
            middle, tile = layout.shape[1:-2], layout.shape[-2:]
            if not (folder / name / "zarr.json").exists():
                zarr.create_array(
                    folder / name,
                    shape=layout.shape,
                    dtype=layout.dtype,
                    chunks=(1, *middle, self.chunk, self.chunk),
                    shards=(self.shard, *middle, *(-(-side // self.chunk) * self.chunk for side in tile)),
                    compressors=(_zarr_codec(codec), Crc32cCodec()),
                    fill_value=layout.fill,
                )

    def layout(self, name: str, count: int) -> Layout:
        """How `images` or `valid` lies in its files."""
        bands, *tile = self.shape
        if name == "images":
            return Layout((count, bands, *tile), self.dtype, self.chunk, self.shard, 0, True)
        return Layout((count, *tile), "bool", self.chunk, self.shard, True, True)

    def encode(self, image: NDArray[Any]) -> Chunks:
        """(…, H, W) as compressed chunks, row by row. A chunk of zeros is kept: one that is not there is a lost one."""
        return [_with_checksum(self._codec.encode(chunk)) for chunk in self._chunks(image, 0)]

    def encode_mask(self, valid: NDArray[np.bool_] | None) -> Chunks:
        """(H, W) validity as compressed chunks; those that are True everywhere take no room."""
        whole = np.ones(self.shape[1:], bool) if valid is None else valid
        return [None if chunk.all() else _with_checksum(MASKS.encode(chunk)) for chunk in self._chunks(whole, True)]

    def write(self, array: Path, number: int, images: Sequence[Chunks]) -> None:
        """Write a shard as one whole file, also where not a single chunk is present: a file that is not there is lost.

        Args:
            array: folder of `images` or `valid`.
            images: compressed chunks of each image, None where a chunk holds nothing but the fill value.
        """
        present = [chunk for chunks in images for chunk in chunks]
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
        with name_os_errors(part), part.open("wb") as handle:
            handle.writelines(chunk for chunk in present if chunk is not None)
            handle.write(index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little"))
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, file)

    @property
    def _codec(self) -> Blosc:
        """What images are compressed with."""
        return MANY if self.shape[0] > MANY_BANDS else FEW

    def _chunks(self, pixels: NDArray[Any], fill: int) -> Iterator[NDArray[Any]]:
        """Chunks row by row; those at the edge are filled up."""
        side = self.chunk
        *_, height, width = pixels.shape
        edge = [(0, 0)] * (pixels.ndim - 2) + [(0, -height % side), (0, -width % side)]
        padded = np.pad(pixels, edge, constant_values=fill)
        for top in range(0, height, side):
            for left in range(0, width, side):
                yield np.ascontiguousarray(padded[..., top : top + side, left : left + side])


class ShardFiles:
    """The shards of one local array, read without Zarr; nothing stays open, so threads and processes may share it."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self.dtype = np.dtype(layout.dtype)
        self.shape, self.shard, self.chunk = layout.shape, layout.shard, layout.chunk
        self._across = -(-self.shape[-1] // self.chunk)
        self._chunks = -(-self.shape[-2] // self.chunk) * self._across  # of an image

    def read(
        self, image: int, rows: slice, columns: slice, bands: Sequence[int] | NDArray[np.int64] | None = None
    ) -> NDArray[Any]:
        """A window of an image.

        Args:
            rows: start and stop, within the image.
            bands: positions of the bands wanted, in the order wanted; all where absent.

        Returns:
            (C, h, w), or (h, w) where the array has no bands.

        Raises:
            FileNotFoundError: the shard is not there.
            OSError: it cannot be read.
            ValueError, RuntimeError: it is damaged.
        """
        number, place = divmod(image, self.shard)
        side, middle = self.chunk, self.shape[1:-2]
        out = np.empty(
            (*(middle if bands is None else [len(bands)]), rows.stop - rows.start, columns.stop - columns.start),
            self.dtype,
        )
        chosen: Any = ... if bands is None else np.asarray(bands, np.intp)
        pixels = np.empty((*middle, side, side), self.dtype)
        file = os.open(self.folder.joinpath("c", str(number), *["0"] * (len(self.shape) - 1)), os.O_RDONLY)
        try:
            index = self._index(file)[place]
            for y in range(rows.start // side, -(-rows.stop // side)):
                inside_y, to_y = _overlap(rows, y * side, side)
                for x in range(columns.start // side, -(-columns.stop // side)):
                    inside_x, to_x = _overlap(columns, x * side, side)
                    offset, length = map(int, index[y * self._across + x])
                    if offset == ABSENT:
                        if self.layout.checked and not self.layout.fill:
                            raise ValueError("a chunk is missing")  # of images `Cut.encode` leaves out none
                        out[..., to_y, to_x] = self.layout.fill
                        continue
                    data = os.pread(file, length, offset)
                    if len(data) != length:
                        raise ValueError("a chunk is cut short")
                    _decode(_without_checksum(data) if self.layout.checked else data, pixels)
                    found = pixels[..., inside_y, inside_x]
                    out[..., to_y, to_x] = found if bands is None else found[chosen]
        finally:
            os.close(file)
        return out

    def _index(self, file: int) -> NDArray[np.uint64]:
        """(images, chunks of an image, 2) offsets and lengths in a shard."""
        size = 16 * self.shard * self._chunks
        tail = os.pread(file, size + 4, max(os.fstat(file).st_size - size - 4, 0))
        if google_crc32c.value(tail[:size]).to_bytes(4, "little") != tail[size:]:
            raise ValueError("the checksum of the shard's index is wrong")
        return np.frombuffer(tail, "<u8", count=size // 8).reshape(self.shard, self._chunks, 2)


def _overlap(wanted: slice, start: int, side: int) -> tuple[slice, slice]:
    """Where a chunk that begins at `start` meets what is wanted: within the chunk, and within what is wanted."""
    first, last = max(wanted.start, start), min(wanted.stop, start + side)
    return slice(first - start, last - start), slice(first - wanted.start, last - wanted.start)


def _with_checksum(chunk: bytes) -> bytes:
    """A chunk with its crc32c behind it, as Zarr's codec of this name has it."""
    return chunk + int(google_crc32c.value(chunk)).to_bytes(CHECKSUM, "little")


def _without_checksum(chunk: bytes) -> bytes:
    """A chunk without its crc32c, which must be right."""
    body = chunk[:-CHECKSUM]
    if google_crc32c.value(body).to_bytes(CHECKSUM, "little") != chunk[-CHECKSUM:]:
        raise ValueError("the checksum of a chunk is wrong: its bytes were changed")
    return body


def _decode(data: bytes, out: NDArray[Any]) -> None:
    """Undo Blosc, which believes its header: bytes 4 to 8 say how many come out, 12 to 16 how many there are."""
    out_bytes, in_bytes = int.from_bytes(data[4:8], "little"), int.from_bytes(data[12:16], "little")
    if len(data) < BLOSC_HEADER or in_bytes != len(data) or out_bytes != out.nbytes:
        raise ValueError("a chunk is cut short or of another size")
    FEW.decode(data, out=out)  # a chunk says itself how it was compressed


def _zarr_codec(codec: Blosc) -> BloscCodec:
    return BloscCodec(cname=codec.cname, clevel=codec.clevel, shuffle=BloscShuffle.from_int(codec.shuffle))


def chunk_side(shape: tuple[int, int, int], itemsize: int) -> int:
    """The largest power of two up to 64 whose chunk of all bands stays under a megabyte, and no more than the image.

    Args:
        shape: (C, H, W) of an image.
        itemsize: bytes a number.
    """
    side = 64
    while side > 8 and shape[0] * side * side * itemsize > CHUNK_BYTES:
        side //= 2
    return min(side, max(shape[1:]))


def sync(file: Path) -> None:
    """See that a file is on disk."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
