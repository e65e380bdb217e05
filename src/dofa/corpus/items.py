"""What readers hand to packing: images of one sensor, each with where it comes from and what it shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dofa.errors import DataError
from dofa.sensors import Sensor

Split = Literal["train", "val", "test"]
Bounds = tuple[float, float, float, float]


@dataclass(frozen=True)
class Sample:
    """One image as it lies in its file.

    Attributes:
        image: (C, H, W) raw numbers.
        valid: (H, W), False where there is no measurement; None where every pixel has one.
        label: class index, None where there is none.
    """

    image: NDArray[Any]
    valid: NDArray[np.bool_] | None = None
    label: int | None = None


@dataclass(frozen=True)
class Item:
    """One image that can be loaded.

    Attributes:
        source: where it comes from, for tracing: file, and window or index within it.
        place: what it shows; images of one place never stand on both sides of a split by place.
        load: reads it; called from several threads. A DataError means that the image is refused, with its reason.
        bounds: (left, bottom, right, top) in the units of `frame`, for splits by blocks; None where it is not known.
        frame: what `bounds` are measured in: a CRS, or "pixels".
        split: where a published layout says it.
        files: what `load` reads, files or folders of them: a pack notices that they have changed.
    """

    source: str
    place: str
    load: Callable[[], Sample]
    bounds: Bounds | None = None
    frame: str = ""
    split: Split | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """An image that cannot be packed, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """Images of one sensor, all of one size.

    Attributes:
        sensor: bands in the order of the images; its `scaling` turns their raw numbers into physical values.
        items: the images, in a fixed order.
        tile: (height, width) in pixels.
        dtype: of the raw numbers in the store.
        class_names: of the labels, by index.
        refused: files that could not even be opened.
        notes: what the user should know about the files.
    """

    sensor: Sensor
    items: Sequence[Item]
    tile: tuple[int, int]
    dtype: str
    class_names: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def from_arrays(
        cls,
        sensor: Sensor,
        images: NDArray[Any],
        places: Sequence[str],
        *,
        sources: Sequence[str] | None = None,
        valid: NDArray[np.bool_] | None = None,
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] = (),
    ) -> "Reading":
        """Images in memory.

        Args:
            sensor: with the bands of the images, in order, and a scaling.
            images: (N, C, H, W) raw numbers.
            places: N names; a split by place holds out whole places.
            sources: N names for tracing; their numbers where absent.
            valid: (N, H, W).
            labels: N class indices.
            class_names: by class index.

        Raises:
            DataError: the numbers of images, places, … differ.
        """
        for name, given in (("places", places), ("sources", sources), ("valid", valid), ("labels", labels)):
            if given is not None and len(given) != len(images):
                raise DataError(f"{len(given)} {name} for {len(images)} images")

        def loader(i: int) -> Callable[[], Sample]:
            return lambda: Sample(
                images[i], None if valid is None else valid[i], None if labels is None else int(labels[i])
            )

        names = [str(i) for i in range(len(images))] if sources is None else sources
        items = [Item(names[i], str(places[i]), loader(i)) for i in range(len(images))]
        return cls(sensor, items, (images.shape[2], images.shape[3]), str(images.dtype), tuple(class_names))
