"""Maps of what resembles a place: the cosine of the features that `embed` gives, in its place, whatever the format."""

import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("rasterio")

import dofa
from dofa.cli import main
from dofa.errors import ConfigError, DataError
from dofa.inference import engine
from dofa.inference.features import sample
from dofa.inference.saving import write_all
from dofa.inference.similarity import feature_at, picture, similarity
from dofa.model.checkpoint import save
from dofa.outputs.reading import open_features
from dofa.scene.coordinates import Pixel, lonlat
from dofa.scene.scene import open_scene

from ..scene.conftest import write_tiff

BANDS = ["B02", "B03", "B04", "B08"]
STILL = {"stats": "scene", "precision": "float32"}


@pytest.fixture
def path(tmp_path):
    """Smooth ground on the left, rough ground on the right, nothing in a corner."""
    rng = np.random.default_rng(0)
    image = np.full((4, 88, 120), 900, np.uint16) + rng.integers(0, 40, (4, 88, 120), np.uint16)
    image[:, :, 60:] += rng.integers(0, 2500, (4, 88, 60), np.uint16)
    image[:, :20, :20] = 0
    return write_tiff(tmp_path / "scene.tif", image, names=BANDS, nodata=0)


@pytest.fixture
def opened(path):
    return open_scene(path, "sentinel-2-l2a", dn_offset=0)


def by_hand(one, places):
    """The same from all features at once."""
    features = one.array().astype(np.float64)
    apart = features - sample([one]).astype(np.float64).mean(0)[:, None, None]
    unit = apart / np.linalg.norm(apart, axis=0)
    o, s = one.plan.offset, one.plan.stride
    wanted = sum(unit[:, (p.row + o) // s, (p.col + o) // s] for p in places)
    return np.einsum("d,dhw->hw", wanted / np.linalg.norm(wanted), unit)


@pytest.mark.parametrize("stride", [None, 4])
@pytest.mark.parametrize("places", [[Pixel(40, 90)], [Pixel(87, 119), Pixel(30, 70), Pixel(0, 60)]])
def test_a_map_is_the_cosine_of_the_features_less_their_mean(opened, small_model, stride, places):
    found = similarity(opened, small_model, places, stride=stride, **STILL)
    one = dofa.embed(opened, small_model, stride=stride, **STILL)
    expected, values = by_hand(one, places), found.array()
    np.testing.assert_allclose(values, expected, atol=1e-5)
    np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))
    assert np.isnan(values[0, 0])
    assert np.nanmax(np.abs(values)) <= 1
    if len(places) == 1:
        step = one.plan.stride
        assert values[places[0].row // step, places[0].col // step] == pytest.approx(1, abs=1e-6)


def test_the_feature_of_a_place_is_the_one_of_the_whole_run_with_an_offset_too(opened):
    torch.manual_seed(0)
    model = dofa.create("tiny", width=48, depth=1, heads=3, patch=8, image_size=32, patch_offset=1).eval()
    one = dofa.embed(opened, model, **STILL)
    whole = one.array()
    for row, col in ((86, 119), (7, 30), (6, 30), (40, 0)):
        np.testing.assert_array_equal(
            feature_at(one, Pixel(row, col)), whole[:, (row + 1) // 8, min((col + 1) // 8, 14)]
        )  # none behind the last


def test_ground_of_one_kind_resembles_itself_more_than_another(opened, small_model):
    values = similarity(opened, small_model, [Pixel(50, 100)], **STILL).array()
    assert np.nanmean(values[:, 9:]) > np.nanmean(values[:, :6]) + 0.5


def test_the_command_writes_a_map_other_programs_open(path, opened, small_model, tmp_path, capsys):
    import rasterio

    save(small_model, tmp_path / "model", provenance={})
    lon, lat = lonlat(opened, 50.5, 100.5)
    words = ["similar", str(path), "--sensor", "sentinel-2-l2a", "--dn-offset", "0", "--stats", "scene"]
    words += ["--weights", str(tmp_path / "model"), "--precision", "float32"]
    assert main([*words, "--at", f"{lon},{lat}", "--out", str(tmp_path / "map.tif")]) == 0
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.dtypes == ("float32",)
        assert np.isnan(file.nodata)
        assert file.descriptions == ("similarity",)
        assert file.crs.to_epsg() == 32633
        assert tuple(file.transform)[:6] == (80, 0, 500000, 0, -80, 5000000)
        values = file.read(1)
    np.testing.assert_allclose(values, similarity(opened, small_model, [Pixel(50, 100)], **STILL).array(), atol=1e-6)
    features = open_features(tmp_path / "map.tif")
    assert features.meta["similar_to"] == [[50, 100]]
    assert main([*words, "--pixel", "50,100", "--out", str(tmp_path / "map.zarr")]) == 0
    np.testing.assert_array_equal(open_features(tmp_path / "map.zarr").read()[0], values)
    capsys.readouterr()
    assert main([*words, "--pixel", "50,100", "--out", str(tmp_path / "map.tif")]) == 2
    assert "map.tif exists: name another file, or give --overwrite" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "b.tif")]) == 2
    assert "name a place with --at LON,LAT" in capsys.readouterr().err
    assert main([*words, "--pixel", "1,1", "--out", str(tmp_path / "b.jpg")]) == 2
    assert "ends with .png, .tif" in capsys.readouterr().err


def test_an_interrupted_map_goes_on_and_another_place_is_another_job(opened, small_model, tmp_path):
    found = similarity(opened, small_model, [Pixel(50, 100)], **STILL)

    def some(jobs):
        yield from itertools.islice(engine.run(jobs, precision="float32"), 1)
        raise KeyboardInterrupt

    def run(jobs):
        runs.append(jobs[0].skip)
        return engine.run(jobs, precision="float32")

    runs = []
    job = found.embedding.job
    with pytest.raises(KeyboardInterrupt):
        write_all([job], [found.output(tmp_path / "a.tif")], blocks=some)
    other = similarity(opened, small_model, [Pixel(50, 30)], **STILL)
    with pytest.raises(ConfigError, match="--overwrite"):
        write_all([job], [other.output(tmp_path / "a.tif")], blocks=run)
    write_all([job], [found.output(tmp_path / "a.tif")], blocks=run)
    write_all([job], [found.output(tmp_path / "b.tif")], blocks=run)
    assert runs == [1, 0]
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_places_without_a_measurement_or_outside_are_refused(opened, small_model, tmp_path):
    with pytest.raises(DataError, match=r"scene\.tif: row 3, column 5 holds no measurement: name another place"):
        similarity(opened, small_model, [Pixel(3, 5)], **STILL)
    with pytest.raises(DataError, match="holds no measurement"):
        picture(opened, small_model, [Pixel(3, 5)], tmp_path / "a.png", **STILL)
    assert not (tmp_path / "a.png").exists()


def test_a_picture_marks_the_place_and_shows_the_ground_around_it(opened, small_model, tmp_path):
    matplotlib = pytest.importorskip("matplotlib.image")
    window = picture(opened, small_model, [Pixel(50, 100)], tmp_path / "a.png", size=48, **STILL)
    assert (window.row, window.col, window.height, window.width) == (26, 72, 48, 48)
    image = matplotlib.imread(tmp_path / "a.png")
    assert image.shape[1] > image.shape[0] > 500
    both = picture(opened, small_model, [Pixel(40, 70), Pixel(60, 110)], tmp_path / "b.png", size=48, **STILL)
    assert (both.row, both.col) == (26, 66)
    with pytest.raises(ConfigError, match="further apart than a picture's 48 pixels: raise --size"):
        picture(opened, small_model, [Pixel(40, 10), Pixel(60, 110)], tmp_path / "c.png", size=48, **STILL)


def test_real_water_of_a_flood_resembles_water_in_plain_features(real_data, small_model):
    """Random weights keep what the radar measured: a place in the river finds the river."""
    import rasterio

    folder = real_data / "sen1floods11"
    scene = open_scene(folder / "S1Hand" / "India_900498_S1Hand.tif", "sentinel-1-grd")
    with rasterio.open(folder / "LabelHand" / "India_900498_LabelHand.tif") as labels:
        water = labels.read(1)
    share = (water == 1).reshape(64, 8, 64, 8).mean((1, 3))
    row, col = np.argwhere(share == 1)[len(np.argwhere(share == 1)) // 2]
    values = similarity(scene, small_model, [Pixel(8 * row + 4, 8 * col + 4)], **STILL).array()
    assert np.mean(values[share == 1]) > np.mean(values[share == 0]) + 0.5
