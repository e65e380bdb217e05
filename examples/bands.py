"""How a frozen model takes more bands and fewer: accuracy as bands are added, and when some of them are missing.

    python examples/bands.py --weights runs/tiny/model random:runs/tiny/model#0 \
        --data eurosat-ms:EuroSAT_MS.zip --stats dataset --out runs/looks

Every number is of images that were not trained on. The images are normalised once, so that two sets of bands differ in
nothing but the bands. Source: the analyses of arXiv 2403.15356.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from dofa.datasets.labelled import LabelledImages
from dofa.datasets.opening import open_labelled
from dofa.datasets.splits import EvaluationSplits, make_splits
from dofa.errors import ConfigError
from dofa.evaluation.backbones import DATASET, Backbone, open_backbone
from dofa.evaluation.cross_validation import bootstrap, choose_penalty, fit_logistic
from dofa.evaluation.frozen_features import band_statistics, encode
from dofa.model.heads import Block
from dofa.sensors import Sensor

Floats = NDArray[np.float32]
Features = Callable[[Sequence[str]], Floats]  # names of bands → (N, D)


class ZeroedBands(Backbone):
    """A model that is given all bands, some of them zero, which is each band's mean.

    Args:
        zeroed: indices of these bands.
    """

    module: nn.Module

    def __init__(self, inner: Backbone, zeroed: Sequence[int]) -> None:
        self.inner, self.zeroed = inner, list(zeroed)
        self.name, self.sha256, self.module = inner.name, inner.sha256, inner.module
        self.depth, self.width, self.patch = inner.depth, inner.width, inner.patch
        self.image_size, self.patch_offset = inner.image_size, inner.patch_offset

    def scaling(self, data: LabelledImages, stats: str | None = None, dataset: Any = None) -> Any:
        """The model's own."""
        return self.inner.scaling(data, stats, dataset)

    def key(self, data: LabelledImages) -> dict[str, Any]:
        """The model's own, and which bands are zero."""
        return {**self.inner.key(data), "zeroed": sorted(self.zeroed)}

    def maps(self, images: Tensor, sensor: Sensor, blocks: Sequence[int]) -> list[Tensor]:
        """Of the images with zeroed bands."""
        return self.inner.maps(self._zero(images), sensor, blocks)

    def vectors(self, images: Tensor, sensor: Sensor, levels: Sequence[Block]) -> dict[Block, Tensor]:
        """Of the images with zeroed bands."""
        return self.inner.vectors(self._zero(images), sensor, levels)

    def _zero(self, images: Tensor) -> Tensor:
        return images.index_fill(1, images.new_tensor(self.zeroed).long(), 0)


@dataclass(frozen=True)
class FrozenFeatures:
    """Pooled features of one model from any of the bands, normalised alike whatever the bands."""

    backbone: Backbone
    images: LabelledImages
    scaling: Any
    cache: Path

    @classmethod
    def of(cls, backbone: Backbone, images: LabelledImages, stats: str | None, cache: Path) -> "FrozenFeatures":
        """With the statistics that `stats` names, as in `dofa probe`."""
        images = backbone.take(images, stats)
        dataset = None
        if stats == DATASET:
            mean, std = band_statistics(images, cache).over(np.arange(len(images)))
            dataset = images.scaling.with_stats(mean.tolist(), std.tolist(), "user")
        return cls(backbone, images, backbone.scaling(images, stats, dataset), cache)

    def dropped(self, kept: Sequence[str]) -> Floats:
        """(N, D) of images with these bands alone."""
        found = encode(self.backbone, self.images.select_bands(kept), self.scaling.select(kept), cache=self.cache)
        return found["pooled"]

    def zeroed(self, kept: Sequence[str]) -> Floats:
        """(N, D) of images with all bands, zero in those that are not kept."""
        at = [i for i, band in enumerate(self.images.sensor.band_names) if band not in kept]
        return encode(ZeroedBands(self.backbone, at), self.images, self.scaling, cache=self.cache)["pooled"]


def spread(sensor: Sensor) -> list[str]:
    """The first optical band, then always the one farthest in wavelength from all before it; radar last."""
    left = {band.name: band.wavelength_um for band in sensor.bands if band.wavelength_um is not None}
    order = list(left)[:1]
    while len(order) < len(left):
        gaps = {b: min(abs(left[b] - left[o]) for o in order) for b in left if b not in order}
        order.append(max(gaps, key=lambda band: gaps[band]))
    return order + [band.name for band in sensor.bands if band.wavelength_um is None]


def counts_missing(bands: int) -> list[int]:
    """How many of the bands are taken away: one, a quarter, a half, three quarters, all but one."""
    return sorted({1, round(bands / 4), round(bands / 2), round(3 * bands / 4), bands - 1} - {0, bands})


def draw_sets(bands: Sequence[str], missing: int, draws: int, seed: int) -> list[tuple[str, ...]]:
    """Different random sets of the bands that are left, in their order; fewer where there are not so many sets."""
    rng = np.random.default_rng([seed, missing])
    found: dict[tuple[str, ...], None] = {}
    for _ in range(20 * draws):
        kept = np.sort(rng.permutation(len(bands))[missing:])
        found.setdefault(tuple(bands[i] for i in kept))
        if len(found) == draws:
            break
    return list(found)


def correct(
    train: Floats, test: Sequence[Floats], labels: NDArray[np.int64], splits: EvaluationSplits, seed: int
) -> NDArray[np.float64]:
    """Cross-validated logistic regression, its penalty chosen on the training images.

    Args:
        train: (N, D) features to learn from.
        test: features to classify, (N, D) each.
        labels: (N,).

    Returns:
        (M,) share of the entries of `test` that are classified correctly, by image, in the order of the folds.
    """
    right = []
    for fold in splits.parts:
        places = None if splits.places is None else [splits.places[row] for row in fold.train]
        features, classes = train[fold.train], labels[fold.train]
        model = fit_logistic(features, classes, choose_penalty(features, classes, seed=seed, places=places))
        right.append(np.mean([model.predict(x[fold.test]) == labels[fold.test] for x in test], axis=0))
    return np.concatenate(right)


def draw(table: pd.DataFrame, x: str, title: str) -> Figure:
    """Accuracy in percent over the number of bands, with 95 % intervals; one line a curve."""
    figure = Figure((7.2, 4.2), layout="constrained", dpi=144)
    axes = figure.subplots()
    for curve, rows in table.groupby("curve", sort=False):
        style = "--" if str(curve).endswith("zeroed") else "-"
        (line,) = axes.plot(rows[x], 100 * rows["accuracy"], style, marker="o", markersize=3.5, label=curve)
        axes.fill_between(rows[x], 100 * rows["low"], 100 * rows["high"], color=line.get_color(), alpha=0.12)
    axes.set(title=title, xlabel="bands", ylabel="accuracy %")
    axes.grid(visible=True, alpha=0.3)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Write bands_added.csv, bands_missing.csv and a picture of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weights", nargs="+", required=True, help="models, as dofa probe takes them")
    parser.add_argument("--data", required=True, help="images with one class each, as dofa probe takes them")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--stats", help="whose statistics normalise: a name that the models know, or dataset")
    parser.add_argument("--order", choices=("spread", "given"), default="spread", help="in which bands are added")
    parser.add_argument("--draws", type=int, default=5, help="random sets for each number of missing bands")
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation, by place where there are places")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args(argv)
    images = open_labelled(told.data)
    if images.task != "classification" or len(images.sensor.bands) < 2:
        raise ConfigError(f"{images.name}: images of two bands or more with one class each are needed")
    cache = told.out / "cache"
    models = {name: open_backbone(name) for name in dict.fromkeys(told.weights)}
    fed = {name: backbone.take(images, told.stats).sensor.band_names for name, backbone in models.items()}
    images = images.select_bands([b for b in images.sensor.band_names if all(b in names for names in fed.values())])
    features = {name: FrozenFeatures.of(b, images, told.stats, cache) for name, b in models.items()}
    names, labels = images.sensor.band_names, images.labels
    splits = make_splits(images, told.folds, "auto", told.seed)
    statistics = band_statistics(images, cache)

    def of_bands(kept: Sequence[str]) -> Floats:
        at = [names.index(band) for band in kept]
        return np.concatenate([statistics.mean[:, at], statistics.std[:, at]], axis=1).astype(np.float32)

    def score(train: Floats, test: Sequence[Floats]) -> dict[str, float | None]:
        found = bootstrap(correct(train, test, labels, splits, told.seed), splits.units, told.seed)
        return {"accuracy": found.value, "low": found.low, "high": found.high}

    order = spread(images.sensor) if told.order == "spread" else list(names)
    contenders: dict[str, Features] = {name: f.dropped for name, f in features.items()} | {"band statistics": of_bands}
    added = []
    for name, contender in contenders.items():
        for count in range(1, len(order) + 1):
            x = contender(order[:count])
            added.append({"curve": name, "bands": count, "last_added": order[count - 1], **score(x, [x])})
    missing = []
    for name, frozen in features.items():
        whole = frozen.dropped(names)
        for way, fewer in (("dropped", frozen.dropped), ("zeroed", frozen.zeroed)):
            missing.append({"curve": f"{name}, {way}", "bands_left": len(names), **score(whole, [whole])})
            for gone in counts_missing(len(names)):
                test = [fewer(kept) for kept in draw_sets(names, gone, told.draws, told.seed)]
                missing.append({"curve": f"{name}, {way}", "bands_left": len(names) - gone, **score(whole, test)})
    for name, rows, x, title in (
        ("bands_added", added, "bands", "accuracy as bands are added"),
        ("bands_missing", missing, "bands_left", "trained on all bands, tested with fewer"),
    ):
        table = pd.DataFrame(rows)
        table.to_csv(told.out / f"{name}.csv", index=False, float_format="%.4f")
        draw(table, x, f"{images.name}: {title}").savefig(told.out / f"{name}.png")


if __name__ == "__main__":
    main()
