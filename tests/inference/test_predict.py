"""Maps through a head: the head's own answers in their place, and what does not belong together is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import dofa
from dofa.cli import main
from dofa.errors import CheckpointError, ConfigError
from dofa.inference.features import embed
from dofa.inference.predict import predict_all
from dofa.model.checkpoint import encoder_sha256, save
from dofa.model.heads import Head, palette
from dofa.outputs.reading import open_features

from ..scene.conftest import write_tiff

BANDS = ["B02", "B03", "B04", "B08"]
CLASSES = ("water", "field", "town")


@pytest.fixture
def scene(tmp_path):
    rng = np.random.default_rng(0)
    image = (500 + 4000 * rng.random((4, 8, 10)).repeat(8, 1).repeat(8, 2)).astype(np.uint16)
    image[:, :8, :8] = 0
    return write_tiff(tmp_path / "scene.tif", image, names=BANDS, nodata=0)


@pytest.fixture
def opened(scene):
    return dofa.open_scene(scene, "sentinel-2-l2a", dn_offset=0)


@pytest.fixture
def head(small_model, opened):
    part = opened.parts[0]
    rng = np.random.default_rng(1)
    return Head(
        task="classification",
        class_names=CLASSES,
        colours=palette(3),
        encoder_sha256=encoder_sha256(small_model),
        levels=(0, 1),
        sensor=part.sensor,
        scaling=part.scaling.with_stats([0.2, 0.2, 0.25, 0.3], [0.1, 0.1, 0.1, 0.2], "head"),
        patch_offset=0,
        tile_size=32,
        gsd_m=10.0,
        weight=rng.standard_normal((3, 96)),
        bias=rng.standard_normal(3),
    )


def run(one, wanted, path):
    from dofa.inference import engine
    from dofa.inference.saving import write_all

    write_all([one.job], [one.output(path, wanted)], blocks=lambda jobs: engine.run(jobs, precision="float32"))
    return open_features(path)


def test_a_map_is_the_head_applied_to_the_features_of_each_place(opened, small_model, head, tmp_path):
    (one,) = predict_all([opened], small_model, head, precision="float32")
    probabilities = run(one, "probabilities", tmp_path / "p.tif")
    classes = run(one, "classes", tmp_path / "c.tif")
    features = embed(opened, small_model, blocks=[0, 1], stats="scene", precision="float32")
    features = replace(features, inputs=one.inputs).array()
    seen = np.isfinite(features[0])
    expected = head.predict_proba(torch.from_numpy(np.nan_to_num(features))[None])[0]
    np.testing.assert_allclose(probabilities.read()[:, seen], expected[:, seen], atol=1e-4)
    np.testing.assert_allclose(probabilities.read()[:, seen].sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(classes.read()[0][seen], expected.argmax(0)[seen])
    assert not seen[0, 0]
    assert np.isnan(classes.read()[0, 0, 0])
    assert classes.read_stored()[0, 0, 0] == 255


def test_the_file_has_names_and_colours_as_qgis_wants_them(opened, small_model, head, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    (one,) = predict_all([opened], small_model, head, stride=4, precision="float32")
    run(one, "classes", tmp_path / "c.tif")
    with rasterio.open(tmp_path / "c.tif") as file:
        assert file.dtypes == ("uint8",)
        assert file.nodata == 255
        colours = file.colormap(1)
        assert [colours[i][:3] for i in range(3)] == list(head.colours)
        assert file.transform[:6] == (40, 0, 500000, 0, -40, 5000000)
        assert file.crs.to_epsg() == 32633
    assert open_features(tmp_path / "c.tif").layout.class_names == CLASSES


def test_a_regression_gives_its_values(opened, small_model, head, tmp_path):
    (one,) = predict_all([opened], small_model, replace(head, task="regression"), precision="float32")
    values = run(one, "classes", tmp_path / "v.tif")
    assert values.names == CLASSES
    assert np.nanmin(values.read()) < 0


def test_a_scene_of_another_pixel_size_is_refused_resampled_or_accepted(scene, opened, small_model, head):
    coarse = replace(head, gsd_m=30.0)
    with pytest.raises(ConfigError, match=r"measure 10 m, the head was trained on 30 m: resample it with --gsd 30"):
        predict_all([opened], small_model, coarse, precision="float32")
    assert predict_all([opened], small_model, coarse, force=True, precision="float32")[0].plan.height == 64
    resampled = dofa.open_scene(scene, "sentinel-2-l2a", dn_offset=0, gsd_m=30.0)
    assert predict_all([resampled], small_model, coarse, precision="float32")[0].plan.height in (21, 22)


def test_another_encoder_is_refused(opened, head):
    torch.manual_seed(9)
    other = dofa.create("tiny", width=48, depth=2, heads=3, patch=8, image_size=32).eval()
    with pytest.raises(CheckpointError, match="load the encoder it belongs to"):
        predict_all([opened], other, head, precision="float32")


def test_a_scene_without_a_band_of_the_head_names_it(tmp_path, small_model, head):
    image = np.ones((3, 32, 32), np.uint16)
    three = dofa.open_scene(write_tiff(tmp_path / "x.tif", image, names=BANDS[:3]), "sentinel-2-l2a", dn_offset=0)
    with pytest.raises(ConfigError, match="needs band B08"):
        predict_all([three], small_model, head, precision="float32")


def test_the_bands_of_a_head_come_before_its_pixel_size(tmp_path, small_model, head):
    image = np.ones((3, 32, 32), np.uint16)
    three = dofa.open_scene(write_tiff(tmp_path / "x.tif", image, names=BANDS[:3]), "sentinel-2-l2a", dn_offset=0)
    with pytest.raises(ConfigError, match="B08"):  # --gsd would not help
        predict_all([three], small_model, replace(head, gsd_m=30.0), precision="float32")


def test_a_scene_of_another_sensor_than_the_heads_is_said(scene, small_model, head, recwarn):
    predict_all([dofa.open_scene(scene, "sentinel-2-l2a", dn_offset=0)], small_model, head, precision="float32")
    assert not [w for w in recwarn if "trained on" in str(w.message)]
    other = dofa.open_scene(scene, "sentinel-2-l1c", dn_offset=0)
    with pytest.warns(UserWarning, match=r"of sentinel-2-l1c, the head was trained on sentinel-2-l2a"):
        predict_all([other], small_model, head, precision="float32")


def test_bands_in_another_order_give_the_same_map(tmp_path, scene, opened, small_model, head):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(scene) as file:
        image = file.read()
    turned = write_tiff(tmp_path / "turned.tif", image[::-1], names=BANDS[::-1], nodata=0)
    other = dofa.open_scene(turned, "sentinel-2-l2a", dn_offset=0)
    maps = [
        run(predict_all([s], small_model, head, precision="float32")[0], "probabilities", tmp_path / f"{i}.tif").read()
        for i, s in enumerate((opened, other))
    ]
    np.testing.assert_array_equal(*maps)


def test_other_statistics_beside_a_head_need_force(opened, small_model, head):
    with pytest.raises(ConfigError, match="leave out --stats"):
        predict_all([opened], small_model, head, stats="scene", precision="float32")
    (one,) = predict_all([opened], small_model, head, stats="scene", force=True, precision="float32")
    assert one.inputs.scalings[0].stats_source == "scene"


def test_the_command_maps_several_scenes_and_goes_on_where_it_was(scene, small_model, head, tmp_path, capsys):
    save(small_model, tmp_path / "model", provenance={})
    head.save(tmp_path / "head")
    second = tmp_path / "second.tif"
    second.write_bytes(scene.read_bytes())
    words = ["predict", str(scene), str(second), "--weights", str(tmp_path / "model"), "--head", str(tmp_path / "head")]
    words += ["--dn-offset", "0", "--out", str(tmp_path / "maps")]
    assert main(words) == 0
    made = (tmp_path / "maps" / "scene.tif").stat().st_mtime_ns
    (tmp_path / "maps" / "second.tif").unlink()
    assert main(words) == 0
    assert (tmp_path / "maps" / "scene.tif").stat().st_mtime_ns == made
    assert "scene.tif (was there)" in capsys.readouterr().out
    assert main([*words[:2], *words[3:-1], str(tmp_path / "maps" / "scene.tif")]) == 2
    assert "give --overwrite" in capsys.readouterr().err
