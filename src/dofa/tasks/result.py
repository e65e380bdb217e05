"""What a probe found: rows and paired differences, as plain values for JSON and as tables for people."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from dofa.errors import ConfigError, nearest
from dofa.model.heads import Head
from dofa.tasks.evaluation import Interval

Classifier = Literal["logistic", "k-NN"]
CLASSIFIERS: tuple[Classifier, ...] = ("logistic", "k-NN")
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Row:
    """Accuracy of one classifier on one kind of features, over images that were not learned from.

    Attributes:
        features: `pooled` or `block 11`, with `random` before it; or `band statistics`.
        classifier: logistic or k-NN.
        accuracy: share of right answers, 95 % interval; of random weights the mean over their seeds.
        per_fold: accuracy of each fold.
        penalties: C chosen in each fold (and seed) by the logistic regression.
        correct: (n,) per judged image, 0–1; not written to JSON.
    """

    features: str
    classifier: Classifier
    accuracy: Interval
    per_fold: tuple[float, ...]
    penalties: tuple[float, ...]
    correct: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True)
class Difference:
    """Paired: accuracy of `features` minus that of `against` on the same images; an interval without 0 is a finding."""

    features: str
    against: str
    classifier: Classifier
    difference: Interval


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        setting: data, encoder and protocol, as plain values.
        rows: one a kind of features and classifier.
        differences: of the encoder's features against each baseline.
        warnings: what the reader of the numbers should know.
        head: on all images, of the best level; None unless a folder was asked for.
    """

    setting: dict[str, Any]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]
    head: Head | None = None

    def row(self, features: str, classifier: Classifier = "logistic") -> Row:
        """The row of that name."""
        for row in self.rows:
            if (row.features, row.classifier) == (features, classifier):
                return row
        raise ConfigError(f"the probe has no {features!r}: {nearest(features, {r.features for r in self.rows})}")

    def to_dict(self) -> dict[str, Any]:
        """Plain form, for JSON; accuracies are shares, 0–1."""
        rows = [{k: v for k, v in asdict(r).items() if k != "correct"} for r in self.rows]
        return {
            "format_version": FORMAT_VERSION,
            **self.setting,
            "rows": rows,
            "differences": [asdict(d) for d in self.differences],
            "warnings": list(self.warnings),
        }

    def tables(self) -> list[Table]:
        """Accuracies and differences in percent, for the terminal."""
        data = self.setting["data"]
        title = f"{data['name']}: {data['judged']} images judged, {len(data['classes'])} classes, "
        title += _protocol(self.setting["protocol"])
        rows = Table("features", "classifier", "accuracy %", "95 % interval", "C", title=title)
        for row in self.rows:
            chosen = ", ".join(f"{c:g}" for c in sorted(set(row.penalties)))
            rows.add_row(row.features, row.classifier, f"{100 * row.accuracy.value:.1f}", _span(row.accuracy), chosen)
        found = Table("features", "against", "classifier", "points", "95 % interval", title="paired differences")
        for d in self.differences:
            found.add_row(
                d.features, d.against, d.classifier, f"{100 * d.difference.value:+.1f}", _span(d.difference, "+")
            )
        return [rows, found] if self.differences else [rows]

    def print(self) -> None:
        """Tables and warnings to the terminal."""
        console = Console()
        for table in self.tables():
            console.print(table)
        for note in self.warnings:
            console.print(f"note: {note}", highlight=False)


def _protocol(protocol: dict[str, Any]) -> str:
    if protocol["by"] == "split":
        return "published split"
    where = "image" if protocol["places"] is None else f"place ({protocol['places']} places)"
    return f"{protocol['folds']} folds by {where}"


def _span(interval: Interval, sign: str = "") -> str:
    if interval.low is None or interval.high is None:
        return "– (too few units)"
    return f"{100 * interval.low:{sign}.1f} to {100 * interval.high:{sign}.1f}"
