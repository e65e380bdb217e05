"""Any model behind one interface: what it reads, what normalises it, and that its features are the model's own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.vit_files import MEAN, STD, as_normal, plain_blocks, write_vit

from dofa import sensors
from dofa.errors import ConfigError
from dofa.evaluation.backbones import open_backbone
from dofa.evaluation.frozen_features import encode, prepare
from dofa.model import checkpoint
from dofa.model.encoder import DOFA


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return f"teacher:{write_vit(tmp_path / 'vit', 48, 3, 3, 8, 16)}"


def test_an_encoders_maps_and_vectors_are_its_own(make_images, encoder: DOFA) -> None:
    data, backbone = make_images(per_class=2), open_backbone(encoder)
    images = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        maps = backbone.maps(images, data.sensor, [2, 0])
        expected = encoder.forward_intermediates(images, data.sensor, [2, 0], intermediates_only=True)
        found = backbone.vectors(images, data.sensor, ["pooled", 0])
        pooled = encoder.forward_head(encoder.forward_features(images, data.sensor), pre_logits=True)
    assert all(torch.equal(one, two) for one, two in zip(maps, expected, strict=True))
    torch.testing.assert_close(found["pooled"], pooled)
    torch.testing.assert_close(found[0], maps[1].mean((2, 3)))
    assert (backbone.depth, backbone.width, backbone.patch, backbone.image_size) == (3, 48, 8, 16)


def test_a_teacher_sees_the_picture_of_the_images_as_it_was_trained_on_pictures(make_images, teacher: str) -> None:
    data, backbone = make_images(per_class=2), open_backbone(teacher)
    taken = backbone.take(data)
    scaling = backbone.scaling(taken)
    image = torch.from_numpy(prepare(taken, 0, scaling))[None]
    rgb = torch.from_numpy(data.read(0)[0].astype(np.float32) / 255)[None]
    torch.testing.assert_close(image, as_normal(rgb, MEAN, STD))
    state = load_file(Path(teacher.partition(":")[2]) / "model.safetensors")
    expected = plain_blocks(state, as_normal(rgb, MEAN, STD), 3)
    maps = backbone.maps(image, taken.sensor, [1, 2])
    for found, block in zip(maps, (1, 2), strict=True):
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected[block][:, 1:], atol=1e-4, rtol=1e-4)
    features = encode(backbone, taken, scaling, ["pooled", 1])
    np.testing.assert_allclose(features[1][0], maps[0].mean((2, 3))[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(features["pooled"][0], maps[1].mean((2, 3))[0].numpy(), atol=1e-4)


def test_a_teacher_takes_red_green_blue_by_name_whatever_their_order(make_images, teacher: str) -> None:
    data = make_images(per_class=2)
    turned = data.select_bands(data.sensor.band_names[::-1])
    taken = open_backbone(teacher).take(turned)
    assert taken.sensor.band_names == data.sensor.band_names
    assert np.array_equal(taken.read(0)[0], data.read(0)[0])


def test_a_teacher_sees_radar_as_one_band_three_times_and_nothing_without_a_picture(make_images, teacher: str) -> None:
    backbone = open_backbone(teacher)
    data = make_images(per_class=2)
    grey = replace(sensors.get("sentinel-1-grd"), scaling=None)
    radar = replace(
        data,
        sensor=grey,
        scaling=type(data.scaling).uniform("db", grey.band_names),
        shape=(2, 16, 16),
        read=lambda index: (data.read(index)[0][:2] / 10.0 - 25, None),
    )
    taken = backbone.take(radar)
    assert taken.sensor.band_names == ("VV",)
    image = torch.from_numpy(prepare(taken, 0, backbone.scaling(taken)))[None]
    expected = backbone.maps(image.expand(-1, 3, -1, -1), taken.sensor, [0])[0]
    assert torch.equal(backbone.maps(image, taken.sensor, [0])[0], expected)
    with pytest.raises(ConfigError, match="names no red, green and blue"):
        backbone.take(replace(data, sensor=replace(data.sensor, renderings={})))


def test_random_weights_follow_their_seed_and_never_the_models(encoder: DOFA, tmp_path: Path) -> None:
    checkpoint.save(encoder, tmp_path / "model")
    one, same, other = (open_backbone(f"random:{tmp_path / 'model'}#{seed}") for seed in (1, 1, 2))
    assert one.sha256 == same.sha256
    assert len({one.sha256, other.sha256, open_backbone(str(tmp_path / "model")).sha256}) == 3
    with pytest.raises(ConfigError, match="whole number"):
        open_backbone(f"random:{tmp_path / 'model'}#first")


def test_features_of_two_models_do_not_share_a_cache_entry(make_images, encoder: DOFA, teacher: str, tmp_path) -> None:
    data = make_images(per_class=2)
    for backbone in (open_backbone(teacher), open_backbone(encoder)):
        scaling = open_backbone(teacher).scaling(data)
        encode(backbone, data, scaling, ["pooled"], cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2
