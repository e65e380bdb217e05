"""Studies outside the package run as their first lines say, on tiny input."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dofa import sensors
from dofa.datasets.splits import make_splits
from dofa.errors import ConfigError
from dofa.evaluation.backbones import open_backbone
from dofa.evaluation.frozen_features import encode
from dofa.model import checkpoint
from dofa.model.config import EncoderConfig
from dofa.model.encoder import DOFA

from ..labelled_images import labelled
from ..vit_files import write_vit

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


wavelengths, tsne, bands = load("wavelengths"), load("tsne"), load("bands")


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(3)
    return DOFA(EncoderConfig(width=48, depth=3, heads=3, patch=8, image_size=16)).eval()


@pytest.fixture(scope="module")
def model(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mine"
    checkpoint.save(encoder, folder)
    return str(folder)


@pytest.fixture
def images(monkeypatch):
    found = labelled(per_class=12)
    for module in (tsne, bands):
        monkeypatch.setattr(module, "open_labelled", lambda spec: found)
    return found


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_the_first_lines_of_an_example_are_a_command_of_its_own(path):
    assert re.search(rf"(?m)^    python examples/{path.name} ", path.read_text(encoding="utf-8"))


# -- wavelengths ------------------------------------------------------------------------------------------------------


def test_a_kernel_of_the_axis_is_what_an_image_of_that_one_band_meets(encoder):
    found = wavelengths.spectra(encoder, [0.49, 1.61])
    image = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        tokens, _ = encoder.patch_embed(image, encoder.encode_bands([1.61]))
        bias = encoder.patch_embed.kernel(encoder.encode_bands([1.61]))[1]
    by_hand = np.tensordot(image[0, 0].double().numpy(), found.kernel[1], 2) + bias.double().numpy()
    np.testing.assert_allclose(tokens[0, 0].numpy(), by_hand, atol=1e-5)
    np.testing.assert_allclose(found.norm[0], np.linalg.norm(found.kernel[0]))


def test_cosines_are_one_with_oneself_and_symmetric(encoder):
    found = wavelengths.cosines(wavelengths.spectra(encoder).embedding)
    assert found.shape == (43, 43)
    np.testing.assert_allclose(np.diag(found), 1)
    np.testing.assert_allclose(found, found.T)
    assert wavelengths.cosines(np.array([[1.0, 0], [0, 2], [-3, 0]])).tolist() == [[1, 0, -1], [0, 1, 0], [-1, 0, 1]]


def test_wavelengths_of_two_models_are_compared_without_data(model, tmp_path):
    wavelengths.main(["--weights", model, f"random:{model}#1", "--out", str(tmp_path)])
    assert {p.name for p in tmp_path.iterdir()} == {"wavelengths.csv", "wavelengths.png", "kernels.csv", "kernels.png"}
    table = pd.read_csv(tmp_path / "wavelengths.csv")
    assert len(table) == 2 * 43 * 43
    assert (table[table.wavelength_um == table.other_um].kernel == 1).all()
    assert set(pd.read_csv(tmp_path / "kernels.csv").model) == {model, f"random:{model}#1"}


def test_a_model_without_generated_kernels_is_refused(tmp_path):
    teacher = write_vit(tmp_path / "vit", 48, 3, 3, 8, 16)
    with pytest.raises(ConfigError, match="generates no kernels"):
        wavelengths.main(["--weights", f"teacher:{teacher}", "--out", str(tmp_path / "out")])


# -- t-SNE ------------------------------------------------------------------------------------------------------------


def test_t_sne_keeps_clusters_apart_and_is_the_same_for_the_same_seed():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], 20)
    features = (8 * np.eye(3)[label] @ rng.normal(size=(3, 30)) + rng.normal(size=(60, 30))).astype(np.float32)
    features[:, 4] = 7  # a constant feature is no reason to fail
    found = tsne.tsne(features, 0)
    assert np.array_equal(found, tsne.tsne(features, 0))
    distance = np.linalg.norm(found[:, None] - found[None], axis=2) + 1e9 * np.eye(60)
    assert (label[distance.argmin(1)] == label).all()


def test_maps_of_two_models_stand_side_by_side(model, images, tmp_path):
    told = ["--weights", model, f"random:{model}#1", "--data", "stripes", "--out", str(tmp_path), "--stats", "dataset"]
    tsne.main([*told, "--points", "30"])
    table = pd.read_csv(tmp_path / "tsne.csv")
    assert table.model.value_counts().tolist() == [30, 30]
    assert set(table["class"]) == set(images.class_names)
    assert (tmp_path / "tsne.png").read_bytes()[:4] == b"\x89PNG"


# -- bands ------------------------------------------------------------------------------------------------------------


def test_bands_are_spread_from_the_first_to_whichever_is_farthest_from_all_before_it():
    s2 = sensors.get("sentinel-2-l2a").select(["B02", "B03", "B08", "B11", "B12"])
    # .49; then 2.20; then 1.61 (.59 from 2.20; .83 is .34 from .49); then .83; the rest.
    assert bands.spread(s2) == ["B02", "B12", "B11", "B08", "B03"]
    radar = sensors.get("sentinel-1-grd")
    assert bands.spread(radar) == list(radar.band_names)


@pytest.mark.parametrize(("count", "missing"), [(2, [1]), (3, [1, 2]), (13, [1, 3, 6, 10, 12])])
def test_one_to_all_but_one_of_the_bands_go_missing(count, missing):
    assert bands.counts_missing(count) == missing


def test_sets_of_missing_bands_differ_and_are_no_more_than_there_are():
    assert sorted(bands.draw_sets("abc", 1, 5, seed=0)) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert bands.draw_sets("abcdefgh", 4, 3, seed=1) == bands.draw_sets("abcdefgh", 4, 3, seed=1)


def test_a_dropped_band_is_absent_and_a_zeroed_one_holds_its_mean(encoder, monkeypatch):
    images, backbone = labelled(per_class=2), open_backbone(encoder)
    scaling = images.scaling.with_stats([120, 110, 100], [50, 40, 30], "user")
    fed = []
    monkeypatch.setattr(
        backbone, "vectors", lambda x, sensor, levels: fed.append((x, sensor)) or {"pooled": x.mean((2, 3))}
    )
    encode(bands.ZeroedBands(backbone, [1]), images, scaling)
    encode(backbone, images.select_bands(["R", "B"]), scaling.select(["R", "B"]))
    (zeroed, all_bands), (dropped, two) = fed
    assert all_bands.band_names == ("R", "G", "B")
    assert two.band_names == ("R", "B")
    assert not zeroed[:, 1].any()
    assert torch.equal(zeroed[:, [0, 2]], dropped)


def test_zeroed_and_whole_images_never_share_a_cache_entry(encoder, tmp_path):
    images, backbone = labelled(per_class=2), open_backbone(encoder)
    scaling = images.scaling.with_stats([120, 110, 100], [50, 40, 30], "user")
    models = [backbone, *(bands.ZeroedBands(backbone, at) for at in ([1], [0, 1], [1]))]
    found = [encode(one, images, scaling, cache=tmp_path)["pooled"] for one in models]
    assert not np.allclose(found[0], found[1])
    assert not np.allclose(found[1], found[2])
    assert np.array_equal(found[1], found[3])
    assert len(list(tmp_path.iterdir())) == 3


def test_accuracy_is_of_images_that_were_not_trained_on():
    images = labelled(per_class=20)
    splits = make_splits(images, 4, "auto", 0)
    noise = np.random.default_rng(0).normal(size=(60, 40)).astype(np.float32)  # separable on its training images
    assert bands.correct(noise, [noise], images.labels, splits, 0).mean() < 0.6
    told = np.eye(3, dtype=np.float32)[images.labels]
    right = bands.correct(told, [told, np.roll(told, 1, axis=1)], images.labels, splits, 0)
    assert np.array_equal(right, np.full(60, 0.5))  # one of the two is always right, the other never


def test_bands_are_added_and_taken_away(model, images, tmp_path):
    told = ["--weights", model, f"random:{model}#1", "--data", "stripes", "--out", str(tmp_path), "--stats", "dataset"]
    bands.main([*told, "--folds", "3", "--draws", "2"])
    added, missing = pd.read_csv(tmp_path / "bands_added.csv"), pd.read_csv(tmp_path / "bands_missing.csv")
    names = [model, f"random:{model}#1"]
    assert added.groupby("curve", sort=False).bands.apply(list).to_dict() == {
        name: [1, 2, 3] for name in [*names, "band statistics"]
    }
    assert missing.groupby("curve", sort=False).bands_left.apply(list).to_dict() == {
        f"{name}, {way}": [3, 2, 1] for name in names for way in ("dropped", "zeroed")
    }
    for name in names:
        whole = added[(added.curve == name) & (added.bands == 3)].accuracy.item()
        assert (missing[missing.curve.str.startswith(f"{name}, ") & (missing.bands_left == 3)].accuracy == whole).all()
    for table in (added, missing):
        assert ((table.low <= table.accuracy) & (table.accuracy <= table.high)).all()
    assert {p.suffix for p in tmp_path.glob("bands_*")} == {".csv", ".png"}
