"""Files and folders that are there whole or not at all, and written by one process at a time."""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from dofa.errors import DofaError
from dofa.locks import FileLock

LOCK = "lock"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def write_atomically(file: Path, data: bytes) -> None:
    """All of it or nothing: written beside, flushed to the disk, then renamed.

    Args:
        file: to write; its folder is made.
        data: all of it.

    Raises:
        OSError: the disk refuses it; the file is named.
    """
    beside = file.with_name(f".{uuid4().hex}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("xb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        with contextlib.suppress(NotADirectoryError):
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within the block, what the disk refuses names a file: `write` alone raises an OSError that names none.

    Args:
        path: that is written; a name that the error has already stays.

    Raises:
        OSError: the disk refuses it. An error of safetensors, which has a kind of its own for it, becomes one too.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, DofaError) or error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def json_digest(value: Any) -> str:
    """SHA-256 of JSON values, in hexadecimal: whatever the order of keys, and the same after writing and reading them.

    Args:
        value: mappings, sequences, texts, numbers, truth values and None.
    """
    return hashlib.sha256(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()


def allocate(descriptor: int, size: int) -> None:
    """Give a file its whole size and all of its place on the disk; what it holds stays.

    Args:
        descriptor: of the file, open to write.
        size: in bytes.

    Raises:
        OSError: there is no such place.
    """
    if hasattr(os, "posix_fallocate"):
        # Looked at first: where there is too little, the call takes all of it before it fails, and whatever else writes
        # to the disk fails with it.
        disk, taken = os.fstatvfs(descriptor), 512 * os.fstat(descriptor).st_blocks
        if size - taken > disk.f_bavail * disk.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(descriptor, 0, size)
        return
    at = os.lseek(descriptor, 0, os.SEEK_END)
    while at < size:  # macOS, Windows: only what is written takes place
        at += os.write(descriptor, bytes(min(1 << 23, size - at)))


def lock_folder(folder: Path, out: Path) -> FileLock:
    """Make the folder in which an output is made, and keep every other process out of it until the lock is released.

    It is let go when the process ends, however it ends.

    Args:
        folder: to make, where it is not there.
        out: what is made in it, for the message.

    Returns:
        The lock, held.

    Raises:
        DofaError: another process holds the folder.
        OSError: it cannot be made.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        with contextlib.suppress(FileNotFoundError):  # the one before has just removed it
            if not lock.acquire():
                who = lock.holder or "wait for it or end it"
                raise DofaError(f"{out} is being written by another process: {who}")
            if lock.in_place:
                return lock
            lock.release()  # of a folder that was removed in the meantime


def place_folder(new: Path, out: Path, previous: Path) -> None:
    """Put a finished folder where it belongs; what is there stays until then, and is removed.

    On Linux the two are exchanged in one step. Elsewhere `previous` holds what was there for a moment, and
    `restore_folder` brings it back after a kill.

    Args:
        new: the finished folder.
        out: where it belongs.
        previous: a free name on the same disk.

    Raises:
        OSError: the disk refuses it.
    """
    if not out.exists():
        os.replace(new, out)
    elif exchange(new, out):
        shutil.rmtree(new, ignore_errors=True)
    else:
        os.replace(out, previous)
        os.replace(new, out)
        shutil.rmtree(previous, ignore_errors=True)


def restore_folder(out: Path, previous: Path) -> None:
    """Bring back what a kill within `place_folder` left aside.

    Args:
        out: where it belongs.
        previous: where it may lie.
    """
    if previous.exists() and not out.exists():
        os.replace(previous, out)


def exchange(one: Path, two: Path) -> bool:
    """Exchange two files or folders of one disk in one step; False where the system cannot.

    Args:
        one: is there.
        two: is there too.
    """
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # absent from musl before 1.2.5
    if rename is None:
        return False
    names = (os.fsencode(os.path.abspath(path)) for path in (one, two))
    return bool(rename(_AT_FDCWD, next(names), _AT_FDCWD, next(names), _RENAME_EXCHANGE) == 0)
