"""Install torch without gigabytes of CUDA packages, and say where it came from.

Tried in turn: what is installed; what pip offers, if that build needs no CUDA packages (a CPU wheel, or macOS);
PyTorch's CPU index; and last whatever pip offers. TORCH=gpu takes pip's own choice at once. Standard library only.
"""

import importlib.util
import json
import os
import subprocess
import sys

REQUIREMENT = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]


def offered_build_is_light() -> bool:
    """Whether pip's own choice of torch brings no CUDA packages, asked without downloading it."""
    command = [*PIP, "--dry-run", "--no-deps", "--ignore-installed", "--report", "-", REQUIREMENT]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        return False
    metadata = json.loads(answer.stdout)["install"][0]["metadata"]
    needs = [line for line in metadata.get("requires_dist", []) if line.startswith(("nvidia-", "cuda-", "triton"))]
    # Markers such as platform_system == "Linux" sit behind a semicolon; "extra ==" lines are not installed.
    return not any(sys.platform == "linux" and "extra ==" not in line for line in needs)


def main() -> int:
    """Install torch unless it is there; returns pip's exit status."""
    if importlib.util.find_spec("torch"):
        print("torch: the one that is installed")
        return 0
    plain, cpu = [*PIP, REQUIREMENT], [*PIP, "--index-url", CPU_INDEX, REQUIREMENT]
    if os.environ.get("TORCH") == "gpu":
        attempts = [("pip's own choice (TORCH=gpu)", plain)]
    elif offered_build_is_light():
        attempts = [("pip's own choice, a CPU build", plain), ("PyTorch's CPU index", cpu)]
    else:
        attempts = [("PyTorch's CPU index", cpu), ("pip's own choice, which may be large", plain)]
    for name, command in attempts:
        if subprocess.run(command).returncode == 0:
            print(f"torch: from {name}")
            return 0
        print(f"torch: {name} did not work", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
