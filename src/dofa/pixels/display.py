"""Physical values as a picture in [0, 1], the input of a teacher that knows photographs; every range is named here.

The maps are affine and alike for all images of a sensor, unlike the stretches of `dofa.plots`: what is dark stays
dark.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError
from dofa.pixels.scaling import Scaling
from dofa.pixels.units import TCI_WHITE, Float, Unit

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INFRARED_UM = 0.7  # from here on vegetation is bright
HIDDEN = 0.45  # shown where there is no measurement: the mean of photographs, as a model is fed its own mean there


@dataclass(frozen=True)
class DisplayMap:
    """Which physical values are shown black and white.

    Attributes:
        name: what to call it in logs and reports.
        low: shown as 0, in the unit's numbers.
        high: shown as 1.
        note: where the range comes from.
    """

    name: str
    low: float
    high: float
    note: str


_VISIBLE = DisplayMap("reflectance-visible", 0.0, TCI_WHITE, "as Sentinel-2's true-colour image (SatlasPretrain)")
_INFRARED = DisplayMap(
    "reflectance-infrared", 0.0, 0.5, "vegetation: of 320 Sentinel-2 chips 2 % of B08 and 0.1 % of B11 lie above"
)
_CO_POLARISED = DisplayMap("db-co-polarised", -25.0, 0.0, "VV, HH: from calm water to cities")
_CROSS_POLARISED = DisplayMap("db-cross-polarised", -32.0, -7.0, "VH, HV: 7 dB under the co-polarised range")
_UINT8 = DisplayMap("uint8", 0.0, 255.0, "already a picture")
_KELVIN = DisplayMap("kelvin", 250.0, 330.0, "land surfaces")
DISPLAY_MAPS: dict[str, DisplayMap] = {
    m.name: m for m in (_VISIBLE, _INFRARED, _CO_POLARISED, _CROSS_POLARISED, _UINT8, _KELVIN)
}


def display_map(unit: Unit, wavelength_um: float | None, polarisation: str | None) -> DisplayMap:
    """The map of one band.

    Args:
        wavelength_um: centre of the band, None where it has none.
        polarisation: as `VV`, None for what is no radar.

    Raises:
        ConfigError: nothing says which of these numbers is black and which white.
    """
    if unit == "reflectance" and wavelength_um is not None:
        return _VISIBLE if wavelength_um < INFRARED_UM else _INFRARED
    if unit == "db":
        return _CO_POLARISED if polarisation in ("VV", "HH") else _CROSS_POLARISED
    if unit in ("uint8", "kelvin"):
        return _UINT8 if unit == "uint8" else _KELVIN
    raise ConfigError(
        f"no display map for values in {unit}: pack reflectance, dB or 8-bit values, or show the teacher the sensor's "
        "own normalisation (distill.input=sensor)"
    )


def show(normalised_chw: NDArray[np.float32], scaling: Scaling, maps: Sequence[DisplayMap]) -> Float:
    """A model's input as the picture it is of.

    Args:
        normalised_chw: (..., C, H, W) as `scaling` normalises.
        scaling: with statistics, of the same bands.
        maps: one a band.

    Returns:
        (..., C, H, W) float32 in [0, 1].
    """
    low = np.array([m.low for m in maps], np.float32)[:, None, None]
    span = np.array([m.high - m.low for m in maps], np.float32)[:, None, None]
    shown: Float = np.clip((scaling.denormalise(normalised_chw) - low) / span, 0, 1)
    return shown


def display_statistics(
    scaling: Scaling,
    maps: Sequence[DisplayMap],
    colours: Sequence[int | None],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Scaling:
    """Statistics that make a model's input what a teacher of photographs is fed, instead of the corpus' own.

    Every band of a sensor is scaled alike but for its map's range, so that a patch kernel taken from the teacher means
    for the student's bands what it meant for colours.

    Args:
        scaling: the step to physical values.
        maps: one a band.
        colours: 0, 1 or 2 for a band that is shown as red, green or blue, None for another.
        mean: of the teacher's red, green and blue in [0, 1].
        std: like mean.
    """
    means, stds = [], []
    for each, colour in zip(maps, colours, strict=True):
        centre = sum(mean) / 3 if colour is None else mean[colour]
        spread = sum(std) / 3 if colour is None else std[colour]
        means.append(each.low + (each.high - each.low) * centre)
        stds.append((each.high - each.low) * spread)
    return scaling.with_stats(means, stds, "display")
