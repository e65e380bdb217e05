"""The packed corpus on disk and how it is read: Zarr v3, one group a sensor (docs/architecture.md, "Store").

A store is read by address alone, without listing folders, so a plain HTTP server or an object store serves it like a
local disk.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import zarr
from fsspec.implementations.http import HTTPFileSystem
from numpy.typing import NDArray
from zarr.errors import ContainsArrayError, GroupNotFoundError
from zarr.storage import FsspecStore

from dofa.corpus.items import Split
from dofa.corpus.shards import ShardFiles
from dofa.errors import DataError
from dofa.pixels import Scaling
from dofa.sensors import Sensor

FORMAT = "dofa-store"
FORMAT_VERSION = 1
UNREADABLE = (OSError, ValueError, RuntimeError)  # what damaged files and broken connections raise


class SensorStore:
    """The images of one sensor in a store; safe to share with threads and with forked or spawned workers.

    Attributes:
        url: of the store.
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
        self.sensor = Sensor.from_dict(attributes["sensor"])
        self.scaling = Scaling.from_dict(attributes["scaling"])
        self.shape: tuple[int, int, int] = (len(self.sensor.bands), *attributes["tile"])
        self.dtype = np.dtype(attributes["dtype"])
        self.count = int(attributes["counts"]["images"])
        self.class_names = tuple(attributes["class_names"])
        self.digest: str = attributes["digest"]
        self._opened: dict[str, Any] = {}
        self._owner = os.getpid()

    def indices(self, split: Split) -> NDArray[np.int64]:
        """Numbers of the images of a split, ascending."""
        return np.flatnonzero(self._column("split") == split)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """(N,) class indices, −1 where an image has none; None where no image has one."""
        return self._column("labels") if self.attributes["counts"]["labelled"] else None

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
            index: of the image.
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
        partly = self.attributes["counts"]["partly_valid"]
        return image, self._window("valid", int(index), rows, columns) if partly else None

    def _window(
        self, name: str, index: int, rows: slice, columns: slice, bands: Sequence[int] | None = None
    ) -> NDArray[Any]:
        """Part of one image, or of its validity: straight from local shards, through Zarr from elsewhere."""
        shards = self._shards(name)
        if shards is None:
            part = self._take(name, (index, ..., rows, columns))
            if name == "images" and not part.any():
                self._check_shard(index)  # Zarr reads a file that is not there as zeros
            return part if bands is None else part[list(bands)]
        try:
            return shards.read(index, rows, columns, bands)
        except FileNotFoundError:
            if name == "images":
                raise self._lost(index) from None
            return np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)  # no mask was worth a file
        except UNREADABLE as error:
            raise self._unreadable(name, index, error) from None

    def _take(self, name: str, window: tuple[Any, ...]) -> NDArray[Any]:
        try:
            return np.asarray(self._array(name)[window])
        except UNREADABLE as error:
            raise self._unreadable(name, window[0], error) from None

    def _unreadable(self, name: str, index: object, error: Exception) -> DataError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return DataError(f"{self.url}, {self.name}: {name} of image {index} cannot be read: {reason}")

    def _check_shard(self, index: int) -> None:
        system, root = fsspec.core.url_to_fs(self.url)
        if not system.exists(f"{root}/{self._shard(index)}"):
            raise self._lost(index)

    def _shard(self, index: int) -> str:
        return f"{self.name}/images/c/{index // self.attributes['packing']['shard']}/0/0/0"

    def _lost(self, index: int) -> DataError:
        return DataError(f"{self.url} is damaged: {self._shard(index)} is missing; copy the store again")

    def _column(self, name: str) -> NDArray[Any]:
        """A whole array of one entry an image, read once."""
        key = f"column {name}"
        if key not in self._opened:
            self._opened[key] = self._take(name, (slice(None),))
        column: NDArray[Any] = self._opened[key]
        return column

    def _array(self, name: str) -> zarr.Array[Any]:
        if self._owner != os.getpid():  # connections and event loops do not survive a fork
            self._opened, self._owner = {}, os.getpid()
        if name not in self._opened:
            self._opened[name] = zarr.open_array(_address(self.url), path=f"{self.name}/{name}", mode="r")
        array: zarr.Array[Any] = self._opened[name]
        return array

    def _shards(self, name: str) -> ShardFiles | None:
        """The files of a local array; None where it lies elsewhere or is laid out in another way."""
        key = f"shards {name}"
        if key not in self._opened:
            address = _address(self.url)
            self._opened[key] = ShardFiles.open(Path(address, self.name, name)) if isinstance(address, str) else None
        shards: ShardFiles | None = self._opened[key]
        return shards

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}, "_owner": -1}

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        channels, height, width = self.shape
        return f"SensorStore({self.url!r}, {self.name!r}: {self.count} × {channels}×{height}×{width} {self.dtype})"


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
            raise DataError(f"no store at {url}: give the folder or address that dofa pack wrote")
        check_format(root, url)
        if "sensors" not in root:
            raise DataError(f"{url} is one sensor of a store: name the store, {url.rpartition('/')[0] or '.'}")
        for name in root["sensors"]:
            attributes = read_attributes(url, name)
            if attributes is None or not attributes.get("complete"):
                raise DataError(f"{url}: {name} is packed only in part; run the same dofa pack again to finish it")
            check_format(attributes, f"{url}, {name}")
            if name in found:
                raise DataError(f"both {found[name].url} and {url} hold {name}: pack its images into one store")
            found[name] = SensorStore(url, name, attributes)
    return found


def read_attributes(url: str, path: str = "") -> dict[str, Any] | None:
    """Attributes of a group; None where there is none.

    Args:
        url: folder or address of a store.
        path: of the group in it; empty for the root.

    Raises:
        DataError: the address cannot be reached, or holds something else.
    """
    try:
        return dict(zarr.open_group(_address(url), path=path, mode="r", zarr_format=3).attrs)
    except (GroupNotFoundError, FileNotFoundError):
        return None
    except (OSError, ValueError, ContainsArrayError) as error:
        raise DataError(f"{url} cannot be read as a store: {' '.join(str(error).split())}") from None


def check_format(attributes: dict[str, Any], where: str) -> None:
    """Refuse what is no store of ours, and formats newer than this version knows.

    Args:
        attributes: of the root.
        where: the store, for messages.

    Raises:
        DataError: with the cure.
    """
    if attributes.get("format") != FORMAT:
        raise DataError(f"{where} is Zarr but no store written by dofa pack")
    if attributes["format_version"] > FORMAT_VERSION:
        raise DataError(
            f"{where} has store format version {attributes['format_version']}, newer than the {FORMAT_VERSION} this "
            "dofa reads: update dofa"
        )


def _address(url: str) -> str | FsspecStore:
    """What zarr opens: a local path as it is, anything else through fsspec."""
    protocol, path = fsspec.core.split_protocol(url)
    if protocol in (None, "file", "local"):
        return str(Path(path).absolute())
    if protocol in ("http", "https"):
        return FsspecStore(_RangeHTTP(asynchronous=True), read_only=True, path=url)
    try:
        remote: FsspecStore = FsspecStore.from_url(url, read_only=True)
    except ImportError as error:
        raise DataError(f"{url}: {error}") from None
    return remote


class _RangeHTTP(HTTPFileSystem):  # type: ignore[misc]
    """HTTP where a server may ignore Range, as `python -m http.server` does, and answer with the whole file."""

    async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        out: bytes = await super()._cat_file(url, start=start, end=end, **options)
        # Zarr asks for whole files, for start to end, and for the last bytes (a negative start).
        if start is None or len(out) <= (-start if end is None else end - start):
            return out
        warnings.warn(
            f"the server of {url} ignores byte ranges: every crop costs a whole shard; serve the store with ranges",
            stacklevel=2,
        )
        return out[start:end]
