"""Files of the published names, shapes and sizes, of random numbers: from the hub to features by one command.

What random weights make of a scene means nothing; what is tested is that everything arrives: every tensor, the bands,
their values and their wavelengths.
"""

import gc
import hashlib
import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("rasterio")

from dofa import load, sensors
from dofa.cli import main
from dofa.model.checkpoint import load_mae
from dofa.model.config import DecoderConfig, EncoderConfig
from dofa.model.convert import UnverifiedWeightsWarning
from dofa.model.encoder import DOFA
from dofa.model.mae import MaskedAutoencoder
from dofa.model.released import RELEASED
from dofa.outputs.reading import open_features
from dofa.pixels import convert_units

from ..scene.conftest import write_tiff

SIZES = {"base": (768, 12, 12), "large": (1024, 24, 16)}
# Parameters of the v1 encoder without the final norm, as published.
PARAMETERS = {"base": 111_310_592, "large": 337_103_360}
pytestmark = pytest.mark.slow


def encoder_config(version, size):
    patch, scale = (16, None) if version == 1 else (14, 1e-5)
    sar = 3.75 if version == 1 else 5.405
    return EncoderConfig(
        *SIZES[size], patch, image_size=224, patch_offset=1, layer_scale=scale,
        pooled_norm=version == 1, sar_wavelength=sar, polarisation_embedding=False,
    )  # fmt: skip


def random_state(shapes, whole):
    """Random tensors of these shapes; unless `whole` they share their numbers, so that the file is small."""
    generator = torch.Generator().manual_seed(0)
    if whole:
        return {key: torch.randn(shape, generator=generator) * 0.02 for key, shape in shapes.items()}
    buffer = torch.randn(max(shape.numel() for shape in shapes.values()), generator=generator) * 0.02
    return {key: buffer[: shape.numel()].view(shape) for key, shape in shapes.items()}


def released_shapes(version, size, full=False):
    """Keys and shapes of a released file (reference/dofa.md, section 4), from a model without memory."""
    width = SIZES[size][0]
    with torch.device("meta"):
        encoder = DOFA(encoder_config(version, size))
        model = MaskedAutoencoder(encoder, DecoderConfig(512, 8, 16), legacy_layout=True) if full else encoder
        state = {k.removeprefix("encoder."): v.shape for k, v in model.state_dict().items() if "fc_norm" not in k}
    if version == 1:
        state |= {"projector.weight": torch.Size([width, width]), "projector.bias": torch.Size([width])}
        state["mask_token"] = torch.Size([1, 1, 512])
    else:
        state = {k if k.startswith("patch_embed.") else f"model.{k}": v for k, v in state.items()}
        state |= {"norm.weight": torch.Size([width]), "norm.bias": torch.Size([width])}
    if full:
        state["decoder_pred.weight_generator.fc_bias.weight"] = torch.Size([256, 128])
        state["decoder_pred.weight_generator.fc_bias.bias"] = torch.Size([256])
        state |= {f"teacher.blocks.{i}.mlp.fc1.weight": torch.Size([4 * width, width]) for i in range(12)}
    return state


@pytest.fixture
def published(server, monkeypatch, tmp_path):
    """Puts a file of random numbers on the hub under a released name; gives its tensors."""

    def put(name, version, size, full=False, whole=False):
        state = random_state(released_shapes(version, size, full), whole)
        content = io.BytesIO()
        torch.save({"model": state, "epoch": 120} if full else state, content)
        file = RELEASED[name]
        server.files[f"{file.repo}/{file.file}"] = content.getvalue()
        if file.sha256 is not None:
            digest = hashlib.sha256(content.getbuffer()).hexdigest()
            monkeypatch.setitem(RELEASED, name, replace(file, sha256=digest))
        return state

    yield put
    server.files.clear()
    shutil.rmtree(tmp_path, ignore_errors=True)  # gigabytes
    gc.collect()


def scene(path, side):
    names = sensors.get("sentinel-2-l2a").band_names
    image = (np.random.default_rng(0).gamma(4, 300, (12, side, side)) + 100).astype(np.uint16)
    known = sensors.get("sentinel-2-dofa9")
    reflectance = image[[names.index(b) for b in known.band_names]] / 1e4
    mapped = convert_units(reflectance, known.band_names, "reflectance", "uint8", "sentinel-2")
    return write_tiff(path, image, names=names), known.scaling.normalise_physical(mapped)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::dofa.model.convert.UnverifiedWeightsWarning")
@pytest.mark.parametrize(("version", "size"), [(1, "base"), (1, "large"), (2, "base"), (2, "large")])
def test_the_obvious_command_on_a_file_of_the_published_shapes(version, size, published, server, tmp_path, capsys):
    name, patch = f"dofa-v{version}-{size}", 16 if version == 1 else 14
    state = published(name, version, size, whole=(version, size) == (1, "base"))
    if version == 1:
        count = sum(v.numel() for k, v in state.items() if not k.startswith(("mask_", "projector", "norm.", "pos_")))
        assert abs(count - PARAMETERS[size]) < 400_000  # the table of positions is counted or not
    if (version, size) == (1, "base"):
        assert len(next(iter(server.files.values()))) == pytest.approx(447_669_164, rel=0.01)
    path, x = scene(tmp_path / "S2.tif", 4 * patch)
    out = tmp_path / "f.tif"
    words = ["embed", str(path), "--sensor", "sentinel-2-l2a", "--weights", name, "--out", str(out)]
    assert main([*words, "--dtype", "float32", "--precision", "float32"]) == 0
    assert "B04, B03, B02, B05, B06, B07, B08, B11, B12" in capsys.readouterr().err
    asked = len(server.requests)
    model = load(name)
    assert len(server.requests) == asked  # the second time nothing is asked
    found = open_features(out)
    assert np.allclose(found.meta["wavelength_um"], [0.665, 0.56, 0.49, 0.705, 0.74, 0.783, 0.842, 1.61, 2.19])
    last = f"blocks.{SIZES[size][1] - 1}.mlp.fc2.weight"
    assert torch.equal(model.state_dict()[last], state[last if version == 1 else f"model.{last}"])
    kernels = "patch_embed.weight_generator.fc_weight.weight"
    assert torch.equal(model.state_dict()[kernels], state[kernels])
    tokens = model.forward_features(torch.from_numpy(x)[None], "sentinel-2-dofa9")[0, 1:]
    expected = (model.fc_norm(tokens) if version == 1 else tokens).T.reshape(-1, 4, 4).numpy()
    from rasterio import open as open_tiff

    with open_tiff(out) as written:
        assert np.allclose(written.read(), expected, atol=1e-3 * np.abs(expected).max())


def test_the_full_training_file_has_a_name(published, server):
    state = published("dofa-v1-base-full", 1, "base", full=True)
    with pytest.warns(UnverifiedWeightsWarning):
        model = load_mae("dofa-v1-base-full")
    assert model.legacy_layout
    assert torch.equal(model.decoder_blocks[7].mlp.fc2.weight, state["decoder_blocks.7.mlp.fc2.weight"])
    del model
    encoder = load("dofa-v1-base-full")
    assert torch.equal(encoder.blocks[11].mlp.fc2.weight, state["blocks.11.mlp.fc2.weight"])
    assert sum("resolve" in path and method == "GET" for method, path, _ in server.requests) == 1
