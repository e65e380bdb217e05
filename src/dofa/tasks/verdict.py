"""Which of a probe's contenders is best, by the paired interval, and the command that maps with it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dofa.tasks.evaluation import Interval
from dofa.tasks.judging import interval
from dofa.tasks.result import Row

Kind = Literal["model", "random weights", "band statistics"]


@dataclass(frozen=True)
class Verdict:
    """The best contender of a probe.

    Attributes:
        kind: which of the three it is.
        best: its features.
        metric: of the scores.
        score: of the best.
        second: features of the next one.
        lead: paired difference of the two scores, with its interval.
        mapped: the best contender that a head was saved of; None where none was.
        command: that maps a scene with it.
    """

    kind: Kind
    best: str
    metric: str
    score: Interval
    second: str
    lead: Interval
    mapped: Kind | None
    command: str | None

    @property
    def clear(self) -> bool:
        """Whether the interval of the lead excludes 0."""
        return self.lead.low is not None and self.lead.low > 0

    @property
    def line(self) -> str:
        """For the terminal."""
        points = f"{100 * self.lead.value:+.1f} points"
        if self.lead.low is None or self.lead.high is None:
            points += ", too few units to tell from chance"
        else:
            points += f", {100 * self.lead.low:+.1f} to {100 * self.lead.high:+.1f}"
            points += "" if self.clear else ": could be chance"
        named = self.best if self.kind == "band statistics" else f"{self.kind} ({self.best})"
        told = f"best: {named}, {self.metric} {100 * self.score.value:.1f} %, ahead of {self.second} ({points})"
        if self.command is None:
            return told
        with_it = "it" if self.mapped == self.kind else f"the {self.mapped}, the best that was saved"
        return f"{told}; map with {with_it}: {self.command}"

    def to_dict(self) -> dict[str, Any]:
        """Plain form, for JSON; scores are shares, 0–1."""
        return {**asdict(self), "clear": self.clear}


def verdict(contenders: Mapping[Kind, Row], commands: Mapping[Kind, Sequence[str]], seed: int) -> Verdict | None:
    """The best of the contenders; of equal ones the first.

    Args:
        contenders: rows of the linear classifier, judged on the same units.
        commands: words that map with a contender, of those that a head was saved of.
        seed: of the bootstrap.

    Returns:
        None where nothing stands beside the model.
    """
    if len(contenders) < 2:
        return None
    order = sorted(contenders, key=lambda kind: -contenders[kind].score.value)
    first, second = (contenders[kind] for kind in order[:2])
    mapped = next((kind for kind in order if kind in commands), None)
    return Verdict(
        kind=order[0],
        best=first.features,
        metric=first.metric,
        score=first.score,
        second=second.features,
        lead=interval(first.judged, seed, second.judged),
        mapped=mapped,
        command=None if mapped is None else shlex.join(commands[mapped]),
    )


def map_command(head: Path, task: str, weights: str | None = None, stride: int | None = None) -> list[str]:
    """The words of `dofa predict` with a saved head.

    Args:
        head: its folder.
        task: of the head.
        weights: of its encoder, None for band statistics.
        stride: that the probe judged with, None for one pass.
    """
    words = ["dofa", "predict", "SCENE.tif"]
    words += [] if weights is None else ["--weights", weights]
    words += ["--head", str(head)]
    words += [] if stride is None else ["--stride", str(stride)]
    words += ["--output", "probabilities"] if task == "multilabel" else []
    return [*words, "--out", "MAP.tif"]
