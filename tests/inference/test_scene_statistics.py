"""Statistics of scenes: exact where all is read, close where it is sampled, of valid pixels alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dofa.errors import DataError
from dofa.pixels import Scaling

pytest.importorskip("rasterio")

from dofa.inference.scene_statistics import scene_statistics
from dofa.scene.grid import Window
from dofa.scene.scene import Scene, open_scene

from ..scene.conftest import write_tiff

NAMES = ["B02", "B03", "B04", "B08"]


def reflectances(seed=0, height=300, width=420, bands=4):
    """Numbers whose mean drifts over the scene, so that a corner is not the whole."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 3000, width)[None, None] + 500 * np.arange(bands)[:, None, None]
    return (slope + rng.integers(200, 900, (bands, height, width))).astype("uint16")


def test_a_scene_read_whole_has_the_mean_and_deviation_of_its_valid_pixels(tmp_path):
    image = reflectances()
    image[:, :90] = 0
    path = write_tiff(tmp_path / "s.tif", image, names=NAMES, nodata=0, tiled=True, blockxsize=64, blockysize=64)
    with open_scene(path, "sentinel-2-l2a", dn_offset=-100) as scene:
        (found,) = scene_statistics([scene])
    physical = (image[:, 90:].astype("float64") - 100) / 10_000
    assert found.mean == pytest.approx(physical.mean((1, 2)), rel=1e-6)
    assert found.std == pytest.approx(physical.std((1, 2)), rel=1e-6)
    assert (found.stats_source, found.bands, found.unit) == ("scene", tuple(NAMES), "reflectance")


def test_a_sample_is_close_to_the_whole_bounded_and_the_same_each_time(tmp_path, monkeypatch):
    image = reflectances(height=1500, width=1700, bands=2)
    path = write_tiff(tmp_path / "s.tif", image, names=NAMES[:2], tiled=True, blockxsize=128, blockysize=128)
    with open_scene(path, "sentinel-2-l2a", dn_offset=0) as scene:
        read, seen = type(scene).read, []
        monkeypatch.setattr(type(scene), "read", lambda self, window: seen.append(window) or read(self, window))
        (found,) = scene_statistics([scene], pixels=500_000)
        assert 500_000 <= sum(w.height * w.width for w in seen) < 500_000 + 256**2
        assert len({(w.row, w.col) for w in seen}) == len(seen)
        assert scene_statistics([scene], pixels=500_000) == [found]
        (whole,) = scene_statistics([scene], pixels=10**9)
    assert np.abs(np.subtract(found.mean, whole.mean)).max() < 0.25 * min(whole.std)
    assert found != whole


@settings(max_examples=8, deadline=None)
@given(split=st.integers(20, 280))
def test_the_statistics_of_a_data_set_are_those_of_all_its_pixels(tmp_path_factory, split):
    folder = tmp_path_factory.mktemp("parts")
    image = reflectances(3)
    paths = [
        write_tiff(folder / "a.tif", image[:, :split], names=NAMES),
        write_tiff(folder / "b.tif", image[::-1, split:], names=NAMES[::-1]),  # the same bands in another order
        write_tiff(folder / "c.tif", image, names=NAMES),
    ]
    a, b, c = (open_scene(p, "sentinel-2-l2a", dn_offset=0) for p in paths)
    (both,), (whole,) = scene_statistics([a, b]), scene_statistics([c])
    assert both.mean == pytest.approx(whole.mean, rel=1e-9)
    assert both.std == pytest.approx(whole.std, rel=1e-9)


def test_many_bands_are_counted_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("dofa.inference.scene_statistics.AT_ONCE", 5000)
    image = reflectances(height=70, width=90, bands=40)
    path = write_tiff(tmp_path / "cube.tif", image)
    with open_scene(path, wavelengths_um=np.linspace(0.4, 2.4, 40).tolist(), scaling=scaling_of(40)) as scene:
        (found,) = scene_statistics([scene])
    assert found.mean == pytest.approx(image.mean((1, 2)) * 1e-4, rel=1e-6)


def scaling_of(count):
    return Scaling.uniform("reflectance", [f"{w:.0f}nm" for w in np.linspace(400, 2400, count)], 1e-4)


def test_other_bands_or_units_are_no_data_set_and_no_valid_pixel_is_an_error(tmp_path):
    image = reflectances()
    a = open_scene(write_tiff(tmp_path / "a.tif", image, names=NAMES), "sentinel-2-l2a", dn_offset=0)
    b = open_scene(write_tiff(tmp_path / "b.tif", image[:3], names=NAMES[:3]), "sentinel-2-l2a", dn_offset=0)
    with pytest.raises(DataError, match=r"b.tif has sentinel-2-l2a in reflectance \(B02, B03, B04\), a.tif has .*B08"):
        scene_statistics([a, b])
    b.parts = (replace(a.parts[0], scaling=replace(a.parts[0].scaling, unit="dn")),)
    with pytest.raises(DataError, match="sentinel-2-l2a in dn"):
        scene_statistics([a, b])
    apart = np.eye(4, dtype="uint16")[:, :, None].repeat(4, axis=2)  # no pixel has a measurement in every band
    file = replace(a.parts[0].files[0], href=str(write_tiff(tmp_path / "c.tif", apart)), nodata=1.0)
    empty = Scene("c.tif", [replace(a.parts[0], files=(file,))])
    with pytest.raises(DataError, match=r"c\.tif has no valid pixel to take statistics from"):
        scene_statistics([empty])


def test_real_statistics_of_an_enmap_tile_are_those_of_its_valid_pixels(real_data: Path):
    path = next((real_data / "enmap_hyspecnet11k").rglob("*SPECTRAL_IMAGE.TIF"))
    with open_scene(path, "enmap") as scene:
        (found,) = scene_statistics([scene])
        physical, valid = scene.read_physical(whole(scene))
    values = physical[:, valid].astype("float64")
    assert found.mean == pytest.approx(values.mean(1), rel=1e-5, abs=1e-7)
    assert found.std == pytest.approx(values.std(1), rel=1e-5, abs=1e-7)


def whole(scene):
    return Window(0, 0, scene.height, scene.width)
