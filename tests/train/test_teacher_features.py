"""A teacher's answers on fixed crops, kept on disk: what they hold, when they are made anew, interruptions."""

import shutil
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from dofa.corpus.items import Reading
from dofa.corpus.pack import pack
from dofa.corpus.split import SplitConfig
from dofa.corpus.store import open_stores
from dofa.train.recipes import from_dict
from dofa.train.teacher_features import cached_teacher_features

from ..vit_files import write_vit
from .preparing import FULL, prepared

SENSORS = ["naip-rgb", "sentinel-1-grd", "sentinel-2-l2a"]


def test_kept_answers_are_what_the_teacher_says_of_the_same_crops(taught):
    ready = prepared(taught({**FULL, "crops": 2}, run__micro_batches=3, data__weights="equal"))
    fresh = [ready.data[n] for n in range(3)]
    ready.ask()
    for n, before in enumerate(fresh):
        batch = ready.data[n]
        assert "pictures" not in batch
        assert batch["target"].dtype == torch.float16
        told = ready.objective.teach(before["pictures"], 4)
        assert torch.equal(batch["image"], before["image"])
        assert torch.allclose(batch["target"].float(), told, atol=2e-3, rtol=2e-3)
        assert not torch.allclose(batch["target"].float(), told.roll(1, 0), atol=0.1)
    for name, source in ready.data.sources.items():
        assert ready.data.answers[name].shape == (len(source.train), 2, 2, 16, 48)
    folder = Path(ready.config.run.out) / "teacher"
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{s}.{e}" for s in SENSORS for e in ("json", "npy"))


def test_the_same_settings_read_the_answers_and_others_make_them_anew(taught, vits, tmp_path):
    distill = {**FULL, "crops": 1}
    first = prepared(taught(distill)).ask()
    assert len(first.said) == 3
    assert prepared(taught(distill)).ask().said == []
    # None of these changes what the teacher is shown.
    same = taught(distill, optim__lr=1e-4, run__updates=9, data__jitter={"share": 0.2}, data__band_keep=0.3)
    assert prepared(same).ask().said == []
    folder, kept = Path(first.config.run.out) / "teacher", tmp_path / "kept"
    shutil.copytree(folder, kept)

    other = tmp_path / "other"
    write_vit(other, 48, 2, 3, 8, 32, seed=9)
    changes = {"width": 48, "depth": 2, "heads": 3, "patch": 16, "image_size": 32}
    for config, why in (
        (taught({**distill, "teacher": str(other)}), "teacher"),
        (taught({**distill, "blocks": [1], "teacher_blocks": [0]}), "blocks"),
        (taught({**distill, "crops": 2}), "crops"),
        (taught(distill, run__seed=1), "seed"),
        (taught(distill, data__flips="none"), "flips"),
        (taught(distill, data__crop=24), "crop"),
        (taught(distill, data__statistics="display"), "statistics"),
        (taught(distill, model__changes=changes), "patch"),
    ):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        ready = prepared(config).ask()
        assert len(ready.said) == 3, why
        batch = ready.data[0]
        assert batch["target"].shape[2] == batch["noise"].shape[1], why
        ready.objective(batch)


def test_another_teacher_under_the_same_name_is_asked_anew(taught, tmp_path):
    config = taught({**FULL, "crops": 1, "teacher": str(tmp_path / "vit")})
    for seed in (1, 2):
        shutil.rmtree(tmp_path / "vit", ignore_errors=True)
        write_vit(tmp_path / "vit", 48, 2, 3, 8, 32, seed=seed)
        assert len(prepared(config).ask().said) == 3
        assert prepared(config).ask().said == []


def test_answers_are_made_anew_for_another_store_and_only_for_it(taught, store, tmp_path):
    distill = {**FULL, "crops": 1}
    prepared(taught(distill)).ask()
    old = open_stores([store])["naip-rgb"]
    images = np.stack([old.read(i)[0] for i in range(len(old))])
    images[0] //= 2
    sensor = replace(old.sensor, scaling=old.scaling.without_stats())
    reading = Reading.from_arrays(sensor, images, old.places(range(len(old))))
    pack(reading, tmp_path / "changed", split=SplitConfig("place", 0.3), workers=1, progress=False)
    said = prepared(taught(distill, data__stores=[str(tmp_path / "changed")])).ask().said
    assert len(said) == 1
    assert "naip-rgb" in said[0]


def test_an_interruption_while_answers_are_written_leaves_no_half_file(taught):
    config = taught({**FULL, "crops": 4})
    ready = prepared(config)
    folder = Path(config.run.out) / "teacher"
    asked = []

    def failing(pictures, grid):
        asked.append(1)
        if len(asked) == 2:
            raise RuntimeError("power cut")
        return ready.objective.teach(pictures, grid)

    def answers(teach, said):
        return cached_teacher_features(folder, ready.data, teach, {"key": 1}, ready.fabric, said.append)

    with pytest.raises(RuntimeError, match="power cut"):
        answers(failing, [])
    assert not list(folder.glob("*.npy"))
    assert not list(folder.glob("*.json"))
    said: list[str] = []
    whole = {name: np.array(rows) for name, rows in answers(ready.objective.teach, said).items()}
    assert len(said) == 3
    assert not list(folder.glob("*.partial"))

    # Made anew for another key and interrupted: the old answers no longer count, even for the old key.
    asked.clear()
    with pytest.raises(RuntimeError, match="power cut"):
        cached_teacher_features(folder, ready.data, failing, {"key": 2}, ready.fabric, said.append)
    again = answers(ready.objective.teach, said := [])
    assert said
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


PATIENCE_S, ANSWER_S = 20, 3.0  # of the process group; for each batch


def answer_slowly(fabric: Fabric, settings: dict) -> tuple[float, dict[str, int]]:
    """On each of several processes: how long it took until all answers were there, and how many there are."""
    torch.set_num_threads(1)
    ready = prepared(config := from_dict(settings))

    def teach(pictures, grid):
        time.sleep(ANSWER_S)
        return ready.objective.teach(pictures, grid)

    fabric.barrier()
    began = time.monotonic()
    rows = cached_teacher_features(
        Path(config.run.out) / "teacher", ready.data, teach, {"key": 1}, fabric, lambda _: None
    )
    return time.monotonic() - began, {name: np.array(each).any(axis=(2, 3, 4)).sum() for name, each in rows.items()}


@pytest.mark.slow
def test_processes_that_wait_for_answers_do_not_give_up(taught):
    """They wait longer than a process group hears nothing: it would take the one that computes for dead."""
    config = taught({**FULL, "crops": 6})
    strategy = DDPStrategy(timeout=timedelta(seconds=PATIENCE_S), start_method="spawn")
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    took, made = fabric.launch(answer_slowly, config.to_dict())
    assert took > PATIENCE_S
    assert made == {name: 6 * len(source.train) for name, source in prepared(config).data.sources.items()}
