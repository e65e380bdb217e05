"""Exported programs give what the model gives, say what they expect, and are refused where they would not."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dofa import cli, sensors
from dofa.errors import CheckpointError, ConfigError
from dofa.model import exported_program
from dofa.model.checkpoint import encoder_sha256, save
from dofa.model.config import EncoderConfig, Origin, TrainedSensor
from dofa.model.encoder import DOFA
from dofa.model.export import Export, export
from dofa.model.exported_program import Exported
from dofa.model.heads import Head, palette
from dofa.model.model_folder import file_sha256
from dofa.sensors import Sensor

SUFFIXES = [
    pytest.param(
        ".onnx", marks=pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="no onnxruntime")
    ),
    ".pt2",
]
S2 = sensors.get("sentinel-2-l2a").select(["B02", "B03", "B04", "B08"])
MEAN, STD = (0.05, 0.08, 0.1, 0.3), (0.02, 0.03, 0.05, 0.1)


def build(sensor: Sensor = S2, offset: int = 0, **changes) -> DOFA:
    torch.manual_seed(0)
    assert sensor.scaling is not None
    clipped = replace(sensor.scaling, clip=((0.0, 0.12),) * 4)
    trained = TrainedSensor(
        sensor.band_names, (0.49, 0.56, 0.665, 0.842), clipped.with_stats(MEAN, STD, "checkpoint"), 10.0
    )
    config = {"width": 48, "depth": 3, "heads": 3, "patch": 8, "image_size": 32, "patch_offset": offset, **changes}
    model = DOFA(EncoderConfig(sensors={sensor.name: trained}, **config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.origin = Origin("CC-BY-4.0", "the authors", {})
    return model


@pytest.fixture(scope="module")
def model() -> DOFA:
    return build()


def make_head(model: DOFA, **changes) -> Head:
    rng = np.random.default_rng(0)
    levels = changes.get("levels", ("pooled",))
    head = Head(
        task="classification",
        class_names=("field", "forest", "water"),
        colours=palette(3),
        encoder_sha256=encoder_sha256(model),
        levels=levels,
        sensor=S2,
        scaling=S2.scaling.with_stats(MEAN, STD, "head"),
        patch_offset=0,
        tile_size=24,
        gsd_m=20.0,
        weight=rng.normal(size=(3, 48 * len(levels))),
        bias=rng.normal(size=3),
        validation={"accuracy": {"value": 0.8}},
    )
    return replace(head, **changes)


def run(file: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    """As somebody without dofa would run it."""
    if file.suffix == ".pt2":
        return {k: v.detach().numpy() for k, v in torch.export.load(file).module()(torch.from_numpy(image)).items()}
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": image}), strict=True))


def worst(got: np.ndarray, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    return float(np.abs(got - expected.detach().numpy()).max() / expected.detach().abs().max())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_program_gives_what_the_model_gives_for_any_number_of_images(suffix, tmp_path, model):
    file = export(model, tmp_path / f"x{suffix}", S2, levels=["pooled", -3, 1]).file
    for count in (1, 3):
        image = torch.randn(count, 4, 32, 32)
        got = run(file, image.numpy())
        assert list(got) == ["pooled", "block0", "block1"]
        blocks = model.forward_intermediates(image, S2, [0, 1])
        assert worst(got["pooled"], model(image, S2)) <= 1e-4
        assert worst(got["block0"], blocks[0].mean((2, 3))) <= 1e-4
        assert worst(got["block1"], blocks[1].mean((2, 3))) <= 1e-4


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_maps_of_a_model_with_an_offset_are_its_own_at_the_size_asked(suffix, tmp_path):
    model = build(offset=1)
    file = export(model, tmp_path / f"x{suffix}", S2, image_size=48, levels=["pooled", 0], maps=True).file
    image = torch.randn(2, 4, 48, 48)
    got = run(file, image.numpy())
    [first] = model.forward_intermediates(image, S2, [0])
    normed = model.fc_norm(model.forward_features(image, S2)[:, 1:])
    assert worst(got["block0"], first) <= 1e-4
    assert worst(got["pooled"], normed.transpose(1, 2).reshape(2, 48, 6, 6)) <= 1e-4


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("numbers", ["physical", "raw"])
def test_the_normalisation_inside_is_the_one_of_pixels(suffix, numbers, tmp_path, model):
    done = export(model, tmp_path / f"x{suffix}", S2, normalise=numbers, dn_offset=-1000 if numbers == "raw" else None)
    rng = np.random.default_rng(1)
    raw = rng.integers(900, 4000, (3, 4, 32, 32)).astype(np.float32)  # beyond the clip on both sides
    valid = rng.random((3, 32, 32)) > 0.1
    scaling = model.config.sensors[S2.name].scaling
    reflectance = (raw - 1000) / 10_000
    normalised = torch.from_numpy(scaling.normalise_physical(reflectance, valid))
    assert float(normalised.max()) == pytest.approx((0.12 - 0.05) / 0.02, rel=1e-4)
    fed = np.where(valid[:, None], raw if numbers == "raw" else reflectance, np.float32(np.nan))
    assert worst(run(done.file, fed)["pooled"], model(normalised, S2)) <= 1e-4
    assert done.record["normalisation"] == numbers
    assert done.record["scaling"]["clip"] == [[0.0, 0.12]] * 4
    assert done.record["scaling"]["offset"] == pytest.approx([-0.1 if numbers == "raw" else 0.0] * 4)


def test_a_band_without_variance_is_fed_as_nothing(tmp_path, model):
    flat = model.config.sensors[S2.name].scaling.with_stats(MEAN, (0.02, 0.0, 0.05, 0.1), "checkpoint")
    known = replace(model.config.sensors[S2.name], scaling=flat)
    constant = build()
    constant.config = replace(constant.config, sensors={S2.name: known})
    file = export(constant, tmp_path / "x.pt2", S2, normalise="physical").file
    image = np.full((1, 4, 32, 32), 0.1, np.float32)
    other = image.copy()
    other[:, 1] = 0.02
    assert np.array_equal(run(file, image)["pooled"], run(file, other)["pooled"])
    other[:, 0] = 0.02
    assert not np.allclose(run(file, image)["pooled"], run(file, other)["pooled"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_head_goes_along_with_its_levels_size_and_scaling(suffix, tmp_path, model):
    head = make_head(model, levels=(1, "pooled"))
    done = export(model, tmp_path / f"x{suffix}", head=head, normalise="physical")
    physical = np.random.default_rng(0).uniform(0, 0.5, (3, 4, 24, 24)).astype(np.float32)
    got = run(done.file, physical)
    image = torch.from_numpy(head.scaling.normalise_physical(physical))
    [block] = model.forward_intermediates(image, S2, [1])
    logits = head.apply(torch.cat([block.mean((2, 3)), model(image, S2)], dim=1))
    assert list(got) == ["logits", "probabilities"]
    assert worst(got["logits"], logits) <= 1e-4
    assert worst(got["probabilities"], logits.softmax(1)) <= 1e-4
    assert done.record["head"]["class_names"] == ["field", "forest", "water"]
    assert done.record["image_size"] == 24
    assert done.record["gsd_m"] == 20.0


def test_a_segmentation_head_answers_for_every_patch_and_a_regression_gives_values(tmp_path, model):
    segmenting = make_head(model, task="segmentation", levels=(2,))
    got = run(export(model, tmp_path / "s.pt2", head=segmenting).file, np.zeros((2, 4, 24, 24), np.float32))
    [block] = model.forward_intermediates(torch.zeros(2, 4, 24, 24), S2, [2])
    assert worst(got["logits"], segmenting.apply(block)) <= 1e-4
    assert got["probabilities"].sum(1) == pytest.approx(np.ones((2, 3, 3)), rel=1e-5)
    regression = make_head(model, task="regression")
    assert list(run(export(model, tmp_path / "r.pt2", head=regression).file, np.zeros((1, 4, 24, 24), np.float32))) == [
        "values"
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_says_what_it_expects_and_so_does_the_json_beside_it(suffix, tmp_path, model):
    done = export(model, tmp_path / "new" / f"x{suffix}", S2, ["B08", "B02"], normalise="physical")
    beside = json.loads((tmp_path / "new" / "x.json").read_text(encoding="utf-8"))
    assert beside == json.loads(json.dumps(done.record))
    assert beside["bands"] == ["B08", "B02"]
    assert beside["wavelength_um"] == [0.842, 0.49]  # what the weights were trained with, not the catalogue's
    assert (beside["sensor"], beside["unit"], beside["patch"], beside["patch_offset"]) == (S2.name, "reflectance", 8, 0)
    assert beside["mean"] == [0.3, 0.05]
    assert (beside["licence"], beside["attribution"]) == ("CC-BY-4.0", "the authors")
    assert beside["encoder_sha256"] == encoder_sha256(model)
    assert beside["file_sha256"] == file_sha256(done.file)
    assert beside["checked"]["difference"] <= 1e-4
    assert "reflectance, NaN" in beside["expects"]
    if suffix == ".pt2":
        extra = {"dofa.json": ""}
        torch.export.load(done.file, extra_files=extra)
        within = json.loads(extra["dofa.json"])
    else:
        import onnx

        props = {p.key: p.value for p in onnx.load(done.file).metadata_props}
        assert props["sensor"] == S2.name
        within = {k: props[k] if isinstance(beside[k], str) else json.loads(props[k]) for k in beside if k in props}
    for key in set(beside) - {"file_sha256", "checked"}:
        assert within[key] == beside[key], key


def test_a_program_that_differs_from_the_model_is_not_left_behind(tmp_path, model, monkeypatch):
    right = Exported.forward

    def wrong(self, image):
        return {name: value * 1.001 for name, value in right(self, image).items()}

    monkeypatch.setattr(Exported, "forward", wrong)
    with pytest.raises(CheckpointError, match=r"is not written: pooled of 1 images differs .* by 1\.0e-03"):
        export(model, tmp_path / "x.pt2", S2)
    assert list(tmp_path.iterdir()) == []


def test_nan_is_a_difference():
    with pytest.raises(CheckpointError, match="differs"):
        exported_program.compare(
            lambda _: {"a": np.array([np.nan], np.float32)}, np.zeros((1, 1)), {"a": torch.ones(1)}, "x"
        )


def test_a_file_that_is_there_stays_unless_said(tmp_path, model, monkeypatch):
    file = tmp_path / "x.pt2"
    file.write_text("precious")
    with pytest.raises(ConfigError, match=r"x\.pt2 is there already.*--overwrite"):
        export(model, file, S2)
    monkeypatch.setattr(exported_program, "TOLERANCE", -1.0)
    with pytest.raises(CheckpointError):
        export(model, file, S2, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt2"]
    assert file.read_text() == "precious"
    monkeypatch.undo()
    assert isinstance(export(model, file, S2, overwrite=True), Export)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "x.pt2"]
    with pytest.raises(ConfigError, match=r"x\.json is there already"):
        export(model, tmp_path / "x.onnx", S2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": Path("x.pth"), "sensor": S2}, r"x\.pth: name a file \.onnx, or \.pt2"),
        ({}, "say whose images it is for: --sensor"),
        ({"sensor": "sentinel-2-l3"}, "unknown sensor 'sentinel-2-l3': did you mean sentinel-2-l"),
        ({"sensor": S2, "bands": ["B02", "B99"]}, "has no band 'B99'"),
        (
            {"sensor": S2, "image_size": 36},
            "--image-size 36: a multiple of the patch of 8 pixels is needed, such as 40",
        ),
        ({"sensor": S2, "image_size": 4}, "such as 8"),
        ({"sensor": S2, "levels": ["last"]}, "--levels last: neither pooled nor the number of a block"),
        ({"sensor": S2, "levels": [3]}, "0 to 2"),
        ({"sensor": S2, "levels": [2, -1]}, "names a block twice"),
        ({"sensor": S2, "dn_offset": -1000}, "--dn-offset belongs to raw numbers"),
        ({"sensor": "naip-rgb", "normalise": "raw"}, r"no statistics for naip-rgb .*they know sentinel-2-l2a"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(arguments, message, tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        export(model, **{"out": Path("x.pt2"), **arguments})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_raw_numbers_need_a_product_that_says_what_they_are(tmp_path, model):
    silent = replace(S2, scaling=None)
    with pytest.raises(ConfigError, match="mean what each file says: export with --normalise physical"):
        export(model, tmp_path / "x.pt2", silent, normalise="raw")
    counts = replace(S2, scaling=replace(S2.scaling, unit="dn"))
    with pytest.raises(ConfigError, match="are dn, the statistics reflectance"):
        export(model, tmp_path / "x.pt2", counts, normalise="raw")
    assert export(model, tmp_path / "x.pt2", counts, normalise="physical").record["unit"] == "reflectance"


def test_a_head_is_refused_on_another_encoder_and_beside_what_it_knows_itself(tmp_path, model):
    head = make_head(model)
    with pytest.raises(CheckpointError, match="was trained on the encoder"):
        export(build(offset=1), tmp_path / "x.pt2", head=head)
    with pytest.raises(ConfigError, match="trained on sentinel-2-l2a, not on naip-rgb"):
        export(model, tmp_path / "x.pt2", "naip-rgb", head=head)
    for more in ({"bands": ["B02"]}, {"levels": [0]}):
        with pytest.raises(ConfigError, match="leave out --bands and --levels"):
            export(model, tmp_path / "x.pt2", head=head, **more)
    with pytest.raises(ConfigError, match="--image-size 20: a multiple"):
        export(model, tmp_path / "x.pt2", head=replace(head, tile_size=20))


def test_without_onnx_the_extra_is_named(tmp_path, model, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxscript" else find(name, *a))
    with pytest.raises(ConfigError, match=r'ONNX needs onnxscript: pip install "dofa\[export\]", or .*\.pt2'):
        export(model, tmp_path / "x.onnx", S2)
    export(model, tmp_path / "x.pt2", S2)


def test_more_weights_than_a_file_holds_are_told_before_any_work(tmp_path, model, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(exported_program, "ONNX_LIMIT", 1000)
    with pytest.raises(ConfigError, match=r"export a \.pt2 program"):
        export(model, tmp_path / "x.onnx", S2)
    assert list(tmp_path.iterdir()) == []


def test_the_command_reads_folders_and_says_what_it_wrote(tmp_path, model, capsys):
    save(model, tmp_path / "model")
    make_head(model).save(tmp_path / "head")
    out = tmp_path / "field.pt2"
    command = f"export --weights {tmp_path}/model --head {tmp_path}/head --normalise raw --dn-offset -1000 --out {out}"
    assert cli.main(command.split()) == 0
    said = capsys.readouterr()
    assert "image: float32 (batch, 4, 24, 24) of sentinel-2-l2a: raw numbers of the product, NaN" in said.out
    assert "logits: float32 (batch, 3)" in said.out
    assert f"written {out} and field.json" in said.out
    assert said.err == ""
    assert cli.main(command.split()) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("sensor", ["sentinel-2-dofa9", "enmap-202"])
def test_a_model_of_base_size_is_exported_for_few_and_many_bands(suffix, sensor, tmp_path):
    torch.manual_seed(0)
    model = DOFA(EncoderConfig(patch_offset=1)).eval()
    done = export(model, tmp_path / f"x{suffix}", sensor, levels=["pooled", 11])
    assert done.record["checked"]["difference"] <= 1e-4
    known = sensors.get(sensor)
    image = torch.randn(2, len(known.bands), 224, 224)
    assert worst(run(done.file, image.numpy())["pooled"], model(image, known)) <= 1e-4
