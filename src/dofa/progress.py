"""How a long job says how far it is."""

import time

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn


class Progress:
    """A bar on a terminal, a line every ten seconds elsewhere; nothing for less, or where it is not wanted.

    Args:
        total: images, tiles or whatever is counted.
        wanted: whether anything is said.
    """

    def __init__(self, title: str, total: int, done: int, wanted: bool, things: str = "images") -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        self.bar = rich.progress.Progress(*columns, console=console) if wanted and console.is_terminal else None
        self.task = self.bar.add_task(title, total=total, completed=done, speed="") if self.bar else None
        self.lines = console if wanted and not console.is_terminal else None
        self.title, self.total, self.done, self.things = title, total, done, things
        self.fresh = self.bytes = 0
        self.began = self.said = time.monotonic()

    def advance(self, count: int = 1, nbytes: int = 0) -> None:
        """So many more, of so many raw bytes together.

        Args:
            count: things done.
        """
        self.done, self.fresh, self.bytes = self.done + count, self.fresh + count, self.bytes + nbytes
        now = time.monotonic()
        seconds = max(now - self.began, 1e-6)
        speed = f"{self.fresh / seconds:.0f} {self.things}/s, {self.bytes / seconds / 1e6:.0f} MB/s"
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=self.done, speed=speed)
        elif self.lines and (now - self.said > 10 or (self.done == self.total and now - self.began > 10)):
            left = (self.total - self.done) * seconds / self.fresh
            self.lines.print(f"{self.title}: {self.done}/{self.total}, {speed}, {left:.0f} s left", highlight=False)
            self.said = now

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.stop()
