"""What the classes of a map cover: the numbers of an independent count, and hectares on the ground."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from dofa.inference.areas import beside, class_areas, with_areas
from dofa.inference.embed import Written
from dofa.outputs.layout import Layout
from dofa.outputs.work_file import Work

PLACES = {
    "EPSG:32633": (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0),
    "EPSG:3857": (20.0, 0.0, 1_300_000.0, 0.0, -20.0, 8_000_000.0),
    "EPSG:4326": (1e-3, 0.0, 12.0, 0.0, -2e-3, 60.0),
}


def write(path: Path, stored: np.ndarray, crs: str | None, names=("water", "field", "town"), transform=None) -> Path:
    classes = stored.dtype == np.uint8
    layout = Layout(
        height=stored.shape[1], width=stored.shape[2], channels=len(stored), dtype="uint8" if classes else "float32",
        names=("class",) if classes else names, crs=crs, nodata=255 if classes else float("nan"),
        transform=transform or PLACES.get(crs or "", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
        class_names=names if classes else None, colours=((1, 2, 3),) * 3 if classes else None,
    )  # fmt: skip
    with Work.open(path, layout, {"test": 1}) as work:
        work.write(0, 0, 0, stored)
        work.finish()
    return path


def geodesic(layout_transform, crs: str, rows: np.ndarray, cols: np.ndarray) -> float:
    """Hectares of single pixels, each a polygon on the ellipsoid."""
    a, _, c, _, e, f = layout_transform
    total = 0.0
    for row, col in zip(rows, cols, strict=True):
        xs = [c + a * (col + i) for i in (0, 1, 1, 0)]
        ys = [f + e * (row + i) for i in (0, 0, 1, 1)]
        lon, lat = rasterio.warp.transform(crs, "EPSG:4326", xs, ys)
        total += abs(Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)[0])
    return total / 1e4


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".parquet"])
@pytest.mark.parametrize("crs", list(PLACES))
def test_pixels_hectares_and_percent_are_those_of_an_independent_count(tmp_path: Path, crs: str, suffix: str) -> None:
    rng = np.random.default_rng(0)
    stored = rng.choice(np.array([0, 1, 1, 2, 255], np.uint8), (1, 37, 23))
    path = write(tmp_path / f"map{suffix}", stored, crs)
    areas = class_areas(path)
    assert [area.name for area in areas] == ["water", "field", "town"]
    valid = (stored != 255).sum()
    for k, area in enumerate(areas):
        rows, cols = np.nonzero(stored[0] == k)
        assert area.pixels == len(rows)
        assert area.percent == pytest.approx(100 * len(rows) / valid)
        expected = geodesic(PLACES[crs], crs, rows, cols)
        # A grid of UTM counts its own square metres, as every GIS does: .9996² of those on the ellipsoid here.
        planar = len(rows) * 100 / 1e4
        assert area.hectares == pytest.approx(planar if crs == "EPSG:32633" else expected, rel=2e-4)
        assert area.hectares == pytest.approx(expected, rel=2e-3)
        assert area.certainty is None


def test_a_map_of_many_latitudes_counts_each_row_by_its_own(tmp_path: Path) -> None:
    stored = np.zeros((1, 1000, 2), np.uint8)
    stored[0, 500:] = 1
    transform = (0.1, 0.0, 0.0, 0.0, -0.08, 80.0)  # from 80 degrees north to the equator
    north, south, _ = class_areas(write(tmp_path / "map.tif", stored, "EPSG:4326", transform=transform))
    radius, width = 6_371_007.0, math.radians(0.2)

    def band(low: float, high: float) -> float:
        return radius**2 * width * (math.sin(math.radians(high)) - math.sin(math.radians(low))) / 1e4

    assert north.hectares == pytest.approx(band(40, 80), rel=6e-3)  # of a sphere
    assert south.hectares == pytest.approx(band(0, 40), rel=6e-3)
    assert north.pixels == south.pixels


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_probabilities_count_the_likeliest_class_and_its_mean_certainty(seed: int) -> None:
    import tempfile

    rng = np.random.default_rng(seed)
    values = rng.dirichlet([1, 1, 1], (9, 8)).transpose(2, 0, 1).astype(np.float32)
    values[:, rng.random((9, 8)) < 0.2] = np.nan
    with tempfile.TemporaryDirectory() as folder:
        areas = class_areas(write(Path(folder) / "map.tif", values, None))
    seen = ~np.isnan(values[0])
    best = np.where(seen, np.nan_to_num(values).argmax(0), -1)
    for k, area in enumerate(areas):
        assert area.pixels == (best == k).sum()
        assert area.hectares is None
        if area.pixels:
            assert area.certainty == pytest.approx(values[k][best == k].mean(dtype=np.float64), rel=1e-6)
    assert sum(area.percent for area in areas) == pytest.approx(100 if seen.any() else 0)


def test_classes_that_do_not_exclude_each_other_are_counted_apart(tmp_path: Path) -> None:
    values = np.array([0.6, 0.7, 0.2], np.float32)[:, None, None] * np.ones((3, 4, 5), np.float32)
    path = write(tmp_path / "map.tif", values, "EPSG:32633")
    assert [area.pixels for area in with_areas(Written((path,)), "multilabel").areas[0][1]] == [20, 20, 0]


def test_the_areas_are_kept_as_json_and_printed_with_what_they_are(tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "map.tif", np.ones((1, 10, 10), np.uint8), "EPSG:32633")
    found = with_areas(Written((path,)), "segmentation")
    record = json.loads(beside(path).read_text())
    assert record["classes"][1] == {
        "name": "field",
        "pixels": 100,
        "hectares": 1.0,
        "percent": 100.0,
        "certainty": None,
    }
    found.print()
    out = capsys.readouterr().out
    assert "Olofsson" in out
    assert "1.00" in out
    assert with_areas(Written((path,)), "regression").areas == ()
