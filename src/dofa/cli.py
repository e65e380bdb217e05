"""The command line: thin verbs over typed functions, imported only when their verb is used."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from dofa.errors import DofaError, nearest

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


@dataclass(frozen=True)
class Verb:
    """One command.

    Attributes:
        target: module and function behind it; its signature and docstring are the command's options and help.
        help: one line for `dofa --help`.
        positionals: parameters given without a flag and how many values they take, as argparse says it.
    """

    target: str
    help: str
    positionals: dict[str, str | None] = field(default_factory=dict)


VERBS = {
    "sensors": Verb("dofa.sensors:show", "list the sensors we know, or show one", {"name": "?"}),
    "pack": Verb(
        "dofa.corpus.packing:pack_command", "pack images into a store for training", {"layout": None, "sources": "+"}
    ),
    "pretrain": Verb("dofa.train.command:pretrain_command", "train a model on packed stores", {}),
    "convert": Verb("dofa.model.convert:convert_command", "convert released weights to the native format", {"file": None}),
    "probe": Verb("dofa.tasks.probe:probe", "judge frozen features on labelled images", {}),
    "demo": Verb("dofa.demo:run_demo", "learn five sensors in a few minutes and report", {}),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when it worked, 2 for a mistake in the input (told in one line), 130 when interrupted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if args[0] in ("-V", "--version"):
        from dofa import __version__

        print(f"dofa {__version__}")
        return 0
    try:
        if args[0] not in VERBS:
            raise DofaError(f"no command {args[0]!r}: {nearest(args[0], VERBS)}")
        return _run(args[0], VERBS[args[0]], args[1:])
    except DofaError as error:
        print(f"dofa: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dofa: interrupted", file=sys.stderr)
        return 130


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
    run = getattr(import_module(module), function)
    settings = vars(_parser(name, verb, run).parse_args(argv))
    result = run(**settings)
    return result if isinstance(result, int) else 0


def _parser(name: str, verb: Verb, run: Callable[..., Any]) -> "ArgumentParser":
    """Options from a function's signature and docstring, with flags and lists written as people write them."""
    from docstring_parser import parse
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"dofa {name}", description=verb.help)
    told = {p.arg_name: p.description for p in parse(run.__doc__ or "").params}
    hints = get_type_hints(run)
    own = {key: hint for key, hint in hints.items() if key in verb.positionals or hint is bool or _items(hint)}
    for key, hint in own.items():
        if key == "return":
            continue
        default = signature(run).parameters[key].default
        text = {"help": told.get(key)}
        if key in verb.positionals:
            nargs = verb.positionals[key]
            parser.add_argument(key, **({"nargs": nargs} if nargs else {}), **text)
        elif hint is bool:
            # --resume, and --no-resume where it is the default: jsonargparse would want --resume true.
            flag, action = (f"no-{key}", "store_false") if default else (key, "store_true")
            parser.add_argument(f"--{flag.replace('_', '-')}", dest=key, action=action, **text)
        else:
            parser.add_argument(
                f"--{key.replace('_', '-')}", dest=key, nargs="+", action="extend", type=_items(hint), **text
            )
    parser.add_function_arguments(run, skip=set(own), as_group=False)
    return parser


def _items(hint: Any) -> type | None:
    """What a list or sequence of plain values holds, also where it may be absent; None for other types."""
    for one in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if get_origin(one) in (list, Sequence) and get_args(one)[0] in (str, int, float):
            item: type = get_args(one)[0]
            return item
    return None
