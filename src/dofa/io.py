"""Files and folders that are there whole or not at all, and written by one process at a time."""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from dofa.errors import DofaError

if sys.platform != "win32":
    import fcntl

# What flock says where the file system does not offer it.
WITHOUT = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
LARGEST = 4096  # bytes of a holder's file
TORN_S = 10.0  # after which a holder's file that says nothing was left by a process that was killed


class FileLock:
    """A lock that a process holds until it releases it or ends, however it ends.

    Where the file system does not lock, `<path>.pid` names the holder. One on this machine that is gone is noticed; of
    another machine that cannot be told, so that the message names the file.

    Args:
        path: of the lock; its folder is there.

    Attributes:
        path: as given.
        holder: of a lock that was not free, as words for the message; empty where the system does not tell.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.holder = path, ""
        self._descriptor = -1
        self._named = path.with_name(f"{path.name}.pid")
        self._word = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
        self._mine = False

    def acquire(self) -> bool:
        """Take the lock; whether it was free.

        Raises:
            OSError: the file cannot be made.
        """
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            taken = self._flock()
        except OSError as error:
            if error.errno not in WITHOUT:
                self.release()
                raise
            taken = self._name()
        if not taken:
            self.release()
        return taken

    @property
    def in_place(self) -> bool:
        """Whether the file that is held is the one that has its name: a folder may be removed, and made anew."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go of it."""
        if self._mine:
            with contextlib.suppress(OSError):  # gone with its folder, which another process may have made anew
                if self._named.read_text(encoding="utf-8") == self._word:
                    self._named.unlink()
            self._mine = False
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _flock(self) -> bool:
        if sys.platform == "win32":
            raise OSError(errno.ENOSYS, "no flock")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _name(self) -> bool:
        """Write this process's number to a file that only one process can make."""
        for _ in range(2):
            with contextlib.suppress(FileExistsError):
                with self._named.open("x", encoding="utf-8") as file:
                    file.write(self._word)
                self._mine = True
                return True
            if self._named.exists() and not (self._is_stale() and self._clear()):
                return False
        return False

    def _clear(self) -> bool:
        """Remove the file of a process that is gone; whether this process did. One at a time looks and removes."""
        turn = self._named.with_name(f"{self._named.name}.turn")
        try:
            turn.open("x").close()
        except FileExistsError:  # another process's turn, or that of one killed within it
            with contextlib.suppress(OSError):
                if time.time() - turn.stat().st_mtime > TORN_S:
                    turn.unlink()
            return False
        try:
            stale = self._is_stale()  # another may have taken it over since
            if stale:
                self._named.unlink()
            return stale
        finally:
            turn.unlink(missing_ok=True)

    def _is_stale(self) -> bool:
        """Whether the file is there, and the process that made it gone."""
        try:
            with self._named.open("rb") as file:
                told = json.loads(file.read(LARGEST))
            host, pid = str(told["host"]), int(told["pid"])
        except FileNotFoundError:
            return False
        except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
            with contextlib.suppress(OSError):
                return time.time() - self._named.stat().st_mtime > TORN_S
            return False
        self.holder = f"process {pid} on {host}; if it is gone, delete {self._named}"
        if host != socket.gethostname():
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):  # another user's, or no number of a process
            return False
        return False


# -- Files and folders that are there whole or not at all, and written by one process at a time.

LOCK = "lock"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def write_atomically(file: Path, data: bytes) -> None:
    """All of it or nothing: written beside, flushed to the disk, then renamed.

    Args:
        file: to write; its folder is made.

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
def name_os_errors(path: Path) -> Iterator[None]:
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
    """Bring back what a kill within `place_folder` left aside."""
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


# -- What outputs ask of the disk: what is free, and certainty afterwards.


def remove(path: Path) -> None:
    """A file or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Bring a file's or a folder's content to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """What may still be written."""
    return shutil.disk_usage(folder).free


def format_bytes(count: float) -> str:
    """A number of bytes, to be read."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def os_error_reason(error: BaseException) -> str:
    """Why a library could not read or write, on one line; rasterio hides GDAL's words behind a general sentence."""
    said = error.strerror if isinstance(error, OSError) else None
    return " ".join((said or str(error.__cause__ or error)).split())
