"""A student that starts from a teacher: its blocks copied, its patch kernel imitated, the command that does both."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

import dofa
from dofa.cli import main
from dofa.errors import CheckpointError, ConfigError, DofaError
from dofa.model.checkpoint import load, save
from dofa.model.config import EncoderConfig
from dofa.model.encoder import DOFA, StaticViT
from dofa.model.prefit import RGB_UM, feature_difference, initialise, load_generator, patch_kernel, prefit, residual
from dofa.model.teacher import load_teacher
from dofa.model.vit import interpolate_positions

CONFIG = EncoderConfig(48, 3, 4, 4, image_size=24, layer_scale=1e-5)
pytestmark = pytest.mark.filterwarnings("ignore::dofa.model.teacher.TeacherWarning")
S2 = [0.4924, 0.5598, 0.6646, 0.8328, 1.6137, 2.2024]


def write_vit(path, config, seed=0):
    """A file of random weights of an ordinary ViT; returns the path."""
    torch.manual_seed(seed)
    vit = StaticViT(config, 3)
    for name, parameter in vit.named_parameters():
        if name.endswith(("gamma", "bias", "pos_embed")):
            torch.nn.init.normal_(parameter, std=0.3)
    save_file({k: v.contiguous() for k, v in vit.state_dict().items() if not k.startswith("fc_norm")}, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Teachers by what distinguishes them; the right one has positions for other images than the student."""
    folder = tmp_path_factory.mktemp("teachers")
    changes = {
        "right": {"image_size": 40},
        "narrow": {"width": 32},
        "deep": {"depth": 4},
        "shallow": {"depth": 2},
        "coarse": {"patch": 8},
        "plain": {"layer_scale": None},
    }
    as_dict = CONFIG.to_dict()
    return {
        name: write_vit(folder / f"{name}.safetensors", EncoderConfig.from_dict(as_dict | change))
        for name, change in changes.items()
    }


@pytest.fixture
def teacher(files):
    return load_teacher(files["right"], heads=4)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return DOFA(CONFIG).eval()


def levels(model, x, wavelengths):
    """All tokens of all blocks."""
    pairs = model.forward_intermediates(x, wavelengths, output_fmt="NLC", return_prefix_tokens=True)
    return [torch.cat([cls, patches], dim=1) for patches, cls in pairs]


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


@torch.no_grad()
@pytest.mark.parametrize("wavelengths", [RGB_UM, (0.6646, 0.5598, 0.4924), (0.65, 0.55, 0.45)])
def test_rgb_features_of_the_prefitted_student_are_the_teachers_at_every_block(model, teacher, wavelengths):
    initialise(model, teacher)
    fit = prefit(model, teacher, wavelengths)
    assert fit.before > 0.5
    assert fit.residual < 1e-6
    assert residual(model, teacher, wavelengths) == fit.residual
    x = torch.randn(2, 3, 24, 24)
    mine, theirs = levels(model, x, wavelengths), teacher(x, range(3), normalised=True)
    for own, wanted in zip(mine, theirs, strict=True):
        assert float((own - wanted).norm() / wanted.norm()) < 1e-4
    assert feature_difference(model, teacher, wavelengths) < 1e-4
    assert feature_difference(model, teacher, (0.7, 0.6, 0.5)) > 1e-2


@torch.no_grad()
def test_initialise_copies_everything_behind_the_patch_embedding_and_nothing_else(model, teacher):
    generator = {k: v.clone() for k, v in model.patch_embed.state_dict().items()}
    initialise(model, teacher)
    theirs = teacher.vit.state_dict()
    theirs["pos_embed"] = interpolate_positions(theirs["pos_embed"], (10, 10), (6, 6))
    for name, tensor in model.state_dict().items():
        if name in theirs and not name.startswith("patch_embed"):
            assert torch.equal(tensor, theirs[name]), name
    assert all(torch.equal(generator[k], v) for k, v in model.patch_embed.state_dict().items())
    assert model.pos_embed.shape == (1, 37, 48)
    before = teacher(torch.ones(1, 3, 24, 24), [2])[0]
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(teacher(torch.ones(1, 3, 24, 24), [2])[0], before)


def test_where_weights_come_from_travels_with_the_model(model, teacher, tmp_path):
    initialise(model, teacher)
    folder = save(model, tmp_path / "model", provenance={"corpus": "x"})
    record = json.loads((folder / "config.json").read_text())
    assert record["provenance"]["initialised_from"] == {
        "teacher": "right.safetensors",
        "teacher_sha256": teacher.sha256,
    }
    assert record["licence"] == ""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("narrow", "width 32 instead of 48"),
        ("deep", "depth 4 instead of 3"),
        ("shallow", "depth 2 instead of 3"),
        ("coarse", "patch 8 instead of 4"),
        ("plain", "no LayerScale"),
    ],
)
def test_a_teacher_of_another_shape_cannot_start_a_model_but_is_welcome_to_teach(files, model, name, told):
    before = model.blocks[0].attn.qkv.weight.clone()
    other = load_teacher(files[name], heads=4)
    with pytest.raises(CheckpointError, match=f"{name}.safetensors cannot start this model: it has .*{told}") as caught:
        initialise(model, other)
    assert "as a distillation teacher it is welcome" in one_line(caught)
    assert torch.equal(model.blocks[0].attn.qkv.weight, before)
    assert other(torch.rand(1, 3, 50, 30), [-1], grid=model.grid)[0].shape == (1, 37, other.config.width)


def test_another_number_of_heads_or_a_layer_scale_too_many_is_named(files, model):
    with pytest.raises(CheckpointError, match="heads 6 instead of 4"):
        initialise(model, load_teacher(files["right"], heads=6))
    plain = DOFA(EncoderConfig.from_dict(CONFIG.to_dict() | {"layer_scale": None}))
    with pytest.raises(CheckpointError, match=r"LayerScale \(build the model with layer_scale: 1e-5"):
        initialise(plain, load_teacher(files["right"], heads=4))


def test_a_kernel_that_cannot_be_imitated_is_refused_in_one_line(files, model, teacher):
    shifted = DOFA(EncoderConfig.from_dict(CONFIG.to_dict() | {"patch_offset": 1}))
    with pytest.raises(ConfigError, match="build the model with patch_offset: 0") as caught:
        prefit(shifted, teacher)
    one_line(caught)
    for name in ("narrow", "coarse"):
        with pytest.raises(CheckpointError, match="its kernel cannot be imitated; as a distillation teacher") as caught:
            prefit(model, load_teacher(files[name], heads=4))
        one_line(caught)
    for wrong in ((0.665, 0.56), (0.665, 0.56, 0.56), (0.665, 0.56, 0.49, 0.84)):
        with pytest.raises(ConfigError, match="three different wavelengths"):
            prefit(model, teacher, wrong)
    with pytest.raises(ConfigError, match="looks like nanometres"):
        prefit(model, teacher, (665, 560, 490))
    with pytest.raises(ConfigError, match="closed-form or iterative"):
        prefit(model, teacher, method="guess")


@torch.no_grad()
def test_the_closed_form_leaves_no_random_kernel_on_other_bands_and_the_teachers_bias_on_all(model, teacher):
    weight, bias = patch_kernel(model, teacher)
    prefit(model, teacher)
    made, made_bias, _ = model.patch_embed.kernel(model.encode_bands(S2))
    assert torch.allclose(made_bias, bias, atol=1e-6)
    # Every band's kernel is a mixture of the teacher's three and nothing besides.
    rows = made.reshape(6, -1)
    mixed = rows @ torch.linalg.pinv(weight) @ weight
    assert float((rows - mixed).norm() / rows.norm()) < 1e-4
    assert float(rows.norm()) > 0.1 * float(weight.norm())


@torch.no_grad()
@pytest.mark.parametrize(("name", "most"), [("sentinel-2-l2a", 0.05), ("naip-rgbn", 0.2), ("enmap-202", 0.5)])
def test_with_sensors_a_flat_spectrum_looks_grey_to_the_student_and_rgb_stays_exact(model, teacher, name, most):
    sensor = dofa.sensors.get(name)
    grey = patch_kernel(model, teacher)[0].sum(0)

    def off():
        flat = model.patch_embed.kernel(model.encode_bands(sensor))[0].reshape(len(sensor.bands), -1).sum(0)
        return float((flat - grey).norm() / grey.norm())

    prefit(model, teacher)
    without = off()
    assert prefit(model, teacher, sensors=[sensor, dofa.sensors.get("sentinel-1-grd")]).residual < 1e-6
    assert off() < min(most, without)


def test_the_closed_form_does_not_depend_on_the_random_last_map_it_replaces(model, teacher):
    prefit(model, teacher)
    first = model.patch_embed.weight_generator.fc_weight.weight.detach().clone()
    torch.nn.init.normal_(model.patch_embed.weight_generator.fc_weight.weight)
    prefit(model, teacher)
    assert torch.allclose(model.patch_embed.weight_generator.fc_weight.weight, first, atol=1e-6)


def test_the_iterative_fit_moves_the_whole_generator_to_the_teachers_kernel(model, teacher):
    initialise(model, teacher)
    hidden = model.patch_embed.fclayer.w1.weight.detach().clone()
    blocks = model.blocks[0].mlp.fc1.weight.detach().clone()
    fit = prefit(model, teacher, method="iterative")
    assert fit.before > 0.5
    assert fit.residual < 1e-3
    assert feature_difference(model, teacher) < 0.01
    assert not torch.equal(hidden, model.patch_embed.fclayer.w1.weight)
    assert torch.equal(blocks, model.blocks[0].mlp.fc1.weight)
    assert all(p.grad is None for p in model.parameters())


def test_a_student_trains_on_from_the_closed_form(model, teacher):
    """Replaced weights are still the model's parameters, and every one of them that matters gets a gradient."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    initialise(model, teacher)
    prefit(model, teacher)
    before = model.patch_embed.weight_generator.fc_weight.weight.detach().clone()
    model(torch.randn(2, 6, 24, 24), S2).square().sum().backward()
    optimiser.step()
    assert not torch.equal(before, model.patch_embed.weight_generator.fc_weight.weight)
    for name, parameter in model.patch_embed.named_parameters():
        assert float(parameter.grad.abs().sum()) > 0, name


def generator_file(model, path, **changes):
    parts = {part: getattr(model.patch_embed, part).state_dict() for part in ("weight_generator", "fclayer")}
    torch.save(parts | changes, path)
    return path


@torch.no_grad()
def test_the_authors_generator_file_loads_in_place_of_a_fit(model, tmp_path):
    torch.manual_seed(5)
    other = DOFA(CONFIG)
    load_generator(model, generator_file(other, tmp_path / "generator.pt"))
    for bands in (RGB_UM, S2):
        assert torch.equal(
            model.patch_embed.kernel(model.encode_bands(bands))[0],
            other.patch_embed.kernel(other.encode_bands(bands))[0],
        )


def test_a_generator_file_that_does_not_fit_is_refused_in_one_line(model, tmp_path):
    def refused(path, told):
        with pytest.raises(CheckpointError, match=told) as caught:
            load_generator(model, path)
        assert str(path) in one_line(caught)

    wide = generator_file(DOFA(EncoderConfig(64, 1, 4, 8)), tmp_path / "wide.pt")
    refused(wide, "generates kernels of width 64 and patch 8, the model has 48 and 4")
    fclayer = model.patch_embed.fclayer.state_dict()
    extra = generator_file(model, tmp_path / "extra.pt", fclayer=fclayer | {"w3.weight": torch.zeros(2)})
    refused(extra, r"unexpected fclayer\.w3\.weight")
    part = generator_file(model, tmp_path / "part.pt", fclayer={"w1.weight": fclayer["w1.weight"]})
    refused(part, r"missing fclayer\.w1\.bias")
    refused(generator_file(model, tmp_path / "more.pt", optimizer={}), "exactly the dicts weight_generator and fclayer")
    refused(generator_file(model, tmp_path / "odd.pt", fclayer={"w1.weight": 3}), r"fclayer\.w1\.weight are no tensors")
    torch.save({"weight_generator": one_line}, tmp_path / "evil.pt")
    refused(tmp_path / "evil.pt", "is not read")
    refused(tmp_path / "absent.pt", "no file")


@pytest.fixture(scope="module")
def tiny_teacher(tmp_path_factory):
    """A folder as timm's on the hub, of the size `tiny`."""
    config = EncoderConfig(192, 12, 3, 16, pooled_norm=False)
    folder = tmp_path_factory.mktemp("hub") / "vit_tiny"
    folder.mkdir()
    write_vit(folder / "model.safetensors", config)
    told = {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "license": "apache-2.0"}}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def command(*argv):
    return main(["prefit", *map(str, argv)])


def test_the_command_makes_a_model_whose_rgb_features_are_the_teachers(tiny_teacher, tmp_path, capsys):
    out = tmp_path / "start"
    assert command("--teacher", tiny_teacher, "--out", out, "--size", "tiny", "--image-size", 96) == 0
    said = capsys.readouterr().out
    assert float(re.search(r"relative residual (\S+),", said)[1]) < 1e-6
    assert float(re.search(r"difference of a block (\S+)", said)[1]) < 1e-4
    assert "mean and std: config.json" in said
    assert "licence: apache-2.0" in said
    model = dofa.load(out)
    assert model.config.image_size == 96
    assert model.origin.licence == "apache-2.0"
    assert model.origin.provenance["prefit"] == "closed-form"
    assert model.origin.provenance["initialised_from"]["teacher"] == "vit_tiny"
    assert feature_difference(model, load_teacher(tiny_teacher)) < 1e-4
    # Again, from the model itself, at other wavelengths.
    again = tmp_path / "again"
    settings = ("--init", out, "--wavelengths", 0.6646, 0.5598, 0.4924)
    assert command("--teacher", tiny_teacher, "--out", again, *settings) == 0
    assert residual(load(again), load_teacher(tiny_teacher), (0.6646, 0.5598, 0.4924)) < 1e-6


def test_the_command_says_when_a_generator_does_not_imitate_the_teacher(tiny_teacher, tmp_path, capsys):
    generator = generator_file(dofa.create("tiny"), tmp_path / "generator.pt")
    settings = ("--out", tmp_path / "start", "--size", "tiny", "--generator", generator)
    assert command("--teacher", tiny_teacher, *settings) == 0
    assert "this generator does not imitate this teacher" in capsys.readouterr().out
    assert dofa.load(tmp_path / "start").origin.provenance["prefit"] == "generator.pt"


def test_mistakes_on_the_command_line_are_one_line_and_leave_nothing(tiny_teacher, tmp_path, capsys):
    def refused(told, *argv):
        assert command("--out", tmp_path / "out", *argv) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()

    refused("say either --size", "--teacher", tiny_teacher)
    refused("say either --size", "--teacher", tiny_teacher, "--size", "tiny", "--init", "x")
    refused("did you mean tiny", "--teacher", tiny_teacher, "--size", "tinny")
    refused("no teacher /nowhere", "--teacher", "/nowhere", "--size", "tiny")
    refused("image_size 100 is not a multiple", "--teacher", tiny_teacher, "--size", "tiny", "--image-size", 100)
    refused("width 192 instead of 384", "--teacher", tiny_teacher, "--size", "small")
    refused(
        "leave out --method",
        "--teacher",
        tiny_teacher,
        "--size",
        "tiny",
        "--generator",
        "g.pt",
        "--method",
        "iterative",
    )
    refused("no file g.pt", "--teacher", tiny_teacher, "--size", "tiny", "--generator", "g.pt")
    shifted = save(dofa.create("tiny", patch_offset=1), tmp_path / "shifted")
    refused("patch_offset: 0", "--teacher", tiny_teacher, "--init", shifted)
    refused("has its own", "--teacher", tiny_teacher, "--init", shifted, "--image-size", 96)
    assert command("--teacher", tiny_teacher, "--out", shifted, "--size", "tiny") == 2
    assert "already holds a model" in capsys.readouterr().err


@pytest.mark.slow
def test_dofa_plus_small_starts_as_the_real_teacher(real_teacher, tmp_path, capsys):
    assert command("--teacher", real_teacher, "--out", tmp_path / "start", "--size", "plus-small") == 0
    said = capsys.readouterr().out
    assert float(re.search(r"relative residual (\S+),", said)[1]) < 1e-6
    assert float(re.search(r"difference of a block (\S+)", said)[1]) < 1e-4
    model, teacher = load(tmp_path / "start"), load_teacher(real_teacher)
    assert feature_difference(model, teacher) < 1e-4
    with pytest.raises(DofaError, match="width 384 instead of 768, heads 6 instead of 12"):
        initialise(dofa.create("plus-base", depth=12), teacher)
