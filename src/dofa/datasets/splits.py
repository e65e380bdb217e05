"""Which images of a data set are learned from and which are judged, and what the reader should know of it."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dofa.datasets.folds import Fold, deal_folds, fewer_labels, split_folds
from dofa.datasets.labelled import Ints, LabelledImages
from dofa.errors import DataError

By = Literal["auto", "image", "place", "split"]
Unit = Literal["image", "block"]


@dataclass(frozen=True)
class EvaluationSplits:
    """Folds and what follows from them.

    Attributes:
        parts: the folds; one where there is a published split.
        places: (N,) kept together; None for a split by image.
        learnt: what the saved head is fitted on: all training images.
        groups: (N,) the fold that judges each image, 0 for those that only teach; −1 for those of no use.
        units: (M,) number of what the bootstrap draws, of each judged image in the order of the folds.
        notes: for the reader of the numbers.
        unit: what an image is.
        classes: number of images with each class, of a segmentation 0 for all.
        protocol: as plain values.
    """

    parts: list[Fold]
    places: tuple[str, ...] | None
    learnt: Ints
    groups: Ints
    units: Ints
    notes: list[str]
    unit: Unit
    classes: dict[str, int]
    protocol: dict[str, Any]


def make_splits(
    images: LabelledImages, folds: int, by: By, seed: int, fraction: float = 1.0, blocks: bool = False
) -> EvaluationSplits:
    """Folds of a data set.

    Args:
        folds: how many.
        by: see `probe`.
        fraction: of the training images to keep.
        blocks: whether the images are blocks of one.

    Raises:
        ConfigError: too few places, or settings that do not fit.
        DataError: one class only, a class in fewer images than folds, no split.
    """
    classes = _classes(images)
    notes: list[str] = []
    places = None if by == "image" else images.places
    if by == "split":
        parts = [_published(images)]
    else:
        if by == "place" and places is None:
            raise DataError(f"{images.name} does not say where its images lie: split by image")
        if by == "auto" and places is not None and len(set(places)) < folds:
            notes.append(
                f"{len(set(places))} places do not fill {folds} folds, so images of one place are on both sides of the "
                "split: expect less elsewhere"
            )
            places = None
        if images.task == "classification":
            parts = split_folds(images.labels, folds, seed, places, images.class_names)
        else:
            parts = deal_folds(range(len(images)) if places is None else places, folds, seed)
        notes += _unseen(images, parts)
    everything = parts[0].train if by == "split" else np.arange(len(images))
    labels = images.labels
    if fraction != 1:
        parts = [Fold(fewer_labels(labels, part.train, fraction, seed), part.test) for part in parts]
        everything = fewer_labels(labels, everything, fraction, seed)
    useful = np.unique(np.concatenate([everything, *(part.train for part in parts)]))
    groups = np.full(len(images), -1, np.int64)
    groups[useful] = 0
    for number, part in enumerate(parts if by != "split" else []):
        groups[np.intersect1d(part.test, useful)] = number
    judged = np.concatenate([part.test for part in parts])
    unit = judged if places is None else np.unique(places, return_inverse=True)[1][judged]
    units = np.asarray(np.unique(unit, return_inverse=True)[1], np.int64)
    kind = "split" if by == "split" else "block" if blocks else "image" if places is None else "place"
    protocol = {
        "by": kind,
        "folds": len(parts),
        "places": None if places is None else len(set(places)),
        "fraction": fraction,
    }
    return EvaluationSplits(
        parts, places, everything, groups, units, notes, "block" if blocks else "image", classes, protocol
    )


def _classes(images: LabelledImages) -> dict[str, int]:
    names = images.class_names
    if images.task == "segmentation":
        return dict.fromkeys(names, 0)
    counts = images.labels.sum(0) if images.task == "multilabel" else np.bincount(images.labels, minlength=len(names))
    there = {name: int(count) for name, count in zip(names, counts, strict=True) if count}
    if images.task == "classification" and len(there) < 2:
        raise DataError(f"all {len(images)} images of {images.name} are of one class: a probe needs at least two")
    if not there:
        raise DataError(f"no image of {images.name} has any of its {len(names)} labels: there is nothing to learn")
    return there


def _published(images: LabelledImages) -> Fold:
    if images.splits is None:
        raise DataError(f"{images.name} has no published split beside it: use folds, by image or by place")
    names = np.array(images.splits)
    part = Fold(np.flatnonzero(names != "test"), np.flatnonzero(names == "test"))
    for what, count in (("test", len(part.test)), ("train", len(part.train))):
        if not count:
            raise DataError(f"{images.name} has no {what} images in its split: use folds")
    return part


def _unseen(images: LabelledImages, parts: list[Fold]) -> list[str]:
    """Notes on classes that some folds judge without having seen them."""
    if images.task == "segmentation":
        return []
    with_it = images.labels if images.task == "multilabel" else np.eye(len(images.class_names))[images.labels]
    notes = []
    for label, name in enumerate(images.class_names):
        has = with_it[:, label] > 0
        unseen = sum(bool(has[part.test].any() and not has[part.train].any()) for part in parts)
        if unseen:
            notes.append(
                f"class {name} lies in too few places: {unseen} of {len(parts)} folds judge it without having seen it"
            )
    return notes


# -- Three parts of a data set: to learn from, to choose by, to test.

FIFTHS = 5  # without a published split: three to learn from, one to choose by, one to test


@dataclass(frozen=True)
class ThreeWaySplit:
    """Which images are for what.

    Attributes:
        train: (n,) rows to learn from.
        val: (n,) rows that choose the epoch.
        test: (n,) rows to test, once.
        notes: how they were found.
    """

    train: Ints
    val: Ints
    test: Ints
    notes: tuple[str, ...] = ()


def three_way_split(images: LabelledImages, seed: int) -> ThreeWaySplit:
    """Rows to learn from, to choose by and to test: as published, or drawn where there is no such word.

    Whole places stay on one side where there are enough of them.

    Args:
        images: with their published split, if there is one.

    Returns:
        Three parts that share no image.

    Raises:
        DataError: too few images, or an empty part.
    """
    places = images.places if images.places is not None and len(set(images.places)) >= FIFTHS else None
    notes = []
    if images.places is not None and places is None:
        notes.append(f"{len(set(images.places))} places do not fill {FIFTHS} parts: images of one are on both sides")

    def fifths(rows: Ints) -> list[Fold]:
        held = None if places is None else [places[row] for row in rows]
        if held is not None and len(set(held)) < FIFTHS:
            held = None
        if len(rows) < FIFTHS:
            raise DataError(
                f"{images.name} has {len(rows)} images to split in {FIFTHS}: cut it into chips (dofa chips), or judge "
                "features of its pixels (dofa probe)"
            )
        if images.task == "classification":
            return split_folds(images.labels[rows], FIFTHS, seed, held, images.class_names)
        return deal_folds(range(len(rows)) if held is None else held, FIFTHS, seed)

    everything = np.arange(len(images))
    if images.splits is None:
        first, second = fifths(everything)[:2]
        train = np.setdiff1d(first.train, second.test)
        notes.append("no published split: three fifths to learn from, one to choose by, one to test")
        return ThreeWaySplit(train, second.test, first.test, tuple(notes))
    names = np.array(images.splits)
    train, val, test = (np.flatnonzero(names == name) for name in ("train", "val", "test"))
    if not len(val) and len(train):
        part = fifths(train)[0]
        train, val = train[part.train], train[part.test]
        notes.append("no published validation images: a fifth of the training images choose the epoch")
    for name, rows in (("train", train), ("test", test)):
        if not len(rows):
            raise DataError(f"{images.name} has no {name} images in its split: there is nothing to {name} on")
    return ThreeWaySplit(train, val, test, tuple(notes))


def classes_without_training(images: LabelledImages, rows: Ints) -> list[str]:
    """The classes that no image of some rows shows: they cannot be learned from these.

    Args:
        images: of any task; masks are read until every class was seen.
        rows: (n,) those to learn from.

    Returns:
        Names, in the order of the classes.
    """
    left = set(range(len(images.class_names)))
    if images.read_mask is None:
        labels = images.labels[rows]
        left -= set((labels if images.task == "classification" else np.nonzero(labels)[1]).tolist())
    else:
        for row in rows.tolist():
            if not left:
                break
            shown = images.read_mask(row)
            left -= set(np.unique(shown if images.ignore is None else shown[shown != images.ignore]).tolist())
    return [images.class_names[k] for k in sorted(left)]
