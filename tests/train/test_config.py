"""Configurations of pretraining: read, refused, printed."""

import subprocess
import sys

import pytest
import yaml

from dofa.errors import ConfigError
from dofa.model.config import DistillConfig
from dofa.train.command import pretrain_command
from dofa.train.recipes import differences, from_dict, load_config, print_config, recipes, to_yaml


@pytest.mark.parametrize("recipe", recipes())
def test_a_recipe_survives_being_printed_and_read(recipe, tmp_path, capsys):
    config = load_config(recipe)
    print_config(config)
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert load_config(file) == config


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.learning_rate=1", "unknown key optim.learning_rate"),
        ("data.jiter.share=1", "unknown key data.jiter: did you mean jitter?"),
        ("modell.size=tiny", "did you mean model?"),
        ("model.size=tinny", "did you mean tiny"),
        ("model.changes.pach=8", "did you mean patch"),
        ("optim.lr=-1", "optim: lr -1"),
        ("optim.lr=", "optim.lr is empty"),
        ("optim.lr=fast", "optim.lr"),
        ("run.precision=fp16", "run.precision"),
        ("data.crop=0", "data.crop is 0"),
        ("data.crop_area=[0.5, 2]", "data.crop_area"),
        ("data.band_keep=0", "data.band_keep"),
        ("data.jitter.share=2", "data.jitter.share"),
        ("data.weights={naip-rgb: -1}", "data.weights"),
        ("model.mask.ratio=1", "mask.ratio"),
        ("run.epochs=2", "not both"),
        ("run=3", "run is 3"),
        ("run.seed", "key.key=value"),
        ("data.stores=[", "data.stores"),
        ("format_version=99", "format_version 99, newer"),
    ],
)
def test_a_bad_setting_is_one_clear_line(override, says):
    with pytest.raises(ConfigError) as error:
        load_config("cpu-tiny", [override])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_future_configuration_is_refused_before_its_unknown_keys():
    with pytest.raises(ConfigError, match="newer"):
        from_dict({"format_version": 2, "quantum": {}})


def test_unknown_recipes_and_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="did you mean cpu-tiny"):
        load_config("cpu-tny")
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config(tmp_path / "absent.yaml")
    for broken in (b"a: [", b"II*\x00\xff\xfe"):
        (tmp_path / "broken.yaml").write_bytes(broken)
        with pytest.raises(ConfigError, match="is not YAML"):
            load_config(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="no mapping"):
        load_config(tmp_path / "list.yaml")


def test_overrides_win_and_reach_into_mappings():
    config = load_config("cpu-tiny", ["data.crop.default=64", "data.crop.naip-rgb=96", "data.stores=[a, b]"])
    assert config.data.crop == {"default": 64, "naip-rgb": 96}
    assert config.data.stores == ("a", "b")


def test_differences_name_what_matters_and_pass_over_housekeeping():
    config = load_config("cpu-tiny")
    other = load_config("cpu-tiny", ["run.workers=3", "run.out=elsewhere", "data.stores=[moved]", "run.save_every=1"])
    assert differences(config, other) == []
    other = load_config("cpu-tiny", ["optim.lr=0.002", "data.batch.enmap=4"])
    assert [d.split(":")[0] for d in differences(config, other)] == ["data.batch", "optim.lr"]


def test_yaml_holds_every_setting():
    plain = yaml.safe_load(to_yaml(load_config("cpu-tiny")))
    assert set(plain) == {"format_version", "model", "distill", "data", "optim", "run"}
    assert plain["run"]["keep"] == 2


def test_configurations_need_no_torch():
    code = (
        "import sys; from dofa.train.recipes import load_config; load_config('cpu-tiny'); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_an_install_without_the_training_extra_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "dofa.train.pretrain", None)
    with pytest.raises(ModuleNotFoundError):
        pretrain_command("cpu-tiny")  # our own module is missing: a bug keeps its traceback
    monkeypatch.delitem(sys.modules, "dofa.train.pretrain")
    for name in [n for n in sys.modules if n.split(".")[0] == "lightning_fabric" or n == "dofa.train.loop"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ConfigError, match=r"training needs lightning_fabric.*dofa\[train\]"):
        pretrain_command("cpu-tiny")


def test_a_pre_fitted_generator_learns_at_a_twentieth_unless_another_rate_is_said():
    taught = {"distill": {"teacher": "x"}}
    for start, factor in (("prefit", 0.05), ("teacher", 1.0)):
        config = from_dict({**taught, "model": {"start": start}})
        assert config.optim.generator_lr == factor
        assert yaml.safe_load(to_yaml(config))["optim"]["generator_lr"] == factor
    assert from_dict({}).optim.generator_lr == 1.0
    said = from_dict({**taught, "model": {"start": "prefit"}, "optim": {"generator_lr": 1.0}})
    assert said.optim.generator_lr == 1.0
    # A run that was begun when the rate was another is told so, not continued at the new one.
    assert differences(said, from_dict({**taught, "model": {"start": "prefit"}})) == ["optim.generator_lr: 1.0 -> 0.05"]
    with pytest.raises(ConfigError, match="generator_lr are above 0"):
        from_dict({"optim": {"generator_lr": 0.0}})


def test_a_warm_up_said_as_a_share_is_that_said_as_a_number_and_grows_with_the_run():
    number = from_dict({"optim": {"warmup_updates": 150}, "run": {"updates": 3000}})
    share = from_dict({"optim": {"warmup_ratio": 0.05}, "run": {"updates": 3000}})
    assert (number.optim.warmup(3000), share.optim.warmup(3000), share.optim.warmup(200)) == (150, 150, 10)
    assert differences(number, share) == []
    other = from_dict({"optim": {"warmup_ratio": 0.06}, "run": {"updates": 3000}})
    assert [d.split(":")[0] for d in differences(number, other)] == ["optim.warmup_ratio", "optim.warmup_updates"]
    for bad in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="warmup_ratio"):
            from_dict({"optim": {"warmup_ratio": bad}})


def test_a_moved_teacher_is_no_difference_and_one_that_came_or_went_is():
    here, moved, none = (from_dict({"distill": {"teacher": name}}) for name in ("a.pth", "/elsewhere/a.pth", None))
    assert differences(here, moved) == []
    assert differences(here, none) == ["distill.teacher: a.pth -> None"]
    assert differences(none, here) == ["distill.teacher: None -> a.pth"]


@pytest.mark.parametrize(
    ("distill", "names"),
    [
        ({"view": "visible"}, "distill.view"),
        ({"weight": 2.0, "anchor": 1.0}, "distill.weight, distill.anchor"),
        ({"proxies": {"naip-rgb": ["R", "G", "B"]}}, "distill.proxies"),
    ],
    ids=["one", "two", "proxies"],
)
def test_settings_of_distillation_without_a_teacher_are_refused(distill, names):
    with pytest.raises(ConfigError) as error:
        from_dict({"distill": distill})
    assert f"without distill.teacher {names} would do nothing: name a teacher" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_s_section_of_distillation_can_be_taken_away():
    config = load_config("dofa-base", ["distill={}", "model.start=random"])
    assert config.distill == DistillConfig()


def test_a_single_store_says_how_a_list_is_written():
    with pytest.raises(ConfigError, match=r"data\.stores=\[corpus\]"):
        load_config("cpu-tiny", ["data.stores=corpus"])
