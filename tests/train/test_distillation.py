"""Runs with a teacher: from the file to the saved model, and continued to the bit."""

import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import dofa
from dofa import sensors
from dofa.corpus.items import Reading
from dofa.corpus.pack import pack
from dofa.corpus.split import SplitConfig
from dofa.errors import ConfigError
from dofa.model.checkpoint import load_mae, save
from dofa.model.distill import patch_validity
from dofa.model.mae import split_patches
from dofa.sensors import Band
from dofa.train import loop
from dofa.train.checkpoint import checkpoints
from dofa.train.config import PretrainConfig
from dofa.train.log import read_log
from dofa.train.optim import adamw, parameter_groups
from dofa.train.pretrain import pretrain
from dofa.train.recipes import load_config

from ..vit_files import MEAN, STD, write_vit
from .preparing import FULL, prepared

SENSORS = ["naip-rgb", "sentinel-1-grd", "sentinel-2-l2a"]


def final(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, the optimiser's too."""
    newest = checkpoints(run / "checkpoints")[-1]
    return load_file(newest / "model.safetensors") | load_file(newest / "optimizer.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- from the file to the loss ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def camera(tmp_path_factory) -> str:
    """A store of photographs taken at exactly the wavelengths that the pre-fit is exact for, as blue, green, red."""
    rgb = sensors.get("naip-rgb")
    waves = {"B": 0.49, "G": 0.56, "R": 0.665}
    bands = tuple(Band(name, wavelength) for name, wavelength in waves.items())
    sensor = replace(
        rgb, name="camera", platform="", aliases=(), bands=bands, scaling=rgb.scaling.select("BGR").without_stats()
    )
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 40, 40)).astype(np.uint8)
    folder = tmp_path_factory.mktemp("camera") / "store"
    reading = Reading.from_arrays(sensor, images, [f"p{i}" for i in range(9)])
    pack(reading, folder, split=SplitConfig("place", 0.2), workers=1, progress=False)
    return str(folder)


@pytest.mark.parametrize("loss", ["cosine", "smooth-l1"])
def test_a_prefitted_student_says_of_photographs_what_its_teacher_says(taught, camera, loss):
    options = {
        "data__stores": [camera],
        "data__statistics": "display",
        "data__jitter": {"share": 0.0},
        "data__band_keep": 1.0,
    }
    for start, least, most in (("prefit", -1e-6, 1e-6), ("teacher", 1e-2, 10)):
        ready = prepared(taught({**FULL, "renderings": ["rgb"], "loss": loss}, model__start=start, **options)).ask()
        for n in range(3):
            distance = ready.objective(ready.data[n])["distilled"].item()
            assert least <= distance <= most


def test_start_gives_the_same_weights_again_and_another_seed_others_where_they_are_random(taught):
    def weights(start: str, seed: int) -> dict[str, torch.Tensor]:
        config = taught(model__start=start, run__seed=seed)
        return prepared(config).objective.state_dict()

    for start in ("teacher", "prefit"):
        one = weights(start, 0)
        assert equal(one, weights(start, 0))
        other = weights(start, 1)
        same = {k for k in one if torch.equal(one[k], other[k])}
        assert "mae.encoder.blocks.0.attn.qkv.weight" in same
        assert "distillation.projectors.0.weight" not in same


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distill", "parts"),
    [
        ({}, ["masked", "distilled"]),
        ({"view": "visible", "target": "tokens", "weight": 0.5}, ["masked", "distilled"]),
        ({**FULL, "anchor": 2.0}, ["distilled", "anchor"]),
        ({"weight": 0.0}, []),
    ],
    ids=["paper", "visible", "renderings", "start only"],
)
def test_a_run_tells_the_parts_of_its_loss_by_sensor(taught, distill, parts):
    config = taught(distill, model__start="prefit", data__weights="equal", run__micro_batches=3, run__updates=2)
    out = pretrain(config)
    rows = read_log(out)
    with (out / "log.csv").open() as file:
        table = list(csv.DictReader(file))
    found = {key.split("/")[0] for row in rows for key in row if "/" in key}
    assert found - {"held_out", "floor", "difference"} == {"loss", *parts}
    weights = {"masked": config.distill.reconstruction, "distilled": config.distill.weight, "anchor": 2.0}
    for row, line in zip(rows, table, strict=True):
        for sensor in SENSORS:
            for part in ("loss", *parts):
                assert float(line[f"{part}/{sensor}"]) == row[f"{part}/{sensor}"]
            if parts:
                total = sum(weights[part] * row[f"{part}/{sensor}"] for part in parts)
                assert row[f"loss/{sensor}"] == pytest.approx(total, rel=1e-5)
    assert not any("vit." in key for key in final(out))
    record = json.loads((out / "model" / "config.json").read_text())
    assert record["provenance"]["initialised_from"]["teacher"] == "same"
    assert dofa.load(out / "model").config.width == 48


def test_distillation_brings_a_student_nearer_to_its_teacher(taught):
    only = {"naip-rgb": 1.0, "sentinel-1-grd": 0.0, "sentinel-2-l2a": 0.0}
    out = pretrain(
        taught({"view": "visible", "target": "tokens"}, run__updates=25, run__micro_batches=1, data__weights=only)
    )
    distances = [row["distilled/naip-rgb"] for row in read_log(out)]
    assert sum(distances[-5:]) / 5 < 0.7 * distances[0]


@pytest.mark.parametrize(
    ("distill", "changes"),
    [
        ({**FULL, "crops": 2}, {"optim__keep_initial": 0.2, "data__statistics": "display"}),
        ({**FULL, "reconstruction": 1.0, "anchor": 1.0}, {"run__workers": 1}),
        ({"blocks": [0, 1], "sar_proxy": "random"}, {"run__precision": "bf16-mixed"}),
    ],
    ids=["kept answers", "asked in every step", "paper"],
)
def test_a_taught_run_that_is_stopped_and_resumed_is_bit_identical(taught, tmp_path, monkeypatch, distill, changes):
    def make(out: str) -> PretrainConfig:
        fixed = {"model__start": "prefit", "run__updates": 5, "data__weights": "equal", "run__micro_batches": 3}
        return taught(distill, run__out=str(tmp_path / out), **fixed, **changes)

    whole = pretrain(make("whole"))
    real, calls = loop.gradient_norm, []

    def terminated(*args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(loop, "gradient_norm", terminated)
    with pytest.raises(SystemExit) as left:
        pretrain(make("cut"))
    assert left.value.code == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert len(read_log(tmp_path / "cut")) < 5
    if distill.get("loss") == "smooth-l1":
        kept = load_file(checkpoints(tmp_path / "cut" / "checkpoints")[-1] / "model.safetensors")
        assert (kept["distillation.std"] != 1).all()
        # What is in the checkpoint counts, whatever would be measured now.
        monkeypatch.setattr("dofa.train.pretrain.STANDARD_BATCHES", 1)
    resumed = pretrain(make("cut"), resume=True)
    assert equal(final(resumed), final(whole))
    assert equal(load_file(resumed / "model/model.safetensors"), load_file(whole / "model/model.safetensors"))
    moved = [{k: v for k, v in row.items() if k != "images_per_second"} for row in read_log(whole)]
    assert moved == [{k: v for k, v in row.items() if k != "images_per_second"} for row in read_log(resumed)]


def test_values_are_standardised_over_all_sensors_of_an_update(taught):
    """Not over the commonest alone, whose micro-batches stand first in every plan."""
    weights = {"naip-rgb": 4.0, "sentinel-1-grd": 1.0, "sentinel-2-l2a": 1.0}
    config = taught(FULL, data__weights=weights, run__micro_batches=6)
    ready = prepared(config)
    asked = []
    make = ready.data.make
    ready.data.make = lambda *a: asked.append(make(*a)) or asked[-1]
    ready.ask()
    assert {b["sensor"] for b in asked} == set(SENSORS)
    told = torch.cat([ready.objective.teach(b["pictures"], 4) for b in asked])
    assert torch.allclose(ready.objective.distillation.mean[:, 0], told.mean((0, 2)), atol=1e-5)


def test_the_initial_weights_have_their_share_in_the_model_and_none_in_the_checkpoint(taught):
    config = taught({"crops": 1}, model__start="prefit", optim__keep_initial=0.25, optim__lr=1e-2)
    initial = prepared(config).objective.mae.state_dict()
    out = pretrain(config)
    raw, saved = final(out), load_mae(out / "model").state_dict()
    moved = 0.0
    for name, now in saved.items():
        trained = raw[f"mae.{name}"]
        share = 0.25 if name.startswith("encoder.") else 0.0
        assert torch.allclose(now, (1 - share) * trained + share * initial[name], atol=1e-6), name
        moved = max(moved, (trained - initial[name]).abs().max().item() if share else 0.0)
    assert moved > 1e-2
    (out / "model" / "model.safetensors").unlink()
    pretrain(config, resume=True)
    assert equal(load_mae(out / "model").state_dict(), saved)


def test_every_trained_parameter_is_in_one_group_at_its_rate(taught):
    for distill in ({}, FULL):
        config = taught(distill, optim__encoder_lr=0.25, optim__generator_lr=0.05)
        objective = prepared(config).objective
        groups = parameter_groups(objective, 0.1, 0.25, 0.05)
        found = [(id(p), g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]]
        assert len({key for key, _, _ in found}) == len(found)
        rates = {key: (scale, decay) for key, scale, decay in found}
        trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        assert rates.keys() == {id(p) for p in trained.values()}
        for name, parameter in trained.items():
            generator = name.startswith(("mae.encoder.patch_embed.", "mae.encoder.polarisation_embed"))
            scale = 0.05 if generator else 0.25 if name.startswith("mae.encoder.") else 1.0
            assert rates[id(parameter)][0] == scale, name
            if name.endswith(("tokens", "token", "embed", "bias")):
                assert rates[id(parameter)][1] == 0, name
        assert adamw(objective, config.optim).state_dict()["param_groups"]


def test_rates_of_encoder_and_generator_reach_the_optimiser(taught, monkeypatch):
    seen = []
    real = loop.gradient_norm
    monkeypatch.setattr(loop, "gradient_norm", lambda *a: seen.append(1) or real(*a))
    changed = {}
    for factor in (1.0, 1e-6):
        config = taught(optim__encoder_lr=factor, optim__generator_lr=factor, run__out=f"{taught().run.out}-{factor}")
        start = prepared(config).objective.state_dict()
        end = final(pretrain(config))
        for part in ("mae.encoder.blocks", "mae.encoder.patch_embed", "mae.decoder_blocks", "distillation.projectors"):
            names = [n for n in start if n.startswith(part)]
            changed[factor, part] = max((start[n] - end[n]).abs().max().item() for n in names)
    for part in ("mae.encoder.blocks", "mae.encoder.patch_embed"):
        assert changed[1.0, part] > 1e-4 > 1e-7 >= changed[1e-6, part] / 10
    for part in ("mae.decoder_blocks", "distillation.projectors"):
        assert changed[1e-6, part] > 1e-4


def test_display_statistics_land_in_the_model_and_a_known_sensor_keeps_its_own(taught, tmp_path):
    first = pretrain(taught(data__statistics="display", run__updates=1))
    record = json.loads((first / "model" / "config.json").read_text())["encoder"]["sensors"]
    naip, s2, s1 = (record[n]["scaling"] for n in ("naip-rgb", "sentinel-2-l2a", "sentinel-1-grd"))
    assert {s["stats_source"] for s in (naip, s2, s1)} == {"display"}
    assert naip["mean"] == pytest.approx([255 * m for m in MEAN])
    assert naip["std"] == pytest.approx([255 * s for s in STD])
    assert s2["mean"][1:4] == pytest.approx([0.3558 * m for m in MEAN[::-1]])  # B02, B03, B04
    assert s2["mean"][7] == pytest.approx(0.5 * sum(MEAN) / 3)
    assert s1["mean"] == pytest.approx([-25 + 25 * sum(MEAN) / 3, -32 + 25 * sum(MEAN) / 3])

    mae = load_mae(first / "model")
    known = {"naip-rgb": mae.encoder.config.sensors["naip-rgb"]}
    own = replace(known["naip-rgb"].scaling, mean=(100.0, 90.0, 80.0), stats_source="corpus")
    known["naip-rgb"] = replace(known["naip-rgb"], scaling=own)
    mae.encoder.config = replace(mae.encoder.config, sensors=known)
    save(mae, tmp_path / "model")
    init = {"model__init": str(tmp_path / "model"), "model__changes": {}, "run__out": str(tmp_path / "second")}
    second = pretrain(taught(data__statistics="display", run__updates=1, **init))
    learned = load_mae(second / "model").encoder.config.sensors
    assert learned["naip-rgb"].scaling.mean == (100.0, 90.0, 80.0)
    assert learned["naip-rgb"].scaling.stats_source == "checkpoint"
    assert learned["sentinel-2-l2a"].scaling.stats_source == "display"


def test_a_run_is_not_continued_with_another_teacher_under_the_same_name(taught, tmp_path):
    teacher = write_vit(tmp_path / "teacher", 48, 2, 3, 8, 32)
    config = taught({"teacher": str(teacher)}, run__updates=1)
    pretrain(config)
    pretrain(config, resume=True)
    file = teacher / "model.safetensors"
    save_file({k: v + 0.1 for k, v in load_file(file).items()}, file)
    with pytest.raises(ConfigError, match="the teacher teacher is not the file the run was begun with"):
        pretrain(config, resume=True)


def test_a_run_is_continued_with_the_same_teacher_from_another_place_and_its_answers_are_read(taught, tmp_path, capsys):
    teacher = write_vit(tmp_path / "teacher", 48, 2, 3, 8, 32)
    config = taught({**FULL, "crops": 1, "teacher": str(teacher)}, run__updates=1)
    pretrain(config)
    moved = teacher.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    pretrain(replace(config, distill=replace(config.distill, teacher=str(moved))), resume=True)
    assert "the teacher looks at" not in capsys.readouterr().err


def test_a_run_is_not_continued_with_a_teacher_of_another_form(taught, vits, tmp_path):
    pretrain(taught(run__updates=1))
    with pytest.raises(ConfigError, match="the teacher wide is not the file the run was begun with"):
        pretrain(taught({"teacher": str(vits["wide"])}, run__updates=1), resume=True)


def test_the_visible_view_alone_runs_no_block_behind_the_last_distilled_one(taught):
    ready = prepared(taught({"view": "visible", "blocks": [0], "target": "tokens", "reconstruction": 0.0}))
    encoder, batch = ready.objective.mae.encoder, ready.data[0]
    ran = []
    for number, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    loss = ready.objective(batch)["loss"]
    assert ran == [0]
    keep = split_patches(batch["noise"], 0.75)[0]
    bands = [sensors.get(batch["sensor"]).bands[i] for i in batch["bands"]]
    through = encoder.forward_visible(batch["image"], bands, keep, [0])[2]
    assert ran == [0, 0, 1]
    target = ready.objective.teach(batch["pictures"], 4)
    weight = None if batch["valid"] is None else patch_validity(batch["valid"], 8)
    assert torch.equal(loss, ready.objective.distillation(through, target, keep, weight))


def test_the_log_says_at_which_rate_a_fitted_generator_learns(taught, capsys):
    out = pretrain(taught(model__start="prefit", run__updates=1))
    assert "the weight generator learns at 0.05 × optim.lr" in capsys.readouterr().err
    assert load_config(out / "config.yaml").optim.generator_lr == 0.05
    pretrain(taught(model__start="teacher", run__updates=1, run__out=f"{out}-2"))
    assert "weight generator" not in capsys.readouterr().err
