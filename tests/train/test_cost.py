"""Costs from a configuration against what PyTorch counts on real steps, and against what the run itself plans."""

import math
import re
import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dofa import sensors
from dofa.cli import main
from dofa.corpus.store import open_stores
from dofa.errors import ConfigError
from dofa.model.checkpoint import create
from dofa.model.config import DecoderConfig, DistillConfig, MaskConfig, preset
from dofa.model.initialise import initialise
from dofa.model.mae import MaskedAutoencoder
from dofa.model.prefit import patch_kernel
from dofa.model.teacher import load_teacher
from dofa.train.config import from_dict, load_config
from dofa.train.cost import (
    A100_BF16,
    PARTS,
    Corpus,
    Step,
    TeacherSize,
    cost,
    published,
    step_flops,
)
from dofa.train.data import MicroBatches, describe_sources, make_mixture
from dofa.train.objective import Pretraining

from ..vit_files import write_vit

SIZES = {"width": 64, "depth": 4, "heads": 2, "patch": 8, "image_size": 48}
DECODER = DecoderConfig(32, 2, 2)
TEACHER = TeacherSize(48, 5, 4)
PAPER = {"view": "proxy", "blocks": (-2,), "input": "sensor"}
VISIBLE = {"view": "visible", "blocks": (1, 2)}
FULL = {"view": "full", "blocks": (2,), "target": "tokens", "renderings": ("rgb", "colour-infrared")}
WITHOUT_MASKS = {"reconstruction": 0.0, "loss": "smooth-l1", "projector": False}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Another network than the student, and one of its kind to anchor it to."""
    folder = tmp_path_factory.mktemp("vit")
    other = write_vit(folder / "other", TEACHER.width, TEACHER.depth, 3, TEACHER.patch, 32)
    kin = write_vit(folder / "kin", 64, 4, 2, 8, 48)
    return load_teacher(other), load_teacher(kin)


def counted(sensor, teacher, distill, side, batch, anchored=False, recompute=False) -> float:
    """What PyTorch counts in one step; attention as plain products, or a CPU's would not be counted."""
    torch.manual_seed(0)
    mae = MaskedAutoencoder(create("tiny", **SIZES), DECODER)
    anchor = None
    if anchored:
        initialise(mae.encoder, teacher)
        weight, bias = patch_kernel(mae.encoder, teacher)
        anchor = weight.reshape(-1, SIZES["width"]), bias
    mae.set_grad_checkpointing(recompute)
    width = None if teacher is None else teacher.config.width
    objective = Pretraining(mae.train(), {sensor.name: sensor}, distill, teacher, width, anchor)
    image = torch.randn(batch, len(sensor.bands), side, side)
    pictures = torch.rand(batch, len(distill.renderings), 3, side, side)
    given = {"image": image, "noise": torch.rand(batch, (side // 8) ** 2), "valid": None, "sensor": sensor.name}
    given |= {"pictures": pictures, "proxy": image[:, :3], "proxy_bands": (0, 1, 2)}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective(given)["loss"].backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["naip-rgbn", "sentinel-2-l2a", "enmap-202"])
@pytest.mark.parametrize(
    "distill",
    [
        None,
        PAPER,
        VISIBLE,
        FULL,
        VISIBLE | {"target": "tokens", "projector": True},
        FULL | WITHOUT_MASKS,
        VISIBLE | WITHOUT_MASKS,
    ],
    ids=["masks", "proxy", "visible", "full", "visible-tokens", "full-alone", "visible-alone"],
)
def test_a_step_costs_what_pytorch_counts(name, distill, teachers):
    sensor, other = sensors.get(name), teachers[0]
    if distill is not None and not distill.get("projector", True):
        other, size = teachers[1], TeacherSize(64, 4, 8)
    else:
        size = TEACHER
    settings = DistillConfig(teacher="a file", **(distill or {}))
    real = counted(sensor, None if distill is None else other, settings, side=48, batch=3)
    step = Step(3, len(sensor.bands), 48, len(settings.renderings))
    encoder = preset("tiny", **SIZES)
    ours = step_flops(encoder, DECODER, MaskConfig(), settings, None if distill is None else size, step)
    assert sum(ours.values()) == pytest.approx(real, rel=0.005)


@pytest.mark.parametrize("extra", ["anchor", "recompute"])
def test_anchors_and_recomputed_blocks_are_counted(extra, teachers):
    sensor, kin = sensors.get("sentinel-2-l2a"), teachers[1]
    settings = DistillConfig(teacher="a file", anchor=1.0 if extra == "anchor" else 0.0, **PAPER)
    real = counted(sensor, kin, settings, 48, 3, anchored=extra == "anchor", recompute=extra == "recompute")
    arguments = preset("tiny", **SIZES), DECODER, MaskConfig(), settings, TeacherSize(64, 4, 8), Step(3, 12, 48)
    ours = step_flops(*arguments, recompute=extra == "recompute")
    assert sum(ours.values()) == pytest.approx(real, rel=0.005)
    plain = step_flops(*arguments) if extra == "recompute" else step_flops(*arguments[:3], DistillConfig(**PAPER), *arguments[4:])
    assert sum(ours.values()) > 1.01 * sum(plain.values())
