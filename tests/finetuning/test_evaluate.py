"""Saved heads: scored as they were tested, mapped where they belong, refused where they do not."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

import dofa
from dofa.cli import main
from dofa.errors import CheckpointError, ConfigError, DataError
from dofa.evaluation.probe import probe
from dofa.finetuning.evaluate import evaluate
from dofa.finetuning.finetune import finetune
from dofa.finetuning.predictions import HeadPredictions
from dofa.finetuning.samples import Samples
from dofa.inference import engine
from dofa.inference.predict import predict_all
from dofa.inference.saving import write_all
from dofa.model.checkpoint import save
from dofa.model.config import EncoderConfig
from dofa.model.encoder import DOFA
from dofa.model.export import export
from dofa.model.heads import load_head
from dofa.outputs.reading import open_features

from .test_finetune import FAST, masked, tinted

SETTINGS = {"decoder": "upernet", "channels": 16, "epochs": 12, "batch": 6, "lr": 5e-3, **FAST}


def trained(folder: Path, offset: int, decoder: str = "upernet", **more) -> tuple[DOFA, Path]:
    torch.manual_seed(3)
    config = EncoderConfig(width=48, depth=3, heads=3, patch=8, patch_offset=offset, image_size=24)
    model = DOFA(config).eval()
    finetune(
        str(save(model, folder / "weights")), masked(), out=folder / "run", **{**SETTINGS, "decoder": decoder, **more}
    )
    return model, folder / "run" / "head"


@pytest.fixture(scope="module")
def upernet(tmp_path_factory) -> tuple[DOFA, Path]:
    """A model and its head with a decoder; for reading only."""
    return trained(tmp_path_factory.mktemp("upernet"), 0)


@pytest.mark.parametrize("decoder", ["linear", "upernet", "dpt"])
def test_evaluate_gives_the_score_that_was_tested(tmp_path, upernet, decoder):
    model, head = upernet if decoder == "upernet" else trained(tmp_path, 0, decoder, epochs=3)
    found = evaluate(head, model, masked(), out=tmp_path / "judged", device="cpu")
    tested = json.loads((head.parent / "finetune.json").read_text())
    assert found.score.score.value == pytest.approx(tested["score"]["value"], abs=1e-6)
    assert found.score.confusion.tolist() == tested["confusion"]
    written = json.loads((tmp_path / "judged" / "evaluate.json").read_text())
    assert written["score"]["value"] == found.score.score.value
    for name in ("confusion.png", "panels.png"):
        with rasterio.open(tmp_path / "judged" / name) as picture:
            assert min(picture.shape) > 200


@pytest.mark.parametrize(("stride", "size", "offset"), [(2, None, 0), (4, 48, 1)])
def test_the_head_of_a_probe_scores_what_the_probe_said_by_the_same_shifted_passes(tmp_path, stride, size, offset):
    whole = masked()

    def read(index: int):
        raw, valid = whole.read(index)
        valid = valid.copy()
        valid[:12, :12] = False
        valid[1:12:3, 1:12:3] = True  # in cells with fewer measurements than gaps
        return raw, valid

    data = replace(whole, read=read)
    torch.manual_seed(3)
    model = DOFA(EncoderConfig(width=48, depth=3, heads=3, patch=8, patch_offset=offset, image_size=24)).eval()
    quick = {"stats": "dataset", "by": "split", "baselines": False, "penalties": (1.0,), "pixels": 600}
    said = probe(model, data, stride=stride, size=size, out=tmp_path / "probe", **quick)
    found = evaluate(tmp_path / "probe" / "head", model, data, device="cpu")
    assert found.setting["stride"] == stride
    expected = np.array(said.rows[0].confusion)
    assert found.score.confusion.sum() == expected.sum()
    assert abs(found.score.confusion - expected).max() <= 2  # of two thousand: sums in another order, at a border
    coarse = evaluate(tmp_path / "probe" / "head", model, data, stride=8, device="cpu")
    assert abs(coarse.score.confusion - expected).max() > 20
    with pytest.raises(ConfigError, match="stride 3: a divisor of 8"):
        evaluate(tmp_path / "probe" / "head", model, data, stride=3, device="cpu")


@pytest.mark.parametrize("offset", [0, 1])
def test_a_map_through_a_decoder_is_its_answer_in_its_place(tmp_path, upernet, offset):
    model, folder = trained(tmp_path, offset) if offset else upernet
    head = load_head(folder, model)
    rng = np.random.default_rng(9)
    image = rng.integers(20, 60, (3, 61, 83)).astype(np.uint8)
    image[:, 20:45, 30:60] += 120
    place = from_origin(500000, 5000000, head.gsd_m, head.gsd_m)
    with rasterio.open(
        tmp_path / "scene.tif", "w", driver="GTiff", count=3, height=61, width=83, dtype="uint8", crs="EPSG:32633",
        transform=place,
    ) as out:  # fmt: skip
        out.write(image)
        for band, name in enumerate(head.sensor.band_names, 1):
            out.set_band_description(band, name)

    def mapped(tile: int | None, name: str) -> np.ndarray:
        opened = dofa.open_scene(tmp_path / "scene.tif", head.sensor.name)
        (one,) = predict_all([opened], model, head, tile=tile, precision="float32", device="cpu")
        output = one.output(tmp_path / name, "classes")
        write_all([one.job], [output], blocks=lambda jobs: engine.run(jobs, precision="float32", device="cpu"))
        return open_features(tmp_path / name).read_stored()[0]

    whole, tiled = mapped(96, "whole.tif"), mapped(24, "tiled.tif")
    with rasterio.open(tmp_path / "whole.tif") as result:
        # Pixel (offset, offset) of the map lies on pixel (0, 0) of the scene.
        assert result.xy(offset, offset) == pytest.approx(place * (0.5, 0.5), rel=0, abs=1e-6)
        assert result.shape == (61, 83)
    truth = np.zeros((61, 83), int)
    truth[20:45, 30:60] = 1
    inside = (slice(offset, None), slice(offset, None))
    on_scene = truth[: 61 - offset, : 83 - offset]
    for found in (whole, tiled):
        assert (found[inside] == on_scene).mean() > 0.85
    raw = torch.from_numpy(head.scaling.normalise_physical(head.sensor.scaling.physical(image)))[None]
    with torch.inference_mode():
        expected = HeadPredictions(model, head, head.sensor, 83)(raw)[0].argmax(0).numpy()
    kept = slice(0, 56), slice(0, 80)  # whole patches: at the far edges the scene is padded
    agree = (whole[inside][: 61 - offset][kept] == expected[kept]).mean()
    assert agree > 0.999


def test_what_is_saved_is_the_epoch_that_did_best_on_validation(tmp_path):
    data = tinted()
    labels = data.labels.copy()
    chosen = np.array(data.splits) == "val"
    labels[chosen] = np.random.default_rng(1).permutation(labels[chosen])  # what is learned does not help to choose
    data = replace(data, labels=labels)
    torch.manual_seed(3)
    model = DOFA(EncoderConfig(width=48, depth=3, heads=3, patch=8, image_size=16)).eval()
    folder = str(save(model, tmp_path / "w"))
    found = finetune(folder, data, out=tmp_path / "run", method="full", epochs=6, batch=8, lr=3e-3, **FAST)
    assert found.epoch < 6
    judged = evaluate(tmp_path / "run" / "head", str(tmp_path / "run" / "model"), data, split="val", device="cpu")
    assert judged.score.score.value == pytest.approx(max(found.validation), abs=1e-6)
    assert found.validation[-1] != max(found.validation)


def test_classes_are_matched_by_name(tmp_path):
    data = tinted()
    torch.manual_seed(3)
    model = DOFA(EncoderConfig(width=48, depth=3, heads=3, patch=8, image_size=16)).eval()
    finetune(str(save(model, tmp_path / "w")), data, out=tmp_path / "run", epochs=4, batch=12, **FAST)
    head = tmp_path / "run" / "head"
    one = evaluate(head, model, data, split="all", device="cpu")
    turned = replace(data, class_names=data.class_names[::-1], labels=2 - data.labels)
    two = evaluate(head, model, turned, split="all", device="cpu")
    assert one.score.confusion.tolist() == two.score.confusion.tolist()
    tested = np.array(data.splits) == "test"
    assert one.score.images == tested.sum()
    assert one.setting["overlap"]["left_out"] == (~tested).sum()
    stranger = replace(data, class_names=("stripes 0", "stripes 1", "sand"))
    with pytest.raises(DataError, match="classes sand, which the head does not know"):
        evaluate(head, model, stranger, split="all")
    unrecorded = replace(load_head(head), split=None)
    with pytest.raises(DataError, match="--split all"):
        evaluate(unrecorded, model, replace(data, find_splits=lambda: None), split="test")
    with pytest.raises(ConfigError, match="for classification, squares for segmentation"):
        evaluate(head, model, masked())
    with pytest.raises(ConfigError, match="--stride 4 is for maps"):
        evaluate(head, model, data, stride=4)
    few = data.select_bands(data.sensor.band_names[:1])
    with pytest.raises(ConfigError, match=f"the head was trained on {data.sensor.name}, these images are of"):
        evaluate(head, model, few)
    with torch.no_grad():
        model.cls_token[0, 0, 0] += 1
    with pytest.raises(CheckpointError, match="was trained on the encoder"):
        evaluate(head, model, data)


def test_what_a_decoder_cannot_do_is_said(tmp_path, upernet):
    model, folder = upernet[0], Path(shutil.copytree(upernet[1], tmp_path / "head"))
    head = load_head(folder, model)
    with pytest.raises(ConfigError, match=r"upernet decoder is not exported.*--decoder linear"):
        export(model, tmp_path / "out.onnx", head=head)
    with pytest.raises(CheckpointError, match="through its upernet decoder"):
        head.apply(torch.zeros(1, 192, 3, 3))
    with pytest.raises(ConfigError, match=r"--stride 4.*answers for every pixel"):
        predict_all([], model, head, stride=4)
    with pytest.raises(ConfigError, match=r"--stride 4.*answers for every pixel"):
        evaluate(head, model, masked(), stride=4)
    record = json.loads((folder / "head.json").read_text())
    assert record["format_version"] == 2
    for changes, message in (({"kind": "unet"}, "decoder 'unet'"), ({"channels": 17}, "does not fit")):
        (folder / "head.json").write_text(json.dumps({**record, "decoder": {**record["decoder"], **changes}}))
        with pytest.raises(CheckpointError, match=message):
            load_head(folder)


def test_images_of_another_pixel_size_are_brought_to_the_heads(upernet):
    model, folder = upernet
    data = masked()
    fine = np.ones((2, 2), np.uint8)
    larger = replace(
        data,
        sensor=replace(data.sensor, gsd_m=data.sensor.gsd_m / 2),
        shape=(3, 48, 48),
        read=lambda i: (np.kron(data.read(i)[0], fine[None]), np.kron(data.read(i)[1], fine).astype(bool)),
        read_mask=lambda i: np.kron(data.read_mask(i), fine).astype(np.int16),
    )
    one, two = (evaluate(folder, model, images, device="cpu") for images in (data, larger))
    assert two.score.score.value == pytest.approx(one.score.score.value, abs=0.05)
    assert two.score.confusion.sum() == 4 * one.score.confusion.sum()
    assert any("are brought to" in note for note in two.notes)


def test_the_commands_run_on_real_images(real_data, tmp_path, capsys):
    torch.manual_seed(0)
    weights = save(dofa.create("tiny", width=48, depth=2, heads=3, patch=8, image_size=32), tmp_path / "w")
    data = f"eurosat-ms:{real_data / 'eurosat_ms' / 'EuroSAT_MS_100.zip'}"
    common = ["--weights", str(weights), "--data", data]
    run = ["finetune", *common, "--out", str(tmp_path / "run"), "--epochs", "3", "--stats", "dataset", "--batch", "20"]
    assert main(run) == 0
    assert "test accuracy" in capsys.readouterr().out
    assert main(run) == 2
    assert "--resume" in capsys.readouterr().err
    judged = ["evaluate", *common, "--head", str(tmp_path / "run" / "head"), "--split", "all", "--out", str(tmp_path)]
    assert main(judged) == 0
    assert "accuracy" in capsys.readouterr().out
    assert (tmp_path / "confusion.png").is_file()


def test_targets_are_read_once_with_their_images():
    calls = []
    data = masked()
    counted = replace(data, read=lambda index: calls.append(index) or data.read(index))
    Samples(counted, data.scaling.with_stats([0.0] * 3, [1.0] * 3, "user")).batch([0, 1])
    assert calls == [0, 1]


@pytest.mark.parametrize("weights", ["random:w#1", "teacher:vit.pth", "timm:resnet50", "torchgeo:dofa"])
def test_weights_that_no_head_belongs_to_are_refused_in_one_line(weights, tmp_path, capsys):
    assert main(["evaluate", "--head", str(tmp_path), "--weights", weights, "--data", "eurosat-ms:none.zip"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"dofa: --weights {weights}: a head belongs to the DOFA encoder it was trained on")
    assert told.count("\n") == 1


@pytest.mark.parametrize("verb", ["finetune", "evaluate"])
def test_help_needs_no_torch_and_under_half_a_second(verb):
    code = f"""
import sys, time
from dofa.cli import main
try: main(['{verb}', '--help'])
finally: print(time.process_time(), 'torch' in sys.modules, file=sys.stderr)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, torch_there = told.stderr.split()
    assert "--weights" in told.stdout
    assert torch_there == "False"
    assert float(seconds) < 0.5
