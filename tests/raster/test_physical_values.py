"""What numbers in files mean: unit tags, factors nobody says, and the flags that say them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

rasterio = pytest.importorskip("rasterio")

from rasterio.transform import from_origin  # noqa: E402

from dofa import cli, sensors  # noqa: E402
from dofa.errors import ConfigError, DataError  # noqa: E402
from dofa.raster import open_raster  # noqa: E402
from dofa.raster.unit_tags import unit_of  # noqa: E402
from dofa.scene.scene import open_scene  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
L2A = "sentinel-2-l2a"
NAMES = ["B02", "B03", "B04", "B08"]


def land(low=0.01, high=0.6, bands=4, side=48, seed=0):
    """Reflectances, dark more often than bright."""
    rng = np.random.default_rng(seed)
    return (low + (high - low) * rng.beta(1.2, 4, (bands, side, side))).astype("float32")


def write(path, array, names=NAMES, *, units=None, scales=None, offsets=None, tags=None, band_tags=None):
    count, height, width = array.shape
    place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 4e6, 10, 10)}
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=array.dtype, **place
    ) as file:
        file.write(array)
        file.descriptions = names
        if units:
            file.units = [units] * count if isinstance(units, str) else units
        if scales:
            file.scales = [scales] * count
        if offsets:
            file.offsets = [offsets] * count
        file.update_tags(**(tags or {}))
        for number in range(1, count + 1):
            file.update_tags(number, **(band_tags or {}))
    return path


def titles(raster) -> list[str]:
    return [w.split(":")[0] for w in raster.warnings]


# -- what a unit's text means -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "unit", "scale", "offset"),
    [
        (["%", "percent", "Percent", " pct", "reflectance (%)", "% reflectance"], "reflectance", 0.01, 0),
        (["reflectance", "Surface_Reflectance", "TOA reflectance", "REFL"], "reflectance", 1, 0),
        (["1", "unitless", "dimensionless", "1.0"], "dimensionless", 1, 0),
        (["dB", "DB", "decibel", "Decibels", "sigma0 (dB)", "dB sigma0"], "db", 1, 0),
        (["DN", "dn", "Digital Number", "digital_number", "counts"], "dn", 1, 0),
        (["K", "k", "Kelvin", "degrees Kelvin"], "kelvin", 1, 0),
        (["°C", "degC", "Celsius", "degree_Celsius", "degrees Celsius"], "kelvin", 1, 273.15),
        (["power", "linear", "linear_power", "Linear Power"], "linear_power", 1, 0),
        (["amplitude", "linear amplitude"], "amplitude", 1, 0),
        (["W/(m2 sr um)", "W m-2 sr-1 um-1", "W/m^2/sr/µm", "W·m⁻²·sr⁻¹·μm⁻¹", "Watts/(m^2*sr*um)",
          "mW/(m2 sr nm)", "radiance", "W m**-2 sr**-1 micrometer**-1"], "radiance", 1, 0),
        (["uW/cm^2/nm/sr", "μW cm⁻² nm⁻¹ sr⁻¹", "mW cm-2 um-1 sr-1"], "radiance", 10, 0),
        (["W/(m^2*sr*nm)", "W m-2 nm-1 sr-1"], "radiance", 1000, 0),
    ],
)  # fmt: skip
def test_a_unit_is_read_in_every_spelling(texts, unit, scale, offset):
    for text in texts:
        found = unit_of(text)
        assert found is not None, text
        assert (found.unit, found.scale, found.offset) == (unit, pytest.approx(scale), offset), text


@pytest.mark.parametrize("text", ["", "m", "metre", "W/m2", "W/m2/um", "W m-2 sr-1", "mm", "foo", "W/(m2 sr um s)"])
def test_what_is_no_unit_of_ours_says_nothing(text):
    assert unit_of(text) is None


@given(
    power=st.sampled_from([("W", 1.0), ("mW", 1e-3), ("uW", 1e-6), ("µW", 1e-6)]),
    area=st.sampled_from([("m", 1.0), ("cm", 1e4)]),
    length=st.sampled_from([("um", 1.0), ("nm", 1e3), ("µm", 1.0)]),
    order=st.permutations(range(3)),
    how=st.sampled_from(["minus", "slashes", "brackets", "powers"]),
)
def test_radiance_in_any_prefix_order_and_notation_is_the_same_quantity(power, area, length, order, how):
    below = [(area[0], 2), ("sr", 1), (length[0], 1)]
    below = [below[i] for i in order]
    plain = [f"{name}{size if size > 1 else ''}" for name, size in below]
    text = {
        "minus": " ".join([power[0], *(f"{name}-{size}" for name, size in below)]),
        "slashes": "/".join([power[0], *plain]),
        "brackets": f"{power[0]}/({'*'.join(plain)})",
        "powers": "*".join([power[0], *(f"{name}^-{size}" for name, size in below)]),
    }[how]
    found = unit_of(text)
    assert found is not None, text
    assert found.unit == "radiance"
    assert found.scale == pytest.approx(power[1] * area[1] * length[1]), text


# -- tags of bands and files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["units", "tags", "band_tags"])
@pytest.mark.parametrize("text", ["%", "percent", "Reflectance [%]"])
def test_reflectance_in_percent_is_converted_aloud(tmp_path, where, text):
    said = {"units": text} if where == "units" else {where: {"units": text}}
    path = write(tmp_path / "a.tif", land() * 100, **said)
    with open_raster(path, L2A, strict=True) as r:
        assert np.allclose(r.read_physical()[0], land(), atol=1e-6)
        assert r.scaling.unit == "reflectance"
        assert titles(r) == ["unit-converted"]
        assert "percent" in r.warnings[0]
        assert r.scaling.physical_source == "file"


def test_percent_as_scaled_integers_takes_both_factors(tmp_path):
    counts = np.rint(land() * 10_000).astype("int16")  # percent × 100
    with open_raster(write(tmp_path / "a.tif", counts, units="%", scales=0.01), L2A) as r:
        assert np.allclose(r.read_physical()[0], land(), atol=1e-4)


def test_a_unit_tag_of_counts_keeps_the_products_factor(tmp_path):
    for dtype in ("uint16", "float32"):
        path = write(tmp_path / f"{dtype}.tif", np.rint(land() * 10_000).astype(dtype), units="DN")
        with open_raster(path, L2A, strict=True) as r:
            assert np.allclose(r.read_physical()[0], land(), atol=1e-4)
            assert r.warnings == []


@pytest.mark.parametrize("text", ["reflectance", "1", "unitless"])
def test_a_unit_on_values_between_0_and_1_needs_no_assumption(tmp_path, text):
    with open_raster(write(tmp_path / "a.tif", land(), units=text), L2A, strict=text == "reflectance") as r:
        assert np.allclose(r.read_physical()[0], land())
        assert (r.warnings == []) == (text == "reflectance")


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_counts_that_are_called_reflectance_are_counts_aloud(tmp_path, dtype):
    counts = np.rint(land() * 10_000).astype(dtype)
    path = write(tmp_path / "a.tif", counts, units="reflectance")
    with open_raster(path, L2A) as r:
        assert np.allclose(r.read_physical()[0], land(), atol=1e-4)
        assert titles(r) == ["scale-assumed"]
    with pytest.raises(DataError, match="scale-assumed is an error under strict"):
        open_raster(path, L2A, strict=True)


def test_celsius_becomes_kelvin(tmp_path):
    celsius = np.random.default_rng(0).uniform(5, 40, (1, 40, 40)).astype("float32")
    with open_raster(write(tmp_path / "a.tif", celsius, ["B10"], units="°C"), "landsat-8-l2-st", strict=True) as r:
        assert np.allclose(r.read_physical()[0], celsius + 273.15, atol=1e-3)
        assert titles(r) == ["unit-converted"]


def test_radiance_of_another_prefix_is_converted(tmp_path):
    names = list(sensors.get("rapideye").band_names)
    watts = np.random.default_rng(0).uniform(5, 200, (len(names), 40, 40)).astype("float32")
    path = write(tmp_path / "a.tif", watts / 10, names, units="uW/(cm2 sr nm)")
    with open_raster(path, "rapideye", strict=True) as r:
        assert np.allclose(r.read_physical()[0], watts, rtol=1e-5)
        assert titles(r) == ["unit-converted"]


@pytest.mark.parametrize(
    ("sensor", "names", "unit", "values"),
    [
        (L2A, NAMES, "K", (280, 320)),
        (L2A, NAMES, "dB", (-20, -5)),
        (L2A, NAMES, "W/(m2 sr um)", (5, 200)),
        ("sentinel-1-grd", ["VV", "VH"], "reflectance", (0, 1)),
        ("landsat-8-l2-st", ["B10"], "%", (0, 100)),
    ],
)
def test_a_unit_that_the_sensor_cannot_have_is_refused_with_flags(tmp_path, sensor, names, unit, values):
    array = np.random.default_rng(0).uniform(*values, (len(names), 40, 40)).astype("float32")
    with pytest.raises(DataError, match=r"unit tag.*--sensor.*--unit") as caught:
        open_raster(write(tmp_path / "a.tif", array, names, units=unit), sensor)
    assert "\n" not in str(caught.value)


def test_power_and_decibels_keep_their_unit_aloud_and_amplitude_is_refused(tmp_path):
    db = np.random.default_rng(0).uniform(-25, -5, (2, 40, 40)).astype("float32")
    power = 10 ** (db / 10)
    for sensor, array, text, unit in (
        ("sentinel-1-grd", power, "linear", "linear_power"),
        ("sentinel-1-rtc", db, "decibel", "db"),
    ):
        with open_raster(write(tmp_path / f"{unit}.tif", array, ["VV", "VH"], units=text), sensor, strict=True) as r:
            assert r.scaling.unit == unit
            assert np.allclose(r.read_physical()[0], array)
            assert titles(r) == ["unit-by-tag"]
    path = write(tmp_path / "amplitude.tif", np.sqrt(power), ["VV", "VH"], units="amplitude")
    with pytest.raises(DataError, match=r"square.*gdal_calc"):
        open_raster(path, "sentinel-1-grd")


def test_a_unit_nobody_knows_is_said(tmp_path):
    counts = np.rint(land() * 10_000).astype("uint16")
    with open_raster(write(tmp_path / "a.tif", counts, units="furlong"), L2A) as r:
        assert titles(r) == ["unit-unknown"]
        assert np.allclose(r.read_physical()[0], land(), atol=1e-4)


# -- factors that nobody says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("factor", "unit"), [(1, "reflectance"), (100, "percent"), (10_000, "dn")])
def test_a_float_file_is_read_by_its_values_aloud_and_never_under_strict(tmp_path, factor, unit, dtype):
    path = write(tmp_path / "a.tif", (land() * factor).astype(dtype))
    with open_raster(path, L2A) as r:
        assert np.allclose(r.read_physical()[0], land(), atol=1e-5)
        assert titles(r) == ["scale-assumed"]
        assert f"--unit {unit}" in r.warnings[0]
        assert r.scaling.physical_source == ("catalogue" if unit == "dn" else "values")
    with pytest.raises(DataError, match="scale-assumed is an error under strict"):
        open_raster(path, L2A, strict=True)
    with open_raster(path, L2A, unit=unit, strict=True) as r:
        assert np.allclose(r.read_physical()[0], land(), atol=1e-5)
        assert (r.warnings, r.scaling.physical_source) == ([], "user")


@settings(max_examples=60)
@given(
    top=st.floats(0.05, 1.2),
    factor=st.sampled_from([1.0, 100.0, 10_000.0]),
    sensor=st.sampled_from([L2A, "hls-s30", "enmap", "planetscope-8", "modis-mod09"]),
    seed=st.integers(0, 9),
)
def test_any_land_keeps_its_reflectance_whatever_its_float_file_is_scaled_by(
    tmp_path_factory, top, factor, sensor, seed
):
    names = list(sensors.get(sensor).band_names[:4])
    values = land(0.0, top, bands=len(names), seed=seed)
    path = write(tmp_path_factory.mktemp("x") / "a.tif", values * np.float32(factor), names)
    with open_raster(path, sensor) as r:
        assert np.allclose(r.read_physical()[0], values, atol=1e-5)
        assert "scale-assumed" in titles(r)


def test_missing_floats_take_no_part_in_the_decision(tmp_path):
    values = land()
    values[:, :30] = np.nan
    with open_raster(write(tmp_path / "a.tif", values), L2A) as r:
        physical, valid = r.read_physical()
        assert np.allclose(physical[:, valid], land()[:, 30:].reshape(4, -1))


def test_surface_temperature_and_8_bit_pictures_as_floats(tmp_path):
    rng = np.random.default_rng(0)
    kelvin = rng.uniform(275, 310, (1, 40, 40)).astype("float32")
    counts = (kelvin - 149) / 0.00341802
    for name, array in (("kelvin", kelvin), ("celsius", kelvin - 273.15), ("counts", counts)):
        with open_raster(write(tmp_path / f"{name}.tif", array, ["B10"]), "landsat-8-l2-st") as r:
            assert np.allclose(r.read_physical()[0], kelvin, atol=0.01), name
            assert titles(r) == ["scale-assumed"], name
    picture = rng.integers(0, 255, (3, 40, 40)).astype("float32")
    for name, factor in (("bytes", 1), ("unit", 1 / 255)):
        path = write(tmp_path / f"{name}.tif", picture * np.float32(factor), ["red", "green", "blue"])
        with open_raster(path, "rgb-aerial") as r:
            assert np.allclose(r.read_physical()[0], picture, atol=1e-3), name
            assert titles(r) == (["scale-assumed"] if name == "unit" else []), name


def test_float_counts_may_still_carry_the_sentinel_2_offset(tmp_path):
    shifted = (land(bands=12) * 10_000 + 1000).astype("float32")
    path = write(tmp_path / "a.tif", shifted, list(sensors.get(L2A).band_names))
    with open_raster(path, L2A) as r:
        assert titles(r) == ["scale-assumed", "offset-unknown"]
    with open_raster(path, L2A, dn_offset=-1000) as r:
        assert np.allclose(r.read_physical()[0], land(bands=12), atol=1e-5)
        assert titles(r) == ["scale-assumed"]
    # A word on the offset alone is none on the factor.
    with open_raster(write(tmp_path / "b.tif", land()), L2A, dn_offset=0) as r:
        assert np.allclose(r.read_physical()[0], land())
        assert titles(r) == ["scale-assumed"]


def test_bands_in_files_of_their_own_are_decided_together(tmp_path):
    for name, band in zip(NAMES, land(), strict=True):
        write(tmp_path / f"scene_{name}.tif", band[None], [name])
    with open_scene(tmp_path, L2A) as scene:
        assert set(scene.parts[0].scaling.scale) == {1.0}
        assert sum(w.startswith("scale-assumed") for w in scene.warnings) == 1
    with pytest.raises(DataError, match="scale-assumed is an error under strict"):
        open_scene(tmp_path, L2A, strict=True)
    with open_scene(tmp_path, L2A, unit="percent", strict=True) as scene:
        assert set(scene.parts[0].scaling.scale) == {0.01}


# -- the user's word --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "unit", "scale", "offset"),
    [
        ({"unit": "reflectance"}, "reflectance", 1, 0),
        ({"unit": "%"}, "reflectance", 0.01, 0),
        ({"dn_scale": 1e-3}, "reflectance", 1e-3, 0),
        ({"dn_scale": 1e-3, "dn_offset": -100}, "reflectance", 1e-3, -0.1),
        ({"unit": "dn"}, "reflectance", 1e-4, 0),
        ({"unit": "DN", "dn_offset": -1000}, "reflectance", 1e-4, -0.1),
        ({"unit": "dn", "dn_scale": 2.0}, "reflectance", 2.0, 0),
        ({"unit": "W/(m2 sr nm)", "dn_scale": 1e-5}, "radiance", 1e-2, 0),
        ({"unit": "celsius", "dn_scale": 0.1}, "kelvin", 0.1, 273.15),
    ],
)
def test_what_the_user_says_is_what_is_read(tmp_path, words, unit, scale, offset):
    array = np.random.default_rng(0).integers(100, 900, (4, 40, 40)).astype("uint16")
    with open_raster(write(tmp_path / "a.tif", array, units="%"), L2A, strict=True, **words) as r:
        assert r.scaling.unit == unit
        assert np.allclose(r.scaling.scale, scale)
        assert np.allclose(r.scaling.offset, offset)
        assert (r.scaling.physical_source, r.warnings) == ("user", [])


def test_words_that_say_nothing_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", land())
    for words in ({"unit": "furlong"}, {"dn_scale": 0.0}, {"dn_scale": float("nan")}):
        with pytest.raises(ConfigError, match=r"--unit|--dn-scale"):
            open_raster(path, L2A, **words)
    with pytest.raises(ConfigError, match="--unit"):
        open_raster(path, wavelengths_um=[0.49, 0.56, 0.66, 0.83], dn_scale=1e-4)
    with open_raster(path, wavelengths_um=[0.49, 0.56, 0.66, 0.83], unit="reflectance") as r:
        assert np.allclose(r.read_physical()[0], land())


def test_the_flags_are_those_of_every_verb_on_scenes(tmp_path, capsys):
    path = write(tmp_path / "a.tif", land() * 100)
    assert cli.main(["info", str(path), "--sensor", L2A, "--unit", "percent", "--strict", "--json"]) == 0
    (part,) = json.loads(capsys.readouterr().out)["parts"]
    assert part["bands"][3]["median"] == pytest.approx(float(np.median(land()[3])), abs=1e-4)
    for verb in ("info", "embed", "predict", "preview", "similar", "chips"):
        with pytest.raises(SystemExit):
            cli.main([verb, "--help"])
        text = capsys.readouterr().out
        assert "--dn-scale" in text, verb
        assert "--unit" in text, verb


# -- real files -------------------------------------------------------------------------------------------------------


def test_real_files_are_neither_rescaled_nor_doubted(real_data):
    """Integer products, decibels and 8-bit pictures: no factor is assumed of any of them."""
    several = {
        "sentinel-2-l2a": "colocated_s1_s2/S2L2A/*.tif",
        "sentinel-1-grd": "sen1floods11/S1Hand/*.tif",
        "sentinel-1-rtc": "colocated_s1_s2/S1RTC/*.tif",
        "naip-rgbn": "naip/*.tif",
    }
    seen = 0
    for sensor, pattern in several.items():
        own = sensors.get(sensor).scaling
        for path in sorted(real_data.glob(pattern)):
            with open_raster(path, sensor, dn_offset=0 if sensor.startswith("sentinel-2") else None) as r:
                assert not {"scale-assumed", "unit-converted", "unit-unknown"} & set(titles(r)), path
                if sensor == "sentinel-1-rtc":  # these are in decibels, not in the product's linear power
                    assert (r.scaling.unit, titles(r)[-1]) == ("db", "unit-assumed")
                else:
                    assert (r.scaling.unit, r.scaling.scale[0]) == (own.unit, own.scale[0])
                seen += 1
    assert seen > 10


@pytest.mark.parametrize("zeros", [0, 40])
def test_zeros_in_one_band_do_not_hide_that_a_product_carries_its_offset(tmp_path, zeros):
    counts = (land(bands=4) * 1e4 + 1000).round().astype("uint16")
    counts[1].ravel()[:zeros] = 0
    with open_raster(write(tmp_path / "x.tif", counts), "sentinel-2-l2a") as raster:
        assert titles(raster) == ["offset-unknown"]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32"])
def test_whole_percents_without_a_word_are_doubted_and_dark_water_is_not(tmp_path, dtype):
    percent = (land() * 100).round()
    with open_raster(write(tmp_path / "x.tif", percent.astype(dtype)), "sentinel-2-l2a", dn_offset=0) as raster:
        assert "--unit percent" in " ".join(raster.warnings)
    water = land(low=0.0, high=0.03) * 1e4
    water = water * np.array([1, 0.8, 0.5, 0.1])[:, None, None]
    with open_raster(write(tmp_path / "y.tif", water.astype("uint16")), "sentinel-2-l2a", dn_offset=0) as raster:
        assert not titles(raster)
