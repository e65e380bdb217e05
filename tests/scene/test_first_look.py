"""Scenes with few measured pixels or none: told within seconds, and never passed over."""

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window as Cut

import dofa
from dofa.errors import DataError
from dofa.scene import first_look

from .conftest import write_tiff

SIDE = 2048


def empty(path, measured=()):
    """A scene of 2048 × 2048 with nodata 0 everywhere but in the windows named."""
    image = np.zeros((2, 64, 64), np.uint16)
    write_tiff(path, image, names=["B03", "B04"], nodata=0)
    profile = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "sparse_ok": True}
    with rasterio.open(path) as small:
        profile = {**small.profile, "height": SIDE, "width": SIDE, **profile}
    with rasterio.open(path, "w", **profile) as out:
        out.set_band_description(1, "B03")
        out.set_band_description(2, "B04")
        for row, col, height, width in measured:
            out.write(np.full((2, height, width), 1500, np.uint16), window=Cut(col, row, width, height))
    return path


def read_bytes(monkeypatch):
    """Bytes of pixels that scenes read from now on."""
    total = [0]
    real = dofa.scene.scene.Scene.read

    def counted(self, window):
        total[0] += window.height * window.width * self.pixel_bytes
        return real(self, window)

    monkeypatch.setattr(dofa.scene.scene.Scene, "read", counted)
    return total


def test_a_scene_without_measured_pixels_is_not_read_to_its_end(tmp_path, monkeypatch):
    path = empty(tmp_path / "a.tif")
    monkeypatch.setattr(first_look, "SEARCHED", 2**22)
    total = read_bytes(monkeypatch)
    with pytest.raises(DataError, match="% of it"):
        dofa.open_scene(path, "sentinel-2-l2a", dn_offset=0)
    assert total[0] < 2 * 2**22


def test_a_scene_that_can_be_looked_through_is_refused_for_certain(tmp_path):
    with pytest.raises(DataError, match=r"a\.tif: not one pixel is measured"):
        dofa.open_scene(empty(tmp_path / "a.tif"), "sentinel-2-l2a", dn_offset=0)


@pytest.mark.parametrize(
    "where",
    [(0, 0, 1, 1), (SIDE - 1, SIDE - 1, 1, 1), (1000, SIDE - 3, 40, 3), (0, 700, 5, 300), (SIDE - 2, 300, 2, 9)],
)
def test_what_a_swath_leaves_at_the_border_is_found_first(where, tmp_path, monkeypatch):
    monkeypatch.setattr(first_look, "SEARCHED", SIDE * SIDE * 4 * 3 // 4)
    assert dofa.open_scene(empty(tmp_path / "a.tif", [where]), "sentinel-2-l2a", dn_offset=0).width == SIDE


@pytest.mark.parametrize("seed", range(5))
def test_a_few_measured_pixels_within_the_budget_are_found_wherever_they_lie(seed, tmp_path):
    row, col = np.random.default_rng(seed).integers(0, SIDE - 2, 2).tolist()
    assert dofa.open_scene(empty(tmp_path / "a.tif", [(row, col, 2, 2)]), "sentinel-2-l2a", dn_offset=0).width == SIDE
