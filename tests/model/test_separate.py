"""One patch embedding a sensor: an ordinary convolution each, before the same Transformer."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import dofa
from dofa import sensors
from dofa.errors import ConfigError
from dofa.model.checkpoint import create, load, load_mae, save
from dofa.model.config import DecoderConfig, EncoderConfig, TrainedSensor
from dofa.model.encoder import DOFA
from dofa.model.mae import MaskedAutoencoder
from dofa.model.prefit import prefit
from dofa.model.teacher import load_teacher

from ..vit_files import write_vit

NAMES = ("sentinel-2-l2a", "naip-rgb", "sentinel-1-grd")


def config(names=NAMES, **changes) -> EncoderConfig:
    known = {}
    for name in names:
        sensor = sensors.get(name)
        numbers = tuple(band.wavelength_um or 5.405 for band in sensor.bands)
        known[name] = TrainedSensor(sensor.band_names, numbers, platform=sensor.platform)
    return EncoderConfig(48, 2, 3, 8, image_size=32, embedding="separate", sensors=known, **changes)


@pytest.fixture
def model() -> DOFA:
    torch.manual_seed(0)
    made = DOFA(config())
    with torch.no_grad():
        made.patch_embed.bias.normal_()
    return made.eval()


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_a_convolution_of_the_sensor_s_own(model, name):
    sensor = sensors.get(name)
    x = torch.randn(2, len(sensor.bands), 32, 32)
    span = dict(zip(model.patch_embed.sensors, model.patch_embed.spans(), strict=True))[name]
    kernel = model.patch_embed.kernels[span.start : span.stop].reshape(-1, 8, 8, 48).permute(3, 0, 1, 2)
    bias = model.patch_embed.bias[sorted(NAMES).index(name)]
    tokens, _ = model.patch_embed(x, model.encode_bands(sensor))
    torch.testing.assert_close(tokens, F.conv2d(x, kernel, bias, stride=8).flatten(2).transpose(1, 2))


def test_bands_may_come_in_any_order_and_some_may_be_missing(model):
    sensor, x = sensors.get("sentinel-2-l2a"), torch.randn(2, 12, 32, 32)
    three = sensor.select(["B12", "B02", "B8A"])
    at = sensor.index(three.band_names)
    alone = torch.zeros_like(x)
    alone[:, at] = x[:, at]
    torch.testing.assert_close(model(x[:, at], three), model(alone, sensor))


def test_a_sensor_of_the_same_platform_is_known_by_its_bands(model):
    l1c = sensors.get("sentinel-2-l1c").select(["B04", "B03", "B02"])
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x, l1c), model(x, sensors.get("sentinel-2-l2a").select(["B04", "B03", "B02"])))


@pytest.mark.parametrize(
    ("bands", "words"),
    [
        ([0.66, 0.56, 0.49], "pass a Sensor"),
        ("landsat-8-l2-sr", "no patch embedding for landsat-8-l2-sr"),
        ("sentinel-2-l1c", "no patch embedding for sentinel-2-l1c with B01"),  # level 2A has no B10
    ],
)
def test_bands_without_an_embedding_are_refused_by_name(model, bands, words):
    count = 3 if isinstance(bands, list) else len(sensors.get(bands).bands)
    with pytest.raises(ConfigError, match=words):
        model(torch.randn(1, count, 32, 32), bands)


def test_a_static_model_of_one_sensor_gives_the_same(model):
    sensor, x = sensors.get("naip-rgb"), torch.randn(2, 3, 40, 32)
    torch.testing.assert_close(model.specialize(sensor)(x), model(x, sensor))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_gradient_whatever_the_sensor(name):
    mae = MaskedAutoencoder(DOFA(config()), DecoderConfig(32, 1, 2))
    sensor = sensors.get(name)
    mae(torch.randn(2, len(sensor.bands), 32, 32), sensor)["loss"].backward()
    assert [n for n, p in mae.named_parameters() if p.requires_grad and p.grad is None] == []
    span = dict(zip(mae.encoder.patch_embed.sensors, mae.encoder.patch_embed.spans(), strict=True))[name]
    own = torch.zeros(len(mae.encoder.patch_embed.kernels), dtype=torch.bool)
    own[span.start : span.stop] = True
    for table in (mae.encoder.patch_embed.kernels, mae.decoder_pred.kernels, mae.decoder_pred.bias):
        felt = table.grad.abs().sum(1) > 0
        assert torch.equal(felt, own)


def test_it_is_saved_and_loaded_with_its_decoder_and_with_sensors_in_any_order(tmp_path):
    mae = MaskedAutoencoder(DOFA(config()), DecoderConfig(32, 1, 2)).eval()
    save(mae, tmp_path / "model")
    sensor, x, noise = sensors.get("naip-rgb"), torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    again = load_mae(tmp_path / "model")
    assert torch.equal(again(x, sensor, noise)["loss"], mae(x, sensor, noise)["loss"])
    assert again.encoder.config.embedding == "separate"
    assert torch.equal(dofa.load(tmp_path / "model")(x, sensor), mae.encoder(x, sensor))
    turned = DOFA(replace(config(), sensors=dict(reversed(config().sensors.items()))))
    turned.load_state_dict(mae.encoder.state_dict())
    assert torch.equal(turned.eval()(x, sensor), mae.encoder(x, sensor))


def test_a_folder_of_a_dynamic_model_says_nothing_of_embeddings(tmp_path):
    save(create("tiny", width=48, heads=3, depth=1, image_size=32, patch=8), tmp_path / "model")
    assert '"embedding"' not in (tmp_path / "model" / "config.json").read_text()
    assert load(tmp_path / "model").config.embedding == "dynamic"


def test_a_weight_generator_that_is_not_there_is_not_fitted(model, tmp_path):
    teacher = load_teacher(str(write_vit(tmp_path / "vit", 48, 2, 3, 8, 32)))
    with pytest.raises(ConfigError, match="no weight generator"):
        prefit(model, teacher, sensors.get("naip-rgb"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"embedding": "both"}, "one of dynamic"), ({"embedding": "separate"}, "name the")],
)
def test_an_embedding_that_cannot_be_made_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        create("tiny", **changes)
