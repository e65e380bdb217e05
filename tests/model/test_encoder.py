"""The encoder's contract: any bands, any size, wavelengths in every form, features, static copies."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dofa.errors import ConfigError, DataError
from dofa.model.config import PRESETS, EncoderConfig, TrainedSensor, preset
from dofa.model.encoder import DOFA, check_finite
from dofa.model.vit import interpolate_positions, sincos_positions
from dofa.sensors import Band, Sensor

S2 = Sensor(
    name="test-s2",
    platform="test-sentinel-2",
    gsd_m=10,
    bands=(
        Band("B02", 0.4924, aliases=("blue",)),
        Band("B03", 0.5598, aliases=("green",)),
        Band("B04", 0.6646, aliases=("red",)),
        Band("B08", 0.8328, aliases=("nir",)),
    ),
)
S1 = Sensor(
    name="test-s1",
    platform="test-sentinel-1",
    gsd_m=10,
    bands=(Band("VV", None, kind="sar", polarisation="VV"), Band("VH", None, kind="sar", polarisation="VH")),
)
RGB = [0.665, 0.56, 0.49]


def build(seed: int = 0, **changes) -> DOFA:
    torch.manual_seed(seed)
    config = {"width": 48, "depth": 2, "heads": 3, "patch": 8, "image_size": 32, **changes}
    model = DOFA(EncoderConfig(**config)).eval()
    with torch.no_grad():  # zero biases and unit norms would hide a forgotten one
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def worst(value: torch.Tensor, reference: torch.Tensor) -> float:
    assert value.shape == reference.shape
    return float((value - reference).detach().abs().max() / reference.detach().abs().max())


def spectrum(bands: int) -> list[float]:
    return torch.linspace(0.42, 2.4, bands).tolist()


@torch.no_grad()
@pytest.mark.parametrize("bands", [2, 4, 9, 202])
def test_permuting_bands_with_their_wavelengths_changes_nothing(bands):
    model, image, order = build(), torch.randn(2, bands, 32, 32), torch.randperm(bands).tolist()
    wavelengths = spectrum(bands)
    permuted = model.forward_features(image[:, order], [wavelengths[i] for i in order])
    assert worst(permuted, model.forward_features(image, wavelengths)) <= 1e-5
    if bands > 2:
        assert worst(model.forward_features(image[:, order], wavelengths), permuted) > 1e-2


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(8, 70),
    width=st.integers(8, 70),
    offset=st.integers(0, 1),
    fixed=st.booleans(),
    bands=st.integers(1, 5),
)
def test_specialised_model_equals_the_dynamic_one_at_any_size(height, width, offset, fixed, bands):
    model = build(patch_offset=offset, num_classes=3, layer_scale=0.5)
    static = model.specialize(spectrum(bands), image_size=(height, width) if fixed else None)
    image = torch.randn(2, bands, height, width)
    features = model.forward_features(image, spectrum(bands))
    assert features.shape == (2, 1 + -(-height // 8) * -(-width // 8), 48)
    assert worst(static.forward_features(image), features) <= 1e-5
    assert worst(static(image), model(image, spectrum(bands))) <= 1e-5
    maps = model.forward_intermediates(image, spectrum(bands), indices=[0, 1], norm=True)
    for ours, theirs in zip(static.forward_intermediates(image, indices=[0, 1], norm=True), maps, strict=True):
        assert worst(ours, theirs) <= 1e-5


def test_specialised_model_is_an_ordinary_vit_with_its_own_weights():
    model = build()
    static = model.specialize(S2, image_size=64)
    names = [name for name, _ in static.named_parameters()]
    assert not any("generator" in n or "fclayer" in n or "polarisation" in n for n in names)
    assert static.patch_embed["proj"].weight.shape == (48, 4, 8, 8)
    assert static.pos_embed.shape == (1, 65, 48)
    assert not static.pos_embed.requires_grad
    assert static.blocks[0].attn.qkv.weight.requires_grad
    image = torch.randn(1, 4, 64, 64)
    before = static(image)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(static(image), before)
    with pytest.raises(DataError, match="5 bands; this model was specialised for 4"):
        static(torch.randn(1, 5, 64, 64))


@torch.no_grad()
def test_a_batch_gives_what_its_images_give_alone():
    model, image = build(), torch.randn(5, 4, 24, 40)
    together = model(image, S2)
    alone = torch.cat([model(one[None], S2) for one in image])
    assert worst(together, alone) <= 1e-5


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_any_size_from_one_patch_on_is_taken_and_smaller_ones_are_refused(height, width):
    model, image = build(), torch.randn(1, 2, height, width)
    if min(height, width) < 8:
        with pytest.raises(DataError, match=f"{height} × {width} pixels is smaller than a patch of 8"):
            model(image, RGB[:2])
        return
    [level] = model.forward_intermediates(image, RGB[:2], indices=1)
    assert level.shape == (1, 48, -(-height // 8), -(-width // 8))
    assert torch.isfinite(level).all()


@torch.no_grad()
def test_an_image_that_fills_its_patches_half_is_padded_with_its_edge():
    model, image = build(), torch.randn(1, 3, 20, 27)
    padded = torch.nn.functional.pad(image, (0, 5, 0, 4), mode="replicate")
    assert torch.equal(model(image, RGB), model(padded, RGB))


def test_positions_are_kept_at_their_own_grid_and_interpolated_for_others():
    table = sincos_positions(32, (4, 4))
    assert table.shape == (1, 17, 32)
    assert torch.equal(table[0, 0], torch.zeros(32))
    assert interpolate_positions(table, (4, 4), (4, 4)) is table
    other = interpolate_positions(table, (4, 4), (3, 7))
    assert other.shape == (1, 22, 32)
    assert torch.equal(other[:, 0], table[:, 0])
    # The first half tells the row and the second the column, and so they still do afterwards.
    grid = other[0, 1:].reshape(3, 7, 32)
    assert torch.allclose(grid[:, 0, :16], grid[:, 6, :16], atol=1e-5)
    assert torch.allclose(grid[0, :, 16:], grid[2, :, 16:], atol=1e-5)
    assert not torch.allclose(grid[0, :, :16], grid[2, :, :16], atol=1e-1)
    assert len(table[0].unique(dim=0)) == 17


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 48)])
def test_gradient_checkpointing_changes_no_output_and_no_gradient(height, width):
    image = torch.randn(2, 3, height, width)
    results = []
    for checkpointing in (False, True):
        model = build(num_classes=4).train()
        model.set_grad_checkpointing(checkpointing)
        with torch.enable_grad():
            logits = model(image, RGB)
            logits.square().sum().backward()
        results.append((logits, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (plain, gradients), (again, recomputed) = results
    assert torch.equal(plain, again)
    assert gradients.keys() == recomputed.keys()
    assert all(torch.equal(gradients[n], recomputed[n]) for n in gradients)


# Wavelengths in every form


@torch.no_grad()
def test_numbers_tensor_sensor_and_bands_mean_the_same():
    model, image = build(), torch.randn(1, 4, 32, 32)
    numbers = [b.wavelength_um for b in S2.bands]
    reference = model(image, numbers)
    for form in (tuple(numbers), torch.tensor(numbers), torch.tensor(numbers).double(), S2, S2.bands, list(S2.bands)):
        assert torch.equal(model(image, form), reference)


def test_trained_numbers_override_the_sensors_own_by_name_alias_and_platform():
    numbers = {"B02": 0.49, "B03": 0.56, "red": 0.665}
    trained = TrainedSensor(tuple(numbers), tuple(numbers.values()), platform="test-sentinel-2")
    other = TrainedSensor(("B02",), (1.0,), platform="another")
    model = build(sensors={"other": other, "test-s2": trained})
    expected = torch.tensor([0.49, 0.56, 0.665, 0.8328])  # B08 was not trained: its own centre
    assert torch.equal(model.band_inputs(S2)[0], expected)
    same_platform = replace(S2, name="test-s2-other-level").select(["red", "B02"])
    assert torch.equal(model.band_inputs(same_platform)[0], torch.tensor([0.665, 0.49]))
    elsewhere = replace(S2, name="unknown", platform="unknown")
    assert torch.equal(model.band_inputs(elsewhere)[0], torch.tensor([0.4924, 0.5598, 0.6646, 0.8328]))
    # Bands alone tell no sensor.
    assert torch.equal(model.band_inputs(S2.bands)[0], torch.tensor([0.4924, 0.5598, 0.6646, 0.8328]))
    image = torch.randn(1, 4, 32, 32)
    assert torch.equal(model(image, S2), model(image, [0.49, 0.56, 0.665, 0.8328]))


def test_a_sensor_without_a_platform_matches_none():
    trained = TrainedSensor(("B02",), (1.0,))
    model = build(sensors={"something": trained})
    assert model.band_inputs(replace(S2, platform="").select(["B02"]))[0].tolist() == pytest.approx([0.4924])


def test_sar_bands_get_the_configs_number_and_their_polarisation():
    model = build(sar_wavelength=3.75)
    numbers, places = model.band_inputs(S1)
    assert numbers.tolist() == [3.75, 3.75]
    assert places.tolist() == [1, 2]
    mixed = [S2.band("B04"), S1.band("VH"), Band("HH", None, kind="sar", polarisation="HH")]
    numbers, places = model.band_inputs(mixed)
    assert numbers.tolist() == pytest.approx([0.6646, 3.75, 3.75])
    assert places.tolist() == [0, 2, 3]
    assert model.band_inputs([3.75, 3.75])[1].tolist() == [0, 0]


def kernels(model: DOFA, wavelengths: object) -> torch.Tensor:
    weight, _, _ = model.patch_embed.kernel(model.encode_bands(wavelengths))
    return weight.reshape(2, -1)


@torch.no_grad()
def test_vv_and_vh_share_a_kernel_at_first_and_differ_once_learned():
    model = build()
    assert torch.equal(model.polarisation_embed, torch.zeros(4, 128))
    first = kernels(model, S1)
    assert worst(first[0], first[1]) <= 1e-5
    optical = kernels(model, [0.49, 0.56])
    model.polarisation_embed[0] += 0.5
    learned = kernels(model, S1)
    assert worst(learned[0], learned[1]) > 1e-2
    assert torch.equal(kernels(model, [0.49, 0.56]), optical)  # zero for optical bands, whatever was learned
    assert worst(kernels(model, [5.405, 5.405])[0], first[0]) <= 1e-5  # plain numbers carry no polarisation


def test_a_model_without_polarisation_vectors_has_no_such_parameter():
    model = build(polarisation_embedding=False)
    assert "polarisation_embed" not in model.state_dict()
    assert model(torch.randn(1, 2, 32, 32), S1).shape == (1, 48)


# Features


@torch.no_grad()
def test_forward_is_the_head_of_the_features_and_the_pool_is_the_mean_of_patch_tokens():
    model, image = build(num_classes=5), torch.randn(2, 3, 32, 24)
    tokens = model.forward_features(image, RGB)
    assert tokens.shape == (2, 13, 48)
    pooled = model.forward_head(tokens, pre_logits=True)
    assert torch.equal(pooled, model.fc_norm(tokens[:, 1:].mean(1)))
    assert torch.equal(model(image, RGB), model.head(pooled))
    raw = build(pooled_norm=False)
    tokens = raw.forward_features(image, RGB)
    assert torch.equal(raw(image, RGB), tokens[:, 1:].mean(1))


@torch.no_grad()
def test_intermediates_are_raw_block_outputs_in_the_order_asked():
    model, image = build(depth=4), torch.randn(2, 3, 24, 40)
    final = model.forward_features(image, RGB)
    [last, first] = model.forward_intermediates(image, RGB, indices=[-1, 0], output_fmt="NLC")
    assert torch.equal(last, final[:, 1:])
    assert not torch.allclose(first, last, atol=1e-2)
    [maps] = model.forward_intermediates(image, RGB, indices=[3])
    assert torch.equal(maps, last.transpose(1, 2).reshape(2, 48, 3, 5))
    assert torch.equal(maps[:, :, 1, 2], last[:, 1 * 5 + 2])
    [normed] = model.forward_intermediates(image, RGB, indices=1, norm=True, output_fmt="NLC")
    assert torch.equal(normed, model.norm(final)[:, 1:])
    [(patches, cls)] = model.forward_intermediates(image, RGB, indices=1, output_fmt="NLC", return_prefix_tokens=True)
    assert torch.equal(torch.cat([cls, patches], 1), final)
    tokens, levels = model.forward_intermediates(image, RGB, indices=[0], intermediates_only=False)
    assert torch.equal(tokens, final)
    assert len(levels) == 1
    assert len(model.forward_intermediates(image, RGB)) == 4
    assert len(model.forward_intermediates(image, RGB, indices=2)) == 2


@pytest.mark.parametrize("indices", [[4], [-5], 5, 0, []])
def test_intermediates_refuse_blocks_there_are_not(indices):
    with pytest.raises(ConfigError, match="0 to 3"):
        build(depth=4).forward_intermediates(torch.randn(1, 3, 32, 32), RGB, indices=indices)
    with pytest.raises(ConfigError, match="output_fmt"):
        build().forward_intermediates(torch.randn(1, 3, 32, 32), RGB, output_fmt="NHWC")


@torch.no_grad()
def test_visible_tokens_are_those_of_a_model_that_sees_only_these_patches():
    model, image = build(), torch.randn(2, 3, 32, 32)
    every = torch.arange(16).expand(2, -1)
    tokens, waves, _ = model.forward_visible(image, RGB, every)
    assert worst(tokens, model.forward_features(image, RGB)) <= 1e-5
    assert waves.shape == (3, 128)
    keep = torch.tensor([[5, 0, 9], [1, 2, 15]])
    few, _, _ = model.forward_visible(image, RGB, keep)
    assert few.shape == (2, 4, 48)
    tokens, _, _ = model.forward_visible(image, RGB, keep.flip(1))  # order carries nothing
    assert worst(tokens[:, 1:].flip(1), few[:, 1:]) <= 1e-5


def test_head_is_replaced_by_reset_classifier():
    model, image = build(), torch.randn(1, 3, 32, 32)
    model.reset_classifier(9)
    assert model(image, RGB).shape == (1, 9)
    assert model.config.num_classes == 9
    model.reset_classifier(0)
    assert model(image, RGB).shape == (1, 48)


def test_names_without_weight_decay_are_parameters():
    model = build()
    assert model.no_weight_decay() <= {n for n, _ in model.named_parameters()}
    assert {"cls_token", "pos_embed", "polarisation_embed"} <= model.no_weight_decay()


# Sizes


@pytest.mark.parametrize("name", PRESETS)
def test_every_named_size_constructs_with_released_parameter_names(name):
    with torch.device("meta"):
        model = DOFA(preset(name, num_classes=10))
    names = set(model.state_dict())
    assert {"cls_token", "pos_embed", "norm.weight", "head.weight", "patch_embed.fclayer.w1.weight"} <= names
    generator = "patch_embed.weight_generator."
    for tail in ("weight_tokens", "bias_token", "fc_weight.weight", "fc_bias.weight"):
        assert generator + tail in names
    assert generator + "transformer_encoder.layers.0.self_attn.in_proj_weight" in names
    assert ("blocks.0.ls1.gamma" in names) == name.startswith("plus")
    assert ("fc_norm.weight" in names) == (not name.startswith("plus"))


@pytest.mark.parametrize(("name", "published"), [("base", 111_310_592), ("large", 337_103_360)])
def test_parameter_counts_are_the_published_ones(name, published):
    with torch.device("meta"):
        model = DOFA(preset(name, polarisation_embedding=False))
    counted = {n: p.numel() for n, p in model.named_parameters() if not n.startswith(("norm.", "fc_norm."))}
    assert sum(counted.values()) == published
    if name == "base":
        assert sum(v for n, v in counted.items() if n.startswith("patch_embed.")) == pytest.approx(26.10e6, abs=5e3)


# Bad input, one clear line each


@pytest.mark.parametrize("nanometres", [[665, 560, 490], torch.tensor([665.0, 560.0, 490.0])])
def test_wavelengths_in_nanometres_are_refused_with_a_hint(nanometres):
    with pytest.raises(ConfigError, match=r"this looks like nanometres: divide by 1000, 0\.665"):
        build()(torch.randn(1, 3, 32, 32), nanometres)


@pytest.mark.parametrize("wavelengths", [[0.5, 0.6, float("nan")], [0.5, 0.6, -1.0], [], torch.ones(3, 1)])
def test_wavelengths_that_are_none_are_refused(wavelengths):
    with pytest.raises(ConfigError, match="wavelength"):
        build()(torch.randn(1, 3, 32, 32), wavelengths)


def test_an_unknown_sensor_name_is_refused():
    with pytest.raises(ConfigError, match="unknown sensor 'sentinel-99'"):
        build()(torch.randn(1, 3, 32, 32), "sentinel-99")


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (torch.randn(1, 4, 32, 32), "4 bands but 3 wavelengths"),
        (torch.randn(3, 32, 32), r"shape \(3, 32, 32\)"),
        (torch.randn(1, 3, 7, 32), "7 × 32 pixels is smaller than a patch of 8"),
        (torch.full((1, 3, 32, 32), float("nan")), "3072 NaN or infinite values"),
        (torch.full((1, 3, 32, 32), float("inf")), "3072 NaN or infinite values"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "torch.uint8 numbers: normalise it first"),
    ],
)
def test_an_image_that_does_not_fit_is_refused_in_one_line(image, says):
    model = build()
    with pytest.raises(DataError, match=says) as caught:
        model(image, RGB)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_large_finite_values_are_no_infinities():
    image = torch.full((1, 3, 32, 32), 3e38)
    assert not torch.isfinite(image.sum())
    check_finite(image, training=False)
    image[0, 0, 0, 0], image[0, 0, 0, 1] = float("inf"), float("-inf")
    with pytest.raises(DataError, match="2 NaN or infinite"):
        check_finite(image, training=False)


def test_the_model_compiles_without_a_graph_break():
    torch.compiler.reset()
    model, image = build(), torch.randn(1, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(image, RGB), model(image, RGB))
