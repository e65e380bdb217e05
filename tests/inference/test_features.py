"""Features of scenes: the model's own, in their place, at any stride, stored and read back."""

import numpy as np
import pytest
import torch

import dofa
from dofa.errors import ConfigError
from dofa.inference.features import embed, embed_all
from dofa.inference.inputs import OwnStatisticsWarning
from dofa.inference.principal_components import Projection
from dofa.inference.saving import stored_as
from dofa.outputs.reading import open_features

from ..scene.conftest import write_tiff

BANDS = ["B02", "B03", "B04", "B08"]


@pytest.fixture
def scene(tmp_path):
    rng = np.random.default_rng(0)
    coarse = rng.random((4, 12, 15)).repeat(8, 1).repeat(8, 2)[:, :88, :117]
    image = (500 + 4000 * coarse + 100 * rng.random((4, 88, 117))).astype(np.uint16)
    return write_tiff(tmp_path / "scene.tif", image, names=BANDS, nodata=0)


@pytest.fixture
def opened(scene):
    return dofa.open_scene(scene, "sentinel-2-l2a", dn_offset=0)


def of(opened, model, **how):
    return embed(opened, model, stats="scene", precision="float32", **how)


@torch.inference_mode()
def forward(model, one, image, block=-1):
    return model.forward_intermediates(torch.from_numpy(image)[None], one.inputs.wavelengths, [block])[0][0].numpy()


def whole_input(one):
    from dofa.scene.grid import Window

    return one.inputs.normalised(Window(0, 0, 88, 117))[0]


def test_one_tile_over_a_whole_scene_gives_the_model_s_own_patch_tokens(opened, small_model):
    one = of(opened, small_model, tile=120, blocks=[-1])
    expected = forward(small_model, one, whole_input(one))
    np.testing.assert_allclose(one.array(), expected, atol=2e-5)


def test_a_stride_averages_passes_over_the_image_cropped_by_their_shift(opened, small_model):
    one = of(opened, small_model, tile=120, blocks=[0], stride=4)
    image = whole_input(one)
    total, count = np.zeros((48, 22, 30)), np.zeros((22, 30))
    for a in (0, 4):
        for b in (0, 4):
            # One tile has the positions of its own size, so each pass is specialised for no size here either.
            answer = forward(small_model, one, image[:, a:, b:], 0).repeat(2, 1).repeat(2, 2)
            top, left = a // 4, b // 4
            part = answer[:, : 22 - top, : 30 - left]
            total[:, top : top + part.shape[1], left : left + part.shape[2]] += part
            count[top : top + part.shape[1], left : left + part.shape[2]] += 1
    np.testing.assert_allclose(one.array(), total / count, atol=5e-5)


def test_levels_have_their_shapes_names_and_places(opened, small_model):
    patch = of(opened, small_model, blocks=[0, "pooled"])
    assert patch.plan.shape == (11, 15)
    assert patch.array().shape == (96, 11, 15)
    assert patch.names[0] == "block0_0"
    assert patch.names[-1] == "pooled_47"
    assert patch.transform == (80, 0, 500000, 0, -80, 5000000)
    tile = of(opened, small_model, level="tile")
    assert tile.array().shape == (48, 3, 4)
    assert tile.transform == (320, 0, 500000, 0, -320, 5000000)
    pixel = of(opened, small_model, level="pixel", pca=3)
    assert pixel.array().shape == (3, 88, 117)
    assert pixel.names == ("pc1", "pc2", "pc3")


def test_a_patch_offset_moves_the_grid(opened):
    torch.manual_seed(0)
    model = dofa.create("tiny", width=48, depth=1, heads=3, patch=8, image_size=32, patch_offset=1).eval()
    assert of(opened, model).transform == (80, 0, 500000 - 10, 0, -80, 5000000 + 10)


def test_the_tile_level_is_the_pooled_vector_of_each_window(opened, small_model):
    one = of(opened, small_model, level="tile")
    image = np.pad(whole_input(one), ((0, 0), (0, 8), (0, 11)))
    with torch.inference_mode():
        windows = torch.from_numpy(image[:, 32:64, 64:96])[None]
        expected = small_model.forward_head(
            small_model.forward_features(windows, one.inputs.wavelengths), pre_logits=True
        )[0]
    np.testing.assert_allclose(one.array()[:, 1, 2], expected.numpy(), atol=2e-5)


def test_pixels_without_measurement_are_nan_and_the_rest_does_not_see_their_numbers(tmp_path, small_model):
    rng = np.random.default_rng(1)
    image = (500 + 4000 * rng.random((4, 64, 64))).astype(np.uint16)
    image[:, :, 32:] = 0
    first = dofa.open_scene(write_tiff(tmp_path / "a.tif", image, names=BANDS, nodata=0), "sentinel-2-l2a", dn_offset=0)
    image[:, :, 32:] = 60000
    second = dofa.open_scene(
        write_tiff(tmp_path / "b.tif", image, names=BANDS, nodata=60000), "sentinel-2-l2a", dn_offset=0
    )
    a, b = (of(scene, small_model).array() for scene in (first, second))
    assert np.isnan(a[:, :, 4:]).all()
    assert np.isfinite(a[:, :, :4]).all()
    np.testing.assert_array_equal(a, b)


def test_components_are_those_of_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    rng = np.random.default_rng(0)
    features = rng.standard_normal((400, 7)) @ rng.standard_normal((7, 7)) + 3
    ours = Projection.fit(features.astype(np.float32), 3)
    theirs = decomposition.PCA(3, svd_solver="full").fit(features.astype(np.float32))
    mine = ours(torch.from_numpy(features.astype(np.float32)).T[None, :, :, None])[0, :, :, 0].numpy()
    other = theirs.transform(features.astype(np.float32)).T
    for a, b in zip(mine, other, strict=True):
        np.testing.assert_allclose(np.abs(a), np.abs(b), atol=1e-3)
    np.testing.assert_allclose(ours.explained, theirs.explained_variance_ratio_, atol=1e-5)


def test_components_are_fitted_over_all_scenes_and_stand_in_the_file(opened, small_model, tmp_path):
    both = embed_all([opened, opened], small_model, stats="dataset", pca=4)
    assert both[0].tiles.projection is both[1].tiles.projection
    file = open_features(both[0].write(tmp_path / "x.zarr"))
    assert file.meta["pca"]["components"] == 4
    assert 0 < sum(file.meta["pca"]["explained"]) <= 1 + 1e-6


@pytest.mark.parametrize("name", ["x.tif", "x.zarr", "x.parquet"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_what_is_written_is_read_back(opened, small_model, tmp_path, name, dtype):
    one = of(opened, small_model, blocks=[0])
    expected = one.array()
    found = open_features(one.write(tmp_path / name, dtype=dtype))
    values = found.read()
    layout = found.layout
    step = {"float32": 0, "float16": 2e-3 * np.abs(expected).max()}.get(dtype)
    if step is None:
        # The range of int8 comes from a sample; beyond it numbers are clipped, and those are few.
        low, high = layout.zero - 127 * layout.scale, layout.zero + 127 * layout.scale
        inside = (expected >= low[:, None, None]) & (expected <= high[:, None, None])
        assert inside.mean() > 0.98
        step = np.broadcast_to(layout.scale[:, None, None] * 0.501, expected.shape)[inside]
        values, expected = values[inside], expected[inside]
    assert (np.abs(values - expected) <= step).all()
    assert found.crs.to_epsg() == 32633
    assert found.meta["sensors"] == ["sentinel-2-l2a"]
    assert found.meta["bands"] == [BANDS]
    assert found.meta["scaling"][0]["stats_source"] == "scene"


def test_int8_keeps_minus_128_for_what_is_not_measured(opened, small_model):
    from dofa.inference.saving import output_of

    one = of(opened, small_model)
    channels = one.tiles.channels
    layout = output_of(one, "x.tif", "int8", np.full(channels, 0.1), np.zeros(channels)).layout
    values = np.zeros((channels, 1, 2), np.float32)
    values[:, 0, 0] = -1e6
    stored = stored_as(layout, values, np.array([[True, False]]))
    assert (stored[:, 0, 0] == -127).all()
    assert (stored[:, 0, 1] == -128).all()


def test_a_sensor_the_checkpoint_does_not_know_takes_the_scenes_own_statistics_with_a_warning(opened, small_model):
    with pytest.warns(OwnStatisticsWarning, match=r"scene.tif: .* no statistics for sentinel-2-l2a"):
        found = embed(opened, small_model)
    assert found.inputs.scalings == embed(opened, small_model, stats="scene").inputs.scalings
    assert found.meta["inputs"][0]["statistics_of"] is None
    with pytest.raises(ConfigError, match=r"--stats checkpoint.* --stats scene"):
        embed(opened, small_model, stats="checkpoint")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"stride": 3}, "1, 2, 4, 8"),
        ({"tile": 30}, "a multiple of the patch of 8"),
        ({"blocks": [7]}, "7"),
        ({"overlap": 28}, "at most the tile of 32"),
        ({"pca": 1000}, "between 1 and"),
    ],
)
def test_settings_that_do_not_fit_say_what_would(opened, small_model, how, said):
    with pytest.raises(ConfigError, match=said):
        of(opened, small_model, **how)


def test_an_array_with_coordinates_is_what_xarray_expects(opened, small_model):
    pytest.importorskip("xarray")
    array = of(opened, small_model, stride=4).to_xarray()
    assert array.dims == ("channel", "y", "x")
    assert float(array.x[0]) == 500000 + 20
    assert float(array.y[-1]) == 5000000 - 40 * 21.5
    assert "32633" in str(array.spatial_ref.attrs["crs_wkt"])
