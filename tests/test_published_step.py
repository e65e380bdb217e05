"""The benchmark's other side: the published graph, composed plainly, has the losses and gradients of ours."""

import sys
from pathlib import Path

import pytest
import torch

from dofa import sensors
from dofa.model.config import DecoderConfig, DistillConfig, EncoderConfig
from dofa.model.encoder import DOFA, StaticViT
from dofa.model.mae import MaskedAutoencoder
from dofa.model.teacher import Teacher, VitFile
from dofa.train.objective import Pretraining
from dofa.train.teacher_inputs import plan_teacher_input

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import published_step as published

DENSE = {"proxy": published.paper_loss, "visible": published.visible_loss}


def build(name: str, view: str) -> tuple[Pretraining, dict]:
    torch.manual_seed(0)
    config = EncoderConfig(48, 3, 3, 8, image_size=32, layer_scale=0.3)
    teacher = StaticViT(EncoderConfig(32, 3, 2, 8, image_size=32), 3)
    half = (0.5, 0.5, 0.5)
    frozen = Teacher(VitFile(teacher.state_dict(), teacher.config, "random", "", half, half))
    sensor, distill = sensors.get(name), DistillConfig(view=view)
    mae = MaskedAutoencoder(DOFA(config), DecoderConfig(32, 2, 4))
    plan = plan_teacher_input(sensor, DistillConfig(view="proxy"))
    image = torch.randn(3, len(sensor.bands), 32, 32)
    proxy = image[:, list(plan.pictures[0])]
    if plan.blank:
        proxy[:, 2] = 0
    return Pretraining(mae, {name: sensor}, distill, frozen, 32), {
        "sensor": name,
        "image": image,
        "noise": torch.rand(3, 16),
        "valid": None,
        "pictures": torch.rand(3, 1, 3, 32, 32),
        "proxy": proxy,
        "proxy_bands": plan.pictures[0],
    }


@pytest.mark.parametrize("view", list(DENSE))
@pytest.mark.parametrize("name", ["sentinel-1-satlas", "sentinel-2-dofa9", "naip-rgb", "enmap-202"])
def test_our_step_has_the_loss_and_the_gradients_of_the_published_graph(name, view):
    objective, batch = build(name, view)
    results = []
    for compute in (
        lambda: objective(batch)["loss"],
        lambda: DENSE[view](objective, batch, published.plain_convolution),
    ):
        objective.zero_grad()
        loss = compute()
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
        results.append((loss.detach(), gradients))
    (ours, gradients), (theirs, expected) = results
    assert abs(ours - theirs) <= 1e-5 * abs(theirs)
    assert gradients.keys() == expected.keys()
    for key, gradient in gradients.items():
        want = expected[key].clone()
        if key.endswith("attn.qkv.bias"):  # those of the keys are rounding noise and ours are not trained
            width = len(want) // 3
            want[width : 2 * width] = 0
        assert (gradient - want).abs().max() <= 1e-4 * want.abs().max().clamp(min=1e-7), key


@pytest.mark.parametrize("name", ["sentinel-2-dofa9", "enmap-202"])
def test_the_masked_part_alone_is_the_published_graphs(name):
    objective, batch = build(name, "proxy")
    with torch.no_grad():
        ours = objective(batch)["masked"]
        theirs, _ = published.masked_modelling(
            objective.mae, batch["image"], objective.sensors[name], batch["noise"], published.plain_convolution
        )
    assert abs(ours - theirs) <= 1e-5 * theirs


@pytest.mark.parametrize("bands", [2, 4, 9])
def test_the_convolution_for_processors_where_bf16_conv2d_is_wrong_is_the_same(bands):
    torch.manual_seed(0)
    image, kernel, bias = torch.randn(2, bands, 48, 48), torch.randn(24, bands, 16, 16), torch.randn(24)
    want = published.plain_convolution(image, kernel, bias)
    assert (published.unfolded_convolution(image, kernel, bias) - want).abs().max() <= 1e-4 * want.abs().max()
    half = published.unfolded_convolution(image.bfloat16(), kernel.bfloat16(), bias.bfloat16())
    assert (half - want).norm() <= 1e-2 * want.norm()
