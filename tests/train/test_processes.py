"""Several real processes, started by torchrun over gloo, do what one does."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dofa.train.checkpoint import checkpoints
from dofa.train.log import read_log
from dofa.train.objective import build_model
from dofa.train.pretrain import pretrain
from dofa.train.recipes import to_yaml

from .conftest import command, environment
from .preparing import FULL, prepared


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run / "checkpoints")[-1] / "model.safetensors")


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[k] - b[k]).abs().max().item() for k in a)


@pytest.fixture
def twenty_updates(settings, tmp_path):
    """No warm-up, mixed sensors, accumulation over two micro-batches a process, a clip that bites."""

    def make(out: str, **changes):
        fixed = {
            "run__updates": 20,
            "run__micro_batches": 4,
            "run__save_every": 1000,
            "run__out": str(tmp_path / out),
            "data__weights": "equal",
            "optim__clip": 0.02,
            "optim__lr": 1e-3,
        }
        return settings(**{**fixed, **changes})

    return make


def test_two_processes_equal_one_that_accumulates_the_same_micro_batches(twenty_updates, train_outside):
    torch.manual_seed(twenty_updates("one").run.seed)
    start = {f"mae.{k}": v for k, v in build_model(twenty_updates("one").model).state_dict().items()}
    one = weights(pretrain(twenty_updates("one")))
    two = train_outside(twenty_updates("two"), processes=2)
    assert two.returncode == 0, two.stderr
    both = weights(Path(twenty_updates("two").run.out))
    assert furthest(one, both) <= 1e-6
    # Adam and the clip forgive a factor on the gradient; its norm and the losses do not.
    for key in ("grad_norm", "loss/naip-rgb", "loss/sentinel-1-grd", "loss/sentinel-2-l2a", "lr"):
        said = [[r[key] for r in read_log(Path(twenty_updates(n).run.out)) if key in r] for n in ("one", "two")]
        assert said[0] == pytest.approx(said[1], rel=1e-4), key
    moved = {k: (one[k] - start[k]).abs().max().item() for k in one}
    assert max(moved.values()) > 1e-3
    table = one["mae.encoder.polarisation_embed"]
    assert (table[:2] != 0).all(), "VV and VH have learned their vectors"
    assert (table[2:] == 0).all(), "HH and HV were never seen"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_sharded_parameters_equal_ddp(twenty_updates, train_outside, precision):
    for strategy in ("ddp", "fully-shard"):
        config = twenty_updates(strategy, run__strategy=strategy, run__precision=precision)
        done = train_outside(config, processes=2)
        assert done.returncode == 0, done.stderr
    runs = [Path(twenty_updates(s).run.out) for s in ("ddp", "fully-shard")]
    bound = 1e-6 if precision == "32-true" else 1e-3
    assert furthest(*(weights(r) for r in runs)) <= bound
    models = [load_file(r / "model" / "model.safetensors") for r in runs]
    assert furthest(*models) <= bound


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fully-shard"])
def test_two_processes_told_to_stop_resume_to_the_same_bits(twenty_updates, train_outside, tmp_path, strategy):
    whole = twenty_updates("whole", run__strategy=strategy)
    assert train_outside(whole, processes=2).returncode == 0
    config = twenty_updates("stopped", run__strategy=strategy)
    file = tmp_path / "stopped.yaml"
    file.write_text(to_yaml(config))
    process = subprocess.Popen(command(file, 2), env=environment(), stderr=subprocess.DEVNULL)
    log = Path(config.run.out) / "log.jsonl"
    while not (log.is_file() and log.read_text().count("\n") >= 3):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    stopped = checkpoints(Path(config.run.out) / "checkpoints")
    assert len(stopped) == 1
    assert stopped[0].name < "update-00000020"
    assert train_outside(config, processes=2, resume=True).returncode == 0
    assert furthest(weights(Path(config.run.out)), weights(Path(whole.run.out))) == 0


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_every_process_with_the_same_words(twenty_updates, tmp_path):
    config = twenty_updates("lost", optim__lr=1e25, optim__clip=None)
    file = tmp_path / "lost.yaml"
    file.write_text(to_yaml(config))
    call = command(file, processes=2)
    # As soon as one process has failed torchrun ends the others: each stays until all have said their words.
    # Each leaves a file when it has ended (named by `mktemp`, for torchrun takes `$$` as an escaped `$`).
    ended = tmp_path / "ended"
    ended.mkdir()
    wait = f'mktemp -p {ended}; until [ "$(ls {ended} | wc -l)" -eq 2 ]; do sleep 0.1; done'
    stay = ["sh", "-c", f'"$@"; status=$?; {wait}; exit $status', "sh"]
    at = call.index("2") + 1
    call = [*call[:at], *stay, *call[at:]]
    done = subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("dofa: update ")]
    assert len(said) == 2, done.stderr
    assert len(set(said)) == 1
    assert "sources " in said[0]
    assert not (Path(config.run.out) / "model").exists()


TAUGHT = {
    "paper": {"sar_proxy": "random"},
    "visible": {"view": "visible", "blocks": [0, 1], "target": "tokens", "reconstruction": 0.0},
    "renderings": {**FULL, "crops": 2, "anchor": 1.0, "reconstruction": 1.0},
}


@pytest.fixture
def taught_updates(taught, tmp_path):
    """Six updates with a teacher, mixed sensors and accumulation."""

    def make(out: str, distill: dict, **changes):
        fixed = {
            "model__start": "prefit",
            "optim__encoder_lr": 0.25,
            "optim__generator_lr": 0.05,  # a fitted generator that moves faster leaves its fit, and every run is chaos
            "run__updates": 6,
            "run__micro_batches": 4,
            "run__save_every": 1000,
            "run__out": str(tmp_path / out),
            "data__weights": "equal",
        }
        return taught(distill, **{**fixed, **changes})

    return make


@pytest.mark.slow
@pytest.mark.parametrize("distill", TAUGHT.values(), ids=TAUGHT)
def test_two_taught_processes_equal_one(taught_updates, train_outside, distill):
    one = weights(pretrain(taught_updates("one", distill)))
    two = train_outside(taught_updates("two", distill), processes=2)
    assert two.returncode == 0, two.stderr
    assert furthest(one, weights(Path(taught_updates("two", distill).run.out))) <= 2e-6
    rows = [read_log(Path(taught_updates(n, distill).run.out)) for n in ("one", "two")]
    for key in {k for row in rows[0] for k in row if "/" in k} | {"grad_norm"}:
        said = [[row[key] for row in each if key in row] for each in rows]
        assert said[0] == pytest.approx(said[1], rel=1e-4), key
    start = prepared(taught_updates("one", distill)).objective.state_dict()
    still = {k for k in one if torch.equal(one[k], start[k])}
    assert not any(".projectors." in k or (".patch_embed." in k and k.endswith("weight")) for k in still)


@pytest.mark.slow
@pytest.mark.parametrize("distill", TAUGHT.values(), ids=TAUGHT)
def test_a_sharded_student_equals_ddp_with_a_teacher(taught_updates, train_outside, distill):
    for strategy in ("ddp", "fully-shard"):
        config = taught_updates(strategy, distill, run__strategy=strategy, optim__keep_initial=0.2)
        done = train_outside(config, processes=2)
        assert done.returncode == 0, done.stderr
    runs = [Path(taught_updates(s, distill).run.out) for s in ("ddp", "fully-shard")]
    assert furthest(*(weights(r) for r in runs)) <= 2e-6
    assert furthest(*(load_file(r / "model" / "model.safetensors") for r in runs)) <= 2e-6
