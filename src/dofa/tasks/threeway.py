"""Three parts of a data set: to learn from, to choose by, to test."""

from dataclasses import dataclass

import numpy as np

from dofa.errors import DataError
from dofa.tasks.evaluation import Fold, deal_folds, split_folds
from dofa.tasks.labelled import LabelledImages
from dofa.tasks.linear import Ints

FIFTHS = 5  # without a published split: three to learn from, one to choose by, one to test


@dataclass(frozen=True)
class Split:
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


def split(images: LabelledImages, seed: int) -> Split:
    """Rows to learn from, to choose by and to test: as published, or drawn where there is no such word.

    Whole places stay on one side where there are enough of them.

    Args:
        images: with their published split, if there is one.
        seed: of what is drawn.

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
        return Split(train, second.test, first.test, tuple(notes))
    names = np.array(images.splits)
    train, val, test = (np.flatnonzero(names == name) for name in ("train", "val", "test"))
    if not len(val) and len(train):
        part = fifths(train)[0]
        train, val = train[part.train], train[part.test]
        notes.append("no published validation images: a fifth of the training images choose the epoch")
    for name, rows in (("train", train), ("test", test)):
        if not len(rows):
            raise DataError(f"{images.name} has no {name} images in its split: there is nothing to {name} on")
    return Split(train, val, test, tuple(notes))


def unseen(images: LabelledImages, rows: Ints) -> list[str]:
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
