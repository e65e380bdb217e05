"""kill -9 at random moments, checkpoint writes among them: the final weights are those of an uninterrupted run."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dofa.train.checkpoint import checkpoints
from dofa.train.config import PretrainConfig
from dofa.train.log import read_log
from dofa.train.recipes import to_yaml

from .conftest import command, descendants, environment
from .preparing import FULL

KILLS = 10


def lines(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def run_until_killed(config: PretrainConfig, processes: int, writing: bool, rng: random.Random) -> bool:
    """Start or resume, kill all processes of the run; whether a checkpoint was being written at that moment."""
    run = Path(config.run.out)
    file = run.with_suffix(".yaml")
    file.write_text(to_yaml(config))
    folder = run / "checkpoints"
    process = subprocess.Popen(command(file, processes, resume=True), env=environment(), stderr=subprocess.DEVNULL)
    try:
        began = lines(run)
        leftover = {p.name for p in folder.glob(".partial-*")} if folder.is_dir() else set()
        patience = time.monotonic() + 120
        while lines(run) == began or any((folder / name).exists() for name in leftover):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < patience
            began = min(began, lines(run))  # the log is cut back to the checkpoint first
            time.sleep(0.001)
        if writing:
            while not list(folder.glob(".partial-*")):
                assert process.poll() is None, "the run ended before a checkpoint was written"
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.03))
        else:
            time.sleep(rng.uniform(0, 0.4))
    finally:
        alive = descendants(process.pid)
        for one in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        process.wait()
        while any(Path(f"/proc/{one}").exists() for one in alive):
            time.sleep(0.001)
    return bool(list(folder.glob(".partial-*")))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("processes", [1, 2])
def test_ten_kills_leave_the_weights_of_an_uninterrupted_run(settings, train_outside, tmp_path, processes):
    def make(out: str) -> PretrainConfig:
        return settings(
            # Large enough that a checkpoint takes a tenth of a second to write, few patches that updates do not.
            model__changes={"width": 96, "depth": 2, "heads": 3, "patch": 16, "image_size": 32},
            run__out=str(tmp_path / out),
            run__updates=120,
            run__micro_batches=2,
            run__save_every=4,
            run__workers=1,
        )

    check_kills(make, train_outside, processes, kills=KILLS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kills_of_a_taught_run_leave_the_weights_of_an_uninterrupted_one(taught, train_outside, tmp_path):
    """Kept answers, standardised features, a fitted start and averaged weights among them."""

    def make(out: str) -> PretrainConfig:
        return taught(
            {**FULL, "reconstruction": 1.0, "anchor": 1.0, "crops": 2},
            model__start="prefit",
            optim__keep_initial=0.2,
            data__weights="equal",
            run__out=str(tmp_path / out),
            run__updates=60,
            run__micro_batches=3,
            run__save_every=4,
            run__workers=1,
        )

    check_kills(make, train_outside, processes=1, kills=5)
    answers = [sorted((tmp_path / out / "teacher").glob("*.npy")) for out in ("killed", "whole")]
    assert len(answers[0]) == 3
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*answers, strict=True))


def check_kills(make: Callable[[str], PretrainConfig], train_outside: Any, processes: int, kills: int) -> None:
    """Kill a run so many times, let it end, and compare it with one that was left alone."""
    rng = random.Random(processes)
    # Alternating, for a run that never reaches its next checkpoint would make no progress.
    plan = [n % 2 == 0 or n == 9 for n in range(kills)]
    written = 0
    for writing in plan:
        written += run_until_killed(make("killed"), processes, writing, rng)
    print(f"{written} of {kills} kills while a checkpoint was written")
    assert written >= kills // 3
    end = train_outside(make("killed"), processes, resume=True)
    assert end.returncode == 0, end.stderr
    whole = train_outside(make("whole"), processes)
    assert whole.returncode == 0, whole.stderr
    killed, untouched = (Path(make(n).run.out) for n in ("killed", "whole"))
    for name in ("model.safetensors", "optimizer.safetensors"):
        last = [checkpoints(r / "checkpoints")[-1] / name for r in (killed, untouched)]
        assert last[0].read_bytes() == last[1].read_bytes(), name
    assert (killed / "model/model.safetensors").read_bytes() == (untouched / "model/model.safetensors").read_bytes()
    assert [r["update"] for r in read_log(killed)] == list(range(1, make("whole").run.updates + 1))
    assert not list((killed / "checkpoints").glob(".partial-*"))
