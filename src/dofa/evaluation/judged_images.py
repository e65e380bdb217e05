"""A few judged images beside their labels and what models answered: kept small, and drawn for the eye.

Which images are shown depends on the data alone, so that models judged on the same images are shown on the same ones.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dofa.datasets.labelled import LabelledImages
from dofa.io import write_atomically
from dofa.model.heads import palette
from dofa.plots import canvas, composite

Bytes = NDArray[np.uint8]
Kind = TypeVar("Kind", bound=np.generic)
NONE = 255  # of maps kept as bytes: neither learned nor judged
SIDE = 256  # pixels that the longer side is thinned to
SHOWN = 5  # images
LOOKED_AT = 20  # among which those with most classes are shown
GREY = 176  # of pixels without a label
FADED = 0.55  # share of white over answers that nobody judges
CELL = 1.7  # inches


@dataclass(frozen=True)
class Panels:
    """Images that were judged, all of one size after thinning.

    Attributes:
        names: (n,) of the images.
        classes: names by label.
        colours: (K, 3) uint8 of the classes.
        pictures: (n, h, w, 3) uint8, as people look at such images.
        labels: (n, h, w) uint8, NONE where nothing is judged.
        answers: (n, h, w) uint8 by the name of what answered; NONE where nothing did.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    colours: Bytes
    pictures: Bytes
    labels: Bytes
    answers: Mapping[str, Bytes]

    def save(self, file: Path) -> None:
        """One compressed npz without objects, whole or not at all.

        Raises:
            OSError: the disk refuses it.
        """
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, names=np.array(self.names), classes=np.array(self.classes), colours=self.colours,
            pictures=self.pictures, labels=self.labels, told=np.array(list(self.answers)),
            answers=np.stack(list(self.answers.values())),
        )  # fmt: skip
        write_atomically(file, buffer.getvalue())

    @classmethod
    def load(cls, file: Path) -> "Panels | None":
        """What `save` kept; None where there is no such file, or no whole one: pictures are not worth a table."""
        try:
            with np.load(file, allow_pickle=False) as kept:
                found = {name: kept[name] for name in kept.files}
            told = [str(name) for name in found["told"]]
            panels = cls(
                tuple(map(str, found["names"])), tuple(map(str, found["classes"])), found["colours"],
                found["pictures"], found["labels"], dict(zip(told, found["answers"], strict=True)),
            )  # fmt: skip
        # Damaged bytes raise what zipfile, zlib, struct or numpy's parser stumble over first; seven kinds were seen.
        except Exception:  # none of them is worth a finished table: whatever it is, the file counts as absent
            return None
        arrays = (panels.colours, panels.pictures, panels.labels, *panels.answers.values())
        # A member of an archive that is no .npy comes as its bytes.
        return panels if all(isinstance(a, np.ndarray) for a in arrays) and panels._fits() else None

    def _fits(self) -> bool:
        """Whether the arrays are what their names say, which a whole file of someone else's need not be."""
        maps = (self.labels, *self.answers.values())
        shape, count = (len(self.names), *self.labels.shape[1:]), len(self.classes)
        return (
            all(array.dtype == np.uint8 for array in (self.colours, self.pictures, *maps))
            and len(shape) == 3
            and all(array.shape == shape and bool(((array < count) | (array == NONE)).all()) for array in maps)
            and self.labels.size > 0
            and 0 < count < NONE
            and self.pictures.shape == (*shape, 3)
            and self.colours.shape == (count, 3)
        )


def choose_images(data: LabelledImages, judged: Sequence[int]) -> list[int]:
    """Which judged images to show: of some spread over all, those with most classes, in their order."""
    assert data.read_mask is not None
    rows = sorted(set(judged))
    spread = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, LOOKED_AT).round().astype(int))] if rows else []
    kinds = {row: len(set(np.unique(data.read_mask(row)).tolist()) - {data.ignore}) for row in spread}
    return sorted(sorted(spread, key=lambda row: -kinds[row])[:SHOWN])


def make_panels(
    data: LabelledImages,
    labels: Mapping[int, NDArray[np.integer]],
    answers: Mapping[str, Mapping[int, NDArray[np.integer]]],
    across: int = 0,
) -> Panels | None:
    """Panels of some images; of blocks of one image the whole of it, put together again.

    Args:
        labels: (h, w) by image, below 0 where nothing is judged.
        answers: by what answered, then by image: classes of the same pixels.
        across: blocks in a row of blocks; 0 where images are no blocks.

    Returns:
        None where there is nothing to show, or more classes than a byte holds.
    """
    rows = list(range(len(data))) if across else sorted(labels)
    if not labels or not answers or len(data.class_names) >= NONE:
        return None
    shape = next(iter(labels.values())).shape
    blank = np.full(shape, -1, np.int64)
    shown, valid = zip(*(_shown(data, row) for row in rows), strict=True)

    def placed(maps: Sequence[NDArray[np.integer]]) -> Bytes:
        found = np.stack(maps)
        whole = _thin(_mosaic(found, across) if across else found)
        return np.where(whole < 0, NONE, whole).astype(np.uint8)

    target = (len(rows) // across * shape[0], across * shape[1]) if across else shape
    images = [np.stack(shown)] if across else [image[None] for image in shown]
    masks = [np.stack(valid)] if across else [mask[None] for mask in valid]
    pictures = []
    for image, mask in zip(images, masks, strict=True):
        one = _mosaic(image, across)[0] if across else image[0]
        seen = _mosaic(mask, across)[0] if across else mask[0]
        picture = _at(composite(one, (0, 1, 2), valid_hw=seen).transpose(2, 0, 1), target)
        pictures.append((255 * picture).round().astype(np.uint8).transpose(1, 2, 0))
    colours = palette(len(data.class_names)) if data.colours is None else data.colours
    return Panels(
        names=(data.name,) if across else tuple(Path(data.sources[row]).stem for row in rows),
        classes=data.class_names,
        colours=np.array(colours, np.uint8),
        pictures=_thin(np.stack(pictures).transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1),
        labels=placed([labels.get(row, blank) for row in rows]),
        answers={name: placed([found.get(row, blank) for row in rows]) for name, found in answers.items()},
    )


def _shown(data: LabelledImages, row: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(3, H, W) numbers that become red, green and blue, power in dB, and (H, W) validity."""
    from dofa.scene.colours import of_sensor  # needs the engine of scenes, which a table does not

    raw, valid = data.read(row)
    bands = of_sensor(data.sensor, 0).bands
    read = sorted(set(bands))  # radar shows one of its two bands twice
    scaling = data.scaling.select([data.sensor.band_names[i] for i in read])
    values = scaling.physical(raw[read])
    if scaling.unit == "linear_power":
        values = (10 * np.log10(np.maximum(values, 1e-6))).astype(np.float32)
    three = values[[read.index(i) for i in (bands if len(bands) == 3 else bands * 3)]]
    return three, np.ones(raw.shape[1:], bool) if valid is None else valid


def _mosaic(blocks: NDArray[Kind], across: int) -> NDArray[Kind]:
    """(b, …, h, w) blocks row by row to one (1, …, H, W)."""
    down = len(blocks) // across
    grid = blocks.reshape(down, across, *blocks.shape[1:])
    rows = [np.concatenate(list(row), axis=-1) for row in grid]
    return np.concatenate(rows, axis=-2)[None]


def _thin(maps: NDArray[Kind]) -> NDArray[Kind]:
    """(…, h, w) with every n-th pixel, so that neither side is longer than SIDE."""
    step = max(1, -(-max(maps.shape[-2:]) // SIDE))
    return maps[..., ::step, ::step]


def _at(maps: NDArray[Kind], shape: tuple[int, ...]) -> NDArray[Kind]:
    """(…, H, W) at another size: the nearest pixels."""
    down, over = (((np.arange(n) + 0.5) * have / n).astype(int) for n, have in zip(shape, maps.shape[-2:], strict=True))
    return maps[..., down[:, None], over]


def draw_panels(path: Path, found: Mapping[str, tuple[Panels, str]], title: str = "") -> Path:
    """A row an image: the picture, its labels, and a map a model; below, the classes that occur.

    What nobody judges is grey in the labels and pale in the maps.

    Args:
        found: by the name shown: panels of the same images, and which of their answers.
    """
    (first, _), *_ = found.values()
    count, height, width = first.labels.shape
    cell = (CELL, CELL * height / width) if width >= height else (CELL * width / height, CELL)
    columns = ["image", "labels", *found]
    heads = [textwrap.fill(name, max(12, int(cell[0] * 13))) for name in columns]
    maps = [panels.answers[which] for panels, which in found.values()]
    there = [k for k in range(len(first.classes)) if any((m == k).any() for m in (first.labels, *maps))]
    gap, head = 0.06, 0.1 + 0.15 * max(name.count("\n") + 1 for name in heads) + (0.25 if title else 0)
    inches = max(0.1 + len(columns) * (cell[0] + gap), 3.5)
    in_line = max(1, int((inches - 0.2) // (0.45 + 0.065 * max(len(first.classes[k]) for k in there)))) if there else 1
    foot = 0.12 + 0.19 * -(-len(there) // in_line)
    tall = head + count * (cell[1] + gap) + foot
    with canvas(path, (inches, tall)) as figure:
        if title:
            figure.text(0.05 / inches, 1 - 0.05 / tall, title, size=9.5, weight="bold", va="top")
        for number in range(count):
            labels = first.labels[number]
            drawn = [first.pictures[number], coloured(labels, first.colours)]
            drawn += [coloured(m[number], first.colours, pale=labels == NONE) for m in maps]
            for at, picture in enumerate(drawn):
                left, bottom = 0.05 + at * (cell[0] + gap), tall - head - (number + 1) * (cell[1] + gap) + gap
                axes = figure.add_axes((left / inches, bottom / tall, cell[0] / inches, cell[1] / tall))
                axes.imshow(picture, interpolation="nearest")
                axes.set_axis_off()
                if number == 0:
                    axes.set_title(heads[at], size=8, loc="left", pad=3)
        for number, k in enumerate(there):
            line, at = divmod(number, in_line)
            x, y = 0.05 + at * (inches - 0.1) / in_line, foot - 0.13 - 0.19 * line
            square = figure.add_axes((x / inches, (y - 0.05) / tall, 0.13 / inches, 0.13 / tall))
            square.set_facecolor(tuple(first.colours[k] / 255))
            square.set_xticks([])
            square.set_yticks([])
            figure.text((x + 0.18) / inches, (y + 0.01) / tall, first.classes[k], size=7.5, va="center")
    return path


def coloured(classes: Bytes, colours: Bytes, pale: NDArray[np.bool_] | None = None) -> Bytes:
    """(h, w, 3) colours of classes, grey where there is none.

    Args:
        classes: (h, w), NONE for none.
        colours: (K, 3).
        pale: (h, w) where colours are mixed with white.
    """
    table = np.full((256, 3), GREY, np.uint8)
    table[: len(colours)] = colours
    out = table[classes]
    if pale is not None:
        out[pale] = (FADED * 255 + (1 - FADED) * out[pale]).astype(np.uint8)
    return out
