"""Every parameter of a public function is told: in its docstring, or in that of the method it overrides."""

import ast
import re
from pathlib import Path

import pytest

import dofa

SOURCE = Path(dofa.__file__).parent
MODULES = {str(path.relative_to(SOURCE)): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}
CLASSES = {node.name: node for tree in MODULES.values() for node in tree.body if isinstance(node, ast.ClassDef)}


def told(doc: str, name: str) -> bool:
    """Whether a docstring has an entry for the parameter, alone or among others, or names it in backticks."""
    entry = rf"(?m)^ +(?:\*{{0,2}}\w+, )*\*{{0,2}}{name}(?:, \w+)*: "
    return bool(re.search(entry, doc) or re.search(rf"`[^`]*\b{name}\b[^`]*`", doc))


def untold(function: ast.FunctionDef, owner: ast.ClassDef | None) -> list[str]:
    """The parameters that nothing is said of; of one alone the first line of the docstring is enough."""
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    static = any(isinstance(by, ast.Name) and by.id == "staticmethod" for by in function.decorator_list)
    names = [each.arg for each in every[bool(owner) and not static :]]
    doc = ast.get_docstring(function) or ""
    if len(names) < 2 or re.search(r"[Ss]ee `[\w.]+`|arguments [\w ]*(?:as|of) `[\w.]+`", doc):
        return []
    left = [name for name in names if not told(doc, name)]
    for base in bases(owner) if left else ():
        above = next((m for m in base.body if isinstance(m, ast.FunctionDef) and m.name == function.name), None)
        if above is not None and not untold(above, base):
            return []
    return left


def bases(owner: ast.ClassDef | None) -> list[ast.ClassDef]:
    """The classes of the package that one inherits from, near ones first."""
    named = [b.id for b in owner.bases if isinstance(b, ast.Name)] if owner else []
    near = [CLASSES[name] for name in named if name in CLASSES]
    return near + [far for base in near for far in bases(base)]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_parameter_of_a_public_function_is_told(module: str) -> None:
    missing = {}
    for node in MODULES[module].body:
        owner = node if isinstance(node, ast.ClassDef) else None
        for function in owner.body if owner else [node]:
            if not isinstance(function, ast.FunctionDef) or function.name.startswith("_"):
                continue
            if (owner is None or not owner.name.startswith("_")) and (left := untold(function, owner)):
                missing[f"{owner.name}.{function.name}" if owner else function.name] = left
    assert not missing
