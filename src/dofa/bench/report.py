"""Tables of a bench: results.csv, table.md, table.html, with published numbers beside ours. Records in, files out."""

import base64
import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from dofa.bench import bench_plots
from dofa.bench.jobs import CELLS
from dofa.bench.suite import Suite
from dofa.bench.tables import CONFIDENCE, Found, Records, Table, found_in, published
from dofa.io import write_atomically

COLUMNS = (
    "protocol", "data", "model", "method", "metric", "fraction", "seed", "value", "low", "high", "status", "error",
    "judged", "seconds", "host", "finished", "code", "weights", "cell",
)  # fmt: skip


def render(suite: Suite, weights: Sequence[str], records: Records, target: Path) -> Path:
    """Write results.csv, table.md, table.html and the pictures.

    Args:
        weights: given on the command line.
        records: of each cell by name, None while there is none.

    Returns:
        table.html.
    """
    found = [f for cell in suite.cells(weights) for f in found_in(suite, cell, records[cell.name])]
    write_atomically(target / "results.csv", _csv(found).encode())
    tables = [Table(suite, name, [f for f in found if f.cell.protocol == name]) for name in suite.protocols]
    pictures = bench_plots.draw(tables, target / "figures", target / CELLS)
    foot = _remarks(suite, found)
    write_atomically(target / "table.md", _markdown(suite, tables, foot, pictures).encode())
    page = target / "table.html"
    write_atomically(page, _html(suite, tables, foot, pictures).encode())
    return page


def _csv(found: Sequence[Found]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for f in found:
        record, score, cell = f.record or {"status": "pending"}, f.score or {}, f.cell
        told = score.get("score", {})
        table.writerow(
            {
                "protocol": cell.protocol,
                "data": cell.data,
                "model": cell.model,
                "method": " ".join(w for w in (score.get("classifier", ""), score.get("features", "")) if w),
                "metric": score.get("metric", ""),
                "fraction": cell.fraction,
                "seed": cell.seed,
                **{key: told.get(key, "") for key in ("value", "low", "high")},
                "status": record["status"],
                "error": record.get("error", ""),
                "judged": record.get("data", {}).get("judged", ""),
                **{key: record.get(key, "") for key in ("seconds", "finished", "code")},
                "host": record.get("host", "").partition(" ")[0],
                "weights": cell.weights,
                "cell": cell.name,
            }
        )
    return text.getvalue()


def _remarks(suite: Suite, found: Sequence[Found]) -> list[str]:
    """What a reader should know, each once: notes of data sets and probes, reasons of what is not there."""
    remarks: dict[str, None] = {}
    for name, data in suite.data.items():
        if data.note:
            remarks[f"{name}: {data.note}"] = None
    for f in found:
        for note in (f.record or {}).get("notes", ()):
            remarks[f"{f.cell.data}: {note}"] = None
        if f.record is not None and f.record["status"] != "done":
            who = f.cell.data if f.record["status"] == "missing" else f"{f.cell.model} on {f.cell.data}"
            remarks[f"{who}: {f.record['status']}: {f.record['error']}"] = None
    versions = sorted({f.record["code"] for f in found if f.record is not None})
    if len(versions) > 1:
        remarks[f"cells were computed by several versions: {', '.join(versions)}"] = None
    return list(remarks)


def _explained(table: Table) -> str:
    """What the numbers of a table are."""
    known = [e for row in table.rows for column in table.columns if (e := table.entry(row, column)) is not None]
    words = ["percent, 95 % bootstrap interval"]
    if any(entry.spread is not None for entry in known):
        words.append(f"± standard deviation over {max(e.seeds for e in known)} seeds, intervals averaged over them")
    if len(table.fractions) > 1:
        words.append("columns by the share of the training labels")
    note = f" {table.protocol.note}" if table.protocol.note else ""
    return "; ".join(words) + "." + note


def _grid(table: Table) -> tuple[list[str], list[tuple[str, list[str], bool]]]:
    """Header and rows of a table as text; True marks what others published."""
    places = [(c, f) for c in table.columns for f in table.fractions]
    header = [
        f"{c}{'' if f == 1 else f', {100 * f:g} %'}{f' ({m})' if (m := table.metric(c)) else ''}" for c, f in places
    ]
    rows = [
        (row, [e.text if (e := table.entry(row, c, f)) else table.state(row, c, f) for c, f in places], False)
        for row in table.rows
    ]
    sources = published()[1]["sources"]
    several = len({row.protocol for row, _ in table.beside()}) > 1
    for row, scores in table.beside():
        how = f", {row.protocol}" if several else ""
        name = f"{row.model}, {sources[row.source]['title']}{how} [{row.confidence}]"
        rows.append((name, [f"{scores[c]:.1f}" if c in scores and f == 1 else "" for c, f in places], True))
    return header, rows


def _column(table: Table, column: str, fraction: float) -> str:
    metric = table.metric(column)
    return column + ("" if fraction == 1 else f", {100 * fraction:g} %") + (f" ({metric})" if metric else "")


def _gaps(table: Table) -> tuple[str, list[tuple[str, list[str]]]]:
    """Name of the first row and each other row's paired differences to it; nothing where there are none."""
    if len(table.rows) < 2:
        return "", []
    first, *others = table.rows
    rows = []
    for row in others:
        told = []
        for column in table.columns:
            gap = table.difference(first, row, column)
            told.append(
                "" if gap is None else f"{100 * gap[0]:+.1f} ({100 * gap[1]:+.1f} to {100 * gap[2]:+.1f})"
                + ("" if gap[1] <= 0 <= gap[2] or math.isnan(gap[1]) else " *")
            )  # fmt: skip
        rows.append((row, told))
    return first, [row for row in rows if any(row[1])]


def _markdown(
    suite: Suite, tables: Sequence[Table], foot: Sequence[str], pictures: Mapping[str, Sequence[Path]]
) -> str:
    lines = [f"# {suite.title}", "", *([suite.note, ""] if suite.note else [])]
    for table in tables:
        header, rows = _grid(table)
        lines += [f"## {table.name}", "", _explained(table), ""]
        lines += _piped(["", *header], [[f"*{name}*" if theirs else name, *cells] for name, cells, theirs in rows])
        first, gaps = _gaps(table)
        if gaps:
            lines += [f"{first} less the others, in points: paired over the same images; * where 0 lies outside.", ""]
            lines += _piped(["", *table.columns], [[name, *cells] for name, cells in gaps])
        lines += [f"![{path.stem}](figures/{path.name})" for path in pictures.get(table.name, ())] + [""]
    lines += [*_sources(tables), *(f"- {remark}" for remark in foot), ""]
    return "\n".join(lines)


def _piped(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, rows), ""]


def _sources(tables: Sequence[Table]) -> list[str]:
    """Where published rows are from, if any are shown."""
    shown = {row.source: None for table in tables for row, _ in table.beside()}
    if not shown:
        return []
    told = published()[1]
    where = "; ".join(f"{told['sources'][s]['title']}: {told['sources'][s]['where']}" for s in shown)
    how = {row.protocol: None for table in tables for row, _ in table.beside()}
    protocols = "; ".join(f"{name}: {told['protocols'][name]}" for name in how)
    marks = ", ".join(f"[{mark}] {meaning}" for mark, meaning in CONFIDENCE.items())
    return [f"Published numbers are others' ({where}; {marks}). Their protocols: {protocols}.", ""]


def _html(suite: Suite, tables: Sequence[Table], foot: Sequence[str], pictures: Mapping[str, Sequence[Path]]) -> str:
    sections = []
    for table in tables:
        header, rows = _grid(table)
        body = "".join(
            f"<tr{' class=theirs' if theirs else ''}><th>{html.escape(name)}</th>{''.join(map(_cell, cells))}</tr>\n"
            for name, cells, theirs in rows
        )
        parts = [f"<p>{html.escape(_explained(table))}</p>", _tabled(header, body)]
        first, gaps = _gaps(table)
        if gaps:
            body = "".join(f"<tr><th>{html.escape(n)}</th>{''.join(map(_cell, cells))}</tr>\n" for n, cells in gaps)
            told = f"{first} less the others, in points: paired over the same images; * where 0 lies outside."
            parts += [f"<p>{html.escape(told)}</p>", _tabled(table.columns, body)]
        for path in pictures.get(table.name, ()):
            data = base64.b64encode(path.read_bytes()).decode()
            parts.append(f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">')
        sections.append(f"<section><h2>{html.escape(table.name)}</h2>\n" + "\n".join(parts) + "</section>\n")
    notes = "".join(f"<p>{html.escape(line)}</p>" for line in _sources(tables) if line)
    notes += "<ul>" + "".join(f"<li>{html.escape(remark)}</li>" for remark in foot) + "</ul>" if foot else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(suite.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{html.escape(suite.title)}</h1>\n<p>{html.escape(suite.note)}</p>\n"
        f"{''.join(sections)}<section class=notes>{notes}</section>\n</main>\n</body>\n</html>\n"
    )


def _tabled(header: Sequence[str], body: str) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    return f"<div class=scroll><table>\n<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"


def _cell(text: str) -> str:
    """The number large, what stands behind it small."""
    value, _, rest = text.partition(" ")
    return f"<td>{html.escape(value)}{f'<small> {html.escape(rest)}</small>' if rest else ''}</td>"


STYLE = """
:root { --ink: #1f2328; --soft: #5b6470; --line: #e3e6ea; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa4b0; --line: #2b3138; --page: #16191d; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.15; letter-spacing: -.02em; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; margin: 0 0 .3rem; }
p, ul { max-width: 52rem; color: var(--soft); margin: 0 0 1rem; }
section { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: 1.5rem; }
.scroll { overflow-x: auto; margin: 0 0 1.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .9rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 500; }
thead th { color: var(--soft); }
tbody th { text-align: left; padding-left: 0; }
td small { color: var(--soft); }
.theirs { font-style: italic; color: var(--soft); }
.notes { font-size: .88rem; overflow-wrap: anywhere; }
img { display: block; max-width: 100%; background: #fff; border-radius: 6px; margin: 0 0 1rem; }
"""
