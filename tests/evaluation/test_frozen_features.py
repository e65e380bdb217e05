"""Frozen features, their cache, and the normalisation in front of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dofa.datasets.opening import LabelledImages
from dofa.errors import ConfigError, DataError
from dofa.evaluation.backbones import input_scaling, random_encoder
from dofa.evaluation.frozen_features import band_statistics, encode, prepare
from dofa.model.config import TrainedSensor
from dofa.model.encoder import DOFA
from dofa.pixels import RunningStats, Scaling

UNIT = Scaling.uniform("uint8", ["R", "G", "B"]).with_stats([120, 120, 120], [40, 40, 40], "user")


def counting(model: DOFA) -> list[int]:
    """Notes how many images the encoder really sees."""
    seen: list[int] = []
    model.patch_embed.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    return seen


def test_features_are_the_means_of_patch_tokens_and_the_models_own_pool(make_images, encoder: DOFA) -> None:
    data = make_images(per_class=3)
    found = encode(encoder, data, UNIT, ["pooled", 0, -1], batch=4)
    images = torch.stack([torch.from_numpy(UNIT.normalise(data.read(i)[0])) for i in range(len(data))])
    with torch.no_grad():
        tokens = encoder.forward_features(images, data.sensor)
        first, last = encoder.forward_intermediates(images, data.sensor, [0, 2], output_fmt="NLC")
        pooled = encoder.forward_head(tokens, pre_logits=True)
    for block, expected in (("pooled", pooled), (0, first.mean(1)), (-1, last.mean(1))):
        np.testing.assert_allclose(found[block], expected.numpy(), atol=1e-5)
        assert found[block].dtype == np.float32
    np.testing.assert_allclose(found[-1], tokens[:, 1:].mean(1).numpy(), atol=1e-5)


@pytest.mark.parametrize("blocks", [["pooled"], [1], [1, "pooled"]])
def test_each_choice_of_blocks_gives_the_same_features(make_images, encoder: DOFA, blocks) -> None:
    data = make_images(per_class=2)
    everything = encode(encoder, data, UNIT, ["pooled", 0, 1, 2])
    for block, found in encode(encoder, data, UNIT, blocks).items():
        np.testing.assert_allclose(found, everything[block], atol=1e-6)


def test_bf16_is_close_and_float32_on_the_outside(make_images, encoder: DOFA) -> None:
    data = make_images(per_class=2)
    exact = encode(encoder, data, UNIT)["pooled"]
    rough = encode(encoder, data, UNIT, precision="bf16")["pooled"]
    assert rough.dtype == np.float32
    assert 0 < np.linalg.norm(rough - exact) / np.linalg.norm(exact) < 2e-2


def test_size_resizes_before_the_encoder(make_images, encoder: DOFA) -> None:
    data = make_images(per_class=2)
    grids: list[int] = []
    encoder.blocks[0].register_forward_hook(lambda module, inputs, output: grids.append(output.shape[1]))
    encode(encoder, data, UNIT, size=32)
    encode(encoder, data, UNIT)
    assert grids == [1 + 16, 1 + 4]


def test_second_run_reads_the_cache_and_encodes_only_what_is_new(make_images, encoder: DOFA, tmp_path: Path) -> None:
    data = make_images(per_class=3)
    seen = counting(encoder)
    one = encode(encoder, data, UNIT, ["pooled"], cache=tmp_path)
    two = encode(encoder, data, UNIT, ["pooled"], cache=tmp_path)
    assert sum(seen) == 9
    np.testing.assert_array_equal(one["pooled"], two["pooled"])
    encode(encoder, data, UNIT, ["pooled", 1], cache=tmp_path)
    assert sum(seen) == 18
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors"}


def changed_weights(model: DOFA, data: LabelledImages):
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[0, 0] += 1e-6
    return model, data, UNIT, {}


def changed_wavelengths(model: DOFA, data: LabelledImages):
    own = TrainedSensor(("R", "G", "B"), (0.7, 0.5, 0.4))
    model.config = replace(model.config, sensors={data.sensor.name: own})
    return model, data, UNIT, {}


CHANGES = {
    "weights": changed_weights,
    "wavelengths": changed_wavelengths,
    "statistics": lambda m, d: (m, d, UNIT.with_stats([120, 120, 121], [40, 40, 40], "user"), {}),
    "physical step": lambda m, d: (m, replace(d, scaling=replace(d.scaling, offset=(0.0, 0.0, 1.0))), UNIT, {}),
    "size": lambda m, d: (m, d, UNIT, {"size": 24}),
    "precision": lambda m, d: (m, d, UNIT, {"precision": "bf16"}),
    "images": lambda m, d: (m, replace(d, fingerprint="other pixels"), UNIT, {}),
    "band order": lambda m, d: (m, d.select_bands(["B", "G", "R"]), UNIT.select(["B", "G", "R"]), {}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_cache_is_not_used_once_anything_behind_a_feature_changed(make_images, encoder, tmp_path, what: str) -> None:
    data = make_images(per_class=2)
    seen = counting(encoder)
    encode(encoder, data, UNIT, cache=tmp_path)
    model, images, scaling, options = CHANGES[what](encoder, data)
    encode(model, images, scaling, cache=tmp_path, **options)
    assert sum(seen) == 12


def test_a_damaged_cache_file_is_written_anew(make_images, encoder: DOFA, tmp_path: Path) -> None:
    data = make_images(per_class=2)
    seen = counting(encoder)
    right = encode(encoder, data, UNIT, cache=tmp_path)["pooled"]
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", whole.replace(b"float32", b"float99")):
        file.write_bytes(damage)
        np.testing.assert_allclose(encode(encoder, data, UNIT, cache=tmp_path)["pooled"], right, atol=1e-6)
        assert file.read_bytes() == whole
    assert sum(seen) == 24


def test_an_interrupted_write_leaves_no_cache_file(make_images, encoder, tmp_path: Path, monkeypatch) -> None:
    def fail(one, two) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dofa.io.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        encode(encoder, make_images(per_class=2), UNIT, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def masked(data: LabelledImages) -> LabelledImages:
    """The right half of every image is no measurement and holds garbage."""

    def read(index: int):
        raw, _ = data.read(index)
        valid = np.ones(raw.shape[1:], bool)
        valid[:, 8:] = False
        return np.where(valid, raw, 255), valid

    return replace(data, read=read, fingerprint="masked")


def test_band_statistics_are_those_of_valid_pixels(make_images) -> None:
    data = masked(make_images(per_class=4))
    found = band_statistics(data)
    assert found.features.shape == (12, 6)
    left = data.read(5)[0][:, :, :8].reshape(3, -1).astype(float)
    np.testing.assert_allclose(found.features[5], [*left.mean(1), *left.std(1)], rtol=1e-6)


def test_dataset_statistics_equal_one_pass_over_the_training_images_alone(make_images, tmp_path: Path) -> None:
    data = masked(make_images(per_class=4))
    train = np.array([0, 3, 4, 8, 11])
    running = RunningStats(data.sensor.band_names)
    for i in train:
        raw, valid = data.read(i)
        running.update(data.scaling.physical(raw), valid)
    for _ in range(2):  # computed, then from the cache
        mean, std = band_statistics(data, tmp_path).over(train)
        np.testing.assert_allclose(mean, running.mean, rtol=1e-10)
        np.testing.assert_allclose(std, running.std, rtol=1e-10)
    assert len(list(tmp_path.iterdir())) == 1


def test_masked_pixels_do_not_reach_the_encoder(make_images) -> None:
    data = masked(make_images(per_class=1))
    assert (prepare(data, 0, UNIT)[:, :, 8:] == 0).all()
    assert (prepare(data, 0, UNIT)[:, :, :8] != 0).any()


def test_images_that_cannot_be_used_are_named(make_images, encoder: DOFA) -> None:
    data = make_images(per_class=1)
    broken = np.full((3, 16, 16), np.nan, np.float32)
    nan = replace(data, read=lambda i: (broken, None) if i == 2 else data.read(i))
    with pytest.raises(DataError, match="image 2: 768 values are NaN"):
        encode(encoder, nan, UNIT)
    empty = replace(data, read=lambda i: (data.read(i)[0], np.full((16, 16), i != 1)))
    with pytest.raises(DataError, match="image 1 has no valid pixel"):
        encode(encoder, empty, UNIT)
    with pytest.raises(ConfigError, match="block 3: pooled, or a number from 0 to 2"):
        encode(encoder, data, UNIT, [3])
    with pytest.raises(ConfigError, match="size 32 would distort images of 16 × 12"):
        encode(encoder, replace(data, shape=(3, 16, 12)), UNIT, size=32)


def knowing(encoder: DOFA, **scalings: Scaling):
    known = {n.replace("_", "-"): TrainedSensor(s.bands, (0.5,) * len(s.bands), s) for n, s in scalings.items()}
    return replace(encoder.config, sensors=known)


def test_statistics_come_from_whoever_is_asked_then_the_encoder_then_the_store(make_images, encoder: DOFA) -> None:
    data = make_images(per_class=1)
    own = UNIT.with_stats([1, 2, 3], [1, 1, 1], "corpus")
    other = UNIT.with_stats([4, 5, 6], [1, 1, 1], "corpus")
    dataset = UNIT.with_stats([7, 8, 9], [1, 1, 1], "user")
    stored = replace(data, corpus_scaling=UNIT.with_stats([10, 11, 12], [1, 1, 1], "corpus"))
    config = knowing(encoder, rgb_aerial=own, naip_rgb=other)

    def mean_and_source(images, config, *said):
        found = input_scaling(images, config, *said)
        return found.mean[0], found.stats_source

    assert mean_and_source(stored, config) == (1, "checkpoint")
    assert mean_and_source(stored, config, "dataset", dataset) == (7, "user")
    assert mean_and_source(stored, config, "naip-rgb") == (4, "checkpoint")
    assert mean_and_source(stored, encoder.config) == (10, "corpus")
    with pytest.raises(ConfigError, match="rgb-aerial has no statistics"):
        input_scaling(data, encoder.config)
    with pytest.raises(ConfigError, match=r"--stats naip-rbg.*did you mean naip-rgb"):
        input_scaling(data, config, "naip-rbg")


def test_weights_in_another_unit_are_fed_through_the_named_map(make_images, encoder: DOFA) -> None:
    bands = ("B04", "B03", "B02")
    physical = Scaling.uniform("reflectance", bands, 1 / 255)
    base = make_images(per_class=1)
    sensor = replace(
        base.sensor,
        platform="sentinel-2",
        scaling=None,
        renderings={},
        bands=tuple(replace(b, name=n, aliases=()) for b, n in zip(base.sensor.bands, bands, strict=True)),
    )
    data = replace(base, sensor=sensor, scaling=physical)
    config = knowing(encoder, rgb_aerial=Scaling.uniform("uint8", bands).with_stats([100] * 3, [50] * 3, "catalogue"))
    scaling = input_scaling(data, config)
    assert scaling.unit == "uint8"
    seen = prepare(data, 0, scaling)
    reflectance = data.read(0)[0].astype(np.float64) / 255
    np.testing.assert_allclose(seen, (np.clip(reflectance / 0.3558, 0, 1) * 255 - 100) / 50, atol=1e-4)
    with pytest.raises(ConfigError, match=r"in reflectance, its statistics .* in uint8"):
        input_scaling(replace(data, sensor=replace(sensor, platform="landsat-8")), config)


def test_random_encoder_follows_its_seed_and_leaves_the_callers_generator_alone(encoder: DOFA) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, same, other = (random_encoder(encoder.config, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    weights = [m.blocks[0].attn.qkv.weight for m in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert one.config == encoder.config
