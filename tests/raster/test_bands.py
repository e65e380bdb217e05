"""Which band of a file is which: descriptions as other people's programs write them, and files that say little."""

import re
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dofa import sensors
from dofa.errors import DataError, DofaError
from dofa.raster.band_descriptions import FileBand
from dofa.raster.band_names import match
from dofa.raster.bands import match_bands

S2, S2_L1C, L8 = "sentinel-2-l2a", "sentinel-2-l1c", "landsat-8-l2-sr"
# Earth Engine's band names of whole images, in its order (its data catalogue).
EARTH_ENGINE = {
    L8: "SR_B1 SR_B2 SR_B3 SR_B4 SR_B5 SR_B6 SR_B7 SR_QA_AEROSOL ST_B10 ST_ATRAN ST_CDIST ST_DRAD ST_EMIS ST_EMSD "
    "ST_QA ST_TRAD ST_URAD QA_PIXEL QA_RADSAT",
    "landsat-7-l2-sr": "SR_B1 SR_B2 SR_B3 SR_B4 SR_B5 SR_B7 SR_ATMOS_OPACITY SR_CLOUD_QA ST_B6 ST_ATRAN ST_CDIST "
    "ST_DRAD ST_EMIS ST_EMSD ST_QA ST_TRAD ST_URAD QA_PIXEL QA_RADSAT",
    "landsat-9-l2-st": "SR_B1 SR_B2 ST_B10 ST_ATRAN ST_QA QA_PIXEL",
    "landsat-8-l1-toa": "B1 B2 B3 B4 B5 B6 B7 B8 B9 B10 B11 QA_PIXEL QA_RADSAT SAA SZA VAA VZA",
    S2: "B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B11 B12 AOT WVP SCL TCI_R TCI_G TCI_B MSK_CLDPRB MSK_SNWPRB QA10 QA20 QA60 "
    "MSK_CLASSI_OPAQUE MSK_CLASSI_CIRRUS MSK_CLASSI_SNOW_ICE probability cs cs_cdf",
    S2_L1C: "B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12 QA10 QA20 QA60 MSK_CLASSI_OPAQUE",
    "sentinel-1-grd": "VV VH angle",
    "hls-s30": "B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12 Fmask SZA SAA VZA VAA",
    "hls-l30": "B1 B2 B3 B4 B5 B6 B7 B9 B10 B11 Fmask SZA SAA VZA VAA",
    "modis-mod09": "num_observations_1km state_1km SensorZenith SensorAzimuth Range SolarZenith SolarAzimuth gflags "
    "orbit_pnt granule_pnt num_observations_500m sur_refl_b01 sur_refl_b02 sur_refl_b03 sur_refl_b04 sur_refl_b05 "
    "sur_refl_b06 sur_refl_b07 QC_500m obscov_500m iobs_res q_scan",
    "naip-rgbn": "R G B N",
}


def read(names, sensor=S2, dtype="uint16"):
    """The answer for a file of so many bands described so."""
    waves = [re.search(r"(\d+) nm", (text or "")[:80]) for text in names]
    file = [FileBand(i, t or "", w and int(w[1]) / 1000) for i, (t, w) in enumerate(zip(names, waves, strict=True), 1)]
    return match_bands(file, None if sensor is None else sensors.get(sensor), dtype=dtype)


def bands(names, sensor=S2):
    return read(names, sensor).sensor.band_names


def refused(says, names, sensor=S2, **how):
    with pytest.raises(DataError, match=says) as caught:
        read(names, sensor, **how)
    assert "\n" not in str(caught.value)
    assert not any(word in str(caught.value) for word in ("bands=", "sensor=", "wavelengths_um"))
    return str(caught.value)


# -- a number and a colour --------------------------------------------------------------------------------------------

FORMS = (
    "Band {n} - {c}", "Band {n} – {c}", "band_{n} ({c})", "{n}: {c}", "B{n}_{c}", "Band {n}: {c}", "{c} (Band {n})",
    "{c}_B{n}", "0{n} - {c}", "#{n} {c}", "({n}) {c}", "[{n}] {c}", "Band No. {n} {c}", "Band {n} | {c}", "{n}. {c}",
    "Layer {n} {c}", "Band {n} = {c} reflectance", "{c} - band {n}",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("style", [str, str.lower, str.upper])
def test_a_number_counts_places_and_the_colour_names_the_band(form, style):
    names = [style(form.format(n=n, c=c)) for n, c in enumerate(("Red", "Green", "Blue", "NIR"), 1)]
    found = read(names)
    assert found.sensor.band_names == ("B04", "B03", "B02", "B08")
    assert found.numbers == [1, 2, 3, 4]
    assert not found.assumptions  # nothing is guessed, and what was taken for what is said
    assert "B04" in found.notes[0][1]


@settings(max_examples=60)
@given(
    form=st.sampled_from(FORMS),
    order=st.permutations(["Blue", "Green", "Red", "NIR"]),
    sensor=st.sampled_from([S2, L8, "planetscope-4", "planetscope-8", "hls-l30", "rapideye", "spot-6-7"]),
)
def test_colours_decide_in_any_order_form_and_sensor(form, order, sensor):
    found = read([form.format(n=n, c=c) for n, c in enumerate(order, 1)], sensor)
    known = sensors.get(sensor)
    assert found.sensor.band_names == tuple(known.band(c.lower()).name for c in order)


@pytest.mark.parametrize(
    ("names", "sensor", "bands_meant"),
    [
        (["B4 - Red", "B3 - Green", "B2 - Blue"], S2, ("B04", "B03", "B02")),
        (["Band 5 - Vegetation Red Edge 1", "Band 8A - Narrow NIR", "Band 11 - SWIR 1"], S2, ("B05", "B8A", "B11")),
        (["Band 1 - Coastal Aerosol", "Band 5 - Near Infrared (NIR)"], L8, ("B1", "B5")),
        (["Band 6 - Shortwave Infrared (SWIR) 1", "Band 7 - Short-wave infrared 2"], L8, ("B6", "B7")),
        (["coastal aerosol", "red-edge 1", "red edge 2", "water vapor"], S2, ("B01", "B05", "B06", "B09")),
        (["Red (665 nm)", "Near Infrared (842 nm)"], S2, ("B04", "B08")),
        (["Band 1: B08", "Band 2: B8A"], S2, ("B08", "B8A")),  # a list of layers as QGIS shows it
        (["reflectance_B4", "reflectance_B8A"], S2, ("B04", "B8A")),
        (["sr_band4", "sr_band5", "sr_aerosol", "pixel_qa"], L8, ("B4", "B5")),
        (["toa_band4", "toa_band5", "bt_band10"], "landsat-8-l1-toa", ("B4", "B5")),
        (["T32TPS_20240830T100559_B02_10m", "T32TPS_20240830T100559_B8A_20m"], S2, ("B02", "B8A")),
        (["B4, central wavelength 665 nm", "SCL, Scene Classification"], S2, ("B04",)),
        (["Sigma0_VV_db", "Sigma0_VH_db", "localIncidenceAngle"], "sentinel-1-grd", ("VV", "VH")),
        (["Band 1 - VH", "Band 2 - VV"], "sentinel-1-grd", ("VH", "VV")),
        (["blue", "green_i", "Red Edge"], "planetscope-8", ("blue", "green_i", "rededge")),
        (["Band 1 (Red Edge, 705 nm)", "Blue, 490 nm"], S2, ("B05", "B02")),
        (["R", "G", "B", "N"], S2, ("B04", "B03", "B02", "B08")),
        (["0_B4", "0_B8A"], S2, ("B04", "B8A")),  # Earth Engine's ImageCollection.toBands
        (["B04", "MSK_DETFOO_B04", "solar_azimuth_band4"], S2, ("B04",)),
        (["B4_median", "nir_median"], S2, ("B04", "B08")),
    ],
)
def test_names_as_other_programs_write_them(names, sensor, bands_meant):
    found = read(names, sensor)
    assert found.sensor.band_names == bands_meant
    assert not found.assumptions


def test_what_may_be_several_bands_is_an_error_that_names_them():
    assert "B05 or B06 or B07" in refused("'red edge'", ["B04", "red edge"])
    assert "B11 or B12" in refused("'Band 2 - SWIR'", ["Band 1 - Red", "Band 2 - SWIR"])
    assert "nir1 or nir2" in refused("'NIR'", ["red", "NIR"], "worldview-2")
    # By the file's other bands the numbers count places, so that 5 does not say which red edge it is.
    refused("B05 or B06", ["Band 1 - Blue", "Band 2 - Green", "Band 3 - Red", "Band 4 - NIR", "Band 5 - Red Edge"])


def test_a_number_of_the_sensors_own_form_against_a_colour_is_an_error_with_both():
    text = refused("'B8 - Red'", ["B8 - Red", "B3 - Green"])
    assert "B08" in text
    assert "B04" in text


def test_numbers_kept_from_a_larger_file_are_doubted():
    found = read(["Band 4 - NIR", "Band 3 - Blue"])
    assert found.sensor.band_names == ("B08", "B02")
    assert [name for name, _ in found.assumptions] == ["band-numbers-doubtful"]


def test_a_colour_that_the_sensor_lacks_is_no_band_whatever_its_number():
    refused("'Band 1 - Coastal'", ["Band 1 - Coastal", "Band 2 - Blue"], "planetscope-4")


def test_beside_numbers_that_count_places_a_number_alone_names_nothing():
    refused("'Band 4'", ["Band 1 - Red", "Band 2 - Green", "Band 3 - Blue", "Band 4"])
    refused("'Band 4 - canopy'", ["Band 1 - Red", "Band 2 - Green", "Band 3 - Blue", "Band 4 - canopy"])


def test_a_lone_number_that_is_one_band_by_name_and_another_by_place_is_refused():
    assert "B8A" in refused("'Band 9'.*B09", ["Band 4", "Band 9"])
    assert bands(["Band 4", "Band 8A", "Band 9"]) == ("B04", "B8A", "B09")
    assert bands(["B04", "B09"]) == ("B04", "B09")


@pytest.mark.parametrize("text", ["Band {}", "{}", "lyr.{}", "scene_2020_{}", "layer {}", "Band_{}", "band {:02d}"])
def test_texts_that_count_places_are_no_names(text):
    found = read([text.format(i) for i in range(1, 13)])
    assert found.sensor.band_names[8] == "B8A"  # by number it would be B09
    assert found.assumptions[0][0] == "band-order-assumed"


@pytest.mark.parametrize(
    "text",
    ["B4 minus B8", "red minus nir", "band 4 minus band 8", "B4 - B8", "NDVI", "4", "redness", "scared", "pannier"],
)
def test_texts_that_name_no_single_band(text):
    assert match(text, sensors.get(S2)) is None


def test_names_of_another_instrument_are_refused():
    assert "--sensor landsat-8-l2-sr" in refused("SR_B5", ["SR_B3", "SR_B4", "SR_B5"])  # B05 is no near infrared


@pytest.mark.parametrize(
    ("colours", "bands_meant"),
    [
        (["red", "green", "blue", "nir"], ("B04", "B03", "B02", "B08")),
        (["coastal", "nir", "red"], ("B01", "B08", "B04")),
        (["coastal", "swir", "red"], None),  # which short-wave infrared is not said
        (["gray", "undefined", "undefined"], None),
    ],
)
def test_gdals_colours_name_the_bands_where_each_has_one_of_its_own(colours, bands_meant):
    file = [FileBand(i, colour=c) for i, c in enumerate(colours, 1)]
    if bands_meant is None:
        with pytest.raises(DataError, match=r"without names.*--bands"):
            match_bands(file, sensors.get(S2))
    else:
        assert match_bands(file, sensors.get(S2)).sensor.band_names == bands_meant


# -- whole images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sensor", "names"), EARTH_ENGINE.items())
@pytest.mark.parametrize("turned", [False, True])
def test_of_a_whole_image_of_earth_engine_the_sensors_bands_are_read_and_the_rest_is_said(sensor, names, turned):
    names = names.split()[::-1] if turned else names.split()
    known = sensors.get(sensor)
    found = read(names, sensor, "float64")
    assert set(found.sensor.band_names) == set(known.band_names)
    for name, number in zip(found.sensor.band_names, found.numbers, strict=True):
        own = {name, *known.band(name).aliases}
        assert names[number - 1] in own
    left = [n for i, n in enumerate(names, 1) if i not in found.numbers]
    assert not found.assumptions
    assert len(found.notes) == bool(left)  # one warning
    assert all(f"({n})" in found.notes[0][1] for n in left)


def test_part_of_an_export_leaves_out_known_layers_but_not_what_nobody_knows():
    assert bands(["B4", "B3", "SCL", "QA60"]) == ("B04", "B03")
    refused("'NDVI'", ["B4", "B3", "NDVI"])
    found = read([*sensors.get(S2).band_names, "NDVI", "elevation"])
    assert len(found.sensor.bands) == 12
    assert "13 (NDVI), 14 (elevation)" in found.notes[0][1]


def test_the_bands_of_another_level_are_refused_with_its_name():
    text = refused("B10", [*sensors.get(S2_L1C).band_names])
    assert "--sensor sentinel-2-l1c" in text


def test_a_whole_image_without_a_sensor_is_found_or_its_candidates_named():
    found = read([*sensors.get(S2).band_names, "NDVI"], None)
    assert found.sensor.name == S2
    text = refused("fit landsat-8-l2-sr, landsat-9-l2-sr", EARTH_ENGINE[L8].split(), None)
    assert "--sensor landsat-8-l2-sr or --sensor landsat-9-l2-sr" in text


# -- files that say nothing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("count", [1, 4, 5, 8, 12, 13, 224])
def test_without_a_word_the_sensors_of_as_many_bands_are_named(count, dtype):
    text = refused(f"{count} bands", [None] * count, None, dtype=dtype)
    named = {s.name for s in sensors.catalogue().values() if f"--sensor {s.name} " in text.replace(",", " ")}
    of_count = {s.name for s in sensors.catalogue().values() if len(s.bands) == count}
    eight_bit = {s for s in of_count if (scaling := sensors.get(s).scaling) is not None and scaling.unit == "uint8"}
    assert named == (of_count if dtype == "uint8" else of_count - eight_bit)
    assert "--wavelengths" in text


def test_a_number_of_bands_that_no_sensor_has_is_said():
    assert "no catalogued one has 77 bands" in refused("77 bands", [None] * 77, None)


# -- the user's names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["b4", "B4", "B04", "b04", "red", "RED", "Band 4", "band_4"])
def test_the_users_names_in_any_form(name):
    found = match_bands([FileBand(1), FileBand(2)], sensors.get(S2), names=[name, None])
    assert found.sensor.band_names == ("B04",)


@pytest.mark.parametrize(
    ("typed", "meant"), [("B8B", "B8A"), ("B99", "B09"), ("rde", "red"), ("swir61", "swir16"), ("coastel", "coastal")]
)
def test_a_mistyped_name_is_answered_with_the_nearest(typed, meant):
    with pytest.raises(ValueError, match="did you mean") as caught:
        match_bands([FileBand(1)], sensors.get(S2), names=[typed])
    assert meant in str(caught.value)


PIECES = st.sampled_from(
    [
        "band",
        "B",
        "0",
        "8A",
        "12",
        "red",
        "nir",
        " edge",
        "swir",
        "VV",
        "-",
        " ",
        "_",
        "(",
        ")",
        ":",
        "665 nm",
        "QA",
        "é",
        "\0",
        "٣",
    ]
)


@settings(max_examples=300)
@example(names=["665 nm", "QA"], sensor=None)
@given(
    names=st.lists(st.one_of(st.lists(PIECES, max_size=6).map("".join), st.text(max_size=12)), min_size=1, max_size=6),
    sensor=st.sampled_from([None, S2, L8, "sentinel-1-grd", "worldview-2", "naip-rgbn"]),
)
def test_whatever_descriptions_say_the_answer_is_bands_of_the_sensor_or_one_error(names, sensor):
    try:
        found = read(names, sensor)
    except DofaError:
        return
    assert len(found.numbers) == len(found.sensor.bands) == len(set(found.sensor.band_names))
    assert set(found.numbers) <= set(range(1, len(names) + 1))
    left = [n for i, n in enumerate(names, 1) if i not in found.numbers]
    assert not left or found.notes  # nothing is left out in silence


@pytest.mark.parametrize(
    "text", ["0" * 50_000, " " * 50_000 + "x", "(" * 50_000, "1." * 50_000, "b" + "0" * 50_000 + "!"]
)
def test_hostile_descriptions_take_no_time(text):
    started = time.perf_counter()
    with pytest.raises(DofaError):
        read([text, text + "1", text + "2"])
    assert time.perf_counter() - started < 5  # seconds; hours without a bound


def test_every_catalogued_name_and_alias_names_its_own_band():
    for sensor in sensors.catalogue().values():
        for band in sensor.bands:
            for name in (band.name, *band.aliases):
                assert match(name, sensor) == band
    assert np.unique([s.name for s in sensors.catalogue().values()]).size == len(sensors.names())
