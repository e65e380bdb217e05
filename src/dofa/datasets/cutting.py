"""Windows of scenes that become chips: where labels say what they show, and pixels are measured."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dofa.datasets.blocks import Blocks
from dofa.datasets.chip_folder import ChipWriter
from dofa.datasets.labelled import IGNORE
from dofa.datasets.labels import UNLABELLED, Codes, Placed
from dofa.pixels import Scaling
from dofa.progress import Progress
from dofa.scene.grid import Window
from dofa.scene.scene import Scene

Task = Literal["classification", "segmentation"]
LEAST_VALID = 0.5  # share of a chip's pixels that are measurements
LEAST_LABELLED = 0.5  # share of a chip's pixels that say what it shows, where labels have an extent


class Chip(NamedTuple):
    """A window that became a chip.

    Attributes:
        scene: its number.
        window: of its pixels.
        block: of ground that it lies in.
        label: its class; 0 in segmentation.
        classes: (K,) what it adds to each class: itself, or its labelled pixels.
    """

    scene: int
    window: Window
    block: str
    label: int
    classes: NDArray[np.int64]


class Reader:
    """Pixels of chips: raw numbers where all scenes mean the same by them, else physical values."""

    def __init__(self, scenes: Sequence[Scene], scaling: Scaling) -> None:
        self._scenes = scenes
        self._raw = all(s.parts[0].scaling.without_stats() == scaling for s in scenes)
        kinds = [s.stacks[0].dtype for s in scenes]
        self.dtype = np.result_type(*kinds) if self._raw else np.dtype(np.float32)

    def read(self, scene: int, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """(C, h, w), 0 where there is no measurement, and (h, w).

        Args:
            scene: number of the scene.
            window: pixels of it.
        """
        if self._raw:
            (image,), valid = self._scenes[scene].read(window)
        else:
            image, valid = self._scenes[scene].read_physical(window)
        return np.where(valid, image, 0).astype(self.dtype), valid


class Cutter:
    """Makes chips of windows where labels and pixels allow it, and counts what is left out.

    Args:
        reader: of the pixels.
        classes: how many there are.
    """

    def __init__(self, reader: Reader, writer: ChipWriter, task: Task, classes: int) -> None:
        self._reader, self._writer, self._task, self._classes = reader, writer, task, classes
        self.left_out: Counter[str] = Counter()

    def cut(self, number: int, scene: Scene, labels: Placed, ground: Blocks, size: int) -> Iterator[Chip]:
        """The chips of one scene.

        Args:
            labels: placed on its pixels.
            ground: which block each place belongs to.
            size: of a chip, in pixels.
        """
        rows, cols = ground.starts(scene.height, size, 0), ground.starts(scene.width, size, 1)
        windows = [Window(row, col, size, size) for row in rows for col in cols]
        grid = [(w, block) for w in windows if (block := ground.of(w)) is not None]
        shape = scene.height, scene.width
        served: set[int] = set()
        with Progress(f"chips of {scene.name}", len(grid), 0, True, "windows") as bar:
            for window, block in grid:
                chip = self._covered(number, window, block, labels.codes(window))
                bar.advance()
                if chip is not None:
                    served.update(i for i in labels.inside(window) if labels.shapes[i][2] == chip.label)
                    yield chip
        if self._task == "segmentation":
            return
        for window, block, codes in self._around(labels.points, ground, size, shape):
            if len(codes) > 1:
                self.left_out["chips around points of different classes at one place"] += 1
            else:
                chip = self._single(number, window, block, codes.pop())
                if chip is not None:
                    yield chip
        lone = [place for i, place in enumerate(labels.shapes) if i not in served and place[2] != IGNORE]
        for window, block, codes in self._around(lone, ground, size, shape):
            found = labels.codes(window)
            most = np.bincount(found[(found != UNLABELLED) & (found != IGNORE)], minlength=self._classes).argmax()
            # Polygons that no chip of the grid shows get one of their own, if they prevail in it.
            if most in codes:
                chip = self._single(number, window, block, int(most))
                if chip is not None:
                    yield chip
            else:
                self.left_out["chips around small polygons in which another class prevails"] += 1

    def _around(
        self, places: Sequence[tuple[float, float, int]], ground: Blocks, size: int, shape: tuple[int, int]
    ) -> Iterator[tuple[Window, str, set[int]]]:
        """Windows around places, their blocks, and the classes named there."""
        found: dict[Window, set[int]] = {}
        for row, col, code in places:
            if not (0 <= row < shape[0] and 0 <= col < shape[1]):
                continue
            window = ground.around(row, col, size, shape)
            if window is None:
                self.left_out["labels too close to the edge of a raster or of a block for a chip around them"] += 1
            else:
                found.setdefault(window, set()).add(code)
        for window, codes in sorted(found.items(), key=lambda place: (place[0].row, place[0].col)):
            block = ground.of(window)
            assert block is not None  # that is what the window was moved for
            yield window, block, codes

    def _covered(self, number: int, window: Window, block: str, codes: Codes) -> Chip | None:
        """A chip of the grid, if labels cover it."""
        labelled = (codes != UNLABELLED) & (codes != IGNORE)
        segmentation = self._task == "segmentation"
        if not labelled.any() or (not segmentation and labelled.mean() < LEAST_LABELLED * LEAST_VALID):
            return None
        image, valid = self._measured(number, window)
        if image is None:
            return None
        labelled &= valid
        counts = np.bincount(codes[labelled], minlength=self._classes).astype(np.int64)
        if segmentation:
            if not counts.any():
                return None
            self._writer.add(image, valid, np.where(labelled, codes, IGNORE).astype(np.uint8))
            return Chip(number, window, block, 0, counts)
        if counts.sum() < LEAST_LABELLED * valid.sum():
            return None
        label = int(counts.argmax())
        if counts[label] * 2 <= counts.sum():
            self.left_out["chips in which no class has the majority"] += 1
            return None
        self._writer.add(image, valid, None)
        return Chip(number, window, block, label, _one(label, self._classes))

    def _single(self, number: int, window: Window, block: str, label: int) -> Chip | None:
        """A chip around a place whose class is known."""
        image, valid = self._measured(number, window)
        if image is None:
            return None
        self._writer.add(image, valid, None)
        return Chip(number, window, block, label, _one(label, self._classes))

    def _measured(self, number: int, window: Window) -> tuple[NDArray[Any] | None, NDArray[np.bool_]]:
        """Pixels, None where too few are measurements."""
        image, valid = self._reader.read(number, window)
        if valid.mean() < LEAST_VALID:
            self.left_out["chips with less than half of their pixels measured"] += 1
            return None, valid
        return image, valid


def _one(label: int, classes: int) -> NDArray[np.int64]:
    counts = np.zeros(classes, np.int64)
    counts[label] = 1
    return counts
