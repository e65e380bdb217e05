"""How a frozen model takes more bands and fewer: accuracy as they are added, and when some of them are missing.

Every number is of images that were not learned from. The bands are those of the data set; the images are normalised
once and for all, so that two sets of bands differ in nothing but the bands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from dofa.datasets.labelled import Ints, LabelledImages
from dofa.datasets.splits import Parts
from dofa.errors import ConfigError
from dofa.evaluation.backbones import Backbone
from dofa.evaluation.cross_validation import Interval, bootstrap, choose_penalty, fit_logistic
from dofa.evaluation.frozen_features import Floats
from dofa.model.heads import Block
from dofa.sensors import Sensor

Order = Literal["given", "spread"]
Way = Literal["dropped", "zeroed"]
Features = Callable[[Sequence[str]], Floats]  # bands in an order to (N, D)


@dataclass(frozen=True)
class BandScore:
    """Accuracy with a set of bands.

    Attributes:
        bands: that were there; where several sets were drawn, none is named.
        count: how many.
        score: share of right answers and its interval; of several sets their mean, image by image.
    """

    bands: tuple[str, ...]
    count: int
    score: Interval


class ZeroedBands(Backbone):
    """A model that is told of all bands and finds zeros (each band's mean) in some of them.

    Args:
        zeroed: places of these bands among those of the images.
    """

    def __init__(self, inner: Backbone, zeroed: Sequence[int]) -> None:
        self.inner, self.zeroed = inner, list(zeroed)
        self.name, self.sha256, self.module = inner.name, inner.sha256, inner.module
        self.depth, self.width, self.patch = inner.depth, inner.width, inner.patch
        self.image_size, self.patch_offset = inner.image_size, inner.patch_offset

    module: nn.Module

    def scaling(self, data: LabelledImages, stats: str | None = None, dataset: Any = None) -> Any:
        """The model's own."""
        return self.inner.scaling(data, stats, dataset)

    def key(self, data: LabelledImages) -> dict[str, Any]:
        """The model's own, and which bands are zero."""
        return {**self.inner.key(data), "zeroed": sorted(self.zeroed)}

    def maps(self, images: Tensor, sensor: Sensor, blocks: Sequence[int]) -> list[Tensor]:
        """Of what is left of the images."""
        return self.inner.maps(self._without(images), sensor, blocks)

    def vectors(self, images: Tensor, sensor: Sensor, levels: Sequence[Block]) -> dict[Block, Tensor]:
        """Of what is left of the images."""
        return self.inner.vectors(self._without(images), sensor, levels)

    def _without(self, images: Tensor) -> Tensor:
        return images.index_fill(1, images.new_tensor(self.zeroed).long(), 0)


def order_bands(sensor: Sensor, order: Order) -> tuple[str, ...]:
    """The bands in the order in which they are added.

    Args:
        order: `given` is the sensor's own. `spread` begins with its first optical band and goes on with the band whose
            wavelength is farthest from all before it; bands without a wavelength (radar) come last.
    """
    if order == "given":
        return sensor.band_names
    left = [band for band in sensor.bands if band.wavelength_um is not None]
    chosen = [left.pop(0)] if left else []

    def gap(um: float | None) -> float:
        return min(abs(float(um or 0) - float(other.wavelength_um or 0)) for other in chosen)

    while left:
        farthest = max(left, key=lambda band: gap(band.wavelength_um))
        chosen.append(farthest)
        left.remove(farthest)
    rest = [band.name for band in sensor.bands if band.wavelength_um is None]
    return (*(band.name for band in chosen), *rest)


def added_one_by_one(
    features: Features, order: Sequence[str], labels: Ints, shared: Parts, seed: int
) -> list[BandScore]:
    """Accuracy with the first band, the first two, …, learned and judged with the same bands.

    Args:
        features: of all images from some bands.
        order: bands in the order in which they are added.
        labels: (N,).
        shared: folds, places and units of the bootstrap.
        seed: of the inner folds and the bootstrap.
    """
    found = []
    for count in range(1, len(order) + 1):
        of_bands = features(order[:count])
        right = judge(of_bands, [of_bands], labels, shared, seed)
        found.append(BandScore(tuple(order[:count]), count, bootstrap(right, shared.units, seed)))
    return found


def left_out(
    learned: Floats,
    features: Features,
    bands: Sequence[str],
    labels: Ints,
    shared: Parts,
    seed: int,
    draws: int,
) -> list[BandScore]:
    """Accuracy of a classifier that learned from all bands, on images of which some bands are missing.

    Args:
        learned: (N, D) features from all bands.
        features: of all images from what is left of the bands.
        bands: all of them, in order.
        labels: (N,).
        shared: folds, places and units of the bootstrap.
        seed: of the sets that are drawn, equal for every model, the inner folds and the bootstrap.
        draws: sets of each size.

    Returns:
        One score for each count of bands left, the most first; the first is of all bands.
    """
    whole = judge(learned, [learned], labels, shared, seed)
    scores = [BandScore(tuple(bands), len(bands), bootstrap(whole, shared.units, seed))]
    for missing in counts_missing(len(bands)):
        sets = draw_sets(bands, missing, draws, seed)
        right = judge(learned, [features(kept) for kept in sets], labels, shared, seed)
        scores.append(BandScore((), len(bands) - missing, bootstrap(right, shared.units, seed)))
    return scores


def counts_missing(bands: int) -> list[int]:
    """How many of the bands are taken away: one, a quarter, a half, three quarters, all but one.

    Raises:
        ConfigError: a single band: nothing can be missing.
    """
    if bands < 2:
        raise ConfigError("robustness to missing bands needs images of at least two bands")
    return sorted({1, round(bands / 4), round(bands / 2), round(3 * bands / 4), bands - 1} - {0, bands})


def draw_sets(bands: Sequence[str], missing: int, draws: int, seed: int) -> list[tuple[str, ...]]:
    """Different sets of the bands that are left, each in the order given; fewer where there are not so many sets.

    Args:
        missing: how many go.
        draws: sets wanted.
    """
    rng = np.random.default_rng([seed, missing])
    found: dict[tuple[str, ...], None] = {}
    for _ in range(20 * draws):
        kept = np.sort(rng.permutation(len(bands))[missing:])
        found.setdefault(tuple(bands[i] for i in kept))
        if len(found) == draws:
            break
    return list(found)


def judge(learned: Floats, judged: Sequence[Floats], labels: Ints, shared: Parts, seed: int) -> NDArray[np.float64]:
    """Out-of-fold answers of a logistic regression with its penalty chosen on the training images.

    Args:
        learned: (N, D) features it learns from.
        judged: features it answers from, (N, D) each.
        labels: (N,).
        shared: folds and places.

    Returns:
        (M,) share of the entries of `judged` with a right answer, of each judged image in the order of the folds.
    """
    right = []
    for part in shared.parts:
        places = None if shared.places is None else [shared.places[row] for row in part.train]
        train, classes = learned[part.train], labels[part.train]
        model = fit_logistic(train, classes, choose_penalty(train, classes, seed=seed, places=places))
        answers = [model.predict(features[part.test]) == labels[part.test] for features in judged]
        right.append(np.mean(answers, axis=0))
    return np.concatenate(right)
