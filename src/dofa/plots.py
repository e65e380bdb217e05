"""Pictures from arrays: composites, reconstructions, features in false colour, curves, bars.

Nothing here knows a sensor, a model or a file format other than PNG. matplotlib is imported when the first picture is
drawn (`pip install "dofa[plot]"`), always on its Agg canvas: no display, no global state, safe from several threads.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError, DataError
from dofa.io import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Picture = NDArray[np.float32]  # (H, W, 3), values 0..1
Series = tuple[Sequence[float] | NDArray[Any], Sequence[float] | NDArray[Any]]  # x and y
Theme = Literal["light", "dark"]

# Okabe and Ito's palette: told apart by colour-blind readers and in grey print. Yellow is left out (too faint).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_INK: dict[Theme, tuple[str, str, str]] = {  # text, faint lines, background
    "light": ("#1f2328", "#d6dae0", "#ffffff"),
    "dark": ("#e6e8eb", "#3a4048", "#16191d"),
}
NODATA_GREY = 0.55


@dataclass(frozen=True)
class Row:
    """One line of a panel: a title on the left and pictures with a caption above each."""

    title: str
    pictures: Sequence[tuple[str, Picture]]


def composite(
    image_chw: NDArray[Any],
    three: Sequence[int],
    percent: tuple[float, float] = (2, 98),
    valid_hw: NDArray[np.bool_] | None = None,
    limits: NDArray[Any] | None = None,
) -> Picture:
    """Three bands as red, green and blue, each stretched between two percentiles of its valid pixels.

    Args:
        image_chw: (C, H, W) in any unit.
        three: indices of the bands shown; one index may stand several times (grey).
        percent: the percentiles that become 0 and 1.
        valid_hw: (H, W); False pixels are drawn grey. Non-finite pixels always are.
        limits: (3, 2) low and high per channel from `stretch_limits`, to draw several images alike.

    Returns:
        (H, W, 3) float32 in 0..1.

    Raises:
        DataError: not three bands, or an index outside the image.
    """
    image_chw = np.asarray(image_chw)
    if image_chw.ndim != 3 or len(three) != 3 or not all(0 <= i < image_chw.shape[0] for i in three):
        raise DataError(
            f"a composite takes three band indices of a (C, H, W) image; got {list(three)} of {image_chw.shape}"
        )
    rgb = image_chw[list(three)].astype(np.float32)
    shown = np.asarray(np.isfinite(rgb).all(axis=0), bool)
    if valid_hw is not None:
        shown = shown & valid_hw
    if limits is None:
        limits = stretch_limits(image_chw, three, percent, shown)
    low, high = np.asarray(limits, np.float32).T[:, :, None, None]
    out = np.clip((rgb - low) / np.maximum(high - low, np.float32(1e-12)), 0, 1)
    return np.where(shown[..., None], out.transpose(1, 2, 0), np.float32(NODATA_GREY)).astype(np.float32)


def stretch_limits(
    image_chw: NDArray[Any],
    three: Sequence[int],
    percent: tuple[float, float] = (2, 98),
    valid_hw: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """(3, 2): the values of three bands that `composite` draws as 0 and 1.

    Args:
        image_chw: (C, H, W).
        three: numbers of the bands, for red, green and blue.
        percent: of the values below black, and below white.
        valid_hw: (H, W), where there is a measurement; None for wherever values are finite.
    """
    rgb = np.asarray(image_chw)[list(three)].astype(np.float32)
    shown = np.asarray(np.isfinite(rgb).all(axis=0), bool)
    if valid_hw is not None:
        shown = shown & valid_hw
    if not shown.any():
        return np.tile(np.array([0, 1], np.float32), (3, 1))
    return np.percentile(rgb[:, shown], percent, axis=1).T.astype(np.float32)


def hide_patches(picture: Picture, hidden: NDArray[np.bool_], patch: int, grey: float = 0.5) -> Picture:
    """The picture as a masked autoencoder sees it.

    Args:
        picture: (H, W, 3).
        hidden: (h, w) of patches, True where the model saw nothing.
        patch: side of a patch in pixels.
        grey: what the hidden patches are painted with.
    """
    height, width = picture.shape[:2]
    pixels = np.repeat(np.repeat(hidden, patch, axis=0), patch, axis=1)[:height, :width]
    if pixels.shape != (height, width):
        raise DataError(f"{hidden.shape} patches of {patch} pixels do not cover a picture of {height}×{width}")
    return np.where(pixels[..., None], np.float32(grey), picture)


def error_picture(error_hw: NDArray[Any], high: float | None = None) -> Picture:
    """An error map as a picture: black is none, bright is `high` (or the 98th percentile) and more.

    Args:
        error_hw: (H, W), 0 and more.
        high: value of the brightest colour.
    """
    _matplotlib()
    from matplotlib import colormaps

    error = np.nan_to_num(np.asarray(error_hw, np.float32))
    high = float(np.percentile(error, 98)) if high is None else high
    rgba = np.asarray(colormaps["inferno"](np.clip(error / max(high, 1e-12), 0, 1)), np.float32)
    return rgba[..., :3]


def pca_colours(maps: Sequence[NDArray[Any]]) -> list[Picture]:
    """Token features in false colour: their first three principal components, fitted on all maps together.

    Args:
        maps: (D, h, w) each, any sizes; D is the same.

    Returns:
        one (h, w, 3) picture each; alike colours mean alike features across the maps.
    """
    flat = [np.asarray(m, np.float64).reshape(m.shape[0], -1).T for m in maps]
    tokens = np.concatenate(flat)
    mean = tokens.mean(axis=0)
    _, _, axes = np.linalg.svd(tokens - mean, full_matrices=False)
    axes = axes[:3]
    # The sign of a principal axis is arbitrary; fixed so that the same features always get the same colours.
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    projected = [(f - mean) @ axes.T for f in flat]
    low, high = np.percentile(np.concatenate(projected), (2, 98), axis=0)
    pictures = []
    for values, m in zip(projected, maps, strict=True):
        rgb = np.zeros((len(values), 3))
        rgb[:, : values.shape[1]] = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
        pictures.append(rgb.reshape(*m.shape[1:], 3).astype(np.float32))
    return pictures


def reconstruction_panel(path: str | Path, rows: Sequence[Row], title: str = "", theme: Theme = "light") -> Path:
    """Pictures in rows, written as PNG: original, what the model saw, prediction, error, or any others.

    Args:
        path: of the PNG; its folder is made.
        rows: at least one; rows may have different numbers of pictures and sizes.
        theme: light or dark page.
    """
    if not rows or not all(row.pictures for row in rows):
        raise DataError("a panel needs at least one row, and a picture in every row")
    columns = max(len(row.pictures) for row in rows)
    captions = [tuple(caption for caption, _ in row.pictures) for row in rows]
    # Captions are said once above rows that share them, with room for all of their lines.
    lines = [max(len(caption.splitlines()) for caption in row) for row in captions]
    said = [bool(lines[r]) and (r == 0 or captions[r] != captions[r - 1]) for r in range(len(rows))]
    heads = [0.14 + 0.16 * n if shown else 0.08 for n, shown in zip(lines, said, strict=True)]
    side, gutter, top = 1.9, 1.35, 0.5 if title else 0.0
    height, width = top + sum(heads) + side * len(rows) + 0.08, columns * (side + 0.08) + gutter
    with canvas(path, (width, height), theme) as figure:
        if title:
            figure.text(0.12 / width, 1 - 0.3 / height, title, size=12, weight="bold", va="center")
        for row, head, shown in zip(rows, heads, said, strict=True):
            top += head + side
            figure.text(0.12 / width, 1 - (top - side / 2) / height, row.title, size=9.5, va="center", linespacing=1.4)
            for c, (caption, picture) in enumerate(row.pictures):
                left = gutter + c * (side + 0.08)
                axes = figure.add_axes((left / width, 1 - top / height, side / width, side / height))
                axes.imshow(np.clip(picture, 0, 1), interpolation="nearest")
                axes.set_axis_off()
                if shown:
                    axes.set_title(caption, size=9, pad=4)
    return Path(path)


def pca_features(
    path: str | Path, examples: Sequence[tuple[str, Picture, NDArray[Any]]], title: str = "", theme: Theme = "light"
) -> Path:
    """Composites above their token features in false colour (`pca_colours` over all of them), written as PNG.

    Args:
        examples: (title, (H, W, 3) composite, (D, h, w) features) each.
        theme: light or dark page.
    """
    colours = pca_colours([features for _, _, features in examples])
    above = Row("picture", [(name, picture) for name, picture, _ in examples])
    below = Row("features\n(PCA)", [("", colour) for colour in colours])
    return reconstruction_panel(path, [above, below], title, theme)


def curves(
    path: str | Path,
    series: Mapping[str, Series],
    x_label: str = "update",
    y_label: str = "loss",
    title: str = "",
    levels: Mapping[str, float] | None = None,
    theme: Theme = "light",
) -> Path:
    """Lines over a common axis, each named at its end, written as PNG.

    Args:
        series: name to (x, y).
        x_label: under the axis.
        y_label: above the axis, at its left.
        levels: dashed levels in the colour of the line of the same name (a floor to beat), or grey.
        theme: light or dark page.
    """
    if not series:
        raise DataError("curves needs at least one line")
    with canvas(path, (7.2, 3.6), theme) as figure:
        axes = _axes(figure, (0.075, 0.14, 0.735, 0.72), title, theme)
        axes.set_xlabel(x_label)
        axes.text(0, 1.03, y_label, transform=axes.transAxes, size=9, va="bottom", alpha=0.75)
        colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(series)}
        for name, (x, y) in series.items():
            axes.plot(x, y, color=colours[name], linewidth=1.7, solid_capstyle="round")
        for name, level in (levels or {}).items():
            axes.axhline(level, color=colours.get(name, "#888888"), linewidth=1, linestyle=(0, (4, 3)), alpha=0.8)
        ends = {name: _last(y) for name, (_, y) in series.items()}
        low, high = axes.get_ylim()
        for name, height in _spread(ends, gap=0.062 * (high - low)).items():
            axes.text(
                1.015, height, name, color=colours[name], size=9, va="center", transform=axes.get_yaxis_transform()
            )
    return Path(path)


def bars(
    path: str | Path,
    names: Sequence[str],
    values: Sequence[float] | Mapping[str, Sequence[float]],
    intervals: Sequence[tuple[float, float]] | Mapping[str, Sequence[tuple[float, float]]] | None = None,
    x_label: str = "",
    title: str = "",
    theme: Theme = "light",
) -> Path:
    """Horizontal bars with intervals, one group a name, one colour a series, written as PNG.

    Args:
        names: of the groups, from top to bottom.
        values: one a group, or series name to one a group.
        intervals: (low, high) one a value, in the same form as `values`.
        x_label: under the axis.
        theme: light or dark page.

    Raises:
        DataError: a series or its intervals have another length than `names`.
    """
    several = dict(values) if isinstance(values, Mapping) else {"": values}
    spans = dict(intervals) if isinstance(intervals, Mapping) else {} if intervals is None else {"": intervals}
    for series, numbers in (*several.items(), *spans.items()):
        if len(numbers) != len(names):
            raise DataError(f"bars: series {series!r} has {len(numbers)} values for {len(names)} names")
    thick = 0.8 / len(several)
    legend = len(several) > 1
    height = 0.24 * len(names) * len(several) + 0.12 * len(names) + 0.75 + 0.32 * legend + 0.35 * bool(title)
    with canvas(path, (7.2, height), theme) as figure:
        top = (0.32 * legend + 0.35 * bool(title) + 0.08) / height
        axes = _axes(figure, (0.235, 0.5 / height, 0.7, 1 - top - 0.5 / height), title, theme, left=0.02)
        axes.set_xlabel(x_label)
        axes.grid(axis="y", visible=False)
        ink = _INK[theme][0]
        for s, (series, numbers) in enumerate(several.items()):
            y = np.arange(len(names)) - 0.4 + thick * (s + 0.5)
            colour = COLOURS[s % len(COLOURS)]
            axes.barh(y, numbers, thick * 0.86, color=colour, label=series, zorder=2)
            ends = list(numbers)
            if series in spans:
                low, high = np.asarray(spans[series], float).T
                axes.hlines(y, low, high, color=ink, linewidth=1.1, zorder=3)
                ends = [max(n, h) for n, h in zip(numbers, high, strict=True)]
            for at, number, end in zip(y, numbers, ends, strict=True):
                axes.annotate(f"{number:.3g}", (end, at), (4, 0), textcoords="offset points", size=8, va="center")
        axes.set_yticks(range(len(names)), list(names))
        axes.set_ylim(len(names) - 0.45, -0.55)
        axes.margins(x=0.09)
        axes.spines["left"].set_visible(True)
        if legend:
            axes.legend(
                loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=len(several), frameon=False, borderaxespad=0.2
            )
    return Path(path)


def png_bytes(picture: Picture, enlarge: int = 1) -> bytes:
    """A picture as PNG, one pixel a pixel or `enlarge` times, for a page that carries it inline.

    Args:
        picture: (H, W, 3), values 0..1.
        enlarge: how many screen pixels a side one pixel becomes, unsmoothed.
    """
    _matplotlib()
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    big = np.repeat(np.repeat(np.clip(picture, 0, 1), enlarge, axis=0), enlarge, axis=1)
    imsave(buffer, np.rint(big * 255).astype(np.uint8), format="png")
    return buffer.getvalue()


def _matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ConfigError('pictures need matplotlib, which is not installed: pip install "dofa[plot]"') from None


@contextmanager
def canvas(path: str | Path, inches: tuple[float, float], theme: Theme = "light") -> "Iterator[Figure]":
    """A figure in the house style, written to `path` as PNG when the block ends well: whole, or not at all.

    Args:
        path: of the PNG; its folder is made.
        inches: width and height, of 160 screen pixels each.
        theme: light or dark page.
    """
    _matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink, faint, page = _INK[theme]
    style: dict[Any, Any] = {
        "font.size": 9,
        "font.family": ["DejaVu Sans"],
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": faint,
        "axes.facecolor": page,
        "xtick.color": ink,
        "ytick.color": ink,
        "figure.facecolor": page,
        "grid.color": faint,
    }
    with rc_context(style):
        figure = Figure(figsize=inches, dpi=160)
        FigureCanvasAgg(figure)
        yield figure
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=160, format="png")
    write_atomically(Path(path), buffer.getvalue())


def _axes(
    figure: "Figure", box: tuple[float, float, float, float], title: str, theme: Theme, left: float | None = None
) -> "Axes":
    """Axes with faint lines behind the data and no box around it; the title sits at the figure's left edge."""
    axes = figure.add_axes(box)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, pad=5)
    axes.grid(visible=True, linewidth=0.7, color=_INK[theme][1])
    axes.set_axisbelow(True)
    if title:
        inches = figure.get_size_inches()[1]
        figure.text(box[0] if left is None else left, 1 - 0.18 / inches, title, size=11, weight="bold", va="center")
    return axes


def _last(y: Sequence[float] | NDArray[Any]) -> float:
    finite = np.asarray(y, float)[np.isfinite(np.asarray(y, float))]
    return float(finite[-1]) if finite.size else 0.0


def _spread(at: Mapping[str, float], gap: float) -> dict[str, float]:
    """The same heights moved apart until no two labels overlap, in their order."""
    names = sorted(at, key=lambda n: at[n])
    placed: list[float] = []
    for name in names:
        placed.append(max(at[name], placed[-1] + gap) if placed else at[name])
    shift = sum(p - at[n] for p, n in zip(placed, names, strict=True)) / max(len(names), 1)
    return {name: p - shift for name, p in zip(names, placed, strict=True)}
