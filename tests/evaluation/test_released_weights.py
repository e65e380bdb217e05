"""Tasks with weights that know other bands and units than the images have: the road that scenes take."""

import numpy as np
import pytest
import torch

from dofa import sensors
from dofa.cli import main
from dofa.datasets.labelled import LabelledImages
from dofa.errors import ConfigError
from dofa.evaluation.backbones import DofaBackbone, input_scaling
from dofa.evaluation.frozen_features import prepare
from dofa.evaluation.probe import probe
from dofa.finetuning.evaluate import evaluate
from dofa.finetuning.finetune import finetune
from dofa.model.checkpoint import save
from dofa.model.config import EncoderConfig
from dofa.model.encoder import DOFA
from dofa.model.heads import load_head
from dofa.model.released import trained_sensors
from dofa.pixels import Scaling

NINE = ("B04", "B03", "B02", "B05", "B06", "B07", "B08", "B11", "B12")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small encoder that knows what released v1 weights know; random weights."""
    torch.manual_seed(0)
    config = EncoderConfig(
        32, 2, 2, 16, image_size=32, patch_offset=1, sar_wavelength=3.75, polarisation_embedding=False,
        sensors=trained_sensors(1),
    )  # fmt: skip
    return save(DOFA(config), tmp_path_factory.mktemp("weights") / "v1")


def images_of(name, count=24, side=32, low=200, high=3000, scale=1.0, dtype="u2"):
    """Images of two classes that differ in brightness."""
    sensor = sensors.get(name)
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    images = [
        (rng.uniform(low, high, (len(sensor.bands), side, side)) * (1 + label) * scale).astype(dtype)
        for label in labels
    ]
    return LabelledImages(
        name="noise", sensor=sensor, scaling=sensor.scaling.without_stats(), class_names=("dark", "bright"),
        labels=labels, sources=tuple(f"image {i}" for i in range(count)), shape=images[0].shape,
        read=lambda index: (images[index], None), fingerprint=f"{name} {count}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "bands", "unit"),
    [
        ("sentinel-2-l2a", NINE, "uint8"),
        ("sentinel-2-l1c", NINE, "uint8"),
        ("naip-rgbn", ("R", "G", "B"), "uint8"),
        ("landsat-8-l2-sr", ("B2", "B3", "B4", "B5", "B6", "B7"), "reflectance"),
    ],
)
def test_a_backbone_takes_the_bands_its_weights_know(weights, name, bands, unit):
    from dofa.model.checkpoint import load

    data = images_of(name, count=4, **({"low": 1, "high": 120, "dtype": "u1"} if "naip" in name else {}))
    backbone = DofaBackbone(load(weights), "v1")
    taken = backbone.take(data)
    assert taken.sensor.band_names == bands
    scaling = backbone.scaling(taken)
    assert (scaling.unit, scaling.stats_source, scaling.bands) == (unit, "checkpoint", bands)
    assert np.isfinite(prepare(taken, 0, scaling)).all()
    with pytest.raises(ConfigError, match="lack band"):
        backbone.scaling(data)
    # Statistics of the images themselves are of all bands.
    assert backbone.take(data, "dataset") is data
    measured = data.scaling.with_stats([1] * len(data.sensor.bands), [1] * len(data.sensor.bands), "user")
    assert backbone.scaling(data, "dataset", measured).bands == data.sensor.band_names


def test_a_store_s_statistics_come_before_those_of_the_nearest_bands(weights):
    from dataclasses import replace

    from dofa.model.checkpoint import load

    config = load(weights).config
    data = images_of("landsat-8-l2-sr", count=2)
    seven = data.sensor.band_names
    stored = replace(data, corpus_scaling=data.scaling.with_stats([0.1] * 7, [0.2] * 7, "corpus"))
    assert input_scaling(stored, config).bands == seven
    assert DofaBackbone(load(weights), "v1").take(stored) is stored
    # What the weights know by name or platform comes before the store.
    data = images_of("sentinel-2-l2a", count=2).select_bands(list(NINE))
    stored = replace(data, corpus_scaling=Scaling.uniform("reflectance", NINE).with_stats([0] * 9, [1] * 9, "corpus"))
    assert input_scaling(stored, config).stats_source == "checkpoint"


@pytest.mark.parametrize("how", ["probe", "finetune"])
def test_a_head_on_released_weights_maps_a_scene_with_all_its_bands(weights, tmp_path, how):
    pytest.importorskip("rasterio")
    from ..scene.conftest import write_tiff

    data = images_of("sentinel-2-l2a")
    if how == "probe":
        result = probe(str(weights), data, folds=2, neighbours=3, baselines=False, out=tmp_path / "out")
        assert "B01, B8A, B09" in str(result.to_dict())
    else:
        finetune(str(weights), data, out=tmp_path / "out", epochs=1, batch=8, method="frozen")
    (folder,) = [p.parent for p in (tmp_path / "out").rglob("head.json")][:1]
    head = load_head(folder)
    assert head.sensor.band_names == NINE
    assert head.scaling.unit == "uint8"
    image = (np.random.default_rng(1).uniform(200, 3000, (12, 64, 64))).astype("u2")
    image[:, 32:] *= 2
    path = write_tiff(tmp_path / "scene.tif", image, names=data.sensor.band_names)
    words = ["predict", str(path), "--weights", str(weights), "--head", str(folder), "--dn-offset", "0"]
    if how == "probe":
        assert main([*words, "--out", str(tmp_path / "map.tif")]) == 0
        import rasterio

        with rasterio.open(tmp_path / "map.tif") as written:
            assert set(np.unique(written.read())) <= {0, 1}
    found = evaluate(folder, str(weights), images_of("sentinel-2-l2a", count=12))
    assert found.score.images > 0  # some of these the head learned from
