"""The model folder: what is saved is loaded, bit for bit, or refused in one line."""

import itertools
import json
import multiprocessing
import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import dofa
from dofa.errors import CheckpointError, ConfigError
from dofa.model import model_folder
from dofa.model.checkpoint import encoder_sha256, from_released, load, load_mae, mae_from_released, resolve, save
from dofa.model.config import DecoderConfig, EncoderConfig, MaskConfig, Origin, TrainedSensor
from dofa.model.encoder import DOFA
from dofa.model.mae import MaskedAutoencoder
from dofa.pixels import Scaling

SMALL = EncoderConfig(16, 2, 2, 8, image_size=32)


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


@pytest.fixture
def saved(tmp_path):
    """A small saved encoder's folder."""
    torch.manual_seed(0)
    return save(DOFA(SMALL), tmp_path / "model")


def edit(folder, **changes):
    """Changes config.json by hand; None removes a key."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@torch.no_grad()
@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_a_converted_encoder_gives_the_same_bits_after_save_and_load(golden, tmp_path, layout):
    model = from_released(load_file(golden / f"dofa_{layout}_small_state.safetensors"), num_heads=2)
    io = load_file(golden / f"dofa_{layout}_small_io.safetensors")
    again = load(save(model, tmp_path / "model"))
    assert again.config == model.config
    x, wavelengths = io["s2.image"].float(), io["s2.wavelengths_um"]
    assert torch.equal(again(x, wavelengths), model(x, wavelengths))


@torch.no_grad()
@pytest.mark.parametrize("legacy_layout", [True, False])
def test_a_converted_autoencoder_gives_the_same_bits_after_save_and_load(golden, tmp_path, legacy_layout):
    mae = mae_from_released(load_file(golden / "mae_small_state.safetensors"), 3, 2, legacy_layout=legacy_layout)
    io = load_file(golden / "mae_small_io.safetensors")
    inputs = io["gf.image"].float(), io["gf.wavelengths_um"], io["gf.noise"]
    again = load_mae(save(mae, tmp_path / "model"))
    assert again.legacy_layout is legacy_layout
    assert torch.equal(again(*inputs)["loss"], mae(*inputs)["loss"])
    assert torch.equal(again.reconstruct(*inputs), mae.reconstruct(*inputs))


@given(
    depth=st.integers(1, 2),
    patch=st.sampled_from([4, 8, 14]),
    grid=st.integers(1, 4),
    patch_offset=st.sampled_from([0, 1]),
    layer_scale=st.sampled_from([None, 1e-5]),
    pooled_norm=st.booleans(),
    polarisation_embedding=st.booleans(),
    num_classes=st.sampled_from([0, 3]),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_configuration_comes_back_with_every_weight(tmp_path, grid, patch, **fields):
    known = TrainedSensor(("VV", "x"), (5.405, 0.66), Scaling.uniform("db", ("VV", "x"), clip=(-30, 0)), 10.0, "s")
    config = EncoderConfig(16, heads=4, patch=patch, image_size=grid * patch, sensors={"mine": known}, **fields)
    model = DOFA(config)
    again = load(save(model, tmp_path / "model"))
    assert again.config == config
    assert list(again.state_dict()) == list(model.state_dict())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]


def test_an_autoencoder_comes_back_with_its_settings_and_gives_its_encoder_alone(tmp_path):
    mae = MaskedAutoencoder(DOFA(SMALL), DecoderConfig(8, 1, 2), MaskConfig(0.5))
    folder = save(mae, tmp_path / "model")
    again = load_mae(folder)
    assert (again.decoder_config, again.mask_config) == (mae.decoder_config, mae.mask_config)
    encoder = load(folder)
    assert encoder_sha256(encoder) == encoder_sha256(mae)
    assert encoder.fc_norm.weight.requires_grad, "frozen by the autoencoder, to be trained by a head"


def test_an_encoder_is_not_loaded_as_an_autoencoder(saved):
    with pytest.raises(CheckpointError, match="without a decoder") as caught:
        load_mae(saved)
    one_line(caught)


def test_saving_twice_writes_the_same_bytes(tmp_path):
    model = DOFA(SMALL)
    a, b = save(model, tmp_path / "a"), save(model, tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    assert sorted(p.name for p in a.iterdir()) == ["config.json", "model.safetensors"]
    assert len({p.stat().st_mode for p in a.iterdir()}) == 1, "who may read one may read the other"


def test_loaded_weights_do_not_hang_on_their_file(saved):
    model = load(saved)
    before = encoder_sha256(model)
    weights = saved / "model.safetensors"
    with weights.open("rb+") as file:  # in place, as cp does
        file.write(b"\0" * weights.stat().st_size)
    assert encoder_sha256(model) == before


def test_config_json_is_readable_and_names_what_design_promises(saved):
    text = (saved / "config.json").read_text()
    config = json.loads(text)
    assert config["format_version"] == 1
    assert config["encoder"]["patch_offset"] == 0
    assert config["provenance"]["dofa_version"] == dofa.__version__
    assert config["weights_sha256"] == model_folder.file_sha256(saved / "model.safetensors")
    assert max(map(len, text.splitlines())) < 200


def test_a_format_from_the_future_is_refused_by_name(saved):
    edit(saved, format_version=2)
    with pytest.raises(CheckpointError, match="format_version 2, newer than the 1 this dofa reads") as caught:
        load(saved)
    one_line(caught)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format_version": None}, "no format_version .*not written by dofa"),
        ({"format_version": "1"}, "no format_version"),
        ({"encodr": {}}, "unknown key 'encodr': did you mean encoder"),
        ({"encoder": None}, "encoder is missing"),
        ({"encoder": {"widht": 16}}, "unknown key 'widht': did you mean width"),
        ({"encoder": {"width": "wide"}}, r"config\.json: "),
        ({"encoder": {"width": 18, "heads": 4}}, "18 is not divisible by 4 heads"),
        ({"encoder": [1]}, r"config\.json: "),
        ({"decoder": {"width": 8, "depth": 1, "heads": 2}}, "mask is missing"),
        ({"decoder": {"wide": 8}, "mask": {}, "legacy_layout": False}, "wide"),
        (
            {"encoder": SMALL.to_dict() | {"sensors": {"x": {"bands": ["a"], "wavelength_um": [1, 2]}}}},
            "2 wavelengths for 1 bands",
        ),
    ],
)
def test_a_config_that_does_not_hold_is_one_line(saved, changes, told):
    edit(saved, **changes)
    with pytest.raises(CheckpointError, match=told) as caught:
        load(saved)
    assert str(saved) in one_line(caught)


def test_what_is_no_model_folder_is_one_line(saved, tmp_path):
    for name, told in [("config.json", "no JSON"), ("model.safetensors", "sha256")]:
        (saved / name).write_text("{")
        with pytest.raises(CheckpointError, match=told) as caught:
            load(saved)
        one_line(caught)
        (saved / name).unlink()
        with pytest.raises(CheckpointError, match=f"{name} is missing") as caught:
            load(saved)
        one_line(caught)
        save(DOFA(SMALL), saved)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is no model folder"):
        load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("cls_token"), "missing cls_token$"),
        (lambda s: s.update(extra=torch.ones(2)), "unexpected extra$"),
        (
            lambda s: s.update(cls_token=torch.ones(1, 1, 8)),
            r"misshapen cls_token \(1, 1, 8\) instead of \(1, 1, 16\)$",
        ),
        (lambda s: s.update(cls_token=torch.ones(1, 1, 16).to(torch.int8)), "not floating point cls_token$"),
        (lambda s: [s.pop("cls_token"), s.update(a=torch.ones(1))], "missing cls_token; unexpected a$"),
    ],
)
def test_weights_that_do_not_fit_are_one_line_naming_the_keys(saved, change, told):
    state = load_file(saved / "model.safetensors")
    change(state)
    save_file(state, saved / "model.safetensors")
    edit(saved, weights_sha256=None)  # of a folder made by other hands
    with pytest.raises(CheckpointError, match=told) as caught:
        load(saved)
    assert str(saved) in one_line(caught)


def test_a_truncated_file_without_a_digest_is_one_line(saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    edit(saved, weights_sha256=None)
    with pytest.raises(CheckpointError, match="truncated") as caught:
        load(saved)
    one_line(caught)


def test_nan_weights_are_not_saved_over_good_ones(saved):
    model = load(saved)
    before = encoder_sha256(model)
    with torch.no_grad():
        model.blocks[1].mlp.fc1.bias[3] = float("nan")
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in blocks\.1\.mlp\.fc1\.bias"):
        save(model, saved)
    assert encoder_sha256(load(saved)) == before


def killed_save(folder, seed, call, nth):
    """Saves in a process that kills itself, without a word, at the nth call of an os function."""

    function, calls = getattr(os, call), itertools.count(1)

    def die(*args, **kwargs):
        if next(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(os, call, die)
    torch.manual_seed(seed)
    save(DOFA(SMALL), folder)


@pytest.mark.parametrize(
    ("call", "nth", "survives"),
    [("fsync", 1, "old"), ("fsync", 2, "old"), ("replace", 1, "old"), ("replace", 2, "new"), ("fsync", 3, "new")],
)
def test_a_killed_save_leaves_the_old_model_or_the_new_one_and_never_a_mixture(saved, call, nth, survives):
    old = encoder_sha256(load(saved))
    child = multiprocessing.get_context("fork").Process(target=killed_save, args=(saved, 1, call, nth))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    torch.manual_seed(1)
    new = DOFA(SMALL)
    if survives == "torn":
        with pytest.raises(CheckpointError, match="interrupted save"):
            load(saved)
    else:
        assert encoder_sha256(load(saved)) == {"old": old, "new": encoder_sha256(new)}[survives]
    save(new, saved)
    assert encoder_sha256(load(saved)) == encoder_sha256(new)
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_the_encoders_digest_changes_with_anything_that_changes_its_features():
    torch.manual_seed(0)
    model = DOFA(SMALL)
    digest = encoder_sha256(model)
    assert encoder_sha256(MaskedAutoencoder(model, DecoderConfig(8, 1, 2))) == digest
    model.reset_classifier(4)
    assert encoder_sha256(model) == digest, "a head folder brings its own head"
    for change in ({"heads": 4}, {"patch_offset": 1}, {"sar_wavelength": 3.75}):
        torch.manual_seed(0)
        other = DOFA(EncoderConfig(**{**vars(SMALL), **change}))
        other.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
        assert encoder_sha256(other) != digest
    with torch.no_grad():
        weight = model.blocks[0].mlp.fc1.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert encoder_sha256(model) != digest


def test_an_origin_set_by_hand_is_kept(tmp_path):
    model = DOFA(SMALL)
    model.origin = Origin("MIT", "me", {"corpus": "mine"})
    again = load(save(model, tmp_path / "model"))
    assert (again.origin.licence, again.origin.attribution) == ("MIT", "me")
    assert again.origin.provenance == {"dofa_version": dofa.__version__, "corpus": "mine"}


def test_create_makes_named_sizes_and_says_the_nearest_name():
    model = dofa.create("tiny", patch=8, image_size=96, depth=1)
    assert (model.config.width, model.config.patch, model.config.grid) == (192, 8, 12)
    with pytest.raises(ConfigError, match="did you mean tiny"):
        dofa.create("tinny")
    with pytest.raises(ConfigError, match="did you mean depth"):
        dofa.create("tiny", dept=1)


@pytest.mark.parametrize(("size", "count"), [("base", 111_310_592), ("large", 337_103_360)])
def test_released_sizes_have_the_published_number_of_parameters(size, count):
    """reference/dofa.md section 1, without any final norm."""
    model = model_folder.build_encoder(dofa.model.config.preset(size, polarisation_embedding=False))
    assert sum(v.numel() for k, v in model.state_dict().items() if not k.startswith(("norm.", "fc_norm."))) == count


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dofa-v1-bse", "did you mean dofa-v1-base"),
        ("base", r"dofa\.create\('base'\)"),
        ("/no/such/folder", "no model folder and no known name"),
        ("./runs/model", "no model folder and no known name"),
    ],
)
def test_an_unknown_name_is_one_line_with_a_cure(name, told):
    with pytest.raises(CheckpointError, match=told) as caught:
        load(name)
    one_line(caught)


def test_a_file_is_not_a_model_and_a_folder_has_no_revision(saved):
    with pytest.raises(CheckpointError, match="dofa convert"):
        load(saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="no revision"):
        load(saved, revision="main")


def test_a_local_folder_comes_before_any_name(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("dofa-v1-base", "owner/model"):
        save(load(saved), tmp_path / name)
        assert resolve(name).resolve() == (tmp_path / name).resolve()


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["encoder"].update(patch_offset=1),
        lambda config: config["encoder"].update(sar_wavelength=3.75),
        lambda config: config["encoder"]["sensors"]["toy"]["wavelength_um"].__setitem__(0, 0.61),
        lambda config: config["encoder"]["sensors"].clear(),
    ],
)
def test_a_config_that_is_another_than_the_weights_were_saved_with_is_refused(tmp_path, change):
    """No digest covered config.json: another patch_offset or wavelength gave other features without a word."""
    config = EncoderConfig(width=16, depth=1, heads=2, patch=8, image_size=16, wave_dim=8,
                           sensors={"toy": TrainedSensor(("a", "b"), (0.6, 0.7))})  # fmt: skip
    folder = save(DOFA(config), tmp_path / "model")
    load(folder)
    record = json.loads((folder / "config.json").read_text())
    change(record)
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"config\.json is not the one"):
        load(folder)
    record["licence"] = "CC-BY-4.0"  # where weights come from may be said later
    del record["config_sha256"]  # as before there was one
    (folder / "config.json").write_text(json.dumps(record))
    load(folder)
