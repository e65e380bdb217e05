"""Whole runs in this process: what they write, continue, refuse and survive."""

import csv
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import dofa
from dofa.corpus.items import Reading
from dofa.corpus.pack import pack
from dofa.corpus.split import SplitConfig
from dofa.corpus.store import open_stores
from dofa.errors import CheckpointError, ConfigError, DataError, DofaError
from dofa.model.checkpoint import load_mae, save
from dofa.train import loop
from dofa.train.checkpoint import ContinuationWarning, checkpoints, lock_run
from dofa.train.evaluate import evaluate_store
from dofa.train.log import read_log
from dofa.train.monitor import verdict
from dofa.train.objective import build_model, learn_sensors
from dofa.train.pretrain import pretrain

SENSORS = ["naip-rgb", "sentinel-1-grd", "sentinel-2-l2a"]


def final(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, the optimiser's too."""
    newest = checkpoints(run / "checkpoints")[-1]
    return load_file(newest / "model.safetensors") | load_file(newest / "optimizer.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_writes_its_model_its_state_and_its_log(settings):
    config = settings(
        run__updates=5,
        run__micro_batches=3,
        run__save_every=2,
        run__evaluate_every=2,
        run__pictures_every=5,
        data__weights="equal",
    )
    out = pretrain(config)
    assert [c.name for c in checkpoints(out / "checkpoints")] == ["update-00000004", "update-00000005"]

    rows = read_log(out)
    assert [r["update"] for r in rows] == [1, 2, 3, 4, 5]
    for sensor in SENSORS:
        assert all(f"loss/{sensor}" in r for r in rows)
        held = [r for r in rows if f"held_out/{sensor}" in r]
        assert [r["update"] for r in held] == [2, 4, 5]
        for row in held:
            gap = row[f"held_out/{sensor}"] - row[f"floor/{sensor}"]
            assert row[f"difference/{sensor}"] == pytest.approx(gap, abs=1e-6)
    with (out / "log.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(r["loss/naip-rgb"]) for r in table] == [r["loss/naip-rgb"] for r in rows]
    assert (out / "pictures" / "update-00000005.png").stat().st_size > 1000

    encoder = dofa.load(out / "model")
    stores = open_stores(list(config.data.stores))
    for name, store in stores.items():
        learned = encoder.config.sensors[name]
        assert learned.scaling == store.scaling
        assert learned.gsd_m == store.sensor.gsd_m
        numbers = [b.wavelength_um or encoder.config.sar_wavelength for b in store.sensor.bands]
        assert learned.wavelength_um == tuple(numbers)
    record = json.loads((out / "model" / "config.json").read_text())
    assert record["provenance"]["updates"] == 5
    assert record["provenance"]["images"] == 5 * 3 * 4
    assert set(record["provenance"]["stores"]) == set(stores)


def test_a_run_learns(settings):
    config = settings(
        run__updates=30,
        run__micro_batches=1,
        data__flips="none",
        data__weights={"naip-rgb": 1.0} | dict.fromkeys(SENSORS[1:], 0.0),
    )
    losses = [r["loss/naip-rgb"] for r in read_log(pretrain(config))]
    assert losses[0] > 0.95
    assert sum(losses[-5:]) / 5 < 0.8


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_sigterm_and_ctrl_c_save_and_leave_with_their_status(settings, tmp_path, monkeypatch, capsys, number, status):
    config = settings(run__updates=6)
    whole = final(pretrain(settings(run__updates=6, run__out=str(tmp_path / "whole"))))
    real, calls = loop.gradient_norm, []

    def terminated(*args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return real(*args)

    before = signal.getsignal(number)
    monkeypatch.setattr(loop, "gradient_norm", terminated)
    with pytest.raises(SystemExit) as left:
        pretrain(config)
    assert left.value.code == status
    assert signal.getsignal(number) == before
    assert "--resume" in capsys.readouterr().err
    assert len(calls) <= 4
    monkeypatch.undo()
    out = pretrain(config, resume=True)
    assert equal(final(out), whole)


def test_a_finished_run_is_made_longer_and_never_shorter(settings, capsys):
    out = pretrain(settings(run__updates=3))
    before = final(out)
    longer = settings(run__updates=5)
    with pytest.raises(ConfigError, match="--resume"):
        pretrain(longer)
    assert equal(final(pretrain(settings(run__updates=3), resume=True)), before)
    pretrain(longer, resume=True)
    assert [row["update"] for row in read_log(out)] == [1, 2, 3, 4, 5]
    assert not equal(final(out), before)
    assert json.loads((out / "model" / "config.json").read_text())["provenance"]["updates"] == 5
    with pytest.raises(ConfigError, match="5 updates"):
        pretrain(settings(run__updates=4), resume=True)
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        pretrain(settings(run__updates=8, optim__lr=0.5), resume=True)


def test_a_run_without_matplotlib_trains_to_the_end(settings, monkeypatch, capsys):
    config = settings(run__updates=3, run__pictures_every=1)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = pretrain(config)
    assert [c.name for c in checkpoints(out / "checkpoints")][-1] == "update-00000003"
    assert not (out / "pictures").exists()
    assert "dofa[plot]" in capsys.readouterr().err


def test_a_run_ends_with_a_verdict_the_model_and_the_next_command(settings, capsys):
    out = pretrain(settings(run__updates=2, run__evaluate_every=0))
    last = capsys.readouterr().err.strip().splitlines()[-1]
    gaps = {sensor: read_log(out)[-1][f"difference/{sensor}"] for sensor in SENSORS}
    assert all(f"{sensor} {gap:+.3f}" in last for sensor, gap in gaps.items())
    assert ("NOT below the floor" in last) == (max(gaps.values()) >= 0)
    assert f"dofa probe --weights {out / 'model'}" in last


def test_the_verdict_tells_sensors_below_the_floor_from_those_above():
    said = verdict({"difference/a": -0.1, "difference/b": 0.2, "held_out/a": 0.5}, True, 100, Path("runs/x"))
    assert said.index("a -0.100") < said.index("NOT below") < said.index("b +0.200")
    assert "run.updates=200" in said
    assert "not measured" in verdict({}, True, 100, Path("runs/x"))


def test_a_stopped_and_resumed_run_is_bit_identical(settings, tmp_path, monkeypatch):
    def make(out):
        return settings(run__updates=6, run__save_every=2, run__out=str(tmp_path / out), run__workers=1)

    whole = final(pretrain(make("whole")))
    # A failure after update 5, one after the last checkpoint.
    real, calls = loop.gradient_norm, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("power cut")
        return real(*args)

    monkeypatch.setattr(loop, "gradient_norm", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        pretrain(make("cut"))
    monkeypatch.undo()
    assert checkpoints(tmp_path / "cut" / "checkpoints")[-1].name == "update-00000004"
    resumed = pretrain(make("cut"), resume=True)
    assert equal(final(resumed), whole)
    assert [r["update"] for r in read_log(resumed)] == [1, 2, 3, 4, 5, 6]
    assert equal(load_file(resumed / "model/model.safetensors"), load_file(tmp_path / "whole/model/model.safetensors"))


def test_resuming_a_finished_run_changes_nothing(settings):
    out = pretrain(settings())
    before = final(out)
    assert pretrain(settings(), resume=True) == out
    assert equal(final(out), before)


def test_resume_begins_where_there_is_no_checkpoint_yet(settings):
    assert len(checkpoints(pretrain(settings(), resume=True) / "checkpoints")) == 1


def test_a_run_is_not_overwritten(settings):
    pretrain(settings())
    with pytest.raises(ConfigError, match=r"already holds a run .*--resume"):
        pretrain(settings())


def test_a_folder_in_which_another_process_trains_is_refused(settings, monkeypatch):
    monkeypatch.setattr("dofa.train.checkpoint.LOCK_PATIENCE_S", 0.1)
    config = settings()
    fabric = Fabric(accelerator="cpu", devices=1)
    with lock_run(fabric, Path(config.run.out)), pytest.raises(ConfigError, match="another process"):
        pretrain(config)
    pretrain(config)


def test_a_run_is_not_continued_with_other_settings(settings):
    pretrain(settings())
    with pytest.raises(ConfigError, match=r"other settings \(optim.lr: 0.001 -> 0.002\)"):
        pretrain(settings(optim__lr=2e-3), resume=True)


def test_a_run_is_not_continued_on_other_data(settings, tmp_path):
    pretrain(settings())
    source = open_stores(list(settings().data.stores))
    for name, store in source.items():
        images = [store.read(i)[0] for i in range(store.count)]
        places = store.places(range(store.count))
        if name == "naip-rgb":
            images[0] = images[0] // 2
        reading = Reading.from_arrays(
            replace(store.sensor, scaling=replace(store.scaling, mean=None, std=None, stats_source=None)),
            torch.stack([torch.from_numpy(i) for i in images]).numpy(),
            places,
        )
        pack(reading, tmp_path / "other", split=SplitConfig("place", 0.3), workers=1, progress=False)
    with pytest.raises(ConfigError, match=r"naip-rgb.* are not those the run was begun with"):
        pretrain(settings(data__stores=[str(tmp_path / "other")]), resume=True)


def test_a_checkpoint_from_the_future_is_refused(settings):
    out = pretrain(settings())
    state = checkpoints(out / "checkpoints")[-1] / "state.json"
    state.write_text(state.read_text().replace('"format_version": 1', '"format_version": 9', 1))
    with pytest.raises(CheckpointError, match="format_version 9, newer"):
        pretrain(settings(), resume=True)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "truncated"])
def test_a_damaged_checkpoint_is_refused(settings, fault):
    out = pretrain(settings())
    file = checkpoints(out / "checkpoints")[-1] / "model.safetensors"
    tensors = load_file(file)
    if fault == "missing":
        del tensors["mae.mask_token"]
    elif fault == "extra":
        tensors["mae.unknown"] = torch.zeros(1)
    elif fault == "shape":
        tensors["mae.mask_token"] = torch.zeros(1, 1, 7)
    save_file(tensors, file)
    if fault == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        pretrain(settings(), resume=True)


def test_other_threads_or_libraries_are_said_when_a_run_continues(settings):
    out = pretrain(settings())
    state = checkpoints(out / "checkpoints")[-1] / "state.json"
    facts = json.loads(state.read_text())
    facts["surroundings"] |= {"threads": 7, "torch": "1.0"}
    state.write_text(json.dumps(facts))
    with pytest.warns(ContinuationWarning, match=r"not to the same bits.*threads 7 -> 1, torch 1.0 -> "):
        pretrain(settings(), resume=True)


def test_a_loss_that_is_not_finite_names_its_images_and_overwrites_nothing(settings):
    config = settings(optim__lr=1e25, optim__clip=None, run__save_every=1, run__updates=9)
    with pytest.raises(DataError, match=r"update \d+ stopped: .*for sensor (\S+), sources \1-\d+.tif") as error:
        pretrain(config)
    assert "\n" not in str(error.value)
    out = Path(config.run.out)
    kept = final(out)
    assert all(torch.isfinite(v).all() for k, v in kept.items() if ":" not in k)
    newest = int(checkpoints(out / "checkpoints")[-1].name.split("-")[1])
    assert f"update {newest + 1} stopped" in str(error.value)


def test_training_goes_on_from_a_model_folder(settings, tmp_path):
    first = pretrain(settings())
    config = settings(model__init=str(first / "model"), model__changes={}, run__out=str(tmp_path / "second"))
    second = pretrain(config)
    before, after = load_mae(first / "model"), load_mae(second / "model")
    assert before.encoder.config.sensors.keys() == after.encoder.config.sensors.keys()
    for name, sensor in before.encoder.config.sensors.items():
        again = after.encoder.config.sensors[name]
        assert again.scaling == replace(sensor.scaling, stats_source="checkpoint")
        assert again.wavelength_um == sensor.wavelength_um
    moved = [(a - b).abs().max() for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert 0 < max(moved) < 0.05


def test_statistics_a_model_was_trained_with_are_kept(settings, tmp_path):
    first = pretrain(settings())
    mae = load_mae(first / "model")
    known = dict(mae.encoder.config.sensors)
    old = known["naip-rgb"]
    known["naip-rgb"] = replace(old, scaling=replace(old.scaling, mean=(1.0, 2.0, 3.0)), wavelength_um=(0.6, 0.5, 0.4))
    mae.encoder.config = replace(mae.encoder.config, sensors=known)
    save(mae, tmp_path / "model")
    config = settings(model__init=str(tmp_path / "model"), model__changes={}, run__out=str(tmp_path / "second"))
    learned = load_mae(pretrain(config) / "model").encoder.config.sensors["naip-rgb"]
    assert learned.scaling.mean == (1.0, 2.0, 3.0)
    assert learned.scaling.stats_source == "checkpoint"
    assert learned.wavelength_um == (0.6, 0.5, 0.4)


def test_no_stores_is_an_error(settings):
    with pytest.raises(ConfigError, match=r"data\.stores is empty"):
        pretrain(settings(data__stores=[]))


def test_bf16_and_gradient_checkpointing_train(settings):
    out = pretrain(settings(run__precision="bf16-mixed", model__gradient_checkpointing=True))
    assert all(v.dtype == torch.float32 for v in final(out).values())


def test_evaluation_is_paired_fixed_and_says_how_many_places(settings):
    config = settings()
    mae = load_mae(pretrain(config) / "model")
    store = open_stores(list(config.data.stores))["naip-rgb"]
    one = evaluate_store(mae, store, crop=32, masks=3)
    again = evaluate_store(mae, store, crop=32, masks=3, batch=7)
    assert (abs(one.error - again.error) < 1e-5).all()
    assert (one.floor == again.floor).all()
    assert list(one.indices) == list(store.indices("val"))
    summary = one.summary()
    assert summary["images"] == len(store.indices("val"))
    assert summary["places"] == len(set(store.places(store.indices("val")))) == 2
    assert summary["interval"] is None
    trained = evaluate_store(mae, store, crop=32, split="train").summary()
    low, high = trained["interval"]
    assert low <= trained["difference"] <= high
    other = evaluate_store(mae, store, crop=32, masks=3, seed=1)
    assert (one.floor != other.floor).all()


def test_an_untrained_model_is_judged_at_about_one(settings):
    config = settings()
    mae = build_model(config.model)
    stores = open_stores(list(config.data.stores))
    learn_sensors(mae, stores)
    assert evaluate_store(mae, stores["naip-rgb"], crop=32).summary()["error"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left")])
def test_a_full_disk_is_one_line_and_the_run_goes_on_from_the_checkpoint_before(settings, tmp_path, monkeypatch, error):
    """safetensors' own error of a full disk was a traceback."""
    config = settings(run__save_every=2)
    real, files = safetensors.torch.save_file, []

    def fills(tensors, file, *args, **more):
        files.append(Path(file))
        if "00000004" in str(file) and "optimizer" in str(file):
            raise error
        real(tensors, file, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr("dofa.train.checkpoint.safetensors.torch.save_file", fills)
        with pytest.raises(DofaError, match=r"cannot be written .*No space left.*--resume"):
            pretrain(config)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["update-00000002"]
    pretrain(config, resume=True)
    assert (tmp_path / "run" / "checkpoints" / "update-00000004" / "state.json").is_file()
