"""The arrays of pixels in a store: how they are cut, and how a shard is written whole."""

import os
from pathlib import Path
from typing import Any

import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

CHUNK_BYTES = 2**20  # raw: a crop of 202 bands should not read four megabytes a corner


def create(
    folder: Path, count: int, shape: tuple[int, ...], dtype: str, chunk: int, shard: int
) -> tuple[zarr.Array[Any], zarr.Array[Any]]:
    """The arrays of pixels, sized for all images; what is refused is cut off at the end."""
    bands, *tile = shape
    sides = [min(chunk, side) for side in tile]
    cover = [-(-side // c) * c for side, c in zip(tile, sides, strict=True)]
    for name, middle, kind, fill in (("images", [bands], dtype, 0), ("valid", [], "bool", True)):
        if not (folder / name / "zarr.json").exists():
            zarr.create_array(
                folder / name,
                shape=(count, *middle, *tile),
                dtype=kind,
                chunks=(1, *middle, *sides),
                shards=(shard, *middle, *cover),
                compressors=BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
                fill_value=fill,
            )
    return open_array(folder / "images"), open_array(folder / "valid")


def open_array(path: Path) -> zarr.Array[Any]:
    """An array to write to."""
    # Chunks of zeros are written too: Zarr reads a chunk that is not there as zeros, so none may be missing by intent.
    # A mask that is True everywhere, on the other hand, takes no file.
    return zarr.open_array(path, mode="r+", config={"write_empty_chunks": path.name == "images"})


def write_shard(folder: Path, array: zarr.Array[Any], start: int, values: NDArray[Any]) -> None:
    """Write the samples of one shard as one whole file, and see it on disk."""
    assert array.shards is not None
    number = start // array.shards[0]
    file = folder.joinpath("c", str(number), *["0"] * (values.ndim - 1))
    file.unlink(missing_ok=True)  # of an interrupted pack; a part of it must not be merged
    array[start : start + len(values)] = values
    if file.exists():
        sync(file)


def chunk_side(shape: tuple[int, ...], itemsize: int) -> int:
    """The largest power of two up to 64 whose chunk of all bands stays under a megabyte."""
    side = 64
    while side > 8 and shape[0] * side * side * itemsize > CHUNK_BYTES:
        side //= 2
    return side


def sync(file: Path) -> None:
    """See that a file is on disk."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
