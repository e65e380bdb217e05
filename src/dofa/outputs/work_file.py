"""Outputs that are there whole or not at all: a journalled work file, then one step that makes the finished file of it.

Beside the output `map.tif` lies the folder `.map.tif.part` while the work lasts: `values.bin` holds the numbers, (H, W,
K), at its full size from the start, so that a full disk is told before the work and not after it; `journal.json` says
how many blocks of it are on the disk. A run that was killed goes on from there.
"""

import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from dofa.addresses import redact_values
from dofa.documents import read_json
from dofa.errors import ConfigError, DataError, DofaError, shorten
from dofa.io import (
    FileLock,
    allocate,
    flush,
    format_bytes,
    free_bytes,
    lock_folder,
    os_error_reason,
    remove,
    write_atomically,
)
from dofa.options import Format
from dofa.outputs.layout import FORMATS, Dtype, Layout
from dofa.outputs.reading import Features, open_features
from dofa.scene.grid import Window
from dofa.settings import check_keys, whole_number

__all__ = ["Dtype", "Features", "Format", "Layout", "Values", "Work", "format_of", "open_features"]

SYNC_S = 5.0  # between two entries of the journal: what a killed run does again at most
SYNC_BYTES = 1 << 28
SIDE_FILES = (".aux.xml", ".ovr", ".msk")  # GDAL's: statistics, names or overviews of what was there before


def format_of(out: Path) -> Format:
    """The format an output's name stands for.

    Raises:
        ConfigError: a name that stands for none.
    """
    kind = FORMATS.get(out.suffix.lower())
    if kind is None:
        raise ConfigError(f"{out}: the name says no format: end it in {', '.join(FORMATS)}")
    return kind


def check_out(out: Path, scenes: int, overwrite: bool, kind: Format | None) -> None:
    """Refuse an output that cannot be written, before anything is opened or loaded.

    Args:
        scenes: how many there are; of several, files that are there may be those of an earlier run.
        overwrite: whether a file there may be replaced.
        kind: format as told; by the name of `out` unless given.

    Raises:
        ConfigError: a lone scene's exists, or its name says no format; or it is one file for several scenes.
    """
    if scenes > 1 and out.suffix.lower() in FORMATS and not out.is_dir():
        raise ConfigError(f"{out} is one file for {scenes} scenes: name a folder, or give --stack if they are one")
    if scenes > 1 or out.is_dir():
        return
    if kind is None:
        format_of(out)
    if out.exists() and not overwrite and not _work_folder(out).exists():
        raise ConfigError(f"{out} exists: give --overwrite to replace it, or another name")


def _work_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.part")


class Values:
    """The numbers of a work file, read a window at a time."""

    def __init__(self, layout: Layout, file: io.FileIO) -> None:
        self.layout = layout
        self._file = file

    def read(self, window: Window) -> NDArray[Any]:
        """(K, h, w) stored numbers of a window of cells inside the output."""
        layout = self.layout
        cells = np.empty((window.height, window.width, layout.channels), layout.numpy_dtype)
        full_width = window.width == layout.width
        for i, part in enumerate((cells,) if full_width else cells):
            self._file.seek(((window.row + i) * layout.width + window.col) * layout.cell_bytes)
            left = memoryview(part).cast("B")
            while left:
                count = self._file.readinto(left)
                if not count:
                    raise DofaError(f"{self._file.name} ends before its last cell: another program changed it")
                left = left[count:]
        return cells.transpose(2, 0, 1)


class Work:
    """An output in the making.

    Attributes:
        out: the finished file.
        layout: what it will hold.
        folder: where the work lies.
        done: blocks whose numbers are on the disk, the first ones of the plan.
        finished: whether the finished file is in its place.
    """

    def __init__(self, out: Path, layout: Layout, folder: Path, kind: Format, replace: bool) -> None:
        self.out, self.layout, self.folder, self.kind = out, layout, folder, kind
        self.done = 0
        self.finished = False
        self._replace = replace
        self._next, self._cells = 0, 0
        self._job: Any = None
        self._unsynced, self._synced_at = 0, time.monotonic()
        self._file: io.FileIO | None = None
        self._lock: FileLock | None = None

    @classmethod
    def open(
        cls,
        out: str | Path,
        layout: Layout,
        key: Mapping[str, Any],
        *,
        kind: Format | None = None,
        overwrite: bool = False,
    ) -> "Work":
        """Begin an output, or go on with one that was interrupted.

        Args:
            out: the finished file; its folder is made.
            key: JSON that tells this job from any other: scene, weights, settings.
            kind: format; by the name of `out` unless given.
            overwrite: whether a file that is there, and an interrupted run of another job, are replaced.

        Raises:
            ConfigError: the output exists, an interrupted run had another key, or the name says no format.
            DataError: a layout that the format cannot hold.
            DofaError: no room for the numbers, or another process writes the same output.
        """
        out = Path(out)
        kind = kind or format_of(out)
        try:
            layout.check(kind)
        except DataError as error:
            raise DataError(f"{out}: {error}") from None
        folder = _work_folder(out)
        work = cls(out, layout, folder, kind, overwrite)
        work._job = json.loads(
            json.dumps(redact_values({"format_version": 1, "key": key, "layout": layout.to_json()}), allow_nan=False)
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DofaError(f"{out}: cannot make {folder}: {error.strerror}") from None
        try:
            work._begin()
        except BaseException:
            work.close()
            raise
        return work

    def _begin(self) -> None:
        self._lock = lock_folder(self.folder, self.out)
        previous, journal = self.folder / "previous", self.folder / "journal.json"
        if previous.exists() and not self.out.exists():  # killed between the two renames of `_place`
            os.replace(previous, self.out)
        self._refuse_existing(needless=not journal.exists())
        entry = self._read_journal(journal)
        if entry["job"] == self._job:
            self.done, self._cells = entry["done"], entry["cells"]
        elif not entry["done"] or self._replace:
            journal.unlink(missing_ok=True)
            remove(self.folder / "values.bin")
        else:
            raise ConfigError(
                f"{self.folder} holds {entry['done']} blocks of an interrupted run with another "
                f"{_differences(entry['job'], self._job)}: run it again as it was, or give --overwrite to begin anew"
            )
        self._next = self.done
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._file = io.FileIO(os.open(self.folder / "values.bin", flags, 0o666), "r+")
        size = self.layout.height * self.layout.width * self.layout.cell_bytes
        try:
            allocate(self._file.fileno(), size)
            self._write_journal()
        except OSError as error:
            self._discard_if(self.done == 0)
            free = free_bytes(self.out.parent)
            raise DofaError(
                f"{self.out}: {format_bytes(size)} are needed for its numbers and {format_bytes(free)} are free in "
                f"{self.out.parent} ({error.strerror}): make room or name a file elsewhere"
            ) from None

    def _read_journal(self, journal: Path) -> dict[str, Any]:
        """What an interrupted run did; nothing where there was none, or where its journal is damaged and replaced."""
        nothing: dict[str, Any] = {"job": None, "done": 0, "cells": 0}
        try:
            entry = read_json(journal)
            check_keys(entry, {**nothing, "sha256": None}, str(journal), nothing, DataError)
            if "sha256" in entry and entry != self._entry(*(entry[key] for key in nothing)):
                raise DataError(f"{journal} is damaged: it is not what was written")
            total = self.layout.height * self.layout.width
            whole_number(entry["cells"], f"{journal}: cells", 0, total, DataError)
            whole_number(entry["done"], f"{journal}: done", 0, total, DataError)
            if not isinstance(entry["job"], dict) and entry["done"]:
                raise DataError(f"{journal}: job is no mapping")
        except FileNotFoundError:
            return nothing
        except DataError as error:
            if self._replace:
                return nothing
            raise DataError(f"{error}: the interrupted run cannot go on; begin anew with --overwrite") from None
        return dict(entry)

    def _refuse_existing(self, needless: bool) -> None:
        """Leave alone what is there unless it may be replaced; `needless`: no interrupted run lies in the folder."""
        if self.out.is_dir() and not (self.out / "zarr.json").exists():
            self._discard_if(needless)
            raise ConfigError(f"{self.out} is a folder and no Zarr group, it is not replaced: give another name")
        if self.out.exists() and not self._replace:
            placed = (self.folder / "placing").exists() and not self._target.exists()
            if placed:  # killed when all was done but this
                self._place_side_files()
            self._discard_if(needless or placed)
            raise ConfigError(f"{self.out} exists: give --overwrite to replace it, or another name")

    def write(self, block: int, row: int, col: int, stored: NDArray[Any]) -> None:
        """One finished block, in the plan's order; on the disk before `done` counts it.

        Args:
            block: its index: the number of blocks written before.
            stored: (K, h, w) in the layout's type.

        Raises:
            ValueError: a block out of order, outside the output or of another type.
            DofaError: the disk refuses it.
        """
        layout = self.layout
        channels, height, width = stored.shape
        if block != self._next:
            raise ValueError(f"block {block} is written where {self._next} is expected")
        if stored.dtype != np.dtype(layout.dtype) or channels != layout.channels:
            raise ValueError(f"{channels} channels of {stored.dtype}, not {layout.channels} of {layout.dtype}")
        if not (0 <= row <= layout.height - height and 0 <= col <= layout.width - width):
            raise ValueError(f"block at {row}, {col} of {height} × {width} lies outside the output")
        cells = np.ascontiguousarray(stored.transpose(1, 2, 0), layout.numpy_dtype)
        try:
            for first in (row,) if width == layout.width else range(row, row + height):
                part = cells if width == layout.width else cells[first - row]
                self._put(part, (first * layout.width + col) * layout.cell_bytes)
            self._next += 1
            self._cells += height * width
            self._unsynced += cells.nbytes
            if self._unsynced >= SYNC_BYTES or time.monotonic() - self._synced_at >= SYNC_S:
                self.sync()
        except OSError as error:
            self._next = self.done  # whether the blocks since then are on the disk, nobody knows
            raise self._disk(error, "its numbers") from error

    def _put(self, cells: NDArray[Any], at: int) -> None:
        data = cells.data.cast("B")
        self._open_file.seek(at)
        while data:
            data = data[self._open_file.write(data) :]

    @property
    def _open_file(self) -> io.FileIO:
        if self._file is None:
            raise ValueError(f"{self.out}: the work is closed")
        return self._file

    def sync(self) -> None:
        """Bring the blocks to the disk, then say so in the journal."""
        if self._next != self.done:
            os.fsync(self._open_file.fileno())
            self.done = self._next
            self._write_journal()
        self._unsynced, self._synced_at = 0, time.monotonic()

    def _write_journal(self) -> None:
        entry = self._entry(self._job, self.done, self._cells)
        write_atomically(self.folder / "journal.json", json.dumps(entry).encode())

    @staticmethod
    def _entry(job: Any, done: Any, cells: Any) -> dict[str, Any]:
        """A journal's entry with its digest: a changed count would leave out blocks that were never computed."""
        digest = hashlib.sha256(json.dumps([job, done, cells], sort_keys=True).encode()).hexdigest()
        return {"job": job, "done": done, "cells": cells, "sha256": digest}

    def finish(self, kind: Format | None = None) -> Path:
        """Make the finished file of the numbers and put it in its place; what was there stays until then.

        Args:
            kind: another format than the one it was opened with.

        Raises:
            ValueError: blocks are missing.
            DofaError: the disk is full; the numbers are kept and the same job finishes later.
        """
        kind = kind or self.kind
        self.layout.check(kind)
        total = self.layout.height * self.layout.width
        if self._cells != total:
            raise ValueError(f"{self._cells} of {total} cells are written")
        target = self._target
        try:
            self.sync()
            remove(self.folder / "placing")
            remove(target.parent)
            target.parent.mkdir()
            _writer(kind)(self.layout, Values(self.layout, self._open_file), target)
            with ThreadPoolExecutor(8) as pool:  # a Zarr has many files, and the disk takes them together
                list(pool.map(flush, [target.parent, *target.parent.rglob("*")]))
            self._place()
        except (OSError, RasterioError, CPLE_BaseError) as error:
            self._next = self.done
            remove(target.parent)
            raise self._disk(error, "the finished file") from error
        self.discard()
        self.finished = True
        return self.out

    @property
    def _target(self) -> Path:
        return self.folder / "finished" / self.out.name

    def _place(self) -> None:
        """Put the finished file where the old one was. `placing` tells a run that was killed here from others."""
        write_atomically(self.folder / "placing", b"")
        if self._target.is_dir() or self.out.is_dir():  # no rename replaces a folder that holds anything
            previous = self.folder / "previous"
            remove(previous)
            if self.out.exists():
                os.replace(self.out, previous)
        os.replace(self._target, self.out)
        self._place_side_files()
        flush(self.out.parent)

    def _place_side_files(self) -> None:
        """GDAL's side files: those of an older file would tell wrong things of this one."""
        for suffix in SIDE_FILES:
            beside, new = (p.with_name(p.name + suffix) for p in (self.out, self._target))
            if new.exists():
                os.replace(new, beside)
            elif not self.out.is_dir():
                beside.unlink(missing_ok=True)

    def _disk(self, error: Exception, what: str) -> DofaError:
        free = free_bytes(self.out.parent)
        return DofaError(
            f"{self.out}: {what} cannot be written ({os_error_reason(error)}; {format_bytes(free)} are free in "
            f"{self.out.parent}): make room and run the same command again, it goes on from here"
        )

    def discard(self) -> None:
        """Remove the work file with all blocks."""
        if sys.platform == "win32":
            self.close()
        remove(self.folder)  # before the lock is let go: what another process begins there stays
        self.close()

    def _discard_if(self, needless: bool) -> None:
        if needless:
            self.discard()

    def close(self) -> None:
        """Let go of the files; blocks that were not brought to the disk by then are written again by the next run."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "Work":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._file is not None:
                self.sync()
        except OSError as failed:
            if error is None:
                raise self._disk(failed, "its numbers") from failed
        finally:
            self._discard_if(error is not None and not self.done)
            self.close()


def _writer(kind: Format) -> Callable[[Layout, Values, Path], None]:
    if kind == "cog":
        from dofa.outputs.cog import write_cog

        return write_cog
    if kind == "zarr":
        from dofa.outputs.zarr_store import write_zarr

        return write_zarr
    from dofa.outputs.geoparquet import write_geoparquet

    return write_geoparquet


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Which settings differ, as words for an error."""
    names = []
    for part in ("key", "layout"):
        a, b = (said if isinstance(said := job.get(part), dict) else {} for job in (old, new))
        names += [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
    return ", ".join(dict.fromkeys(map(shorten, names))) or "format"
