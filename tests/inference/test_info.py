"""`dofa info`: what will happen, and everything that looks wrong named before hours are spent."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rasterio")

import rasterio
from rasterio.transform import from_origin

from dofa.errors import CheckpointError, ConfigError
from dofa.inference.info import describe, info
from dofa.model.config import EncoderConfig, TrainedSensor
from dofa.options import ScenesOptions
from dofa.pixels import Scaling
from dofa.scene.scene import open_scene

from ..scene.conftest import write_tiff

S2 = ScenesOptions("sentinel-2-l2a", dn_offset=0)
NAMES = ["B02", "B03", "B04", "B08"]


def land(bands=4, side=200, seed=0, low=200, high=3500):
    """Reflectances × 10⁴ with dark places."""
    rng = np.random.default_rng(seed)
    return rng.integers(low, high, (bands, side, side)).astype(np.uint16)


def titles(known) -> set[str]:
    return {doubt.split(":")[0] for doubt in known["doubts"]}


def told(path, sensor="sentinel-2-l2a", config=None, stats=None, **words):
    with open_scene(path, sensor, **words) as scene:
        return describe(scene, config, stats=stats)


def trained(mean=0.2, std=0.1, gsd_m=10.0, sensor="sentinel-2-l2a", unit="reflectance") -> EncoderConfig:
    scaling = Scaling.uniform(unit, NAMES).with_stats([mean] * 4, [std] * 4, "checkpoint")
    known = TrainedSensor(tuple(NAMES), (0.49, 0.56, 0.665, 0.842), scaling, gsd_m, "sentinel-2")
    return EncoderConfig(48, 2, 3, 8, image_size=32, sensors={sensor: known})


def test_a_sound_scene_is_described_without_a_doubt(tmp_path):
    image = land()
    image[:, :50] = 0
    path = write_tiff(tmp_path / "a.tif", image, names=NAMES, nodata=0)
    known = told(path, dn_offset=0, config=trained())
    assert known["doubts"] == []
    assert known["grid"]["width"] == 200
    assert known["grid"]["crs"] == "EPSG:32633"
    assert known["grid"]["gsd_m"] == 10
    assert known["valid"] == 0.75
    (part,) = known["parts"]
    assert (part["sensor"], part["unit"], part["physical"]) == (
        "sentinel-2-l2a",
        "reflectance",
        "reflectance = raw × 0.0001",
    )
    assert (part["physical_source"], part["stats_source"], part["nodata"]) == ("user", "checkpoint", [0])
    red = part["bands"][2]
    assert (red["name"], red["wavelength_um"], red["mean"], red["std"]) == ("B04", 0.6646, 0.2, 0.1)
    assert red["median"] == pytest.approx(np.median(image[2, 50:]) / 1e4, abs=1e-3)
    assert json.loads(json.dumps(known)) == known


def test_a_scene_measured_in_one_far_corner_is_described_by_what_is_there(tmp_path):
    image = np.zeros((4, 800, 900), np.uint16)
    image[:, 3:15, 880:] = land(4, 20)[:, :12]
    path = write_tiff(tmp_path / "a.tif", image, names=NAMES, nodata=0, tiled=True, blockxsize=64, blockysize=64)
    known = told(path, dn_offset=0)
    assert 0 < known["valid"] < 0.01
    expected = np.median(image[:, 3:15, 880:], axis=(1, 2)) / 1e4
    assert [b["median"] for b in known["parts"][0]["bands"]] == pytest.approx(expected, rel=0.01)
    json.dumps(known, allow_nan=False)


def test_a_histogram_shifted_by_a_thousand_is_named_said_or_unsaid(tmp_path):
    path = write_tiff(tmp_path / "a.tif", land(low=1010), names=NAMES)
    assert "offset-unknown" in titles(told(path))
    assert "histogram-shifted" in titles(told(path, dn_offset=0))
    assert titles(told(path, dn_offset=-1000)) == set()


def test_an_offset_taken_off_twice_is_named(tmp_path):
    path = write_tiff(tmp_path / "a.tif", land(high=900), names=NAMES)
    with rasterio.open(path, "r+") as file:
        file.update_tags(BOA_ADD_OFFSET="-1000")
    assert "offset-doubtful" in titles(told(path))


def test_8_bit_values_where_reflectance_is_expected_are_named(tmp_path):
    image = (land() % 250).astype(np.uint8)
    known = told(write_tiff(tmp_path / "a.tif", image, names=NAMES))
    assert any("scale-doubtful" in d and "8-bit values are no reflectance" in d for d in known["doubts"])


@pytest.mark.parametrize(
    ("sensor", "values", "hint"),
    [
        ("sentinel-1-rtc", (-15, 3), "taken as decibels"),
        ("sentinel-1-grd", (0.2, 0.02), "taken as linear power"),
    ],
)
def test_decibels_and_linear_power_are_told_apart(tmp_path, sensor, values, hint):
    image = np.random.default_rng(0).normal(*values, (2, 100, 100)).astype(np.float32)
    known = told(write_tiff(tmp_path / "a.tif", image, names=["VV", "VH"]), sensor)
    assert any(hint in d for d in known["doubts"])


def test_constant_repeated_and_saturated_bands_are_named(tmp_path):
    image = land()
    image[1] = image[0]
    image[2] = 700
    image[3, :40] = 65535
    known = told(write_tiff(tmp_path / "a.tif", image, names=NAMES), dn_offset=0)
    assert {"constant-bands", "same-bands", "saturated"} <= titles(known)
    said = " ".join(known["doubts"])
    assert "B04 hold one number" in said
    assert "B02 and B03 hold the same" in said
    assert "5% of B08 are 65535" in said


def test_statistics_and_pixels_far_from_the_trained_ones_are_named(tmp_path):
    path = write_tiff(tmp_path / "a.tif", land(), names=NAMES)
    assert "statistics-apart" in titles(told(path, dn_offset=0, config=trained(mean=0.9, std=0.05)))
    known = told(path, dn_offset=0, config=trained(gsd_m=30))
    assert any("10 m a pixel" in d and "--gsd 30" in d for d in known["doubts"])
    assert titles(told(path, dn_offset=0, config=trained(gsd_m=14))) == set()


def test_a_sensor_the_weights_do_not_know_is_said(tmp_path):
    path = write_tiff(tmp_path / "a.tif", land(), names=NAMES)
    known = told(path, dn_offset=0, config=trained(sensor="naip-rgbn", unit="kelvin"))
    assert "own-statistics" in titles(known)
    assert known["parts"][0]["stats_source"] == "scene"
    known = told(path, dn_offset=0, config=trained(sensor="naip-rgbn", unit="kelvin"), stats="checkpoint")
    assert "--stats scene" in known["no_statistics"]
    assert known["parts"][0]["stats_source"] is None
    assert "mean" not in known["parts"][0]["bands"][0]


def test_the_border_of_zeros_and_resampled_bands_are_said(tmp_path):
    image = land()
    image[:, :40, :40] = 0
    a = write_tiff(tmp_path / "s_a.tif", image, names=NAMES)
    coarse = land(1, 100, 1)
    coarse[:, :20, :20] = 0
    coarse = write_tiff(tmp_path / "s_B05.tif", coarse, transform=from_origin(500000, 5000000, 20, 20))
    with open_scene([a, coarse], "sentinel-2-l2a", dn_offset=0) as scene:
        known = describe(scene)
    (part,) = known["parts"]
    assert part["zero_border"]
    assert {b["name"]: (b["gsd_m"], b["resampled"]) for b in part["bands"]}["B05"] == (20, True)
    assert not any(b["resampled"] for b in part["bands"] if b["name"] != "B05")
    assert "zero-border" in titles(known)


def test_the_command_prints_json_a_program_reads_and_lines_a_person_does(tmp_path, capsys):
    path = write_tiff(tmp_path / "a.tif", land(), names=NAMES)
    report = info([str(path)], stats="scene", json=True, opening=S2)
    report.print()
    known = json.loads(capsys.readouterr().out)
    assert known["parts"][0]["stats_source"] == "scene"
    assert known["parts"][0]["bands"][0]["mean"] == pytest.approx(land()[0].mean() / 1e4, rel=1e-4)
    info([str(path)], opening=S2).print()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a.tif"
    assert any(line.startswith("B08") and "0.8328" in line for line in lines)
    assert any("reflectance = raw × 0.0001 (said by: user)" in line for line in lines)


def test_several_scenes_are_several_unless_they_are_stacked(tmp_path):
    files = [str(write_tiff(tmp_path / f"{n}.tif", land(1), names=[n])) for n in ("B02", "B03")]
    assert len(info(files, opening=S2).scenes) == 2
    (stacked,) = info(files, opening=replace(S2, stack=True)).scenes
    assert [b["name"] for b in stacked["parts"][0]["bands"]] == ["B02", "B03"]


def test_of_weights_only_the_configuration_is_read(tmp_path, small_model):
    path = write_tiff(tmp_path / "a.tif", land(), names=NAMES)
    from dofa.model.checkpoint import save

    (save(small_model, tmp_path / "weights") / "model.safetensors").unlink()
    (known,) = info([str(path)], weights=str(tmp_path / "weights"), opening=S2).scenes
    assert "own-statistics" in titles(known)
    (tmp_path / "weights" / "config.json").write_text('{"format_version": 1}')
    with pytest.raises(CheckpointError, match=r"config.json: encoder is missing"):
        info([str(path)], weights=str(tmp_path / "weights"), opening=S2)
    with pytest.raises(ConfigError, match="no band"):
        info([str(path)], opening=ScenesOptions("sentinel-2-l2a", ["B02", "B03", "B04", "B99"]))


def test_the_command_line_answers_in_plain_lines_without_torch(tmp_path):
    path = write_tiff(tmp_path / "a.tif", land(), names=NAMES)
    script = (
        "import sys; from dofa.cli import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
    )
    command = [sys.executable, "-c", script, "info", str(path), "--sensor", "sentinel-2-l2a", "--dn-offset", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a.tif\n")
    wrong = subprocess.run([*command, "--bands", "B02"], capture_output=True, text=True, timeout=120)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("dofa: a.tif: the file has 4 bands, --bands names 1")


def test_real_radar_in_decibels_called_linear_is_named(real_data):
    name = "colocated_s1_s2/S1RTC/38D_378R_2_3.tif"
    (known,) = info([str(real_data / name)], opening=ScenesOptions("sentinel-1-rtc")).scenes
    assert any("taken as decibels" in d for d in known["doubts"])


def test_real_level_1c_tiles_of_mixed_baselines_are_told_apart(real_data):
    """Three of the five tiles carry the +1000 of baseline 04.00, two do not (their README)."""
    found = {}
    for path in sorted((real_data / "colocated_s1_s2" / "S2L1C").glob("*.tif")):
        (known,) = info([str(path)], opening=ScenesOptions("sentinel-2-l1c")).scenes
        found[path.stem] = "offset-unknown" in titles(known)
    assert sum(found.values()) == 3
