"""The command line: quick to answer, one line for a mistake, options from the functions behind it."""

import subprocess
import sys
import time
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import signature
from typing import get_type_hints

import pytest

from dofa.cli import VERBS, _mended, _parser, main
from dofa.errors import DofaError
from dofa.options import SceneOptions


def _function(verb):
    module, name = VERBS[verb].target.split(":")
    return getattr(import_module(module), name)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dofa", *argv], capture_output=True, text=True)


def test_help_names_every_command_in_under_half_a_second_of_processor_time():
    code = "import sys, time; from dofa.cli import main; main(['--help']); print(time.process_time(), file=sys.stderr)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(verb in answer.stdout for verb in VERBS)
    # Processor time since the interpreter began: wall time would measure the other tests on this machine.
    assert float(answer.stderr) < 0.5


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_explains_each_of_its_options(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert verb in capsys.readouterr().out
    module, function = VERBS[verb].target.split(":")
    target = getattr(__import__(module, fromlist=[function]), function)
    parser = _parser(verb, VERBS[verb], target)
    unexplained = [a.dest for a in parser._actions if not a.help]
    assert unexplained == []


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["sensers"]) == 2
    assert capsys.readouterr().err == "dofa: no command 'sensers': did you mean sensors?\n"


def test_an_unknown_sensor_is_one_line_without_a_traceback():
    answer = run("sensors", "sentinel-2-l2b")
    assert answer.returncode == 2
    assert answer.stderr.startswith("dofa: unknown sensor 'sentinel-2-l2b': did you mean sentinel-2-l2a")
    assert answer.stderr.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(name: str | None = None) -> None:
        """Show.

        Args:
            name: of a sensor.
        """
        raise ZeroDivisionError

    monkeypatch.setattr("dofa.sensors.show", broken)
    with pytest.raises(ZeroDivisionError):
        main(["sensors"])


def test_an_error_of_several_lines_is_told_in_one(monkeypatch, capsys):
    def broken(name: str | None = None) -> None:
        """Show.

        Args:
            name: of a sensor.
        """
        raise DofaError("first\n   second")

    monkeypatch.setattr("dofa.sensors.show", broken)
    assert main(["sensors"]) == 2
    assert capsys.readouterr().err == "dofa: first second\n"


def test_options_are_written_as_people_write_them(monkeypatch):
    told = {}

    def pretend(
        config: str,
        set: list[str] | None = None,
        resume: bool = False,
        legacy_layout: bool | None = None,
        blocks: list[int | str] = ["pooled"],  # noqa: B006
    ) -> None:
        """Pretend.

        Args:
            config: file.
            set: settings.
            resume: go on.
            legacy_layout: order.
            blocks: levels.
        """
        told.update(config=config, set=set, resume=resume, legacy_layout=legacy_layout, blocks=blocks)

    monkeypatch.setattr("dofa.train.command.pretrain_command", pretend)
    main(["pretrain", "--config", "x", "--set", "a=1", "b=[c, d]", "--set", "e=2", "--resume", "--no-legacy-layout"])
    assert told == {
        "config": "x",
        "set": ["a=1", "b=[c, d]", "e=2"],
        "resume": True,
        "legacy_layout": False,
        "blocks": ["pooled"],
    }
    main(["pretrain", "--config", "x", "--blocks", "3", "-1", "pooled"])
    assert told["blocks"] == [3, -1, "pooled"]
    assert told["legacy_layout"] is None
    assert told["set"] is None


SHARED = {
    "--sensor": ("naip-rgbn", "naip-rgbn"), "--bands": ("B02 -", ["B02", "-"]), "--wavelengths": (".5 .6", [0.5, 0.6]),
    "--dn-offset": ("-1000", "-1000"), "--dn-scale": ("0.5", 0.5), "--unit": ("db", "db"), "--nodata": ("-9999", -9999),
    "--gsd": ("10", 10), "--mask": ("SCL", "SCL"), "--mask-values": ("cloud 3", ["cloud", 3]), "--strict": ("", True),
    "--stack": ("", True), "--stats": ("scene", "scene"), "--stride": ("4", 4), "--tile": ("224", 224),
    "--overlap": ("16", 16), "--batch": ("8", 8), "--precision": ("bf16", "bf16"), "--device": ("cpu", "cpu"),
    "--compile": ("", True), "--cluster": ("local:2", "local:2"), "--format": ("zarr", "zarr"),
    "--overwrite": ("", True),
}  # fmt: skip
GROUPS = [
    (verb, key, hint)
    for verb in VERBS
    for key, hint in get_type_hints(_function(verb)).items()
    if is_dataclass(hint) and key != "return"
]


@pytest.mark.parametrize(("verb", "key", "group"), GROUPS, ids=[f"{v}-{k}" for v, k, _ in GROUPS])
def test_every_shared_option_is_taken_by_every_command_that_has_it(verb, key, group, monkeypatch):
    """`dofa similar --mask-values cloud` was refused while `embed` took it."""
    flags = [f"--{f.name.replace('_', '-')}" for f in fields(group)]
    told = [word for flag in flags for word in [flag, *SHARED[flag][0].split()]]
    required = [p for p in signature(_function(verb)).parameters.values() if p.default is p.empty]
    given = [w for p in required for w in ([f"--{p.name}"] if p.name not in VERBS[verb].positionals else []) + ["x"]]
    seen = {}

    def run(**settings):
        seen.update(settings)

    run.__signature__, run.__annotations__ = signature(_function(verb)), get_type_hints(_function(verb))
    monkeypatch.setattr(import_module(VERBS[verb].target.partition(":")[0]), _function(verb).__name__, run)
    assert main([verb, *given, *told]) == 0
    assert vars(seen[key]) == {f.name: SHARED[flag][1] for f, flag in zip(fields(group), flags, strict=True)}


def test_what_is_not_said_is_the_default_of_the_shared_options(monkeypatch):
    seen = {}
    monkeypatch.setattr("dofa.inference.similarity.load", lambda weights: pytest.fail("loaded"))
    monkeypatch.setattr("dofa.inference.similarity.open_with", lambda *told: seen.update(told=told) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["similar", "a.tif", "--weights", "m", "--out", "b.tif"])
    assert seen["told"] == (["a.tif"], SceneOptions())


@pytest.mark.parametrize(("verb", "told"), [("pack", "do not continue"), ("probe", "do not compare")])
def test_a_flag_that_switches_something_off_says_so(verb, told, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert told in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("setting", "value"), [("batch", "0"), ("seed", "-1"), ("size", "0")])
def test_a_number_that_no_command_can_take_is_one_line(setting, value, capsys):
    assert main(["probe", "--weights", "none", "--data", "none", f"--{setting}", value]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"dofa: --{setting} is {value}: at least ")
    assert told.count("\n") == 1


def test_sensors_lists_and_shows(capsys):
    assert main(["sensors"]) == 0
    listed = capsys.readouterr().out
    assert "sentinel-2-l2a" in listed
    assert "enmap-202" in listed
    began = time.process_time()
    assert main(["sensors", "sentinel-2-l2a"]) == 0
    assert time.process_time() - began < 0.5
    assert "0.4924" in capsys.readouterr().out


def test_a_cure_shows_the_command_without_its_secrets_and_with_all_its_files():
    words = ["embed", "--stats", "x", "https://u:p@host/a.tif?sig=1", "b c.tif", "--gsd=3", "--out", "o"]
    shown = _mended(words, {"--stats": None, "--gsd": "10"})
    assert shown == "dofa embed 'https://host/a.tif?…' 'b c.tif' --out o --gsd 10"


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["embed", "x.tif", "--out", "y.tif"], ["--weights"]),
        (["embed", "x.tif", "--weights", "w", "--out", "y.tif", "--senser", "a"], ["--senser", "--sensor"]),
        (["chips", "x.tif", "--label", "a", "--out", "y"], ["--label", "--labels"]),
        (["embed", "x.tif", "--weights", "w", "--out", "y.tif", "--batch", "many"], ["--batch", "many"]),
    ],
)
def test_a_mistaken_option_is_one_line_that_names_it(argv, names, capsys):
    assert main(argv) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert all(name in told for name in names)


def test_the_folder_above_a_model_or_a_head_names_the_one_within(tmp_path):
    from dofa.errors import CheckpointError
    from dofa.model.checkpoint import load
    from dofa.model.heads import load_head

    for inner, record, read in (("model", "config.json", load), ("head", "head.json", load_head)):
        (tmp_path / "run" / inner).mkdir(parents=True)
        (tmp_path / "run" / inner / record).write_text("{}")
        with pytest.raises(CheckpointError) as error:
            read(str(tmp_path / "run"))
        assert str(tmp_path / "run" / inner) in str(error.value)
