"""Results are those of the code as it stood on 1 December 2026, and what it wrote still opens."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from dofa.cli import main
from dofa.train.log import read_log

from .recorded import recording

RECORDED = json.loads((recording.HERE / "numbers.json").read_text())
# Sums differ from processor to processor in the last digits of float32, which twelve updates and a fit spread.
# On the machine that recorded them all numbers are equal: DOFA_EXACT=1 asks for that.
EXACT = bool(os.environ.get("DOFA_EXACT"))


def same(found, recorded, rel, abs_=0.0, at=""):
    """Compare nested numbers, and say where they differ."""
    if isinstance(recorded, dict):
        assert list(found) == list(recorded), at
        for key, value in recorded.items():
            same(found[key], value, rel, abs_, f"{at}/{key}")
    elif isinstance(recorded, list):
        assert len(found) == len(recorded), at
        for i, value in enumerate(recorded):
            same(found[i], value, rel, abs_, f"{at}/{i}")
    elif isinstance(recorded, float) and not EXACT:
        assert found == pytest.approx(recorded, rel=rel, abs=abs_), at
    else:
        assert found == recorded, at


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folders that the code wrote then."""
    folder = tmp_path_factory.mktemp("written")
    with tarfile.open(recording.ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_a_short_pretraining_learns_what_it_learned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, recorded = recording.train(), RECORDED["train"]
    assert found["stores"] == recorded["stores"]
    same(found["losses"], recorded["losses"], 1e-4)
    same(found["weights"], recorded["weights"], 1e-3, 1e-5)


def test_features_scores_and_maps_are_what_they_were(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(written / "model", "model")
    found, recorded = recording.use(), RECORDED["use"]
    of_scenes = [name for name in recorded if name.startswith(("s2.", "naip."))]
    same({k: found.pop(k) for k in of_scenes}, {k: recorded[k] for k in of_scenes}, 1e-4, 1e-5)
    # A pixel at the border of two classes may change its side: scores and shares to half a point.
    same(found, {k: v for k, v in recorded.items() if k not in of_scenes}, 1e-3, 5e-3)


def test_heads_that_were_written_then_map_as_they_did(written, tmp_path, monkeypatch):
    for name in ("model", "segmentation-probe", "tuned"):
        shutil.copytree(written / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    found = recording.maps()
    same(found, {k: RECORDED["use"][k] for k in found}, 1e-3, 5e-3)


def test_stores_and_a_run_that_were_written_then_are_continued(written, tmp_path, monkeypatch):
    for name in ("stores", "run"):
        shutil.copytree(written / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    Path("pretrain.yaml").write_text(recording.yaml.safe_dump(recording.RECIPE))
    more = recording.UPDATES + 2
    assert main(["pretrain", "--config", "pretrain.yaml", "--resume", "--set", f"run.updates={more}"]) == 0
    assert [row["update"] for row in read_log(tmp_path / "run")] == list(range(1, more + 1))


def test_chips_that_were_written_then_are_judged_with_a_head_of_then(written, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(written)
    told = ["--head", "tuned/head", "--weights", "model", "--data", "chips:segmentation", "--device", "cpu"]
    assert main(["evaluate", *told, "--out", str(tmp_path / "judged")]) == 0
    score = json.loads((tmp_path / "judged" / "evaluate.json").read_text())["score"]["value"]
    same(score, RECORDED["use"]["finetune"], 1e-3, 5e-3)


def test_the_model_that_was_written_then_opens(written):
    import dofa

    model = dofa.load(written / "model")
    assert model(torch.zeros(1, 3, 32, 32), [0.49, 0.56, 0.665]).shape[0] == 1
