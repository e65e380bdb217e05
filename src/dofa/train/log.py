"""What a run tells: JSON lines and CSV always, TensorBoard where it is installed, progress on the terminal."""

import csv
import io
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dofa.documents import parse_json, read_bytes
from dofa.errors import CheckpointError, DataError
from dofa.io import name_os_errors, write_atomically
from dofa.train.loop import Step

LARGEST = 2**30  # bytes of log.jsonl; a line has some hundred


def _there(path: str, flags: int) -> int:
    """An opener that makes no file: a log that was removed under a run is not begun again in its middle."""
    return os.open(path, flags & ~os.O_CREAT)


class RunLog:
    """Appends rows of numbers to log.jsonl and log.csv of a run folder, and shows them.

    Args:
        columns: of the CSV; a row may leave some out.
        done: updates of the checkpoint that is continued; later rows are dropped, for they will be made again.
        enabled: False on all processes but one, which then write and show nothing.
    """

    def __init__(self, folder: Path, columns: Sequence[str], done: int, updates: int, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._progress = Progress(
            TextColumn("update"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (enabled and sys.stderr.isatty()),
        )
        self._task = self._progress.add_task("update", total=updates, completed=done)
        self._board: Any = None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._json, self._csv, self._columns = folder / "log.jsonl", folder / "log.csv", list(columns)
        rows = [row for row in read_log(folder) if row["update"] <= done]
        write_atomically(self._json, "".join(json.dumps(row) + "\n" for row in rows).encode())
        table = io.StringIO()
        writer = csv.DictWriter(table, self._columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self._csv, table.getvalue().encode())
        self._board = _tensorboard(folder / "tensorboard", done)

    def __enter__(self) -> "RunLog":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._board is not None:
            self._board.close()

    def advance(self, update: int) -> None:
        """Move the progress bar."""
        self._progress.update(self._task, completed=update)

    def write(self, row: dict[str, Any]) -> None:
        """Keep one row; it has `update`, and numbers under names of the columns."""
        if not self._enabled:
            return
        with name_os_errors(self._json), open(self._json, "a", encoding="utf-8", opener=_there) as file:
            file.write(json.dumps(row) + "\n")
        with name_os_errors(self._csv), open(self._csv, "a", newline="", encoding="utf-8", opener=_there) as file:
            csv.DictWriter(file, self._columns, extrasaction="ignore").writerow(row)
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "update":
                    self._board.add_scalar(name, value, row["update"])
        self.say(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))

    def say(self, text: str) -> None:
        """One line for people: above the bar on a terminal, plain otherwise."""
        if not self._enabled:
            return
        if self._progress.disable:
            print(text, file=sys.stderr, flush=True)
        else:
            self._progress.console.print(text, highlight=False)


@dataclass
class Window:
    """Updates since the last line of the log."""

    since: float = field(default_factory=time.perf_counter)
    images: int = 0
    means: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, step: Step) -> None:
        """Count one update."""
        self.images += step.images
        for name, value in [(f"loss/{s}", v) for s, v in step.losses.items()] + list(step.parts.items()):
            self.means[name].append(value)

    def row(self, last: Step, epoch: float) -> dict[str, float]:
        """Means over the window, and the rate and gradient of its last update.

        Args:
            last: the last update of the window.
            epoch: how many have passed.
        """
        return {
            "epoch": epoch,
            "lr": last.lr,
            "grad_norm": last.grad_norm,
            "images_per_second": self.images / max(time.perf_counter() - self.since, 1e-9),
            **{name: sum(v) / len(v) for name, v in self.means.items()},
        }


def columns(sensors: list[str], parts: Sequence[str] = ()) -> list[str]:
    """Of log.csv.

    Args:
        parts: of the loss, beside their sum.
    """
    kinds = ("loss", *parts, "held_out", "floor", "difference")
    return [
        "update",
        "epoch",
        "lr",
        "grad_norm",
        "images_per_second",
        *(f"{kind}/{sensor}" for kind in kinds for sensor in sensors),
    ]


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Rows of a run's log.jsonl; lines that a killed process or a full disk left unfinished are passed over.

    Raises:
        CheckpointError: the file cannot be read.
    """
    file = folder / "log.jsonl"
    if not file.is_file():
        return []
    rows = []
    for line in read_bytes(file, CheckpointError, LARGEST).splitlines():
        try:
            row = parse_json(line, str(file))
        except DataError:
            continue
        if isinstance(row, dict) and isinstance(row.get("update"), int):
            rows.append(row)
    return rows


def _tensorboard(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return None
    return SummaryWriter(str(folder), purge_step=done + 1)
