"""Which code it was: the version, and in a checkout its commit."""

import subprocess
from functools import cache
from pathlib import Path

import dofa

PACKAGE = Path(dofa.__file__).resolve().parent


@cache
def code_version() -> str:
    """Version of this package, for the provenance of weights and results; found out once a process.

    Returns:
        `dofa 0.1.0`; in a checkout with its commit, `dofa 0.1.0+gabc1234`, and `-dirty` where files are changed.
    """
    return f"dofa {dofa.__version__}{commit_of(PACKAGE)}"


def commit_of(package: Path) -> str:
    """`+g` and the commit of the checkout that a package lies in as `src/NAME`; empty without one or without git."""
    root = package.parents[1]
    # An installed package may lie in somebody else's repository, so that only our own layout counts.
    if package.parent.name != "src" or not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    try:
        return "+g" + subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
