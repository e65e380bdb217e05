"""Scenes from files: every band in its place on one grid, any window equal to its part of the whole, no guesses."""

import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dofa.errors import ConfigError, DataError, DofaError

pytest.importorskip("rasterio")

import rasterio
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.warp import reproject

from dofa.raster import Raster
from dofa.scene import layers
from dofa.scene.grid import Axis, Window, resample
from dofa.scene.scene import Scene, open_recipe, open_scene

from .conftest import write_tiff

CORNER = (500000, 5000000)


def band_file(path: Path, image, gsd: float, corner=CORNER, crs="EPSG:32633", **profile) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.asarray(image)
    image = image if image.ndim == 3 else image[None]
    return write_tiff(path, image, crs, transform=from_origin(*corner, gsd, gsd), **profile)


def noise(shape, seed=0, low=1000, high=4000):
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.uint16)


def whole(scene: Scene) -> Window:
    return Window(0, 0, scene.height, scene.width)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> list[str]:
    """Bands of 10, 20 and 60 m, with nodata, a border of another, and a grid that begins elsewhere."""
    folder = tmp_path_factory.mktemp("mixed")
    b02, b05, b01, b08 = noise((90, 120), 1), noise((45, 60), 2), noise((15, 20), 3), noise((90, 120), 4)
    b02[20:30, 50:70] = 7
    b05[30:33, 5:9] = 7
    b01[12, 3] = 7
    scl = np.full((45, 60), 4, np.uint8)
    scl[10:14, 40:46] = 9
    return [
        str(band_file(folder / "T33_B02_10m.tif", b02, 10, nodata=7, tiled=True, blockxsize=32, blockysize=16)),
        str(band_file(folder / "T33_B05_20m.tif", b05, 20, nodata=7)),
        str(band_file(folder / "T33_B01_60m.tif", b01, 60, nodata=7)),
        str(band_file(folder / "T33_B08_10m.tif", b08, 10, corner=(500030, 4999980), nodata=7)),
        str(band_file(folder / "T33_SCL_20m.tif", scl, 20)),
    ]


@pytest.fixture(scope="module")
def s2(mixed):
    with open_scene(mixed, "sentinel-2-l2a", mask="SCL", dn_offset=0) as scene:
        yield scene


@pytest.fixture(scope="module")
def coarse(mixed):
    with open_scene(mixed, "sentinel-2-l2a", mask="SCL", dn_offset=0, gsd_m=27) as scene:
        yield scene


# -- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["s2", "coarse"])
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_window_equals_the_same_part_of_the_whole_exactly(which, request, data):
    scene = request.getfixturevalue(which)
    (expected,), valid = scene.read(whole(scene))
    row, col = data.draw(st.integers(-40, scene.height + 10)), data.draw(st.integers(-40, scene.width + 10))
    window = Window(row, col, data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70)))
    padded = np.pad(expected, ((0, 0), (200, 200), (200, 200)))[:, row + 200 :, col + 200 :]
    good = np.pad(valid, 200)[row + 200 :, col + 200 :]
    (raw,), known = scene.read(window)
    assert raw.dtype == expected.dtype
    assert np.array_equal(raw, padded[:, : window.height, : window.width])
    assert np.array_equal(known, good[: window.height, : window.width])


def test_a_single_file_is_read_as_it_is(tmp_path):
    image = noise((3, 70, 50))
    path = band_file(tmp_path / "a.tif", image, 10, nodata=0, names=["B02", "B03", "B04"])
    with open_scene(path, "sentinel-2-l2a", dn_offset=0) as scene:
        (raw,), valid = scene.read(whole(scene))
        assert np.array_equal(raw, image)
        assert valid.all()
        assert scene.crs.to_epsg() == 32633
        assert tuple(scene.transform)[:6] == (10, 0, 500000, 0, -10, 5000000)
        assert (scene.name, scene.gsd_m, scene.sensor.name) == ("a.tif", 10, "sentinel-2-l2a")


def test_threads_read_what_one_reads(s2):
    windows = [Window(r, c, 33, 41) for r in range(-10, 80, 13) for c in range(-10, 110, 17)]
    alone = [s2.read(w) for w in windows]
    with ThreadPoolExecutor(6) as pool:
        for (parts, valid), (expected, good) in zip(pool.map(s2.read, windows), alone, strict=True):
            assert np.array_equal(parts[0], expected[0])
            assert np.array_equal(valid, good)


# -- resampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gsd", "scale"), [(20, 2), (60, 6), (15, 1.5)])
def test_towards_a_finer_grid_it_is_the_bilinear_of_gdal(tmp_path, gsd, scale):
    image = np.random.default_rng(0).normal(100, 30, (40, 40)).astype(np.float32)
    fine = np.zeros((int(40 * scale), int(40 * scale)), np.float32) + 1
    a, b = band_file(tmp_path / "a_VH.tif", fine, 10), band_file(tmp_path / "a_VV.tif", image, gsd)
    with open_scene([a, b], "sentinel-1-rtc", nodata=-1) as scene, rasterio.open(b) as file:
        (raw,), valid = scene.read(whole(scene))
        reference = np.zeros((scene.height, scene.width), np.float32)
        reproject(
            rasterio.band(file, 1), reference, dst_transform=scene.transform, dst_crs=scene.crs,
            resampling=Resampling.bilinear, tolerance=0,
        )  # fmt: skip
    assert valid.all()
    assert np.abs(raw[scene.sensor.index(["VV"])[0]] - reference).max() < 1e-3


@given(st.floats(0.2, 7), st.floats(-3, 3), st.integers(10, 40))
@settings(max_examples=80, deadline=None)
def test_a_plane_stays_that_plane_at_any_scale(scale, shift, length):
    """What is linear in space is so after resampling: nothing is moved by a part of a pixel."""
    axis = Axis(scale, shift, length)
    count = max(1, int((length - shift) / scale))
    index, weight = axis.taps(0, count)
    ramp = (np.arange(length) + 0.5)[None, None, :].astype(np.float64)
    one = (np.zeros((1, 1), np.int64), np.ones((1, 1)))
    values, measured = resample(ramp, np.ones((1, length), bool), one, (index, weight))
    centre, reach = axis.centres(0, count), max(1.0, scale)
    inner = (centre > reach + 0.5) & (centre < length - reach - 0.5)
    # Wider triangles are sampled at whole pixels: their centre of mass may lie a little off, never by the scale.
    allowed = 1e-9 if scale <= 1 else 0.1
    assert np.abs(values[0, 0][inner] - centre[inner]).max(initial=0) < allowed
    assert measured[0][inner].all()


def test_a_coarser_grid_averages_rather_than_picks(tmp_path):
    image = np.random.default_rng(0).normal(0, 1, (400, 400)).astype(np.float32)
    path = band_file(tmp_path / "a.tif", np.stack([image, image]) + 50, 10, names=["VV", "VH"])
    with open_scene(path, "sentinel-1-rtc", gsd_m=40) as scene:
        (raw,), valid = scene.read(whole(scene))
        assert (scene.width, scene.height, scene.gsd_m) == (100, 100, 40)
        assert valid.all()
        assert raw.std() < 0.25  # of white noise a triangle over 8 pixels leaves 1/6, picking leaves all
        assert abs(raw.mean() - 50 - image.mean()) < 0.01


def test_much_coarser_grids_are_read_in_strips_and_equal_the_whole(tmp_path, monkeypatch):
    path = band_file(tmp_path / "a.tif", noise((3, 200, 240)), 10, names=["B02", "B03", "B04"])
    with open_scene(path, "sentinel-2-l2a", dn_offset=0, gsd_m=70) as scene:
        expected, valid = scene.read(whole(scene))
        largest, read = [], Raster.read_apart

        def seen(raster, window):
            (top, bottom), (left, right) = window
            largest.append((bottom - top) * (right - left))
            return read(raster, window)

        monkeypatch.setattr(layers, "AT_ONCE", 20_000)
        monkeypatch.setattr(Raster, "read_apart", seen)
        found, good = scene.read(whole(scene))
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(good, valid)
    assert max(largest) * 6 < 3 * 20_000  # a triangle reaches over its strip


def test_missing_numbers_do_not_bleed_into_their_neighbours(tmp_path):
    fine = np.full((40, 40), 1.0, np.float32)
    coarse = np.full((20, 20), 7.0, np.float32)
    coarse[8, 9] = -9999
    a = band_file(tmp_path / "s_VV.tif", fine, 10, nodata=-9999)
    b = band_file(tmp_path / "s_VH.tif", coarse, 20, nodata=-9999)
    with open_scene([a, b], "sentinel-1-rtc") as scene:
        (raw,), valid = scene.read(whole(scene))
    assert np.abs(raw[1][valid] - 7).max() < 1e-5
    lost = np.argwhere(~valid)
    assert lost.min(0).tolist() == [16, 18]
    assert lost.max(0).tolist() == [17, 19]


def test_bands_on_shifted_grids_lie_where_they_belong(tmp_path):
    ground = noise((60, 60), 5)
    a = band_file(tmp_path / "s_B02.tif", ground, 10)
    b = band_file(tmp_path / "s_B03.tif", ground[7:50, 11:45], 10, corner=(500110, 4999930))
    with open_scene([a, b], "sentinel-2-l2a", dn_offset=0) as scene:
        (raw,), valid = scene.read(whole(scene))
    assert np.array_equal(raw[0][valid], raw[1][valid])
    assert valid.sum() == 43 * 34
    assert valid[7:50, 11:45].all()


def test_classes_are_taken_nearest_and_join_the_validity(s2, mixed):
    with open_scene(mixed, "sentinel-2-l2a", dn_offset=0) as plain:
        without, left = plain.read(whole(plain))[1], s2.read(whole(s2))[1]
    cloud = np.zeros(left.shape, bool)
    cloud[20:28, 80:92] = True
    assert np.array_equal(left, without & ~cloud)


# -- bands ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "sensor", "bands"),
    [
        (["T33UUP_20230613T101031_B04_10m", "T33UUP_20230613T101031_B8A_20m"], "sentinel-2-l2a", ("B04", "B8A")),
        (["LC08_L2SP_022039_20210101_02_T1_SR_B4", "LC08_L2SP_022039_20210101_02_T1_SR_B5"], None, ("B4", "B5")),
        (["HLS.S30.T15RYP.2021001T165701.v2.0.B8A", "HLS.S30.T15RYP.2021001T165701.v2.0.B04"], None, ("B04", "B8A")),
        (["x_red", "x_nir"], "planetscope-4", ("red", "nir")),
        (["s1a-iw-grd-vh-20200607t010800-002", "s1a-iw-grd-vv-20200607t010800-001"], "sentinel-1-grd", ("VV", "VH")),
        (["B8", "B2"], "sentinel-2-l1c", ("B02", "B08")),
    ],
)
def test_files_tell_their_bands_by_name_in_the_products_order(tmp_path, names, sensor, bands):
    kind = np.float32 if sensor == "sentinel-1-grd" else np.uint16
    values = {name: 1000 + 100 * i for i, name in enumerate(sorted(names))}
    paths = [band_file(tmp_path / f"{n}.tif", noise((40, 40), v).astype(kind), 30) for n, v in values.items()]
    with open_scene(paths, sensor, nodata=0) as scene:
        assert scene.sensor.band_names == bands
        (raw,), _ = scene.read(whole(scene))
        by_band = {f.bands[0]: Path(f.href).stem for f in scene.parts[0].files}
        for i, band in enumerate(bands):
            assert np.array_equal(raw[i], noise((40, 40), values[by_band[band]]).astype(kind))


def test_descriptions_and_wavelength_tags_come_before_file_names(tmp_path):
    image = (noise((30, 30)) % 250).astype(np.uint8)  # 8-bit numbers speak for themselves
    a = band_file(tmp_path / "first_B12.tif", image, 10, names=["B02"])
    b = band_file(tmp_path / "second.tif", image, 10)
    with rasterio.open(b, "r+") as file:
        file.update_tags(1, wavelength="560", wavelength_units="nm")
    with open_scene([a], "sentinel-2-l2a", dn_offset=0) as scene:
        assert scene.sensor.band_names == ("B02",)
    with rasterio.open(a, "r+") as file:
        file.update_tags(1, wavelength="0.4924", wavelength_units="um")
    with open_scene([a, b], dn_offset=0) as scene:
        assert [round(band.wavelength_um, 3) for band in scene.bands] == [0.492, 0.56]


def test_the_users_bands_override_names_and_keep_the_users_order(tmp_path):
    paths = [band_file(tmp_path / f"{n}.tif", noise((30, 30), i), 10) for i, n in enumerate(["B02", "B03", "x"])]
    with open_scene(paths, "sentinel-2-l2a", bands=["B11", None, "B04"], dn_offset=0) as scene:
        assert scene.sensor.band_names == ("B11", "B04")
        (raw,), _ = scene.read(whole(scene))
        assert np.array_equal(raw, np.stack([noise((30, 30), 0), noise((30, 30), 2)]))


def test_a_product_folder_opens_with_its_bands_and_its_quality_band(tmp_path):
    stem = "LC09_L2SP_022039_20220101_20220103_02_T1"
    folder = tmp_path / stem
    qa = np.full((40, 40), 21824, np.uint16)  # clear
    qa[:10] = 22280  # cloud, high confidence
    for i in range(1, 8):
        band_file(folder / f"{stem}_SR_B{i}.TIF", noise((40, 40), i, 7500, 15000), 30, nodata=0)
    band_file(folder / f"{stem}_QA_PIXEL.TIF", qa, 30, nodata=1)
    band_file(folder / f"{stem}_ST_EMIS.TIF", noise((40, 40)), 30)
    (folder / f"{stem}_MTL.txt").write_text("GROUP = LANDSAT_METADATA_FILE")
    with open_scene(folder, mask="QA_PIXEL") as scene:
        assert scene.sensor.name == "landsat-9-l2-sr"
        assert len(scene.bands) == 7
        assert not scene.read(whole(scene))[1][:10].any()
        assert scene.read(whole(scene))[1][10:].all()
        assert any("ST_EMIS" in w for w in scene.warnings)
    with open_scene(folder, mask="QA_PIXEL", mask_values=["snow", "shadow"]) as scene:
        assert scene.read(whole(scene))[1].all()


def test_several_sensors_of_one_place_are_stacked(tmp_path):
    radar = np.random.default_rng(0).normal(-12, 3, (2, 50, 50)).astype(np.float32)
    optical = noise((4, 100, 100))
    a = band_file(tmp_path / "s1.tif", radar, 20, names=["VV", "VH"])
    b = band_file(tmp_path / "s2.tif", optical, 10, names=["B02", "B03", "B04", "B08"])
    with open_scene([f"sentinel-1-grd={a}", f"sentinel-2-l2a={b}"], dn_offset=0, gsd_m=20) as scene:
        assert [p.sensor.name for p in scene.parts] == ["sentinel-1-grd", "sentinel-2-l2a"]
        parts, _ = scene.read(whole(scene))
        assert [(p.shape, p.dtype) for p in parts] == [((2, 50, 50), np.float32), ((4, 50, 50), np.uint16)]
        assert np.array_equal(parts[0], radar)
        assert scene.band_names == ("VV", "VH", "B02", "B03", "B04", "B08")
        physical, _ = scene.read_physical(whole(scene))
        assert physical.shape == (6, 50, 50)
        assert scene.pixel_bytes == 2 * 4 + 4 * 2
        with pytest.raises(ConfigError, match="stacks sentinel-1-grd, sentinel-2-l2a"):
            _ = scene.sensor
    with open_scene([a, b], ["sentinel-1-grd", "sentinel-2-l2a"], dn_offset=0) as scene:
        assert (scene.height, scene.gsd_m) == (100, 10)
    c = band_file(tmp_path / "l8.tif", noise((3, 100, 100), 7), 10, names=["B2", "B3", "B4"])
    with open_scene([b, c], ["sentinel-2-l2a", "hls-l30"], dn_offset=0) as scene:
        assert scene.band_names[0] == "sentinel-2-l2a:B02"
        assert scene.band_names[-1] == "hls-l30:B04"


def test_bands_of_several_files_are_put_in_the_products_order(tmp_path):
    a = band_file(tmp_path / "a.tif", noise((2, 30, 30), 0), 10, names=["B08", "B02"])
    b = band_file(tmp_path / "b.tif", noise((30, 30), 1), 10, names=["B03"])
    with open_scene([a, b], "sentinel-2-l2a", dn_offset=0) as scene:
        assert scene.sensor.band_names == ("B02", "B03", "B08")
        (raw,), _ = scene.read(whole(scene))
        assert np.array_equal(raw, [noise((2, 30, 30), 0)[1], noise((30, 30), 1), noise((2, 30, 30), 0)[0]])


# -- validity ---------------------------------------------------------------------------------------------------------


def bordered(bands, dtype=np.uint16):
    image = noise((bands, 80, 80), high=4000 if dtype != np.uint8 else 1200)
    image = (image % 250 + 1 if dtype == np.uint8 else image).astype(dtype)
    rows, cols = np.mgrid[:80, :80]
    border = rows + cols < 60
    image[:, border] = 0
    return image, border


@pytest.mark.parametrize(("bands", "dtype"), [(3, np.uint16), (1, np.float32), (3, np.uint8)])
def test_a_border_of_zeros_without_any_word_is_not_measured(tmp_path, bands, dtype):
    image, border = bordered(bands, dtype)
    names = {1: ["VV"], 3: ["B02", "B03", "B04"]}[bands]
    sensor = {1: "sentinel-1-rtc", 3: "sentinel-2-l2a"}[bands] if dtype != np.uint8 else "rgb-aerial"
    path = band_file(tmp_path / "a.tif", image, 10, names=names if dtype != np.uint8 else ["R", "G", "B"])
    with open_scene(path, sensor) as scene:
        assert np.array_equal(scene.read(whole(scene))[1], ~border)
        assert any(w.startswith("zero-border: a.tif") for w in scene.warnings)


def test_a_zero_is_a_number_where_the_user_names_another_a_mask_speaks_or_no_corner_is_empty(tmp_path):
    image, border = bordered(3)
    names = ["B02", "B03", "B04"]
    told = band_file(tmp_path / "a.tif", image, 10, names=names)
    picture = band_file(tmp_path / "p.tif", (image % 250).astype(np.uint8), 10, nodata=251)
    masked = band_file(tmp_path / "m.tif", image, 10, names=names)
    with rasterio.open(masked, "r+") as file:
        file.write_mask(np.ones(border.shape, bool))
    image[:] = noise(image.shape)
    image[:, 30:40, 30:40] = 0
    inner = band_file(tmp_path / "b.tif", image, 10, names=names)
    dark, _ = bordered(1, np.uint8)
    one = band_file(tmp_path / "c.tif", dark, 10, names=["VV"])
    for path, sensor, nodata in (
        (told, "sentinel-2-l2a", 65535),
        (masked, "sentinel-2-l2a", None),
        (picture, "rgb-aerial", None),
        (inner, "sentinel-2-l2a", None),
        (one, "sentinel-1-satlas", None),
    ):
        with open_scene(path, sensor, nodata=nodata) as scene:
            assert scene.read(whole(scene))[1].all()


@pytest.mark.parametrize(
    ("dtype", "nodata", "sensor", "names"),
    [
        (np.float32, np.nan, "sentinel-1-rtc", ["VV", "VH"]),
        (np.float32, -9999, "sentinel-1-grd", ["VV", "VH"]),
        (np.uint16, 65535, "sentinel-2-l2a", ["B02", "B03", "B04"]),
        (np.int16, -32768, "sentinel-2-l2a", ["B02", "B03", "B04"]),
    ],
)
def test_zeros_of_a_border_are_not_measured_where_another_nodata_value_is_tagged(
    tmp_path, dtype, nodata, sensor, names
):
    image, border = bordered(len(names), dtype)
    image[0, 70:75, 70:75] = nodata
    path = band_file(tmp_path / "a.tif", image, 10, names=names, nodata=nodata)
    expected = ~border
    expected[70:75, 70:75] = False
    with open_scene(path, sensor, dn_offset=0 if "2" in sensor else None) as scene:
        assert np.array_equal(scene.read(whole(scene))[1], expected)
        assert any(w.startswith("zero-border: a.tif") for w in scene.warnings)
        with open_recipe(scene.recipe) as again:
            assert np.array_equal(again.read(whole(again))[1], expected)


@pytest.mark.parametrize("side", ["top", "bottom", "left", "right"])
def test_a_narrow_border_of_zeros_along_one_side_is_not_measured(tmp_path, side):
    image = np.random.default_rng(0).normal(-12, 3, (2, 80, 80)).astype(np.float32)
    border = np.zeros((80, 80), bool)
    border[{"top": np.s_[:5], "bottom": np.s_[-5:], "left": np.s_[:, :5], "right": np.s_[:, -5:]}[side]] = True
    image[:, border], image[:, 40, 40] = 0, np.nan
    path = band_file(tmp_path / "a.tif", image, 10, names=["VV", "VH"], nodata=np.nan)
    with open_scene(path, "sentinel-1-grd") as scene:
        valid = scene.read(whole(scene))[1]
        assert np.flatnonzero(valid != ~border).tolist() == [40 * 80 + 40]


def test_zeros_beside_a_border_in_coarser_files_do_not_darken_what_is_measured(tmp_path):
    fine, border = bordered(1)
    fine[fine > 0] = 2000
    coarse = np.full((40, 40), 3000, np.uint16)
    coarse[border.reshape(40, 2, 40, 2).all((1, 3))] = 0
    a = band_file(tmp_path / "s_B02.tif", fine[0], 10)
    b = band_file(tmp_path / "s_B05.tif", coarse, 20)
    with open_scene([a, b], "sentinel-2-l2a", dn_offset=0) as scene:
        (raw,), valid = scene.read(whole(scene))
    measured = fine[0] > 0
    assert np.array_equal(valid & measured, measured)
    assert set(raw[1][measured].tolist()) == {3000}


@pytest.mark.parametrize("kind", ["empty", "masked"])
def test_a_scene_without_one_measurement_is_refused(tmp_path, kind):
    image = np.zeros((2, 600, 40), np.uint16) if kind == "empty" else noise((2, 600, 40))
    path = band_file(tmp_path / "a.tif", image, 10, names=["B02", "B03"], nodata=0)
    scl = band_file(tmp_path / "SCL.tif", np.full((600, 40), 9, np.uint8), 10)
    with pytest.raises(DataError, match=r"a\.tif: (not one pixel is measured|the mask leaves out every pixel)"):
        open_scene(path, "sentinel-2-l2a", dn_offset=0, mask=scl if kind == "masked" else None)


def test_a_scene_measured_in_one_far_corner_opens(tmp_path):
    image = np.zeros((2, 700, 900), np.uint16)
    image[:, 3:5, 890:] = 2000
    path = band_file(
        tmp_path / "a.tif", image, 10, names=["B02", "B03"], nodata=0, tiled=True, blockxsize=64, blockysize=64
    )
    with open_scene(path, "sentinel-2-l2a", dn_offset=0) as scene:
        assert scene.read(whole(scene))[1].sum() == 20


def test_bits_of_a_quality_band_are_classes_and_numbers_are_whole_pixels(tmp_path):
    image = noise((2, 10, 10))
    path = band_file(tmp_path / "a.tif", image, 30, names=["B2", "B3"])
    qa = np.zeros((10, 10), np.uint16)
    qa[0], qa[1], qa[2] = 1 << 3, (1 << 3) | (1 << 7), 1 << 5
    mask = band_file(tmp_path / "x_QA_PIXEL.tif", qa, 30)

    def rows(values):
        with open_scene(path, "landsat-8-l2-sr", mask=mask, mask_values=values) as scene:
            return [i for i in range(10) if not scene.read(whole(scene))[1][i].any()]

    assert rows(None) == [0, 1]
    assert rows(["cloud", "snow"]) == [0, 1, 2]
    assert rows([8]) == [0]


def test_a_class_band_inside_the_file_masks_by_its_name(tmp_path):
    image = noise((3, 20, 20))
    image[2], image[2, :5] = 4, 8
    path = band_file(tmp_path / "a.tif", image, 10, names=["B02", "B03", "SCL"])
    with open_scene(path, "sentinel-2-l2a", dn_offset=0, mask="SCL") as scene:
        assert scene.sensor.band_names == ("B02", "B03")
        assert np.array_equal(scene.read(whole(scene))[1].any(axis=1), np.arange(20) >= 5)


def test_pixels_without_a_class_are_left_out_with_the_classes(tmp_path):
    path = band_file(tmp_path / "a.tif", noise((2, 20, 20)), 10, names=["B02", "B03"])
    classes = np.zeros((20, 20), np.uint8)
    classes[0], classes[1] = 200, 3
    mask = band_file(tmp_path / "clouds.tif", classes, 10, nodata=200)
    half = band_file(tmp_path / "half.tif", np.zeros((10, 20), np.uint8), 10)
    with open_scene(path, "sentinel-2-l2a", dn_offset=0, mask=mask, mask_values=[3]) as scene:
        assert np.array_equal(scene.read(whole(scene))[1].any(axis=1), np.arange(20) >= 2)
    with open_scene(path, "sentinel-2-l2a", dn_offset=0, mask=half, mask_values=[3]) as scene:
        assert np.array_equal(scene.read(whole(scene))[1].any(axis=1), np.arange(20) < 10)


def test_8_bit_files_miss_a_pixel_where_all_bands_do_in_one_file_or_in_three(tmp_path):
    image = noise((3, 40, 40)).astype(np.uint8)
    image[:, :9] = 0
    image[0, 20:] = 0  # black in red alone
    one = band_file(tmp_path / "a.tif", image, 1, names=["R", "G", "B"], nodata=0)
    three = [band_file(tmp_path / f"x_{n}.tif", band, 1, nodata=0) for n, band in zip("RGB", image, strict=True)]
    with open_scene(one, "rgb-aerial") as a, open_scene(three, "rgb-aerial") as b:
        assert np.array_equal(a.read(whole(a))[1], b.read(whole(b))[1])
        assert np.array_equal(a.read(whole(a))[1], image.any(axis=0))


# -- opening again ----------------------------------------------------------------------------------------------------


def test_a_scene_travels_as_its_recipe(s2, coarse):
    for scene in (s2, coarse):
        again = pickle.loads(pickle.dumps(scene))
        with again, open_recipe(json.loads(json.dumps(scene.recipe))) as third:
            for other in (again, third):
                assert np.array_equal(other.read(whole(scene))[0][0], scene.read(whole(scene))[0][0])
                assert np.array_equal(other.read(whole(scene))[1], scene.read(whole(scene))[1])
                assert other.fingerprint == scene.fingerprint
                assert (other.parts, other.warnings, other.grid) == (scene.parts, scene.warnings, scene.grid)


def test_a_recipe_of_a_newer_version_is_refused(s2):
    with pytest.raises(DataError, match="recipe of version 99"):
        open_recipe({**s2.recipe, "version": 99})


def test_the_fingerprint_changes_with_files_and_settings_only(tmp_path):
    path = band_file(tmp_path / "a.tif", noise((2, 40, 40)), 10, names=["B02", "B03"])

    def fingerprint(**words):
        with open_scene(path, "sentinel-2-l2a", **{"dn_offset": 0, **words}) as scene:
            return scene.fingerprint

    first = fingerprint()
    assert fingerprint() == first
    others = {fingerprint(dn_offset=-1000), fingerprint(gsd_m=20), fingerprint(nodata=7)}
    assert len(others | {first}) == 4
    band_file(path, noise((2, 40, 40), 1), 10, names=["B02", "B03"])
    assert fingerprint() != first


def test_opening_a_recipe_decodes_no_pixel(tmp_path, monkeypatch):
    path = band_file(tmp_path / "a.tif", noise((2, 40, 40)), 10, names=["B02", "B03"])
    with open_scene(path, "sentinel-2-l2a", dn_offset=0) as scene:
        recipe = scene.recipe
    monkeypatch.setattr(Raster, "_decode", lambda *_: pytest.fail("pixels were read"))
    open_recipe(recipe).close()


# -- bad input --------------------------------------------------------------------------------------------------------


def two(tmp_path, **second):
    a = band_file(tmp_path / "one_B02.tif", noise((40, 40)), 10)
    b = band_file(tmp_path / "two_B03.tif", noise((40, 40)), 10, **second)
    return [a, b]


def turned(tmp_path):
    a = band_file(tmp_path / "one_B02.tif", noise((40, 40)), 10)
    turn = from_origin(*CORNER, 10, 10) @ rasterio.Affine.rotation(20)
    b = write_tiff(tmp_path / "two_B03.tif", noise((1, 40, 40)), "EPSG:32633", transform=turn)
    return [a, b]


def truncated(tmp_path, keep, **profile):
    a, b = two(tmp_path)
    b = band_file(b, noise((300, 300)), 10, **profile)
    b.write_bytes(b.read_bytes()[:keep])
    return [a, b]


def one_more(tmp_path, name):
    return [*two(tmp_path), band_file(tmp_path / name, noise((40, 40)), 10)]


BAD = {
    "mixed crs": (lambda t: two(t, crs="EPSG:32634"), {}, r"two_B03\.tif lies in EPSG:32634, one_B02.*32633.*gdalwarp"),
    "one without crs": (lambda t: two(t, crs=None), {}, r"two_B03\.tif lies in no reference system"),
    "elsewhere": (lambda t: two(t, corner=(900000, 5000000)), {}, r"two_B03\.tif shows other ground"),
    "turned": (turned, {}, r"two_B03\.tif: its rows and columns are turned"),
    "truncated": (lambda t: truncated(t, 10_000), {}, r"two_B03\.tif: truncated or damaged"),
    "truncated before its directory": (lambda t: truncated(t, 9_000, names=["B03"]), {}, r"B03\.tif cannot be opened"),
    "no file": (lambda t: t / "none.tif", {}, r"none\.tif cannot be opened"),
    "one of a list is no file": (lambda t: [*two(t), t / "none_B04.tif"], {}, r"none_B04\.tif cannot be opened"),
    "unnamed": (lambda t: one_more(t, "three.tif"), {}, r"three\.tif: neither .* --bands "),
    "unknown sensor": (two, {"sensor": "sentinel-2-l2b"}, r"unknown sensor 'sentinel-2-l2b': did you mean"),
    "unknown sensor of a file": (lambda t: [f"sentinel-9={two(t)[0]}"], {}, r"unknown sensor 'sentinel-9'"),
    "unknown band": (two, {"bands": ["B02", "B44"]}, r"no band 'B44': did you mean"),
    "wrong band count": (two, {"bands": ["B02"]}, r"2 bands, --bands names 1"),
    "nanometres": (two, {"wavelengths_um": [490, 560], "sensor": None}, r"wavelength 490 µm.*nanometres"),
    "twice": (lambda t: one_more(t, "other_B03.tif"), {}, r"both B03"),
    "sensors for sources": (two, {"sensor": ["sentinel-2-l2a"]}, r"1 sensors for 2 sources"),
    "mask values without mask": (two, {"mask_values": [1]}, r"no --mask is named"),
    "mask elsewhere": (two, {"mask": "SCL.tif"}, r"SCL\.tif shows other ground than the scene"),
    "mask of no legend": (two, {"mask": "clouds.tif"}, r"clouds\.tif: its classes are not known.*--mask-values"),
    "mask of fractions": (two, {"mask": "float_SCL.tif"}, r"float_SCL\.tif: its numbers are float32 with fractions"),
    "empty folder": (lambda t: t / "folder", {}, r"folder holds no images"),
    "nothing": (lambda t: [], {}, r"at least one source"),
    "gsd without a place": (lambda t: [two(t, crs=None)[1]], {"gsd_m": 20}, r"no place on Earth"),
    "gsd of nothing": (two, {"gsd_m": 0}, r"--gsd 0: metres a pixel"),
    "nodata that does not fit": (two, {"nodata": -9999}, r"nodata -9999 is no uint16 number"),
    "bands of a stack": (two, {"sensor": ["sentinel-2-l2a", "hls-s30"], "bands": ["B02", "B03"]}, r"bands of a stack"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_with_the_file_and_the_cure(tmp_path, case, monkeypatch):
    make, words, said = BAD[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    band_file(tmp_path / "SCL.tif", np.ones((40, 40), np.uint8), 10, corner=(900000, 5000000))
    band_file(tmp_path / "clouds.tif", np.ones((40, 40), np.uint8), 10)
    band_file(tmp_path / "float_SCL.tif", np.full((40, 40), 3.5, np.float32), 10)
    with pytest.raises(DofaError, match=said) as told:
        open_scene(make(tmp_path), **{"sensor": "sentinel-2-l2a", **words}).read(Window(0, 0, 300, 300))
    assert "\n" not in str(told.value)


def test_what_is_assumed_is_a_warning_and_an_error_under_strict(tmp_path):
    image = noise((2, 40, 40), low=1001)
    paths = [band_file(tmp_path / f"x_{n}.tif", image[0], 10) for n in ("B02", "B03", "B04", "B08")]
    with open_scene(paths, "sentinel-2-l2a") as scene:
        assert any(w.startswith("offset-unknown") for w in scene.warnings)
    with pytest.raises(DataError, match=r"--dn-offset -1000.*strict"):
        open_scene(paths, "sentinel-2-l2a", strict=True)


def test_nothing_stays_open_after_a_refusal(tmp_path):
    paths = two(tmp_path, crs="EPSG:32634")
    opened = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(DataError):
            open_scene(paths, "sentinel-2-l2a")
    assert len(list(Path("/proc/self/fd").iterdir())) <= opened


# -- real scenes ------------------------------------------------------------------------------------------------------


def test_real_a_landsat_stack_with_its_temperature_left_out(real_data):
    path = real_data / "landsat" / "LE70220491999322EDC01_stack.gtif"
    with open_scene(path, "landsat-7-l2-sr") as scene:
        assert any("7 (band 6 temperature)" in w for w in scene.warnings)
    bands = ["B1", "B2", "B3", "B4", "B5", "B7", None, None]
    with open_scene(path, "landsat-7-l2-sr", bands=bands) as scene, rasterio.open(path) as file:
        (raw,), valid = scene.read(Window(-3, 7, 100, 300))
        window = ((0, 97), (7, 250))
        assert np.array_equal(raw[:, 3:, :243], file.read([1, 2, 3, 4, 5, 6], window=window))
        assert not valid[:3].any()


def test_real_radar_and_optical_of_one_place_stack(real_data):
    where = real_data / "colocated_s1_s2"
    name = "38D_378R_2_3.tif"
    paths = [f"sentinel-1-grd={where / 'S1RTC' / name}", f"sentinel-2-l2a={where / 'S2L2A' / name}"]
    with open_scene(paths) as scene, rasterio.open(where / "S2L2A" / name) as file:
        parts, valid = scene.read(whole(scene))
        assert [len(p) for p in parts] == [2, 12]
        assert np.array_equal(parts[1], file.read())
        assert valid.all()


def test_real_bigearthnet_folders_open_by_the_names_of_their_files(real_data):
    (folder,) = {p.parent for p in (real_data / "true_formats/BigEarthNet/BigEarthNet-S2").rglob("*_B02.tif")}
    with open_scene(folder) as scene, rasterio.open(next(folder.glob("*_B02.tif"))) as file:
        assert scene.sensor.name == "sentinel-2-l2a"
        assert len(scene.bands) == 12
        assert np.array_equal(scene.read(whole(scene))[0][0][1], file.read(1))


def test_real_bands_whose_corners_are_half_a_pixel_off_are_brought_into_place(real_data):
    folder = sorted((real_data / "true_formats/SSL4EO-S12/s2c/0000200").iterdir())[0]
    with open_scene(folder, "sentinel-2-l1c", dn_offset=0) as scene:
        assert len(scene.bands) == 13
        (raw,), valid = scene.read(whole(scene))
        assert valid.mean() > 0.9
        shared = [np.corrcoef(raw[scene.sensor.index([b])[0]][valid], raw[7][valid])[0, 1] for b in ("B07", "B8A")]
        assert min(shared) > 0.9  # neighbours of B08 at 20 m: a band out of place would not follow it


def test_real_enmap_takes_the_cloud_band_beside_it(real_data):
    (image, *_) = sorted((real_data / "enmap_hyspecnet11k").glob("*/*SPECTRAL_IMAGE.TIF"))
    cloud = str(image).replace("SPECTRAL_IMAGE", "QL_QUALITY_CLOUD")
    with open_scene(image, "enmap", mask=cloud, mask_values=[1]) as scene:
        assert len(scene.bands) == 202
        assert scene.read(whole(scene))[1].all()


def test_real_naip_resampled_to_two_metres_and_a_half_covers_the_same_ground(real_data):
    path = real_data / "naip" / "m_4709963_se_14_1_20120731.tif"
    with open_scene(path, "naip-rgbn", gsd_m=2.5) as fine, open_scene(path, "naip-rgbn") as own:
        assert (fine.width, fine.height) == (2 * own.width, 2 * own.height)
        (a,), (b,) = fine.read(Window(100, 200, 60, 60))[0], own.read(Window(50, 100, 30, 30))[0]
        assert np.abs(a.astype(float).mean((1, 2)) - b.mean((1, 2))).max() < 2


def test_a_scene_of_other_processes_files_is_found_by_its_whole_path(tmp_path, monkeypatch):
    band_file(tmp_path / "a.tif", noise((2, 40, 40)), 10, names=["B02", "B03"])
    monkeypatch.chdir(tmp_path)
    with open_scene("a.tif", "sentinel-2-l2a", dn_offset=0) as scene:
        recipe = scene.recipe
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    open_recipe(recipe).close()
    shutil.rmtree(elsewhere)


def test_a_crop_reads_the_same_pixels_of_files_of_any_resolution_and_says_where_it_lies(mixed):
    scene = open_scene(mixed, "sentinel-2-l2a", dn_offset=0)
    window = Window(17, 33, 40, 51)
    part = scene.crop(window)
    (a,), seen = part.read(whole(part))
    (b,), good = scene.read(window)
    assert np.array_equal(a, b)
    assert np.array_equal(seen, good)
    assert not good.all()
    assert tuple(part.transform)[:6] == (10, 0, 500000 + 330, 0, -10, 5000000 - 170)
    assert part.block == scene.block
    assert part.fingerprint != scene.fingerprint
    inner = pickle.loads(pickle.dumps(part.crop(Window(3, 5, 20, 20))))
    assert np.array_equal(inner.read(Window(0, 0, 20, 20))[0][0], a[:, 3:23, 5:25])
    with pytest.raises(DataError, match="does not lie in its 40 × 51 pixels"):
        part.crop(Window(30, 0, 11, 10))
