"""The journal of a pack: how far it came, written so that it is true at any moment it may be killed."""

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dofa.corpus.items import Item, Split
from dofa.corpus.loading import Loaded
from dofa.documents import parse_json
from dofa.errors import DataError
from dofa.io import name_os_errors
from dofa.pixels import RunningStats


@dataclass
class Line:
    """What one shard holds and which images were refused on the way."""

    items: int = 0
    source: list[str] = field(default_factory=list)
    place: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    partly_valid: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)

    def add(self, item: Item, split: Split, loaded: Loaded) -> None:
        """One more image.

        Args:
            split: it goes to.
        """
        self.source.append(item.source)
        self.place.append(item.place)
        self.split.append(split)
        self.labels.append(loaded.label)
        self.partly_valid += any(loaded.mask)


class Journal:
    """One line a shard, appended and synced after the shard is on disk; a torn last line counts for nothing.

    A line is its checksum and JSON.

    Args:
        path: of the file; made where it is not there.

    Raises:
        DataError: it was damaged.
    """

    def __init__(self, path: Path, bands: Sequence[str]) -> None:
        self.path = path
        self.total = Line()
        self.stats = RunningStats(bands)
        self.digest = ""
        whole = 0
        for text in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            if not text.endswith(b"\n"):
                break
            whole += len(text)
            checksum, _, record = text.partition(b" ")
            if checksum != _checksum(record):
                raise DataError(f"{path} is damaged: begin the pack anew with --no-resume")
            try:
                entry = parse_json(record, str(path))
                self._add(Line(**entry["line"]))
                self.digest = entry["digest"]
                self.stats = RunningStats.from_dict(entry["stats"])
            except (LookupError, TypeError, ValueError) as error:  # DataError is a ValueError
                raise DataError(f"{path} is damaged ({error}): begin the pack anew with --no-resume") from None
        self._file = path.open("ab")
        self._file.truncate(whole)

    @property
    def items(self) -> int:
        """Items dealt with, packed or refused."""
        return self.total.items

    @property
    def images(self) -> int:
        """Images packed."""
        return len(self.total.source)

    def append(self, line: Line, shard: Sequence[Loaded]) -> None:
        """Say that a shard is on disk.

        Args:
            shard: what they hold, in order.
        """
        for piece in shard:  # in order, so that the sums do not depend on the workers
            if piece.stats is not None:
                self.stats.merge(piece.stats)
            self.digest = hashlib.sha256(self.digest.encode() + piece.digest).hexdigest()
        entry = {"line": asdict(line), "digest": self.digest, "stats": self.stats.to_dict()}
        record = json.dumps(entry).encode() + b"\n"
        with name_os_errors(self.path):
            self._file.write(_checksum(record) + b" " + record)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._add(line)

    def _add(self, line: Line) -> None:
        self.total.items += line.items
        self.total.partly_valid += line.partly_valid
        for name in ("source", "place", "split", "labels", "refused"):
            getattr(self.total, name).extend(getattr(line, name))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # every line that counts is on the disk
            self._file.close()


def _checksum(record: bytes) -> bytes:
    return f"{zlib.crc32(record):08x}".encode()
