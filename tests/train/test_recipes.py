"""The recipes that come with the package take real steps; their images are cut small, the models are the real ones."""

from pathlib import Path

import pytest

import dofa
from dofa.train.config import load_config
from dofa.train.log import read_log
from dofa.train.pretrain import pretrain


def run_two_updates(recipe: str, store: str, out: Path, *overrides: str) -> Path:
    settings = [f"data.stores=[{store}]", f"run.out={out}", "run.epochs=", "run.updates=2", "run.workers=0"]
    run = pretrain(load_config(recipe, [*settings, "run.device=cpu", "run.log_every=1", *overrides]))
    assert [row["update"] for row in read_log(run)] == [1, 2]
    return run


def test_cpu_tiny_takes_two_updates_and_its_model_loads(store, tmp_path):
    run = run_two_updates("cpu-tiny", store, tmp_path / "run")
    assert dofa.load(run / "model").config.patch == 8


@pytest.mark.slow
def test_base_takes_two_updates(store, tmp_path):
    run = run_two_updates("dofa-base-mim", store, tmp_path / "run", "data.crop=32", "data.batch=2")
    assert dofa.load(run / "model").config.width == 768


@pytest.mark.slow
def test_large_takes_two_updates(store, tmp_path):
    run = run_two_updates("dofa-large-mim", store, tmp_path / "run", "data.crop=32", "data.batch=2")
    assert dofa.load(run / "model").config.depth == 24
