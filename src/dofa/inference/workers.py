"""What runs on the tiles of a batch, and how many batches run at a time."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from dofa.options import Precision
from dofa.pixels import Float

Args = ParamSpec("Args")
Answer = TypeVar("Answer")


class TileModel(Protocol):
    """What runs on tiles.

    Attributes:
        channels: K, numbers a cell.
        patch: pixels; tiles are whole patches.
        offset: patch_offset of the encoder.
        cell: pixels a side of a cell of its answer.
    """

    channels: int
    patch: int
    offset: int
    cell: int

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised (B, C, h, w) to (B, K, h / cell, w / cell)."""


class WorkerThreads:
    """Threads that compute batches beside each other: two on a processor, each with half of its threads, elsewhere one.

    The threads that compute one batch wait for each other hundreds of times, so a core that reads tiles for a while
    holds up all of them. Of two batches that do not wait for each other it holds up one (docs/scene-speed.md).

    Args:
        threads: of a processor, all together; as many as PyTorch takes here unless given.
        count: of streams; two on a processor with an even number of threads unless given.

    Attributes:
        count: of batches at a time.
    """

    def __init__(self, device: torch.device, threads: int | None = None, count: int | None = None) -> None:
        total = torch.get_num_threads() if threads is None else threads
        self.count = count or (2 if device.type == "cpu" and total % 2 == 0 else 1)
        self._pool = ThreadPoolExecutor(self.count, "dofa-model", _take_threads, (total // self.count,))
        # PyTorch gives threads that begin later the number that was set last, wherever it was set.
        started = threading.Barrier(self.count + 1)
        for _ in range(self.count):
            self._pool.submit(started.wait)
        started.wait()
        torch.set_num_threads(total)

    def submit(self, compute: Callable[Args, Answer], *args: Args.args, **named: Args.kwargs) -> "Future[Answer]":
        """What a stream computes as soon as one is free, in the order of the calls.

        Args:
            compute: run in a thread that has its share of the processor.
            args, named: its arguments.
        """
        return self._pool.submit(compute, *args, **named)

    def __enter__(self) -> "WorkerThreads":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def _take_threads(count: int) -> None:
    """For this thread alone; its first question would otherwise bring it the number that others set."""
    torch.get_num_threads()
    torch.set_num_threads(count)


@torch.inference_mode()
def run_model(
    model: TileModel, images: Float, seen: Sequence[bool], device: torch.device, low: bool
) -> list[Float | None]:
    """(h, w, K) float32 an image of (B, C, h, w), None for those in which no measurement was seen.

    Args:
        model: on the device.
        images: (B, C, h, w), normalised.
        seen: (B,) whether each holds a measurement.
        device: where the model runs.
        low: under autocast to bf16.
    """
    if not any(seen):
        return [None] * len(seen)
    full = torch.from_numpy(images if all(seen) else images[list(seen)])
    with torch.autocast(device.type, torch.bfloat16, enabled=low):
        found = model(full.to(device))
    answers = found.permute(0, 2, 3, 1).float().cpu()
    if answers.untyped_storage().data_ptr() == full.untyped_storage().data_ptr():
        answers = answers.clone()  # of a model that gives back what it was given, whose memory is used again
    values = iter(answers.numpy())
    return [next(values) if one else None for one in seen]


def in_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether a model runs under autocast to bf16.

    Args:
        precision: as the user said; `auto` asks the device.
        device: where the model runs.
    """
    return precision == "bf16" or (precision == "auto" and fast_bf16(device))


def fast_bf16(device: torch.device) -> bool:
    """Whether autocast to bf16 pays: on accelerators, and on processors that multiply it in hardware."""
    if device.type != "cpu":
        return True
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
