"""Bands in files of their own, in pages of a TIFF, or in variables of netCDF, HDF5 and Zarr: which of them is which."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dofa import sensors
from dofa.errors import DataError, listed
from dofa.raster import Raster, gdal, remote, subdatasets
from dofa.raster.band_descriptions import FileBand
from dofa.raster.band_names import AUXILIARY, COUNTED, match
from dofa.scene.masks import legend_of
from dofa.scene.metadata import LEVEL_1C, basename, product_sensor, tokens
from dofa.sensors import Sensor

VARIABLE = re.compile(r"(netcdf|hdf5|zarr):", re.IGNORECASE)


def bands_in_parts(source: str, sensor: Sensor | None) -> list[str]:
    """GDAL's names of the parts of a file that holds each band apart; none of any other file.

    These are pages of one band each, as programs write them that know no bands, and variables named as bands of a
    sensor, or numbered: so xarray and GDAL write a variable a band.

    Args:
        source: a file, or anything else GDAL opens.
        sensor: told, or None.
    """
    if remote.is_remote(source):
        return []
    with gdal.open_dataset(source) as dataset:
        images = subdatasets.pages_of_one_band(dataset) if dataset.count else subdatasets.images(dataset)
        paged = dataset.count > 0
    images = [name.replace(source, absolute(source), 1) for name in images]
    names = [subdatasets.variable(name) for name in images]
    if paged or (len(names) > 1 and all(COUNTED.fullmatch(name) for name in names)):
        return images
    known = [sensor] if sensor is not None else list(sensors.catalogue().values())
    most = max((sum(match(name, s) is not None for name in names) for s in known), default=0)
    return images if most > 1 else []


def described_bands(file: Raster, sensor: Sensor | None) -> list[FileBand]:
    """What a file says of its bands; where a single one has no telling description, the file's name speaks.

    The name of a page is that of all pages, and "Band1" or "band_1", as GDAL and rioxarray name variables, counts
    places and says nothing; its `long_name` may.

    Args:
        sensor: told, or None.
    """
    bands = file.file_bands()
    if len(bands) > 1 or (bands and bands[0].wavelength_um is not None):
        return bands
    (band,) = bands
    texts = [band.description]
    if VARIABLE.match(file.path):
        numbers = file.file_numbers([1])
        texts.append(numbers.band_tags[0].get("LONG_NAME") or numbers.tags.get("LONG_NAME") or "")
        name = subdatasets.variable(file.path)
        texts += [] if COUNTED.fullmatch(name) else tokens(name)
    elif not subdatasets.PAGE.match(file.path):
        texts += tokens(file.path)
    known = [sensor] if sensor is not None else list(sensors.catalogue().values())
    said = (text for text in texts if text and any(match(text, s) for s in known))
    return [replace(band, description=next(said, ""), colour="gray")]


def without_auxiliary(
    files: list[Raster],
    said: list[list[FileBand]],
    folder: Path | None,
    classes: dict[str, tuple[str, int]],
    warnings: list[str],
    sensor: Sensor | None,
) -> tuple[list[Raster], list[list[FileBand]]]:
    """Leave out the files that are no bands: quality layers always, of a folder also those that nothing names.

    Args:
        said: what each says of its bands.
        folder: that they lie in, or the file whose parts they are; None for files that were named one by one.
        classes: takes the class bands among them.
        warnings: takes a word on what is left out.
        sensor: told, or None.

    Returns:
        The files that are bands, and what they say.

    Raises:
        DataError: a file that nothing names as a band, or no band among them.
    """
    kept, left_out = [], []
    for file, bands in zip(files, said, strict=True):
        name = basename(file.path)
        legend = legend_of(name) or legend_of(subdatasets.variable(name))
        if legend is not None:
            classes[legend.band] = absolute(file.path), 1
        if legend is not None or (
            all(not b.description and b.wavelength_um is None for b in bands)
            and (folder is not None or any(AUXILIARY.fullmatch(t) for t in tokens(file.path)))
        ):
            left_out.append(name)
            continue
        if all(not b.description and b.wavelength_um is None for b in bands):
            hint = f" ({', '.join(sensor.band_names[:13])})" if sensor is not None else ""
            raise DataError(
                f"{name}: neither descriptions nor its name say which band it is{hint}: pass --bands with their "
                "names in the files' order, - for one to leave out, or --wavelengths"
            )
        kept.append((file, bands))
    if not kept:
        cure = f"pass another --sensor than {sensor.name}" if sensor else "pass --sensor"
        what = "files" if folder is None or folder.is_dir() else "images in it"
        raise DataError(
            f"{folder or files[0].path}: not one of {len(files)} {what} is recognised as a band: {cure}, or "
            "--bands with their names in that order, - for one to leave out"
        )
    if left_out:
        warnings.append(f"files-left-out: {basename(kept[0][0].path)}: no bands of the scene: {listed(left_out, 4)}")
    return [file for file, _ in kept], [bands for _, bands in kept]


def by_product_name(files: Sequence[Raster], warnings: list[str]) -> Sensor | None:
    """The sensor that all files' names agree on, in the form their producers give them; None without.

    Args:
        warnings: takes a word on it.
    """
    names = {basename(f.path) for f in files}
    found = {product_sensor(f.path) for f in files}
    cure = ""
    if found == {None} and all(LEVEL_1C.match(name) for name in names):
        found = {"sentinel-2-l1c"}
        cure = ", which have no pixel size as those of sen2cor: pass --sensor sentinel-2-l2a if they are Level-2A"
    if len(found) != 1 or None in found:
        return None
    (sensor,) = found
    assert sensor is not None
    warnings.append(f"sensor-by-name: {min(names)}: taken as {sensor} by the names of its files{cure}")
    return sensors.get(sensor)


def absolute(source: str) -> str:
    """A local file by its whole path, so that other processes find it; anything else as it is.

    Args:
        source: as named.
    """
    path = Path(source)
    return str(path.absolute()) if path.exists() else source
