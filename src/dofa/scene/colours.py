"""A scene as people look at it: true colour, colour infrared, radar, or whatever its bands allow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dofa.pixels import Float
from dofa.scene.grid import Window
from dofa.scene.scene import Scene
from dofa.sensors import Band, Sensor

VISIBLE_UM = (0.66, 0.56, 0.48)
INFRARED_UM = (0.84, 0.66, 0.56)
APART_UM = 0.06  # a band further from a colour's wavelength does not stand for it
LEAST_SPAN = 0.01  # of reflectance from black to white


@dataclass(frozen=True)
class Colours:
    """How a scene's bands are shown.

    Attributes:
        title: true colour, colour infrared, …
        part: of the scene.
        bands: of the part, as red, green and blue; one for grey.
        channels: what each colour shows, for the legend; of two, the first is red and blue.
    """

    title: str
    part: int
    bands: tuple[int, ...]
    channels: tuple[str, ...]


def colours(scene: Scene) -> Colours:
    """The most natural picture of a scene: true colour where it has that, else colour infrared, else what there is."""
    found = [of_sensor(part.sensor, number) for number, part in enumerate(scene.parts)]
    order = ("true colour", "colour infrared")
    return min(found, key=lambda c: order.index(c.title) if c.title in order else len(order))


def of_sensor(sensor: Sensor, part: int) -> Colours:
    """The most natural picture of a sensor, whose part of the scene has that number."""
    if all(band.kind == "sar" for band in sensor.bands):
        return _radar(sensor, part)
    for name in ("rgb", "colour-infrared", *sensor.renderings):
        if name in sensor.renderings:
            title = "true colour" if name == "rgb" else name.replace("-", " ")
            return _optical(sensor, part, title, sensor.index(sensor.renderings[name]))
    for title, wanted in (("true colour", VISIBLE_UM), ("colour infrared", INFRARED_UM)):
        nearest = [_nearest(sensor.bands, um) for um in wanted]
        three = [i for i in nearest if i is not None]
        if len(set(three)) == 3:
            return _optical(sensor, part, title, three)
    by_wavelength = sorted(range(len(sensor.bands)), key=lambda i: -(sensor.bands[i].wavelength_um or 0))
    if len(by_wavelength) < 3:
        return _optical(sensor, part, "grey", by_wavelength[:1])
    return _optical(
        sensor, part, "false colour", [by_wavelength[0], by_wavelength[len(by_wavelength) // 2], by_wavelength[-1]]
    )


def _nearest(bands: Sequence[Band], um: float) -> int | None:
    apart = [abs((band.wavelength_um or np.inf) - um) for band in bands]
    best = int(np.argmin(apart))
    return best if apart[best] <= APART_UM else None


def _optical(sensor: Sensor, part: int, title: str, bands: Sequence[int]) -> Colours:
    shown = [sensor.bands[i] for i in bands]
    told = tuple(f"{b.name}" if b.wavelength_um is None else f"{b.name} {b.wavelength_um:.3g} µm" for b in shown)
    return Colours(title, part, tuple(bands), told)


def _radar(sensor: Sensor, part: int) -> Colours:
    names = sensor.band_names
    polarisations = [band.polarisation or "" for band in sensor.bands]
    like = next((i for i, p in enumerate(polarisations) if p in ("VV", "HH")), None)
    cross = next((i for i, p in enumerate(polarisations) if p in ("VH", "HV")), None)
    if like is None or cross is None:
        return Colours("radar", part, (0,), (f"{names[0]} dB",))
    return Colours("radar, false colour", part, (like, cross, like), (f"{names[like]} dB", f"{names[cross]} dB"))


def shown_bands(scene: Scene, how: Colours) -> tuple[Float, NDArray[np.bool_]]:
    """The numbers that become red, green and blue.

    Args:
        scene: small enough to be shown whole; all of it is read, a strip at a time.
        how: of `colours`.

    Returns:
        (3, H, W) float32 in physical units, power in dB, and (H, W) validity.
    """
    part = scene.parts[how.part]
    read = sorted(set(how.bands))
    scaling = part.scaling.select([part.sensor.band_names[i] for i in read])
    out = np.empty((len(read), scene.height, scene.width), np.float32)
    valid = np.empty((scene.height, scene.width), bool)
    step = scene.block[0] * -(-64 // scene.block[0])
    for top in range(0, scene.height, step):
        window = Window(top, 0, min(step, scene.height - top), scene.width)
        raw, valid[window.rows] = scene.read(window)
        out[:, window.rows] = scaling.physical(raw[how.part][read])
    if scaling.unit == "linear_power":
        out = (10 * np.log10(np.maximum(out, 1e-6))).astype(np.float32)
    three = how.bands if len(how.bands) == 3 else how.bands * 3
    return out[[read.index(i) for i in three]], valid
