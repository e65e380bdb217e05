"""What every data set of the tasks is: images with labels or masks, read when asked for."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dofa.errors import CONTROLS, ConfigError, DataError, nearest
from dofa.pixels import Scaling
from dofa.sensors import Sensor

Part = Literal["train", "val", "test", "all"]


Ints = NDArray[np.int64]


Raw = tuple[NDArray[Any], NDArray[np.bool_] | None]
Task = Literal["classification", "multilabel", "segmentation"]
IGNORE = 255  # what masks hold where nothing is to be learned or judged


@dataclass(frozen=True)
class LabelledImages:
    """Images with one class each, several, or one a pixel, read when asked for.

    Attributes:
        name: of the data set, for tables.
        sensor: bands in the order of the images.
        scaling: raw to physical; without statistics.
        class_names: by label.
        labels: (N,) int64 classes; multilabel: (N, K) int64, 0 or 1; segmentation: (N,) zeros, which mean nothing.
        sources: (N,) where each image comes from.
        shape: (C, H, W) of every image.
        read: index to (raw (C, H, W) in the source's dtype, valid (H, W) bool or None where every pixel is).
        fingerprint: changes whenever the pixels may have changed; the feature cache stands on it.
        corpus_scaling: of a store or a published list, with the statistics of its training split.
        task: what the labels are.
        read_mask: of segmentation: index to (H, W) int16, classes 0 … K−1 and `ignore`.
        ignore: the value of masks where nothing is to be learned or judged; None where every pixel counts.
        colours: (red, green, blue) of each class, where someone chose them.
        notes: what is wrong or doubtful with the data set and how it is handled: told beside the numbers.
    """

    name: str
    sensor: Sensor
    scaling: Scaling
    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    sources: tuple[str, ...]
    shape: tuple[int, int, int]
    read: Callable[[int], Raw] = field(repr=False)
    fingerprint: str
    find_places: Callable[[], tuple[str, ...] | None] = field(repr=False, default=lambda: None)
    find_splits: Callable[[], tuple[str, ...] | None] = field(repr=False, default=lambda: None)
    corpus_scaling: Scaling | None = None
    task: Task = "classification"
    read_mask: Callable[[int], NDArray[np.int16]] | None = field(repr=False, default=None)
    ignore: int | None = None
    colours: tuple[tuple[int, int, int], ...] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse labels that are no classes: a DataError names the first image."""
        if any(CONTROLS.search(name) for name in self.class_names):
            raise DataError(f"{self.name} has class names with control characters: correct them")
        if self.task == "segmentation":
            return  # of pixels: looked at mask by mask
        classes, shape = len(self.class_names), self.labels.shape
        if shape != ((len(self.sources), classes) if self.task == "multilabel" else (len(self.sources),)):
            raise DataError(
                f"{self.name}: labels of shape {shape} for {len(self.sources)} images of {classes} classes: one an "
                f"image, or of several at once one column a class"
            )
        top = 1 if self.task == "multilabel" else classes - 1
        wrong = np.argwhere((self.labels < 0) | (self.labels > top))
        if len(wrong):
            what = (
                "a class is there, 1, or not, 0"
                if self.task == "multilabel"
                else f"its {classes} classes are 0 to {top}"
            )
            raise DataError(
                f"{self.name}: {self.sources[wrong[0][0]]} has label {self.labels[tuple(wrong[0])]}; {what}: correct "
                "the labels, or leave the image out"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def places(self) -> tuple[str, ...] | None:
        """(N,) the place of each image, or None where the data set does not say."""
        return self.find_places()

    @cached_property
    def splits(self) -> tuple[str, ...] | None:
        """(N,) train, val or test as published, or None where there is no such word.

        Raises:
            DataError: the published lists and the images are not the same.
        """
        return self.find_splits()

    def select_bands(self, names: Sequence[str]) -> "LabelledImages":
        """The same images with only the named bands, in the order given.

        Raises:
            ConfigError: a name the sensor does not know.
        """
        at = self.sensor.index(names)
        sensor = self.sensor.select(names)

        def read(index: int) -> Raw:
            raw, valid = self.read(index)
            return raw[at], valid

        corpus = self.corpus_scaling
        return replace(
            self,
            sensor=sensor,
            scaling=self.scaling.select(sensor.band_names),
            shape=(len(at), *self.shape[1:]),
            read=read,
            fingerprint=digest([self.fingerprint, list(sensor.band_names)]),
            find_places=lambda: self.places,
            find_splits=lambda: self.splits,
            corpus_scaling=None if corpus is None else corpus.select(sensor.band_names),
        )


def digest(parts: list[Any]) -> str:
    """A name for what is told, another as soon as anything of it is another."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_state(path: Path) -> list[int]:
    """Size and time of change of a file: what tells another content without reading it."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def read_lines(file: Path) -> list[str]:
    """The lines of a list of names, empty ones left out.

    Raises:
        DataError: it is no text.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text of names ({error}): fetch it again") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def split_words(spec: str, known: Sequence[str]) -> tuple[Path, list[str]]:
    """The path and the words of `PATH#word,word`.

    A known word that ends in `=` takes a value.

    Args:
        spec: what stands behind `KIND:`.
        known: the words, those with a value as `word=`.

    Raises:
        ConfigError: a word that is not known.
    """
    path, _, said = spec.partition("#")
    words = [word for word in said.split(",") if word]
    for word in words:
        name, equals, _ = word.partition("=")
        if name + equals not in known:
            raise ConfigError(f"{path}#{word}: {nearest(name + equals, known)}")
    return Path(path), words


def value_of(words: Sequence[str], name: str) -> str | None:
    """What `name=value` says among the words, None where it is not said.

    Args:
        words: what `split_words` gave.
        name: without the equals sign.
    """
    found = [word.partition("=")[2] for word in words if word.partition("=")[0] == name]
    return found[-1] if found else None
