"""The demo's page: one HTML file with its style and pictures inside, and the same figures as PNG beside it."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dofa import __version__, plots
from dofa.corpus.store import SensorStore
from dofa.demo.corpora import REAL
from dofa.demo.style import STYLE
from dofa.evaluation.cross_validation import Interval
from dofa.evaluation.probe_result import ProbeResult
from dofa.evaluation.probe_result import Row as Accuracy
from dofa.plots import Picture, Row, Theme
from dofa.train.config import PretrainConfig

METHODS = ("trained", "random weights", "band statistics")
THEMES: tuple[Theme, ...] = ("light", "dark")
SMOOTH = 5  # log lines that a curve's point averages over


@dataclass(frozen=True)
class Probed:
    """What the probe found on one sensor; the logistic regression is the one shown."""

    sensor: str
    trained: bool
    result: ProbeResult

    @property
    def rows(self) -> list[Accuracy]:
        """In the order of METHODS."""
        return [self.result.row(name) for name in ("pooled", "random pooled", "band statistics")]

    def against(self, name: str) -> Interval:
        """Paired difference of the trained features to a baseline."""
        found = [d for d in self.result.differences if d.against == name and d.classifier == "logistic"]
        return found[0].difference

    @property
    def difference(self) -> Interval:
        """Paired difference to random weights."""
        return self.against("random pooled")


@dataclass(frozen=True)
class Findings:
    """Everything the page tells.

    Attributes:
        simulated: whether the corpora are ours rather than the user's.
        config: of the pretraining run.
        log: its rows.
        stores: what was trained on.
        errors: summaries of held-out masked errors.
        reconstructions: (sensor, note, captioned pictures).
        features: (title, composite, false colours).
        probed: by sensor.
        seconds: of the whole demo.
    """

    simulated: bool
    config: PretrainConfig
    log: Sequence[Mapping[str, Any]]
    stores: Mapping[str, SensorStore]
    errors: Sequence[Mapping[str, Any]]
    reconstructions: Sequence[tuple[str, str, list[tuple[str, Picture]]]]
    features: Sequence[tuple[str, Picture, Picture]]
    probed: Sequence[Probed]
    seconds: float


def write_report(out: Path, found: Findings) -> Path:
    """Write report.html and the figures as PNG into a folder.

    Args:
        out: the folder.
        found: what the demo has measured.

    Returns:
        The page.
    """
    simulated: list[Row] = []
    real: list[Row] = []
    for name, note, pictures in found.reconstructions:
        row = Row(f"{name.removesuffix(REAL)}\n{note}".replace(", ", ",\n"), pictures)
        (real if "real" in note else simulated).append(row)
    if simulated:
        plots.reconstruction_panel(out / "reconstructions.png", simulated)
    plots.reconstruction_panel(out / "real.png", real)
    titles = [title.replace(", ", ",\n", 1) for title, _, _ in found.features]
    plots.reconstruction_panel(
        out / "features.png",
        [
            Row("picture", [(t, picture) for t, (_, picture, _) in zip(titles, found.features, strict=True)]),
            Row("features", [("", colours) for _, _, colours in found.features]),
        ],
    )
    sections = [
        _learned(out, found),
        _reconstructions(found),
        _features(found),
        _probe(out, found) if found.probed else "",
        _method(found),
    ]
    page = out / "report.html"
    partial = out / ".report.html.partial"
    partial.write_text(_page(_lead(found), sections), encoding="utf-8")
    partial.replace(page)
    return page


def _page(lead: str, sections: Iterable[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<title>dofa demo</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{lead}\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def _lead(found: Findings) -> str:
    sensors = [s for s in found.stores if not s.endswith(REAL)]
    images = sum(len(store.indices("train")) for store in found.stores.values())
    updates = int(found.log[-1]["update"]) if found.log else 0
    facts = [
        (str(len(sensors)), "sensors, one model"),
        (f"{min(s.shape[0] for s in found.stores.values())}–{max(s.shape[0] for s in found.stores.values())}", "bands"),
        (f"{images:,}", "training images"),
        (f"{updates:,}", "updates"),
        (f"{found.seconds / 60:.1f} min", "for all of this"),
    ]
    tiles = "".join(f"<div><b>{html.escape(a)}</b><span>{html.escape(b)}</span></div>" for a, b in facts)
    what = (
        "<p class=note><strong>Most of what it saw is simulated.</strong> The scenes are drawn by a small simulator "
        "and observed through each sensor’s bands; the few pictures marked <em>real</em> are crops of published "
        "images. The numbers show that the parts work together; they say nothing about accuracy on the ground.</p>"
        if found.simulated
        else "<p class=note>Trained on the stores you gave. Pictures marked <em>real</em> come with the package.</p>"
    )
    return (
        "<header><p class=kicker>dofa demo</p><h1>One model, "
        f"{html.escape(_number(len(sensors)))} sensors</h1>"
        "<p class=lead>A single Vision Transformer whose patch embedding is generated from the wavelengths of the "
        "bands. It never learns what a sensor is called, only where its bands lie.</p>"
        f"<div class=facts>{tiles}</div>{what}</header>"
    )


def _learned(out: Path, found: Findings) -> str:
    series: dict[str, plots.Series] = {}
    for name in found.stores:
        points = [(row["update"], row[f"loss/{name}"]) for row in found.log if f"loss/{name}" in row]
        if len(points) > 1 and not name.endswith(REAL):
            x, y = np.array(points, float).T
            series[name] = (x, _smooth(y))
    chart = ""
    if series:
        chart = _chart(
            out, "curves", lambda path, theme: plots.curves(path, series, y_label="masked error", theme=theme)
        )
    rows = [
        (
            _sensor(str(row["sensor"])),
            f"{row['error']:.3f}",
            f"{row['floor']:.3f}",
            _signed(row["difference"], 1, "{:+.3f}"),
            _span(row["interval"], 1, "{:+.3f}"),
            f"{row['images']} / {row['places']}",
        )
        for row in found.errors
    ]
    table = _table(("sensor", "error", "floor", "difference", "95 % interval", "images / places"), rows)
    return _section(
        "Learning to fill in the gaps",
        f"{found.config.model.mask.ratio:.0%} of every image are hidden and predicted from the rest. Errors are "
        "squared, in units of each patch’s own standard deviation, so that 1.0 is what a patch’s own mean would score.",
        chart + "<p>On held-out places, beside the <em>floor</em>: predicting the mean spectrum of the visible patches "
        "everywhere. Negative differences are better than the floor; intervals resample places.</p>" + table,
    )


def _reconstructions(found: Findings) -> str:
    rows = []
    for name, note, pictures in found.reconstructions:
        cells = "".join(f"<figure>{_image(p)}<figcaption>{html.escape(c)}</figcaption></figure>" for c, p in pictures)
        rows.append(
            f"<div class=strip><h3>{html.escape(name.removesuffix(REAL))}<small>{html.escape(note)}</small></h3>"
            f"<div class=four>{cells}</div></div>"
        )
    return _section(
        "What it predicts",
        "Held-out images. Predictions of hidden patches are brought back with the patch’s own mean and contrast, which "
        "the model does not predict; the error is the mean over all bands, black is none.",
        "".join(rows),
    )


def _features(found: Findings) -> str:
    cells = "".join(
        f"<div class=pair><figure>{_image(picture)}</figure><figure>{_image(colours, 4)}</figure>"
        f"<p>{html.escape(title)}</p></div>"
        for title, picture, colours in found.features
    )
    return _section(
        "What it sees in real pictures",
        "Patch features of real images in false colour: their first three principal components, each picture on its "
        "own. Nobody told the model what water or a roof is; Landsat it never met.",
        f"<div class=pairs>{cells}</div>",
    )


def _probe(out: Path, found: Findings) -> str:
    names = [p.sensor if p.trained else f"{p.sensor}\n(never trained on)" for p in found.probed]
    values = {m: [100 * p.rows[i].score.value for p in found.probed] for i, m in enumerate(METHODS)}
    spans = {
        m: [(100 * (a.low or a.value), 100 * (a.high or a.value)) for p in found.probed for a in [p.rows[i].score]]
        for i, m in enumerate(METHODS)
    }
    chart = _chart(
        out, "bars", lambda path, theme: plots.bars(path, names, values, spans, x_label="accuracy, %", theme=theme)
    )
    rows = []
    for p in found.probed:
        random, bands = p.against("random pooled"), p.against("band statistics")
        label = _sensor(p.sensor) + ("" if p.trained else "<small>never trained on</small>")
        rows.append(
            (
                label,
                *(f"{100 * row.score.value:.1f}" for row in p.rows),
                _signed(random.value, 100) + _paired(random),
                _signed(bands.value, 100) + _paired(bands),
                str(p.result.setting["data"]["judged"]),
            )
        )
    classes = len(found.probed[0].result.setting["data"]["classes"])
    table = _table(("sensor", *METHODS, "− random", "− band statistics", "images"), rows)
    explain = (
        f"A logistic regression on frozen, mean-pooled features tells {classes} scene classes apart (chance "
        f"{100 / classes:.0f} %), five folds. The classes come in pairs of equal composition: orchard rows and hedged "
        "meadow, street grid and scattered farms. The mean and spread of every band say which pair it is, not which of "
        "the two."
        if found.simulated
        else "A logistic regression on frozen, mean-pooled features, five folds."
    )
    return _section(
        "What the features are worth",
        explain,
        chart + table + "<p class=small>Accuracies in percent. Differences are paired image by image, with 95 % "
        "bootstrap intervals; one that excludes zero is a finding. Random weights: the same architecture, never "
        "trained, same normalisation.</p>",
    )


def _method(found: Findings) -> str:
    model, data, run = found.config.model, found.config.data, found.config.run
    changes = ", ".join(f"{k} {v}" for k, v in model.changes.items())
    rows = [
        ("model", f"{model.size} ({changes}), decoder {model.decoder.width} × {model.decoder.depth}"),
        ("hidden", f"{model.mask.ratio:.0%} of the patches"),
        ("images", f"{data.crop} × {data.crop} pixels"),
        ("learning rate", f"{found.config.optim.lr:g}, cosine, {run.updates} updates, {run.precision}"),
        ("seed", str(run.seed)),
        ("written by", f"dofa {__version__}"),
    ]
    sensors = [
        (
            _sensor(name),
            str(store.shape[0]),
            f"{store.shape[1]} × {store.shape[2]}",
            html.escape(store.scaling.unit),
            str(len(store.indices("train"))),
            str(len(store.indices("val"))),
        )
        for name, store in found.stores.items()
    ]
    simplified = (
        "<p>Simplified on purpose: all sensors look at one grid of 10 m, so that layouts are visible to each of them; "
        "spectra are smooth curves drawn by hand; the air is a haze; radar knows one incidence angle.</p>"
        if found.simulated
        else ""
    )
    return _section(
        "How it was made",
        "",
        _table(("sensor", "bands", "pixels", "unit", "train", "held out"), sensors)
        + "<dl>"
        + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in rows)
        + "</dl>"
        + simplified
        + "<p>Licences and attributions of the real pictures: <code>dofa/samples/LICENCES.md</code>. They contain "
        "modified Copernicus Sentinel data (SSL4EO-S12, CC-BY-4.0; BigEarthNet v2, CDLA-Permissive-1.0), images of "
        "the USDA and the U.S. Geological Survey.</p>",
    )


def _section(title: str, text: str, body: str) -> str:
    intro = f"<p>{text}</p>" if text else ""
    return f"<section><h2>{html.escape(title)}</h2>{intro}{body}</section>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _chart(out: Path, name: str, draw: Any) -> str:
    """A figure for both themes; the light one stays beside the page as PNG."""
    data = {}
    for theme in THEMES:
        path = out / f"{name}.png"
        draw(path.with_name(f".{name}-{theme}.png"), theme)
        data[theme] = base64.b64encode(path.with_name(f".{name}-{theme}.png").read_bytes()).decode()
        if theme == "light":
            path.with_name(f".{name}-{theme}.png").replace(path)
        else:
            path.with_name(f".{name}-{theme}.png").unlink()
    return (
        '<picture class=chart><source media="(prefers-color-scheme: dark)" '
        f'srcset="data:image/png;base64,{data["dark"]}">'
        f'<img alt="{name}" src="data:image/png;base64,{data["light"]}"></picture>'
    )


def _image(picture: Picture, enlarge: int = 1) -> str:
    data = base64.b64encode(plots.png_bytes(picture, enlarge)).decode()
    return f'<img class=pixels alt="" src="data:image/png;base64,{data}">'


def _sensor(name: str) -> str:
    return html.escape(name.removesuffix(REAL)) + ("<small>real</small>" if name.endswith(REAL) else "")


def _signed(value: float, factor: float, form: str = "{:+.1f}") -> str:
    return f"<b>{form.format(factor * value).replace('-', '−')}</b>"


def _span(interval: Sequence[float] | None, factor: float, form: str) -> str:
    if interval is None:
        return "too few places"
    return " to ".join(form.format(factor * v).replace("-", "−") for v in interval)


def _paired(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f"<small>{_span((interval.low, interval.high), 100, '{:+.1f}')}</small>"


def _smooth(y: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Running mean over up to SMOOTH points, shorter at the ends."""
    kernel = np.ones(min(SMOOTH, len(y)))
    return np.asarray(np.convolve(y, kernel, "same") / np.convolve(np.ones_like(y), kernel, "same"))


def _number(n: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[n] if n < len(words) else str(n)
