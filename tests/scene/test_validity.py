"""Which pixels of a scene are measured: files of one product, undeclared fill values, Fmask, and what embed writes."""

import json

import numpy as np
import pytest

pytest.importorskip("rasterio")

import rasterio

from dofa.errors import DataError, DofaError
from dofa.inference.info import describe
from dofa.inference.scene_statistics import scene_statistics
from dofa.scene.grid import Window
from dofa.scene.scene import open_recipe, open_scene

from .conftest import write_tiff

NAMES = ["B02", "B03", "B04", "B08"]
SIDE = 96


def land(bands=4, side=SIDE, seed=0, dtype="int16"):
    rng = np.random.default_rng(seed)
    return np.clip(rng.gamma(3, 400, (bands, side, side)) + 120, 1, 14_000).astype(dtype)


def whole(scene):
    return Window(0, 0, scene.height, scene.width)


def rows_of(scene):
    """The rows that hold a valid pixel."""
    return np.flatnonzero(scene.read(whole(scene))[1].any(axis=1)).tolist()


def files(folder, array, gsds=None, **profile):
    """One file a band."""
    from rasterio.transform import from_origin

    folder.mkdir(exist_ok=True)
    out = []
    for name, band, gsd in zip(NAMES[: len(array)], array, gsds or [10] * len(array), strict=True):
        step = gsd // 10
        place = from_origin(500000, 5000000, gsd, gsd)
        out.append(write_tiff(folder / f"T33_{name}.tif", band[None, ::step, ::step], transform=place, **profile))
    return out


# -- files of one product ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gsds", [None, [10, 10, 20, 20]])
def test_zero_is_nodata_only_where_all_files_of_a_product_have_it(tmp_path, gsds):
    array = land(dtype="uint16")
    array[:, :20] = 0
    array[2:, 40:60] = 0  # a lake at the longer waves
    paths = files(tmp_path / "product", array, gsds, nodata=0)
    with open_scene(paths, "sentinel-2-l2a", dn_offset=0) as scene:
        (raw,), valid = scene.read(whole(scene))
        assert np.array_equal(valid.any(axis=1), np.arange(SIDE) >= 20)
        assert not raw[2:, 42:58].any()
        with open_recipe(json.loads(json.dumps(scene.recipe))) as again:
            assert np.array_equal(again.read(whole(again))[1], valid)


def test_zero_in_one_file_is_nodata_where_the_offset_makes_it_an_impossible_reflectance(tmp_path):
    array = land(dtype="uint16") + 1000
    array[:, :20] = 0
    array[2, 40:60] = 0  # where the swath of one band ends
    array = array.astype("uint16")
    with open_scene(files(tmp_path / "p", array, nodata=0), "sentinel-2-l2a", dn_offset=-1000) as scene:
        assert rows_of(scene) == [*range(20, 40), *range(60, SIDE)]


def test_another_nodata_value_of_one_file_is_enough(tmp_path):
    array = land()
    array[2, 40:60] = -9999
    with open_scene(files(tmp_path / "p", array, nodata=-9999), "sentinel-2-l2a", dn_offset=0) as scene:
        assert rows_of(scene) == [*range(40), *range(60, SIDE)]
        assert scene.warnings == []


@pytest.mark.parametrize("gsd_m", [20, 30, 5])
def test_alpha_masks_and_undeclared_values_hold_at_another_pixel_size(tmp_path, gsd_m):
    array = np.concatenate([land(), np.full((1, SIDE, SIDE), 32767, "int16")])
    array[4, :, :48] = 0
    array[:4, :24] = -9999
    path = write_tiff(tmp_path / "x.tif", array, names=[*NAMES, "alpha"])
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [*file.colorinterp[:4], rasterio.enums.ColorInterp.alpha]
    with open_scene(path, "sentinel-2-l2a", dn_offset=0, gsd_m=gsd_m) as scene:
        (raw,), valid = scene.read(whole(scene))
        at = 10 / gsd_m
        expected = np.zeros(valid.shape, bool)
        expected[round(24 * at) :, round(48 * at) :] = True
        assert np.array_equal(valid, expected)
        assert raw[:, valid].min() > 0  # nothing of −9999 in a neighbour


# -- fill values that nobody declared ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gsds", [None, [10, 10, 20, 20]])
def test_an_undeclared_fill_value_in_files_of_one_band_is_named_once(tmp_path, gsds):
    array = land()
    array[:, :24] = -9999
    paths = files(tmp_path / "p", array, gsds)
    with open_scene(paths, "sentinel-2-l2a", dn_offset=0) as scene:
        (said,) = [w for w in scene.warnings if w.startswith("undeclared-nodata")]
        assert said.startswith("undeclared-nodata: T33_B02.tif and 3 more: 25% of the pixels looked at are -9999,")
        assert rows_of(scene) == [*range(24, SIDE)]
        with open_recipe(json.loads(json.dumps(scene.recipe))) as again:
            assert rows_of(again) == [*range(24, SIDE)]
            assert again.fingerprint == scene.fingerprint
    with pytest.raises(DataError, match=r"-9999.*undeclared-nodata is an error under strict"):
        open_scene(paths, "sentinel-2-l2a", dn_offset=0, strict=True)
    with open_scene(paths, "sentinel-2-l2a", dn_offset=0, nodata=-9999, strict=True) as scene:
        assert rows_of(scene) == [*range(24, SIDE)]


def test_statistics_and_percentiles_are_those_of_the_measured_pixels(tmp_path):
    array = land()
    array[:, :30] = -9999
    clean, filled = land()[:, 30:], write_tiff(tmp_path / "x.tif", array, names=NAMES)
    with open_scene(filled, "sentinel-2-l2a", dn_offset=0) as scene:
        (scaling,) = scene_statistics([scene])
        known = describe(scene)
    assert scaling.mean == pytest.approx(clean.mean(axis=(1, 2)) * 1e-4, rel=1e-4)
    assert scaling.std == pytest.approx(clean.std(axis=(1, 2)) * 1e-4, rel=1e-4)
    assert known["valid"] == pytest.approx(66 / 96)
    assert known["parts"][0]["nodata"] == [-9999]
    bands = known["parts"][0]["bands"]
    assert [b["p1"] for b in bands] == pytest.approx(np.percentile(clean, 1, axis=(1, 2)) * 1e-4, rel=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_fill_value_that_lay_between_the_windows_seen_first_enters_no_statistics(tmp_path):
    array = land(2, 1200)
    array[:, 250:300, 250:300] = -9999
    path = write_tiff(tmp_path / "x.tif", array, names=NAMES[:2], tiled=True, blockxsize=128, blockysize=128)
    with open_scene(path, "sentinel-2-l2a", dn_offset=0) as scene:
        assert scene.warnings == []
        found = scene_statistics([scene])[0]
        assert found.mean == pytest.approx([b[b != -9999].mean() * 1e-4 for b in array], rel=1e-3)
    with open_scene(path, "sentinel-2-l2a", dn_offset=0, nodata=-9999) as scene:
        assert scene_statistics([scene])[0].mean == pytest.approx(
            [b[b != -9999].mean() * 1e-4 for b in array], rel=1e-3
        )


def test_what_info_prints_is_json_whatever_the_nodata_value(tmp_path):
    array = land(dtype="float32")
    array[:, :10] = np.nan
    with open_scene(write_tiff(tmp_path / "x.tif", array, names=NAMES, nodata=np.nan), "sentinel-2-l2a") as scene:
        text = json.dumps(describe(scene), allow_nan=False)
    assert json.loads(text)["parts"][0]["nodata"] == ["nan"]


# -- Fmask ------------------------------------------------------------------------------------------------------------

HLS = {"clear": 64, "water": 32, "cloud": 66, "adjacent": 68, "shadow": 72, "snow": 80, "fill": 255, "nought": 0}
FMASK4 = {"clear": 0, "water": 1, "shadow": 2, "snow": 3, "cloud": 4, "fill": 255}
HLS_NAMES = ["B02", "B03", "B04", "B8A"]


def classes_of(numbers, dtype):
    out = np.zeros((SIDE, SIDE), dtype)
    for i, number in enumerate(numbers):
        out[10 * i : 10 * i + 10] = number
    out[10 * len(numbers) :] = numbers[0]
    return out


def lost(codes, scene):
    """Names of the classes that are left out wholly."""
    valid = scene.read(whole(scene))[1]
    return {name for i, name in enumerate(codes) if not valid[10 * i : 10 * i + 10].any()}


@pytest.mark.parametrize("where", ["stack", "file", "file named HLS", "folder"])
@pytest.mark.parametrize("nodata", [None, -9999, 0])
def test_hls_codes_fmask_as_bits(tmp_path, where, nodata):
    array, codes = land(), classes_of(list(HLS.values()), "int16")
    sensor, mask = "hls-s30", "Fmask"
    if where == "stack":
        stack = np.concatenate([array, codes[None]])
        path = write_tiff(tmp_path / "x.tif", stack, names=[*HLS_NAMES, "Fmask"], nodata=nodata)
    elif where == "folder":
        path = tmp_path / "folder"
        path.mkdir()
        stem = "HLS.S30.T33UXP.2023001T000000.v2.0"
        for name, band in zip(HLS_NAMES, array, strict=True):
            write_tiff(path / f"{stem}.{name}.tif", band[None], nodata=nodata)
        write_tiff(path / f"{stem}.Fmask.tif", codes[None].astype("uint8"), nodata=255)
        sensor = None
    else:
        path = write_tiff(tmp_path / "x.tif", array, names=HLS_NAMES, nodata=nodata)
        name = "Fmask.tif" if where == "file" else "HLS.S30.T33UXP.2023001T000000.v2.0.Fmask.tif"
        mask = write_tiff(tmp_path / name, codes[None].astype("uint8"), nodata=None if nodata == -9999 else 255)

    def left_out(values=None):
        with open_scene(path, sensor, mask=mask, mask_values=values) as scene:
            found = lost(HLS, scene)
            with open_recipe(json.loads(json.dumps(scene.recipe))) as again:
                assert lost(HLS, again) == found
            return found

    assert left_out() == {"cloud", "adjacent", "shadow", "fill"}
    assert left_out(["cloud"]) == {"cloud", "fill"}
    assert left_out(["near-cloud"]) == left_out(["adjacent"]) == {"adjacent", "fill"}
    assert left_out(["snow", "water"]) == {"snow", "water", "fill"}
    assert left_out(["fill"]) == {"fill"}
    assert left_out([66]) == {"cloud", "fill"}


@pytest.mark.parametrize("nodata", [None, 0, np.nan, -9999])
def test_fmask_among_floats(tmp_path, nodata):
    for codes, sensor, names, bad in (
        (HLS, "hls-s30", HLS_NAMES, {"cloud", "adjacent", "shadow", "fill"}),
        (FMASK4, "landsat-8-l2-sr", ["B2", "B3", "B4", "B5"], {"shadow", "cloud", "fill"}),
    ):
        stack = np.concatenate([land(), classes_of(list(codes.values()), "int16")[None]]).astype("float32")
        path = write_tiff(tmp_path / "x.tif", stack, names=[*names, "Fmask"], nodata=nodata)
        with open_scene(path, sensor, mask="Fmask") as scene:
            assert lost(codes, scene) == bad


def test_an_fmask_of_bits_without_its_sensor_is_named(tmp_path):
    stack = np.concatenate([land(), classes_of(list(HLS.values()), "int16")[None]])
    path = write_tiff(tmp_path / "x.tif", stack, names=["B02", "B03", "B04", "B8A", "Fmask"])
    with open_scene(path, "sentinel-2-l2a", dn_offset=0, mask="Fmask") as scene:
        assert any(w.startswith("mask-classes: x.tif: its Fmask holds 32, 64, 66, 68,") for w in scene.warnings)
    with pytest.raises(DataError, match="mask-classes is an error under strict"):
        open_scene(path, "sentinel-2-l2a", dn_offset=0, mask="Fmask", strict=True)
    with open_scene(path, "sentinel-2-l2a", dn_offset=0, mask="Fmask", mask_values=[32, 64, 66, 68, 72, 80]) as scene:
        assert not any(w.startswith("mask-classes") for w in scene.warnings)


@pytest.mark.parametrize("where", ["stack", "file"])
@pytest.mark.parametrize("nodata", [None, 0, -9999])
def test_fmask_of_other_sensors_is_numbers(tmp_path, where, nodata):
    array, codes = land(), classes_of(list(FMASK4.values()), "int16")
    names, mask = ["B2", "B3", "B4", "B5"], "fmask"
    if where == "stack":
        stack = np.concatenate([array, codes[None]])
        path = write_tiff(tmp_path / "x.tif", stack, names=[*names, "Fmask"], nodata=nodata)
    else:
        path = write_tiff(tmp_path / "x.tif", array, names=names, nodata=nodata)
        mask = write_tiff(tmp_path / "LC08_044034_20140318_Fmask4.tif", codes[None].astype("uint8"), nodata=255)

    def left_out(values=None):
        with open_scene(path, "landsat-8-l2-sr", mask=mask, mask_values=values) as scene:
            return lost(FMASK4, scene)

    assert left_out() == {"shadow", "cloud", "fill"}
    assert left_out(["snow"]) == {"snow", "fill"}
    assert left_out(["clear"]) == {"clear", "fill"}
    with pytest.raises(DofaError, match="has no class 'adjacent'"):
        left_out(["adjacent"])


# -- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["alpha", "undeclared", "masks", "zeros"])
def test_embed_is_nan_where_nothing_is_measured_and_nowhere_else(tmp_path, small_model, kind):
    from dofa.inference.features import embed

    array = land()
    hole = np.zeros((SIDE, SIDE), bool)
    hole[:32, :48] = True
    names = list(NAMES)
    if kind == "alpha":
        array = np.concatenate([np.where(hole, 0, 32767).astype("int16")[None], array])
        names = ["alpha", *NAMES]
    elif kind == "undeclared":
        array[:, hole] = -9999
    elif kind == "zeros":
        array[:, hole] = 0
        array[3, 60:80] = 0
    path = write_tiff(tmp_path / "x.tif", array, names=names, nodata=0 if kind == "zeros" else None)
    if kind == "alpha":
        with rasterio.open(path, "r+") as file:
            file.colorinterp = [rasterio.enums.ColorInterp.alpha, *file.colorinterp[1:]]
    if kind == "masks":
        with rasterio.open(path, "r+") as file:
            file.write_mask(~hole)
    one = embed(str(path), small_model, sensor="sentinel-2-l2a", dn_offset=0, stats="scene", precision="float32")
    cells = hole.reshape(SIDE // 8, 8, SIDE // 8, 8).all((1, 3))
    found = one.array()
    assert np.array_equal(np.isnan(found).all(axis=0), cells)
    assert np.array_equal(np.isnan(found).any(axis=0), cells)
