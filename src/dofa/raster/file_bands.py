"""What a file says of its bands, and the answer to which they are."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dofa.errors import DataError
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


def tolerance_um(band: Band) -> float:
    """How far a band's centre may lie from the catalogue's: instruments of a series differ, and tags are rounded."""
    return max(0.5 * (band.fwhm_um or 0.02 * (band.wavelength_um or 0)), 0.001)


def refuse_twice(names: Sequence[str], numbers: Sequence[int]) -> None:
    """Two bands of a file that are the same band of a sensor are an error.

    Args:
        names: of the bands found.
        numbers: of each in the file.

    Raises:
        DataError: a name stands there twice.
    """
    for i, name in enumerate(names):
        if name in names[:i]:
            first = numbers[list(names).index(name)]
            raise DataError(
                f"bands {first} and {numbers[i]} of the file are both {name}: pass --bands with their names {IN_ORDER}"
            )
