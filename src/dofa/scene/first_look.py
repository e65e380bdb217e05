"""A first look at a scene's pixels: borders of zeros, and whether there is one measurement at all."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dofa.errors import DataError, listed
from dofa.raster import Raster, nodata
from dofa.raster.nodata import sample_windows as raster_windows
from dofa.scene.grid import Mask, Window
from dofa.scene.layers import Stack

if TYPE_CHECKING:
    from dofa.scene.scene import Scene

SEARCHED = 2**30  # bytes of pixels that are looked through for one that is measured
SIDE = 128  # pixels a side of a sample window
# Where sample windows lie, as shares of the free height and width: few, since each costs a block of every band.
PLACES = ((0.5, 0.5), (0.2, 0.75), (0.8, 0.3), (0.05, 0.1), (0.95, 0.9))


def has_zero_border(stack: Stack, height: int, width: int) -> bool:
    """Whether a corner of a part is 0 in all bands although no nodata value is 0 and no mask leaves it out.

    Another nodata value, such as NaN, does not make zeros measurements: terrain correction writes both. In 8-bit
    pictures it does, and a single 8-bit band is never taken so: 0 is dark water or shadow there.

    Args:
        stack: files of one part.
        height, width: of the part, in pixels.
    """
    rasters: list[Raster] = [layer.raster for layer in stack.layers]
    declared = {value for raster in rasters for value in raster.validity.values}
    picture = stack.dtype == np.uint8 and (len(stack.part.sensor.bands) == 1 or declared)
    if picture or 0 in declared or any(r.masked for r in rasters):
        return False
    return nodata.zero_border(lambda *window: stack.read(Window(*window))[0], height, width)


def sample_windows(height: int, width: int) -> list[Window]:
    """A small scene whole, a few windows of a larger one, the centre first.

    Args:
        height, width: of the scene, in pixels.
    """
    if max(height, width) <= 2 * SIDE:
        return [Window(0, 0, height, width)]
    rows, cols = min(SIDE, height), min(SIDE, width)
    return [Window(round(v * (height - rows)), round(h * (width - cols)), rows, cols) for v, h in PLACES]


def sample(scene: "Scene") -> Iterator[tuple[list[NDArray[Any]], Mask]]:
    """Raw numbers of each part and validity, of the sample windows."""
    return (scene.read(window) for window in sample_windows(scene.height, scene.width))


def measured_sample(scene: "Scene") -> list[tuple[list[NDArray[Any]], Mask]]:
    """Like `sample`, with one window more where those hold no valid pixel.

    Raises:
        DataError: see `check_measured`.
    """
    seen = list(sample(scene))
    return seen if any(valid.any() for _, valid in seen) else [*seen, scene.read(check_measured(scene))]


def check_measured(scene: "Scene") -> Window:
    """Look until one pixel is found that can be used; a scene without any is refused.

    Returns:
        The window that it was found in.

    Raises:
        DataError: there is none, or none in as many pixels as can be looked at within seconds.
    """
    for window in sample_windows(scene.height, scene.width):
        if scene.read(window)[1].any():
            return window
    rows, cols = (max(1, 512 // side) * side for side in scene.block)
    down, across = -(-scene.height // rows), -(-scene.width // cols)
    # What a swath's edge leaves of a tile touches its border: looked at first, then what is within, without pattern.
    order = np.random.default_rng(0).permutation(down * across)
    rim = np.minimum(
        np.minimum(order // across, down - 1 - order // across), np.minimum(order % across, across - 1 - order % across)
    )
    looked_at = 0
    for place in order[np.argsort(rim > 0, kind="stable")].tolist():
        row, col = place // across * rows, place % across * cols
        window = Window(row, col, min(rows, scene.height - row), min(cols, scene.width - col))
        _, valid = scene.read(window)
        if valid.any():
            return window
        looked_at += valid.size
        if looked_at * scene.pixel_bytes > SEARCHED and looked_at < scene.height * scene.width:
            share = looked_at / (scene.height * scene.width)
            raise DataError(
                f"{scene.name}: not one of the {looked_at / 1e6:.0f} million pixels looked at ({share:.0%} of it) is "
                f"{_why(scene)}, or cut out the part that is measured (gdal_translate -srcwin)"
            )
    raise DataError(f"{scene.name}: not one pixel is {_why(scene)}")


def _why(scene: "Scene") -> str:
    """What no pixel of a scene is, why, and the cure."""
    empty = _empty_bands(scene)
    numbers = sorted(set().union(*empty.values()))
    if len(empty) == len(scene.bands):
        cure = "name a file that has measurements"
        if numbers != ["NaN"]:
            cure += ", or pass --nodata with another value if such numbers are measurements"
        return f"measured: every number looked at is nodata ({listed(numbers, 3)}): {cure}"
    if empty:
        held = f"all numbers of {listed(empty)} looked at are nodata ({listed(numbers, 3)})"
        return f"measured in every band: {held}: leave such bands out with --bands, - each"
    doubt = scene.mask_doubt()
    if doubt is not None:
        return f"measured and left by the mask: {doubt[1]}"
    if scene.masked:
        return "measured and left by the mask: look at its classes, and name those to leave out (--mask-values)"
    return (
        "measured in every band: look at its nodata value and its mask, and leave out empty bands with --bands, - each"
    )


def _empty_bands(scene: "Scene") -> dict[str, set[str]]:
    """Bands whose numbers are all nodata in windows of their files, and those numbers."""
    empty: dict[str, set[str]] = {}
    for layer in (layer for stack in scene.stacks for layer in stack.layers):
        raster = layer.raster
        windows = raster_windows(raster.height, raster.width)
        for number, name in zip(raster.numbers, raster.sensor.band_names, strict=True):
            raw = np.concatenate([raster.read(window, [name])[0].ravel() for window in windows])
            good = raster.validity.each(raw[None], [number])[0]
            if layer.zero_is_missing:
                good &= raw != 0
            if not good.any():
                title = f"{raster.sensor.name}:{name}" if len(scene.parts) > 1 else name
                empty[title] = {"NaN" if value != value else f"{value:.10g}" for value in np.unique(raw).tolist()}
    return empty
