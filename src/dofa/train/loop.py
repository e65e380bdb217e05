"""The loop: micro-batches in, updated weights out, one `Step` an update; the same for one process and for many.

An update is a fixed list of micro-batches of one sensor each. They are dealt to the processes, each process
accumulates its share, and every micro-batch counts the same, so the number of processes changes no result but for the
order of sums (tests/train/test_processes.py).
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dofa.errors import DataError

Batch = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """What one update did, alike on every process.

    Attributes:
        update: number of updates done, 1 after the first.
        losses: mean loss of the sensors that took part.
        parts: means of the other numbers the model gave, as `part/sensor`.
        grad_norm: before clipping.
        lr: of this update.
        images: in all its micro-batches.
        seconds: it took, waiting for data included.
        stop: whether any process was told to stop.
    """

    update: int
    losses: dict[str, float]
    parts: dict[str, float]
    grad_norm: float
    lr: float
    images: int
    seconds: float
    stop: bool


def train(
    fabric: Fabric,
    model: _FabricModule,
    optimizer: Any,
    batches: Iterable[Batch],
    *,
    sensors: list[str],
    parts: Sequence[str] = (),
    start: int,
    updates: int,
    accumulation: int,
    rate: Callable[[int], float],
    clip: float | None,
    seed: int,
    describe: Callable[[Batch], str],
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Train, yielding after every update.

    Args:
        model: set up by fabric; `model(batch)` is a mapping with the mean `loss` of a micro-batch and its `parts`.
        optimizer: set up by fabric.
        batches: this process' micro-batches in order, `accumulation` an update, from update `start` on. Each has
            `sensor` (name), `image` (B, C, H, W) and `order`, its number within the update.
        sensors: names of all sensors, alike on every process.
        parts: of the loss, to be told beside it.
        start: updates already done.
        accumulation: micro-batches of one update on this process.
        rate: learning rate of an update, counted from 0.
        clip: largest norm of the gradient.
        describe: sensor and sources of a micro-batch, for the error message.
        stop: asked after every update; the answer is shared among the processes.

    Raises:
        DataError: a loss or gradient is not finite; no weight has changed since the update before.
    """
    batch_of = iter(batches)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for update in range(start, updates):
        began = time.perf_counter()
        lr = rate(update)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        optimizer.zero_grad()
        # Rows: loss sum, micro-batches, images a sensor, sums of the parts; in the last column losses that are not
        # finite, and calls to stop.
        tally = torch.zeros(3 + len(parts), len(sensors) + 1, dtype=torch.float64, device=fabric.device)
        lost = []
        for micro in range(accumulation):
            batch = fabric.to_device(next(batch_of))
            # A draw inside the model (there is none in masked pretraining) must not depend on who computes it.
            torch.manual_seed(hash_seed(seed, update, batch["order"]))
            with fabric.no_backward_sync(model, enabled=micro < accumulation - 1):
                told: Mapping[str, Tensor] = model(batch)
                loss = told["loss"]
                fabric.backward(loss / accumulation)
            column = sensors.index(batch["sensor"])
            tally[0, column] += loss.detach()
            tally[1, column] += 1
            tally[2, column] += len(batch["image"])
            for row, part in enumerate(parts, 3):
                tally[row, column] += told[part].detach()
            if not torch.isfinite(loss):
                lost.append(f"loss is {loss.item()} for {describe(batch)}")
        tally[0, -1] = len(lost)
        tally[1, -1] = float(stop())
        # nan + x is nan everywhere, so every process sees the same verdict.
        if fabric.world_size > 1:
            torch.distributed.all_reduce(tally)
        tally = tally.cpu()
        norm = gradient_norm(parameters, clip)
        if tally[0, -1] > 0 or not math.isfinite(norm):
            raise DataError(
                _verdict(fabric, update, lost, norm, [s for s, n in zip(sensors, tally[1, :-1], strict=True) if n])
            )
        optimizer.step()
        yield Step(
            update=update + 1,
            losses={s: float(tally[0, i] / tally[1, i]) for i, s in enumerate(sensors) if tally[1, i]},
            parts={
                f"{part}/{s}": float(tally[row, i] / tally[1, i])
                for row, part in enumerate(parts, 3)
                for i, s in enumerate(sensors)
                if tally[1, i]
            },
            grad_norm=norm,
            lr=lr,
            images=int(tally[2, :-1].sum()),
            seconds=time.perf_counter() - began,
            stop=bool(tally[1, -1]),
        )


def gradient_norm(parameters: list[nn.Parameter], clip: float | None) -> float:
    """The norm of all gradients together, which are scaled down to `clip` where it is larger.

    Args:
        clip: None for no limit.
    """
    norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def hash_seed(*numbers: int) -> int:
    """One seed from several numbers, well mixed: neighbouring updates have unrelated ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class StopSignal:
    """Whether SIGTERM or SIGINT (Ctrl-C) has come; called, it answers."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self) -> bool:
        """Whether one has come."""
        return self.number is not None


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Within the block the first SIGTERM or Ctrl-C is noted instead of ending the process; a second Ctrl-C ends it."""
    told = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield told  # only the main thread may handle signals
        return

    def note(number: int, frame: object) -> None:
        told.number = told.number or number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _verdict(fabric: Fabric, update: int, lost: list[str], norm: float, taking_part: list[str]) -> str:
    """The error message, alike on every process, for the bad batch may be another's."""
    everyone: list[list[str]] = [lost]
    if fabric.world_size > 1:
        everyone = [[] for _ in range(fabric.world_size)]
        torch.distributed.all_gather_object(everyone, lost)
    reasons = [reason for one in everyone for reason in one]
    reason = "; ".join(reasons[:3]) or f"the gradient's norm is {norm} over {', '.join(taking_part)}"
    return (
        f"update {update + 1} stopped: {reason}. No weight was changed by it and the checkpoints before it are whole: "
        "look at these sources, lower optim.lr or set optim.clip, then resume"
    )
