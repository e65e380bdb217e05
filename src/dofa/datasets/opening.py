"""The one door to labelled images, and behind it EuroSAT RGB and MS as zips or folders, and labelled stores.

A data set yields raw numbers with a `Sensor` and the physical half of a `Scaling`; normalisation is the encoder's side.
Nothing is extracted from a zip: members are read into memory, one at a time.
"""

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa import sensors
from dofa.corpus.items import Split
from dofa.corpus.store import SensorStore, open_stores
from dofa.datasets.labelled import LabelledImages, Raw, digest, read_lines
from dofa.errors import DataError, nearest
from dofa.pixels import Scaling
from dofa.raster.in_memory import read_geotiff, read_picture
from dofa.sensors import Sensor

__all__ = [
    "EUROSAT_BANDS",
    "EUROSAT_CLASSES",
    "LabelledImages",
    "Raw",
    "open_labelled",
    "read_eurosat_ms",
    "read_eurosat_rgb",
    "read_labelled_store",
]

EUROSAT_CLASSES = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial",
    "Pasture", "PermanentCrop", "Residential", "River", "SeaLake",
)  # fmt: skip
# The order in the files, which carry no band names: B8A comes last, not after B08.
EUROSAT_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
# The authors' rendering (github.com/phelber/EuroSAT, FAQ): gdal_translate -scale 0 2750 1 255 on B04, B03, B02 of L1C.
# Chips published in both forms agree with it to the JPEG's own noise.
EUROSAT_RGB_BANDS = ("B04", "B03", "B02")
EUROSAT_RGB_WHITE = 0.2750  # the reflectance that became 255; brighter pixels are cut off
EUROSAT_SHAPE = (64, 64)
EUROSAT_HOME = "https://zenodo.org/records/7711810"
MEMBER_LIMIT = 1 << 22  # bytes; an uncompressed 13-band chip has 107 kB, so a larger member is no EuroSAT chip
PLACE_KM = 100  # side of the cells of a chip's own UTM zone that count as one place


# The word before the colon: the module that reads what comes after it, and its function there.
KINDS = {
    "eurosat-rgb": ("opening", "read_eurosat_rgb"),
    "eurosat-ms": ("opening", "read_eurosat_ms"),
    "geobench": ("published.geobench", "read_geobench"),
    "resisc45": ("published.resisc_segmunich", "read_resisc45"),
    "segmunich": ("published.resisc_segmunich", "read_segmunich"),
    "ombria": ("published.floods", "read_ombria"),
    "sen1floods11": ("published.floods", "read_sen1floods11"),
    "hyperspectral": ("published.hyperspectral", "read_hyperspectral"),
    "tortilla": ("published.geobench2", "read_tortilla"),
    "chips": ("chip_folder", "read_chips"),
}


def open_labelled(spec: str) -> LabelledImages:
    """Labelled images from one word: a kind of `KINDS` with a path and words for it, or a labelled store.

    `eurosat-ms:EuroSAT_MS.zip`, `geobench:classification_v1.0/m-eurosat#published`, `chips:PATH`, `PATH[#sensor]`:
    docs/datasets.md has them all.

    Raises:
        DataError: nothing there, or not in the published form; a store without labels or of several sensors.
        ConfigError: a word after the `#` that the kind does not know.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind in KINDS:
        module, function = KINDS[kind]
        read: Callable[[str], LabelledImages] = getattr(import_module(f"dofa.datasets.{module}"), function)
        return read(rest)
    if re.fullmatch(r"[\w-]{2,}", kind) and colon and not rest.startswith("//") and not Path(spec).exists():
        raise DataError(f"no kind of data set {kind!r}: {nearest(kind, KINDS)} (or the folder of a labelled store)")
    url, _, wanted = spec.partition("#")
    stores = {name: s for name, s in open_stores(url).items() if s.labels is not None}
    if wanted:
        stores = {name: s for name, s in stores.items() if name == wanted}
    if not stores:
        raise DataError(
            f"{spec} holds no labelled images{f' of sensor {wanted}' if wanted else ''}: pass a store packed with "
            f"labels, or a kind and a path: {', '.join(f'{kind}:PATH' for kind in KINDS)}"
        )
    if len(stores) > 1:
        raise DataError(f"{spec} holds several labelled sensors, choose one: {', '.join(f'{url}#{n}' for n in stores)}")
    return read_labelled_store(next(iter(stores.values())))


def read_eurosat_rgb(path: str | Path) -> LabelledImages:
    """EuroSAT's 8-bit RGB form: `<Class>/<Class>_<n>.jpg`, in the published zip or unpacked, at any depth.

    Physical values are top-of-atmosphere reflectance, undone from the authors' rendering: 1–255 stand for 0–0.275.

    Args:
        path: EuroSAT_RGB.zip or a folder; `eurosat-{train,val,test}.txt` may lie in it or beside the zip.

    Raises:
        DataError: nothing there (the message says where to get it), a class twice, a file that is no such image.

    Source: Helber et al. 2019, doi 10.1109/JSTARS.2019.2918242; data doi 10.5281/zenodo.7711810.
    """
    l1c = sensors.get("sentinel-2-l1c")
    bands = tuple(l1c.band(name) for name in EUROSAT_RGB_BANDS)
    scale = EUROSAT_RGB_WHITE / 254
    sensor = Sensor(
        name="eurosat-rgb",
        bands=bands,
        gsd_m=10.0,
        title="EuroSAT RGB: Sentinel-2 L1C rendered to 8 bits",
        platform=l1c.platform,
        product="EuroSAT",
        level="TOA reflectance, cut off at 0.275",
        scaling=Scaling.uniform("reflectance", [b.name for b in bands], scale, -scale),
        renderings={"rgb": EUROSAT_RGB_BANDS},
        sources=({"what": "rendering to 8 bits", "status": "looked-up", "where": "github.com/phelber/EuroSAT, FAQ"},),
    )
    return _eurosat(Path(path), "RGB", ".jpg", sensor, _decode_jpeg)


def read_eurosat_ms(path: str | Path) -> LabelledImages:
    """EuroSAT's 13-band form: `<Class>/<Class>_<n>.tif`, uint16, in the published zip or unpacked, at any depth.

    Bands are in the order of the files, B8A last. Places are the 100 km cells of each chip's own georeference.

    Args:
        path: EuroSAT_MS.zip or EuroSATallBands.zip, or a folder; split lists as for RGB.

    Raises:
        DataError: as `read_eurosat_rgb`.

    Source: as `read_eurosat_rgb`; the band order is that of the files (the red edge of B8A is in the last band).
    """
    sensor = sensors.get("sentinel-2-l1c").select(EUROSAT_BANDS)
    if sensor.scaling is None:
        raise DataError("sensor sentinel-2-l1c of the catalogue has no scaling: EuroSAT MS needs reflectance × 10⁴")
    return _eurosat(Path(path), "MS", ".tif", sensor, _decode_tif)


def read_labelled_store(store: SensorStore) -> LabelledImages:
    """The labelled samples of one sensor's packed corpus, with its own splits, places and corpus statistics.

    Raises:
        DataError: the store has no labels.
    """
    labels = store.labels
    if labels is None:
        raise DataError(f"store {store.name} has no labels: pack it from labelled images")
    rows = np.flatnonzero(np.asarray(labels) >= 0)
    splits: tuple[Split, ...] = ("train", "val", "test")
    split_of = {row: split for split in splits for row in store.indices(split).tolist()}
    return LabelledImages(
        name=store.name,
        sensor=store.sensor,
        scaling=store.scaling.without_stats(),
        class_names=tuple(store.class_names),
        labels=np.asarray(labels)[rows].astype(np.int64),
        sources=tuple(store.sources(rows)),
        shape=store.shape,
        read=lambda index: store.read(int(rows[index])),
        fingerprint=digest([store.name, store.digest, rows.tolist()]),
        find_places=lambda: tuple(store.places(rows)),
        find_splits=lambda: tuple(split_of[row] for row in rows.tolist()),
        corpus_scaling=store.scaling,
    )


@dataclass(frozen=True)
class _Chip:
    """One file of EuroSAT: where it is, what it is called, how its bytes are read, and what tells a change."""

    source: str
    label: int
    number: int
    load: Callable[[], bytes] = field(repr=False)
    state: tuple[int, ...]

    @property
    def stem(self) -> str:
        return f"{EUROSAT_CLASSES[self.label]}_{self.number}"


def _eurosat(
    path: Path, form: str, suffix: str, sensor: Sensor, decode: Callable[[bytes, str], NDArray[Any]]
) -> LabelledImages:
    chips = _zip_chips(path, suffix) if path.is_file() else _folder_chips(path, suffix)
    if not chips:
        found = "is empty of" if path.exists() else "does not exist, so there are no"
        raise DataError(
            f"{path} {found} EuroSAT {form} images: get EuroSAT_{form}.zip from {EUROSAT_HOME} and pass the zip or the "
            f"unpacked folder, which holds <Class>/<Class>_<n>{suffix} such as AnnualCrop/AnnualCrop_1{suffix}"
        )
    chips = sorted(chips, key=lambda c: (c.label, c.number))
    for one, two in pairwise(chips):
        if one.stem == two.stem:
            raise DataError(f"{one.stem} is there twice, at {one.source} and {two.source}: keep one copy of the set")
    shape = (len(sensor.bands), *EUROSAT_SHAPE)

    def read(index: int) -> Raw:
        raw = decode(chips[index].load(), chips[index].source)
        if raw.shape != shape:
            raise DataError(f"{chips[index].source} has shape {raw.shape}; EuroSAT {form} images have {shape}")
        return raw, None

    assert sensor.scaling is not None
    return LabelledImages(
        name=f"eurosat-{form.lower()}",
        sensor=sensor,
        scaling=sensor.scaling.without_stats(),
        class_names=EUROSAT_CLASSES,
        labels=np.array([c.label for c in chips], np.int64),
        sources=tuple(c.source for c in chips),
        shape=shape,
        read=read,
        fingerprint=digest([form, [(c.stem, *c.state) for c in chips]]),
        find_places=(lambda: _tif_places(chips)) if suffix == ".tif" else (lambda: None),
        find_splits=lambda: _eurosat_splits(path, chips),
    )


def _label_and_number(name: PurePosixPath | Path, suffix: str) -> tuple[int, int] | None:
    """The class and number a file's place says, None for a file that is no EuroSAT image."""
    match = re.fullmatch(r"([A-Za-z]+)_([0-9]+)", name.stem)
    if name.suffix.lower() != suffix or match is None or match[1] != name.parent.name:
        return None
    return (EUROSAT_CLASSES.index(match[1]), int(match[2])) if match[1] in EUROSAT_CLASSES else None


def _zip_chips(path: Path, suffix: str) -> list[_Chip]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is not a whole zip ({error}): download it again from {EUROSAT_HOME}") from None
    chips = []
    for info in archive.infolist():
        name = PurePosixPath(info.filename)
        if name.is_absolute() or ".." in name.parts:
            raise DataError(
                f"{path} has the member {info.filename!r}, which leads out of it: this is not EuroSAT's zip"
            )
        known = _label_and_number(name, suffix)
        if known is None:
            continue
        source = f"{path}!{info.filename}"
        if info.file_size > MEMBER_LIMIT:
            raise DataError(f"{source} would unpack to {info.file_size} bytes: this is no EuroSAT image")

        def load(info: zipfile.ZipInfo = info, source: str = source) -> bytes:
            try:
                return archive.read(info)
            except (zipfile.BadZipFile, zipfile.zlib.error, EOFError) as error:  # type: ignore[attr-defined]
                raise DataError(f"{source} is damaged ({error}): download the zip again") from None

        chips.append(_Chip(source, *known, load, (info.CRC, info.file_size)))
    return chips


def _folder_chips(path: Path, suffix: str) -> list[_Chip]:
    chips = []
    for file in path.rglob(f"*{suffix}"):
        known = _label_and_number(file, suffix)
        if known is not None:
            stat = file.stat()
            chips.append(_Chip(str(file), *known, file.read_bytes, (stat.st_size, stat.st_mtime_ns)))
    return chips


def _eurosat_splits(path: Path, chips: list[_Chip]) -> tuple[str, ...] | None:
    """The published split of each chip; the lists name `.jpg` files for both forms."""
    folder = path.parent if path.is_file() else path
    files = {split: folder / f"eurosat-{split}.txt" for split in ("train", "val", "test")}
    present = [f.name for f in files.values() if f.is_file()]
    if not present:
        return None
    if len(present) < len(files):
        raise DataError(f"{folder} has {', '.join(present)} but not all of eurosat-train, -val and -test.txt")
    split_of: dict[str, str] = {}
    for split, file in files.items():
        for name in " ".join(read_lines(file)).split():
            stem = PurePosixPath(name).stem
            if split_of.setdefault(stem, split) != split:
                raise DataError(f"{stem} is listed in eurosat-{split_of[stem]}.txt and in {file.name}")
    here = {c.stem for c in chips}
    for what, names in (
        ("are in no split list", here - set(split_of)),
        ("are listed but absent", set(split_of) - here),
    ):
        if names:
            raise DataError(
                f"{len(names)} images {what} of {folder}, {min(names)} for one: the published split needs the whole "
                "set; use folds on a part of it"
            )
    return tuple(split_of[c.stem] for c in chips)


def _decode_jpeg(data: bytes, source: str) -> NDArray[np.uint8]:
    return read_picture(data, source, ["JPEG"]).transpose(2, 0, 1)


def _decode_tif(data: bytes, source: str) -> NDArray[np.uint16]:
    raw = read_geotiff(data, source)
    if raw.dtype != np.uint16:
        raise DataError(f"{source} has {raw.dtype} values; EuroSAT MS images are uint16, reflectance × 10⁴")
    return raw


def _tif_places(chips: list[_Chip]) -> tuple[str, ...] | None:
    """Cells of 100 km of each chip's UTM zone, None as soon as one chip has no georeference."""
    from rasterio.io import MemoryFile

    places = []
    for chip in chips:
        with MemoryFile(chip.load()) as memory, memory.open(driver="GTiff") as dataset:
            if dataset.crs is None or not dataset.crs.is_projected:
                return None
            east, north = (int(v // (PLACE_KM * 1000)) for v in (dataset.bounds.left, dataset.bounds.top))
            places.append(f"{dataset.crs.to_string()} {east} {north}")
    return tuple(places)
