"""Opening files: as what they say and what the user says, or by what is known of them already."""

from collections.abc import Sequence
from pathlib import Path

from dofa import sensors
from dofa.errors import ConfigError, DataError
from dofa.pixels import Scaling
from dofa.raster.factors import UserNumbers
from dofa.raster.file import Raster
from dofa.sensors import Sensor


def open_raster(
    path: str | Path,
    sensor: Sensor | str | None = None,
    bands: Sequence[str | None] | None = None,
    wavelengths_um: Sequence[float] | None = None,
    scaling: Scaling | None = None,
    *,
    dn_offset: float | None = None,
    dn_scale: float | None = None,
    unit: str | None = None,
    nodata: float | None = None,
    strict: bool = False,
) -> Raster:
    """Open a file as named bands with physical values.

    Args:
        path: a file or anything else GDAL opens.
        sensor: what took it, by name or as a Sensor; None to find it from descriptions or wavelength tags.
        bands: names in the file's order, None for a band to leave out; they override what the file says.
        wavelengths_um: micrometres in the file's order; without a sensor they are enough.
        scaling: what the numbers mean; overrides tags and product.
        dn_offset: added to the numbers before the factor, in place of the file's offset: −1000 for Sentinel-2 of
            baseline ≥ 04.00, 0 to say that there is none.
        dn_scale: factor from the numbers to their unit, in place of the file's and the product's.
        unit: what the numbers are, as a unit tag would say it, in place of the file's: reflectance, percent, db, dn, …
        nodata: the number that stands for no measurement; overrides that of every band.
        strict: whatever would be assumed, or looks wrong, is an error instead of a warning.

    Returns:
        A Raster, to be used as a context manager.

    Raises:
        DataError: the file cannot be read, contradicts the sensor, or says too little; one line with the cure.
        ConfigError: an unknown sensor or band, or settings that do not go together.
    """
    if isinstance(sensor, str):
        sensor = sensors.get(sensor)
    user = UserNumbers(scaling, dn_offset, dn_scale, unit)
    raster = Raster(path, nodata, strict)
    try:
        raster._understand(sensor, bands, wavelengths_um, user)
    except (ConfigError, DataError) as error:
        raster.close()
        text = str(error)
        raise type(error)(text if raster._name in text else f"{raster._name}: {text}", error.flags) from None
    return raster


def open_known(
    path: str | Path,
    sensor: Sensor,
    scaling: Scaling,
    numbers: Sequence[int],
    *,
    nodata: float | None = None,
    fill_values: Sequence[float] = (),
    alpha: Sequence[int] | None = None,
) -> Raster:
    """Open a file of which everything is known already: only its header is read, nothing is looked at or assumed.

    Args:
        path: a file or anything else GDAL opens.
        numbers: GDAL's number of each of them.
        nodata: the number that stands for no measurement; overrides that of every band.
        fill_values: numbers that nobody declared and that stand for no measurement either.
        alpha: numbers of the bands that are alpha masks; None for those that the header marks.

    Raises:
        DataError: the file cannot be read, or has fewer bands.
    """
    raster = Raster(path, nodata)
    raster.fill_values, raster.alpha = tuple(fill_values), None if alpha is None else tuple(alpha)
    try:
        raster.tell(sensor, scaling, numbers)
    except DataError:
        raster.close()
        raise
    return raster
