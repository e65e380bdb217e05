"""The architecture as tests: each room imports only from the floors below it, and the top level stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dofa

SOURCE = Path(dofa.__file__).parent
# docs/architecture.md; a module may import from lower floors and from its own room.
FLOORS = [
    {"addresses"},
    {"errors"},
    {"io", "options", "progress", "version"},
    {"documents", "settings"},
    {"pixels"},
    {"sensors", "plots"},
    {"raster", "simulate", "model.config"},
    {"model", "corpus"},
    {"train", "scene"},
    {"inference"},
    {"datasets"},
    {"evaluation"},
    {"finetuning"},
    {"bench"},
    {"demo"},
    {"cli"},
    {"__main__"},
]


def room(module: str) -> str:
    """The room of a module: model.config stands alone, other packages are one room."""
    return module if module == "model.config" else module.split(".")[0]


def floor(module: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room(module) in rooms)


def imports(path: Path) -> set[str]:
    """Modules of dofa that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dofa":
            base = node.module.removeprefix("dofa").lstrip(".")
            if not base or (SOURCE / base.replace(".", "/")).is_dir():
                names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
                found |= {n for n in names if (SOURCE / n.replace(".", "/")).with_suffix(".py").exists()}
                if base:
                    found.add(base)
            else:
                found.add(base)
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("dofa.") for a in node.names if a.name.startswith("dofa.")}
    return found


MODULES = sorted(p for p in SOURCE.rglob("*.py") if p.name != "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_room_imports_only_from_the_floors_below(path):
    own = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for other in imports(path):
        if room(other) != room(own):
            assert floor(other) < floor(own), f"{own} imports {other}, which is not below it"


@pytest.mark.parametrize(
    "module",
    ["dofa", "dofa.cli", "dofa.sensors", "dofa.pixels", "dofa.model.config", "dofa.train.config", "dofa.train.recipes"],
)
def test_light_modules_load_no_heavy_library(module):
    heavy = "torch rasterio zarr lightning_fabric sklearn matplotlib scipy torchmetrics huggingface_hub"
    code = f"import sys, {module}; print(*[m for m in '{heavy}'.split() if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""
