"""A scene: bands of one place, from one file or many, on one grid.

with open_scene("S2B_MSIL2A_….SAFE", mask="SCL") as scene:
    (raw,), valid = scene.read(Window(0, 0, 512, 512))
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.addresses import redact_values
from dofa.errors import ConfigError, DataError
from dofa.pixels import Float, Scaling
from dofa.raster import Raster, gdal, open_known, remote
from dofa.raster.band_descriptions import Said
from dofa.scene.band_files import absolute
from dofa.scene.first_look import check_measured, has_zero_border, sample
from dofa.scene.grid import Grid, Mask, Window, finest
from dofa.scene.layers import Part, Stack, file_identity, open_files
from dofa.scene.masks import ClassMask, MaskLayer, class_mask, legend_of
from dofa.scene.metadata import basename
from dofa.scene.sources import Opened, UserMetadata, grouped, open_group, share
from dofa.sensors import Band, Sensor

VERSION = 1  # of the recipe


class Scene:
    """Bands of one place on one grid. Made by `open_scene`, or from files of which everything is known.

    Several threads may read it at once, and it can be sent to other processes, which open its files again.

    Args:
        parts: what each sensor has, with its files.
        gsd_m: metres a pixel to resample to; None for the finest of the files.
        mask: a class band whose classes are left out.
        warnings: what was assumed, left out or looks wrong.
        rasters: the files of each part, where they are open already.
        window: the part of the grid that is the scene; None for all of it.

    Attributes:
        name: as given.
        parts: one a sensor, their bands in order.
        warnings: as given, each "name: file: what, and the cure".
        grid: of all bands.
        stacks: the open files of each part, on the grid of the scene that this one was cropped from.

    Raises:
        DataError: a file cannot be read, lies elsewhere or in another reference system; the file is named.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[Part],
        *,
        gsd_m: float | None = None,
        mask: ClassMask | None = None,
        warnings: Sequence[str] = (),
        rasters: Sequence[Sequence[Raster]] | None = None,
        window: Window | None = None,
    ) -> None:
        self.name, self.parts, self.warnings = name, tuple(parts), list(warnings)
        self._gsd_m, self._mask, self._window = gsd_m, mask, window
        self._rasters: list[Raster] = [r for group in rasters or () for r in group]
        try:
            groups = [list(g) for g in rasters] if rasters is not None else []
            for part in self.parts[len(groups) :]:
                groups.append(open_files(part))
                self._rasters += groups[-1]
            self._first: Raster = finest(self._rasters)
            _one_system(self._rasters, self._first)
            native = Grid(self._first.crs, self._first.transform, self._first.width, self._first.height)
            self._whole = native if gsd_m is None else native.at_gsd(gsd_m)
            self.grid = self._whole if window is None else self._whole.part(window)
            self.stacks = [Stack(p, group, self._whole) for p, group in zip(self.parts, groups, strict=True)]
            self._classes = None if mask is None else self._open_mask(mask)
        except DataError as error:
            self.close()
            raise DataError(str(error) if name in str(error) else f"{name}: {error}") from None

    def _open_mask(self, mask: ClassMask) -> MaskLayer:
        scaling = Scaling.uniform("dn", ("class",))
        raster = open_known(mask.href, Sensor("mask", (Band("class", 1.0),), 1.0), scaling, (mask.number,))
        self._rasters.append(raster)
        _one_system([raster], self._first)
        return MaskLayer(mask, raster, self._whole)

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def sensor(self) -> Sensor:
        """Of the only part.

        Raises:
            ConfigError: it stacks several.
        """
        if len(self.parts) > 1:
            raise ConfigError(
                f"{self.name} stacks {', '.join(p.sensor.name for p in self.parts)}: ask one of its parts"
            )
        return self.parts[0].sensor

    @property
    def bands(self) -> tuple[Band, ...]:
        """Of all parts in order."""
        return tuple(band for part in self.parts for band in part.sensor.bands)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Of all parts in order, with the sensor before those that two parts have."""
        names = [(part.sensor.name, band.name) for part in self.parts for band in part.sensor.bands]
        plain = [band for _, band in names]
        return tuple(f"{sensor}:{band}" if plain.count(band) > 1 else band for sensor, band in names)

    @property
    def masked(self) -> bool:
        """Whether a class band leaves pixels out."""
        return self._mask is not None

    def mask_doubt(self) -> Said | None:
        """What looks wrong with the class band; None where nothing does, and without one."""
        return None if self._classes is None else self._classes.doubt()

    @property
    def crs(self) -> Any:
        """Coordinate reference system, or None."""
        return self.grid.crs

    @property
    def transform(self) -> Any:
        """Affine, from (column, row) to coordinates."""
        return self.grid.transform

    @property
    def width(self) -> int:
        """Columns."""
        return self.grid.width

    @property
    def height(self) -> int:
        """Rows."""
        return self.grid.height

    @property
    def gsd_m(self) -> float | None:
        """Metres a pixel, None without a place."""
        return self.grid.gsd_m

    @property
    def control_points(self) -> gdal.ControlPoints | None:
        """Ground control points in the scene's pixels, where they are all that is known of its place."""
        found = self._first.control_points
        if found is None:
            return None
        crs, points = found
        top, left = (0, 0) if self._window is None else (self._window.row, self._window.col)
        return crs, tuple((row - top, col - left, *place) for row, col, *place in points)

    @property
    def finest(self) -> Raster:
        """The file with the smallest pixels, whose grid the scene has."""
        return self._first

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that are best read together: those that the finest file stores together."""
        rows, cols = self._first.block
        down, right = self._first.height / self._whole.height, self._first.width / self._whole.width
        return max(1, round(rows / down)), max(1, round(cols / right))

    @property
    def pixel_bytes(self) -> int:
        """Bytes of all bands at one pixel."""
        return sum(len(s.part.sensor.bands) * s.dtype.itemsize for s in self.stacks)

    # -- opening it again ---------------------------------------------------------------------------------------------

    @property
    def recipe(self) -> dict[str, Any]:
        """Plain JSON from which `open_recipe` opens the same scene, without looking at its pixels again."""
        return {
            "version": VERSION,
            "name": self.name,
            "parts": [part.to_dict() for part in self.parts],
            "gsd_m": self._gsd_m,
            "mask": None if self._mask is None else self._mask.to_dict(),
            "warnings": list(self.warnings),
            "window": None if self._window is None else list(astuple(self._window)),
        }

    def crop(self, window: Window) -> "Scene":
        """A window of it as a scene of its own, which opens the files again.

        Raises:
            DataError: the window reaches over the border.
        """
        inside = 0 <= window.row <= self.height - window.height and 0 <= window.col <= self.width - window.width
        if not inside or min(window.height, window.width) < 1:
            raise DataError(f"{self.name}: {window} does not lie in its {self.height} × {self.width} pixels")
        outer = self._window or Window(0, 0, self.height, self.width)
        part = Window(outer.row + window.row, outer.col + window.col, window.height, window.width)
        return open_recipe({**self.recipe, "window": list(astuple(part))})

    @cached_property
    def fingerprint(self) -> str:
        """Of the files (paths, sizes, times of change) and of how they are read: another one is another scene."""
        settled = {key: value for key, value in self.recipe.items() if key != "warnings"}
        files = [file_identity(raster) for raster in self._rasters]
        text = json.dumps(redact_values([settled, files]), sort_keys=True)  # a new signature is no new scene
        return hashlib.sha256(text.encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_recipe, (self.recipe,)

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, window: Window) -> tuple[list[NDArray[Any]], Mask]:
        """Raw numbers and where they are measurements.

        Args:
            window: of pixels; it may reach over the border.

        Returns:
            (C, h, w) for each part in its files' type, and (h, w) bool; outside the scene 0 and False.

        Raises:
            DataError: pixels that cannot be decoded.
        """
        top, left = max(window.row, 0), max(window.col, 0)
        bottom, right = min(window.row + window.height, self.height), min(window.col + window.width, self.width)
        if (top, left, bottom - top, right - left) == (window.row, window.col, window.height, window.width):
            return self._inside(window)
        shape = window.height, window.width
        parts: list[NDArray[Any]] = [np.zeros((len(s.part.sensor.bands), *shape), s.dtype) for s in self.stacks]
        valid = np.zeros(shape, bool)
        if top < bottom and left < right:
            found, good = self._inside(Window(top, left, bottom - top, right - left))
            into = np.s_[top - window.row : bottom - window.row, left - window.col : right - window.col]
            for part, theirs in zip(parts, found, strict=True):
                part[:, *into] = theirs
            valid[into] = good
        return parts, valid

    def read_physical(self, window: Window) -> tuple[Float, Mask]:
        """Like `read`, in physical values of each part's unit: (C, h, w) float32, NaN where not valid."""
        parts, valid = self.read(window)
        pairs = zip(self.parts, parts, strict=True)
        physical: Float = np.concatenate([part.scaling.physical(raw) for part, raw in pairs])
        physical[:, ~valid] = np.nan  # whoever forgets the mask shall notice
        return physical, valid

    def _inside(self, window: Window) -> tuple[list[NDArray[Any]], Mask]:
        if self._window is not None:
            window = replace(window, row=window.row + self._window.row, col=window.col + self._window.col)
        parts = []
        valid: Mask | None = None
        for stack in self.stacks:
            raw, good = stack.read(window)
            parts.append(raw)
            valid = good if valid is None else valid & good
        assert valid is not None  # a scene has a part
        return parts, valid if self._classes is None else valid & self._classes.read(window)

    def close(self) -> None:
        """Close every file; reading afterwards is an error."""
        for raster in self._rasters:
            raster.close()

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_recipe(recipe: dict[str, Any]) -> Scene:
    """Open a scene again from its `recipe`.

    Raises:
        DataError: a file is gone, or the recipe is of a newer version.
    """
    if recipe.get("version") != VERSION:
        raise DataError(f"a scene's recipe of version {recipe.get('version')}: this dofa knows {VERSION}; update it")
    mask = recipe["mask"]
    return Scene(
        recipe["name"],
        [Part.from_dict(part) for part in recipe["parts"]],
        gsd_m=recipe["gsd_m"],
        mask=None if mask is None else ClassMask.from_dict(mask),
        warnings=recipe["warnings"],
        window=None if recipe["window"] is None else Window(*recipe["window"]),
    )


def open_scene(
    sources: str | Path | Sequence[str | Path],
    sensor: Sensor | str | Sequence[Sensor | str] | None = None,
    *,
    bands: Sequence[str | None] | None = None,
    wavelengths_um: Sequence[float] | None = None,
    scaling: Scaling | None = None,
    dn_offset: float | None = None,
    dn_scale: float | None = None,
    unit: str | None = None,
    nodata: float | None = None,
    strict: bool = False,
    gsd_m: float | None = None,
    mask: str | Path | None = None,
    mask_values: Sequence[int | str] | None = None,
) -> Scene:
    """Open what shows one place as one scene.

    Args:
        sources: a file or anything else GDAL opens; a Sentinel-2 SAFE folder or zip; a STAC item; a folder or a list
            of band files, which are told apart by descriptions, wavelength tags or their names. `NAME=FILE` says which
            sensor a file is of.
        sensor: what took it, by name or as a Sensor; a list of one a source stacks several sensors of one place. None
            to find it from descriptions, wavelengths or the names of products.
        bands: names in the files' order, None for a band to leave out; they override what the files say. Of a product,
            which names its bands itself, those to take.
        wavelengths_um: micrometres in the files' order.
        scaling: what the numbers mean; overrides tags and product.
        dn_offset: added to the numbers before the factor, in place of the file's offset: −1000 for Sentinel-2 of
            baseline ≥ 04.00, 0 to say that there is none.
        dn_scale: factor from the numbers to their unit, in place of the files' and the product's.
        unit: what the numbers are, as a unit tag would say it, in place of the files': reflectance, percent, db, dn, …
        nodata: the number that stands for no measurement; overrides the file's.
        strict: whatever would be assumed, or looks wrong, is an error instead of a warning.
        gsd_m: metres a pixel to resample to; None for the finest of the files.
        mask: a class band of the scene by name, such as SCL, or a file with classes to leave out.
        mask_values: classes of it to leave out, as numbers or by name; None for what SCL, Fmask or QA_PIXEL hold
            unusable.

    Raises:
        DataError: files that cannot be read, contradict what is told, say too little, lie in different reference
            systems or do not overlap, or hold no measurement; one line with the file and the cure.
        ConfigError: an unknown sensor, band or class, or settings that do not go together.
    """
    if mask is None and mask_values is not None:
        raise ConfigError("--mask-values says which classes to leave out, but no --mask is named")
    listed = [sources] if isinstance(sources, str | Path) else list(sources)
    if not listed:
        raise ConfigError("a scene needs at least one source")
    groups = grouped(listed, sensor)
    say = UserMetadata(bands, wavelengths_um, scaling, dn_offset, dn_scale, unit, nodata, strict)
    name = _name([source for group in groups for source in group.sources])
    opened: list[Opened] = []
    try:
        for group, words in zip(groups, share(groups, say), strict=True):
            opened.append(open_group(group, words))
        _refuse_twice(name, opened)
        if len(opened) == 1 and opened[0].name is not None:
            name = opened[0].name
        return _assembled(name, opened, say, gsd_m, mask, mask_values)
    except (ConfigError, DataError):
        for one in opened:
            for raster in one.rasters:
                raster.close()
        raise


def _assembled(
    name: str,
    opened: Sequence[Opened],
    say: UserMetadata,
    gsd_m: float | None,
    mask: str | Path | None,
    mask_values: Sequence[int | str] | None,
) -> Scene:
    """The scene of open files, looked at once."""
    parts, rasters = [one.part for one in opened], [one.rasters for one in opened]
    warnings = [warning for one in opened for warning in one.warnings]
    scene = Scene(name, parts, gsd_m=gsd_m, rasters=rasters)
    for i, stack in enumerate(scene.stacks):
        if say.nodata is not None or not has_zero_border(stack, scene.height, scene.width):
            continue
        parts[i] = replace(parts[i], zero_border=True)
        files = basename(rasters[i][0].path)
        warnings.append(f"zero-border: {files}: a corner is 0 in every band: such pixels count as not measured")
    warnings += [f"{title}: {name}: {text}" for title, text in _place_notes(scene)]
    found = None if mask is None else _find_mask(str(mask), mask_values, opened)
    scene = Scene(name, parts, gsd_m=gsd_m, mask=found, warnings=warnings, rasters=rasters)
    doubt = scene.mask_doubt()
    if doubt is not None:
        if say.strict:
            raise DataError(f"{name}: {doubt[1]} ({doubt[0]} is an error under strict)")
        scene.warnings.append(f"{doubt[0]}: {name}: {doubt[1]}")
    check_measured(scene)
    for number, one in enumerate(opened):
        if one.settled is None or one.said is None:
            continue
        seen = np.concatenate([raw[number][:, valid] for raw, valid in sample(scene)], axis=1)
        for title, text in one.settled.doubts(one.said, seen, one.part.sensor.name):
            if say.strict:
                raise DataError(f"{name}: {text} ({title} is an error under strict)")
            scene.warnings.append(f"{title}: {name}: {text}")
    return scene


def _place_notes(scene: Scene) -> Iterator[Said]:
    """Why a scene has no place, and pixels that are not square on the ground."""
    finest_file = scene.finest
    if finest_file.no_place is not None:
        yield finest_file.no_place
    size = scene.grid.pixel_size_m
    if size is not None and not scene.grid.square:
        yield (
            "pixels-not-square",
            f"its pixels measure {size[0]:.4g} m across and {size[1]:.4g} m down on the ground at its centre: "
            f"--gsd {max(size):.4g} makes them square",
        )


def _find_mask(mask: str, told: Sequence[int | str] | None, opened: Sequence[Opened]) -> ClassMask:
    """A class band among those of the scene, or a file."""
    classes = {name: where for one in opened for name, where in one.classes.items()}
    sensors = [one.part.sensor.name for one in opened]
    for name, (href, number) in classes.items():
        if name.lower() == mask.lower():
            # A file named HLS.S30.…Fmask says more than the band's name.
            full = basename(href) if legend_of(basename(href)) else name
            return class_mask(href, number, full, told, sensors)
    if Path(mask).exists() or "/" in mask or remote.suffix(mask):
        return class_mask(absolute(mask), 1, mask, told, sensors)
    has = f"the scene has {', '.join(classes)}" if classes else "the scene has no class band"
    raise ConfigError(f"mask {mask!r} is no file, and {has}: name one of them, or a file of the same place")


def _name(sources: Sequence[str]) -> str:
    """What files are called together: their own name, or what their names begin with."""
    names = [basename(source) for source in sources]
    same = os.path.commonprefix(names)  # noqa: RUF071 - of names, letter by letter
    whole = None if same in names else re.match(r".*[_\-. ]", same)  # up to the last whole word
    common = whole[0].rstrip("_-. ") if whole else ""
    return common if len(common) >= 4 else names[0]


def _refuse_twice(name: str, opened: Sequence[Opened]) -> None:
    names = [one.part.sensor.name for one in opened]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise ConfigError(f"{name}: two sources are {twice}: a scene shows a place once; open them one by one")


def _one_system(rasters: Sequence[Raster], first: Raster) -> None:
    for raster in rasters:
        if raster.crs != first.crs:
            name, other = (basename(r.path) for r in (raster, first))
            raise DataError(
                f"{name} lies in {_system(raster.crs)}, {other} in {_system(first.crs)}: bring all files to one "
                "reference system first (gdalwarp -t_srs)"
            )


def _system(crs: Any) -> str:
    return "no reference system" if crs is None else str(crs.to_string())[:60]
