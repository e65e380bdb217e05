"""A trained model that learns a new sensor: what is rehearsed, and what the report of gains and losses says."""

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dofa import cli
from dofa.cli import main
from dofa.corpus.mixture import Mixture
from dofa.corpus.store import open_stores
from dofa.errors import CheckpointError, DataError
from dofa.model.checkpoint import load_mae, save
from dofa.model.config import TrainedSensor
from dofa.model.mae import MaskedAutoencoder
from dofa.train import forgetting, loop
from dofa.train.config import PretrainConfig
from dofa.train.data import rehearse
from dofa.train.evaluate import Evaluation, evaluate_store, place_interval
from dofa.train.forgetting import Change, Report, read_report, write_report
from dofa.train.objective import build_model, learn_sensors
from dofa.train.pretrain import pretrain
from dofa.train.recipes import from_dict, load_config

from ..test_docs import ROOT, commands
from .conftest import write_store

OLD, NEW, ABSENT = ("naip-rgb", "sentinel-1-grd"), "sentinel-2-l2a", "gaofen-2"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A model folder that says it was trained on two sensors of the stores, and on a third that is not there."""
    folder = tmp_path_factory.mktemp("trained")
    stores = [write_store(folder / "old", name, 12, 32, seed=k) for k, name in enumerate(OLD)]
    size = {"width": 48, "depth": 2, "heads": 3, "patch": 8, "image_size": 32}
    model = from_dict({"model": {"size": "tiny", "changes": size, "decoder": {"width": 32, "depth": 1, "heads": 2}}})
    mae = build_model(model.model)
    learn_sensors(mae, open_stores(stores[:1]))
    known = mae.encoder.config.sensors
    absent = {ABSENT: TrainedSensor(("B", "G", "R", "NIR"), (0.485, 0.555, 0.66, 0.83))}
    mae.encoder.config = replace(mae.encoder.config, sensors={**known, **absent})
    save(mae, folder / "model")
    save(mae.encoder, folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def new(tmp_path_factory) -> str:
    """The store of a sensor the model never saw: three places are held out."""
    return write_store(tmp_path_factory.mktemp("new") / "store", NEW, 20, 40, seed=5, places=10, invalid=True)


@pytest.fixture
def further(settings, trained, new) -> Callable[..., PretrainConfig]:
    """A run that trains the model further; keywords as in `settings`."""

    def make(**changes: object) -> PretrainConfig:
        stores = [str(trained / "old"), new]
        given = {"data__stores": stores, "data__rehearsal": 0.5, "data__weights": "equal"}
        return settings(model={"init": str(trained / "model")}, **given | {"run__updates": 4} | changes)

    return make


def report_of(run: Path) -> dict:
    return json.loads((run / "forgetting.json").read_text())


@pytest.mark.parametrize("keep_initial", [0.0, 0.4])
def test_the_report_says_what_a_direct_evaluation_of_both_models_says(further, trained, capsys, keep_initial):
    config = further(optim__keep_initial=keep_initial, optim__lr=3e-3, run__evaluate_images=5, run__seed=3)
    run = pretrain(config)
    said = {row["sensor"]: row for row in report_of(run)["sensors"]}
    stores = open_stores(list(config.data.stores))
    for name, store in stores.items():
        direct = [
            evaluate_store(load_mae(folder), store, crop=32, masks=4, limit=5, seed=3)
            for folder in (trained / "model", run / "model")
        ]
        row, (before, after) = said[name], direct
        assert row["images"]["before"] == before.error.tolist()
        assert row["images"]["after"] == after.error.tolist()
        assert row["images"]["place"] == list(after.places)
        assert row["difference"] == pytest.approx((after.error - before.error).mean(), abs=1e-12)
        assert abs(row["difference"]) > 1e-5
        interval = place_interval(after.error - before.error, after.places)
        assert row["interval"] == (None if interval is None else list(interval))
        assert row["known"] == (name in OLD)
    assert said[NEW]["interval"] is not None
    assert [said[name]["share"] for name in (*OLD, NEW)] == [0.25, 0.25, 0.5]
    assert report_of(run)["updates"] == 4
    printed = capsys.readouterr().err
    for row in said.values():
        assert re.search(rf"{row['sensor']} +{'old' if row['known'] else 'new'} .*{re.escape(row['verdict'])}", printed)
    assert "by the kernels its wavelengths generate, without any training on it" in printed


def test_an_old_sensor_without_a_store_is_named(further):
    row = report_of(pretrain(further(run__updates=1)))["sensors"][-1]
    assert row["sensor"] == ABSENT
    assert row["verdict"].startswith("not rehearsed, not measured")
    assert [row[key] for key in ("share", "before", "after", "difference")] == [None] * 4


def test_without_rehearsal_old_sensors_are_measured_all_the_same(further):
    rows = {row["sensor"]: row for row in report_of(pretrain(further(data__rehearsal=0, run__updates=1)))["sensors"]}
    assert [rows[name]["share"] for name in (*OLD, NEW)] == [0, 0, 1]
    for name in OLD:
        assert rows[name]["difference"] != 0
        assert ", not rehearsed" in rows[name]["verdict"]


def stopped(config: PretrainConfig, monkeypatch, update: int) -> None:
    """Run until SIGTERM arrives in an update."""
    real, calls = loop.gradient_norm, []

    def terminated(*args):
        calls.append(1)
        if len(calls) == update:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "gradient_norm", terminated)
        with pytest.raises(SystemExit) as left:
            pretrain(config)
    assert left.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("lost", [False, True], ids=["report kept", "report lost"])
def test_an_interrupted_and_resumed_run_reports_what_an_uninterrupted_one_does(further, tmp_path, monkeypatch, lost):
    whole = pretrain(further(run__out=str(tmp_path / "whole"), run__evaluate_images=4, optim__keep_initial=0.3))
    config = further(run__evaluate_images=4, optim__keep_initial=0.3, run__save_every=1)
    stopped(config, monkeypatch, 2)
    run = Path(config.run.out)
    unfinished = report_of(run)
    assert unfinished["updates"] is None
    assert {row["verdict"] for row in unfinished["sensors"][:3]} == {"not finished"}
    if lost:
        (run / "forgetting.json").unlink()
    else:
        monkeypatch.setattr(forgetting, "begin", None)  # nothing may be measured anew
        config = replace(
            config, run=replace(config.run, evaluate_images=7)
        )  # housekeeping: other images, were it asked
    pretrain(config, resume=True)
    assert (run / "forgetting.json").read_bytes() == (whole / "forgetting.json").read_bytes()
    # A run that had ended is measured again from what it left, to the same.
    pretrain(config, resume=True)
    assert (run / "forgetting.json").read_bytes() == (whole / "forgetting.json").read_bytes()


def test_a_new_decoder_has_no_error_before(further, trained):
    config = further(model__init=str(trained / "encoder"), model__decoder={"width": 32, "depth": 1, "heads": 2})
    rows = report_of(pretrain(config))["sensors"]
    assert {row["before"] for row in rows} == {None}
    assert all(row["after"] > 0 and row["verdict"].startswith("no error before") for row in rows if row["share"])


def test_nothing_is_reported_where_nothing_is_reconstructed_or_continued(further, vits, settings, tmp_path):
    distilled = {"teacher": str(vits["same"]), "view": "full", "reconstruction": 0.0}
    assert not (pretrain(further(distill=distilled, run__updates=1)) / "forgetting.json").exists()
    assert not (pretrain(settings(run__updates=1, run__out=str(tmp_path / "anew"))) / "forgetting.json").exists()


def change(before: list[float], after: list[float], places: list[str], **more: object) -> Change:
    index, floor = np.arange(len(before)), np.full(len(before), 0.9)
    first, last = (Evaluation("s", index, tuple(places), np.array(e), floor) for e in (before, after))
    return Change("s", **{"known": True, "share": 0.5, "before": first, "after": last} | more)  # type: ignore[arg-type]


THREE = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        (change([0.5, 0.6, 0.7], [0.6, 0.7, 0.8], THREE), "forgotten"),
        (change([0.5, 0.6, 0.7], [0.4, 0.5, 0.6], THREE), "improved"),
        (change([0.5, 0.6, 0.7], [0.4, 0.7, 0.7], THREE), "no change shown"),
        (change([0.5, 0.6, 0.7], [0.4, 0.5, 0.6], THREE, known=False), "learned"),
        (change([0.5, 0.6, 0.7], [0.6, 0.7, 0.8], THREE, known=False), "got worse"),
        (change([1.5, 1.6, 1.7], [1.4, 1.5, 1.6], THREE, known=False), "learned; above its floor"),
        (change([0.5, 0.6], [0.4, 0.5], ["a", "a"]), "improved? 1 place, too few for an interval"),
        (change([0.5, 0.6], [0.6, 0.7], ["a", "b"]), "forgotten? 2 places, too few for an interval"),
        (change([0.5, 0.6, 0.7], [0.6, 0.7, 0.8], THREE, share=0.0), "forgotten, not rehearsed"),
        (Change("s", True, 0.5), "not measured: no held-out images"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_the_verdict_says_no_more_than_the_interval_shows(changed, verdict):
    assert changed.verdict == verdict


def test_other_images_after_than_before_are_not_compared():
    one = change([0.5, 0.6, 0.7], [0.4, 0.5, 0.6], THREE)
    other = replace(one, after=replace(one.after, indices=np.array([0, 1, 5])))
    with pytest.raises(DataError, match="sensor s: other images could be judged"):
        _ = other.verdict


def test_a_report_reads_back_as_it_was_written_and_a_damaged_one_is_named(tmp_path):
    rows = (change([0.1, 0.25, 1 / 3], [0.4, 0.5, 0.6], THREE), Change("t", True))
    write_report(tmp_path, Report("base/model", 64, 7, rows, 600))
    text = (tmp_path / "forgetting.json").read_text()
    again = read_report(tmp_path)
    assert again is not None
    write_report(tmp_path, again)
    assert (tmp_path / "forgetting.json").read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["forgetting.json"]
    for damage, says in (
        (text[:200], "cannot be read"),
        (text.replace('"index"', '"idx"'), "remove it, and the error before is measured again"),
        (text.replace('"format_version": 1', '"format_version": 2'), "update dofa"),
    ):
        (tmp_path / "forgetting.json").write_text(damage)
        with pytest.raises(CheckpointError, match=says):
            read_report(tmp_path)


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 100), min_size=2, max_size=6),
    old=st.integers(1, 5),
    share=st.floats(0, 0.99),
    micro=st.integers(1, 5),
)
def test_the_plan_rehearses_its_share_and_keeps_the_weights_within_old_and_new(weights, old, share, micro):
    old = min(old, len(weights) - 1)
    given_weights = {f"s{k}": w for k, w in enumerate(weights)}
    known = set(list(given_weights)[:old])
    config = from_dict({"model": {"init": "somewhere"}, "data": {"rehearsal": share}})
    shared = rehearse(given_weights, known, config)
    mixture = Mixture(dict.fromkeys(shared, 50), dict.fromkeys(shared, 2), micro, shared)
    updates = 30
    planned = [batch.sensor for update in range(updates) for batch in mixture.plan(update)]
    # The deal owes no sensor more than one micro-batch.
    assert abs(sum(name in known for name in planned) - share * micro * updates) <= len(weights)
    for group in (known, given_weights.keys() - known):
        total, of_group = sum(given_weights[n] for n in group), sum(shared[n] for n in group)
        assert of_group == pytest.approx(share if group == known else 1 - share)
        for name in group:
            assert shared[name] == pytest.approx(of_group * given_weights[name] / total)


def refused(capsys, *words: str) -> str:
    """The one line `dofa pretrain` says."""
    assert main(["pretrain", "--config", "continue", "--set", *words]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "warning" not in x]
    return line


def test_what_cannot_be_continued_is_one_clear_line_and_nothing_is_written(trained, new, tmp_path, capsys):
    old, out, init = trained / "old", f"run.out={tmp_path / 'run'}", f"model.init={trained / 'model'}"
    both = f"data.stores=[{old}, {new}]"
    for words, says in (
        ([both], "model.init is not set"),
        ([both, "model.init=/nowhere"], "no model folder and no known name '/nowhere'"),
        ([f"data.stores=[{old}]", init], "add the new ones, or set data.rehearsal=null"),
        ([f"data.stores=[{new}]", init], "add the old ones, or set data.rehearsal=null"),
        ([both, init, "data.weights={naip_rgb: 1}"], "data.weights names 'naip_rgb': did you mean naip-rgb"),
        ([both, init, "data.rehearsal=1"], "data.rehearsal is 1"),
    ):
        assert says in refused(capsys, *words, out), words
    assert not (tmp_path / "run").exists()


def test_a_damaged_report_stops_the_continuation_before_it_trains(further, monkeypatch, capsys):
    config = further(run__save_every=1)
    stopped(config, monkeypatch, 1)
    (Path(config.run.out) / "forgetting.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"forgetting\.json cannot be read"):
        pretrain(config, resume=True)


def recipe() -> str:
    return (resources.files("dofa") / "recipes" / "continue.yaml").read_text(encoding="utf-8")


def test_every_setting_of_the_recipe_has_its_reason_beside_it():
    section = ""
    for line in recipe().splitlines():
        section = line if re.match(r"\w", line) else section
        if section != "run:" and re.match(r"  \w+: \S", line):
            assert "#" in line, line
    whole = load_config("continue")
    assert (whole.model.init, whole.data.stores) == (None, ())
    assert whole.data.rehearsal


def test_the_recipe_s_settings_for_a_teacher_hold_together():
    told = [line.partition("--set ")[2] for line in recipe().splitlines() if line.startswith("#") and "--set " in line]
    (distilled,) = [words.split() for words in told if "distill" in words]
    assert load_config("continue", distilled).distill.teacher


def test_the_recipe_learns_the_new_sensor_and_keeps_the_old(trained, new, tmp_path):
    words = [f"data.stores=[{trained / 'old'}, {new}]", f"model.init={trained / 'model'}", f"run.out={tmp_path}/run"]
    config = load_config("continue", [*words, "run.updates=12", "run.workers=0", "data.batch=4", "run.device=cpu"])
    rows = {row["sensor"]: row for row in report_of(pretrain(config))["sensors"]}
    assert rows[NEW]["difference"] < 0
    assert isinstance(load_mae(tmp_path / "run" / "model"), MaskedAutoencoder)


def test_the_commands_and_files_of_the_page_are_understood(tmp_path, capsys):
    page = ROOT / "docs" / "continue.md"
    found = [command[1] for command in commands(page)]
    assert {"sensors", "pack", "pretrain"} <= set(found)
    for command in commands(page):
        verb = cli.VERBS[command[1]]
        module, function = verb.target.split(":")
        run = getattr(__import__(module, fromlist=[function]), function)
        options = cli._parser(command[1], verb, run).parse_args(command[2:])
        if command[1] == "pretrain":
            load_config(options.config, options.set)
    (sensor,) = re.findall(r"^```yaml\n(name: .*?)^```$", page.read_text(), re.M | re.S)
    name = yaml.safe_load(sensor)["name"]
    (tmp_path / f"{name}.yaml").write_text(sensor)
    assert main(["sensors", str(tmp_path / f"{name}.yaml")]) == 0
    assert name in capsys.readouterr().out
