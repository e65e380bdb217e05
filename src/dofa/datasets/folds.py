"""Folds for cross-validation: every class spread evenly, whole places kept together."""

import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dofa.datasets.labelled import Ints
from dofa.errors import ConfigError, DataError


@dataclass(frozen=True)
class Fold:
    """Which images are learned from and which are judged, (n,) indices each."""

    train: Ints
    test: Ints


def split_folds(
    labels: Ints, folds: int, seed: int, places: Sequence[str] | None = None, names: Sequence[str] | None = None
) -> list[Fold]:
    """K folds with every class spread evenly; whole places stay together where places are given.

    Args:
        labels: (N,).
        folds: how many, at least 2.
        places: (N,) place of each image; no place is then in two folds.
        names: of the classes by label, for messages.

    Raises:
        ConfigError: fewer than 2 folds, or more than there are places.
        DataError: a class with fewer images than folds.
    """
    if folds < 2:
        raise ConfigError(f"--folds {folds}: at least 2 (or the published split)")
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count < folds:
            name = names[label] if names is not None else f"label {label}"
            raise DataError(
                f"class {name} has {count} images, fewer than the {folds} folds: "
                "use fewer folds, or leave the class out"
            )
    if places is not None and len(set(places)) < folds:
        raise ConfigError(f"{len(set(places))} places do not fill {folds} folds: use fewer folds, or split by image")
    return _folds(labels, folds, seed, places)


def deal_folds(units: Iterable[Hashable], folds: int, seed: int) -> list[Fold]:
    """K folds of whole units (places, blocks, images), dealt out like cards; for labels with no one class an image.

    Args:
        units: (N,) the unit of each image.
        folds: how many, at least 2.

    Raises:
        ConfigError: fewer than 2 folds, or more than there are units.
    """
    _, unit = np.unique(list(units), return_inverse=True)
    count = int(unit.max()) + 1
    if not 2 <= folds <= count:
        raise ConfigError(f"{folds} folds of {count} places or images: at least 2, and no more than there are")
    fold_of = np.empty(count, np.int64)
    fold_of[np.random.default_rng(seed).permutation(count)] = np.arange(count) % folds
    return [Fold(np.flatnonzero(fold_of[unit] != k), np.flatnonzero(fold_of[unit] == k)) for k in range(folds)]


def fewer_labels(labels: Ints, rows: Ints, fraction: float, seed: int) -> Ints:
    """Part of the training rows: of each class the same share, at least one; a larger fraction holds a smaller one.

    Args:
        labels: (N,) or (N, K) of all images; several classes at once are not told apart.
        rows: to choose from.
        fraction: of them to keep, above 0 and at most 1.

    Raises:
        ConfigError: another fraction.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"--fraction {fraction}: the share of the training labels to learn from, above 0, at most 1")
    order = np.random.default_rng(seed).permutation(len(labels)).argsort()
    classes = labels[rows] if labels.ndim == 1 else np.zeros(len(rows), np.int64)
    kept = []
    for label in np.unique(classes):
        of_class = rows[classes == label]
        kept.append(of_class[order[of_class].argsort()][: max(1, round(fraction * len(of_class)))])
    return np.sort(np.concatenate(kept))


def _folds(labels: Ints, folds: int, seed: int, places: Sequence[str] | None) -> list[Fold]:
    everything = np.arange(len(labels))
    if places is None:
        rng = np.random.default_rng(seed)
        fold_of = np.empty(len(labels), np.int64)
        dealt = 0
        for label in np.unique(labels):  # each class dealt out like cards, on where the last one stopped
            members = rng.permutation(np.flatnonzero(labels == label))
            fold_of[members] = (dealt + np.arange(len(members))) % folds
            dealt += len(members)
        return [Fold(everything[fold_of != k], everything[fold_of == k]) for k in range(folds)]
    from sklearn.model_selection import StratifiedGroupKFold

    with warnings.catch_warnings():
        # It warns of a class in fewer images than folds: checked by the caller, who knows the names.
        warnings.simplefilter("ignore", UserWarning)
        parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(everything, labels, list(places))
        return [Fold(train, test) for train, test in parts if len(test)]
