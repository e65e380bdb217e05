"""What a file's numbers mean: its own tags, the Sentinel-2 offset, and values that do not look like what is said.

Pure functions over tags and a sample of pixels. Nothing here changes a value that nobody spoke of: what only looks
wrong becomes a warning with a name, and an error under `strict`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.errors import DataError
from dofa.pixels import Scaling, Unit, resolve_physical
from dofa.raster.file_bands import Said
from dofa.sensors import Sensor

SENTINEL2_OFFSET_DN = -1000.0  # added by every product of processing baseline 04.00 (25 January 2022) and later
SHIFTED_FROM_DN = 950  # darkest pixels of a product that still carries the offset lie near 1000 in every band
NEGATIVE = -0.05  # reflectance; atmospheric correction leaves dark pixels slightly below 0, not that far
TELLING_BANDS = 4  # a few bands alone may well have no dark pixel: infrared over forest, blue at the top of the air
UNIT_WORDS: dict[str, Unit] = {
    "db": "db",
    "decibel": "db",
    "k": "kelvin",
    "kelvin": "kelvin",
    "reflectance": "reflectance",
    "w/m^2/sr/um": "radiance",
    "w/(m2*sr*um)": "radiance",
    "w m-2 sr-1 um-1": "radiance",
}
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
    """

    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    units: tuple[str, ...]
    tags: Tags
    band_tags: tuple[Tags, ...]
    envi: Tags

    def select(self, places: Sequence[int]) -> "FileNumbers":
        """What is said of some of the bands."""
        return FileNumbers(
            scales=tuple(self.scales[i] for i in places),
            offsets=tuple(self.offsets[i] for i in places),
            units=tuple(self.units[i] for i in places),
            tags=self.tags,
            band_tags=tuple(self.band_tags[i] for i in places),
            envi=self.envi,
        )


@dataclass(frozen=True)
class Settled:
    """What the numbers of a sensor's bands mean, and what is still open.

    Attributes:
        scaling: from raw to physical values, without statistics.
        offset_open: nobody said whether a Sentinel-2 product carries its offset.
        told: by the user: it is not to be doubted.
    """

    scaling: Scaling
    offset_open: bool = False
    told: bool = False

    def doubts(self, numbers: "FileNumbers", raw: NDArray[Any], sensor: str) -> list[Said]:
        """What looks wrong, given (C, n) valid pixels and the sensor's name.

        Args:
            numbers: what the file says of its numbers.
            raw: valid pixels as they lie in the file.
            sensor: its name.
        """
        if self.told:
            return []
        offset = offset_doubt(numbers, raw) if self.offset_open else offset_twice(self.scaling, raw, sensor)
        return [said for said in (offset, scale_doubt(self.scaling, raw, sensor)) if said is not None]


def settle(
    sensor: Sensor, numbers: FileNumbers, dtype: str, user: Scaling | None, dn_offset: float | None, name: str
) -> Settled:
    """Decide what numbers mean: the user's word, then the file's, then the product's.

    Args:
        sensor: with the bands read.
        numbers: what the file says of them.
        dtype: of the numbers.
        user: what the user says.
        dn_offset: the user's word on what is added to the numbers before the factor.
        name: of the file, for errors.

    Raises:
        ConfigError: nobody says; the cures are named.
        DataError: the file says it in a way that cannot be read.
    """
    names, product = sensor.band_names, sensor.scaling
    if user is not None:
        return Settled(resolve_physical(user.select(names), None, None), told=True)
    scaling = resolve_physical(None, file_scaling(numbers, names, product, dtype), product, name)
    if dn_offset is not None:
        base = replace(scaling, offset=product.offset if product else (0.0,) * len(names))
        return Settled(replace(with_dn_offset(base, [dn_offset] * len(names)), physical_source="user"))
    if not is_sentinel2(sensor, dtype) or any(numbers.offsets):
        return Settled(scaling)
    offset = sentinel2_offset(numbers, names)
    if offset is None:
        return Settled(scaling, offset_open=True)
    return Settled(replace(with_dn_offset(scaling, offset), physical_source="file"))


def file_scaling(numbers: FileNumbers, bands: Sequence[str], product: Scaling | None, dtype: str) -> Scaling | None:
    """The scaling a file's own tags give; None where they say nothing.

    Without a unit tag the unit is the product's. An 8-bit file without any word is what its type says: 8-bit numbers.

    Args:
        numbers: what the file says of its numbers.
        bands: names.
        product: the sensor's own scaling, None where it has none.
        dtype: of the numbers.

    Raises:
        DataError: a scale without any unit, or bands in several units.
    """
    said = {UNIT_WORDS[u.strip().lower()] for u in numbers.units if u.strip().lower() in UNIT_WORDS}
    if len(said) > 1:
        raise DataError(f"its bands are in several units ({', '.join(sorted(said))}): read them apart with bands=")
    unit = said.pop() if said else None
    scales, offsets = numbers.scales, numbers.offsets
    factor = _number(numbers.envi.get("reflectance_scale_factor"))
    if factor and set(scales) == {1.0}:
        scales, unit = (1 / factor,) * len(bands), unit or "reflectance"
    clip = product.clip if product is not None and unit in (None, product.unit) else None
    if unit is None and set(scales) == {1.0} and set(offsets) == {0.0}:
        if product is None and dtype == "uint8":
            return Scaling.uniform("uint8", bands, clip=(0, 255), physical_source="file")
        return None
    if unit is None and product is None:
        raise DataError("its scale tags come without a unit: name the sensor, or pass a scaling with its unit")
    return Scaling.uniform(unit or product.unit, bands, scales, offsets, clip, "file")  # type: ignore[union-attr]


def is_sentinel2(sensor: Sensor, dtype: str) -> bool:
    """Whether the numbers may carry the offset of processing baseline 04.00: integers of a reflectance product.

    Args:
        sensor: of the image.
        dtype: of its numbers.
    """
    unit = sensor.scaling.unit if sensor.scaling else None
    return sensor.platform == "sentinel-2" and unit == "reflectance" and not dtype.startswith("float")


def sentinel2_offset(numbers: FileNumbers, bands: Sequence[str]) -> list[float] | None:
    """The file's word on the Sentinel-2 offset: what to add to the numbers of each band, None without a word.

    Taken are BOA_ADD_OFFSET and RADIO_ADD_OFFSET (of the band, of the data set, or with the band's name behind), the
    word that it was applied already (BOA_OFFSET_APPLIED), and a processing baseline before 04.00. A later baseline
    counts only beside a quantification value, as in ESA's own metadata: providers that take the offset off keep the
    baseline (Earth Search, Earth Engine's harmonised collections).

    Args:
        numbers: what the file says of its numbers.
        bands: names, in the order of `numbers`.
    """
    for key, value in numbers.tags.items():
        if key.endswith("BOA_OFFSET_APPLIED") and value.strip().lower() in ("true", "1", "yes"):
            return [0.0] * len(bands)
    found: list[float | None] = []
    for name, tags in zip(bands, numbers.band_tags, strict=True):
        short = re.sub(r"^B0", "B", name)
        words = [
            value
            for kind in ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET")
            for value in (
                tags.get(kind),
                numbers.tags.get(f"{kind}_{name}"),
                numbers.tags.get(f"{kind}_{short}"),
                numbers.tags.get(kind),
            )
        ]
        found.append(next((n for n in map(_number, words) if n is not None), None))
    if all(n is not None for n in found):
        return [n for n in found if n is not None]
    baseline = baseline_number(numbers.tags.get("PROCESSING_BASELINE"))
    if baseline is not None and baseline < 4:
        return [0.0] * len(bands)
    if baseline is not None and any(k.endswith("QUANTIFICATION_VALUE") for k in numbers.tags):
        return [SENTINEL2_OFFSET_DN] * len(bands)
    return None


def with_dn_offset(scaling: Scaling, offset_dn: Sequence[float]) -> Scaling:
    """The scaling for numbers to which `offset_dn` is added first, one a band.

    Args:
        scaling: for numbers with the offset already added.
        offset_dn: in raw numbers.
    """
    offset = tuple(o + s * dn for o, s, dn in zip(scaling.offset, scaling.scale, offset_dn, strict=True))
    return replace(scaling, offset=offset)


def offset_doubt(numbers: FileNumbers, raw: NDArray[Any]) -> Said | None:
    """A warning where a Sentinel-2 file without a word on its offset may carry it.

    Args:
        numbers: what the file says.
        raw: (C, n) a sample of valid pixels.
    """
    baseline = numbers.tags.get("PROCESSING_BASELINE")
    if baseline is not None:
        text = f"processing baseline {baseline} adds 1000 to every number, unless the provider took it off again"
    elif looks_shifted(raw):
        text = f"its darkest pixels lie at {_darkest(raw):.0f} in every band, as with the +1000 of baseline 04.00"
    else:
        return None
    return "offset-unknown", f"{text}: say dn_offset=-1000 to take it off, or dn_offset=0 to keep the numbers"


def offset_twice(scaling: Scaling, raw: NDArray[Any], sensor: str) -> Said | None:
    """A warning where the Sentinel-2 offset seems to be taken off numbers that are free of it.

    Earth Search has items that say so wrongly: github.com/Element84/earth-search, issues 66 and 71.

    Args:
        scaling: from raw to physical values.
        raw: (C, n) valid pixels.
        sensor: its name.
    """
    if not sensor.startswith("sentinel-2") or scaling.unit != "reflectance" or min(scaling.offset) >= 0:
        return None
    if scaling.physical_source == "user":
        return None
    if raw.shape[1] < 100 or (low := _low(scaling, raw)) >= NEGATIVE:
        return None
    text = f"1 % of its numbers lie below reflectance {low:.2f}: the offset seems to be taken off a second time"
    return "offset-doubtful", f"{text}: say dn_offset=0 to keep the numbers, or dn_offset=-1000 if that is right"


def _low(scaling: Scaling, raw: NDArray[Any]) -> float:
    """1st percentile of the physical values of (C, n) numbers."""
    unclipped = Scaling.uniform(scaling.unit, scaling.bands, scaling.scale, scaling.offset)
    return float(np.percentile(unclipped.physical(raw[:, None])[:, 0], 1))


def scale_doubt(scaling: Scaling, raw: NDArray[Any], sensor: str) -> Said | None:
    """A warning where values cannot well be what they are said to be.

    Args:
        scaling: what the numbers mean, and who says so.
        raw: (C, n) a sample of valid pixels.
        sensor: its name, for the text.
    """
    if raw.shape[1] < 100:
        return None
    unit, said_by = scaling.unit, scaling.physical_source
    unclipped = Scaling.uniform(unit, scaling.bands, scaling.scale, scaling.offset)
    raw = raw[:, :: max(1, raw.size // 200_000)]
    low, middle, high = np.percentile(unclipped.physical(raw[:, None])[:, 0], (1, 50, 99))
    hint = {
        "reflectance": "8-bit values are no reflectance" if raw.dtype == np.uint8 and said_by == "catalogue"
        else "reflectance lies near 0 to 1" if high > 4 or high < 1e-3 or middle < -0.1 else "",
        "db": "these look like linear power" if low >= 0 else "decibels lie below that" if high > 60 else "",
        "linear_power": "these look like decibels" if low < -0.1 else "",
        "kelvin": "the Earth is 200 to 350 K warm" if low < 100 or high > 2000 else "",
    }.get(unit, "")  # fmt: skip
    if not hint:
        return None
    word = f"the product {sensor}" if said_by == "catalogue" else said_by
    text = f"{raw.dtype} numbers read as {unit} by the word of {word} lie in {low:.4g} … {high:.4g} (98 % of them)"
    return "scale-doubtful", f"{text}; {hint}: pass a scaling, or name the sensor and level whose product this is"


def looks_shifted(raw: NDArray[Any]) -> bool:
    """Whether (C, n) valid numbers lie as those of a Sentinel-2 product that still carries the offset."""
    return len(raw) >= TELLING_BANDS and _darkest(raw) >= SHIFTED_FROM_DN


def _darkest(raw: NDArray[Any]) -> float:
    """0.1 percentile of the darkest of (C, n) bands; 0 without pixels."""
    return float(np.percentile(raw, 0.1, axis=1).min()) if raw.shape[1] else 0.0


def _number(text: str | None) -> float | None:
    """A number, or the one number a list repeats."""
    try:
        values = {float(part) for part in re.split(r"[,;\s]+", (text or "").strip("{}[]() \t"))}
    except ValueError:
        return None
    return values.pop() if len(values) == 1 else None


def baseline_number(text: str | None) -> float | None:
    """A processing baseline as written in tags (04.00, 5.09) or product names (N0400)."""
    found = re.fullmatch(r"N?(\d\d?)\.?(\d\d)", (text or "").strip())
    return float(f"{found[1]}.{found[2]}") if found else None
