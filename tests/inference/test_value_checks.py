"""Values that no measurement has: an error before anything is written, a doubt in `info`, no word on real scenes."""

import json

import numpy as np
import pytest

pytest.importorskip("rasterio")

from dofa import cli
from dofa.errors import DataError, DofaError
from dofa.inference.features import embed
from dofa.inference.info import describe
from dofa.inference.inputs import Inputs
from dofa.inference.scene_statistics import scene_statistics
from dofa.inference.value_checks import check_values
from dofa.model.config import EncoderConfig, TrainedSensor
from dofa.pixels import Scaling
from dofa.scene.scene import open_scene

from ..scene.conftest import model_and_head, write_tiff

NAMES = ["B02", "B03", "B04", "B08"]
L2A = "sentinel-2-l2a"


def land(bands=4, side=200, seed=0, low=200, high=3500):
    return np.random.default_rng(seed).integers(low, high, (bands, side, side)).astype(np.uint16)


def inputs_of(scene, mean=0.2, std=0.1, clip=None):
    """The scene with fixed statistics for all bands."""
    scalings = []
    for part in scene.parts:
        names = part.scaling.bands
        physical = Scaling.uniform(part.scaling.unit, names, part.scaling.scale, part.scaling.offset, clip)
        scalings.append(physical.with_stats([mean] * len(names), [std] * len(names), "user"))
    return Inputs(scene, scalings)


def trained(scaling: Scaling) -> EncoderConfig:
    known = TrainedSensor(tuple(NAMES), (0.49, 0.56, 0.665, 0.842), scaling, 10.0, "sentinel-2")
    return EncoderConfig(48, 2, 3, 8, image_size=32, sensors={L2A: known})


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "opening", "says"),
    [
        ("counts called reflectance", {"unit": "reflectance", "dn_scale": 1.0}, "a median reflectance of"),
        ("reflectance multiplied again", {"unit": "reflectance", "dn_scale": 1e-8}, "constant"),
        ("decibels a hundredfold", {"unit": "db", "dn_scale": 1.0}, "a median db of"),
        ("kelvin in counts", {"unit": "kelvin", "dn_scale": 1.0}, "a median kelvin of"),
        ("far below zero", {"dn_offset": -30000}, "a median reflectance of"),
    ],
)
def test_a_scene_of_impossible_values_is_refused_with_flags(tmp_path, case, opening, says):
    path = write_tiff(tmp_path / "a.tif", land(), names=NAMES)
    with open_scene(path, L2A, **opening) as scene:
        with pytest.raises(DataError, match=rf"a\.tif: 4 of 4 bands .*{says}.*--unit.*--dn-scale") as caught:
            check_values(inputs_of(scene))
        assert "\n" not in str(caught.value)


def test_values_that_are_all_clipped_are_refused(tmp_path):
    path = write_tiff(tmp_path / "a.tif", land(), names=NAMES)
    for clip in ((0.5, 1.0), (-1.0, 0.01)):
        with open_scene(path, L2A, dn_offset=0) as scene, pytest.raises(DataError, match="clipped or constant"):
            check_values(inputs_of(scene, clip=clip))


def test_a_scene_without_variance_is_refused_with_its_own_statistics_too(tmp_path):
    path = write_tiff(tmp_path / "a.tif", np.full((4, 300, 300), 700, np.uint16), names=NAMES)
    with open_scene(path, L2A, dn_offset=0) as scene, pytest.raises(DataError, match="4 of 4 bands"):
        check_values(Inputs(scene, scene_statistics([scene])))


@pytest.mark.parametrize("verb", ["embed", "predict", "similar", "preview"])
def test_no_verb_writes_anything_of_them(tmp_path, verb, capsys):
    path = write_tiff(tmp_path / "a.tif", land(side=64), names=NAMES)
    model_and_head(tmp_path, path)
    out = tmp_path / "out"
    out.mkdir()
    words = [verb, str(path), "--weights", str(tmp_path / "model"), "--sensor", L2A, "--unit", "reflectance"]
    words += {
        "embed": ["--stats", "scene", "--out", str(out / "f.tif")],
        "predict": ["--head", str(tmp_path / "head"), "--out", str(out / "f.tif")],
        "similar": ["--stats", "scene", "--pixel", "5,5", "--out", str(out / "f.tif")],
        "preview": ["--stats", "scene", "--out", str(out / "f.png")],
    }[verb]
    assert cli.main(words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "values that cannot be" in line
    assert list(out.iterdir()) == []


def test_python_users_are_told_as_well(tmp_path, small_model):
    path = write_tiff(tmp_path / "a.tif", land(side=64), names=NAMES)
    with pytest.raises(DofaError, match="values that cannot be"):
        embed(path, small_model, sensor=L2A, unit="reflectance", stats="scene")


# -- what is not ------------------------------------------------------------------------------------------------------


def test_few_impossible_bands_are_a_doubt_and_no_more(tmp_path):
    image = land()
    image[1] = 500
    path = write_tiff(tmp_path / "a.tif", image, names=NAMES)
    with open_scene(path, L2A, dn_offset=0) as scene:
        check_values(inputs_of(scene))
        scaling = scene.parts[0].scaling.with_stats([0.2] * 4, [0.1] * 4, "checkpoint")
        known = describe(scene, trained(scaling))
    (doubt,) = [d for d in known["doubts"] if d.startswith("impossible-values")]
    assert "1 of 4 bands (B03)" in doubt
    assert "refuse" not in doubt


def test_a_lake_in_every_sample_window_does_not_make_a_scene_constant(tmp_path):
    image = np.full((4, 1200, 1200), 150, np.uint16)
    image[:, 620:760, 60:180] = land()[:, :140, :120]  # an island between the sample windows
    path = write_tiff(tmp_path / "a.tif", image, names=NAMES)
    with open_scene(path, L2A, dn_offset=0) as scene:
        check_values(inputs_of(scene))


def test_dark_water_and_snow_pass(tmp_path):
    rng = np.random.default_rng(0)
    water = rng.normal(120, 25, (4, 150, 150)).clip(0).astype(np.uint16)
    snow = rng.normal(10500, 300, (4, 150, 150)).astype(np.uint16)
    for name, image in (("water", water), ("snow", snow)):
        with open_scene(write_tiff(tmp_path / f"{name}.tif", image, names=NAMES), L2A, dn_offset=0) as scene:
            check_values(inputs_of(scene, clip=(0.0, 1.2)))
            check_values(Inputs(scene, scene_statistics([scene])))


def test_a_scene_with_hardly_a_pixel_is_not_judged(tmp_path):
    image = np.zeros((4, 300, 300), np.uint16)
    image[:, 150:153, 150:153] = 9000
    path = write_tiff(tmp_path / "a.tif", image, names=NAMES, nodata=0)
    with open_scene(path, L2A, unit="reflectance") as scene:
        check_values(inputs_of(scene))


def test_real_decibels_that_are_called_power_are_refused(real_data):
    path = min((real_data / "colocated_s1_s2" / "S1RTC").glob("*.tif"))
    with (
        open_scene(path, "sentinel-1-rtc", unit="power") as scene,
        pytest.raises(DataError, match=r"a median linear_power of -"),
    ):
        check_values(Inputs(scene, scene_statistics([scene])))


# -- info -------------------------------------------------------------------------------------------------------------


def test_info_shows_what_the_model_is_fed_and_what_is_clipped(tmp_path):
    image = land()
    path = write_tiff(tmp_path / "a.tif", image, names=NAMES)
    with open_scene(path, L2A, dn_offset=0) as scene:
        physical = scene.parts[0].scaling
        clipped = Scaling.uniform("reflectance", NAMES, clip=(0.1, 0.3)).with_stats([0.2] * 4, [0.1] * 4, "checkpoint")
        known = describe(scene, trained(clipped))
        plain = describe(scene)
    assert json.loads(json.dumps(known)) == known
    for band, raw in zip(known["parts"][0]["bands"], image, strict=True):
        fed = (np.clip(raw.astype(np.float64) * physical.scale[0], 0.1, 0.3) - 0.2) / 0.1
        for key, share in (("normalised_p1", 1), ("normalised_median", 50), ("normalised_p99", 99)):
            assert band[key] == pytest.approx(np.percentile(fed, share), abs=1e-3)
        outside = ((raw < 1000) | (raw > 3000)).mean()
        assert band["clipped"] == pytest.approx(outside, abs=0.01)
    assert not any("normalised_median" in band for band in plain["parts"][0]["bands"])
    assert {band["clipped"] for band in plain["parts"][0]["bands"]} == {0.0}


def test_in_info_impossible_values_are_a_doubt_so_that_they_can_be_looked_at(tmp_path, capsys):
    path = write_tiff(tmp_path / "a.tif", land(side=64), names=NAMES)
    assert cli.main(["info", str(path), "--sensor", L2A, "--unit", "reflectance", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    (doubt,) = [d for d in known["doubts"] if d.startswith("impossible-values")]
    assert "refuse" in doubt
    assert known["parts"][0]["bands"][0]["median"] > 1000


# -- real scenes ------------------------------------------------------------------------------------------------------

REAL = [
    ("colocated_s1_s2/S2L2A/*.tif", L2A, 0),
    ("colocated_s1_s2/S2L1C/*.tif", "sentinel-2-l1c", 0),
    ("colocated_s1_s2/S1RTC/*.tif", "sentinel-1-grd", None),  # in decibels, whatever the folder's name says
    ("sen1floods11/S1Hand/*.tif", "sentinel-1-grd", None),
    ("naip/*.tif", "naip-rgbn", None),
    ("naip_california/*1.jp2", "naip-rgbn", None),
    ("usgs_rgb_0p2m/*", "rgb-aerial", None),
    ("enmap_hyspecnet11k/**/*SPECTRAL_IMAGE.TIF", "enmap", None),
]


@pytest.mark.parametrize(("pattern", "sensor", "offset"), REAL, ids=[p for p, _, _ in REAL])
def test_real_scenes_are_neither_refused_nor_doubted(real_data, pattern, sensor, offset):
    paths = sorted(p for p in real_data.glob(pattern) if p.suffix.lower() in (".tif", ".tiff", ".jp2", ".png", ".jpg"))
    if not paths:
        pytest.skip(f"no {pattern}")
    for path in paths[:6]:
        with open_scene(path, sensor, dn_offset=offset) as scene:
            check_values(Inputs(scene, scene_statistics([scene])))
            if scene.parts[0].scaling.unit == "reflectance":
                check_values(inputs_of(scene))
                check_values(inputs_of(scene, clip=(0.0, 1.0)))
            assert not any(d.startswith("impossible-values") for d in describe(scene)["doubts"])
