"""Bands in files of their own become one image of the numbers that were measured."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.transform import from_origin

from dofa import sensors
from dofa.corpus.readers.band_files import coarser, part, read_stack, repeat, subfolders
from dofa.errors import DataError


def write(path: Path, pixels: np.ndarray, side_m=10.0, crs="EPSG:32633", west=600_000.0, **options) -> Path:
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    place = {"crs": crs, "transform": from_origin(west, 5_000_000, side_m, side_m)} if crs else {}
    count, height, width = pixels.shape
    with rasterio.open(path, "w", "GTiff", width, height, count, dtype=pixels.dtype, **place, **options) as file:
        file.write(pixels)
    return path


@given(arrays(np.uint16, st.tuples(st.integers(1, 5), st.integers(1, 5))), st.integers(1, 6))
def test_every_number_is_repeated_and_none_invented(coarse, times):
    fine = np.zeros((coarse.shape[0] * times, coarse.shape[1] * times), coarse.dtype)
    repeat(coarse, fine)
    for row in range(times):
        for column in range(times):
            np.testing.assert_array_equal(fine[row::times, column::times], coarse)


def test_the_finest_band_sets_the_grid_wherever_it_stands(tmp_path):
    coarse, fine = np.arange(4, dtype=np.uint16).reshape(2, 2), np.arange(36, dtype=np.uint16).reshape(6, 6)
    paths = [write(tmp_path / "a.tif", coarse, 30), write(tmp_path / "b.tif", fine)]
    stack = read_stack(paths)
    np.testing.assert_array_equal(stack.image, [np.kron(coarse, np.ones((3, 3), int)), fine])
    assert (stack.bounds, stack.frame) == ((600_000, 4_999_940, 600_060, 5_000_000), "EPSG:32633")


def test_a_pixel_counts_where_every_band_has_a_measurement(tmp_path):
    coarse, fine = np.ones((2, 2), np.float32), np.ones((4, 4), np.float32)
    coarse[0, 1], fine[3, 0], fine[3, 3] = np.nan, -9, np.inf
    stack = read_stack([write(tmp_path / "a.tif", coarse, 20), write(tmp_path / "b.tif", fine, nodata=-9)])
    lost = np.zeros((4, 4), bool)
    lost[:2, 2:] = lost[3, 0] = lost[3, 3] = True
    np.testing.assert_array_equal(stack.valid, ~lost)
    assert stack.cut(2, 0, 1, 2).valid is None


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"pixels": np.ones((4, 4), np.uint16), "side_m": 15}, "has 4×4 pixels, no whole part of the 6×6"),
        ({"pixels": np.ones((3, 2), np.uint16), "side_m": 20}, "has 3×2 pixels, no whole part of the 6×6"),
        ({"pixels": np.ones((3, 3), np.int16), "side_m": 20}, "is of type int16, the finest band of uint16"),
        ({"pixels": np.ones((2, 3, 3), np.uint16), "side_m": 20}, "holds 2 bands; one is expected"),
        ({"pixels": np.ones((3, 3), np.uint16), "side_m": 20, "west": 600_021}, "begins at 600021, .*other ground"),
        ({"pixels": np.ones((3, 3), np.uint16), "side_m": 20, "crs": "EPSG:32634"}, "lies in EPSG:32634, the finest"),
        ({"pixels": np.ones((3, 3), np.uint16), "side_m": 20, "crs": None}, "lies in None, the finest"),
    ],
)
def test_files_that_make_no_image_are_refused_by_name(tmp_path, second, said):
    first = write(tmp_path / "fine.tif", np.ones((6, 6), np.uint16))
    with pytest.raises(DataError, match=rf"other\.tif {said}"):
        read_stack([first, write(tmp_path / "other.tif", **second)])


def test_missing_and_torn_files_are_refused_by_name(tmp_path):
    first = write(tmp_path / "fine.tif", np.random.default_rng(0).integers(0, 9, (64, 64), np.uint16))
    with pytest.raises(DataError, match=r"absent\.tif cannot be opened: .*No such file"):
        read_stack([first, tmp_path / "absent.tif"])
    torn = tmp_path / "torn.tif"
    torn.write_bytes(first.read_bytes()[:6000])
    with pytest.raises(DataError, match=r"torn\.tif"):
        read_stack([first, torn])


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9))
def test_a_window_lies_where_its_pixels_lie(top, left, height, width):
    west, south, east, north = part((100.0, 200.0, 118.0, 236.0), (18, 18), (top, left, height, width))
    assert (west, north) == pytest.approx((100 + left, 236 - 2 * top))
    assert (east - west, north - south) == pytest.approx((width, 2 * height))


def test_bands_of_one_distance_need_no_note():
    assert coarser(sensors.get("sentinel-1-grd")) == ""
    assert coarser(sensors.get("sentinel-2-l2a").select(["B05", "B11"])) == ""
    assert coarser(sensors.get("sentinel-2-l2a").select(["B02", "B11"])).startswith("bands B11 of 20 m are repeated")


def test_only_folders_count_and_a_file_holds_none(tmp_path):
    import re

    (tmp_path / "12").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "34").write_text("")
    assert list(subfolders(tmp_path, re.compile(r"\d\d"))) == ["12"]
    assert list(subfolders(tmp_path / "34", re.compile(r".*"))) == []
