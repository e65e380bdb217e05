"""What a file's numbers mean: its own tags, the Sentinel-2 offset, and values that do not look like what is said.

Pure functions over tags and a sample of pixels. Nothing here changes a value that nobody spoke of: what only looks
wrong becomes a warning with a name, and an error under `strict`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.errors import DataError
from dofa.pixels import Scaling, resolve_physical
from dofa.raster import factors
from dofa.raster.band_descriptions import Said
from dofa.raster.factors import (
    AMPLITUDE,
    FileNumbers,
    UserNumbers,
    file_scaling,
    likely_factor,
    number,
    tagged_units,
    user_scaling,
    with_dn_offset,
)
from dofa.raster.unit_tags import TaggedUnit
from dofa.sensors import Sensor

SENTINEL2_OFFSET_DN = -1000.0  # added by every product of processing baseline 04.00 (25 January 2022) and later
PER_DN = 1e-4  # reflectance of a Sentinel-2 product's count
SHIFTED_FROM_DN = 950  # darkest pixels of a product that still carries the offset lie near 1000 in every band
NEGATIVE = -0.05  # reflectance; atmospheric correction leaves dark pixels slightly below 0, not that far
COUNTS = 20  # the median backscatter of an image in linear power is far less: 13 dB
CALIBRATE = (
    "calibrate them to sigma or gamma nought first (SNAP: Radar, Radiometric, Calibrate), or take an RTC product"
)
PERCENTS = 100  # counts × 10⁴ of a whole image, blue to infrared, are brighter than a reflectance of .01 somewhere
TELLING_BANDS = 4  # a few bands alone may well have no dark pixel: infrared over forest, blue at the top of the air


@dataclass(frozen=True)
class ResolvedScaling:
    """What the numbers of a sensor's bands mean, and what is still open.

    Attributes:
        scaling: from raw to physical values, without statistics.
        offset_open: nobody said whether a Sentinel-2 product carries its offset.
        scale_open: nobody said the factor of numbers that may not be the product's counts; see `infer_scaling`.
        dn_offset: what the user adds to the numbers first, once their factor is known.
        told: by the user: it is not to be doubted.
        notes: what was understood of the file's words.
        assumptions: what was assumed, an error under strict.
    """

    scaling: Scaling
    offset_open: bool = False
    scale_open: bool = False
    dn_offset: float | None = None
    told: bool = False
    notes: tuple[Said, ...] = ()
    assumptions: tuple[Said, ...] = ()

    def doubts(self, numbers: "FileNumbers", raw: NDArray[Any], sensor: str) -> list[Said]:
        """What is assumed or looks wrong, given (C, n) valid pixels and the sensor's name.

        Args:
            numbers: what the file says of its numbers.
            raw: valid pixels as they lie in the file.
        """
        if self.told:
            return []
        if self.offset_open:
            offset = offset_doubt(numbers, raw)
        else:
            offset = offset_twice(self.scaling, raw, sensor) or offset_left(self.scaling, raw, sensor)
        found = [said for said in (offset, scale_doubt(self.scaling, raw, sensor)) if said is not None]
        return [*self.assumptions, *found]


def resolve_scaling(sensor: Sensor, numbers: FileNumbers, dtype: str, user: UserNumbers, name: str) -> ResolvedScaling:
    """Decide what numbers mean: the user's word, then the file's, then the product's.

    Args:
        numbers: what the file says of them.

    Raises:
        ConfigError: nobody says; the cures are named.
        DataError: the file says it in a way that cannot be read, or another unit than the sensor's product has.
    """
    names, product = sensor.band_names, sensor.scaling
    if user.scaling is not None:
        return ResolvedScaling(resolve_physical(user.scaling.select(names), None, None), told=True)
    if user.unit is not None or user.dn_scale is not None:
        taken = user_scaling(user, numbers, names, product, name)
        if user.dn_scale is None or user.dn_offset is not None:
            return ResolvedScaling(taken, told=True)
        taken, notes = _with_product_offset(taken, product, "--dn-scale")
        return ResolvedScaling(taken, told=True, notes=notes)
    tagged, notes = tagged_units(numbers, sensor)
    said = file_scaling(numbers, tagged, names, product, dtype)
    if said is not None:
        said, more = _with_product_offset(said, product, "its scale tag")
        notes = (*notes, *more)
    scaling = resolve_physical(None, said, product, name)
    open_scale = not numbers.scaled and _scale_open(scaling, product, tagged, dtype)
    if user.dn_offset is not None:
        base = replace(scaling, offset=product.offset if product else (0.0,) * len(names))
        moved = replace(with_dn_offset(base, [user.dn_offset] * len(names)), physical_source="user")
        return ResolvedScaling(moved, scale_open=open_scale, dn_offset=user.dn_offset, notes=notes)
    settled = ResolvedScaling(scaling, scale_open=open_scale, notes=notes)
    return settled if open_scale else with_sentinel2_offset(settled, sensor, numbers, dtype)


def _with_product_offset(scaling: Scaling, product: Scaling | None, what: str) -> tuple[Scaling, tuple[Said, ...]]:
    """The product's offset beside the product's own factor, where nothing says an offset; and what is said of that."""
    if product is None or scaling.unit != product.unit or any(scaling.offset) or not any(product.offset):
        return scaling, ()
    if not np.allclose(scaling.scale, product.scale, rtol=1e-6, atol=0):
        return scaling, ()
    offset = product.offset[0]
    text = f"{what} is the product's factor and no offset is said: the product's, {offset:g}, is added too"
    return replace(scaling, offset=product.offset), (("offset-of-product", text),)


def _scale_open(scaling: Scaling, product: Scaling | None, tagged: Sequence[TaggedUnit], dtype: str) -> bool:
    """Whether the values decide: the product's factor may have been applied already, and radar is in one of two units.

    Applied it may have been to floats, and to what bears its unit's name.
    """
    if product is None or scaling.unit != product.unit:
        return False
    if any(t.unit == "dn" or (t.scale, t.offset) != (1.0, 0.0) for t in tagged):
        return False
    if product.unit == "uint8":
        return dtype.startswith("float")
    if product.unit in factors.UNITS:
        return True
    counts = set(product.scale) != {1.0} or any(product.offset)
    return counts and (dtype.startswith("float") or any(t.unit == product.unit for t in tagged))


def with_sentinel2_offset(
    settled: ResolvedScaling, sensor: Sensor, numbers: FileNumbers, dtype: str
) -> ResolvedScaling:
    """The same with the Sentinel-2 offset where the file says it; where nobody does it is open.

    Args:
        settled: so far.
        numbers: what the file says of them.
    """
    if not is_sentinel2(sensor, dtype) or any(numbers.offsets):
        return settled
    offset = sentinel2_offset(numbers, sensor.band_names)
    if offset is None:
        return replace(settled, offset_open=True)
    return replace(settled, scaling=replace(with_dn_offset(settled.scaling, offset), physical_source="file"))


def infer_scaling(settled: ResolvedScaling, sensor: Sensor, numbers: FileNumbers, raw: NDArray[Any]) -> ResolvedScaling:
    """Decide by their values what numbers mean whose factor nobody says; see `factors.likely_factor`.

    Args:
        settled: so far; nothing changes unless its `scale_open`.
        numbers: what the file says of them.
        raw: valid numbers of any shape.

    Raises:
        DataError: backscatter that is named amplitude.
    """
    if not settled.scale_open or sensor.scaling is None:
        return settled
    by_values = factors.backscatter if sensor.scaling.unit in factors.UNITS else likely_factor
    scaling, said = by_values(sensor.scaling, sensor.name, raw, settled.scaling.physical_source == "file")
    if numbers.amplitude and scaling.unit == "linear_power" and raw.size and 0 < np.nanmedian(raw) < COUNTS:
        raise DataError(AMPLITUDE)
    counts = (scaling.scale, scaling.offset) == (sensor.scaling.scale, sensor.scaling.offset)
    if settled.dn_offset is not None:
        moved = with_dn_offset(scaling, [settled.dn_offset] * len(scaling.bands))
        scaling = replace(moved, physical_source="user")
    found = replace(settled, scale_open=False, scaling=scaling, assumptions=() if said is None else (said,))
    return with_sentinel2_offset(found, sensor, numbers, "uint16") if counts and settled.dn_offset is None else found


def is_sentinel2(sensor: Sensor, dtype: str) -> bool:
    """Whether the numbers may carry the offset of processing baseline 04.00: integers of a reflectance product."""
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
        found.append(next((n for n in map(number, words) if n is not None), None))
    if all(n is not None for n in found):
        return [n for n in found if n is not None]
    baseline = baseline_number(numbers.tags.get("PROCESSING_BASELINE"))
    if baseline is not None and baseline < 4:
        return [0.0] * len(bands)
    if baseline is not None and any(k.endswith("QUANTIFICATION_VALUE") for k in numbers.tags):
        return [SENTINEL2_OFFSET_DN] * len(bands)
    return None


def offset_doubt(numbers: FileNumbers, raw: NDArray[Any]) -> Said | None:
    """A warning where a Sentinel-2 file without a word on its offset may carry it.

    Args:
        raw: (C, n) a sample of valid pixels.
    """
    baseline = numbers.tags.get("PROCESSING_BASELINE")
    if baseline is not None:
        text = f"processing baseline {baseline} adds 1000 to every number, unless the provider took it off again"
    elif looks_shifted(raw):
        text = f"its darkest pixels lie at {_darkest(raw):.0f} in every band, as with the +1000 of baseline 04.00"
    else:
        return None
    return "offset-unknown", f"{text}: say --dn-offset -1000 to take it off, or --dn-offset 0 to keep the numbers"


def offset_twice(scaling: Scaling, raw: NDArray[Any], sensor: str) -> Said | None:
    """A warning where the Sentinel-2 offset seems to be taken off numbers that are free of it.

    Earth Search has items that say so wrongly: github.com/Element84/earth-search, issues 66 and 71.

    Args:
        scaling: from raw to physical values.
        raw: (C, n) valid pixels.
    """
    if not sensor.startswith("sentinel-2") or scaling.unit != "reflectance" or min(scaling.offset) >= 0:
        return None
    if scaling.physical_source == "user":
        return None
    if raw.shape[1] < 100 or (low := _low(scaling, raw)) >= NEGATIVE:
        return None
    text = f"1 % of its numbers lie below reflectance {low:.2f}: the offset seems to be taken off a second time"
    return "offset-doubtful", f"{text}: say --dn-offset 0 to keep the numbers, or --dn-offset -1000 if that is right"


def offset_left(scaling: Scaling, raw: NDArray[Any], sensor: str) -> Said | None:
    """A warning where the Sentinel-2 offset seems to be in numbers that are said, or seem, to be free of it.

    Counts that were divided by 10,000 without taking 1000 off are reflectances that are 0.1 too high.

    Args:
        scaling: from raw to physical values.
        raw: (C, n) valid pixels.
    """
    said_by_user = scaling.physical_source == "user"
    if not sensor.startswith("sentinel-2") or scaling.unit != "reflectance" or said_by_user or raw.shape[1] < 100:
        return None
    unclipped = Scaling.uniform(scaling.unit, scaling.bands, scaling.scale, scaling.offset)
    physical = unclipped.physical(raw[:, None])[:, 0]
    if len(raw) < TELLING_BANDS or (darkest := _darkest(physical)) < SHIFTED_FROM_DN * PER_DN:
        return None
    text = f"its darkest pixels lie at reflectance {darkest:.2f} in every band, as with the +1000 of baseline 04.00"
    take_off = SENTINEL2_OFFSET_DN * PER_DN / scaling.scale[0]
    return (
        "offset-doubtful",
        f"{text}: say --dn-offset {take_off:g} to take it off, or --dn-offset 0 to keep the numbers",
    )


def _low(scaling: Scaling, raw: NDArray[Any]) -> float:
    """1st percentile of the physical values of (C, n) numbers."""
    unclipped = Scaling.uniform(scaling.unit, scaling.bands, scaling.scale, scaling.offset)
    return float(np.percentile(unclipped.physical(raw[:, None])[:, 0], 1))


def scale_doubt(scaling: Scaling, raw: NDArray[Any], sensor: str) -> Said | None:
    """A warning where values cannot well be what they are said to be.

    Args:
        scaling: what the numbers mean, and who says so.
        raw: (C, n) a sample of valid pixels.
    """
    if raw.shape[1] < 100:
        return None
    unit, said_by = scaling.unit, scaling.physical_source
    unclipped = Scaling.uniform(unit, scaling.bands, scaling.scale, scaling.offset)
    raw = raw[:, :: max(1, raw.size // 200_000)]
    low, middle, high = np.percentile(unclipped.physical(raw[:, None])[:, 0], (1, 50, 99))
    if unit == "reflectance":
        # The unclipped product of a file in percent lies below 130, that of counts × 10⁴ far above.
        hint = "reflectance lies near 0 to 1" if high > 4 or high < 1e-3 or middle < -0.1 else ""
        cure = "--unit percent" if 4 < high <= 130 else "--unit and --dn-scale"
        counts = raw.dtype.kind in "iu" and raw.dtype != np.uint8 and said_by != "file"
        if counts and len(raw) >= TELLING_BANDS and high >= 1e-3 and np.percentile(raw, 99) <= PERCENTS:
            hint, cure = "these may be whole percents", "--unit percent, or --unit dn if they are the product's counts"
        if raw.dtype == np.uint8 and said_by != "file":
            hint = "8-bit values are no reflectance"
            cure = "--unit percent or --unit uint8" if raw.max() <= 130 else "--unit uint8"
    elif unit == "db":
        hint = "these look like linear power" if low >= 0 else ""
        cure = "--unit linear_power"
        if low >= 0 and middle > COUNTS:
            hint, cure = "these look like a product's counts (amplitude or intensity)", CALIBRATE
        if not hint and (high > 60 or low < -100):
            hint, cure = "decibels of radar lie in -60 … 40", "--dn-scale 0.01" if low < -100 else "--unit"
    elif unit == "linear_power":
        hint, cure = "these look like decibels" if low < -0.1 else "", "--unit db"
        if low >= -0.1 and middle > COUNTS:
            hint, cure = "these look like a product's counts (amplitude or intensity)", CALIBRATE
    elif unit == "kelvin":
        hint = "the Earth is 200 to 350 K warm" if low < 100 or high > 2000 else ""
        cure = "--unit celsius" if low > -100 and high < 100 else "--unit and --dn-scale"
    else:
        return None
    if not hint:
        return None
    word = f"the product {sensor}" if said_by == "catalogue" else "the user" if said_by == "user" else f"the {said_by}"
    text = f"{raw.dtype} numbers read as {unit} by the word of {word} lie in {low:.4g} … {high:.4g} (98 % of them)"
    if cure == CALIBRATE:
        return "scale-doubtful", f"{text}; {hint}: {cure}"
    return "scale-doubtful", f"{text}; {hint}: say what they are ({cure}), or name the sensor and level whose they are"


def looks_shifted(raw: NDArray[Any]) -> bool:
    """Whether (C, n) valid numbers lie as those of a Sentinel-2 product that still carries the offset."""
    return len(raw) >= TELLING_BANDS and _darkest(raw) >= SHIFTED_FROM_DN


def _darkest(raw: NDArray[Any]) -> float:
    """0.1 percentile of the darkest of (C, n) bands; 0 without pixels. Zeros are nodata where the offset was added."""
    bands = [numbers for band in raw if (numbers := band[band != 0]).size]
    return min((float(np.percentile(numbers, 0.1)) for numbers in bands), default=0.0)


def baseline_number(text: str | None) -> float | None:
    """A processing baseline as written in tags (04.00, 5.09) or product names (N0400)."""
    found = re.fullmatch(r"N?(\d\d?)\.?(\d\d)", (text or "").strip())
    return float(f"{found[1]}.{found[2]}") if found else None
