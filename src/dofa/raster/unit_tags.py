"""Units as files, metadata and people write them, and how numbers in them become those of the package's units."""

import re
from dataclasses import dataclass
from typing import Literal

from dofa.pixels import Unit

# `dimensionless` and `amplitude` are no units of `pixels`: the first says only that numbers are not counts, the second
# is squared to power, which no factor does.
Tagged = Unit | Literal["dimensionless", "amplitude"]


@dataclass(frozen=True)
class TaggedUnit:
    """What a unit's text means: value in `unit` = number · scale + offset.

    Attributes:
        unit: of the package.
        scale: factor.
        offset: added after it.
    """

    unit: Tagged
    scale: float = 1.0
    offset: float = 0.0


_REFLECTANCE = r"(surface|toa|boa|(bottom|top) of atmosphere)? ?(refl|reflectance|reflectivity|albedo)"
# Patterns over text in lower case, blanks for underscores, one blank at a time.
_WRITTEN: tuple[tuple[str, TaggedUnit], ...] = (
    (rf"%|percent|per ?cent|pct|{_REFLECTANCE} ?[(\[]?(in )?(%|percent)[)\]]?|(%|percent) {_REFLECTANCE}",
     TaggedUnit("reflectance", 0.01)),
    (rf"{_REFLECTANCE} ?([(\[](0 ?[-–] ?1|unitless|1)[)\]])?", TaggedUnit("reflectance")),
    (r"1|1\.0|unit ?less|dimension ?less|ratio|fraction|no unit", TaggedUnit("dimensionless")),
    (r"(d ?b|decibels?|10 ?\*? ?log ?10)( ?(sigma|gamma|beta) ?(0|nought|naught))?"
     r"|(sigma|gamma|beta) ?(0|nought|naught)[ (\[]*d ?b[)\]]?", TaggedUnit("db")),
    (r"(linear ?)?(power|intensity)|linear|m\^?2 ?/ ?m\^?2", TaggedUnit("linear_power")),
    (r"(linear )?amplitude|sqrt ?\(?power\)?", TaggedUnit("amplitude")),
    (r"d ?n|digital ?numbers?|(digital |raw )?counts?", TaggedUnit("dn")),
    (r"k|kelvins?|deg(rees?)? ?k(elvin)?", TaggedUnit("kelvin")),
    (r"°? ?c|deg(rees?)?( |_)?c|(deg(rees?)? ?)?celsius|celcius|centigrade", TaggedUnit("kelvin", 1.0, 273.15)),
    (r"uint ?8|8[- ]?bit", TaggedUnit("uint8")),
)  # fmt: skip
_RADIANCE_NAMES = r"(spectral |toa |top of atmosphere )?radiance"
_POWERS = {"": 1.0, "m": 1e-3, "µ": 1e-6, "u": 1e-6, "n": 1e-9, "micro": 1e-6, "milli": 1e-3}
_AREAS = {"m": 1.0, "cm": 1e-4, "km": 1e6}
_LENGTHS = {"um": 1.0, "µm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0, "nm": 1e-3,
            "nanometer": 1e-3, "nanometre": 1e-3, "m": 1e6}  # fmt: skip
_PLAIN = str.maketrans({"_": " ", "μ": "µ", "²": "2", "⁻": "-", "¹": "1", "−": "-"})
KNOWN = "reflectance, percent, db, linear_power, kelvin, celsius, radiance (W m-2 sr-1 um-1), dn"


def unit_of(text: str) -> TaggedUnit | None:
    """What a unit's text means; None where it says nothing that is known.

    Args:
        text: such as `%`, `dB`, `DN`, `W/(m^2 sr um)`, `mW cm-2 um-1 sr-1` or `degrees Celsius`, in any case.
    """
    low = " ".join(text.translate(_PLAIN).split()).lower()
    for pattern, meaning in _WRITTEN:
        if re.fullmatch(pattern, low):
            return meaning
    if re.fullmatch(_RADIANCE_NAMES, low):
        return TaggedUnit("radiance")
    return _radiance(re.sub(rf"^{_RADIANCE_NAMES} ?[(\[]|[)\]]$", "", low) if low.startswith("rad") else low)


def _radiance(text: str) -> TaggedUnit | None:
    """Spectral radiance: a power by area, solid angle and wavelength, in whatever order and signs."""
    text = text.replace("**", "^").replace("watts", "w").replace("watt", "w").replace("steradian", "sr")
    factor, seen, below = 1.0, [], False
    # Everything behind a slash or "per" lies below it, unless its exponent says so already.
    for slash, word, exponent in re.findall(r"(/|\bper\b)?[\s·*.()\[\]]*([a-zµ]+)\^?\(?([-+]?\d)?\)?", text):
        below = below or bool(slash)
        size = int(exponent or 1)
        size = -size if below and size > 0 else size
        power = re.fullmatch(r"(milli|micro|[mµun]?)w", word)
        if power and size == 1:
            factor *= _POWERS[power[1]]
            seen.append("power")
        elif word in _AREAS and size == -2:
            factor /= _AREAS[word]
            seen.append("area")
        elif word == "sr" and size == -1:
            seen.append("angle")
        elif word in _LENGTHS and size == -1:
            factor /= _LENGTHS[word]
            seen.append("wavelength")
        else:
            return None
    if sorted(seen) != ["angle", "area", "power", "wavelength"]:
        return None
    return TaggedUnit("radiance", float(f"{factor:.12g}"))
