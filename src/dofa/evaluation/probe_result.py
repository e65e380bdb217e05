"""What a probe found: rows and paired differences, as plain values for JSON and as tables for people."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from dofa.errors import ConfigError, nearest
from dofa.evaluation.bootstrap import Predictions
from dofa.evaluation.cross_validation import Interval
from dofa.evaluation.judged_images import Panels
from dofa.evaluation.metrics import class_table
from dofa.model.heads import Head

if TYPE_CHECKING:
    from dofa.evaluation.verdict import Kind, Verdict

Classifier = Literal["logistic", "LARS", "k-NN"]
Metric = Literal["accuracy", "micro AP", "mIoU"]
FORMAT_VERSION = 2  # 1 had accuracies only


@dataclass(frozen=True)
class Row:
    """The score of one classifier on one kind of features, over images or pixels that were not learned from.

    Attributes:
        features: `pooled` or `block 11`, with `random` before it; or `band statistics`.
        classifier: logistic, LARS or k-NN.
        metric: accuracy of one class an image, micro-averaged precision of several, mean intersection over union of a
            class a pixel.
        score: 0–1 with its 95 % interval; of random weights the mean over their seeds.
        per_fold: score of each fold.
        chosen: C of the logistic regression, or rate of LARS, in each fold (and seed).
        confusion: (K, K) counts of images or pixels, rows true and columns predicted, of all folds and seeds; None
            where classes do not exclude each other.
        judged: what was judged, one a seed; not written to JSON.
        classes: scores of each class; see `class_scores`. Empty where there are only ranks.
    """

    features: str
    classifier: Classifier
    metric: Metric
    score: Interval
    per_fold: tuple[float, ...]
    chosen: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    judged: tuple[Predictions, ...] = field(repr=False)
    classes: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain form, for JSON."""
        return {k: asdict(v) if k == "score" else v for k, v in vars(self).items() if k != "judged"}


@dataclass(frozen=True)
class Difference:
    """Paired: score of `features` minus that of `against` on the same images; an interval without 0 is a finding."""

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
        panels: a few judged images with the answers of each kind of features; None where pixels are not judged.
        band_head: on all images, of band statistics; None unless a folder was asked for.
        verdict: which contender is best; None where nothing stands beside the encoder.
    """

    setting: dict[str, Any]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]
    head: Head | None = None
    panels: Panels | None = field(default=None, repr=False)
    band_head: Head | None = None
    verdict: "Verdict | None" = None

    def row(self, features: str, classifier: Classifier | None = None) -> Row:
        """The row of that name; of the linear classifier unless another is named.

        Args:
            features: `pooled`, `block 5`, `band statistics`, …
            classifier: None for the linear one.

        Raises:
            ConfigError: there is none.
        """
        for row in self.rows:
            if row.features == features and (row.classifier == classifier if classifier else row.classifier != "k-NN"):
                return row
        raise ConfigError(f"the probe has no {features!r}: {nearest(features, {r.features for r in self.rows})}")

    @property
    def best(self) -> Row:
        """The row of the encoder's own features (not random, not band statistics) with the highest score."""
        names = set(self.setting["encoder"]["levels"])
        return max((r for r in self.rows if r.features in names), key=lambda row: row.score.value)

    @property
    def contenders(self) -> "dict[Kind, Row]":
        """The linear classifier on the encoder's best features, on random weights and on band statistics."""
        best = self.best.features
        named: dict[Kind, str] = {
            "model": best,
            "random weights": f"random {best}",
            "band statistics": "band statistics",
        }
        there = {row.features for row in self.rows}
        return {kind: self.row(name) for kind, name in named.items() if name in there}

    def to_dict(self) -> dict[str, Any]:
        """Plain form, for JSON; scores are shares, 0–1."""
        return {
            "format_version": FORMAT_VERSION,
            **self.setting,
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
            "differences": [asdict(d) for d in self.differences],
            "warnings": list(self.warnings),
        }

    def tables(self) -> list[Table]:
        """Scores and differences in percent, for the terminal."""
        data = self.setting["data"]
        title = f"{data['name']}: {data['judged']} {data['unit']}s judged, {len(data['classes'])} classes, "
        title += _protocol(self.setting["protocol"])
        swept = "rate" if self.setting["protocol"]["optimizer"] == "lars" else "C"
        rows = Table("features", "classifier", f"{self.rows[0].metric} %", "95 % interval", swept, title=title)
        for row in self.rows:
            chosen = ", ".join(f"{c:g}" for c in sorted(set(row.chosen)))
            rows.add_row(row.features, row.classifier, f"{100 * row.score.value:.1f}", _span(row.score), chosen)
        found = Table("features", "against", "classifier", "points", "95 % interval", title="paired differences")
        for d in self.differences:
            found.add_row(
                d.features, d.against, d.classifier, f"{100 * d.difference.value:+.1f}", _span(d.difference, "+")
            )
        shown = self.contenders
        wanted = ["model"] + (["band statistics"] if self.verdict and self.verdict.kind == "band statistics" else [])
        each = [class_table(row.classes, row.features) for k, row in shown.items() if k in wanted and row.classes]
        return [rows, *([found] if self.differences else []), *each]

    def print(self) -> None:
        """Tables and warnings to the terminal."""
        console = Console()
        for table in self.tables():
            console.print(table)
        for note in self.warnings:
            console.print(f"note: {note}", highlight=False)
        if self.head is not None or self.band_head is not None:
            console.print(f"note: {self._fitted}", highlight=False, soft_wrap=True)
        if self.verdict is not None:
            console.print(self.verdict.line, highlight=False, markup=False, soft_wrap=True)

    @property
    def _fitted(self) -> str:
        """What the saved heads were fitted on."""
        if self.setting["protocol"]["by"] == "split":
            return "heads are fitted on the images that are not test images"
        unit = self.setting["data"]["unit"]
        return f"scores are those of the folds; heads are fitted again on all {unit}s and have no score on them"


def _protocol(protocol: dict[str, Any]) -> str:
    part = "" if protocol["fraction"] == 1 else f", {100 * protocol['fraction']:g} % of the labels"
    if protocol["by"] == "split":
        return "published split" + part
    counted = {"place": "places", "block": "blocks"}.get(protocol["by"])
    where = protocol["by"] if counted is None else f"{protocol['by']} ({protocol['places']} {counted})"
    return f"{protocol['folds']} folds by {where}{part}"


def _span(interval: Interval, sign: str = "") -> str:
    if interval.low is None or interval.high is None:
        return "– (too few units)"
    return f"{100 * interval.low:{sign}.1f} to {100 * interval.high:{sign}.1f}"
