"""Models that are no DOFA behind the tasks' one interface. timm and TorchGeo are stand-ins with their methods."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dofa import sensors
from dofa.datasets.labelled import LabelledImages
from dofa.errors import CheckpointError, ConfigError
from dofa.evaluation.backbones import open_backbone
from dofa.evaluation.frozen_features import encode
from dofa.evaluation.probe import probe
from dofa.model.checkpoint import create, save
from dofa.model.config import EncoderConfig, TrainedSensor
from dofa.model.encoder import DOFA

from ..labelled_images import labelled


def reflectance(bands: list[str], count: int = 6, size: int = 32) -> LabelledImages:
    """Sentinel-2 images of noise about a level that grows with the band."""
    sensor = sensors.get("sentinel-2-l1c").select(bands)
    rng = np.random.default_rng(0)
    levels = 500 * (1 + np.arange(len(bands)))[:, None, None]
    images = [(levels + rng.integers(0, 400, (len(bands), size, size))).astype(np.uint16) for _ in range(count)]
    return LabelledImages(
        name="noise",
        sensor=sensor,
        scaling=sensor.scaling.without_stats(),
        class_names=("a", "b"),
        labels=np.arange(count) % 2,
        sources=tuple(f"image {i}" for i in range(count)),
        shape=(len(bands), size, size),
        read=lambda index: (images[index], None),
        fingerprint=f"noise {bands}",
    )


class Blocks(nn.Module):
    """What timm's VisionTransformer shows: 2 blocks, width 8, patch 8, a CLS token."""

    def __init__(self, bands: int = 3, size: int = 32, dynamic: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(bands, 8, 8, 8)
        self.patch_embed.patch_size, self.patch_embed.strict_img_size = (8, 8), not dynamic
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.num_features = 8
        self.pretrained_cfg = {
            "input_size": (bands, size, size), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "classifier": "head",
        }  # fmt: skip

    def forward_features(self, x):
        tokens = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = tokens + block(tokens).tanh()
        return tokens

    def forward_head(self, tokens, pre_logits=False):
        assert pre_logits
        return tokens[:, 0]

    def forward_intermediates(self, x, indices, norm, output_fmt, intermediates_only):
        assert (norm, output_fmt, intermediates_only) == (False, "NCHW", True)
        tokens = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        found = []
        for number, block in enumerate(self.blocks):
            tokens = tokens + block(tokens).tanh()
            if number in set(indices):  # in the order of the blocks, as timm does
                found.append(tokens[:, 1:].transpose(1, 2).unflatten(2, (x.shape[2] // 8, x.shape[3] // 8)))
        return found


class Pyramid(nn.Module):
    """What timm's ResNet shows: two levels, 4 and 8 wide, no blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 2, 2)
        self.num_features = 8
        self.feature_info = [{"reduction": 4, "num_chs": 4}, {"reduction": 8, "num_chs": 8}]
        self.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}

    def forward_features(self, x):
        return self.second(self.first(x))

    def forward_head(self, x, pre_logits=False):
        assert pre_logits
        return x.mean((2, 3))

    def forward_intermediates(self, x, indices, norm, output_fmt, intermediates_only):
        levels = [self.first(x), self.forward_features(x)]
        return [levels[number] for number in sorted(indices)]


@pytest.fixture
def timm(monkeypatch):
    """A module `timm` that knows vit_blocks, vit_fixed (one size only) and resnet."""
    module = ModuleType("timm")

    def create_model(name, pretrained, num_classes, dynamic_img_size=None):
        assert num_classes == 0
        if name in ("resnet", "vit_fixed") and dynamic_img_size is not None:
            raise TypeError("unexpected keyword argument 'dynamic_img_size'")
        if name == "resnet":
            return Pyramid()
        if name == "vit_fixed":
            return Blocks(dynamic=False)
        if name == "old":
            model = nn.Linear(1, 1)
            model.pretrained_cfg = Pyramid().pretrained_cfg
            return model
        if name != "vit_blocks":
            raise RuntimeError(f"Unknown model ({name})")
        return Blocks()

    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


@pytest.fixture
def torchgeo(monkeypatch):
    """A module `torchgeo.models` with Sentinel-2 weights in 10,000ths, Landsat weights in 255ths, and nameless ones."""

    def weights(bands, divisor):
        return SimpleNamespace(
            meta={"model": "vit_small_patch16_224", "in_chans": 4, "bands": bands},
            transforms=lambda sample: {"image": sample["image"][..., :224, :224] / divisor},
        )

    known = {
        "ViTSmall16_Weights.SENTINEL2_ALL_MOCO": weights(["B2", "B3", "B4", "B8a"], 10_000.0),
        "ViTSmall16_Weights.LANDSAT_TM_TOA_MOCO": weights(["B2", "B3", "B4", "B8A"], 255.0),
        "ViTSmall16_Weights.OLD": SimpleNamespace(meta={"model": "vit_small_patch16_224"}, transforms=None),
    }
    module = ModuleType("torchgeo.models")

    def get_weight(name):
        if name not in known:
            raise ValueError(f"{name} is not a valid WeightsEnum")
        return known[name]

    def get_model(name, weights, num_classes, dynamic_img_size):
        assert (name, num_classes, dynamic_img_size) == (weights.meta["model"], 0, True)
        return Blocks(bands=4)

    module.get_weight, module.get_model = get_weight, get_model
    package = ModuleType("torchgeo")
    package.models = module
    monkeypatch.setitem(sys.modules, "torchgeo", package)
    monkeypatch.setitem(sys.modules, "torchgeo.models", module)


@pytest.fixture
def separate(tmp_path) -> str:
    """A model with embeddings for NAIP and for Sentinel-2 level 2A, with statistics."""
    known = {}
    for name in ("naip-rgb", "sentinel-2-l2a"):
        sensor = sensors.get(name)
        scaling = sensor.scaling.without_stats().with_stats(
            [0.2] * len(sensor.bands), [0.1] * len(sensor.bands), "user"
        )
        numbers = tuple(band.wavelength_um for band in sensor.bands)
        known[name] = TrainedSensor(sensor.band_names, numbers, scaling, platform=sensor.platform)
    torch.manual_seed(0)
    model = DOFA(EncoderConfig(48, 2, 3, 8, image_size=32, embedding="separate", sensors=known))
    save(model, tmp_path / "model")
    return str(tmp_path / "model")


def test_images_go_through_the_embedding_of_their_platform_with_the_bands_it_has(separate):
    backbone = open_backbone(f"separate:{separate}")
    taken = backbone.take(reflectance(["B04", "B10", "B02"]))
    assert taken.sensor.name == "sentinel-2-l2a"
    assert taken.sensor.band_names == ("B04", "B02")
    assert backbone.take(taken) is taken
    raw, _ = taken.read(0)
    assert np.array_equal(raw, reflectance(["B04", "B10", "B02"]).read(0)[0][[0, 2]])
    scaling = backbone.scaling(taken)
    assert scaling.mean == (0.2, 0.2)
    found = encode(backbone, taken, scaling, ("pooled", 0))
    plain = backbone.module(
        torch.stack([torch.from_numpy(scaling.normalise(taken.read(i)[0])) for i in range(6)]),
        sensors.get("sentinel-2-l2a").select(["B04", "B02"]),
    )
    np.testing.assert_allclose(found["pooled"], plain.detach(), atol=1e-5)


def test_another_sensor_s_embedding_is_used_on_the_user_s_word_by_wavelength(separate):
    images = reflectance(["B02", "B03", "B04"])
    taken = open_backbone(f"separate:{separate}#naip-rgb").take(images)
    assert taken.sensor.name == "naip-rgb"
    assert taken.sensor.band_names == ("B", "G", "R")
    own = open_backbone(f"separate:{separate}").take(images)
    assert len({images.fingerprint, own.fingerprint, taken.fingerprint}) == 3, "their features would share a cache"
    assert np.array_equal(taken.read(0)[0], images.read(0)[0])


def test_statistics_of_another_unit_are_refused_with_the_cure(separate):
    backbone = open_backbone(f"separate:{separate}#naip-rgb")
    taken = backbone.take(reflectance(["B02", "B03", "B04"]))
    with pytest.raises(ConfigError, match="--stats dataset"):
        backbone.scaling(taken)
    known = taken.scaling.with_stats([0.2] * 3, [0.1] * 3, "user")
    assert backbone.scaling(taken, "dataset", known).mean == (0.2, 0.2, 0.2)


def test_separate_and_dynamic_models_are_not_mistaken_for_each_other(separate, tmp_path):
    backbone = open_backbone(f"separate:{separate}")
    with pytest.raises(ConfigError, match="separate:FOLDER#naip-rgb"):
        backbone.take(labelled())  # rgb-aerial is of another platform
    with pytest.raises(ConfigError, match="no embedding for enmap"):
        open_backbone(f"separate:{separate}#enmap")
    save(create("tiny", width=48, heads=3, depth=1, image_size=32, patch=8), tmp_path / "dynamic")
    with pytest.raises(ConfigError, match="is dynamic"):
        open_backbone(f"separate:{tmp_path / 'dynamic'}")


def test_a_probe_runs_on_a_separate_model(separate):
    images = labelled(per_class=6, size=16)
    result = probe(f"separate:{separate}#naip-rgb", images, folds=2, neighbours=3, stats="dataset", random_seeds=1)
    assert result.rows


def test_a_timm_model_sees_the_picture_in_its_own_normalisation(timm):
    backbone = open_backbone("timm:vit_blocks")
    assert (backbone.depth, backbone.width, backbone.patch, backbone.image_size) == (2, 8, 8, 32)
    images = reflectance(["B02", "B03", "B04", "B08"])
    taken = backbone.take(images)
    assert taken.sensor.band_names == images.sensor.renderings["rgb"]
    scaling = backbone.scaling(taken)
    raw, _ = taken.read(0)
    shown = np.clip(raw / 10_000 / 0.3558, 0, 1)
    expected = (shown - np.array([0.5, 0.4, 0.3])[:, None, None]) / np.array([0.2, 0.3, 0.4])[:, None, None]
    np.testing.assert_allclose(scaling.normalise(raw), expected, atol=1e-3)
    found = encode(backbone, taken, scaling, (1, 0, "pooled"))
    x = torch.stack([torch.from_numpy(scaling.normalise(taken.read(i)[0])) for i in range(6)])
    tokens = backbone.module.forward_features(x).detach()
    np.testing.assert_allclose(found[1], tokens[:, 1:].mean(1), atol=1e-5)
    np.testing.assert_allclose(found["pooled"], tokens[:, 0], atol=1e-5)
    deep, shallow = backbone.maps(x, taken.sensor, [1, 0])
    np.testing.assert_allclose(deep.detach().flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-5)
    assert not torch.equal(deep, shallow)


def test_weights_from_a_file_are_all_accounted_for(timm, tmp_path):
    state = {k: v + 1 for k, v in Blocks().state_dict().items()}
    save_file({**state, "head.weight": torch.zeros(2, 8)}, tmp_path / "own.safetensors")
    torch.save({"state_dict": state}, tmp_path / "own.pth")
    one, two = (open_backbone(f"timm:vit_blocks#{tmp_path / name}") for name in ("own.safetensors", "own.pth"))
    assert one.sha256 == two.sha256 != open_backbone("timm:vit_blocks").sha256
    del state["cls_token"]
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(CheckpointError, match="cls_token"):
        open_backbone(f"timm:vit_blocks#{tmp_path / 'less.safetensors'}")
    with pytest.raises(CheckpointError, match="no weights"):
        open_backbone("timm:vit_blocks#absent.pth")


def test_a_pickle_that_runs_code_is_not_run(timm, tmp_path):
    class Shout:
        def __reduce__(self):
            return print, ("never",)

    torch.save({"state_dict": Shout()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        open_backbone(f"timm:vit_blocks#{tmp_path / 'evil.pth'}")


def test_a_model_of_one_size_says_which(timm):
    backbone = open_backbone("timm:vit_fixed")
    images = backbone.take(labelled(size=16))
    with pytest.raises(ConfigError, match="--size 32"):
        encode(backbone, images, backbone.scaling(images), ("pooled",))
    assert encode(backbone, images, backbone.scaling(images), ("pooled",), size=32)["pooled"].shape == (36, 8)


def test_the_levels_of_a_pyramid_stand_for_blocks(timm):
    backbone = open_backbone("timm:resnet")
    assert (backbone.depth, backbone.width, backbone.patch) == (2, 8, 8)
    images = backbone.take(labelled(size=16))
    found = encode(backbone, images, backbone.scaling(images), (0, 1, "pooled"))
    assert {level: array.shape for level, array in found.items()} == {0: (36, 4), 1: (36, 8), "pooled": (36, 8)}
    assert backbone.maps(torch.randn(1, 3, 16, 16), images.sensor, [1])[0].shape == (1, 8, 2, 2)
    with pytest.raises(ConfigError, match="level 0 is no map of 8 channels: take 1"):
        backbone.maps(torch.randn(1, 3, 16, 16), images.sensor, [0])


@pytest.mark.parametrize(("spec", "words"), [("timm:old", "timm >= 1.0"), ("timm:vit_blok", "no vit_blok")])
def test_what_timm_cannot_give_is_told(timm, spec, words):
    with pytest.raises(ConfigError, match=words):
        open_backbone(spec)


@pytest.mark.parametrize("package", ["timm", "torchgeo"])
def test_a_package_that_is_not_installed_is_named_with_the_cure(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        open_backbone(f"{package}:anything")


def test_torchgeo_weights_are_fed_the_bands_they_name_as_reflectance(torchgeo):
    backbone = open_backbone("torchgeo:ViTSmall16_Weights.SENTINEL2_ALL_MOCO")
    images = reflectance(["B8A", "B04", "B03", "B02", "B01"])
    taken = backbone.take(images)
    assert taken.sensor.band_names == ("B02", "B03", "B04", "B8A")
    scaling = backbone.scaling(taken)
    raw, _ = taken.read(0)
    np.testing.assert_allclose(scaling.normalise(raw), raw / 10_000, rtol=1e-5)
    assert encode(backbone, taken, scaling, ("pooled",))["pooled"].shape == (6, 8)
    with pytest.raises(ConfigError, match="needs B8a"):
        backbone.take(reflectance(["B02", "B03", "B04"]))


def test_what_torchgeo_does_not_say_is_not_guessed(torchgeo):
    backbone = open_backbone("torchgeo:ViTSmall16_Weights.LANDSAT_TM_TOA_MOCO")
    taken = backbone.take(reflectance(["B02", "B03", "B04", "B8A"]))
    with pytest.raises(ConfigError, match="--stats dataset"):
        backbone.scaling(taken)
    known = taken.scaling.with_stats([0.0] * 4, [1.0] * 4, "user")
    assert backbone.scaling(taken, "dataset", known) == known
    with pytest.raises(ConfigError, match="does not say the bands"):
        open_backbone("torchgeo:ViTSmall16_Weights.OLD")
    with pytest.raises(ConfigError, match="no weights ViT_Weights"):
        open_backbone("torchgeo:ViT_Weights.NONE")
