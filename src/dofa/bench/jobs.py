"""Cells on a shared folder: who works on which, and what came of it. No server; files that are there or not.

`NAME.json` is a result, written whole; `NAME.npz`, where there is one, was written before and has judged images.
`NAME.claim.0` says that a process works on it; it is created with O_EXCL, so one process wins, and touched while the
process lives. A claim that nobody touches any more is never removed by another:
whoever wants to take over creates the next generation, `NAME.claim.1`, and again one wins. The newest claim counts.
"""

import hashlib
import json
import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from dofa.addresses import redact_values
from dofa.documents import as_mapping, read_json
from dofa.errors import DataError
from dofa.io import write_atomically
from dofa.settings import check_version

CELLS = "cells"  # the folder's name in that of a bench
HEARTBEAT = 15.0  # seconds between two signs of life
STALE = 180.0  # seconds without one after which a claim is given up; network file systems may tell a minute late
FORMAT_VERSION = 1
STATUS = ("done", "failed", "missing")
_PROCESS = uuid4().hex  # tells this process from an earlier one of the same number


def panels_file(folder: Path, name: str) -> Path:
    """Where the pictures of a cell lie."""
    return folder / f"{name}.npz"


class Claim:
    """A cell that is this process's; a thread keeps the sign of life while the block runs."""

    def __init__(self, file: Path, older: list[Path]) -> None:
        self._file, self._older = file, older
        self._over = threading.Event()
        self._beat = threading.Thread(target=self._live, daemon=True)

    def _live(self) -> None:
        while not self._over.wait(HEARTBEAT):
            try:
                os.utime(self._file)
            except FileNotFoundError:
                return  # the folder was cleaned away: the result is still welcome

    def __enter__(self) -> "Claim":
        self._beat.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """The result lies there by now, or the cell is free again."""
        self._over.set()
        self._beat.join()
        # Own claim last: while it stands nobody takes an older one for the newest.
        for file in (*self._older, self._file):
            file.unlink(missing_ok=True)


@dataclass(frozen=True)
class Holder:
    """Who holds a claim."""

    host: str
    pid: int
    alive: bool


class JobStore:
    """The results and claims of a bench's folder.

    Args:
        folder: shared by all processes; made where absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def claim(self, name: str) -> Claim | None:
        """The right to work on a cell; None where a living process has it."""
        claims = self._claims(name)
        if claims and self._holder(claims[-1]).alive:
            return None
        generation = _generation(claims[-1]) + 1 if claims else 0
        file = self.folder / f"{name}.claim.{generation}"
        try:
            handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return None
        with os.fdopen(handle, "w") as out:
            json.dump({"host": _host(), "pid": os.getpid(), "process": _PROCESS, "since": _now()}, out)
        return Claim(file, claims)

    def holder(self, name: str) -> Holder | None:
        """Who works on a cell, None where nobody does."""
        claims = self._claims(name)
        found = self._holder(claims[-1]) if claims else None
        return found if found is not None and found.alive else None

    def read(self, name: str) -> dict[str, Any] | None:
        """What came of a cell, None where nothing has yet.

        Raises:
            DataError: the file is no record, or of a newer format.
        """
        file = self.folder / f"{name}.json"
        try:
            record = read_json(file)
        except FileNotFoundError:
            return None
        except DataError as error:
            raise DataError(f"{error}: delete it, and it is computed again") from None
        if not isinstance(record, dict) or record.get("name") != name:
            raise DataError(f"{file} is no record of the cell of that name: delete it, and it is computed again")
        check_version(record.get("format_version", 1), FORMAT_VERSION, str(file))
        digest = record.pop("sha256", None)  # of records since there is one
        if (digest is not None and digest != _digest(record)) or record.get("status") not in [*STATUS]:
            raise DataError(f"{file} is damaged: delete it, and the cell is computed again")
        return dict(record)

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Keep what came of a cell: all of it, or nothing.

        Args:
            record: what a table needs of it, plain JSON.
        """
        complete = {"format_version": FORMAT_VERSION, "name": name, **record, "host": _host(), "finished": _now()}
        complete["sha256"] = _digest(complete)
        write_atomically(self.folder / f"{name}.json", (json.dumps(redact_values(complete)) + "\n").encode())

    def _claims(self, name: str) -> list[Path]:
        return sorted(self.folder.glob(f"{name}.claim.*"), key=_generation)

    def _holder(self, file: Path) -> Holder:
        try:
            silent = self._clock() - file.stat().st_mtime
            told = as_mapping(read_json(file), str(file), DataError)
        except (FileNotFoundError, DataError):
            silent, told = 0.0, {}  # just released, or just created and not yet filled
        host, pid = str(told.get("host", "")), told.get("pid", 0)
        pid = pid if isinstance(pid, int) and not isinstance(pid, bool) and 0 <= pid < 2**31 else 0
        reused = pid == os.getpid() and told.get("process") != _PROCESS
        gone = host == _host() and pid > 0 and (reused or not _runs(pid))
        return Holder(host.partition(" ")[0], pid, silent < STALE and not gone)

    def _clock(self) -> float:
        """The time of the machine that holds the folder: clocks of several machines differ."""
        probe = self.folder / f".{uuid4().hex}.clock"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _generation(claim: Path) -> int:
    match = re.fullmatch(r".*\.claim\.(\d+)", claim.name)
    return int(match[1]) if match else -1


def _host() -> str:
    """The machine and, where there are any, its space of process numbers: containers may share a name."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()} {space}".strip()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
