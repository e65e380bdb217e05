"""Pictures of the same ground side by side: a title, a scale bar and a legend for each, as one PNG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dofa.plots import NODATA_GREY, Picture, canvas, composite, stretch_limits
from dofa.scene.colours import LEAST_SPAN, colours, shown_bands
from dofa.scene.coordinates import Ground, Pixel
from dofa.scene.grid import Window
from dofa.scene.scene import Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

SIDE = 3.9  # inches of the longer side of a picture
RED, GREEN, BLUE, MAGENTA, GREY = "#e0393e", "#2f9e44", "#3263d8", "#c13bb5", "#808080"
GAP, HEAD, TITLE, LINE, EDGE = 0.16, 0.5, 0.27, 0.2, 0.12  # inches: between pictures, rows of text, the page's edge
NARROW = 3.3  # inches of room for the words of narrow pictures
LOCATOR = 0.42  # inches of the corner that says which part of a scene is shown
LETTER = 0.112  # inches of a letter of the title


@dataclass(frozen=True)
class Ramp:
    """The legend of a picture of one quantity.

    Attributes:
        name: of matplotlib's colour map.
        low: drawn in its first colour.
        high: drawn in its last colour.
        label: what it shows.
    """

    name: str
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Panel:
    """One picture of the ground.

    Attributes:
        picture: (h, w, 3), values 0..1.
        title: above it.
        cell: the scene's pixels a pixel of the picture.
        offset: the scene's pixels by which its corner lies above and left of the scene's.
        channels: what red, green and blue show; of two, the first is red and blue; one is grey; a ramp for a quantity.
        smooth: whether to fade from one pixel of the picture into the next.
        missing: whether some of it is drawn grey for want of measurements.
    """

    picture: Picture
    title: str
    cell: int = 1
    offset: int = 0
    channels: Sequence[str] | Ramp = ()
    smooth: bool = False
    missing: bool = False


def draw(
    path: str | Path,
    panels: Sequence[Panel],
    size: tuple[int, int],
    *,
    title: str,
    subtitle: str = "",
    ground: Ground | None = None,
    marks: Sequence[Pixel] = (),
    where: tuple[Window, tuple[int, int]] | None = None,
) -> Path:
    """Write pictures of the same ground as one PNG.

    Args:
        panels: from left to right.
        size: rows and columns of the scene's pixels that every picture shows.
        ground: metres a pixel, for the scale bar and for pixels that are not square; None for neither.
        marks: pixels of the scene to mark in every picture.
        where: which window of a larger scene, of so many rows and columns, is shown; drawn small in the corner.
    """
    rows, cols = size
    tall = rows * (ground.down if ground else 1) / (cols * (ground.across if ground else 1))
    width, height = min(SIDE, SIDE / tall), min(SIDE, SIDE * tall)
    column = max(width, NARROW)
    foot = EDGE + 2 * LINE
    page = GAP + len(panels) * (column + GAP), HEAD + TITLE + height + foot
    with canvas(path, page) as figure:
        room = (page[0] - 2 * GAP - (LOCATOR if where else 0)) / LETTER
        figure.text(GAP / page[0], 1 - 0.2 / page[1], fitted(title, int(room)), size=11, weight="bold", va="center")
        figure.text(GAP / page[0], 1 - 0.4 / page[1], subtitle, size=8, va="center", alpha=0.75)
        if where is not None:
            _locate(figure, where)
        for i, panel in enumerate(panels):
            left = GAP + i * (column + GAP)
            box = left / page[0], foot / page[1], width / page[0], height / page[1]
            axes = figure.add_axes(box)
            axes.set_axis_off()
            _show(axes, panel, rows, cols)
            _mark(axes, marks)
            line = 1 - (HEAD + TITLE / 2) / page[1]
            figure.text(box[0], line, panel.title, size=9.5, va="center")
            if i == 0 and ground is not None:
                _scale_bar(figure, box, line, cols * ground.across)
            _legend(figure, panel, box[0], (left + column) / page[0], (foot - LINE * 0.8) / page[1])
    return Path(path)


def fitted(words: str, letters: int) -> str:
    """Words in so many letters, the middle left out where they are too many.

    Args:
        words: as they are.
        letters: at most.
    """
    if len(words) <= letters:
        return words
    head = (letters - 1) * 2 // 3
    return f"{words[:head]}…{words[len(words) - (letters - 1 - head) :]}"


def _show(axes: "Axes", panel: Panel, rows: int, cols: int) -> None:
    """The picture in its place, cut to the scene; with an offset the last cells stand for the pixels behind them."""
    high, wide = panel.picture.shape[:2]
    below, behind = (max(0, math.ceil((n + panel.offset) / panel.cell) - m) for n, m in ((rows, high), (cols, wide)))
    picture = np.pad(np.clip(panel.picture, 0, 1), ((0, below), (0, behind), (0, 0)), "edge")
    corner = -panel.offset
    axes.imshow(
        picture,
        extent=(corner, corner + picture.shape[1] * panel.cell, corner + picture.shape[0] * panel.cell, corner),
        interpolation="bilinear" if panel.smooth else "antialiased",
        aspect="auto",
    )
    axes.set_xlim(0, cols)
    axes.set_ylim(rows, 0)


def _mark(axes: "Axes", marks: Sequence[Pixel]) -> None:
    """A ring around each place, seen on dark and on bright ground."""
    x, y = [m.col + 0.5 for m in marks], [m.row + 0.5 for m in marks]
    for colour, line in (("black", 3.2), ("white", 1.5)):
        axes.scatter(x, y, s=90, facecolors="none", edgecolors=colour, linewidths=line, clip_on=False, zorder=3)


def _scale_bar(figure: "Figure", box: tuple[float, float, float, float], line: float, metres: float) -> None:
    """A round length above the right end of a picture that is so many metres wide."""
    from matplotlib.lines import Line2D

    length = round_length(metres / 3.5)
    right = box[0] + box[2]
    left = right - box[2] * length / metres
    tick = 0.035 / figure.get_size_inches()[1]
    ink: dict[str, Any] = {"color": figure.texts[0].get_color(), "linewidth": 1.2, "solid_capstyle": "butt"}
    for x, y in (((left, right), (line, line)), ((left, left), (line - tick, line + tick))):
        figure.add_artist(Line2D(x, y, **ink))
    figure.add_artist(Line2D((right, right), (line - tick, line + tick), **ink))
    told = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    figure.text(left - 0.06 / figure.get_size_inches()[0], line, told, size=8, va="center", ha="right")


def round_length(metres: float) -> float:
    """The largest of 1, 2, 5, 10, 20, … that is no longer."""
    ten = 10.0 ** math.floor(math.log10(metres))
    return ten * max(step for step in (1, 2, 5) if step * ten <= metres * (1 + 1e-9))


def _legend(figure: "Figure", panel: Panel, left: float, right: float, line: float) -> None:
    """Under a picture: what its colours show, on a second line what finds no room on the first."""
    from matplotlib.patches import Rectangle

    wide, high = figure.get_size_inches()
    at, entries = left, []
    if isinstance(panel.channels, Ramp):
        at = _ramp(figure, panel.channels, left, line) + 0.14 / wide
    else:
        colours = ([], [GREY], [MAGENTA, GREEN], [RED, GREEN, BLUE])[len(panel.channels)]
        entries = list(zip(colours, panel.channels, strict=True))
    if panel.missing:
        entries.append((str(NODATA_GREY), "no measurement"))
    side = 0.1
    for colour, words in entries:
        text = figure.text(at + (side + 0.05) / wide, line, words, size=8, va="center_baseline")
        if _right_of(figure, text) > right:
            at, line = left, line - LINE / high
            text.set_position((at + (side + 0.05) / wide, line))
        corner = at, line - side / 2 / high
        figure.add_artist(Rectangle(corner, side / wide, side / high, color=colour, linewidth=0))
        at = _right_of(figure, text) + 0.14 / wide


def _ramp(figure: "Figure", ramp: Ramp, left: float, line: float) -> float:
    """A strip of colour between its ends, and what it shows; gives where the words end."""
    wide, high = figure.get_size_inches()
    low = figure.text(left, line, f"{ramp.low:g}", size=8, va="center_baseline")
    begin = _right_of(figure, low) + 0.06 / wide
    strip = figure.add_axes((begin, line - 0.05 / high, 1.1 / wide, 0.1 / high))
    strip.imshow(np.linspace(0, 1, 256)[None], cmap=ramp.name, aspect="auto")
    strip.set_axis_off()
    words = f"{ramp.high:g}   {ramp.label}"
    return _right_of(figure, figure.text(begin + 1.16 / wide, line, words, size=8, va="center_baseline"))


def _locate(figure: "Figure", where: tuple[Window, tuple[int, int]]) -> None:
    """The outline of the scene in the upper right corner, and the part of it that is shown."""
    from matplotlib.patches import Rectangle

    window, (rows, cols) = where
    wide, high = figure.get_size_inches()
    inch = LOCATOR / max(rows, cols)
    left, top = wide - GAP - cols * inch, high - 0.07
    for of, fill in ((Window(0, 0, rows, cols), False), (window, True)):
        side = max(of.width * inch, 0.04), max(of.height * inch, 0.04)
        corner = (left + of.col * inch) / wide, (top - of.row * inch - side[1]) / high
        style: dict[str, Any] = {"color": RED, "linewidth": 0} if fill else {"fill": False, "edgecolor": GREY}
        figure.add_artist(Rectangle(corner, side[0] / wide, side[1] / high, **style))


def _right_of(figure: "Figure", text: "Text") -> float:
    """Where words end, as a share of the figure's width."""
    return float(text.get_window_extent().x1) / float(figure.bbox.width)


def ramp_picture(values: "np.ndarray[Any, Any]", ramp: Ramp) -> Picture:
    """(h, w) values in the colours of a ramp, grey where they are not finite."""
    from matplotlib import colormaps

    share = np.clip((np.nan_to_num(values) - ramp.low) / (ramp.high - ramp.low), 0, 1)
    colours = np.asarray(colormaps[ramp.name](share), np.float32)[..., :3]
    return np.where(np.isfinite(values)[..., None], colours, np.float32(NODATA_GREY)).astype(np.float32)


def colour_panel(scene: Scene) -> Panel:
    """A small scene as people look at it, each colour stretched between its 2nd and 98th percentile."""
    how = colours(scene)
    values, valid = shown_bands(scene, how)
    limits = stretch_limits(values, (0, 1, 2), valid_hw=valid)
    if scene.parts[how.part].scaling.unit == "reflectance":
        # Dark water stretched further would show nothing but the noise of the detector.
        limits[:, 1] = np.maximum(limits[:, 1], limits[:, 0] + LEAST_SPAN)
    picture = composite(values, (0, 1, 2), valid_hw=valid, limits=limits)
    return Panel(picture, how.title, channels=how.channels, missing=not valid.all())
