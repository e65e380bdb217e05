"""Which band of a file is which band of a sensor: from names, wavelengths or colours, never by position in silence.

Pure functions over what the file says of its bands (`FileBand`); `dofa.raster.file` collects that from GDAL.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from dofa import sensors
from dofa.errors import DataError, listed
from dofa.raster.band_descriptions import (
    IN_ORDER,
    BandMatch,
    FileBand,
    check_unique,
    lacks_descriptions,
    match_descriptions,
    tolerance_um,
)
from dofa.raster.band_names import AUXILIARY, LONGEST, key, match, plain_text, read_name
from dofa.sensors import Band, Sensor, check_wavelength_um

COLOURS = {"red": {"red", "r"}, "green": {"green", "g"}, "blue": {"blue", "b"}, "nir": {"nir", "n", "nearinfrared"}}
GENERIC_RGB = "rgb-aerial"
THERMAL_FROM_UM = 3.0


def match_bands(
    file: Sequence[FileBand],
    sensor: Sensor | None,
    *,
    names: Sequence[str | None] | None = None,
    wavelengths_um: Sequence[float] | None = None,
    gsd_m: float = 1.0,
    dtype: str = "uint16",
    alpha_is_mask: Callable[[], bool] = lambda: True,
) -> BandMatch:
    """Find a sensor's bands in a file.

    The user's word (`names`, `wavelengths_um`, in the file's order) comes first, then descriptions, wavelength tags and
    colours; the order of the product is assumed only where the file says nothing, the counts agree, and aloud.

    Args:
        file: what the file says, in order.
        sensor: the sensor told, or None to find it in the catalogue or make it from wavelengths.
        names: the user's band names; None for a band to leave out.
        wavelengths_um: the user's wavelengths, in micrometres.
        gsd_m: of the file, for a sensor made from wavelengths.
        alpha_is_mask: looks whether the values of a band marked alpha are those of a mask.

    Raises:
        DataError: the file contradicts the sensor, or says too little; the text names the cure.
        ConfigError: an unknown band name, or a wavelength outside 0.2–20 µm.
    """
    file = [replace(b, description=b.description[:LONGEST]) for b in file]
    for what, given, order in (("--bands", names, f" {IN_ORDER}"), ("--wavelengths", wavelengths_um, "")):
        if given is not None and len(given) != len(file):
            raise DataError(f"the file has {len(file)} bands, {what} names {len(given)}: one for each{order}")
    if names is not None:
        return _by_names(file, sensor, names, wavelengths_um, gsd_m, dtype)
    if wavelengths_um is not None:
        told = [
            replace(b, wavelength_um=w, fwhm_um=None, description="") for b, w in zip(file, wavelengths_um, strict=True)
        ]
        return _by_wavelengths(told, sensor, gsd_m, override=True)

    bad = [b.number for b in file if b.bad]
    file = [b for b in file if not b.bad]
    if not file:
        raise DataError(f"all its {len(bad)} bands are marked bad in its header: name those to read with --bands")
    found = _told(file, sensor, alpha_is_mask) if sensor else _untold(file, gsd_m, dtype, alpha_is_mask)
    if bad:
        found.notes.append(("bands-left-out", f"bands {listed(bad, 24)} are marked bad in the header and left out"))
    return found


def _by_names(
    file: Sequence[FileBand],
    sensor: Sensor | None,
    names: Sequence[str | None],
    wavelengths_um: Sequence[float] | None,
    gsd_m: float,
    dtype: str,
) -> BandMatch:
    """The user named the bands."""
    kept = [i for i, name in enumerate(names) if name is not None]
    wanted = [name for name in names if name is not None]
    if not wanted:
        raise DataError("--bands leaves out every band: name at least one")
    numbers = [file[i].number for i in kept]
    if sensor is None and wavelengths_um is not None:
        bands = [_made_band(str(names[i]), wavelengths_um[i], None) for i in kept]
        return BandMatch(_made_sensor(bands, gsd_m), numbers)
    if sensor is None:
        sensor = _in_catalogue(wanted, dtype, len(wanted))
    chosen = sensor.select([_known_name(name, sensor) for name in wanted])
    check_unique(chosen.band_names, numbers)
    if wavelengths_um is not None:
        chosen = _with_wavelengths(chosen, [wavelengths_um[i] for i in kept])
    notes = []
    for i, band in zip(kept, chosen.bands, strict=True):
        said = match(file[i].description, sensor)
        if said is not None and said.name != band.name:
            notes.append(
                ("bands-renamed", f"band {i + 1} is described as {said.name} and taken as {band.name}, as told")
            )
    return BandMatch(chosen, numbers, notes=notes)


def _known_name(name: str, sensor: Sensor) -> str:
    """A band the user named, also in the looser forms of descriptions ("band 4"); an unknown name as it is."""
    band = None if name.lower() in sensor.known_names else match(name, sensor)
    return name if band is None else band.name


def _by_wavelengths(file: Sequence[FileBand], sensor: Sensor | None, gsd_m: float, *, override: bool) -> BandMatch:
    """Every band has a wavelength: the nearest of a sensor told, or a sensor made of them.

    With `override` the numbers replace the catalogue's: they are the user's.
    """
    waves = [b.wavelength_um or 0.0 for b in file]
    for b, wave in zip(file, waves, strict=True):
        check_wavelength_um(wave, f"band {b.number}")
    numbers = [b.number for b in file]
    if sensor is None:
        plain = [plain_text(b.description) for b in file]
        named = not lacks_descriptions(file) and len(set(plain)) == len(plain) and all(plain)
        labels = plain if named else _wavelength_names(waves)
        made = [_made_band(n, w, b.fwhm_um) for n, w, b in zip(labels, waves, file, strict=True)]
        return BandMatch(_made_sensor(made, gsd_m), numbers)

    optical = [b for b in sensor.bands if b.wavelength_um is not None]
    pairs = sorted(
        (abs(w - (band.wavelength_um or 0)), i, j) for i, w in enumerate(waves) for j, band in enumerate(optical)
    )
    taken: dict[int, Band] = {}
    used: set[int] = set()
    for distance, i, j in pairs:  # the closest pairs first: interleaved detectors lie 0.4 nm apart
        if i not in taken and j not in used and distance <= tolerance_um(optical[j]):
            taken[i] = optical[j]
            used.add(j)
    lost = [i for i in range(len(waves)) if i not in taken]
    if lost:
        i = lost[0]
        raise DataError(
            f"band {numbers[i]} at {waves[i]:g} µm fits no free band of {sensor.name} ({len(lost)} of {len(waves)} do "
            f"not): pass another --sensor, or --bands with their names {IN_ORDER}"
        )
    chosen = sensor.select([taken[i].name for i in range(len(waves))])
    return BandMatch(_with_wavelengths(chosen, waves) if override else chosen, numbers)


def _told(file: Sequence[FileBand], sensor: Sensor, alpha_is_mask: Callable[[], bool]) -> BandMatch:
    """The sensor is known; the file says which bands it has."""
    if not lacks_descriptions(file):
        by_description = match_descriptions(file, sensor)
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
        return BandMatch(sensor.select([b.name for b in by_colour]), [b.number for b in spectral])
    return _by_order(file, spectral, sensor, alpha_is_mask)


def _by_order(
    file: Sequence[FileBand], spectral: Sequence[FileBand], sensor: Sensor, alpha_is_mask: Callable[[], bool]
) -> BandMatch:
    """The file says nothing of use: the order of the product, aloud, if the counts agree."""
    takes_alpha = len(spectral) < len(file) == len(sensor.bands) and not alpha_is_mask()
    taken = file if takes_alpha else spectral
    if len(taken) != len(sensor.bands):
        others = [s.name for s in sensors.catalogue().values() if s.platform == sensor.platform]
        fits = [n for n in others if len(sensors.get(n).bands) == len(taken)]
        raise DataError(
            f"the file has {len(taken)} band{'s' if len(taken) > 1 else ''} without names, {sensor.name} has "
            f"{len(sensor.bands)}: "
            + (f"pass --sensor {' or --sensor '.join(fits)}, or " if fits else "pass ")
            + f"--bands with their names {IN_ORDER} ({listed(sensor.band_names)})",
            {"--sensor": fits[0]} if len(fits) == 1 else None,
        )
    for b, band in zip(taken, sensor.bands, strict=True):
        if b.colour in COLOURS and not _is_colour(band, b.colour, sensor):
            raise DataError(
                f"band {b.number} is marked {b.colour}, in {sensor.name} it would be {band.name}: say which is right, "
                f"--bands with their names {IN_ORDER} ({listed(sensor.band_names)})"
            )
    text = f"the file does not name its bands; taken in the order of {sensor.name}: {listed(sensor.band_names)}"
    if takes_alpha:
        text += f" (band {len(file)} is marked alpha, but is no mask)"
    return BandMatch(sensor, [b.number for b in taken], assumptions=[("band-order-assumed", text)])


def _untold(file: Sequence[FileBand], gsd_m: float, dtype: str, alpha_is_mask: Callable[[], bool]) -> BandMatch:
    """Nobody said which sensor: descriptions that fit only one, wavelengths, or the colours of a photograph."""
    spectral = [b for b in file if b.colour != "alpha" and not AUXILIARY.fullmatch(b.description.strip())]
    masks = sum(b.colour == "alpha" for b in file)
    count = len(spectral) + (masks if masks and not alpha_is_mask() else 0)
    has_waves = bool(spectral) and all(b.wavelength_um is not None for b in spectral)
    if not lacks_descriptions(file) and all(b.description for b in spectral):
        try:
            return _told(file, _in_catalogue([b.description for b in spectral], dtype, count), alpha_is_mask)
        except DataError:
            if not has_waves:
                raise
    if has_waves:
        found = _by_wavelengths(spectral, None, gsd_m, override=False)
        others = [f"{b.number} ({b.description.strip()})" for b in file if b.colour != "alpha" and b not in spectral]
        if others:
            found.notes.append(("bands-left-out", f"left out as no measurement: {listed(others)}"))
        return found
    if dtype == "uint8" and {b.colour for b in spectral} == {"red", "green", "blue"} and len(spectral) == 3:
        found = _told(spectral, sensors.get(GENERIC_RGB), alpha_is_mask)
        text = f"no sensor told: a colour photograph, with the nominal wavelengths of {GENERIC_RGB}"
        found.assumptions.append(("wavelengths-assumed", text))
        if len(spectral) < len(file) and not alpha_is_mask():
            cure = f"if it is infrared, pass {_sensors_of(count, dtype)}"
            text = f"band {len(file)} is marked alpha, but is no mask: {cure}"
            found.notes.append(("bands-left-out", text))
        return found
    raise DataError(
        f"nothing says which sensor its {len(file)} bands are of: pass {_sensors_of(count, dtype)}, or "
        "--wavelengths in micrometres, one a band in the file's order"
    )


def _sensors_of(count: int, dtype: str) -> str:
    """What to pass for a file of so many bands: the catalogued sensors that have as many."""
    fits = [s.name for s in sensors.catalogue().values() if len(s.bands) == count and _may_be(s, dtype)]
    if not fits:
        return f"--sensor (no catalogued one has {count} bands: --bands then names each {IN_ORDER})"
    return f"--sensor {' or --sensor '.join(fits)} ({'it has' if len(fits) == 1 else 'they have'} {count} bands)"


def _may_be(sensor: Sensor, dtype: str) -> bool:
    """8-bit products have 8-bit numbers; without this every Sentinel-2 file would fit the Satlas nine too."""
    return sensor.scaling is None or sensor.scaling.unit != "uint8" or dtype == "uint8"


def _in_catalogue(names: Sequence[str], dtype: str, count: int) -> Sensor:
    """The only catalogued sensor that has all these bands, or else all of whose bands are among these.

    Of several, those with as many bands as the file (`count`) are named first.
    """
    possible = [s for s in sensors.catalogue().values() if _may_be(s, dtype)]
    found = {s.name: [m for n in names if (m := read_name(n, s)).band is not None] for s in possible}
    whole = {name: [m for m in matches if m.whole] for name, matches in found.items()}
    fits: list[Sensor] = []
    for by in (whole, found):  # names that are the sensor's own before names that only hold one
        fits = fits or [s for s in possible if len(by[s.name]) == len(names)]
        fits = fits or [s for s in possible if len({m.band for m in by[s.name]}) == len(s.bands) > 2]
    most = max((len(found[s.name]) for s in fits), default=0)
    fits = [s for s in fits if len(found[s.name]) == most]
    if len(fits) == 1:
        return fits[0]
    if fits:
        closest = [s.name for s in sorted(fits, key=lambda s: (len(s.bands) != count, len(s.bands)))]
        raise DataError(
            f"bands named {listed(names)} fit {listed(closest)}: say which, "
            f"--sensor {' or --sensor '.join(closest[:3])}"
        )
    raise DataError(
        f"bands named {listed(names)} fit no catalogued sensor: pass {_sensors_of(count, dtype)}, or "
        "--wavelengths in micrometres, one a band in the file's order"
    )


def _is_colour(band: Band, colour: str, sensor: Sensor) -> bool:
    named = {key(n) for n in (band.name, *band.aliases)} & COLOURS[colour]
    rgb = next(iter(sensor.renderings.values()), ())
    place = ("red", "green", "blue", "nir").index(colour)
    return bool(named) or (place < len(rgb) and sensor.band(rgb[place]) == band)


def _colour_bands(spectral: Sequence[FileBand], sensor: Sensor) -> list[Band] | None:
    """The sensor's band for each colour; None unless every band of the file has a colour of its own."""
    colours = [b.colour for b in spectral]
    if len(set(colours)) < len(colours) or not colours:
        return None
    bands = [
        next((band for band in sensor.bands if _is_colour(band, c, sensor)), None) if c in COLOURS else match(c, sensor)
        for c in colours
    ]
    found = [band for band in bands if band is not None]
    return found if len(found) == len(bands) else None


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
    raise DataError(f"two bands have the same wavelength: pass --bands with their names {IN_ORDER}")
