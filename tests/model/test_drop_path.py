"""Stochastic depth: nothing where it is off, the right mean where it is on."""

import pytest
import torch

from dofa.errors import ConfigError
from dofa.model.checkpoint import create
from dofa.model.encoder import DOFA
from dofa.model.vit import Block, set_drop_path

WAVES = [0.665, 0.56]


def encoder(rate: float, depth: int = 3) -> DOFA:
    torch.manual_seed(0)
    model = create("tiny", width=48, depth=depth, heads=3, patch=8, image_size=16)
    set_drop_path(model, rate)
    return model


def test_off_or_in_eval_mode_it_changes_no_bit_and_draws_nothing():
    image = torch.randn(2, 2, 16, 16)
    never, off, judged = encoder(0.0).eval(), encoder(0.0).train(), encoder(0.5).eval()
    before = torch.get_rng_state()
    expected = never(image, WAVES)
    assert torch.equal(off(image, WAVES), expected)
    assert torch.equal(judged(image, WAVES), expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(judged.train()(image, WAVES), expected)


@pytest.mark.parametrize(("depth", "rates"), [(1, [0.0]), (2, [0.0, 0.3]), (4, [0.0, 0.1, 0.2, 0.3])])
def test_rates_rise_evenly_from_the_first_block_to_the_last(depth, rates):
    assert [block.drop_path for block in encoder(0.3, depth).blocks] == pytest.approx(rates)


def test_every_image_drops_its_branches_for_itself_and_the_mean_is_kept():
    torch.manual_seed(1)
    block, x = Block(12, 3).train(), torch.randn(1, 5, 12).expand(4000, -1, -1)
    for parameter in block.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    block.drop_path = 0.25
    with torch.no_grad():
        attention = block.attn(block.norm1(x[:1])) / 0.75
        after = [x[:1], x[:1] + attention]  # the attention left out, and kept
        ends = torch.cat([a + m * block.mlp(block.norm2(a)) / 0.75 for a in after for m in (0, 1)])
        found = block(x)
        apart = torch.stack([(found - end).abs().amax((1, 2)) for end in ends])
    assert (apart.min(0).values < 1e-5).all()  # nothing but the four ways through
    shares = apart.argmin(0).bincount(minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.0625, 0.1875, 0.1875, 0.5625]), atol=0.03, rtol=0)


def test_recomputed_activations_take_the_branches_of_the_first_pass():
    image, grads = torch.randn(3, 2, 16, 16), []
    for checkpointing in (False, True):
        model = encoder(0.6).train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(3)
        model(image, WAVES).square().sum().backward()
        grads.append([p.grad for p in model.blocks.parameters()])
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_that_is_no_probability_below_1_is_refused(rate):
    with pytest.raises(ConfigError, match="drop path is"):
        encoder(rate)
