"""Losses of distillation: each against a few lines of plain torch on the same weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dofa import sensors
from dofa.errors import ConfigError
from dofa.model.checkpoint import create
from dofa.model.config import DecoderConfig, DistillConfig
from dofa.model.distill import Distillation, patch_validity, reduce_tokens
from dofa.model.mae import MaskedAutoencoder
from dofa.model.prefit import initialise, patch_kernel, prefit, residual
from dofa.model.teacher import Teacher, load_teacher
from dofa.train.objective import Pretraining

from ..vit_files import as_normal, plain_blocks, write_vit

WIDTH, DEPTH, HEADS, PATCH, SIDE = 32, 3, 2, 8, 32
S1, S2, NAIP = (sensors.get(name) for name in ("sentinel-1-grd", "sentinel-2-l2a", "naip-rgb"))
PROXY = {"sentinel-1-grd": (0, 1, 0), "sentinel-2-l2a": (3, 2, 1), "naip-rgb": (0, 1, 2)}
NO_PROJECTOR = {"loss": "smooth-l1", "projector": False}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Teacher:
    """Of the student's width, depth and patch."""
    return load_teacher(write_vit(tmp_path_factory.mktemp("vit") / "same", WIDTH, DEPTH, HEADS, PATCH, SIDE))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Teacher:
    """Wider, deeper, with other patches and other positions."""
    return load_teacher(write_vit(tmp_path_factory.mktemp("vit") / "other", 48, 4, 3, 4, 24, seed=1))


@pytest.fixture
def student() -> MaskedAutoencoder:
    torch.manual_seed(3)
    encoder = create("tiny", width=WIDTH, depth=DEPTH, heads=HEADS, patch=PATCH, image_size=SIDE)
    torch.nn.init.normal_(encoder.polarisation_embed)  # VV and VH are not alike
    return MaskedAutoencoder(encoder, DecoderConfig(32, 1, 2))


@pytest.fixture
def objective(student) -> Callable[..., Pretraining]:
    def make(teacher: Teacher, kernel: tuple[Tensor, Tensor] | None = None, **changes: Any) -> Pretraining:
        config = DistillConfig(teacher="a file", **changes)
        distilled = teacher.config.width if config.weight else None
        return Pretraining(student, {s.name: s for s in (S1, S2, NAIP)}, config, teacher, distilled, kernel)

    return make


def batch_of(sensor, count=3, renderings=1, invalid=False, seed=0) -> dict[str, Any]:
    """What MicroBatches gives, of random numbers; all bands."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.randn(count, len(sensor.bands), SIDE, SIDE, generator=draw)
    valid = None
    if invalid:
        valid = torch.rand(count, SIDE, SIDE, generator=draw) > 0.3
        valid[:, :PATCH] = False
        image *= valid[:, None]
    proxy = image[:, list(PROXY[sensor.name])].clone()
    if sensor is S1:
        proxy[:, 2] = 0
    return {
        "image": image,
        "valid": valid,
        "noise": torch.rand(count, (SIDE // PATCH) ** 2, generator=draw),
        "sensor": sensor.name,
        "bands": tuple(range(len(sensor.bands))),
        "pictures": torch.rand(count, renderings, 3, SIDE, SIDE, generator=draw),
        "proxy": proxy,
        "proxy_bands": PROXY[sensor.name],
    }


def losses(model: Pretraining, batch: dict[str, Any]) -> dict[str, float]:
    return {name: value.item() for name, value in model(batch).items()}


def of_teacher(teacher: Teacher, pictures: Tensor, normalised: bool = False) -> list[Tensor]:
    """Block outputs on (B, 3, H, W), from the definition."""
    state = teacher.vit.state_dict()
    return plain_blocks(state, pictures if normalised else as_normal(pictures), teacher.config.heads)


def of_student(student: MaskedAutoencoder, image: Tensor, bands: Any, keep: Tensor | None = None) -> list[Tensor]:
    return plain_blocks(student.encoder.specialize(bands).state_dict(), image, HEADS, keep)


def one_minus_cosine(a: Tensor, b: Tensor) -> Tensor:
    return 1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


@pytest.mark.parametrize("sensor", [S1, S2, NAIP], ids=lambda s: s.name)
@pytest.mark.parametrize("normalised", [False, True])
def test_the_papers_loss_is_that_of_its_definition(objective, student, teacher, sensor, normalised):
    model = objective(teacher, input="sensor" if normalised else "display")
    batch = batch_of(sensor)
    if normalised:
        batch["pictures"] = batch["proxy"][:, None]
    told = losses(model, batch)
    assert set(told) == {"loss", "masked", "distilled"}
    # As numbers, not through the sensor: VV's for the third channel, which holds zeros.
    bands = [sensor.bands[i] for i in PROXY[sensor.name]]
    mine = of_student(student, batch["proxy"], bands)[-2].mean(1)
    mine = F.linear(mine, model.distillation.projectors[0].weight, model.distillation.projectors[0].bias)
    theirs = of_teacher(teacher, batch["pictures"][:, 0], normalised)[-2].mean(1)
    assert told["distilled"] == pytest.approx(one_minus_cosine(mine, theirs).mean().item(), abs=1e-5)
    assert 0.01 < told["distilled"] < 2


def test_several_blocks_have_a_projector_each_and_their_mean_counts(objective, student, teacher):
    model = objective(teacher, blocks=(0, -1, 1), teacher_blocks=(1, 2, 0), target="tokens")
    assert len(model.distillation.projectors) == 3
    batch = batch_of(S2)
    mine, theirs = of_student(student, batch["proxy"], S2.select(["B04", "B03", "B02"])), None
    theirs = of_teacher(teacher, batch["pictures"][:, 0])
    parts = []
    for projector, own, its in zip(model.distillation.projectors, (0, 2, 1), (1, 2, 0), strict=True):
        parts.append(one_minus_cosine(projector(mine[own][:, 1:]), theirs[its][:, 1:]).mean())
    assert losses(model, batch)["distilled"] == pytest.approx(sum(parts).item() / 3, abs=1e-5)


@pytest.mark.parametrize("reconstruction", [0.0, 1.0])
@pytest.mark.parametrize("sensor", [S1, S2], ids=lambda s: s.name)
def test_a_visible_token_is_held_to_the_teachers_at_its_place(objective, student, teacher, sensor, reconstruction):
    model = objective(teacher, view="visible", target="tokens", blocks=(1,), reconstruction=reconstruction)
    batch = batch_of(sensor)
    found = []
    for noise in (batch["noise"], batch["noise"].flip(1)):
        keep = noise.argsort(1)[:, : noise.shape[1] // 4]
        mine = model.distillation.projectors[0](of_student(student, batch["image"], sensor, keep)[1][:, 1:])
        theirs = of_teacher(teacher, batch["pictures"][:, 0])[1][:, 1:]
        theirs = torch.stack([tokens[places] for tokens, places in zip(theirs, keep, strict=True)])
        expected = one_minus_cosine(mine, theirs).mean().item()
        assert losses(model, batch | {"noise": noise})["distilled"] == pytest.approx(expected, abs=1e-5)
        found.append(expected)
    assert abs(found[0] - found[1]) > 1e-3


def test_the_same_tokens_at_their_places_are_no_distance_and_at_others_they_are():
    torch.manual_seed(0)
    theirs = torch.randn(2, 1, 16, 8)
    keep = torch.stack([torch.randperm(16)[:5] for _ in range(2)])
    mine = torch.cat([torch.randn(2, 1, 8), theirs[torch.arange(2)[:, None], 0, keep]], dim=1)
    weight = torch.rand(2, 16)
    for settings in ({"loss": "cosine", "projector": False}, NO_PROJECTOR):
        held = Distillation(DistillConfig(target="tokens", **settings), 8, 8)
        assert float(held([mine], theirs, keep, weight)) == pytest.approx(0, abs=1e-6)
        assert float(held([mine], theirs, keep.roll(1, 1), weight)) > 0.1
        assert float(held([mine], theirs, torch.arange(5).expand(2, -1), weight)) > 0.1


def test_several_renderings_are_averaged_and_values_are_standardised(objective, student, teacher):
    model = objective(teacher, view="full", target="tokens", blocks=(0, 2), **NO_PROJECTOR)
    batch = batch_of(S2, renderings=3)
    by_hand = [of_teacher(teacher, batch["pictures"][:, r]) for r in range(3)]
    targets = [sum(levels[i][:, 1:] for levels in by_hand) / 3 for i in (0, 2)]
    found = model.teach(batch["pictures"], SIDE // PATCH)
    assert torch.allclose(found, torch.stack(targets, 1), atol=1e-5)
    model.distillation.standardise(found)
    mine = [tokens[:, 1:] for i, tokens in enumerate(of_student(student, batch["image"], S2)) if i in (0, 2)]
    expected = []
    for own, its in zip(mine, targets, strict=True):
        sample = its.reshape(-1, WIDTH)
        gap = ((own - its) / sample.std(0)).abs()
        expected.append(torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean())
    assert losses(model, batch)["distilled"] == pytest.approx(float(sum(expected) / 2), rel=1e-5)


def test_a_channel_that_hardly_varies_is_not_blown_up():
    held = Distillation(DistillConfig(target="tokens", **NO_PROJECTOR), 8, 8)
    features = torch.randn(4, 1, 16, 8)
    features[..., 3] = 7 + 1e-9 * features[..., 3]
    held.standardise(features)
    assert float(held.std.min()) >= 0.005
    assert torch.allclose(held.mean[0, 0], features.mean((0, 1, 2)), atol=1e-5)


def test_a_teacher_of_another_width_depth_and_patch_is_welcome(objective, student, stranger):
    model = objective(stranger, view="full", target="tokens", blocks=(1,), teacher_blocks=(3,))
    batch = batch_of(S2)
    pictures = F.interpolate(batch["pictures"][:, 0], size=(16, 16), mode="bilinear", antialias=True)
    theirs = of_teacher(stranger, pictures)[3][:, 1:]
    mine = model.distillation.projectors[0](of_student(student, batch["image"], S2)[1][:, 1:])
    assert mine.shape == theirs.shape == (3, 16, 48)
    assert losses(model, batch)["distilled"] == pytest.approx(one_minus_cosine(mine, theirs).mean().item(), abs=1e-5)


@pytest.mark.parametrize("view", ["visible", "full"])
def test_every_patch_counts_by_its_measured_pixels(objective, student, teacher, view):
    model = objective(teacher, view=view, target="tokens", blocks=(1,))
    batch = batch_of(S2, invalid=True)
    shares = batch["valid"].float().unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).mean((3, 4)).flatten(1)
    assert torch.allclose(patch_validity(batch["valid"], PATCH), shares)
    keep = batch["noise"].argsort(1)[:, :4] if view == "visible" else torch.arange(16).expand(3, -1)
    mine = model.distillation.projectors[0](of_student(student, batch["image"], S2, keep)[1][:, 1:])
    theirs = of_teacher(teacher, batch["pictures"][:, 0])[1][:, 1:]
    theirs = theirs.gather(1, keep[..., None].expand_as(mine))
    weight = shares.gather(1, keep)
    expected = (one_minus_cosine(mine, theirs) * weight).sum() / weight.sum()
    assert losses(model, batch)["distilled"] == pytest.approx(expected.item(), abs=1e-5)
    # What a teacher sees where nothing was measured does not matter.
    unseen = weight == 0
    assert unseen.any()
    noise = torch.randn_like(theirs) * unseen[..., None]
    target = model.teach(batch["pictures"], 4)
    target[:, 0] = target[:, 0].scatter_add(1, keep[..., None].expand_as(noise), noise)
    assert losses(model, {**batch, "target": target})["distilled"] == pytest.approx(expected.item(), abs=1e-5)


def test_pictures_and_answers_kept_on_disk_are_the_same_to_the_loss(objective, teacher):
    model = objective(teacher, view="full", target="tokens")
    batch = batch_of(S2, renderings=2)
    target = model.teach(batch["pictures"], 4)
    assert target.shape == (3, 1, 16, WIDTH)
    asked = model(batch)["distilled"]
    del batch["pictures"]
    assert torch.equal(model({**batch, "target": target})["distilled"], asked)
    halves = model({**batch, "target": target.half()})["distilled"]
    assert halves.dtype == torch.float32
    assert halves.item() == pytest.approx(asked.item(), abs=1e-3)
    model._teacher = (None,)
    with pytest.raises(ConfigError, match="no teacher to ask"):
        model(batch_of(S2))


def test_the_anchor_is_nothing_after_the_fit_and_the_squared_residual_later(objective, student, teacher):
    initialise(student.encoder, teacher)
    prefit(student.encoder, teacher, sensors=[S1, S2])
    weight, bias = patch_kernel(student.encoder, teacher)
    model = objective(teacher, (weight.reshape(-1, WIDTH), bias), anchor=3.0, weight=0.0)
    assert model.parts == ["anchor"]
    assert losses(model, batch_of(S2))["anchor"] < 1e-10
    with torch.no_grad():
        for parameter in student.encoder.patch_embed.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        student.encoder.patch_embed.weight_generator.fc_bias.bias.add_(10.0)  # its hundredth is made a bias
    told = losses(model, batch_of(S2))
    assert told["anchor"] > 1e-3
    assert told["anchor"] == pytest.approx(residual(student.encoder, teacher) ** 2, rel=1e-4)
    assert told["loss"] == pytest.approx(told["masked"] + 3 * told["anchor"], rel=1e-6)


@pytest.mark.parametrize("view", ["proxy", "visible", "full"])
def test_the_loss_is_the_weighted_sum_of_its_parts(objective, student, teacher, view):
    weight, bias = patch_kernel(student.encoder, teacher)
    model = objective(teacher, (weight.reshape(-1, WIDTH), bias), view=view, weight=0.7, reconstruction=0.3, anchor=0.2)
    batch = batch_of(S2, invalid=True)
    told = losses(model, batch)
    assert list(told) == [*model.parts, "loss"]
    assert model.parts == ["masked", "distilled", "anchor"]
    expected = 0.3 * told["masked"] + 0.7 * told["distilled"] + 0.2 * told["anchor"]
    assert told["loss"] == pytest.approx(expected, rel=1e-6)
    plain = student(batch["image"], S2, batch["noise"], batch["valid"])
    assert told["masked"] == pytest.approx(plain["loss"].item(), rel=1e-6)


def test_without_a_teacher_the_loss_is_that_of_masked_image_modelling(student):
    model = Pretraining(student, {S2.name: S2})
    batch = batch_of(S2)
    told = losses(model, batch)
    assert model.parts == []
    assert told == {"loss": student(batch["image"], S2, batch["noise"])["loss"].item()} | {"masked": told["masked"]}


@pytest.mark.parametrize("reconstruction", [0.0, 1.0])
@pytest.mark.parametrize("target", ["pooled", "tokens"])
@pytest.mark.parametrize("view", ["proxy", "visible", "full"])
@pytest.mark.parametrize("blocks", [(0,), (1,), (-1, 0)])
def test_whatever_is_trained_gets_a_gradient_from_every_sensor(
    objective, student, teacher, reconstruction, target, view, blocks
):
    model = objective(teacher, view=view, target=target, reconstruction=reconstruction, blocks=blocks)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {n for n in trained if n.startswith("distillation.")}
    assert any(n.startswith("mae.decoder") for n in trained) == bool(reconstruction)
    last = DEPTH - 1 if reconstruction else max(b % DEPTH for b in blocks)
    assert {int(n.split(".")[3]) for n in trained if ".encoder.blocks." in n} == set(range(last + 1))
    for sensor in (S1, S2):
        model.zero_grad(set_to_none=True)
        model(batch_of(sensor, count=2))["loss"].backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == trained, sensor.name
    assert all(p.grad is None for p in teacher.parameters())
    assert not any("vit" in name for name, _ in model.named_parameters())


def test_bf16_autocast_leaves_the_loss_in_float32_and_near(objective, teacher):
    model = objective(teacher, view="visible", target="tokens")
    batch = batch_of(S2)
    exact = model(batch)["distilled"]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch)["distilled"]
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), abs=0.02)


def test_tokens_are_all_pooled_or_only_patches():
    tokens = torch.randn(2, 5, 4)
    assert torch.equal(reduce_tokens(tokens, "pooled"), tokens.mean(1, keepdim=True))
    assert torch.equal(reduce_tokens(tokens, "tokens"), tokens[:, 1:])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"projector": False}, "student is 32 wide and the teacher 48: switch it on"),
        ({"blocks": (3,)}, r"distill\.blocks: indices \(3,\) do not name blocks of a model that has 3"),
        ({"blocks": (-4,)}, r"distill\.blocks: indices \(-4,\)"),
    ],
)
def test_an_objective_that_does_not_fit_is_refused_in_one_line(objective, stranger, settings, says):
    with pytest.raises(ConfigError, match=says) as caught:
        objective(stranger, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"teacher_blocks": (1, 2)}, "teacher_blocks names 2 blocks for the student's 1"),
        ({"blocks": ()}, "one block and one rendering"),
        ({"weight": -1.0}, "at least 0"),
        ({"reconstruction": 0.0, "weight": 0.0}, "so is distill.weight: nothing is left to learn from"),
        ({"reconstruction": 0.0, "teacher": None}, "there is no teacher: nothing is left"),
        ({"loss": "smooth-l1"}, "set distill.projector to false"),
        ({"renderings": ("rgb", "swir-nir-red")}, "name one rendering"),
        ({"view": "full", "input": "sensor", "renderings": ("rgb", "swir-nir-red")}, "name one rendering"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_one_line(settings, says):
    with pytest.raises(ConfigError, match=says) as caught:
        DistillConfig(**{"teacher": "a file", **settings})
    assert "\n" not in str(caught.value)
