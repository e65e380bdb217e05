"""Wave encoding, patch cutting, and kernels generated from wavelengths."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dofa.model.patch_embed import (
    DynamicPatchEmbedding,
    DynamicPatchPrediction,
    encode_wavelengths,
    pad_to_patch,
    patchify,
    unpatchify,
)


def test_wave_encoding_is_sines_then_cosines_of_nanometres():
    wavelengths = [0.42, 0.665, 2.19]
    encoded = encode_wavelengths(torch.tensor(wavelengths), 8)
    for row, wavelength in zip(encoded, wavelengths, strict=True):
        angles = [1000 * wavelength * 10000 ** (-2 * i / 8) for i in range(4)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert row.tolist() == pytest.approx(expected, abs=1e-4)


def test_wave_encoding_stays_float32_whatever_it_is_given():
    wavelengths = torch.linspace(0.4, 2.5, 202)
    assert torch.equal(encode_wavelengths(wavelengths.double()), encode_wavelengths(wavelengths))
    assert encode_wavelengths(wavelengths.double()).dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    bands=st.integers(1, 5),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_unpatchify_undoes_patchify_and_chosen_patches_are_those_of_all(batch, bands, rows, columns, patch, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, bands, rows * patch, columns * patch, generator=generator)
    patches = patchify(image, patch)
    assert torch.equal(unpatchify(patches, patch, (rows, columns)), image)
    index = torch.rand(batch, rows * columns, generator=generator).argsort(1)[:, : max(1, rows * columns // 2)]
    picked = patchify(image, patch, index)
    for b in range(batch):
        assert torch.equal(picked[b], patches[b, index[b]])


def test_a_patch_holds_its_bands_one_after_another():
    image = torch.arange(2 * 4 * 6, dtype=torch.float32).reshape(1, 2, 4, 6)
    last = patchify(image, 2)[0, -1].reshape(2, 2, 2)
    assert torch.equal(last, image[0, :, 2:4, 4:6])


def test_padding_repeats_the_edge_and_leaves_whole_patches_alone():
    image = torch.randn(1, 2, 5, 8)
    padded = pad_to_patch(image, 4)
    assert padded.shape == (1, 2, 8, 8)
    assert torch.equal(padded[:, :, :5], image)
    assert torch.equal(padded[:, :, 7], image[:, :, 4])
    assert pad_to_patch(padded, 4) is padded


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("bands", [2, 9])
def test_the_matrix_product_equals_the_convolution_with_the_generated_kernel(bands, offset):
    torch.manual_seed(bands)
    embedding = DynamicPatchEmbedding(width=24, patch=8, offset=offset)
    image, waves = torch.randn(2, bands, 32, 48), encode_wavelengths(torch.linspace(0.4, 2.4, bands))
    tokens, _ = embedding(image, waves)
    weight, bias, _ = embedding.kernel(waves)
    convolved = F.conv2d(image, weight.T.reshape(24, bands, 8, 8), bias, stride=8, padding=offset)
    expected = convolved.flatten(2).transpose(1, 2)
    assert (tokens - expected).abs().max() <= 1e-5 * expected.abs().max()

    keep = torch.tensor([[3, 0, 23], [1, 7, 6]])
    kept, _ = embedding(image, waves, keep)
    chosen = torch.stack([expected[b, keep[b]] for b in range(2)])
    assert (kept - chosen).abs().max() <= 1e-5 * chosen.abs().max()


@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("bands", [1, 2, 9, 202])
def test_a_new_model_starts_with_tokens_of_a_sane_size(bands, patch):
    torch.manual_seed(0)
    embedding = DynamicPatchEmbedding(width=192, patch=patch)
    # Real bands are correlated, 202 of them strongly: the hard case is one picture in every band.
    image = torch.randn(2, 1, 48, 48).expand(2, bands, 48, 48)
    with torch.no_grad():
        tokens, _ = embedding(image, encode_wavelengths(torch.linspace(0.42, 2.45, bands)))
    assert 0.05 < tokens.std() < 20


def test_the_order_of_bands_is_the_order_of_their_kernels():
    torch.manual_seed(0)
    prediction = DynamicPatchPrediction(width=16, patch=4)
    tokens, waves = torch.randn(2, 3, 16), encode_wavelengths(torch.tensor([0.45, 0.56, 0.66, 0.84]))
    order = [2, 0, 3, 1]
    plain = prediction(tokens, waves).reshape(2, 3, 4, 16)
    permuted = prediction(tokens, waves[order]).reshape(2, 3, 4, 16)
    assert (permuted - plain[:, :, order]).abs().max() <= 1e-5 * plain.abs().max()


def test_the_generator_works_in_float32_under_autocast():
    torch.manual_seed(0)
    embedding = DynamicPatchEmbedding(width=32, patch=8)
    waves = encode_wavelengths(torch.tensor([0.49, 0.56, 0.665]))
    with torch.autocast("cpu", torch.bfloat16):
        under, _, _ = embedding.kernel(waves)
    plain, _, _ = embedding.kernel(waves)
    assert under.dtype == torch.float32
    assert np.array_equal(under.detach().numpy(), plain.detach().numpy())


@pytest.mark.parametrize("bands", [3, 202])
def test_an_embedding_under_autocast_generates_its_kernel_in_bf16_and_trains_in_float32(bands):
    torch.manual_seed(0)
    embedding = DynamicPatchEmbedding(width=48, patch=8)
    image, waves = torch.randn(2, bands, 32, 32), encode_wavelengths(torch.linspace(0.42, 2.4, bands))
    results = []
    for enabled in (True, False):
        embedding.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            tokens, corrected = embedding(image, waves)
            made = embedding.weight_generator(corrected)[0]
        assert made.dtype == (torch.bfloat16 if enabled else torch.float32)
        assert corrected.dtype == torch.float32
        tokens.float().square().mean().backward()
        results.append((tokens.detach().float(), embedding.weight_generator.fc_weight.weight.grad.clone()))
    (half, gradient), (exact, expected) = results
    assert gradient.dtype == torch.float32
    assert (half - exact).norm() <= 1e-2 * exact.norm()
    assert (gradient - expected).norm() <= 2e-2 * expected.norm()
