"""From raw numbers to physical values to what a model is fed: the two affine steps of one sensor's bands."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError, DataError, listed, shorten
from dofa.pixels.units import Float, Unit
from dofa.settings import check_keys, list_of, number, numbers

Source = Literal["user", "file", "values", "catalogue", "checkpoint", "head", "corpus", "scene", "display"]
Clip = tuple[float, float]

# The span a unit's values usually cover, against which a band counts as constant when it has no clip of its own.
UNIT_SPAN: dict[str, float] = {
    "reflectance": 1.0,
    "radiance": 100.0,
    "db": 30.0,
    "linear_power": 1.0,
    "kelvin": 100.0,
    "uint8": 255.0,
    "dn": 10_000.0,
}
BLOCK = 2**16  # values normalised at once: a quarter of a megabyte, well within the second-level cache
CONSTANT_SHARE = 1e-6  # a standard deviation below this share of the physical range is a band without variance


# The three cures of a sensor without statistics, in the words of the command line.
CURES = "pass --stats scene (of scenes) or --stats dataset (of labelled images), or a head trained on it"


class ConstantBandWarning(UserWarning):
    """A band does not vary; it is fed to the model as 0."""


@dataclass(frozen=True)
class Scaling:
    """How one sensor's raw numbers become physical values, and those the normalised input of a model.

    normalised = (clip(raw · scale + offset) − mean) / std, band by band (design.md section 3).

    Attributes:
        unit: what the physical values are.
        bands: names of the bands, in the order of every other field.
        scale: factor from raw to physical, one a band.
        offset: added after the factor, in physical units, one a band.
        clip: (low, high) in physical units or None, one a band.
        mean: of the physical values, one a band; None while statistics are unknown.
        std: like mean.
        physical_source: who said scale, offset and clip.
        stats_source: who said mean and std; None while they are unknown.
    """

    unit: Unit
    bands: tuple[str, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    clip: tuple[Clip | None, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    physical_source: Source = "catalogue"
    stats_source: Source | None = None

    def __post_init__(self) -> None:
        if self.unit not in [*get_args(Unit)]:  # a list: the value may be one itself, which has no hash
            raise ConfigError(f"scaling.unit is {shorten(repr(self.unit))}; known units: {', '.join(get_args(Unit))}")
        for source in (self.physical_source, self.stats_source):
            if source is not None and source not in [*get_args(Source)]:
                known = ", ".join(get_args(Source))
                raise ConfigError(f"scaling has the source {shorten(repr(source))}; known: {known}")
        if len(set(self.bands)) < len(self.bands):
            raise ConfigError(f"scaling names a band twice: {', '.join(self.bands)}")
        for field in ("scale", "offset", "clip", "mean", "std"):
            values = getattr(self, field)
            if values is not None and len(values) != len(self.bands):
                raise ConfigError(f"scaling.{field} has {len(values)} values for {len(self.bands)} bands")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("scaling needs mean and std together, or neither")
        if (self.mean is None) != (self.stats_source is None):
            raise ConfigError("scaling.stats_source says where mean and std come from: give all three or none")
        for name, clip in zip(self.bands, self.clip, strict=True):
            if clip is not None and not clip[0] < clip[1]:
                raise ConfigError(f"scaling.clip of band {name} is {clip}; it is (low, high)")
        if any(s == 0 or not np.isfinite(s) for s in self.scale):
            raise ConfigError("scaling.scale has a zero or non-finite factor")
        if not np.isfinite([*self.offset, *(self.mean or ())]).all():
            raise ConfigError("scaling.offset or scaling.mean has a non-finite value")
        if self.std is not None and any(s < 0 or not np.isfinite(s) for s in self.std):
            raise ConfigError("scaling.std has a negative or non-finite value")

    @classmethod
    def uniform(
        cls,
        unit: Unit,
        bands: Sequence[str],
        scale: float | Sequence[float] = 1.0,
        offset: float | Sequence[float] = 0.0,
        clip: Clip | Sequence[Clip | None] | None = None,
        physical_source: Source = "catalogue",
    ) -> "Scaling":
        """A Scaling whose single numbers hold for every band.

        Args:
            unit: of physical values.
            scale, offset: from raw numbers, one or one a band.
            clip: physical (low, high), one or one a band, None for none.
            physical_source: who says so.
        """
        n = len(bands)

        def spread(value: float | Sequence[float]) -> tuple[float, ...]:
            return (float(value),) * n if isinstance(value, int | float) else tuple(float(v) for v in value)

        if clip is None or (len(clip) == 2 and all(isinstance(v, int | float) for v in clip)):
            one = None if clip is None else (float(clip[0]), float(clip[1]))  # type: ignore[arg-type]
            clips: tuple[Clip | None, ...] = (one,) * n
        else:
            clips = tuple(None if c is None else (float(c[0]), float(c[1])) for c in clip)  # type: ignore[index]
        return cls(unit, tuple(bands), spread(scale), spread(offset), clips, physical_source=physical_source)

    def select(self, bands: Sequence[str]) -> "Scaling":
        """The same scaling for the named bands, in the order given.

        Raises:
            ConfigError: a name is not among the bands.
        """
        places = {b: i for i, b in enumerate(self.bands)}
        missing = [b for b in bands if b not in places]
        if missing:
            raise ConfigError(f"scaling has no band {', '.join(missing)}; it has {', '.join(self.bands)}")
        at = [places[b] for b in bands]
        return replace(
            self,
            bands=tuple(bands),
            scale=tuple(self.scale[i] for i in at),
            offset=tuple(self.offset[i] for i in at),
            clip=tuple(self.clip[i] for i in at),
            mean=None if self.mean is None else tuple(self.mean[i] for i in at),
            std=None if self.std is None else tuple(self.std[i] for i in at),
        )

    def with_stats(self, mean: Sequence[float], std: Sequence[float], source: Source) -> "Scaling":
        """The same scaling with statistics of the physical values and where they come from.

        Args:
            mean, std: of physical values, one a band.
            source: where they come from.
        """
        return replace(self, mean=tuple(map(float, mean)), std=tuple(map(float, std)), stats_source=source)

    def without_stats(self) -> "Scaling":
        """Only the step from raw to physical values."""
        return replace(self, mean=None, std=None, stats_source=None)

    @cached_property
    def constant(self) -> tuple[str, ...]:
        """Names of the bands whose std is under 1e-6 of their physical range; they are fed as 0."""
        if self.std is None:
            return ()
        span = [UNIT_SPAN[self.unit] if c is None else c[1] - c[0] for c in self.clip]
        return tuple(b for b, s, r in zip(self.bands, self.std, span, strict=True) if s < CONSTANT_SHARE * r)

    def physical(self, raw_chw: NDArray[Any]) -> Float:
        """Raw numbers to physical values.

        Args:
            raw_chw: (..., C, H, W) in the file's own type, bands in the order of `bands`.

        Returns:
            (..., C, H, W) float32 in `unit`, clipped; a NaN stays a NaN.

        Raises:
            DataError: the number of bands is another.
        """
        self._check_bands(raw_chw)
        return self._physical(raw_chw, slice(None))

    def normalise(
        self, raw_chw: NDArray[Any], valid_hw: NDArray[np.bool_] | None = None, out: Float | None = None
    ) -> Float:
        """Raw numbers to the input of a model.

        Args:
            raw_chw: (..., C, H, W) in the file's own type.
            valid_hw: (..., H, W), False where there is no measurement; those pixels become 0, the mean.
            out: (..., C, H, W) float32 to write the result to.

        Returns:
            (..., C, H, W) float32, `out` where it is given; bands without variance are 0.

        Raises:
            ConfigError: there are no statistics.
            DataError: another number of bands, or a valid pixel is not finite (`out` is written all the same).
        """
        self._check_bands(raw_chw)
        out = np.empty(raw_chw.shape, np.float32) if out is None else out
        # A few bands at a time stay in the processor's cache from step to step.
        step = max(1, BLOCK * len(self.bands) // max(raw_chw.size, 1))
        lost = 0
        for first in range(0, len(self.bands), step):
            part = slice(first, first + step)
            physical = self._physical(raw_chw[..., part, :, :], part)
            lost += self._standardise(physical, part, valid_hw, out[..., part, :, :])
        return self._checked(out, lost)

    def normalise_physical(self, physical_chw: NDArray[Any], valid_hw: NDArray[np.bool_] | None = None) -> Float:
        """Like `normalise`, from values that are already physical (they are clipped here too).

        Args:
            physical_chw: (C, H, W).
            valid_hw: (H, W), None where every pixel is valid.
        """
        self._check_bands(physical_chw)
        out = np.empty(physical_chw.shape, np.float32)
        lost = self._standardise(self._clipped(physical_chw, slice(None)), slice(None), valid_hw, out)
        return self._checked(out, lost)

    def _physical(self, raw: NDArray[Any], bands: slice) -> Float:
        # int32 and float64 raw values would lose digits as float32 before the factor, so those go through float64.
        wide = raw.dtype.itemsize > 4 or raw.dtype in (np.int32, np.uint32)
        work: Any = np.float64 if wide else np.float32
        out = raw.astype(work)
        with np.errstate(over="ignore"):  # of nodata values; a measurement that is not finite is refused later
            out *= _column(self.scale[bands], work)
            out += _column(self.offset[bands], work)
            return self._clipped(out, bands)

    def _clipped(self, physical: NDArray[Any], bands: slice) -> Float:
        out, clips = physical, self.clip[bands]
        if any(c is not None for c in clips):
            low = _column([-np.inf if c is None else c[0] for c in clips], out.dtype)
            high = _column([np.inf if c is None else c[1] for c in clips], out.dtype)
            out = np.clip(out, low, high)
        return np.asarray(out, np.float32)

    def _standardise(self, physical: Float, bands: slice, valid_hw: NDArray[np.bool_] | None, out: Float) -> int:
        """Write the normalised values of some bands; how many are not finite."""
        if self.mean is None:
            raise ConfigError(f"this scaling has no statistics: {CURES}")
        np.subtract(physical, _column(self.mean[bands]), out=out)
        out *= _column(self._factor[bands])
        if valid_hw is not None:
            np.copyto(out, np.float32(0), where=~np.asarray(valid_hw, bool)[..., None, :, :])
        finite = np.isfinite(out)
        return 0 if finite.all() else int(finite.size - np.count_nonzero(finite))

    @cached_property
    def _factor(self) -> tuple[float, ...]:
        """1 / std, and 0 for bands without variance, which are named once."""
        if self.constant:
            _name_constant(self.constant)
        constant = frozenset(self.constant)
        return tuple(0.0 if b in constant else 1.0 / s for b, s in zip(self.bands, self.std or (), strict=True))

    @staticmethod
    def _checked(normalised: Float, lost: int) -> Float:
        if lost:
            raise DataError(
                f"{lost} values are NaN or infinite where pixels count as valid: "
                "mark them in the validity mask or declare the nodata value"
            )
        return normalised

    def denormalise(self, normalised_chw: NDArray[Any]) -> Float:
        """Normalised values back to physical ones; a constant band comes back as its mean."""
        if self.mean is None or self.std is None:
            raise ConfigError("this scaling has no statistics to undo")
        self._check_bands(normalised_chw)
        std = [0.0 if b in self.constant else s for b, s in zip(self.bands, self.std, strict=True)]
        out: Float = normalised_chw.astype(np.float32) * _column(std) + _column(self.mean)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, for JSON and YAML."""
        return {
            "unit": self.unit,
            "bands": list(self.bands),
            "scale": list(self.scale),
            "offset": list(self.offset),
            "clip": [None if c is None else list(c) for c in self.clip],
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
            "physical_source": self.physical_source,
            "stats_source": self.stats_source,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Scaling":
        """The inverse of `to_dict`.

        Raises:
            ConfigError: a key is missing or unknown, or figures do not fit.
        """
        fields = cls.__dataclass_fields__
        optional = ("mean", "std", "stats_source")
        check_keys(data, fields, "scaling", [key for key in fields if key not in optional])

        def column(key: str) -> tuple[float, ...]:
            return numbers(data[key], f"scaling.{key}")

        def clip(value: Any) -> Clip | None:
            if value is None:
                return None
            pair = [number(one, "scaling.clip", finite=False) for one in list_of(value, object, "scaling.clip")]
            if len(pair) != 2:
                raise ConfigError(f"scaling.clip has an entry of {len(pair)} numbers; [low, high] or null is expected")
            return pair[0], pair[1]

        return cls(
            unit=data["unit"],
            bands=tuple(list_of(data["bands"], str, "scaling.bands")),
            scale=column("scale"),
            offset=column("offset"),
            clip=tuple(clip(value) for value in list_of(data["clip"], object, "scaling.clip")),
            mean=None if data.get("mean") is None else column("mean"),
            std=None if data.get("std") is None else column("std"),
            physical_source=data["physical_source"],
            stats_source=data.get("stats_source"),
        )

    def _check_bands(self, array: NDArray[Any]) -> None:
        if array.ndim < 3 or array.shape[-3] != len(self.bands):
            raise DataError(
                f"image of shape {array.shape} does not have the {len(self.bands)} bands {', '.join(self.bands[:8])}"
                f"{' …' if len(self.bands) > 8 else ''} on its third axis from the end"
            )


@cache
def _name_constant(bands: tuple[str, ...]) -> None:
    """Warn of these bands, once in a process."""
    warnings.warn(f"bands without variance are fed as 0: {listed(bands)}", ConstantBandWarning, stacklevel=6)


def _column(values: Sequence[float], dtype: Any = np.float32) -> NDArray[Any]:
    """(C, 1, 1), to broadcast over (..., C, H, W)."""
    return np.asarray(values, dtype)[:, None, None]
