"""A disk that fills, and Ctrl-C, in commands that train and pack: one line, nothing is damaged, and they go on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import dofa
from dofa.errors import CheckpointError, DataError
from dofa.io import name_os_errors
from dofa.model import model_folder
from dofa.model.checkpoint import load, save
from dofa.train.log import RunLog, read_log

from .scene.conftest import small_disk, tree
from .train.conftest import write_store

CLASSES = ("AnnualCrop", "Forest", "River")
SAMPLES = Path(dofa.__file__).parent / "samples"
LABELS = Path(__file__).parent.parent / "docs" / "own-labels.geojson"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labelled images, a model, and a store."""
    folder = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for label, name in enumerate(CLASSES):
        (folder / "data" / "stripes" / name).mkdir(parents=True)
        for number in range(1, 41):
            stripes = np.sin((x, y, x + y)[label] * 0.8 + rng.uniform(0, 6))
            pixels = 120 + 50 * stripes[..., None] + 20 * rng.normal(size=(64, 64, 3))
            picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            picture.save(folder / "data" / "stripes" / name / f"{name}_{number}.jpg")
    torch.manual_seed(0)
    save(small(), folder / "model", provenance={})
    write_store(folder / "store", "naip-rgb", 33, 32, seed=3)
    return folder


def small():
    return dofa.create("tiny", width=48, depth=2, heads=3, patch=8, image_size=32).eval()


def words(verb: str, folder: Path, out: Path, updates: int = 20) -> list[str]:
    """A command that writes to `out`."""
    data = f"eurosat-rgb:{folder / 'data' / 'stripes'}"
    if verb == "pack":
        images = str(folder / "data" / "stripes")
        return ["pack", "images", images, "--store", str(out), "--sensor", "rgb-aerial", "--workers", "1"]
    if verb == "finetune":
        given = ["--weights", str(folder / "model"), "--data", data, "--stats", "dataset", "--device", "cpu"]
        settings = ["--method", "full", "--batch", "16", "--epochs", str(updates // 10)]
        return ["finetune", *given, *settings, "--out", str(out)]
    if verb == "probe":
        given = ["--weights", str(folder / "model"), "--data", data, "--stats", "dataset", "--device", "cpu"]
        return ["probe", *given, "--cache", f"{out}-cache", "--out", str(out)]
    if verb == "chips":
        given = [str(SAMPLES / "naip-rgbn" / "west_2016.tif"), "--sensor", "naip-rgbn", "--labels", str(LABELS)]
        return ["chips", *given, "--task", "segmentation", "--size", "32", "--out", str(out)]
    if verb == "bench":
        quick = {"folds": 3, "neighbours": 3, "stats": "dataset", "penalties": [0.1]}
        suite = {
            "title": "t", "models": {"{name}": {"weights": "{weights}"}},
            "data": {"stripes": {"data": "eurosat-rgb:stripes", "note": "n"}},
            "protocols": {"Linear": {"call": "probe", "settings": quick}},
        }  # fmt: skip
        (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
        given = ["--suite", str(folder / "suite.yaml"), "--data", str(folder / "data")]
        return ["bench", *given, "--weights", f"m={folder / 'model'}", "--out", str(out)]
    changes = {"width": 48, "depth": 2, "heads": 3, "patch": 8, "image_size": 32}
    config = {
        "model": {"size": "tiny", "changes": changes, "decoder": {"width": 32, "depth": 1, "heads": 2}},
        "data": {"stores": [str(folder / "store")], "crop": 32, "batch": 4},
        "run": {
            "out": str(out), "updates": updates, "micro_batches": 2, "device": "cpu", "log_every": 1,
            "save_every": 10, "pictures_every": 10, "workers": 1,
        },
    }  # fmt: skip
    file = out.parent / f"{out.name}.yaml" if updates > 20 else folder / "pretrain.yaml"
    file.write_text(yaml.safe_dump(config))
    return ["pretrain", "--config", str(file)]


def run(told: list[str]) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "dofa", *told]
    return subprocess.run(call, capture_output=True, text=True, env=ENVIRONMENT, timeout=200)


# kilobytes that end in a record, a shard, chips, the best weights, the log, a picture, a checkpoint, the model folder
FULL = [
    ("pack", 4),
    ("pack", 200),
    ("chips", 4),
    ("chips", 100),
    ("finetune", 60),
    *(("pretrain", size) for size in (4, 20, 60, 27_000)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "kilobytes"), FULL)
def test_a_full_disk_is_one_line_and_the_command_goes_on(folder, tmp_path, verb, kilobytes):
    with small_disk(tmp_path / "disk", kilobytes) as resize:
        out = tmp_path / "disk" / "out"
        told = words(verb, folder, out)
        done = run(told)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith(f"dofa: {out.parent}")
        assert "make room" in last
        anew = verb in ("pack", "chips")
        assert ("--resume" in last) != anew
        resize(300_000)
        again = run([*told, *([] if anew else ["--resume"])])
        assert again.returncode == 0, again.stderr
        if verb == "pretrain":
            assert [row["update"] for row in read_log(out)] == list(range(1, 21))
            load(out / "model")
        if verb == "pack":
            assert run(words("pack", folder, tmp_path / "quiet")).returncode == 0
            one, other = (dofa_store(place) for place in (out, tmp_path / "quiet"))
            assert one == other


def dofa_store(place: Path) -> list[bytes]:
    from dofa.corpus.store import open_stores

    ((_, store),) = open_stores([str(place)]).items()
    return [store.digest.encode(), *(store.indices(split).tobytes() for split in ("train", "val"))]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["probe", "finetune", "pack", "bench", "pretrain"])
def test_an_interrupt_is_one_line_and_the_command_goes_on(folder, tmp_path, verb):
    out = tmp_path / "out"
    told = words(verb, folder, out, 3000 if verb == "pretrain" else 20)
    call = [sys.executable, "-m", "dofa", *told]
    process = subprocess.Popen(
        call, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT, start_new_session=True
    )
    if verb == "pretrain":
        while process.poll() is None and not (out / "log.jsonl").is_file():
            time.sleep(0.05)
        time.sleep(1)
    else:
        time.sleep(1.2)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers too
    said = process.communicate(timeout=100)[1]
    assert "Traceback" not in said
    # A fast machine has finished. A shell shows both 130 and the signal as 130: Python ends by the signal where it
    # came while an interpreter starts, imports or ends.
    ends = (130, -signal.SIGINT) if verb == "pretrain" else (130, -signal.SIGINT, 0)
    assert process.returncode in ends
    if process.returncode == 130:
        (line,) = [line for line in said.splitlines() if "interrupted" in line or "stopped by" in line]
        assert "same command" in line or "--resume" in line
    if verb == "pretrain":
        done = read_log(out)[-1]["update"]
        told = [*told, "--set", f"run.updates={done + 5}"]
    again = run([*told, *(["--resume"] if verb in ("pretrain", "finetune") else [])])
    assert again.returncode == 0 or (verb in ("probe", "finetune") and process.returncode != 130), again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["store", "out"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_that_is_removed_while_a_run_trains_ends_it_in_one_line(folder, tmp_path, workers, gone):
    shutil.copytree(folder / "store", tmp_path / "store")
    out = tmp_path / "out"
    stores, settings = f"data.stores=[{tmp_path / 'store'}]", [f"run.workers={workers}", "run.save_every=50"]
    told = [*words("pretrain", folder, out, 30_000), "--set", stores, *settings]
    call = [sys.executable, "-m", "dofa", *told]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT)
    while process.poll() is None and not (out / "log.jsonl").is_file():
        time.sleep(0.05)
    shutil.rmtree(tmp_path / gone, ignore_errors=True)
    shutil.rmtree(tmp_path / gone, ignore_errors=True)  # what was written meanwhile
    said = process.communicate(timeout=90)[1]
    assert process.returncode == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith("dofa: ")]
    assert str(tmp_path / gone) in line
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_folder_that_is_removed_while_a_head_is_tuned_is_one_line(folder, tmp_path):
    call = [sys.executable, "-m", "dofa", *words("finetune", folder, tmp_path / "out", 20_000)]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT)
    while process.poll() is None and not (tmp_path / "out" / "log.jsonl").is_file():
        time.sleep(0.001)
    for _ in range(2):  # what was written meanwhile
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    said = process.communicate(timeout=90)[1]
    assert process.returncode == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith("dofa: ")]
    assert str(tmp_path / "out") in line
    assert "Traceback" not in said


@pytest.mark.parametrize("gone", ["log.jsonl", "log.csv"])
def test_a_log_that_is_removed_under_its_run_is_not_begun_again_in_its_middle(tmp_path, gone):
    """It was, where `rm -r` met a checkpoint being written: the run went on in what was left of its folder."""
    with RunLog(tmp_path, ["update"], 0, 9) as log:
        log.write({"update": 1})
        (tmp_path / gone).unlink()
        with pytest.raises(FileNotFoundError) as raised:
            log.write({"update": 2})
    assert raised.value.filename == str(tmp_path / gone)
    assert not (tmp_path / gone).exists()


def test_errors_without_a_name_get_that_of_the_file(tmp_path):
    from safetensors import SafetensorError

    with pytest.raises(OSError, match=r"x\.bin") as raised, name_os_errors(tmp_path / "x.bin"):
        raise OSError(28, "No space left on device")
    assert raised.value.errno == 28
    with pytest.raises(OSError, match=r"x\.bin") as raised, name_os_errors(tmp_path / "x.bin"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert raised.value.errno == 28
    with pytest.raises(OSError, match="other") as raised, name_os_errors(tmp_path / "x.bin"):
        raise OSError(28, "No space left on device", "other")


def test_a_model_folder_is_one_model_wherever_its_save_is_killed(tmp_path, monkeypatch):
    """Between the two renames the weights are new and config.json is old: it was refused."""
    first, second = small(), small()
    save(first, tmp_path / "m", provenance={"n": 1})
    real, calls = os.replace, []
    for kill in (0, 1):
        with monkeypatch.context() as patch:
            calls.clear()

            def replace(one, two, kill=kill):
                if len(calls) == kill:
                    raise KeyboardInterrupt
                calls.append(two)
                real(one, two)

            patch.setattr(model_folder.os, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                save(second, tmp_path / "m", provenance={"n": 2})
        found = load(tmp_path / "m")
        expected = second if kill else first
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))
        assert found.origin.provenance["n"] == kill + 1
    save(first, tmp_path / "m", provenance={"n": 3})
    assert load(tmp_path / "m").origin.provenance["n"] == 3
    assert sorted(tree(tmp_path / "m")) == ["config.json", "model.safetensors"]


def test_a_pending_record_of_other_weights_counts_for_nothing(tmp_path):
    save(small(), tmp_path / "m", provenance={"n": 1})
    save(small(), tmp_path / "other", provenance={"n": 2})
    for pending in ((tmp_path / "other" / "config.json").read_bytes(), b"{", b""):
        (tmp_path / "m" / model_folder.PENDING).write_bytes(pending)
        assert load(tmp_path / "m").origin.provenance["n"] == 1
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "m")
    with pytest.raises(CheckpointError, match="not the file"):
        load(tmp_path / "m")


@pytest.mark.parametrize("line", [b"[1, 2]", b'{"loss": 1}', b'{"update": "x"}', b"\xff\xfe", b"[" * 10000, b'{"upd'])
def test_damaged_lines_of_a_log_are_passed_over(tmp_path, line):
    (tmp_path / "log.jsonl").write_bytes(b'{"update": 1, "lr": 0.5}\n' + line)
    assert read_log(tmp_path) == [{"update": 1, "lr": 0.5}]


RECORDS = [b"[]", b"{}", b'{"line": 3}', b'{"line": {}, "digest": "", "stats": []}', b"[" * 9999]


@pytest.mark.parametrize("record", RECORDS)
def test_a_journal_of_a_pack_whose_contents_do_not_fit_is_one_line(tmp_path, record):
    from dofa.corpus.journal import Journal, _checksum

    (tmp_path / "journal.jsonl").write_bytes(_checksum(record + b"\n") + b" " + record + b"\n")
    with pytest.raises(DataError, match="--no-resume"):
        Journal(tmp_path / "journal.jsonl", ["a"])
