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

Float = NDArray[np.float32]  # every step is in single precision: 202 bands are many numbers

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
    physical = np.empty((len(sensor.bands), landscape.size, landscape.size), np.float32)
    for kind in ("optical", "thermal", "sar"):
        at = [i for i, b in enumerate(sensor.bands) if b.kind == kind]
        if at:
            bands = tuple(sensor.bands[i] for i in at)
            physical[at] = _SEE[kind](rng, weights, bands, scaling, "surface" not in sensor.level)
    return _to_raw(physical, scaling)


def _abundance(landscape: Landscape) -> Float:
    """(covers, 2, size, size): how much of each cover in its low and high state a pixel sees, blurred by the optics."""
    ones = np.stack([landscape.cover == i for i in range(len(COVERS))]).astype(np.float32) * landscape.light
    high = ones * landscape.state
    out = pixel_mean(np.stack([ones - high, high], axis=1))
    # A point spread function of about one pixel.
    padded = np.pad(out, [(0, 0), (0, 0), (1, 1), (0, 0)], mode="edge")
    out = 0.76 * out + 0.12 * (padded[..., :-2, :] + padded[..., 2:, :])
    padded = np.pad(out, [(0, 0), (0, 0), (0, 0), (1, 1)], mode="edge")
    return np.asarray(0.76 * out + 0.12 * (padded[..., :-2] + padded[..., 2:]), np.float32)


def _mix(per_cover: NDArray[np.float64], weights: Float) -> Float:
    """(covers, 2, bands) values and (covers, 2, h, w) weights to (bands, h, w)."""
    bands, (height, width) = per_cover.shape[2], weights.shape[2:]
    mixed = per_cover.reshape(-1, bands).T.astype(np.float32) @ weights.reshape(-1, height * width)
    return np.asarray(mixed.reshape(bands, height, width))


def _see_optical(
    rng: np.random.Generator, weights: Float, bands: tuple[Band, ...], scaling: Scaling, above_air: bool
) -> Float:
    reflectance = _mix(band_reflectance(bands), weights) * np.float32(rng.normal(1, 0.04))
    um = np.array([b.wavelength_um or 0.0 for b in bands])
    # At the surface a small error of the correction is left; at the top of the atmosphere all of the haze.
    haze = rng.uniform(0.03, 0.08) if above_air else rng.normal(0.0, 0.006)
    if above_air:
        through = np.prod([1 - d * np.exp(-0.5 * ((GRID_UM - c) / w) ** 2) for c, w, d in ABSORPTION], axis=0)
        reflectance *= _column(response(bands) @ through)
    reflectance += _column(haze * (0.5 / um) ** 2.5)
    sd = NOISE_REFLECTANCE + 0.008 * np.maximum(reflectance, 0)
    reflectance += sd * rng.standard_normal(reflectance.shape, np.float32)
    if _eight_bits(scaling):
        return reflectance * _column(255 / np.where(um < 0.69, FULL_8BIT_VISIBLE, FULL_8BIT_OTHER))
    if scaling.unit == "dn":
        return reflectance * np.float32(FULL_DN)
    if scaling.unit == "radiance":
        return reflectance * _column(0.8 * sunlight(um) / np.pi)
    return reflectance


def _see_thermal(
    rng: np.random.Generator, weights: Float, bands: tuple[Band, ...], scaling: Scaling, above_air: bool
) -> Float:
    shares = weights / weights.sum(axis=(0, 1))  # slopes in the shade are not 30 K colder
    kelvin = _mix(brightness_kelvin(len(bands)), shares) + np.float32(rng.normal(0, 3))
    kelvin += NOISE_KELVIN * rng.standard_normal(kelvin.shape, np.float32)
    if scaling.unit == "kelvin":
        return kelvin
    low, high = KELVIN_8BIT
    return np.asarray((255 if _eight_bits(scaling) else FULL_DN) * (kelvin - low) / (high - low))


def _see_sar(
    rng: np.random.Generator, weights: Float, bands: tuple[Band, ...], scaling: Scaling, above_air: bool
) -> Float:
    names = tuple(b.polarisation or "VV" for b in bands)
    power = _mix(backscatter(names), weights) * np.float32(10 ** (rng.normal(0, 0.8) / 10))
    power *= rng.standard_gamma(SPECKLE_LOOKS, power.shape, np.float32) / np.float32(SPECKLE_LOOKS)
    if scaling.unit == "linear_power":
        return power
    db = 10 * np.log10(np.maximum(power, 1e-6))
    if scaling.unit == "dn":
        return np.asarray(10 ** ((db + DN_DB) / 20))
    if scaling.unit == "uint8":
        low, high = np.array([DB_8BIT[n] for n in names]).T
        return np.asarray(255 * (db - _column(low)) / _column(high - low))
    return np.asarray(db)


_SEE = {"optical": _see_optical, "thermal": _see_thermal, "sar": _see_sar}


def _eight_bits(scaling: Scaling) -> bool:
    return scaling.unit == "uint8" or (scaling.unit == "dn" and all(c == (0, 255) for c in scaling.clip))


def _column(values: Any) -> Float:
    """(C, 1, 1), to broadcast over (C, H, W)."""
    return np.asarray(values, np.float32)[:, None, None]


def sunlight(wavelength_um: NDArray[np.float64]) -> NDArray[np.float64]:
    """Irradiance above the atmosphere in W m⁻² µm⁻¹, from Planck's law at the Sun's effective temperature."""
    metres = np.asarray(wavelength_um, float) * 1e-6
    planck, light, boltzmann = 6.62607015e-34, 2.99792458e8, 1.380649e-23
    spectral = 2 * planck * light**2 / metres**5 / np.expm1(planck * light / (metres * boltzmann * SUN_KELVIN))
    return np.asarray(spectral * SUN_SOLID_ANGLE * 1e-6)


def _to_raw(physical: Float, scaling: Scaling) -> NDArray[Any]:
    raw = (physical - _column(scaling.offset)) / _column(scaling.scale)
    if _eight_bits(scaling):
        return np.asarray(np.clip(np.rint(raw), 0, 255), np.uint8)
    if scaling.unit == "dn" or any(s != 1 for s in scaling.scale):
        # 0 is the fill value of many products: the darkest measurement is 1.
        return np.asarray(np.clip(np.rint(raw), 1, 65535), np.uint16)
    return raw
