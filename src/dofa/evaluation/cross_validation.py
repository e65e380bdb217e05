"""The numeric half of a probe, on plain arrays: folds, penalties, neighbours, intervals. Nothing here knows of a model.

What is learned about the features (their mean and spread, the penalty) is learned from training folds alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dofa.datasets.folds import Fold, _folds, deal_folds
from dofa.datasets.labelled import Ints
from dofa.errors import ConfigError, DataError
from dofa.evaluation.linear import LinearModel, LogisticPath, fit_lars, fit_logistic, softmax, standardisation
from dofa.evaluation.metrics import micro_average_precision

__all__ = [
    "PENALTIES",
    "RATES",
    "Interval",
    "LinearModel",
    "Optimizer",
    "bootstrap",
    "bootstrap_score",
    "check_features",
    "choose_penalty",
    "fit",
    "fit_lars",
    "fit_logistic",
    "knn_predict",
    "knn_scores",
    "softmax",
]

Floats = NDArray[np.float64]
Optimizer = Literal["lbfgs", "lars"]

PENALTIES = tuple(10.0**power for power in range(-4, 3))  # inverse strength C, as scikit-learn counts it
RATES = (0.5, 1.0, 10.0, 20.0)  # of LARS; arXiv 2403.15356, section 4
INNER_FOLDS = 3
SEARCH_TOLERANCE = 1e-4  # enough to rank penalties
DRAWS = 2000  # of the bootstrap: the 2.5 % tail then rests on 50 draws
AT_ONCE = 1 << 20  # numbers of drawn units held at a time
MIN_UNITS = 5  # places (or images) below which a bootstrap interval would promise more than it knows


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval; low and high are None where too few units stand behind it."""

    value: float
    low: float | None
    high: float | None


def check_features(features: NDArray[np.floating], labels: Ints, sources: Sequence[str], what: str) -> None:
    """Refuse features a classifier would choke on or, worse, would not.

    Args:
        features: (N, D).
        labels: (N,) or (N, K).
        sources: (N,) where each row comes from.

    Raises:
        DataError: another number of rows than labels, or a NaN or infinity.
    """
    if features.ndim != 2 or len(features) != len(labels):
        raise DataError(f"{what}: features of shape {features.shape} for {len(labels)} labels; (N, D) is needed")
    broken = np.flatnonzero(~np.isfinite(features).all(1))
    if len(broken):
        raise DataError(
            f"{what}: {len(broken)} of {len(features)} images have a NaN or infinite feature, "
            f"{sources[broken[0]]} first: leave them out or check their pixels"
        )


def choose_penalty(
    features: NDArray[np.floating],
    labels: Ints,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
    places: Sequence[str] | None = None,
    optimizer: Optimizer = "lbfgs",
) -> float:
    """The C (or LARS's rate) that does best over inner folds of these (training) rows; the first of equals.

    From strong penalties to weak ones, which cost most, until two in a row fall short of the best; all rates are tried.
    Inner folds follow the places too, unless the rows come from a single one. What counts is accuracy, of labels
    (N, K) the micro-averaged precision.

    Args:
        features: (N, D) of training rows.
        labels: (N,) classes, or (N, K) of 0 and 1.
        penalties: inverse strengths C as scikit-learn counts them, or rates of LARS.
        seed: of the inner folds, and of LARS.
        places: (N,), for inner folds of whole places.
        optimizer: `lbfgs` or `lars`.

    Returns:
        One of `penalties`.

    Raises:
        DataError: features on which a regression does not converge.
    """
    if len(penalties) == 1:
        return penalties[0]
    groups = None if places is None or len(set(places)) < 2 else places
    if labels.ndim == 1:
        largest = int(np.unique(labels, return_counts=True)[1].max())
        inner = min(INNER_FOLDS, largest, len(labels) if groups is None else len(set(groups)))
        parts = _folds(labels, inner, seed, groups)
    else:
        units = range(len(labels)) if groups is None else groups
        parts = deal_folds(units, min(INNER_FOLDS, len(set(units))), seed)
    parts = [part for part in parts if len(part.test) and len(part.train)]
    paths = [LogisticPath(features[p.train], labels[p.train]) for p in parts] if optimizer == "lbfgs" else []
    best, most, short = min(penalties), -1.0, 0
    for penalty in sorted(penalties):
        if optimizer == "lbfgs":
            models = [path.fit(penalty, SEARCH_TOLERANCE) for path in paths]
        else:
            models = [fit_lars(features[part.train], labels[part.train], penalty, seed) for part in parts]
        found = _merit(models, parts, features, labels)
        if found > most:
            best, most, short = penalty, found, 0
        elif optimizer == "lbfgs" and found < most and (short := short + 1) == 2:
            break
    return best


def _merit(models: list[LinearModel], parts: list[Fold], features: NDArray[np.floating], labels: Ints) -> float:
    pairs = list(zip(models, parts, strict=True))
    if labels.ndim == 1:
        return float(sum((model.predict(features[p.test]) == labels[p.test]).sum() for model, p in pairs))
    scores = np.concatenate([model.logits(features[p.test]) for model, p in pairs])
    found = micro_average_precision(scores, np.concatenate([labels[p.test] for _, p in pairs]))
    return -1.0 if np.isnan(found) else found


def fit(
    features: NDArray[np.floating], labels: Ints, penalty: float, seed: int = 0, optimizer: Optimizer = "lbfgs"
) -> LinearModel:
    """A linear layer by either optimizer; see `fit_logistic` and `fit_lars`.

    Args:
        features: (N, D).
        labels: (N,) classes, or (N, K) of 0 and 1.
        penalty: inverse strength C, or the rate of LARS.
        optimizer: `lbfgs` or `lars`.

    Raises:
        DataError: it does not converge.
    """
    return (
        fit_logistic(features, labels, penalty) if optimizer == "lbfgs" else fit_lars(features, labels, penalty, seed)
    )


def knn_scores(train: NDArray[np.floating], train_labels: Ints, test: NDArray[np.floating], neighbours: int) -> Floats:
    """Votes of the nearest training rows in cosine similarity, features standardised on the training rows.

    Standardising first matters: block outputs share a large common direction that would make all cosines near 1. Among
    classes with equal votes the one whose neighbours are more similar in sum wins.

    Args:
        train: (N, D).
        train_labels: (N,) classes, or (N, K) of 0 and 1.
        test: (M, D).
        neighbours: how many vote, at most N.

    Returns:
        (M, K) votes; one column a class that occurs among `train_labels`, ascending, or each of the K.

    Raises:
        ConfigError: more neighbours than training rows, or none.
    """
    if not 1 <= neighbours <= len(train):
        raise ConfigError(f"--neighbours {neighbours}: between 1 and the {len(train)} training images of a fold")
    mean, inverse = standardisation(train.astype(np.float64))
    base, query = ((part - mean) * inverse for part in (train, test))
    base, query = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in (base, query))
    flags = train_labels.astype(np.float64)
    if train_labels.ndim == 1:
        flags = (train_labels[:, None] == np.unique(train_labels)).astype(np.float64)
    out = []
    for start in range(0, len(query), 1024):
        similarity = query[start : start + 1024] @ base.T
        nearest = np.argpartition(-similarity, neighbours - 1, axis=1)[:, :neighbours]
        rows = np.arange(len(nearest))[:, None]
        # A vote counts 1; the similarity, under 1/k of that in sum, only decides between equal counts.
        votes = 1 + similarity[rows, nearest] / (4 * neighbours)
        out.append(np.einsum("mn,mnk->mk", votes, flags[nearest]))
    return np.concatenate(out) if out else np.zeros((0, flags.shape[1]))


def knn_predict(train: NDArray[np.floating], train_labels: Ints, test: NDArray[np.floating], neighbours: int) -> Ints:
    """(M,) labels by the votes of `knn_scores`, for classes that exclude each other.

    Args:
        train: (N, D).
        train_labels: (N,).
        test: (M, D).
        neighbours: how many vote, at most N.

    Raises:
        ConfigError: more neighbours than training rows, or none.
    """
    predicted: Ints = np.unique(train_labels)[knn_scores(train, train_labels, test, neighbours).argmax(1)]
    return predicted


def bootstrap(values: NDArray[np.floating], units: NDArray[np.integer], seed: int, draws: int = DRAWS) -> Interval:
    """Mean of values per image with the percentile interval of resampling whole units (images, or places).

    Feeding the difference of two methods' values makes the interval a paired one.

    Args:
        values: (N,), such as 1 for right and 0 for wrong.
        units: (N,) number of the unit each image belongs to.
        seed: of the draws; equal seeds draw equal units, whatever the values.
    """
    _, unit = np.unique(units, return_inverse=True)
    sums, counts = np.bincount(unit, values), np.bincount(unit)
    return bootstrap_score(lambda times: (times @ sums) / (times @ counts), len(counts), seed, draws)


def bootstrap_score(score: Callable[[Floats], Floats], units: int, seed: int, draws: int = DRAWS) -> Interval:
    """A score with the percentile interval of resampling the units it is made of.

    Args:
        score: how often each unit counts, (d, U), to (d,) scores; NaN where one is not defined.
        units: U.
        seed: of the draws; equal seeds draw equal units.
    """
    value = float(score(np.ones((1, units)))[0])
    if units < MIN_UNITS:
        return Interval(value, None, None)
    rng = np.random.default_rng(seed)
    found = []
    some = max(1, AT_ONCE // units)
    for start in range(0, draws, some):
        drawn = [rng.integers(0, units, units) for _ in range(min(some, draws - start))]
        found.append(score(np.stack([np.bincount(d, minlength=units) for d in drawn]).astype(np.float64)))
    scores = np.concatenate(found)
    if np.isnan(scores).all():
        return Interval(value, None, None)
    low, high = np.nanquantile(scores, [0.025, 0.975])
    return Interval(value, float(low), float(high))
