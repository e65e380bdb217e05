"""Costs from a configuration against what PyTorch counts on real steps, and against what the run itself plans."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dofa import sensors
from dofa.cli import main
from dofa.corpus.store import open_stores
from dofa.errors import ConfigError
from dofa.model.checkpoint import create, save
from dofa.model.config import DecoderConfig, DistillConfig, MaskConfig, preset
from dofa.model.mae import MaskedAutoencoder
from dofa.model.prefit import initialise, patch_kernel
from dofa.model.teacher import load_teacher
from dofa.train.augment import draw_bands
from dofa.train.cost import A100_BF16, PARTS, Corpus, Step, TeacherSize, cost, published, step_flops
from dofa.train.data import describe_sources, make_mixture
from dofa.train.objective import Pretraining
from dofa.train.recipes import load_config

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
    without = step_flops(*arguments[:3], replace(settings, anchor=0.0), *arguments[4:])
    assert sum(ours.values()) > 1.01 * sum(without.values())


@pytest.fixture
def in_store(store) -> list[Corpus]:
    """The corpora of a real store."""
    stores = open_stores([store]).values()
    return [Corpus(s.sensor, len(s.indices("train")), min(s.shape[1:])) for s in stores]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data__weights": "equal"},
        {"data__weights": {"sentinel-1-grd": 3, "sentinel-2-l2a": 1, "naip-rgb": 0}},
        {"data__batch": {"default": 4, "naip-rgb": 7}, "data__crop": {"default": 16, "naip-rgb": 24}},
        {"data__crop": 64, "data__crop_area": [0.5, 1.0]},
        {"run__epochs": 3},
    ],
    ids=["natural", "equal", "weighted", "one-a-sensor", "resized", "epochs"],
)
def test_images_sides_and_updates_are_those_the_run_plans(changes, settings, store, in_store):
    config = settings(**changes)
    stores = open_stores([store])
    sources = describe_sources(stores, {n: s.scaling for n, s in stores.items()}, config.data, 8)
    mixture = make_mixture(sources, config)
    found = cost(config, in_store)
    assert found.updates == (config.run.updates or mixture.updates(config.run.epochs))
    assert found.epochs == pytest.approx(found.updates / mixture.updates_per_epoch)
    for sensor in found.sensors:
        assert sensor.side == sources[sensor.sensor].side
        planned = found.updates * mixture.shares[sensor.sensor] * sources[sensor.sensor].batch
        assert sensor.images == pytest.approx(float(planned))
    assert {s.sensor for s in found.sensors} == set(mixture.sensors)


def test_bands_are_as_many_as_micro_batches_draw(settings):
    config = settings(data__band_sets={"rgb": 0.3, "all": 0.2}, data__band_keep=0.5)
    for name in ("sentinel-2-l2a", "sentinel-1-satlas", "naip-rgbn"):
        sensor = sensors.get(name)
        rgb = sensor.index(next(iter(sensor.renderings.values())))
        drawn = [len(draw_bands(0, update, 0, len(sensor.bands), rgb, config.data)) for update in range(4000)]
        (found,) = cost(config, [Corpus(sensor, 100, 32)]).sensors
        assert found.bands == pytest.approx(sum(drawn) / len(drawn), rel=0.03)


def test_renderings_multiply_the_teacher_and_kept_answers_take_it_out_of_the_step(settings):
    corpora = [Corpus(sensors.get("sentinel-2-l2a"), 100, 32), Corpus(sensors.get("naip-rgb"), 50, 32)]
    full = {"distill__teacher": "vits14.safetensors", "distill__view": "full", "distill__projector": False}
    full |= {"distill__loss": "smooth-l1", "distill__blocks": [1], "distill__teacher_blocks": [6]}
    one = cost(settings(**full), corpora)
    three = cost(settings(**full, distill__renderings=["rgb", "colour-infrared", "swir-nir-red"]), corpora)
    ratios = [b.parts["teacher"] / a.parts["teacher"] for a, b in zip(one.sensors, three.sensors, strict=True)]
    assert ratios == [3, 1]  # NAIP knows one picture
    kept = cost(settings(**full, distill__crops=6), corpora)
    assert [s.parts["teacher"] for s in kept.sensors] == [0, 0]
    asked = [6 * c.images * s.parts["teacher"] for c, s in zip(corpora, one.sensors, strict=True)]
    assert kept.answers == pytest.approx(sum(asked))
    assert any("once" in line for line in kept.lines())
    alone = cost(settings(**full, distill__weight=0), corpora)
    assert not any(s.parts["teacher"] or s.parts["second pass"] for s in alone.sensors)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", (768, 16)),
        ("timm/vit_large_patch16_224.augreg_in21k", (1024, 16)),
        ("timm/vit_small_patch14_dinov2.lvd142m", (384, 14)),
        ("dinov2_vitl14_pretrain.pth", (1024, 14)),
        ("weights/vits14.safetensors", (384, 14)),
        ("mae_pretrain_vit_base.pth", (768, 16)),
        ("my/teacher", None),
    ],
)
def test_a_teacher_s_size_is_read_off_its_name(name, size, settings):
    corpora = [Corpus(sensors.get("naip-rgb"), 100, 32)]
    found = cost(settings(distill__teacher=name, distill__blocks=[1], distill__teacher_blocks=[0]), corpora)
    width, patch = size or (48, 8)
    projector = 3 * 2 * 48 * width
    teacher = 2 * 16 * 3 * patch**2 * width + 24 * 17 * width**2 + 4 * 17**2 * width
    assert found.sensors[0].parts["teacher"] == projector + teacher
    assert ("my/teacher" in " ".join(found.lines())) == (size is None)


def test_weights_to_start_from_bring_their_sizes(settings, tmp_path):
    naip = [Corpus(sensors.get("naip-rgb"), 100, 64)]
    save(MaskedAutoencoder(create("tiny", **SIZES), DECODER), tmp_path / "model")
    changes = {"model__changes": {}, "model__init": str(tmp_path / "model")}
    same = settings(model__changes=SIZES, model__decoder={"width": 32, "depth": 2, "heads": 2})
    assert cost(settings(**changes), naip).sensors == cost(same, naip).sensors
    released = cost(settings(**changes | {"model__init": "dofa-v2-base"}), naip).sensors
    assert released == cost(settings(model__size="plus-base", model__changes={}), naip).sensors
    with pytest.raises(ConfigError, match="fetch it first"):
        cost(settings(**changes | {"model__init": "someone/dofa"}), naip)


def test_known_sensors_are_rehearsed(settings):
    changes = {"model__init": "dofa-v1-base", "model__changes": {}, "data__rehearsal": 0.25}
    corpora = [Corpus(sensors.get(name), 100, 64) for name in ("naip-rgb", "sentinel-2-l2a")]
    found = {s.sensor: s.images for s in cost(settings(**changes), corpora).sensors}
    assert found["naip-rgb"] / sum(found.values()) == pytest.approx(0.25)


def test_hours_follow_from_flops_peak_and_utilisation():
    found = cost(load_config("dofa-base"))
    assert found.gpu_hours() == pytest.approx(found.flops / (0.35 * 312e12 * 3600))
    assert found.gpu_hours(A100_BF16 / 2, 0.5) == pytest.approx(found.flops / (0.25 * 312e12 * 3600))
    assert found.flops == pytest.approx(sum(s.images * sum(s.parts[p] for p in PARTS) for s in found.sensors))
    assert sum(c.images for c in published()) == 410_000


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["distill.blocks=[12]"], "student has 12"),
        (["distill.teacher_blocks=[30]"], "teacher has 12"),
        (["data.batch={naip-rgb: 4}"], "data.batch has no entry for sentinel-1-satlas"),
        (["distill.proxies={gaofen-2: [R, G, SWIR]}"], "gaofen-2 has no band 'SWIR'"),
    ],
)
def test_what_cannot_run_has_no_cost(overrides, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        cost(load_config("dofa-base", overrides))


def test_the_command_tells_the_cost_of_the_published_corpora_or_of_the_stores(store, capsys):
    assert main(["pretrain", "--config", "dofa-plus-small", "--cost"]) == 0
    told = capsys.readouterr().out
    assert "corpora as published" in told
    assert "\n".join(cost(load_config("dofa-plus-small")).lines()) in told
    assert main(["pretrain", "--config", "cpu-tiny", "--cost", "--set", f"data.stores=[{store}]"]) == 0
    told = capsys.readouterr().out
    assert "published" not in told
    assert "sentinel-2-l2a" in told


def test_the_cost_of_a_run_needs_no_torch():
    code = (
        "import sys; from dofa.cli import main; main(['pretrain', '--config', 'dofa-large', '--cost']); "
        "print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert answer.stdout.splitlines()[-1] == "False", answer.stderr
