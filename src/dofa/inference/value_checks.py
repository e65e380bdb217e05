"""Values that no measurement has, found before anything is computed: clipped, constant, or outside their unit."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dofa.errors import DataError, listed
from dofa.pixels import Scaling
from dofa.scene.first_look import sample_windows
from dofa.scene.grid import Window

if TYPE_CHECKING:
    from dofa.inference.inputs import Inputs

# Between these lies the median of any band: snow, glint and cloud, night and lava, a radar's noise.
MEDIANS: dict[str, tuple[float, float]] = {
    "reflectance": (-0.1, 3.0),
    "radiance": (-50.0, 2000.0),
    "db": (-100.0, 60.0),
    "linear_power": (-0.01, 20.0),
    "kelvin": (100.0, 1000.0),
    "uint8": (-0.5, 255.5),
}
ALIKE = 1e-3  # standard deviations: 99 % of a band that lie closer together carry nothing
NEARLY_ALL = 0.9  # of the bands: fewer may be the absorption of water or of the air
LEAST = 100  # pixels that are judged
WINDOW, FURTHER = 64, 8  # side of further windows, and how many a side of the scene


def clipped_share(scaling: Scaling, raw: NDArray[Any]) -> NDArray[np.float64]:
    """(C,) share of the numbers of each band that the scaling's clip changes.

    Args:
        scaling: from raw to physical values.
        raw: (C, n) valid pixels.
    """
    unclipped = Scaling.uniform(scaling.unit, scaling.bands, scaling.scale, scaling.offset).physical(raw[:, None])[:, 0]
    return np.asarray((scaling.physical(raw[:, None])[:, 0] != unclipped).mean(axis=1), np.float64)


def out_of_unit(scaling: Scaling, raw: NDArray[Any]) -> dict[str, str]:
    """Bands whose median cannot be a value of their unit, and why.

    Args:
        scaling: from raw to physical values.
        raw: (C, n) valid pixels.
    """
    if scaling.unit not in MEDIANS or raw.shape[1] < LEAST:
        return {}
    low, high = MEDIANS[scaling.unit]
    unclipped = Scaling.uniform(scaling.unit, scaling.bands, scaling.scale, scaling.offset)
    medians = np.median(unclipped.physical(raw[:, None])[:, 0], axis=1)
    return {
        band: f"a median {scaling.unit} of {median:.4g}"
        for band, median in zip(scaling.bands, medians, strict=True)
        if not low <= median <= high
    }


def without_content(normalised: NDArray[Any], bands: Sequence[str]) -> dict[str, str]:
    """Bands whose normalised values are all alike, clipped ones among them, and why.

    Args:
        normalised: (C, n) as the model is fed them.
    """
    if normalised.shape[1] < LEAST:
        return {}
    low, high = np.percentile(normalised, (0.5, 99.5), axis=1)
    return {
        band: f"99 % of its normalised values between {bottom:.4g} and {top:.4g}, one clipped or constant number"
        for band, bottom, top in zip(bands, low, high, strict=True)
        if top - bottom < ALIKE
    }


def find_impossible(
    inputs: "Inputs", parts: Sequence[NDArray[Any]], valid: NDArray[np.bool_], unit_only: bool = False
) -> tuple[dict[str, str], dict[str, str]]:
    """Bands that hold no values a sensor measures in some pixels: by the unit, and as the model is fed them.

    Args:
        inputs: the scene and what normalises it.
        parts: raw numbers (C, h, w) of every part.
        valid: (h, w).
        unit_only: nothing is normalised.
    """
    names = [band for sensor in inputs.sensors for band in sensor.band_names]
    fed = {} if unit_only else without_content(inputs.normalise(parts, valid)[:, valid], names)
    by_unit: dict[str, str] = {}
    for part, raw, scaling in zip(inputs.scene.parts, parts, inputs.scalings, strict=True):
        picked = part.sensor.index(list(scaling.bands))
        by_unit |= out_of_unit(part.scaling.select(scaling.bands), raw[picked][:, valid])
    return by_unit, fed


def check_values(inputs: "Inputs", unit_only: bool = False) -> None:
    """Refuse a scene of which nearly all bands hold values that cannot be, wherever it is looked at.

    Usually one window is read. Where all of it looks constant, others are read before the scene is refused: a lake, or
    black beside a mosaic, may fill a window.

    Args:
        inputs: the scene and what normalises it.
        unit_only: physical values are fed, nothing is normalised.

    Raises:
        DataError: at least NEARLY_ALL of the bands; what they hold and what can be said of it.
    """
    scene, worst, constant, wrong_unit = inputs.scene, "", False, False
    count = sum(len(sensor.bands) for sensor in inputs.sensors)
    windows = sample_windows(scene.height, scene.width)
    for number, window in enumerate((*windows, *_further(scene.height, scene.width))):
        if number >= len(windows) and not (worst and constant):
            break
        parts, valid = scene.read(window)
        if np.count_nonzero(valid) < LEAST:
            continue
        by_unit, fed = find_impossible(inputs, parts, valid, unit_only)
        bad = {**fed, **by_unit}
        if len(bad) < NEARLY_ALL * count:
            return
        constant = len(by_unit) < NEARLY_ALL * count
        if not worst:
            band, why = next(iter((by_unit or fed).items()))
            worst = f"{len(bad)} of {count} bands hold values that cannot be: {band} has {why}"
            wrong_unit = bool(by_unit)
    if worst:
        units = ", ".join(dict.fromkeys(s.unit for s in inputs.scalings))
        # No statistics mend a wrong unit.
        other = "" if wrong_unit else f", or normalise its {units} by other statistics (--stats scene)"
        raise DataError(
            f"{scene.name}: {worst}; look at it with dofa info, and say what its numbers are (--unit, --dn-scale, "
            f"--dn-offset){other}"
        )


def _further(height: int, width: int) -> Iterator[Window]:
    """Small windows all over a scene."""
    rows, cols = min(WINDOW, height), min(WINDOW, width)
    for i in range(FURTHER):
        for j in range(FURTHER):
            share_down, share_across = (i + 0.5) / FURTHER, (j + 0.5) / FURTHER
            yield Window(round(share_down * (height - rows)), round(share_across * (width - cols)), rows, cols)


def doubts(name: str, count: int, bad: dict[str, str]) -> list[str]:
    """What `dofa info` says of bands with values that cannot be.

    Args:
        bad: why, by band.
    """
    if not bad:
        return []
    band, why = next(iter(bad.items()))
    refused = ": embed and predict refuse it" if len(bad) >= NEARLY_ALL * count else ""
    return [f"impossible-values: {name}: {len(bad)} of {count} bands ({listed(bad)}); {band} has {why}{refused}"]
