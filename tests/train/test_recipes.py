"""The recipes that come with the package: what they say of themselves is so, and they take real steps."""

import re
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dofa
from dofa import sensors
from dofa.model.config import preset
from dofa.train.config import PretrainConfig
from dofa.train.cost import PUBLISHED, cost
from dofa.train.log import read_log
from dofa.train.pretrain import pretrain
from dofa.train.recipes import load_config, recipes
from dofa.train.teacher_inputs import plan_teacher_input

from ..vit_files import write_vit
from .conftest import write_store

PAPER = ("dofa-base", "dofa-large")
PLUS = ("dofa-plus-small", "dofa-plus-base", "dofa-plus-large")
DOCS = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"


def text(recipe: str) -> str:
    return (resources.files("dofa") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", PAPER + PLUS)
def test_the_header_says_what_the_run_costs(recipe):
    said = [line.removeprefix("#   ") for line in text(recipe).splitlines() if line.startswith("#   ")]
    computed = [line.rstrip() for line in cost(load_config(recipe)).lines()]
    first = next(n for n, line in enumerate(said) if "images seen" in line)
    assert said[first : first + len(computed)] == computed, (
        f"the header of {recipe} is out of date: paste what `dofa pretrain --config {recipe} --cost` prints"
    )


@pytest.mark.parametrize("recipe", PAPER + PLUS)
def test_the_table_of_the_docs_says_what_the_run_costs(recipe):
    (row,) = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{recipe}`")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    found = cost(load_config(recipe))
    cheap = cost(load_config(recipe, ["distill.view=visible"]))
    # The last columns: images, FLOPs an image and in all, GPU-hours, and GPU-hours with the cheaper distillation.
    assert cells[-5:] == [
        f"{found.images / 1e6:.1f} M",
        f"{found.flops / found.images / 1e9:.0f} G",
        f"{found.flops:.2g}".replace("e+", "e"),
        f"{found.gpu_hours():.0f}",
        f"{cheap.gpu_hours():.0f}",
    ]


@pytest.mark.parametrize("recipe", PAPER + PLUS)
def test_every_number_has_its_reason_beside_it(recipe):
    explained = r"\b(script|paper|ours|first version|published)\b"
    section = ""
    for line in text(recipe).splitlines():
        if not line.startswith((" ", "#")):
            section = line
        setting = re.match(r"  (\w+): \S", line)
        if setting and section in ("distill:", "data:", "optim:") and setting[1] not in ("stores", "min_lr", "loss"):
            assert re.search(explained, line), f"{recipe}: {line}"


def test_no_recipe_is_left_out_here():
    assert {*PAPER, *PLUS, "cpu-tiny"} <= set(recipes())
    assert not [name for name in recipes() if "mim" in name]


def check_common(config: PretrainConfig, epochs: int) -> None:
    """What both versions share: reference/dofa.md, sections 1 to 3."""
    images = config.data.batch * config.run.micro_batches
    assert images == 192
    assert abs(config.run.updates - epochs * 410_000 / images) < 1
    assert config.optim.warmup(config.run.updates) == round(20 * 410_000 / images)
    assert config.optim.lr == pytest.approx(1e-4 * images / 256)
    assert (config.optim.weight_decay, config.optim.betas) == (0.05, (0.9, 0.95))
    assert (config.optim.encoder_lr, config.optim.generator_lr) == (1.0, 1.0)
    assert (config.model.decoder.width, config.model.decoder.depth, config.model.decoder.heads) == (512, 8, 16)
    assert config.model.mask.ratio == 0.75
    assert (config.model.start, preset(config.model.size).patch_offset) == ("prefit", 0)
    assert (config.data.crop, config.data.crop_area, config.data.flips) == (224, (0.2, 1.0), "horizontal")
    assert (config.data.band_keep, config.data.jitter.share, config.data.weights) == (1.0, 0.0, "natural")
    distill = config.distill
    assert (distill.view, distill.target, distill.loss, distill.projector) == ("proxy", "pooled", "cosine", True)
    assert (distill.input, distill.weight, distill.reconstruction, distill.anchor) == ("sensor", 1.0, 1.0, 0.0)


@pytest.mark.parametrize("recipe", PAPER)
def test_the_paper_s_recipes_hold_the_published_numbers(recipe):
    config = load_config(recipe)
    check_common(config, epochs=120)
    assert config.distill.blocks == (-2,)
    assert config.run.seed == 42
    size, teacher = {
        "dofa-base": ("base", "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"),
        "dofa-large": ("large", "timm/vit_large_patch16_224.augreg_in21k"),
    }[recipe]
    assert (config.model.size, config.distill.teacher) == (size, teacher)


@pytest.mark.parametrize("recipe", PLUS)
def test_the_recipes_of_dofa_plus_hold_the_published_numbers(recipe):
    config, size = load_config(recipe), recipe.removeprefix("dofa-plus-")
    check_common(config, epochs=150)
    assert (config.model.size, config.distill.teacher) == (f"plus-{size}", f"timm/vit_{size}_patch14_dinov2.lvd142m")
    levels = (5, 11, 17, 23) if size == "large" else (4, 6, 10, 11)
    assert config.distill.blocks == levels
    encoder = preset(config.model.size)
    assert (encoder.patch, encoder.layer_scale, encoder.grid**2 + 1) == (14, 1e-5, 257)


@pytest.mark.parametrize("recipe", PAPER + PLUS)
def test_proxies_are_the_bands_of_the_published_code(recipe):
    bands = {name: plan_teacher_input(sensors.get(name), load_config(recipe).distill) for name in PUBLISHED}
    assert {name: view.pictures for name, view in bands.items()} == {
        "sentinel-1-satlas": ((0, 1, 0),),  # and zeros for the third
        "sentinel-2-dofa9": ((0, 1, 2),),
        "gaofen-2": ((0, 1, 2),),
        "naip-rgb": ((0, 1, 2),),
        "enmap-202": ((47, 29, 15),),
    }
    assert [name for name, view in bands.items() if view.blank] == ["sentinel-1-satlas"]
    assert all(view.maps is None for view in bands.values())  # the sensors' own normalisation


@pytest.mark.parametrize("recipe", PAPER)
def test_without_its_teacher_the_paper_s_recipe_is_masked_image_modelling(recipe):
    config = load_config(recipe, ["distill={}", "model.start=random"])
    assert config.distill.teacher is None
    parts = {part for s in cost(config).sensors for part, flops in s.parts.items() if flops}
    assert parts == {"masked pass", "decoder", "kernels"}


@pytest.fixture(scope="module")
def five(tmp_path_factory) -> str:
    """The five corpora of the paper, small."""
    folder = tmp_path_factory.mktemp("corpus") / "store"
    for seed, (name, (_, side)) in enumerate(PUBLISHED.items()):
        write_store(folder, name, 8, 48 if side == 128 else 64, seed=seed, places=4)
    return str(folder)


def teacher_file(folder: Path, width: int, depth: int, heads: int, patch: int, layer_scale: bool) -> Path:
    """A teacher in timm's names, with LayerScale as DINOv2's have it."""
    file = write_vit(folder, width, depth, heads, patch, 8 * patch) / "model.safetensors"
    state = load_file(file)
    if layer_scale:
        for block in range(depth):
            state |= {f"blocks.{block}.{name}.gamma": torch.full((width,), 0.5) for name in ("ls1", "ls2")}
    save_file(state, file)
    return folder


def run_two_updates(recipe: str, store: str, out: Path, *overrides: str) -> Path:
    settings = [f"data.stores=[{store}]", f"run.out={out}", "run.epochs=", "run.updates=2", "run.workers=0"]
    settings += ["run.device=cpu", "run.log_every=1", "run.evaluate_every=0", "run.pictures_every=0"]
    run = pretrain(load_config(recipe, [*settings, *overrides]))
    assert [row["update"] for row in read_log(run)] == [1, 2]
    return run


@pytest.mark.parametrize("recipe", PAPER + PLUS)
def test_a_recipe_takes_two_updates_on_its_corpora_with_a_small_model(recipe, five, tmp_path):
    encoder = preset(load_config(recipe).model.size)
    teacher = teacher_file(
        tmp_path / "vit", 24, encoder.depth, 2, encoder.patch, layer_scale=encoder.layer_scale is not None
    )
    run = run_two_updates(
        recipe,
        five,
        tmp_path / "run",
        f"distill.teacher={teacher}",
        f"model.changes={{width: 24, heads: 2, image_size: {4 * encoder.patch}}}",
        "model.decoder={width: 16, depth: 1, heads: 2}",
        f"data.crop={4 * encoder.patch}",
        "data.batch=2",
        "run.micro_batches=5",
        "data.weights=equal",  # a micro-batch of every sensor in each update
        "run.precision=32-true",
    )
    rows = read_log(run)
    for name in PUBLISHED:
        assert rows[0][f"loss/{name}"] == pytest.approx(rows[0][f"masked/{name}"] + rows[0][f"distilled/{name}"])
    model = dofa.load(run / "model")
    assert set(model.config.sensors) == set(PUBLISHED)
    assert model.origin.provenance["initialised_from"]["teacher"] == "vit"


def test_a_recipe_runs_without_some_of_its_corpora(store, tmp_path):
    teacher = teacher_file(tmp_path / "vit", 24, 12, 2, 16, layer_scale=False)
    changes = "model.changes={width: 24, heads: 2, image_size: 32}"
    small = ["model.decoder={width: 16, depth: 1, heads: 2}", "data.crop=32", "data.batch=2", "run.precision=32-true"]
    run_two_updates("dofa-base", store, tmp_path / "run", f"distill.teacher={teacher}", changes, *small)


def test_cpu_tiny_takes_two_updates_and_its_model_loads(store, tmp_path):
    run = run_two_updates("cpu-tiny", store, tmp_path / "run")
    assert dofa.load(run / "model").config.patch == 8


@pytest.mark.slow
@pytest.mark.parametrize("recipe", PAPER)
def test_the_paper_s_models_take_two_updates_in_their_real_sizes(recipe, store, tmp_path):
    encoder = preset(load_config(recipe).model.size)
    teacher = teacher_file(tmp_path / "vit", encoder.width, encoder.depth, encoder.heads, 16, layer_scale=False)
    small = ["data.crop=32", "data.batch=2", f"distill.teacher={teacher}"]
    run = run_two_updates(recipe, store, tmp_path / "run", *small)
    assert dofa.load(run / "model").config.depth == encoder.depth
