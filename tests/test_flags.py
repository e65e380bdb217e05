"""Messages name flags that exist: each --word in the source is an option of some command."""

import ast
import re
from importlib import import_module
from pathlib import Path

import dofa
from dofa.cli import VERBS, _parser

SOURCE = Path(dofa.__file__).parent
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]+)")
# Flags of git and GDAL, and the one that main itself reads.
FOREIGN = {"version", "calc", "all", "always", "dirty", "abbrev", "exclude"}
# Where Python's arguments would be said to someone at a command line.
ARGUMENT = re.compile(r"(?<![\w.?&{])(dn_offset|bands|sensor|wavelengths_um|gsd_m|scaling)=(?!\{)")


def texts(path):
    """Strings that are neither docstrings nor style sheets, with their lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docs
            and ":root" not in node.value
        ):
            yield node.lineno, node.value


def test_every_flag_that_the_source_names_is_an_option_of_a_command():
    known = set()
    for name, verb in VERBS.items():
        module, function = verb.target.split(":")
        run = getattr(import_module(module), function)
        known |= {word[2:] for a in _parser(name, verb, run)._actions for word in a.option_strings if word[:2] == "--"}
    unknown = [
        f"{path.relative_to(SOURCE)}:{line}: --{flag}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, text in texts(path)
        for flag in FLAG.findall(text)
        if flag not in known | FOREIGN
    ]
    assert unknown == []


def test_messages_do_not_speak_of_python_arguments():
    said = [
        f"{path.relative_to(SOURCE)}:{line}: {text.strip()[:80]}"
        for room in ("raster", "scene", "pixels", "sensors", "corpus", "cli.py")
        for path in sorted([SOURCE / room] if room.endswith(".py") else (SOURCE / room).rglob("*.py"))
        for line, text in texts(path)
        if ARGUMENT.search(text)
    ]
    assert said == []
