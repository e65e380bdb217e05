"""Two published sets of flood masks: OMBRIA (8-bit pictures) and Sen1Floods11 (chips labelled by hand).

Each image keeps the numbers of its file; masks become classes 0 and 1, with `IGNORE` where nobody labelled.
"""

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa import sensors
from dofa.datasets.labelled import IGNORE, LabelledImages, Raw, digest, file_state, read_lines, split_words, value_of
from dofa.errors import ConfigError, DataError
from dofa.pixels import Scaling
from dofa.raster.in_memory import decoding
from dofa.sensors import Band, Sensor

OMBRIA_HOME = "https://github.com/geodrak/OMBRIA"
OMBRIA_SIZE = 256
OMBRIA_LIMIT = 1 << 21  # bytes; 256² of 8-bit RGB have 197 kB before compression
# Nobody wrote down the channels. In the images the first two halve over floods and the third does not change, and the
# first and third correlate by 0.66: no true colour; short-wave infrared, near infrared and red would look so.
OMBRIA_S2_BANDS = ("B11", "B08", "B04")
FLOOD = ((222, 203, 164), (30, 110, 200))  # colours of dry ground and water

SEN1FLOODS11_HOME = "https://github.com/cloudtostreet/Sen1Floods11 (gsutil -m rsync -r gs://sen1floods11 DIR)"
SEN1FLOODS11_SIZE = 512
SEN1FLOODS11_LISTS = {"train": "train", "valid": "val", "test": "test", "bolivia": "test"}
SEN1FLOODS11_S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
HAND = Path("data") / "flood_events" / "HandLabeled"

Words = list[str]


@dataclass(frozen=True)
class _File:
    """A picture of a folder or a zip."""

    source: str
    load: Callable[[], bytes] = field(repr=False)
    state: tuple[int, ...]


def read_ombria(spec: str) -> LabelledImages:
    """OMBRIA: pictures of 256 × 256 pixels taken after a flood, with its mask, by radar or by an optical camera.

    Args:
        spec: the folder that holds OmbriaS1 and OmbriaS2, or a zip of it, and words: `PATH#s1` or `PATH#s2` choose the
            sensor; `before` stacks the image before the flood and the one after it; `bands=B04+B03+B02` says which
            bands of Sentinel-2 the three channels are.

    Returns:
        Segmentation, classes dry and flood; the published split into train and test.

    Raises:
        DataError: nothing there (the message says where to get it), an image without its mask, no such picture.
        ConfigError: no sensor chosen, an unknown word.

    Source: Drakonakis et al. 2022, doi 10.1109/JSTARS.2022.3155559.
    """
    path, words = split_words(spec, ("s1", "s2", "before", "bands="))
    which = _one_of(spec, words, "s1", "s2").upper()
    times = ("BEFORE", "AFTER") if "before" in words else ("AFTER",)
    files = _ombria_files(path)
    keys = sorted((key for key in files if key[0] == which and key[2] == "AFTER"), key=lambda k: (k[3], k[1]))
    if not keys:
        raise DataError(
            f"{path} {'holds no' if path.exists() else 'does not exist: no'} OMBRIA pictures of {which}: get the set "
            f"from {OMBRIA_HOME}; the folder then holds OmbriaS1 and OmbriaS2, and those "
            "train/AFTER/S1_after_0001.png, train/MASK/S1_mask_0001.png and so on"
        )
    for one, two in pairwise(keys):
        if one[3] == two[3]:
            raise DataError(f"{path}: {which} {one[3]} is in {one[1]} and in {two[1]}: keep the published split")
    images, masks, borrowed = [], [], 0
    for _, split, _, number in keys:
        images.append([_ombria_part(files, path, (which, split, time, number)) for time in times])
        # Both sensors share one mask; copies of the set sometimes carry it with the radar only.
        own, other = ((sensor, split, "MASK", number) for sensor in (which, "S1" if which == "S2" else "S2"))
        borrowed += own not in files
        masks.append(files[own] if own in files else _ombria_part(files, path, other, f"{which} {number}"))
    sensor = _ombria_sensor(which, times, value_of(words, "bands"))
    notes = [
        "8-bit pictures: how decibels or reflectance became them is not documented",
        "doubtful: the polarisation of the radar picture is not documented; taken as VV"
        if which == "S1"
        else "doubtful: the channels are not documented; taken as " + ", ".join(sensor.band_names[:3]),
        "no place is stored: pictures of one flood can be on both sides of a split",
    ]
    if borrowed:
        notes.append(f"{borrowed} masks are those stored with the other sensor, which shows the same ground")

    def read(index: int) -> Raw:
        parts = [_ombria_picture(file, "L" if which == "S1" else "RGB") for file in images[index]]
        return np.concatenate(parts), None

    def read_mask(index: int) -> NDArray[np.int16]:
        raw = _ombria_picture(masks[index], "L")[0]
        foreign = set(np.unique(raw).tolist()) - {0, 1, 255}
        if foreign:
            raise DataError(f"{masks[index].source}: a mask of 0 and 255 is expected; it holds {min(foreign)}")
        return np.asarray(raw > 0, np.int16)

    assert sensor.scaling is not None
    count = len(keys)
    return LabelledImages(
        name=f"ombria-{which.lower()}",
        sensor=sensor,
        scaling=sensor.scaling,
        class_names=("dry", "flood"),
        labels=np.zeros(count, np.int64),
        sources=tuple(parts[-1].source for parts in images),
        shape=(len(sensor.bands), OMBRIA_SIZE, OMBRIA_SIZE),
        read=read,
        fingerprint=digest(["ombria", which, times, keys, [[f.state for f in parts] for parts in images],
                            [mask.state for mask in masks]]),
        find_splits=lambda: _ombria_splits([key[1] for key in keys]),
        task="segmentation",
        read_mask=read_mask,
        colours=FLOOD,
        notes=tuple(notes),
    )  # fmt: skip


def read_sen1floods11(spec: str) -> LabelledImages:
    """Sen1Floods11's hand-labelled chips of 512 × 512 pixels.

    Args:
        spec: the folder of v1.1, or the one that holds S1Hand, S2Hand and LabelHand, and words: `PATH#s1` (VV, VH in
            dB) or `PATH#s2` (13 bands) choose the sensor; `bolivia` judges on the region kept aside instead of the
            test chips.

    Returns:
        Segmentation, classes dry and water, `IGNORE` where nobody labelled; places are the regions. Where the official
        lists are there, only the chips they name, with their splits; else every chip.

    Raises:
        DataError: nothing there (the message says where to get it), an image without its mask, another form.
        ConfigError: no sensor chosen, an unknown word, `bolivia` without the lists.

    Source: Bonafilia et al. 2020, doi 10.1109/CVPRW50498.2020.00113.
    """
    path, words = split_words(spec, ("s1", "s2", "bolivia"))
    which = _one_of(spec, words, "s1", "s2").upper()
    base = next((f for f in (path, path / HAND, path / "v1.1" / HAND) if (f / "LabelHand").is_dir()), path)
    folder = base / f"{which}Hand"
    stems = [file.name.removesuffix(f"_{which}Hand.tif") for file in sorted(folder.glob(f"*_{which}Hand.tif"))]
    if not stems:
        raise DataError(
            f"{path} {'holds no chips of' if path.exists() else 'does not exist: no'} {which}: get Sen1Floods11 from "
            f"{SEN1FLOODS11_HOME}; the folder then holds {HAND}/{which}Hand/<Region>_<id>_{which}Hand.tif and "
            "LabelHand, and splits/flood_handlabeled with the lists"
        )
    lists, where = _sen1floods11_lists(base, "bolivia" in words)
    if "bolivia" in words and lists is None:
        raise ConfigError(f"{spec}: bolivia needs the official lists, splits/flood_handlabeled/flood_*_data.csv")
    notes = []
    if lists is not None:
        aside = len([s for s in stems if s not in lists])
        stems = [s for s in stems if s in lists]
        test = "Bolivia's" if "bolivia" in words else "the test list's"
        notes.append(f"judged on {test} chips; {aside} chips that are in no list of these stand aside")
        if not stems:
            raise DataError(f"{folder} holds none of the chips listed in {where}: fetch the set again")
    else:
        notes.append("the official lists are not there: every chip of the folder, and no published split")
    images = [folder / f"{stem}_{which}Hand.tif" for stem in stems]
    masks = [base / "LabelHand" / f"{stem}_LabelHand.tif" for stem in stems]
    absent = [mask.name for mask in masks if not mask.is_file()]
    if absent:
        raise DataError(f"{base / 'LabelHand'} lacks {len(absent)} masks, {absent[0]} for one: fetch the set again")
    catalogued = sensors.get("sentinel-1-grd" if which == "S1" else "sentinel-2-l1c")
    sensor = catalogued if which == "S1" else catalogued.select(SEN1FLOODS11_S2)
    assert sensor.scaling is not None

    def read(index: int) -> Raw:
        raw = _read_tif(images[index], (len(sensor.bands), SEN1FLOODS11_SIZE, SEN1FLOODS11_SIZE))
        # Radar says NaN where it has nothing; Sentinel-2 says 0 in all bands.
        valid = np.isfinite(raw).all(0) if which == "S1" else (raw != 0).any(0)
        return raw, None if valid.all() else valid

    def read_mask(index: int) -> NDArray[np.int16]:
        raw = _read_tif(masks[index], (1, SEN1FLOODS11_SIZE, SEN1FLOODS11_SIZE))[0]
        foreign = set(np.unique(raw).tolist()) - {-1, 0, 1}
        if foreign:
            raise DataError(f"{masks[index]}: labels are -1, 0 and 1; it holds {min(foreign)}")
        return np.where(raw == -1, IGNORE, raw).astype(np.int16)

    return LabelledImages(
        name=f"sen1floods11-{which.lower()}",
        sensor=sensor,
        scaling=sensor.scaling.without_stats(),
        class_names=("dry", "water"),
        labels=np.zeros(len(stems), np.int64),
        sources=tuple(map(str, images)),
        shape=(len(sensor.bands), SEN1FLOODS11_SIZE, SEN1FLOODS11_SIZE),
        read=read,
        fingerprint=digest(["sen1floods11", which, [[f.name, *file_state(f)] for f in (*images, *masks)]]),
        find_places=lambda: tuple(stem.rpartition("_")[0] for stem in stems),
        find_splits=lambda: _listed_splits(lists, stems, where),
        task="segmentation",
        read_mask=read_mask,
        ignore=IGNORE,
        colours=FLOOD,
        notes=tuple(notes),
    )


def _one_of(spec: str, words: Sequence[str], one: str, two: str) -> str:
    said = [word for word in words if word in (one, two)]
    if len(said) != 1:
        raise ConfigError(f"{spec}: choose one sensor, {spec.partition('#')[0]}#{one} (radar) or #{two} (optical)")
    return said[0]


def _ombria_files(path: Path) -> dict[tuple[str, str, str, str], _File]:
    """Every picture by sensor, split, time and number, at any depth."""
    files: dict[tuple[str, str, str, str], _File] = {}
    if path.is_file():
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise DataError(f"{path} is not a whole zip ({error}): download it again from {OMBRIA_HOME}") from None
        for info in archive.infolist():
            key = _ombria_key(PurePosixPath(info.filename))
            if key is None:
                continue
            source = f"{path}!{info.filename}"
            if info.file_size > OMBRIA_LIMIT:
                raise DataError(f"{source} would unpack to {info.file_size} bytes: this is no OMBRIA picture")

            def load(info: zipfile.ZipInfo = info, source: str = source) -> bytes:
                try:
                    return archive.read(info)
                except (zipfile.BadZipFile, zipfile.zlib.error, EOFError) as error:  # type: ignore[attr-defined]
                    raise DataError(f"{source} is damaged ({error}): download the zip again") from None

            files[key] = _File(source, load, (info.CRC, info.file_size))
    else:
        for file in path.rglob("*.png"):
            key = _ombria_key(file)
            if key is not None:
                files[key] = _File(str(file), file.read_bytes, tuple(file_state(file)))
    return files


def _ombria_key(name: PurePosixPath | Path) -> tuple[str, str, str, str] | None:
    match = re.search(r"Ombria(S[12])/(train|test)/(BEFORE|AFTER|MASK)/\1_([a-z]+)_(\d+)\.png$", name.as_posix())
    return (match[1], match[2], match[3], match[5]) if match and match[4] == match[3].lower() else None


def _ombria_part(
    files: dict[tuple[str, str, str, str], _File], path: Path, key: tuple[str, str, str, str], of: str = ""
) -> _File:
    if key not in files:
        sensor, split, time, number = key
        name = f"Ombria{sensor}/{split}/{time}/{sensor}_{time.lower()}_{number}.png"
        cure = "fetch the set again, or leave out the word before" if time == "BEFORE" else "fetch the set again"
        raise DataError(f"{path} lacks {name}{f', the mask of {of}' if of else ''}: {cure}")
    return files[key]


def _ombria_sensor(which: str, times: Sequence[str], said: str | None) -> Sensor:
    if which == "S1":
        if said is not None:
            raise ConfigError("#bands= is for the three channels of OMBRIA's Sentinel-2; its radar has one")
        one: tuple[Band, ...] = (Band("VV", None, kind="sar", polarisation="VV"),)
    else:
        l1c = sensors.get("sentinel-2-l1c")
        one = tuple(l1c.band(name) for name in (said.split("+") if said else OMBRIA_S2_BANDS))
        if len(one) != 3:
            raise ConfigError(f"#bands={said}: name three bands, such as B04+B03+B02")
    bands = tuple(
        band if len(times) == 1 else replace(band, name=f"{band.name}-{time.lower()}", aliases=())
        for time in times
        for band in one
    )
    names = [band.name for band in bands]
    return Sensor(
        name=f"ombria-{which.lower()}" + ("-change" if len(times) > 1 else ""),
        bands=bands,
        gsd_m=10.0,
        title=f"OMBRIA: Sentinel-{which[1]} as 8-bit pictures",
        platform=f"sentinel-{which[1]}",
        product="OMBRIA",
        level="8-bit rendering",
        scaling=Scaling.uniform("uint8", names, 1.0),
        renderings={"rgb": (names[-3], names[-2], names[-1])} if which == "S2" else {},
    )


def _ombria_picture(file: _File, mode: str) -> NDArray[np.uint8]:
    """(C, H, W) of a PNG of that mode."""
    from PIL import Image

    with decoding(file.source, "PNG"), Image.open(io.BytesIO(file.load()), formats=["PNG"]) as image:
        if image.mode != mode or image.size != (OMBRIA_SIZE, OMBRIA_SIZE):
            raise DataError(
                f"{file.source} is {image.mode} of {image.size[0]} × {image.size[1]} pixels; OMBRIA has {mode} of "
                f"{OMBRIA_SIZE} × {OMBRIA_SIZE}"
            )
        pixels = np.asarray(image)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def _ombria_splits(splits: Sequence[str]) -> tuple[str, ...] | None:
    return tuple(splits) if len(set(splits)) > 1 else None  # a part of one folder is no split


def _sen1floods11_lists(base: Path, bolivia: bool) -> tuple[dict[str, str] | None, Path]:
    """Split of each chip by the official lists, None where there are none, and the folder they are looked for in."""
    places = [base / "splits" / "flood_handlabeled", *(p / "splits" / "flood_handlabeled" for p in base.parents[:3])]
    folder = next((p for p in places if (p / "flood_train_data.csv").is_file()), places[0])
    if not folder.is_dir():
        return None, folder
    splits: dict[str, str] = {}
    for name in ("train", "valid", "bolivia" if bolivia else "test"):
        file = folder / f"flood_{name}_data.csv"
        if not file.is_file():
            raise DataError(f"{folder} has no {file.name}: fetch the lists again, or move them away to use folds")
        for line in read_lines(file):
            match = re.match(r"(\S+)_S1Hand\.tif\s*,", line)
            if match is None:
                raise DataError(f"{file}: {line[:60]!r} is no line of a radar chip and its mask: fetch the lists again")
            split = SEN1FLOODS11_LISTS[name]
            if splits.setdefault(match[1], split) != split:
                raise DataError(f"{file} lists {match[1]}, which is in {splits[match[1]]} already: fetch them again")
    return splits, folder


def _listed_splits(lists: dict[str, str] | None, stems: Sequence[str], where: Path) -> tuple[str, ...] | None:
    if lists is None:
        return None
    absent = sorted(set(lists) - set(stems))
    if absent:
        raise DataError(
            f"{len(absent)} chips listed in {where} are absent, {absent[0]} for one: the published split needs the "
            "whole set; use folds on a part of it"
        )
    return tuple(lists[stem] for stem in stems)


def _read_tif(file: Path, shape: tuple[int, int, int]) -> NDArray[Any]:
    import rasterio

    with decoding(str(file), "GeoTIFF"), rasterio.open(file, driver="GTiff") as dataset:
        found = (dataset.count, dataset.height, dataset.width)
        if found != shape:
            raise DataError(f"{file} has {found[0]} bands of {found[1]} × {found[2]} pixels; {shape} are expected")
        raw: NDArray[Any] = dataset.read()
    return raw
