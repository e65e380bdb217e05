"""Band statistics, the features that need no model, and maps of scenes through a head that was trained on them.

Of a pixel: its value, and mean and standard deviation of each band in the window around it. Of an image or a tile: mean
and standard deviation of each band. In physical values, of measured pixels only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import dofa
from dofa.errors import ConfigError, DataError
from dofa.inference import engine
from dofa.inference.inputs import Inputs, bands_for_head
from dofa.inference.tiles import Plan
from dofa.model.heads import BAND_STATISTICS, Head
from dofa.pixels import Float, Scaling, convert_units, unit_path
from dofa.scene.grid import Window
from dofa.scene.metadata import iso_date
from dofa.sensors import Sensor

if TYPE_CHECKING:
    from dofa.scene.scene import Scene

LOCAL = 5  # pixels a side of the window around a pixel
TILE = 256  # pixels a side that are computed at once where every pixel has a class


def image_statistics(values: Float, seen: NDArray[np.bool_] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each band over the measured pixels of an image; NaN where there are none.

    Args:
        values: (C, H, W) physical.
        seen: (H, W) measured pixels, None where all are.

    Returns:
        (C,) and (C,) float64.
    """
    pixels = values.reshape(len(values), -1).astype(np.float64)
    if seen is not None:
        pixels = pixels[:, seen.ravel()]
    if not pixels.size:
        nothing = np.full(len(values), np.nan)
        return nothing, nothing
    return np.asarray(pixels.mean(1)), np.asarray(pixels.std(1))


class LocalStatistics:
    """Value, mean and standard deviation in the window around each pixel, band by band.

    Args:
        seen: (H, W) measured pixels.
    """

    def __init__(self, seen: NDArray[np.bool_]) -> None:
        from scipy.ndimage import uniform_filter

        self.seen = seen
        self._share = np.maximum(uniform_filter(seen.astype(np.float64), LOCAL), 1 / LOCAL**2 / 2)

    def of(self, band: NDArray[np.floating]) -> Float:
        """Of one band.

        Args:
            band: (H, W) physical values.

        Returns:
            (3, H, W) float32: value, mean and standard deviation.
        """
        from scipy.ndimage import uniform_filter

        values = band.astype(np.float64)
        middle = values[self.seen].mean() if self.seen.any() else 0.0  # else squares cancel digits
        values = np.where(self.seen, values - middle, 0.0)
        mean, square = (uniform_filter(v, LOCAL) / self._share for v in (values, values**2))
        spread = np.sqrt(np.maximum(square - mean**2, 0))
        return np.stack([values + middle, mean + middle, spread]).astype(np.float32)


def local_statistics(values: Float, seen: NDArray[np.bool_] | None) -> Float:
    """Features of every pixel of an image.

    Args:
        values: (C, H, W) physical.
        seen: (H, W) measured pixels, None where all are.

    Returns:
        (3C, H, W) float32: the bands' values, then their local means, then their local standard deviations.
    """
    found = LocalStatistics(np.ones(values.shape[1:], bool) if seen is None else seen)
    return np.stack([found.of(band) for band in values], axis=1).reshape(-1, *values.shape[1:])


def head_logits(head: Head, values: Float, seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What a head of band statistics answers for an image, or for every pixel of it.

    Args:
        values: (C, H, W) in the head's unit.
        seen: (H, W) measured pixels.

    Returns:
        (K, 1, 1), or (K, H, W) of a segmentation head.
    """
    if head.task != "segmentation":
        features = np.concatenate(image_statistics(values, seen)).astype(np.float32).astype(np.float64)
        return np.asarray(head.weight @ features + head.bias)[:, None, None]
    weight = head.weight.reshape(len(head.weight), 3, len(values))
    local = LocalStatistics(seen)
    out = np.broadcast_to(head.bias[:, None, None], (len(head.bias), *seen.shape)).copy()
    for number, band in enumerate(values):  # one at a time: a hyperspectral tile has hundreds
        out += np.tensordot(weight[:, :, number], local.of(band).astype(np.float64), 1)
    return out


def in_unit(values: Float, seen: NDArray[np.bool_], sensor: Sensor, have: Scaling, want: Scaling) -> Float:
    """Physical values in the unit a head was trained in, 0 where nothing was measured.

    Args:
        values: (C, H, W) in the unit of `have`.
        seen: (H, W) measured pixels.
        have: scaling of the images.
        want: scaling of the head.

    Raises:
        DataError: measured pixels that are NaN or infinite.
    """
    values = np.where(seen, values, np.float32(0))
    if have.unit != want.unit:
        mapped = convert_units(values, sensor.band_names, have.unit, want.unit, sensor.platform)
        values = np.where(seen, mapped, np.float32(0))
    if not np.isfinite(values).all():
        raise DataError("some measured pixels are NaN or infinite: name what stands for no measurement (--nodata)")
    return np.asarray(values, np.float32)


class BandInputs(Inputs):
    """A scene in physical values, with a last channel that is 1 where there is a measurement.

    Args:
        scalings: of the head: names of the bands that are fed, and the unit they are fed in.
    """

    def __init__(self, scene: "Scene", scalings: Sequence[Scaling]) -> None:
        super().__init__(scene, scalings)
        self.count += 1

    def normalised(self, window: Window, out: Float | None = None) -> tuple[Float, NDArray[np.bool_]]:
        """As `Inputs.normalised`, in physical values."""
        below, right = window.row + window.height, window.col + window.width
        if min(window.row, window.col) < 0 or below > self.scene.height or right > self.scene.width:
            values, seen = super().normalised(window, out)
            values[-1] = seen  # what is repeated beyond the border was not measured
            return values, seen
        (raw,), valid = self.chunks.read(window)
        physical, scaling, sensor = self._physical[0], self.scalings[0], self.sensors[0]
        out = np.empty((self.count, window.height, window.width), np.float32) if out is None else out
        values = physical.physical(raw[self._picked[0]])
        try:
            out[:-1] = in_unit(values, valid, sensor, physical, scaling)
        except DataError as error:
            raise DataError(f"{self.scene.name}: {error}") from None
        out[-1] = valid
        return out, valid


class BandTiles:
    """A head of band statistics as the engine runs it: a class for every pixel, or one for a tile.

    Args:
        side: pixels of a tile.
    """

    def __init__(self, head: Head, side: int) -> None:
        self.head = head
        self.patch = self.cell = 1 if head.task == "segmentation" else side
        self.offset, self.channels = 0, len(head.class_names)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C + 1, h, w) of `BandInputs` to logits (B, K, h / cell, w / cell) float32."""
        found = [head_logits(self.head, image[:-1], image[-1] > 0.5) for image in images.cpu().numpy()]
        return torch.from_numpy(np.stack(found).astype(np.float32)).to(images.device)


def band_inputs(scene: "Scene", head: Head) -> BandInputs:
    """A scene as a head of band statistics reads it.

    Raises:
        ConfigError: several sensors, a band that the head needs and the scene lacks, or no way between the units.
    """
    sensor, physical = bands_for_head(scene, head)
    if physical.unit != head.scaling.unit:
        unit_path(physical.unit, head.scaling.unit, sensor.platform)
    return BandInputs(scene, [Scaling.uniform(head.scaling.unit, sensor.band_names)])


def band_plan(inputs: BandInputs, tiles: BandTiles, stride: int | None, tile: int | None, overlap: int | None) -> Plan:
    """How a scene is cut for a head of band statistics.

    Args:
        stride: pixels between the shifted tiles that are averaged; None for tiles side by side.
        tile: pixels a side; None for the size of the images a classification was trained on.
        overlap: of tiles in pixels; none but the windows of pixels need.

    Raises:
        ConfigError: a stride or an overlap where every pixel has its own class.
    """
    scene, dense = inputs.scene, tiles.head.task == "segmentation"
    if overlap is not None or (dense and stride not in (None, 1)):
        told = f"--stride {stride}" if overlap is None else f"--overlap {overlap}"
        raise ConfigError(f"{told}: a head of band statistics needs none: leave it out")
    side = tiles.patch if not dense else tile or TILE
    halo = LOCAL // 2 if dense else 0
    if dense and side < 4 * LOCAL:
        raise ConfigError(f"--tile {side}: at least {4 * LOCAL} pixels")
    step = stride or tiles.cell
    swath = -(-engine.swath_of(inputs, side, tiles, step) // tiles.patch) * tiles.patch
    return Plan(scene.height, scene.width, side, 2 * halo, tiles.patch, tiles.cell, step, halo=halo, swath=swath)


def describe_bands(inputs: BandInputs, plan: Plan) -> dict[str, Any]:
    """What a map of band statistics says of itself; plain JSON, as `features.describe`.

    Args:
        plan: how it is cut.
    """
    return {
        "dofa": dofa.__version__,
        "encoder_sha256": None,
        "features": BAND_STATISTICS,
        "scene": inputs.scene.name,
        "date": iso_date(inputs.scene),
        "tile": plan.tile,
        "stride": plan.stride,
        "gsd_m": inputs.scene.gsd_m,
        "sensors": [s.name for s in inputs.sensors],
        "bands": [list(s.band_names) for s in inputs.sensors],
        "unit": inputs.scalings[0].unit,
    }
