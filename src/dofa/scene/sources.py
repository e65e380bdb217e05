"""From what a user names to parts of a scene: products, folders and lists of band files, sensors of one place."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dofa import sensors
from dofa.errors import ConfigError, DataError, listed
from dofa.pixels import Scaling
from dofa.raster import Raster, gdal, nodata, open_raster, physical_values
from dofa.raster.band_descriptions import Said
from dofa.raster.band_names import match
from dofa.raster.bands import match_bands
from dofa.raster.factors import FileNumbers, UserNumbers, user_scaling
from dofa.scene.band_files import absolute, bands_in_parts, by_product_name, described_bands, without_auxiliary
from dofa.scene.layers import BandFile, Part, Product, open_files
from dofa.scene.masks import legend_of
from dofa.scene.metadata import band_by_name, basename, product_sensor
from dofa.scene.safe import is_safe, read_safe
from dofa.scene.stac import is_item, read_item
from dofa.sensors import Sensor

IMAGES = (".tif", ".tiff", ".gtif", ".jp2", ".img", ".vrt", ".bsq", ".png", ".nc")
NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class UserMetadata:
    """What the user says of files; see `open_scene`."""

    bands: Sequence[str | None] | None = None
    wavelengths_um: Sequence[float] | None = None
    scaling: Scaling | None = None
    dn_offset: float | None = None
    dn_scale: float | None = None
    unit: str | None = None
    nodata: float | None = None
    strict: bool = False

    @property
    def numbers(self) -> UserNumbers:
        """What the user says of the numbers."""
        return UserNumbers(self.scaling, self.dn_offset, self.dn_scale, self.unit)


@dataclass
class Opened:
    """A part and its open files.

    Attributes:
        part: settled.
        rasters: its files, in its order.
        classes: file and band number of class bands beside them, by name.
        warnings: what was assumed, left out or looks wrong.
        settled: what of the numbers can still be doubted, None where nothing is open.
        said: what the files say of the numbers, for those doubts.
        name: that a product's metadata give it.
    """

    part: Part
    rasters: list[Raster]
    classes: dict[str, tuple[str, int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    settled: physical_values.ResolvedScaling | None = None
    said: FileNumbers | None = None
    name: str | None = None


@dataclass
class Group:
    """Sources of one sensor.

    Attributes:
        sensor: told, or None.
        sources: files, or one product.
        product: whether it is a product, whose metadata say everything.
    """

    sensor: Sensor | None
    sources: list[str]
    product: bool


def grouped(sources: Sequence[str | Path], sensor: Sensor | str | Sequence[Sensor | str] | None) -> list[Group]:
    """Which sources belong together: a product by itself, files by the sensor told for them.

    Args:
        sources: files, folders, addresses.
        sensor: for all of them, or one for each; None for what they say.

    Raises:
        ConfigError: a sensor nobody knows, or not one for each source.
    """
    if isinstance(sensor, str | Sensor) or sensor is None:
        each: list[Sensor | str | None] = [sensor] * len(sources)
    else:
        each = list(sensor)
        if len(each) != len(sources):
            raise ConfigError(
                f"{len(each)} sensors for {len(sources)} sources: one for each, in their order, or NAME=FILE"
            )
    groups: list[Group] = []
    for source, told in zip(map(str, sources), each, strict=True):
        named = NAMED.fullmatch(source)
        if named is not None and not Path(source).exists():
            told, source = named[1], named[2]
        one = sensors.get(told) if isinstance(told, str) else told
        product = is_product(source)
        group = next((g for g in groups if g.sensor == one and not g.product), None)
        if product or group is None:
            groups.append(Group(one, [source], product))
        else:
            group.sources.append(source)
    return groups


def is_product(source: str) -> bool:
    """Whether metadata tell everything about it: a Sentinel-2 product or a STAC item."""
    return is_item(source) or (Path(source).exists() and is_safe(Path(source)))


def share(groups: Sequence[Group], say: UserMetadata) -> list[UserMetadata]:
    """What the user's words mean for each group.

    Raises:
        ConfigError: words about one sensor's files, of several.
    """
    if len(groups) == 1:
        return [say]
    if any(v is not None for v in (say.bands, say.wavelengths_um, say.scaling, say.dn_scale, say.unit)):
        raise ConfigError(
            "--bands, --wavelengths, --dn-scale and --unit speak of one sensor's files: describe the bands of a stack "
            "and their numbers inside the files"
        )
    offset = [g.product or (g.sensor is not None and g.sensor.platform == "sentinel-2") for g in groups]
    if say.dn_offset is not None and not any(offset):
        raise ConfigError("--dn-offset is for Sentinel-2, which none of these sensors is")
    out = []
    for group, takes in zip(groups, offset, strict=True):
        nodata = None if group.product or say.nodata is None else _fitting(say.nodata, group.sources[0])
        out.append(replace(say, dn_offset=say.dn_offset if takes else None, nodata=nodata))
    return out


def _fitting(nodata: float, source: str) -> float | None:
    with Raster(source) as header:
        return nodata if gdal.fits(nodata, header.dtype) else None


def open_group(group: Group, say: UserMetadata) -> Opened:
    """Open what one sensor took.

    Raises:
        DataError: files that cannot be read, or that say too little or something else; one line with the cure.
        ConfigError: an unknown band, or words that do not go together.
    """
    sensor, sources = group.sensor, group.sources
    if group.product and is_item(sources[0]):
        return open_product(read_item(sources[0], sensor), sensor, say)
    if group.product:
        return open_product(read_safe(Path(sources[0])), sensor, say)
    if len(sources) == 1:
        path = Path(sources[0])
        if path.suffix.lower() == ".safe" or (path / "manifest.safe").exists():
            raise DataError(
                f"{path} is no Sentinel-2 product (no MTD_MSIL1C.xml or MTD_MSIL2A.xml): Sentinel-1 is calibrated and "
                "terrain-corrected first (SNAP, pyroSAR, a provider's RTC); open what comes out of that"
            )
        if path.is_dir() and not one_dataset(path):
            return _open_list(images_in(path), sensor, say, folder=path)
        bands = bands_in_parts(sources[0], sensor)
        if bands:
            return _open_list(bands, sensor, say, folder=path)
        return _open_file(sources[0], sensor, say)
    return _open_list(sources, sensor, say)


def open_product(product: Product, sensor: Sensor | None, say: UserMetadata) -> Opened:
    """Open a product whose metadata say everything, with the user's words over theirs.

    Args:
        sensor: as told, None for what the metadata say.

    Raises:
        DataError: a file cannot be read, or the product is another sensor's.
        ConfigError: a band it does not have.
    """
    part = product.part
    if sensor is not None and sensor.name != part.sensor.name:
        raise DataError(
            f"{product.name} is {part.sensor.name} by its metadata, told is {sensor.name}: leave out --sensor"
        )
    if say.wavelengths_um is not None:
        raise ConfigError(f"{product.name} names its bands: choose with --bands, without --wavelengths")
    if say.bands is not None:
        chosen = part.sensor.select([band for band in say.bands if band is not None])
        files = [
            replace(f, bands=(b,), numbers=(n,)) for f in part.files for b, n in zip(f.bands, f.numbers, strict=True)
        ]
        by_band = {f.bands[0]: f for f in files}
        part = replace(
            part,
            sensor=chosen,
            scaling=part.scaling.select(chosen.band_names),
            files=tuple(by_band[name] for name in chosen.band_names),
        )
    if say.scaling is not None:
        part = replace(part, scaling=replace(say.scaling.select(part.sensor.band_names), physical_source="user"))
    elif say.unit is not None or say.dn_scale is not None:
        names, own = part.sensor.band_names, part.scaling
        said = FileNumbers(own.scale, own.offset, ("",) * len(names), {}, ({},) * len(names), {})
        part = replace(part, scaling=user_scaling(say.numbers, said, names, part.sensor.scaling, product.name))
    elif say.dn_offset is not None:
        offset = tuple(say.dn_offset * scale for scale in part.scaling.scale)
        part = replace(part, scaling=replace(part.scaling, offset=offset, physical_source="user"))
    if say.nodata is not None:
        part = replace(part, files=tuple(replace(f, nodata=say.nodata) for f in part.files))
    if say.strict and product.warnings:
        raise DataError(f"{product.warnings[0]} (an error under strict)")
    rasters = open_files(part)
    unsaid = [raster for raster in rasters if not raster.validity.values and not raster.masked]
    warnings = [*product.warnings, *_undeclared(unsaid, say)]
    part = replace(part, files=_with_fill(part.files, rasters))
    opened = Opened(part, rasters, dict(product.classes), warnings, name=product.name)
    if part.scaling.physical_source != "user" and product.settled is not None and product.said is not None:
        opened.said = product.said.select(
            [product.part.sensor.band_names.index(name) for name in part.sensor.band_names]
        )
        opened.settled = replace(product.settled, scaling=part.scaling)
        opened.warnings += [f"{title}: {product.name}: {text}" for title, text in opened.settled.notes]
        _by_values(opened)
    return opened


def _open_file(source: str, sensor: Sensor | None, say: UserMetadata) -> Opened:
    """One file with all bands."""
    bands = say.bands
    open_question = bands is None and say.wavelengths_um is None
    known = product_sensor(source) if sensor is None and open_question else None
    if known is not None and band_by_name(source, sensors.get(known)):
        return _open_list([source], None, say)  # one band file of a product, as it would be among the others
    if sensor is not None and open_question and band_by_name(source, sensor):
        with Raster(source, None, say.strict) as header:
            heard = described_bands(header, sensor)
        told = match(heard[0].description, sensor) if len(heard) == 1 else None
        if told is not None:  # a file of one band, which may be told by its name alone
            bands = [told.name]
    warnings: list[str] = []
    _tell(_other_level(source, sensor, say), basename(source), warnings, say.strict)
    raster = open_raster(
        source, sensor, bands, say.wavelengths_um, say.scaling, dn_offset=say.dn_offset, dn_scale=say.dn_scale,
        unit=say.unit, nodata=say.nodata, strict=say.strict,
    )  # fmt: skip
    file = BandFile(
        absolute(source), raster.sensor.band_names, raster.numbers, say.nodata, raster.fill_values, raster.alpha
    )
    classes = {b.description: (file.href, b.number) for b in raster.file_bands() if legend_of(b.description)}
    part = Part(raster.sensor, raster.scaling, (file,))
    return Opened(part, [raster], classes, [*warnings, *raster.warnings])


def _open_list(sources: Sequence[str], sensor: Sensor | None, say: UserMetadata, folder: Path | None = None) -> Opened:
    """Bands in files of their own."""
    if not sources:
        raise DataError(f"{folder} holds no images ({', '.join(IMAGES)}){_inside(folder)}")
    warnings: list[str] = []
    classes: dict[str, tuple[str, int]] = {}
    with ExitStack() as opening:
        files = [opening.enter_context(Raster(s, None, say.strict)) for s in sources]
        if sensor is None and say.bands is None:
            sensor = by_product_name(files, warnings)
        heard = [described_bands(f, sensor) for f in files]
        if say.bands is None and say.wavelengths_um is None:
            files, heard = without_auxiliary(files, heard, folder, classes, warnings, sensor)
        where = [(i, b.number) for i, bands in enumerate(heard) for b in bands]
        flat = [replace(b, number=n) for n, b in enumerate((b for bands in heard for b in bands), 1)]
        name = basename(files[0].path)
        try:
            found = match_bands(
                flat, sensor, names=say.bands, wavelengths_um=say.wavelengths_um,
                gsd_m=min(f.gsd_m or 1.0 for f in files), dtype=_dtype(files),
            )  # fmt: skip
        except (ConfigError, DataError) as error:
            raise type(error)(f"{name} and {len(files) - 1} more: {error}") from None
        _tell(_other_level(files[0].path, sensor, say), name, warnings, say.strict)
        _tell(found.notes, name, warnings, False)
        _tell(found.assumptions, name, warnings, say.strict)
        chosen = dict(zip(found.sensor.band_names, (where[n - 1] for n in found.numbers), strict=True))
        order = found.sensor.band_names
        if say.bands is None and found.sensor.name in sensors.names():  # the product's, not that of file names
            order = tuple(b for b in sensors.get(found.sensor.name).band_names if b in chosen)
        opened = _settle(files, {b: chosen[b] for b in order}, found.sensor.select(order), say, name)
        opening.pop_all()
    for unused in set(files) - set(opened.rasters):
        unused.close()
    opened.classes, opened.warnings = classes, [*warnings, *opened.warnings]
    return opened


def _other_level(path: str, sensor: Sensor | None, say: UserMetadata) -> list[Said]:
    """A doubt where a file's name is that of another product than the sensor named: B05 is red edge in one of HLS."""
    known = product_sensor(path)
    if sensor is None or known in (None, sensor.name) or say.numbers.said:
        return []
    other = sensors.get(str(known))
    # Surface temperature lies in the same products as surface reflectance.
    families = {one.platform.split("-")[0] for one in (other, sensor)}
    if len(families) > 1 or sensor.scaling is None or sensor.scaling.unit == "kelvin":
        return []
    text = f"its name is that of {known} ({other.level}), told is {sensor.name} ({sensor.level}): say --sensor {known}"
    return [("level-by-name", text)]


def _undeclared(rasters: Sequence[Raster], say: UserMetadata) -> list[str]:
    """Look for fill values that no file declares, which count as nodata from now on: a warning for each value.

    Raises:
        DataError: there is one, and what looks wrong is an error.
    """
    looked = [raster for raster in rasters if raster.dtype.itemsize > 1]
    fills = nodata.find_fill_of_files([(*r.fill_sample(), (r.height, r.width)) for r in looked])
    found: dict[str, tuple[str, Said, int]] = {}
    for raster, fill_values in zip(looked, fills, strict=True):
        for one, doubt in zip(fill_values, raster.take_fill(fill_values), strict=True):
            name, first, count = found.get(one.text, (basename(raster.path), doubt, 0))
            found[one.text] = name, first, count + 1
    warnings: list[str] = []
    for name, doubt, count in found.values():
        _tell(
            [doubt], name if count == 1 else f"{name} and {count - 1} more", warnings, say.strict and say.nodata is None
        )
    return warnings


def _with_fill(files: Sequence[BandFile], rasters: Sequence[Raster]) -> tuple[BandFile, ...]:
    """Files with the fill values that were found in them."""
    return tuple(replace(f, fill_values=r.fill_values) for f, r in zip(files, rasters, strict=True))


def _settle(
    files: Sequence[Raster], chosen: dict[str, tuple[int, int]], sensor: Sensor, say: UserMetadata, name: str
) -> Opened:
    """What the numbers of bands in several files mean; `chosen` is the file and the number in it of each band."""
    numbers = [files[i].file_numbers([n]) for i, n in chosen.values()]
    said = FileNumbers(
        scales=tuple(n.scales[0] for n in numbers),
        offsets=tuple(n.offsets[0] for n in numbers),
        units=tuple(n.units[0] for n in numbers),
        tags={k: v for k, v in numbers[0].tags.items() if all(n.tags.get(k) == v for n in numbers)},
        band_tags=tuple({**n.tags, **n.band_tags[0]} for n in numbers),  # a file of one band speaks for the band
        envi={},
        amplitude=any(n.amplitude for n in numbers),
    )
    used = [files[i] for i in dict.fromkeys(i for i, _ in chosen.values())]
    settled = physical_values.resolve_scaling(sensor, said, _dtype(used), say.numbers, name)
    band_files = []
    for file in used:
        held = {band: n for band, (i, n) in chosen.items() if files[i] is file}
        file.tell(sensor.select(tuple(held)), settled.scaling.select(tuple(held)), tuple(held.values()))
        nodata = say.nodata if say.nodata is not None and gdal.fits(say.nodata, file.dtype) else None
        if nodata is not None:
            file.set_nodata(nodata)
        band_files.append(BandFile(absolute(file.path), tuple(held), tuple(held.values()), nodata))
    if say.nodata is not None and all(f.nodata is None for f in band_files):
        raise ConfigError(f"nodata {say.nodata:g} is no {_dtype(used)} number")
    opened = Opened(Part(sensor, settled.scaling, tuple(band_files)), used, settled=settled, said=said)
    opened.warnings = [f"{title}: {name}: {text}" for title, text in settled.notes]
    opened.warnings += _undeclared(used, say)
    opened.part = replace(opened.part, files=_with_fill(opened.part.files, used))
    _by_values(opened)
    return opened


def _by_values(opened: Opened) -> None:
    """Decide by a sample what numbers mean whose factor neither files nor metadata say."""
    if opened.settled is None or opened.said is None or not opened.settled.scale_open:
        return
    values = np.concatenate([file.sample() for file in opened.rasters])
    opened.settled = physical_values.infer_scaling(opened.settled, opened.part.sensor, opened.said, values)
    opened.part = replace(opened.part, scaling=opened.settled.scaling)
    for file in opened.rasters:
        file.tell(file.sensor, opened.settled.scaling.select(file.sensor.band_names), file.numbers)


def _tell(said: Sequence[Said], name: str, warnings: list[str], strict: bool) -> None:
    for title, text in said:
        if strict:
            raise DataError(f"{name}: {text} ({title} is an error under strict)")
        warnings.append(f"{title}: {name}: {text}")


def _dtype(files: Sequence[Raster]) -> str:
    return str(np.result_type(*(f.dtype for f in files)))


def images_in(folder: Path) -> list[str]:
    """Files of a folder that are images by the endings of their names, sorted."""
    return [str(f) for f in sorted(folder.iterdir()) if f.suffix.lower() in IMAGES and not f.name.startswith(".")]


def _inside(folder: Path | None) -> str:
    """What to name instead of a folder without images: the products or folders of images in it."""
    if folder is None:
        return ""
    inner = [f for f in sorted(folder.iterdir()) if f.suffix.lower() == ".safe" or (f.is_dir() and images_in(f))]
    return f": name what is in it: {listed([str(f) for f in inner], 3)}" if inner else ""


def one_dataset(folder: Path) -> bool:
    """Whether a folder is one data set for GDAL, as a Zarr store is."""
    return any((folder / name).exists() for name in ("zarr.json", ".zgroup", ".zarray", ".zmetadata"))
