"""Fill values that nobody declared: a spike at the edge of the range, far from everything else."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from dofa.raster.band_descriptions import Said
from dofa.raster.masks import FILL_TOLERANCE, HUGE, Mask, fill_span, outside

# What producers write where nothing was measured. Those below are no reading of any product; those above may also be
# saturation, which is why more is asked of them.
BELOW = (-9999.0, -99999.0, -999999.0, -28672.0, -32768.0, -32767.0, -(2.0**31), 1 - 2.0**31)
ABOVE = (255.0, 999.0, 9999.0, 99999.0, 999999.0, 32767.0, 64536.0, 65535.0, 2.0**31 - 1, 2.0**32 - 1)
SMALL = (-99.0, -99.99, -100.0, -999.0)  # also producers' values, but a dark band may have one by chance
# The nodata value 0 of a product whose offset was added to it too: Landsat's reflectance and Sentinel-2's, as a number
# and as counts. A dark band may have one by chance, but not all bands at once.
OFFSETS = (-0.2, -0.1, -1000.0)
COLD = (149.0, -124.15)  # likewise of Landsat's surface temperature, in kelvin and in degrees Celsius
COLD_GAP = 20.0  # kelvin below all others, at least
SCALED = 1e-4  # the same in float files that were multiplied by the factor of reflectance
SHARE = 0.01  # of the pixels, for a value that may be saturation
SHARE_ALONE = 0.05  # likewise, in a single band, where no other can agree
DISTINCT = 32  # numbers that an image has beside its fill value, at least
CORNER = 16  # pixels a side of what is looked at in each corner of a large file
NARROW = 4  # likewise for a border along one side, which two corners have
TOGETHER = 0.9  # share of a fill value's pixels that have one in every band


@dataclass(frozen=True)
class Fill:
    """A number that stands for no measurement although nobody says so.

    Attributes:
        value: it.
        share: of the pixels that were looked at.
    """

    value: float
    share: float

    @property
    def text(self) -> str:
        """The number as one writes it after --nodata."""
        return f"{self.value:.0f}" if abs(self.value) < HUGE and self.value.is_integer() else str(self.value)

    @property
    def seen(self) -> str:
        """What is odd about it, for messages."""
        share = f"{self.share:.0%}" if self.share >= 0.1 else f"{self.share:.2%}"
        odd = "in all bands, as 0 is once a product's offset is added" if self.value in OFFSETS else ""
        odd = odd or "far from all other values"
        return f"{share} of the pixels looked at are {self.text}, {odd}, and not declared as nodata"

    def doubt(self, counted: bool) -> Said:
        """A warning that names it.

        Args:
            counted: whether its pixels are measurements all the same, by the user's nodata value.
        """
        if counted:
            return "undeclared-nodata", f"{self.seen}: they count as measured, since --nodata names another value"
        cure = f"pass --nodata {self.text} to say so, or --nodata with another value if they are measurements"
        return "undeclared-nodata", f"{self.seen}: they count as not measured: {cure}"


def find_fill(raw: NDArray[Any], measured: Mask, alone: bool = True) -> tuple[Fill, ...]:
    """Fill values among pixels.

    Each band is looked at by itself. A known value below all others counts wherever it is far from them, a value beyond
    ±1e18 always; one above all others, and one that no producer is known for, only where every band has it at the same
    pixels: else it may be saturation. 0 is never one (see zero borders), nor is any number of 8 bits.

    Args:
        raw: (C, n) numbers.
        measured: (C, n) where each is a measurement by what is declared.
        alone: whether these are all bands there are; others, of other files, agree or do not (`find_fill_of_files`).
    """
    if raw.dtype.itemsize == 1:
        return ()
    single: dict[float, Mask] = {}  # pixels that have a value, by the value
    common: list[list[tuple[float, Mask]]] = []
    for band, good in zip(raw, measured, strict=True):
        common.append([])
        left = good & np.isfinite(band)
        for _ in range(4):  # both ends, and what lies behind a first fill value
            found = _spike(band, left, SHARE_ALONE if len(raw) == 1 and alone else SHARE)
            if found is None:
                break
            value, where, by_itself = found
            left &= ~where
            if by_itself:
                single[value] = single.get(value, False) | where
            else:
                common[-1].append((value, where))
    for value in {value for band in common for value, _ in band}:
        at = [[where for v, where in band if v == value] for band in common]
        if all(at):
            everywhere = np.logical_and.reduce([band[0] for band in at])
            if everywhere.sum() >= TOGETHER * max(band[0].sum() for band in at):
                single[value] = everywhere
    single |= _of_offset(raw, measured, np.logical_or.reduce([*single.values(), np.zeros(raw.shape[1], bool)]))
    return tuple(Fill(value, float(where.mean())) for value, where in sorted(single.items()))


def find_fill_of_files(samples: Sequence[tuple[NDArray[Any], Mask, Hashable]]) -> list[tuple[Fill, ...]]:
    """Fill values among the bands of one scene that lie in several files, for each file.

    Files of one grid are looked at as if their bands lay in one file. A value that may be saturation counts where the
    files of every grid have about as much of it.

    Args:
        samples: of each file (C, n) numbers, where each is a measurement by what is declared, and its grid.
    """
    grids: dict[Hashable, list[int]] = {}
    for i, (raw, _, grid) in enumerate(samples):
        if raw.dtype.itemsize > 1:
            grids.setdefault((grid, raw.dtype), []).append(i)
    alone = sum(len(samples[i][0]) for members in grids.values() for i in members) == 1
    found = {}
    for key, members in grids.items():
        raw, good = (np.concatenate([samples[i][part] for i in members]) for part in (0, 1))
        found[key] = {fill.value: fill for fill in find_fill(raw, good, alone)}
    out: list[tuple[Fill, ...]] = [()] * len(samples)
    for key, members in grids.items():
        for value, fill in found[key].items():
            shares = [other[value].share if value in other else 0.0 for other in found.values()]
            if not 0 < value < HUGE or value in COLD or min(shares) >= TOGETHER * max(shares):
                for i in members:
                    out[i] = (*out[i], fill)
    return out


def _of_offset(raw: NDArray[Any], measured: Mask, fill: Mask) -> dict[float, Mask]:
    """Pixels that have one of OFFSETS in all bands, where that is each band's smallest number, by the value."""
    if len(raw) == 1:
        return {}
    for value in OFFSETS:
        span = fill_span(value, raw.dtype)
        if span is None:
            continue
        everywhere, most = ~fill, 0
        for band, good in zip(raw, measured, strict=True):
            at_most = good & ~fill & (band <= span[1])
            inside = at_most & (band >= span[0])
            if not inside.any() or (at_most & ~inside).any():
                break
            everywhere &= inside
            most = max(most, int(inside.sum()))
        else:
            if everywhere.any() and everywhere.sum() >= TOGETHER * most:
                return {value: everywhere}
    return {}


def zero_border(read: Callable[[int, int, int, int], NDArray[Any]], height: int, width: int) -> bool:
    """Whether a corner is 0 in all bands: one of 16 × 16 pixels, or two of 4 × 4, as a narrow border along a side has.

    Args:
        read: (C, h, w) numbers of a window: its top row, left column, height and width.
        height, width: of the image, in pixels.
    """
    if min(height, width) < 2 * CORNER:
        return False
    narrow = 0
    for top, left in ((0, 0), (0, width - CORNER), (height - CORNER, 0), (height - CORNER, width - CORNER)):
        numbers = read(top, left, CORNER, CORNER)
        if not numbers.any():
            return True
        rows = slice(None, NARROW) if top == 0 else slice(-NARROW, None)
        cols = slice(None, NARROW) if left == 0 else slice(-NARROW, None)
        narrow += not numbers[:, rows, cols].any()
    return narrow > 1


def may_hold(raw: NDArray[Any], declared: Sequence[float] = ()) -> bool:
    """Whether the smallest or the largest number of a band is one that producers write where nothing was measured.

    A quick look, for whoever reads many windows.

    Args:
        raw: (C, …) numbers.
        declared: values that are known to stand for no measurement.
    """
    if raw.dtype.itemsize == 1:
        return False
    flat = raw.reshape(len(raw), -1)
    ends = np.concatenate([np.fmin.reduce(flat, axis=1), np.fmax.reduce(flat, axis=1)])
    edges = {float(edge) for edge in ends if np.isfinite(edge)} - set(declared)
    return any(
        abs(edge) >= HUGE or _known(edge, (*SMALL, *BELOW, *ABOVE, *OFFSETS, *COLD), raw.dtype) is not None
        for edge in edges
    )


def leave_out(raw: NDArray[Any], measured: Mask, each: Mask) -> tuple[Fill, ...]:
    """Count fill values of a window as not measured, and return them. Values that may be saturation are left alone.

    Args:
        raw: (C, h, w) numbers.
        measured: (h, w), changed in place.
        each: (C, h, w) where each number is a measurement by what is declared.
    """
    good = (each & measured).reshape(len(raw), -1)
    seen = find_fill(raw.reshape(len(raw), -1), good)
    # Of some the numbers of the whole file decide, not those of a window: windows would differ from the whole.
    of_file = (*SMALL, *OFFSETS, *COLD)
    found = tuple(f for f in seen if (f.value < 0 and f.value not in of_file) or f.value >= HUGE)
    for one in found:
        span = fill_span(one.value, raw.dtype)
        assert span is not None  # it is a number of the window
        measured &= outside(raw, span).all(axis=0)
    return found


def _spike(band: NDArray[Any], left: Mask, share: float) -> tuple[float, Mask, bool] | None:
    """A fill value at one end of a band: (value, where, whether it needs no other band to agree)."""
    numbers = band[left]
    if not numbers.size:
        return None
    for cold in COLD if band.dtype.kind == "f" else ():
        where = left & ~outside(band, fill_span(cold, band.dtype) or (np.inf, np.inf))
        rest = band[left & ~where]
        if where.sum() >= share * band.size and rest.size and rest.min() >= cold + COLD_GAP:
            return cold, where, True
    for below in (True, False):
        edge = float(str(numbers.min() if below else numbers.max()))  # 1e20 in float32 too
        if edge >= 0 if below else edge <= 0:
            continue
        value = edge if below and edge in SMALL else _known(edge, BELOW if below else ABOVE, band.dtype)
        span = fill_span(edge if value is None else value, band.dtype)
        assert span is not None  # it is a number of the band
        where = left & ~outside(band, span)
        if abs(edge) >= HUGE:
            return edge, where, True
        rest = band[left & ~where].astype(np.float64)
        count = int(where.sum())
        if below and value is not None and (value not in SMALL or count >= SHARE * band.size):
            # A file resampled over its fill value has numbers between; those of a noisy band's tail are more than it.
            times = 0.1 if value in SMALL else 0.25
            if not rest.size or (_far(edge, rest, times, robust=True) and count >= _between(edge, rest)):
                return value, where, True
            if value in SMALL and rest.size and edge < rest.min() and count >= share * band.size:
                return value, where, False
            continue
        if rest.size < 100 or count < share * band.size:
            continue
        # Below 0 a spike is no saturation, so less than above is asked of a value that no producer is known for.
        times = 0.5 if value is not None else 1.0 if below else 2.0
        if _far(edge, rest, times) and np.unique(rest).size >= DISTINCT:
            return edge if value is None else value, where, False
    return None


def _known(edge: float, values: Sequence[float], dtype: np.dtype[Any]) -> float | None:
    """The producer's value that a number is, within rounding."""
    candidates = (*values, *(v * SCALED for v in values)) if dtype.kind == "f" else tuple(values)
    return next((v for v in candidates if abs(edge - v) <= FILL_TOLERANCE * abs(v)), None)


def _between(edge: float, rest: NDArray[np.float64]) -> int:
    """How many numbers lie nearer to the lowest one than to the bulk of the others."""
    return int((rest < (edge + np.percentile(rest, 1)) / 2).sum())


def _far(edge: float, rest: NDArray[np.float64], times: float, robust: bool = False) -> bool:
    """Whether a number lies further from the others than so many times their own range."""
    low, high = np.percentile(rest, (1, 99)) if robust else (rest.min(), rest.max())
    gap = low - edge if edge < low else edge - high
    return bool(gap > 0 and gap >= times * (high - low))


# -- Windows of a file that are looked at on opening.

SAMPLE_SIDE = 384  # files up to this side are looked at whole, larger ones in nine windows of a third of it


def sample_windows(height: int, width: int) -> list[Window]:
    """All of a small file, nine windows spread over a large one.

    Args:
        height, width: of the file, in pixels.
    """
    if max(width, height) <= SAMPLE_SIDE:
        return [Window(0, 0, width, height)]
    rows, cols = min(height, SAMPLE_SIDE // 3), min(width, SAMPLE_SIDE // 3)
    tops = sorted({round(f * (height - rows)) for f in (0.05, 0.5, 0.95)})
    lefts = sorted({round(f * (width - cols)) for f in (0.05, 0.5, 0.95)})
    return [Window(left, top, cols, rows) for top in tops for left in lefts]


def corner_windows(height: int, width: int) -> list[Window]:
    """The corners of a large file, none of a small one, which is looked at whole.

    Args:
        height, width: of the file, in pixels.
    """
    if max(width, height) <= SAMPLE_SIDE:
        return []
    side = min(CORNER, width, height)
    return [Window(left, top, side, side) for top in (0, height - side) for left in (0, width - side)]
