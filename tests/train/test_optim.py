"""Parameter groups and the schedule."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dofa.model.checkpoint import create
from dofa.model.config import DecoderConfig
from dofa.model.mae import MaskedAutoencoder
from dofa.train.config import OptimConfig
from dofa.train.optim import adamw, learning_rate, parameter_groups


@pytest.fixture(scope="module")
def mae() -> MaskedAutoencoder:
    return MaskedAutoencoder(create("tiny", width=48, depth=2, heads=3, layer_scale=1e-5), DecoderConfig(32, 1, 2))


def test_only_matrices_decay(mae):
    decaying, free = ({id(p) for p in g["params"]} for g in parameter_groups(mae, 0.05))
    names = {name: p for name, p in mae.named_parameters() if p.requires_grad}
    for name, parameter in names.items():
        last = name.split(".")[-1]
        bare = last in ("bias", "gamma", "fc_bias") or "norm" in name or "token" in name or "_embed" in last
        assert (id(parameter) in free) == (bare or last == "in_proj_bias"), name
    assert len(decaying) + len(free) == len(names)
    assert not any(id(p) in decaying | free for p in mae.parameters() if not p.requires_grad)


def test_every_group_has_its_decay_and_the_betas(mae):
    optimizer = adamw(mae, OptimConfig(lr=1e-3, betas=(0.8, 0.9), weight_decay=0.3))
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.3, 0.0]
    assert all(g["betas"] == (0.8, 0.9) for g in optimizer.param_groups)


@given(st.integers(1, 300), st.integers(0, 100), st.floats(1e-6, 1), st.floats(0, 1), st.data())
def test_the_rate_rises_to_its_peak_and_falls_to_its_end(updates, warmup, lr, share, data):
    config = OptimConfig(lr=lr, warmup_updates=warmup, min_lr=share * lr)
    rates = [learning_rate(u, updates, config) for u in range(updates)]
    assert all(0 < r <= lr * (1 + 1e-9) or (r == 0 and config.min_lr == 0) for r in rates)
    rising, falling = rates[:warmup], rates[warmup:]
    assert rising == sorted(rising)
    assert all(a >= b - 1e-12 for a, b in pairwise(falling))
    if warmup < updates:
        assert rates[warmup] == pytest.approx(lr)
    assert learning_rate(max(updates, warmup + 1), updates, config) == pytest.approx(config.min_lr, abs=1e-12)


def test_the_first_update_of_a_warm_up_already_moves():
    assert learning_rate(0, 100, OptimConfig(lr=1.0, warmup_updates=10)) == pytest.approx(0.1)
