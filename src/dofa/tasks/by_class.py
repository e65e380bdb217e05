"""Scores of each class: intersection over union, user's and producer's accuracy, F1, and how often it occurs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from dofa.tasks.labelled import Task
from dofa.tasks.metrics import Counts, f1, iou, precision, recall

# The names of remote sensing beside those of machine learning: of a map's pixels the first, of images the second.
HEADINGS = {"iou": "IoU", "precision": "precision", "recall": "recall", "f1": "F1"}
OF_PIXELS = {**HEADINGS, "precision": "user's accuracy", "recall": "producer's accuracy"}


def class_scores(names: Sequence[str], counts: Counts, task: Task) -> tuple[dict[str, Any], ...]:
    """A row of scores a class, as scikit-learn's classification_report counts them.

    Args:
        names: of the K classes.
        counts: (K, K) confusion matrix; (K, 2, 2) of several classes at once, from `binary_counts`.
        task: which scores are shown.

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
        title: above the table.
    """
    headings = OF_PIXELS if "iou" in rows[0] else HEADINGS
    kinds = [kind for kind in headings if kind in rows[0]]
    table = Table("class", *(f"{headings[kind]} %" for kind in kinds), "count", title=title or None)
    for row in rows:
        cells = ["–" if row[kind] is None else f"{100 * row[kind]:.1f}" for kind in kinds]
        table.add_row(row["name"], *cells, f"{row['count']:,}")
    return table
