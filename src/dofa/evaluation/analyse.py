"""`dofa analyse`: the paper's looks into a model, as pictures and as the numbers behind them.

From top to bottom: what the weight generator makes of the wavelength axis; a map of the features of several models;
what more bands are worth, one by one; and what becomes of a classifier when bands are missing. The first needs no data.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from dofa.addresses import shown_in
from dofa.datasets.opening import LabelledImages, open_labelled
from dofa.datasets.splits import By, share_out
from dofa.errors import ConfigError
from dofa.evaluation import analysis_plots
from dofa.evaluation.backbones import DATASET, Backbone, open_backbone
from dofa.evaluation.frozen_features import Floats, band_statistics, block_number, encode
from dofa.evaluation.missing_bands import (
    BandScore,
    Features,
    Order,
    ZeroedBands,
    added_one_by_one,
    counts_missing,
    left_out,
    order_bands,
)
from dofa.evaluation.spectra import Spectra, cosines, spectra
from dofa.io import write_atomically
from dofa.model.encoder import DOFA
from dofa.pixels import Scaling

FORMAT_VERSION = 1
STATISTICS = "band statistics"
COMPONENTS = 50  # principal components that t-SNE starts from, as its authors advise
PERPLEXITY = 30.0


@dataclass(frozen=True)
class AnalysisReport:
    """What was found, and where it was written.

    Attributes:
        files: in the order written.
        spectra: by model, of those that generate their kernels.
        maps: by model, (M, 2) t-SNE of the features.
        added: by model and for band statistics, one score a number of bands.
        missing: by model and way (`NAME, dropped`), one score a number of bands left.
        notes: what the reader should know.
    """

    files: list[Path] = field(default_factory=list)
    spectra: dict[str, Spectra] = field(default_factory=dict)
    maps: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    added: dict[str, list[BandScore]] = field(default_factory=dict)
    missing: dict[str, list[BandScore]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def print(self) -> None:
        """Accuracies, notes and the files, to the terminal."""
        console = Console()
        for title, found in (("bands added one by one", self.added), ("bands missing", self.missing)):
            if not found:
                continue
            table = Table("bands", *found, title=f"accuracy %, {title}")
            for scores in zip(*found.values(), strict=True):
                table.add_row(str(scores[0].count), *(f"{100 * s.score.value:.1f}" for s in scores))
            console.print(table)
        for note in self.notes:
            console.print(f"note: {note}", highlight=False)
        for path in self.files:
            console.print(str(path), highlight=False)


def analyse(
    weights: Sequence[str],
    *,
    out: str | Path,
    data: str | None = None,
    block: int | str = "pooled",
    bands: Sequence[str] | None = None,
    order: Order = "spread",
    draws: int = 5,
    size: int | None = None,
    stats: str | None = None,
    folds: int = 5,
    by: By = "auto",
    points: int = 2000,
    seed: int = 0,
    batch: int = 64,
    device: str | None = None,
) -> AnalysisReport:
    """Looks into one model or several, side by side: CSV and PNG files in a folder.

    Args:
        weights: models as `dofa probe` takes them: folders, released names, `teacher:FILE`, `random:MODEL#SEED`, …
        out: folder of the files; features are cached in `cache` there.
        data: images with one class each, as `dofa probe` takes them. Without them only the wavelength axis is
            looked at.
        block: whose patch tokens are averaged to features, or `pooled`.
        bands: names of the bands to use, in order; all where absent.
        order: in which bands are added: given, or spread (each farthest in wavelength from all before it).
        draws: sets of missing bands that are drawn for each number of them.
        size: side in pixels the images are resized to.
        stats: whose statistics normalise: a name that the model knows, or dataset: of all images, whatever their part.
        folds: of the cross-validation.
        by: how images are dealt out, as `dofa probe` does.
        points: images in the t-SNE maps at most, drawn at random.
        seed: of folds, draws, t-SNE and bootstrap.
        batch: images encoded at a time.
        device: cpu, cuda, cuda:1, …; CUDA where there is one.

    Returns:
        The findings and the files.

    Raises:
        DofaError: a model or data set that cannot be used, the same model twice, or images without one class each.

    Source: the analyses of arXiv 2403.15356.
    """
    if draws < 1 or points < 4:
        raise ConfigError(f"draws is {draws} and points is {points}: at least 1 set of bands and 4 images")
    models = _open(weights)
    folder, report = Path(out), AnalysisReport()
    images = None if data is None else open_labelled(data)
    if images is not None:
        images = images if bands is None else images.select_bands(bands)
        if images.task != "classification":
            raise ConfigError(f"{images.name} is a {images.task}: the analyses of features take one class an image")

    # -- the wavelength axis
    for name, backbone in models.items():
        if _generates(backbone):
            report.spectra[name] = spectra(backbone.module)  # type: ignore[arg-type]
        else:
            report.notes.append(f"{name} generates no kernels from wavelengths: it is in the maps of features only")
    if report.spectra:
        _save_spectra(report, folder)
    elif images is None:
        raise ConfigError(
            "none of the models generates kernels from wavelengths: pass --data to look at their features"
        )
    if images is None:
        return report

    # -- features of several models, side by side
    cache = folder / "cache"
    shared = share_out(images, folds, by, seed)
    report.notes.extend([*images.notes, *shared.notes])
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:points])
    whole: dict[str, FrozenFeatures] = {}
    console = Console(stderr=True)
    for name, backbone in models.items():
        console.print(f"{images.name}, {name}: {len(images)} images", highlight=False)
        told = _Told(block, size, batch, device, cache)
        whole[name] = FrozenFeatures(backbone, backbone.take(images, stats), stats, told)
    for name, features in whole.items():
        report.maps[name] = tsne(features(features.data.sensor.band_names)[chosen], seed)
    _save_maps(report, images, chosen, folder)

    # -- more bands, and fewer
    free = {name: features for name, features in whole.items() if name in report.spectra}
    fed = [n for n in images.sensor.band_names if all(n in f.data.sensor.band_names for f in free.values())]
    images = images if len(fed) == len(images.sensor.bands) else images.select_bands(fed)
    names = images.sensor.band_names
    if len(names) < 2:
        report.notes.append(f"{images.name} has one band: nothing can be added or be missing")
    elif free:
        ordered = order_bands(images.sensor, order)
        statistics = band_statistics(images, cache)
        columns = {band: at for at, band in enumerate(names)}

        def plain(some: Sequence[str]) -> Floats:
            at = [columns[band] for band in some]
            return np.concatenate([statistics.mean[:, at], statistics.std[:, at]], axis=1).astype(np.float32)

        contenders: dict[str, Features] = {**free, STATISTICS: plain}
        for name, of_bands in contenders.items():
            console.print(f"{images.name}, {name}: bands added one by one", highlight=False)
            report.added[name] = added_one_by_one(of_bands, ordered, images.labels, shared, seed)
        for name, features in free.items():
            console.print(f"{images.name}, {name}: bands missing", highlight=False)
            learned = features(names)
            for way, some in (("dropped", features), ("zeroed", features.zeroed)):
                report.missing[f"{name}, {way}"] = left_out(learned, some, names, images.labels, shared, seed, draws)
        _save_bands(report, ordered, images, folder)

    settings = {
        "format_version": FORMAT_VERSION,
        "data": {"name": images.name, "fingerprint": images.fingerprint, "images": len(images), "bands": list(names)},
        "models": {name: backbone.sha256 for name, backbone in models.items()},
        "protocol": shared.protocol
        | {"seed": seed, "block": block, "size": size, "statistics": stats, "order": order, "draws": draws}
        | {"missing": counts_missing(len(names)) if report.missing else []},
        "notes": report.notes,
    }
    _write(report, folder / "analyses.json", json.dumps(shown_in(settings), indent=1) + "\n")
    return report


@dataclass(frozen=True)
class _Told:
    block: int | str
    size: int | None
    batch: int
    device: str | None
    cache: Path


class FrozenFeatures:
    """Features of one model from any of the bands, normalised alike whatever the bands.

    Args:
        data: the images as it takes them.
        stats: see `analyse`.
        told: how to encode.
    """

    def __init__(self, backbone: Backbone, data: LabelledImages, stats: str | None, told: _Told) -> None:
        self.backbone, self.data, self.told = backbone, data, told
        self.level = block_number(told.block, backbone.depth)
        dataset: Scaling | None = None
        if stats == DATASET:
            mean, std = band_statistics(data, told.cache).over(np.arange(len(data)))
            dataset = data.scaling.with_stats(mean.tolist(), std.tolist(), "user")
        self.scaling = backbone.scaling(data, stats, dataset)

    def __call__(self, bands: Sequence[str]) -> Floats:
        """(N, D), of the images with these bands alone."""
        return self._encode(self.backbone, self.data.select_bands(bands), self.scaling.select(bands))

    def zeroed(self, kept: Sequence[str]) -> Floats:
        """(N, D), of the images with all bands, zero in those that are not kept."""
        at = [i for i, band in enumerate(self.data.sensor.band_names) if band not in kept]
        return self._encode(ZeroedBands(self.backbone, at), self.data, self.scaling)

    def _encode(self, backbone: Backbone, data: LabelledImages, scaling: Scaling) -> Floats:
        told = self.told
        found = encode(
            backbone, data, scaling, [self.level], size=told.size, batch=told.batch, device=told.device,
            cache=told.cache,
        )  # fmt: skip
        return found[self.level]


def tsne(features: Floats, seed: int) -> NDArray[np.float64]:
    """(N, 2): t-SNE of standardised features, from their first 50 principal components.

    Args:
        features: (N, D) of at least 4 images.
        seed: equal seeds give equal maps.

    Source: van der Maaten and Hinton 2008; perplexity 30, or a third of the images where they are few.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    values = features.astype(np.float64)
    spread = values.std(0)
    values = (values - values.mean(0)) / np.where(spread > 0, spread, 1)
    count = min(COMPONENTS, *values.shape)
    values = PCA(count, svd_solver="full").fit_transform(values)
    perplexity = min(PERPLEXITY, (len(values) - 1) / 3)
    found = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(values)
    return np.asarray(found, np.float64)


def _open(weights: Sequence[str]) -> dict[str, Backbone]:
    """The models by short names that differ: of folders the last part that tells them apart."""
    if not weights:
        raise ConfigError("--weights names no model")
    if len(set(weights)) < len(weights):
        raise ConfigError(f"--weights names a model twice: {', '.join(weights)}")
    return {name: open_backbone(spec, name) for name, spec in zip(short_names(weights), weights, strict=True)}


def short_names(specs: Sequence[str]) -> list[str]:
    """What tables call models: of their paths as few last parts as tell them apart, without a last `model`."""
    before, parts = [], []
    for spec in specs:
        kind, colon, path = spec.rpartition(":")
        before.append(kind + colon)
        path, hash_, word = path.partition("#")
        names = [name for name in path.split("/") if name not in ("", ".")] or [path]
        names = names[:-1] if len(names) > 1 and names[-1] == "model" else names
        parts.append([*names[:-1], names[-1] + hash_ + word])
    for count in range(1, max(map(len, parts)) + 1):
        short = [kind + "/".join(names[-count:]) for kind, names in zip(before, parts, strict=True)]
        if len(set(short)) == len(short):
            return short
    return list(specs)


def _generates(backbone: Backbone) -> bool:
    return isinstance(backbone.module, DOFA) and backbone.module.config.embedding == "dynamic"


def _save_spectra(report: AnalysisReport, folder: Path) -> None:
    rows = []
    for name, found in report.spectra.items():
        tables = [cosines(values) for values in (found.encoding, found.embedding, found.kernel)]
        for i, one in enumerate(found.wavelength_um):
            for j, other in enumerate(found.wavelength_um):
                rows.append([name, f"{one:g}", f"{other:g}", *(f"{table[i, j]:.5f}" for table in tables)])
    header = ["model", "wavelength_um", "other_um", "encoding", "embedding", "kernel"]
    _write(report, folder / "wavelengths.csv", _csv(header, rows))
    lengths = [
        [name, f"{um:g}", f"{norm:.6g}"]
        for name, found in report.spectra.items()
        for um, norm in zip(found.wavelength_um, found.norm, strict=True)
    ]
    _write(report, folder / "kernels.csv", _csv(["model", "wavelength_um", "norm"], lengths))
    report.files.append(analysis_plots.similarity(folder / "wavelengths.png", report.spectra))
    report.files.append(analysis_plots.kernels(folder / "kernels.png", report.spectra))


def _save_maps(report: AnalysisReport, data: LabelledImages, chosen: NDArray[np.int64], folder: Path) -> None:
    rows = [
        [name, data.sources[row], data.class_names[data.labels[row]], f"{x:.4f}", f"{y:.4f}"]
        for name, places in report.maps.items()
        for row, (x, y) in zip(chosen, places, strict=True)
    ]
    _write(report, folder / "tsne.csv", _csv(["model", "image", "class", "x", "y"], rows))
    report.files.append(analysis_plots.scatter(folder / "tsne.png", report.maps, data.labels[chosen], data.class_names))


def _save_bands(report: AnalysisReport, ordered: Sequence[str], data: LabelledImages, folder: Path) -> None:
    added = [
        [name, score.count, score.bands[-1], *_interval(score)]
        for name, scores in report.added.items()
        for score in scores
    ]
    columns = ["accuracy", "low", "high"]
    _write(report, folder / "bands_added.csv", _csv(["model", "bands", "last_added", *columns], added))
    band = {b.name: b for b in data.sensor.bands}
    ticks = [name if (um := band[name].wavelength_um) is None else f"{name}\n{um:.2f}" for name in ordered]
    title = f"{data.name}: accuracy as bands are added"
    report.files.append(analysis_plots.lines(folder / "bands_added.png", report.added, title, "band added (µm)", ticks))
    missing = [
        [*name.rsplit(", ", 1), score.count, *_interval(score)]
        for name, scores in report.missing.items()
        for score in scores
    ]
    _write(report, folder / "bands_missing.csv", _csv(["model", "way", "bands_left", *columns], missing))
    title = f"{data.name}: learned from all bands, judged with fewer"
    report.files.append(analysis_plots.lines(folder / "bands_missing.png", report.missing, title, "bands left"))


def _interval(score: BandScore) -> list[str]:
    found = score.score
    return ["" if value is None else f"{value:.4f}" for value in (found.value, found.low, found.high)]


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _write(report: AnalysisReport, path: Path, text: str) -> None:
    write_atomically(path, text.encode())
    report.files.append(path)
