"""Named maps between the units of products and the units models were trained in; an unknown pair is refused.

The released v1 weights saw Sentinel-1 and Sentinel-2 as SatlasPretrain's 8-bit pictures: reflectance and decibels reach
them through these maps only, and each one has a name that can be said aloud.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError, DataError

Unit = Literal["reflectance", "radiance", "db", "linear_power", "kelvin", "uint8", "dn"]
Float = NDArray[np.float32]

TCI_WHITE = 0.3558  # reflectance shown as 255 in Sentinel-2's true-colour image
TCI_BANDS = ("B02", "B03", "B04")
SATLAS_WHITE = 0.816  # of the other bands: clip(reflectance · 10⁴, 0, 8160) / 32 is 255 there
GRD_AMPLITUDE = 600.0
POWER_FLOOR = 1e-6  # −60 dB, far under the noise of any radar here; zero and noise-subtracted negatives become this


@dataclass(frozen=True)
class UnitMap:
    """One way from a unit to another.

    Attributes:
        name: what to call it in logs and reports.
        source: unit of the values taken.
        target: unit of the values given.
        platform: the instrument it holds for; empty for any.
        approximate: whether it is our stated choice where the original is not documented.
        note: what it does and where that comes from.
        convert: (values (..., C, H, W), band names) to values of the same shape.
    """

    name: str
    source: Unit
    target: Unit
    platform: str
    approximate: bool
    note: str
    convert: Callable[[NDArray[Any], Sequence[str]], NDArray[Any]]


def _power_to_db(power: NDArray[Any], bands: Sequence[str]) -> NDArray[Any]:
    return np.asarray(10 * np.log10(np.maximum(power, POWER_FLOOR)))


def _db_to_power(db: NDArray[Any], bands: Sequence[str]) -> NDArray[Any]:
    return np.asarray(10 ** (db / 10))


def satlas_white(bands: Sequence[str]) -> tuple[float, ...]:
    """Reflectance that is 255 in SatlasPretrain's 8-bit pictures of Sentinel-2; 0 is 0, and linear between.

    Args:
        bands: the catalogue's names of Sentinel-2's.

    Raises:
        ConfigError: a name that Sentinel-2 does not have.
    """
    unknown = [b for b in bands if not re.fullmatch(r"B(0[1-9]|1[0-2]|8A)", b)]
    if unknown:  # a red band under another name would be stretched like an infrared one
        raise ConfigError(f"Sentinel-2 has no band {', '.join(unknown)}: use the catalogue's names B01 … B12, B8A")
    return tuple(TCI_WHITE if b in TCI_BANDS else SATLAS_WHITE for b in bands)


def _sentinel2_to_satlas(reflectance: NDArray[Any], bands: Sequence[str]) -> NDArray[Any]:
    white = np.array(satlas_white(bands), np.float32)[:, None, None]
    return np.asarray(np.clip(reflectance / white, 0, 1) * 255)


def _sentinel1_to_satlas(db: NDArray[Any], bands: Sequence[str]) -> NDArray[Any]:
    return np.clip(GRD_AMPLITUDE * 10 ** (db / 20), 0, 255)


_ALL = (
    UnitMap("linear-power-to-db", "linear_power", "db", "", False, "10·log10, floored at −60 dB", _power_to_db),
    UnitMap("db-to-linear-power", "db", "linear_power", "", False, "10^(dB / 10)", _db_to_power),
    UnitMap(
        "sentinel-2-reflectance-to-satlas-8bit",
        "reflectance",
        "uint8",
        "sentinel-2",
        False,
        "B04, B03, B02 as the true-colour image: 0–0.3558 to 0–255; the others clip(reflectance · 10⁴, 0, 8160) / 32. "
        "Source: SatlasPretrain's Normalization.md (it cuts the fraction off; here it is kept).",
        _sentinel2_to_satlas,
    ),
    UnitMap(
        "sentinel-1-db-to-satlas-8bit",
        "db",
        "uint8",
        "sentinel-1",
        True,
        # The corpus holds GRD digital numbers cut at 255: amplitude before calibration. σ⁰ = (DN / A)², and A lies
        # near 560–670 over the swath (β⁰ 474 over √sin of the incidence; recalled). With 600, thirteen real chips have
        # mean and std 164, 78 (VV) and 64, 36 (VH); published are 166, 65 and 88, 43; probably VH still had its
        # thermal noise there. A line from −30…0 dB gives stds of 38: no amplitude picture looks like that.
        "clip(600 · 10^(dB / 20), 0, 255): GRD amplitude before calibration, one factor for the whole swath. "
        "Approximation; source: SatlasPretrain's Normalization.md for the cut at 255, the factor checked against the "
        "published means.",
        _sentinel1_to_satlas,
    ),
    *(
        UnitMap(f"{p}-reflectance-to-dn", "reflectance", "dn", p, False, "reflectance · 10⁴", lambda x, _: x * 1e4)
        for p in ("sentinel-2", "enmap")
    ),
    *(
        UnitMap(
            f"{p}-dn-to-reflectance", "dn", "reflectance", p, False, "DN / 10⁴, without offset", lambda x, _: x / 1e4
        )
        for p in ("sentinel-2", "enmap")
    ),
)
UNIT_MAPS: dict[str, UnitMap] = {m.name: m for m in _ALL}


def unit_path(source: Unit, target: Unit, platform: str = "") -> tuple[UnitMap, ...]:
    """The maps from one unit to another for an instrument, the fewest there are: none, one, or one after another.

    Args:
        source: unit of the values at hand.
        target: unit wanted.
        platform: `Sensor.platform`; maps that hold for any instrument need none.

    Raises:
        ConfigError: no maps lead there; what there is for this instrument is said.
    """
    fits = [m for m in _ALL if m.platform in ("", platform.lower())]
    paths: list[tuple[UnitMap, ...]] = [()]
    reached = {source}
    for path in paths:  # grows while it is walked: breadth first
        at = path[-1].target if path else source
        if at == target:
            return path
        steps = [m for m in fits if m.source == at and m.target not in reached]
        reached |= {m.target for m in steps}
        paths += [(*path, m) for m in steps]
    known = ", ".join(m.name for m in fits)
    raise ConfigError(
        f"no unit map from {source} to {target} for {platform or 'an unnamed instrument'}; known: {known}"
    )


def convert_units(
    physical_chw: NDArray[Any], bands: Sequence[str], source: Unit, target: Unit, platform: str = ""
) -> Float:
    """Physical values in another unit, through the named maps for it.

    Args:
        physical_chw: (..., C, H, W) in `source`; a NaN stays a NaN.
        bands: names of the C bands, the catalogue's.
        source: unit of the values.
        target: unit wanted; the same unit changes nothing.
        platform: `Sensor.platform`.

    Returns:
        (..., C, H, W) float32.

    Raises:
        ConfigError: an unknown pair, or band names the map does not know.
        DataError: the number of bands is another.
    """
    if physical_chw.ndim < 3 or physical_chw.shape[-3] != len(bands):
        raise DataError(f"image of shape {physical_chw.shape} does not have the {len(bands)} bands named")
    values = physical_chw
    for step in unit_path(source, target, platform):
        values = step.convert(values, bands)
    return np.asarray(values, np.float32)
