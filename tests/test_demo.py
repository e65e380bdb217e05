"""The demo learns, judges and reports; its page stands alone; the real pictures it carries are what they say."""

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from dofa import sensors
from dofa.corpus.store import open_stores
from dofa.demo import corpora, pictures, run
from dofa.errors import ConfigError, DataError
from dofa.model import checkpoint
from dofa.raster import open_raster
from dofa.simulate import CLASSES

SAMPLES = pictures.real_files()


def quiet(text: str) -> None:
    del text


class Page(HTMLParser):
    """Collects what a page refers to and whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [v or "" for k, v in attrs if k in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole demo, with two sensors trained, one never trained, and hardly any updates."""
    out = tmp_path_factory.mktemp("demo") / "out"
    trained, never = ("sentinel-1-grd", "naip-rgbn"), ("planetscope-4",)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "LEARN", dict.fromkeys(trained, 3))
        patch.setattr(run, "JUDGE", dict.fromkeys((*trained, *never), 5))
        patch.setattr(run, "LEAST_SECONDS", 0.0)
        patch.setattr(run, "LEAST_UPDATES", 6)
        patch.setattr(pictures, "SHOWN", pictures.SHOWN[:1])
        run.run_demo(out, minutes=0.01, seed=3)
    return out


def test_the_demo_ends_with_a_page_that_needs_nothing_beside_it(small_demo):
    page = Page((small_demo / "report.html").read_text(encoding="utf-8"))
    assert not page.open
    assert page.sources
    assert all(s.startswith("data:image/png;base64,") for s in page.sources)
    assert "simulated" in page.text
    assert "never trained on" in page.text
    for sensor in ("sentinel-1-grd", "naip-rgbn", "planetscope-4"):
        assert sensor in page.text


def test_the_page_tells_the_numbers_the_probe_wrote(small_demo):
    text = Page((small_demo / "report.html").read_text(encoding="utf-8")).text
    for sensor in ("naip-rgbn", "planetscope-4"):
        found = json.loads((small_demo / "run" / "probe" / sensor / "probe.json").read_text(encoding="utf-8"))
        rows = {r["features"]: r["score"]["value"] for r in found["rows"] if r["classifier"] == "logistic"}
        for features in ("pooled", "random pooled", "band statistics"):
            assert f"{100 * rows[features]:.1f}" in text


def test_the_demo_leaves_a_model_stores_and_figures(small_demo):
    model = checkpoint.load(small_demo / "run" / "model")
    assert {"sentinel-1-grd", "naip-rgbn", "naip-rgbn-real"} <= set(model.config.sensors)
    assert "planetscope-4" not in model.config.sensors
    stores = open_stores(small_demo / "corpus")
    assert stores["naip-rgbn"].class_names == CLASSES
    for name in ("curves", "bars", "reconstructions", "real", "features"):
        assert (small_demo / f"{name}.png").stat().st_size > 5000
    assert (small_demo / "run" / "probe" / "planetscope-4" / "head" / "head.json").is_file()


def test_training_and_probe_share_no_landscape(small_demo):
    train, judged = open_stores(small_demo / "corpus"), open_stores(small_demo / "probe")
    ours = {p for s in train.values() for p in s.sources(range(s.count))}
    theirs = {p for s in judged.values() for p in s.sources(range(s.count))}
    assert not ours & theirs


def test_the_real_pictures_held_out_are_of_other_places(small_demo):
    for name, store in open_stores(small_demo / "corpus").items():
        if name.endswith(corpora.REAL):
            train, held = (set(store.places(store.indices(s))) for s in ("train", "val"))
            assert train
            assert held
            assert not train & held


def test_own_stores_are_learned_instead_and_probed_where_they_have_labels(small_demo, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(run, "LEAST_UPDATES", 3)
    monkeypatch.setattr(pictures, "SHOWN", pictures.SHOWN[:1])
    corpora.pack_simulated(tmp_path / "mine", {"gaofen-2": 5}, 50, held_out=True, shared=True, say=quiet)
    page = run.run_demo(tmp_path / "out", corpus=[str(tmp_path / "mine")], minutes=0.01)
    text = Page(page.read_text(encoding="utf-8")).text
    assert "Trained on the stores you gave" in text
    assert not (tmp_path / "out" / "corpus").exists()
    assert (tmp_path / "out" / "run" / "probe" / "gaofen-2" / "probe.json").is_file()


def test_a_folder_of_somebody_else_is_left_alone_and_an_earlier_demo_is_written_anew(tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    with pytest.raises(DataError, match="holds files of something else"):
        run.clear(tmp_path)
    assert precious.read_text() == "mine"
    run.clear(tmp_path / "demo")
    (tmp_path / "demo" / "run").mkdir()
    (tmp_path / "demo" / "notes.txt").write_text("kept")
    run.clear(tmp_path / "demo")
    assert not (tmp_path / "demo" / "run").exists()
    assert (tmp_path / "demo" / "notes.txt").exists()


@pytest.mark.parametrize("minutes", [0, -1])
def test_no_minutes_are_refused(tmp_path, minutes):
    with pytest.raises(ConfigError, match="minutes is"):
        run.run_demo(tmp_path / "x", minutes=minutes)


def test_feature_maps_put_tokens_where_their_pixels_are():
    """A bright square changes the features under it more than those far away."""
    model = checkpoint.create("tiny", patch=8, image_size=96).eval()
    sensor = sensors.get("naip-rgbn")
    values = np.zeros((4, 96, 80), np.float32)
    plain = pictures.feature_map(model, pictures.Image(sensor, values))
    assert plain.shape == (192, 24, 20)
    values = values.copy()
    values[:, 64:80, 8:24] = 3
    change = np.linalg.norm(pictures.feature_map(model, pictures.Image(sensor, values)) - plain, axis=0)
    inside = change[16:20, 2:6].mean()
    assert inside > 3 * change[:8, 10:].mean()
    assert np.unravel_index(change.argmax(), change.shape)[0] in range(14, 22)


def test_a_reconstruction_shows_visible_patches_as_they_are():
    torch.manual_seed(0)
    from dofa.model.mae import MaskedAutoencoder

    mae = MaskedAutoencoder(checkpoint.create("tiny", patch=8, image_size=64)).eval()
    image = pictures.real_image("naip-rgbn/east_2016", (0, 0), 64)
    shown = dict(pictures.reconstruction(mae, image, seed=1))
    assert len(shown) == 4
    seen = next(v for k, v in shown.items() if k.startswith("seen"))
    visible = (seen != 0.5).any(axis=2)
    assert abs(visible.mean() - 0.25) < 0.02
    np.testing.assert_array_equal(shown["predicted"][visible], shown["original"][visible])
    assert np.abs(shown["predicted"] - shown["original"])[~visible].max() > 0.01


def test_the_real_pictures_weigh_at_most_6_mb_and_all_have_a_licence():
    assert len(SAMPLES) >= 15
    assert sum(p.stat().st_size for p in SAMPLES) <= 6e6
    licences = (corpora.samples() / "LICENCES.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| (\S+\.tif) \|", licences, re.MULTILINE))
    assert listed == {p.relative_to(corpora.samples()).as_posix() for p in SAMPLES}
    for text in ("public domain", "CC-BY-4.0", "CDLA", "CC0", "Copernicus Sentinel data"):
        assert text in licences


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_real_picture_opens_as_its_sensor_with_plausible_values(path):
    sensor = sensors.get(path.parent.name)
    with rasterio.open(path) as file:
        assert file.descriptions == sensor.band_names
        assert file.tags()["licence"]
        assert file.tags()["attribution"]
    with open_raster(path, sensor) as raster:
        physical, valid = raster.read_physical()
    # The bands of water vapour that EnMAP's product leaves empty are left out.
    assert physical.shape[0] == (202 if sensor.name == "enmap" else len(sensor.bands))
    assert valid.mean() > 0.9
    for band, plane in zip(raster.sensor.bands, physical, strict=True):
        values = plane[valid]
        low, high = {"reflectance": (-0.2, 1.5), "db": (-45, 15)}.get(raster.scaling.unit, (0, 255))
        assert low <= np.percentile(values, 1), band.name
        assert np.percentile(values, 99) <= high, band.name
    if sensor.name.startswith(("sentinel-2", "landsat-7")):
        assert 0.01 < physical[sensor.index(["red"])][:, valid].mean() < 0.3


@pytest.mark.slow
@pytest.mark.alone
def test_the_whole_demo_stays_within_its_minutes_and_beats_random_weights_on_new_sensors(tmp_path):
    began = time.monotonic()
    # More than the command's own minutes, so that a slow machine too gets past the plateau that docs/demo.md describes.
    run.run_demo(tmp_path / "out", minutes=7)
    assert time.monotonic() - began < 450
    for sensor in corpora.NEVER_TRAINED:
        found = json.loads((tmp_path / "out" / "run" / "probe" / sensor / "probe.json").read_text(encoding="utf-8"))
        low = [
            d["difference"]["low"]
            for d in found["differences"]
            if d["against"] == "random pooled" and d["classifier"] == "logistic"
        ]
        assert low[0] > 0
