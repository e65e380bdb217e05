"""The unit and the factor of a file's numbers: by its tags, by the user's word, or by the values themselves."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError, DataError
from dofa.pixels import Scaling, Unit, resolve_physical
from dofa.raster.band_descriptions import Said
from dofa.raster.unit_tags import KNOWN, TaggedUnit, unit_of
from dofa.sensors import Sensor

Tags = Mapping[str, str]


@dataclass(frozen=True)
class FileNumbers:
    """What a file says of the numbers in the bands that are read, one entry a band.

    Attributes:
        scales: GDAL scale, 1 where nothing is said.
        offsets: GDAL offset, 0 where nothing is said.
        units: GDAL unit, empty where nothing is said.
        tags: of the data set, keys in upper case.
        band_tags: of each band, keys in upper case.
        envi: the header of an ENVI file, keys in lower case.
        amplitude: a name says that they are amplitudes.
    """

    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    units: tuple[str, ...]
    tags: Tags
    band_tags: tuple[Tags, ...]
    envi: Tags
    amplitude: bool = False

    @property
    def scaled(self) -> bool:
        """Whether a scale or an offset is said of any band."""
        return set(self.scales) != {1.0} or any(self.offsets)

    def select(self, places: Sequence[int]) -> "FileNumbers":
        """What is said of some of the bands."""
        return FileNumbers(
            scales=tuple(self.scales[i] for i in places),
            offsets=tuple(self.offsets[i] for i in places),
            units=tuple(self.units[i] for i in places),
            tags=self.tags,
            band_tags=tuple(self.band_tags[i] for i in places),
            envi=self.envi,
            amplitude=self.amplitude,
        )


@dataclass(frozen=True)
class UserNumbers:
    """What the user says of the numbers; None for nothing.

    Attributes:
        scaling: everything.
        dn_offset: added to the numbers before the factor.
        dn_scale: the factor from numbers to the unit.
        unit: as a unit tag would say it; see `units.unit_of`.
    """

    scaling: Scaling | None = None
    dn_offset: float | None = None
    dn_scale: float | None = None
    unit: str | None = None

    @property
    def said(self) -> bool:
        """Whether the user says anything."""
        return any(v is not None for v in (self.scaling, self.dn_offset, self.dn_scale, self.unit))

    def __post_init__(self) -> None:
        if self.scaling is not None and (self.dn_offset, self.dn_scale, self.unit) != (None, None, None):
            raise ConfigError(
                "scaling already says offset, factor and unit: give scaling, or some of dn_offset, dn_scale and unit"
            )
        if self.dn_scale is not None and not (np.isfinite(self.dn_scale) and self.dn_scale):
            raise ConfigError(f"--dn-scale {self.dn_scale:g}: the factor from the file's numbers to their unit, not 0")
        if self.unit is not None and unit_of(self.unit) is None:
            raise ConfigError(f"--unit {self.unit}: known are {KNOWN}")


# -- The unit and the factor of a file's numbers: by its tags, by the user's word, or by the values themselves.

UNIT_KEYS = ("UNIT", "UNITS", "UNITTYPE", "UNIT_TYPE", "DATA_UNITS", "DATA UNITS")  # of tags, in upper case
AMPLITUDE = (
    "its numbers are amplitudes, whose square is power: square them first (gdal_calc.py --calc='A.astype(float)**2' "
    "--allBands=A), then open the result with --unit linear_power"
)
# What numbers may be beside a product's counts: (name, factor, offset), and the span of raw numbers that makes it
# likely: the least 1st percentile, the least and greatest 99th. Cloud and glint reach a reflectance of 3, no 99th
# percentile of percents stays below that; counts × 10⁴ of the darkest water lie above 130.
FACTORS: dict[str, tuple[tuple[str, float, float, tuple[float, float, float]], ...]] = {
    "reflectance": (("reflectance", 1.0, 0.0, (-0.3, 0.0, 3.0)), ("percent", 0.01, 0.0, (-30.0, 3.0, 130.0))),
    "kelvin": (("kelvin", 1.0, 0.0, (150, 200, 400)), ("degrees Celsius", 1.0, 273.15, (-90, -60, 90))),
    "radiance": (("radiance", 1.0, 0.0, (-20, 0.5, 900)),),
    "uint8": (("8-bit numbers divided by 255", 255.0, 0.0, (0, 0, 1)),),
}


def tagged_units(numbers: FileNumbers, sensor: Sensor) -> tuple[tuple[TaggedUnit, ...], tuple[Said, ...]]:
    """The unit of each band by the file's tags, none where they say nothing that is known; and what was understood.

    Args:
        numbers: what the file says of its numbers.

    Raises:
        DataError: bands in several units, or a unit that the sensor's product cannot have.
    """
    of_file = next((numbers.tags[key] for key in UNIT_KEYS if numbers.tags.get(key, "").strip()), "")
    texts = []
    for unit, tags in zip(numbers.units, numbers.band_tags, strict=True):
        texts.append(unit.strip() or next((tags[k].strip() for k in UNIT_KEYS if tags.get(k, "").strip()), of_file))
    found = [unit_of(text) for text in texts]
    known = tuple(one for one in found if one is not None)
    unknown = sorted({text for text, one in zip(texts, found, strict=True) if text and one is None})
    units = sorted({str(one.unit) for one in known})
    if len(units) > 1:
        raise DataError(f"its bands are in several units ({', '.join(units)}): read them apart with --bands")
    if len(known) < len(found):
        text = (
            f"its unit tag {', '.join(map(repr, unknown))} is not known and counts for nothing: --unit says what it is"
        )
        return (), (("unit-unknown", text),) if unknown else ()
    if not known:
        return (), ()
    (unit,), text = units, next(t for t in texts if t)
    product = sensor.scaling.unit if sensor.scaling is not None else None
    if unit == "amplitude":
        raise DataError(AMPLITUDE)
    if unit in ("dimensionless", "dn") or product in (None, "dn", "uint8", unit):
        converted = {(one.scale, one.offset) for one in known} != {(1.0, 0.0)}
        how = f"its unit tag {text!r} is percent" if known[0].scale == 0.01 else f"its unit is {text!r}"
        return known, (("unit-converted", f"{how}: converted to {unit}"),) if converted else ()
    if {unit, product} == {"db", "linear_power"}:
        return known, (("unit-by-tag", f"its unit tag {text!r} makes it {unit}, where {sensor.name} is {product}"),)
    raise DataError(
        f"its unit tag {text!r} is {unit}, {sensor.name} is {product}: name the sensor and level whose product it is "
        f"with --sensor, or, if the tag is wrong, say --unit {product}"
    )


def file_scaling(
    numbers: FileNumbers, tagged: Sequence[TaggedUnit], bands: Sequence[str], product: Scaling | None, dtype: str
) -> Scaling | None:
    """The scaling a file's own tags give; None where they say nothing.

    Without a unit tag the unit is the product's. An 8-bit file without any word is what its type says: 8-bit numbers.

    Args:
        numbers: what the file says of its numbers.
        tagged: the unit of each band, empty where nothing is said.
        product: the sensor's own scaling, None where it has none.

    Raises:
        DataError: a scale without any unit.
    """
    scales, offsets = numbers.scales, numbers.offsets
    unit = tagged[0].unit if tagged and tagged[0].unit not in ("dimensionless", "amplitude") else None
    if unit == "dn" and product is not None and product.unit != "dn":
        unit = None  # counts: the product says what they are worth
    factor = number(numbers.envi.get("reflectance_scale_factor"))
    if factor and not numbers.scaled:
        scales, unit = (1 / factor,) * len(bands), unit or "reflectance"
    elif tagged and unit is not None:
        pairs = list(zip(tagged, scales, offsets, strict=True))
        scales = tuple(t.scale * s for t, s, _ in pairs)
        offsets = tuple(t.scale * o + t.offset for t, _, o in pairs)
    clip = product.clip if product is not None and unit in (None, product.unit) else None
    if unit is None and set(scales) == {1.0} and not any(offsets):
        if product is None and dtype == "uint8":
            return Scaling.uniform("uint8", bands, clip=(0, 255), physical_source="file")
        return None
    if unit is None and product is None:
        raise DataError("its scale tags come without a unit: name the sensor (--sensor), or say --unit")
    return Scaling.uniform(unit or product.unit, bands, scales, offsets, clip, "file")  # type: ignore[arg-type,union-attr]


def with_dn_offset(scaling: Scaling, offset_dn: Sequence[float]) -> Scaling:
    """The scaling for numbers to which `offset_dn` is added first, one a band.

    Args:
        scaling: for numbers with the offset already added.
        offset_dn: in raw numbers.
    """
    offset = tuple(o + s * dn for o, s, dn in zip(scaling.offset, scaling.scale, offset_dn, strict=True))
    return replace(scaling, offset=offset)


def user_scaling(
    user: UserNumbers, numbers: FileNumbers, bands: Sequence[str], product: Scaling | None, name: str
) -> Scaling:
    """Unit and factor as the user says, what is not said by the file's tags and the product.

    Args:
        user: with a unit or a factor.
        numbers: what the file says of its numbers.
        product: the sensor's own scaling, None where it has none.

    Raises:
        ConfigError: a factor to no unit, or amplitudes.
    """
    written = {text: unit_of(text) for text in (user.unit,) if text} or {t: unit_of(t) for t in numbers.units if t}
    tagged = next((found for found in written.values() if found is not None), None)
    if tagged is not None and tagged.unit == "amplitude":
        raise ConfigError(f"{name}: {AMPLITUDE}")
    if tagged is not None and tagged.unit == "dn" and user.dn_scale is None and product is not None:
        scaling = product  # counts of the product
    else:
        known = next((u for u in get_args(Unit) if tagged is not None and tagged.unit == u and u != "dn"), None)
        if known is None and product is None and (tagged is None or tagged.unit != "dn"):
            raise ConfigError(f"{name}: --dn-scale needs a unit: add --unit ({KNOWN})")
        unit: Unit = known or (product.unit if product is not None else "dn")
        # A factor without a unit beside it leads to the package's unit, not to the one the file's tag is written in.
        own = tagged is None or (user.unit is None and user.dn_scale is not None)
        factor, added = (1.0, 0.0) if own or tagged is None else (tagged.scale, tagged.offset)
        scales = numbers.scales if user.dn_scale is None else (user.dn_scale,) * len(bands)
        offsets = numbers.offsets if user.dn_scale is None else (0.0,) * len(bands)
        clip = product.clip if product is not None and product.unit == unit else None
        scaling = Scaling.uniform(
            unit, bands, [s * factor for s in scales], [o * factor + added for o in offsets], clip
        )  # fmt: skip
    if user.dn_offset is not None:
        scaling = with_dn_offset(scaling, [user.dn_offset] * len(bands))
    return resolve_physical(scaling, None, None)


def likely_factor(product: Scaling, sensor: str, raw: NDArray[Any], by_tag: bool) -> tuple[Scaling, Said | None]:
    """The factor of numbers of which nobody says it, decided by their values, and what has to be said of that.

    They are the first of FACTORS that they can be, and else the product's counts.

    Args:
        raw: valid numbers of any shape.
        by_tag: whether a unit tag says that the values are in the product's unit as they are.
    """
    counts, plain = (
        product.without_stats(),
        Scaling.uniform(product.unit, product.bands, clip=product.clip, physical_source="file"),
    )
    raw = raw[np.isfinite(raw)] if raw.dtype.kind == "f" else raw.ravel()
    if not raw.size:
        return (plain if by_tag else counts), None
    low, high = np.percentile(raw.ravel()[:: max(1, raw.size // 200_000)].astype(np.float64), (1, 99))
    fitting = (
        (what, scale, offset)
        for what, scale, offset, (bottom, least, most) in FACTORS.get(product.unit, ())
        if low >= bottom and least <= high <= most
    )
    what, scale, offset = next(fitting, ("counts", product.scale[0], product.offset[0]))
    if what == "counts" and (scale, offset) == (1.0, 0.0):
        return counts, None  # its numbers are physical values: nothing is multiplied
    if by_tag and (scale, offset) == (1.0, 0.0):
        return plain, None
    text = f"nothing says the factor of its {raw.dtype} numbers, 98 % of which lie in {low:.4g} … {high:.4g}"
    if what == "counts":
        taken = f"taken as the counts of {sensor}, × {scale:g}"
        chosen = counts
    else:
        taken = f"taken as {what}, not × {product.scale[0]:g} as {sensor} has it"
        chosen = Scaling.uniform(product.unit, product.bands, scale, offset, product.clip, "values")
    flag = {"counts": "dn", "percent": "percent", "degrees Celsius": "celsius"}.get(what, product.unit)
    flag = f"{flag} --dn-scale 255" if scale == 255.0 else flag
    return chosen, ("scale-assumed", f"{text}: {taken}; say --unit {flag} if that is right, else --unit and --dn-scale")


def number(text: str | None) -> float | None:
    """A number, or the one number a list repeats; None for anything else."""
    try:
        values = {float(part) for part in re.split(r"[,;\s]+", (text or "").strip("{}[]() \t"))}
    except ValueError:
        return None
    return values.pop() if len(values) == 1 else None


# -- `--dn-offset`, for all files or by file: processing baselines differ within a time series.


def dn_offsets(text: str | float | None) -> list[tuple[str, float]]:
    """Patterns of file names and what is added to the numbers of those files.

    Args:
        text: `-1000` for all files, or `PATTERN=NUMBER` entries with commas between them, the first that fits counts:
            `S2B*=-1000,*=0`.

    Raises:
        ConfigError: an entry that is no number.
    """
    if text is None:
        return []
    out = []
    for entry in str(text).split(","):
        pattern, equals, number = entry.rpartition("=")
        try:
            out.append((pattern.strip() if equals else "*", float(number)))
        except ValueError:
            raise ConfigError(
                f"--dn-offset {text}: a number such as -1000, or one by file, such as --dn-offset 'S2B*=-1000,*=0'"
            ) from None
    return out


def dn_offset_of(text: str | float | None, sources: Sequence[str]) -> float | None:
    """The offset of a scene.

    Args:
        text: as for `dn_offsets`.
        sources: files of the scene; the last part of a path, or all of it, is compared with the patterns.

    Returns:
        None where nothing fits.
    """
    names = [name for source in sources for name in (source, source.rstrip("/").rsplit("/", 1)[-1])]
    fitting = (value for pattern, value in dn_offsets(text) if any(fnmatchcase(name, pattern) for name in names))
    return next(fitting, None)


def check_dn_offsets(text: str | float | None, sources: Sequence[Sequence[str]]) -> None:
    """Refuse a pattern that fits none of the files: it is a slip, and its files would be read without the offset.

    Args:
        text: as for `dn_offsets`.
        sources: files of each scene.

    Raises:
        ConfigError: such a pattern.
    """
    for pattern, value in dn_offsets(text):
        if pattern != "*" and all(dn_offset_of(f"{pattern}={value}", one) is None for one in sources):
            raise ConfigError(f"--dn-offset {text}: no file given is named like {pattern}")


# -- What radar backscatter is in, by its values: decibels, decibels × 100 in integers, or linear power.

UNITS: tuple[Unit, ...] = ("db", "linear_power")
FAINTEST_DB, BRIGHTEST_DB = -60.0, 40.0  # what 98 % of any image lies in: noise lies near −35, few targets above 20


def backscatter(product: Scaling, sensor: str, raw: NDArray[Any], by_tag: bool) -> tuple[Scaling, Said | None]:
    """The unit and factor of backscatter of which nobody says them, decided by its values, and what is said of that.

    Nearly all ground sends back less than it receives: decibels are negative there, and linear power lies between 0 and
    1. What is neither stays what the product has.

    Args:
        product: the sensor's own scaling, in decibels or linear power.
        raw: valid numbers of any shape.
        by_tag: whether a unit tag says that the values are in the product's unit.
    """
    own = product.without_stats()
    values = raw[np.isfinite(raw)] if raw.dtype.kind == "f" else raw.ravel()
    if not values.size:
        return own, None
    low, middle, high = np.percentile(values.ravel()[:: max(1, values.size // 200_000)].astype(np.float64), (1, 50, 99))
    if low >= FAINTEST_DB and low < -0.1 and middle <= 0 and high <= BRIGHTEST_DB:
        unit, scale, flags = "db", 1.0, "--unit db"
    elif low / 100 >= FAINTEST_DB and low < FAINTEST_DB and middle <= 0 and high / 100 <= BRIGHTEST_DB:
        unit, scale, flags = "db", 0.01, "--unit db --dn-scale 0.01"
    elif low >= -0.1 and 0 < middle < 10 and raw.dtype.kind == "f":  # a little below 0 where noise was subtracted
        unit, scale, flags = "linear_power", 1.0, "--unit linear_power"
    else:
        return own, None
    if (unit == product.unit and scale == 1.0) or (by_tag and unit != product.unit):
        return own, None
    chosen = Scaling.uniform(unit, product.bands, scale, physical_source="values")  # type: ignore[arg-type]
    what = "linear power" if unit == "linear_power" else "decibels" if scale == 1 else "decibels × 100"
    text = (
        f"nothing says the unit of its {raw.dtype} numbers, 98 % of which lie in {low:.4g} … {high:.4g}: taken as "
        f"{what}, not as {sensor} has it; say {flags} if that is right, else --unit and --dn-scale"
    )
    return chosen, ("unit-assumed", text)
