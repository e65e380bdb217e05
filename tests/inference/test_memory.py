"""Memory does not depend on the size of the scene."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import dofa
from dofa.model.checkpoint import save

pytest.importorskip("rasterio")

import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")


def write_scene(path, side):
    """Ten bands of uint16, tiled and deflated, a block of fields again and again."""
    rng = np.random.default_rng(0)
    block = (500 + 3000 * rng.random((10, 32, 32)).repeat(16, 1).repeat(16, 2)).astype(np.uint16)
    with rasterio.open(
        path, "w", driver="GTiff", count=10, height=side, width=side, dtype="uint16", crs="EPSG:32633", nodata=0,
        transform=from_origin(500000, 5000000, 10, 10), tiled=True, blockxsize=512, blockysize=512,
        compress="deflate", predictor=2, interleave="pixel",
    ) as out:  # fmt: skip
        for i, name in enumerate(BANDS, 1):
            out.set_band_description(i, name)
        for row in range(0, side, 512):
            for col in range(0, side, 512):
                height, width = min(512, side - row), min(512, side - col)
                out.write(block[:, :height, :width], window=Window(col, row, width, height))


def peak(words):
    """Bytes of resident memory at the peak of a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "dofa", *words], env=environment, stdout=subprocess.DEVNULL
    ) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other kernels count memory otherwise")
@pytest.mark.parametrize("name", ["x.tif", "x.zarr", "x.parquet"])
def test_seven_times_the_scene_takes_no_more_memory(tmp_path, name):
    torch.manual_seed(0)
    save(dofa.create("tiny", width=48, depth=1, heads=3, patch=16, image_size=256), tmp_path / "model", provenance={})
    peaks = []
    for side in (2048, 5490):
        path = tmp_path / f"{side}.tif"
        write_scene(path, side)
        words = ["embed", str(path), "--weights", str(tmp_path / "model"), "--stats", "scene", "--dn-offset", "0"]
        peaks.append(peak([*words, "--sensor", "sentinel-2-l2a", "--out", str(tmp_path / str(side) / name)]))
    assert peaks[1] <= 1.1 * peaks[0], f"{peaks[0] / 1e6:.0f} MB, then {peaks[1] / 1e6:.0f} MB"
