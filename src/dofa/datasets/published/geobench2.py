"""GEO-Bench-2 as it is published: a `.tortilla`, blobs back to back with a Parquet table of them behind.

Each row of the outer table is a sample, a tortilla of its own with one row a modality; offsets within it count from its
own beginning. Nothing is unpacked to disk.

Source: tacofoundation/tortilla-python, and the opened files of benv2, treesatai and pastis.
"""

import io
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.datasets.labelled import IGNORE, LabelledImages, Raw, digest, file_state, split_words, value_of
from dofa.datasets.published.geobench2_sets import BOXES, SETS, TortillaSet
from dofa.errors import ConfigError, DataError, nearest
from dofa.raster.in_memory import LARGEST, read_geotiff

HOME = "https://huggingface.co/aialliance"
MAGIC = b"#y"
HEAD = 200  # bytes before the first blob
SPLIT = {"train": "train", "validation": "val", "test": "test"}
BLOB_LIMIT = 1 << 28  # bytes; the largest part, a year of Sentinel-2 of 128 × 128 pixels, has about 20 MB
TABLE_LIMIT = 1 << 29


@dataclass(frozen=True)
class _Blob:
    """Where some bytes lie in a file."""

    file: Path
    offset: int
    length: int

    def read(self) -> bytes:
        with self.file.open("rb") as opened:
            opened.seek(self.offset)
            return opened.read(self.length)


def read_tortilla(spec: str) -> LabelledImages:
    """One set of GEO-Bench-2, one modality of it.

    Args:
        spec: the file, or the first of its parts (`geobench_pastis.0000.part.tortilla`; the others lie beside it), and
            words: `FILE#s1` names the modality, else the set's first; of a time series `date=N` takes the image of
            that date, from 0 or from -1 backwards, else the median over the dates is read.

    Returns:
        The images in the order of the tables, with their splits and places.

    Raises:
        DataError: nothing there (the message says where to get it), a file cut off or of another form, a set that is
            not known here or whose labels are boxes.
        ConfigError: an unknown word.
    """
    path = Path(spec.partition("#")[0])
    name = re.sub(r"(\.\d{4}\.part)?\.tortilla$", "", path.name).removeprefix("geobench_")
    if name in BOXES:
        raise DataError(
            f"{path}: its labels are boxes, and there is no detection here; m-nz-cattle of GEO-Bench v1 has masks"
        )
    if name not in SETS or path.suffix != ".tortilla":
        raise DataError(f"{path} is no set of GEO-Bench-2 that is read, {nearest(name, SETS)}: it is told by its name")
    known = SETS[name]
    _, words = split_words(spec, (*known.modalities, "date="))
    chosen = [word for word in words if word in known.modalities] or [next(iter(known.modalities))]
    if len(chosen) > 1:
        raise ConfigError(f"{spec}: choose one modality of {', '.join(chosen)}")
    modality = known.modalities[chosen[0]]
    date = _date(spec, value_of(words, "date"), modality.series)
    files = _parts(path, name)
    samples, rows = [], []
    for file in files:
        for row in _table(_Blob(file, 0, file.stat().st_size)):
            samples.append(_inside(_Blob(file, 0, file.stat().st_size), row))
            rows.append(row)
    if not rows:
        raise DataError(f"{path} has no samples: fetch it again from {HOME}/{name}")
    labels = np.array([_flags(row, known, path) for row in rows], np.int64)
    notes = [*known.notes, *modality.notes]
    if modality.series:
        said = "the median over the dates, a pixel and band" if date is None else f"the image of date {date}"
        notes.append(f"of each time series, {said}")
    first = _image(samples[0], chosen[0], date)
    if len(first) != len(modality.bands):
        raise DataError(f"{path}: {chosen[0]} has {len(first)} channels; {name} has {len(modality.bands)}")

    def read(index: int) -> Raw:
        raw = _image(samples[index], chosen[0], date)
        if raw.shape != first.shape:
            raise DataError(f"{path}: {rows[index]['tortilla:id']} has shape {raw.shape}, the first {first.shape}")
        raw = raw[modality.rows]
        if raw.dtype.kind != "f":
            return raw, None
        valid = np.isfinite(raw).all(0)
        return raw, None if valid.all() else valid

    def read_mask(index: int) -> NDArray[np.int16]:
        mask = _array(samples[index], known.mask)
        mask = mask[0] if mask.ndim == 3 else mask  # the first plane holds the classes
        top = len(known.classes)
        codes = {code for code in np.unique(mask).tolist() if not 0 <= code < top}
        if codes - {known.ignored}:
            raise DataError(f"{path}: the mask of {rows[index]['tortilla:id']} holds {min(codes - {known.ignored})}")
        return np.where(mask == known.ignored, IGNORE, mask).astype(np.int16)

    sensor = modality.described()
    assert sensor.scaling is not None
    segmentation = known.task == "segmentation"
    return LabelledImages(
        name=f"{name}-{chosen[0]}",
        sensor=sensor,
        scaling=sensor.scaling,
        class_names=known.classes,
        labels=labels,
        sources=tuple(f"{sample.file}!{row['tortilla:id']}" for sample, row in zip(samples, rows, strict=True)),
        shape=(len(sensor.bands), *first.shape[1:]),
        read=read,
        fingerprint=digest([name, sorted(words), [[file.name, *file_state(file)] for file in files]]),
        find_places=lambda: _places(rows, known),
        find_splits=lambda: _splits(rows, path),
        task=known.task,
        read_mask=read_mask if segmentation else None,
        ignore=IGNORE if known.ignored is not None else None,
        notes=tuple(notes),
    )


def _date(spec: str, said: str | None, series: bool) -> int | None:
    if said is None:
        return None
    if not series or not re.fullmatch(r"-?\d+", said):
        raise ConfigError(f"{spec}: date= takes a whole number, and is for time series (pastis)")
    return int(said)


def _parts(path: Path, name: str) -> list[Path]:
    if not path.is_file():
        raise DataError(
            f"{path} does not exist: get geobench_{name}.tortilla, or its parts geobench_{name}.0000.part.tortilla …, "
            f"from {HOME}/{name}"
        )
    match = re.fullmatch(r"(.+)\.\d{4}\.part\.tortilla", path.name)
    if match is None:
        return [path]
    files = sorted(path.parent.glob(f"{match[1]}.[0-9][0-9][0-9][0-9].part.tortilla"))
    wanted = [path.with_name(f"{match[1]}.{i:04d}.part.tortilla") for i in range(len(files))]
    if files != wanted:
        lacking = min(set(wanted) - set(files))
        raise DataError(f"{lacking} is absent, a part between others: fetch it from {HOME}/{name}")
    return files


def _table(within: _Blob) -> list[dict[str, Any]]:
    """The rows of a tortilla's table.

    Raises:
        DataError: it does not begin with `#y`, or its table does not lie within it.
    """
    import pyarrow
    import pyarrow.parquet

    head = _Blob(within.file, within.offset, HEAD).read()
    if len(head) < HEAD or head[:2] != MAGIC:
        raise DataError(f"{within.file} is no tortilla at byte {within.offset}: fetch it again")
    offset, length = struct.unpack("<QQ", head[2:18])
    if offset < HEAD or offset + length > within.length or not 0 < length <= TABLE_LIMIT:
        raise DataError(f"{within.file} is cut off: its table would end at byte {offset + length} of {within.length}")
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(_Blob(within.file, within.offset + offset, length).read()))
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError, MemoryError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"{within.file} has a damaged table ({said}): fetch it again") from None
    for row in rows:
        if not isinstance(row.get("tortilla:offset"), int) or not isinstance(row.get("tortilla:length"), int):
            raise DataError(f"{within.file} has a table without tortilla:offset and tortilla:length: fetch it again")
    return rows


def _inside(outer: _Blob, row: dict[str, Any]) -> _Blob:
    """The blob of a row; its offset counts from the beginning of the tortilla it is in."""
    offset, length = row["tortilla:offset"], row["tortilla:length"]
    if offset < HEAD or length < 0 or offset + length > outer.length:
        raise DataError(f"{outer.file}: {row.get('tortilla:id')} would lie outside its tortilla: fetch it again")
    return _Blob(outer.file, outer.offset + offset, length)


def _image(sample: _Blob, part: str, date: int | None) -> NDArray[Any]:
    """(C, H, W) of one modality of a sample."""
    array = _array(sample, part)
    if array.ndim == 4:
        if date is None:
            return np.asarray(np.median(array.astype(np.float32), axis=0))
        if not -len(array) <= date < len(array):
            raise DataError(f"{sample.file}: a time series of {len(array)} dates has no date {date}")
        array = array[date]
    if array.ndim != 3:
        raise DataError(f"{sample.file}: {part} of a sample has shape {array.shape}, which is no image")
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _array(sample: _Blob, part: str) -> NDArray[Any]:
    """The numbers of one part of a sample, a GeoTIFF's bands or an HDF5's `data`."""
    rows = {row.get("tortilla:id"): row for row in _table(sample)}
    if part not in rows:
        raise DataError(f"{sample.file}: a sample has the parts {', '.join(map(str, rows))}, not {part}")
    row = rows[part]
    blob = _inside(sample, row)
    where = f"{sample.file} ({part} at byte {blob.offset})"
    if blob.length > BLOB_LIMIT:
        raise DataError(f"{where} has {blob.length} bytes, more than any part of GEO-Bench-2: fetch it again")
    if row.get("tortilla:file_format") == "GTiff":
        return read_geotiff(blob.read(), where)
    if row.get("tortilla:file_format") == "HDF5":
        return _read_hdf5(blob.read(), where)
    raise DataError(f"{where} is {row.get('tortilla:file_format')!r}; GTiff and HDF5 are read")


def _read_hdf5(data: bytes, where: str) -> NDArray[Any]:
    try:
        import h5py
    except ModuleNotFoundError:
        raise DataError(f'{where} needs h5py, which is not installed: pip install "dofa[tasks]"') from None
    try:
        with h5py.File(io.BytesIO(data), "r") as opened:
            found = opened["data"] if isinstance(opened.get("data", getlink=True), h5py.HardLink) else None
            if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external is not None:
                raise DataError(f"{where} does not hold its values itself, as `data`: fetch it again")
            if found.nbytes > LARGEST:
                raise DataError(f"{where} claims {found.shape} numbers, more than it can hold: fetch it again")
            array: NDArray[Any] = np.asarray(found[()])
    except DataError:
        raise
    # h5py's words for files cut off or overwritten
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise DataError(f"{where} is no whole HDF5 ({error}): fetch it again") from None
    if array.dtype.kind not in "iuf":
        raise DataError(f"{where} holds {array.dtype}, which are no numbers of an image")
    return array


def _flags(row: dict[str, Any], known: TortillaSet, path: Path) -> list[int] | int:
    if known.task == "segmentation":
        return 0
    said = row.get(known.labels)
    if not isinstance(said, list) or not said or any(name not in known.classes for name in said):
        raise DataError(f"{path}: {row.get('tortilla:id')} has the labels {said!r}; {known.classes[0]} … are expected")
    return [int(name in said) for name in known.classes]


def _splits(rows: Sequence[dict[str, Any]], path: Path) -> tuple[str, ...]:
    said = [row.get("tortilla:data_split") for row in rows]
    foreign = [word for word in said if word not in SPLIT]
    if foreign:
        raise DataError(f"{path}: a sample's split is {foreign[0]!r}; train, validation or test is expected")
    return tuple(SPLIT[str(word)] for word in said)


def _places(rows: Sequence[dict[str, Any]], known: TortillaSet) -> tuple[str, ...] | None:
    if known.place is not None:
        named = [row.get(known.place) for row in rows]
        return tuple(map(str, named)) if all(named) else None
    places = []
    for row in rows:
        where = [row.get("lat"), row.get("lon")]
        cells = [math.floor(d) for d in where if isinstance(d, float) and math.isfinite(d)]
        if len(cells) < len(where):
            return None
        places.append(" ".join(f"{cell}°" for cell in cells))
    return tuple(places)
