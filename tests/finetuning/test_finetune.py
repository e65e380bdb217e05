"""Fine-tuning: every method learns, what is saved is what was tested, and a killed run ends like a whole one."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import dofa
from dofa.datasets.labelled import LabelledImages
from dofa.datasets.splits import classes_without_training, three_way_split
from dofa.errors import CheckpointError, ConfigError, DataError
from dofa.evaluation.backbones import open_backbone
from dofa.evaluation.scores import score_predictions
from dofa.finetuning.finetune import finetune
from dofa.finetuning.learner import Learner, levels
from dofa.finetuning.samples import Samples, order
from dofa.finetuning.settings import FinetuneConfig, recipes, resolve_settings
from dofa.model.checkpoint import encoder_sha256, save
from dofa.model.config import EncoderConfig, TrainedSensor
from dofa.model.encoder import DOFA
from dofa.model.heads import load_head

from ..labelled_images import labelled
from ..vit_files import write_vit


def tinted(per_class: int = 20, **more) -> LabelledImages:
    """Stripes whose class also tints them."""
    data = labelled(per_class=per_class, classes=3, splits=True, **more)

    def read(index: int):
        raw, valid = data.read(index)
        raw = raw.copy()
        raw[data.labels[index]] = np.minimum(raw[data.labels[index]] + 60.0, 255).astype(np.uint8)
        return raw, valid

    return replace(data, read=read)


FAST = {"stats": "dataset", "device": "cpu"}


def masked(count: int = 20, size: int = 24, seed: int = 0) -> LabelledImages:
    """Bright squares on dark ground, in 8-bit RGB, with masks; the first row of every image is not valid."""
    base = labelled(per_class=count, classes=1, size=size)
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, size, size), np.int16)
    images = rng.integers(20, 60, (count, 3, size, size)).astype(np.uint8)
    for mask, image in zip(masks, images, strict=True):
        top, left = rng.integers(0, size // 2, 2)
        mask[top : top + size // 2, left : left + size // 2] = 1
        image[:, mask == 1] += 120
        mask[-1] = 200
    valid = np.ones((size, size), bool)
    valid[0] = False
    said = tuple(["train"] * (count - 8) + ["val"] * 4 + ["test"] * 4)
    return replace(
        base,
        name="squares",
        task="segmentation",
        class_names=("ground", "square"),
        labels=np.zeros(count, np.int64),
        read=lambda index: (images[index], valid),
        read_mask=lambda index: masks[index],
        ignore=200,
        find_splits=lambda: said,
    )


@pytest.fixture
def weights(encoder: DOFA, tmp_path: Path) -> str:
    return str(save(encoder, tmp_path / "weights"))


@pytest.mark.parametrize("method", ["frozen", "full", "lora"])
def test_every_method_learns_stripes_and_saves_what_was_tested(weights, tmp_path, method):
    data = tinted(30)
    found = finetune(weights, data, out=tmp_path / "run", method=method, epochs=12, batch=16, lr=5e-3, crop=1.0, **FAST)
    assert found.test["metric"] == "accuracy"
    assert found.test["score"]["value"] > 0.6
    assert found.test["score"]["low"] is not None
    assert found.validation[found.epoch - 1] == max(found.validation)
    assert json.loads((tmp_path / "run" / "finetune.json").read_text())["score"] == found.test["score"]
    tuned = tmp_path / "run" / "model"
    assert tuned.is_dir() == (method != "frozen")
    model = dofa.load(tuned if method != "frozen" else weights)
    head = load_head(tmp_path / "run" / "head", model)
    rows = np.flatnonzero(np.array(data.splits) == "test")
    images, labels = Samples(data, head.scaling).batch(rows.tolist())
    with torch.inference_mode():
        logits = head.apply(model(images, data.sensor))
    assert float((logits.argmax(1) == labels).double().mean()) == found.test["score"]["value"]
    assert not list((tmp_path / "run").glob("*best*"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_full_fine_tuning_moves_the_encoder_and_a_frozen_one_stays(weights, encoder, tmp_path, make_images):
    data = make_images(per_class=10, splits=True)
    for method in ("frozen", "full", "lora"):
        finetune(weights, data, out=tmp_path / method, method=method, epochs=1, batch=8, **FAST)
    assert load_head(tmp_path / "frozen" / "head").encoder_sha256 == encoder_sha256(encoder)
    before = encoder.state_dict()
    after = {m: load_file(tmp_path / m / "model" / "model.safetensors") for m in ("full", "lora")}
    assert after["full"].keys() == after["lora"].keys() == before.keys()  # adapters are merged
    name = "blocks.0.attn.proj.weight"
    assert not torch.equal(after["full"][name], before[name])
    assert not torch.equal(after["lora"][name], before[name])
    assert torch.equal(after["lora"]["cls_token"], before["cls_token"])


@pytest.mark.parametrize("decoder", ["linear", "upernet", "dpt"])
def test_every_decoder_learns_masks(weights, tmp_path, decoder):
    found = finetune(
        weights, masked(), out=tmp_path / "run", decoder=decoder, epochs=8, batch=6, lr=5e-3, channels=16, **FAST
    )
    assert found.test["metric"] == "mIoU"
    assert found.test["score"]["value"] > 0.5, found.test  # ground everywhere gives .38
    counted = np.array(found.test["confusion"]).sum()
    assert counted == 4 * 22 * 24  # of 4 images without the row that is ignored and the one that is not valid
    head = load_head(tmp_path / "run" / "head", dofa.load(weights))
    assert (None if head.decoder is None else head.decoder.kind) == (None if decoder == "linear" else decoder)
    assert head.ignore == 200


def test_several_labels_at_once_are_scored_by_micro_average_precision(weights, tmp_path):
    data = tinted()
    flags = np.stack([data.labels == 0, data.labels != 2, data.labels == 2], 1).astype(np.int64)
    found = finetune(
        weights, replace(data, task="multilabel", labels=flags), out=tmp_path / "run", epochs=12, batch=12, **FAST
    )
    assert found.test["metric"] == "micro AP"
    assert found.test["score"]["value"] > 0.6
    head = load_head(tmp_path / "run" / "head")
    assert head.task == "multilabel"
    assert not np.allclose(head.predict_proba(torch.randn(4, 48)).sum(1), 1)


def test_a_model_with_one_embedding_a_sensor_is_tuned_and_its_head_belongs_to_it(tmp_path):
    data = masked()
    named = TrainedSensor(
        data.sensor.band_names,
        tuple(band.wavelength_um for band in data.sensor.bands),
        data.scaling.with_stats([0.2] * 3, [0.2] * 3, "user"),
    )
    torch.manual_seed(3)
    config = EncoderConfig(48, 3, 3, 8, image_size=24, embedding="separate", sensors={data.sensor.name: named})
    folder = save(DOFA(config), tmp_path / "weights")
    spec, settings = f"separate:{folder}", {"epochs": 8, "batch": 6, "lr": 3e-3, "device": "cpu"}
    found = finetune(spec, data, out=tmp_path / "run", method="full", **settings)
    assert found.test["score"]["value"] > 0.5, found.test  # ground everywhere gives .38
    tuned = dofa.load(tmp_path / "run" / "model")
    kernels = "patch_embed.kernels"
    assert tuned.config.embedding == "separate"
    assert not torch.equal(tuned.state_dict()[kernels], dofa.load(folder).state_dict()[kernels])
    load_head(tmp_path / "run" / "head", tuned)
    with pytest.raises(CheckpointError, match="was trained on the encoder"):
        load_head(tmp_path / "run" / "head", dofa.load(folder))


def test_a_teacher_stays_frozen_and_is_tested_without_a_head_folder(tmp_path):
    spec = f"teacher:{write_vit(tmp_path / 'vit', 48, 3, 3, 8, 24)}"
    settings = {"epochs": 8, "batch": 6, "lr": 5e-3, "channels": 16, "device": "cpu"}
    found = finetune(spec, masked(), out=tmp_path / "run", decoder="upernet", **settings)
    assert found.test["score"]["value"] > 0.5, found.test
    assert found.setting["model"]["sha256"] == open_backbone(spec).sha256
    assert any("no head is saved" in note for note in found.notes)
    assert not (tmp_path / "run" / "head").exists()
    with pytest.raises(ConfigError, match="frozen for good: --method frozen"):
        finetune(spec, masked(), out=tmp_path / "full", method="full", epochs=1, device="cpu")


@pytest.mark.parametrize(("method", "decoder"), [("frozen", "linear"), ("full", "upernet")])
def test_bf16_learns_what_float32_does_and_keeps_weights_in_float32(weights, tmp_path, method, decoder):
    settings = {"method": method, "decoder": decoder, "channels": 16, "epochs": 5, "batch": 6, "lr": 3e-3, **FAST}
    one, two = (
        finetune(weights, masked(), out=tmp_path / precision, precision=precision, **settings)
        for precision in ("float32", "bf16")
    )
    assert two.test["score"] != one.test["score"]  # it was in use
    assert two.test["score"]["value"] == pytest.approx(one.test["score"]["value"], abs=0.1)
    assert two.test["score"]["value"] > 0.5
    for file in {*(tmp_path / "bf16").glob("*/*.safetensors")} - {tmp_path / "bf16" / "head" / "split.safetensors"}:
        assert all(t.dtype in (torch.float32, torch.float64, torch.int64) for t in load_file(file).values()), file


RUN = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from tests.finetuning.test_finetune import masked
from dofa.finetuning.finetune import finetune
finetune({weights!r}, masked(40), out={out!r}, method="full", decoder="upernet", channels=16, epochs=6, batch=8,
         drop_path=0.1, layer_decay=0.8, stats="dataset", device="cpu", resume=True)
"""


def launch(weights: str, out: Path) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parents[2])
    code = textwrap.dedent(RUN.format(tests=root, weights=weights, out=str(out)))
    return subprocess.Popen([sys.executable, "-c", code], cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(weights, tmp_path):
    whole = launch(weights, tmp_path / "whole")
    assert whole.wait(240) == 0
    process = launch(weights, tmp_path / "killed")
    deadline = time.monotonic() + 240
    while not list((tmp_path / "killed" / "checkpoints").glob("update-0000000[8-9]")) and time.monotonic() < deadline:
        if process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "finetune.json").exists(), "it was too fast to be killed"
    assert launch(weights, tmp_path / "killed").wait(240) == 0
    for name in ("model/model.safetensors", "head/head.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    one, two = (json.loads((tmp_path / n / "finetune.json").read_text()) for n in ("whole", "killed"))
    assert one["validation"] == two["validation"]
    assert one["score"] == two["score"]
    updates = [json.loads(line)["update"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert updates == sorted(set(updates))


def test_a_run_that_stopped_between_epochs_goes_on_to_the_same_bits(weights, tmp_path, make_images, monkeypatch):
    data = make_images(per_class=12, splits=True)
    settings = {"method": "full", "epochs": 4, "batch": 8, "drop_path": 0.2, **FAST}
    finetune(weights, data, out=tmp_path / "whole", **settings)
    from dofa.finetuning import epochs

    class Stop(Exception):
        pass

    real, calls = epochs.save_state, []

    def stopping(*args, **more):
        real(*args, **more)
        calls.append(1)
        if len(calls) == 2:
            raise Stop

    monkeypatch.setattr(epochs, "save_state", stopping)
    with pytest.raises(Stop):
        finetune(weights, data, out=tmp_path / "stopped", **settings)
    monkeypatch.setattr(epochs, "save_state", real)
    with pytest.raises(ConfigError, match=r"--resume.*--overwrite"):
        finetune(weights, data, out=tmp_path / "stopped", **settings)
    with pytest.raises(ConfigError, match=r"another.*settings"):
        finetune(weights, data, out=tmp_path / "stopped", resume=True, **settings | {"lr": 1e-3})
    again = finetune(weights, data, out=tmp_path / "stopped", resume=True, **settings)
    for name in ("model/model.safetensors", "head/head.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    kept = finetune(weights, data, out=tmp_path / "stopped", resume=True, **settings)
    assert kept.to_dict() == again.to_dict()


def test_overwrite_keeps_the_finished_run_until_the_new_one_is_finished(weights, tmp_path, make_images, monkeypatch):
    """It was deleted first, so that whoever ended the new run early had neither."""
    from dofa.finetuning import epochs

    data, out = make_images(per_class=12, splits=True), tmp_path / "run"
    old, new = ({"method": "full", "epochs": 2, "batch": 8, "lr": lr, **FAST} for lr in (1e-4, 1e-3))
    finetune(weights, data, out=out, **old)
    (out / "thesis.txt").write_text("a user's own")
    names = ("finetune.json", "model/model.safetensors", "head/head.safetensors", "head/head.json")
    before = {name: (out / name).read_bytes() for name in names}
    real = epochs.save_state

    def stopping(*args, **more):
        real(*args, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(epochs, "save_state", stopping)
        with pytest.raises(KeyboardInterrupt):
            finetune(weights, data, out=out, overwrite=True, **new)
    assert {name: (out / name).read_bytes() for name in names} == before
    assert finetune(weights, data, out=out, resume=True, **old).setting["settings"]["lr"] == 1e-4
    finetune(weights, data, out=out, resume=True, **new)
    finetune(weights, data, out=tmp_path / "fresh", **new)
    for name in names[1:3]:
        assert (out / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    assert json.loads((out / "finetune.json").read_text())["settings"]["lr"] == 1e-3
    assert (out / "thesis.txt").read_text() == "a user's own"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    finetune(weights, data, out=out, overwrite=True, **old)
    assert (out / names[1]).read_bytes() == before[names[1]]
    assert (out / "thesis.txt").exists()


def test_equal_seeds_give_equal_results_and_others_do_not(weights, tmp_path, make_images):
    data = make_images(per_class=12, splits=True)

    def head(name: str, **more) -> bytes:
        finetune(weights, data, out=tmp_path / name, method="full", epochs=1, batch=8, **FAST, **more)
        return (tmp_path / name / "head" / "head.safetensors").read_bytes()

    assert head("a") == head("b")
    assert head("a2", seed=1) != head("b2", seed=2)


def test_accumulated_micro_batches_see_the_same_images(make_images):
    rows = np.arange(3, 20)
    seen = [row for update in range(2) for row in order(rows, 8, update, seed=5)]
    assert len(set(seen)) == 16
    assert set(seen) <= set(rows.tolist())
    assert list(order(rows, 8, 2, seed=5)) != seen[:8]


def test_a_mask_moves_with_its_image():
    base = masked()
    data = replace(base, ignore=None, read=lambda i: (seen(i), None))
    data = replace(data, read_mask=lambda i: (seen(i)[0] > 90).astype(np.int16))

    def seen(index: int) -> np.ndarray:
        return base.read(index)[0]

    scaling = data.scaling.with_stats([0.0] * 3, [1.0] * 3, "user")
    for draw in range(16):
        image, mask = Samples(data, scaling).augmented(0, np.random.default_rng(draw), 1.0)
        np.testing.assert_array_equal(image[0].numpy() > 90 * float(data.scaling.scale[0]), mask.numpy() == 1)


def test_published_splits_are_kept_and_others_are_drawn_by_place(make_images):
    said = make_images(per_class=20, splits=True)
    rows = three_way_split(said, seed=0)
    assert [said.splits[row] for row in rows.val] == ["val"] * len(rows.val)
    drawn = make_images(per_class=20, places=10)
    rows = three_way_split(drawn, seed=0)
    sides = [{drawn.places[row] for row in part} for part in (rows.train, rows.val, rows.test)]
    assert all(not one & two for one, two in ((sides[0], sides[1]), (sides[0], sides[2]), (sides[1], sides[2])))
    assert len(rows.train) + len(rows.val) + len(rows.test) == 60
    with pytest.raises(DataError, match="dofa chips"):
        three_way_split(replace(masked(4), find_splits=lambda: None), seed=0)


def test_classes_that_no_training_image_shows_are_told(weights, tmp_path, make_images):
    data = tinted()
    without = replace(
        data, find_splits=lambda: tuple("test" if k == 1 else s for k, s in zip(data.labels, data.splits, strict=True))
    )
    found = finetune(weights, without, out=tmp_path / "run", epochs=1, batch=8, **FAST)
    assert f"no training image shows {data.class_names[1]}: it cannot be learned" in found.notes
    flags = np.stack([data.labels == 0, data.labels == 1, np.zeros_like(data.labels)], 1).astype(np.int64)
    several = replace(data, task="multilabel", labels=flags)
    assert classes_without_training(several, np.arange(len(data))) == [data.class_names[2]]
    maps = masked(6)
    dark = replace(maps, read_mask=lambda index: np.where(maps.read_mask(index) == 1, 200, maps.read_mask(index)))
    assert classes_without_training(dark, np.arange(6)) == ["square"]
    assert classes_without_training(maps, np.arange(6)) == []


def test_the_loss_passes_over_what_has_no_label(encoder):
    data = masked()
    learner = Learner(open_backbone(encoder), data, FinetuneConfig(decoder="linear")).eval()
    images, target = Samples(data, data.scaling.with_stats([0.3] * 3, [0.2] * 3, "user")).batch([0, 1])
    logits = learner.logits(images)
    counted = target != 255
    assert not counted[:, [0, -1]].any()
    expected = torch.nn.functional.cross_entropy(logits.movedim(1, -1)[counted], target[counted])
    torch.testing.assert_close(learner({"image": images, "label": target})["loss"], expected)


def test_the_blocks_read_are_the_papers():
    assert levels(12, FinetuneConfig(decoder="upernet")) == [3, 5, 7, 11]
    assert levels(24, FinetuneConfig(decoder="upernet")) == [7, 11, 15, 23]
    assert levels(12, FinetuneConfig(decoder="linear")) == [11]
    with pytest.raises(ConfigError, match="reads 4 blocks"):
        levels(12, FinetuneConfig(decoder="dpt", blocks=(1, 2)))


def test_scores_are_those_of_scikit_learn(make_images):
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score

    rng = np.random.default_rng(0)
    data = make_images(per_class=10)
    rows = np.arange(30)
    logits = torch.from_numpy(rng.normal(size=(30, 3)))
    found = score_predictions([(logits, torch.as_tensor(data.labels))], data, rows, seed=0)
    predicted = logits.argmax(1).numpy()
    assert found.score.value == pytest.approx(accuracy_score(data.labels, predicted))
    f1s = f1_score(data.labels, predicted, average=None)
    assert [c["f1"] for c in found.classes] == pytest.approx(list(f1s))
    flags = rng.integers(0, 2, (30, 3))
    several = replace(data, task="multilabel", labels=flags)
    found = score_predictions([(logits, torch.as_tensor(flags))], several, rows, seed=0)
    assert found.score.value == pytest.approx(average_precision_score(flags, logits.numpy(), average="micro"))


@pytest.mark.parametrize("recipe", recipes())
def test_recipes_hold_together_and_what_is_said_wins(recipe):
    assert resolve_settings(recipe, {}).epochs >= 20
    assert resolve_settings(recipe, {"epochs": 25, "size": None}).epochs == 25


@pytest.mark.parametrize(("line", "said"), [("epochs: many", {"epochs": 3}), ("crop: 7", {"crop": 0.5})])
def test_a_flag_hides_no_mistake_of_a_recipe(tmp_path, line, said):
    (tmp_path / "mine.yaml").write_text(line)
    with pytest.raises(ConfigError, match=rf"mine\.yaml: {line.partition(':')[0]}"):
        resolve_settings(tmp_path / "mine.yaml", said)


@pytest.mark.parametrize("method", ["frozen", "full"])
def test_a_rank_without_lora_is_refused(method):
    with pytest.raises(ConfigError, match="--rank is of --method lora"):
        resolve_settings(None, {"method": method, "rank": 4})
    assert resolve_settings("lora", {"rank": 4}).rank == 4
    assert resolve_settings("lora", {"method": method}).method == method


@pytest.mark.parametrize("data", [b"\x80\x81 epochs", b"\x00\x01", b"epochs: ["])
def test_a_recipe_that_is_no_text_is_one_line(data, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match=r"mine\.yaml is not YAML"):
        resolve_settings(str(tmp_path / "mine.yaml"), {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "uper"}, "did you mean upernet"),
        ({"decoder": "upernet"}, "for segmentation"),
        ({"method": "frozen", "drop_path": 0.1}, "frozen encoder takes no drop_path"),
        ({"batch": 1}, "at least two images"),
        ({"fraction": 0.0}, "fraction"),
        ({"fraction": 0.01, "batch": 64, "accumulate": 4}, "fewer than a batch needs"),
        ({"blocks": [40]}, "for segmentation"),
        ({"stats": "moon"}, "moon"),
        ({"channels": 0}, "channels is 0; a whole number above 0"),
        ({"size": 0}, "size is 0; a whole number above 0"),
        ({"epochs": 2.5}, r"epochs is 2\.5; a whole number"),
        ({"batch": -4}, "batch is -4; a whole number above 0"),
        ({"clip": 0.0}, r"clip is 0\.0; above 0"),
        ({"layer_decay": 1.5, "method": "full"}, r"layer_decay is 1\.5; above 0 and at most 1"),
        ({"drop_path": 1.0, "method": "full"}, r"drop_path is 1\.0; a probability"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1; at least 0"),
        ({"recipe": "upernet", "epochs": 2}, "3 epochs of warm-up do not fit in 2: pass --warmup-epochs 0"),
        ({"seed": -1}, "seed is -1: at least 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(weights, tmp_path, make_images, settings, message):
    with pytest.raises(ConfigError if "fewer" not in message else DataError, match=message):
        finetune(weights, make_images(splits=True), out=tmp_path / "run", **{"stats": "dataset", **settings})


def test_masks_with_values_outside_the_classes_or_of_another_size_are_named(weights, tmp_path):
    odd = masked()

    def wrong(index: int) -> np.ndarray:
        mask = odd.read_mask(index).copy()
        mask[1, :3] = 7
        return mask

    settings = {"epochs": 1, "batch": 4, **FAST}
    with pytest.raises(DataError, match=r"image \d+: 3 mask values are 7"):
        finetune(weights, replace(odd, read_mask=wrong), out=tmp_path / "a", **settings)
    small = replace(odd, read_mask=lambda index: np.zeros((5, 5), np.int16))
    with pytest.raises(DataError, match="the mask has 5 × 5 pixels"):
        finetune(weights, small, out=tmp_path / "b", **settings)


@pytest.mark.slow
def test_checkpointing_halves_the_memory_of_activations(tmp_path):
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "benchmarks/finetune_memory.py", "--rows", "full", "full-checkpointing", "--json"]
    done = subprocess.run([*command, str(tmp_path / "found.json")], cwd=root, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    plain, spared = json.loads((tmp_path / "found.json").read_text())["rows"]  # base, two images
    assert spared["owned"] == plain["owned"]
    for what in ("kept", "peak"):
        assert spared[what] < plain[what] / 2, (what, spared, plain)


def test_one_image_is_cut_into_blocks_that_are_learned_or_tested(weights, tmp_path):
    one = masked(12, size=120)
    one = replace(one, labels=np.zeros(1, np.int64), sources=one.sources[:1], find_splits=lambda: None)
    found = finetune(weights, one, out=tmp_path / "run", epochs=2, batch=8, **FAST)
    counts = found.setting["data"]
    assert (counts["train"], counts["val"], counts["test"]) == (15, 5, 5)
    assert counts["shape"] == [3, 24, 24]
