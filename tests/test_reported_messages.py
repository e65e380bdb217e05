"""Messages that testers found to mislead: what they name, and the cure."""

import re

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from dofa import open_scene, sensors
from dofa.cli import main
from dofa.errors import DataError
from dofa.pixels import Scaling
from dofa.pixels.scaling import ConstantBandWarning
from dofa.scene.grid import Window
from dofa.scene.scene import open_recipe

SIDE = 96


def noise(bands, dtype="uint16"):
    return np.random.default_rng(0).integers(20, 250, (bands, SIDE, SIDE)).astype(dtype)


def write(path, image, names=(), nodata=None, colours=""):
    """A GeoTIFF, with its folder."""
    path.parent.mkdir(exist_ok=True)
    kind = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": len(image), "dtype": image.dtype}
    place = {"crs": "EPSG:32632", "transform": from_origin(5e5, 58e5, 10, 10)}
    with rasterio.open(path, "w", photometric="minisblack", nodata=nodata, **kind, **place) as file:
        file.write(image)
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)
        if colours:
            file.colorinterp = [ColorInterp[colour] for colour in colours.split()]
    return path


def test_of_many_constant_bands_the_first_are_named_and_all_counted():
    names = sensors.get("enmap").band_names
    flat = Scaling.uniform("reflectance", names, 1e-4).with_stats([0.1] * len(names), [0.0] * len(names), "scene")
    with pytest.warns(ConstantBandWarning) as told:
        flat.normalise(np.zeros((len(names), 1, 1), np.int16))
    text = str(told[0].message)
    assert names[0] in text
    assert str(len(names)) in text
    assert names[-1] not in text
    assert len(text) < 200


def test_sensors_with_as_many_bands_as_the_file_are_proposed_first(tmp_path):
    """NAIP's infrared band is marked alpha in many files: three colours are left of four bands."""
    path = write(
        tmp_path / "naip.tif", noise(4, "uint8"), ["Red", "Green", "Blue", "NIR"], colours="red green blue alpha"
    )
    with pytest.raises(DataError) as caught:
        open_scene(path)
    named = re.findall(r"--sensor ([\w-]+)", str(caught.value))
    assert all(len(sensors.get(name).bands) == 4 for name in named)
    assert "naip-rgbn" in named


@pytest.mark.parametrize(
    ("form", "bands", "sensor"),
    [
        ("T32UQD_20200101T100000_{}_10m.tif", ("B02", "B03", "B04", "B08", "AOT"), "sentinel-2-l2a"),
        ("L2A_T32UQD_20170101T100000_{}_20m.tif", ("B05", "B8A", "B11", "SCL"), "sentinel-2-l2a"),
        ("T32UQD_20200101T100000_{}.tif", ("B01", "B02", "B8A", "B10"), "sentinel-2-l1c"),
    ],
)
def test_band_files_of_sentinel_2_are_recognised_by_their_names(tmp_path, form, bands, sensor):
    for name in bands:
        write(tmp_path / form.format(name), noise(1))
    with open_scene(tmp_path) as scene:
        assert scene.sensor.name == sensor
        assert set(scene.sensor.band_names) == {b for b in bands if b.startswith("B")}
        assert any(warning.startswith("sensor-by-name") for warning in scene.warnings)


def test_a_name_without_a_pixel_size_contradicts_nobody(tmp_path):
    for name in ("B02", "B03"):
        write(tmp_path / f"T32UQD_20200101T100000_{name}.tif", noise(1))
    with open_scene(tmp_path, "sentinel-2-l2a", dn_offset=0, strict=True) as scene:
        assert scene.sensor.name == "sentinel-2-l2a"
    for name in ("B02", "B03"):
        write(tmp_path / "S2B_MSIL2A_20200101T100000" / f"T32UQD_20200101T100000_{name}.tif", noise(1))
    with open_scene(tmp_path / "S2B_MSIL2A_20200101T100000", dn_offset=0) as scene:
        assert scene.sensor.name == "sentinel-2-l2a"


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [(-9999, "float32", "-9999"), (-9999, "int16", "-9999"), (0, "uint16", "0"), (np.nan, "float32", "NaN")],
)
def test_a_file_of_nodata_alone_is_refused_with_its_number(tmp_path, capsys, value, dtype, said, declared):
    image = np.full((2, SIDE, SIDE), value, dtype)
    path = write(tmp_path / "a.tif", image, ["B02", "B03"], nodata=value if declared else None)
    assert main(["info", str(path), "--sensor", "sentinel-2-l2a", "--dn-offset", "0"]) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "not one pixel" in text]
    assert f"({said})" in line
    assert ("--nodata" in line) == (said != "NaN")


def test_empty_bands_of_a_folder_are_named(tmp_path):
    for name in ("B02", "B04"):
        write(tmp_path / f"{name}.tif", noise(1), nodata=0)
    write(tmp_path / "B03.tif", np.full((1, SIDE, SIDE), 65535, np.uint16), nodata=65535)
    with pytest.raises(DataError, match=r"B03.*65535.*--bands") as caught:
        open_scene(tmp_path, "sentinel-2-l2a", dn_offset=0)
    assert "B02" not in str(caught.value)


def masked(tmp_path, classes, nodata, name="clouds.tif", values=(1,), strict=False):
    """A scene and a mask beside it."""
    image = write(tmp_path / "a.tif", noise(2), ["B02", "B03"])
    mask = write(tmp_path / name, classes[None].astype("uint8"), nodata=nodata)
    return open_scene(image, "sentinel-2-l2a", dn_offset=0, mask=mask, mask_values=values, strict=strict)


CLOUDS = np.zeros((SIDE, SIDE), np.uint8)
CLOUDS[:24] = 1
CLOUDS[24:48] = 2


def doubts(scene):
    return [warning for warning in scene.warnings if warning.startswith("mask-nodata")]


def test_a_plain_mask_whose_nodata_is_0_says_what_it_leaves_out(tmp_path):
    with masked(tmp_path, CLOUDS, 0) as scene:
        valid = scene.read(Window(0, 0, SIDE, SIDE))[1]
        (said,) = doubts(scene)
    assert np.array_equal(valid, CLOUDS == 2)  # as GDAL reads it
    assert "50.0%" in said
    with open_recipe(scene.recipe) as again:
        assert np.array_equal(again.read(Window(0, 0, SIDE, SIDE))[1], valid)
    with pytest.raises(DataError, match="mask-nodata"):
        masked(tmp_path, CLOUDS, 0, strict=True)


def test_a_plain_mask_that_leaves_nothing_says_why(tmp_path):
    with pytest.raises(DataError, match=r"clouds\.tif.*50\.0%|50\.0%.*clouds\.tif"):
        masked(tmp_path, CLOUDS, 0, values=(1, 2))


@pytest.mark.parametrize(
    ("name", "nodata", "values"),
    [
        ("clouds.tif", None, (1,)),
        ("clouds.tif", 255, (1,)),
        ("clouds.tif", 0, (0, 1)),  # said to be left out
        ("SCL.tif", 0, None),
        ("SCL.tif", 0, (1,)),
        ("QA_PIXEL.tif", 0, (1,)),
        ("Fmask.tif", 0, None),  # 0 is clear there whatever the file declares
    ],
)
def test_other_masks_are_read_without_a_word(tmp_path, name, nodata, values):
    with masked(tmp_path, CLOUDS, nodata, name, values, strict=True) as scene:
        assert not doubts(scene)
        kept = scene.read(Window(0, 0, SIDE, SIDE))[1]
    assert kept[-1].all() == (name == "Fmask.tif" or nodata in (None, 255))


@pytest.mark.parametrize(
    ("name", "sensor"),
    [
        ("T32UQD_20200101T101010_B02_10m.tif", "sentinel-2-l2a"),
        ("LC08_L2SP_193023_20200101_20200110_02_T1_SR_B4.TIF", "landsat-8-l2-sr"),
    ],
)
def test_a_single_band_file_of_a_product_is_the_product_s(tmp_path, name, sensor):
    """It was told to pass a thermal sensor, the only one in the catalogue with one band."""
    write(tmp_path / name, np.full((1, SIDE, SIDE), 9000, "uint16") + np.arange(SIDE, dtype="uint16"))
    with open_scene(tmp_path / name) as scene:
        assert scene.parts[0].sensor.name == sensor
        assert any(w.startswith("sensor-by-name") for w in scene.warnings)
