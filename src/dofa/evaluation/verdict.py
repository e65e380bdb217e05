"""Which of a probe's contenders is best, by the paired interval, and the command that maps with it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dofa.addresses import redact
from dofa.evaluation.bootstrap import interval
from dofa.evaluation.cross_validation import Interval
from dofa.evaluation.probe_result import Row

Kind = Literal["model", "random weights", "band statistics"]


@dataclass(frozen=True)
class Verdict:
    """The best contender of a probe.

    Attributes:
        kind: which of the three it is.
        best: its features.
        metric: of the scores.
        score: of the best.
        leads: for each of the others its features, and the paired difference of the best to it with its interval.
        mapped: the best contender that a head was saved of; None where none was.
        command: that maps a scene with it.
    """

    kind: Kind
    best: str
    metric: str
    score: Interval
    leads: tuple[tuple[str, Interval], ...]
    mapped: Kind | None
    command: str | None

    @property
    def clear(self) -> bool:
        """Whether the intervals of all leads exclude 0."""
        return all(lead.low is not None and lead.low > 0 for _, lead in self.leads)

    @property
    def line(self) -> str:
        """For the terminal."""
        named = self.best if self.kind == "band statistics" else f"{self.kind} ({self.best})"
        ahead = " and ".join(f"{name} ({_points(lead)})" for name, lead in self.leads)
        told = f"best: {named}, {self.metric} {100 * self.score.value:.1f} %, ahead of {ahead}"
        if self.command is None:
            return told
        with_it = "it" if self.mapped == self.kind else f"the {self.mapped}, the best that was saved"
        return f"{told}; map with {with_it}: {self.command}"

    def to_dict(self) -> dict[str, Any]:
        """Plain form, for JSON; scores are shares, 0–1."""
        leads = [{"against": name, "difference": asdict(lead)} for name, lead in self.leads]
        return {**asdict(self), "leads": leads, "clear": self.clear}


def _points(lead: Interval) -> str:
    points = f"{100 * lead.value:+.1f} points"
    if lead.low is None or lead.high is None:
        return f"{points}, too few units to tell from chance"
    span = f"{points}, {100 * lead.low:+.1f} to {100 * lead.high:+.1f}"
    return span if lead.low > 0 else f"{span}: could be chance"


def verdict(contenders: Mapping[Kind, Row], commands: Mapping[Kind, Sequence[str]], seed: int) -> Verdict | None:
    """The best of the contenders; of equal ones the first.

    Args:
        contenders: rows of the linear classifier, judged on the same units.
        commands: words that map with a contender, of those that a head was saved of.

    Returns:
        None where nothing stands beside the model.
    """
    if len(contenders) < 2:
        return None
    order = sorted(contenders, key=lambda kind: -contenders[kind].score.value)
    first, *others = (contenders[kind] for kind in order)
    mapped = next((kind for kind in order if kind in commands), None)
    return Verdict(
        kind=order[0],
        best=first.features,
        metric=first.metric,
        score=first.score,
        leads=tuple((other.features, interval(first.judged, seed, other.judged)) for other in others),
        mapped=mapped,
        command=None if mapped is None else shlex.join(commands[mapped]),
    )


def map_command(head: Path, task: str, weights: str | None = None, stride: int | None = None) -> list[str]:
    """The words of `dofa predict` with a saved head.

    Args:
        weights: of its encoder, None for band statistics.
        stride: that the probe judged with, None for one pass.
    """
    words = ["dofa", "predict", "SCENE.tif"]
    words += [] if weights is None else ["--weights", redact(weights)]
    words += ["--head", str(head)]
    words += [] if stride is None else ["--stride", str(stride)]
    words += ["--output", "probabilities"] if task == "multilabel" else []
    return [*words, "--out", "MAP.tif"]
