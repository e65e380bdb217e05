"""Pictures of scenes: the right bands in the right colours, both sides the same ground, large scenes read in part."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rasterio")
pytest.importorskip("matplotlib")

from rasterio.transform import from_origin

import dofa
from dofa import sensors
from dofa.cli import main
from dofa.errors import ConfigError, DataError
from dofa.inference.panels import GAP, HEAD, RED, SIDE, TITLE, Panel, colour_panel, draw, fitted, round_length
from dofa.inference.preview import fine_stride, part_of, picture
from dofa.model.checkpoint import save
from dofa.model.config import EncoderConfig
from dofa.plots import NODATA_GREY
from dofa.scene.colours import colours, of_sensor, shown_bands
from dofa.scene.coordinates import Pixel, ground, lonlat, pixel_at, pixels
from dofa.scene.grid import Window
from dofa.scene.scene import Scene, open_scene

from ..scene.conftest import write_tiff

RGB = ["B02", "B03", "B04"]


def read(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)[..., :3]


def halves(path: Path, names=RGB, side=96, edge=64, **profile) -> Path:
    """Red to the left of a column, blue to the right of it."""
    image = np.full((3, side, side), 300, np.uint16) + np.random.default_rng(0).integers(
        0, 30, (3, side, side), np.uint16
    )
    image[names.index("B04"), :, :edge] += 2000
    image[names.index("B02"), :, edge:] += 2000
    return write_tiff(path, image, names=names, nodata=0, **profile)


def opened(path: Path, **words) -> Scene:
    return open_scene(path, "sentinel-2-l2a", dn_offset=0, **words)


def panes(image: np.ndarray, count: int = 2) -> list[np.ndarray]:
    """The square pictures in a PNG, from left to right, a pixel less on each side."""
    top, side = round((HEAD + TITLE) * 160), round(SIDE * 160)
    lefts = [round((GAP + i * (SIDE + GAP)) * 160) for i in range(count)]
    return [image[top + 1 : top + side - 1, left + 1 : left + side - 1] for left in lefts]


def edge_of(pane: np.ndarray) -> float:
    """Where the colour changes most from left to right, as a share of the width."""
    across = pane.mean(0)
    reach = max(2, len(across) // 20)
    step = np.abs(across[2 * reach :] - across[: -2 * reach]).sum(-1)
    return float(np.flatnonzero(step > 0.9 * step.max()).mean() + reach) / len(across)


# -- colours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [RGB, RGB[::-1], ["B03", "B04", "B02"]])
def test_true_colour_is_red_where_red_is_bright_whatever_the_order_of_the_bands(tmp_path, names):
    panel = colour_panel(opened(halves(tmp_path / "a.tif", names)))
    assert panel.title == "true colour"
    left, right = panel.picture[:, :60].mean((0, 1)), panel.picture[:, 70:].mean((0, 1))
    assert left[0] > 0.9 > 0.6 > left[2]
    assert right[2] > 0.9 > 0.6 > right[0]
    assert [c.split()[0] for c in panel.channels] == ["B04", "B03", "B02"]


def test_bands_without_a_named_picture_are_chosen_by_their_wavelengths(tmp_path):
    image = np.random.default_rng(0).integers(1, 200, (6, 20, 20)).astype(np.uint8)
    path = write_tiff(tmp_path / "a.tif", image)
    found = colours(open_scene(path, wavelengths_um=[0.84, 0.48, 0.70, 0.55, 0.665, 0.43]))
    assert (found.title, found.bands) == ("true colour", (4, 3, 1))
    found = colours(open_scene(path, wavelengths_um=[0.84, 1.6, 2.2, 0.55, 0.665, 0.74]))
    assert (found.title, found.bands) == ("colour infrared", (0, 4, 3))
    found = colours(open_scene(path, wavelengths_um=[1.6, 1.7, 2.2, 2.3, 1.2, 1.0]))
    assert (found.title, found.bands) == ("false colour", (3, 0, 5))
    found = colours(open_scene(write_tiff(tmp_path / "b.tif", image[:1]), wavelengths_um=[10.9]))
    assert (found.title, found.bands) == ("grey", (0,))


def test_every_sensor_of_the_catalogue_has_its_colours(tmp_path):
    for name in sensors.names():
        sensor = sensors.get(name)
        found = of_sensor(sensor, 0)
        told = [sensor.bands[i] for i in found.bands]
        if found.title == "true colour":
            assert told[0].wavelength_um > told[1].wavelength_um > told[2].wavelength_um, name
            assert told[0].wavelength_um < 0.7, name
        assert all(b.kind == "sar" for b in told) == found.title.startswith("radar")


def test_radar_is_drawn_in_decibels(tmp_path):
    power = np.array([1e-3, 1e-2, 1e-1, 1.0], np.float32)[None, None].repeat(2, 0).repeat(4, 1)
    path = write_tiff(tmp_path / "a.tif", power, names=["VV", "VH"])
    scene = open_scene(path, "sentinel-1-rtc")
    found = colours(scene)
    values, valid = shown_bands(scene, found)
    assert scene.parts[0].scaling.unit == "linear_power"
    np.testing.assert_allclose(values[:, 0], np.array([[-30, -20, -10, 0]] * 3), atol=1e-4)
    assert valid.all()
    assert found.channels == ("VV dB", "VH dB")
    one = colours(open_scene(write_tiff(tmp_path / "b.tif", power[:1], names=["VV"]), "sentinel-1-rtc"))
    assert (one.title, one.channels) == ("radar", ("VV dB",))


def test_of_radar_and_optical_bands_the_optical_are_shown(tmp_path):
    radar = write_tiff(tmp_path / "r.tif", -np.ones((2, 96, 96), np.float32), names=["VV", "VH"])
    path = halves(tmp_path / "o.tif")
    scene = open_scene([f"sentinel-1-grd={radar}", f"sentinel-2-l2a={path}"])
    found = colours(scene)
    assert (found.part, found.title) == (1, "true colour")
    np.testing.assert_array_equal(shown_bands(scene, found)[0], shown_bands(opened(path), colours(opened(path)))[0])


def test_dark_water_is_not_stretched_into_noise(tmp_path):
    image = np.random.default_rng(0).integers(50, 60, (3, 64, 64)).astype(np.uint16)
    panel = colour_panel(opened(write_tiff(tmp_path / "a.tif", image, names=RGB)))
    assert panel.picture.max() < 0.2


# -- which part ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 300), st.data())
def test_the_window_shown_holds_its_centre_and_lies_inside(height, width, size, data):
    class Sized:
        pass

    scene = Sized()
    scene.height, scene.width = height, width
    centre = Pixel(data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1)))
    window = part_of(scene, size, centre)
    assert (window.height, window.width) == (min(size, height), min(size, width))
    assert 0 <= window.row <= centre.row < window.row + window.height <= height
    assert 0 <= window.col <= centre.col < window.col + window.width <= width


def test_of_a_large_scene_only_what_is_shown_is_read(tmp_path, small_model, monkeypatch):
    side = 3000
    image = np.zeros((3, side, side), np.uint16)
    image[:, 400:1100, 1900:2600] = np.random.default_rng(0).integers(100, 3000, (3, 700, 700))
    path = write_tiff(tmp_path / "a.tif", image, names=RGB, nodata=0, tiled=True, blockxsize=256, blockysize=256)
    scene = opened(path)
    area = []
    inside = Scene._inside
    monkeypatch.setattr(Scene, "_inside", lambda self, w: (area.append(w.height * w.width), inside(self, w))[1])
    window = picture(scene, small_model, tmp_path / "a.png", size=96, stats="scene")
    assert (window.height, window.width) == (96, 96)
    assert opened(path).read(window)[1].any(), "a place with measurements is looked for"
    assert sum(area) < 0.05 * side * side


@pytest.mark.parametrize(("width", "depth", "patch"), [(192, 12, 8), (768, 12, 16), (1024, 24, 14), (192, 12, 1)])
def test_the_stride_divides_the_patch_and_shows_no_grid(width, depth, patch):
    config = EncoderConfig(width, depth, width // 64, patch, image_size=16 * patch)
    for side in (64, 300, 768, 4000):
        stride = fine_stride(config, side, side)
        assert patch % stride == 0
        assert stride < patch or patch == 1
        assert 4 * stride >= patch
    assert fine_stride(config, 64, 64) <= fine_stride(config, 768, 768)


# -- places ----------------------------------------------------------------------------------------------------------


def test_places_are_found_again_whatever_the_reference_system(tmp_path):
    image = np.ones((3, 50, 70), np.uint16)
    for crs, transform in (
        ("EPSG:32633", from_origin(500000, 5000000, 10, 10)),
        ("EPSG:4326", from_origin(-97.3, 46.9, 1e-4, 1e-4)),
        ("EPSG:3031", from_origin(-1e6, 1e6, 30, 30)),
    ):
        scene = opened(write_tiff(tmp_path / "a.tif", image, crs, names=RGB, transform=transform))
        for pixel in (Pixel(0, 0), Pixel(49, 69), Pixel(20, 3)):
            lon, lat = lonlat(scene, pixel.row + 0.5, pixel.col + 0.5)
            assert pixel_at(scene, lon, lat) == pixel
            assert pixels(scene, [f"{lon:.9f},{lat:.9f}"], ["1,2"]) == [pixel, Pixel(1, 2)]


def test_a_degree_of_longitude_is_shorter_than_one_of_latitude(tmp_path):
    image = np.ones((3, 50, 70), np.uint16)
    scene = opened(
        write_tiff(tmp_path / "a.tif", image, "EPSG:4326", names=RGB, transform=from_origin(10, 60, 1e-4, 1e-4))
    )
    found = ground(scene)
    assert found.down == pytest.approx(11.1, abs=0.05)
    assert found.across == pytest.approx(5.57, abs=0.05)
    assert ground(opened(halves(tmp_path / "b.tif"))) == pytest.approx((10, 10))
    with pytest.warns(match="geotransform"):
        path = halves(tmp_path / "c.tif", crs=None, transform=from_origin(0, 0, 1, 1))
    assert ground(opened(path)) is None


def test_places_that_cannot_be_are_told_with_the_bounds(tmp_path):
    scene = opened(halves(tmp_path / "a.tif"))
    with pytest.raises(DataError, match=r"a\.tif: lon 3, lat 45.* \(lon 15\.\d+ to 15\.\d+, lat 45\.\d+ to 45\.\d+\)$"):
        pixels(scene, ["3,45"])
    lon, lat = lonlat(scene, 10, 10)
    with pytest.raises(DataError, match="LON comes before LAT"):
        pixels(scene, [f"{lat},{lon}"])
    with pytest.raises(DataError, match="lies outside"):
        pixels(scene, ["12,-99"])  # no latitude at all
    with pytest.raises(DataError, match="row 96, column 0 lies outside: rows 0 to 95, columns 0 to 95"):
        pixels(scene, [], ["96,0"])
    for text in ("12", "1,2,3", "a,b", "nan,3"):
        with pytest.raises(ConfigError, match="it is LON,LAT"):
            pixels(scene, [text])
    with pytest.raises(ConfigError, match="whole numbers"):
        pixels(scene, [], ["1.5,2"])


# -- what is drawn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1])
def test_both_pictures_show_the_same_ground(tmp_path, offset):
    torch.manual_seed(0)
    model = dofa.create("tiny", width=48, depth=1, heads=3, patch=8, image_size=32, patch_offset=offset).eval()
    scene = opened(halves(tmp_path / "a.tif"))
    picture(scene, model, tmp_path / "a.png", stats="scene", stride=2)
    left, right = panes(read(tmp_path / "a.png"))
    assert left.min(-1).max() < 0.99  # nothing of the page shows through
    assert right[-2:].min(-1).max() < 0.99
    assert right[:, -2:].min(-1).max() < 0.99
    assert edge_of(left) == pytest.approx(64 / 96, abs=0.01)
    assert edge_of(right) == pytest.approx(64 / 96, abs=0.03)


def test_cells_lie_on_the_pixels_they_cover(tmp_path):
    cells = np.zeros((13, 13, 3), np.float32)
    cells[:, 6:, 0] = 1
    draw(tmp_path / "a.png", [Panel(cells, "cells", cell=8, offset=4)], (96, 96), title="x")
    (pane,) = panes(read(tmp_path / "a.png"), 1)
    assert pane[..., 0].mean() == pytest.approx(1 - 44 / 96, abs=0.003)


def test_what_was_not_measured_is_grey_on_both_sides(tmp_path, small_model):
    rng = np.random.default_rng(0)
    image = rng.integers(500, 3000, (3, 96, 96)).astype(np.uint16)
    image[:, 48:] = 0
    scene = opened(write_tiff(tmp_path / "a.tif", image, names=RGB, nodata=0))
    picture(scene, small_model, tmp_path / "a.png", stats="scene")
    for pane in panes(read(tmp_path / "a.png")):
        below = pane[int(0.56 * len(pane)) :]
        np.testing.assert_allclose(below, NODATA_GREY, atol=0.01)
        assert pane[: int(0.44 * len(pane))].std() > 0.1


def test_the_default_stride_shows_no_grid_of_patches(tmp_path, small_model):
    image = np.random.default_rng(0).integers(500, 3000, (3, 128, 128)).astype(np.uint16)
    scene = opened(write_tiff(tmp_path / "a.tif", image, names=RGB))
    stride = fine_stride(small_model.config, 128, 128)
    values = dofa.embed(scene, small_model, stats="scene", pca=3, stride=stride, precision="float32").array()
    steps = np.abs(np.diff(values, axis=2)).mean((0, 1))
    at_patch = (np.arange(len(steps)) + 1) * stride % 8 == 0
    assert steps[at_patch].mean() / steps[~at_patch].mean() == pytest.approx(1, abs=0.1)


def test_a_mark_is_drawn_where_the_place_is(tmp_path):
    plain = Panel(np.full((80, 80, 3), 0.5, np.float32), "grey")
    for name, marks in (("a.png", []), ("b.png", [Pixel(10, 60)])):
        draw(tmp_path / name, [plain], (80, 80), title="x", marks=marks)
    (before,), (after,) = (panes(read(tmp_path / name), 1) for name in ("a.png", "b.png"))
    row, col = np.argwhere(np.abs(before - after).sum(-1) > 0.1).mean(0) / len(before)
    assert row == pytest.approx(10.5 / 80, abs=0.01)
    assert col == pytest.approx(60.5 / 80, abs=0.01)


def test_the_corner_says_which_part_of_a_scene_is_shown(tmp_path):
    plain = Panel(np.full((40, 40, 3), 0.5, np.float32), "grey")
    window = Window(500, 750, 200, 200)
    draw(tmp_path / "a.png", [plain], (200, 200), title="x", where=(window, (1000, 1000)))
    image = read(tmp_path / "a.png")
    red = np.abs(image - np.array([int(RED[i : i + 2], 16) / 255 for i in (1, 3, 5)])).max(-1) < 0.02
    rows, cols = np.nonzero(red)
    outline = 0.42 * 160
    assert len(image[0]) - cols.max() > 0.1 * 160  # the window ends before the scene's right edge
    assert (np.ptp(rows) + 1) / outline == pytest.approx(0.2, abs=0.05)
    assert rows.min() - 0.07 * 160 == pytest.approx(0.5 * outline, abs=4)


@given(st.floats(0.3, 1e7))
def test_a_scale_bar_has_a_round_length_that_fits(metres):
    length = round_length(metres)
    assert 0.39 * metres < length <= metres * 1.0001
    assert float(f"{length:.0e}") == pytest.approx(length)
    assert f"{length:.0e}"[0] in "125"


@given(st.text(max_size=60), st.integers(3, 50))
def test_long_names_keep_their_beginning_and_end(words, letters):
    short = fitted(words, letters)
    assert len(short) <= max(letters, 1)
    if len(words) > letters:
        begin, end = short.split("…", 1)[0], short[-1:]
        assert words.startswith(begin[:1])
        assert words.endswith(end) or letters < 5
    else:
        assert short == words


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_draws_around_a_place_and_says_what_is_shown(tmp_path, small_model, capsys):
    save(small_model, tmp_path / "model", provenance={})
    path = halves(tmp_path / "a.tif", crs="EPSG:32614")
    lon, lat = lonlat(opened(path), 25.5, 75.5)
    assert lon < 0  # which argparse would take for an option
    words = ["preview", str(path), "--sensor", "sentinel-2-l2a", "--dn-offset", "0", "--stats", "scene"]
    words += ["--weights", str(tmp_path / "model"), "--out", str(tmp_path / "a.png"), "--size", "40"]
    assert main([*words, "--at", f"{lon},{lat}"]) == 0
    assert "shown: 40 × 40 of 96 × 96 pixels, from row 5, column 55;" in capsys.readouterr().out
    left, _ = panes(read(tmp_path / "a.png"))
    assert edge_of(left) == pytest.approx((64 - 55) / 40, abs=0.02)
    assert main(words) == 2
    assert "a.png exists" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--at", "1,2", "--pixel", "1,2"]) == 2
    assert "give one" in capsys.readouterr().err
    assert main([*words[:-3], str(tmp_path / "a.jpg")]) == 2
    assert "ends with .png" in capsys.readouterr().err


def test_statistics_that_the_checkpoint_lacks_are_named_with_the_cure(tmp_path, small_model):
    with pytest.raises(ConfigError, match="--stats scene"):
        picture(opened(halves(tmp_path / "a.tif")), small_model, tmp_path / "a.png", stats="checkpoint")
    assert not (tmp_path / "a.png").exists()


def test_real_naip_is_green_and_its_water_dark(real_data, tmp_path):
    scene = open_scene(real_data / "naip" / "m_4709963_se_14_1_20160816.tif", "naip-rgbn")
    panel = colour_panel(scene.crop(Window(100, 300, 200, 200)))
    assert panel.title == "true colour"
    fields, water = panel.picture[120:180, 40:100], panel.picture[60:80, 150:165]
    assert fields.mean((0, 1)).argmax() == 1
    assert water.shape == (20, 15, 3)


def test_real_radar_of_a_flood_is_drawn_with_its_water_dark(real_data):
    from rasterio import open as open_file

    folder = real_data / "sen1floods11"
    with open_file(folder / "LabelHand" / "India_900498_LabelHand.tif") as labels:
        water = labels.read(1)
    shown = colour_panel(open_scene(folder / "S1Hand" / "India_900498_S1Hand.tif", "sentinel-1-grd")).picture
    assert shown[water == 1].mean() < 0.6 * shown[water == 0].mean()
