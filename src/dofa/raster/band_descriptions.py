"""Bands of a file found by their descriptions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dofa import sensors
from dofa.errors import DataError, listed
from dofa.raster.band_names import AUXILIARY, COUNTED, IDENTIFIER, NameMatch, key, plain_text, read_name
from dofa.sensors import Band, Sensor

Said = tuple[str, str]  # (name of a warning, its text)
IN_ORDER = "in the file's order, - for one to leave out"


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
class BandMatch:
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


def tolerance_um(band: Band) -> float:
    """How far a band's centre may lie from the catalogue's: instruments of a series differ, and tags are rounded."""
    return max(0.5 * (band.fwhm_um or 0.02 * (band.wavelength_um or 0)), 0.001)


def check_unique(names: Sequence[str], numbers: Sequence[int]) -> None:
    """Two bands of a file that are the same band of a sensor are an error.

    Raises:
        DataError: a name stands there twice.
    """
    for i, name in enumerate(names):
        if name in names[:i]:
            first = numbers[list(names).index(name)]
            raise DataError(
                f"bands {first} and {numbers[i]} of the file are both {name}: pass --bands with their names {IN_ORDER}"
            )


# -- Bands of a file found by their descriptions.


def lacks_descriptions(file: Sequence[FileBand]) -> bool:
    """Whether the descriptions name nothing: absent, all the same, or a text and the number of each band's place.

    "Band 1", "lyr.1" or "scene_1" count places; "B1", "SR_B1" and "sr_band1" are names that products use.
    """
    texts = [plain_text(b.description) for b in file]
    if not any(texts) or (len(texts) > 1 and len(set(texts)) == 1):
        return True
    counted = [COUNTED.fullmatch(t) for t in texts]
    if all(not t or (m is not None and int(m[1]) == b.number) for t, m, b in zip(texts, counted, file, strict=True)):
        return True
    said = [_counted(t, b.number) for t, b in zip(texts, file, strict=True)]
    if len(texts) > 1 and None not in said and len(set(said)) == 1:
        return True  # "Warp (Band 1:mosaic.tif)", "Band 1 reflectance"
    ends = [re.fullmatch(r"(.*\D)?(\d{1,9})", t, re.DOTALL) for t in texts]
    return (
        len(texts) > 1
        and all(m is not None and int(m[2]) == b.number for m, b in zip(ends, file, strict=True))
        and len({m[1] for m in ends if m is not None}) == 1
        and not any(IDENTIFIER.search(t.lower().replace("_", " ")) for t in texts)
        and not any(read_name(t, s).band for t in texts[:4] for s in sensors.catalogue().values())
    )


def _counted(text: str, place: int) -> str | None:
    """What stands around "band" and the number of a place; None where no such number stands there."""
    found = re.search(r"(?<![a-z0-9])band[ _.:#-]+0*(\d{1,3})(?![a-z0-9])", text, re.IGNORECASE)
    return None if found is None or int(found[1]) != place else f"{text[: found.start()]}\0{text[found.end() :]}"


def match_descriptions(file: Sequence[FileBand], sensor: Sensor) -> BandMatch | None:
    """Bands whose description names one of the sensor's; None where no description does.

    Raises:
        DataError: a description that contradicts the sensor, or may mean several of its bands.
    """
    found = [(b, _by_wavelength(b, read_name(b.description, sensor))) for b in file]
    if not any(m.band or m.candidates for _, m in found):
        if all(b.wavelength_um is not None for b in file if b.colour != "alpha"):
            return None
        raise DataError(
            f"band 1 is described as {file[0].description!r}, which names no band of {sensor.name}: pass another "
            f"--sensor, or --bands with their names {IN_ORDER} ({listed(sensor.band_names)})"
        )
    _refuse_names_of_another(found, sensor)
    _refuse_unread_words(found, sensor)
    assumptions, notes = _check_numbers(found, sensor)
    if assumptions or notes:
        found = [(b, _without_number(b, m)) for b, m in found]
    left_out: list[FileBand] = []
    unknown: list[tuple[FileBand, NameMatch]] = []
    for b, m in found:
        if m.band is None:
            plain = not b.description or AUXILIARY.fullmatch(b.description.strip()) or _of_another_kind(b, sensor)
            left_out += [b] if plain else []
            unknown += [] if plain else [(b, m)]
        elif b.wavelength_um is not None and m.band.wavelength_um is not None:
            apart = abs(b.wavelength_um - m.band.wavelength_um)
            if apart > max(tolerance_um(m.band), 0.05 * m.band.wavelength_um):
                raise DataError(
                    f"band {b.number} is described as {m.band.name} and tagged {b.wavelength_um:g} µm, but "
                    f"{m.band.name} of {sensor.name} lies at {m.band.wavelength_um:g} µm: pass --bands with their "
                    f"names {IN_ORDER}"
                )
    kept = [(b.number, m.band) for b, m in found if m.band is not None]
    check_unique([band.name for _, band in kept], [n for n, _ in kept])
    if unknown:
        # Of a file that has all bands of the sensor nothing is lost with what else it holds: indices, elevation, …
        _refuse_unknown(unknown, sensor, whole=len(kept) == len(sensor.bands))
        left_out = sorted([*left_out, *(b for b, _ in unknown)], key=lambda b: b.number)
    if left_out:
        said = ", ".join(f"{b.number} ({b.description or 'no description'})" for b in left_out)
        notes.append(("bands-left-out", f"left out as no band of {sensor.name}: {said}"))
    chosen = sensor.select([band.name for _, band in kept])
    return BandMatch(chosen, [n for n, _ in kept], assumptions, notes)


def _by_wavelength(band: FileBand, found: NameMatch) -> NameMatch:
    """Of several bands that a description may mean, the one at the file's wavelength: "Red Edge (705 nm)"."""
    wave = band.wavelength_um
    if found.band is not None or wave is None:
        return found
    near = [c for c in found.candidates if c.wavelength_um and abs(c.wavelength_um - wave) <= tolerance_um(c)]
    return replace(found, band=near[0], candidates=()) if len(near) == 1 else found


def _check_numbers(found: Sequence[tuple[FileBand, NameMatch]], sensor: Sensor) -> tuple[list[Said], list[Said]]:
    """What is said of numbers in descriptions that disagree with colours beside them: assumptions, and notes.

    Raises:
        DataError: a number that may be the sensor's or may count places, with nothing to tell.
    """
    apart = [(b, m) for b, m in found if m.band is not None and m.number and m.by_number not in (None, m.band)]
    places = [(b, m) for b, m in apart if m.number == str(b.number)]
    others = [(b, m) for b, m in apart if m.number != str(b.number)]
    for b, m in others:
        assert m.band is not None
        assert m.by_number is not None
        if re.search(rf"(?<![a-z])b0*{m.number}(?!\d)", b.description, re.IGNORECASE):
            raise DataError(
                f"band {b.number} is described as {b.description!r}: by its number {m.by_number.name} of "
                f"{sensor.name}, by its colour {m.band.name}: pass --bands with their names {IN_ORDER}"
            )
    said = [f"{b.description!r} is {m.band.name}" for b, m in apart if m.band is not None]
    text = f"the numbers in the descriptions count places, bands are taken by their colours: {listed(said, 4)}"
    assumptions = [("band-numbers-doubtful", text)] if others else []
    if not apart and not any("8a" in b.description.lower() for b, _ in found):
        _refuse_either_number(found, sensor)
    return assumptions, [("bands-by-colour", text)] if places and not others else []


def _without_number(band: FileBand, found: NameMatch) -> NameMatch:
    """What a description says in a file whose numbers count places, so that a number alone names nothing."""
    if found.coloured:
        return replace(found, band=None) if found.candidates else found
    return found if found.whole and re.fullmatch(r"b\d+a?", key(band.description)) is None else NameMatch()


def _refuse_either_number(found: Sequence[tuple[FileBand, NameMatch]], sensor: Sensor) -> None:
    """ "Band 9" alone in a file may be B09 of Sentinel-2, or B8A, its ninth."""
    for b, m in found:
        counted = COUNTED.fullmatch(plain_text(b.description))
        if counted is None or m.band is None or b.description.lower().lstrip().startswith("b0"):
            continue
        place = int(counted[1])
        ninth = sensor.bands[place - 1] if 0 < place <= len(sensor.bands) else m.band
        if ninth != m.band:
            raise DataError(
                f"band {b.number} is described as {b.description!r}: {m.band.name} by its number, or {ninth.name}, "
                f"which is number {place} in the order of {sensor.name}: pass --bands with their names {IN_ORDER}"
            )


def _refuse_unread_words(found: Sequence[tuple[FileBand, NameMatch]], sensor: Sensor) -> None:
    """ "Band 1 - Rot", "Band 2 - Grün": numbers of places, perhaps, beside words that nobody here can read."""
    rests = [_counted(plain_text(b.description), b.number) for b, _ in found]
    if len(found) < 2 or None in rests or any(m.whole or m.coloured for _, m in found):
        return
    b = found[0][0]
    raise DataError(
        f"band {b.number} is described as {b.description!r}: its number may count places, and nothing else in it is a "
        f"name that {sensor.name} knows: pass --bands with their names {IN_ORDER}"
    )


def _refuse_names_of_another(found: Sequence[tuple[FileBand, NameMatch]], sensor: Sensor) -> None:
    """SR_B5 is Landsat's near infrared, and no B05 of Sentinel-2."""
    named = [b.description for b, m in found if m.band is not None]
    if any(m.whole or m.coloured for _, m in found) or sensor.name not in sensors.names():
        return
    fits = [
        s.name
        for s in sensors.catalogue().values()
        if s.platform != sensor.platform and all(read_name(text, s).whole for text in named)
    ]
    if fits:
        raise DataError(
            f"bands described as {listed(named, 4)} are not named as those of {sensor.name}: pass --sensor "
            f"{' or --sensor '.join(fits[:4])}, whose names these are, or --bands with their names {IN_ORDER}",
            {"--sensor": fits[0]} if len(fits) == 1 else None,
        )


def _of_another_kind(band: FileBand, sensor: Sensor) -> bool:
    """Whether it is a thermal band beside reflective ones of the same instrument, such as ST_B10 of Landsat."""
    kinds = {b.kind for b in sensor.bands}
    others = (
        read_name(band.description, s).band for s in sensors.catalogue().values() if s.platform == sensor.platform
    )
    return any(other is not None and other.kind not in kinds for other in others)


def _refuse_unknown(unknown: Sequence[tuple[FileBand, NameMatch]], sensor: Sensor, *, whole: bool) -> None:
    """A description that names no band, or may name several; with the `whole` sensor found only if it may matter."""
    b, m = unknown[0]
    if m.candidates:
        raise DataError(
            f"band {b.number} is described as {b.description!r}, which may be "
            f"{' or '.join(c.name for c in m.candidates)} of {sensor.name}: pass --bands with their names {IN_ORDER}"
        )
    unit = sensor.scaling.unit if sensor.scaling else None
    better = [
        s.name
        for s in sensors.catalogue().values()
        if s.platform == sensor.platform and s.scaling is not None and s.scaling.unit == unit
        and any(read_name(b.description, s).whole for b, _ in unknown)
    ]  # fmt: skip
    if whole and not better:
        return
    cure = f"pass --sensor {better[0]}" if better else "pass another --sensor"
    raise DataError(
        f"band {b.number} is described as {b.description!r}, which names no band of {sensor.name}: {cure}, or --bands "
        f"with their names {IN_ORDER}",
        {"--sensor": better[0]} if better else None,
    )
