"""Which of a sensor's bands a description names: by the band's name, by its number or by its colour.

A number may count places in the file ("Band 1 - Red") or be the sensor's own ("B4 - Red"). Where a colour stands beside
it the colour decides, since a number that counts places names another band.
"""

import re
from dataclasses import dataclass
from functools import cache

from dofa.sensors import Band, Sensor

# Layers that products carry beside their bands; whoever wants one as a band names it with --bands.
AUXILIARY = re.compile(
    r"(scl|aot|wvp|tci.*|msk.*|.*qa\d*|.*qa_.*|fmask|.*mask|alpha|udm.*|cloud.*|snow_?prob.*|.*angle|(solar|sun|view)_.*"
    r"|st_(atran|cdist|drad|emis|emsd|trad|urad)|(sr_)?atmos_opacity|sr_aerosol|[sv][az]a"  # Landsat, HLS
    r"|cld.*|snw.*|probability|cs(_cdf)?"  # Sen2Cor, s2cloudless, Cloud Score+
    r"|clear|snow|shadow|(light_haze|heavy_haze|haze_light|haze_heavy)|confidence|unusable"  # Planet's UDM2
    # MODIS
    r"|state(_1km)?|q[ca]_\w*|(i?obs_?cov|iobs_res|q_scan|gflags|orbit_pnt|granule_pnt|num_observations)\w*|range"
    r"|(sensor|solar|relative|view)?_?(zenith|azimuth)(_.*)?|day_?of_?year|spatial_ref|layover.*)(,.*)?",
    re.IGNORECASE,
)
# Layers of one band each, named by that band: MSK_DETFOO_B04, solar_azimuth_band4.
ABOUT_A_BAND = re.compile(r"(msk|mask|qa|saa|sza|vaa|vza)_.*|.*(azimuth|zenith).*", re.IGNORECASE)
# Words that make another quantity of a band: B2_stdDev, diff_B2, NDVI_B8.
ANOTHER_QUANTITY = re.compile(
    r"(?<![a-z])(std(dev)?|stdev|var(iance)?|unc(ertainty)?|diff(erence)?|delta|ratio|mask|count|snr|anomaly|index"
    r"|nd([vwbs]i)?)(?![a-z])"
)
IDENTIFIER = re.compile(r"(?<![a-z0-9])b(?:and)?[ _-]?0*(\d{1,3}a?)(?![a-z0-9])|(?<![a-z])(vv|vh|hh|hv)(?![a-z])")
# A wavelength in a description: "B4 (665 nm)", "0.4500 Micrometers".
A_WAVELENGTH = re.compile(
    r"(?<![\w.])\(?\s*([\d.]+)\s*(nm|nanomet\w*|[uµμ]m|micromet\w*|micron\w*)(?!\w)\s*\)?", re.IGNORECASE
)
LONGEST = 200  # characters of a description that are looked at: expressions on hostile ones would take for ever
COUNTED = re.compile(r"(?:band|layer|channel|bd|ch)?[ _#.-]*0*(\d{1,3})", re.IGNORECASE)
# The number of a place and what follows or goes before it: "1: red", "Band 1 - Red", "Red (band 1)".
NUMBER_FIRST = re.compile(
    r"[(\[#]?(?:(?:band|layer|channel|bd|ch|b)[ _.#:-]*)?(?:(?:no|nr|number)[ _.]+)?0*(\d{1,3}a?)(?=[ _.:,;)\]/|–—-])"
)
NUMBER_LAST = re.compile(r"[ _.:,(\[/–—-](?:band|layer|channel|bd|ch|b)[ _.#:-]*0*(\d{1,3}a?)[)\]]?$")
SEPARATED = re.compile(r"\d\s*[_:.;,)(|\]]|\s[–—-]\s")

# How colours are written, and the one word used here; longer forms first.
SPELLINGS = (
    (r"narrow (?:nir|near ?infra ?red)|(?:nir|near ?infra ?red) narrow", "nirnarrow"),
    (r"near ?infra ?red|near ?ir", "nir"),
    (r"(?:short|mid)(?: ?wave(?:length)?)? ?(?:infra ?red|ir)", "swir"),
    (r"(?:thermal|long ?wave)(?: ?infra ?red| ?ir)?|lwir|tirs?", "thermal"),
    (r"infra ?red", "nir"),
    (r"(?:vegetation )?red ?edge", "rededge"),
    (r"(?:coastal|ultra|deep) ?(?:aerosols?|blue)|coastal|aerosols?|violet", "coastal"),
    (r"pan ?chromatic", "pan"),
    (r"water ?vapou?r", "watervapour"),
)
COLOUR = re.compile(
    r"(?<![a-z])(coastal|blue|green|yellow|rededge|red|nirnarrow|nir|swir|cirrus|pan|thermal|watervapour)"
    r" ?(i{1,3}(?![a-z])|0*\d{1,2}(?!\d))?(?![a-z])"
)
ROMAN = {"i": "1", "ii": "2", "iii": "3"}
LETTERS = {"r": "red", "g": "green", "b": "blue", "n": "nir", "ir": "nir", "re": "rededge"}
# Words beside a colour that leave its meaning as it is.
FILLERS = re.compile(
    r"bands?|layer|channel|surface|reflectance|toa|boa|sr|vis(ible)?|colou?r|wavelength|spectral|median|mean"
    r"|s2|l[789]|sentinel|landsat"
)

Colour = tuple[str, str]  # a word and its number, "" without one: ("rededge", "1")


@dataclass(frozen=True)
class NameMatch:
    """What a description says of its band.

    Attributes:
        band: the sensor's band that is meant; None where none is, or several may be.
        number: the number in the description, as digits.
        by_number: the sensor's band of that number, where a colour in the description names another one.
        candidates: the bands it may mean, where it may mean several; `band` is then the one that its number names.
        coloured: it names a colour.
        whole: the whole description is one of the band's names.
    """

    band: Band | None = None
    number: str = ""
    by_number: Band | None = None
    candidates: tuple[Band, ...] = ()
    coloured: bool = False
    whole: bool = False


def plain_text(description: str) -> str:
    """A description without wavelengths in it, and without what no name is long enough for.

    Args:
        description: of a band in a file.
    """
    return A_WAVELENGTH.sub("", description[:LONGEST]).strip()


def match(description: str, sensor: Sensor) -> Band | None:
    """The sensor's band that a description names; None where it names none, or may name several.

    "B8 (842 nm)", "band 8 reflectance", "S2_B08" and "NIR" name B08; "Band 4 - NIR" does too, by its colour.

    Args:
        description: of a band in a file.
    """
    return read_name(description, sensor).band


def read_name(description: str, sensor: Sensor) -> NameMatch:
    """What a description says of its band; see `match`.

    Args:
        description: of a band in a file.
    """
    text = plain_text(description).lower()
    known = _table(sensor.bands)
    whole = known.get(key(text))
    if whole is not None:
        return NameMatch(whole, whole=True)
    if not text or ABOUT_A_BAND.fullmatch(text) or ANOTHER_QUANTITY.search(text):
        return NameMatch()
    placed = NUMBER_FIRST.match(text) or NUMBER_LAST.search(text)
    number = placed[1] if placed else ""
    rest = f"{text[: placed.start()]} {text[placed.end() :]}" if placed else text
    rest = rest.replace("_", " ").strip(" .:,;()[]/|–—-")
    named = {m[1] or m[2] for m in IDENTIFIER.finditer(rest)}
    if len(named) > 1:
        return NameMatch()
    if placed:
        numbered = known.get(key(f"b{number}"))
        other = known.get(key(rest)) or known.get(_identifier(named))
        if other is not None or named:  # "Band 1: B04", "Band 1 - R": a place and a name
            second = re.match(r"b\d", placed[0].lstrip(" _.:,([/–—-")) and number not in named
            if named and (second or not SEPARATED.search(text) or "band" in rest):
                return NameMatch()  # "B4 - B8", "band 4 minus band 8": two names
            if other is not None and named:
                return NameMatch(other, number, coloured=True)
            return _coloured([other] if other is not None else [], number, numbered)
    elif named:
        number = min(named)
        numbered = known.get(_identifier(named))
        rest = IDENTIFIER.sub(" ", rest)
    found, others = _colours(LETTERS.get(rest.strip(), rest))
    bands = _bands_of(next(iter(found)), sensor.bands) if len(found) == 1 else []
    if not number:
        if others or AUXILIARY.fullmatch(text):
            return NameMatch()
        one = bands[0] if len(bands) == 1 else None
        return NameMatch(one, candidates=() if one else tuple(bands), coloured=bool(found))
    if len(found) == 1:
        return _coloured(bands, number, numbered)
    # A bare number is no name: "4 something"; "band 4 something" is one.
    return NameMatch(numbered if IDENTIFIER.search(text.replace("_", " ")) else None, number)


def _identifier(named: set[str]) -> str:
    """The key of the only identifier; empty without one."""
    name = next(iter(named), "")
    return key(f"b{name}" if name[:1].isdigit() else name)


def _coloured(bands: list[Band], number: str, numbered: Band | None) -> NameMatch:
    """A colour and a number: the colour decides, the number where the colour fits several bands and it is one of them.

    A colour that the sensor does not have leaves no band, whatever the number says.
    """
    if numbered is not None and numbered in bands:
        return NameMatch(numbered, number, candidates=tuple(bands) if len(bands) > 1 else (), coloured=True)
    if len(bands) == 1:
        return NameMatch(bands[0], number, by_number=numbered, coloured=True)
    return NameMatch(None, number, by_number=numbered, candidates=tuple(bands), coloured=True)


def _bands_of(colour: Colour, bands: tuple[Band, ...]) -> list[Band]:
    """The bands of a colour: of that word and number, or without a number all of that word."""
    exact = [band for band in bands if colour in _colours_of(band)]
    if exact or colour[1] not in ("", "1"):
        return exact
    if colour[1]:
        return _bands_of((colour[0], ""), bands) if any((colour[0], "") in _colours_of(band) for band in bands) else []
    return [band for band in bands if any(word == colour[0] for word, _ in _colours_of(band))]


@cache
def _colours_of(band: Band) -> frozenset[Colour]:
    """The colours that a band's name and aliases say."""
    out = set()
    for name in (band.name, *band.aliases):
        found, others = _colours(name.lower().replace("_", " "))
        if len(found) == 1 and not others:
            out |= found
    return frozenset(out)


def _colours(text: str) -> tuple[set[Colour], bool]:
    """The colours in a text, and whether there are other words that tell something."""
    plain = " ".join(re.sub(r"[^a-z0-9]+", " ", text).split())
    for pattern, word in SPELLINGS:
        plain = re.sub(rf"(?<![a-z])(?:{pattern})(?![a-z])", word, plain)
    found = {(m[1], ROMAN.get(m[2] or "", (m[2] or "").lstrip("0"))) for m in COLOUR.finditer(plain)}
    # "Near Infrared (NIR)" and "Shortwave Infrared (SWIR) 1" say one colour twice.
    found = {(word, n) for word, n in found if n or not any(w == word and m for w, m in found)}
    return found, any(FILLERS.fullmatch(word) is None for word in COLOUR.sub(" ", plain).split())


@cache
def _table(bands: tuple[Band, ...]) -> dict[str, Band]:
    """Bands by the key of each of their names."""
    return {key(name): band for band in reversed(bands) for name in (*band.aliases, band.name)}


def key(name: str) -> str:
    """Lower case, letters and digits only, no leading zeros: B08A, b8a and "Band 8A" are one."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"^band(?=\d)", "b", re.sub(r"(?<!\d)0+(?=\d)", "", plain))
