"""What the ground of a simulated landscape is made of, as it looks to light, to heat and to radar.

Every cover has two ends, `low` and `high`, between which the state of a field, a lake or a roof lies: sparse to dense
for a crop, wet to dry for a soil, clear to turbid for water. The curves were drawn by hand after the shapes everybody
knows (the red edge, the water bands at 1.45 and 1.95 µm, the clay feature at 2.2 µm, the fall of snow beyond 1 µm);
they are no measurements and copy no spectral library.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dofa.sensors import Band

# Where the curves below are given, in µm.
# fmt: off
ANCHORS_UM = (0.40, 0.45, 0.49, 0.55, 0.60, 0.65, 0.68, 0.71, 0.74, 0.80, 0.90, 0.97,
              1.08, 1.20, 1.28, 1.45, 1.65, 1.80, 1.95, 2.10, 2.21, 2.35, 2.50)
# fmt: on
GRID_UM = np.arange(0.35, 2.6, 0.005)
SMOOTH_UM = 0.012  # takes the corners off the straight lines between anchors
DEFAULT_FWHM_UM = 0.02  # of a band whose width nobody wrote down


@dataclass(frozen=True)
class Cover:
    """One kind of ground between its two states.

    Attributes:
        name: what it is.
        low: reflectance at ANCHORS_UM in the low state.
        high: like low, in the high state.
        sigma0_db: backscatter in dB at C band and some 40° incidence: (VV, VH) low, (VV, VH) high. Other frequencies
            see the same numbers: a simplification.
        kelvin: surface temperature around noon in the low and in the high state.
        emissivity: in the thermal infrared.
    """

    name: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    sigma0_db: tuple[tuple[float, float], tuple[float, float]]
    kelvin: tuple[float, float]
    emissivity: float


def _curve(per_mille: str) -> tuple[float, ...]:
    return tuple(int(v) / 1000 for v in per_mille.split())


# fmt: off
COVERS = (
    Cover("water",      # clear to turbid
          _curve("35 38 38 30 20 14 12 10 8 6 4 3 2 2 2 1 1 1 1 1 1 1 1"),
          _curve("50 68 82 112 108 98 90 72 48 40 28 14 10 4 4 3 3 2 2 2 2 2 2"),
          ((-23, -29), (-18, -26)), (288, 292), 0.99),
    Cover("conifer",    # shaded to sunlit
          _curve("12 14 16 28 22 18 16 45 120 165 175 165 175 160 155 55 85 75 22 42 45 30 20"),
          _curve("20 24 28 55 42 34 30 85 210 280 295 280 290 260 255 95 145 125 40 75 80 55 38"),
          ((-10, -16), (-8, -14)), (293, 297), 0.985),
    Cover("broadleaf",  # thin to full leaf
          _curve("25 30 36 65 60 55 50 110 210 260 280 270 280 265 260 120 190 170 65 115 120 90 65"),
          _curve("22 26 32 75 48 34 30 110 330 440 465 450 460 425 420 150 245 215 65 115 120 80 50"),
          ((-9.5, -15.5), (-7.5, -13)), (294, 297), 0.985),
    Cover("grass",      # dry to green
          _curve("55 75 95 140 175 205 215 240 265 290 325 335 355 360 365 280 345 330 220 270 285 235 190"),
          _curve("28 34 42 88 66 52 46 130 310 390 420 405 420 390 385 150 260 225 75 135 145 100 65"),
          ((-14.5, -21.5), (-11, -17.5)), (302, 296), 0.975),
    Cover("crop",       # sparse to dense
          _curve("50 60 75 110 118 122 120 155 225 265 290 290 305 300 300 200 275 255 150 215 225 180 140"),
          _curve("22 27 34 82 52 36 30 125 380 500 525 505 520 475 470 155 250 215 60 110 118 75 45"),
          ((-13.5, -20.5), (-9.5, -15)), (303, 295), 0.975),
    Cover("soil",       # wet and dark to dry and bright
          _curve("35 45 55 75 95 115 122 132 142 160 185 190 210 225 235 170 250 245 160 220 205 190 165"),
          _curve("80 105 128 175 220 255 265 278 290 312 345 360 388 410 420 395 455 455 400 445 415 400 375"),
          ((-10, -18), (-14, -22)), (299, 310), 0.96),
    Cover("sand",       # moist to dry
          _curve("95 125 150 210 260 295 305 318 328 348 372 380 400 412 420 360 440 440 350 420 400 385 360"),
          _curve("130 170 205 290 355 400 412 428 438 458 485 495 515 530 535 510 560 560 510 550 525 515 495"),
          ((-17, -25), (-21, -29)), (303, 315), 0.93),
    Cover("roof",       # slate to tile and metal
          _curve("70 80 85 92 98 102 104 106 108 112 116 118 122 126 128 126 132 132 124 130 128 126 124"),
          _curve("95 110 120 160 255 300 310 320 328 340 350 358 375 388 395 390 415 418 400 415 400 392 380"),
          ((-10, -17), (-2, -10)), (304, 314), 0.93),
    Cover("asphalt",    # new to worn
          _curve("45 50 54 60 64 68 70 72 74 78 84 87 92 98 101 98 112 113 102 114 114 108 104"),
          _curve("95 110 120 138 150 160 164 168 172 180 190 195 204 212 216 212 230 231 218 230 226 220 214"),
          ((-18, -26), (-15, -23)), (309, 314), 0.955),
    Cover("snow",       # old and coarse to fresh
          _curve("690 700 700 690 675 660 650 640 625 595 500 430 330 210 190 20 45 60 12 25 40 20 10"),
          _curve("950 955 955 950 945 940 935 930 925 910 865 820 740 590 560 75 150 170 35 80 110 60 30"),
          ((-18, -25), (-12, -19)), (273, 268), 0.985),
)
# fmt: on
COVER_NAMES = tuple(c.name for c in COVERS)


@lru_cache(maxsize=64)
def band_reflectance(bands: tuple[Band, ...]) -> NDArray[np.float64]:
    """Reflectance of every cover in the given bands, averaged over Gaussian responses of their centre and width.

    Args:
        bands: optical bands; beyond 2.6 µm they see the curves' last value.

    Returns:
        (covers, 2, bands): low and high state.
    """
    return curves() @ response(bands).T


@lru_cache(maxsize=64)
def response(bands: tuple[Band, ...]) -> NDArray[np.float64]:
    """(bands, GRID_UM) weights that add up to 1: what share of a band's signal comes from which wavelength."""
    centre = np.clip([b.wavelength_um or 0.0 for b in bands], GRID_UM[0], GRID_UM[-1])
    fwhm = np.array([b.fwhm_um or DEFAULT_FWHM_UM for b in bands])
    # A response narrower than the grid's step would fall between two of its points.
    sigma = np.maximum(fwhm / 2.3548, 0.0025)
    weights = np.exp(-0.5 * ((GRID_UM - centre[:, None]) / sigma[:, None]) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def curves() -> NDArray[np.float64]:
    """(covers, 2, GRID_UM): the reflectance curves, low and high state, smoothed between their anchors."""
    offsets = np.arange(-8, 9) * (GRID_UM[1] - GRID_UM[0])
    kernel = np.exp(-0.5 * (offsets / SMOOTH_UM) ** 2)
    kernel /= kernel.sum()
    lines = [np.interp(GRID_UM, ANCHORS_UM, state) for c in COVERS for state in (c.low, c.high)]
    smooth = [np.convolve(np.pad(line, 8, mode="edge"), kernel, mode="valid") for line in lines]
    return np.reshape(smooth, (len(COVERS), 2, len(GRID_UM)))


def backscatter(polarisations: tuple[str, ...]) -> NDArray[np.float64]:
    """(covers, 2, bands): backscatter in linear power; HH is taken as VV and HV as VH."""
    column = [0 if p in ("VV", "HH") else 1 for p in polarisations]
    db = np.array([c.sigma0_db for c in COVERS], float)[:, :, column]
    return np.asarray(10 ** (db / 10))


def brightness_kelvin(count: int) -> NDArray[np.float64]:
    """(covers, 2, count): brightness temperature, alike in all thermal bands; the emissivity enters by its 4th root."""
    kelvin = np.array([[t * c.emissivity**0.25 for t in c.kelvin] for c in COVERS])
    return np.repeat(kelvin[:, :, None], count, axis=2)
