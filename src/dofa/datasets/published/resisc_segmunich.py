"""RESISC45 and SegMunich in their published folders."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa import sensors
from dofa.datasets.labelled import IGNORE, LabelledImages, Raw, digest, file_state, read_lines, split_words, value_of
from dofa.errors import DataError
from dofa.pixels import Scaling
from dofa.raster.in_memory import decoding
from dofa.sensors import Band

RESISC45_HOME = "https://huggingface.co/datasets/torchgeo/resisc45"
RESISC45_SIZE = 256
RESISC45_CLASSES = (
    "airplane", "airport", "baseball_diamond", "basketball_court", "beach", "bridge", "chaparral", "church",
    "circular_farmland", "cloud", "commercial_area", "dense_residential", "desert", "forest", "freeway", "golf_course",
    "ground_track_field", "harbor", "industrial_area", "intersection", "island", "lake", "meadow",
    "medium_residential", "mobile_home_park", "mountain", "overpass", "palace", "parking_lot", "railway",
    "railway_station", "rectangular_farmland", "river", "roundabout", "runway", "sea_ice", "ship", "snowberg",
    "sparse_residential", "stadium", "storage_tank", "tennis_court", "terrace", "thermal_power_station", "wetland",
)  # fmt: skip
RESISC45_PUBLISHED = (0.665, 0.56, 0.49)  # what DOFA's evaluation fed for red, green, blue

SEGMUNICH_HOME = "https://zenodo.org/records/8412455 (or https://huggingface.co/datasets/XShadow/SegMunich)"
SEGMUNICH_SIZE = 128
# One loader of the set says so; B02 to B08, B8A, B11, B12 is as plausible.
SEGMUNICH_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B8A", "B11", "B12")
SEGMUNICH_CODES = {0: 0, 21: 1, 22: 2, 23: 3, 31: 4, 5: 5, 32: 6, 33: 7, 41: 8, 13: 9, 14: 10, 11: 11, 12: 12,
                   255: IGNORE}  # fmt: skip
SEGMUNICH_CLASSES = (
    "background", "arable land", "permanent crops", "pastures", "forests", "surface water", "shrub", "open spaces",
    "wetlands", "mine dump", "artificial vegetation", "urban fabric", "buildings",
)  # fmt: skip
SEGMUNICH_COLOURS = (
    (0, 0, 0), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0),
)  # fmt: skip


def read_resisc45(spec: str) -> LabelledImages:
    """NWPU-RESISC45: 45 classes of 700 colour pictures of 256 × 256 pixels.

    Args:
        spec: the folder NWPU-RESISC45, which holds `<class>/<class>_001.jpg`, or the one above it; `PATH#published`
            gives red, green and blue the wavelengths of DOFA's evaluation.

    Returns:
        The images by class and number. Splits are those of `resisc45-{train,val,test}.txt` beside or in the folder, or
        of `train.txt` and `val.txt` in it, whose second list is then the test.

    Raises:
        DataError: nothing there (the message says where to get it), a file that is no such picture, lists that are
            not of this set.
        ConfigError: an unknown word.

    Source: Cheng et al. 2017, doi 10.1109/JPROC.2017.2675998.
    """
    path, words = split_words(spec, ("published",))
    folder = path / "NWPU-RESISC45" if (path / "NWPU-RESISC45").is_dir() else path
    files = [f for name in RESISC45_CLASSES for f in sorted((folder / name).glob(f"{name}_[0-9]*.jpg"))]
    if not files:
        raise DataError(
            f"{folder} {'holds no RESISC45 pictures' if folder.is_dir() else 'does not exist'}: get NWPU-RESISC45 "
            f"from {RESISC45_HOME}; the folder then holds airplane/airplane_001.jpg … wetland/wetland_700.jpg"
        )
    labels = [RESISC45_CLASSES.index(file.parent.name) for file in files]
    sensor, notes = sensors.get("rgb-aerial"), ["0.2 to 30 m a pixel; which picture has which is not said"]
    if "published" in words:
        bands = tuple(Band(b.name, w) for b, w in zip(sensor.bands, RESISC45_PUBLISHED, strict=True))
        sensor = replace(sensor, name="resisc45-published", bands=bands, aliases=())
    lists, doubles = _resisc45_lists(folder)
    if doubles:
        notes.append("train.txt and val.txt: the second list is judged on, and must not choose anything")

    def read(index: int) -> Raw:
        return _read_jpeg(files[index]), None

    assert sensor.scaling is not None
    return LabelledImages(
        name="resisc45",
        sensor=sensor,
        scaling=sensor.scaling.without_stats(),
        class_names=tuple(name.replace("_", " ") for name in RESISC45_CLASSES),
        labels=np.array(labels, np.int64),
        sources=tuple(map(str, files)),
        shape=(3, RESISC45_SIZE, RESISC45_SIZE),
        read=read,
        fingerprint=digest(["resisc45", [[f.name, *file_state(f)] for f in files], sorted(words)]),
        find_splits=lambda: _splits(lists, [f.stem for f in files], folder),
        notes=tuple(notes),
    )


def read_segmunich(spec: str) -> LabelledImages:
    """SegMunich: Sentinel-2 of 10 bands over Munich, 128 × 128 pixels, with 13 classes a pixel.

    Args:
        spec: the folder that holds train.txt and the folder train, or the one above it (`dataset`);
            `PATH#bands=B02+B03+…` names the ten bands where they are known better than here.

    Returns:
        The images of the lists, with their splits: train, and val or test, whichever the copy has.

    Raises:
        DataError: nothing there (the message says where to get it), a listed file that is absent or of another form,
            a label that is none of the set's.
        ConfigError: an unknown word or band.

    Source: Hong et al. 2024 (SpectralGPT), doi 10.1109/TPAMI.2024.3362475.
    """
    path, words = split_words(spec, ("bands=",))
    folder = path / "dataset" if (path / "dataset").is_dir() else path
    lists = {name: folder / f"{name}.txt" for name in ("train", "val", "test") if (folder / f"{name}.txt").is_file()}
    if "train" not in lists:
        raise DataError(
            f"{folder} {'has no train.txt' if folder.is_dir() else 'does not exist'}: get SegMunich from "
            f"{SEGMUNICH_HOME}; the folder then holds train.txt, val.txt or test.txt, and for each of them "
            "train/img/<id>.tif and train/label/<id>.tif"
        )
    images, masks, splits = [], [], []
    for name, file in lists.items():
        for stem in read_lines(file):
            if not re.fullmatch(r"[\w.-]+", stem) or stem.startswith("."):
                raise DataError(f"{file}: {stem[:60]!r} is no name of a chip: fetch the set again")
            stem = stem.removesuffix(".tif")
            images.append(folder / name / "img" / f"{stem}.tif")
            masks.append(folder / name / "label" / f"{stem}.tif")
            splits.append(name)
    if not images:
        raise DataError(f"{folder}: its lists name no chips: fetch the set again")
    absent = [file for pair in zip(images, masks, strict=True) for file in pair if not file.is_file()]
    if absent:
        raise DataError(f"{len(absent)} files listed in {folder} are absent, {absent[0]} for one: fetch the set again")
    said = value_of(words, "bands")
    sensor = sensors.get("sentinel-2-l2a").select(said.split("+") if said else SEGMUNICH_BANDS)
    if len(sensor.bands) != len(SEGMUNICH_BANDS):
        raise DataError(f"{spec}: SegMunich has {len(SEGMUNICH_BANDS)} bands; {len(sensor.bands)} are named")
    notes = [
        "doubtful: read as surface reflectance × 10⁴ (L2A), which the statistics in use imply",
        "class 0, background, counts as a class",
    ]
    if not said:
        order = ", ".join(SEGMUNICH_BANDS)
        notes.insert(0, f"doubtful: bands taken as {order}; B02 to B08, B8A, B11, B12 is as plausible: #bands=")

    def read(index: int) -> Raw:
        raw = _read_planes(images[index], len(SEGMUNICH_BANDS))
        if raw.dtype.kind != "f":
            return raw, None
        valid = np.isfinite(raw).all(0)
        return raw, None if valid.all() else valid

    def read_mask(index: int) -> NDArray[np.int16]:
        raw = _read_planes(masks[index], 1)[0]
        codes = np.unique(raw)
        if foreign := [code for code in codes.tolist() if code not in SEGMUNICH_CODES]:
            raise DataError(f"{masks[index]} holds the label {foreign[0]}, which SegMunich does not have")
        classes = np.array([SEGMUNICH_CODES[code] for code in codes.tolist()], np.int16)
        mask: NDArray[np.int16] = classes[np.searchsorted(codes, raw)]
        return mask

    if "val" in lists and "test" not in lists:
        notes.append("this copy has train and val: the second list is judged on, and must not choose anything")
        splits = ["test" if name == "val" else name for name in splits]
    return LabelledImages(
        name="segmunich",
        sensor=sensor,
        scaling=Scaling.uniform("reflectance", sensor.band_names, 1e-4),
        class_names=SEGMUNICH_CLASSES,
        labels=np.zeros(len(images), np.int64),
        sources=tuple(map(str, images)),
        shape=(len(sensor.bands), SEGMUNICH_SIZE, SEGMUNICH_SIZE),
        read=read,
        fingerprint=digest(
            [
                "segmunich",
                sensor.band_names,
                [[f.relative_to(folder).as_posix(), *file_state(f)] for f in (*images, *masks)],
            ]
        ),
        find_splits=lambda: tuple(splits) if len(lists) > 1 else None,
        task="segmentation",
        read_mask=read_mask,
        ignore=IGNORE,
        colours=SEGMUNICH_COLOURS,
        notes=tuple(notes),
    )


def _resisc45_lists(folder: Path) -> tuple[dict[str, str] | None, bool]:
    """Split of each stem, None where there are no lists; whether they are train.txt and val.txt."""
    for place in (folder, folder.parent):
        files = {split: place / f"resisc45-{split}.txt" for split in ("train", "val", "test")}
        there = [file.name for file in files.values() if file.is_file()]
        if there and len(there) < len(files):
            raise DataError(f"{place} has {', '.join(there)} but not all of resisc45-train, -val and -test.txt")
        if there:
            return _read_lists(files), False
    files = {"train": folder / "train.txt", "test": folder / "val.txt"}
    return (_read_lists(files), True) if all(file.is_file() for file in files.values()) else (None, False)


def _read_lists(files: dict[str, Path]) -> dict[str, str]:
    """Split by stem; a line is `airplane_001.jpg`, with folders before it or a label after it, or not."""
    split_of: dict[str, str] = {}
    for split, file in files.items():
        for line in read_lines(file):
            stem = PurePosixPath(line.split()[0]).stem
            if split_of.setdefault(stem, split) != split:
                raise DataError(f"{file} lists {stem}, which is in {files[split_of[stem]].name} too: fetch the lists")
    return split_of


def _splits(lists: dict[str, str] | None, stems: Sequence[str], folder: Path) -> tuple[str, ...] | None:
    if lists is None:
        return None
    for what, names in (
        ("are in no split list", set(stems) - set(lists)),
        ("are listed but absent", set(lists) - set(stems)),
    ):
        if names:
            raise DataError(
                f"{len(names)} pictures {what} of {folder}, {min(names)} for one: the published split needs the whole "
                "set; use folds on a part of it"
            )
    return tuple(lists[stem] for stem in stems)


def _read_jpeg(file: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with decoding(str(file), "JPEG"), Image.open(file, formats=["JPEG"]) as image:
        if image.mode != "RGB" or image.size != (RESISC45_SIZE, RESISC45_SIZE):
            raise DataError(
                f"{file} is {image.mode} of {image.size[0]} × {image.size[1]} pixels; RESISC45 has RGB of "
                f"{RESISC45_SIZE} × {RESISC45_SIZE}"
            )
        return np.asarray(image).transpose(2, 0, 1)


def _read_planes(file: Path, count: int) -> NDArray[Any]:
    """(C, H, W) of a TIFF, which may keep its channels last."""
    import warnings

    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with decoding(str(file), "TIFF"), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the chips have no place
        with rasterio.open(file, driver="GTiff") as dataset:
            found = (dataset.count, dataset.height, dataset.width)
            if found != (count, SEGMUNICH_SIZE, SEGMUNICH_SIZE):
                raise DataError(
                    f"{file} has {found[0]} bands of {found[1]} × {found[2]} pixels; SegMunich has {count} of "
                    f"{SEGMUNICH_SIZE} × {SEGMUNICH_SIZE}"
                )
            raw: NDArray[Any] = dataset.read()
    return raw
