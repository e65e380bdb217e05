"""Frozen teachers: every layout gives the features of a plain forward written here, every other network is refused."""

import json
import math
import pickle
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import dofa
from dofa.errors import CheckpointError, ConfigError, DataError, DofaError
from dofa.model.checkpoint import create, save
from dofa.model.teacher import TeacherWarning, load_teacher

WIDTH, DEPTH, HEADS, PATCH, GRID = 48, 3, 4, 4, 5
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAMPLES = Path(dofa.__file__).parent / "samples"
pytestmark = pytest.mark.filterwarnings("ignore::dofa.model.teacher.TeacherWarning")


def vit_state(layer_scale=False, width=WIDTH, depth=DEPTH, patch=PATCH, grid=GRID, seed=0):
    """Random weights of an ordinary ViT under timm's names, every one of them felt in the output."""
    draw = torch.Generator().manual_seed(seed)

    def rand(*shape, scale=0.2):
        return scale * torch.randn(shape, generator=draw)

    state = {
        "cls_token": rand(1, 1, width),
        "pos_embed": rand(1, 1 + grid**2, width),
        "patch_embed.proj.weight": rand(width, 3, patch, patch),
        "patch_embed.proj.bias": rand(width),
    }
    for i in range(depth):
        block = {
            "norm1.weight": 1 + rand(width),
            "norm1.bias": rand(width),
            "attn.qkv.weight": rand(3 * width, width),
            "attn.qkv.bias": rand(3 * width),
            "attn.proj.weight": rand(width, width),
            "attn.proj.bias": rand(width),
            "norm2.weight": 1 + rand(width),
            "norm2.bias": rand(width),
            "mlp.fc1.weight": rand(4 * width, width),
            "mlp.fc1.bias": rand(4 * width),
            "mlp.fc2.weight": rand(width, 4 * width),
            "mlp.fc2.bias": rand(width),
        }
        if layer_scale:
            block |= {"ls1.gamma": 0.5 + rand(width), "ls2.gamma": 0.5 + rand(width)}
        state |= {f"blocks.{i}.{key}": value for key, value in block.items()}
    return state | {"norm.weight": 1 + rand(width), "norm.bias": rand(width)}


@torch.no_grad()
def plain_forward(state, x, heads):
    """Block outputs of a ViT on a normalised image, from nothing but its weights and the definition."""
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    rows, columns = x.shape[-2:]
    table = state["pos_embed"]
    side = math.isqrt(table.shape[1] - 1)
    places = table[:, 1:].reshape(1, side, side, width).permute(0, 3, 1, 2)
    if (rows, columns) != (side, side):
        places = F.interpolate(places, size=(rows, columns), mode="bicubic", antialias=True)
    x = (x + places).flatten(2).transpose(1, 2)
    x = torch.cat([(state["cls_token"] + table[:, :1]).expand(len(x), -1, -1), x], dim=1)
    outputs = []
    for i in range(1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))):
        w = {key.removeprefix(f"blocks.{i}."): value for key, value in state.items() if key.startswith(f"blocks.{i}.")}
        y = F.layer_norm(x, (width,), w["norm1.weight"], w["norm1.bias"], eps=1e-6)
        query, key, value = (y @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]).split(width, dim=-1)
        mixed = []
        for part in range(heads):
            own = slice(part * width // heads, (part + 1) * width // heads)
            score = query[..., own] @ key[..., own].transpose(1, 2) / math.sqrt(width / heads)
            mixed.append(score.softmax(-1) @ value[..., own])
        y = torch.cat(mixed, dim=-1) @ w["attn.proj.weight"].T + w["attn.proj.bias"]
        x = x + y * w.get("ls1.gamma", 1.0)
        y = F.layer_norm(x, (width,), w["norm2.weight"], w["norm2.bias"], eps=1e-6)
        y = y @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        x = x + (y @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]) * w.get("ls2.gamma", 1.0)
        outputs.append(x)
    return outputs


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def timm(folder, state):
    extra = {"head.weight": torch.randn(10, WIDTH), "head.bias": torch.randn(10)}
    save_file(state | extra, folder / "timm.safetensors")
    return folder / "timm.safetensors", state


def timm_without_norm(folder, state):
    """As fine-tuned on the mean of the tokens: `fc_norm` behind the pool, no `norm`."""
    kept = {key: value for key, value in state.items() if not key.startswith("norm.")}
    extra = {"fc_norm.weight": torch.randn(WIDTH), "fc_norm.bias": torch.randn(WIDTH)}
    save_file(kept | extra, folder / "fc_norm.safetensors")
    return folder / "fc_norm.safetensors", state


def timm_no_embed_class(folder, state):
    table = state["pos_embed"].clone()
    table[:, 0] = 0
    save_file(state | {"pos_embed": table[:, 1:].contiguous()}, folder / "no_embed_class.safetensors")
    return folder / "no_embed_class.safetensors", state | {"pos_embed": table}


def timm_half(folder, state):
    halves = {key: value.half() for key, value in state.items()}
    save_file(halves, folder / "half.safetensors")
    return folder / "half.safetensors", {key: value.float() for key, value in halves.items()}


def dinov2(folder, state):
    torch.save(state | {"mask_token": torch.randn(1, WIDTH)}, folder / "dinov2_vits.pth")
    return folder / "dinov2_vits.pth", state


def dinov2_chunked(folder, state):
    """Blocks in two chunks, numbered through, as the official training code keeps them."""
    chunks = {0: 0, 1: 0, 2: 1}
    names = {key: key.split(".") for key in state}
    moved = {
        ".".join([parts[0], str(chunks[int(parts[1])]), *parts[1:]]) if parts[0] == "blocks" else key: state[key]
        for key, parts in names.items()
    }
    torch.save(moved | {"mask_token": torch.randn(1, WIDTH)}, folder / "chunked.pth")
    return folder / "chunked.pth", state


def mae(folder, state):
    decoder = {"mask_token": torch.randn(1, 1, 8), "decoder_embed.weight": torch.randn(8, WIDTH)}
    decoder |= {"decoder_pos_embed": torch.randn(1, 26, 8), "decoder_blocks.0.norm1.weight": torch.randn(8)}
    torch.save({"model": state | decoder, "epoch": 3}, folder / "mae.pth")
    return folder / "mae.pth", state


def wrapped(folder, state):
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, folder / "wrapped.pt")
    return folder / "wrapped.pt", state


LAYOUTS = [timm, timm_without_norm, timm_no_embed_class, timm_half, dinov2, dinov2_chunked, mae, wrapped]


@pytest.mark.parametrize("layer_scale", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_features_of_every_layout_equal_a_plain_forward_of_its_weights(tmp_path, layout, layer_scale):
    path, state = layout(tmp_path, vit_state(layer_scale))
    teacher = load_teacher(path, heads=HEADS)
    rgb = torch.rand(2, 3, GRID * PATCH, GRID * PATCH)
    x = (rgb - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    expected = plain_forward(state, x, HEADS)
    for found, wanted in zip(teacher(rgb, range(DEPTH)), expected, strict=True):
        assert relative(found, wanted) < 2e-6
    assert torch.equal(teacher(rgb, [-1, 0])[0], teacher(rgb, [DEPTH - 1])[0])
    assert relative(teacher(x, [1], normalised=True)[0], expected[1]) < 2e-6


@pytest.fixture
def source(tmp_path):
    path, state = timm(tmp_path, vit_state())
    return path, state


@pytest.fixture
def teacher(source):
    return load_teacher(source[0], heads=HEADS)


def test_what_is_dropped_is_told(tmp_path):
    notes = " | ".join(load_teacher(mae(tmp_path, vit_state())[0], heads=HEADS).notes)
    assert "dropped 3 tensors: the decoder of its pretraining" in notes
    assert "dropped 1 tensors: of its pretraining" in notes
    assert "dropped epoch" in notes
    assert "created norm as identity" in load_teacher(timm_without_norm(tmp_path, vit_state())[0], heads=HEADS).notes[1]


def test_nothing_behind_the_deepest_wanted_block_is_computed(teacher):
    ran = []
    for i, block in enumerate(teacher.vit.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    levels = teacher(torch.rand(1, 3, 20, 20), [1, 0])
    assert ran == [0, 1]
    assert relative(levels[0], levels[1]) > 0.1


def test_it_stays_frozen_in_eval_mode_and_out_of_autocast(teacher):
    student = torch.nn.ModuleDict({"teacher": teacher}).train()
    student.requires_grad_(False)
    assert not teacher.training
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    rgb = torch.rand(1, 3, 20, 20, requires_grad=True)
    (plain,) = teacher(rgb, [-1])
    assert not plain.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        (same,) = teacher(rgb, [-1])
    assert torch.equal(plain, same)


def test_a_bf16_teacher_normalises_in_float32_and_answers_in_bf16(teacher):
    rgb = torch.rand(2, 3, 20, 20)
    (plain,) = teacher(rgb, [1])
    teacher.to(torch.bfloat16)
    assert teacher.mean.dtype == torch.float32
    assert teacher.mean.tolist() == pytest.approx(IMAGENET_MEAN, rel=1e-6)
    (half,) = teacher(rgb, [1])
    assert half.dtype == torch.bfloat16
    assert relative(half.float(), plain) < 0.03
    (back,) = teacher.to(torch.float32)(rgb, [1])
    assert relative(back, plain) < 0.03


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    """One teacher for all examples that hypothesis draws."""
    return load_teacher(timm(tmp_path_factory.mktemp("lasting"), vit_state())[0], heads=HEADS)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 8), columns=st.integers(1, 8), height=st.integers(6, 40), width=st.integers(6, 40))
def test_tokens_lie_on_the_students_grid_whatever_the_image(lasting, rows, columns, height, width):
    rgb = torch.rand(1, 3, height, width)
    resized = F.interpolate(rgb, size=(rows * PATCH, columns * PATCH), mode="bilinear", antialias=True)
    (found,) = lasting(rgb, [0], grid=(rows, columns))
    assert found.shape == (1, 1 + rows * columns, WIDTH)
    assert torch.allclose(found, lasting(resized, [0])[0], atol=1e-5)


def test_positions_fixed_at_an_image_size_are_those_of_a_call_at_that_size(source, teacher):
    fixed = load_teacher(source[0], heads=HEADS, image_size=12)
    assert fixed.config.image_size == 12
    assert fixed.vit.pos_embed.shape == (1, 10, WIDTH)
    rgb = torch.rand(1, 3, 12, 12)
    assert torch.allclose(fixed(rgb, [-1])[0], teacher(rgb, [-1])[0], atol=1e-6)


def hub_folder(folder, state, **config):
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_positions_are_carried_to_a_grid_once(source, teacher, monkeypatch):
    calls = []
    real = dofa.model.teacher.interpolate_positions
    monkeypatch.setattr("dofa.model.teacher.interpolate_positions", lambda *a: calls.append(a) or real(*a))
    monkeypatch.setattr("dofa.model.vit.interpolate_positions", lambda *a: calls.append(a) or real(*a))
    images = [torch.rand(2, 3, 64, 64), torch.rand(2, 3, 48, 64)]
    fresh = [load_teacher(source[0], heads=HEADS)(image, [-1])[0] for image in images]
    calls.clear()
    for _ in range(3):
        for image, expected in zip(images, fresh, strict=True):
            assert torch.equal(teacher(image, [-1])[0], expected)
    assert len(calls) == 2
    half = teacher.to(torch.bfloat16)(images[0], [-1])[0]
    assert half.dtype == torch.bfloat16
    assert len(calls) == 3
    assert torch.equal(half, load_teacher(source[0], heads=HEADS).to(torch.bfloat16)(images[0], [-1])[0])


def test_a_folder_s_config_says_heads_normalisation_and_licence(tmp_path):
    told = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3], "license": "apache-2.0"}
    state = vit_state()
    folder = hub_folder(tmp_path / "vit", state, pretrained_cfg=told, model_args={"num_heads": HEADS})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teachers = [load_teacher(folder), load_teacher(folder / "model.safetensors")]
    rgb = torch.rand(1, 3, 20, 20)
    x = (rgb - torch.tensor(told["mean"])[:, None, None]) / torch.tensor(told["std"])[:, None, None]
    for teacher in teachers:
        assert relative(teacher(rgb, [-1])[0], plain_forward(state, x, HEADS)[-1]) < 2e-6
        assert teacher.licence == "apache-2.0"
        assert len(teacher.sha256) == 64
    other = load_teacher(folder, mean=[0.1, 0.1, 0.1], heads=2)
    assert (other.mean.tolist(), other.config.heads) == (pytest.approx([0.1] * 3), 2)
    assert other.std.tolist() == pytest.approx(told["std"])


def test_an_assumed_normalisation_is_a_warning_and_a_known_one_is_none(tmp_path):
    plain = timm(tmp_path, vit_state())[0]
    with pytest.warns(TeacherWarning, match=r"timm\.safetensors: mean and std are ImageNet's, assumed"):
        load_teacher(plain, heads=HEADS)
    augreg = plain.rename(tmp_path / "vit_base_patch16_224.augreg_in21k.safetensors")
    layered = timm(tmp_path, vit_state(layer_scale=True))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_teacher(augreg, heads=HEADS).std.tolist() == [0.5, 0.5, 0.5]
        for known in (layered, dinov2(tmp_path, vit_state())[0], mae(tmp_path, vit_state())[0]):
            assert load_teacher(known, heads=HEADS).mean.tolist() == pytest.approx(IMAGENET_MEAN)
        said = load_teacher(augreg, heads=HEADS, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert said.notes[-1] == "mean and std: the caller's"


@pytest.mark.parametrize(("width", "heads"), [(128, 2), (1280, 16)])
def test_heads_are_64_channels_wide_but_for_the_huge_model(tmp_path, width, heads):
    save_file(vit_state(width=width, depth=1), tmp_path / "vit.safetensors")
    assert load_teacher(tmp_path / "vit.safetensors").config.heads == heads


def without(key):
    return lambda s: {k: v for k, v in s.items() if k != key}


def adding(key, *shape):
    return lambda s: s | {key: torch.zeros(shape)}


REFUSED = {
    "registers of DINOv2": (adding("register_tokens", 1, 4, WIDTH), "register_tokens belongs to register tokens"),
    "registers of timm": (adding("reg_token", 1, 4, WIDTH), "reg_token belongs to register tokens"),
    "distilled": (adding("dist_token", 1, 1, WIDTH), "dist_token belongs to a distillation token"),
    "CLIP": (adding("norm_pre.weight", WIDTH), r"norm_pre\.weight belongs to a norm before the blocks"),
    "qk-norm": (adding("blocks.1.attn.q_norm.weight", 12), "normalised queries and keys"),
    "SwiGLU": (adding("blocks.0.mlp.w12.weight", 256, WIDTH), "SwiGLU"),
    "packed SwiGLU": (lambda s: s | {"blocks.0.mlp.fc1.weight": torch.zeros(256, WIDTH)}, "256 hidden channels"),
    "BEiT": (adding("blocks.0.gamma_1", WIDTH), "BEiT"),
    "unknown key": (adding("blocks.0.attn.gate.weight", 3), r"unexpected blocks\.0\.attn\.gate\.weight"),
    "unknown key outside": (adding("surprise", 3), "unexpected surprise"),
    "missing key": (without("blocks.1.attn.qkv.bias"), r"missing blocks\.1\.attn\.qkv\.bias"),
    "missing CLS": (without("cls_token"), "has no cls_token: not an ordinary ViT with a CLS token"),
    "misshapen": (lambda s: s | {"norm.weight": torch.ones(7)}, r"misshapen norm\.weight \(7,\) instead of \(48,\)"),
    "oblong positions": (lambda s: s | {"pos_embed": torch.zeros(1, 13, WIDTH)}, "13 rows, which is no square"),
    "four bands": (lambda s: s | {"patch_embed.proj.weight": torch.zeros(WIDTH, 4, 4, 4)}, "embeds 4 bands"),
    "integers": (
        lambda s: s | {"norm.weight": torch.ones(WIDTH, dtype=torch.int8)},
        r"not floating point norm\.weight",
    ),
    "two of a kind": (lambda s: s | {"blocks.0.1.norm1.bias": torch.zeros(WIDTH)}, "both mean"),
    "DOFA": (adding("patch_embed.weight_generator.weight_tokens", 128, 128), "is a DOFA model"),
    "transformers": (
        lambda s: {"embeddings.patch_embeddings.projection.weight": torch.zeros(WIDTH, 3, 4, 4)},
        "the layout of transformers: take the same weights from timm",
    ),
    "a language model": (lambda s: {"embed.weight": torch.zeros(9, 9)}, r"has no patch_embed\.proj\.weight"),
}


def refusal(source, **settings):
    with pytest.raises(DofaError) as caught:
        load_teacher(source, **settings)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


@pytest.mark.parametrize("case", REFUSED)
def test_another_network_is_refused_in_one_line_that_names_why(tmp_path, case):
    change, told = REFUSED[case]
    save_file(change(vit_state()), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=told) as caught:
        load_teacher(tmp_path / "other.safetensors", heads=HEADS)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("other.safetensors") == 1


class Harm:
    def __reduce__(self):
        return (print, ("run",))


def test_files_that_cannot_be_trusted_or_read_are_refused_in_one_line(tmp_path, source, capsys):
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps({"model": Harm()}, protocol=2))
    assert "which could run code and is not read" in refusal(evil)
    torch.save({"model": Harm()}, evil)
    assert "which could run code and is not read" in refusal(evil)
    assert capsys.readouterr().out == ""
    short = tmp_path / "short.safetensors"
    short.write_bytes(source[0].read_bytes()[:-1000])
    assert "no safetensors file, or truncated" in refusal(short)
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "Git LFS pointer" in refusal(tmp_path / "pointer.pth")
    assert "no teacher" in refusal(tmp_path / "absent.safetensors")
    assert "no teacher weights/absent.pth" in refusal("weights/absent.pth")
    (tmp_path / "empty").mkdir()
    assert "config.json is missing" in refusal(tmp_path / "empty")
    folder = hub_folder(tmp_path / "vit", vit_state())
    (folder / "config.json").write_text("{")
    assert "config.json is no JSON" in refusal(folder)
    assert "holds a DOFA model" in refusal(save(create("tiny", depth=1), tmp_path / "dofa"))


def test_settings_that_do_not_fit_are_refused_in_one_line(source):
    path = source[0]
    assert "width 48 is no multiple of 64: say heads" in refusal(path)
    assert "5 heads do not divide the width 48" in refusal(path, heads=5)
    assert "image_size 18 is not a multiple of patch 4" in refusal(path, heads=HEADS, image_size=18)
    assert "mean is [0.5]; three numbers" in refusal(path, heads=HEADS, mean=[0.5], std=[1, 1, 1])
    assert "std is [1, 0, 1]" in refusal(path, heads=HEADS, mean=[0, 0, 0], std=[1, 0, 1])


def test_images_it_cannot_see_are_refused(teacher):
    with pytest.raises(DataError, match=r"\(B, 3, H, W\)"):
        teacher(torch.rand(1, 4, 20, 20), [0])
    with pytest.raises(DataError, match="smaller than a patch"):
        teacher(torch.rand(1, 3, 3, 20), [0])
    with pytest.raises(DataError, match="NaN"):
        teacher(torch.full((1, 3, 20, 20), torch.nan), [0])
    with pytest.raises(ConfigError, match=r"3 \(0 to 2\)"):
        teacher(torch.rand(1, 3, 20, 20), [3])


@pytest.fixture
def real_picture():
    """(2, 3, 224, 182) of an aerial photograph, in [0, 1]."""
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(SAMPLES / "rgb-aerial" / "houses.tif") as file:
        pixels = torch.from_numpy(file.read([1, 2, 3])).float() / 255
    return torch.stack([pixels[:, :224, :182], pixels[:, -224:, -182:]])


@pytest.mark.slow
def test_the_real_teacher_s_features_equal_a_plain_float32_forward_of_the_same_weights(real_teacher, real_picture):
    teacher, state = load_teacher(real_teacher), load_file(real_teacher)
    x = (real_picture - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    found = teacher(real_picture, range(12))
    for mine, plain in zip(found, plain_forward(state, x, 6), strict=True):
        assert relative(mine, plain) < 1e-5
    bf16 = teacher.to(torch.bfloat16)(real_picture, range(5, 9))
    for half, full in zip(bf16, found[5:9], strict=True):
        assert relative(half.float(), full) < 0.05
