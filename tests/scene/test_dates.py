"""The day a scene was taken, and the columns of GeoParquet that tell rows of many scenes apart."""

from datetime import date

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio

import dofa
from dofa.cli import main
from dofa.scene.metadata import acquisition_date, day_in

from .conftest import model_and_head, write_tiff

BANDS = ["B02", "B03", "B04", "B08"]


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("S2B_MSIL2A_20240601T100031_N0510_R122_T33UUU_20240601T153045.SAFE", date(2024, 6, 1)),
        ("LC08_L2SP_193024_20200823_20200905_02_T1_SR_B4.TIF", date(2020, 8, 23)),
        ("HLS.S30.T10TEK.2020283T185941.v2.0.B02.tif", date(2020, 10, 9)),
        ("2024:06:01 10:00:31", date(2024, 6, 1)),
        ("2024-06-01T10:00:31Z", date(2024, 6, 1)),
        ("tile_2024_06_01.tif", date(2024, 6, 1)),
        ("scene_20241399.tif", None),
        ("scene_19000101.tif", None),
        ("scene_20990101.tif", None),
        ("m_3807708_ne_18_1.tif", None),
        ("chip_123456789012.tif", None),
        ("", None),
    ],
)
def test_days_in_names_and_tags(text, day):
    assert day_in(text) == day


def scene(path, **tags):
    image = np.random.default_rng(0).integers(500, 4000, (4, 64, 64), np.uint16)
    write_tiff(path, image, names=BANDS)
    with rasterio.open(path, "r+") as file:
        file.update_tags(**{k: v for k, v in tags.items() if k != "ACQUISITIONDATETIME"})
        if "ACQUISITIONDATETIME" in tags:
            file.update_tags(ns="IMAGERY", ACQUISITIONDATETIME=tags["ACQUISITIONDATETIME"])
    return path


@pytest.mark.parametrize(
    ("name", "tags", "day"),
    [
        ("a.tif", {}, None),
        ("a.tif", {"TIFFTAG_DATETIME": "2023:05:04 01:02:03"}, date(2023, 5, 4)),
        ("a_20240601.tif", {"TIFFTAG_DATETIME": "2023:05:04 01:02:03"}, date(2024, 6, 1)),  # when a program wrote it
        ("a_20240601.tif", {"ACQUISITIONDATETIME": "2022-01-02T03:04:05Z"}, date(2022, 1, 2)),
        ("a.tif", {"DATE_ACQUIRED": "2021-09-08"}, date(2021, 9, 8)),
    ],
)
def test_the_acquisition_goes_before_the_name_and_the_name_before_the_file(name, tags, day, tmp_path):
    with dofa.open_scene(scene(tmp_path / name, **tags), "sentinel-2-l2a", dn_offset=0) as opened:
        assert acquisition_date(opened) == day


@pytest.mark.parametrize("verb", ["embed", "predict"])
def test_rows_name_scene_day_sensor_and_model(verb, tmp_path):
    files = [scene(tmp_path / name) for name in ("a_20240601.tif", "b.tif")]
    model_and_head(tmp_path, files[0])
    words = ["--head", str(tmp_path / "head")] if verb == "predict" else ["--stats", "scene"]
    words += ["--weights", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--format", "geoparquet"]
    command = [verb, *map(str, files), *words, "--sensor", "sentinel-2-l2a", "--dn-offset", "0"]
    assert main(command) == 0
    first, second = (pq.read_table(tmp_path / "out" / f"{file.stem}.parquet") for file in files)
    assert first.column_names[:5] == ["geometry", "bbox", "row", "col", "vector"]
    assert set(first["scene"].to_pylist()) == {"a_20240601.tif"}
    assert set(first["date"].to_pylist()) == {date(2024, 6, 1)}
    assert set(second["date"].to_pylist()) == {None}
    assert set(second["sensor"].to_pylist()) == {"sentinel-2-l2a"}
    (told,) = set(second["model"].to_pylist())
    assert told.startswith(f"{tmp_path.name}/model sha256:")
    # The same weights by another name are the same job.
    (tmp_path / "other").symlink_to(tmp_path / "model")
    assert main([word.replace(str(tmp_path / "model"), str(tmp_path / "other")) for word in command]) == 0
