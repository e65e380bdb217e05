"""Which code wrote a result."""

import subprocess
from pathlib import Path

import dofa
from dofa.version import code_version, commit_of


def git(folder: Path, *words: str) -> str:
    told = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", *words]
    return subprocess.run(["git", "-C", str(folder), *told], check=True, capture_output=True, text=True).stdout.strip()


def test_a_checkout_names_its_commit_and_whether_files_are_changed(tmp_path: Path) -> None:
    package = tmp_path / "src" / "dofa"
    package.mkdir(parents=True)
    (package / "a.py").write_text("")
    assert commit_of(package) == "", "no repository"
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "v9")
    commit = git(tmp_path, "rev-parse", "--short=7", "HEAD")
    assert commit_of(package) == f"+g{commit}"
    (package / "a.py").write_text("x = 1")
    assert commit_of(package) == f"+g{commit}-dirty"


def test_the_repository_around_an_installed_package_is_not_its_own(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "dofa"
    package.mkdir(parents=True)
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "theirs")
    assert commit_of(package) == ""


def test_without_git_the_version_stands_alone(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(tmp_path / "src" / "dofa") == ""


def test_the_version_comes_first() -> None:
    assert code_version().startswith(f"dofa {dofa.__version__}")
