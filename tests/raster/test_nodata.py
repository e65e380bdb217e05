"""Fill values that nobody declared: found where they are, and not where they are not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

rasterio = pytest.importorskip("rasterio")

from rasterio.transform import from_origin  # noqa: E402

from dofa import sensors  # noqa: E402
from dofa.errors import DataError  # noqa: E402
from dofa.pixels import Scaling  # noqa: E402
from dofa.raster import open_raster  # noqa: E402
from dofa.raster.nodata import find_fill  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
NAMES = ["B02", "B03", "B04", "B08"]
SIDE = 96
COUNTS = Scaling.uniform("reflectance", sensors.get("sentinel-2-l2a").band_names, 1e-4)


def land(bands=4, dtype="int16", side=SIDE, seed=0, scale=1.0):
    """Reflectances × 10⁴: dark water, fields, a few bright roofs."""
    rng = np.random.default_rng(seed)
    ground = np.clip(rng.gamma(3, 400, (bands, side, side)) + 120, 1, 14_000)
    ground[:, : side // 5] /= 20
    return (ground * scale).astype(dtype)


def db(bands=2, side=SIDE, seed=0):
    return np.random.default_rng(seed).normal(-13, 4, (bands, side, side)).astype("float32")


def write(path, array, names=NAMES, **profile):
    count, height, width = array.shape
    options = {"driver": "GTiff", "crs": "EPSG:32633", "transform": from_origin(5e5, 4e6, 10, 10), **profile}
    with rasterio.open(path, "w", count=count, height=height, width=width, dtype=array.dtype, **options) as file:
        file.write(array)
        file.descriptions = names[:count]
    return path


def found(array, measured=None):
    flat = array.reshape(len(array), -1)
    good = np.isfinite(flat) if measured is None else measured.reshape(len(array), -1)
    return find_fill(flat, good)


def doubts(r):
    return [w for w in r.warnings if w.startswith("undeclared-nodata")]


CASES = [
    ("int16", -9999, "-9999"),
    ("int16", -32768, "-32768"),
    ("int16", -999, "-999"),
    ("int16", 32767, "32767"),
    ("int32", -99999, "-99999"),
    ("int32", -2147483648, "-2147483648"),
    ("uint16", 65535, "65535"),
    ("float32", -9999, "-9999"),
    ("float32", -3.4028234663852886e38, "-3.4028235e+38"),
    ("float32", 3.4028234663852886e38, "3.4028235e+38"),
    ("float32", 1e20, "1e+20"),
    ("float32", 9.969209968386869e36, "9.96921e+36"),
    ("float64", -1.7976931348623157e308, "-1.7976931348623157e+308"),
    ("float64", -9999, "-9999"),
]


@pytest.mark.parametrize(("dtype", "value", "text"), CASES)
def test_a_fill_value_is_named_with_its_share_and_is_no_measurement(tmp_path, dtype, value, text):
    array = land(dtype=dtype)
    array[:, :30] = value
    path = write(tmp_path / "x.tif", array)
    with open_raster(path, "sentinel-2-l2a", scaling=COUNTS) as r:
        (said,) = doubts(r)
        assert said.startswith(f"undeclared-nodata: x.tif: 31% of the pixels looked at are {text},")
        assert f"--nodata {text}" in said
        assert np.array_equal(r.read()[1].any(axis=1), np.arange(SIDE) >= 30)
        assert np.isnan(r.read_physical()[0][:, :30]).all()
    with pytest.raises(DataError, match="undeclared-nodata is an error under strict"):
        open_raster(path, "sentinel-2-l2a", scaling=COUNTS, strict=True)
    # What it says to do works, and is the end of the matter.
    with open_raster(path, "sentinel-2-l2a", scaling=COUNTS, nodata=float(text), strict=True) as r:
        assert not doubts(r)
        assert np.array_equal(r.read()[1].any(axis=1), np.arange(SIDE) >= 30)


@pytest.mark.parametrize("noise", [0.0, 4e-4, -4e-4])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_fill_values_that_were_scaled_or_rounded_are_known_still(noise, scale):
    array = land(dtype="float64", scale=scale)
    array[:, :5] = (-9999 + noise) * scale
    (one,) = found(array.astype("float32"))
    assert one.value == pytest.approx(-9999 * scale, rel=1e-6)
    assert one.share == pytest.approx(5 / SIDE)


def test_a_spike_far_below_everything_else_needs_no_known_value():
    array = db()
    array[:, :20] = 10 * np.log10(1e-10)
    assert [one.value for one in found(array)] == [-100]


@pytest.mark.parametrize("value", [-9999, -99, -3.4028234663852886e38])
@pytest.mark.parametrize("linear", [False, True])
def test_fill_values_of_radar(value, linear):
    array = 10 ** (db() / 10) if linear else db()
    array[:, :20] = value
    (one,) = found(array)
    assert one.value == pytest.approx(value, rel=1e-7)


def test_a_file_resampled_over_its_fill_value_has_it_still():
    array = land(dtype="float32")
    array[:, :30] = -9999
    array[:, 30, ::3] = np.linspace(-9000, -100, 32)
    assert [one.value for one in found(array)] == [-9999]


def test_of_one_pixel_a_value_that_no_product_measures_is_enough():
    array = land()
    array[2, 50, 50] = -9999
    assert [one.value for one in found(array)] == [-9999]


def test_two_fill_values_are_two():
    array = land()
    array[:, :10], array[:, 10:20] = -9999, -32768
    assert [one.value for one in found(array)] == [-32768, -9999]


def test_a_fill_value_beside_a_declared_one_is_found(tmp_path):
    array = land(dtype="float32")
    array[:, :10], array[:, 10:20] = np.nan, -9999
    with open_raster(write(tmp_path / "x.tif", array, nodata=np.nan), "sentinel-2-l2a", dn_offset=0) as r:
        assert len(doubts(r)) == 1
        assert np.array_equal(r.read()[1].any(axis=1), np.arange(SIDE) >= 20)


def test_a_band_of_nothing_but_fill_is_left_out(tmp_path):
    array = land()
    array[1] = -9999
    with open_raster(write(tmp_path / "x.tif", array), "sentinel-2-l2a", dn_offset=0) as r:
        assert len(doubts(r)) == 1
        assert r.sensor.band_names == ("B02", "B04", "B08")
        assert r.read()[1].all()


def test_a_thin_border_of_a_large_file_is_found(tmp_path):
    array = land(2, side=600)
    array[:, :12], array[:, :, :12] = -9999, -9999
    path = write(tmp_path / "x.tif", array, tiled=True, blockxsize=64, blockysize=64)
    with open_raster(path, "sentinel-2-l2a", dn_offset=0) as r:
        assert len(doubts(r)) == 1
        assert r.read()[1].sum() == 588**2


def test_with_the_users_nodata_value_another_is_named_and_no_more(tmp_path):
    array = land()
    array[:, :10], array[:, 10:20] = -9999, -1
    with open_raster(write(tmp_path / "x.tif", array), "sentinel-2-l2a", dn_offset=0, nodata=-1) as r:
        assert len(doubts(r)) == 1
        assert np.array_equal(r.read()[1].any(axis=1), (np.arange(SIDE) < 10) | (np.arange(SIDE) >= 20))


# -- what is no fill value --------------------------------------------------------------------------------------------


def saturated(share, bands=4, at=(0,), dtype="uint16"):
    array = land(bands, dtype)
    rng = np.random.default_rng(1)
    for band in at:
        array[band][rng.random((SIDE, SIDE)) < share] = np.iinfo(dtype).max
    return array


def clouds(dtype="uint16"):
    """Bright up to the type's largest number, with everything between."""
    array = land(dtype="float64")
    ramp = np.linspace(0, 80_000, 40)
    array[:, 40:80] += ramp[:, None]
    return np.clip(array, 0, np.iinfo(dtype).max).astype(dtype)


def dark_with_negatives():
    rng = np.random.default_rng(0)
    array = rng.normal(20, 40, (20, SIDE, SIDE))
    array[:, 3, 3] = -99
    return array.astype("int16")


def bordered(array):
    array[:, :30] = 0
    return array


def tailed():
    """Artefacts down to a number that producers write, which is not more frequent than the others."""
    array = land()
    at = np.random.default_rng(0).choice(SIDE * SIDE, 60, replace=False)
    array.reshape(4, -1)[:, at] = np.linspace(-9999, -4000, 60).astype("int16")
    return array


NOT_FILL = {
    "a tail": tailed(),
    "plain": land(),
    "zeros": bordered(land(dtype="uint16")),
    "zeros of radar": bordered(db()),
    "zeros of linear radar": bordered(10 ** (db() / 10)),
    "decibels × 100": (db() * 100).astype("int16"),
    "decibels with a floor": np.maximum(db(), -20),
    "some bright pixels of one band": saturated(0.02),
    "bright pixels of all bands, each elsewhere": saturated(0.02, at=(0, 1, 2, 3)),
    "some bright pixels of a single band": saturated(0.01, bands=1),
    "clouds at the type's end": clouds(),
    "clouds at the end of int16": clouds("int16"),
    "clipped at 1": np.clip(land(dtype="float32", scale=3e-4), 0, 1),
    "clipped at 10000": np.clip(land(dtype="int16", scale=3), 0, 10_000),
    "8 bits": np.random.default_rng(0).choice([0, 3, 90, 255], (3, SIDE, SIDE)).astype("uint8"),
    "8 bits in 16": np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE)).astype("uint16"),
    "constant": np.full((3, SIDE, SIDE), 700, "uint16"),
    "constant at the top": np.full((1, SIDE, SIDE), 65535, "uint16"),
    "two numbers": np.repeat([[100, 30000]], SIDE * SIDE // 2, axis=0).reshape(1, SIDE, SIDE).astype("int16"),
    "small": land(side=4),
    "one pixel": np.array([[[5]], [[32767]]], "int16"),
    "dark bands with a pixel of -99": dark_with_negatives(),
    "kelvin": np.random.default_rng(0).normal(290, 8, (1, SIDE, SIDE)).astype("float32"),
    "a heavy tail": np.random.default_rng(0).lognormal(-3, 2, (2, SIDE, SIDE)).astype("float32"),
    "not a number": np.where(np.random.default_rng(0).random((2, SIDE, SIDE)) < 0.3, np.nan, db()).astype("float32"),
    "indices from -1 to 1": np.clip(np.random.default_rng(0).normal(0, 0.6, (1, SIDE, SIDE)), -1, 1).astype("float32"),
}


@pytest.mark.parametrize("kind", NOT_FILL)
def test_ordinary_numbers_are_no_fill_value(kind):
    assert found(NOT_FILL[kind]) == ()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(["int16", "uint16", "int32", "float32"]),
    value=st.sampled_from([-9999, -32768, -99999, 65535, 32767, None]),
    share=st.floats(0.03, 0.9),
    gain=st.floats(0.2, 2.0),
    declared=st.booleans(),
)
def test_drawn_images_have_the_fill_value_that_was_put_in_unless_it_is_declared(
    seed, dtype, value, share, gain, declared
):
    array = np.clip(land(2, "float64", seed=seed) * gain, 1, 20_000).astype(dtype)
    hole = np.random.default_rng(seed).random((SIDE, SIDE)) < share
    fits = value is not None and (dtype == "float32" or np.iinfo(dtype).min <= value <= np.iinfo(dtype).max)
    # Of what lies above, only what lies far above.
    fits = fits and (value < 0 or value - array.max() >= 0.5 * (int(array.max()) - int(array.min())))
    if fits:
        array[:, hole] = value
    measured = np.broadcast_to(~(hole & declared), array.shape) if fits else None
    assert [one.value for one in found(array, measured)] == ([value] if fits and not declared else [])


def test_real_imagery_has_no_undeclared_fill_value(real_data):
    some = {
        "colocated_s1_s2/S2L2A/*.tif": "sentinel-2-l2a",
        "colocated_s1_s2/S2L1C/*.tif": "sentinel-2-l1c",
        "colocated_s1_s2/S1RTC/*.tif": "sentinel-1-rtc",
        "sen1floods11/S1Hand/*.tif": "sentinel-1-grd",
        "enmap_hyspecnet11k/*/*-SPECTRAL_IMAGE.TIF": "enmap",
    }
    names = {"S2L2A": 12, "S2L1C": 13, "S1RTC": 2}
    for pattern, sensor in some.items():
        for path in sorted(real_data.glob(pattern)):
            bands = sensors.get(sensor).band_names if path.parent.name in names else None
            with open_raster(path, sensor, bands=bands) as r:
                assert not doubts(r), path


@pytest.mark.parametrize(
    ("dtype", "value"), [("int16", -9999), ("int16", -32768), ("float32", -3.4e38), ("int32", -99999)]
)
def test_a_fill_value_in_the_midst_of_a_large_file_is_no_measurement_and_is_warned_of_once(tmp_path, dtype, value):
    array = land(dtype=dtype, side=2000)
    array[:, 450:480, 700:760] = value
    write(tmp_path / "x.tif", array)
    with open_raster(tmp_path / "x.tif", "sentinel-2-l2a", dn_offset=0) as r:
        assert not r.fill_values  # nothing was seen of it on opening
        with pytest.warns(UserWarning, match="undeclared-nodata: x.tif") as seen:
            valid = [r.read(((400, 600), (left, left + 200)))[1] for left in (600, 700)]
        assert len([w for w in seen if "undeclared" in str(w.message)]) == 1
        assert np.array_equal(valid[0], array[0, 400:600, 600:800] != array[0, 450, 700])
    with open_raster(tmp_path / "x.tif", "sentinel-2-l2a", dn_offset=0, nodata=0) as r:
        assert r.read(((400, 600), (600, 800)))[1].all()
