"""GEO-Bench-2 as published: the real samples, and files that are cut off, false or in parts."""

import io
import shutil
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.datasets.fixtures_published import tortilla

from dofa.datasets.opening import open_labelled
from dofa.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def real(real_data: Path) -> Path:
    return real_data / "true_formats" / "geobench2"


def by_hand(file: Path, sample: int, part: str) -> tuple[dict[str, Any], bytes]:
    """The row and the bytes of one part, read as the specification says: GDAL's window on the file is opened later."""
    data = file.read_bytes()

    def table(at: int) -> list[dict[str, Any]]:
        offset, length = struct.unpack("<QQ", data[at + 2 : at + 18])
        return list(pyarrow.parquet.read_table(io.BytesIO(data[at + offset : at + offset + length])).to_pylist())

    outer = table(0)[sample]
    (inner,) = [row for row in table(outer["tortilla:offset"]) if row["tortilla:id"] == part]
    start = outer["tortilla:offset"] + inner["tortilla:offset"]
    return outer, data[start : start + inner["tortilla:length"]]


@pytest.mark.parametrize(("name", "part", "shape", "unit"), [
    ("benv2", "s2", (12, 120, 120), "reflectance"), ("benv2", "s1", (2, 120, 120), "db"),
    ("treesatai", "aerial", (4, 304, 304), "uint8"), ("treesatai", "s2", (12, 304, 304), "reflectance"),
])  # fmt: skip
def test_real_images_are_those_gdal_sees_at_their_place_in_the_file(
    name: str, part: str, shape: tuple[int, int, int], unit: str, real: Path
) -> None:
    data = open_labelled(f"tortilla:{real / name}.tortilla#{part}")
    assert (len(data), data.shape, data.scaling.unit, data.task) == (9, shape, unit, "multilabel")
    for index in (0, 4, 8):
        row, blob = by_hand(real / f"{name}.tortilla", index, part)
        with rasterio.MemoryFile(blob) as memory, memory.open() as opened:
            np.testing.assert_array_equal(data.read(index)[0], opened.read())
        said = row["labels" if name == "benv2" else "species_labels"]
        chosen = [data.class_names[i] for i in np.flatnonzero(data.labels[index])]
        assert sorted(chosen) == sorted(said)


def test_real_splits_and_places_are_those_of_the_table(real: Path) -> None:
    data = open_labelled(f"tortilla:{real / 'benv2.tortilla'}")
    assert data.splits == ("train", "val", "val", "test", "test", "train", "train", "train", "train")
    assert (data.places or ())[0] == "55° -8°"
    assert (open_labelled(f"tortilla:{real / 'pastis.tortilla'}").places or ())[3] == "t31tfm"


def test_radar_of_benv2_is_vh_then_vv_whatever_the_lists_say(real: Path) -> None:
    data = open_labelled(f"tortilla:{real / 'benv2.tortilla'}#s1")
    assert data.sensor.band_names == ("VH", "VV")
    for index in range(9):
        vh, vv = data.scaling.physical(data.read(index)[0]).mean((1, 2))
        assert vh < vv - 5
    assert any("read as VH, VV" in note for note in data.notes)


def test_vegetation_is_bright_in_the_infrared_of_both_sensors_of_treesatai(real: Path) -> None:
    for part, infrared in (("aerial", "NIR"), ("s2", "B08")):
        data = open_labelled(f"tortilla:{real / 'treesatai.tortilla'}#{part}")
        red = "R" if part == "aerial" else "B04"
        bands = [data.sensor.band_names.index(name) for name in (infrared, red)]
        means = np.array([data.read(i)[0][bands].mean((1, 2)) for i in range(9)])
        assert (means[:, 0] > means[:, 1]).all()


def test_a_time_series_is_its_median_or_one_date(real: Path) -> None:
    file = real / "pastis.tortilla"
    with h5py.File(io.BytesIO(by_hand(file, 2, "s2")[1])) as opened:
        series = opened["data"][()]
    np.testing.assert_array_equal(open_labelled(f"tortilla:{file}").read(2)[0], np.median(series, axis=0))
    np.testing.assert_array_equal(open_labelled(f"tortilla:{file}#date=-1").read(2)[0], series[-1])
    with h5py.File(io.BytesIO(by_hand(file, 2, "s1d")[1])) as opened:
        series = opened["data"][()]
    radar = open_labelled(f"tortilla:{file}#s1d,date=0")
    assert radar.shape == (2, 32, 32)
    np.testing.assert_array_equal(radar.read(2)[0], series[0, :2].astype(np.float32))
    with pytest.raises(DataError, match="has no date 5"):
        open_labelled(f"tortilla:{file}#date=5")


def test_masks_of_pastis_are_the_first_plane_with_void_ignored(real: Path) -> None:
    file = real / "pastis.tortilla"
    data = open_labelled(f"tortilla:{file}")
    assert data.read_mask is not None
    for index in range(9):
        with h5py.File(io.BytesIO(by_hand(file, index, "semantic")[1])) as opened:
            plane = opened["data"][0].astype(int)
        np.testing.assert_array_equal(data.read_mask(index), np.where(plane == 19, 255, plane))
    assert len(data.class_names) == 19


def test_an_older_head_with_a_format_text_reads_the_same(real: Path, tmp_path: Path) -> None:
    data = bytearray((real / "benv2.tortilla").read_bytes())
    data[18:50] = b"a format text of 24 byte" + struct.pack("<Q", 1)
    (tmp_path / "geobench_benv2.tortilla").write_bytes(data)
    old = open_labelled(f"tortilla:{tmp_path / 'geobench_benv2.tortilla'}")
    np.testing.assert_array_equal(old.read(3)[0], open_labelled(f"tortilla:{real / 'benv2.tortilla'}").read(3)[0])


def test_parts_are_joined_and_an_absent_one_is_named(real: Path, tmp_path: Path) -> None:
    parts = [tmp_path / f"geobench_benv2.{i:04d}.part.tortilla" for i in range(3)]
    for part in parts:
        shutil.copy(real / "benv2.tortilla", part)
    data = open_labelled(f"tortilla:{parts[0]}")
    assert len(data) == 27
    np.testing.assert_array_equal(data.read(19)[0], data.read(1)[0])
    parts[1].unlink()
    with pytest.raises(DataError, match=r"geobench_benv2\.0001\.part\.tortilla is absent"):
        open_labelled(f"tortilla:{parts[0]}")


def sample(**row: Any) -> dict[str, Any]:
    return {"tortilla:id": "a", "tortilla:file_format": "TORTILLA", "tortilla:data_split": "train",
            "labels": ["Pastures"], **row}  # fmt: skip


def test_files_that_are_cut_off_or_false_are_refused_by_name(real: Path, tmp_path: Path) -> None:
    file = tmp_path / "benv2.tortilla"
    whole = (real / "benv2.tortilla").read_bytes()
    inner = tortilla([{"tortilla:id": "s2", "tortilla:file_format": "GTiff"}], [b"no image"])
    cases = {
        "is no tortilla at byte 0": b"PK" + whole[2:],
        "is cut off": whole[: len(whole) // 2],
        "has a damaged table": whole[:-40] + bytes(40),
        "is no whole GeoTIFF": tortilla([sample()], [inner]),
        "not s2": tortilla([sample()], [tortilla([{"tortilla:id": "s3"}], [b""])]),
        "has the labels": tortilla([sample(labels=["Castles"])], [inner]),
    }
    for says, data in cases.items():
        file.write_bytes(data)
        with pytest.raises(DataError, match=says) as raised:
            open_labelled(f"tortilla:{file}")
        assert "benv2.tortilla" in str(raised.value)


@settings(max_examples=40)
@given(data=st.data())
def test_whatever_byte_is_overwritten_the_answer_is_images_or_one_line(data: st.DataObject) -> None:
    whole = bytearray(small_set())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "benv2.tortilla"
        file.write_bytes(whole[: data.draw(st.integers(1, len(whole)))] if data.draw(st.booleans()) else whole)
        said = ""
        try:
            images = open_labelled(f"tortilla:{file}")
            assert images.read(0)[0].shape == images.shape
        except DataError as error:
            said = str(error)
    assert "\n" not in said


@cache
def small_set() -> bytes:
    """A benv2 of one image of 4 × 4 pixels."""
    profile = {"driver": "GTiff", "count": 12, "height": 4, "width": 4, "dtype": "uint16", "crs": "EPSG:32633",
               "transform": Affine(10, 0, 5e5, 0, -10, 5e6)}  # fmt: skip
    with rasterio.MemoryFile() as memory:
        with memory.open(**profile) as opened:
            opened.write(np.ones((12, 4, 4), np.uint16))
        image = bytes(memory.read())
    inner = tortilla([{"tortilla:id": "s2", "tortilla:file_format": "GTiff"}], [image])
    return tortilla([sample(lat=48.0, lon=11.0)], [inner])


def written(array: Any, transform: Affine) -> bytes:
    """(C, H, W) as the bytes of a GeoTIFF."""
    count, height, width = array.shape
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", count=count, height=height, width=width, dtype=array.dtype, crs="EPSG:3857",
                         transform=transform) as opened:  # fmt: skip
            opened.write(array)
        return bytes(memory.read())


def test_buildings_of_spacenet7_are_the_mask_as_it_lies_beside_three_colours(tmp_path: Path) -> None:
    # The row of the table: `images` 4 × uint8 + `mask` 1 × uint8; lon, lat and aoi are columns of upstream's writer.
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 4, 32, 32), np.uint8)
    images[:, 3] = 255
    masks = rng.integers(0, 2, (4, 1, 32, 32), np.uint8)
    where = Affine(4.777, 0, 1e6, 0, -4.777, 2e6)
    parts = [{"tortilla:id": name, "tortilla:file_format": "GTiff"} for name in ("images", "mask")]
    samples = [tortilla(parts, [written(image, where), written(mask, where)])
               for image, mask in zip(images, masks, strict=True)]  # fmt: skip
    splits = ("train", "validation", "test", "train")
    rows = [{"tortilla:id": f"sample_{i}", "tortilla:file_format": "TORTILLA", "tortilla:data_split": split,
             "lon": 11.0 + i, "lat": 48.0, "aoi": f"L15-{i // 2}"} for i, split in enumerate(splits)]  # fmt: skip
    file = tmp_path / "geobench_spacenet7.tortilla"
    file.write_bytes(tortilla(rows, samples))
    data = open_labelled(f"tortilla:{file}")
    assert (data.task, data.shape, data.scaling.unit) == ("segmentation", (3, 32, 32), "uint8")
    assert data.sensor.band_names == ("red", "green", "blue")
    assert data.sensor.gsd_m == 4
    assert (data.class_names, data.ignore) == (("no building", "building"), None)
    assert data.splits == ("train", "val", "test", "train")
    assert data.places == ("L15-0", "L15-0", "L15-1", "L15-1")
    assert data.read_mask is not None
    for index in range(4):
        np.testing.assert_array_equal(data.read(index)[0], images[index, :3])
        np.testing.assert_array_equal(data.read_mask(index), masks[index, 0])
    assert any("fourth channel" in note for note in data.notes)


def test_sets_of_boxes_are_refused_with_what_there_is_instead(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels are boxes.*m-nz-cattle") as error:
        open_labelled(f"tortilla:{tmp_path / 'geobench_nzcattle.tortilla'}")
    assert "\n" not in str(error.value)


def test_offsets_outside_the_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "benv2.tortilla"
    footer = io.BytesIO()
    row = sample(**{"tortilla:offset": 200, "tortilla:length": 1 << 40})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), footer)
    file.write_bytes(
        (b"#y" + struct.pack("<QQQ", 200, len(footer.getvalue()), 1)).ljust(200, b"\0") + footer.getvalue()
    )
    with pytest.raises(DataError, match="a would lie outside its tortilla"):
        open_labelled(f"tortilla:{file}")


def test_unknown_sets_modalities_and_absent_files_say_what_there_is(real: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"get geobench_pastis\.tortilla.* from https://"):
        open_labelled(f"tortilla:{tmp_path / 'geobench_pastis.tortilla'}")
    with pytest.raises(DataError, match="is no set of GEO-Bench-2 that is read"):
        open_labelled(f"tortilla:{tmp_path / 'flair2.tortilla'}")
    with pytest.raises(ConfigError, match="s2"):
        open_labelled(f"tortilla:{real / 'benv2.tortilla'}#s3")
    with pytest.raises(ConfigError, match="is for time series"):
        open_labelled(f"tortilla:{real / 'benv2.tortilla'}#date=1")
