"""Fixtures every room uses: the shared folder where it is present, one thread, quiet progress bars."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

SHARED = Path(os.environ.get("DOFA_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared of the workplace: real data and golden numbers, which the project does not carry."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: real data and golden numbers are not part of the project")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Numbers computed with the reference implementation."""
    return shared / "golden"


@pytest.fixture(scope="session")
def real_data(shared: Path) -> Path:
    """Real imagery."""
    return shared / "data"
