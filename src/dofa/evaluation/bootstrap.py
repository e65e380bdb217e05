"""What out-of-sample answers are worth: scores that a bootstrap over images, places or blocks can draw again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dofa.datasets.folds import Fold
from dofa.datasets.labelled import Ints
from dofa.errors import ConfigError
from dofa.evaluation.cross_validation import (
    PENALTIES,
    Interval,
    Optimizer,
    bootstrap_score,
    choose_penalty,
    fit,
    knn_scores,
)
from dofa.evaluation.linear import Floats, sigmoid
from dofa.evaluation.metrics import Counts, binary_counts, confusion, mean_iou, micro_average_precision


class Predictions(Protocol):
    """Answers of one run, by unit.

    Attributes:
        units: U, how many there are.
    """

    @property
    def units(self) -> int:
        """How many there are."""

    def scores(self, times: Floats) -> Floats:
        """(d, U) how often each unit counts, to (d,) scores; NaN where there is none."""


class Classes:
    """Accuracy of one class an image.

    Args:
        correct: (N,) 1 for right, 0 for wrong.
        unit: (N,) number of each image's unit, from 0.
    """

    def __init__(self, correct: Floats, unit: Ints) -> None:
        self.correct = correct
        self._right, self._count = np.bincount(unit, correct), np.bincount(unit)

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self._count)

    def scores(self, times: Floats) -> Floats:
        """See `Predictions`."""
        return np.asarray((times @ self._right) / (times @ self._count))


class Pixels:
    """Mean intersection over union of a class a pixel.

    Args:
        counts: (U, K, K) confusion matrix of each unit.
    """

    def __init__(self, counts: Counts) -> None:
        self.counts = counts

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self.counts)

    def scores(self, times: Floats) -> Floats:
        """See `Predictions`."""
        drawn = times @ self.counts.reshape(len(self.counts), -1)
        return np.asarray(mean_iou(np.rint(drawn).astype(np.int64).reshape(-1, *self.counts.shape[1:])))


class Ranked:
    """Micro-averaged precision of several classes an image, drawn again and again without sorting.

    With every unit once it is `metrics.micro_average_precision`.

    Args:
        scores: (N, K), higher for likelier.
        labels: (N, K), 0 or 1.
        unit: (N,) number of each image's unit, from 0.
    """

    def __init__(self, scores: Floats, labels: Ints, unit: Ints) -> None:
        order = np.argsort(-scores, axis=None, kind="stable")
        values = scores.ravel()[order]
        self._last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)  # of every run of equal scores
        self._hits = labels.ravel()[order].astype(np.float64)
        self._unit = np.repeat(unit, scores.shape[1])[order]
        self._units = int(unit.max()) + 1

    @property
    def units(self) -> int:
        """How many there are."""
        return self._units

    def scores(self, times: Floats) -> Floats:
        """See `Predictions`."""
        out = np.empty(len(times))
        for i, drawn in enumerate(times):
            weight = drawn[self._unit]
            seen = np.cumsum(weight)[self._last]
            met = np.cumsum(weight * self._hits)[self._last]
            with np.errstate(divide="ignore", invalid="ignore"):
                out[i] = np.nansum(np.diff(met, prepend=0) * met / seen) / met[-1] if met[-1] else np.nan
        return out


def interval(runs: Sequence[Predictions], seed: int, against: Sequence[Predictions] = ()) -> Interval:
    """The mean score of runs (seeds of random weights) with its interval; less that of others, on the same draws.

    Args:
        runs: of one method, a seed each.
        against: runs of another method on the same units; none for the score itself.

    Raises:
        ConfigError: they were not judged on the same units.
    """
    if len({run.units for run in (*runs, *against)}) != 1:
        raise ConfigError("scores of different units have no paired difference")

    def mean(of: Sequence[Predictions], times: Floats) -> Floats:
        return np.asarray(np.mean([run.scores(times) for run in of], axis=0))

    def score(times: Floats) -> Floats:
        return mean(runs, times) - mean(against, times) if against else mean(runs, times)

    return bootstrap_score(score, runs[0].units, seed)


def drawn_scores(runs: Sequence[Predictions], seed: int) -> list[float]:
    """Scores of the draws that `interval` takes: two results with the same units have the same draws.

    Args:
        runs: to average.

    Returns:
        A score a draw, rounded to six digits; empty where there are too few units for an interval.
    """
    kept: list[Floats] = []

    def score(times: Floats) -> Floats:
        kept.append(np.asarray(np.mean([run.scores(times) for run in runs], axis=0)))
        return kept[-1]

    bootstrap_score(score, runs[0].units, seed)
    # The first call scores every unit once; the draws follow.
    return [round(float(value), 6) for value in np.concatenate([np.zeros(0), *kept[1:]])]


@dataclass(frozen=True)
class CrossValidated:
    """One classifier on one kind of features, through all folds.

    Attributes:
        judged: its answers.
        per_fold: score of each fold.
        chosen: what the sweep chose in each fold.
        confusion: (K, K) counts of all folds; None where classes do not exclude each other.
        answers: (h, w) classes of the images to be shown, by number; of pixels alone.
        binary: (K, 2, 2) counts of classes that do not exclude each other, by the probabilities above a half.
    """

    judged: Predictions
    per_fold: tuple[float, ...]
    chosen: tuple[float, ...]
    confusion: Counts | None
    answers: dict[int, Ints] = field(default_factory=dict, repr=False)
    binary: Counts | None = field(default=None, repr=False)

    @property
    def by_class(self) -> Counts | None:
        """The counts that scores of each class are made of; None where there are only ranks."""
        return self.confusion if self.binary is None else self.binary


def score_images(
    classifier: str,
    of_folds: Sequence[NDArray[np.floating]],
    labels: Ints,
    parts: Sequence[Fold],
    unit: Ints,
    *,
    classes: int,
    places: Sequence[str] | None = None,
    candidates: Sequence[float] = PENALTIES,
    neighbours: int = 20,
    seed: int = 0,
) -> CrossValidated:
    """Learn from each fold's training images, and judge the others.

    Args:
        classifier: logistic, LARS or k-NN.
        of_folds: (N, D) features for each fold.
        labels: (N,) classes, or (N, K) of 0 and 1.
        unit: (M,) number of each judged image's unit, from 0, in the order of the folds.
        places: (N,), which inner folds keep together.
        candidates: for C or the rate.
        seed: of inner folds, and of LARS.
    """
    optimizer: Optimizer = "lars" if classifier == "LARS" else "lbfgs"
    answers, chosen = [], []
    for part, features in zip(parts, of_folds, strict=True):
        train, train_labels, test = features[part.train], labels[part.train], features[part.test]
        if classifier == "k-NN":
            scores, known = knn_scores(train, train_labels, test, neighbours), np.unique(train_labels)
        else:
            groups = None if places is None else [places[row] for row in part.train]
            chosen.append(choose_penalty(train, train_labels, candidates, seed, groups, optimizer))
            layer = fit(train, train_labels, chosen[-1], seed, optimizer)
            # As probabilities: logits of two folds have no common scale.
            scores = layer.logits(test) if layer.exclusive else sigmoid(layer.logits(test))
            known = layer.classes
        answers.append(known[scores.argmax(1)] if labels.ndim == 1 else scores)
    truth = [labels[part.test] for part in parts]
    if labels.ndim == 1:
        correct = [(a == t).astype(np.float64) for a, t in zip(answers, truth, strict=True)]
        counts = confusion(np.concatenate(answers), np.concatenate(truth), classes)
        means = tuple(float(c.mean()) for c in correct)
        return CrossValidated(Classes(np.concatenate(correct), unit), means, tuple(chosen), counts)
    ranked = Ranked(np.concatenate(answers), np.concatenate(truth), unit)
    folds = tuple(micro_average_precision(a, t) for a, t in zip(answers, truth, strict=True))
    likely = None  # votes of neighbours are no probabilities
    if classifier != "k-NN":
        likely = binary_counts(np.concatenate(answers) > 0.5, np.concatenate(truth))
    return CrossValidated(ranked, folds, tuple(chosen), None, binary=likely)
