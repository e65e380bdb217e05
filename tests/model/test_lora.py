"""LoRA: adapters against the change they stand for, written out."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from dofa.errors import CheckpointError, ConfigError
from dofa.model import checkpoint
from dofa.model.checkpoint import create
from dofa.model.encoder import DOFA
from dofa.model.lora import TARGETS, adapters, add_lora, linears, load_lora, lora_state, merge_lora
from dofa.model.vit import recompute_activations

WAVES = [0.665, 0.56, 0.49]


def encoder(seed: int = 0) -> DOFA:
    torch.manual_seed(seed)
    model = create("tiny", width=48, depth=2, heads=3, patch=8, image_size=24, num_classes=4, layer_scale=0.5)
    for parameter in model.parameters():  # zero biases and new norms would hide what is done to them
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 24, 20, generator=torch.Generator().manual_seed(5))


def taught(model: DOFA, **settings: object) -> DOFA:
    """With adapters that have learned something."""
    add_lora(model, **settings)
    generator = torch.Generator().manual_seed(7)
    for adapter in adapters(model).values():
        adapter.b.data = 0.1 * torch.randn(adapter.b.shape, generator=generator, dtype=adapter.b.dtype)
    return model


def changed_by_hand(model: DOFA, rank: int, alpha: float) -> dict[str, np.ndarray]:
    """W + alpha/rank · B A of every layer with an adapter, in float64."""
    return {
        name: (
            linears(model)[name].weight.detach().double().numpy()
            + alpha / rank * (adapter.b.detach().double().numpy() @ adapter.a.detach().double().numpy())
        )
        for name, adapter in adapters(model).items()
    }


def test_fresh_adapters_change_no_bit(image):
    model, same = encoder(), encoder()
    add_lora(model, rank=4)
    assert torch.equal(model(image, WAVES), same(image, WAVES))
    for name, tensor in same.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("targets", [TARGETS, ("qkv",), ("proj", "fc2")])
def test_an_adapted_model_is_one_whose_weights_are_changed_by_the_scaled_product(image, targets):
    model = taught(encoder().double(), rank=3, alpha=6.0, targets=targets)
    plain = encoder().double()
    changed = changed_by_hand(model, 3, 6.0)
    assert sorted(changed) == sorted(n for n in linears(plain) if n.rsplit(".", 1)[1] in targets)
    for name, weight in changed.items():
        linears(plain)[name].weight.data = torch.from_numpy(weight)
    untaught = encoder().double()(image.double(), WAVES)
    torch.testing.assert_close(model(image.double(), WAVES), plain(image.double(), WAVES), rtol=1e-12, atol=1e-12)
    assert (model(image.double(), WAVES) - untaught).abs().max() > 1e-4


def test_merging_rounds_the_change_once_and_keeps_the_outputs(image):
    model = taught(encoder(), rank=4, alpha=8.0)
    before, changed = model(image, WAVES), changed_by_hand(model, 4, 8.0)
    merge_lora(model)
    assert model.state_dict().keys() == encoder().state_dict().keys()
    for name, weight in changed.items():
        np.testing.assert_array_equal(linears(model)[name].weight.detach().numpy(), weight.astype(np.float32))
    torch.testing.assert_close(model(image, WAVES), before, rtol=1e-5, atol=1e-6)


def test_merging_adapters_that_never_learned_changes_no_bit():
    model, same = encoder(), encoder()
    add_lora(model)
    merge_lora(model)
    assert checkpoint.encoder_sha256(model) == checkpoint.encoder_sha256(same)


@pytest.mark.parametrize("sparing", ["nothing", "recompute", "checkpointing"])
def test_gradients_are_those_of_the_full_weights_through_the_product(image, sparing):
    """∂A = s Bᵀ ∂W and ∂B = s ∂W Aᵀ, with ∂W of an ordinary model at the merged weights."""
    model = taught(encoder().double(), rank=3, alpha=6.0)
    full = copy.deepcopy(model)
    merge_lora(full)
    full.requires_grad_(True)
    recompute_activations(model, sparing == "recompute")
    model.set_grad_checkpointing(sparing == "checkpointing")
    for each in (model, full):
        each(image.double(), WAVES).square().sum().backward()
    for name, adapter in adapters(model).items():
        slope = linears(full)[name].weight.grad
        torch.testing.assert_close(adapter.a.grad, 2 * adapter.b.T @ slope, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(adapter.b.grad, 2 * slope @ adapter.a.T, rtol=1e-9, atol=1e-12)


def test_training_moves_the_adapters_alone_and_fits(image):
    model = encoder()
    model.head.weight.data *= 20  # it stays as it is: one of nearly zeros has nothing to say
    count = add_lora(model, rank=4)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"blocks.{i}.{layer}.lora.{part}" for i in (0, 1) for layer in
                       ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for part in "ab"}  # fmt: skip
    assert count == 2 * 4 * ((48 + 144) + (48 + 48) + (48 + 192) + (192 + 48))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(image, WAVES), torch.tensor([1, 3]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in trained), name


def test_the_head_trains_beside_the_adapters_where_it_is_unfrozen(image):
    model = encoder()
    add_lora(model)
    model.head.requires_grad_(True)
    model(image, WAVES).sum().backward()
    assert model.head.weight.grad is not None
    assert linears(model)["blocks.0.attn.qkv"].bias.grad is None


def test_adapters_alone_travel_through_a_file_with_their_scale(image):
    model = taught(encoder(), rank=4, alpha=8.0, targets=("qkv", "fc1"))
    data = save(lora_state(model))
    assert len(data) < 0.1 * len(save(model.state_dict()))
    other = encoder()
    load_lora(other, load(data))
    assert torch.equal(other(image, WAVES), model(image, WAVES))
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]


def test_a_copy_has_adapters_of_its_own(image):
    model = taught(encoder(), rank=2)
    before, twin = model(image, WAVES), copy.deepcopy(model)
    merge_lora(twin)
    assert torch.equal(model(image, WAVES), before)
    torch.testing.assert_close(twin(image, WAVES), before, rtol=1e-5, atol=1e-6)
    for adapter in adapters(model).values():
        adapter.b.data.zero_()
    assert torch.equal(model(image, WAVES), encoder()(image, WAVES))


def test_adapters_run_in_bf16(image):
    model, same = taught(encoder(), rank=4, alpha=1.0), taught(encoder(), rank=4, alpha=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(image, WAVES)
    low.float().sum().backward()
    assert all(a.a.grad is not None and a.a.grad.dtype == torch.float32 for a in adapters(model).values())
    torch.testing.assert_close(low.float(), same(image, WAVES), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"targets": ["qkw"]}, "did you mean qkv"),
        ({"targets": []}, "without a target"),
        ({"rank": 0}, "rank is 0; between 1 and the 48"),
        ({"rank": 49}, "rank is 49"),
        ({"alpha": 0}, "alpha is 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
    ],
)
def test_settings_that_mean_nothing_are_refused_and_leave_the_model_alone(settings, told):
    model = encoder()
    with pytest.raises(ConfigError, match=told):
        add_lora(model, **settings)
    assert not adapters(model)
    assert model.head.weight.requires_grad


def test_adapters_that_do_not_fit_are_refused_and_leave_the_model_alone():
    state = lora_state(taught(encoder(), rank=2))
    name = "blocks.1.mlp.fc1.lora"
    cases = {
        "blocks.2.mlp.fc1 is no linear layer": {f"blocks.2.mlp.fc1.lora.{k}": state[f"{name}.{k}"] for k in "ab"},
        "no adapters in it": {},
        "blocks.1.mlp.fc1 has no b and no scale": {f"{name}.a": state[f"{name}.a"]},
        "blocks.1.mlp.fc1 has a": state | {f"{name}.a": torch.zeros(3, 48)},
        "1 keys are none of": state | {f"{name}.gate": torch.zeros(1)},
    }
    for told, wrong in cases.items():
        model = encoder()
        with pytest.raises(CheckpointError, match=told):
            load_lora(model, wrong)
        assert not adapters(model)
        assert model.head.weight.requires_grad


def test_what_would_lose_adapters_is_refused_until_they_are_merged(tmp_path):
    model = taught(encoder(), rank=2)
    for attempt in (
        lambda: checkpoint.save(model, tmp_path / "m"),
        lambda: model.specialize(WAVES),
        lambda: add_lora(model),
        lambda: load_lora(model, lora_state(model)),
    ):
        with pytest.raises(ConfigError, match="merge them first"):
            attempt()
    merge_lora(model)
    checkpoint.save(model, tmp_path / "m")
    assert checkpoint.encoder_sha256(checkpoint.load(tmp_path / "m")) == checkpoint.encoder_sha256(model)
    for attempt in (lambda: merge_lora(model), lambda: lora_state(model)):
        with pytest.raises(ConfigError, match="no LoRA adapters"):
            attempt()
