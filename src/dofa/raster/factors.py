"""The unit and the factor of a file's numbers: by its tags, by the user's word, or by the values themselves."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError, DataError
from dofa.pixels import Scaling, Unit, resolve_physical
from dofa.raster.file_bands import Said
from dofa.raster.numbers import FileNumbers, UserNumbers
from dofa.raster.units import KNOWN, TaggedUnit, unit_of
from dofa.sensors import Sensor

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
        sensor: with the bands read.

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
        bands: names.
        product: the sensor's own scaling, None where it has none.
        dtype: of the numbers.

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
        bands: names.
        product: the sensor's own scaling, None where it has none.
        name: of the file, for errors.

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
        product: the sensor's own scaling.
        sensor: its name.
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
    """A number, or the one number a list repeats; None for anything else.

    Args:
        text: of a tag.
    """
    try:
        values = {float(part) for part in re.split(r"[,;\s]+", (text or "").strip("{}[]() \t"))}
    except ValueError:
        return None
    return values.pop() if len(values) == 1 else None
