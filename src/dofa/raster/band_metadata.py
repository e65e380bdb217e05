"""What files say of each band beyond its numbers: names, wavelengths, and which bands are bad.

Names come from descriptions, from the band axis of netCDF and Zarr, or from a list in the file's tags; bad bands from
ENVI's `bbl` and its relatives, in the header, in tags, or as a variable on the band axis.
"""

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from dofa.documents import read_json
from dofa.errors import DataError
from dofa.raster import remote
from dofa.raster.band_descriptions import FileBand, Said
from dofa.raster.band_names import A_WAVELENGTH, LONGEST

WAVELENGTH = r"(?:cent(?:ral|er|re)_)?wavelengths?|wl|lambda"
WAVELENGTH_UNIT = re.compile(r"\s*(nm|nanom\w*|[uµμ]m|microm\w*|microns?)\s*", re.IGNORECASE)
# Micrometres in a unit of length, and the wavelength of 1 in a unit that counts waves.
IN_UM = {
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e6),
    **dict.fromkeys(("cm", "centimeters", "centimetres"), 1e4),
    **dict.fromkeys(("mm", "millimeters", "millimetres"), 1e3),
    **dict.fromkeys(("angstrom", "angstroms", "å"), 1e-4),
}
INVERSE_UM = {
    **dict.fromkeys(("cm-1", "1/cm", "cm^-1", "wavenumber"), 1e4),
    "ghz": 299_792.458,
    "mhz": 299_792_458.0,
}
# How GDAL's Zarr and netCDF drivers name a band's value on an axis.
ON_AXIS = re.compile(r"dim_(.+)_(?:value|index)|netcdf_dim_(.+)")
NAME_LISTS = ("band_names", "bandnames", "band_name", "bands", "band_descriptions", "descriptions", "long_name")
# Lists or tags of one value a band; True where 1 says that the band is good, as in ENVI's bad-band list.
USABLE = {
    **dict.fromkeys(("bbl", "bad_band_list", "bad_bands_list", "good", "good_band", "good_bands"), True),
    **dict.fromkeys(("good_wavelength", "good_wavelengths", "goodbands", "is_good", "valid_bands", "usable"), True),
    **dict.fromkeys(("bad", "bad_band", "bad_bands", "badband", "badbands", "is_bad", "bad_wavelengths"), False),
}
GOOD_WORDS = {"good": True, "ok": True, "bad": False}
TRUTH = {"true": True, "yes": True, "false": False, "no": False}
SPATIAL = re.compile(
    r"x|y|lat(itude)?|lon(gitude)?|northing|easting|rows?|col(umn)?s?|lines?|samples?|(down|cross)track"
)
# Where EMIT's netCDF keeps what belongs to its band axis.
EMIT = tuple(f"sensor_band_parameters/{name}" for name in ("wavelengths", "fwhm", "good_wavelengths"))
MULTIDIMENSIONAL = ("netCDF", "Zarr")
Tags = Mapping[str, str]


def file_bands(dataset: Any) -> list[FileBand]:
    """What the file says of each band.

    Wavelengths come from tags named wavelength or central_wavelength with a unit tag, the axis of that name in netCDF
    and Zarr files, GDAL's IMAGERY domain, the header of ENVI files, or the description, "B4 (665 nm)".
    """
    count = dataset.count
    of_file = _of_file(dataset)
    waves = _list(of_file.get("wavelength") or of_file.get("wavelengths"), count)
    of_bands = [{_plain(k): v for k, v in dataset.tags(i + 1).items()} for i in range(count)]
    axes = _Axes(dataset, of_file, of_bands)
    fwhms = _list(of_file.get("fwhm"), count) if "fwhm" in of_file else axes.along("fwhm")
    descriptions, colours = dataset.descriptions, dataset.colorinterp  # each access walks over all bands
    names = _listed_names(of_file, count) if not any(descriptions) else [""] * count
    usable = _usable_list(dataset, of_file, axes)[0]
    bands = []
    for i, tags in enumerate(of_bands):
        imagery = {k.lower(): v for k, v in dataset.tags(i + 1, ns="IMAGERY").items()}
        axis, axis_unit = axes.wavelength(i)
        unit = (
            tags.get("wavelength_units") or tags.get("wavelength_unit") or of_file.get("wavelength_units") or axis_unit
        )
        description = descriptions[i] or axes.name(i) or names[i]
        written = A_WAVELENGTH.search(description[:LONGEST])
        wave = _um(tags.get("wavelength") or tags.get("central_wavelength") or waves[i] or axis, unit)
        if wave is None:  # three decimals only, so after the tags
            wave = _um(imagery.get("central_wavelength_um"), "um")
        if wave is None and written:
            wave = _um(written[1], written[2])
        fwhm = _um(tags.get("fwhm") or fwhms[i], unit, like=wave) or _um(imagery.get("fwhm_um"), "um")
        own = next((use for key in USABLE if (use := _use(key, tags.get(key))) is not None), usable[i])
        bands.append(FileBand(i + 1, description, wave, fwhm or None, colours[i].name, bad=own is False))
    return bands


def unread(dataset: Any) -> list[Said]:
    """Lists in the file that should have one entry a band, and have not."""
    count, of_file = dataset.count, _of_file(dataset)
    axes = _Axes(dataset, of_file, [{_plain(k): v for k, v in dataset.tags(i + 1).items()} for i in range(count)])
    out = [
        ("metadata-unread", f"its {key} has {len(_entries(text))} entries for {count} bands and is not read")
        for key in ("wavelength", "fwhm")
        if (text := of_file.get(key)) and len(_entries(text)) not in (1, count)
    ]
    said = _usable_list(dataset, of_file, axes)[1]
    return [*out, *([said] if said else []), *axes.unread]


def check_axes(dataset: Any) -> None:
    """Refuse a data set of which GDAL takes a direction on the ground for bands.

    Raises:
        DataError: such an axis; the cure is named.
    """
    if dataset.driver not in MULTIDIMENSIONAL or not dataset.count:
        return
    found = [ON_AXIS.fullmatch(key.lower()) for key in dataset.tags(1)]
    axis = next((a for m in found if m is not None and SPATIAL.fullmatch(a := m[1] or m[2])), None)
    if axis is not None:
        raise DataError(
            f"its axis {axis} would be read as bands, since the band axis is last: write it with the bands first "
            "(xarray: ds.transpose('band', 'y', 'x'))"
        )


class _Axes:
    """The axes of a netCDF or Zarr array that GDAL lays out as bands.

    Args:
        of_bands: the tags of each band, plain.
    """

    def __init__(self, dataset: Any, of_file: Tags, of_bands: list[dict[str, str]]) -> None:
        self.unread: list[Said] = []
        self._of_file, self._of_bands = of_file, of_bands
        self._values: dict[str, list[str]] = {}
        self._sizes: dict[str, int] = {}
        self.others: dict[str, list[str]] = {}
        if dataset.driver not in MULTIDIMENSIONAL or not of_bands:
            return
        extra = [name.lower() for name in _entries(of_file.get("netcdf_dim_extra"))]
        keys = (m for m in map(ON_AXIS.fullmatch, of_bands[0]) if m is not None)
        names = extra or list(dict.fromkeys(m[1] or m[2] for m in keys))
        for name in names:
            values = [b.get(f"dim_{name}_value") or b.get(f"netcdf_dim_{name}") or "" for b in of_bands]
            listed = _entries(of_file.get(f"netcdf_dim_{name}_values"))
            if listed and not any(values):
                self._values[name] = listed
            indices = {b.get(f"dim_{name}_index", b.get(f"netcdf_dim_{name}", "")) for b in of_bands}
            self._sizes[name] = len(listed) or len(indices)
        if prod(self._sizes.values()) != len(of_bands):
            self._sizes, self._values = {}, {}
        for name, size in self._sizes.items():
            beside = _beside(dataset, of_file, name, size)
            if name in beside and not any(_number(v) is not None for v in beside[name]):
                self._values.setdefault(name, beside.pop(name))
            self.others |= beside
            if name not in self._values and _has_texts(dataset, name):
                cure = f"{'pip install zarr' if dataset.driver == 'Zarr' else 'pip install scipy h5netcdf'}, or --bands"
                self.unread.append(("metadata-unread", f"the names on its axis {name} are not read: {cure}"))

    def _value(self, name: str, i: int) -> str:
        """The value of band `i` on an axis."""
        tags = self._of_bands[i]
        told = tags.get(f"dim_{name}_value") or tags.get(f"netcdf_dim_{name}") or ""
        if name not in self._values:
            return told
        order = list(self._sizes)
        later = prod(self._sizes[other] for other in order[order.index(name) + 1 :])
        return self._values[name][i // later % self._sizes[name]]

    def name(self, i: int) -> str:
        """The name of band `i` on the first axis that has names; empty without one."""
        values = (self._value(name, i) for name in self._sizes if not re.fullmatch(WAVELENGTH, name))
        return next((v for v in values if v and _number(v) is None and not re.match(r"\d{4}-\d\d", v)), "")

    def along(self, name: str) -> list[str | None]:
        """The values of a variable along the axis, one a band; None for each without it."""
        values = self.others.get(name, [])
        return [*values] if len(values) == len(self._of_bands) else [None] * len(self._of_bands)

    def wavelength(self, i: int) -> tuple[str | None, str | None]:
        """The wavelength of band `i` and its unit: of an axis of wavelengths, or of a variable along the axis."""
        for name in self._sizes:
            unit = self._of_bands[i].get(f"dim_{name}_unit") or self._of_file.get(f"{name}#units")
            if re.fullmatch(WAVELENGTH, name) or WAVELENGTH_UNIT.fullmatch(unit or ""):
                return self._value(name, i), unit
        for name, values in self.others.items():
            if re.fullmatch(WAVELENGTH, name) and len(values) == len(self._of_bands):
                return values[i], self._of_file.get(f"{name}#units")
        return None, None


def _of_file(dataset: Any) -> dict[str, str]:
    """All tags of the file, keys plain; those of its variable and the global ones of netCDF also without prefix."""
    tags = {_plain(k): v for k, v in dataset.tags().items()}
    variable = dataset.tags(1).get("NETCDF_VARNAME", "").lower() if dataset.count else ""
    own: dict[str, str] = {}
    for prefix in ("nc_global#", f"{variable}#"):
        own |= {k.removeprefix(prefix): v for k, v in tags.items() if k.startswith(prefix)}
    return {**tags, **own, **{_plain(k): v for k, v in dataset.tags(ns="ENVI").items()}}


def _plain(tag: str) -> str:
    return tag.lower().replace(" ", "_").replace("-", "_")


def _listed_names(of_file: Tags, count: int) -> list[str]:
    """Names in a list of the file's tags; empty ones without such a list."""
    for key in NAME_LISTS if count > 1 else NAME_LISTS[:3]:
        names = _entries(of_file.get(key), names=True)
        if len(names) == count and any(_number(name) is None for name in names):
            return names
    return [""] * count


def _usable_list(dataset: Any, of_file: Tags, axes: _Axes) -> tuple[list[bool | None], Said | None]:
    """Whether each band is to be used, None where nothing is said; and a word on a list that does not fit."""
    count = dataset.count
    said = None
    for key in USABLE:
        for entries in (_entries(of_file.get(key)), axes.others.get(key, [])):
            if not entries:
                continue
            uses = [_use(key, entry) for entry in entries]
            if len(entries) == count and None not in uses:
                return uses, None
            what = (
                "other entries than 0 and 1" if len(entries) == count else f"{len(entries)} entries for {count} bands"
            )
            cure = "leave the bad ones out with --bands, - each"
            said = ("bad-bands-unread", f"its list of bad bands ({key}) has {what} and is not read: {cure}")
    return [None] * count, said


def _use(key: str, text: str | None) -> bool | None:
    """Whether a value says that a band is to be used; None where it says nothing."""
    word = (text or "").strip().lower()
    if word in GOOD_WORDS:
        return GOOD_WORDS[word]
    number = _number(word)
    if word in TRUTH or number in (0, 1) or (number is not None and key == "bbl"):
        return (TRUTH[word] if word in TRUTH else bool(number)) == USABLE[key]
    return None


def _beside(dataset: Any, of_file: Tags, axis: str, size: int) -> dict[str, list[str]]:
    """Variables along an axis of a netCDF or Zarr file, by name: its own values, wavelengths, good bands."""
    listed = (of_file.get("coordinates") or "").split()
    wanted = dict.fromkeys([axis, *listed, "wavelength", "wavelengths", "good_wavelengths", "bbl", "fwhm", *EMIT])
    out: dict[str, list[str]] = {}
    for name in () if remote.is_remote(dataset.name) else wanted:
        if name.lower() in ("spatial_ref", "crs", "x", "y", "lat", "lon") or re.fullmatch(r"\w[\w./-]*", name) is None:
            continue
        values = _numbers(dataset, name)
        if name == axis:
            values = values or _texts(dataset, name)
        if len(values) == size:
            out.setdefault(name.lower().rsplit("/")[-1], values)
    return out


def _root(dataset: Any) -> str:
    """The file or folder that an array is in."""
    found = re.fullmatch(r'(?:ZARR|NETCDF):"?(.*?)"?(?::/?[^:"]*)?', dataset.name, re.IGNORECASE)
    return found[1] if found else str(dataset.name)


def _numbers(dataset: Any, name: str) -> list[str]:
    """The numbers of a variable with one axis; none if it is no such thing.

    GDAL's netCDF driver takes texts of netCDF 4 for 32-bit numbers and writes past their end; its HDF5 driver, which
    refuses them, reads these files.
    """
    root = _root(dataset)
    if dataset.driver == "Zarr":
        if re.fullmatch(r"[<>|][biuf]\d", _zarr_type(root, name)) is None:
            return []
        path = f'ZARR:"{root}":/{name}'
    else:
        path = f'HDF5:"{root}"://{name}' if _is_hdf5(root) else f'NETCDF:"{root}":{name}'
    try:
        with rasterio.open(path) as file:
            if file.count != 1 or min(file.shape) != 1:
                return []
            values = file.read(1).ravel()
    except (RasterioError, IndexError):
        return []
    return [f"{v:.9g}" if isinstance(v, np.floating) else str(v) for v in values]


def _is_hdf5(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return False


def _zarr_type(root: str, name: str) -> str:
    """The type of an array of a Zarr store of version 2; empty where there is none."""
    try:
        return str(read_json(Path(root) / name / ".zarray")["dtype"])
    except (DataError, OSError, KeyError, TypeError):
        return ""


def _has_texts(dataset: Any, axis: str) -> bool:
    """Whether an axis has texts that GDAL does not read: characters of netCDF, texts of any length of Zarr."""
    if dataset.driver == "Zarr":
        return _zarr_type(_root(dataset), axis) == "|O"
    try:
        with rasterio.open(f'NETCDF:"{_root(dataset)}":{axis}') as file:
            return bool(file.dtypes[0] == "uint8" and file.count == 1)
    except (RasterioError, IndexError):
        return False


def _texts(dataset: Any, axis: str) -> list[str]:
    """The texts along an axis that GDAL does not read; none if there are none, or no library that reads them."""
    if not _has_texts(dataset, axis):
        return []
    try:
        if dataset.driver == "Zarr":
            import zarr

            values = np.asarray(zarr.open_array(str(Path(_root(dataset)) / axis), mode="r"))
        else:
            import xarray

            with xarray.open_dataset(_root(dataset), decode_times=False) as data:
                values = data[axis].values
    except (ImportError, OSError, ValueError, KeyError, TypeError, RuntimeError):
        return []
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.ravel()]


def _um(text: str | None, unit: str | None, like: float | None = None) -> float | None:
    """A length in micrometres.

    A unit that is none of length or frequency ("Index") says nothing: descriptions or the user name the band.
    Without a unit a wavelength of 200 or more is in nanometres and one up to 20 in micrometres: no band lies in both. A
    width without a unit has that of its wavelength, which is what `like` stands for.
    """
    value = _number(text)
    if value is None:
        return None
    word = (unit or "").strip().lower()
    if re.match(r"nm|nanom", word):
        return value / 1000
    if re.match(r"[uµμ]m|microm|micron", word):
        return value
    if word in IN_UM:
        return value * IN_UM[word]
    if like is None and word in INVERSE_UM and value > 0:
        return INVERSE_UM[word] / value
    if word not in ("", "unknown"):
        return None  # an index, or a unit that is none of length: descriptions or the user say which band it is
    if like is not None:
        return value / 1000 if value > like else value
    return value / 1000 if value >= 200 else value


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _list(text: str | None, count: int) -> list[str | None]:
    """The entries of a list, one a band; nothing if their number is another."""
    parts = _entries(text)
    return [*parts] if len(parts) == count else [None] * count


def _entries(text: str | None, *, names: bool = False) -> list[str]:
    """The entries of a list as headers and tags write it: {1, 0}, [1 0], ("B02", "B03").

    Args:
        text: the tag; nothing without it.
        names: blanks are part of the entries, unless there are no commas.
    """
    plain = (text or "").strip().strip("{}[]()").strip()
    parts = re.split(r"[,;]", plain) if names and re.search("[,;]", plain) else re.split(r"[,;\s]+", plain)
    return [part for part in (p.strip().strip("\"'") for p in parts) if part]
