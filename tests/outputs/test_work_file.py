"""What is written is what is read back, by our reader and by everybody else's; a full disk loses nothing."""

import json
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from dofa.errors import ConfigError, DataError, DofaError
from dofa.outputs import cog
from dofa.outputs.work_file import Layout, Work, open_features
from dofa.scene.grid import Window

from ..scene.conftest import small_disk, tree

SUFFIXES = {"cog": ".tif", "zarr": ".zarr", "geoparquet": ".parquet"}
NORTH_UP = (10.0, 0.0, 399_960.5, 0.0, -10.0, 5_300_040.25)
ROTATED = (8.0, 3.0, 500_000.0, -2.5, -9.0, 4_000_000.0)
SOUTH_UP = (0.25, 0.0, -70.0, 0.0, 0.125, -33.0)
OWN_CRS = "+proj=laea +lat_0=47.3 +lon_0=11.9 +x_0=1000 +y_0=2000 +ellps=GRS80 +units=m +no_defs"
CLASSES = ("water", "forest & <field>", "été", "bare")
COLOURS = ((0, 0, 255), (10, 120, 30), (200, 10, 7), (90, 80, 70))


def make(dtype="float16", height=37, width=53, channels=3, *, seed=0, **changes):
    """A layout and (K, h, w) numbers to store, about a quarter of the cells invalid."""
    rng = np.random.default_rng(seed)
    channels = 1 if dtype == "uint8" else channels
    nodata = {"int8": -128, "uint8": 255}.get(dtype, float("nan"))
    if dtype.startswith("float"):
        stored = rng.normal(0, 3, (channels, height, width)).astype(dtype)
    else:
        stored = rng.integers(0, 4, (channels, height, width)).astype(dtype)
    stored[:, rng.random((height, width)) < 0.25] = nodata
    parts = {
        "crs": "EPSG:32632",
        "transform": NORTH_UP,
        "nodata": nodata,
        "names": tuple(f"feature {i}" for i in range(channels)),
        "meta": {"sensor": "sentinel-2-l2a", "wavelengths": [0.665, 0.56], "text": "µm, “quoted”"},
    }
    if dtype == "int8":
        parts |= {"scale": rng.uniform(0.01, 2, channels), "zero": rng.normal(0, 5, channels)}
    if dtype == "uint8":
        parts |= {"class_names": CLASSES, "colours": COLOURS}
    return Layout(height, width, channels, dtype, **{**parts, **changes}), stored


def write(out, layout, stored, rows=16, *, overwrite=False, **settings):
    """Write by blocks of some rows and finish."""
    with Work.open(out, layout, {"job": 1}, overwrite=overwrite, **settings) as work:
        for block, row in enumerate(range(0, layout.height, rows)):
            if block >= work.done:
                work.write(block, row, 0, stored[:, row : row + rows])
        return work.finish()


def values_of(layout, stored):
    """What the reader must give, by a formula of its own."""
    out = stored.astype(np.float32)
    if layout.dtype == "int8":
        out = (layout.scale[:, None, None] * stored + layout.zero[:, None, None]).astype(np.float32)
    bad = np.isnan(stored) if layout.dtype.startswith("float") else stored == layout.nodata
    out[:, bad.all(axis=0)] = np.nan
    return out


@st.composite
def outputs(draw):
    kind = draw(st.sampled_from(sorted(SUFFIXES)))
    dtype = draw(st.sampled_from(["float32", "float16", "int8", "uint8"]))
    crs = draw(st.sampled_from(["EPSG:32632", "EPSG:4326", OWN_CRS, *([None] if kind != "geoparquet" else [])]))
    layout, stored = make(
        dtype,
        draw(st.integers(1, 40)),
        draw(st.integers(1, 40)),
        draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 99)),
        crs=crs,
        transform=draw(st.sampled_from([NORTH_UP, ROTATED, SOUTH_UP, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)])),
    )
    return kind, layout, stored


@settings(max_examples=60, deadline=None)
@given(case=outputs(), cut=st.data())
def test_what_is_written_is_read_back_whole_and_by_windows_in_every_format(case, cut):
    kind, layout, stored = case
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"out{SUFFIXES[kind]}"
        assert write(out, layout, stored, rows=cut.draw(st.integers(1, 12))) == out
        assert [p.name for p in out.parent.iterdir() if p.suffix != ".xml"] == [out.name]
        found = open_features(out)
        assert found.shape == stored.shape
        np.testing.assert_array_equal(found.read_stored(), stored)
        assert found.read_stored().dtype == stored.dtype
        assert found.read().dtype == np.float32
        np.testing.assert_array_equal(found.read(), values_of(layout, stored))
        row, col = cut.draw(st.integers(0, layout.height - 1)), cut.draw(st.integers(0, layout.width - 1))
        height, width = (
            cut.draw(st.integers(1, layout.height - row)),
            cut.draw(st.integers(1, layout.width - col)),
        )
        window = Window(row, col, height, width)
        np.testing.assert_array_equal(found.read_stored(window), stored[:, window.rows, window.cols])
        assert found.crs == (None if layout.crs is None else CRS.from_user_input(layout.crs))
        assert found.transform == layout.transform
        assert found.names == layout.names
        assert found.meta == layout.meta
        assert found.layout.to_json() == {**layout.to_json(), "crs": found.layout.wkt}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
def test_a_cog_is_what_qgis_and_rasterio_expect(tmp_path, dtype):
    side = 64 if dtype == "float32" else 512
    channels = 200 if dtype == "float32" else 3  # many channels make small tiles
    layout, stored = make(dtype, 1100, 600, channels) if dtype != "float32" else make(dtype, 150, 130, channels)
    write(tmp_path / "out.tif", layout, stored, rows=100)
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.block_shapes[0] == (side, side)
        assert dataset.overviews(1) == [2, 4]
        assert dataset.crs == CRS.from_epsg(32632)
        assert tuple(dataset.transform)[:6] == NORTH_UP
        assert dataset.descriptions == layout.names
        assert json.loads(dataset.tags()["DOFA_META"])["meta"] == layout.meta
        assert dataset.dtypes[0] == ("float32" if dtype == "float16" else dtype)
        assert dataset.compression.name == ("deflate" if dtype == "uint8" else "zstd")
        np.testing.assert_equal(dataset.nodata, layout.nodata)
        np.testing.assert_array_equal(dataset.read(), stored)
        np.testing.assert_array_equal(dataset.read_masks(1) != 0, ~layout.invalid(stored))
        if dtype == "int8":
            np.testing.assert_array_equal(dataset.scales, layout.scale)
            np.testing.assert_array_equal(dataset.offsets, layout.zero)
    level = stored
    for number in range(2):
        level = reference_halves(level, layout)
        with rasterio.open(tmp_path / "out.tif", OVERVIEW_LEVEL=number) as dataset:
            np.testing.assert_array_equal(dataset.read(), level)


def reference_halves(stored, layout):
    """One overview, a cell at a time in the plainest way."""
    channels, height, width = stored.shape
    out = np.full((channels, -(-height // 2), -(-width // 2)), layout.nodata, stored.dtype)
    bad = layout.invalid(stored)
    for row in range(out.shape[1]):
        for col in range(out.shape[2]):
            here = np.s_[2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
            cells = stored[:, *here][:, ~bad[here]]
            if not cells.shape[1]:
                continue
            if layout.dtype == "uint8":
                kinds = list(cells[0])
                out[:, row, col] = max(kinds, key=kinds.count)
            else:
                mean = sum((cells[:, i].astype(np.float32) for i in range(cells.shape[1])), np.float32(0))
                mean = mean / np.float32(cells.shape[1])
                out[:, row, col] = np.rint(mean) if layout.dtype == "int8" else mean
    return out


def test_a_class_map_brings_its_colours_and_names(tmp_path):
    layout, stored = make("uint8")
    write(tmp_path / "map.tif", layout, stored)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        table = dataset.colormap(1)
        assert [table[i][:3] for i in range(4)] == list(COLOURS)
        assert table[255][3] == 0  # nodata is clear
        assert dataset.colorinterp[0].name == "palette"
        assert dataset.tags(1)["CLASS_1"] == CLASSES[1]
    rasterio.shutil.copy(tmp_path / "map.tif", tmp_path / "map.vrt", driver="VRT")  # GDAL tells what it read
    named = re.findall("<Category>(.*?)</Category>", (tmp_path / "map.vrt").read_text(encoding="utf-8"))
    assert named == ["water", "forest &amp; &lt;field&gt;", "été", "bare"]
    assert open_features(tmp_path / "map.tif").layout.class_names == CLASSES


def test_side_files_of_the_map_before_do_not_describe_the_one_that_replaces_it(tmp_path):
    layout, stored = make("uint8")
    out = write(tmp_path / "map.tif", layout, stored)
    assert (tmp_path / "map.tif.aux.xml").exists()
    other, numbers = make("float32")
    write(out, other, numbers, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
def test_xarray_opens_the_zarr_with_its_place(tmp_path, dtype):
    layout, stored = make(dtype)
    write(tmp_path / "out.zarr", layout, stored)
    with xarray.open_zarr(tmp_path / "out.zarr") as found:
        array = found[layout.variable]
        assert array.dims == ("band", "y", "x")
        assert tuple(found.band.values) == layout.names
        np.testing.assert_array_equal(found.x, NORTH_UP[2] + 10 * (np.arange(53) + 0.5))
        np.testing.assert_array_equal(found.y, NORTH_UP[5] - 10 * (np.arange(37) + 0.5))
        assert CRS.from_wkt(found.spatial_ref.attrs["crs_wkt"]) == CRS.from_epsg(32632)
        assert array.attrs["grid_mapping"] == "spatial_ref"
        assert found.attrs["DOFA_META"]["meta"] == layout.meta
        values = array * found.scale + found.zero if dtype == "int8" else array
        np.testing.assert_allclose(values.values, values_of(layout, stored), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "transform"), [("float16", NORTH_UP), ("int8", ROTATED), ("float32", SOUTH_UP)])
def test_geopandas_opens_the_valid_cells_as_polygons(tmp_path, dtype, transform):
    layout, stored = make(dtype, transform=transform)
    write(tmp_path / "out.parquet", layout, stored)
    found = geopandas.read_parquet(tmp_path / "out.parquet")
    row, col = np.nonzero(~layout.invalid(stored))
    assert found.crs == "EPSG:32632"
    np.testing.assert_array_equal(found["row"], row)
    np.testing.assert_array_equal(found["col"], col)
    vectors = np.stack(found["vector"])
    assert vectors.dtype == dtype
    np.testing.assert_array_equal(vectors, stored[:, row, col].T)
    assert found.geometry.is_valid.all()
    assert all(polygon.exterior.is_ccw for polygon in found.geometry)
    affine = rasterio.Affine(*transform)
    centres = [affine @ (c + 0.5, r + 0.5) if hasattr(affine, "__matmul__") else affine * (c + 0.5, r + 0.5)
               for r, c in zip(row[:20], col[:20], strict=True)]  # fmt: skip
    np.testing.assert_allclose([(p.centroid.x, p.centroid.y) for p in found.geometry[:20]], centres, rtol=1e-12)
    np.testing.assert_allclose(found.geometry.area, abs(affine.determinant), rtol=1e-6)
    some = found.geometry[3].bounds
    near = geopandas.read_parquet(tmp_path / "out.parquet", bbox=some)
    assert 1 <= len(near) < 20


def test_the_geoparquet_metadata_says_what_the_specification_asks(tmp_path):
    layout, stored = make("float16")
    write(tmp_path / "out.parquet", layout, stored)
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(tmp_path / "out.parquet")
    geo = json.loads(file.metadata.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32632}
    bounds = geopandas.read_parquet(tmp_path / "out.parquet").total_bounds
    np.testing.assert_array_equal(column["bbox"], bounds)
    assert file.schema_arrow.field("vector").type == pa.list_(pa.field("item", pa.float16(), nullable=False), 3)
    assert json.loads(file.metadata.metadata[b"DOFA_META"])["meta"] == layout.meta


def test_row_groups_are_streamed_and_a_window_reads_only_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("dofa.outputs.geoparquet.PIECE_BYTES", 30_000)
    layout, stored = make("float32", 60, 41, 2)
    stored[:, 20:33] = np.nan
    write(tmp_path / "out.parquet", layout, stored)
    import pyarrow.parquet as pq

    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups > 8
    found = open_features(tmp_path / "out.parquet")
    read = []
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, i, _real=pq.ParquetFile.read_row_group, **kw: read.append(i) or _real(self, i, **kw),
    )
    np.testing.assert_array_equal(found.read_stored(Window(40, 3, 5, 30)), stored[:, 40:45, 3:33])
    assert len(read) <= 2


def test_geoparquet_of_nothing_valid_is_a_table_without_rows(tmp_path):
    layout, stored = make("float16")
    stored[:] = np.nan
    write(tmp_path / "out.parquet", layout, stored)
    assert len(geopandas.read_parquet(tmp_path / "out.parquet")) == 0
    assert np.isnan(open_features(tmp_path / "out.parquet").read()).all()


@pytest.mark.parametrize("kind", sorted(SUFFIXES))
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_to_xarray_reads_where_it_is_indexed(tmp_path, kind, dtype, monkeypatch):
    layout, stored = make(dtype)
    out = write(tmp_path / f"out{SUFFIXES[kind]}", layout, stored)
    found = open_features(out)
    array = found.to_xarray()
    windows = []
    real = type(found).read
    monkeypatch.setattr(type(found), "read", lambda self, window=None: windows.append(window) or real(self, window))
    want = values_of(layout, stored)
    np.testing.assert_array_equal(array.isel(y=slice(20, 3, -4), x=[7, 2, 9]), want[:, 20:3:-4][:, :, [7, 2, 9]])
    np.testing.assert_array_equal(array.sel(band="feature 1", x=399_965.5), want[1, :, 0])
    assert array.isel(y=slice(3, 3)).values.shape == (3, 0, 53)
    assert all(w.height * w.width < 300 for w in windows)
    assert array.spatial_ref.attrs["GeoTransform"].split()[1] == "10.0"


@pytest.mark.parametrize("kind", sorted(SUFFIXES))
def test_an_output_that_exists_is_refused_before_any_work(tmp_path, kind):
    layout, stored = make()
    out = write(tmp_path / f"out{SUFFIXES[kind]}", layout, stored)
    with pytest.raises(ConfigError, match=r"out\.\w+ exists: give --overwrite"):
        Work.open(out, layout, {"job": 2})
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
    write(out, replace(layout, meta={"new": 1}), stored, overwrite=True)
    assert open_features(out).meta == {"new": 1}


def test_a_folder_that_is_no_zarr_is_never_replaced(tmp_path):
    (tmp_path / "photos.zarr").mkdir()
    (tmp_path / "photos.zarr" / "one.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match="no Zarr group"):
        Work.open(tmp_path / "photos.zarr", make()[0], {}, overwrite=True)
    assert (tmp_path / "photos.zarr" / "one.jpg").exists()


def test_an_interrupted_run_goes_on_only_with_its_own_settings(tmp_path):
    layout, stored = make()
    out = tmp_path / "out.tif"
    with Work.open(out, layout, {"stride": 4}) as work:
        work.write(0, 0, 0, stored[:, :16])
    with pytest.raises(ConfigError, match=r"holds 1 blocks of an interrupted run with another stride.*--overwrite"):
        Work.open(out, layout, {"stride": 8})
    with pytest.raises(ConfigError, match="another dtype, meta"):
        Work.open(out, replace(layout, dtype="float32", meta={}), {"stride": 4})
    with Work.open(out, layout, {"stride": 4}) as work:
        assert work.done == 1
    with Work.open(out, layout, {"stride": 8}, overwrite=True) as work:
        assert work.done == 0


def test_a_second_process_cannot_write_the_same_output(tmp_path):
    layout, _ = make()
    with Work.open(tmp_path / "out.tif", layout, {}) as work:
        with pytest.raises(DofaError, match="being written by another process"):
            Work.open(tmp_path / "out.tif", layout, {})
        assert work.folder.exists()
    Work.open(tmp_path / "out.tif", layout, {}).close()


def test_blocks_out_of_order_or_missing_are_bugs_and_told(tmp_path):
    layout, stored = make()
    with Work.open(tmp_path / "out.tif", layout, {}) as work:
        with pytest.raises(ValueError, match="block 1 is written where 0"):
            work.write(1, 0, 0, stored)
        with pytest.raises(ValueError, match="float32, not 3 of float16"):
            work.write(0, 0, 0, stored.astype(np.float32))
        with pytest.raises(ValueError, match="outside"):
            work.write(0, 30, 0, stored[:, :16])
        work.write(0, 0, 0, stored[:, :16])
        with pytest.raises(ValueError, match="848 of 1961 cells"):
            work.finish()


def test_what_does_not_fit_is_refused_when_the_output_is_opened(tmp_path):
    layout, _ = make()
    with pytest.raises(DataError, match=r"no reference system.*gdal_edit"):
        Work.open(tmp_path / "out.parquet", replace(layout, crs=None), {})
    with pytest.raises(ConfigError, match=r"out\.png: the name says no format"):
        Work.open(tmp_path / "out.png", layout, {})
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="int8 needs both"):
        replace(layout, dtype="int8", nodata=-128)
    with pytest.raises(ConfigError, match="different names"):
        replace(layout, names=("a", "a", "b"))
    with pytest.raises(ConfigError, match="nodata 300"):
        make("uint8", nodata=300)


def test_files_of_others_are_refused_by_our_reader(tmp_path):
    with rasterio.open(tmp_path / "x.tif", "w", driver="GTiff", width=2, height=2, count=1, dtype="uint8"):
        pass
    with pytest.raises(DataError, match=r"x\.tif was not written by dofa"):
        open_features(tmp_path / "x.tif")
    with pytest.raises(DataError, match="does not exist"):
        open_features(tmp_path / "y.tif")
    (tmp_path / "z.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match="cannot be opened as Parquet"):
        open_features(tmp_path / "z.parquet")
    layout, stored = make()
    out = write(tmp_path / "out.tif", layout, stored)
    with pytest.raises(DataError, match="does not lie in its 37 × 53 cells"):
        open_features(out).read(Window(30, 0, 10, 10))
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"out\.tif.*cannot be"):
        open_features(out).read()


@pytest.mark.parametrize("kind", sorted(SUFFIXES))
def test_a_newer_format_is_refused_by_name(tmp_path, kind, monkeypatch):
    layout, stored = make()
    with monkeypatch.context() as patch:
        patch.setattr("dofa.outputs.layout.FORMAT_VERSION", 2)
        out = write(tmp_path / f"out{SUFFIXES[kind]}", layout, stored)
    with pytest.raises(DataError, match="format_version 2, newer than the 1"):
        open_features(out)


@pytest.mark.parametrize("kind", sorted(SUFFIXES))
def test_a_full_disk_is_told_before_the_work(tmp_path, kind):
    layout, _ = make("float32", 500, 500)
    with small_disk(tmp_path / "disk", 1024):
        with pytest.raises(DofaError, match=r"3\.0 MB are needed for its numbers and 1\.0 MB are free in .*disk"):
            Work.open(tmp_path / "disk" / f"out{SUFFIXES[kind]}", layout, {})
        assert not os.listdir(tmp_path / "disk")


@pytest.mark.parametrize("kind", sorted(SUFFIXES))
@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_a_disk_that_fills_while_the_file_is_finished_loses_nothing(tmp_path, kind, dtype):
    layout, stored = make(dtype, 300, 400, 4)
    size = layout.height * layout.width * layout.cell_bytes // 1024
    want = write(tmp_path / f"want{SUFFIXES[kind]}", layout, stored)
    with small_disk(tmp_path / "disk", size * 40) as resize:
        out = tmp_path / "disk" / f"out{SUFFIXES[kind]}"
        write(out, replace(layout, meta={"old": True}), stored)
        before = tree(out)
        used = sum(len(data) for data in before.values()) // 1024
        resize(size + used + 60)
        with pytest.raises(DofaError, match=r"out\.\w+: the finished file cannot be written \(.*run the same command"):
            write(out, layout, stored, overwrite=True)
        assert tree(out) == before
        resize(size * 40)
        with Work.open(out, layout, {"job": 1}, overwrite=True) as work:
            assert work.done == 19  # nothing is computed again
            work.finish()
        assert tree(out) == tree(want)
        assert not (out.parent / f".{out.name}.part").exists()


def test_a_disk_that_fills_under_gdal_is_never_a_wrong_file(tmp_path, monkeypatch):
    """Room is taken by others after it was looked at: GDAL says nothing when the end of a file is lost."""
    layout, stored = make("float16", 300, 400, 4)
    monkeypatch.setattr(cog, "_check_room", lambda folder, need: None)
    refused = 0
    for kilobytes in range(1000, 7000, 500):
        with small_disk(tmp_path / f"disk{kilobytes}", kilobytes):
            out = tmp_path / f"disk{kilobytes}" / "out.tif"
            try:
                write(out, layout, stored)
            except DofaError:
                refused += 1
                assert not out.exists()
            else:
                np.testing.assert_array_equal(open_features(out).read_stored(), stored)
    assert 5 < refused < 12
