"""t-SNE maps of the features of several models, side by side.

    python examples/tsne.py --weights runs/tiny/model teacher:vit.safetensors \
        --data eurosat-ms:EuroSAT_MS.zip --stats dataset --out runs/looks

Source: van der Maaten and Hinton 2008; perplexity 30, or a third of the images where they are few.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from dofa.datasets.labelled import LabelledImages
from dofa.datasets.opening import open_labelled
from dofa.errors import ConfigError
from dofa.evaluation.backbones import DATASET, Backbone, open_backbone
from dofa.evaluation.frozen_features import band_statistics, block_number, encode
from dofa.plots import COLOURS

COMPONENTS = 50  # principal components that t-SNE starts from, as its authors advise
PERPLEXITY = 30.0
MARKERS = "os^Dvp*XP<"


def features_of(
    backbone: Backbone, images: LabelledImages, block: str, stats: str | None, cache: Path
) -> NDArray[np.float32]:
    """(N, D) features of a block, or `pooled`; `stats` normalise the bands as in `dofa probe`."""
    images = backbone.take(images, stats)
    dataset = None
    if stats == DATASET:
        mean, std = band_statistics(images, cache).over(np.arange(len(images)))
        dataset = images.scaling.with_stats(mean.tolist(), std.tolist(), "user")
    level = block_number(block if block == "pooled" else int(block), backbone.depth)
    return encode(backbone, images, backbone.scaling(images, stats, dataset), [level], cache=cache)[level]


def tsne(features: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """(N, 2): t-SNE of standardised features (N, D), from their first 50 principal components."""
    values = StandardScaler().fit_transform(features.astype(np.float64))
    values = PCA(min(COMPONENTS, *values.shape), svd_solver="full").fit_transform(values)
    perplexity = min(PERPLEXITY, (len(values) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(values)


def draw(maps: dict[str, NDArray[np.float64]], labels: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Points (N, 2) of each model in the colour and marker of their class (N,)."""
    figure = Figure((3.2 * len(maps) + 1.5, 3.4), layout="constrained", dpi=144)
    grid = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (name, points) in zip(grid, maps.items(), strict=True):
        for at, label in enumerate(np.unique(labels)):
            x, y = points[labels == label].T
            marker = MARKERS[at // len(COLOURS) % len(MARKERS)]
            axes.scatter(x, y, s=8, color=COLOURS[at % len(COLOURS)], marker=marker, label=classes[label])
        axes.set_title(name, size=9)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=7)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Write tsne.csv and tsne.png."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weights", nargs="+", required=True, help="models, as dofa probe takes them")
    parser.add_argument("--data", required=True, help="images with one class each, as dofa probe takes them")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--stats", help="whose statistics normalise: a name that the models know, or dataset")
    parser.add_argument("--block", default="pooled", help="whose patch tokens are averaged, or pooled")
    parser.add_argument("--points", type=int, default=2000, help="images at most, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args(argv)
    images = open_labelled(told.data)
    if images.task != "classification":
        raise ConfigError(f"{images.name} is a {images.task}: images with one class each are needed")
    rows = np.sort(np.random.default_rng(told.seed).permutation(len(images))[: told.points])
    maps = {}
    for name in dict.fromkeys(told.weights):
        found = features_of(open_backbone(name), images, told.block, told.stats, told.out / "cache")
        maps[name] = tsne(found[rows], told.seed)
    classes = [images.class_names[label] for label in images.labels[rows]]
    table = {"image": [images.sources[row] for row in rows], "class": classes}
    tables = [pd.DataFrame({"model": name, **table, "x": xy[:, 0], "y": xy[:, 1]}) for name, xy in maps.items()]
    pd.concat(tables).to_csv(told.out / "tsne.csv", index=False, float_format="%.4f")
    draw(maps, images.labels[rows], images.class_names).savefig(told.out / "tsne.png")


if __name__ == "__main__":
    main()
