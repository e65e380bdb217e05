"""The pictures of `dofa analyse`: similarity of wavelengths, kernels, maps of features, accuracy by bands."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dofa.evaluation.missing_bands import BandScore
from dofa.evaluation.spectra import Spectra, cosines
from dofa.plots import COLOURS, canvas

FAINT = "#d6dae0"
WAVELENGTHS, CHANNELS = 15, 6  # in the picture of kernels
MARKS = "os^Dvp*XP<"
LEFT = 0.45  # inches


def similarity(path: Path, models: Mapping[str, Spectra]) -> Path:
    """Cosine of every pair of wavelengths: encoded, corrected by the model, and of the kernels; one row a model."""
    side, gap, top = 2.1, 0.42, 0.62
    width, height = LEFT + 0.35 + 3 * (side + gap) + 0.55, top + len(models) * (side + 0.5)
    with canvas(path, (width, height)) as figure:
        figure.text(
            0.1 / width, 1 - 0.2 / height, "Cosine similarity of wavelengths (µm)", size=11, weight="bold", va="center"
        )
        for r, (name, found) in enumerate(models.items()):
            low, high = found.wavelength_um[[0, -1]]
            bottom = height - top - (r + 1) * side - r * 0.5
            figure.text(0.1 / width, (bottom + side / 2) / height, name, size=9, rotation=90, va="center")
            titles = ("encoding (no weights)", "encoding, corrected", "generated kernel")
            for c, (title, values) in enumerate(
                zip(titles, (found.encoding, found.embedding, found.kernel), strict=True)
            ):
                left = LEFT + 0.35 + c * (side + gap)
                axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
                shown = axes.imshow(
                    cosines(values), cmap="RdBu_r", vmin=-1, vmax=1, origin="lower", extent=(low, high, low, high)
                )
                ticks = [t for t in (0.5, 1.0, 1.5, 2.0, 2.5) if low <= t <= high]
                axes.set_xticks(ticks)
                axes.set_yticks(ticks)
                axes.tick_params(length=0, labelsize=7)
                if r == 0:
                    axes.set_title(title, size=9, pad=5)
            bar = figure.add_axes(((width - 0.5) / width, bottom / height, 0.1 / width, side / height))
            figure.colorbar(shown, cax=bar).ax.tick_params(length=0, labelsize=7)
    return path


def kernels(path: Path, models: Mapping[str, Spectra]) -> Path:
    """The channels of the kernels that change most along the axis; one block of rows a model, one column a wavelength.

    Each channel has one colour scale for all its wavelengths: what fades has less to say there.
    """
    cell, top, gap, left = 0.42, 0.65, 0.3, LEFT + 0.2
    rows = {name: min(CHANNELS, s.kernel.shape[-1]) for name, s in models.items()}
    height = top + sum(count * cell + gap for count in rows.values())
    width = left + WAVELENGTHS * cell + 0.1
    with canvas(path, (width, height)) as figure:
        title = "Generated kernels by wavelength (µm)"
        figure.text(0.1 / width, 1 - 0.2 / height, title, size=11, weight="bold", va="center")
        above = top
        for name, found in models.items():
            columns = np.linspace(0, len(found.wavelength_um) - 1, WAVELENGTHS).round().astype(int)
            channels = found.kernel.var(0).mean((0, 1)).argsort()[::-1][: rows[name]]
            middle = 1 - (above + rows[name] * cell / 2) / height
            figure.text(0.1 / width, middle, name, size=9, rotation=90, va="center")
            for r, channel in enumerate(channels):
                limit = max(float(np.abs(found.kernel[..., channel]).max()), 1e-12)
                for c, at in enumerate(columns):
                    corner = (left + c * cell) / width, 1 - (above + (r + 1) * cell) / height
                    axes = figure.add_axes((*corner, 0.92 * cell / width, 0.92 * cell / height))
                    axes.imshow(found.kernel[at, ..., channel], cmap="RdBu_r", vmin=-limit, vmax=limit)
                    axes.set_axis_off()
                    if r == 0:
                        axes.set_title(f"{found.wavelength_um[at]:.2f}", size=7, pad=2)
            above += rows[name] * cell + gap
    return path


def scatter(
    path: Path, maps: Mapping[str, NDArray[np.float64]], labels: NDArray[np.int64], classes: Sequence[str]
) -> Path:
    """Points of each model's map in the colour and shape of their class, side by side.

    Args:
        maps: (N, 2) a model, by the name shown.
        labels: (N,) class of each point.
    """
    side, gap, top, key = 2.9, 0.15, 0.55, 1.6
    width, height = 0.1 + len(maps) * (side + gap) + key, top + side + 0.1
    there = np.unique(labels)
    with canvas(path, (width, height)) as figure:
        figure.text(0.1 / width, 1 - 0.17 / height, "t-SNE of features", size=11, weight="bold", va="center")
        for c, (name, points) in enumerate(maps.items()):
            left = 0.1 + c * (side + gap)
            axes = figure.add_axes((left / width, 0.1 / height, side / width, side / height))
            for at, label in enumerate(there):
                mine = points[labels == label]
                colour, mark = COLOURS[at % len(COLOURS)], MARKS[at // len(COLOURS) % len(MARKS)]
                size = 14 if len(points) < 500 else 5
                axes.scatter(
                    mine[:, 0],
                    mine[:, 1],
                    s=size,
                    color=colour,
                    marker=mark,
                    linewidths=0,
                    alpha=0.85,
                    label=classes[label],
                )
            axes.set_title(name, size=9.5, pad=4, loc="left")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color(FAINT)
        handles, names = axes.get_legend_handles_labels()
        figure.legend(
            handles, names, loc="upper left", bbox_to_anchor=((width - key) / width, 1 - top / height),
            frameon=False, fontsize=7.5, borderaxespad=0, handletextpad=0.2,
        )  # fmt: skip
    return path


def lines(
    path: Path, found: Mapping[str, Sequence[BandScore]], title: str, x_label: str, ticks: Sequence[str] = ()
) -> Path:
    """Accuracy in percent over the number of bands, with intervals as bands of colour; one line a name.

    Lines of one model have one colour, and are dashed where bands were zeroed.

    Args:
        found: scores from few bands to all, by the name shown.
        x_label: under the axis.
        ticks: names for the numbers of bands; none for the numbers themselves.
    """
    with canvas(path, (7.2, 4.0 + 0.22 * len(found))) as figure:
        height = figure.get_size_inches()[1]
        foot = (0.6 if ticks else 0.48) + 0.19 * len(found)
        axes = figure.add_axes((0.085, foot / height, 0.89, 1 - (foot + 0.55) / height))
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0, pad=5)
        axes.grid(visible=True, linewidth=0.7, color=FAINT)
        figure.text(0.02, 1 - 0.2 / height, title, size=11, weight="bold", va="center")
        axes.text(0, 1.02, "accuracy %", transform=axes.transAxes, size=9, va="bottom", alpha=0.75)
        axes.set_xlabel(x_label)
        models = list(dict.fromkeys(name.removesuffix(", zeroed").removesuffix(", dropped") for name in found))
        for name, scores in found.items():
            model = name.removesuffix(", zeroed").removesuffix(", dropped")
            colour, x = COLOURS[models.index(model) % len(COLOURS)], [s.count for s in scores]
            dashes = "--" if name.endswith(", zeroed") else "-"
            y = [100 * s.score.value for s in scores]
            axes.plot(x, y, color=colour, linestyle=dashes, marker="o", markersize=3.5, linewidth=1.7, label=name)
            ends = [(s.score.low, s.score.high) for s in scores]
            low = [100 * a for a, _ in ends if a is not None]
            high = [100 * b for _, b in ends if b is not None]
            if len(low) == len(high) == len(x):
                axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        counts = [s.count for s in next(iter(found.values()))]
        axes.set_xticks(counts, [*ticks] if len(ticks) == len(counts) <= 16 else [str(c) for c in counts], size=7.5)
        figure.legend(
            loc="lower left",
            bbox_to_anchor=(0.07, 0.03 / height),
            frameon=False,
            fontsize=8,
            borderaxespad=0,
            handlelength=3.2,
        )
    return path
