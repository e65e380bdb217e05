"""LARS by hand in numpy, and the groups of layer decay by table."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dofa.errors import ConfigError
from dofa.model.checkpoint import create
from dofa.model.decoders import LinearDecoder
from dofa.train.optim import LARS, layer_decay


def by_hand(w: np.ndarray, gradients: list[np.ndarray], lr: float, decay: float, momentum: float) -> np.ndarray:
    moving = np.zeros_like(w)
    for g in gradients:
        d = g
        if w.ndim > 1:
            d = g + decay * w
            sizes = np.sqrt((w**2).sum()), np.sqrt((d**2).sum())
            if min(sizes) > 0:
                d = 0.001 * sizes[0] / sizes[1] * d
        moving = momentum * moving + d
        w = w - lr * moving
    return w


@given(
    shape=st.sampled_from([(3, 4), (2, 3, 2), (5,), ()]),
    lr=st.floats(0.01, 20),
    decay=st.sampled_from([0.0, 0.1]),
    momentum=st.sampled_from([0.0, 0.9]),
    start=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_steps_are_those_computed_by_hand(shape, lr, decay, momentum, start, seed):
    rng = np.random.default_rng(seed)
    w = start * rng.normal(size=shape)
    gradients = [rng.normal(size=shape), np.zeros(shape), *rng.normal(size=(3, *shape))]
    parameter = nn.Parameter(torch.tensor(w))
    optimizer = LARS([parameter], lr=lr, weight_decay=decay, momentum=momentum)
    for g in gradients:
        parameter.grad = torch.tensor(g)
        optimizer.step()
    expected = by_hand(np.array(w), gradients, lr, decay, momentum)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@given(st.floats(1e-6, 1e6))
@settings(deadline=None)
def test_the_size_of_a_gradient_moves_biases_but_not_matrices(factor):
    def step(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        layer = nn.Linear(4, 3, dtype=torch.float64)
        optimizer = LARS(layer.parameters(), lr=0.5)
        (scale * layer(torch.ones(2, 4, dtype=torch.float64)).square().sum()).backward()
        before = [p.detach().clone() for p in layer.parameters()]
        optimizer.step()
        weight, bias = (p.detach() - b for p, b in zip(layer.parameters(), before, strict=True))
        return weight, bias

    (weight, bias), (same, scaled) = step(1.0), step(factor)
    torch.testing.assert_close(same, weight, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(scaled, factor * bias, rtol=1e-6, atol=1e-12)


def test_groups_have_rates_of_their_own_and_what_has_no_gradient_stays():
    fast, slow, still = (nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    optimizer = LARS([{"params": [fast], "lr": 1.0}, {"params": [slow, still]}], lr=0.1, momentum=0.0)
    fast.grad = slow.grad = torch.ones(2, 2)
    optimizer.step()
    assert (1 - fast).max().item() == pytest.approx(1e-3, rel=1e-3)
    assert (1 - slow).max().item() == pytest.approx(1e-4, rel=1e-3)
    assert torch.equal(still, torch.ones(2, 2))


def test_a_run_goes_on_from_its_saved_state_as_if_never_stopped():
    def run(stop: bool) -> torch.Tensor:
        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(3, 3))
        optimizer = LARS([w], lr=1.0)
        for i in range(6):
            if stop and i == 3:
                state = optimizer.state_dict()
                optimizer = LARS([w], lr=7.0)
                optimizer.load_state_dict(state)
            w.grad = torch.full((3, 3), float(i)).tril()
            optimizer.step()
        return w.detach()

    assert torch.equal(run(True), run(False))


def test_a_closure_is_asked_for_the_loss_and_its_gradients():
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([w], lr=10.0)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = w.square().sum()
        value.backward()
        return value

    assert optimizer.step(loss).item() == 4.0
    assert optimizer.step(loss).item() < 4.0


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"lr": 1.0, "momentum": 1.0}, {"lr": 1.0, "trust": 0.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="LARS with lr"):
        LARS([nn.Parameter(torch.ones(1))], **wrong)


def test_layer_decay_by_table():
    """Two blocks at 0.5: embedding 1/8, block 0 1/4, block 1 1/2, norms and head 1, and a decoder outside 1."""
    model = create("tiny", width=48, depth=2, heads=3, num_classes=5, layer_scale=0.1)
    both = nn.ModuleDict({"encoder": model, "decoder": LinearDecoder([48], 3)})
    groups = layer_decay(both, 0.5, 0.05)
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    table = {
        "encoder.cls_token": (0.125, 0.0),
        "encoder.patch_embed.weight_generator.weight_tokens": (0.125, 0.0),
        "encoder.patch_embed.weight_generator.fc_weight.weight": (0.125, 0.05),
        "encoder.blocks.0.attn.qkv.weight": (0.25, 0.05),
        "encoder.blocks.0.norm1.weight": (0.25, 0.0),
        "encoder.blocks.0.ls2.gamma": (0.25, 0.0),
        "encoder.blocks.1.mlp.fc2.weight": (0.5, 0.05),
        "encoder.blocks.1.mlp.fc2.bias": (0.5, 0.0),
        "encoder.norm.weight": (1.0, 0.0),
        "encoder.fc_norm.bias": (1.0, 0.0),
        "encoder.head.weight": (1.0, 0.05),
        "decoder.classifier.weight": (1.0, 0.05),
        "decoder.classifier.bias": (1.0, 0.0),
    }
    names = dict(both.named_parameters())
    for name, expected in table.items():
        assert found[id(names[name])] == expected, name
    assert len(found) == sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in both.parameters())
    assert {scale for scale, _ in found.values()} == {0.125, 0.25, 0.5, 1.0}
    assert [g["lr_scale"] for g in layer_decay(model, 1.0, 0.05)] == [1.0, 1.0]


def test_layer_decay_without_blocks_or_with_a_factor_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="without an encoder"):
        layer_decay(nn.Linear(2, 2), 0.65, 0.05)
    for rate in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="layer decay is"):
            layer_decay(create("tiny", width=48, depth=1, heads=3), rate, 0.05)
