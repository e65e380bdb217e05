"""GEO-Bench v1 as it is published: a folder a set, an HDF5 file a sample, partitions and band statistics as JSON.

What is wrong with each set is handled here once, by `geobench_sets`, and told in `notes`; `#published` reads bands,
wavelengths and labels as the published evaluation did. Nothing that the pickles name is imported or run.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.datasets.labelled import IGNORE, LabelledImages, Raw, digest, file_state, split_words
from dofa.datasets.published.geobench_sets import SETS, GeoBenchSet, Reading, reading
from dofa.datasets.published.restricted_pickle import ForeignNameError, Inert, InertArray, read_inert_pickle
from dofa.documents import read_json
from dofa.errors import ConfigError, DataError, nearest
from dofa.pixels import Scaling

HOME = "https://huggingface.co/datasets/recursix/geo-bench-1.0"
PARTITIONS = ("0.01x", "0.02x", "0.05x", "0.10x", "0.20x", "0.50x", "1.00x")
WORDS = ("published", "s1", "skip-bad", *PARTITIONS)
SPLIT = {"train": "train", "valid": "val", "test": "test"}
SUFFIX = ".hdf5"
TEXT_LIMIT = 1 << 20  # characters of a sample's pickle as text; the real ones have 7,000
SHOWN = 5  # how many damaged samples a note names


def read_geobench(spec: str) -> LabelledImages:
    """One set of GEO-Bench v1.

    Args:
        spec: the set's folder, under its published name, and words: `PATH/m-eurosat#published,0.10x,skip-bad`.
            `published` reads bands, wavelengths and labels as the published evaluation did; `s1` the intensities of
            m-so2sat; a share keeps that partition's training samples, and validation and test whole; `skip-bad` leaves
            out samples that cannot be read, counts and names them.

    Returns:
        The images, sorted by name; `corpus_scaling` has the statistics of band_stats.json, `splits` the partition.

    Raises:
        DataError: nothing there (the message says where to get it), a file that is not as published, a pickle that
            names a foreign class.
        ConfigError: an unknown word, or words that do not go together.

    Source: Lacoste et al. 2023, arXiv 2306.03831.
    """
    folder, words = split_words(spec, WORDS)
    name = folder.name
    if name not in SETS:
        raise DataError(f"{folder}: {name!r} is no set of GEO-Bench v1, {nearest(name, SETS)}")
    known = SETS[name]
    shares = [word for word in words if word in PARTITIONS]
    if len(shares) > 1:
        raise ConfigError(f"{spec}: choose one partition of {', '.join(shares)}")
    if "s1" in words and (name != "m-so2sat" or "published" in words):
        raise ConfigError(f"{spec}: #s1 is for m-so2sat, whose published evaluation used none")
    how = reading(name, "s1" if "s1" in words else "published" if "published" in words else "corrected")
    files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda f: f.name)
    if not files:
        raise DataError(_missing(folder, known))
    _check_specifications(folder, known)
    partition = _read_partition(folder, shares[0] if shares else None)
    if shares and partition is not None:
        files = [file for file in files if _stem(file) in partition]
        if not files:
            raise DataError(f"{folder} holds none of the samples of its partition {shares[0]}: fetch the set again")
    labels, kept, bad = [], [], []
    for file in files:
        try:
            labels.append(_inspect(file, known, how))
            kept.append(file)
        except ForeignNameError:
            raise
        except DataError as error:
            if "skip-bad" not in words:
                raise DataError(f"{error}; #skip-bad leaves such samples out") from None
            bad.append((file, str(error)))
    if not kept:
        raise DataError(f"{folder}: none of its {len(files)} samples can be read; the first: {bad[0][1]}")
    notes = how.notes
    if bad:
        some = ", ".join(file.name for file, _ in bad[:SHOWN]) + (", …" if len(bad) > SHOWN else "")
        notes = (*notes, f"{len(bad)} of {len(files)} samples cannot be read and are left out: {some}; {bad[0][1]}")
    if not shares and partition is None:
        notes = (*notes, "no partition file: there are no published splits")

    def read(index: int) -> Raw:
        return _read_image(kept[index], known, how)

    def read_mask(index: int) -> NDArray[np.int16]:
        return _read_mask(kept[index], known, how)

    segmentation = known.task == "segmentation"
    return LabelledImages(
        name=name,
        sensor=how.sensor,
        scaling=how.scaling,
        class_names=how.classes,
        labels=np.array(labels, np.int64),
        sources=tuple(str(file) for file in kept),
        shape=(len(how.keys), known.size, known.size),
        read=read,
        fingerprint=digest([name, sorted(words), [[file.name, *file_state(file)] for file in kept]]),
        find_splits=lambda: _splits(folder, kept, {_stem(file) for file, _ in bad}, partition),
        corpus_scaling=_statistics(folder, how),
        task=known.task,
        read_mask=read_mask if segmentation else None,
        ignore=IGNORE if IGNORE in how.codes.values() else None,
        notes=notes,
    )


def _missing(folder: Path, known: GeoBenchSet) -> str:
    kind = "segmentation_v1.0" if known.task == "segmentation" else "classification_v1.0"
    return (
        f"{folder} {'holds no samples' if folder.is_dir() else 'does not exist'}: get {kind}/{folder.name}.zip from "
        f"{HOME} and unpack it; the folder {folder.name} then holds <sample>{SUFFIX} …, task_specs.pkl, "
        "band_stats.json and default_partition.json"
    )


def _stem(file: Path) -> str:
    return file.name.removesuffix(SUFFIX)  # stems hold dots and commas, which Path.stem would cut


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """An HDF5 file; whatever goes wrong inside is told with its name."""
    try:
        import h5py
    except ModuleNotFoundError:
        raise DataError('GEO-Bench needs h5py, which is not installed: pip install "dofa[tasks]"') from None
    try:
        with h5py.File(file, "r") as opened:
            yield opened
    except DataError:
        raise
    # h5py's words for files cut off or overwritten
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise DataError(f"{file} is damaged ({error}): fetch it again") from None


def _array(opened: Any, file: Path, name: str) -> Any:
    """A data set that lies in this file itself.

    Raises:
        DataError: a link to another file, or values that are kept in one.
    """
    import h5py

    if not isinstance(opened.get(name, getlink=True), h5py.HardLink):
        raise DataError(f"{file}: {name!r} is a link to elsewhere: this is no GEO-Bench sample")
    array = opened[name]
    if not isinstance(array, h5py.Dataset) or array.is_virtual or array.external is not None:
        raise DataError(f"{file}: {name!r} does not hold its values itself: this is no GEO-Bench sample")
    return array


def _key(opened: Mapping[str, Any], file: Path, wanted: str) -> str:
    """The key of a band or of the mask, which may carry a date: `04 - Red_2019-11-20`."""
    names = [key for key in opened if isinstance(key, str)]  # names that are no text come as bytes
    found = [key for key in names if re.fullmatch(re.escape(wanted) + r"(_\d{4}-\d{2}-\d{2})?", key)]
    if len(found) != 1:
        says = f"several dates of {wanted!r}" if found else f"no {wanted!r}"
        raise DataError(f"{file} has {says}; it holds {', '.join(map(repr, opened))}: fetch it again")
    return found[0]


def _plane(opened: Any, file: Path, wanted: str, size: int) -> Any:
    """The array of a band or mask, (H, W) or (H, W, 1), checked before it is read."""
    name = _key(opened, file, wanted)
    array = _array(opened, file, name)
    if array.shape not in ((size, size), (size, size, 1)):
        raise DataError(f"{file}: {name!r} has shape {array.shape}; {file.parent.name} has {size} × {size} pixels")
    if array.dtype.kind not in "biuf":
        raise DataError(f"{file}: {name!r} holds {array.dtype}, which are no numbers")
    return array


def _inspect(file: Path, known: GeoBenchSet, how: Reading) -> int | list[int]:
    """Look whether a sample is whole, without its pixels; its label, 0 of segmentation."""
    with _opened(file) as opened:
        for key in dict.fromkeys(how.keys):
            _plane(opened, file, key, known.size)
        if known.task == "segmentation":
            _plane(opened, file, "label", known.size)
            return 0
        text = opened.attrs.get("pickle")
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    if not isinstance(text, str) or len(text) > TEXT_LIMIT:
        raise DataError(f"{file} has no attribute 'pickle', where its label is: fetch it again")
    try:
        data = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{file}: its attribute 'pickle' is no text of bytes ({error}): fetch it again") from None
    said = read_inert_pickle(data, str(file)) if isinstance(data, bytes) else None
    return _label(said.get("label") if isinstance(said, dict) else None, file, known, how)


def _label(said: Any, file: Path, known: GeoBenchSet, how: Reading) -> int | list[int]:
    count = len(how.classes)
    if known.task == "multilabel":
        flags = said.values if isinstance(said, InertArray) else said
        if not isinstance(flags, list) or len(flags) != count or any(flag not in (0, 1) for flag in flags):
            raise DataError(f"{file}: its label is {flags!r}; {count} zeros and ones are expected")
        return [int(flag) for flag in flags]
    if isinstance(said, bool) or not isinstance(said, int) or not 0 <= said < count:
        raise DataError(f"{file}: its label is {said!r}; {file.parent.name} has the labels 0 to {count - 1}")
    return said


def _read_image(file: Path, known: GeoBenchSet, how: Reading) -> Raw:
    with _opened(file) as opened:
        planes = {key: _plane(opened, file, key, known.size)[()] for key in dict.fromkeys(how.keys)}
    raw = np.stack([planes[key].reshape(known.size, known.size) for key in how.keys])
    if raw.dtype.kind != "f":
        return raw, None
    valid = np.isfinite(raw).all(0)
    return raw, None if valid.all() else valid


def _read_mask(file: Path, known: GeoBenchSet, how: Reading) -> NDArray[np.int16]:
    with _opened(file) as opened:
        raw = _plane(opened, file, "label", known.size)[()].reshape(known.size, known.size)
    codes = np.unique(raw)
    if foreign := [code.item() for code in codes if code.item() not in how.codes]:
        raise DataError(
            f"{file}: its mask holds {', '.join(f'{v:g}' for v in foreign[:8])}; {file.parent.name} has the labels "
            f"{min(how.codes)} to {max(how.codes)}"
        )
    classes = np.array([how.codes[code.item()] for code in codes], np.int16)
    mask: NDArray[np.int16] = classes[np.searchsorted(codes, raw)]
    return mask


def _read_json(file: Path) -> Any:
    return read_json(file)


def _check_specifications(folder: Path, known: GeoBenchSet) -> None:
    """Refuse a set with another number of classes than the published one; a missing task_specs.pkl says nothing."""
    file = folder / "task_specs.pkl"
    if not file.is_file():
        return
    said = read_inert_pickle(file.read_bytes(), str(file))
    label_type = said.fields.get("label_type") if isinstance(said, Inert) else None
    count = label_type.fields.get("n_classes") if isinstance(label_type, Inert) else None
    if count is not None and count != len(known.classes):
        raise DataError(f"{file} says {count!r} classes; the published {folder.name} has {len(known.classes)}")


def _read_partition(folder: Path, share: str | None) -> dict[str, str] | None:
    """Split of each sample by its stem; None where no share is asked for and there is no default partition."""
    names = [f"{share}_train_partition.json"] if share else ["default_partition.json", "1.00x_train_partition.json"]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        if share is None:
            return None
        there = sorted(f.name.partition("_")[0] for f in folder.glob("*x_train_partition.json"))
        raise DataError(f"{folder} has no {names[0]}; it has {', '.join(there) or 'no partition'}: fetch the set again")
    data = _read_json(file)
    if not isinstance(data, dict) or set(data) != set(SPLIT) or not all(_is_names(data[key]) for key in SPLIT):
        raise DataError(f"{file} does not list train, valid and test: fetch the set again")
    splits: dict[str, str] = {}
    for key, split in SPLIT.items():
        for stem in data[key]:
            if splits.setdefault(stem, split) != split:
                raise DataError(f"{file} lists {stem} as {splits[stem]} and as {split}: fetch the set again")
    return splits


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _splits(
    folder: Path, files: Sequence[Path], skipped: set[str], partition: dict[str, str] | None
) -> tuple[str, ...] | None:
    if partition is None:
        return None
    here = {_stem(file) for file in files}
    for what, names in (
        ("are in no list of its partition", here - set(partition)),
        ("are listed but absent", set(partition) - here - skipped),
    ):
        if names:
            raise DataError(
                f"{len(names)} samples {what} in {folder}, {min(names)} for one: the published split needs the whole "
                "set; fetch it again, or use folds on a part of it"
            )
    return tuple(partition[_stem(file)] for file in files)


def _statistics(folder: Path, how: Reading) -> Scaling | None:
    """The scaling with mean and standard deviation of band_stats.json, None without that file or one of the bands."""
    file = folder / "band_stats.json"
    if not file.is_file():
        return None
    data = _read_json(file)
    mean, std = [], []
    for key, scale, offset in zip(how.keys, how.scaling.scale, how.scaling.offset, strict=True):
        said = data.get(key) if isinstance(data, dict) else None
        if said is None:
            return None
        try:
            mean.append(float(said["mean"]) * scale + offset)
            std.append(float(said["std"]) * abs(scale))
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{file} has no mean and std of {key!r} as numbers: fetch it again") from None
    return how.scaling.with_stats(mean, std, "corpus")
