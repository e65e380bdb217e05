"""The example of a data set of one's own runs as it is printed."""

import re
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin

from dofa.model import checkpoint
from dofa.model.config import EncoderConfig
from dofa.model.encoder import DOFA

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"


def test_the_page_s_example_reads_folders_of_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = DOFA(EncoderConfig(width=24, depth=2, heads=3, patch=8, image_size=16))
    checkpoint.save(model, "runs/tiny/model")
    rng = np.random.default_rng(0)
    for level, name in ((60, "maize"), (180, "wheat")):
        Path("fields", name).mkdir(parents=True)
        for number in range(30):
            profile = {"driver": "GTiff", "width": 16, "height": 16, "count": 4, "dtype": "uint8"}
            place = {"crs": "EPSG:32632", "transform": from_origin(5e5, 58e5, 1, 1)}
            with rasterio.open(f"fields/{name}/{number:04}.tif", "w", **profile, **place) as file:
                file.write(rng.integers(level - 40, level + 40, (4, 16, 16)).astype("uint8"))
    (block,) = re.findall(r"## A data set of your own.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(block.splitlines()) <= 40
    found = {}
    exec(block, found)
    assert found["result"].row("band statistics").score.value == 1
    assert "my fields" in capsys.readouterr().out
