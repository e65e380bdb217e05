"""A file's open GDAL datasets: one for each thread, opened again where a network lost an answer."""

import os
import threading
from collections.abc import Callable
from typing import Any

import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from dofa.addresses import shown
from dofa.errors import DataError
from dofa.raster import gdal, remote


class Handles:
    """Datasets of one file; any thread may ask, each gets its own.

    Args:
        path: anything GDAL opens.
        name: of the file, for messages.
    """

    def __init__(self, path: str, name: str) -> None:
        self._path, self._name = path, name
        self._open: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()
        self._closed = False
        # A virtual file may be made of others that come over a network.
        try:
            parts = self.dataset().files if path.lower().endswith(".vrt") else ()
        except UnicodeDecodeError:
            raise DataError(f"{name}: the name of a file in it is no text in UTF-8") from None
        self._fetched = next((part for part in parts if remote.is_remote(part)), path)

    def dataset(self) -> Any:
        """This thread's. A forked child opens its own: a shared file position would mix up their reads.

        Raises:
            DataError: the file cannot be opened, or is closed.
        """
        key = (os.getpid(), threading.get_ident())
        with self._lock:
            if self._closed:
                raise DataError(f"{self._name}: the raster is closed")
            found = self._open.get(key)
        if found is None:
            found = gdal.open_dataset(self._path)
            with self._lock:
                self._open[key] = found
        return found

    def read(self, ask: Callable[[Any], NDArray[Any]], what: str) -> NDArray[Any]:
        """What this thread's dataset answers; over a network a new one is asked when an answer was lost.

        Args:
            ask: a dataset for its numbers.
            what: they are, for messages.

        Raises:
            DataError: they cannot be decoded, or the network gave none.
        """

        def act() -> NDArray[Any]:
            dataset = self.dataset()
            with rasterio.Env(**gdal.options(self._path)):
                return ask(dataset)

        try:
            return remote.persistently(self._fetched, act, self._forget, lost=RasterioError)
        except RasterioError as error:
            far = remote.is_remote(self._fetched)
            why = f"its {what} cannot be decoded: {remote.reason(error, 'the server sent' if far else 'the file has')}"
            if far:
                raise DataError(f"{shown(self._path)}: {why} (asked {1 + len(remote.WAITS_S)} times)") from None
            raise DataError(f"{self._name}: truncated or damaged, {why}: copy or download it again") from None

    def _forget(self) -> None:
        """Close this thread's dataset; the next look opens another."""
        with self._lock:
            found = self._open.pop((os.getpid(), threading.get_ident()), None)
        if found is not None:
            with rasterio.Env(**gdal.options(self._path)):
                found.close()

    def close(self) -> None:
        """Close all of this process; asking afterwards is an error."""
        with self._lock:
            self._closed = True
            closing, self._open = self._open, {}
        for (pid, _), dataset in closing.items():
            if pid == os.getpid():
                dataset.close()
