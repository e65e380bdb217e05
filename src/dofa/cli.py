"""The command line: thin verbs over typed functions, imported only when their verb is used."""

import errno
import re
import shlex
import sys
import warnings
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, BooleanOptionalAction
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from dofa.addresses import redact
from dofa.errors import DofaError, nearest, shorten


@dataclass(frozen=True)
class Verb:
    """One command.

    Attributes:
        target: module and function behind it; its signature and docstring are the command's options and help.
        help: one line for `dofa --help`.
        positionals: parameters given without a flag and how many values they take, as argparse says it.
        extra: what of `pip install "dofa[…]"` the command needs.
    """

    target: str
    help: str
    positionals: dict[str, str | None] = field(default_factory=dict)
    extra: str = ""


LOCAL = ("out", "cache", "head", "labels")  # options that name what lies on this machine, whatever their type
VERBS = {
    "sensors": Verb("dofa.sensors:show", "list the sensors we know, or show one", {"name": "?"}),
    "pack": Verb(
        "dofa.corpus.command:pack_command",
        "pack images into a store for training",
        {"layout": None, "sources": "+"},
        "corpus",
    ),
    "prefit": Verb("dofa.model.prefit:prefit_command", "start a model from an RGB teacher's weights", {}),
    "pretrain": Verb("dofa.train.command:pretrain_command", "train a model on packed stores", {}, "train"),
    "convert": Verb("dofa.model.convert:convert", "convert released weights to the native format", {"source": None}),
    "chips": Verb("dofa.datasets.chips:chips", "cut labelled chips from rasters for a task", {"rasters": "+"}, "tasks"),
    "probe": Verb("dofa.evaluation.probe:probe", "judge frozen features on labelled images", {}, "tasks"),
    "finetune": Verb("dofa.finetuning.finetune:finetune", "adapt a model to labelled images", {}, "train,tasks"),
    "evaluate": Verb("dofa.finetuning.evaluate:evaluate", "score a trained head on labelled images", {}, "tasks"),
    "bench": Verb("dofa.bench.bench:bench", "judge models on many data sets: one table from one command", {}, "tasks"),
    "info": Verb(
        "dofa.inference.info:info", "say what will happen to scenes, and what looks wrong", {"scenes": "+"}, "scene"
    ),
    "embed": Verb("dofa.inference.embed:embed_command", "write features of scenes", {"scenes": "+"}, "scene"),
    "predict": Verb("dofa.inference.predict:predict", "map scenes with a trained head", {"scenes": "+"}, "scene"),
    "export": Verb(
        "dofa.model.export:export", "write an encoder, with a head if given, as ONNX or torch.export", {}, "export"
    ),
    "preview": Verb("dofa.inference.preview:preview", "draw a scene beside its features", {"scene": "+"}, "scene,plot"),
    "similar": Verb(
        "dofa.inference.similarity:similar", "map what resembles a place of a scene", {"scene": "+"}, "scene,plot"
    ),
    "demo": Verb("dofa.demo:run_demo", "learn five sensors in a few minutes and report", {}, "train,tasks,plot"),
}

# What these words mean in every command that has them, and the least they can be.
LEAST = {"batch": 1, "seed": 0, "size": 1}

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# What a disk says that is nobody's bug, and the cure.
REFUSALS = {
    **dict.fromkeys(FULL, "make room and run it again, or name another place"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "look at its permissions, or name another place"),
    errno.ENAMETOOLONG: "no file system takes such a name",
    errno.ENOENT: "it is not there, or was removed while the command ran: look at the path and run it again",
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR), "name another place"),
}

# How an interrupted command goes on; the others begin anew.
GO_ON = {
    **dict.fromkeys(("embed", "predict", "similar", "pack", "bench"), "what is done is kept, the same command goes on"),
    **dict.fromkeys(("pretrain", "finetune"), "the same command with --resume goes on from the last saved state"),
    "probe": "features that were kept are taken again by the same command",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when it worked, 2 for a mistake in the input (told in one line) or when a scene of several failed, 130 when
        interrupted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if args[0] in ("-V", "--version"):
        from dofa import __version__

        print(f"dofa {__version__}")
        return 0
    sys.unraisablehook = _without_gdal_text
    warnings.formatwarning = lambda message, *_: f"dofa: warning: {redact(' '.join(str(message).split()))}\n"
    try:
        if args[0] not in VERBS:
            raise DofaError(f"no command {args[0]!r}: {nearest(args[0], VERBS)}")
        return _run(args[0], VERBS[args[0]], args[1:])
    except DofaError as error:
        command = f": {redact(_mended(args, error.flags))}" if error.flags else ""
        _say(f"{' '.join(str(error).split())}{command}")
        return 2
    except OSError as error:
        cure = REFUSALS.get(error.errno or 0)
        if cure is None:
            raise
        if error.errno in FULL and args[0] in GO_ON:
            cure = f"make room: {GO_ON[args[0]]}"
        _say(f"{shorten(redact(str(error.filename or 'the output')), 200)}: {error.strerror}: {cure}")
        return 2
    except KeyboardInterrupt:
        _say(f"interrupted: {GO_ON.get(args[0], 'nothing was kept, run it again')}")
        return 130


def _say(text: str) -> None:
    """A line on stderr in one write: processes of a distributed run say the same words at the same time."""
    sys.stderr.write(f"dofa: {text}\n")


def _mended(args: Sequence[str], flags: Mapping[str, str | None]) -> str:
    """The command as it was typed, with some flags set otherwise or left out (None)."""
    kept: list[str] = []
    words = iter(args)
    for word in words:
        option, equals, _ = word.partition("=")
        if option not in flags:
            kept.append(word)
        elif not equals:
            next(words, None)  # each of these flags has one value
    for option, wanted in flags.items():
        kept += [] if wanted is None else [option, wanted]
    return shlex.join(["dofa", *map(redact, kept)])  # no signed query goes to a log


def _without_gdal_text(told: Any) -> None:
    """Leave out that rasterio could not decode a line of GDAL's log: the error itself is raised and told."""
    if not isinstance(told.exc_value, UnicodeDecodeError):
        sys.__unraisablehook__(told)


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:{width}}  {verb.help}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: dofa COMMAND …    (dofa COMMAND --help says more)",
            "",
            "One model for every Earth-observation sensor.",
            "",
            *lines,
        ]
    )


def _run(name: str, verb: Verb, argv: list[str]) -> int:
    module, function = verb.target.split(":")
    try:
        run = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        package = (error.name or "dofa").split(".")[0]
        if package == "dofa" or not verb.extra:
            raise
        raise DofaError(
            f'dofa {name} needs {package}, which is not installed: pip install "dofa[{verb.extra}]"'
        ) from None
    # argparse takes -97.1,46.9 for an option; a number with a blank before it is none.
    argv = [f" {word}" if re.match(r"-[\d.]+,", word) else word for word in argv]
    settings = vars(_parser(name, verb, run).parse_args(argv))
    for key, least in LEAST.items():
        if isinstance(value := settings.get(key), int) and value < least:
            raise DofaError(f"--{key} is {value}: at least {least}")
    result = run(**_grouped(run, settings))
    if hasattr(result, "print"):
        result.print()
    return int(getattr(result, "status", 0))


class Parser(ArgumentParser):
    """Says a mistake in one line, with the nearest flag, where argparse prints every option first."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong.

        Args:
            message: argparse's.

        Raises:
            DofaError: always.
        """
        if unknown := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            message = f"no option {unknown[1]}: {nearest(unknown[1], self._option_string_actions)}"
        raise DofaError(f"{self.prog.removeprefix('dofa ')}: {message} ({self.prog} --help lists the options)")


def _parser(name: str, verb: Verb, run: Callable[..., Any]) -> ArgumentParser:
    """Options from a function's signature and docstring, with flags and lists as people write them.

    A parameter that is a dataclass (`dofa.options`) stands for a group of options, one a field.
    """
    from docstring_parser import parse

    documented = parse(run.__doc__ or "")
    parser = Parser(prog=f"dofa {name}", description=verb.help, epilog=_escaped(documented.long_description))
    told = {p.arg_name: p.description for p in documented.params}
    hints = get_type_hints(run)
    for key, parameter in signature(run).parameters.items():
        if is_dataclass(hints[key]):
            classes = [parse(each.__doc__ or "") for each in reversed(hints[key].__mro__[:-1])]
            group = parser.add_argument_group((classes[-1].short_description or key).rstrip("."))
            said, kinds = {p.arg_name: p.description for c in classes for p in c.params}, get_type_hints(hints[key])
            for each in fields(hints[key]):
                _add_option(group, each.name, kinds[each.name], each.default, _escaped(said.get(each.name)))
        elif key in verb.positionals:
            parser.add_argument(dest=key, help=_escaped(told.get(key)), nargs=verb.positionals[key])
        else:
            _add_option(parser, key, hints[key], parameter.default, _escaped(told.get(key)))
    return parser


def _add_option(to: Any, key: str, hint: Any, default: Any, text: str) -> None:
    """One flag from the name, type and default of a parameter; without a default it is required."""
    kind, many, optional = _kind(hint)
    required = default in (Parameter.empty, MISSING) and not optional
    options: dict[str, Any] = {"dest": key, "help": text}
    name = key.replace("_", "-")
    flag = f"--{name}"
    if kind is bool and optional:
        # Neither is a third answer: --legacy-layout, --no-legacy-layout, or not said.
        to.add_argument(flag, action=BooleanOptionalAction, **options)
        return
    if kind is bool:
        # A flag says what differs from the default: --resume, or --no-resume.
        options["help"] = f"do not {text}" if default else text
        to.add_argument(f"--{'no-' if default else ''}{name}", action=f"store_{not default}".lower(), **options)
        return
    if get_origin(kind) is Literal:
        options["choices"] = get_args(kind)
        kind = type(get_args(kind)[0])
    options |= {"type": kind, "metavar": None if "choices" in options else kind.__name__.strip("_").upper()}
    if kind is Path or key in LOCAL:
        options["type"] = partial(_local, kind)
    if many:
        # Given twice, a list grows; its default is not the beginning of it, so it stays with the function.
        options |= {"nargs": "+", "action": "extend", "default": SUPPRESS}
    elif default not in (Parameter.empty, MISSING):
        options["default"] = default
    if default not in (Parameter.empty, MISSING, None, (), []):
        options["help"] += f" (default: {_shown(default)})"
    to.add_argument(flag, required=required, **options)


def _grouped(run: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What argparse found as arguments of the function: fields of a dataclass make one."""
    arguments = dict(settings)
    for key, hint in get_type_hints(run).items():
        if is_dataclass(hint) and key != "return":
            make: Any = hint
            arguments[key] = make(**{f.name: arguments.pop(f.name) for f in fields(hint) if f.name in arguments})
    return arguments


def _escaped(text: str | None) -> str:
    return (text or "").replace("%", "%%")  # argparse formats it


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)


def _kind(hint: Any) -> tuple[Any, bool, bool]:
    """How one value of a parameter is read, whether it takes several, and whether None is an answer."""
    if get_origin(hint) not in (Union, UnionType):
        if get_origin(hint) in (list, Sequence):
            return _kind(get_args(hint)[0])[0], True, False
        return hint, False, False
    parts = get_args(hint)
    # What a person can write: of `str | Path | DOFA` the text, of `int | str` either, of `list[str] | None` the list.
    written = [p for p in parts if p in (int, float, str, bool, Path) or get_origin(p) in (list, Sequence, Literal)]
    kind, many, _ = _kind(written[0])
    return _number_or_text if set(written) == {int, str} else kind, many, NoneType in parts


def _local(kind: type, value: str) -> Any:
    """A path on this machine: `Path` makes a folder s3:/bucket of an address, with what is secret in its name."""
    if "://" in value:
        raise ArgumentTypeError(f"{redact(value)} is an address, and a path on this machine is needed")
    return kind(value)


def _number_or_text(value: str) -> int | str:
    return int(value) if value.lstrip("-").isdigit() else value
