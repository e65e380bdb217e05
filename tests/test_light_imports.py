"""`import dofa`, configurations and the command line's help load no heavy library, so that they answer at once."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    ["dofa", "dofa.cli", "dofa.sensors", "dofa.pixels", "dofa.model.config", "dofa.train.config", "dofa.train.recipes"],
)
def test_light_modules_load_no_heavy_library(module):
    heavy = "torch rasterio zarr lightning_fabric sklearn matplotlib scipy torchmetrics huggingface_hub"
    code = f"import sys, {module}; print(*[m for m in '{heavy}'.split() if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""
