"""What files and users say of the numbers in bands: scale, offset, unit and tags."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dofa.errors import ConfigError
from dofa.pixels import Scaling
from dofa.raster.units import KNOWN, unit_of

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
        amplitude: a name says that they are amplitudes.
    """

    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    units: tuple[str, ...]
    tags: Tags
    band_tags: tuple[Tags, ...]
    envi: Tags
    amplitude: bool = False

    @property
    def scaled(self) -> bool:
        """Whether a scale or an offset is said of any band."""
        return set(self.scales) != {1.0} or any(self.offsets)

    def select(self, places: Sequence[int]) -> "FileNumbers":
        """What is said of some of the bands."""
        return FileNumbers(
            scales=tuple(self.scales[i] for i in places),
            offsets=tuple(self.offsets[i] for i in places),
            units=tuple(self.units[i] for i in places),
            tags=self.tags,
            band_tags=tuple(self.band_tags[i] for i in places),
            envi=self.envi,
            amplitude=self.amplitude,
        )


@dataclass(frozen=True)
class UserNumbers:
    """What the user says of the numbers; None for nothing.

    Attributes:
        scaling: everything.
        dn_offset: added to the numbers before the factor.
        dn_scale: the factor from numbers to the unit.
        unit: as a unit tag would say it; see `units.unit_of`.
    """

    scaling: Scaling | None = None
    dn_offset: float | None = None
    dn_scale: float | None = None
    unit: str | None = None

    @property
    def said(self) -> bool:
        """Whether the user says anything."""
        return any(v is not None for v in (self.scaling, self.dn_offset, self.dn_scale, self.unit))

    def __post_init__(self) -> None:
        if self.scaling is not None and (self.dn_offset, self.dn_scale, self.unit) != (None, None, None):
            raise ConfigError(
                "scaling already says offset, factor and unit: give scaling, or some of dn_offset, dn_scale and unit"
            )
        if self.dn_scale is not None and not (np.isfinite(self.dn_scale) and self.dn_scale):
            raise ConfigError(f"--dn-scale {self.dn_scale:g}: the factor from the file's numbers to their unit, not 0")
        if self.unit is not None and unit_of(self.unit) is None:
            raise ConfigError(f"--unit {self.unit}: known are {KNOWN}")
