"""Which statistics of a checkpoint serve which sensor: every sensor of the catalogue, and sensors nobody has named."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dofa import sensors
from dofa.errors import ConfigError
from dofa.model.config import EncoderConfig
from dofa.model.released import trained_sensors
from dofa.model.sensor_matching import DOUBTFUL, match_by_name, match_sensor
from dofa.pixels import Scaling, convert_units
from dofa.sensors import Band, Sensor

RELEASED = EncoderConfig(sensors=trained_sensors(1))
EXPECTED = {  # sensor: (trained, how)
    "sentinel-2-l2a": ("sentinel-2-dofa9", "platform"),
    "sentinel-2-l1c": ("sentinel-2-dofa9", "platform"),
    "sentinel-2-dofa9": ("sentinel-2-dofa9", "sensor"),
    "sentinel-1-grd": ("sentinel-1-satlas", "platform"),
    "sentinel-1-rtc": ("sentinel-1-satlas", "platform"),
    "naip-rgb": ("naip-rgb", "sensor"),
    "naip-rgbn": ("naip-rgb", "platform"),
    "gaofen-2": ("gaofen-2", "sensor"),
    "enmap": ("enmap-202", "platform"),
    "emit": ("enmap-202", "wavelength"),
    "hls-l30": ("sentinel-2-dofa9", "wavelength"),
    "hls-s30": ("sentinel-2-dofa9", "wavelength"),
    "landsat-5-l2-sr": ("sentinel-2-dofa9", "wavelength"),
    "landsat-8-l1-toa": ("sentinel-2-dofa9", "wavelength"),
    "landsat-8-l2-sr": ("sentinel-2-dofa9", "wavelength"),
    "landsat-9-l2-sr": ("sentinel-2-dofa9", "wavelength"),
    "planetscope-4": ("sentinel-2-dofa9", "wavelength"),
    "planetscope-8": ("sentinel-2-dofa9", "wavelength"),
    "rgb-aerial": ("naip-rgb", "wavelength"),
    "landsat-8-l2-st": None,
    "landsat-5-l1": None,
    "worldview-2": None,
    "sentinel-3-olci": None,
    "rapideye": None,
    "alos-2-gamma0": None,
    "pleiades": None,
}


def matched(sensor, only=None, config=RELEASED):
    return match_sensor(config, sensor, sensor.scaling.without_stats(), only)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_sensor_of_the_catalogue_meets_what_is_like_it(name):
    found = matched(sensors.get(name))
    expected = EXPECTED[name]
    assert (found and (found.trained, found.chosen_by)) == expected


@pytest.mark.parametrize("name", [n for n, e in EXPECTED.items() if e and e[1] == "wavelength"])
def test_bands_met_by_wavelength_are_near_and_met_once(name):
    sensor = sensors.get(name)
    found = matched(sensor)
    trained = RELEASED.sensors[found.trained]
    centre = dict(zip(trained.bands, trained.wavelength_um, strict=True))
    assert len(set(found.as_bands)) == len(found.bands)
    for own, other in zip(found.bands, found.as_bands, strict=True):
        band = sensor.band(own)
        assert abs(band.wavelength_um - centre[other]) <= 0.05 * centre[other]
        assert band.kind == "optical"
    assert sorted([*found.bands, *found.left_out]) == sorted(sensor.band_names)
    assert sorted([*found.as_bands, *found.absent]) == sorted(trained.bands)
    assert found.scaling.bands == found.bands


def test_equal_names_on_two_platforms_are_not_equal_bands():
    """B5 is Landsat's near infrared and Sentinel-2's red edge; asked for by name it is the same."""
    landsat = sensors.get("landsat-8-l2-sr")
    nine = RELEASED.sensors["sentinel-2-dofa9"]
    same_unit = replace(nine, scaling=replace(nine.scaling, unit="reflectance"))
    config = EncoderConfig(sensors={"sentinel-2-dofa9": same_unit})
    assert match_by_name(config, landsat, landsat.scaling, "sentinel-2-dofa9") is None
    pairs = dict(zip(*(lambda m: (m.bands, m.as_bands))(matched(landsat, "sentinel-2-dofa9")), strict=True))
    assert pairs == {"B2": "B02", "B3": "B03", "B4": "B04", "B5": "B08", "B6": "B11", "B7": "B12"}


def test_a_panchromatic_band_and_doubtful_statistics_serve_nobody_else():
    toa = sensors.get("landsat-8-l1-toa")
    assert "B8" in matched(toa).left_out
    colours = [Band(n, w, 0.06) for n, w in zip("BGRN", (0.485, 0.555, 0.66, 0.83), strict=True)]
    pan = Sensor(
        "pan", (*colours, Band("PAN", 0.71, 0.38)), 1.0, scaling=Scaling.uniform("reflectance", [*"BGRN", "PAN"])
    )
    assert matched(pan).left_out == ("PAN",)  # whose centre lies at Sentinel-2's red edge
    four = Sensor("four", tuple(Band(n, w) for n, w in zip("BGRN", (0.485, 0.555, 0.66, 0.83), strict=True)), 1.0,
                  scaling=Scaling.uniform("uint8", "BGRN"))  # fmt: skip
    assert matched(four).trained == "naip-rgb"
    assert matched(four, "gaofen-2").trained == "gaofen-2"  # by the user's own word
    assert DOUBTFUL == ("gaofen-2",)


@given(order=st.permutations(range(7)), seed=st.integers(0, 99))
def test_the_order_of_the_bands_changes_no_pair_and_the_values_are_the_8_bit_ones(order, seed):
    landsat = sensors.get("landsat-8-l2-sr")
    shuffled = landsat.select([landsat.band_names[i] for i in order])
    one, other = matched(landsat), matched(shuffled)
    assert dict(zip(one.bands, one.as_bands, strict=True)) == dict(zip(other.bands, other.as_bands, strict=True))
    counts = np.random.default_rng(seed).integers(6000, 40000, (6, 4, 4)).astype("u2")
    fed = other.scaling.normalise(counts)
    trained = RELEASED.sensors["sentinel-2-dofa9"].scaling.select(other.as_bands)
    reflectance = (counts * 2.75e-5 - 0.2).astype("f4")
    eight = convert_units(reflectance, other.as_bands, "reflectance", "uint8", "sentinel-2")
    assert np.allclose(fed, trained.normalise_physical(eight), atol=1e-3)


def test_the_sensor_s_own_name_comes_before_its_platform_and_the_same_unit_before_a_map():
    l2a = sensors.get("sentinel-2-l2a")
    known = dict(RELEASED.sensors)
    own = l2a.scaling.with_stats([0.1] * 12, [0.1] * 12, "checkpoint")
    trained = replace(
        known["sentinel-2-dofa9"], bands=l2a.band_names, wavelength_um=tuple(b.wavelength_um for b in l2a.bands),
        scaling=own,
    )  # fmt: skip
    config = EncoderConfig(sensors={**known, "sentinel-2-l2a": trained})
    assert matched(l2a, config=config).plain
    found = matched(sensors.get("sentinel-2-l1c"), config=config)
    assert (found.trained, found.unit_maps, found.left_out) == ("sentinel-2-l2a", (), ("B10",))
    assert matched(l2a, "sentinel-2-dofa9", config=config).trained == "sentinel-2-dofa9"


def test_a_name_the_checkpoint_has_no_statistics_of_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean sentinel-2-dofa9"):
        matched(sensors.get("sentinel-2-l2a"), "sentinel-2-dofa")
    assert matched(sensors.get("sentinel-2-l2a"), config=EncoderConfig()) is None
