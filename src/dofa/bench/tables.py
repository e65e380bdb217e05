"""What the records of a bench say: rows and columns, seeds together, paired differences, published numbers beside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from dofa.bench.suite import Job, Suite
from dofa.documents import parse_yaml
from dofa.errors import ConfigError

Records = Mapping[str, dict[str, Any] | None]
CONFIDENCE = {"H": "read in the paper or its code", "M": "one secondary source"}


@dataclass(frozen=True)
class Published:
    """A row of published numbers: percent by data set."""

    model: str
    protocol: str
    source: str
    confidence: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Found:
    """What one cell says in one table.

    Attributes:
        cell: which it is.
        row: its name in the table: the model, and the features where several were judged.
        record: what was kept, None while nothing is.
        score: the chosen entry of the record's rows; None where there is none.
    """

    cell: Job
    row: str
    record: dict[str, Any] | None
    score: dict[str, Any] | None


@dataclass(frozen=True)
class Entry:
    """Seeds of one row and column together; shares, 0–1.

    Attributes:
        value: mean over seeds.
        low: mean of the lower ends of the seeds' bootstrap intervals; None where an interval is missing.
        high: of the upper ends.
        spread: standard deviation over seeds; None for one seed.
        seeds: how many.
        metric: what is measured.
    """

    value: float
    low: float | None
    high: float | None
    spread: float | None
    seeds: int
    metric: str

    @property
    def text(self) -> str:
        """In percent: `92.3 (91.1–93.4)`, and ± the spread of seeds."""
        span = "" if self.low is None or self.high is None else f" ({100 * self.low:.1f}–{100 * self.high:.1f})"
        return f"{100 * self.value:.1f}{span}" + ("" if self.spread is None else f" ±{100 * self.spread:.1f}")


def published() -> tuple[list[Published], dict[str, Any]]:
    """The published rows, and the whole file with its sources and protocols.

    Raises:
        ConfigError: a row without a known source, protocol or confidence: what is only recalled is not shown.
    """
    text = (resources.files("dofa.bench") / "published_results.yaml").read_text(encoding="utf-8")
    told = parse_yaml(text, "published_results.yaml")
    rows = [Published(**row) for row in told["results"]]
    for row in rows:
        if (
            row.confidence not in CONFIDENCE
            or row.source not in told["sources"]
            or row.protocol not in told["protocols"]
        ):
            raise ConfigError(f"published result of {row.model} ({row.protocol}) lacks a source, or confidence H or M")
    return rows, told


def found_in(suite: Suite, cell: Job, record: dict[str, Any] | None) -> list[Found]:
    """The rows of a record that its table shows: of a probe those of one classifier, one for each kind of features.

    Args:
        record: what came of it, None where it is not there yet.
    """
    if record is None or record["status"] != "done":
        return [Found(cell, cell.model, record, None)]
    nearest = suite.protocols[cell.protocol].classifier == "k-NN"
    shown = [row for row in record["rows"] if (row["classifier"] == "k-NN") == nearest]
    return [
        Found(cell, cell.model if len(shown) == 1 else f"{cell.model}, {row['features']}", record, row) for row in shown
    ]


class Table:
    """One protocol: rows by name, columns by data set.

    Args:
        suite: it belongs to.
        found: everything under that protocol.
    """

    def __init__(self, suite: Suite, protocol: str, found: Sequence[Found]) -> None:
        self.suite, self.name, self.protocol, self.found = suite, protocol, suite.protocols[protocol], list(found)
        order = {f.cell.model: None for f in found}
        self.rows = [row for model in order for row in dict.fromkeys(f.row for f in found if f.cell.model == model)]
        here = {f.cell.data for f in found}
        self.columns = [name for name in suite.data if name in here]
        self.fractions = sorted({f.cell.fraction for f in found})
        told = {f.row for f in found if f.score is not None}
        # A model whose several features were judged stands by those names; its own says only what is still missing.
        self.rows = [row for row in self.rows if row in told or not any(name.startswith(f"{row}, ") for name in told)]

    def entry(self, row: str, column: str, fraction: float | None = None) -> Entry | None:
        """Seeds together, at the largest share of labels unless another is named."""
        share = self.fractions[-1] if fraction is None else fraction
        scores = [f.score for f in self._at(row, column, share) if f.score is not None]
        if not scores:
            return None
        values = [s["score"]["value"] for s in scores]
        ends = [[s["score"][end] for s in scores] for end in ("low", "high")]
        low, high = (None if None in end else float(np.mean(end)) for end in ends)
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return Entry(float(np.mean(values)), low, high, spread, len(values), scores[0]["metric"])

    def difference(self, row: str, other: str, column: str) -> tuple[float, float, float] | None:
        """Mean paired difference of two rows and its 95 % interval, None unless both were judged on the same draws.

        Args:
            other: the model it is compared with.
        """
        pairs = []
        theirs = {f.cell.seed: f for f in self._at(other, column, self.fractions[-1])}
        for mine in self._at(row, column, self.fractions[-1]):
            match = theirs.get(mine.cell.seed)
            if mine.score is None or match is None or match.score is None:
                return None
            one, two = mine.score.get("drawn") or [], match.score.get("drawn") or []
            if not one or len(one) != len(two) or _units(mine) != _units(match):
                return None
            gap = mine.score["score"]["value"] - match.score["score"]["value"]
            pairs.append((gap, np.array(one, float) - np.array(two, float)))
        if not pairs:
            return None
        low, high = np.nanquantile(np.mean([drawn for _, drawn in pairs], axis=0), [0.025, 0.975])
        return float(np.mean([gap for gap, _ in pairs])), float(low), float(high)

    def state(self, row: str, column: str, fraction: float | None = None) -> str:
        """What stands where there is no number.

        Args:
            fraction: of the labels, None for the largest.
        """
        share = self.fractions[-1] if fraction is None else fraction
        kinds = {("…" if f.record is None else f.record["status"]) for f in self._at(row, column, share)}
        return next((kind for kind in ("failed", "missing", "…") if kind in kinds), "")

    def beside(self) -> list[tuple[Published, dict[str, float]]]:
        """Published rows of this protocol that have a number for one of the columns, by column."""
        out = []
        for row in published()[0] if self.protocol.beside else ():
            names = {column: self.suite.data[column].published for column in self.columns}
            scores = {column: row.scores[name] for column, name in names.items() if name in row.scores}
            if row.protocol in self.protocol.beside and scores:
                out.append((row, scores))
        return out

    def metric(self, column: str) -> str:
        """What a column measures, empty while nothing is known."""
        return next((f.score["metric"] for f in self.found if f.cell.data == column and f.score is not None), "")

    def _at(self, row: str, column: str, fraction: float) -> list[Found]:
        return [
            f for f in self.found
            if f.cell.data == column
            and f.cell.fraction == fraction
            and (f.row == row or (f.score is None and row.startswith(f"{f.cell.model}, ")))
        ]  # fmt: skip


def _units(found: Found) -> tuple[Any, ...]:
    data = (found.record or {}).get("data", {})
    return data.get("judged"), found.cell.spec
