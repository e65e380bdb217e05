"""Runs a model over scenes in bounded memory: tiles read ahead by threads, batches, joined blocks in a fixed order.

What is joined does not depend on threads, nor on where an interrupted run went on: batches are made of the same tiles
each time, and a block that is finished is the same to the last bit.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dofa.errors import ConfigError, DataError, DofaError
from dofa.inference.inputs import Inputs
from dofa.inference.tiles import Plan, Tile
from dofa.inference.workers import TileModel, WorkerThreads, in_bf16, run_model
from dofa.model.devices import choose_device
from dofa.options import Precision
from dofa.pixels import Float
from dofa.scene.grid import Window

BUDGET = 64 * 2**20  # bytes for decoded pixels and unfinished rows together; wider scenes are cut into swaths
AHEAD = 1  # batches that are read while others run: those of a hyperspectral sensor are over half a gigabyte each
# Pixels of a swath at least: what lies at its borders is decoded for both. A scene of a hyperspectral sensor is one.
NARROWEST = 1536


@dataclass(frozen=True)
class Job:
    """One scene to run.

    Attributes:
        inputs: the scene, with what normalises it.
        plan: how it is cut.
        model: what runs on its tiles; jobs that share one object share batches.
        skip: blocks that are finished already.
    """

    inputs: Inputs
    plan: Plan
    model: TileModel
    skip: int = 0


@dataclass(frozen=True)
class Block:
    """A finished part of the output.

    Attributes:
        job: its number among the jobs.
        index: its number among the plan's blocks.
        window: the cells it covers.
        values: (K, h, w) float32; 0 where not valid.
        valid: (h, w), where at least half the pixels inside the scene are measurements.
    """

    job: int
    index: int
    window: Window
    values: Float
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class Item:
    """A tile in its place.

    Attributes:
        job: its number among the jobs.
        block: that needs it first.
        tile: window and weights.
        wanted: whether its answer is; it only fills its batch where all blocks it reaches are finished.
        last: whether it ends its block.
    """

    job: int
    block: int
    tile: Tile
    wanted: bool
    last: bool


class SceneError(DataError):
    """A scene that cannot be run; the others can.

    Args:
        job: number of the scene among the jobs.
    """

    def __init__(self, text: str, job: int) -> None:
        super().__init__(text)
        self.job = job

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.job)


class _Batch(NamedTuple):
    items: list[Item]
    images: Float
    seen: "list[Future[bool]]"
    answers: "Future[list[Float | None]]"


def run(
    jobs: Sequence[Job],
    *,
    batch: int = 16,
    threads: int = 2,
    precision: Precision = "auto",
    device: str | None = None,
    progress: Callable[[int, int], None] = lambda tiles, read: None,
) -> Generator[Block, None, None]:
    """Every block of every job that is not finished yet, in order.

    Args:
        jobs: scenes with their plans.
        batch: tiles the model takes at once.
        threads: that read and normalise ahead of the model.
        precision: autocast to bf16, or not; `auto` does on processors and devices that multiply it fast.
        progress: called with tiles done and bytes of pixels read for them.

    Yields:
        Blocks: job by job, within each in the order of `plan.blocks`, from `skip` on.

    Raises:
        ConfigError: a device that is not there, or a batch below one.
        SceneError: pixels that cannot be decoded, or answers that are not finite; the scene is named.
    """
    target = choose_device(device)
    low = in_bf16(precision, target)
    joined: deque[Future[list[Block]]] = deque()
    ahead: deque[_Batch] = deque()
    todo = batches(jobs, batch)
    for job in jobs:
        # Tiles overlap, so the chunks under a row of them are wanted again for the next: decoded once all the same.
        widest = max((job.plan.pixels_of(block).width for block in job.plan.blocks), default=0)
        job.inputs.chunks.hold(job.plan.tile, widest + job.plan.tile)
    with (
        ThreadPoolExecutor(threads, "dofa-read") as readers,
        ThreadPoolExecutor(1, "dofa-join") as joiner,
        WorkerThreads(target) as streams,
    ):
        joint, room = TileAccumulator(jobs), BufferPool()
        try:
            while True:
                while len(ahead) < streams.count + AHEAD and (items := next(todo, None)) is not None:
                    images = room.take(shape_of(jobs, items))
                    tiles = zip(items, images, strict=True)
                    seen = [readers.submit(read, jobs[i.job].inputs, i.tile.window, image, i.job) for i, image in tiles]
                    model = jobs[items[0].job].model
                    answers = streams.submit(_answer_read, model, images, seen, target, low)
                    ahead.append(_Batch(items, images, seen, answers))
                if not ahead:
                    break
                group = ahead.popleft()
                joined.append(joiner.submit(joint.add, group.items, group.answers.result()))
                room.give_back(group.images)
                progress(len(group.items), nbytes(jobs, group.items))
                while joined and (joined[0].done() or len(joined) > 2):
                    yield from joined.popleft().result()
            while joined:
                yield from joined.popleft().result()
        finally:
            for waiting in ahead:
                waiting.answers.cancel()
                for one in waiting.seen:
                    one.cancel()


def _answer_read(
    model: TileModel, images: Float, seen: "Sequence[Future[bool]]", device: torch.device, low: bool
) -> list[Float | None]:
    """`run_model` of a batch once it is read."""
    return run_model(model, images, [one.result() for one in seen], device, low)


def swath_of(inputs: Inputs, tile: int, model: TileModel, stride: int) -> int:
    """Pixels across a swath, so that decoded rows and unfinished cells stay within BUDGET, if not too narrow by it.

    Args:
        tile: side in pixels.
        stride: pixels between shifted passes.
    """
    rows = tile + 2 * inputs.chunks.side[0]
    cells = (tile + model.patch) / stride**2
    column = inputs.scene.pixel_bytes * rows + 8 * model.channels * cells
    narrowest = -(-NARROWEST // model.patch) * model.patch  # 1536 is no multiple of 14
    return max(2 * tile, narrowest, int(BUDGET / column) // model.patch * model.patch)


class BufferPool:
    """Memory for batches that is used again: fresh pages from the system cost more than the numbers put there."""

    def __init__(self) -> None:
        self._free: list[Float] = []

    def take(self, shape: tuple[int, ...]) -> Float:
        """An array of this shape, whatever it holds."""
        count = math.prod(shape)
        flat = self._free.pop() if self._free else np.empty(count, np.float32)
        if flat.size < count:
            flat = np.empty(count, np.float32)
        return flat[:count].reshape(shape)

    def give_back(self, array: Float) -> None:
        """What was taken and is not looked at any more."""
        self._free.append(array.reshape(-1))


def shape_of(jobs: Sequence[Job], items: Sequence[Item]) -> tuple[int, int, int, int]:
    """(B, C, h, w) of a batch.

    Args:
        items: tiles of one shape for one model.
    """
    window = items[0].tile.window
    return len(items), jobs[items[0].job].inputs.count, window.height, window.width


def read(inputs: Inputs, window: Window, into: Float, job: int) -> bool:
    """Write a normalised tile (C, h, w) to its place in a batch; whether it holds a measurement.

    Args:
        window: pixels of it.
        into: (C, h, w), written in place.
        job: number of the scene, for the error.

    Raises:
        SceneError: pixels that cannot be decoded.
    """
    try:
        return bool(inputs.normalised(window, into)[1].any())
    except DofaError as error:
        raise SceneError(str(error), job) from None


def nbytes(jobs: Sequence[Job], items: Sequence[Item]) -> int:
    """Bytes of pixels that tiles cover in their files."""
    windows = [(i.tile.window, jobs[i.job].inputs.scene.pixel_bytes) for i in items]
    return sum(window.height * window.width * pixel for window, pixel in windows)


def batches(jobs: Sequence[Job], size: int) -> Iterator[list[Item]]:
    """Tiles of one shape for one model, at most `size`; always the same ones, whatever is finished already.

    Raises:
        ConfigError: a size below one.
    """
    if size < 1:
        raise ConfigError(f"batch {size}: at least one tile at a time")
    waiting: list[Item] = []

    def kind(item: Item) -> tuple[int, int, int, int]:
        job, window = jobs[item.job], item.tile.window
        return id(job.model), job.inputs.count, window.height, window.width

    for item in _items(jobs):
        if waiting and (len(waiting) == size or kind(waiting[0]) != kind(item)):
            if any(i.wanted for i in waiting):
                yield waiting
            waiting = []
        waiting.append(item)
    if any(i.wanted for i in waiting):
        yield waiting


def _items(jobs: Sequence[Job]) -> Iterator[Item]:
    for number, job in enumerate(jobs):
        count = len(job.plan.blocks)
        needed = job.plan.begins(job.skip) if job.skip < count else count
        for block in range(count):
            tiles = job.plan.tiles_of(block)
            for i, tile in enumerate(tiles):
                yield Item(number, block, tile, block >= needed, i == len(tiles) - 1)


class TileAccumulator:
    """Adds up the answers of overlapping tiles and hands out blocks as they are finished; used by one thread."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._at = (-1, -1)  # job and swath of the sums below
        self._top = 0
        self._sum = np.zeros((0, 0, 0))
        self._weight = np.zeros((0, 0))

    def add(self, items: Sequence[Item], answers: Sequence[Float | None]) -> list[Block]:
        """Blocks that are finished by these answers.

        Args:
            items: tiles, in the order of `batches`.
            answers: (h, w, K) of each, None where nothing was measured.

        Raises:
            SceneError: answers that are not finite; the scene and the place are named.
        """
        out = []
        for item, values in zip(items, answers, strict=True):
            if not item.wanted:
                continue
            job = self._jobs[item.job]
            window = job.plan.blocks[item.block]
            self._move_to(item, job, window)
            if values is not None:
                if not np.isfinite(values.sum(dtype=np.float64)):
                    w = item.tile.window
                    raise SceneError(
                        f"{job.inputs.scene.name}: the model's answer for rows {w.row}–{w.row + w.height}, columns "
                        f"{w.col}–{w.col + w.width} is not finite: try --precision float32, and look at the statistics",
                        item.job,
                    )
                self._add(job.plan, window, item.tile, values)
            if item.last and item.block >= job.skip:
                out.append(self._finished(item, job, window))
        return out

    def _move_to(self, item: Item, job: Job, window: Window) -> None:
        """Put the sums over a block: anew for another swath, else moved down to its first row."""
        if self._at != (item.job, window.col):
            rows = (job.plan.tile + job.plan.patch) // job.plan.stride + 1
            self._at, self._top = (item.job, window.col), window.row
            self._sum = np.zeros((rows, window.width, job.model.channels))
            self._weight = np.zeros((rows, window.width))
        down = window.row - self._top
        if down:
            for array in (self._sum, self._weight):
                array[:-down] = array[down:]
                array[-down:] = 0
            self._top = window.row

    def _add(self, plan: Plan, window: Window, tile: Tile, values: Float) -> None:
        # Products of float32 numbers and small integers are exact in float64, and so are their sums where tiles agree.
        weight = np.outer(tile.rows, tile.cols).astype(np.float64)
        weighted = values * weight[..., None]
        ratio = plan.cell // plan.stride
        rows, cols = self._weight.shape
        top, left = tile.window.row // plan.stride - self._top, tile.window.col // plan.stride - window.col
        for i in range(ratio):
            for j in range(ratio):
                # Every cell of a pass covers ratio × ratio cells of the output: one of them at a time.
                down, across = (
                    _places(top + i, ratio, len(weight), rows),
                    _places(left + j, ratio, weight.shape[1], cols),
                )
                self._sum[down.into, across.into] += weighted[down.of, across.of]
                self._weight[down.into, across.into] += weight[down.of, across.of]

    def _finished(self, item: Item, job: Job, window: Window) -> Block:
        weight = self._weight[: window.height]
        valid = _valid_cells(job.inputs, job.plan, window) & (weight > 0)
        cells = np.empty((window.height, window.width, job.model.channels), np.float32)
        total = self._sum[: window.height]
        np.divide(total, np.maximum(weight, 1)[..., None], out=cells, casting="same_kind")  # rounded once, no copies
        cells[~valid] = 0
        return Block(item.job, item.block, window, cells.transpose(2, 0, 1), valid)


class _Places(NamedTuple):
    of: slice  # of what is added
    into: slice  # of the sums


def _places(first: int, step: int, count: int, length: int) -> _Places:
    """Where `count` places first, first + step, … lie within 0..length."""
    begin = max(0, -(first // step))
    end = max(begin, min(count, -(-(length - first) // step)))
    start = first + begin * step
    return _Places(slice(begin, end), slice(start, start + (end - begin) * step, step))


def _valid_cells(inputs: Inputs, plan: Plan, window: Window) -> NDArray[np.bool_]:
    """Where at least half of a cell's pixels inside the scene are measurements."""
    pixels, s = plan.pixels_of(window), plan.stride
    valid = inputs.chunks.valid(pixels)
    row, col = np.arange(pixels.height) + pixels.row, np.arange(pixels.width) + pixels.col
    inside = np.outer((row >= 0) & (row < inputs.scene.height), (col >= 0) & (col < inputs.scene.width))

    def count(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.asarray(mask.reshape(window.height, s, window.width, s).sum((1, 3), dtype=np.int64))

    found = count(valid)
    return np.asarray((found > 0) & (found * 2 >= count(inside)))
