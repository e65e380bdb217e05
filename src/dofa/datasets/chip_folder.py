"""The folder `dofa chips` writes: plain .npy files that any program opens, and what they mean in chips.json.

images.npy   (N, C, H, W) raw numbers, in the files' type
valid.npy    (N, H, W) bool; absent where every pixel is valid
masks.npy    (N, H, W) uint8 classes, 255 for none; of segmentation only
chips.json   sensor, scaling with statistics of the training chips, classes, and for each chip its label, place,
             split and source
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from dofa.addresses import redact, redact_values
from dofa.datasets.labelled import LabelledImages, Raw, digest, file_state
from dofa.documents import read_json
from dofa.errors import ConfigError, DataError, DofaError, shorten
from dofa.io import json_digest, lock_folder, name_os_errors, place_folder, restore_folder
from dofa.pixels import Scaling
from dofa.sensors import Sensor
from dofa.settings import check_keys, check_version, list_of, whole_number

FORMAT, FORMAT_VERSION = "dofa-chips", 1
RECORD, IMAGES, VALID, MASKS = "chips.json", "images.npy", "valid.npy", "masks.npy"
LARGEST = 2**29  # bytes of chips.json: a million chips
KEYS = (
    "task", "sensor", "scaling", "shape", "class_names", "colours", "ignore", "notes", "labels", "places", "splits",
    "sources", "sha256",
)  # fmt: skip
SEAL, CHECKSUMS = "record_sha256", "crc32c"  # folders written before these have neither
AGAIN = "copy the folder or make the chips again"


class ArrayFile:
    """An .npy file that grows by one entry at a time."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any) -> None:
        self.path, self._shape, self._dtype, self.count = path, shape, np.dtype(dtype), 0
        self._file = path.open("w+b")
        self._head()
        self._begins = self._file.tell()

    def append(self, entry: NDArray[Any]) -> None:
        """Write one entry."""
        if entry.shape != self._shape:
            raise DataError(f"{self.path.name}: an entry of {entry.shape}, the others have {self._shape}")
        with name_os_errors(self.path):
            self._file.write(np.ascontiguousarray(entry, self._dtype).tobytes())
        self.count += 1

    def close(self) -> None:
        """Say in the header how many entries there are, and flush to the disk."""
        with name_os_errors(self.path):
            self._file.seek(0)
            self._head()  # NumPy leaves room in the header for the first axis to grow
            assert self._file.tell() == self._begins
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def _head(self) -> None:
        said = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, said)


class ChipWriter:
    """A folder of chips in the making, beside the one it becomes; what fails leaves nothing behind.

    One process at a time writes to a place. What a killed one left is removed by the next.

    Args:
        shape: (C, H, W) of the images.
        masks: whether each chip has one.
        overwrite: whether chips that are there are replaced, once the new ones are finished.

    Raises:
        ConfigError: the folder is there already, or holds something else.
        DofaError: it cannot be made, or another process writes to it.
    """

    def __init__(self, out: Path, shape: tuple[int, int, int], dtype: Any, masks: bool, overwrite: bool) -> None:
        self.out = out
        self._work = out.with_name(f".{out.name}.part")
        try:
            self._lock = lock_folder(self._work, out)
        except OSError as error:
            raise DofaError(f"{out}: cannot make {self._work}: {error.strerror}") from None
        try:
            restore_folder(out, self._work / "previous")
            check_free(out, overwrite)  # also another process may have finished in the meantime
            self._stage = self._work / "new"
            shutil.rmtree(self._stage, ignore_errors=True)
            self._stage.mkdir()
            self._images = ArrayFile(self._stage / IMAGES, shape, dtype)
            self._valid = ArrayFile(self._stage / VALID, shape[1:], bool)
            self._masks = ArrayFile(self._stage / MASKS, shape[1:], np.uint8) if masks else None
        except BaseException:
            self._leave()
            raise
        self._shape, self._partly = shape, False

    def add(self, image: NDArray[Any], valid: NDArray[np.bool_], mask: NDArray[Any] | None) -> None:
        """One more chip.

        Args:
            image: (C, H, W) raw numbers.
            valid: (H, W).
            mask: (H, W) classes, where chips have masks.
        """
        self._images.append(image)
        self._valid.append(valid)
        self._partly |= not valid.all()
        if self._masks is not None and mask is not None:
            self._masks.append(mask)

    def arrays(self) -> tuple[NDArray[Any], NDArray[np.bool_] | None, NDArray[np.uint8] | None]:
        """Close the files, and map images, validity and masks into memory; masks may be written to."""
        for file in (self._images, self._valid, self._masks):
            if file is not None:
                file.close()
        if not self._partly:
            (self._stage / VALID).unlink()
        valid = np.load(self._stage / VALID, "r", allow_pickle=False) if self._partly else None
        masks = None if self._masks is None else np.load(self._stage / MASKS, "r+", allow_pickle=False)
        return np.load(self._stage / IMAGES, "r", allow_pickle=False), valid, masks

    def finish(self, record: dict[str, Any]) -> None:
        """Say what the arrays mean, and put the folder in its place."""
        files = [f for f in (IMAGES, VALID, MASKS) if (self._stage / f).exists()]
        complete = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **redact_values(record),
            "shape": list(self._shape),
            "sha256": {f: _sha256(self._stage / f) for f in files},
            CHECKSUMS: {f: [_crc(entry) for entry in np.load(self._stage / f, "r", allow_pickle=False)] for f in files},
        }
        complete[SEAL] = json_digest(complete)
        record_file = self._stage / RECORD
        with name_os_errors(record_file), record_file.open("w", encoding="utf-8") as file:
            json.dump(complete, file, indent=1, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        place_folder(self._stage, self.out, self._work / "previous")

    def __enter__(self) -> "ChipWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        """Remove the work, while nobody else can begin in it."""
        shutil.rmtree(self._work, ignore_errors=True)
        self._lock.release()


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse to write where something is that must not be replaced.

    Args:
        overwrite: whether chips there may be replaced.

    Raises:
        ConfigError: chips without `overwrite`, or anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RECORD).is_file():
        raise ConfigError(f"{out} holds other files: name a new folder")
    if not overwrite:
        raise ConfigError(f"{out} holds chips already: name another folder, or replace them with --overwrite")


def read_chips(path: str | Path) -> LabelledImages:
    """A folder that `dofa chips` wrote.

    Returns:
        Classification: one class a chip. Segmentation: `read_mask` gives (H, W) classes, 255 for none. Places are the
        blocks of ground, splits those of the folder, `corpus_scaling` has the statistics of the training chips.

    Raises:
        DataError: no such folder, a newer format, or arrays that are not those its record describes.
    """
    folder = Path(path)
    record = _record(folder)
    count, (channels, height, width) = len(record["labels"]), record["shape"]
    images = _Entries(folder, IMAGES, (count, channels, height, width), record)
    valid = _Entries(folder, VALID, (count, height, width), record) if VALID in record["sha256"] else None
    masks = _Entries(folder, MASKS, (count, height, width), record) if record["task"] == "segmentation" else None
    scaling = Scaling.from_dict(record["scaling"])

    def read(index: int) -> Raw:
        return images.read(index), None if valid is None else valid.read(index)

    def read_mask(index: int) -> NDArray[np.int16]:
        assert masks is not None
        return masks.read(index).astype(np.int16)

    # The digests say what was written; size and time, whether it is still that.
    states = [file_state(folder / name) for name in sorted(record["sha256"])]
    return LabelledImages(
        name=folder.resolve().name,
        sensor=Sensor.from_dict(record["sensor"]),
        scaling=scaling.without_stats(),
        class_names=tuple(record["class_names"]),
        labels=np.array(record["labels"], np.int64),
        sources=tuple(record["sources"]),
        shape=(channels, height, width),
        read=read,
        fingerprint=digest([record["sha256"], record["labels"], states]),
        find_places=lambda: tuple(record["places"]),
        find_splits=lambda: tuple(record["splits"]),
        corpus_scaling=scaling,
        task=record["task"],
        read_mask=None if masks is None else read_mask,
        ignore=record["ignore"],
        colours=None if record["colours"] is None else tuple((r, g, b) for r, g, b in record["colours"]),
        notes=tuple(record["notes"]),
    )


def _record(folder: Path) -> dict[str, Any]:
    """chips.json with every entry of the type and length that the arrays need."""
    file = folder / RECORD
    try:
        record = read_json(file, largest=LARGEST)
    except FileNotFoundError:
        raise DataError(f"{redact(str(folder))} holds no chips: name the folder that dofa chips wrote") from None
    except DataError as error:
        raise DataError(f"{error}: make the chips again") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"{file} was not written by dofa chips")
    try:
        check_version(record.get("format_version"), FORMAT_VERSION, str(file))
        missing = [key for key in KEYS if key not in record]
        if missing:
            raise DataError(f"{', '.join(missing)} missing")
        if record["task"] not in ["classification", "segmentation"]:
            raise ConfigError(f"task is {shorten(repr(record['task']))}; classification or segmentation is expected")
        names = list_of(record["class_names"], str, "class_names")
        shape = [whole_number(side, "shape", 1, 2**20) for side in list_of(record["shape"], int, "shape")]
        if len(shape) != 3 or math.prod(shape) > 2**40:
            raise ConfigError(f"shape is {shorten(repr(shape))}; bands, rows and columns are expected")
        count = len(list_of(record["labels"], int, "labels"))
        for key in ("places", "splits", "sources"):
            if record[key] is not None and len(list_of(record[key], str, key)) != count:
                raise ConfigError(f"{key} has {len(record[key])} entries for {count} chips")
        if record["sources"] is None or not set(record["splits"] or ()) <= {"train", "val", "test"}:
            raise ConfigError("splits are train, val or test, and each chip has a source")
        list_of(record["notes"], str, "notes")
        if SEAL in record and record[SEAL] != json_digest({k: v for k, v in record.items() if k != SEAL}):
            raise DataError("it is not as it was written")
        check_keys(record["sha256"], (IMAGES, VALID, MASKS), "sha256", (IMAGES,))
        list_of([*record["sha256"].values()], str, "sha256")
        if record["ignore"] is not None:
            whole_number(record["ignore"], "ignore", 0, 255)
        if record["colours"] is not None:
            colours = [list_of(colour, int, "colours") for colour in list_of(record["colours"], object, "colours")]
            if len(colours) != len(names) or any(len(c) != 3 or not 0 <= min(c) <= max(c) <= 255 for c in colours):
                raise ConfigError("colours are red, green and blue from 0 to 255, one a class")
        if (sensor := Sensor.from_dict(record["sensor"])).band_names != Scaling.from_dict(record["scaling"]).bands:
            raise ConfigError(f"scaling is not for the bands of its sensor {sensor.name}")
        if len(sensor.bands) != shape[0]:
            raise ConfigError(f"{len(sensor.bands)} bands for images of {shape[0]}")
    except (ConfigError, DataError) as error:
        raise DataError(f"{file}: {error}: make the chips again") from None
    return record


class _Entries:
    """An array of one entry a chip, each compared with its checksum when it is read.

    Args:
        record: chips.json; one without checksums has the digest of the whole file, which is then compared at once.

    Raises:
        DataError: the file is not the one that the record describes.
    """

    def __init__(self, folder: Path, name: str, shape: Sequence[int], record: dict[str, Any]) -> None:
        self._file, self._array = folder / name, _array(folder, name, shape)
        self._checksums: list[int] | None = record[CHECKSUMS][name] if SEAL in record else None
        if self._checksums is None and _sha256(self._file) != record["sha256"].get(name):
            raise DataError(f"{self._file} is not the file that was written: {AGAIN}")

    def read(self, index: int) -> NDArray[Any]:
        """A copy of one entry."""
        entry = np.array(self._array[index])
        if self._checksums is not None and _crc(entry) != self._checksums[index]:
            raise DataError(f"{self._file}: chip {index} is not as it was written: {AGAIN}")
        return entry


def _crc(entry: NDArray[Any]) -> int:
    """CRC32C of an entry's bytes."""
    return int(google_crc32c.value(np.ascontiguousarray(entry).tobytes()))


def _array(folder: Path, name: str, shape: Sequence[int]) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(folder / name, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{folder / name} is missing or cut off ({error}): copy the folder or make it again") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{folder / name} holds {array.dtype}, which are no numbers: make it again")
    if array.shape != tuple(shape):
        raise DataError(f"{folder / name} has shape {array.shape}, its {RECORD} says {tuple(shape)}: make it again")
    return array


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
