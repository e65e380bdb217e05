"""Which band of a file is which band of a sensor: from names, wavelengths or colours, never by position in silence.

Pure functions over what the file says of its bands (`FileBand`); `dofa.raster.file` collects that from GDAL.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from dofa import sensors
from dofa.errors import DataError
from dofa.sensors import Band, Sensor, check_wavelength_um

Said = tuple[str, str]  # (name of a warning, its text)

COLOURS = {"red": {"red", "r"}, "green": {"green", "g"}, "blue": {"blue", "b"}, "nir": {"nir", "n", "nearinfrared"}}
GENERIC_RGB = "rgb-aerial"
THERMAL_FROM_UM = 3.0
# Layers that products carry beside their bands; whoever wants one as a band names it with `bands`.
AUXILIARY = re.compile(
    r"scl|aot|wvp|tci.*|msk.*|.*qa\d*|.*qa_.*|fmask|.*mask|alpha|udm.*|cloud.*|snow_?prob.*|.*angle|(solar|sun|view)_.*",
    re.IGNORECASE,
)
IDENTIFIER = re.compile(r"(?<![a-z0-9])b(?:and)?[ _-]?0*(\d{1,3}a?)(?![a-z0-9])|(?<![a-z])(vv|vh|hh|hv)(?![a-z])")
IN_BRACKETS = re.compile(r"\(\s*([\d.]+)\s*(nm|nanomet\w*|[uµμ]m|micromet\w*|micron\w*)\s*\)", re.IGNORECASE)
NUMBERED = re.compile(r"(?:band|layer|channel)[ _#-]*0*(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class FileBand:
    """What a file itself says of one of its bands.

    Attributes:
        number: its place in the file, from 1.
        description: GDAL's description, empty without one.
        wavelength_um: from its tags, in micrometres.
        fwhm_um: like `wavelength_um`.
        colour: GDAL's colour interpretation, lower case.
        bad: the file's header marks it as not to be used.
    """

    number: int
    description: str = ""
    wavelength_um: float | None = None
    fwhm_um: float | None = None
    colour: str = "undefined"
    bad: bool = False


@dataclass
class Recognised:
    """The answer: a sensor with only the bands found, in the file's order.

    Attributes:
        sensor: its bands lie in the file in this order.
        numbers: GDAL's band number of each.
        assumptions: what was taken for granted; an error under `strict`.
        notes: what was left out and why.
    """

    sensor: Sensor
    numbers: list[int]
    assumptions: list[Said] = field(default_factory=list)
    notes: list[Said] = field(default_factory=list)


def recognise(
    file: Sequence[FileBand],
    sensor: Sensor | None,
    *,
    names: Sequence[str | None] | None = None,
    wavelengths_um: Sequence[float] | None = None,
    gsd_m: float = 1.0,
    dtype: str = "uint16",
    alpha_is_mask: Callable[[], bool] = lambda: True,
) -> Recognised:
    """Find a sensor's bands in a file.

    The user's word (`names`, `wavelengths_um`, in the file's order) comes first, then descriptions, wavelength tags and
    colours; the order of the product is assumed only where the file says nothing, the counts agree, and aloud.

    Args:
        file: what the file says, in order.
        sensor: the sensor told, or None to find it in the catalogue or make it from wavelengths.
        names: the user's band names; None for a band to leave out.
        wavelengths_um: the user's wavelengths, in micrometres.
        gsd_m: of the file, for a sensor made from wavelengths.
        dtype: of the file's numbers.
        alpha_is_mask: looks whether the values of a band marked alpha are those of a mask.

    Raises:
        DataError: the file contradicts the sensor, or says too little; the text names the cure.
        ConfigError: an unknown band name, or a wavelength outside 0.2–20 µm.
    """
    for what, given in (("bands", names), ("wavelengths_um", wavelengths_um)):
        if given is not None and len(given) != len(file):
            raise DataError(f"the file has {len(file)} bands, {what} names {len(given)}: one for each, in its order")
    if names is not None:
        return _by_names(file, sensor, names, wavelengths_um, gsd_m, dtype)
    if wavelengths_um is not None:
        told = [
            replace(b, wavelength_um=w, fwhm_um=None, description="") for b, w in zip(file, wavelengths_um, strict=True)
        ]
        return _by_wavelengths(told, sensor, gsd_m, override=True)

    bad = [b.number for b in file if b.bad]
    file = [b for b in file if not b.bad]
    found = _told(file, sensor, alpha_is_mask) if sensor else _untold(file, gsd_m, dtype, alpha_is_mask)
    if bad:
        found.notes.append(("bands-left-out", f"bands {_listed(bad)} are marked bad in the header and left out"))
    return found


def _by_names(
    file: Sequence[FileBand],
    sensor: Sensor | None,
    names: Sequence[str | None],
    wavelengths_um: Sequence[float] | None,
    gsd_m: float,
    dtype: str,
) -> Recognised:
    """The user named the bands."""
    kept = [i for i, name in enumerate(names) if name is not None]
    wanted = [name for name in names if name is not None]
    if not wanted:
        raise DataError("bands names not one band")
    numbers = [file[i].number for i in kept]
    if sensor is None and wavelengths_um is not None:
        bands = [_made_band(str(names[i]), wavelengths_um[i], None) for i in kept]
        return Recognised(_made_sensor(bands, gsd_m), numbers)
    if sensor is None:
        sensor = _in_catalogue(wanted, dtype)
    chosen = sensor.select(wanted)
    _refuse_twice(chosen.band_names, numbers)
    if wavelengths_um is not None:
        chosen = _with_wavelengths(chosen, [wavelengths_um[i] for i in kept])
    notes = []
    for i, band in zip(kept, chosen.bands, strict=True):
        said = match(file[i].description, sensor)
        if said is not None and said.name != band.name:
            notes.append(
                ("bands-renamed", f"band {i + 1} is described as {said.name} and taken as {band.name}, as told")
            )
    return Recognised(chosen, numbers, notes=notes)


def _by_wavelengths(file: Sequence[FileBand], sensor: Sensor | None, gsd_m: float, *, override: bool) -> Recognised:
    """Every band has a wavelength: the nearest of a sensor told, or a sensor made of them.

    With `override` the numbers replace the catalogue's: they are the user's.
    """
    waves = [b.wavelength_um or 0.0 for b in file]
    for b, wave in zip(file, waves, strict=True):
        check_wavelength_um(wave, f"band {b.number}")
    numbers = [b.number for b in file]
    if sensor is None:
        plain = [IN_BRACKETS.sub("", b.description).strip() for b in file]
        named = not _says_nothing(file) and len(set(plain)) == len(plain) and all(plain)
        labels = plain if named else _wavelength_names(waves)
        made = [_made_band(n, w, b.fwhm_um) for n, w, b in zip(labels, waves, file, strict=True)]
        return Recognised(_made_sensor(made, gsd_m), numbers)

    optical = [b for b in sensor.bands if b.wavelength_um is not None]
    pairs = sorted(
        (abs(w - (band.wavelength_um or 0)), i, j) for i, w in enumerate(waves) for j, band in enumerate(optical)
    )
    taken: dict[int, Band] = {}
    used: set[int] = set()
    for distance, i, j in pairs:  # the closest pairs first: interleaved detectors lie 0.4 nm apart
        if i not in taken and j not in used and distance <= _tolerance_um(optical[j]):
            taken[i] = optical[j]
            used.add(j)
    lost = [i for i in range(len(waves)) if i not in taken]
    if lost:
        i = lost[0]
        raise DataError(
            f"band {numbers[i]} at {waves[i]:g} µm fits no free band of {sensor.name} ({len(lost)} of {len(waves)} do "
            "not): name another sensor, or name the bands with bands="
        )
    chosen = sensor.select([taken[i].name for i in range(len(waves))])
    return Recognised(_with_wavelengths(chosen, waves) if override else chosen, numbers)


def _told(file: Sequence[FileBand], sensor: Sensor, alpha_is_mask: Callable[[], bool]) -> Recognised:
    """The sensor is known; the file says which bands it has."""
    if not _says_nothing(file):
        by_description = _by_descriptions(file, sensor)
        if by_description is not None:
            return by_description
    spectral = [b for b in file if b.colour != "alpha"]
    if spectral and all(b.wavelength_um is not None for b in spectral):
        return _by_wavelengths(spectral, sensor, 1.0, override=False)
    by_colour = _colour_bands(spectral, sensor)
    # Red, green, blue is what GDAL marks any three or four 8-bit bands as, so a product of as many bands must agree.
    default = [b.colour for b in file[:3]] == ["red", "green", "blue"]
    whole = len(sensor.bands) == len(spectral) or (len(sensor.bands) == len(file) and not alpha_is_mask())
    if by_colour and (not (whole and default) or by_colour == list(sensor.bands)):
        return Recognised(sensor.select([b.name for b in by_colour]), [b.number for b in spectral])
    return _by_order(file, spectral, sensor, alpha_is_mask)


def _by_descriptions(file: Sequence[FileBand], sensor: Sensor) -> Recognised | None:
    """Bands whose description names one of the sensor's; None where no description does."""
    found = [(b, match(b.description, sensor)) for b in file]
    if not any(band for _, band in found):
        if all(b.wavelength_um is not None for b in file if b.colour != "alpha"):
            return None
        raise DataError(
            f"band 1 is described as {file[0].description!r}, which names no band of {sensor.name}: name another "
            "sensor, or name the bands in the file's order with bands="
        )
    left_out = []
    for b, band in found:
        if band is None and b.description and not AUXILIARY.fullmatch(b.description.strip()):
            raise DataError(
                f"band {b.number} is described as {b.description!r}, which names no band of {sensor.name}: name "
                "another sensor, or name the bands in the file's order with bands= (None for one to leave out)"
            )
        if band is None:
            left_out.append(b)
        elif b.wavelength_um is not None and band.wavelength_um is not None:
            apart = abs(b.wavelength_um - band.wavelength_um)
            if apart > max(_tolerance_um(band), 0.05 * band.wavelength_um):
                raise DataError(
                    f"band {b.number} is described as {band.name} and tagged {b.wavelength_um:g} µm, but "
                    f"{band.name} of {sensor.name} lies at {band.wavelength_um:g} µm: name the bands with bands="
                )
    kept = [(b.number, band) for b, band in found if band is not None]
    _refuse_twice([band.name for _, band in kept], [n for n, _ in kept])
    notes = []
    if left_out:
        said = ", ".join(f"{b.number} ({b.description or 'no description'})" for b in left_out)
        notes.append(("bands-left-out", f"left out as no band of {sensor.name}: {said}"))
    return Recognised(sensor.select([band.name for _, band in kept]), [n for n, _ in kept], notes=notes)


def _by_order(
    file: Sequence[FileBand], spectral: Sequence[FileBand], sensor: Sensor, alpha_is_mask: Callable[[], bool]
) -> Recognised:
    """The file says nothing of use: the order of the product, aloud, if the counts agree."""
    takes_alpha = len(spectral) < len(file) == len(sensor.bands) and not alpha_is_mask()
    taken = file if takes_alpha else spectral
    if len(taken) != len(sensor.bands):
        others = [s.name for s in sensors.catalogue().values() if s.platform == sensor.platform]
        fits = [n for n in others if len(sensors.get(n).bands) == len(taken)]
        raise DataError(
            f"the file has {len(taken)} bands without names, {sensor.name} has {len(sensor.bands)}: "
            + (f"open it as {' or '.join(fits)}, or " if fits else "")
            + f"name them in the file's order with bands= ({_listed(sensor.band_names)})"
        )
    for b, band in zip(taken, sensor.bands, strict=True):
        if b.colour in COLOURS and not _is_colour(band, b.colour, sensor):
            raise DataError(
                f"band {b.number} is marked {b.colour}, in {sensor.name} it would be {band.name}: say which is right "
                f"with bands= in the file's order ({_listed(sensor.band_names)})"
            )
    text = f"the file does not name its bands; taken in the order of {sensor.name}: {_listed(sensor.band_names)}"
    if takes_alpha:
        text += f" (band {len(file)} is marked alpha, but is no mask)"
    return Recognised(sensor, [b.number for b in taken], assumptions=[("band-order-assumed", text)])


def _untold(file: Sequence[FileBand], gsd_m: float, dtype: str, alpha_is_mask: Callable[[], bool]) -> Recognised:
    """Nobody said which sensor: descriptions that fit only one, wavelengths, or the colours of a photograph."""
    spectral = [b for b in file if b.colour != "alpha" and not AUXILIARY.fullmatch(b.description.strip())]
    has_waves = bool(spectral) and all(b.wavelength_um is not None for b in spectral)
    if not _says_nothing(file) and all(b.description for b in spectral):
        try:
            return _told(file, _in_catalogue([b.description for b in spectral], dtype), alpha_is_mask)
        except DataError:
            if not has_waves:
                raise
    if has_waves:
        return _by_wavelengths(spectral, None, gsd_m, override=False)
    if dtype == "uint8" and {b.colour for b in spectral} == {"red", "green", "blue"} and len(spectral) == 3:
        found = _told(spectral, sensors.get(GENERIC_RGB), alpha_is_mask)
        text = f"no sensor told: a colour photograph, with the nominal wavelengths of {GENERIC_RGB}"
        found.assumptions.append(("wavelengths-assumed", text))
        if len(spectral) < len(file) and not alpha_is_mask():
            text = f"band {len(file)} is marked alpha, but is no mask: name the sensor if it is an infrared band"
            found.notes.append(("bands-left-out", text))
        return found
    raise DataError(
        f"nothing says which sensor its {len(file)} bands are of: name the sensor, or give wavelengths_um in the "
        "file's order"
    )


def _in_catalogue(names: Sequence[str], dtype: str) -> Sensor:
    """The only catalogued sensor that has all these bands."""
    fits = [
        s
        for s in sensors.catalogue().values()
        if all(match(n, s) for n in names)
        # 8-bit products have 8-bit numbers; without this every Sentinel-2 file would fit the Satlas nine too.
        and (s.scaling is None or s.scaling.unit != "uint8" or dtype == "uint8")
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        closest = sorted(fits, key=lambda s: len(s.bands))
        raise DataError(
            f"bands named {_listed(names)} fit {_listed([s.name for s in closest])}: say which with sensor="
        )
    raise DataError(
        f"bands named {_listed(names)} fit no catalogued sensor: name it, or give wavelengths_um in the file's order"
    )


def match(description: str, sensor: Sensor) -> Band | None:
    """The sensor's band that a description names: as a whole ("B08", "Near infrared") or by the one identifier in it.

    "B8 (842 nm)", "band 8 reflectance" and "S2_B08" name B08; words inside a longer text do not count, since
    "vegetation red edge" is not red.

    Args:
        description: of a band in a file.
        sensor: whose bands are looked through.
    """
    text = IN_BRACKETS.sub("", description).strip().lower()
    known = _table(sensor.bands)
    whole = known.get(_key(text))
    if whole is not None:
        return whole
    identifiers = {_key(f"b{m[1]}" if m[1] else m[2]) for m in IDENTIFIER.finditer(text.replace("_", " "))}
    return known.get(identifiers.pop()) if len(identifiers) == 1 else None


@cache
def _table(bands: tuple[Band, ...]) -> dict[str, Band]:
    """Bands by the key of each of their names."""
    return {_key(name): band for band in reversed(bands) for name in (*band.aliases, band.name)}


def _key(name: str) -> str:
    """Lower case, letters and digits only, no leading zeros: B08A, b8a and "Band 8A" are one."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"^band(?=\d)", "b", re.sub(r"(?<!\d)0+(?=\d)", "", plain))


def _says_nothing(file: Sequence[FileBand]) -> bool:
    """Whether the descriptions name nothing: absent, all the same, or the number of each band's place."""
    texts = [IN_BRACKETS.sub("", b.description).strip() for b in file]
    numbered = [NUMBERED.fullmatch(t) for t in texts]
    return (
        not any(texts)
        or (len(texts) > 1 and len(set(texts)) == 1)
        or all(
            not t or (m is not None and int(m[1]) == b.number) for t, m, b in zip(texts, numbered, file, strict=True)
        )
    )


def _is_colour(band: Band, colour: str, sensor: Sensor) -> bool:
    named = {_key(n) for n in (band.name, *band.aliases)} & COLOURS[colour]
    rgb = next(iter(sensor.renderings.values()), ())
    place = ("red", "green", "blue", "nir").index(colour)
    return bool(named) or (place < len(rgb) and sensor.band(rgb[place]) == band)


def _colour_bands(spectral: Sequence[FileBand], sensor: Sensor) -> list[Band] | None:
    """The sensor's band for each colour; None unless every band of the file has a colour of its own."""
    colours = [b.colour for b in spectral]
    if len(set(colours)) < len(colours) or not set(colours) <= set(COLOURS) or not colours:
        return None
    bands = [next((band for band in sensor.bands if _is_colour(band, c, sensor)), None) for c in colours]
    found = [band for band in bands if band is not None]
    return found if len(found) == len(bands) else None


def _tolerance_um(band: Band) -> float:
    """How far a band's centre may lie from the catalogue's: instruments of a series differ, and tags are rounded."""
    return max(0.5 * (band.fwhm_um or 0.02 * (band.wavelength_um or 0)), 0.001)


def _with_wavelengths(sensor: Sensor, waves: Sequence[float]) -> Sensor:
    return replace(sensor, bands=tuple(replace(b, wavelength_um=w) for b, w in zip(sensor.bands, waves, strict=True)))


def _made_band(name: str, wave: float, fwhm_um: float | None) -> Band:
    return Band(name, wave, fwhm_um, kind="thermal" if wave >= THERMAL_FROM_UM else "optical")


def _made_sensor(bands: Iterable[Band], gsd_m: float) -> Sensor:
    return Sensor("custom", tuple(bands), gsd_m, title="made from the wavelengths of a file")


def _wavelength_names(waves: Sequence[float]) -> list[str]:
    for digits in (0, 1, 2, 3):
        labels = [f"{1000 * w:.{digits}f}nm" for w in waves]
        if len(set(labels)) == len(labels):
            return labels
    raise DataError("two bands have the same wavelength: name them with bands=")


def _refuse_twice(names: Sequence[str], numbers: Sequence[int]) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            first = numbers[list(names).index(name)]
            raise DataError(f"bands {first} and {numbers[i]} of the file are both {name}: name them with bands=")


def _listed(items: Iterable[object], most: int = 8) -> str:
    words = [str(i) for i in items]
    return ", ".join(words[:most]) + (f", … ({len(words)})" if len(words) > most else "")
