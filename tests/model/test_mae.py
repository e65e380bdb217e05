"""Masked image modelling: the sparse computation equals the dense one, and nothing leaks through the mask."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import dofa.model.mae as mae_module
from dofa.errors import ConfigError, DataError
from dofa.model.config import DecoderConfig, EncoderConfig, MaskConfig
from dofa.model.encoder import DOFA
from dofa.model.mae import MaskedAutoencoder, masked_error, patch_targets, split_patches, visible_mean_floor
from dofa.sensors import Band

SAR = [Band(p, None, kind="sar", polarisation=p) for p in ("VV", "VH")]
PATCH = 8


def build(seed: int = 0, ratio: float = 0.75, legacy_layout: bool = False, **changes) -> MaskedAutoencoder:
    torch.manual_seed(seed)
    config = {"width": 48, "depth": 2, "heads": 3, "patch": PATCH, "image_size": 32, **changes}
    mae = MaskedAutoencoder(DOFA(EncoderConfig(**config)), DecoderConfig(32, 2, 4), MaskConfig(ratio), legacy_layout)
    with torch.no_grad():  # predictions of a size that matters in the loss
        mae.decoder_pred.weight_generator.fc_weight.weight.mul_(5)
    return mae


def spectrum(bands: int) -> list[float]:
    return torch.linspace(0.42, 2.4, bands).tolist()


def worst(value: torch.Tensor, reference: torch.Tensor) -> float:
    assert value.shape == reference.shape
    return float((value - reference).detach().abs().max() / reference.detach().abs().max())


def dense(mae: MaskedAutoencoder, image: torch.Tensor, wavelengths, noise: torch.Tensor) -> dict[str, torch.Tensor]:
    """The published composition: embed every patch by a convolution, decode in place, predict all, mask the loss."""
    encoder, (batch, bands, height, width) = mae.encoder, image.shape
    rows, columns = height // PATCH, width // PATCH
    patches = rows * columns
    weight, bias, waves = encoder.patch_embed.kernel(encoder.encode_bands(wavelengths))
    kernel = weight.T.reshape(-1, bands, PATCH, PATCH)
    grid = F.conv2d(image, kernel, bias, stride=PATCH, padding=encoder.patch_embed.offset)
    tokens = grid.flatten(2).transpose(1, 2) + encoder.pos_embed[:, 1:]
    order = noise.argsort(1)
    visible = int(patches * (1 - mae.mask_config.ratio))
    rank = order.argsort(1)
    mask = (rank >= visible).float()
    seen = torch.stack([tokens[b, order[b, :visible]] for b in range(batch)])
    x = torch.cat([(encoder.cls_token + encoder.pos_embed[:, :1]).expand(batch, -1, -1), seen], 1)
    for block in encoder.blocks:
        x = block(x)
    latent = encoder.norm(x)
    y = mae.decoder_embed(latent)
    filled = torch.cat([y[:, 1:], mae.mask_token.expand(batch, patches - visible, -1)], 1)
    in_place = torch.stack([filled[b, rank[b]] for b in range(batch)])
    y = torch.cat([y[:, :1], in_place], 1) + mae.decoder_pos_embed
    for block in mae.decoder_blocks:
        y = block(y)
    out, _ = mae.decoder_pred.weight_generator(waves)
    pred = torch.einsum("bnd,ckd->bnck", mae.decoder_norm(y)[:, 1:], out.reshape(bands, PATCH**2, -1))
    target = image.reshape(batch, bands, rows, PATCH, columns, PATCH).permute(0, 2, 4, 1, 3, 5)
    target = target.reshape(batch, patches, bands, PATCH**2)
    mean, variance = target.mean((2, 3), keepdim=True), target.flatten(2).var(2, unbiased=True)[..., None, None]
    error = ((pred - (target - mean) / (variance + 1e-6).sqrt()) ** 2).mean((2, 3))
    return {"loss": (error * mask).sum() / mask.sum(), "pred": pred.flatten(2), "mask": mask, "latent": latent}


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("bands", [2, 9, 202])
def test_sparse_computation_equals_the_dense_one_in_loss_prediction_and_gradients(bands, offset):
    mae = build(patch_offset=offset, layer_scale=0.3 if offset else None)
    image, noise = torch.randn(3, bands, 32, 32), torch.rand(3, 16)
    results = []
    for compute in (lambda: mae(image, spectrum(bands), noise), lambda: dense(mae, image, spectrum(bands), noise)):
        mae.zero_grad()
        out = compute()
        out["loss"].backward()
        results.append((out, {n: p.grad.clone() for n, p in mae.named_parameters() if p.grad is not None}))
    (sparse, gradients), (reference, expected) = results
    assert torch.equal(sparse["mask"], reference["mask"])
    assert worst(sparse["latent"], reference["latent"]) <= 1e-5
    chosen = reference["pred"].gather(1, sparse["masked"][..., None].expand(-1, -1, bands * PATCH**2))
    assert worst(sparse["pred"], chosen) <= 1e-5
    assert worst(sparse["loss"], reference["loss"]) <= 1e-5
    assert worst(sparse["patch_loss"].mean(), reference["loss"]) <= 1e-5
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        difference = float((gradient - expected[name]).abs().max())
        assert difference <= 1e-5 * float(expected[name].abs().max()), name


@pytest.mark.parametrize("at_once", [1, 1000, 10**9], ids=["one patch", "a few", "all"])
@pytest.mark.parametrize("masked_pixels", [False, True])
def test_the_error_in_pieces_has_the_value_and_gradient_of_the_plain_expression(monkeypatch, at_once, masked_pixels):
    monkeypatch.setattr(mae_module, "VALUES_AT_ONCE", at_once)
    torch.manual_seed(0)
    image, index = torch.randn(3, 5, 32, 32), torch.stack([torch.randperm(16)[:12] for _ in range(3)])
    valid = torch.rand(3, 32, 32) > 0.6 if masked_pixels else None
    if valid is not None:
        valid[0, :8] = False  # whole patches that do not count
    results = []
    for plain in (False, True):
        pred = torch.randn(3, 12, 5 * PATCH**2, generator=torch.Generator().manual_seed(1)).requires_grad_()
        if plain:
            target = patch_targets(image, PATCH, index, valid)
            square = (pred.reshape(target.normalised.shape) - target.normalised) ** 2
            weight = torch.ones(3, 12, 1, PATCH**2) if target.weight is None else target.weight
            pixels = weight.sum((2, 3))
            error = (square * weight).sum((2, 3)) / (5 * pixels.clamp(min=1))
            counted = (pixels > 0).float()
            loss = error.sum() / counted.sum()
        else:
            loss, error, counted = masked_error(pred, image, PATCH, index, valid)
        (3 * loss).backward()
        results.append((loss, error, counted, pred.grad))
    for ours, expected in zip(*results, strict=True):
        assert worst(ours, expected) <= 1e-6


def test_the_errors_gradient_keeps_the_precision_of_the_predictions():
    torch.manual_seed(0)
    image, index = torch.randn(2, 3, 32, 32), torch.arange(12).expand(2, -1)
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        pred = torch.randn(2, 12, 3 * PATCH**2, generator=torch.Generator().manual_seed(1)).bfloat16().to(dtype)
        loss, _, _ = masked_error(pred.requires_grad_(), image, PATCH, index)
        loss.backward()
        assert loss.dtype == torch.float32
        assert pred.grad.dtype == dtype
        gradients.append(pred.grad.float())
    assert (gradients[0] - gradients[1]).norm() <= 5e-3 * gradients[1].norm()


@pytest.mark.parametrize("offset", [0, 1])
def test_a_masked_pixel_reaches_a_visible_token_only_at_patch_offset_1(offset):
    mae = build(patch_offset=offset).eval()
    image, noise = torch.randn(2, 3, 32, 32, requires_grad=True), torch.rand(2, 16)
    out = mae(image, spectrum(3), noise)
    (out["latent"] * torch.randn_like(out["latent"])).sum().backward()
    hidden = out["mask"].reshape(2, 1, 4, 4).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3).bool()
    reached = image.grad.masked_select(hidden).abs().max()
    changed = torch.where(hidden, 9.0, image.detach())
    again = mae(changed, spectrum(3), noise)["latent"]
    if offset == 0:
        assert reached == 0
        assert torch.equal(again, out["latent"])
        assert torch.equal(mae(changed, spectrum(3), noise)["pred"], out["pred"])
    else:
        assert reached > 0
        assert not torch.allclose(again, out["latent"], atol=1e-3)


@pytest.mark.parametrize("wavelengths", [[0.49, 0.665], SAR], ids=["optical", "sar"])
@pytest.mark.parametrize("num_classes", [0, 4])
def test_every_trainable_parameter_gets_a_gradient_in_every_batch(wavelengths, num_classes):
    mae = build(num_classes=num_classes, layer_scale=0.1)
    mae(torch.randn(2, 2, 32, 32), wavelengths)["loss"].backward()
    trainable = {n: p for n, p in mae.named_parameters() if p.requires_grad}
    assert [n for n, p in trainable.items() if p.grad is None] == []
    frozen = {n.removesuffix(".weight").removesuffix(".bias") for n, p in mae.named_parameters() if not p.requires_grad}
    unreached = {"encoder.fc_norm"} | ({"encoder.head"} if num_classes else set())
    assert frozen == {"encoder.pos_embed", "decoder_pos_embed"} | unreached
    # Beside the table of polarisations, which optical bands touch without moving, nothing is dead.
    dead = {n for n, p in trainable.items() if not p.grad.any()}
    assert dead == ({"encoder.polarisation_embed"} if wavelengths is not SAR else set())
    table = mae.encoder.polarisation_embed.grad
    assert (table[:2].abs().sum(1) > 0).tolist() == [wavelengths is SAR] * 2
    assert not table[2:].any()


def test_vv_and_vh_are_predicted_alike_without_learned_vectors_and_apart_with_them():
    mae = build().eval()
    image, noise = torch.randn(1, 2, 32, 32), torch.rand(1, 16)
    with torch.no_grad():
        same = mae(image, SAR, noise)["pred"].reshape(1, 12, 2, -1)
        assert worst(same[:, :, 0], same[:, :, 1]) <= 1e-5
        mae.encoder.polarisation_embed[1] += 0.5
        apart = mae(image, SAR, noise)["pred"].reshape(1, 12, 2, -1)
    assert worst(apart[:, :, 0], apart[:, :, 1]) > 1e-2


def test_gradient_checkpointing_changes_no_loss_and_no_gradient():
    image, noise, results = torch.randn(2, 3, 32, 32), torch.rand(2, 16), []
    for checkpointing in (False, True):
        mae = build()
        mae.encoder.set_grad_checkpointing(checkpointing)
        loss = mae(image, spectrum(3), noise)["loss"]
        loss.backward()
        results.append((loss, [p.grad for p in mae.parameters() if p.grad is not None]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@settings(max_examples=20, deadline=None)
@given(height=st.integers(9, 60), width=st.integers(9, 60), bands=st.integers(1, 4), ratio=st.floats(0.1, 0.9))
def test_any_size_is_reconstructed_with_visible_patches_as_given(height, width, bands, ratio):
    mae = build(ratio=ratio).eval()
    image = torch.randn(2, bands, height, width)
    rows, columns = -(-height // PATCH), -(-width // PATCH)
    noise = torch.rand(2, rows * columns)
    picture = mae.reconstruct(image, spectrum(bands), noise)
    assert picture.shape == image.shape
    out = mae(image, spectrum(bands), noise)
    hidden = out["mask"].reshape(2, 1, rows, columns).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3).bool()
    hidden = hidden[..., :height, :width].expand_as(image)
    assert torch.equal(picture[~hidden], image[~hidden])
    assert not torch.allclose(picture[hidden], image[hidden], atol=1e-2)


@torch.no_grad()
def test_reconstruction_brings_predictions_back_with_the_patchs_own_mean_and_deviation():
    mae = build().eval()
    image, noise = 3 + 2 * torch.randn(1, 3, 32, 32), torch.rand(1, 16)
    out, picture = mae(image, spectrum(3), noise), mae.reconstruct(image, spectrum(3), noise)
    for pred, index in zip(out["pred"][0], out["masked"][0].tolist(), strict=True):
        rows, columns = (slice(PATCH * i, PATCH * i + PATCH) for i in divmod(index, 4))
        true = image[0, :, rows, columns]
        expected = pred.reshape(3, PATCH, PATCH) * (true.var(unbiased=True) + 1e-6).sqrt() + true.mean()
        assert torch.allclose(picture[0, :, rows, columns], expected, atol=1e-5)


# What does not count


@pytest.mark.parametrize("fill", [7.0, float("nan")])
def test_invalid_pixels_change_neither_loss_nor_gradients(fill):
    valid = torch.rand(2, 32, 32) > 0.3
    valid[0, :16] = False  # whole patches without any
    base, noise, results = torch.randn(2, 3, 32, 32), torch.rand(2, 16), []
    for value in (0.0, fill):
        mae = build()
        out = mae(torch.where(valid[:, None], base, value), spectrum(3), noise, valid)
        out["loss"].backward()
        results.append((out, [p.grad for p in mae.parameters() if p.grad is not None]))
    (plain, gradients), (other, again) = results
    assert torch.isfinite(plain["loss"])
    assert torch.equal(plain["loss"], other["loss"])
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))


@torch.no_grad()
def test_loss_with_a_mask_is_the_mean_over_valid_pixels_of_patches_that_have_any():
    mae, image, noise = build().eval(), torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    valid = torch.rand(2, 32, 32) > 0.5
    valid[:, 8:16, 8:16] = False
    image = torch.where(valid[:, None], image, 0.0)
    out = mae(image, spectrum(3), noise, valid)
    losses = []
    for b in range(2):
        for pred, index, own in zip(out["pred"][b], out["masked"][b].tolist(), out["patch_loss"][b], strict=True):
            rows, columns = (slice(PATCH * i, PATCH * i + PATCH) for i in divmod(index, 4))
            counts = valid[b, rows, columns]
            if not counts.any():
                assert own == 0
                continue
            true = image[b, :, rows, columns][:, counts]
            normal = (true - true.mean()) / (true.var(unbiased=True) + 1e-6).sqrt()
            losses.append(((pred.reshape(3, PATCH, PATCH)[:, counts] - normal) ** 2).mean())
            assert torch.allclose(own, losses[-1], atol=1e-5)
    assert torch.allclose(out["loss"], torch.stack(losses).mean(), atol=1e-5)
    everything = mae(image, spectrum(3), noise, torch.ones_like(valid))
    assert torch.allclose(everything["loss"], mae(image, spectrum(3), noise)["loss"], atol=1e-6)


@torch.no_grad()
def test_pixels_added_to_fill_the_last_patches_do_not_count():
    mae, image = build().eval(), torch.randn(1, 2, 28, 19)
    noise = torch.rand(1, 12)
    padded = F.pad(image, (0, 5, 0, 4), mode="replicate")
    inside = mae(image, spectrum(2), noise)
    assert inside["loss"] != mae(padded, spectrum(2), noise)["loss"]  # the same tokens, but here the padding counts
    for pred, index, own in zip(inside["pred"][0], inside["masked"][0].tolist(), inside["patch_loss"][0], strict=True):
        rows, columns = (slice(PATCH * i, PATCH * i + PATCH) for i in divmod(index, 3))
        true = image[0, :, rows, columns]  # a slice ends with the image
        normal = (true - true.mean()) / (true.var(unbiased=True) + 1e-6).sqrt()
        error = (pred.reshape(2, PATCH, PATCH)[:, : true.shape[1], : true.shape[2]] - normal) ** 2
        assert torch.allclose(own, error.mean(), atol=1e-5)


@torch.no_grad()
def test_an_image_without_a_valid_pixel_has_no_loss_and_no_gradient_but_is_told_apart():
    mae, valid = build(), torch.ones(2, 32, 32, dtype=torch.bool)
    valid[1] = False
    image, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    out = mae(image, spectrum(3), noise, valid)
    alone = mae(image[:1], spectrum(3), noise[:1])
    assert torch.allclose(out["loss"], alone["loss"], atol=1e-6)
    assert out["image_loss"].isnan().tolist() == [False, True]
    assert visible_mean_floor(image, noise, PATCH, valid=valid).isnan().tolist() == [False, True]
    nothing = mae(image, spectrum(3), noise, torch.zeros_like(valid))
    assert nothing["loss"] == 0


# Masks and the floor


@settings(max_examples=60, deadline=None)
@given(patches=st.integers(2, 400), percent=st.integers(5, 95))
def test_masks_hide_the_stated_share_and_split_all_patches(patches, percent):
    keep, masked, mask = split_patches(torch.rand(3, patches), percent / 100)
    assert keep.shape[1] == max(1, patches * (100 - percent) // 100)
    assert torch.equal(torch.cat([keep, masked], 1).sort(1).values, torch.arange(patches).expand(3, -1))
    assert torch.equal(mask.sum(1), torch.full((3,), float(masked.shape[1])))
    assert mask.gather(1, keep).sum() == 0


def test_images_of_a_batch_are_masked_each_on_its_own():
    torch.manual_seed(0)
    mask = build()(torch.randn(4, 2, 32, 32), spectrum(2))["mask"]
    assert len(mask.unique(dim=0)) == 4
    assert mask.sum(1).tolist() == [12.0] * 4


@torch.no_grad()
def test_the_floor_is_the_error_of_the_mean_spectrum_of_visible_normalised_patches():
    torch.manual_seed(0)
    image = torch.randn(3, 5, 32, 48) + 2 * torch.randn(3, 5, 1, 1)
    noise = torch.rand(3, 24)
    floor = visible_mean_floor(image, noise, PATCH)
    for b in range(3):
        normal = []
        for index in range(24):
            rows, columns = (slice(PATCH * i, PATCH * i + PATCH) for i in divmod(index, 6))
            cell = image[b, :, rows, columns]
            normal.append((cell - cell.mean()) / (cell.var(unbiased=True) + 1e-6).sqrt())
        order = noise[b].argsort().tolist()
        spectrum_of_visible = torch.stack([normal[i].mean((1, 2)) for i in order[:6]]).mean(0)
        errors = [((normal[i] - spectrum_of_visible[:, None, None]) ** 2).mean() for i in order[6:]]
        assert torch.allclose(floor[b], torch.stack(errors).mean(), atol=1e-5)
    everything = torch.ones(3, 32, 48, dtype=torch.bool)
    assert torch.allclose(visible_mean_floor(image, noise, PATCH, valid=everything), floor, atol=1e-5)


@torch.no_grad()
def test_the_floor_is_low_where_bands_differ_and_one_where_they_do_not():
    torch.manual_seed(0)
    noise = torch.rand(2, 64)
    flat = torch.randn(2, 1, 64, 64)
    assert visible_mean_floor(flat, noise, PATCH).tolist() == pytest.approx([1.0, 1.0], abs=0.02)
    levels = torch.linspace(-5, 5, 6)[None, :, None, None] + 0.1 * torch.randn(2, 6, 64, 64)
    assert visible_mean_floor(levels, noise, PATCH).max() < 0.01


def test_a_small_model_learns_to_beat_the_floor_on_one_image():
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    image = torch.stack([torch.sin(x / 4), torch.sin(y / 4), torch.cos(x / 4)])[None].repeat(8, 1, 1, 1)
    mae = build(polarisation_embedding=False)
    optimiser = torch.optim.AdamW([p for p in mae.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(60):
        loss = mae(image, [0.49, 0.56, 0.665])["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    mae.eval()
    noise = torch.rand(8, 16)
    with torch.no_grad():
        reached = mae(image, [0.49, 0.56, 0.665], noise)["image_loss"]
    assert (reached < 0.5 * visible_mean_floor(image, noise, PATCH)).all()


# Bad input


@pytest.mark.parametrize(
    ("image", "kwargs", "says"),
    [
        (torch.randn(1, 2, 8, 8), {}, "one patch"),
        (torch.randn(1, 2, 32, 32), {"noise": torch.rand(1, 15)}, r"noise has shape \(1, 15\)"),
        (torch.randn(1, 2, 32, 32), {"valid": torch.ones(1, 31, 32, dtype=torch.bool)}, "valid has shape"),
        (torch.full((1, 2, 32, 32), float("nan")), {}, "NaN or infinite"),
        (torch.randn(1, 3, 32, 32), {}, "3 bands but 2 wavelengths"),
    ],
)
def test_input_that_does_not_fit_is_refused_in_one_line(image, kwargs, says):
    with pytest.raises(DataError, match=says) as caught:
        build()(image, spectrum(2), **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 75])
def test_a_mask_ratio_is_a_share(ratio):
    with pytest.raises(ConfigError, match=r"mask\.ratio"):
        MaskConfig(ratio)


def test_names_without_weight_decay_are_parameters():
    mae = build()
    assert mae.no_weight_decay() <= {n for n, _ in mae.named_parameters()}
    assert {"mask_token", "encoder.cls_token"} <= mae.no_weight_decay()
