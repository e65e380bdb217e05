"""What a model is worth on images: the metric of the task with its interval, a table by class, a confusion matrix."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from dofa.datasets.labelled import IGNORE, LabelledImages, Task
from dofa.errors import DataError
from dofa.evaluation.bootstrap import Classes, Pixels, Predictions, Ranked, drawn_scores, interval
from dofa.evaluation.cross_validation import Interval
from dofa.evaluation.judged_images import Panels, choose_images, make_panels
from dofa.evaluation.metrics import Counts, binary_counts, class_scores, class_table, confusion
from dofa.evaluation.probe_result import Metric
from dofa.plots import canvas

METRICS: dict[Task, Metric] = {"classification": "accuracy", "multilabel": "micro AP", "segmentation": "mIoU"}
NAMED = 40  # classes whose names still fit beside a confusion matrix
ANSWERED = "answered"  # by the model that is judged
NUMBERED = 16  # classes whose shares are written into it


@dataclass(frozen=True)
class Score:
    """A score with what it is made of.

    Attributes:
        metric: accuracy, micro AP or mIoU.
        score: 0–1 with the 95 % interval of a bootstrap over places, or images where no places are known.
        classes: a row of scores a class; see `class_scores`.
        confusion: (K, K) counts, rows true and columns predicted; of a multilabel task (K, 2, 2).
        images: judged.
        drawn: scores of the bootstrap's draws, for paired differences; empty where units are too few.
        panels: a few of the images with what was answered; None where pixels are not judged.
    """

    metric: Metric
    score: Interval
    classes: tuple[dict[str, Any], ...]
    confusion: Counts = field(repr=False)
    images: int
    drawn: tuple[float, ...] = field(repr=False)
    panels: Panels | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain form, for JSON."""
        return {
            "metric": self.metric,
            "score": asdict(self.score),
            "images": self.images,
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
        }

    @property
    def percent(self) -> str:
        """The score and its interval."""
        return percent(self.score)

    def table(self) -> Table:
        """By class, for the terminal."""
        return class_table(self.classes)


def percent(score: Interval) -> str:
    """A score and its interval in percent."""
    if score.low is None or score.high is None:
        return f"{100 * score.value:.1f} % (too few units for an interval)"
    return f"{100 * score.value:.1f} % ({100 * score.low:.1f} to {100 * score.high:.1f})"


def score_predictions(
    answers: Iterable[tuple[Tensor, Tensor]], data: LabelledImages, rows: NDArray[np.int64], seed: int
) -> Score:
    """Score answers of images.

    Args:
        answers: logits and targets of batches, in the order of `rows`: (B, K) with (B,) classes or (B, K) of 0 and 1,
            or (B, K, h, w), resized to the masks (B, H, W) where they differ.

    Raises:
        DataError: no image, or answers that are not finite.
    """
    if not len(rows):
        raise DataError(f"{data.name}: there is no image to judge")
    classes = len(data.class_names)
    where = rows if data.places is None else np.array(data.places)[rows]
    unit = np.unique(where, return_inverse=True)[1].astype(np.int64)
    single: list[Counts] = []
    scores, truths = [], []
    shown = choose_images(data, rows.tolist()) if data.task == "segmentation" else []
    labels: dict[int, NDArray[np.int64]] = {}
    maps: dict[int, NDArray[np.int64]] = {}
    for logits, target in answers:
        if not bool(torch.isfinite(logits).all()):
            raise DataError(f"{data.name}: the model answers NaN or infinite values: lower the learning rate")
        if data.task == "multilabel":
            scores.append(logits.sigmoid().double().cpu().numpy())
            truths.append(target.cpu().numpy())
            continue
        if data.task == "segmentation" and logits.shape[-2:] != target.shape[-2:]:
            logits = F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=False)
        predicted, true = logits.argmax(1).cpu().numpy(), target.cpu().numpy()
        ignore = IGNORE if data.task == "segmentation" else None
        here = rows[len(single) : len(single) + len(predicted)]
        for row, one, mask in zip(here, predicted, true, strict=True):
            if row in shown:
                maps[int(row)], labels[int(row)] = one, np.where(mask == IGNORE, -1, mask)
        single += [confusion(np.array(p), np.array(t), classes, ignore) for p, t in zip(predicted, true, strict=True)]
    judged: Predictions
    if data.task == "multilabel":
        ranked, true = np.concatenate(scores), np.concatenate(truths)
        judged, counts = Ranked(ranked, true, unit), binary_counts(ranked > 0.5, true)
    else:
        each = np.stack(single)
        counts = each.sum(0)
        if data.task == "segmentation":
            by_unit = np.zeros((int(unit.max()) + 1, classes, classes), np.int64)
            np.add.at(by_unit, unit, each)
            judged = Pixels(by_unit)
        else:
            judged = Classes(np.trace(each, axis1=1, axis2=2).astype(np.float64), unit)
    draws = tuple(drawn_scores([judged], seed))
    panels = make_panels(data, labels, {ANSWERED: maps})
    table = class_scores(data.class_names, counts, data.task)
    return Score(METRICS[data.task], interval([judged], seed), table, counts, len(rows), draws, panels)


def logits_of(
    answer: Callable[[Tensor], Tensor],
    read: Callable[[Sequence[int]], tuple[Tensor, Tensor]],
    rows: NDArray[np.int64],
    *,
    batch: int,
    device: torch.device,
    bf16: bool,
    progress: Callable[[int], None] = lambda images: None,
) -> Iterable[tuple[Tensor, Tensor]]:
    """A model's answers to images, with their targets, batch by batch, for `score_predictions`.

    Args:
        answer: images to logits, in eval mode.
        read: rows to images and targets.
        bf16: under autocast.
        progress: called with the number of images just answered.
    """
    for start in range(0, len(rows), batch):
        images, targets = read(rows[start : start + batch].tolist())
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = answer(images.to(device)).float().cpu()
        yield logits, targets
        progress(len(images))


def draw_confusion(score: Score, path: Path, title: str) -> Path:
    """A picture of the confusion matrix: shares of each true class (rows) by what was answered (columns)."""
    names = [row["name"] for row in score.classes]
    share = score.confusion / np.maximum(score.confusion.sum(1, keepdims=True), 1)
    label = 0.3 + 0.075 * max(map(len, names)) if len(names) <= NAMED else 0.4
    side = min(max(2.5, 0.26 * len(names)), 7.0)
    width, height = label + side + 0.3, label + side + 0.6
    with canvas(path, (width, height)) as figure:
        axes = figure.add_axes((label / width, label / height, side / width, side / height))
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        if len(names) <= NUMBERED:
            for (row, col), value in np.ndenumerate(share):
                if value >= 0.005:
                    colour = "white" if value > 0.55 else "black"
                    axes.text(col, row, f"{100 * value:.0f}", ha="center", va="center", size=6, color=colour)
        ticks, told = (range(len(names)), names) if len(names) <= NAMED else (range(0), [])
        axes.set_xticks(ticks, told, rotation=90, size=7)
        axes.set_yticks(ticks, told, size=7)
        axes.set_xlabel("answered", size=7)
        axes.set_ylabel("true", size=7)
        axes.tick_params(length=0)
        axes.set_title(title, size=9, loc="left")
    return path
