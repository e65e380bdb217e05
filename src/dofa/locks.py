"""One lock for whatever one process alone may write: the system's, or a file with the process's number where the file
system has none (some Lustre and NFS mounts, Windows).

Not filelock: its fallback answers ENOSYS alone, where such mounts say ENOLCK or EOPNOTSUPP, and its soft lock of a
killed process stayed taken in all versions tried before 4.2.6 (3.20 to 4.2.0), which torch and huggingface-hub allow.
"""

import contextlib
import errno
import json
import os
import socket
import sys
import time
from pathlib import Path

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
