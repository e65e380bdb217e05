"""Class bands that say where not to look: clouds, shadows, saturated pixels."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError, DataError, nearest
from dofa.raster import Raster
from dofa.raster.band_descriptions import Said
from dofa.raster.nodata import sample_windows
from dofa.scene.grid import Grid, Mask, Placement, Window, place
from dofa.scene.metadata import basename


@dataclass(frozen=True)
class Legend:
    """What the numbers of a class band mean.

    Attributes:
        name: for messages.
        band: as products call it, which is also what it is asked for by.
        files: a pattern of file names and band descriptions.
        classes: number of each class, or of its bit.
        bits: whether each bit of a number is a class of its own.
        bad: classes left out unless told otherwise.
        source: where the numbers are written down.
        values: numbers that are left out, whatever else is.
        zero_is_class: 0 is a class, so that a nodata value of 0, which a file has for its bands, says nothing of it.
    """

    name: str
    band: str
    files: re.Pattern[str]
    classes: Mapping[str, int]
    bits: bool
    bad: tuple[str, ...]
    source: str
    values: tuple[int, ...] = ()
    zero_is_class: bool = False


LEGENDS = (
    Legend(
        "SCL",
        "SCL",
        re.compile(r"(.*[_.-])?scl([_.-]\d+m)?([_.-].*)?", re.IGNORECASE),
        {
            "no-data": 0, "saturated": 1, "dark": 2, "shadow": 3, "vegetation": 4, "bare": 5, "water": 6,
            "unclassified": 7, "cloud-medium": 8, "cloud-high": 9, "cirrus": 10, "snow": 11,
        },
        bits=False,
        bad=("no-data", "saturated", "shadow", "cloud-medium", "cloud-high", "cirrus"),
        source="Sentinel-2 Level-2A algorithm overview: scene classification",
    ),
    Legend(
        "QA_PIXEL",
        "QA_PIXEL",
        re.compile(r"(.*[_.-])?qa_?pixel([_.-].*)?", re.IGNORECASE),
        {
            "fill": 0, "dilated-cloud": 1, "cirrus": 2, "cloud": 3, "shadow": 4, "snow": 5, "clear": 6, "water": 7,
        },
        bits=True,
        bad=("fill", "dilated-cloud", "cirrus", "cloud", "shadow"),
        source="Landsat Collection 2 Level 2 data format control book: pixel quality band",
    ),
    Legend(
        "HLS Fmask",
        "Fmask",
        re.compile(r"hls\..*fmask.*", re.IGNORECASE),
        {"cirrus": 0, "cloud": 1, "near-cloud": 2, "adjacent": 2, "shadow": 3, "snow": 4, "water": 5},
        bits=True,
        bad=("cloud", "near-cloud", "shadow"),
        source="HLS user guide v2.0; bit 0 is reserved and was cirrus in v1.4, 6 and 7 are the aerosol level",
        values=(255,),
        zero_is_class=True,
    ),
    Legend(
        "Fmask",
        "Fmask",
        re.compile(r"(.*[_.-])?c?fmask[0-9.]*([_.-].*)?", re.IGNORECASE),
        {"clear": 0, "water": 1, "shadow": 2, "snow": 3, "cloud": 4, "fill": 255},
        bits=False,
        bad=("shadow", "cloud", "fill"),
        source="Zhu and Woodcock 2012; the numbers Fmask 4 writes",
        values=(255,),
        zero_is_class=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class ClassMask:
    """A class band and what of it is left out.

    Attributes:
        href: file, as GDAL opens it.
        number: of the band in it.
        values: numbers that are left out.
        bits: numbers with any of these bits set are left out.
        zero_is_class: 0 is a class although the file's nodata value may be 0.
        plain: no legend says what its numbers mean.
    """

    href: str
    number: int
    values: tuple[int, ...]
    bits: int = 0
    zero_is_class: bool = False
    plain: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For a recipe: `from_dict` gives the same mask back."""
        out = {"href": self.href, "number": self.number, "values": list(self.values), "bits": self.bits}
        return {**out, **{name: True for name in ("zero_is_class", "plain") if getattr(self, name)}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ClassMask":
        """The inverse of `to_dict`."""
        return cls(**{**data, "values": tuple(data["values"])})


def legend_of(name: str, sensors: Iterable[str] = ()) -> Legend | None:
    """The legend of a file or band; None for one we do not know.

    Args:
        name: of the file or band.
        sensors: names of those whose image it belongs to: HLS codes Fmask in another way than the program of that name.
    """
    stem = re.sub(r"\.(tiff?|jp2|img|vrt|nc|png)$", "", basename(name), flags=re.IGNORECASE)
    found = next((legend for legend in LEGENDS if legend.files.fullmatch(stem)), None)
    if found is not None and found.band == "Fmask" and any(sensor.startswith("hls") for sensor in sensors):
        return next(legend for legend in LEGENDS if legend.name == "HLS Fmask")
    return found


def class_mask(
    href: str, number: int, name: str, told: Sequence[int | str] | None, sensors: Iterable[str] = ()
) -> ClassMask:
    """What is left out by a class band.

    Args:
        href: file, as GDAL opens it.
        name: of the file or band, which tells its legend.
        told: numbers of pixels, or names of classes; None for what the legend holds unusable.
        sensors: names of those whose image it belongs to.

    Raises:
        ConfigError: classes that the legend does not have, or no legend and nothing told.
    """
    legend = legend_of(name, sensors)
    if told is None and legend is None:
        known = ", ".join(known.name for known in LEGENDS)
        raise ConfigError(
            f"mask {name}: its classes are not known ({known} are): pass --mask-values with the numbers to leave out"
        )
    values: list[int] = list(legend.values) if legend is not None else []
    bits = 0
    for word in legend.bad if told is None and legend is not None else told or ():
        if isinstance(word, int):
            values.append(word)  # of the pixel as a whole, in bands of bits too
            continue
        if legend is None:
            raise ConfigError(f"mask {name}: its classes have no names that we know: pass --mask-values as numbers")
        if word.lower() == "fill" and legend.values:
            continue
        found = [number for title, number in legend.classes.items() if title == word.lower().replace("_", "-")]
        if word.lower() == "cloud" and not found:
            found = [number for title, number in legend.classes.items() if title.startswith("cloud")]
        if not found:
            raise ConfigError(f"mask {name}: {legend.name} has no class {word!r}: {nearest(word, legend.classes)}")
        if legend.bits:
            bits |= sum(1 << number for number in found)
        else:
            values += found
    zero_is_class = legend is not None and legend.zero_is_class
    return ClassMask(href, number, tuple(sorted(set(values))), bits, zero_is_class, plain=legend is None)


class MaskLayer:
    """An open class band on a scene's grid, nearest; pixels it does not cover are left out too.

    Args:
        raster: its file, open, with that band alone.

    Raises:
        DataError: the file lies elsewhere, or its numbers are no classes.
    """

    def __init__(self, mask: ClassMask, raster: Raster, grid: Grid) -> None:
        self.mask, self.raster = mask, raster
        name = basename(raster.path)
        if raster.dtype.kind not in "iuf":
            raise DataError(f"mask {name}: its numbers are {raster.dtype}, classes are integers: name a class band")
        self._place: Placement = place(grid, raster)
        if not self._place.overlaps(grid):
            raise DataError(f"mask {name} shows other ground than the scene")

    def doubt(self) -> Said | None:
        """A warning where a plain mask's nodata value is 0, which means clear in most.

        Another where a band called Fmask holds numbers that Fmask 4 does not write, as those of HLS are.
        """
        if self.mask.plain:
            return self._zeros_left_out()
        if self.mask.bits or not self.mask.zero_is_class:
            return None
        legend = next(legend for legend in LEGENDS if legend.name == "Fmask")
        strange = sorted(set(np.unique(self.raster.sample()).tolist()) - {*legend.classes.values(), *self.mask.values})
        if not strange:
            return None
        shown = ", ".join(f"{number:g}" for number in strange[:4])
        text = f"its Fmask holds {shown}, which are no classes of Fmask 4: if HLS wrote it, whose numbers are bits"
        return "mask-classes", f"{text}, name its sensor (--sensor hls-s30), else pass --mask-values as numbers"

    def _zeros_left_out(self) -> Said | None:
        """GDAL's word stands, since clouds taken for ground do more harm than ground left out, but not in silence."""
        if 0 in self.mask.values or 0 not in self.raster.validity.nodata:
            return None
        zero = [self.raster.read(w)[0] == 0 for w in sample_windows(self.raster.height, self.raster.width)]
        share = sum(map(np.count_nonzero, zero)) / sum(part.size for part in zero)
        name = basename(self.raster.path)
        text = f"{share:.1%} of the pixels of {name} looked at are 0, its declared nodata value: they are left out"
        cure = f"take that value off the file if 0 means clear (gdal_edit.py -unsetnodata {name})"
        return ("mask-nodata", f"{text}: {cure}, else add 0 to --mask-values") if share else None

    def read(self, window: Window) -> Mask:
        """(h, w) of a window inside the grid: where pixels may be used."""
        rows = self._place.rows.nearest(window.row, window.height)
        cols = self._place.cols.nearest(window.col, window.width)
        rows_in = (rows >= 0) & (rows < self.raster.height)
        cols_in = (cols >= 0) & (cols < self.raster.width)
        usable = np.zeros((window.height, window.width), bool)
        if not rows_in.any() or not cols_in.any():
            return usable
        rows, cols = rows[rows_in], cols[cols_in]
        top, left = int(rows.min()), int(cols.min())
        classes, known = self.raster.read(((top, int(rows.max()) + 1), (left, int(cols.max()) + 1)))
        if self.mask.zero_is_class:
            known = known | (classes[0] == 0)
        if classes.dtype.kind == "f":
            classes = self._whole(classes, known)
        good = known & ~self._left_out(classes[0])
        usable[np.ix_(rows_in, cols_in)] = good[np.ix_(rows - top, cols - left)]
        return usable

    def _whole(self, classes: NDArray[Any], known: Mask) -> NDArray[Any]:
        """Classes that lie in a file of floats, as Earth Engine writes whole images, as integers; −1 where none is."""
        plain = np.where(known, classes, -1)
        if not np.array_equal(plain, np.round(plain)) or np.abs(plain).max(initial=0) > 2**53:
            raise DataError(
                f"mask {basename(self.raster.path)}: its numbers are {classes.dtype} with fractions, classes are whole "
                "numbers: name a class band"
            )
        return plain.astype(np.int64)

    def _left_out(self, classes: NDArray[Any]) -> Mask:
        out = np.isin(classes, self.mask.values)
        if self.mask.bits:
            out |= (classes & classes.dtype.type(self.mask.bits)) != 0
        return out
