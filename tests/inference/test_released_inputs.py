"""The obvious commands with released weights: what the model is fed, against the published numbers and plain numpy."""

import re
import shlex
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rasterio")

from numpy.typing import NDArray

from dofa import sensors
from dofa.cli import main
from dofa.inference.features import embed, embed_all
from dofa.inference.inputs import OwnStatisticsWarning, resolve_inputs
from dofa.model.checkpoint import load, save
from dofa.model.config import EncoderConfig
from dofa.model.encoder import DOFA, StaticViT
from dofa.model.released import trained_sensors
from dofa.outputs.reading import open_features
from dofa.scene.grid import Window
from dofa.scene.scene import open_scene

from ..scene.conftest import write_tiff

SIDE = 64
NINE = ("B04", "B03", "B02", "B05", "B06", "B07", "B08", "B11", "B12")
NINE_UM = (0.665, 0.56, 0.49, 0.705, 0.74, 0.783, 0.842, 1.61, 2.19)
# The published statistics, of 8-bit pictures; typed here again, so that no table of the package is its own oracle.
S2_MEAN = [114.1099739, 114.81779093, 126.63977424, 84.33539309, 97.84789168, 103.94461911, 101.435633, 72.32804172,
           56.66528851]  # fmt: skip
S2_STD = [77.84352553, 69.96844919, 67.42465279, 64.57022983, 61.72545487, 61.34187099, 60.29744676, 47.88519516,
          42.55886798]  # fmt: skip
S1_MEAN, S1_STD = [166.36275909, 88.45542715], [64.83126309, 43.07350145]
NAIP_MEAN, NAIP_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
ENMAP_LEFT_OUT = {*range(126, 141), *range(160, 167)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folders of small encoders with all that released v1 and v2 know of their sensors; random weights."""
    folder = tmp_path_factory.mktemp("weights")
    for version, patch, sar in ((1, 16, 3.75), (2, 14, 5.405)):
        torch.manual_seed(version)
        config = EncoderConfig(
            32, 2, 2, patch, image_size=8 * patch, patch_offset=1, sar_wavelength=sar, polarisation_embedding=False,
            pooled_norm=version == 1, sensors=trained_sensors(version),
        )  # fmt: skip
        save(DOFA(config), folder / f"v{version}")
    return folder


@dataclass
class Fed:
    images: NDArray
    wavelength_um: list[float]


@pytest.fixture
def fed(monkeypatch):
    """What encoders are handed from now on: the last tensor, and the wavelengths of its bands."""
    seen = Fed(np.zeros(0), [])
    specialize, through = DOFA.specialize, StaticViT._embed

    def recorded(self, wavelengths, *args, **kwargs):
        seen.wavelength_um = self.band_inputs(wavelengths)[0].tolist()
        return specialize(self, wavelengths, *args, **kwargs)

    def handed(self, x):
        seen.images = x.detach().float().numpy().copy()
        return through(self, x)

    monkeypatch.setattr(DOFA, "specialize", recorded)
    monkeypatch.setattr(StaticViT, "_embed", handed)
    return seen


def satlas(reflectance, bands):
    """SatlasPretrain's 8-bit scale: true colour 0–0.3558, the others counts of 10⁻⁴ cut at 8160, over 32."""
    out = [
        np.clip(r / 0.3558, 0, 1) * 255 if b in ("B02", "B03", "B04") else np.clip(r * 1e4, 0, 8160) / 32
        for r, b in zip(reflectance, bands, strict=True)
    ]
    return np.stack(out)


def standardised(values, mean, std):
    column = np.asarray([mean, std], np.float64)[:, :, None, None]
    return (values - column[0]) / column[1]


def land(count, seed=0):
    """Counts of reflectance × 10⁴ as of vegetated land, a tenth of it bright enough to be cut."""
    rng = np.random.default_rng(seed)
    image = rng.gamma(4, 300, (count, SIDE, SIDE)) + 100
    image[:, :6, :] = rng.uniform(3000, 12000, (count, 6, SIDE))
    return image.astype(np.uint16)


def ground_db(seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.normal(-11, 3, (SIDE, SIDE)), rng.normal(-17, 3, (SIDE, SIDE))])


def sentinel_2(tmp_path, sensor, named):
    names = sensors.get(sensor).band_names
    image = land(len(names))
    path = write_tiff(tmp_path / "S2.tif", image, names=names if named else None)
    picked = image[[names.index(b) for b in NINE]] / 1e4
    return path, standardised(satlas(picked, NINE), S2_MEAN, S2_STD)


def sentinel_1(tmp_path, stored):
    db = ground_db()
    raw = {
        "db": db.astype("f4"), "× 100": np.rint(db * 100).astype("i2"), "power": (10 ** (db / 10)).astype("f4"),
    }[stored]  # fmt: skip
    if stored == "× 100":
        db = raw / 100
    path = write_tiff(tmp_path / "S1.tif", raw, names=["VV", "VH"])
    return path, standardised(np.clip(600 * 10 ** (db / 20), 0, 255), S1_MEAN, S1_STD)


def naip(tmp_path, count):
    image = np.random.default_rng(0).integers(1, 255, (count, SIDE, SIDE)).astype("u1")
    path = write_tiff(tmp_path / "naip.tif", image, names=["R", "G", "B", "NIR"][:count])
    return path, standardised(image[:3].astype(float), NAIP_MEAN, NAIP_STD)


def enmap(tmp_path, named):
    image = np.random.default_rng(0).integers(-200, 11000, (224, SIDE, SIDE)).astype("i2")
    path = write_tiff(tmp_path / "enmap.tif", image, names=sensors.get("enmap").band_names if named else None)
    kept = [i for i in range(224) if i not in ENMAP_LEFT_OUT]
    scaling = sensors.get("enmap-202").scaling
    return path, standardised(np.clip(image[kept] / 1e4, 0, 1), scaling.mean, scaling.std)


def landsat(tmp_path):
    """Six of the seven bands lie near bands of Sentinel-2 and take their statistics, on the same scale."""
    counts = np.random.default_rng(0).integers(7300, 24000, (7, SIDE, SIDE)).astype("u2")
    path = write_tiff(tmp_path / "L8.tif", counts, names=sensors.get("landsat-8-l2-sr").band_names)
    near = ("B02", "B03", "B04", "B08", "B11", "B12")
    at = [NINE.index(b) for b in near]
    values = satlas(counts[1:] * 2.75e-5 - 0.2, near)
    return path, standardised(values, [S2_MEAN[i] for i in at], [S2_STD[i] for i in at])


ENMAP_UM = trained_sensors(1)["enmap-202"].wavelength_um
CASES = {
    "sentinel-2-l2a": (lambda t: sentinel_2(t, "sentinel-2-l2a", True), NINE_UM),
    "sentinel-2-l2a without names": (lambda t: sentinel_2(t, "sentinel-2-l2a", False), NINE_UM),
    "sentinel-2-l1c": (lambda t: sentinel_2(t, "sentinel-2-l1c", True), NINE_UM),
    "sentinel-2-l1c without names": (lambda t: sentinel_2(t, "sentinel-2-l1c", False), NINE_UM),
    "sentinel-1-grd": (lambda t: sentinel_1(t, "db"), "sar"),
    "sentinel-1-grd in power": (lambda t: sentinel_1(t, "power"), "sar"),
    "sentinel-1-grd × 100": (lambda t: sentinel_1(t, "× 100"), "sar"),
    "sentinel-1-rtc": (lambda t: sentinel_1(t, "power"), "sar"),
    "sentinel-1-rtc in decibels": (lambda t: sentinel_1(t, "db"), "sar"),
    "naip-rgb": (lambda t: naip(t, 3), (0.665, 0.56, 0.49)),
    "naip-rgbn": (lambda t: naip(t, 4), (0.665, 0.56, 0.49)),
    "enmap": (lambda t: enmap(t, True), ENMAP_UM),
    "enmap without names": (lambda t: enmap(t, False), ENMAP_UM),
    "landsat-8-l2-sr": (landsat, (0.482, 0.562, 0.655, 0.865, 1.609, 2.201)),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_obvious_command_feeds_the_model_what_it_learned(case, version, weights, tmp_path, fed, capsys):
    make, wavelengths = CASES[case]
    path, expected = make(tmp_path)
    sensor = case.split()[0]
    wavelengths = {1: [3.75] * 2, 2: [5.405] * 2}[version] if wavelengths == "sar" else wavelengths
    out = tmp_path / "f.tif"
    words = ["embed", str(path), "--sensor", sensor, "--weights", str(weights / f"v{version}"), "--out", str(out)]
    assert main([*words, "--precision", "float32"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dofa: ")]
    assert np.allclose(fed.wavelength_um, wavelengths, atol=1e-6)
    assert fed.images.shape[1] == len(expected)
    assert np.allclose(fed.images[0, :, :SIDE, :SIDE], expected, atol=2e-3)
    # Near the statistics, and few values cut at the ends of the scale.
    means = expected.mean((1, 2)) if "enmap" not in case else np.zeros(1)
    assert np.abs(means).max() < 2, means
    for band in expected:
        assert max(np.mean(band == band.min()), np.mean(band == band.max())) < 0.3
    # Said in two lines, and kept in the file.
    (kept,) = open_features(out).meta["inputs"]
    plain = sensor == "naip-rgb"
    assert len(said) == (0 if plain else 2), said
    names = sensors.get(sensor).band_names
    assert sorted([*kept["bands"], *kept["left_out"]]) == sorted(names)
    assert len(kept["bands"]) == len(expected)
    for name in kept["bands"][:16]:
        assert plain or name in said[0]
    for map_name in kept["unit_maps"]:
        assert map_name in said[1]
    assert plain or kept["statistics_of"] in said[0]


def test_the_maps_are_named_and_approximations_are_said(weights, tmp_path):
    model = str(weights / "v1")
    power = embed(sentinel_1(tmp_path, "power")[0], model, sensor="sentinel-1-rtc").inputs.matches[0]
    assert [m.name for m in power.unit_maps] == ["linear-power-to-db", "sentinel-1-db-to-satlas-8bit"]
    assert "sentinel-1-db-to-satlas-8bit" in power.approximated[0]
    near = embed(landsat(tmp_path)[0], model, sensor="landsat-8-l2-sr").inputs.matches[0]
    assert (near.trained, near.chosen_by, near.left_out) == ("sentinel-2-dofa9", "wavelength", ("B1",))
    assert "B5 as B08" in near.approximated[0]
    assert near.absent == ("B05", "B06", "B07")


@pytest.mark.parametrize("bands", [["B02", "B03", "B04"], ["B8A", "B08", "B02"]])
def test_bands_that_are_there_are_fed_whatever_their_order(weights, tmp_path, bands):
    image = land(3)
    path = write_tiff(tmp_path / "some.tif", image, names=bands)
    found = embed(path, str(weights / "v1"), sensor="sentinel-2-l2a", precision="float32").inputs
    kept = [b for b in NINE if b in bands]
    (scaling,) = found.scalings
    assert list(scaling.bands) == kept
    parts, valid = [image], np.ones((SIDE, SIDE), bool)
    at = [NINE.index(b) for b in kept]
    values = satlas(image[[bands.index(b) for b in kept]] / 1e4, kept)
    expected = standardised(values, [S2_MEAN[i] for i in at], [S2_STD[i] for i in at])
    assert np.allclose(found.normalise(parts, valid), expected, atol=2e-3)


def test_a_sensor_that_is_like_none_takes_the_statistics_of_all_scenes_of_the_command(weights, tmp_path):
    rng = np.random.default_rng(0)
    names = sensors.get("landsat-5-l1").band_names
    images = [rng.integers(10, high, (7, SIDE, SIDE)).astype("u1") for high in (80, 240)]
    paths = [write_tiff(tmp_path / f"{i}.tif", image, names=names) for i, image in enumerate(images)]
    with pytest.warns(OwnStatisticsWarning, match="landsat-5-l1") as told:
        found = embed_all(paths, str(weights / "v1"), sensor="landsat-5-l1")
    assert len([w for w in told if w.category is OwnStatisticsWarning]) == 1
    assert found[0].inputs.scalings == found[1].inputs.scalings
    both = np.concatenate([image.reshape(7, -1) for image in images], 1)
    (scaling,) = found[0].inputs.scalings
    part = found[0].inputs.scene.parts[0]
    assert np.allclose(scaling.mean, [part.scaling.scale[i] * row.mean() + part.scaling.offset[i]
                                      for i, row in enumerate(both)], rtol=1e-3)  # fmt: skip
    assert found[0].meta["inputs"][0]["statistics_of"] is None


def test_several_scenes_of_one_kind_are_said_once(weights, tmp_path, capsys):
    names = sensors.get("sentinel-2-l2a").band_names
    paths = [str(write_tiff(tmp_path / f"{i}.tif", land(12, i), names=names)) for i in range(3)]
    words = ["embed", *paths, "--sensor", "sentinel-2-l2a", "--weights", str(weights / "v1")]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dofa: ")]
    assert len(said) == 2
    assert said[0].startswith("dofa: 3 scenes: ")


@pytest.mark.parametrize("verb", ["preview", "similar", "info"])
def test_other_commands_take_the_same_road(weights, tmp_path, verb, fed, capsys):
    path, expected = sentinel_2(tmp_path, "sentinel-2-l2a", True)
    words = [verb, str(path), "--sensor", "sentinel-2-l2a", "--weights", str(weights / "v1")]
    more = {"preview": ["--stride", "16"], "similar": ["--stride", "16", "--pixel", "20,20"], "info": []}[verb]
    if verb != "info":
        more += ["--out", str(tmp_path / "x.png"), "--precision", "float32"]
    assert main([*words, *more]) == 0
    out = capsys.readouterr()
    assert "sentinel-2-reflectance-to-satlas-8bit" in (out.out if verb == "info" else out.err)
    if verb != "info":
        assert np.allclose(fed.images[0, :, :SIDE, :SIDE], expected, atol=2e-3)


@pytest.mark.parametrize("stats", ["checkpoint", "sentinel-1-satlas", "naip-rgb"])
def test_what_is_refused_names_the_whole_command(weights, tmp_path, capsys, stats):
    names = sensors.get("landsat-5-l1").band_names
    image = np.random.default_rng(0).integers(10, 90, (7, SIDE, SIDE)).astype("u1")
    path = write_tiff(tmp_path / "L5 1999.tif", image, names=names)
    words = ["--sensor", "landsat-5-l1", "--weights", str(weights / "v1"), "--out", str(tmp_path / "f.tif")]
    for asked in (["--stats", stats, str(path), *words], [str(path), *words, f"--stats={stats}"]):
        assert run_cure(["embed", *asked, "--overwrite"], capsys) == 0


@pytest.mark.parametrize("named", [True, False])
def test_a_product_of_another_level_names_the_whole_command(weights, tmp_path, capsys, named):
    path, _ = sentinel_2(tmp_path, "sentinel-2-l1c", named)
    words = ["embed", str(path), "--sensor", "sentinel-2-l2a", "--weights", str(weights / "v1")]
    assert run_cure([*words, "--out", str(tmp_path / "f.tif")], capsys) == 0


def run_cure(words, capsys):
    """The exit status of the command that a refusal names."""
    assert main(words) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("dofa: ")]
    return main(shlex.split(re.search(r"dofa embed .*$", line)[0])[1:])


def test_real_scenes_lie_near_the_published_statistics(real_data, weights):
    scenes, rtc = real_data / "single_scenes", next((real_data / "colocated_s1_s2/S1RTC").glob("*.tif"))
    cases = [
        (scenes / "s1_db_peru_vv_vh.tif", {"sensor": "sentinel-1-grd"}),
        (scenes / "s1_db_epsg32633_vv_vh.tif", {"sensor": "sentinel-1-grd"}),
        (rtc, {"sensor": "sentinel-1-rtc", "bands": ["VV", "VH"]}),
        (scenes / "s2_l1c_newzealand_T60HWB.tif", {"sensor": "sentinel-2-l1c", "dn_offset": 0}),
        (scenes / "naip_va_1m.tif", {"sensor": "naip-rgbn"}),
        (scenes / "l8_sr_232066_20190727.tif", {"sensor": "landsat-8-l2-sr", "unit": "reflectance", "dn_scale": 1e-4}),
    ]
    config = load(weights / "v1").config
    for path, opening in cases:
        with open_scene(path, **opening) as scene:
            inputs = resolve_inputs(scene, config)
            assert inputs.matches[0].trained, path
            fed, valid = inputs.normalised(Window(0, 0, min(512, scene.height), min(512, scene.width)))
            values = fed[:, valid]
            assert np.abs(values.mean(1)).max() < 1.6, (path, values.mean(1))
            assert values.std(1).min() > 0.1, path
            cut = [max(np.mean(v == v.min()), np.mean(v == v.max())) for v in values]
            assert max(cut) < 0.35, (path, cut)


def test_the_page_on_checkpoints_shows_what_is_printed(weights, tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants

    page = Path(__file__).parents[2] / "docs" / "checkpoints.md"
    (block,) = [b for b in re.findall(r"^```console\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
                if "dofa embed" in b]  # fmt: skip
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    (tmp_path / "assets" / "dofa").mkdir(parents=True)
    (tmp_path / "assets" / "dofa" / "dofa-v1-base-format1").symlink_to(weights / "v1")
    monkeypatch.chdir(tmp_path)
    write_tiff(tmp_path / "S2_L2A.tif", land(12), names=sensors.get("sentinel-2-l2a").band_names)
    write_tiff(tmp_path / "S1_GRD.tif", (10 ** (ground_db() / 10)).astype("f4"), names=["VV", "VH"])
    rng = np.random.default_rng(0)
    for name, sensor, low, high, dtype in (
        ("naip", "naip-rgbn", 1, 255, "u1"), ("L8_SR", "landsat-8-l2-sr", 7500, 20000, "u2"),
        ("WV2", "worldview-2", 100, 2000, "u2"),
    ):  # fmt: skip
        names = sensors.get(sensor).band_names
        image = rng.integers(low, high, (len(names), SIDE, SIDE)).astype(dtype)
        write_tiff(tmp_path / f"{name}.tif", image, names=names)
    printed = 0
    for one in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, _, shown = one.partition("\n")
        (tmp_path / "f.tif").unlink(missing_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("always", OwnStatisticsWarning)
            assert main(shlex.split(command)[1:]) == 0
        told = capsys.readouterr()
        lines = [line for line in (told.err + told.out).splitlines() if not line.startswith("embedding")]
        if "dofa: warning" in shown:  # pytest keeps warnings to itself
            shown = shown.split("\n", 1)[1]
        without = [re.sub(r"lie in .*?: taken", "lie in …: taken", text) for text in ("\n".join(lines) + "\n", shown)]
        assert without[0] == without[1], command
        printed += 1
    assert printed >= 5
