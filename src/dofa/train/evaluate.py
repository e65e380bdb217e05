"""How well masked pixels of held-out images are predicted, against the floor any model has to beat."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dofa.corpus.items import Split
from dofa.corpus.store import SensorStore
from dofa.errors import DataError
from dofa.model.mae import MaskedAutoencoder, visible_mean_floor
from dofa.train.data import Source, held_out_batch

RESAMPLES = 2000  # of the places, for the interval


@dataclass(frozen=True)
class Evaluation:
    """Masked error and floor of the same images under the same masks.

    Attributes:
        sensor: name.
        indices: (n,) of the images in the store.
        places: (n,) where each was taken.
        error: (n,) mean squared error of the masked normalised pixels, averaged over an image's masks.
        floor: (n,) of predicting the mean spectrum of the visible normalised patches (`visible_mean_floor`).
    """

    sensor: str
    indices: NDArray[np.int64]
    places: tuple[str, ...]
    error: NDArray[np.float64]
    floor: NDArray[np.float64]

    def summary(self) -> dict[str, Any]:
        """Means and the paired difference, negative where the model is better.

        Returns:
            `error`, `floor`, `difference`, numbers of `images` and `places`, and `interval`: 95 % of the difference by
            bootstrap over places, None where there are fewer than three.
        """
        return {
            "sensor": self.sensor,
            "error": float(self.error.mean()),
            "floor": float(self.floor.mean()),
            "difference": float((self.error - self.floor).mean()),
            "images": len(self.indices),
            "places": len(set(self.places)),
            "interval": place_interval(self.error - self.floor, self.places),
        }


def evaluate_store(
    mae: MaskedAutoencoder,
    store: SensorStore,
    *,
    crop: int,
    split: Split = "val",
    masks: int = 4,
    limit: int | None = None,
    batch: int = 16,
    seed: int = 0,
) -> Evaluation:
    """Judge a model on images of one sensor that it was not trained on.

    Args:
        mae: encoder and decoder, on any device.
        store: of the sensor; the model's own statistics of it hold where it has some.
        crop: side in pixels of the crop from the middle of every image; at most the image, down to whole patches.
        split: train, val or test.
        masks: of each image, fixed by seed and image; their errors are averaged.
        limit: images at most, spread evenly over the split.
        batch: samples at once.

    Raises:
        DataError: the split is empty.
    """
    patch = mae.encoder.config.patch
    known = mae.encoder.config.sensors.get(store.name)
    height, width = store.shape[1:]
    source = Source(
        sensor=store.sensor,
        scaling=store.scaling if known is None or known.scaling is None else known.scaling,
        shape=store.shape,
        train=np.empty(0, np.int64),
        val=np.asarray(store.indices(split)),
        side=min(crop, height, width) // patch * patch,
        batch=batch,
    )
    if not len(source.val):
        raise DataError(f"sensor {store.name} has no images in the split {split!r}")
    training = mae.training
    mae.eval()
    device = next(mae.parameters()).device

    def judge(sample: dict[str, Any]) -> Tensor:
        valid = None if sample["valid"] is None else sample["valid"].to(device)
        out = mae(sample["image"].to(device), store.sensor, sample["noise"].to(device), valid)
        image_loss: Tensor = out["image_loss"]
        return image_loss

    try:
        held = source.held_out(len(source.val) if limit is None else limit)
        return evaluate(judge, store, source, held, patch, mae.mask_config.ratio, masks=masks, batch=batch, seed=seed)
    finally:
        mae.train(training)


@torch.no_grad()
def evaluate(
    judge: Callable[[dict[str, Any]], Tensor],
    store: SensorStore,
    source: Source,
    indices: NDArray[np.int64],
    patch: int,
    ratio: float,
    *,
    masks: int,
    batch: int,
    seed: int,
) -> Evaluation:
    """`evaluate_store` for any callable that gives the errors of a batch, (B,).

    Images without a valid pixel under their masks are left out.

    Args:
        judge: takes a batch with `image`, `noise` and `valid`.
        source: how its images are cut and normalised.
        indices: (n,) images in the store.
        patch: side in pixels.
        ratio: share of hidden patches.
        batch: samples at once.

    Raises:
        DataError: no image has a valid pixel to judge.
    """
    errors, floors = [], []
    step = max(1, batch // masks)
    for first in range(0, len(indices), step):
        sample = held_out_batch(store, source, patch, indices[first : first + step], seed, masks)
        floor_of = visible_mean_floor(sample["image"], sample["noise"], patch, ratio, sample["valid"])
        errors.append(judge(sample).double().cpu().view(-1, masks).mean(1).numpy())
        floors.append(floor_of.double().view(-1, masks).mean(1).numpy())
    error, floor = np.concatenate(errors), np.concatenate(floors)
    seen = np.isfinite(error) & np.isfinite(floor)
    if not seen.any():
        raise DataError(f"sensor {store.name}: no image of the split has a valid pixel to judge")
    indices = indices[seen]
    return Evaluation(store.name, indices, tuple(map(str, store.places(indices))), error[seen], floor[seen])


def place_interval(values: NDArray[np.float64], places: Sequence[str]) -> tuple[float, float] | None:
    """95 % interval of a mean by bootstrap over places, whose images are not independent; None below three places.

    Args:
        values: (n,) one an image.
        places: (n,) of the images.
    """
    names = sorted(set(places))
    if len(names) < 3:
        return None
    where = np.array([names.index(p) for p in places])
    sums = np.bincount(where, values, len(names))
    counts = np.bincount(where, minlength=len(names))
    drawn = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
