"""Which images stand in which micro-batch of which update: pure planning, a function of the seed and the update.

Nothing here keeps state that a checkpoint would need: `Mixture.plan(update)` costs the same at update 10 and at update
10 million, so a run resumes at the exact image with the number of the update alone.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError, nearest

HORIZON = 2**40  # updates that the deal is laid out for; more than any run has


@dataclass(frozen=True)
class MicroBatch:
    """Images of one sensor that go through the model together.

    Attributes:
        sensor: their sensor.
        indices: numbers of the images within the sensor's training samples, 0 to count − 1.
        positions: of the images within the update's global batch, for random draws.
    """

    sensor: str
    indices: tuple[int, ...]
    positions: tuple[int, ...]


class Mixture:
    """Single-sensor micro-batches, dealt out by weight (docs/architecture.md, "Mixture and epoch").

    The micro-batches of an update are dealt by largest remainder: a sensor with a share of q micro-batches an update
    gets ⌊q⌋ or ⌈q⌉ in every one of them, and what rounding owes it in one update it gets in a later one. Each sensor
    walks its own permutations of its samples, on across updates and epochs.

    Args:
        counts: training samples of each sensor.
        batch: images of a micro-batch of each sensor.
        micro_batches_per_update: ranks × accumulation steps.
        weights: share of the micro-batches of each sensor, in any unit; None gives every sample the same chance.

    Attributes:
        sensors: those with a weight above 0, in the order of `counts`.
        shares: micro-batches an update of each of them, exact, together `micro_batches_per_update`.

    Raises:
        ConfigError: a sensor without samples, batch or weight, or a weight of a sensor that is not there.
    """

    def __init__(
        self,
        counts: Mapping[str, int],
        batch: Mapping[str, int],
        micro_batches_per_update: int,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        if micro_batches_per_update < 1:
            raise ConfigError(f"an update has {micro_batches_per_update} micro-batches; at least 1")
        for what, given in (("batch", batch), ("weights", weights)):
            unknown = [] if given is None else [s for s in given if s not in counts]
            if unknown:
                raise ConfigError(f"{what} names sensor {unknown[0]}: {nearest(unknown[0], counts)}")
            missing = [] if given is None else [s for s in counts if s not in given]
            if missing:
                raise ConfigError(
                    f"{what} says nothing about sensor {missing[0]}{' (0 leaves it out)' * (what == 'weights')}"
                )
        for sensor, count in counts.items():
            if count < 1:
                raise ConfigError(f"sensor {sensor} has no training samples")
            if batch[sensor] < 1:
                raise ConfigError(f"batch of sensor {sensor} is {batch[sensor]}; at least 1 image")
        if weights is None:
            wanted = {s: Fraction(counts[s], batch[s]) for s in counts}
        else:
            if any(not 0 <= w < float("inf") for w in weights.values()) or not any(weights.values()):
                raise ConfigError(f"weights are {dict(weights)}; at least 0 each, and one above")
            wanted = {s: Fraction(weights[s]) for s in counts}
        total = sum(wanted.values())
        self.sensors = tuple(s for s in counts if wanted[s])
        self.counts = {s: counts[s] for s in self.sensors}
        self.batch = {s: batch[s] for s in self.sensors}
        self.micro_batches_per_update = micro_batches_per_update
        self.seed = seed
        self.shares = {s: wanted[s] * micro_batches_per_update / total for s in self.sensors}
        self._permutations: dict[str, tuple[int, NDArray[np.int64]]] = {}

    @property
    def updates_per_epoch(self) -> float:
        """Updates in which as many samples are drawn as the sensors have together; usually no whole number."""
        drawn = sum(self.shares[s] * self.batch[s] for s in self.sensors)
        return float(sum(self.counts.values()) / drawn)

    def updates(self, epochs: float) -> int:
        """Whole updates that so many epochs take: rounded once, not once an epoch, and at least one."""
        return max(1, round(epochs * self.updates_per_epoch))

    def plan(self, update: int) -> list[MicroBatch]:
        """The micro-batches of an update.

        Args:
            update: from 0.

        Returns:
            `micro_batches_per_update` of them. Those of one sensor stand together, the largest group first, so that
            ranks which take neighbours mostly work on the same sensor at once.
        """
        before, after = self._dealt(update)
        order = sorted(range(len(self.sensors)), key=lambda k: (before[k] - after[k], k))
        plan: list[MicroBatch] = []
        position = 0
        for k in order:
            sensor = self.sensors[k]
            size = self.batch[sensor]
            for number in range(before[k], after[k]):
                indices = self._draw(sensor, number * size, size)
                plan.append(MicroBatch(sensor, indices, tuple(range(position, position + size))))
                position += size
        return plan

    def _dealt(self, update: int) -> tuple[list[int], list[int]]:
        """Micro-batches that each sensor got before and up to the end of an update.

        The horizon is dealt out by largest remainder, then halved again and again towards the update: what a half gets
        is half of the whole, and where that is no whole number the sensors furthest behind their shares are rounded up.
        Every piece of L updates thus holds L·⌊q⌋ to L·⌈q⌉ micro-batches of a sensor, down to the single update.
        """
        if not 0 <= update < HORIZON:
            raise ConfigError(f"update {update} lies outside 0 to 2^40")
        shares = list(self.shares.values())
        low, high = 0, HORIZON
        before = [0] * len(shares)
        after = _round_to_sum([q * HORIZON for q in shares], self.micro_batches_per_update * HORIZON)
        while high - low > 1:
            middle = (low + high) // 2
            half = [(b + a) // 2 for b, a in zip(before, after, strict=True)]
            odd = [k for k in range(len(shares)) if (before[k] + after[k]) % 2]
            # The sums of both ends are whole multiples of the middle's, so exactly half of the odd ones go up.
            behind = sorted(odd, key=lambda k: (half[k] - shares[k] * middle, k))
            for k in behind[: self.micro_batches_per_update * middle - sum(half)]:
                half[k] += 1
            if update < middle:
                high, after = middle, half
            else:
                low, before = middle, half
        return before, after

    def _draw(self, sensor: str, start: int, size: int) -> tuple[int, ...]:
        """Samples `start` to `start + size` of the endless walk through the sensor's permutations."""
        count = self.counts[sensor]
        walk = np.arange(start, start + size)
        out = np.empty(size, np.int64)
        for turn in range(start // count, (start + size - 1) // count + 1):
            here = walk // count == turn
            out[here] = self._permutation(sensor, turn)[walk[here] % count]
        return tuple(out.tolist())

    def _permutation(self, sensor: str, turn: int) -> NDArray[np.int64]:
        """The order of a sensor's samples on its `turn`-th walk through all of them."""
        kept = self._permutations.get(sensor)
        if kept is None or kept[0] != turn:
            # The name takes part, so that sensors of one size are not walked in step and a new one changes no other.
            name = int.from_bytes(hashlib.sha256(sensor.encode()).digest()[:8], "big")
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, name, turn])))
            kept = turn, generator.permutation(self.counts[sensor])
            self._permutations[sensor] = kept
        return kept[1]


def _round_to_sum(values: list[Fraction], total: int) -> list[int]:
    """Whole numbers next to the values that sum to the total: the largest remainders are rounded up."""
    whole = [floor(v) for v in values]
    by_remainder = sorted(range(len(values)), key=lambda k: (whole[k] - values[k], k))
    for k in by_remainder[: total - sum(whole)]:
        whole[k] += 1
    return whole
