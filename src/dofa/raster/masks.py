"""Where a file holds measurements: nodata values, masks, alpha bands, and numbers that are not finite.

The mask of each band is the one GDAL computes. Where a nodata value alone makes it, the numbers that were read anyway
are compared, with GDAL's tolerance: reading masks decodes a window's blocks a second time (`tests/raster/test_masks.py`
holds the two against each other).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

HUGE = 1e18  # no unit of measurement reaches this; float files hold ±3.4e38, 1e20 or 9.97e36 where nothing was measured
FILL_TOLERANCE = 1e-6  # relative: a fill value that was scaled, rounded or resampled in float32

Span = tuple[Any, Any]  # smallest and largest number of a range
Mask = NDArray[np.bool_]


@cache
def nodata_spans(value: float, dtype: np.dtype[Any]) -> tuple[Span, ...]:
    """The numbers that GDAL takes for a nodata value: what its ARE_REAL_EQUAL holds equal to it.

    Args:
        value: as declared.

    Returns:
        Ranges, each from its smallest to its largest number; none for NaN, infinity and what the type has not.
    """
    if dtype.kind != "f":
        info = np.iinfo(dtype)
        if not info.min <= value <= info.max:
            return ()
        number = dtype.type(int(value))
        return ((number, number),)
    kind, top = dtype.type, np.finfo(dtype).max
    with np.errstate(over="ignore"):
        number = kind(value)
    if not np.isfinite(number):
        return ()
    tolerance = kind(2 * np.finfo(np.float32).eps)  # in double precision too

    def near(other: Any) -> bool:
        total = _add(other, number)
        return bool(other == number or (np.isfinite(total) and abs(other - number) < tolerance * abs(total)))

    spans = [(_furthest(near, number, -top), _furthest(near, number, top))]
    end = top if number > 0 else -top
    if np.isinf(_add(end, number)):  # the tolerance is infinite there: all of ArcGIS's −3.4e38 are one
        first = _furthest(lambda other: bool(np.isinf(_add(other, number))), end, kind(0))
        spans.append((first, end) if number > 0 else (end, first))
    return tuple(spans)


def _add(one: Any, other: Any) -> Any:
    with np.errstate(over="ignore"):
        return one + other


def _furthest(holds: Callable[[Any], bool], number: Any, bound: Any) -> Any:
    """The float furthest from `number` towards `bound` of which something holds."""
    two = type(number)(2)
    true, false = number, bound
    while True:
        middle = true / two + false / two
        if middle in (true, false):
            return true
        if holds(middle):
            true = middle
        else:
            false = middle


def fill_span(value: float, dtype: np.dtype[Any]) -> Span | None:
    """The numbers that stand for an undeclared fill value: to a millionth, and all beyond 1e18 on its side.

    Args:
        value: as found.
    """
    if dtype.kind != "f":
        return next(iter(nodata_spans(value, dtype)), None)
    top = np.finfo(dtype).max
    if abs(value) >= HUGE:
        return (-top, dtype.type(-HUGE)) if value < 0 else (dtype.type(HUGE), top)
    reach = FILL_TOLERANCE * abs(value)
    return dtype.type(value - reach), dtype.type(value + reach)


def outside(raw: NDArray[Any], span: Span) -> Mask:
    """Where numbers lie outside a range; NaN does not.

    Args:
        span: smallest and largest of the range, of the same type.
    """
    low, high = span
    if low == high:
        return np.asarray(raw != low)
    return np.asarray((raw < low) | (raw > high))


def counts_alone(value: float, dtype: np.dtype[Any]) -> bool:
    """Whether a declared nodata value in one band alone makes a pixel invalid.

    0 is a measurement too (water at 2.2 µm), and so is any number of an 8-bit picture: those mean nothing measured only
    where all bands have them.

    Args:
        value: of one band or more.
    """
    return value != 0 and dtype != np.uint8


@dataclass(frozen=True)
class Header:
    """What a file's header says of missing measurements.

    Attributes:
        dtype: of its bands.
        nodata: value of each band, None where it declares none.
        flags: of each band's mask, by GDAL's names.
        alpha: numbers of its alpha bands.
        called_alpha: of those that are described so, which other bands are not.
    """

    dtype: np.dtype[Any]
    nodata: tuple[float | None, ...]
    flags: tuple[frozenset[str], ...]
    alpha: tuple[int, ...]
    called_alpha: tuple[int, ...] = ()

    @classmethod
    def of(cls, dataset: Any) -> "Header":
        """Of an open rasterio dataset."""
        colours = dataset.colorinterp
        named = [(text or "").strip().lower() == "alpha" for text in dataset.descriptions]
        alpha = tuple(n for n in range(1, dataset.count + 1) if colours[n - 1].name == "alpha" or named[n - 1])
        spectral = next((n for n in range(1, dataset.count + 1) if n not in alpha), 1)
        return cls(
            np.dtype(dataset.dtypes[spectral - 1]),
            tuple(None if v is None else float(v) for v in dataset.nodatavals),
            tuple(frozenset(flag.name for flag in flags) for flags in dataset.mask_flag_enums),
            alpha,
            tuple(n for n in alpha if named[n - 1]),
        )

    @classmethod
    def plain(cls, dtype: np.dtype[Any], count: int) -> "Header":
        """Of numbers in memory, of which nothing is declared."""
        return cls(dtype, (None,) * count, (frozenset({"all_valid"}),) * count, ())

    def has_mask(self, number: int) -> bool:
        """Whether a band has a mask that is neither its nodata value nor an alpha band.

        Args:
            number: of the band, from 1.
        """
        flags = self.flags[number - 1]
        return not flags & {"all_valid", "alpha"} and flags != {"nodata"}


class Validity:
    """Which pixels of some bands are measurements.

    A pixel is invalid where any band's own mask, nodata value or lack of a finite number, or an alpha band of 0, says
    so. A nodata value of 0, and any of an 8-bit picture, counts only where all bands that declare one have it
    (`counts_alone`), and not at all in a band with a mask beside it, which GDAL puts first.

    Args:
        numbers: of the bands, from 1.
        nodata: the user's value, which replaces every band's own; None for what the file declares.
        fill: values that no one declared and that are no measurements either.
        alpha: numbers of the bands that are alpha masks; None for all that the header marks and that are not read.
        zero_alone: 0 in one band alone makes a pixel invalid, declared or not: no measurement of this product is 0.

    Attributes:
        header: as given.
        numbers: as given.
        alpha: numbers of the alpha bands to be read.
        nodata: of each band, None for none.
        values: nodata and fill values of all bands, each once, NaN last.
    """

    def __init__(
        self,
        header: Header,
        numbers: Sequence[int],
        nodata: float | None = None,
        fill: Sequence[float] = (),
        alpha: Sequence[int] | None = None,
        zero_alone: bool = False,
    ) -> None:
        self.header, self.numbers = header, tuple(numbers)
        marked = header.alpha if alpha is None else alpha
        self.alpha = tuple(n for n in marked if n not in self.numbers)
        masked = [n for n in self.numbers if header.has_mask(n)]
        if nodata is not None:  # NODATA_VALUES is a nodata value for each band, which the user's replaces
            masked = [n for n in masked if "nodata" not in header.flags[n - 1]]
        self._masked = tuple(masked)
        self.nodata = tuple(header.nodata[n - 1] if nodata is None else nodata for n in self.numbers)
        declared = {v for v in self.nodata if v is not None} | ({0.0} if zero_alone else set())
        self.values = (*sorted({v for v in declared if v == v} | set(fill)), *[v for v in declared if v != v][:1])
        self._alone: list[list[Span]] = []
        self._together: list[list[Span]] = []
        for n, value in zip(self.numbers, self.nodata, strict=True):
            alone: list[Span] = []
            together: list[Span] = []
            if zero_alone:
                alone += nodata_spans(0.0, header.dtype)
            if value is not None and counts_alone(value, header.dtype):
                alone += nodata_spans(value, header.dtype)
            elif value is not None and not (zero_alone and value == 0) and (nodata is not None or n not in masked):
                together += nodata_spans(value, header.dtype)
            for other in fill:
                span = fill_span(other, header.dtype)
                if span is not None:
                    (alone if other < 0 or other >= HUGE else together).append(span)
            self._alone.append(alone)
            self._together.append(together)

    @property
    def masked(self) -> bool:
        """Whether a mask or an alpha band leaves pixels out."""
        return bool(self._masked or self.alpha)

    def masks(self, numbers: Sequence[int]) -> list[int]:
        """Numbers of the bands whose mask is to be read for some bands: one of those that share a mask."""
        masked = [n for n in numbers if n in self._masked]
        shared = [n for n in masked if "per_dataset" in self.header.flags[n - 1]]
        return [n for n in masked if n not in shared[1:]]

    @property
    def by_all_bands(self) -> tuple[int, ...]:
        """Numbers of the bands that make a pixel invalid only together."""
        return tuple(n for n, spans in zip(self.numbers, self._together, strict=True) if spans)

    def each(self, raw: NDArray[Any], numbers: Sequence[int] | None = None) -> Mask:
        """(C, …) where each number by itself is a measurement.

        Args:
            raw: (C, …) numbers.
            numbers: of these bands; None for all.
        """
        good = np.isfinite(raw) if raw.dtype.kind == "f" else np.ones(raw.shape, bool)
        for n, band, into in zip(numbers or self.numbers, raw, good, strict=True):
            at = self.numbers.index(n)
            for span in (*self._alone[at], *self._together[at]):
                into &= outside(band, span)
        return good

    def measured(self, raw: NDArray[Any], numbers: Sequence[int]) -> Mask:
        """(…) where no band alone lacks a measurement.

        Args:
            raw: (C, …) numbers.
        """
        good = np.ones(raw.shape[1:], bool)
        for n, band in zip(numbers, raw, strict=True):
            if band.dtype.kind == "f":
                good &= np.isfinite(band)
            for span in self._alone[self.numbers.index(n)]:
                good &= outside(band, span)
        return good

    def by_value(self, raw: NDArray[Any]) -> Mask:
        """(…) where all bands' numbers are measurements, masks and alpha bands aside.

        Args:
            raw: (C, …) numbers of all bands.
        """
        good, drawn = self.measured(raw, self.numbers), self.drawn(raw, self.numbers)
        return good if drawn is None else good & drawn

    def drawn(self, raw: NDArray[Any], numbers: Sequence[int]) -> Mask | None:
        """(…) where not all of the bands that make a pixel invalid together do; None where there are none.

        Args:
            raw: (C, …) numbers.
        """
        out: Mask | None = None
        for n, band in zip(numbers, raw, strict=True):
            spans = self._together[self.numbers.index(n)]
            if not spans:
                continue
            if out is not None and out.all():
                break
            here = outside(band, spans[0])
            for span in spans[1:]:
                here &= outside(band, span)
            out = here if out is None else out | here
        return out
