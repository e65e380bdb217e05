"""Own rasters and labels: cut to chips, dealt out by blocks of ground, learned, and mapped."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from shapely.geometry import LineString, Point, Polygon, box

from dofa.cli import main
from dofa.datasets import chips as command
from dofa.datasets.blocks import SPLITS, Blocks, assign_blocks
from dofa.datasets.chips import chips, read_chips
from dofa.errors import ConfigError, DataError, DofaError
from dofa.model import checkpoint
from dofa.model.config import EncoderConfig
from dofa.model.encoder import DOFA
from dofa.model.heads import load_head
from dofa.options import ScenesOptions
from dofa.scene.grid import Window

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "src" / "dofa" / "samples" / "naip-rgbn"
NAIP = ScenesOptions("naip-rgbn")
UTM = "EPSG:32614"
ORIGIN = (486_200.0, 5_207_595.0)  # of the rasters, their upper left corner
GSD = 5.0


def write_raster(
    path: Path,
    values: np.ndarray,
    *,
    crs: str | None = UTM,
    gsd: float = GSD,
    shift: tuple[float, float] = (0, 0),
    **profile: Any,
) -> Path:
    """A raster of (C, H, W) numbers; `shift` in pixels, right and down."""
    count, height, width = values.shape
    place = Affine(gsd, 0, ORIGIN[0] + shift[0] * gsd, 0, -gsd, ORIGIN[1] - shift[1] * gsd)
    where = {} if crs is None else {"crs": crs, "transform": place}
    scales = profile.pop("scales", None)
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=values.dtype, **where, **profile
    ) as out:
        out.write(values)
        if count == 4:
            out.descriptions = ("R", "G", "B", "NIR")
        if scales is not None:
            out.scales = scales
    return path


def noise(height: int = 256, width: int = 256, seed: int = 0, low: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, 255, (4, height, width), dtype=np.uint8)


def ground(col: float, row: float) -> tuple[float, float]:
    """Coordinates of a place in pixels."""
    return ORIGIN[0] + col * GSD, ORIGIN[1] - row * GSD


def rectangle(left: float, top: float, right: float, bottom: float) -> Polygon:
    """In pixels of the raster."""
    return box(*ground(left, bottom), *ground(right, top))


def write_labels(
    path: Path, shapes: list[tuple[Any, Any]], crs: str = UTM, field: str = "class", **more: list[Any]
) -> Path:
    frame = geopandas.GeoDataFrame({field: [v for _, v in shapes], **more}, geometry=[g for g, _ in shapes], crs=UTM)
    frame.to_crs(crs).to_file(path, engine="pyogrio")
    return path


def halves() -> list[tuple[Polygon, str]]:
    """The left half is water, the right half land; edges lie inside pixels, away from their centres."""
    return [(rectangle(0.2, 0.2, 127.8, 255.8), "water"), (rectangle(128.2, 0.2, 255.8, 255.8), "land")]


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "naip.tif", noise())


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return write_labels(tmp_path / "labels.geojson", halves(), "EPSG:4326")


@pytest.fixture
def cut(raster: Path, labels: Path, tmp_path: Path) -> Callable[..., command.ChipReport]:
    """`chips` of one raster and its labels, whatever is told otherwise."""

    def run(rasters: list[Path] | None = None, **told: Any) -> command.ChipReport:
        chosen = {"labels": [str(labels)], "out": tmp_path / "chips", "size": 16, "sensor": "naip-rgbn"} | told
        words = {f.name: chosen.pop(f.name) for f in fields(ScenesOptions) if f.name in chosen}
        return chips([str(r) for r in rasters or [raster]], opening=ScenesOptions(**words), **chosen)

    return run


# -- an analyst's path ------------------------------------------------------------------------------------------------


def test_the_page_leads_from_a_raster_and_polygons_to_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("src", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    checkpoint.save(
        DOFA(EncoderConfig(width=48, depth=2, heads=3, patch=8, image_size=16)), tmp_path / "runs/first/model"
    )
    page = (ROOT / "docs" / "own-labels.md").read_text(encoding="utf-8")
    lines = page.replace("\\\n", " ").splitlines()
    said = [shlex.split(line) for line in lines if line.startswith("dofa ")]
    path = [c for c in said if "runs/fields" in " ".join(c)]
    assert [c[1] for c in path] == ["chips", "probe", "predict"]
    for words in path:
        assert main(words[1:]) == 0
    head = load_head("runs/fields-probe/head")
    assert head.class_names == ("crop", "grass", "stubble", "water")
    assert head.gsd_m == GSD
    assert head.colours[3] == (0x2B, 0x6C, 0xB0)  # as drawn
    right = judged = 0
    drawn = geopandas.read_file("docs/own-labels.geojson")
    with rasterio.open("runs/fields-map.tif") as mapped, rasterio.open(SAMPLES / "east_2016.tif") as scene:
        assert mapped.bounds == scene.bounds
        for feature in drawn.to_crs(mapped.crs.to_wkt()).itertuples():
            spot = feature.geometry.representative_point()
            if box(*mapped.bounds).contains(spot):
                (value,) = next(mapped.sample([(spot.x, spot.y)]))
                judged += 1
                right += head.class_names[value] == feature[1]
    assert judged >= 9
    assert right >= 0.7 * judged  # random weights, but bands told apart


# -- labels to chips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "crs"), [("geojson", "EPSG:4326"), ("gpkg", UTM), ("gpkg", "EPSG:3857"), ("shp", UTM)]
)
def test_masks_are_the_polygons_whatever_their_file_and_reference_system(cut, tmp_path, suffix, crs) -> None:
    shapes = [*halves(), (rectangle(40.3, 70.3, 60.7, 90.7), "island")]
    shapes[0] = (shapes[0][0].difference(shapes[2][0]), "water")
    path = write_labels(tmp_path / f"drawn.{suffix}", shapes, crs)
    report = cut(labels=[str(path)], task="segmentation", size=32)
    data = read_chips(tmp_path / "chips")
    assert data.task == "segmentation"
    assert data.class_names == ("island", "land", "water") == report.class_names
    expected = np.full((256, 256), 2)
    expected[:, 128:] = 1
    expected[70:91, 40:61] = 0  # pixels whose centres the island holds
    seen = np.zeros((256, 256), bool)
    assert data.read_mask is not None
    for i, source in enumerate(data.sources):
        row, col = map(int, source.rsplit("@", 1)[1].split(","))
        at = np.s_[row : row + 32, col : col + 32]
        np.testing.assert_array_equal(data.read_mask(i), expected[at])
        np.testing.assert_array_equal(data.read(i)[0], noise()[:, *at])
        seen[at] = True
    assert seen.all()
    assert report.counts.sum() == 256 * 256


def test_a_chip_has_the_class_of_the_majority_and_none_without_one(cut, tmp_path) -> None:
    shapes = [
        (rectangle(0.2, 0.2, 127.8, 255.8), "water"),
        (rectangle(128.2, 0.2, 248.2, 255.8), "land"),  # ends in the middle of a column of chips
        (rectangle(248.2, 0.2, 255.8, 255.8), "water"),
    ]
    report = cut(labels=[str(write_labels(tmp_path / "a.gpkg", shapes))])
    data = read_chips(tmp_path / "chips")
    assert report.left_out["chips in which no class has the majority"] == 16
    assert np.bincount(data.labels).tolist() == [7 * 16, 8 * 16]
    for i, source in enumerate(data.sources):
        col = int(source.rsplit(",", 1)[1])
        assert data.class_names[data.labels[i]] == ("water" if col < 128 else "land")


def test_polygons_smaller_than_half_a_chip_get_a_chip_of_their_own(cut, tmp_path) -> None:
    houses = [(rectangle(x + 6.2, y + 6.2, x + 9.8, y + 9.8), "house") for x in (0, 64, 160) for y in range(0, 256, 32)]
    report = cut(labels=[str(write_labels(tmp_path / "a.gpkg", [*houses, halves()[1]]))])
    assert report.counts.sum(1)[0] == 16  # the other eight lie in land and contradict it
    data = read_chips(tmp_path / "chips")
    own = [s for s, k in zip(data.sources, data.labels, strict=True) if k == 0]
    assert own[0].endswith("@0,0")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_pixels_that_polygons_of_different_classes_share_belong_to_none(order, tmp_path) -> None:
    folder = tmp_path
    shapes = [*halves(), (rectangle(100.2, 0.2, 160.8, 255.8), "reed")]
    path = write_labels(folder / "a.gpkg", [shapes[i] for i in order])
    raster = write_raster(folder / "naip.tif", noise())
    report = chips([str(raster)], labels=[str(path)], out=folder / "c", task="segmentation", size=32, opening=NAIP)
    assert dict(zip(report.class_names, report.counts.sum(1).tolist(), strict=True)) == {
        "land": (256 - 161) * 256,
        "water": 100 * 256,
    }
    assert any("no chip shows class reed" in note for note in report.notes)


def test_points_of_a_table_and_of_a_vector_file_give_the_same_chips(cut, tmp_path) -> None:
    rng = np.random.default_rng(1)
    places = [(float(x), float(y)) for x, y in rng.uniform(12, 244, (60, 2))]
    values = ["water" if x < 128 else "land" for x, _ in places]
    points = [(Point(*ground(x, y)), v) for (x, y), v in zip(places, values, strict=True)]
    degrees = geopandas.GeoSeries([p for p, _ in points], crs=UTM).to_crs("EPSG:4326")
    (tmp_path / "a.csv").write_text(
        "\ufeffid,Longitude,Latitude,cover\n"
        + "".join(f"{i},{p.x!r},{p.y!r},{v}\n" for i, (p, v) in enumerate(zip(degrees, values, strict=True))),
        encoding="utf-8",
    )
    (tmp_path / "b.csv").write_text(
        "x;y;class\n" + "".join(f"{p.x!r};{p.y!r};{v}\n" for p, v in points), encoding="utf-8"
    )
    told = {
        "a.csv": {"class_field": "cover"},
        "b.csv": {"labels_crs": UTM},
        "c.geojson": {},
    }
    write_labels(tmp_path / "c.geojson", points, "EPSG:4326")
    found = []
    for name, words in told.items():
        report = cut(labels=[str(tmp_path / name)], out=tmp_path / f"of-{name}", **words)
        data = read_chips(tmp_path / f"of-{name}")
        found.append((data.sources, data.labels.tolist(), data.splits))
        assert sum(report.left_out.values()) + len(data) == 60
    assert found[0] == found[1] == found[2]
    middles = {s.rsplit("@", 1)[1] for s in found[0][0]}
    near = 0
    for x, y in places:  # in the middle half of its chip
        near += any(
            3.5 <= y - row <= 12.5 and 3.5 <= x - col <= 12.5 for row, col in (map(int, m.split(",")) for m in middles)
        )
    assert near >= len(middles) >= 40


@pytest.mark.parametrize("crs", [UTM, "EPSG:3857"])
def test_a_mask_on_another_grid_gives_each_pixel_the_class_under_its_centre(cut, tmp_path, crs) -> None:
    from rasterio.warp import transform

    coarse = np.random.default_rng(3).integers(0, 3, (40, 40), dtype=np.uint8)
    if crs == UTM:
        place = Affine(37, 0, ORIGIN[0] - 11, 0, -37, ORIGIN[1] + 13)
    else:
        (x,), (y,) = transform(UTM, crs, [ORIGIN[0]], [ORIGIN[1]])
        place = Affine(55, 0, x - 17, 0, -55, y + 29)
    with rasterio.open(
        tmp_path / "mask.tif",
        "w",
        driver="GTiff",
        height=40,
        width=40,
        count=1,
        dtype="uint8",
        crs=crs,
        transform=place,
    ) as out:
        out.write(coarse, 1)
    cut(labels=[str(tmp_path / "mask.tif")], task="segmentation", size=64, block=1, ignore=["2"])
    data = read_chips(tmp_path / "chips")
    assert data.ignore == 255
    assert data.read_mask is not None
    for i, source in enumerate(data.sources):
        row, col = map(int, source.rsplit("@", 1)[1].split(","))
        mask = data.read_mask(i)
        for r, c in ((0, 0), (31, 17), (63, 63), (5, 60)):
            (x,), (y,) = transform(UTM, crs, *([v] for v in ground(col + c + 0.5, row + r + 0.5)))
            u, v = rasterio.transform.rowcol(place, x, y, op=float)[::-1]
            inside = 0 <= u < 40 and 0 <= v < 40
            value = int(coarse[int(v), int(u)]) if inside else 255
            assert mask[r, c] == (255 if value == 2 else value)


def test_a_mask_keeps_its_names_and_colours_and_its_nodata_is_no_class(cut, tmp_path) -> None:
    mask = np.repeat([[3] * 100 + [0] * 56 + [7] * 100], 256, 0).astype(np.uint8)[None]
    path = write_raster(tmp_path / "mask.tif", mask, nodata=0)
    with rasterio.open(path, "r+") as out:
        out.write_colormap(1, {3: (10, 20, 200, 255), 7: (200, 180, 20, 255)})
        out.update_tags(1, CLASS_3="lake", CLASS_7="field")
    cut(labels=[str(path)])
    data = read_chips(tmp_path / "chips")
    assert data.class_names == ("lake", "field")
    assert json.loads((tmp_path / "chips" / "chips.json").read_text())["colours"] == [[10, 20, 200], [200, 180, 20]]
    assert np.bincount(data.labels).tolist() == [6 * 16, 6 * 16]


def test_a_picture_without_a_place_takes_a_mask_of_its_size(cut, tmp_path) -> None:
    bare = write_raster(tmp_path / "bare.tif", noise(), crs=None)
    mask = (np.indices((256, 256))[1] >= 128).astype(np.uint8)[None]
    cut([bare], labels=[str(write_raster(tmp_path / "mask.tif", mask, crs=None))])
    assert np.bincount(read_chips(tmp_path / "chips").labels).tolist() == [128, 128]
    with pytest.raises(DataError, match=r"small.tif has 128 × 256 pixels and bare.tif 256 × 256"):
        cut([bare], labels=[str(write_raster(tmp_path / "small.tif", mask[:, :128], crs=None))], out=tmp_path / "b")
    with pytest.raises(DataError, match=r"bare.tif has no reference system"):
        cut([bare], out=tmp_path / "c")


def test_the_ground_around_polygons_can_be_a_class(cut, tmp_path) -> None:
    ponds = [
        (rectangle(x + 1.2, y + 1.2, x + 14.8, y + 14.8), "pond") for x in range(0, 256, 64) for y in range(0, 256, 64)
    ]
    report = cut(labels=[str(write_labels(tmp_path / "a.gpkg", ponds))], background="land")
    assert report.class_names == ("land", "pond")
    assert report.counts.sum(1).tolist() == [240, 16]


# -- classes ----------------------------------------------------------------------------------------------------------


def test_declared_classes_are_ordered_named_coloured_and_merged(cut, tmp_path) -> None:
    shapes = [(rectangle(x + 0.2, 0.2, x + 63.8, 255.8), v) for x, v in ((0, 1), (64, 2), (128, 3), (192, 9))]
    path = write_labels(tmp_path / "a.gpkg", shapes, field="code")
    cut(labels=[str(path)], classes=["3=field=#ffcc00", "1=water", "2=water"], ignore=["9"])
    data = read_chips(tmp_path / "chips")
    assert data.class_names == ("field", "water")
    assert np.bincount(data.labels).tolist() == [64, 128]
    assert json.loads((tmp_path / "chips" / "chips.json").read_text())["colours"][0] == [255, 204, 0]


def test_control_characters_in_names_of_classes_reach_no_terminal(cut, tmp_path) -> None:
    (left, _), (right, _) = halves()
    write_labels(tmp_path / "l.geojson", [(left, "wa\x1b[2Jter"), (right, "forest\x07é")], "EPSG:4326")
    report = cut(labels=[str(tmp_path / "l.geojson")])
    assert sorted(report.class_names) == ["forest é", "wa [2Jter"]


@pytest.mark.parametrize("far", [1e308, -1e300, float("1e13")])
def test_a_coordinate_that_is_no_place_is_said(cut, tmp_path, far) -> None:
    (left, a), (right, b) = halves()
    odd = Polygon([*left.exterior.coords[:2], (far, 0)])
    write_labels(tmp_path / "l.gpkg", [(left, a), (right, b), (odd, a)])
    with pytest.raises(DataError, match="coordinates that are no place"):
        cut(labels=[str(tmp_path / "l.gpkg")])


def test_names_of_classes_that_differ_only_in_case_are_told(cut, tmp_path) -> None:
    shapes = [*halves(), (rectangle(200.2, 0.2, 255.8, 255.8), "Land")]
    report = cut(labels=[str(write_labels(tmp_path / "a.gpkg", shapes))])
    assert any("Land and land" in note for note in report.notes)


# -- pixels -----------------------------------------------------------------------------------------------------------


def test_chips_with_less_than_half_of_their_pixels_measured_are_left_out_and_counted(cut, tmp_path) -> None:
    values = noise()
    values[:, :20] = 0  # the second row of chips has 12 of 16 rows
    path = write_raster(tmp_path / "gap.tif", values, nodata=0)
    report = cut([path], task="segmentation")
    assert report.left_out == {"chips with less than half of their pixels measured": 16}
    data = read_chips(tmp_path / "chips")
    assert data.read_mask is not None
    partly = [i for i, s in enumerate(data.sources) if "@16," in s]
    for i in partly:
        raw, valid = data.read(i)
        assert valid is not None
        assert not valid[:4].any()
        assert valid[4:].all()
        assert not raw[:, :4].any()
        assert (data.read_mask(i)[:4] == 255).all()
    assert report.counts.sum() == (256 - 20) * 256


def test_nan_is_no_measurement(cut, tmp_path) -> None:
    values = noise().astype(np.float32) / 255
    values[2, 40:60, 40:60] = np.nan
    path = write_raster(tmp_path / "nan.tif", values, scales=[255.0] * 4)
    report = cut([path])
    assert report.left_out == {"chips with less than half of their pixels measured": 1}  # 12 × 12 of its 16 × 16
    data = read_chips(tmp_path / "chips")
    assert all(np.isfinite(data.read(i)[0]).all() for i in range(len(data)))


def test_statistics_are_those_of_the_training_chips(cut, tmp_path) -> None:
    cut()
    data = read_chips(tmp_path / "chips")
    assert data.splits is not None
    assert data.corpus_scaling is not None
    train = np.stack([data.read(i)[0] for i in range(len(data)) if data.splits[i] == "train"]).astype(float)
    physical = train * np.array(data.scaling.scale)[:, None, None] + np.array(data.scaling.offset)[:, None, None]
    np.testing.assert_allclose(data.corpus_scaling.mean, physical.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(data.corpus_scaling.std, physical.std((0, 2, 3)), rtol=1e-6)
    assert data.scaling.mean is None
    assert data.corpus_scaling.stats_source == "corpus"


def test_rasters_that_mean_different_things_by_their_numbers_become_physical_values(cut, tmp_path) -> None:
    one = write_raster(tmp_path / "one.tif", noise(), scales=[1.0] * 4)
    two = write_raster(tmp_path / "two.tif", noise(seed=1), scales=[0.5] * 4, shift=(256, 0))
    shapes = [*halves(), (rectangle(256.2, 0.2, 511.8, 255.8), "land")]
    cut([one, two], labels=[str(write_labels(tmp_path / "a.gpkg", shapes))])
    data = read_chips(tmp_path / "chips")
    (second,) = [i for i, s in enumerate(data.sources) if s.endswith("two.tif@0,0")]
    np.testing.assert_allclose(data.scaling.physical(data.read(second)[0]), noise(seed=1)[:, :16, :16] * 0.5)
    assert any("physical values" in note for note in data.notes)


# -- blocks and splits ------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(4, 40),
    chips_a_block=st.integers(1, 6),
    shift=st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
    length=st.integers(40, 300),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_no_chip_lies_across_two_blocks(size, chips_a_block, shift, length, place) -> None:
    side = size * chips_a_block
    blocks = Blocks(0, "here", shift[0], shift[1], side)
    rows, cols = blocks.starts(length, size, 0), blocks.starts(length, size, 1)
    windows = [Window(r, c, size, size) for r in rows for c in cols]
    row, col = place[0] * length * 0.999, place[1] * length * 0.999
    around = blocks.around(row, col, size, (length, length))
    if around is not None:
        windows.append(around)
        assert abs(around.row + size / 2 - row) <= size / 4 + 1
        assert abs(around.col + size / 2 - col) <= size / 4 + 1
        assert blocks.of(around) is not None
    for window in windows:
        assert 0 <= window.row <= length - size
        name = blocks.of(window)
        if name is None:
            continue
        for start, offset, cell in zip((window.row, window.col), shift, name.split()[1].split(","), strict=True):
            low = start + offset - int(cell) * side
            assert low >= -0.5 - 1e-6
            assert low + size <= side + 1 + 1e-6
    if length >= side + size:  # a whole block lies inside: it is filled
        assert sum(blocks.of(w) is not None for w in windows) >= chips_a_block**2


@pytest.mark.parametrize("shift", [497.99999999999994, 498.00000000000006, -6.000000000000001])
def test_a_rounding_of_the_grid_s_corner_moves_no_chip_off_its_block(shift) -> None:
    whole, rounded = Blocks(0, "here", 0.0, float(round(shift)), 8), Blocks(0, "here", 0.0, shift, 8)
    assert rounded.starts(40, 8, 1) == whole.starts(40, 8, 1)
    windows = [Window(0, start, 8, 8) for start in whole.starts(40, 8, 1)]
    assert [rounded.of(w) for w in windows] == [whole.of(w) for w in windows]


def test_the_same_ground_on_three_dates_is_on_one_side(tmp_path) -> None:
    dates = [str(SAMPLES / f"west_{year}.tif") for year in (2012, 2016, 2020)]  # their grids differ by up to 1.6 m
    chips(dates, labels=[str(ROOT / "docs" / "own-labels.geojson")], out=tmp_path / "c", size=16, opening=NAIP)
    data = read_chips(tmp_path / "c")
    assert data.splits is not None
    assert data.places is not None
    taken: dict[str, np.ndarray] = {s: np.zeros((260, 260), bool) for s in SPLITS}
    for source, split in zip(data.sources, data.splits, strict=True):
        row, col = map(int, source.rsplit("@", 1)[1].split(","))
        inner = np.s_[row + 1 : row + 15, col + 1 : col + 15]  # the dates lie within a pixel of each other
        taken[split][inner] = True
    assert all(t.any() for t in taken.values())
    for one, two in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not (taken[one] & taken[two]).any()
    sides: dict[str, set[str]] = {}
    for place, split in zip(data.places, data.splits, strict=True):
        sides.setdefault(place, set()).add(split)
    assert all(len(s) == 1 for s in sides.values())


def test_a_random_split_deals_single_chips_out(cut, tmp_path) -> None:
    cut(split="random")
    data = read_chips(tmp_path / "chips")
    assert data.splits is not None
    assert [data.splits.count(s) for s in SPLITS] == [154, 51, 51]
    cut(split="random", seed=1, overwrite=True)
    assert read_chips(tmp_path / "chips").splits != data.splits


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=4, max_size=20),
    seed=st.integers(0, 5),
)
def test_every_unit_is_dealt_out_once_and_every_class_reaches_training_or_it_is_said(counts, seed) -> None:
    table = np.array(counts)
    try:
        sides = assign_blocks(table, 0.2, 0.2, seed, "abc")
    except DataError:
        # Only where a class fills no more blocks than are held out can it be missing.
        assert ((table > 0).sum(0) <= 2 * max(1, round(0.2 * len(table))))[table.sum(0) > 0].any()
        return
    assert set(sides.tolist()) == {0, 1, 2}
    held = max(1, round(0.2 * len(table)))
    assert (sides == 1).sum() == (sides == 2).sum() == held
    assert not ((table.sum(0) > 0) & (table[sides == 0].sum(0) == 0)).any()
    np.testing.assert_array_equal(sides, assign_blocks(table, 0.2, 0.2, seed, "abc"))


def test_rasters_of_one_ground_in_two_systems_are_refused_for_blocks(cut, tmp_path) -> None:
    from rasterio.warp import Resampling, calculate_default_transform, reproject

    other = tmp_path / "zone15.tif"
    with rasterio.open(tmp_path / "naip.tif") as source:
        place, width, height = calculate_default_transform(
            source.crs, "EPSG:32615", source.width, source.height, *source.bounds, resolution=GSD
        )
        moved = np.zeros((4, height, width), np.uint8)
        reproject(
            source.read(), moved, src_transform=source.transform, src_crs=source.crs, dst_transform=place,
            dst_crs="EPSG:32615", resampling=Resampling.nearest,
        )  # fmt: skip
        with rasterio.open(
            other, "w", driver="GTiff", height=height, width=width, count=4, dtype="uint8", crs="EPSG:32615",
            transform=place, nodata=0,
        ) as out:  # fmt: skip
            out.write(moved)
            out.descriptions = ("R", "G", "B", "NIR")
    with pytest.raises(DataError, match="show the same ground"):
        cut([tmp_path / "naip.tif", other])
    cut([tmp_path / "naip.tif", other], split="random")


# -- bad input --------------------------------------------------------------------------------------------------------


def shifted(metres: float) -> list[tuple[Any, str]]:
    from shapely.affinity import translate

    return [(translate(g, metres), v) for g, v in halves()]


def without_crs(folder: Path) -> Path:
    path = write_labels(folder / "bare.shp", halves())
    path.with_suffix(".prj").unlink()
    return path


def swapped(folder: Path) -> Path:
    points = geopandas.GeoSeries([Point(*ground(50, 50)), Point(*ground(200, 200))], crs=UTM).to_crs("EPSG:4326")
    path = folder / "swapped.csv"
    path.write_text("lat,lon,class\n" + "".join(f"{p.x},{p.y},{v}\n" for p, v in zip(points, "ab", strict=True)))
    return path


def layers(folder: Path) -> Path:
    path = folder / "two.gpkg"
    for name in ("lakes", "fields"):
        frame = geopandas.GeoDataFrame({"class": ["a"]}, geometry=[halves()[0][0]], crs=UTM)
        frame.to_file(path, layer=name, engine="pyogrio")
    return path


def text(name: str, content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return write


def drawn(shapes: list[tuple[Any, Any]], field: str = "class", **more: list[Any]) -> Callable[[Path], Path]:
    return lambda folder: write_labels(folder / "drawn.gpkg", shapes, field=field, **more)


def painted(values: np.ndarray, **profile: Any) -> Callable[[Path], Path]:
    return lambda folder: write_raster(folder / "mask.tif", values, **profile)


BAD: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str]] = {
    "elsewhere": (drawn(shifted(50_000)), {}, r"drawn.gpkg \(lon .*\) does not overlap naip.tif \(lon "),
    "exchanged": (swapped, {}, "does not overlap .*longitude and latitude exchanged"),
    "no crs": (without_crs, {}, "bare.shp says no reference system: .*--labels-crs"),
    "undeclared": (drawn(halves()), {"classes": ["water"]}, r"--classes does not name: 'land' \(1 shapes\)"),
    "declared, absent": (drawn(halves()), {"classes": ["water", "land", "lan"]}, "--classes lan: .*did you mean land"),
    "ignored, absent": (drawn(halves()), {"ignore": ["watr"]}, "--ignore watr: .*did you mean water"),
    "no such field": (drawn(halves(), "cover"), {"class_field": "covr"}, "no field 'covr': did you mean cover"),
    "which field": (drawn(halves(), "a", b=["x", "y"]), {}, "which field .*--class-field: a, b"),
    "numbers": (drawn([(halves()[0][0], 1.5), (halves()[1][0], 2.0)]), {}, "holds 1.5, which is no class"),
    "lines": (drawn([(LineString([ground(0, 0), ground(9, 9)]), "road")]), {}, "holds lines, .*buffer"),
    "one class": (drawn(halves()[:1]), {}, "all .* chips show class water: label another"),
    "layers": (layers, {}, "several layers, choose one with --layer: .*lakes"),
    "no layer": (layers, {"layer": "lake"}, "no layer 'lake': did you mean lakes"),
    "no file": (lambda folder: folder / "none.geojson", {}, "none.geojson do not exist"),
    "no vector": (text("a.geojson", "nonsense"), {}, "cannot be read as a vector file"),
    "no columns": (text("a.csv", "a,b\n1,2\n"), {}, "has the columns a, b: coordinates are lon and lat"),
    "no system": (text("a.csv", "x,y,class\n1,2,w\n"), {}, "say their reference system with --labels-crs"),
    "no number": (text("a.csv", "lon,lat,class\n1,2,w\n1,north,w\n"), {}, "a.csv, line 3: '1', 'north' are no"),
    "no crs of that name": (drawn(halves()), {"labels_crs": "EPSG:99"}, "--labels-crs EPSG:99: no reference system"),
    "a picture": (painted(noise()), {}, "mask.tif has 4 bands; a mask has one"),
    "broken numbers": (painted(np.full((1, 256, 256), 0.5, np.float32)), {}, "broken numbers"),
    "many numbers": (
        painted(np.arange(65536, dtype=np.uint16).reshape(1, 256, 256)), {}, "different numbers: a picture, no mask"
    ),
    "only nodata": (painted(np.zeros((1, 256, 256), np.uint8), nodata=0), {}, "no label: every pixel is nodata"),
    "background of a mask": (painted(np.eye(256, dtype=np.uint8)[None]), {"background": "b"}, "--background is"),
    "missing in training": (
        drawn([(rectangle(x + 0.2, y + 0.2, x + 127.8, y + 127.8), f"{x} {y}") for x in (0, 128) for y in (0, 128)]),
        {"block": 8}, "class 0 .* is missing from training: its ground fills too few blocks",
    ),
    "few blocks": (drawn(halves()), {"block": 16}, "blocks of ground: 1, too few for training, validation and test"),
    "large chips": (drawn(halves()), {"size": 300}, "256 × 256 pixels, less than a chip of 300"),
    "words": (drawn(halves()), {"classes": ["water=w=blue", "land"]}, "write VALUE, VALUE=NAME or VALUE=NAME=#RRGGBB"),
    "shares": (drawn(halves()), {"val_fraction": 0.6, "test_fraction": 0.5}, "shares that leave some for training"),
    "two labels": (drawn(halves()), {"labels": ["a", "b"]}, "2 --labels for 1 rasters"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_that_names_the_cure_and_leaves_nothing(cut, tmp_path, what) -> None:
    make, words, said = BAD[what]
    path = make(tmp_path)
    with pytest.raises(DofaError, match=said) as error:
        cut(**{"labels": [str(path)]} | words)
    assert "\n" not in str(error.value)
    assert not [p.name for p in tmp_path.iterdir() if "chips" in p.name]


def test_a_class_that_fills_one_block_alone_is_kept_for_training_and_told(cut, tmp_path) -> None:
    shapes = [*halves(), (rectangle(0.2, 0.2, 31.8, 31.8), "rare")]
    shapes[0] = (shapes[0][0].difference(shapes[2][0]), "water")
    report = cut(labels=[str(write_labels(tmp_path / "a.gpkg", shapes))])
    assert report.counts[1].tolist() == [4, 0, 0]
    assert any(note.startswith("val has no rare") for note in report.notes)


def test_features_outside_the_rasters_or_without_a_class_are_counted(cut, tmp_path) -> None:
    shapes = [*halves(), *shifted(50_000), (halves()[0][0], None)]
    report = cut(labels=[str(write_labels(tmp_path / "a.gpkg", shapes))])
    assert "2 of 4 shapes of a.gpkg lie outside the rasters" in report.notes
    assert "1 of 5 features of a.gpkg have no class and are left out" in report.notes


def test_rasters_of_different_sensors_or_pixels_are_refused(cut, tmp_path, raster) -> None:
    coarse = write_raster(tmp_path / "coarse.tif", noise(), gsd=10)
    with pytest.raises(DataError, match="bring them to one size with --gsd 5"):
        cut([raster, coarse])
    with pytest.raises(DataError, match="a task has one sensor"):
        cut(
            [Path(f"naip-rgbn={raster}"), Path(f"rgb-aerial={write_raster(tmp_path / 'rgb.tif', noise()[:3])}")],
            sensor=None,
        )


# -- the folder -------------------------------------------------------------------------------------------------------


def test_what_is_there_is_replaced_only_on_request_and_other_files_never(cut, tmp_path) -> None:
    cut()
    with pytest.raises(ConfigError, match=r"holds chips already: .*--overwrite"):
        cut()
    before = read_chips(tmp_path / "chips")
    cut(overwrite=True, size=32)
    assert before.shape != read_chips(tmp_path / "chips").shape
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="holds other files"):
        cut(out=tmp_path / "other", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_an_interrupted_command_leaves_what_was_there(cut, tmp_path, monkeypatch) -> None:
    cut()
    before = (tmp_path / "chips" / "chips.json").read_bytes()

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "assign_blocks", stop)
    with pytest.raises(KeyboardInterrupt):
        cut(overwrite=True, seed=3)
    assert (tmp_path / "chips" / "chips.json").read_bytes() == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_second_command_for_the_same_folder_is_refused_and_what_a_killed_one_left_is_removed(
    cut, raster, labels, tmp_path
) -> None:
    words = ["chips", str(raster), "--sensor", "naip-rgbn", "--labels", str(labels), "--size", "16"]
    # Killed where it is sure to be in the middle: as soon as it has to finish.
    code = (
        "import os, signal, sys, time; from dofa.datasets import chip_folder; from dofa.cli import main\n"
        "chip_folder.ChipWriter.finish = lambda *a: (print('here', flush=True), time.sleep(60))\n"
        f"main({[*words, '--out', str(tmp_path / 'chips')]!r})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        with pytest.raises(DofaError, match="chips is being written by another process"):
            cut()  # both ended well, and the result of one was gone
        assert (tmp_path / ".chips.part" / "new" / "images.npy").exists()
        process.kill()
    cut()
    assert not list(tmp_path.glob(".chips*"))
    assert len(read_chips(tmp_path / "chips")) == 256
    assert not (tmp_path / "chips" / "lock").exists()


def test_damaged_folders_are_refused(cut, tmp_path) -> None:
    cut()
    folder = tmp_path / "chips"
    record = json.loads((folder / "chips.json").read_text())
    whole = (folder / "images.npy").read_bytes()
    fingerprint = read_chips(folder).fingerprint
    (folder / "images.npy").write_bytes(whole[:-1000])
    with pytest.raises(DataError, match=r"images.npy is missing or cut off"):
        read_chips(folder)
    (folder / "images.npy").write_bytes(whole)
    os.utime(folder / "images.npy", (1, 1))
    assert read_chips(folder).fingerprint != fingerprint
    (folder / "chips.json").write_text(json.dumps(record | {"format_version": 2}))
    with pytest.raises(DataError, match="format_version 2, newer than the 1"):
        read_chips(folder)
    (folder / "chips.json").write_text(json.dumps(record | {"labels": record["labels"][1:]}))
    with pytest.raises(DataError, match=r"places has 256 entries for 255 chips"):
        read_chips(folder)
    (folder / "chips.json").write_text("[]")
    with pytest.raises(DataError, match="not written by dofa chips"):
        read_chips(folder)
    with pytest.raises(DataError, match="holds no chips: name the folder"):
        read_chips(tmp_path)


def test_the_command_shows_counts_by_class_and_split(raster, labels, tmp_path, capsys) -> None:
    words = ["chips", str(raster), "--sensor", "naip-rgbn", "--labels", str(labels), "--size", "16"]
    assert main([*words, "--out", str(tmp_path / "chips")]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert {row[0]: sum(map(int, row[1:])) for row in rows} == {"land": 128, "water": 128, "chips": 256, "blocks": 16}
    assert main([*words, "--out", str(tmp_path / "chips")]) == 2
    assert capsys.readouterr().err.startswith("dofa: ")
    assert CRS.from_string(UTM).is_projected


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_flipped_bit_in_chips_is_noticed(cut, tmp_path, task) -> None:
    """images.npy was compared by its shape alone."""
    cut(task=task)
    folder = tmp_path / "chips"

    def everything() -> list[Any]:
        data = read_chips(folder)
        pixels = [data.read(n)[0].tobytes() for n in range(len(data))]
        masks = [data.read_mask(n).tobytes() for n in range(len(data))] if data.read_mask else []
        return [pixels, masks, data.labels.tolist(), data.class_names, data.sensor, data.corpus_scaling]

    expected, rng = everything(), np.random.default_rng(0)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for _ in range(6):
            at = int(rng.integers(len(content)))
            file.write_bytes(content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :])
            with contextlib.suppress(DataError):
                assert everything() == expected, f"byte {at} of {file.name}"
        file.write_bytes(content)
    content = bytearray((folder / "images.npy").read_bytes())
    content[-1] ^= 1
    (folder / "images.npy").write_bytes(content)
    data = read_chips(folder)
    data.read(0)
    with pytest.raises(DataError, match=f"images.npy: chip {len(data) - 1} is not as it was written"):
        data.read(len(data) - 1)


def test_chips_written_before_there_were_checksums_open_and_are_compared_as_a_whole(cut, tmp_path) -> None:
    cut()
    folder = tmp_path / "chips"
    record = json.loads((folder / "chips.json").read_text())
    (folder / "chips.json").write_text(
        json.dumps({k: v for k, v in record.items() if k not in ("record_sha256", "crc32c")})
    )
    assert len(read_chips(folder)) == 256
    content = bytearray((folder / "images.npy").read_bytes())
    content[-1] ^= 1
    (folder / "images.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"images.npy is not the file that was written"):
        read_chips(folder)
