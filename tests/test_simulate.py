"""Simulated scenes are deterministic and plausible for every sensor; classes differ in layout, not in spectra."""

import itertools

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dofa import sensors
from dofa.errors import ConfigError
from dofa.pixels import Scaling
from dofa.sensors import Band, Sensor
from dofa.simulate import CLASSES, COVER_NAMES, PAIRS, Landscape, landscape, observe, write_corpus
from dofa.simulate.covers import band_reflectance
from dofa.simulate.observe import SPECKLE_LOOKS

CATALOGUE = sensors.catalogue()
BANDS = {"B02": 0.4924, "B03": 0.5598, "B04": 0.6646, "B08": 0.8328, "B11": 1.6137}
OPTICAL = Sensor(
    "optical-5",
    tuple(Band(name, um, 0.06) for name, um in BANDS.items()),
    gsd_m=10,
    level="surface reflectance",
    scaling=Scaling.uniform("reflectance", list(BANDS), 1e-4),
)
RADAR = Sensor(
    "radar-2",
    tuple(Band(p, None, kind="sar", polarisation=p) for p in ("VV", "VH")),
    gsd_m=10,
    scaling=Scaling.uniform("linear_power", ["VV", "VH"]),
)


def uniform_ground(cover: str, state: float = 0.5, size: int = 64) -> Landscape:
    """Ground of one cover in one state, flat."""
    cells = (2 * size, 2 * size)
    return Landscape(
        "none",
        0,
        np.full(cells, COVER_NAMES.index(cover), np.uint8),
        np.full(cells, state, np.float32),
        np.ones(cells, np.float32),
        10.0,
    )


def see(sensor: Sensor, ground: Landscape, seed: int = 0) -> np.ndarray:
    assert sensor.scaling is not None
    return sensor.scaling.physical(observe(ground, sensor, seed))


def test_there_are_at_least_eight_classes_and_all_stand_in_pairs():
    assert len(CLASSES) >= 8
    assert sorted(itertools.chain(*PAIRS)) == sorted(CLASSES)


@given(st.sampled_from(CLASSES), st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_a_seed_always_gives_the_same_scene_and_another_seed_another(kind, seed):
    first, again, other = landscape(kind, seed, 32), landscape(kind, seed, 32), landscape(kind, seed + 1, 32)
    for field in ("cover", "state", "light"):
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
    assert (first.cover != other.cover).any()
    np.testing.assert_array_equal(observe(first, OPTICAL), observe(again, OPTICAL))
    assert (observe(first, OPTICAL, 1) != observe(first, OPTICAL, 2)).any()
    np.testing.assert_allclose(sum(first.fractions().values()), 1)
    assert first.label_map().shape == (32, 32)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_catalogued_sensor_sees_every_scene(name):
    sensor = CATALOGUE[name]
    scaling = sensor.scaling or Scaling.uniform("reflectance", sensor.band_names)
    raw = observe(landscape("meandering_river", 3, 32), sensor)
    assert raw.shape == (len(sensor.bands), 32, 32)
    if scaling.unit == "uint8":
        assert raw.dtype == np.uint8
    physical = scaling.physical(raw)
    assert np.isfinite(physical).all()
    for band, plane in zip(sensor.bands, physical, strict=True):
        # The air lets little through at 1.38 µm, and 8 bits leave few steps there.
        assert plane.std() > 0 or 1.3 < (band.wavelength_um or 0) < 1.5, band.name
        if scaling.unit == "reflectance" and band.kind == "optical":
            assert -0.05 < plane.min() < 0.6, band.name
            assert plane.max() < 1.2, band.name
        if scaling.unit == "kelvin":
            assert 270 < plane.mean() < 320, band.name
        if scaling.unit == "db":
            assert -40 < plane.mean() < 0, band.name
        if raw.dtype == np.uint8:
            assert np.isin(plane, (0, 255)).mean() < 0.5, band.name  # neither black nor burnt out


def test_vegetation_water_and_snow_look_like_themselves():
    blue, green, red, nir, swir = range(5)

    def index(a: int, b: int, cover: str, state: float) -> float:
        mean = see(OPTICAL, uniform_ground(cover, state)).mean(axis=(1, 2))
        return float((mean[a] - mean[b]) / (mean[a] + mean[b]))

    assert index(nir, red, "crop", 1.0) > 0.75
    assert 0.15 < index(nir, red, "crop", 0.0) < 0.6
    assert index(nir, red, "broadleaf", 1.0) > 0.7
    assert index(nir, red, "grass", 0.0) < 0.35
    assert abs(index(nir, red, "asphalt", 0.5)) < 0.2
    assert index(nir, red, "soil", 0.5) < 0.25
    assert index(green, nir, "water", 0.0) > 0.3  # NDWI
    assert index(green, swir, "snow", 1.0) > 0.7  # NDSI
    water = see(OPTICAL, uniform_ground("water", 0.0)).mean(axis=(1, 2))
    assert water[nir] < 0.03
    assert water[swir] < 0.03
    snow = see(OPTICAL, uniform_ground("snow", 1.0)).mean(axis=(1, 2))
    assert snow[blue] > 0.75
    assert snow[swir] < 0.25


def test_a_band_sees_the_spectrum_averaged_over_its_width():
    edge = (Band("narrow", 0.72, 0.01), Band("wide", 0.72, 0.2), Band("nir", 0.85, 0.05), Band("red", 0.67, 0.03))
    narrow, wide, nir, red = band_reflectance(edge)[COVER_NAMES.index("crop"), 1]
    assert red < narrow < nir
    assert red < wide < nir
    assert abs(narrow - wide) > 0.01  # the red edge is no straight line


@pytest.mark.parametrize("cover", ["water", "conifer", "soil"])
def test_speckle_is_multiplicative_with_the_stated_number_of_looks(cover):
    power = see(RADAR, uniform_ground(cover, size=128))
    assert (power > 0).all()
    for band in power.astype(np.float64):
        looks = band.mean() ** 2 / band.var()
        assert abs(looks / SPECKLE_LOOKS - 1) < 0.08
    correlation = np.corrcoef(power.reshape(2, -1))[0, 1]
    assert abs(correlation) < 0.05
    neighbours = np.corrcoef(power[0, :, 1:].ravel(), power[0, :, :-1].ravel())[0, 1]
    assert abs(neighbours) < 0.05


def test_radar_sees_water_dark_and_roofs_bright_and_less_in_cross_polarisation():
    means = {c: see(RADAR, uniform_ground(c)).mean(axis=(1, 2)) for c in ("water", "grass", "roof")}
    assert means["water"][0] < means["grass"][0] < means["roof"][0]
    assert all(vv > 2 * vh for vv, vh in means.values())


def test_sensors_see_the_same_ground():
    """The co-registered radar image follows the cover map that the optical image shows."""
    ground = landscape("meandering_river", 5)
    water = ground.label_map() == COVER_NAMES.index("water")
    nir, vv = see(OPTICAL, ground)[3], see(RADAR, ground)[0]
    assert nir[water].mean() < 0.5 * nir[~water].mean()
    assert vv[water].mean() < 0.5 * vv[~water].mean()


def statistics(image: np.ndarray) -> np.ndarray:
    return np.concatenate([image.mean(axis=(1, 2)), image.std(axis=(1, 2))])


def layout_features(plane: np.ndarray) -> np.ndarray:
    """Power spectrum of one standardised band: how coarse the pattern is and whether it has directions."""
    side = len(plane)
    window = np.hanning(side)[:, None] * np.hanning(side)
    power = np.abs(np.fft.fft2((plane - plane.mean()) / plane.std() * window)) ** 2
    fy, fx = np.meshgrid(*[np.fft.fftfreq(side) * side] * 2, indexing="ij")
    radius, angle = np.hypot(fy, fx), np.arctan2(fy, fx) % np.pi
    edges = (1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 25)
    rings = [np.log(power[(radius >= a) & (radius < b)].mean()) for a, b in itertools.pairwise(edges)]
    wedges = [power[(radius > 2) & (radius < 20) & (angle // (np.pi / 12) == k)].sum() for k in range(12)]
    return np.concatenate([rings, np.sort(wedges / np.sum(wedges))])


def test_within_a_pair_band_statistics_say_little_and_the_layout_much():
    count = 40
    images = {kind: [see(OPTICAL, landscape(kind, seed)) for seed in range(count)] for kind in CLASSES}
    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    by_bands, by_layout = [], []
    for pair in PAIRS:
        both = [*images[pair[0]], *images[pair[1]]]
        y = np.repeat([0, 1], count)
        by_bands.append(cross_val_score(judge, [statistics(x) for x in both], y, cv=5).mean())
        by_layout.append(cross_val_score(judge, [layout_features(x[3]) for x in both], y, cv=5).mean())
        # Mean spectra differ by less between the classes than between two scenes of one class.
        means = np.array([[x.mean(axis=(1, 2)) for x in images[kind]] for kind in pair])
        between = np.abs(means[0].mean(axis=0) - means[1].mean(axis=0))
        assert (between < 0.6 * means.std(axis=1).mean(axis=0)).all(), pair
    assert np.mean(by_bands) < 0.6  # 0.5 is chance
    assert np.mean(by_layout) > 0.75
    assert np.mean(by_layout) - np.mean(by_bands) > 0.2


def test_a_corpus_is_geotiffs_with_named_bands_a_folder_a_class_at_places_of_their_own(tmp_path):
    classes = CLASSES[:3]
    paths = write_corpus(tmp_path, [OPTICAL, RADAR], 2, seed=7, size=16, classes=classes)
    assert [p.parent.name for p in paths["optical-5"]] == [c for c in classes for _ in range(2)]
    corners = set()
    for path, other in zip(paths["optical-5"], paths["radar-2"], strict=True):
        with rasterio.open(path) as file, rasterio.open(other) as radar:
            assert file.descriptions == OPTICAL.band_names
            assert file.crs.to_epsg() == 32632
            assert file.res == (10.0, 10.0)
            assert file.tags()["simulated"] == "yes"
            assert file.transform == radar.transform
            corners.add((file.transform.c, file.transform.f))
            expected = observe(landscape(path.parent.name, int(path.stem[-5:]), 16), OPTICAL)
            np.testing.assert_array_equal(file.read(), expected)
    assert len(corners) == len(paths["optical-5"])


def test_an_unknown_class_or_a_tiny_scene_is_one_clear_line():
    with pytest.raises(ConfigError, match="unknown scene class 'orchard_row': did you mean orchard_rows"):
        landscape("orchard_row", 0)
    with pytest.raises(ConfigError, match="too small to show its layout"):
        landscape(CLASSES[0], 0, size=8)
