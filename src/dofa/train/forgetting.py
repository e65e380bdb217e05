"""What a model that learns further gains and forgets: every sensor's held-out error before the first update and after.

Before and after are of the same images under the same masks, so their difference is paired. `begin` measures the model
that `model.init` names and its report stays in the run folder, so that a run that was interrupted still has its before;
`finish` measures the model folder that the run leaves behind, what `optim.keep_initial` puts into it included.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.corpus.mixture import Mixture
from dofa.corpus.store import SensorStore
from dofa.documents import read_json
from dofa.errors import CheckpointError, DataError
from dofa.io import write_atomically
from dofa.model.mae import MaskedAutoencoder
from dofa.settings import check_version
from dofa.train.config import PretrainConfig
from dofa.train.data import Source
from dofa.train.evaluate import Evaluation, evaluate_store, place_interval

FORMAT_VERSION = 1
NAME = "forgetting.json"
MASKS = 4  # of each image
COLUMNS = ("sensor", "role", "images", "places", "floor", "before", "after", "change (95 %)", "verdict")


@dataclass(frozen=True)
class Change:
    """What became of one sensor.

    Attributes:
        sensor: name.
        known: whether the model was trained on it before: old; else it is new.
        share: of the run's micro-batches; None where no store of it was given.
        side: of the judged crop in pixels.
        before: errors of the model the run started from; None where they were not measured.
        after: errors of the model it leaves behind.
    """

    sensor: str
    known: bool
    share: float | None = None
    side: int = 0
    before: Evaluation | None = None
    after: Evaluation | None = None

    @property
    def difference(self) -> NDArray[np.float64] | None:
        """(n,) after − before of every image, negative where the model became better; None where one is missing."""
        if self.before is None or self.after is None:
            return None
        if not np.array_equal(self.before.indices, self.after.indices):
            raise DataError(
                f"sensor {self.sensor}: other images could be judged after training than before, so they cannot be "
                "compared: look for errors that are not finite"
            )
        return self.after.error - self.before.error

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % of the mean difference, by `place_interval`; None below its number of places."""
        gap = self.difference
        return None if gap is None or self.after is None else place_interval(gap, self.after.places)

    @property
    def verdict(self) -> str:
        """What the numbers say, in words."""
        gap = self.difference
        if self.share is None:
            return "not rehearsed, not measured: no store of it"
        if gap is None or self.after is None:
            missing = self.before or self.after
            return "not measured: no held-out images" if missing is None else "no error before: the decoder was new"
        better, worse = ("improved", "forgotten") if self.known else ("learned", "got worse")
        if self.interval is None:
            places = len(set(self.after.places))
            said = f"{better if gap.mean() < 0 else worse}? {places} place{'s' * (places > 1)}, too few for an interval"
        else:
            low, high = self.interval
            said = better if high < 0 else worse if low > 0 else "no change shown"
        said += "" if self.share else ", not rehearsed" if self.known else ", not trained on"
        return said + ("" if self.after.error.mean() < self.after.floor.mean() else "; above its floor")

    def to_dict(self) -> dict[str, Any]:
        """Means for people, and every image's numbers, from which `from_dict` restores it."""
        gap, either = self.difference, self.after or self.before
        out: dict[str, Any] = {
            "sensor": self.sensor,
            "known": self.known,
            "share": self.share,
            "side": self.side,
            "verdict": self.verdict if self.after is not None or either is None else "not finished",
            "before": None if self.before is None else float(self.before.error.mean()),
            "after": None if self.after is None else float(self.after.error.mean()),
            "difference": None if gap is None else float(gap.mean()),
            "interval": self.interval,
        }
        if either is not None:
            out |= {
                "floor": float(either.floor.mean()),
                "places": len(set(either.places)),
                "images": {
                    "index": either.indices.tolist(),
                    "place": list(either.places),
                    "floor": either.floor.tolist(),
                    "before": None if self.before is None else self.before.error.tolist(),
                    "after": None if self.after is None else self.after.error.tolist(),
                },
            }
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Change":
        """The inverse of `to_dict`."""
        found: dict[str, Evaluation | None] = {"before": None, "after": None}
        images = data.get("images")
        for when in found:
            if images is not None and images[when] is not None:
                found[when] = Evaluation(
                    data["sensor"],
                    np.array(images["index"], np.int64),
                    tuple(images["place"]),
                    np.array(images[when], np.float64),
                    np.array(images["floor"], np.float64),
                )
        return cls(data["sensor"], bool(data["known"]), data["share"], int(data["side"]), **found)


@dataclass(frozen=True)
class Report:
    """What became of every sensor, old and new.

    Attributes:
        init: what the run started from, as `model.init` says it.
        limit: images of each sensor at most.
        seed: of the masks.
        changes: of every sensor.
        updates: the run made; None before its end.
    """

    init: str
    limit: int
    seed: int
    changes: tuple[Change, ...]
    updates: int | None = None

    def lines(self) -> list[str]:
        """The table."""
        rows = [COLUMNS, *map(_cells, self.changes)]
        widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]
        out = [
            f"held-out error before and after {self.updates} updates from {self.init}, same images, {MASKS} masks each "
            "(95 % over places):"
        ]
        out += ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        if any(not c.known and c.before is not None for c in self.changes):
            out.append("  before, of a new sensor: by the kernels its wavelengths generate, without any training on it")
        return out


def begin(
    mae: MaskedAutoencoder,
    stores: Mapping[str, SensorStore],
    sources: Mapping[str, Source],
    mixture: Mixture,
    known: Collection[str],
    config: PretrainConfig,
    trained_decoder: bool,
) -> Report:
    """Measure the model a run starts from.

    Args:
        mae: encoder and decoder as `model.init` has them, told of the new sensors; on any device.
        sources: what the run does with them.
        known: sensors that the model was trained on before.
        config: of the run; `run.evaluate_images` and `run.seed` choose images and masks.
        trained_decoder: whether the decoder came with the model. The errors of a new one say nothing, and are not
            measured.
    """
    limit, seed = config.run.evaluate_images, config.run.seed
    changes = []
    for name, source in sources.items():
        share = float(mixture.shares.get(name, 0)) / mixture.micro_batches_per_update
        change = Change(name, name in known, share, source.side)
        if trained_decoder:
            change = replace(change, before=_measure(mae, stores[name], change, limit, seed))
        changes.append(change)
    changes += [Change(name, True) for name in sorted(set(known) - set(sources))]
    return Report(str(config.model.init), limit, seed, tuple(changes))


def finish(report: Report, mae: MaskedAutoencoder, stores: Mapping[str, SensorStore], updates: int) -> Report:
    """Measure the model a run leaves behind on the images and masks it began with.

    Args:
        report: of the beginning of the run.
        mae: as the run left it.
    """
    changes = [
        c if c.share is None else replace(c, after=_measure(mae, stores[c.sensor], c, report.limit, report.seed))
        for c in report.changes
    ]
    return replace(report, changes=tuple(changes), updates=updates)


def write_report(folder: Path, report: Report) -> None:
    """Write forgetting.json into a run folder, whole or not at all.

    Args:
        report: finished or not.
    """
    record = {
        "format_version": FORMAT_VERSION,
        "init": report.init,
        "updates": report.updates,
        "evaluate_images": report.limit,
        "masks": MASKS,
        "seed": report.seed,
        "sensors": [c.to_dict() for c in report.changes],
    }
    write_atomically(folder / NAME, json.dumps(record, indent=1).encode())


def read_report(folder: Path) -> Report | None:
    """The report of a run folder; None where there is none.

    Raises:
        CheckpointError: it cannot be read, or is of a format from the future.
    """
    file = folder / NAME
    if not file.is_file():
        return None
    try:
        record = read_json(file, CheckpointError)
        check_version(record["format_version"], FORMAT_VERSION, str(file), CheckpointError)
        changes = tuple(Change.from_dict(c) for c in record["sensors"])
        return Report(record["init"], record["evaluate_images"], record["seed"], changes, record["updates"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}): remove it, and the error before is measured again from model.init"
        ) from None


def _measure(mae: MaskedAutoencoder, store: SensorStore, change: Change, limit: int, seed: int) -> Evaluation | None:
    if not len(store.indices("val")):
        return None
    return evaluate_store(mae, store, crop=change.side, masks=MASKS, limit=limit, seed=seed)


def _cells(change: Change) -> tuple[str, ...]:
    either, gap, interval = change.after or change.before, change.difference, change.interval
    head = change.sensor, "old" if change.known else "new"
    if either is None:
        return *head, *"------", change.verdict
    between = "" if interval is None else f" ({interval[0]:+.3f} … {interval[1]:+.3f})"
    return (
        *head,
        str(len(either.indices)),
        str(len(set(either.places))),
        f"{either.floor.mean():.3f}",
        "-" if change.before is None else f"{change.before.error.mean():.3f}",
        "-" if change.after is None else f"{change.after.error.mean():.3f}",
        "-" if gap is None else f"{gap.mean():+.3f}{between}",
        change.verdict,
    )
