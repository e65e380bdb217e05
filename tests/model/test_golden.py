"""Parity with the reference implementation, on the numbers of ../shared/golden."""

import pytest
import torch
from safetensors.torch import load_file

from dofa.model.config import DecoderConfig, EncoderConfig
from dofa.model.encoder import DOFA
from dofa.model.mae import MaskedAutoencoder, patch_targets

TOLERANCE = 1e-5  # × max |reference|
LEGACY = {"patch_offset": 1, "polarisation_embedding": False}


def assert_close(value: torch.Tensor, reference: torch.Tensor) -> None:
    assert value.shape == reference.shape
    worst = float((value - reference).abs().max() / reference.abs().max())
    assert worst <= TOLERANCE, f"{worst:.1e} of max |reference|"


@pytest.fixture(scope="module")
def v1(golden):
    model = DOFA(EncoderConfig(32, 2, 2, 16, sar_wavelength=3.75, num_classes=5, **LEGACY)).eval()
    state = load_file(golden / "dofa_v1_small_state.safetensors")
    # TorchGeo's copies carry no final norm; nothing here applies it.
    own_norm = {k: v for k, v in model.state_dict().items() if k.startswith("norm.")}
    model.load_state_dict({**state, **own_norm})
    return model, load_file(golden / "dofa_v1_small_io.safetensors")


def v1_image(io, sensor):
    if sensor == "enmap":
        return torch.randn(1, 202, 224, 224, generator=torch.Generator().manual_seed(11))
    return io[f"{sensor}.image"].float()


@torch.no_grad()
@pytest.mark.parametrize("sensor", ["s1", "s2", "gf", "rgb", "odd5", "enmap"])
def test_v1_embedding_pooled_vector_and_logits_equal_torchgeo(v1, sensor):
    model, io = v1
    image, wavelengths = v1_image(io, sensor), io[f"{sensor}.wavelengths_um"]
    assert_close(model.patch_embed(image, model.encode_bands(wavelengths))[0], io[f"{sensor}.embedded"])
    assert_close(
        model.forward_head(model.forward_features(image, wavelengths), pre_logits=True), io[f"{sensor}.pooled"]
    )
    if sensor != "enmap":
        assert_close(model(image, wavelengths), io[f"{sensor}.logits"])


@torch.no_grad()
@pytest.mark.parametrize("sensor", ["s1", "s2", "gf", "rgb", "odd5", "enmap"])
def test_v1_specialised_equals_torchgeo_too(v1, sensor):
    model, io = v1
    static = model.specialize(io[f"{sensor}.wavelengths_um"])
    tokens = static.forward_features(v1_image(io, sensor))
    assert_close(static.forward_head(tokens, pre_logits=True), io[f"{sensor}.pooled"])


@torch.no_grad()
@pytest.mark.parametrize("sensor", ["rgb", "s2"])
def test_v2_block_tokens_equal_the_published_layout(golden, sensor):
    config = EncoderConfig(32, 3, 2, 14, layer_scale=1e-5, pooled_norm=False, sar_wavelength=5.405, **LEGACY)
    model = DOFA(config).eval()
    state = load_file(golden / "dofa_v2_small_state.safetensors")
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if not k.startswith("norm.")})
    io = load_file(golden / "dofa_v2_small_io.safetensors")
    levels = model.forward_intermediates(
        io[f"{sensor}.image"].float(), io[f"{sensor}.wavelengths_um"], output_fmt="NLC", return_prefix_tokens=True
    )
    for i, (patches, cls) in enumerate(levels):
        assert_close(torch.cat([cls, patches], dim=1), io[f"{sensor}.block{i}_tokens"])


def load_mae(golden, legacy_layout):
    encoder = DOFA(EncoderConfig(48, 3, 3, 8, image_size=32, pooled_norm=False, **LEGACY))
    mae = MaskedAutoencoder(encoder, DecoderConfig(32, 2, 2), legacy_layout=legacy_layout).eval()
    state = load_file(golden / "mae_small_state.safetensors")
    projector = {k.removeprefix("projector."): state.pop(k) for k in list(state) if k.startswith("projector.")}
    for unused in ("weight", "bias"):
        del state[f"decoder_pred.weight_generator.fc_bias.{unused}"]
    ours = ("decoder_", "mask_token")
    mae.load_state_dict({k if k.startswith(ours) else f"encoder.{k}": v for k, v in state.items()})
    return mae, projector, load_file(golden / "mae_small_io.safetensors")


def chosen(rows, index):
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))


@torch.no_grad()
@pytest.mark.parametrize("sensor", ["s1", "s2", "gf"])
def test_pretraining_graph_latent_mask_prediction_and_loss(golden, sensor):
    mae, _, io = load_mae(golden, legacy_layout=False)
    out = mae(io[f"{sensor}.image"].float(), io[f"{sensor}.wavelengths_um"], io[f"{sensor}.noise"])
    assert torch.equal(out["mask"], io[f"{sensor}.mask"])
    assert_close(out["latent"], io[f"{sensor}.latent"])
    assert_close(out["pred"], chosen(io[f"{sensor}.pred"], out["masked"]))
    assert_close(out["loss"][None], io[f"{sensor}.loss_cpp"])


@torch.no_grad()
@pytest.mark.parametrize("sensor", ["s1", "s2", "gf"])
def test_legacy_layout_reads_predictions_as_the_published_target_was_laid_out(golden, sensor):
    mae, _, io = load_mae(golden, legacy_layout=True)
    image, noise = io[f"{sensor}.image"].float(), io[f"{sensor}.noise"]
    wavelengths, bands = io[f"{sensor}.wavelengths_um"], io[f"{sensor}.image"].shape[1]
    out = mae(image, wavelengths, noise)
    assert_close(out["loss"][None], io[f"{sensor}.loss_legacy_ppc"])

    # The published decoder wrote its vector against a target in (p, p, C) order: value (y, x, c) belongs to band c.
    expected, targets = image.clone(), patch_targets(image, 8, out["masked"])
    for b in range(len(image)):
        for m, index in enumerate(out["masked"][b].tolist()):
            row, column = divmod(index, 4)
            pixels_yxc = io[f"{sensor}.pred"][b, index].reshape(8, 8, bands)
            pixels = pixels_yxc.permute(2, 0, 1) * targets.std[b, m] + targets.mean[b, m]
            expected[b, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = pixels
    assert_close(mae.reconstruct(image, wavelengths, noise), expected)
    plain, _, _ = load_mae(golden, legacy_layout=False)
    assert not torch.allclose(plain.reconstruct(image, wavelengths, noise), expected, atol=0.1)


@torch.no_grad()
@pytest.mark.parametrize("sensor", ["s1", "s2", "gf"])
def test_unmasked_penultimate_pass_on_the_three_band_proxy(golden, sensor):
    mae, projector, io = load_mae(golden, legacy_layout=False)
    image, wavelengths = io[f"{sensor}.image"].float(), io[f"{sensor}.wavelengths_um"]
    if sensor == "s1":
        image = torch.cat([image, torch.zeros_like(image[:, :1])], dim=1)
        wavelengths = wavelengths[:1].expand(3)
    [(patches, cls)] = mae.encoder.forward_intermediates(
        image[:, :3], wavelengths[:3], indices=[-2], output_fmt="NLC", return_prefix_tokens=True
    )
    pooled = torch.cat([cls, patches], dim=1).mean(dim=1)
    projected = torch.nn.functional.linear(pooled, projector["weight"], projector["bias"])
    assert_close(projected, io[f"{sensor}.student_projected"])
