"""What a catalogued sensor makes of a landscape: band responses, air, noise, speckle, and its own raw numbers."""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.pixels import Scaling
from dofa.sensors import Band, Sensor
from dofa.simulate.covers import (
    COVERS,
    GRID_UM,
    backscatter,
    band_reflectance,
    brightness_kelvin,
    response,
)
from dofa.simulate.landscape import Landscape, pixel_mean

SPECKLE_LOOKS = 5.0  # equivalent number of looks, about that of Sentinel-1 IW GRD (4.4 to 4.9)
NOISE_REFLECTANCE = 0.002
NOISE_KELVIN = 0.15
# Reflectances that fill 8 bits, and the stretch of radar backscatter to 8 bits: those of dofa.pixels' named maps.
FULL_8BIT_VISIBLE, FULL_8BIT_OTHER = 0.3558, 0.816
DB_8BIT = {"VV": (-30.0, 0.0), "HH": (-30.0, 0.0), "VH": (-35.0, -5.0), "HV": (-35.0, -5.0)}
FULL_DN = 2047.0  # other uncalibrated counts: reflectance 1 fills 11 bits
DN_DB = 83.0  # radar amplitude counts: dB = 20 log10(DN) − 83, as JAXA scales the ALOS-2 mosaics
KELVIN_8BIT = (240.0, 340.0)
SUN_KELVIN, SUN_SOLID_ANGLE = 5772.0, 6.8e-5  # effective temperature; seen from the Earth, in steradians
# Where the air above takes light away, for products that still have it in: centre and width in µm, depth.
ABSORPTION = ((0.76, 0.004, 0.5), (0.94, 0.02, 0.35), (1.13, 0.025, 0.4), (1.38, 0.045, 0.99), (1.88, 0.06, 0.98))


def observe(landscape: Landscape, sensor: Sensor, seed: int = 0) -> NDArray[Any]:
    """The image a sensor takes of a landscape, in the raw numbers of its product.

    Optical bands average the covers' spectra over a Gaussian of their centre and width; each picture has its own haze,
    brightness and noise. SAR bands see the covers' backscatter times gamma-distributed speckle. Thermal bands see
    brightness temperatures.

    Args:
        landscape: the ground; several sensors may look at the same.
        sensor: the inverse of its Scaling makes the raw numbers; without one they are reflectances.
        seed: of the acquisition: another one sees the same ground through other air and noise.

    Returns:
        (C, size, size): uint8 for 8-bit products, uint16 where the product scales integers, float32 where it holds
        physical values.

    """
    # A product whose factors differ from file to file is written as plain reflectance, which needs no factors.
    scaling = sensor.scaling or Scaling.uniform("reflectance", sensor.band_names)
    rng = np.random.default_rng([landscape.seed, seed, zlib.crc32(sensor.name.encode())])
    weights = _abundance(landscape)
    physical = np.empty((len(sensor.bands), landscape.size, landscape.size), np.float64)
    for kind in ("optical", "thermal", "sar"):
        at = [i for i, b in enumerate(sensor.bands) if b.kind == kind]
        if at:
            bands = tuple(sensor.bands[i] for i in at)
            physical[at] = _SEE[kind](rng, weights, bands, scaling, "surface" not in sensor.level)
    return _to_raw(physical, scaling)


def _abundance(landscape: Landscape) -> NDArray[np.float32]:
    """(covers, 2, size, size): how much of each cover in its low and high state a pixel sees, blurred by the optics."""
    ones = np.stack([landscape.cover == i for i in range(len(COVERS))]).astype(np.float32) * landscape.light
    pair = np.stack([ones * (1 - landscape.state), ones * landscape.state], axis=1)
    out = pixel_mean(pair)
    for axis in (-2, -1):  # a point spread function of about one pixel
        padded = np.pad(out, [(0, 0)] * 2 + [(1, 1) if out.ndim + axis == a else (0, 0) for a in (2, 3)], mode="edge")
        n = out.shape[axis]
        before, after = (np.take(padded, range(k, k + n), axis=axis) for k in (0, 2))
        out = 0.76 * out + 0.12 * (before + after)
    return out


def _see_optical(
    rng: np.random.Generator, weights: NDArray[np.float32], bands: tuple[Band, ...], scaling: Scaling, above_air: bool
) -> NDArray[np.float64]:
    reflectance = np.einsum("csb,cshw->bhw", band_reflectance(bands), weights, optimize=True)
    reflectance *= rng.normal(1, 0.04)
    um = np.clip([b.wavelength_um or 0.0 for b in bands], GRID_UM[0], GRID_UM[-1])
    # At the surface a small error of the correction is left; at the top of the atmosphere all of the haze.
    haze = rng.normal(0.0, 0.006) if not above_air else rng.uniform(0.03, 0.08)
    air = haze * (0.5 / um) ** 2.5
    if above_air:
        through = np.prod([1 - d * np.exp(-0.5 * ((GRID_UM - c) / w) ** 2) for c, w, d in ABSORPTION], axis=0)
        reflectance *= (response(bands) @ through)[:, None, None]
    reflectance += air[:, None, None]
    sd = NOISE_REFLECTANCE + 0.008 * np.maximum(reflectance, 0)
    return np.asarray(_from_reflectance(reflectance + sd * rng.standard_normal(reflectance.shape), um, scaling))


def _see_thermal(
    rng: np.random.Generator, weights: NDArray[np.float32], bands: tuple[Band, ...], scaling: Scaling, above_air: bool
) -> NDArray[np.float64]:
    shares = weights / weights.sum(axis=(0, 1))  # slopes in the shade are not 30 K colder
    kelvin = np.einsum("csb,cshw->bhw", brightness_kelvin(len(bands)), shares, optimize=True)
    kelvin = kelvin + rng.normal(0, 3) + NOISE_KELVIN * rng.standard_normal(kelvin.shape)
    if scaling.unit == "kelvin":
        return np.asarray(kelvin)
    low, high = KELVIN_8BIT
    return np.asarray((255 if _eight_bits(scaling) else FULL_DN) * (kelvin - low) / (high - low))


def _see_sar(
    rng: np.random.Generator, weights: NDArray[np.float32], bands: tuple[Band, ...], scaling: Scaling, above_air: bool
) -> NDArray[np.float64]:
    names = tuple(b.polarisation or "VV" for b in bands)
    power = np.einsum("csb,cshw->bhw", backscatter(names), weights, optimize=True)
    power = power * 10 ** (rng.normal(0, 0.8) / 10) * rng.gamma(SPECKLE_LOOKS, 1 / SPECKLE_LOOKS, power.shape)
    if scaling.unit == "linear_power":
        return np.asarray(power)
    db = 10 * np.log10(np.maximum(power, 1e-6))
    if scaling.unit == "dn":
        return np.asarray(10 ** ((db + DN_DB) / 20))
    if scaling.unit == "uint8":
        low, high = np.array([DB_8BIT[n] for n in names]).T[:, :, None, None]
        return np.asarray(255 * (db - low) / (high - low))
    return np.asarray(db)


_SEE = {"optical": _see_optical, "thermal": _see_thermal, "sar": _see_sar}


def _from_reflectance(
    reflectance: NDArray[np.float64], wavelength_um: NDArray[np.float64], scaling: Scaling
) -> NDArray[np.float64]:
    """Reflectance to the unit of the product."""
    if _eight_bits(scaling):
        full = np.where(wavelength_um < 0.69, FULL_8BIT_VISIBLE, FULL_8BIT_OTHER)
        return np.asarray(255 * reflectance / full[:, None, None])
    if scaling.unit == "dn":
        return reflectance * FULL_DN
    if scaling.unit == "radiance":
        return np.asarray(reflectance * (0.8 * sunlight(wavelength_um) / np.pi)[:, None, None])
    return reflectance


def _eight_bits(scaling: Scaling) -> bool:
    return scaling.unit == "uint8" or (scaling.unit == "dn" and all(c == (0, 255) for c in scaling.clip))


def sunlight(wavelength_um: NDArray[np.float64]) -> NDArray[np.float64]:
    """Irradiance above the atmosphere in W m⁻² µm⁻¹, from Planck's law at the Sun's effective temperature."""
    metres = np.asarray(wavelength_um, float) * 1e-6
    planck, light, boltzmann = 6.62607015e-34, 2.99792458e8, 1.380649e-23
    spectral = 2 * planck * light**2 / metres**5 / np.expm1(planck * light / (metres * boltzmann * SUN_KELVIN))
    return np.asarray(spectral * SUN_SOLID_ANGLE * 1e-6)


def _to_raw(physical: NDArray[np.float64], scaling: Scaling) -> NDArray[Any]:
    scale, offset = (np.array(v)[:, None, None] for v in (scaling.scale, scaling.offset))
    raw = (physical - offset) / scale
    if _eight_bits(scaling):
        return np.asarray(np.clip(np.rint(raw), 0, 255), np.uint8)
    if scaling.unit == "dn" or (scale != 1).any():
        # 0 is the fill value of many products: the darkest measurement is 1.
        return np.asarray(np.clip(np.rint(raw), 1, 65535), np.uint16)
    return np.asarray(raw, np.float32)
