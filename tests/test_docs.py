"""What the README and the quickstart tell people to type works as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import dofa
from dofa.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(dofa.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a page; plain fences have the language ''."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [text for name, text in fenced if name == language]


def commands(page: Path) -> list[list[str]]:
    """The dofa commands in a page's plain blocks, comments cut off."""
    lines = [line for block in blocks(page, "") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("dofa ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_that_is_shown_exists(page):
    for command in commands(page):
        assert command[1] in VERBS or command[1].startswith("-"), shlex.join(command)


def test_the_two_commands_stand_on_the_first_screen_and_are_targets_of_the_makefile():
    first = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:20])
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for command in ("demo", "test"):
        assert f"make {command}" in first
        assert command in targets


def test_the_readme_s_model_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = [b for b in blocks(ROOT / "README.md", "python") if "dofa.create" in b]
    names: dict[str, object] = {}
    exec(example, names)
    assert names["vector"].shape == (1, 192)
    assert [m.shape for m in names["maps"]] == [(1, 192, 8, 6)] * 2
    assert names["static"](names["image"]).shape == (1, 192)


def test_the_quickstart_s_raster_example_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    (example,) = [b for b in blocks(ROOT / "docs" / "quickstart.md", "python") if "open_raster" in b]
    names: dict[str, object] = {}
    exec(example, names)
    assert names["values"].shape[1:] == names["valid"].shape


def test_the_quickstart_s_commands_lead_from_pictures_to_a_model(tmp_path, monkeypatch):
    (tmp_path / "src").symlink_to(ROOT / "src")
    monkeypatch.chdir(tmp_path)
    ran = []
    for command in commands(ROOT / "docs" / "quickstart.md"):
        if command[1] in ("sensors", "pack", "pretrain"):
            short = ["run.updates=2", "run.precision=32-true"] if command[1] == "pretrain" else []
            answer = subprocess.run(
                [sys.executable, "-m", *command, *short], capture_output=True, text=True, timeout=300
            )
            assert answer.returncode == 0, answer.stderr
            ran.append(command[1])
    assert ran[-2:] == ["pack", "pretrain"]
    (example,) = [b for b in blocks(ROOT / "docs" / "quickstart.md", "python") if "runs/first/model" in b]
    names: dict[str, object] = {}
    exec(example, names)
    assert names["scaling"].bands == ("R", "G", "B", "NIR")
    assert names["scaling"].stats_source == "corpus"


def there(name: str) -> bool:
    """Whether a path below the package, or a dotted name in it, is there."""
    if "/" in name:
        path = SOURCE / name
        return path.exists() or path.with_suffix(".py").exists()
    *module, last = name.split(".")
    path = SOURCE.joinpath(*module)
    if (path / last).exists() or (path / f"{last}.py").exists():
        return True
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    return bool(re.search(rf"\b{last}\b", text))


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "log.md"], ids=lambda p: p.name)
def test_every_module_that_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    rooms = "|".join(p.name for p in SOURCE.iterdir() if (p / "__init__.py").exists())
    named = re.findall(rf"`(?:src/)?(?:dofa/)?((?:{rooms})/[a-z0-9_/.]+)`", text)
    named += re.findall(r"`dofa\.((?!(?:git|json)\b)[a-z][A-Za-z0-9_.]+)[`(]", text)
    assert [name for name in named if not there(name)] == []
