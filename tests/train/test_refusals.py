"""What `dofa pretrain` says to a teacher, store or setting that cannot be: one line, and nothing is written."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dofa import sensors
from dofa.cli import main
from dofa.corpus.items import Reading
from dofa.corpus.pack import pack
from dofa.corpus.split import SplitConfig
from dofa.errors import ConfigError
from dofa.model.checkpoint import create, save
from dofa.model.config import TrainedSensor
from dofa.train.config import PretrainConfig
from dofa.train.pretrain import pretrain
from dofa.train.recipes import load_config, to_yaml

from ..vit_files import write_vit


@pytest.fixture
def refused(settings, tmp_path, capsys) -> Callable[..., str]:
    """The one line that `dofa pretrain` says to a configuration, having written nothing."""

    def run(config: PretrainConfig, *overrides: str) -> str:
        file = tmp_path / "config.yaml"
        file.write_text(to_yaml(config))
        words = ["pretrain", "--config", str(file), *(["--set", *overrides] if overrides else [])]
        assert main(words) == 2
        said = capsys.readouterr()
        assert said.out == ""
        lines = [line for line in said.err.splitlines() if "warning" not in line]
        assert len(lines) == 1, lines
        assert not Path(config.run.out).exists()
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["distill.teacher=WIDE", "distill.projector=false"], "student is 48 wide and the teacher 64: switch it on"),
        (["distill.blocks=[0, 1]", "distill.teacher_blocks=[0]"], "teacher_blocks names 1 blocks for the student's 2"),
        (["distill.blocks=[2]", "distill.teacher=WIDE"], "distill.blocks: indices (2,) do not name blocks"),
        (["distill.teacher_blocks=[5]"], "distill.teacher_blocks of the teacher: indices (5,) do not name blocks"),
        (["distill.blocks=[-3]"], "indices (-3,) do not name blocks"),
        (["distill.teacher=FINE", "distill.anchor=1.0"], "has width 48 and patch 4, the model 48 and 8"),
        (["distill.teacher=FINE", "model.start=prefit"], "patch 4 instead of 8; as a distillation teacher it is"),
        (["distill.teacher=WIDE", "model.start=teacher"], "width 64 instead of 48, depth 3 instead of 2"),
        (["distill.teacher=/nowhere.safetensors"], "no teacher /nowhere.safetensors"),
        (["distill.teacher=EVIL"], "is not read"),
        (["distill.teacher=null", "model.start=prefit"], "distill.teacher names no teacher"),
        (["distill.vieww=full"], "unknown key distill.vieww: did you mean view"),
        (["distill.view=fool"], "distill.view"),
        (["distill.proxies={naip-rgb: [R, G]}"], "distill.proxies"),
        (["distill.proxies={naip-rgb: [R, G, NIR]}"], "sensor naip-rgb has no band 'NIR'"),
        (["distill.proxies={naip_rgb: [R, G, B]}"], "distill.proxies names 'naip_rgb': did you mean naip-rgb"),
        (["distill.renderings=[rbg]"], "distill.renderings names 'rbg': did you mean rgb"),
        (["data.weights={naip-rgb: 1, sentinel-1-grd: 1, gaofen-2: 1}"], "data.weights names 'gaofen-2'"),
        (["data.weights={naip-rgb: 1}"], "weights says nothing about sensor sentinel-1-grd"),
        (["data.crop={default: 32, naip_rgb: 24}"], "data.crop names 'naip_rgb': did you mean naip-rgb"),
        (["data.batch={naip-rgb: 4}"], "data.batch has no entry for sentinel-1-grd"),
        (["data.band_sets={rgb: 0.7, all: 0.5}"], "together at most 1"),
        (["data.rehearsal=0.3"], "model.init is not set"),
        (["distill.reconstruction=0", "distill.weight=0"], "nothing is left to learn from"),
    ],
    ids=lambda v: v[-1] if isinstance(v, list) else "",
)
def test_a_setting_that_cannot_be_is_one_clear_line_and_nothing_is_written(
    taught, refused, vits, tmp_path, overrides, says
):
    torch.save({"model": write_vit}, tmp_path / "evil.pth")  # not tensors: code that a pickle would call
    names = {"WIDE": str(vits["wide"]), "FINE": str(vits["fine"]), "EVIL": str(tmp_path / "evil.pth")}
    for short, path in names.items():
        overrides = [o.replace(short, path) for o in overrides]
    assert says in refused(taught(), *overrides)


def test_a_store_whose_unit_nobody_can_show_is_one_clear_line(taught, refused, tmp_path):
    naip = sensors.get("naip-rgb")
    sensor = replace(naip, scaling=replace(naip.scaling.without_stats(), unit="dn"))
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32)).astype(np.uint8)
    reading = Reading.from_arrays(sensor, images, [f"p{i}" for i in range(8)])
    pack(reading, tmp_path / "counts", split=SplitConfig("place", 0.2), workers=1, progress=False)
    config = taught(data__stores=[str(tmp_path / "counts")])
    assert "sensor naip-rgb: no display map for values in dn: pack reflectance" in refused(config)
    assert "no display map" in refused(config, "distill.input=sensor", "data.statistics=display")
    pretrain(taught({"input": "sensor"}, data__stores=[str(tmp_path / "counts")], run__updates=1))


def test_a_model_that_knows_the_sensor_otherwise_is_one_clear_line(taught, refused, tmp_path):
    size = {"width": 48, "depth": 2, "heads": 3, "patch": 8, "image_size": 32}
    scaling = sensors.get("naip-rgb").scaling
    fewer = TrainedSensor(("R", "G"), (0.6, 0.5), scaling.select(["R", "G"]))
    counts = TrainedSensor(("R", "G", "B"), (0.6, 0.5, 0.4), replace(scaling, unit="dn"))
    for title, known, says in (
        ("fewer", fewer, "statistics of sensor naip-rgb (checkpoint) lack band B"),
        ("counts", counts, "sensor naip-rgb is in uint8, its statistics (checkpoint) in dn"),
    ):
        model = save(create("tiny", **size, sensors={"naip-rgb": known}), tmp_path / title)
        assert says in refused(taught(model__init=str(model), model__changes={}))
    model = save(create("tiny", **size), tmp_path / "knows nothing")
    config = taught(model__init=str(model), model__changes={})
    assert "add the old ones" in refused(config, "data.rehearsal=0.3")
    assert "leave model.start 'prefit' out" in refused(config, "model.start=prefit")


def test_a_decoder_that_is_not_trained_is_not_judged():
    for setting in ("run.evaluate_every=10", "run.pictures_every=10"):
        with pytest.raises(ConfigError, match=r"set run\.evaluate_every and run\.pictures_every to 0"):
            load_config(
                "cpu-tiny",
                [
                    "run={}",
                    "distill.teacher=t.safetensors",
                    "distill.reconstruction=0",
                    "run.updates=1",
                    setting,
                ],
            )
