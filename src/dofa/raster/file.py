"""One raster file, opened once and read from any thread."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from dofa.addresses import redact
from dofa.errors import ConfigError, DataError, listed
from dofa.pixels import Float, Scaling
from dofa.raster import band_metadata, gdal, nodata, physical_values, planet, subdatasets
from dofa.raster.band_descriptions import FileBand, Said
from dofa.raster.bands import match_bands
from dofa.raster.factors import FileNumbers, UserNumbers
from dofa.raster.gdal import OpenDatasets
from dofa.raster.masks import Header, Mask, Validity
from dofa.raster.nodata import corner_windows, sample_windows
from dofa.sensors import Sensor

SAMPLE_PIXELS = 20_000  # enough for the 0.1 percentile of a band
TRANSPARENT = 0.005  # share of zeros in a band marked alpha that no band of measurements has

PixelWindow: TypeAlias = Window | tuple[tuple[int, int], tuple[int, int]]


class Raster:
    """An open file. Made by `open_raster`; several threads may read it at once, each through a handle of its own.

    A pixel is valid where every band read has a measurement: by its nodata value and its mask as GDAL sees them, the
    file's alpha bands, and, for floating-point numbers, by being finite. A nodata value of 0, and any of an 8-bit
    picture, counts only where all bands have it (`dofa.raster.masks`). A fill value that nobody declared is found on
    opening, named in `warnings`, and counts as nodata (`dofa.raster.nodata`). Bands without one measurement in the
    whole file are left out on opening, and named in `warnings`.

    Attributes:
        path: as given.
        sensor: with only the bands recognised, in the file's order.
        scaling: from raw to physical values of these bands, without statistics.
        crs: coordinate reference system, or None where its pixels have no place on Earth.
        no_place: why not, where the file says something of a place all the same.
        control_points: reference system and ground control points of a file without a grid, or None.
        transform: affine, from (column, row) to coordinates; rotated ones are fine.
        width: pixels.
        height: pixels.
        dtype: of the raw numbers.
        fill_values: numbers that stand for none either, although nobody declares them.
        alpha: numbers of the bands that are alpha masks, None for all that the header marks and that are not read.
        gsd_m: metres a pixel at the centre, None without a place.
        block: rows and columns that the file stores together.
        warnings: what was assumed, left out or looks wrong, each "name: file: what, and the cure".
    """

    sensor: Sensor
    scaling: Scaling

    def __init__(self, path: str | Path, nodata: float | None = None, strict: bool = False) -> None:
        self.path = str(path)
        self.warnings: list[str] = []
        self._name = redact(self.path).rsplit("/", 1)[-1]
        self._strict = strict
        self._handles = OpenDatasets(self.path, self._name)
        self._empty: tuple[str, ...] = ()
        dataset = self._handles.dataset()
        try:
            gdal.check_text(dataset)
            gdal.check_kind(dataset)
            band_metadata.check_axes(dataset)
            self.width, self.height = int(dataset.width), int(dataset.height)
            self.crs, self.no_place = gdal.usable_crs(dataset)
            self.control_points = gdal.control_points(dataset)
            self.transform = dataset.transform
            self.gsd_m = gdal.gsd_m(self)
            self.block: tuple[int, int] = tuple(dataset.block_shapes[0])
            self._header = Header.of(dataset)
            self.dtype = self._header.dtype
            if nodata is not None and not gdal.fits(nodata, self.dtype):
                raise ConfigError(f"nodata {nodata:g} is no {self.dtype} number")
            self._nodata = None if nodata is None else float(nodata)
            self.fill_values: tuple[float, ...] = ()
            self._seen_fill: set[float] = set()  # in single windows
            self.alpha: tuple[int, ...] | None = None
            self._offset = 0.0  # the largest of a reflectance, see `_take`
            self._validity = Validity(self._header, (1,), self._nodata)
        except (ConfigError, DataError) as error:
            self.close()
            raise type(error)(f"{self._name}: {error}") from None

    # -- opening ------------------------------------------------------------------------------------------------------

    def _understand(
        self,
        sensor: Sensor | None,
        bands: Sequence[str | None] | None,
        wavelengths_um: Sequence[float] | None,
        user: UserNumbers,
    ) -> None:
        """Recognise the bands, leave out the empty ones, and settle what the numbers mean."""
        dataset = self._handles.dataset()
        pages = subdatasets.pages(dataset)
        try:
            found = match_bands(
                band_metadata.file_bands(dataset),
                sensor,
                names=bands,
                wavelengths_um=wavelengths_um,
                gsd_m=self.gsd_m or 1.0,
                dtype=self.dtype.name,
                alpha_is_mask=self._alpha_is_mask,
            )
        except DataError as error:
            raise DataError(f"{error}; {subdatasets.described(pages)}") if pages else error from None
        if pages:
            self._assume(("pages-left-out", subdatasets.described(pages)))
        for said in found.notes:
            self._note(said)
        if bands is None:
            for said in band_metadata.unread(dataset):
                self._assume(said)
        for said in found.assumptions:
            self._assume(said)
        self._take(found.sensor, found.numbers)
        self._check_alpha()
        windows = sample_windows(self.height, self.width)
        raw = [self._decode(self._numbers, window) for window in windows]
        if self.dtype.itemsize > 1:
            for doubt in self.take_fill(nodata.find_fill(*self._fill_sample(raw, windows))):
                (self._assume if self._nodata is None else self._note)(doubt)
        raw = self._leave_out_empty(raw)
        valid = [self._valid(r, w) for r, w in zip(raw, windows, strict=True)]
        sample = np.concatenate([r[:, v] for r, v in zip(raw, valid, strict=True)], axis=1)
        self._settle(user, sample[:, :: max(1, sample.shape[1] // SAMPLE_PIXELS)])

    def tell(self, sensor: Sensor, scaling: Scaling, numbers: Sequence[int]) -> None:
        """Read these bands, by the caller's word; see `open_known`."""
        self.scaling = scaling
        self._offset = max(scaling.offset) if scaling.unit == "reflectance" else 0.0
        self._take(sensor, numbers)

    def _take(self, sensor: Sensor, numbers: Sequence[int]) -> None:
        dataset = self._handles.dataset()
        if max(numbers) > dataset.count:
            raise DataError(f"{self._name}: it has {dataset.count} bands, number {max(numbers)} is asked for")
        types = {dataset.dtypes[n - 1] for n in numbers}
        if len(types) > 1:
            raise DataError(
                f"{self._name}: its bands are of several types ({', '.join(sorted(types))}): convert them to one "
                "(gdal_translate -ot), or leave those of other types out with --bands, - each"
            )
        self.dtype = np.dtype(types.pop())
        self._header = replace(self._header, dtype=self.dtype)
        self.sensor, self._numbers = sensor, list(numbers)
        # A product whose offset makes 0 a reflectance far below 0 has no such measurement: Sentinel-2 from processing
        # baseline 04.00 and Landsat's Collection 2 write 0 where a band has none.
        integers = self.dtype.kind in "iu" and self.dtype.itemsize > 1
        zero_alone = integers and self._nodata in (None, 0) and self._offset < physical_values.NEGATIVE
        self._validity = Validity(self._header, numbers, self._nodata, self.fill_values, self.alpha, zero_alone)

    def set_nodata(self, nodata: float) -> None:
        """Replace the nodata value of every band."""
        self._nodata = float(nodata)
        self._take(self.sensor, self._numbers)

    def fill_sample(self) -> tuple[NDArray[Any], Mask]:
        """(C, n) raw numbers of a few windows and of the corners, and where each is a measurement by itself."""
        windows = sample_windows(self.height, self.width)
        return self._fill_sample([self._decode(self._numbers, window) for window in windows], windows)

    def take_fill(self, found: Sequence[nodata.Fill]) -> list[Said]:
        """Count fill values that nobody declared as nodata from now on; where the user told one, they are only named.

        Args:
            found: in this file, or in the files whose bands belong to its own.

        Returns:
            A warning for each.
        """
        if found and self._nodata is None:
            self.fill_values = tuple(one.value for one in found)
            self._take(self.sensor, self._numbers)
        return [one.doubt(counted=self._nodata is not None) for one in found]

    def leave_out_zero_border(self) -> bool:
        """Count pixels that are 0 in all bands as not measured if a corner is, and say whether it is.

        Not where 0 or a mask says it already, nor where the user told a nodata value. In 8-bit pictures black is dark.
        """
        if self._nodata is not None or 0 in self._validity.values or self.masked or self.dtype.itemsize == 1:
            return False

        def corner(top: int, left: int, height: int, width: int) -> NDArray[Any]:
            return self._decode(self._numbers, Window(left, top, width, height))

        found = nodata.zero_border(corner, self.height, self.width)
        if found:
            self.fill_values = (*self.fill_values, 0.0)
            self._take(self.sensor, self._numbers)
        return found

    def _fill_sample(self, raw: Sequence[NDArray[Any]], windows: Sequence[Window]) -> tuple[NDArray[Any], Mask]:
        raw, windows, count = list(raw), list(windows), len(self._numbers)
        windows += corner_windows(self.height, self.width)  # thin borders lie between the others and the edge
        raw += [self._decode(self._numbers, window) for window in windows[len(raw) :]]
        good = [self._validity.each(r) & self._masked(w, self._numbers) for r, w in zip(raw, windows, strict=True)]
        return (
            np.concatenate([r.reshape(count, -1) for r in raw], axis=1),
            np.concatenate([g.reshape(count, -1) for g in good], axis=1),
        )

    def _leave_out_empty(self, sample: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Drop the bands that hold no measurement anywhere, which would leave no pixel valid; (C, h, w) likewise."""
        if self.dtype == np.uint8 or (not self._validity.values and self.dtype.kind != "f"):
            return sample
        seen = [self._validity.each(raw).any(axis=(1, 2)) for raw in sample]
        empty = [n for n, found in zip(self._numbers, np.logical_or.reduce(seen), strict=True) if not found]
        whole = sum(raw[0].size for raw in sample) == self.width * self.height
        unseen = () if whole else list(self._handles.dataset().block_windows(1))
        for _, window in unseen:
            if not empty:
                break
            rows = self._validity.each(self._decode(empty, window), empty)
            empty = [n for n, row in zip(empty, rows, strict=True) if not row.any()]
        kept = [i for i, n in enumerate(self._numbers) if n not in empty]
        if not empty or not kept:
            return sample
        names = self.sensor.band_names
        self._empty = tuple(names[i] for i in range(len(names)) if i not in kept)
        self._note(("bands-left-out", f"bands without any measurement are left out: {listed(self._empty)}"))
        self._take(self.sensor.select([names[i] for i in kept]), [self._numbers[i] for i in kept])
        return [raw[kept] for raw in sample]

    def _settle(self, user: UserNumbers, sample: NDArray[Any]) -> None:
        """Decide the physical scaling: the user's word ends the matter, any other is checked against (C, n) pixels."""
        numbers = gdal.file_numbers(self._handles.dataset(), self._numbers)
        by_name = planet.resolve_analytic(self.path, self.sensor, numbers, self._numbers)
        if by_name is not None and not user.said:
            settled = by_name
        else:
            settled = physical_values.resolve_scaling(self.sensor, numbers, self.dtype.name, user, self._name)
        settled = physical_values.infer_scaling(settled, self.sensor, numbers, sample)
        self.tell(self.sensor, settled.scaling, self._numbers)
        for said in settled.notes:
            self._note(said)
        for doubt in settled.doubts(numbers, sample, self.sensor.name):
            self._assume(doubt)

    def _note(self, said: Said) -> None:
        self.warnings.append(f"{said[0]}: {self._name}: {said[1]}")

    def _assume(self, said: Said) -> None:
        if self._strict:
            raise DataError(f"{said[1]} ({said[0]} is an error under strict)")
        self._note(said)

    def _alpha_is_mask(self) -> bool:
        return self._is_mask(self._header.alpha[0])

    def _check_alpha(self) -> None:
        """Bands that are marked alpha and hold something else (NAIP's infrared) mask nothing."""
        named = self._header.called_alpha
        masks = tuple(n for n in self._validity.alpha if n in named or self._is_mask(n))
        if masks != self._validity.alpha:
            for number in set(self._validity.alpha) - set(masks):
                share = float(np.mean(self._sample([number]) == 0))
                if share >= TRANSPARENT:
                    text = (
                        f"band {number} is marked alpha and is 0 in {share:.1%} of the pixels looked at, but has other "
                        "numbers in most: it masks nothing; describe it as alpha if 0 there means no measurement"
                    )
                    self._assume(("alpha-doubtful", text))
            self.alpha = masks
            self._take(self.sensor, self._numbers)

    def _is_mask(self, number: int) -> bool:
        """Whether at least half of a band's pixels are 0 or its largest number, as in an alpha band.

        Edges of pictures are partly transparent; an infrared band has all numbers between.
        """
        values = self._sample([number])[0]
        opaque = values.max()
        return bool(np.mean((values == 0) | (values == opaque)) >= 0.5)

    def _sample(self, numbers: list[int]) -> NDArray[Any]:
        """(C, n) raw numbers of the sample windows."""
        raw = [self._decode(numbers, w).reshape(len(numbers), -1) for w in sample_windows(self.height, self.width)]
        return np.concatenate(raw, axis=1)

    def sample(self) -> NDArray[Any]:
        """(n,) valid raw numbers of all bands read, from a few windows."""
        return np.concatenate(
            [raw[:, valid].ravel() for raw, valid in map(self.read, sample_windows(self.height, self.width))]
        )

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(
        self, window: PixelWindow | None = None, bands: Sequence[str] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Raw numbers and where they are measurements.

        Args:
            window: a rasterio Window or ((row, row), (column, column)) in whole pixels, inside the file; None for all.
            bands: names or aliases in the order wanted; None for all, in the file's order.

        Returns:
            (C, h, w) in the file's type, and (h, w) bool, False where any band read lacks a measurement.

        Raises:
            DataError: a window outside the file, a band it does not hold, or pixels that cannot be decoded.
        """
        raw, measured, drawn = self.read_apart(window, bands)
        return raw, measured if drawn is None else measured & drawn

    def read_apart(
        self, window: PixelWindow | None = None, bands: Sequence[str] | None = None
    ) -> tuple[NDArray[Any], Mask, Mask | None]:
        """Like `read`, with validity in two parts, for bands that lie in several files.

        Args:
            window: pixels, None for all.
            bands: names, None for all.

        Returns:
            (C, h, w) numbers; (h, w), False where any band lacks a measurement by itself; and (h, w), False where all
            bands have a nodata value that means something only in all of them, None where no band has such a value.
        """
        window = self._window(window)
        numbers = [self._numbers[i] for i in self._positions(bands)]
        raw = self._decode(numbers, window)
        measured = self._validity.measured(raw, numbers)
        if self._validity.masked:
            measured &= self._masked(window, numbers)
        if self._nodata is None and nodata.may_hold(raw, self._validity.values):
            self._leave_out_fill(raw, measured, numbers)
        drawn = self._validity.drawn(raw, numbers)
        others = [n for n in self._validity.by_all_bands if n not in numbers]
        if drawn is not None and others and not drawn.all():
            more = self._validity.drawn(self._decode(others, window), others)
            drawn = drawn if more is None else drawn | more
        return raw, measured, drawn

    def _leave_out_fill(self, raw: NDArray[Any], measured: Mask, numbers: Sequence[int]) -> None:
        """Fill values where nobody looked on opening: in the midst of a large file."""
        for found in nodata.leave_out(raw, measured, self._validity.each(raw, numbers)):
            if found.value not in self._seen_fill:
                self._seen_fill.add(found.value)
                text = f"undeclared-nodata: {self._name}: some of its pixels are {found.text}"
                warnings.warn(f"{text}: they count as not measured: pass --nodata {found.text} to say so", stacklevel=2)

    def read_physical(
        self, window: PixelWindow | None = None, bands: Sequence[str] | None = None
    ) -> tuple[Float, NDArray[np.bool_]]:
        """Like `read`, in physical values of `scaling.unit`: (C, h, w) float32, NaN where not valid.

        Args:
            window: pixels, None for all.
            bands: names, None for all.
        """
        raw, valid = self.read(window, bands)
        names = [self.sensor.band_names[i] for i in self._positions(bands)]
        physical = self.scaling.select(names).physical(raw)
        physical[:, ~valid] = np.nan  # whoever forgets the mask shall notice
        return physical, valid

    def _positions(self, bands: Sequence[str] | None) -> list[int]:
        if bands is None:
            return list(range(len(self._numbers)))
        empty = [b for b in bands if b in self._empty]
        if empty:
            raise DataError(f"{self._name}: band {', '.join(empty)} holds no measurement in this file")
        return self.sensor.index(bands)

    def _window(self, window: PixelWindow | None) -> Window:
        if window is None:
            return Window(0, 0, self.width, self.height)
        if isinstance(window, tuple):
            (top, bottom), (left, right) = window
            window = Window(left, top, right - left, bottom - top)
        left, top, width, height = (getattr(window, k) for k in ("col_off", "row_off", "width", "height"))
        whole = all(float(v).is_integer() for v in (left, top, width, height))
        inside = left >= 0 and top >= 0 and left + width <= self.width and top + height <= self.height
        if not (whole and inside and width > 0 and height > 0):
            raise DataError(
                f"{self._name}: window rows {top:g}–{top + height:g}, columns {left:g}–{left + width:g} does not lie "
                f"in its {self.height} × {self.width} pixels"
            )
        return window

    def _decode(self, numbers: list[int], window: Window) -> NDArray[Any]:
        return self._handles.read(lambda dataset: dataset.read(numbers, window=window), "pixels")

    def _masked(self, window: Window, numbers: Sequence[int]) -> Mask:
        """(h, w): where no mask of these bands and no alpha band leaves a pixel out."""
        good = np.ones((int(window.height), int(window.width)), bool)
        if masks := self._validity.masks(numbers):
            read = self._handles.read(lambda dataset: dataset.read_masks(masks, window=window), "mask")
            good &= (read != 0).all(axis=0)
        for number in self._validity.alpha:
            good &= self._decode([number], window)[0] > 0
        return good

    def _valid(self, raw: NDArray[Any], window: Window) -> Mask:
        """(h, w) of all bands' numbers."""
        return self._validity.by_value(raw) & self._masked(window, self._numbers)

    # -- what the file says -------------------------------------------------------------------------------------------

    @property
    def numbers(self) -> tuple[int, ...]:
        """GDAL's number of each band read."""
        return tuple(self._numbers)

    @property
    def nodata(self) -> float | None:
        """The number that stands for no measurement in the first band read; None without one."""
        return self._validity.nodata[0]

    @property
    def validity(self) -> Validity:
        """What of its numbers are measurements."""
        return self._validity

    @property
    def masked(self) -> bool:
        """Whether a mask or an alpha band says where there is no measurement."""
        return self._validity.masked

    @property
    def files(self) -> list[str]:
        """The files it consists of, as far as GDAL knows: itself, what a VRT is made of, masks beside it."""
        return [str(f) for f in self._handles.dataset().files] or [self.path]

    @property
    def tags(self) -> dict[str, str]:
        """Of the file, their names in upper case: its own, and those of GDAL's IMAGERY domain."""
        dataset = self._handles.dataset()
        return {key.upper(): value for key, value in {**dataset.tags(), **dataset.tags(ns="IMAGERY")}.items()}

    def file_bands(self) -> list[FileBand]:
        """What the file says of all its bands."""
        return band_metadata.file_bands(self._handles.dataset())

    def file_numbers(self, numbers: Sequence[int]) -> FileNumbers:
        """What the file says of the numbers in these bands."""
        return gdal.file_numbers(self._handles.dataset(), numbers)

    # -- place --------------------------------------------------------------------------------------------------------

    @property
    def bounds_lonlat(self) -> tuple[float, float, float, float] | None:
        """(west, south, east, north) in degrees, west > east across the date line; None without a place."""
        return gdal.bounds_lonlat(self.crs, self.transform, self.width, self.height)

    @property
    def centre_lonlat(self) -> tuple[float, float] | None:
        """(longitude, latitude) of the centre in degrees; None without a place."""
        return gdal.point_lonlat(self.crs, gdal.at(self.transform, self.width / 2, self.height / 2))

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        self._handles.close()

    def __enter__(self) -> "Raster":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
