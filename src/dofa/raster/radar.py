"""What radar backscatter is in, by its values: decibels, decibels × 100 in integers, or linear power."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.pixels import Scaling, Unit
from dofa.raster.file_bands import Said

UNITS: tuple[Unit, ...] = ("db", "linear_power")
FAINTEST_DB, BRIGHTEST_DB = -60.0, 40.0  # what 98 % of any image lies in: noise lies near −35, few targets above 20


def backscatter(product: Scaling, sensor: str, raw: NDArray[Any], by_tag: bool) -> tuple[Scaling, Said | None]:
    """The unit and factor of backscatter of which nobody says them, decided by its values, and what is said of that.

    Nearly all ground sends back less than it receives: decibels are negative there, and linear power lies between 0 and
    1. What is neither stays what the product has.

    Args:
        product: the sensor's own scaling, in decibels or linear power.
        sensor: its name.
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
