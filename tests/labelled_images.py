"""Small labelled images held in memory, and a small encoder."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from dofa import sensors
from dofa.datasets.opening import LabelledImages
from dofa.model.config import EncoderConfig
from dofa.model.encoder import DOFA

Maker = Callable[..., LabelledImages]


def labelled(
    per_class: int = 12,
    classes: int = 3,
    size: int = 16,
    places: int | None = None,
    seed: int = 0,
    splits: bool = False,
) -> LabelledImages:
    """Classes of equal mean colour, told apart by the direction and pitch of their stripes; 8-bit RGB."""
    sensor = sensors.get("rgb-aerial")
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    y, x = np.mgrid[:size, :size]
    images = []
    for label in labels:
        phase = rng.uniform(0, 2 * np.pi)
        along = (x, y, x + y)[label % 3]
        stripes = np.sin(along * 2 * np.pi / (4 + 4 * (label // 3)) + phase)
        noisy = 120 + 50 * stripes + 15 * rng.normal(size=(3, size, size)) + 10 * rng.normal(size=(3, 1, 1))
        images.append(np.clip(noisy, 0, 255).astype(np.uint8))
    count = len(labels)
    where = None if places is None else tuple(f"place {i % places}" for i in range(count))
    said = tuple(np.array(["train", "val", "test"])[rng.integers(0, 3, count)]) if splits else None
    assert sensor.scaling is not None
    return LabelledImages(
        name="stripes",
        sensor=sensor,
        scaling=sensor.scaling.without_stats(),
        class_names=tuple(f"stripes {c}" for c in range(classes)),
        labels=labels.astype(np.int64),
        sources=tuple(f"image {i}" for i in range(count)),
        shape=(3, size, size),
        read=lambda index: (images[index], None),
        fingerprint=f"stripes {per_class} {classes} {size} {seed}",
        find_places=lambda: where,
        find_splits=lambda: said,
    )


@pytest.fixture
def make_images() -> Maker:
    return labelled


@pytest.fixture
def encoder() -> DOFA:
    torch.manual_seed(3)
    return DOFA(EncoderConfig(width=48, depth=3, heads=3, patch=8, image_size=16)).eval()
