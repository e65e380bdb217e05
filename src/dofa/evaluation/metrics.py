"""Scores of classification and segmentation from counts that add up: over batches, files, processes or bootstrap draws.

A confusion matrix is (K, K) counts: rows are true classes, columns predicted ones. Those of several batches are summed;
those of single images, kept apart as (N, K, K), can be drawn again by a bootstrap: every score takes (..., K, K). What
is not defined (a class that neither occurs nor is predicted; no label at all) is NaN, and left out of a mean.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.table import Table

from dofa.datasets.labelled import Task
from dofa.errors import DataError

Counts = NDArray[np.int64]
Scores = NDArray[np.float64]


def confusion(predicted: ArrayLike, labels: ArrayLike, classes: int, ignore: int | None = None) -> Counts:
    """Counts of (true, predicted) pairs.

    Args:
        predicted: integers of any shape, 0 to K − 1.
        labels: as many, 0 to K − 1 or `ignore`.
        ignore: label that is counted nowhere, whatever was predicted there.

    Returns:
        (K, K) int64.

    Raises:
        DataError: another shape, not integers, or values that are no class.
    """
    given, true = np.asarray(predicted), np.asarray(labels)
    if given.shape != true.shape:
        raise DataError(f"predictions of shape {given.shape} for labels of shape {true.shape}")
    for what, values in (("predictions", given), ("labels", true)):
        if values.dtype.kind not in "iu" and values.size:
            raise DataError(f"{what} are {values.dtype} numbers; classes are integers")
    if ignore is not None:
        counted = true != ignore
        given, true = given[counted], true[counted]
    # Before they are combined: 1 · K + (−1) would be another pair.
    require_classes(given, classes, "predictions")
    require_classes(true, classes, "labels", ignore)
    pairs = true.astype(np.int64).ravel() * classes + given.astype(np.int64).ravel()
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def require_classes(values: NDArray[np.integer], classes: int, what: str, ignore: int | None = None) -> None:
    """Refuse values outside 0 to K − 1.

    Args:
        values: of any shape, those to be ignored left out already.
        ignore: said in the error.

    Raises:
        DataError: some are; the values and their number are said.
    """
    outside = (values < 0) | (values >= classes)
    if outside.any():
        found = np.unique(values[outside])
        told = ", ".join(map(str, found[:5])) + (", …" if len(found) > 5 else "")
        besides = "" if ignore is None else f" or {ignore} (ignored)"
        raise DataError(
            f"{int(outside.sum())} {what} are {told}; classes are 0 to {classes - 1}{besides}: "
            "map them to classes, or name the value to ignore"
        )


def accuracy(counts: Counts) -> Scores:
    """Share of labels that were met: (..., K, K) to (...)."""
    return _ratio(np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1)))


def iou(counts: Counts) -> Scores:
    """Intersection over union of each class: (..., K, K) to (..., K); NaN where it neither occurs nor is predicted."""
    met = np.diagonal(counts, axis1=-2, axis2=-1)
    return _ratio(met, counts.sum(-1) + counts.sum(-2) - met)


def mean_iou(counts: Counts) -> Scores:
    """Mean of `iou` over the classes that have one: (..., K, K) to (...)."""
    return _mean(iou(counts))


def f1(counts: Counts) -> Scores:
    """F1 of each class, 2 TP / (2 TP + FP + FN): (..., K, K) to (..., K), NaN as in `iou`.

    Micro-averaged over exclusive classes it is the accuracy.
    """
    return _ratio(2 * np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1) + counts.sum(-2))


def precision(counts: Counts) -> Scores:
    """User's accuracy of each class, TP / (TP + FP): (..., K, K) to (..., K); NaN where it is never predicted."""
    return _ratio(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-2))


def recall(counts: Counts) -> Scores:
    """Producer's accuracy of each class, TP / (TP + FN): (..., K, K) to (..., K); NaN where it does not occur."""
    return _ratio(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1))


def macro_f1(counts: Counts) -> Scores:
    """Mean of `f1` over the classes that have one: (..., K, K) to (...)."""
    return _mean(f1(counts))


def binary_counts(predicted: NDArray[np.bool_], labels: ArrayLike) -> Counts:
    """Confusion matrices of classes that do not exclude each other, one a class.

    Args:
        predicted: (N, K) bool.
        labels: (N, K), 0 or 1.

    Returns:
        (K, 2, 2) int64, rows true and columns predicted; they add up over batches.

    Raises:
        DataError: other shapes, or labels that are neither 0 nor 1.
    """
    true = _flags(labels, np.shape(predicted))
    cells = [[~true & ~predicted, ~true & predicted], [true & ~predicted, true & predicted]]
    return np.array([[cell.sum(0) for cell in row] for row in cells], np.int64).transpose(2, 0, 1)


def multilabel_f1(counts: Counts) -> Scores:
    """F1 of each class, from `binary_counts`: (..., K, 2, 2) to (..., K), NaN as in `iou`."""
    return f1(counts)[..., 1]


def micro_f1(counts: Counts) -> Scores:
    """F1 of all classes' decisions together, from `binary_counts`: (..., K, 2, 2) to (...)."""
    return multilabel_f1(counts.sum(-3))


def micro_average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Average precision over all pairs of image and class, ranked together: Σ (Rₙ − Rₙ₋₁) Pₙ, equal scores as one step.

    Args:
        scores: (N, K), higher for likelier.
        labels: (N, K), 0 or 1.

    Returns:
        0 to 1; NaN where no label is 1.

    Raises:
        DataError: other shapes, labels that are neither 0 nor 1, or scores that are NaN.
    """
    ranked = np.asarray(scores, np.float64)
    true = _flags(labels, ranked.shape)
    if np.isnan(ranked).any():
        raise DataError(f"{int(np.isnan(ranked).sum())} of {ranked.size} scores are NaN: they have no rank")
    if not true.any():
        return float("nan")
    order = np.argsort(-ranked, axis=None, kind="stable")
    values, hits = ranked.ravel()[order], true.ravel()[order]
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)  # of every run of equal scores
    met = np.cumsum(hits)[last]
    gained = np.diff(met, prepend=0) / met[-1]
    return float((gained * met / (last + 1)).sum())


def _flags(labels: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    true = np.asarray(labels)
    if len(shape) != 2 or true.shape != shape:
        raise DataError(f"labels of shape {true.shape} for predictions of shape {shape}; (N, K) both")
    if not np.isin(true, (0, 1)).all():
        raise DataError("labels of several classes at once are 0 or 1")
    return true.astype(bool)


def _ratio(part: NDArray[np.integer], whole: NDArray[np.integer]) -> Scores:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(part / whole, np.float64)


def _mean(values: Scores) -> Scores:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing but NaN, whose mean is NaN
        return np.asarray(np.nanmean(values, axis=-1), np.float64)


# -- Scores of each class: intersection over union, user's and producer's accuracy, F1, and how often it occurs.

# The names of remote sensing beside those of machine learning: of a map's pixels the first, of images the second.
HEADINGS = {"iou": "IoU", "precision": "precision", "recall": "recall", "f1": "F1"}
OF_PIXELS = {**HEADINGS, "precision": "user's accuracy", "recall": "producer's accuracy"}


def class_scores(names: Sequence[str], counts: Counts, task: Task) -> tuple[dict[str, Any], ...]:
    """A row of scores a class, as scikit-learn's classification_report counts them.

    Args:
        counts: (K, K) confusion matrix; (K, 2, 2) of several classes at once, from `binary_counts`.

    Returns:
        For each class its `name`, `count` (images or pixels that have it), `iou` of a segmentation, `precision`
        (user's accuracy), `recall` (producer's accuracy) and `f1`; shares 0–1, None where a score is not defined.
    """
    each = {kind: score(counts) for kind, score in (("precision", precision), ("recall", recall), ("f1", f1))}
    support = counts.sum(-1)
    if task == "multilabel":
        each, support = {kind: found[:, 1] for kind, found in each.items()}, support[:, 1]
    if task == "segmentation":
        each = {"iou": iou(counts), **each}
    return tuple(
        {"name": name, "count": int(support[k])}
        | {kind: None if np.isnan(found[k]) else float(found[k]) for kind, found in each.items()}
        for k, name in enumerate(names)
    )


def class_table(rows: Sequence[dict[str, Any]], title: str = "") -> Table:
    """Scores of each class in percent, for the terminal.

    Args:
        rows: of `class_scores`.
    """
    headings = OF_PIXELS if "iou" in rows[0] else HEADINGS
    kinds = [kind for kind in headings if kind in rows[0]]
    table = Table("class", *(f"{headings[kind]} %" for kind in kinds), "count", title=title or None)
    for row in rows:
        cells = ["–" if row[kind] is None else f"{100 * row[kind]:.1f}" for kind in kinds]
        table.add_row(row["name"], *cells, f"{row['count']:,}")
    return table
