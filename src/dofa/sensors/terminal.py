"""What `dofa sensors` prints."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dofa.pixels import Scaling
from dofa.sensors.files import catalogue, get
from dofa.sensors.sensor import Sensor

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


def summary(sensor: Sensor) -> tuple[str, str, str, str, str, str]:
    """A sensor on one line: name, title, number of bands, what they span, ground sampling distance, unit."""
    waves = [b.wavelength_um for b in sensor.bands if b.wavelength_um is not None]
    if waves:
        span = f"{min(waves):.3g}–{max(waves):.3g} µm" if len(waves) > 1 else f"{waves[0]:.4g} µm"
    else:
        span = ", ".join(dict.fromkeys(b.polarisation or "" for b in sensor.bands))
    unit = "–" if sensor.scaling is None else sensor.scaling.unit
    return sensor.name, sensor.title, str(len(sensor.bands)), span, f"{sensor.gsd_m:g} m", unit


def table() -> "Table":
    """The catalogue, one sensor a line, for the terminal."""
    return _grid(("sensor", "title", "bands", "spans", "GSD", "unit"), map(summary, catalogue().values()))


def describe(sensor: Sensor) -> "Group":
    """Everything known of one sensor, for the terminal: its bands, what its numbers mean, and where that is from."""
    from rich.console import Group

    scaling = sensor.scaling
    facts = {
        "name": ", also ".join(filter(None, (sensor.name, ", ".join(sensor.aliases)))),
        "title": sensor.title,
        "platform": sensor.platform,
        "product": sensor.product,
        "level": sensor.level,
        "GSD": f"{sensor.gsd_m:g} m",
        "values": "every file has its own scaling" if scaling is None else formula(scaling),
        **{f"picture {title}": ", ".join(three) for title, three in sensor.renderings.items()},
    }
    columns: dict[str, list[str]] = {
        "band": [b.name for b in sensor.bands],
        "centre µm": [_figure(b.wavelength_um) for b in sensor.bands],
        "width µm": [_figure(b.fwhm_um) for b in sensor.bands],
        "kind": [" ".join(filter(None, (b.kind, b.polarisation))) for b in sensor.bands],
        "GSD m": [_figure(b.gsd_m or sensor.gsd_m) for b in sensor.bands],
        "also": [", ".join(b.aliases) for b in sensor.bands],
    }
    if scaling is not None:
        for title in ("scale", "offset", "mean", "std"):
            values = getattr(scaling, title)
            if values is not None and (title in ("mean", "std") or len(set(values)) > 1):
                columns[title] = [_figure(v) for v in values]
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    return Group(
        _grid(None, ((key, value) for key, value in facts.items() if value)),
        "",
        _grid(tuple(shown), zip(*shown.values(), strict=True)),
        "",
        *(
            f"{s.get('status', 'no status')}: {s.get('what', '')} ({s.get('where', 'no source')})"
            for s in sensor.sources
        ),
    )


def show(name: str | None = None) -> None:
    """Print the catalogue, or one sensor.

    Args:
        name: of a sensor, an alias, or the path of a sensor's YAML file; nothing lists all.

    Raises:
        ConfigError: the sensor is unknown or its file does not hold together.
    """
    from rich.console import Console

    what = table() if name is None else describe(get(name))
    console = Console(markup=False, highlight=False, emoji=False)
    if console.is_terminal:
        console.print(what)
        return
    # A pipe gets plain lines: nothing is folded or cut, and no blanks trail.
    console.width = 10_000
    with console.capture() as text:
        console.print(what)
    print("\n".join(line.rstrip() for line in text.get().splitlines()))


def _grid(header: tuple[str, ...] | None, rows: Iterable[tuple[str, ...]]) -> "Table":
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, show_header=header is not None, header_style="bold")
    for title in header or ("", ""):
        grid.add_column(title)
    for row in rows:
        grid.add_row(*row)
    return grid


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def formula(scaling: Scaling) -> str:
    """How raw numbers become physical values, in one line."""
    text = f"{scaling.unit} = raw"
    if any(s != 1 for s in scaling.scale):
        text += f" × {_figure(scaling.scale[0])}" if len(set(scaling.scale)) == 1 else " × scale"
    if any(o != 0 for o in scaling.offset):
        sign = "-" if scaling.offset[0] < 0 else "+"
        text += f" {sign} {_figure(abs(scaling.offset[0]))}" if len(set(scaling.offset)) == 1 else " + offset"
    clips = set(scaling.clip)
    if clips != {None}:
        one = scaling.clip[0] if len(clips) == 1 else None
        text += f", clipped to {one[0]:g}–{one[1]:g}" if one else ", clipped band by band"
    return text
