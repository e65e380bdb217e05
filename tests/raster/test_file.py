"""Files opened as named bands: real imagery, and GeoTIFF, ENVI, PNG and JPEG files written here."""

import multiprocessing
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dofa import sensors
from dofa.errors import ConfigError, DataError, DofaError
from dofa.pixels import Scaling

rasterio = pytest.importorskip("rasterio")

from rasterio.enums import ColorInterp  # noqa: E402
from rasterio.transform import Affine, from_origin  # noqa: E402
from rasterio.windows import Window  # noqa: E402

from dofa.raster import gdal, open_raster  # noqa: E402
from dofa.raster.band_names import match  # noqa: E402
from dofa.raster.factors import FileNumbers  # noqa: E402
from dofa.raster.physical_values import sentinel2_offset  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),  # of affine 3, inside rasterio
]
L2A_NAME = "sentinel-2-l2a"
L2A = sensors.get("sentinel-2-l2a").band_names
L1C = sensors.get("sentinel-2-l1c").band_names
MADE_LATELY = {"PROCESSING_BASELINE": "05.09"}


def image(bands, height=40, width=50, low=200, high=4000, dtype="uint16", seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(low, high, (bands, height, width)).astype(dtype)


@pytest.fixture
def write(tmp_path):
    """A function that writes a file and gives its path."""

    def one(array, names=None, *, name="x.tif", tags=None, band_tags=None, colours=None, mask=None, **profile):
        path = tmp_path / name
        place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 4e6, 10, 10)}
        options = {"driver": "GTiff", **place, **profile}
        count, height, width = array.shape
        scales, offsets, units = (options.pop(k, None) for k in ("scales", "offsets", "units"))
        with rasterio.open(path, "w", count=count, height=height, width=width, dtype=array.dtype, **options) as file:
            file.write(array)
            for i, text in enumerate(names or (), 1):
                if text:
                    file.set_band_description(i, text)
            if colours:
                file.colorinterp = [ColorInterp[c] for c in colours]
            if scales:
                file.scales = scales
            if offsets:
                file.offsets = offsets
            if units:
                file.units = units
            file.update_tags(**(tags or {}))
            for i, of_band in enumerate(band_tags or (), 1):
                file.update_tags(i, **of_band)
            if mask is not None:
                file.write_mask(mask)
        return path

    return one


def refused(says, path, *args, error=DofaError, **words):
    """Opening is refused with one line that says this and names the file."""
    with pytest.raises(error, match=says) as caught:
        open_raster(path, *args, **words).close()
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


# -- which band is which ----------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(order=st.permutations(range(12)))
def test_bands_are_found_by_name_in_any_order(tmp_path_factory, order):
    path = tmp_path_factory.mktemp("order") / "x.tif"
    array = np.arange(12, dtype="uint16")[:, None, None] * 100 + np.zeros((12, 4, 4), "uint16")
    with rasterio.open(path, "w", driver="GTiff", count=12, height=4, width=4, dtype="uint16") as file:
        file.write(array[list(order)])
        file.descriptions = [L2A[i] for i in order]
    with open_raster(path, "sentinel-2-l2a", strict=True) as r:
        assert r.sensor.band_names == tuple(L2A[i] for i in order)
        assert np.array_equal(r.read(bands=L2A)[0], array)


@pytest.mark.parametrize(
    ("text", "band"),
    [
        ("B8A", "B8A"),
        ("b08", "B08"),
        ("Band 8", "B08"),
        ("band_08A", "B8A"),
        ("B8 (842 nm)", "B08"),
        ("S2_B12", "B12"),
        ("B4 surface reflectance", "B04"),
        ("Red", "B04"),
        ("NIR", "B08"),
        ("vegetation red edge", None),
        ("B4 minus B8", None),
        ("red minus nir", None),
        ("B13", None),
        ("8", None),
        ("", None),
    ],
)
def test_a_description_names_a_band_as_a_whole_or_by_its_one_identifier(text, band):
    found = match(text, sensors.get("sentinel-2-l2a"))
    assert (found and found.name) == band


def test_bands_without_names_are_taken_in_the_products_order_only_aloud(write):
    path = write(image(12))
    with open_raster(path, "sentinel-2-l2a") as r:
        assert r.sensor.band_names == L2A
        assert [w for w in r.warnings if w.startswith("band-order-assumed: x.tif: ")]
    refused("band-order-assumed is an error under strict", path, "sentinel-2-l2a", strict=True)
    with open_raster(path, "sentinel-2-l2a", bands=L2A, strict=True) as r:
        assert not r.warnings


@pytest.mark.parametrize("names", [[f"Band {i}" for i in range(1, 13)], ["stackstac-1f"] * 12])
def test_numbered_or_equal_descriptions_are_no_names(write, names):
    with open_raster(write(image(12), names), "sentinel-2-l2a") as r:
        assert r.sensor.band_names[8] == "B8A"  # by number it would be B09
        assert r.warnings[0].startswith("band-order-assumed")


def test_another_number_of_unnamed_bands_is_refused_with_the_product_that_has_it(write):
    refused("13 bands without names, sentinel-2-l2a has 12: pass --sensor sentinel-2-l1c", write(image(13)), L2A_NAME)


def test_a_description_the_sensor_lacks_is_refused(write):
    path = write(image(3), ["blue", "green", "B8A"])
    refused("band 3 is described as 'B8A', which names no band of planetscope-4", path, "planetscope-4")


def test_a_band_named_twice_is_refused(write):
    refused("bands 1 and 2 of the file are both B04", write(image(2), ["B4", "red"]), L2A_NAME)


def test_layers_that_are_no_bands_are_left_out_and_named(write):
    path = write(image(4), ["B04", "SCL", "B03", None])
    with open_raster(path, L2A_NAME) as r:
        assert r.sensor.band_names == ("B04", "B03")
        assert "2 (SCL), 4 (no description)" in r.warnings[0]


def test_a_name_and_a_wavelength_that_contradict_each_other_are_refused(write):
    tags = [{"wavelength": "665", "wavelength_units": "nm"}, {"wavelength": "833", "wavelength_units": "nm"}]
    path = write(image(2), ["B04", "B03"], band_tags=tags)
    refused(r"band 2 is described as B03 and tagged 0.833 µm", path, L2A_NAME)


def test_without_a_sensor_names_must_fit_exactly_one(write):
    olci = [b.name for b in sensors.get("sentinel-3-olci").bands]
    with open_raster(write(image(21, 8, 8), olci)) as r:
        assert r.sensor.name == "sentinel-3-olci"
    refused(
        "bands named VV, VH fit sentinel-1-grd, sentinel-1-rtc: say which",
        write(image(2, dtype="float32"), ["VV", "VH"]),
    )
    refused("bands named elevation, slope fit no catalogued sensor", write(image(2), ["elevation", "slope"]))
    refused("nothing says which sensor its 5 bands are of", write(image(5)))


def test_the_users_names_override_those_of_the_file_aloud(write):
    path = write(image(3), ["B02", "B03", "B04"])
    with open_raster(path, L2A_NAME, bands=["B04", None, "blue"]) as r:
        assert r.sensor.band_names == ("B04", "B02")
        assert np.array_equal(r.read()[0], image(3)[[0, 2]])
        assert r.warnings[0] == "bands-renamed: x.tif: band 1 is described as B02 and taken as B04, as told"
    refused("the file has 3 bands, --bands names 2", path, L2A_NAME, bands=["B02", "B03"])
    refused("has no band 'B99'", path, L2A_NAME, bands=["B02", "B03", "B99"], error=ConfigError)


# -- wavelengths ------------------------------------------------------------------------------------------------------


def nm(*values, unit="Nanometers", key="wavelength"):
    return [{key: str(v), "wavelength_units": unit} for v in values]


@pytest.mark.parametrize(
    "tags",
    [
        nm(1613.7, 492.4, 664.6),
        nm(1.6137, 0.4924, 0.6646, unit="Micrometers", key="WAVELENGTH"),
        nm(1613.7, 492.4, 664.6, unit="Unknown"),
        [{"central_wavelength": v} for v in ("1.6137", "0.4924", "0.6646")],
    ],
)
def test_wavelength_tags_name_the_bands_of_a_sensor(write, tags):
    with open_raster(write(image(3), band_tags=tags), L2A_NAME, strict=True) as r:
        assert r.sensor.band_names == ("B11", "B02", "B04")


def test_wavelengths_alone_make_a_sensor(write):
    path = write(image(3, dtype="uint8", high=255), band_tags=nm(490, 665.2, 10_900))
    with open_raster(path, strict=True) as r:
        assert [b.wavelength_um for b in r.sensor.bands] == pytest.approx([0.49, 0.6652, 10.9])
        assert [b.name for b in r.sensor.bands] == ["490nm", "665nm", "10900nm"]
        assert [b.kind for b in r.sensor.bands] == ["optical", "optical", "thermal"]
        assert (r.sensor.gsd_m, r.scaling.unit) == (10, "uint8")


def test_a_wavelength_no_band_of_the_sensor_has_is_refused(write):
    refused("band 2 at 0.62 µm fits no free band of sentinel-2-l2a", write(image(2), band_tags=nm(665, 620)), L2A_NAME)


def test_the_users_wavelengths_override_the_catalogue_and_nanometres_get_a_hint(write):
    path = write(image(2))
    with open_raster(path, L2A_NAME, wavelengths_um=[0.665, 0.842]) as r:
        assert [(b.name, b.wavelength_um) for b in r.sensor.bands] == [("B04", 0.665), ("B08", 0.842)]
    refused("looks like nanometres", path, L2A_NAME, wavelengths_um=[665, 842], error=ConfigError)
    refused("the file has 2 bands, --wavelengths names 1", path, wavelengths_um=[0.5])


def test_hyperspectral_bands_of_interleaved_detectors_are_told_apart_by_wavelength(write):
    enmap = sensors.get("enmap")
    waves = [round(1000 * b.wavelength_um, 2) for b in enmap.bands]
    order = np.random.default_rng(1).permutation(224)
    path = write(image(224, 8, 8, dtype="int16"), band_tags=nm(*(waves[i] for i in order)))
    with open_raster(path, "enmap", strict=True) as r:
        assert r.sensor.band_names == tuple(enmap.band_names[i] for i in order)


def test_an_envi_header_gives_wavelengths_scale_nodata_and_bad_bands(write, tmp_path):
    array = image(4, dtype="int16")
    array[:, 3, 5] = -9999
    path = write(array, name="cube.img", driver="ENVI")
    with (tmp_path / "cube.hdr").open("a") as header:
        header.write("wavelength units = Nanometers\nwavelength = {490.5, 560, 1380, 2200}\nfwhm = {10, 20, 30, 40}\n")
        header.write("reflectance scale factor = 10000\ndata ignore value = -9999\nbbl = {1, 1, 0, 1}\n")
    with open_raster(path, strict=True) as r:
        assert [b.wavelength_um for b in r.sensor.bands] == pytest.approx([0.4905, 0.56, 2.2])
        assert [b.fwhm_um for b in r.sensor.bands] == pytest.approx([0.01, 0.02, 0.04])
        assert (r.scaling.unit, r.scaling.scale[0], r.scaling.physical_source) == ("reflectance", 1e-4, "file")
        assert "bands 3 are marked bad" in r.warnings[0]
        values, valid = r.read_physical()
        assert np.flatnonzero(~valid).tolist() == [3 * 50 + 5]
        assert np.allclose(values[:, valid], array[[0, 1, 3]][:, valid] * 1e-4)


# -- colours ----------------------------------------------------------------------------------------------------------


def test_the_colours_of_a_photograph_name_its_bands(write):
    path = write(image(3, dtype="uint8", high=255), colours=["blue", "green", "red"])
    with open_raster(path, "naip-rgbn", strict=True) as r:
        assert r.sensor.band_names == ("B", "G", "R")
    with open_raster(path) as r:
        assert r.sensor.name == "rgb-aerial"
        assert r.warnings[0].startswith("wavelengths-assumed")
    refused("wavelengths-assumed is an error", path, strict=True)


def test_colours_against_the_products_order_are_refused(write):
    # GDAL marks any four 8-bit bands as red, green, blue, alpha; Gaofen-2 delivers blue, green, red, infrared.
    path = write(image(4, dtype="uint8", high=250), colours=["red", "green", "blue", "alpha"])
    refused("band 1 is marked red, in gaofen-2 it would be B", path, "gaofen-2")
    with open_raster(path, "gaofen-2", bands=["B", "G", "R", "NIR"], strict=True) as r:
        assert np.array_equal(r.read()[0], image(4, dtype="uint8", high=250))


def test_an_alpha_band_is_a_mask_and_an_infrared_band_marked_alpha_is_a_band(write):
    colours = ["red", "green", "blue", "alpha"]
    array = image(4, dtype="uint8", high=250)
    array[3, 0, 0] = 0
    with open_raster(write(array, colours=colours), "naip-rgbn") as r:
        assert r.sensor.band_names == ("R", "G", "B", "NIR")
        assert "marked alpha, but is no mask" in r.warnings[0]
        assert r.read()[1].all()
    array[3] = 255
    array[3, 0, :7] = 0
    with open_raster(write(array, colours=colours), "naip-rgbn", strict=True) as r:
        assert r.sensor.band_names == ("R", "G", "B")
        assert (~r.read()[1]).sum() == 7


# -- what the numbers mean --------------------------------------------------------------------------------------------


def test_the_users_scaling_beats_the_files_tags_which_beat_the_product(write):
    array = image(2)
    path = write(array, ["B04", "B08"], scales=[2e-4, 3e-4], offsets=[-0.05, -0.05])
    with open_raster(path, L2A_NAME, strict=True) as r:
        assert r.scaling.physical_source == "file"
        assert np.allclose(r.read_physical()[0][1], array[1] * 3e-4 - 0.05, atol=1e-6)
    told = Scaling.uniform("dn", L2A)
    with open_raster(path, L2A_NAME, scaling=told, strict=True) as r:
        assert (r.scaling.unit, r.scaling.physical_source, r.scaling.bands) == ("dn", "user", ("B04", "B08"))
    with open_raster(write(array, ["B04", "B08"]), L2A_NAME, strict=True) as r:
        assert r.scaling.physical_source == "catalogue"
        assert np.allclose(r.read_physical()[0], array * 1e-4)


def test_a_unit_tag_beats_the_products_unit(write):
    db = np.random.default_rng(0).uniform(-25, -5, (2, 30, 30)).astype("float32")
    with open_raster(write(db, ["VV", "VH"], units=["dB", "dB"]), "sentinel-1-rtc", strict=True) as r:
        assert r.scaling.unit == "db"


def test_numbers_nobody_explains_are_refused_with_the_three_cures(write):
    refused("--unit.*tags into the file.*name a sensor", write(image(1)), wavelengths_um=[0.5])
    refused("scale tags come without a unit", write(image(1), scales=[0.1]), wavelengths_um=[0.5])
    refused("several units", write(image(2), units=["K", "reflectance"]), wavelengths_um=[0.5, 11])


@pytest.mark.parametrize(
    ("tags", "offset"),
    [
        ({"BOA_ADD_OFFSET": "-1000"}, [-1000, -1000]),
        ({"RADIO_ADD_OFFSET": "-1000,-1000"}, [-1000, -1000]),
        ({"BOA_ADD_OFFSET_B2": "-1000", "BOA_ADD_OFFSET_B8A": "-900"}, [-1000, -900]),
        ({"BOA_ADD_OFFSET_B02": "-1000"}, None),
        ({"PROCESSING_BASELINE": "02.14"}, [0, 0]),
        ({"PROCESSING_BASELINE": "N0301"}, [0, 0]),
        (MADE_LATELY, None),
        ({**MADE_LATELY, "BOA_QUANTIFICATION_VALUE": "10000"}, [-1000, -1000]),
        ({**MADE_LATELY, "EARTHSEARCH:BOA_OFFSET_APPLIED": "true", "QUANTIFICATION_VALUE": "10000"}, [0, 0]),
        ({}, None),
    ],
)
def test_the_sentinel_2_offset_is_what_metadata_say_and_nothing_else(tags, offset):
    numbers = FileNumbers((1, 1), (0, 0), ("", ""), tags, ({}, {}), {})
    assert sentinel2_offset(numbers, ["B02", "B8A"]) == offset


def test_the_offset_in_a_files_tags_is_taken_off(write):
    array = image(12, low=1010, high=5000)
    said = {**MADE_LATELY, "QUANTIFICATION_VALUE": "10000"}
    with open_raster(write(array, L2A, tags=said), L2A_NAME, strict=True) as r:
        assert np.allclose(r.read_physical()[0], (array - 1000.0) * 1e-4, atol=1e-6)
    with open_raster(write(array, L2A, scales=[1e-4] * 12, offsets=[-0.1] * 12, tags=said), L2A_NAME, strict=True) as r:
        assert np.allclose(r.read_physical()[0], (array - 1000.0) * 1e-4, atol=1e-6)  # once, not twice


def test_a_shifted_histogram_without_a_word_is_a_warning_and_an_error_under_strict(write):
    path = write(image(12, low=1010, high=5000), L2A)
    with open_raster(path, L2A_NAME) as r:
        assert len(r.warnings) == 1
        assert r.warnings[0].startswith("offset-unknown: x.tif: ")
        assert set(r.scaling.offset) == {0.0}
    refused("offset-unknown is an error under strict", path, L2A_NAME, strict=True)
    for offset, physical in ((-1000, -0.1), (0, 0.0)):
        with open_raster(path, L2A_NAME, dn_offset=offset, strict=True) as r:
            assert r.scaling.offset[0] == pytest.approx(physical)
            assert r.scaling.physical_source == "user"
    with pytest.raises(ConfigError, match="scaling already says"):
        open_raster(path, L2A_NAME, dn_offset=0, scaling=Scaling.uniform("dn", L2A))


def test_a_late_baseline_that_may_have_been_corrected_is_a_warning_whatever_the_histogram(write):
    with open_raster(write(image(12), L2A, tags=MADE_LATELY), L2A_NAME) as r:
        assert "processing baseline 05.09 adds 1000" in r.warnings[0]


def test_values_that_cannot_be_what_they_are_called_are_a_warning_and_an_error_under_strict(write):
    for array, names, sensor in (
        (image(2, dtype="uint8", high=250), ["B04", "B08"], L2A_NAME),
        (image(2, low=100, high=3000, dtype="int16"), ["B3", "B4"], "landsat-7-l2-sr"),
    ):
        path = write(array, names)
        with open_raster(path, sensor) as r:
            assert r.warnings[0].startswith("scale-doubtful"), sensor
        refused("scale-doubtful is an error", path, sensor, strict=True)


# -- what is valid ----------------------------------------------------------------------------------------------------


def test_a_pixel_is_valid_where_every_band_read_is(write):
    array = image(3, dtype="int16")
    array[0, 0, :2], array[1, 0, 1:4] = -1, -1
    with open_raster(write(array, ["B02", "B03", "B04"], nodata=-1), L2A_NAME) as r:
        assert np.flatnonzero(~r.read()[1]).tolist() == [0, 1, 2, 3]
        assert np.flatnonzero(~r.read(bands=["B03"])[1]).tolist() == [1, 2, 3]
        values, valid = r.read_physical(bands=["B04", "B02"])
        assert np.isnan(values[:, ~valid]).all()
        assert np.isfinite(values[:, valid]).all()


def test_the_users_nodata_overrides_the_files_and_must_be_a_number_of_its_type(write):
    array = image(2)
    array[:, 0, 0], array[:, 0, 1] = 0, 7
    path = write(array, ["B02", "B03"], nodata=0)
    with open_raster(path, L2A_NAME, nodata=7) as r:
        assert np.flatnonzero(~r.read()[1]).tolist() == [1]
    refused("nodata -9999 is no uint16 number", path, L2A_NAME, nodata=-9999, error=ConfigError)


def test_zeros_are_measurements_unless_nodata_says_so(write):
    array = image(2)
    array[:, 0, 0] = 0
    with open_raster(write(array, ["B02", "B03"]), L2A_NAME) as r:
        assert r.read()[1].all()


def test_in_8_bit_pictures_a_nodata_value_of_one_band_alone_is_a_colour(write):
    array = image(3, low=1, high=255, dtype="uint8")
    array[0, 0, 0], array[:, 0, 1] = 0, 0
    with open_raster(write(array, ["R", "G", "B"], nodata=0), "naip-rgb") as r:
        assert np.flatnonzero(~r.read()[1]).tolist() == [1]


def test_nan_infinity_and_an_internal_mask_are_no_measurements(write):
    array = np.random.default_rng(0).uniform(-20, -5, (2, 30, 30)).astype("float32")
    array[0, 0, 0], array[1, 0, 1] = np.nan, -np.inf
    mask = np.full((30, 30), 255, "uint8")
    mask[0, 2] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write(array, ["VV", "VH"], mask=mask)
    with open_raster(path, "sentinel-1-grd", strict=True) as r:
        assert np.flatnonzero(~r.read()[1]).tolist() == [0, 1, 2]
        assert np.flatnonzero(~r.read(Window(1, 0, 5, 1))[1]).tolist() == [0, 1]


def test_a_mask_beside_the_file_is_seen(write):
    mask = np.full((40, 50), 255, "uint8")
    mask[1, 1] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        path = write(image(1), ["B02"], mask=mask)
    assert path.with_name("x.tif.msk").exists()
    with open_raster(path, L2A_NAME) as r:
        assert np.flatnonzero(~r.read()[1]).tolist() == [51]


def test_bands_without_a_measurement_anywhere_are_left_out_and_named(write):
    array = image(3, 800, 700, dtype="int16")
    array[1] = -1
    array[2] = -1
    array[2, 300, 300] = 5  # between the windows looked at first
    with open_raster(write(array, ["B02", "B03", "B04"], nodata=-1), L2A_NAME) as r:
        assert r.sensor.band_names == ("B02", "B04")
        assert "left out: B03" in r.warnings[0]
        with pytest.raises(DataError, match="band B03 holds no measurement"):
            r.read(bands=["B03"])
    with open_raster(write(np.full((2, 9, 9), -1, "int16"), ["B02", "B03"], nodata=-1), L2A_NAME) as r:
        assert len(r.sensor.bands) == 2
        assert not r.read()[1].any()


# -- reading ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(data=st.data())
def test_a_window_is_that_part_of_the_whole(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("window") / "x.tif"
    array = image(2, 33, 47)
    options = {"driver": "GTiff", "dtype": "uint16", "tiled": True, "blockxsize": 16, "blockysize": 16}
    with rasterio.open(path, "w", count=2, height=33, width=47, **options) as file:
        file.write(array)
    top, left = data.draw(st.integers(0, 32)), data.draw(st.integers(0, 46))
    bottom, right = data.draw(st.integers(top + 1, 33)), data.draw(st.integers(left + 1, 47))
    with open_raster(path, L2A_NAME, bands=["B04", "B8A"]) as r:
        raw, valid = r.read(((top, bottom), (left, right)), bands=["B8A"])
        assert np.array_equal(raw[0], array[1, top:bottom, left:right])
        assert raw.dtype == np.uint16
        assert valid.shape == raw.shape[1:]


@pytest.mark.parametrize("window", [Window(45, 0, 6, 5), Window(-1, 0, 5, 5), Window(0, 0, 0, 5), Window(0.5, 0, 5, 5)])
def test_a_window_outside_the_file_is_refused(write, window):
    with open_raster(write(image(1), ["B02"]), L2A_NAME) as r, pytest.raises(DataError, match="does not lie in its 40"):
        r.read(window)


def test_many_threads_read_the_same_raster_and_get_what_one_gets(write):
    array = image(4, 512, 512)
    path = write(array, ["B02", "B03", "B04", "B08"], tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    corners = [(y, x) for y in range(0, 480, 48) for x in range(0, 464, 16)]
    with open_raster(path, L2A_NAME) as r, ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda corner: r.read(Window(corner[1], corner[0], 40, 32))[0], corners)
        for (y, x), raw in zip(corners, read, strict=True):
            assert np.array_equal(raw, array[:, y : y + 32, x : x + 40])


def test_each_thread_reads_through_a_handle_of_its_own(write, monkeypatch):
    opened, real = [], gdal.open_dataset
    path = write(image(1), ["B02"])
    with open_raster(path, L2A_NAME) as r, ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr(gdal, "open_dataset", lambda *a: opened.append(real(*a)) or opened[-1])
        meet = threading.Barrier(4)
        for _ in range(2):
            list(pool.map(lambda _: (meet.wait(10), r.read()), range(4)))
        assert len(opened) == 4
    assert all(handle.closed for handle in opened)


def _read_in_child(raster, window, pipe):
    pipe.send(raster.read(window)[0])


def test_a_forked_worker_opens_a_handle_of_its_own(write):
    array = image(1, 600, 600)
    with open_raster(write(array, ["B02"], compress="deflate"), L2A_NAME) as r:
        r.read(Window(0, 0, 10, 10))
        here, there = multiprocessing.get_context("fork").Pipe()
        context = multiprocessing.get_context("fork")
        child = context.Process(target=_read_in_child, args=(r, Window(0, 300, 600, 300), there))
        child.start()
        assert np.array_equal(r.read(Window(0, 0, 600, 300))[0], array[:, :300])
        assert np.array_equal(here.recv(), array[:, 300:])
        child.join(30)
        assert child.exitcode == 0
        assert np.array_equal(r.read()[0], array)


def test_a_closed_raster_says_so(write):
    r = open_raster(write(image(1), ["B02"]), L2A_NAME)
    r.close()
    with pytest.raises(DataError, match=r"x.tif: the raster is closed"):
        r.read()


# -- place ------------------------------------------------------------------------------------------------------------


def test_centre_bounds_and_sampling_distance_of_a_rotated_grid(write):
    turned = from_origin(5e5, 4e6, 10, 10) * Affine.rotation(30) * Affine.translation(-25, -20)
    with open_raster(write(image(1), ["B02"], transform=turned), L2A_NAME) as r:
        assert r.gsd_m == pytest.approx(10)
        assert r.centre_lonlat == pytest.approx((15, 36.144), abs=1e-3)  # the middle of zone 33
        west, south, east, north = r.bounds_lonlat
        half_width = 10 * (25 * np.cos(np.pi / 6) + 20 * np.sin(np.pi / 6))  # of the turned rectangle
        assert (east - west) / 2 == pytest.approx(half_width / (111_320 * np.cos(np.radians(36.144))), rel=0.01)
        assert south < 36.144 < north


def test_degrees_become_metres_and_a_picture_without_a_place_has_none(write):
    degrees = {"crs": "EPSG:4326", "transform": from_origin(10, 60, 1e-4, 1e-4)}
    with open_raster(write(image(1), ["B02"], **degrees), L2A_NAME) as r:
        assert r.gsd_m == pytest.approx(11.13 * 0.5**0.5, rel=0.01)
    with open_raster(write(image(1), ["B02"], crs=None, transform=Affine.identity()), L2A_NAME) as r:
        assert r.crs is r.gsd_m is r.centre_lonlat is r.bounds_lonlat is None


# -- other formats ----------------------------------------------------------------------------------------------------


def cube(path, wavelengths=(490.0, 560.0, 2200.0), unit="nm", **how):
    """A data set as xarray writes it: scaled integers with a wavelength axis, a missing pixel and a place."""
    xr = pytest.importorskip("xarray")
    array = image(3, 20, 30, dtype="int16")
    array[:, 2, 3] = -1
    meta = {"grid_mapping": "spatial_ref", "scale_factor": 1e-4, "units": "reflectance", "_FillValue": np.int16(-1)}
    data = xr.Dataset(
        {"refl": (("wavelength", "y", "x"), array, meta)},
        coords={
            "x": ("x", 500005 + 10.0 * np.arange(30), {"standard_name": "projection_x_coordinate", "units": "m"}),
            "y": ("y", 3999995 - 10.0 * np.arange(20), {"standard_name": "projection_y_coordinate", "units": "m"}),
            "wavelength": ("wavelength", list(wavelengths), {"units": unit}),
        },
    )
    data = data.assign_coords(spatial_ref=((), 0, {"crs_wkt": rasterio.crs.CRS.from_epsg(32633).to_wkt()}))
    if path.suffix == ".nc":
        data.to_netcdf(path, engine="scipy")
    else:
        data.to_zarr(path, consolidated=how.get("zarr_format") == 2, **how)
    return array, data


@pytest.mark.parametrize(
    ("name", "how", "waves", "unit"),
    [
        ("x.nc", {}, (490.0, 560.0, 2200.0), "nm"),
        ("x.nc", {}, (0.49, 0.56, 2.2), "um"),
        ("x.zarr", {"zarr_format": 2}, (490.0, 560.0, 2200.0), "nanometers"),
    ],
)
def test_netcdf_and_zarr_give_wavelengths_scale_nodata_and_place(tmp_path, name, how, waves, unit):
    array, _ = cube(tmp_path / name, waves, unit, **how)
    with open_raster(tmp_path / name, strict=True) as r:
        assert [b.wavelength_um for b in r.sensor.bands] == pytest.approx([0.49, 0.56, 2.2])
        assert (r.scaling.unit, r.scaling.scale[0], r.nodata, r.gsd_m) == ("reflectance", 1e-4, -1, 10)
        assert r.crs.to_epsg() == 32633
        raw, valid = r.read()
        assert np.array_equal(raw, array)
        assert np.argwhere(~valid).tolist() == [[2, 3]]
    with open_raster(tmp_path / name, "sentinel-2-l2a") as r:
        assert r.sensor.band_names == ("B02", "B03", "B12")


def test_a_file_of_several_variables_names_them_and_each_opens(tmp_path):
    array, data = cube(tmp_path / "one.nc")
    data.assign(slope=(("y", "x"), array[0])).to_netcdf(tmp_path / "x.nc", engine="scipy")
    refused(r"name one of its 2 images \(.*netcdf:.*x.nc:refl", tmp_path / "x.nc")
    with open_raster(f"netcdf:{tmp_path}/x.nc:refl") as r:
        assert np.array_equal(r.read()[0], array)


def test_a_zarr_that_gdal_cannot_decode_says_how_to_write_it(tmp_path):
    cube(tmp_path / "x.zarr", zarr_format=3)
    with pytest.raises(DataError, match=r"Unsupported codec: .* none of version 3: write it with zarr_format=2"):
        open_raster(f'ZARR:"{tmp_path}/x.zarr":/refl')


def test_a_format_this_gdal_lacks_says_so(tmp_path, monkeypatch):
    (tmp_path / "x.nc").write_bytes(b"CDF what follows is never read")
    monkeypatch.setattr("dofa.raster.gdal.driver_names", lambda: {"GTiff"})
    refused("the GDAL of this rasterio reads no netCDF files.*libgdal-netcdf", tmp_path / "x.nc")


def test_zipped_files_open_in_place(write, tmp_path):
    array = image(2)
    path = write(array, ["B02", "B03"])
    cube_path = write(array.astype("int16"), name="cube.img", driver="ENVI")
    header = cube_path.with_suffix(".hdr")
    header.write_text(header.read_text() + "wavelength units = Micrometers\nwavelength = {0.49, 0.56}\n")
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (path, cube_path, header):
            archive.write(file, f"inner/{file.name}")
    with open_raster(f"/vsizip/{tmp_path}/x.zip/inner/x.tif", "sentinel-2-l2a", dn_offset=0) as r:
        assert np.array_equal(r.read()[0], array)
    with open_raster(f"/vsizip/{tmp_path}/x.zip/inner/cube.img", "sentinel-2-l2a", dn_offset=0) as r:
        assert r.sensor.band_names == ("B02", "B03")


def test_a_virtual_file_of_others_is_read_like_one(write, tmp_path):
    array = image(2)
    for i, name in enumerate(("B02", "B8A")):
        write(array[i : i + 1], [name], name=f"{name}.tif", nodata=0)
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{i}"><Description>{name}</Description><NoDataValue>0</NoDataValue>'
        f'<SimpleSource><SourceFilename relativeToVRT="1">{name}.tif</SourceFilename></SimpleSource></VRTRasterBand>'
        for i, name in enumerate(("B02", "B8A"), 1)
    )
    vrt = tmp_path / "x.vrt"
    vrt.write_text(f'<VRTDataset rasterXSize="50" rasterYSize="40">{bands}</VRTDataset>')
    with open_raster(vrt, "sentinel-2-l2a", dn_offset=0) as r:
        assert (r.sensor.band_names, r.nodata) == (("B02", "B8A"), 0)
        assert np.array_equal(r.read()[0], array)
    (tmp_path / "B8A.tif").unlink()
    with open_raster(vrt, "sentinel-2-l2a", bands=["B02", None], dn_offset=0) as r:
        assert np.array_equal(r.read()[0], array[:1])
    refused(r"x\.vrt.*B8A\.tif", vrt, "sentinel-2-l2a", dn_offset=0)


# -- what cannot be read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [("x.tif", {"compress": "deflate"}), ("x.tif", {}), ("x.jpg", {"driver": "JPEG"}), ("x.png", {"driver": "PNG"})],
)
def test_a_truncated_file_is_one_clear_line(write, name, options):
    path = write(image(3, 300, 300, low=0, high=255, dtype="uint8"), name=name, **options)
    whole = path.read_bytes()
    for share in (0.02, 0.5, 0.95):
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(r"x\.\w+.*(cannot be opened|truncated or damaged)", path, "rgb-aerial", bands=["R", "G", "B"])


def test_files_that_hold_no_measurements_are_refused_each_in_one_line(write, tmp_path):
    refused("complex", write(np.ones((1, 4, 4), "complex64"), ["VV"]), "sentinel-1-grd")
    refused("one bit a pixel", write(np.ones((1, 4, 4), "uint8"), nbits=1), "rgb-aerial")
    path = write(np.ones((1, 4, 4), "uint8"), photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (0, 0, 0, 255), 1: (9, 9, 9, 255)})
    refused("colour table", path, "rgb-aerial")
    text = tmp_path / "x.tif"
    text.write_text("no raster")
    refused("cannot be opened: .*not recognized", text)
    refused("cannot be opened: .*No such file", tmp_path / "absent.tif")


# -- real imagery -----------------------------------------------------------------------------------------------------


def test_real_three_of_five_co_located_tiles_carry_the_offset(real_data):
    shifted = set()
    for path in sorted((real_data / "colocated_s1_s2" / "S2L1C").glob("*.tif")):
        with open_raster(path, "sentinel-2-l1c", bands=L1C) as r:
            shifted |= {path.stem[:4]} if any(w.startswith("offset-unknown") for w in r.warnings) else set()
            assert len(r.warnings) <= 1
    assert shifted == {"282D", "433D", "609U"}


def test_real_enmap_has_the_202_bands_that_hold_measurements(real_data):
    path = next((real_data / "enmap_hyspecnet11k").glob("*/*-SPECTRAL_IMAGE.TIF"))
    dropped = {*range(126, 141), *range(160, 167)}
    with open_raster(path, "enmap") as r:
        kept = [b for i, b in enumerate(sensors.get("enmap").band_names) if i not in dropped]
        assert list(r.sensor.band_names) == kept
        values, valid = r.read_physical()
        assert valid.all()
        assert values.shape == (202, 128, 128)
        assert -0.5 < values.min() < values.max() < 2


def test_real_sentinel_1_nan_and_names(real_data):
    with open_raster(real_data / "sen1floods11/S1Hand/Nigeria_812045_S1Hand.tif", "sentinel-1-grd", strict=True) as r:
        values, valid = r.read_physical()
        assert r.sensor.band_names == ("VV", "VH")
        assert (~valid).sum() == 579
        assert np.isfinite(values[:, valid]).all()
    path = next((real_data / "colocated_s1_s2/S1RTC").glob("*.tif"))
    with open_raster(path, "sentinel-1-rtc", bands=["VV", "VH"]) as r:  # said to be linear power, but in decibels
        assert r.warnings[0].startswith("unit-assumed")
        assert r.scaling.unit == "db"


def test_real_naip_landsat_and_pictures(real_data):
    path = next((real_data / "naip").glob("*.tif"))
    with open_raster(path, "naip-rgbn") as r:
        assert r.sensor.band_names == ("R", "G", "B", "NIR")
        assert (r.gsd_m, len(r.warnings)) == (pytest.approx(5), 1)
        assert r.centre_lonlat == pytest.approx((-99.15, 47.02), abs=0.01)
    stack = real_data / "landsat/LE70220491999322EDC01_stack.gtif"
    with open_raster(stack, "landsat-7-l2-sr") as r:  # all six of its bands are there: the seventh is said, no error
        assert r.sensor.band_names == sensors.get("landsat-7-l2-sr").band_names
        assert any("7 (band 6 temperature)" in w for w in r.warnings)
    with open_raster(next((real_data / "usgs_rgb_0p2m").glob("*.png")), "rgb-aerial", strict=True) as r:
        assert r.read_physical()[0].shape == (3, 512, 512)


def test_real_sentinel_2_chip_names_its_bands_and_the_wrong_level_is_refused(real_data):
    path = real_data / "sen1floods11/S2Hand/Spain_7370579_S2Hand.tif"
    with open_raster(path, "sentinel-2-l1c", strict=True) as r:
        assert r.sensor.band_names == L1C
        assert r.read()[1].all()
    refused("'B10', which names no band of sentinel-2-l2a", path, L2A_NAME)


def test_real_single_band_files_need_a_name(real_data):
    path = next((real_data / "true_formats/BigEarthNet/BigEarthNet-S2").glob("*/*/*_B8A.tif"))
    refused("1 band without names.*--bands", path, L2A_NAME)
    with open_raster(path, L2A_NAME, bands=["B8A"], strict=True) as r:
        assert r.read_physical()[0].shape == (1, 60, 60)
