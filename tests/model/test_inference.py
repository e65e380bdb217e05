"""Inference is cut into pieces, kept in bf16 and compiled without changing what comes out."""

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dofa.errors import ConfigError
from dofa.model import patch_embed, vit
from dofa.model.compiled import compiled
from dofa.model.config import EncoderConfig
from dofa.model.encoder import DOFA

BANDS = [0.49, 0.56, 0.665, 0.842, 1.61]


def build(**changes) -> DOFA:
    torch.manual_seed(0)
    config = {"width": 48, "depth": 3, "heads": 3, "patch": 8, "image_size": 32, **changes}
    model = DOFA(EncoderConfig(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def worst(value: torch.Tensor, reference: torch.Tensor) -> float:
    assert value.shape == reference.shape
    return float((value - reference).detach().abs().max() / reference.detach().abs().max())


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 9),
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    offset=st.integers(0, 1),
    tokens=st.integers(1, 60),
    cells=st.integers(1, 5 * 40 * 40 * 9),
    bands=st.integers(1, 40 * 40 * 9),
)
def test_pieces_of_any_size_give_what_the_whole_gives(count, height, width, offset, tokens, cells, bands):
    model, image = build(patch_offset=offset), torch.randn(count, 5, height, width)
    with torch.enable_grad():  # nothing is cut where gradients are wanted
        whole = model.forward_features(image, BANDS)
        levels = model.forward_intermediates(image, BANDS, [2, 0], norm=True, return_prefix_tokens=True)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(vit, "HIDDEN_AT_ONCE", 4 * 48 * tokens)
        patch.setattr(patch_embed, "CELLS_AT_ONCE", cells)
        patch.setattr(patch_embed, "BANDS_AT_ONCE", bands)
        assert worst(model.forward_features(image, BANDS), whole) <= 1e-5
        cut = model.forward_intermediates(image, BANDS, [2, 0], norm=True, return_prefix_tokens=True)
    for (ours, cls), (theirs, prefix) in zip(cut, levels, strict=True):
        assert worst(ours, theirs) <= 1e-5
        assert worst(cls, prefix) <= 1e-5


def test_a_large_batch_runs_in_pieces_and_a_training_batch_does_not(monkeypatch):
    model, sizes = build(), []
    block = model.blocks[0].forward
    monkeypatch.setattr(model.blocks[0], "forward", lambda x: sizes.append(len(x)) or block(x))
    monkeypatch.setattr(vit, "HIDDEN_AT_ONCE", 4 * 48 * 17 * 4)
    with torch.no_grad():
        model(torch.randn(11, 5, 32, 32), BANDS)
    model(torch.randn(11, 5, 32, 32), BANDS)
    assert sizes == [6, 5, 11]


@torch.inference_mode()
@pytest.mark.parametrize("offset", [0, 1])
def test_matrices_kept_in_bf16_give_what_autocast_gives_to_the_last_bit(offset):
    model, image = build(patch_offset=offset, layer_scale=0.5), torch.randn(3, 5, 30, 32)
    plain, low = model.specialize(BANDS, 32), model.specialize(BANDS, 32, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain.forward_features(image)
        pooled = plain(image)
        assert torch.equal(low.forward_features(image), expected)
    assert torch.equal(low.forward_features(image), expected)  # with or without autocast around
    assert torch.equal(low(image), pooled)
    assert expected.dtype == torch.float32
    assert 1e-4 < worst(expected, plain.forward_features(image)) < 3e-2
    kept = {name for name, p in low.named_parameters() if p.dtype == torch.bfloat16}
    assert "patch_embed.proj.weight" in kept
    assert "blocks.2.mlp.fc2.weight" in kept
    assert not any("norm" in name or "pos" in name or "cls" in name for name in kept)
    assert not any(p.requires_grad for p in low.parameters())


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_blocks_give_what_eager_ones_give_for_any_number_of_images():
    model = build(depth=1)
    low = model.specialize(BANDS, 32, torch.bfloat16)
    fast = model.specialize(BANDS, 32, torch.bfloat16)
    assert compiled(fast) is fast
    torch._dynamo.utils.counters.clear()
    with torch.inference_mode():
        for count in (5, 3, 8):
            image = torch.randn(count, 5, 32, 32)
            assert worst(fast.forward_features(image), low.forward_features(image)) <= 2e-2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # the last, smaller batch compiles nothing
    with torch.inference_mode():
        [ours], [theirs] = (m.forward_intermediates(image, [0]) for m in (fast, low))
        assert worst(ours, theirs) <= 2e-2


def test_threads_that_come_at_once_compile_once():
    torch._dynamo.reset()
    fast = compiled(build(depth=1).specialize(BANDS, 32, torch.bfloat16))
    torch._dynamo.utils.counters.clear()
    image, both = torch.randn(4, 5, 32, 32), threading.Barrier(2)

    @torch.inference_mode()
    def run():
        both.wait()
        return fast.forward_features(image)

    with ThreadPoolExecutor(2) as pool:
        first, second = (f.result() for f in [pool.submit(run), pool.submit(run)])
    assert torch.equal(first, second)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_machine_without_a_compiler_is_told_in_one_line(tmp_path):
    code = (
        "import torch\nfrom dofa.errors import ConfigError\nfrom dofa.model.compiled import compiled\n"
        "from dofa.model.config import EncoderConfig\nfrom dofa.model.encoder import DOFA\n"
        "try:\n    compiled(DOFA(EncoderConfig(width=48, depth=1, heads=3, patch=8, image_size=32)))\n"
        "except ConfigError as error:\n    print(error)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "CC")}
    environment |= {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    [line] = answer.stdout.splitlines()
    assert line.startswith("torch.compile fails on this machine (InvalidCxxCompiler: No working C++ compiler found")
    assert line.endswith("install a C++ compiler (g++), or leave out --compile")


def test_blocks_that_do_not_compile_are_told_in_one_line(monkeypatch):
    def fails(graph, inputs):
        raise ValueError("no such\ninstruction")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: f if f is torch.sin else real(f, backend=fails))
    broken = compiled(build())
    with pytest.raises(
        ConfigError, match=r"torch\.compile fails on this machine \(.*no such instruction\).*leave out --compile"
    ):
        broken(torch.randn(2, 5, 32, 32), BANDS)
