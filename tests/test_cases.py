"""Files as people have them, with the right answers: ../shared/cases, where it is present."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_case_of_the_shared_folder_is_answered_rightly(shared):
    runner = shared / "cases" / "run.py"
    if not runner.is_file():
        pytest.skip(f"{runner} is absent")
    command = Path(sys.executable).with_name("dofa")
    source = Path(__file__).resolve().parents[1] / "src"
    answer = subprocess.run(
        [sys.executable, str(runner), "--dofa", str(command)],
        capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": str(source)}, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert " 0 failed" in answer.stdout
