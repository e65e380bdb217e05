"""The packed corpus on disk and how it is read: Zarr v3, one group a sensor (docs/architecture.md, "Store").

A store is read by address alone, without listing folders, so a plain HTTP server or an object store serves it like a
local disk.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numcodecs  # type: ignore[import-untyped]
import numpy as np
import zarr
from numcodecs.vlen import VLenUTF8  # type: ignore[import-untyped]
from numpy.typing import NDArray

from dofa.addresses import redact
from dofa.corpus.items import Split
from dofa.corpus.metadata import (
    COPY_AGAIN,
    check_format,
    column_digest,
    fetch,
    in_line,
    local_path,
    read_attributes,
    read_json,
    zarr_store,
)
from dofa.corpus.shards import Cut, Layout, ShardFiles
from dofa.errors import DataError
from dofa.pixels import Scaling
from dofa.sensors import Sensor

COLUMN_CHUNK = 65536  # entries


class SensorStore:
    """The images of one sensor in a store; safe to share with threads and with forked or spawned workers.

    Attributes:
        url: of the store, as it is opened; `redact` strips it for messages and files.
        name: of the sensor, and of its group.
        sensor: whole, bands in the order of the images.
        scaling: raw to normalised, with the statistics of the store's training split.
        shape: (C, H, W) of every image.
        dtype: of the raw numbers.
        count: images, of all splits.
        class_names: of the labels, by index; empty where there are none.
        digest: sha256 over all images and masks, for a model's provenance.
        attributes: everything the store says about the sensor.
    """

    def __init__(self, url: str, name: str, attributes: dict[str, Any]) -> None:
        self.url, self.name, self.attributes = url, name, attributes
        try:
            self.version = int(attributes["format_version"])
            self.sensor = Sensor.from_dict(attributes["sensor"])
            self.scaling = Scaling.from_dict(attributes["scaling"])
            height, width = (int(side) for side in attributes["tile"])
            self.shape: tuple[int, int, int] = (len(self.sensor.bands), height, width)
            self.dtype = np.dtype(attributes["dtype"])
            self.counts: dict[str, Any] = {
                key: attributes["counts"][key] for key in ("images", "splits", "labelled", "partly_valid")
            }
            self.count = int(self.counts["images"])
            self.class_names = tuple(str(name) for name in attributes["class_names"])
            self.digest = str(attributes["digest"])
            packing = attributes["packing"]
            self._cut = Cut(self.shape, str(self.dtype), int(packing["chunk"]), int(packing["shard"]))
            least = min(*self.shape, self.count, self._cut.chunk, self._cut.shard)
            if least < 1 or self.scaling.bands != self.sensor.band_names or self.scaling.mean is None:
                raise ValueError("its numbers do not hold together")
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise DataError(f"{url} is damaged: zarr.json of {name}: {in_line(error)}: {COPY_AGAIN}") from None
        self._opened: dict[str, Any] = {}
        self._owner = os.getpid()

    def indices(self, split: Split) -> NDArray[np.int64]:
        """Numbers of the images of a split, ascending."""
        return np.flatnonzero(self._column("split") == split)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """(N,) class indices, −1 where an image has none; None where no image has one."""
        return self._column("labels") if self.counts["labelled"] else None

    def sources(self, indices: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Where images come from: file, and window or index within it."""
        return [str(s) for s in self._column("source")[np.asarray(indices, np.int64)]]

    def places(self, indices: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """What images show, as splits by place see it."""
        return [str(s) for s in self._column("place")[np.asarray(indices, np.int64)]]

    def read(
        self,
        index: int,
        top: int = 0,
        left: int = 0,
        height: int | None = None,
        width: int | None = None,
        bands: Sequence[int] | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Part of one image; little more than that part is read from disk or network.

        Args:
            top: first row.
            left: first column.
            height: rows, to the bottom where absent.
            width: columns, to the right where absent.
            bands: positions of the bands wanted, in the order wanted; all where absent.

        Returns:
            (C, height, width) raw numbers, and (height, width) validity; None where all pixels of the store are.

        Raises:
            DataError: the window leaves the image, or the store is damaged.
        """
        height = self.shape[1] - top if height is None else height
        width = self.shape[2] - left if width is None else width
        inside = 0 <= top < top + height <= self.shape[1] and 0 <= left < left + width <= self.shape[2]
        if not inside or not 0 <= index < self.count:
            raise DataError(
                f"{self.url}, {self.name}: no window of {height}×{width} at ({top}, {left}) in image {index}; "
                f"there are {self.count} of {self.shape[1]}×{self.shape[2]}"
            )
        rows, columns = slice(top, top + height), slice(left, left + width)
        image = self._window("images", int(index), rows, columns, bands)
        return image, self._window("valid", int(index), rows, columns) if self.counts["partly_valid"] else None

    def _window(
        self, name: str, index: int, rows: slice, columns: slice, bands: Sequence[int] | None = None
    ) -> NDArray[Any]:
        """Part of one image, or of its validity: straight from local shards, through Zarr from elsewhere."""
        shards = self._shards(name)
        try:
            if shards is not None:
                return shards.read(index, rows, columns, bands)
            part = np.asarray(self._array(name)[(index, ..., rows, columns)])
        except FileNotFoundError:
            self._check_shard(name, index)
            return np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)  # version 1, all valid
        except DataError:
            raise
        # Damaged bytes and metadata raise what Zarr, its codecs or an fsspec backend stumble over first (TypeError,
        # KeyError, MemoryError, a client's own kind …); the cause stays on the error.
        except Exception as error:
            raise self._unreadable(f"{name} of image {index}", error) from error
        if part.all() if name == "valid" else not part.any():
            self._check_shard(name, index)  # Zarr reads a file that is not there as the fill value
        return part if bands is None else part[list(bands)]

    def check_files(self) -> None:
        """Look for every file of the store and compare the columns with their digests; pixels are not read.

        Raises:
            DataError: a file is missing, or a column is not as it was written.
        """
        for name in ("images", *(["valid"] if self.counts["partly_valid"] else [])):
            for index in range(0, self.count, self._cut.shard):
                self._check_shard(name, index)
        for name in ("source", "place", "split", "labels"):
            self._column(name)

    def _unreadable(self, what: str, error: Exception) -> DataError:
        return DataError(f"{self.url}, {self.name}: {what} cannot be read: {in_line(error)}")

    def _check_shard(self, name: str, index: int) -> None:
        """Refuse a store without the shard of an image; version 1 left out shards of `valid` that say nothing."""
        number = index // self._cut.shard
        path = f"{self.name}/{name}/c/{number}/" + "/".join("0" * (3 if name == "images" else 2))
        if f"shard {path}" in self._opened or (name == "valid" and self.version < 2):
            return
        if fetch(self.url, path, end=1) is None:
            raise DataError(f"{self.url} is damaged: {path} is missing: {COPY_AGAIN}")
        self._opened[f"shard {path}"] = True

    def _column(self, name: str) -> NDArray[Any]:
        """A whole array of one entry an image, read once and compared with what the attributes say of it."""
        key = f"column {name}"
        if key not in self._opened:
            metadata = read_json(self.url, f"{self.name}/{name}/zarr.json") or {}
            try:
                chunks = metadata["chunk_grid"]["configuration"]["chunk_shape"]
                if metadata["shape"] != [self.count] or not 0 < chunks[0] <= max(self.count, COLUMN_CHUNK):
                    raise ValueError("its zarr.json is damaged")  # before Zarr makes room for what it says
                texts = metadata["data_type"] == "string"
                column = self._texts(name, metadata) if texts else np.asarray(self._array(name)[:])
            except DataError:
                raise
            except (LookupError, TypeError, ValueError) as error:
                why = "its zarr.json is damaged" if isinstance(error, LookupError) else in_line(error)
                raise DataError(
                    f"{self.url} is damaged: {name} of {self.name} is unreadable, {why}: {COPY_AGAIN}"
                ) from error
            except Exception as error:  # as in `_window`: any kind, of Zarr, its codecs or an fsspec backend
                raise self._unreadable(name, error) from error
            self._check_column(name, column)
            self._opened[key] = column
        found: NDArray[Any] = self._opened[key]
        return found

    def _texts(self, name: str, metadata: dict[str, Any]) -> NDArray[Any]:
        """A column of texts; not by Zarr, which makes room for as many as a damaged chunk says: 34 GB for 2³².

        Raises:
            DataError, ValueError, RuntimeError: a chunk cannot be read or is damaged.
        """
        (side,) = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        first, *codecs = [codec["name"] for codec in metadata["codecs"]]
        if first != "vlen-utf8" or not set(codecs) <= {"zstd", "gzip", "blosc"}:
            raise ValueError("its zarr.json is damaged")
        found: list[str] = []
        for number in range(-(-self.count // side)):
            data = fetch(self.url, f"{self.name}/{name}/c/{number}")
            if data is None:
                raise ValueError("a chunk is missing")
            for codec in reversed(codecs):
                data = bytes(numcodecs.get_codec({"id": codec}).decode(data))
            if int.from_bytes(data[:4], "little") != side:
                raise ValueError("a chunk is damaged")
            found += VLenUTF8().decode(data).tolist()
        return np.array(found[: self.count], np.dtypes.StringDType())

    def _check_column(self, name: str, column: NDArray[Any]) -> None:
        """Refuse a column that was changed, or of which a part is missing: Zarr reads that as zeros and empty texts."""
        if self.version > 1:
            whole = column_digest(column) == self.attributes["columns"][name]
        elif name == "split":
            whole = Counter(column.tolist()) == self.counts["splits"]
        elif name == "labels":
            whole = column.dtype.kind == "i" and int((column >= 0).sum()) == self.counts["labelled"]
        else:
            whole = all(str(text) for text in column.tolist())
        if not whole or column.shape != (self.count,):
            raise DataError(f"{self.url} is damaged: {name} of {self.name} is not as it was written: {COPY_AGAIN}")

    def _array(self, name: str) -> zarr.Array[Any]:
        if self._owner != os.getpid():  # connections and event loops do not survive a fork
            self._opened, self._owner = {}, os.getpid()
        if name not in self._opened:
            self._opened[name] = zarr.open_array(zarr_store(self.url), path=f"{self.name}/{name}", mode="r")
        array: zarr.Array[Any] = self._opened[name]
        return array

    def _shards(self, name: str) -> ShardFiles | None:
        """The files of a local array; None where it lies elsewhere, or another program laid out version 1 anew.

        Raises:
            DataError: its zarr.json is not there, damaged, or not what the attributes of the group say.
        """
        key = f"shards {name}"
        if key not in self._opened:
            path = f"{self.name}/{name}/zarr.json"
            metadata = read_json(self.url, path)
            if metadata is None:
                raise DataError(f"{self.url} is damaged: {path} is missing: {COPY_AGAIN}")
            expected = self._cut.layout(name, self.count)
            try:
                layout = Layout.read(metadata)
                same = tuple(metadata["shape"]) == expected.shape and metadata["data_type"] == expected.dtype
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
                same = False
            if not same or (self.version > 1 and layout != expected):
                raise DataError(f"{self.url} is damaged: {path} is not as it was written: {COPY_AGAIN}")
            folder, local = local_path(self.url), None
            if folder is not None and layout is not None:
                local = ShardFiles(folder / self.name / name, layout)
            self._opened[key] = local
        shards: ShardFiles | None = self._opened[key]
        return shards

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}, "_owner": -1}

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        channels, height, width = self.shape
        return (
            f"SensorStore({redact(self.url)!r}, {self.name!r}: {self.count} × {channels}×{height}×{width} {self.dtype})"
        )


def open_stores(urls: str | Path | Sequence[str | Path]) -> dict[str, SensorStore]:
    """Every sensor of one store or several.

    Args:
        urls: local folders or fsspec URLs (http://, s3://, gs:// …).

    Returns:
        By sensor name, in the order of the stores.

    Raises:
        DataError: no store there or one sensor of it, a pack that was not finished, a format from the future, or a
            sensor that two of the stores hold.
    """
    found: dict[str, SensorStore] = {}
    for entry in [urls] if isinstance(urls, str | Path) else urls:
        url = str(entry).rstrip("/")
        root = read_attributes(url)
        if root is None:
            chips = f"; it holds chips: chips:{url}" if Path(url, "chips.json").is_file() else ""
            raise DataError(f"no store at {url}: give the folder or address that dofa pack wrote{chips}")
        check_format(root, url)
        if "sensors" not in root:
            raise DataError(f"{url} is one sensor of a store: name the store, {url.rpartition('/')[0] or '.'}")
        names = root["sensors"]
        if not isinstance(names, list) or not all(isinstance(name, str) and is_group_name(name) for name in names):
            raise DataError(f"{url} is damaged: its zarr.json lists no sensors: {COPY_AGAIN}")
        for name in names:
            attributes = read_attributes(url, name)
            if attributes is None or not attributes.get("complete"):
                raise DataError(f"{url}: {name} is packed only in part; run the same dofa pack again to finish it")
            check_format(attributes, url, name)
            if name in found:
                raise DataError(f"both {found[name].url} and {url} hold {name}: pack its images into one store")
            found[name] = SensorStore(url, name, attributes)
    return found


def is_group_name(name: str) -> bool:
    """Whether a name is that of a group in a store, and leads nowhere else.

    Args:
        name: as a store lists it.
    """
    return bool(name) and name not in (".", "..") and not any(mark in name for mark in "/\\:?")
