"""One patch embedding a sensor, trained by the same loop: one process, several, with a teacher, further."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dofa import sensors
from dofa.corpus.store import open_stores
from dofa.errors import ConfigError
from dofa.model.checkpoint import load, load_mae
from dofa.model.config import preset
from dofa.train.checkpoint import checkpoints
from dofa.train.cost import Corpus, cost
from dofa.train.evaluate import evaluate_store
from dofa.train.log import read_log
from dofa.train.objective import build_model
from dofa.train.pretrain import pretrain

from .conftest import write_store

SEPARATE = {"width": 48, "depth": 2, "heads": 3, "patch": 8, "image_size": 32, "embedding": "separate"}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run / "checkpoints")[-1] / "model.safetensors")


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[k] - b[k]).abs().max().item() for k in a)


@pytest.fixture
def separate(settings, tmp_path):
    """Mixed sensors, accumulation over two micro-batches a process, a clip that bites."""

    def make(out: str, **changes):
        fixed = {
            "model__changes": SEPARATE,
            "run__updates": 8,
            "run__micro_batches": 4,
            "run__save_every": 1000,
            "run__out": str(tmp_path / out),
            "data__weights": "equal",
            "optim__clip": 0.02,
        }
        return settings(**{**fixed, **changes})

    return make


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fully-shard", marks=pytest.mark.slow)])
def test_two_processes_equal_one_although_sensors_differ_between_them(separate, train_outside, strategy):
    one = weights(pretrain(separate("one")))
    two = train_outside(separate("two", run__strategy=strategy), processes=2)
    assert two.returncode == 0, two.stderr
    both = weights(Path(separate("two").run.out))
    assert furthest(one, both) <= 1e-6
    rows = [read_log(Path(separate(n).run.out)) for n in ("one", "two")]
    for key in ("grad_norm", "loss/naip-rgb", "loss/sentinel-1-grd", "loss/sentinel-2-l2a"):
        said = [[row[key] for row in each if key in row] for each in rows]
        assert said[0] == pytest.approx(said[1], rel=1e-4), key


def test_every_sensor_trains_its_own_rows_and_what_is_saved_is_what_was_trained(separate, tmp_path):
    # Patches have positive and negative halves about their mean, so a model that learns gets below one.
    run = pretrain(separate("long", run__updates=60, optim__lr=2e-3, optim__clip=1.0, run__micro_batches=3))
    log = read_log(run)
    for name in ("naip-rgb", "sentinel-1-grd", "sentinel-2-l2a"):
        assert log[-1][f"loss/{name}"] < 0.9 * log[0][f"loss/{name}"], name
    model = load(run / "model")
    assert model.config.embedding == "separate"
    assert sorted(model.config.sensors) == list(model.patch_embed.sensors)
    assert all(s.scaling is not None for s in model.config.sensors.values())
    torch.manual_seed(separate("long").run.seed)
    known = [store.sensor for store in open_stores(list(separate("long").data.stores)).values()]
    start = build_model(separate("long").model, sensors=known).encoder.patch_embed.kernels
    assert (model.patch_embed.kernels - start).abs().amax(1).min() > 1e-3


def test_a_run_of_one_sensor_leaves_nothing_of_others(separate, tmp_path):
    write_store(tmp_path / "rgb", "naip-rgb", 12, 32)
    run = pretrain(separate("alone", data__stores=[str(tmp_path / "rgb")], run__updates=2))
    assert list(load(run / "model").patch_embed.sensors) == ["naip-rgb"]


def test_it_continues_to_the_same_bits(separate):
    whole = weights(pretrain(separate("whole")))
    pretrain(separate("parts", run__updates=8, run__save_every=3))
    for folder in checkpoints(Path(separate("parts").run.out) / "checkpoints")[1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    again = pretrain(separate("parts", run__updates=8, run__save_every=3), resume=True)
    assert furthest(whole, weights(again)) == 0


def test_it_is_judged_like_any_other_and_trained_further_on_the_sensors_it_has(separate, tmp_path):
    run = pretrain(separate("first", run__updates=2))
    store = open_stores(list(separate("first").data.stores))["sentinel-2-l2a"]
    assert evaluate_store(load_mae(run / "model"), store, crop=32).summary()["images"] > 0
    further = {"size": "base", "init": str(run / "model"), "decoder": {"width": 32, "depth": 1, "heads": 2}}
    pretrain(separate("second", model=further, run__updates=2))
    write_store(tmp_path / "new", "gaofen-2", 12, 32)
    with pytest.raises(ConfigError, match="none for gaofen-2"):
        pretrain(separate("third", model=further, data__stores=[str(tmp_path / "new")]))


@pytest.mark.parametrize("view", ["visible", "full"])
def test_it_may_be_held_to_a_teacher(taught, view):
    config = taught({"view": view, "blocks": [0], "target": "tokens"}, model__changes=SEPARATE, model__start="teacher")
    rows = read_log(pretrain(config))
    assert all(0 <= value < 2 for key, value in rows[-1].items() if key.startswith("distilled/"))


@pytest.mark.parametrize(
    ("distill", "changes", "words"),
    [
        ({}, {"model__start": "prefit"}, "prefit"),
        ({"anchor": 1.0}, {}, "distill.anchor"),
    ],
)
def test_what_needs_generated_kernels_is_refused_at_once(taught, distill, changes, words):
    with pytest.raises(ConfigError, match=words):
        taught(distill, model__changes=SEPARATE, **changes)


def test_the_sensors_of_a_model_are_not_for_the_configuration_to_say(settings):
    with pytest.raises(ConfigError, match=r"data\.stores"):
        settings(model__changes={**SEPARATE, "sensors": {}})
    assert preset("tiny", embedding="separate").embedding == "separate"


def test_the_estimate_of_a_run_counts_no_kernels_to_generate(settings):
    plain = {key: value for key, value in SEPARATE.items() if key != "embedding"}
    corpora = [Corpus(sensors.get("naip-rgb"), 100, 32)]
    ours, dynamic = (cost(settings(model__changes=each), corpora).sensors[0].parts for each in (SEPARATE, plain))
    assert ours["kernels"] == 0 < dynamic["kernels"]
    assert {**ours, "kernels": 0} == {**dynamic, "kernels": 0}
