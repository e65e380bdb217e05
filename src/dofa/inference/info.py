"""`dofa info`: what will happen to a scene, and what looks wrong with it, before hours are spent on it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from json import dumps
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError, DofaError, listed
from dofa.inference.many import Scenes, leave_out_failing, merge_warnings, print_failed
from dofa.inference.scene_statistics import measure
from dofa.inference.value_checks import clipped_share, out_of_unit, without_content
from dofa.inference.value_checks import doubts as values_doubts
from dofa.options import ScenesOptions
from dofa.pixels import Scaling
from dofa.raster import gdal, physical_values
from dofa.scene.first_look import measured_sample
from dofa.scene.scene import Scene
from dofa.sensors import formula

if TYPE_CHECKING:
    from dofa.inference.inputs import Inputs
    from dofa.model.config import EncoderConfig

GSD_APART = 1.5  # times: texture changes with the size of a pixel (docs/features.md)
STATS_APART = 3.0  # standard deviations between a scene's mean and the one it is normalised with
SHOWN = 24  # bands of a table on the terminal, the others are left out in its middle
SATURATED = 0.05  # share of pixels at the type's largest number


@dataclass(frozen=True)
class Report:
    """What is known of scenes.

    Attributes:
        scenes: plain JSON, one a scene.
        json: whether `print` writes that.
        failed: scenes that were left out, and why.
    """

    scenes: tuple[dict[str, Any], ...]
    json: bool = False
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def status(self) -> int:
        """Exit status of the command."""
        return 2 if self.failed else 0

    def print(self) -> None:
        """On the terminal: a few lines and a table a scene, or JSON; scenes that failed on standard error.

        Doubts that several scenes share stand once, at the end.
        """
        alone = len(self.scenes) + len(self.failed) == 1
        if self.json:
            print(dumps(self.scenes[0] if alone else self.scenes, indent=2, ensure_ascii=False))
        else:
            shared = merge_warnings([doubt for known in self.scenes for doubt in known["doubts"]])
            for known in self.scenes:
                own = [doubt for doubt in known["doubts"] if doubt in shared]
                shared = [line for line in shared if line not in own]
                _print({**known, "doubts": own})
            _print_doubts(shared)
        print_failed(self.failed, len(self.scenes) + len(self.failed))


def info(
    scenes: Sequence[str],
    *,
    weights: str | None = None,
    stats: str | None = None,
    json: bool = False,
    opening: ScenesOptions = ScenesOptions(),
) -> Report:
    """Say what will happen to scenes.

    Exit status: 0 when all scenes were read, 2 when one failed; it is named at the end with its reason.

    Args:
        scenes: files, folders, STAC items or addresses; each is a scene of its own unless --stack is given. A folder of
            band files, or of one product, is one scene, a folder of files with several bands each many scenes.
        weights: model folder or name, to see whose statistics would normalise the bands.
        stats: whose statistics: scene, dataset (all scenes given), checkpoint, or a sensor the checkpoint knows.
        json: print JSON.
    """
    given = Scenes(scenes, opening)
    config = None if weights is None else _config(weights)
    reports = []
    try:
        left, measured = leave_out_failing(list(given.opened), lambda some: measure(some, stats, config), given.fail)
        for scene, found in zip(left, measured, strict=True):
            try:
                reports.append(describe(scene, config, stats=stats, measured=found, strict=opening.strict))
            except DofaError as error:
                given.fail(scene, error)
    finally:
        for scene in given.opened:
            scene.close()
    return Report(tuple(reports), json, tuple(given.failed))


def describe(
    scene: Scene,
    config: "EncoderConfig | None" = None,
    *,
    stats: str | None = None,
    measured: Sequence[Scaling] | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """What is known of a scene, as plain JSON.

    Args:
        config: of the encoder that will be fed; None to leave statistics out.
        stats: see `dofa.inference.inputs.resolve_inputs`.

    Raises:
        DataError: pixels that cannot be decoded.
    """
    inputs, without = None, None
    used = measured
    if config is not None:
        from dofa.inference.inputs import resolve_inputs

        try:
            inputs = resolve_inputs(scene, config, stats=stats, measured=measured, strict=strict)
        except ConfigError as error:
            without, used = str(error), None
        else:
            used = inputs.scalings
    bounds = gdal.bounds_lonlat(scene.crs, scene.transform, scene.width, scene.height)
    seen = measured_sample(scene)
    values = [np.concatenate([raw[i][:, valid] for raw, valid in seen], 1) for i in range(len(scene.parts))]
    looked_at = sum(valid.size for _, valid in seen)
    doubts = [*scene.warnings, *_doubts(scene, values)]
    bad: dict[str, str] = {}
    for part, raw in zip(scene.parts, values, strict=True):
        bad |= out_of_unit(part.scaling, raw)
    fed: NDArray[Any] | None = None
    if inputs is not None and config is not None:
        fed = np.concatenate([inputs.normalise(raw, valid)[:, valid] for raw, valid in seen], 1)
        bad = {**without_content(fed, [b for s in inputs.sensors for b in s.band_names]), **bad}
        doubts += _statistics_doubts(scene, inputs, values) + _gsd_doubts(scene, config, inputs)
        own = [text for match in inputs.matches if match.trained is None for text in match.approximated]
        doubts += [f"own-statistics: {scene.name}: {text}" for text in own]
    doubts += values_doubts(scene.name, len(scene.bands) if inputs is None else inputs.count, bad)
    parts = [_part(scene, i, raw, None if used is None else used[i]) for i, raw in enumerate(values)]
    if inputs is not None and fed is not None:
        _add_normalised(parts, inputs, fed)
    return {
        "scene": scene.name,
        "grid": {
            "width": scene.width,
            "height": scene.height,
            "gsd_m": scene.gsd_m,
            "crs": None if scene.crs is None else scene.crs.to_string(),
            "transform": list(scene.transform)[:6],
            "bounds_lonlat": None if bounds is None else list(bounds),
        },
        "valid": float(sum(int(valid.sum()) for _, valid in seen) / looked_at),
        "looked_at": looked_at,
        "parts": parts,
        "no_statistics": without,
        "said": [] if inputs is None else [list(m.lines()) for m in inputs.matches if m.trained and not m.plain],
        "inputs": [] if inputs is None else [match.to_dict() for match in inputs.matches],
        "doubts": doubts,
    }


def _add_normalised(parts: Sequence[dict[str, Any]], inputs: "Inputs", fed: NDArray[Any]) -> None:
    """Percentiles of the values that the model is fed, beside the physical ones of each band."""
    shown = np.percentile(fed, (1, 50, 99), axis=1).T if fed.shape[1] else np.full((len(fed), 3), np.nan)
    where = [(i, band) for i, sensor in enumerate(inputs.sensors) for band in sensor.band_names]
    of_band = {(i, band["name"]): band for i, part in enumerate(parts) for band in part["bands"]}
    for key, (low, middle, high) in zip(where, shown.tolist(), strict=True):
        of_band[key] |= {"normalised_p1": low, "normalised_median": middle, "normalised_p99": high}


def _part(scene: Scene, number: int, raw: NDArray[Any], stats: Scaling | None) -> dict[str, Any]:
    part, stack = scene.parts[number], scene.stacks[number]
    where = {name: layer for layer, file in zip(stack.layers, part.files, strict=True) for name in file.bands}
    shown = np.percentile(part.scaling.physical(raw[:, None])[:, 0], (1, 50, 99), axis=1).T
    clips = stats is not None and stats.unit == part.scaling.unit and set(stats.bands) == set(part.scaling.bands)
    clip = stats.select(part.scaling.bands).clip if clips and stats is not None else part.scaling.clip
    clipped = clipped_share(replace(part.scaling, clip=clip), raw)
    values = {value for layer in stack.layers for value in layer.raster.validity.values}
    nan = {value for value in values if isnan(value)}
    bands = []
    for i, band in enumerate(part.sensor.bands):
        layer = where[band.name]
        entry: dict[str, Any] = {
            "name": band.name,
            "kind": band.kind,
            "wavelength_um": band.wavelength_um,
            "fwhm_um": band.fwhm_um,
            "polarisation": band.polarisation,
            "file": layer.raster.path,
            "gsd_m": layer.raster.gsd_m,
            "resampled": not layer.aligned,
            "p1": float(shown[i, 0]),
            "median": float(shown[i, 1]),
            "p99": float(shown[i, 2]),
        }
        if stats is not None and stats.mean is not None and stats.std is not None and band.name in stats.bands:
            at = stats.bands.index(band.name)
            entry |= {"mean": stats.mean[at], "std": stats.std[at]}
        entry["clipped"] = float(clipped[i])
        bands.append(entry)
    return {
        "sensor": part.sensor.name,
        "dtype": str(stack.dtype),
        "unit": part.scaling.unit,
        "physical": formula(part.scaling),
        "physical_source": part.scaling.physical_source,
        "stats_source": None if stats is None else stats.stats_source,
        "stats_unit": None if stats is None else stats.unit,
        "nodata": [*sorted(values - nan), *(["nan"] if nan else [])],
        "zero_border": part.zero_border,
        "bands": bands,
    }


def _config(weights: str) -> "EncoderConfig":
    from dofa.model.checkpoint import resolve  # torch, which an info without weights does not need
    from dofa.model.model_folder import read_config

    return read_config(resolve(weights))


# -- what looks wrong -------------------------------------------------------------------------------------------------


def _doubts(scene: Scene, values: Sequence[NDArray[Any]]) -> list[str]:
    """What numbers look like, beyond what was noticed on opening."""
    out = []
    for part, raw in zip(scene.parts, values, strict=True):
        names, scaling = part.sensor.band_names, part.scaling
        if raw.shape[1] < 100:
            continue

        def say(title: str, text: str) -> None:
            out.append(f"{title}: {scene.name}: {text}")

        constant = [n for n, band in zip(names, raw, strict=True) if band.min() == band.max()]
        if constant:
            say("constant-bands", f"{listed(constant)} hold one number everywhere that was looked at")
        pairs = pairwise(zip(names, raw, strict=True))
        same = [f"{a} and {b}" for (a, one), (b, two) in pairs if a not in constant and np.array_equal(one, two)]
        if same:
            say("same-bands", f"{listed(same)} hold the same numbers: a band may have been written twice")
        if raw.dtype.kind in "iu":
            top = np.iinfo(raw.dtype).max
            full = [n for n, band in zip(names, raw, strict=True) if (band == top).mean() > SATURATED]
            if full:
                say("saturated", f"more than {SATURATED:.0%} of {listed(full)} are {top}: saturated, or a nodata value")
        if scaling.unit != "reflectance":
            continue
        told = any("offset-unknown" in w for w in scene.warnings)
        sentinel2 = part.sensor.platform == "sentinel-2" and raw.dtype.kind in "iu"
        if sentinel2 and not told and not any(scaling.offset) and physical_values.looks_shifted(raw):
            say("histogram-shifted", "its darkest pixels lie near 1000 in every band, although no offset is taken off: "
                "say --dn-offset -1000 if its processing baseline is 04.00 or later")  # fmt: skip
    return out


def _statistics_doubts(scene: Scene, inputs: "Inputs", values: Sequence[NDArray[Any]]) -> list[str]:
    """Bands whose values lie far from the statistics that will normalise them."""
    if all(stats.stats_source == "scene" for stats in inputs.scalings) or values[0].shape[1] < 100:
        return []
    fed = inputs.normalise([raw[:, None] for raw in values], np.ones((1, values[0].shape[1]), bool))
    apart = fed.mean(axis=(1, 2), dtype=np.float64)
    names = [(name, stats) for stats in inputs.scalings for name in stats.bands]
    far = [
        f"{name} {z:+.1f}"
        for (name, stats), z in zip(names, apart, strict=True)
        if abs(z) > STATS_APART and stats.stats_source != "scene"
    ]
    if not far:
        return []
    return [
        f"statistics-apart: {scene.name}: means lie {listed(far)} deviations off the statistics used: look at "
        "unit and offset; pass --stats scene if the place is like that"
    ]


def _gsd_doubts(scene: Scene, config: "EncoderConfig", inputs: "Inputs") -> list[str]:
    out = []
    for match in inputs.matches:
        trained = None if match.trained is None else config.sensors.get(match.trained)
        known, own = (None if trained is None else trained.gsd_m), scene.gsd_m
        if known is not None and own is not None and max(own / known, known / own) > GSD_APART:
            out.append(
                f"gsd-apart: {scene.name}: {own:.3g} m a pixel, the weights were trained with {match.trained} at "
                f"{known:g} m: pass --gsd {known:g}"
            )
    return out


# -- on the terminal --------------------------------------------------------------------------------------------------


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000  # a pipe gets plain lines: nothing is folded or cut
    return console


def _print_doubts(doubts: Sequence[str]) -> None:
    from rich.text import Text

    for doubt in doubts:
        _console().print(Text(f"! {doubt}", style="yellow"))


def _print(known: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = _console()
    grid = known["grid"]
    size = f"{grid['width']} × {grid['height']} pixels"
    if grid["gsd_m"]:
        across, down = (grid[side] * grid["gsd_m"] / 1000 for side in ("width", "height"))
        size += f" of {grid['gsd_m']:.4g} m ({across:.3g} × {down:.3g} km)"
    console.print(Text(known["scene"], style="bold"))
    console.print(f"grid    {size}, {grid['crs'] or 'no reference system'}")
    if grid["bounds_lonlat"]:
        west, south, east, north = grid["bounds_lonlat"]
        console.print(f"place   {west:.4f} to {east:.4f} east, {south:.4f} to {north:.4f} north")
    console.print(f"valid   {known['valid']:.1%} of {known['looked_at']:,} pixels looked at")
    for part in known["parts"]:
        console.print(f"sensor  {part['sensor']}: {len(part['bands'])} bands of {part['dtype']}")
        console.print(f"values  {part['physical']} (said by: {part['physical_source']})")
        if part["stats_source"]:
            console.print(f"stats   from {part['stats_source']}, in {part['stats_unit']}")
        table = Table(box=None, pad_edge=False, header_style="bold")
        console.print(_rows(table, part["bands"]))
    for lines in known["said"]:
        for line in lines:
            console.print(f"model   {line}")
    if known["no_statistics"]:
        console.print(f"stats   none: {known['no_statistics']}")
    _print_doubts(known["doubts"])


def _rows(table: Any, bands: Sequence[dict[str, Any]]) -> Any:
    columns = {"p1": "1 %", "median": "median", "p99": "99 %", "mean": "mean", "std": "std"}
    columns |= {"normalised_p1": "fed 1 %", "normalised_median": "fed median", "normalised_p99": "fed 99 %"}
    columns = {key: title for key, title in columns.items() if any(key in band for band in bands)}
    clips = any(band["clipped"] for band in bands)
    for title in ("band", "centre µm", "pixel m", *columns.values(), *(("clipped",) if clips else ())):
        table.add_column(title, justify="left" if title == "band" else "right")
    for i, band in enumerate(bands):
        if len(bands) > SHOWN and i == SHOWN // 2:
            table.add_row(f"… {len(bands) - SHOWN} more")
        if len(bands) > SHOWN and SHOWN // 2 <= i < len(bands) - SHOWN // 2:
            continue
        centre = band["polarisation"] or f"{band['wavelength_um']:.4g}"
        pixel = "" if band["gsd_m"] is None else f"{band['gsd_m']:.4g}{' →' if band['resampled'] else ''}"
        figures = [f"{band[key]:.4g}" if key in band else "" for key in columns]
        table.add_row(band["name"], centre, pixel, *figures, *((f"{band['clipped']:.1%}",) if clips else ()))
    return table
