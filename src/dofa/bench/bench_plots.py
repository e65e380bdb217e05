"""Pictures of a bench's tables: bars with intervals, scores against labelled shares, confusions, judged images."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dofa.bench.jobs import panels_file
from dofa.bench.tables import Table
from dofa.evaluation.judged_images import Panels, draw_panels
from dofa.plots import COLOURS, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, GREY = "#1f2328", "#d6dae0", "#8a929c"
ACROSS = 2  # panels beside each other
NAMED = 20  # classes of a confusion matrix whose names still fit


def draw(tables: Sequence[Table], folder: Path, cells: Path) -> dict[str, list[Path]]:
    """Every picture that the tables have numbers for, as PNG.

    Args:
        folder: for the files.
        cells: folder of the results, with judged images beside them.

    Returns:
        Files by the name of the table.
    """
    out: dict[str, list[Path]] = {}
    for table in tables:
        if not any(f.score is not None for f in table.found):
            continue
        name = slug(table.name)
        files = [bars(table, folder / f"{name}.png")]
        if len(table.fractions) > 1:
            files.append(against_labels(table, folder / f"{name}-labels.png"))
        for column in table.columns if len(table.fractions) == 1 else ():
            if any(_counts(table, row, column) is not None for row in table.rows):
                files.append(confusions(table, column, folder / f"{name}-{slug(column)}-confusion.png"))
        for column in table.columns:
            shown = _panels(table, column, cells)
            if shown:
                files.append(draw_panels(folder / f"{name}-{slug(column)}-panels.png", shown, column))
        out[table.name] = files
    return out


def slug(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "table"


def bars(table: Table, path: Path) -> Path:
    """One panel a data set: a bar a model with its interval, published numbers as diamonds."""
    columns = [c for c in table.columns if any(table.entry(row, c) for row in table.rows)]
    theirs = [(row, scores) for row, scores in table.beside() if scores.keys() & {*columns}]
    names = [*table.rows, *(f"{row.model} ({row.source})" for row, _ in theirs)]
    down = -(-len(columns) // ACROSS)
    across = min(ACROSS, len(columns))
    tall = 0.26 * len(names) + 0.75
    left = 0.075 * max(map(len, names)) + 0.25
    wide = 3.6
    size = (left + across * wide + 0.2, down * tall + 0.1)
    with canvas(path, size) as figure:
        for number, column in enumerate(columns):
            row, at = divmod(number, ACROSS)
            box = (
                (left + at * wide) / size[0],
                1 - ((row + 1) * tall - 0.35) / size[1],
                (wide - 0.35) / size[0],
                (tall - 0.75) / size[1],
            )
            axes = figure.add_axes(box)
            _plain(axes)
            axes.set_title(f"{column}, {table.metric(column)} %", size=9.5, weight="bold", loc="left", pad=5)
            for y, name in enumerate(table.rows):
                entry = table.entry(name, column)
                if entry is None:
                    axes.annotate(table.state(name, column), (0, y), (4, 0), textcoords="offset points", size=8,
                                  va="center", color=GREY)  # fmt: skip
                    continue
                axes.barh(y, 100 * entry.value, 0.68, color=COLOURS[y % len(COLOURS)], zorder=2)
                end = entry.value
                if entry.low is not None and entry.high is not None:
                    axes.hlines(y, 100 * entry.low, 100 * entry.high, color=INK, linewidth=1.2, zorder=3)
                    end = max(end, entry.high)
                axes.annotate(f"{100 * entry.value:.1f}", (100 * end, y), (4, 0), textcoords="offset points", size=8,
                              va="center")  # fmt: skip
            for y, (_, scores) in enumerate(theirs, len(table.rows)):
                if column in scores:
                    axes.plot(scores[column], y, marker="D", color=GREY, markersize=4.5, zorder=3)
                    axes.annotate(f"{scores[column]:.1f}", (scores[column], y), (6, 0), textcoords="offset points",
                                  size=8, va="center", color=GREY)  # fmt: skip
            axes.set_xlim(0, 112)
            axes.set_xticks(range(0, 101, 25))
            axes.set_yticks(range(len(names)), names if at == 0 else [""] * len(names))
            axes.set_ylim(len(names) - 0.45, -0.55)
            axes.grid(axis="y", visible=False)
    return path


def against_labels(table: Table, path: Path) -> Path:
    """One panel a data set: the score over the labelled share, a line a model, its interval shaded.

    Args:
        table: of a suite with several shares of labels.
    """
    columns = [c for c in table.columns if any(table.entry(r, c, f) for r in table.rows for f in table.fractions)]
    legend = 0.24 * -(-len(table.rows) // 2) + 0.1
    down = -(-len(columns) // ACROSS)
    size = (3.6 * min(ACROSS, len(columns)) + 0.2, 2.7 * down + legend)
    size = (max(size[0], 5.2), size[1])
    with canvas(path, size) as figure:
        handles: dict[str, Any] = {}
        for number, column in enumerate(columns):
            row, at = divmod(number, ACROSS)
            box = ((0.5 + 3.6 * at) / size[0], 1 - (legend + 2.7 * (row + 1) - 0.45) / size[1],
                   2.95 / size[0], 1.9 / size[1])  # fmt: skip
            axes = figure.add_axes(box)
            _plain(axes)
            axes.set_title(f"{column}, {table.metric(column)} %", size=9.5, weight="bold", loc="left", pad=5)
            for i, name in enumerate(table.rows):
                known = [(f, e) for f in table.fractions if (e := table.entry(name, column, f)) is not None]
                if not known:
                    continue
                x = [100 * f for f, _ in known]
                colour = COLOURS[i % len(COLOURS)]
                (handles[name],) = axes.plot(
                    x, [100 * e.value for _, e in known], color=colour, linewidth=1.7, marker="o", markersize=3.5
                )
                if all(e.low is not None and e.high is not None for _, e in known):
                    low, high = ([100 * float(getattr(e, end)) for _, e in known] for end in ("low", "high"))
                    axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
            axes.set_xscale("log")
            shares = [100 * f for f in table.fractions]
            axes.set_xticks(shares, [f"{share:g}" for share in shares])
            axes.minorticks_off()
            axes.set_xlabel("labelled share of the training images, %")
        figure.legend(handles.values(), handles.keys(), loc="upper left", ncols=2, frameon=False, fontsize=9)
    return path


def confusions(table: Table, column: str, path: Path) -> Path:
    """One matrix a model: shares of each true class (rows) by what was answered (columns)."""
    known = [(row, counts) for row in table.rows if (counts := _counts(table, row, column)) is not None]
    classes = _classes(table, column, len(known[0][1]))
    named = len(classes) <= NAMED
    left = 0.2 + 0.06 * max(map(len, classes)) if named else 0.3
    below = 0.15 + 0.056 * max(map(len, classes)) if named else 0.25
    side = 2.5
    across = min(3, len(known))
    down = -(-len(known) // across)
    size = (left + across * (side + 0.3), down * (side + below + 0.5))
    with canvas(path, size) as figure:
        for number, (name, counts) in enumerate(known):
            row, at = divmod(number, across)
            top = row * (side + below + 0.5) + 0.35
            box = ((left + at * (side + 0.3)) / size[0], 1 - (top + side) / size[1], side / size[0], side / size[1])
            axes = figure.add_axes(box)
            share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
            axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
            if len(classes) <= 12:
                for (i, j), value in np.ndenumerate(share):
                    if value >= 0.005:
                        axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", size=6,
                                  color="white" if value > 0.55 else INK)  # fmt: skip
            axes.set_title(name, size=9.5, weight="bold", loc="left", pad=5)
            ticks = range(len(classes)) if named else []
            axes.set_xticks(ticks, classes if named else [], rotation=90, size=7)
            axes.set_yticks(ticks, classes if named and at == 0 else [""] * len(ticks), size=7)
            axes.tick_params(length=0)
            for spine in axes.spines.values():
                spine.set_color(FAINT)
    return path


def _panels(table: Table, column: str, cells: Path) -> dict[str, tuple[Panels, str]]:
    """Judged images of the first seed that has some, by row; a row that was judged on others is left out."""
    found: dict[str, tuple[Panels, str]] = {}
    there = [f for f in table.found if (f.cell.data, f.cell.fraction) == (column, table.fractions[-1]) and f.score]
    for f in sorted(there, key=lambda f: f.cell.seed):
        panels = None if f.row in found else Panels.load(panels_file(cells, f.cell.name))
        if panels is None or f.score is None or f.score["features"] not in panels.answers:
            continue
        first = next(iter(found.values()), (panels, ""))[0]
        if panels.names == first.names and np.array_equal(panels.labels, first.labels):
            found[f.row] = (panels, f.score["features"])
    return {row: found[row] for row in table.rows if row in found}


def _counts(table: Table, row: str, column: str) -> Any:
    """(K, K) counts of all seeds of a row, None where there are none."""
    found = [
        f.score["confusion"] for f in table.found
        if (f.row, f.cell.data, f.cell.fraction) == (row, column, table.fractions[-1])
        and f.score is not None and np.ndim(f.score.get("confusion") or ()) == 2
    ]  # fmt: skip
    return np.sum(np.array(found, np.float64), axis=0) if found else None


def _classes(table: Table, column: str, count: int) -> list[str]:
    for f in table.found:
        names = list((f.record or {}).get("data", {}).get("classes", ())) if f.cell.data == column else []
        if len(names) == count:
            return names
    return [str(i) for i in range(count)]


def _plain(axes: "Axes") -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, pad=4)
    axes.grid(visible=True, linewidth=0.7, color=FAINT)
    axes.set_axisbelow(True)
