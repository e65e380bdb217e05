"""Probes of single pixels: a linear layer on a sample of labelled pixels, judged on all pixels of other images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dofa.datasets.folds import Fold
from dofa.datasets.labelled import Ints, LabelledImages, Raw, digest
from dofa.errors import ConfigError, DataError
from dofa.evaluation.bootstrap import CrossValidated, Pixels
from dofa.evaluation.cross_validation import Optimizer, choose_penalty, fit
from dofa.evaluation.linear import LinearModel
from dofa.evaluation.metrics import Counts, confusion, mean_iou, require_classes
from dofa.evaluation.pixel_features import Floats, PixelFeatures

NONE = -1  # of label maps: neither learned nor judged
BLOCKS = 25  # that a single image is cut into, about


@dataclass(frozen=True)
class Sample:
    """Labelled pixels to learn from, an equal number of each class as far as there are so many.

    Attributes:
        image: (n,) where each is.
        row: (n,).
        col: (n,).
        label: (n,).
        key: (n,) random; the lowest are taken first.
    """

    image: Ints
    row: Ints
    col: Ints
    label: Ints
    key: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.image)

    def choose(self, allowed: NDArray[np.bool_], pixels: int) -> Ints:
        """(m,) numbers of at most `pixels` of the allowed ones, classes alike.

        Args:
            allowed: (n,) which pixels of the sample may be taken.
        """
        found = [np.flatnonzero(allowed & (self.label == label)) for label in np.unique(self.label[allowed])]
        each = pixels // max(len(found), 1)
        return np.sort(np.concatenate([f[self.key[f].argsort()[:each]] for f in found] or [np.zeros(0, np.int64)]))


def label_map(data: LabelledImages, row: int) -> NDArray[np.int64]:
    """(H, W) classes of an image, NONE where nothing is known or nothing was measured.

    Args:
        row: number of the image.

    Raises:
        DataError: a mask of another size than its image, or labels outside the classes.
    """
    assert data.read_mask is not None
    mask = data.read_mask(row).astype(np.int64)
    raw, valid = data.read(row)
    if mask.shape != raw.shape[1:]:
        raise DataError(f"{data.sources[row]}: a mask of {mask.shape} for an image of {raw.shape[1:]} pixels")
    if data.ignore is not None:
        mask[mask == data.ignore] = NONE
    if valid is not None:
        mask[~valid] = NONE
    try:
        require_classes(mask[mask != NONE], len(data.class_names), "labels", data.ignore)
    except DataError as error:
        raise DataError(f"{data.sources[row]}: {error}") from None
    return mask


def draw_sample(data: LabelledImages, groups: Ints, pixels: int, seed: int) -> Sample:
    """Pixels of every class, drawn from each group of images apart, so that any union of groups can be learned from.

    Args:
        groups: (N,) number of each image's group; below 0 to leave it out.
        pixels: to learn from, later; a group gives at most so many of a class as all of them would need.
        seed: of the draw; of an image it depends on nothing but its number.

    Raises:
        DataError: no labelled pixel at all.
    """
    kept: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
    for image in np.flatnonzero(groups >= 0):
        mask = label_map(data, int(image))
        keys = np.random.default_rng([seed, int(image)]).random(mask.shape)
        for label in np.unique(mask[mask != NONE]):
            row, col = np.nonzero(mask == label)
            key = keys[row, col]
            lowest = key.argsort()[:pixels]
            found = np.stack([np.full(len(lowest), image), row[lowest], col[lowest], key[lowest]])
            held = kept.setdefault((int(groups[image]), int(label)), [])
            held.append(found)
            if sum(part.shape[1] for part in held) > 4 * pixels:
                held[:] = [_lowest(held, pixels)]
    if not kept:
        raise DataError(f"{data.name} has no labelled pixel to learn from")
    parts = [(label, _lowest(held, pixels)) for (_, label), held in sorted(kept.items())]
    image, row, col, key = np.concatenate([part for _, part in parts], axis=1)
    labels = np.concatenate([np.full(part.shape[1], label) for label, part in parts])
    order = np.lexsort((col, row, image))
    at = [values.astype(np.int64)[order] for values in (image, row, col, labels)]
    return Sample(at[0], at[1], at[2], at[3], key[order])


def _lowest(held: list[NDArray[np.float64]], count: int) -> NDArray[np.float64]:
    whole = np.concatenate(held, axis=1)
    return whole[:, np.sort(whole[3].argsort()[:count])]


def gather(features: PixelFeatures, sample: Sample, shape: tuple[int, int]) -> Floats:
    """(n, D) features of a sample's pixels; `shape` is (H, W) of the label maps.

    Args:
        sample: the pixels wanted.
    """
    down, across = features.cells(shape[0], 0), features.cells(shape[1], 1)
    out: list[Floats] = []
    images, first = np.unique(sample.image, return_index=True)
    ends = [*first[1:], len(sample)]
    for (_, found), begin, end in zip(features.maps(images.tolist()), first, ends, strict=True):
        out.append(found[down[sample.row[begin:end]], across[sample.col[begin:end]]])
    return np.concatenate(out)


@dataclass(frozen=True)
class Ground:
    """Which pixels may be learned from beside which are judged: of blocks cut from one image, none within a gap.

    Attributes:
        across: blocks in a row of blocks; 0 where images are no blocks.
        shape: (H, W) of an image or block.
        gap: pixels between what is learned and what is judged.
    """

    across: int
    shape: tuple[int, int]
    gap: int

    def free(self, sample: Sample, judged: Ints) -> NDArray[np.bool_]:
        """(n,) whether each pixel of a sample is far enough from the images judged.

        Args:
            sample: pixels.
            judged: numbers of the images or blocks that are judged.
        """
        allowed = ~np.isin(sample.image, judged)
        if not self.across:
            return allowed
        height, width = self.shape
        y, x = (sample.image // self.across) * height + sample.row, (sample.image % self.across) * width + sample.col
        for block in judged:
            top, left = (block // self.across) * height, (block % self.across) * width
            down = np.maximum(top - y, y - (top + height - 1))
            right = np.maximum(left - x, x - (left + width - 1))
            allowed &= np.maximum(down, right) > self.gap
        return allowed


def cut_blocks(data: LabelledImages, side: int | None = None) -> tuple[LabelledImages, int]:
    """One image as many: blocks beside each other, each a place of its own that the encoder sees alone.

    What is judged then has no part in what is learned, not even through attention.

    Args:
        data: a single image with its mask.
        side: of a block in pixels, about; None for some 25 blocks.

    Returns:
        The blocks, row by row, and how many are in a row.

    Raises:
        ConfigError: blocks larger than half the image.
    """
    bands, height, width = data.shape
    side = max(1, round((height * width / BLOCKS) ** 0.5)) if side is None else side
    down, across = round(height / side), round(width / side)
    if down * across < 2:
        raise ConfigError(f"blocks of {side} pixels: the image of {height} × {width} is cut into fewer than two")
    tall, wide = height // down, width // across
    raw, valid = data.read(0)
    assert data.read_mask is not None
    mask = data.read_mask(0)

    def at(block: int) -> tuple[slice, slice]:
        top, left = block // across * tall, block % across * wide
        return slice(top, top + tall), slice(left, left + wide)

    def read(block: int) -> Raw:
        return raw[:, *at(block)], None if valid is None else valid[at(block)]

    count = down * across
    places = tuple(f"block {b // across},{b % across}" for b in range(count))
    lost = height * width - count * tall * wide
    note = (f"{lost} pixels at the edges fill no whole block and are left out",) if lost else ()
    blocks = replace(
        data,
        labels=np.zeros(count, np.int64),
        sources=tuple(f"{data.sources[0]} {place}" for place in places),
        shape=(bands, tall, wide),
        read=read,
        read_mask=lambda block: mask[at(block)],
        fingerprint=digest([data.fingerprint, "blocks", down, across]),
        find_places=lambda: places,
        find_splits=lambda: None,
        notes=(*data.notes, *note),
    )
    return blocks, across


@dataclass(frozen=True)
class PixelTask:
    """A segmentation as a probe sees it: images, folds, and the pixels to learn from.

    Attributes:
        data: the images or blocks.
        parts: folds of them.
        units: (M,) number of each judged image's unit, in the order of the folds.
        sample: pixels to learn from.
        ground: which of them a fold may use.
        pixels: to learn from in a fold.
        candidates: for C or the rate.
        optimizer: of the linear layer.
        seed: of inner folds.
        shown: numbers of the images whose answers are kept to be looked at.
    """

    data: LabelledImages
    parts: Sequence[Fold]
    units: Ints
    sample: Sample
    ground: Ground
    pixels: int
    candidates: Sequence[float]
    optimizer: Optimizer
    seed: int
    shown: frozenset[int] = frozenset()

    def learn(self, features: Floats, train: Ints, judged: Ints) -> LinearModel:
        """A layer on (n, D) features of the sample, from images that may be learned from.

        Args:
            features: of the sample's pixels.
            train: numbers of the images to learn from.
            judged: those to keep away from.

        Raises:
            DataError: fewer than two classes to learn.
        """
        allowed = np.isin(self.sample.image, train) & self.ground.free(self.sample, judged)
        chosen = self.sample.choose(allowed, self.pixels)
        labels = self.sample.label[chosen]
        if len(np.unique(labels)) < 2:
            raise DataError(
                f"{self.data.name}: {len(labels)} labelled pixels of {len(np.unique(labels))} classes in the training "
                "images of a fold: two classes are needed; use other folds, or blocks and a gap that leave more"
            )
        groups = [str(image) for image in self.sample.image[chosen]]
        rows = features[chosen]
        penalty = choose_penalty(rows, labels, self.candidates, self.seed, groups, self.optimizer)
        return fit(rows, labels, penalty, self.seed, self.optimizer)

    def judge(self, of_folds: Sequence[PixelFeatures], width: int, name: str) -> list[CrossValidated]:
        """Learn from each fold's sample and judge all pixels of its other images, one run a level.

        Args:
            of_folds: features for each fold; levels stand side by side, `width` numbers each.

        Raises:
            DataError: features that are not finite.
        """
        classes, shape = len(self.data.class_names), self.ground.shape
        gathered: dict[int, Floats] = {}
        counts: list[list[Counts]] = []
        chosen: list[tuple[float, ...]] = []
        answers: dict[int, dict[int, Ints]] = {}  # by level, by image
        for part, features in zip(self.parts, of_folds, strict=True):
            if id(features) not in gathered:
                gathered = {id(features): gather(features, self.sample, shape)}
                if not np.isfinite(gathered[id(features)]).all():
                    raise DataError(f"{name}: some features of {self.data.name} are NaN or infinite: check its pixels")
            whole = gathered[id(features)]
            slices = [np.s_[start : start + width] for start in range(0, whole.shape[1], width)]
            layers = [self.learn(whole[:, level], part.train, part.test) for level in slices]
            chosen.append(tuple(layer.penalty for layer in layers))
            down, across = features.cells(shape[0], 0), features.cells(shape[1], 1)
            for image, found in features.maps(part.test.tolist()):
                truth = label_map(self.data, image)
                counts.append([])
                for number, (layer, level) in enumerate(zip(layers, slices, strict=True)):
                    flat = found[..., level].reshape(-1, width)
                    predicted = layer.predict(flat).reshape(found.shape[:2])[np.ix_(down, across)]
                    counts[-1].append(confusion(predicted, truth, classes, NONE))
                    if image in self.shown:
                        answers.setdefault(number, {})[image] = predicted
        judged = np.array(counts)  # (M, levels, K, K)
        ends = np.cumsum([len(part.test) for part in self.parts])[:-1]
        out = []
        for number in range(judged.shape[1]):
            of_level = judged[:, number]
            units = np.zeros((int(self.units.max()) + 1, classes, classes), np.int64)
            np.add.at(units, self.units, of_level)
            per_fold = tuple(float(mean_iou(fold.sum(0))) for fold in np.split(of_level, ends))
            values = tuple(of_fold[number] for of_fold in chosen)
            out.append(CrossValidated(Pixels(units), per_fold, values, of_level.sum(0), answers.get(number, {})))
        return out
