"""Released layouts: the conversion itself gives the reference's numbers, and every key is accounted for."""

import argparse
import json
import pickle
import re
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

import dofa
from dofa import sensors
from dofa.errors import CheckpointError
from dofa.model import convert as conversion
from dofa.model.checkpoint import convert, from_released, load, load_mae, mae_from_released, save
from dofa.model.convert import UnverifiedWeightsWarning
from dofa.model.released import RELEASED, ReleasedFile, trained_sensors

TOLERANCE = 1e-5  # × max |reference|, the project's promise
ENCODERS = {"v1": ("dofa_v1_small", 2), "v2": ("dofa_v2_small", 2), "full": ("mae_small", 3)}


def error(ours, reference):
    return float((ours - reference).abs().max() / reference.abs().max())


@pytest.fixture(scope="module")
def state(golden):
    """A fresh state dict of a layout."""
    return lambda layout: load_file(golden / f"{ENCODERS[layout][0]}_state.safetensors")


@pytest.fixture(scope="module")
def numbers(golden):
    """Inputs and outputs of a layout."""
    return {layout: load_file(golden / f"{name}_io.safetensors") for layout, (name, _) in ENCODERS.items()}


@pytest.fixture(scope="module")
def v1(state):
    return from_released(state("v1"), num_heads=2)


def v1_image(io, case):
    if case == "enmap":
        return torch.randn(1, 202, 224, 224, generator=torch.Generator().manual_seed(11))
    return io[f"{case}.image"].float()


@torch.no_grad()
@pytest.mark.parametrize("case", ["s1", "s2", "gf", "rgb", "odd5", "enmap"])
def test_v1_converted_equals_the_reference(v1, numbers, case):
    io = numbers["v1"]
    tokens = v1.forward_features(v1_image(io, case), io[f"{case}.wavelengths_um"])
    assert error(v1.forward_head(tokens, pre_logits=True), io[f"{case}.pooled"]) <= TOLERANCE
    if f"{case}.logits" in io:
        assert error(v1.forward_head(tokens), io[f"{case}.logits"]) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize(
    ("case", "sensor"),
    [("s1", "sentinel-1-satlas"), ("s2", "sentinel-2-dofa9"), ("gf", "gaofen-2"), ("rgb", "naip-rgb")],
)
def test_v1_fed_a_catalogue_sensor_by_name_equals_the_reference(v1, numbers, case, sensor):
    """config.json overrides the catalogue's true centres, which give other kernels."""
    io, known = numbers["v1"], sensors.get(sensor)
    image = io[f"{case}.image"].float()
    tokens = v1.forward_features(image, known)
    assert error(v1.forward_head(tokens, pre_logits=True), io[f"{case}.pooled"]) <= TOLERANCE
    if sensor == "sentinel-2-dofa9":
        true = v1.forward_features(image, [band.wavelength_um for band in known.bands])
        assert error(v1.forward_head(true, pre_logits=True), io[f"{case}.pooled"]) > 1e-3


@torch.no_grad()
def test_v1_is_told_the_published_enmap_wavelengths_by_name(v1, numbers):
    """Exact, so the golden output for those numbers holds for the name too."""
    told, _ = v1.band_inputs(sensors.get("enmap-202"))
    assert torch.equal(told, numbers["v1"]["enmap.wavelengths_um"])


@torch.no_grad()
@pytest.mark.parametrize("case", ["rgb", "s2"])
def test_v2_converted_equals_the_reference_in_every_block(state, numbers, case):
    model, io = from_released(state("v2"), num_heads=2), numbers["v2"]
    levels = model.forward_intermediates(
        io[f"{case}.image"].float(), io[f"{case}.wavelengths_um"], output_fmt="NLC", return_prefix_tokens=True
    )
    for i, (patches, prefix) in enumerate(levels):
        assert error(torch.cat([prefix, patches], 1), io[f"{case}.block{i}_tokens"]) <= TOLERANCE


def unpatchify(rows_bnd, bands, patch, grid):
    """(B, N, C·p·p) to (B, C, H, W), written apart from the code under test."""
    x = rows_bnd.reshape(len(rows_bnd), grid, grid, bands, patch, patch)
    return torch.einsum("bhwcpq->bchpwq", x).reshape(len(rows_bnd), bands, grid * patch, grid * patch)


@torch.no_grad()
@pytest.mark.parametrize("legacy_layout", [False, True])
@pytest.mark.parametrize("case", ["s1", "s2", "gf"])
def test_full_weight_converted_equals_the_reference(state, numbers, case, legacy_layout):
    """Latent, loss in both layouts, and the reconstruction, un-permuted where the layout is the published one."""
    mae, io = mae_from_released(state("full"), 3, 2, legacy_layout=legacy_layout), numbers["full"]
    image, wavelengths, noise = io[f"{case}.image"].float(), io[f"{case}.wavelengths_um"], io[f"{case}.noise"]
    out = mae(image, wavelengths, noise)
    assert torch.equal(out["mask"], io[f"{case}.mask"])
    assert error(out["latent"], io[f"{case}.latent"]) <= TOLERANCE
    name = "loss_legacy_ppc" if legacy_layout else "loss_cpp"
    assert error(out["loss"], io[f"{case}.{name}"]) <= TOLERANCE

    bands, patch, grid = image.shape[1], 8, 4
    rows = io[f"{case}.pred"]  # as the decoder writes them
    if legacy_layout:
        rows = rows.reshape(*rows.shape[:2], patch * patch, bands).transpose(2, 3).flatten(2)
    pixels = image.unfold(2, patch, patch).unfold(3, patch, patch)
    pixels = pixels.permute(0, 2, 3, 1, 4, 5).reshape(len(image), grid * grid, -1)
    rows = rows * (pixels.var(-1, keepdim=True) + 1e-6).sqrt() + pixels.mean(-1, keepdim=True)
    mask = io[f"{case}.mask"][..., None]
    expected = unpatchify(rows * mask + pixels * (1 - mask), bands, patch, grid)
    assert error(mae.reconstruct(image, wavelengths, noise), expected) <= TOLERANCE


@torch.no_grad()
def test_the_encoder_of_full_weight_is_the_one_the_autoencoder_holds(state, numbers):
    encoder, io = from_released(state("full"), num_heads=3), numbers["full"]
    mae = mae_from_released(state("full"), 3, 2, legacy_layout=True)
    x, wavelengths = io["s2.image"].float(), io["s2.wavelengths_um"]
    assert torch.equal(encoder.forward_features(x, wavelengths), mae.encoder.forward_features(x, wavelengths))


def test_sizes_and_conventions_are_read_off_the_released_files(state):
    one, two = (from_released(state(layout), num_heads=2).config for layout in ("v1", "v2"))
    assert (one.width, one.depth, one.heads, one.patch, one.image_size, one.num_classes) == (32, 2, 2, 16, 224, 5)
    assert (one.patch_offset, one.sar_wavelength, one.pooled_norm, one.layer_scale) == (1, 3.75, True, None)
    assert (two.width, two.depth, two.patch, two.image_size, two.num_classes) == (32, 3, 14, 224, 0)
    assert (two.patch_offset, two.sar_wavelength, two.pooled_norm, two.layer_scale) == (1, 5.405, False, 1e-5)
    assert not one.polarisation_embedding
    assert not two.polarisation_embedding


def test_trained_sensors_hold_the_published_numbers(shared):
    """Against the list of reference/dofa.md and enmap_202.json, not against our own tables."""
    known = trained_sensors(1)
    assert set(known) == {"sentinel-1-satlas", "sentinel-2-dofa9", "gaofen-2", "naip-rgb", "enmap-202"}
    assert known["sentinel-1-satlas"].wavelength_um == (3.75, 3.75)
    assert known["sentinel-2-dofa9"].wavelength_um == (0.665, 0.56, 0.49, 0.705, 0.74, 0.783, 0.842, 1.61, 2.19)
    assert known["gaofen-2"].wavelength_um == (0.49, 0.56, 0.665, 0.83)
    assert known["naip-rgb"].wavelength_um == (0.665, 0.56, 0.49)
    enmap = json.loads((shared / "reference" / "enmap_202.json").read_text())
    assert list(known["enmap-202"].wavelength_um) == enmap["wavelength_um"]
    assert known["enmap-202"].scaling.mean == pytest.approx(enmap["mean"], rel=1e-6)
    assert known["enmap-202"].scaling.std == pytest.approx(enmap["std"], rel=1e-6)
    assert known["sentinel-1-satlas"].scaling.mean == pytest.approx((166.36275909, 88.45542715))
    assert known["sentinel-2-dofa9"].scaling.std[-1] == pytest.approx(42.55886798)
    assert known["gaofen-2"].scaling.std == pytest.approx((67.34487297, 62.8271046, 60.5856767, 60.3946299))
    assert known["naip-rgb"].scaling.mean == pytest.approx((123.675, 116.28, 103.53))
    assert {t.scaling.stats_source for t in known.values()} == {"checkpoint"}
    assert trained_sensors(2)["sentinel-1-satlas"].wavelength_um == (5.405, 5.405)


def fates(report):
    return {f.key: f.fate for f in report.fates}


@pytest.fixture
def write(tmp_path):
    """Writes a state dict as a file of the given kind and returns its path."""

    def write(state_dict, name="weights.pth", wrap=lambda s: s):
        path = tmp_path / name
        if path.suffix == ".safetensors":
            save_file(state_dict, path)
        else:
            torch.save(wrap(state_dict), path)
        return path

    return write


def released_v1(state):
    """The authors' own v1 layout: with mask_token, norm and projector, without fc_norm and head."""
    own = {k: v for k, v in state("v1").items() if not k.startswith(("fc_norm.", "head."))}
    extra = {"mask_token": (1, 1, 512), "norm.weight": (32,), "norm.bias": (32,)}
    extra |= {"projector.weight": (32, 32), "projector.bias": (32,)}
    return own | {k: torch.randn(shape) for k, shape in extra.items()}


@pytest.mark.filterwarnings("ignore::dofa.model.convert.UnverifiedWeightsWarning")
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_the_authors_v1_file_converts_with_the_fate_of_every_key(state, write, tmp_path, name):
    source = released_v1(state)
    report = convert(write(source, name), tmp_path / "out", num_heads=2)
    told = fates(report)
    assert set(source) <= set(told)
    assert {k for k, fate in told.items() if fate == "dropped"} == {"mask_token", "projector.weight", "projector.bias"}
    assert {k for k, fate in told.items() if fate == "created"} == {"fc_norm.weight", "fc_norm.bias", "head"}
    assert all(f.reason for f in report.fates if f.fate != "kept")
    loaded = load(tmp_path / "out").state_dict()
    for key, fate in told.items():
        if fate == "kept":
            assert torch.equal(loaded[key], source[key]), key
    assert torch.equal(loaded["norm.weight"], source["norm.weight"])
    assert loaded["fc_norm.weight"].unique().tolist() == [1]
    assert loaded["fc_norm.bias"].unique().tolist() == [0]


@pytest.mark.filterwarnings("ignore::dofa.model.convert.UnverifiedWeightsWarning")
def test_torchgeos_copy_gets_an_identity_norm_said_aloud(state, write, tmp_path):
    report = convert(write(state("v1")), tmp_path / "out", num_heads=2)
    created = [f for f in report.fates if f.fate == "created"]
    assert {f.key for f in created} == {"norm.weight", "norm.bias"}
    assert all("identity" in f.reason for f in created)


@pytest.mark.filterwarnings("ignore::dofa.model.convert.UnverifiedWeightsWarning")
def test_v2_keeps_the_inner_norm_and_drops_the_unused_one(state, write, tmp_path):
    source = state("v2")
    source["norm.weight"] = torch.full((32,), 7.0)
    report = convert(write(source), tmp_path / "out", num_heads=2)
    told = fates(report)
    assert told["norm.weight"] == told["norm.bias"] == "dropped"
    assert told["model.norm.weight"] == "renamed"
    assert torch.equal(load(tmp_path / "out").norm.weight, source["model.norm.weight"])


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["model.", "module.", "net.backbone."])
@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_a_wrappers_prefix_changes_nothing(state, layout, prefix):
    source = state(layout)
    plain = from_released(source, num_heads=2)
    wrapped = from_released({prefix + k: v for k, v in source.items()}, num_heads=2)
    assert wrapped.config == plain.config
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in wrapped.state_dict().items())


@pytest.mark.filterwarnings("ignore::dofa.model.convert.UnverifiedWeightsWarning")
@pytest.mark.parametrize("legacy_layout", [True, False])
def test_full_weight_converts_with_its_decoder_and_without_the_teacher(state, write, tmp_path, numbers, legacy_layout):
    source = state("full") | {
        "teacher.blocks.0.attn.qkv.weight": torch.zeros(9, 3),
        "teacher.cls_token": torch.zeros(3),
    }
    path = write(source, wrap=lambda s: {"model": s, "epoch": 100, "args": argparse.Namespace(lr=1e-4)})
    out = tmp_path / "out"
    report = convert(path, out, num_heads=3, decoder_num_heads=2, legacy_layout=legacy_layout)
    told = fates(report)
    assert set(source) | {"epoch", "args"} <= set(told)
    dropped = {k for k, fate in told.items() if fate == "dropped"}
    unused = {f"decoder_pred.weight_generator.fc_bias.{w}" for w in ("weight", "bias")}
    teacher = {"teacher.blocks.0.attn.qkv.weight", "teacher.cls_token"}
    assert dropped == teacher | unused | {"projector.weight", "projector.bias", "epoch", "args"}
    io = numbers["full"]
    inputs = io["s2.image"].float(), io["s2.wavelengths_um"], io["s2.noise"]
    mae = load_mae(out)
    assert mae.legacy_layout is legacy_layout
    expected = io["s2.loss_legacy_ppc" if legacy_layout else "s2.loss_cpp"]
    assert error(mae(*inputs)["loss"].detach(), expected) <= TOLERANCE


def test_full_weight_without_a_word_on_its_layout_is_refused(state, write, tmp_path):
    path = write(state("full"), wrap=lambda s: {"model": s})
    with pytest.raises(CheckpointError, match=r"holds a decoder.*legacy_layout"):
        convert(path, tmp_path / "out", num_heads=3, decoder_num_heads=2)
    assert not (tmp_path / "out").exists()
    with pytest.raises(TypeError, match="legacy_layout"):
        mae_from_released(state("full"), 3, 2)
    with pytest.raises(CheckpointError, match="legacy_layout is None"):
        mae_from_released(state("full"), 3, 2, legacy_layout=None)


def test_a_word_on_the_layout_of_a_file_without_decoder_is_refused(state, write, tmp_path):
    with pytest.raises(CheckpointError, match="holds no decoder"):
        convert(write(state("v1")), tmp_path / "out", num_heads=2, legacy_layout=True)


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


@pytest.mark.parametrize(
    ("layout", "change", "told"),
    [
        ("v1", lambda s: s.pop("blocks.1.mlp.fc1.weight"), r"missing blocks\.1\.mlp\.fc1\.weight"),
        ("v1", lambda s: s.pop("cls_token"), "missing cls_token"),
        ("v1", lambda s: s.pop("fc_norm.bias"), r"missing fc_norm\.bias"),
        ("v2", lambda s: s.pop("model.blocks.2.ls1.gamma"), r"missing blocks\.2\.ls1\.gamma"),
        ("v1", lambda s: s.update(criterion=torch.ones(3)), "unexpected criterion"),
        (
            "v1",
            lambda s: s.update({"blocks.0.mlp.fc1.bias": torch.ones(5)}),
            r"misshapen blocks\.0\.mlp\.fc1\.bias \(5,\)",
        ),
        (
            "v1",
            lambda s: s.update({"cls_token": torch.ones(1, 1, 32, dtype=torch.int8)}),
            "not floating point cls_token",
        ),
        ("v1", lambda s: s.update(pos_embed=torch.ones(1, 12, 32)), "11 patches"),
        ("v1", lambda s: s.update(pos_embed=torch.ones(197, 32)), "misshapen pos_embed"),
        ("full", lambda s: s.pop("decoder_norm.weight"), r"missing decoder_norm\.weight"),
        ("full", lambda s: s.pop("decoder_embed.weight"), r"missing decoder_embed\.weight"),
        ("full", lambda s: [s.pop(k) for k in list(s) if k.startswith("patch_embed")], "not a released DOFA layout"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line_naming_its_keys(state, layout, change, told):
    source = state(layout)
    change(source)
    whole = partial(mae_from_released, num_heads=3, decoder_num_heads=2, legacy_layout=True)
    with pytest.raises(CheckpointError, match=told) as caught:
        (whole if layout == "full" else partial(from_released, num_heads=2))(source)
    one_line(caught)


def test_many_missing_keys_are_counted_not_listed(state):
    source = {k: v for k, v in state("v1").items() if not k.startswith("blocks.0.")}
    with pytest.raises(CheckpointError, match="and 8 more") as caught:
        from_released(source, num_heads=2)
    one_line(caught)


def test_an_unpublished_width_asks_for_the_heads(state):
    with pytest.raises(CheckpointError, match="width 32: pass num_heads"):
        from_released(state("v1"))
    with pytest.raises(CheckpointError, match="width 32: pass decoder_num_heads"):
        mae_from_released(state("full"), 3, legacy_layout=True)
    with pytest.raises(CheckpointError, match="num_heads is 5"):
        from_released(state("v1"), num_heads=5)


def resized(state_dict, width):
    """Shapes of the v1 layout at another width; zeros, so that it costs no memory."""

    def shape(key, old):
        if ("weight_generator" in key and ".fc_weight." not in key and ".fc_bias." not in key) or ".fclayer." in key:
            return old
        return [n // 32 * width if n in (32, 96, 128 if "mlp" in key else 32, 8192) else n for n in old]

    return {k: torch.zeros(1).expand(shape(k, v.shape)) for k, v in state_dict.items()}


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16)])
def test_published_widths_need_no_word_on_their_heads(state, monkeypatch, width, heads):
    monkeypatch.setattr(conversion, "fill", lambda *a: None)  # a meta model: only the sizes are asked for
    model = from_released(resized(state("v1"), width))
    assert (model.config.width, model.config.heads, model.config.patch) == (width, heads, 16)


def test_an_unknown_digest_warns_of_the_scrambled_file_and_is_kept(state, write, tmp_path):
    path = write(released_v1(state))
    with pytest.warns(UnverifiedWeightsWarning, match="March 2024.*scrambled"):
        report = convert(path, tmp_path / "out", num_heads=2)
    provenance = json.loads((tmp_path / "out" / "config.json").read_text())["provenance"]
    assert report.recognised is None
    assert provenance["source_sha256"] == report.sha256
    assert provenance["recognised_as"] is None


@pytest.mark.filterwarnings("error::dofa.model.convert.UnverifiedWeightsWarning")
def test_a_known_digest_is_recognised_without_a_warning(state, write, tmp_path, monkeypatch):
    path = write(released_v1(state))
    digest = conversion.file_sha256(path)
    monkeypatch.setitem(RELEASED, "dofa-v1-tiny", ReleasedFile("o/r", "f.pth", 2, digest))
    report = convert(path, tmp_path / "out", num_heads=2)
    assert report.recognised == "dofa-v1-tiny"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["provenance"]["recognised_as"] == "dofa-v1-tiny"
    assert config["provenance"]["source"] == path.name
    assert "projector.weight" in config["provenance"]["dropped_keys"]


def test_the_known_digests_are_those_of_the_authors_files():
    assert RELEASED["dofa-v1-base"].sha256.startswith("4720985e")
    assert RELEASED["dofa-v1-large"].sha256.startswith("ea9910bc")
    assert all(f.sha256 is None or re.fullmatch("[0-9a-f]{64}", f.sha256) for f in RELEASED.values())


def test_licence_and_attribution_travel_through_every_save(v1, tmp_path):
    save(v1, tmp_path / "a")
    again = load(tmp_path / "a")
    save(again, tmp_path / "b", provenance={"corpus": "mine", "steps": 3})
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["licence"] == "CC-BY-4.0"
    assert "arXiv 2403.15356" in config["attribution"]
    assert config["provenance"]["steps"] == 3
    assert config["provenance"]["dofa_version"] == dofa.__version__
    assert config["provenance"]["initialised_from"]["layout"] == "released v1"


class Foreign:
    """What a training script may have pickled beside its weights."""

    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda p: torch.save({"model": {}, "args": Foreign()}, p), "pickle with print in it, which could run code"),
        (
            lambda p: p.write_bytes(pickle.dumps({"a": Foreign()}, protocol=2)),
            "pickle with print in it, which could run code",
        ),
        (lambda p: p.write_text("<html>404</html>"), "no PyTorch file"),
        (lambda p: p.write_bytes(b""), "no PyTorch file"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:47"), "Git LFS pointer"),
        (lambda p: torch.save(torch.ones(3), p), "holds a Tensor, not a state dict"),
        (lambda p: torch.save({"weight_generator": {}, "fclayer": {}}, p), "weight_generator, fclayer are no tensors"),
        (lambda p: torch.save({"a": torch.ones(1)}, p), "not a released DOFA layout"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_one_line_and_runs_nothing(tmp_path, capsys, content, told):
    path = tmp_path / "weights.pth"
    content(path)
    with pytest.raises(CheckpointError, match=told) as caught:
        convert(path, tmp_path / "out")
    one_line(caught)
    assert "executed" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_truncated_file_is_one_line(state, write, tmp_path, name):
    path = write(state("v1"), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"truncated|damaged") as caught:
        convert(path, tmp_path / "out", num_heads=2)
    one_line(caught)


def test_a_missing_file_and_an_occupied_folder_are_one_line(state, write, tmp_path, v1):
    with pytest.raises(CheckpointError, match="no file"):
        convert(tmp_path / "nothing.pth", tmp_path / "out")
    save(v1, tmp_path / "full")
    with pytest.raises(CheckpointError, match="already holds a model"):
        convert(write(state("v1")), tmp_path / "full", num_heads=2)


@pytest.mark.filterwarnings("ignore::dofa.model.convert.UnverifiedWeightsWarning")
def test_the_report_says_every_key_and_merges_blocks(state, write, tmp_path, capsys):
    report = convert(write(released_v1(state)), tmp_path / "out", num_heads=2)
    report.print()
    *lines, last = capsys.readouterr().out.splitlines()
    assert "kept     blocks.*.attn.qkv.weight (2)" in lines
    assert lines[0].startswith("dropped  mask_token  of the decoder")
    assert sum(int(m[1]) if (m := re.search(r" \((\d+)\)", line)) else 1 for line in lines) == len(report.fates)
    assert report.sha256 in last
