"""HySpecNet-11k as published: corpora of its names, types and sizes. The real patches are packed in test_readers."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from dofa.corpus.pack import pack
from dofa.corpus.readers.hyspecnet import read_hyspecnet
from dofa.corpus.split import SplitConfig
from dofa.errors import ConfigError, DataError

SCENE = "ENMAP01-____L2A-DT000000495{}_20221103T162438Z_001_V010110_20221118T145147Z"
EMPTY = [b for b in range(224) if 126 <= b <= 140 or 160 <= b <= 166]


def write_patch(root: Path, scene: int, top: int, left: int, count=224, dtype="int16") -> Path:
    tile = SCENE.format(scene)
    patch = f"{tile}-Y{top:04}{top + 127:04}_X{left:04}{left + 127:04}"
    path = root / tile / patch / f"{patch}-SPECTRAL_IMAGE.TIF"
    path.parent.mkdir(parents=True)
    coarse = np.random.default_rng([scene, top, left]).integers(-50, 9000, (count, 8, 8))
    pixels = coarse.repeat(16, 1).repeat(16, 2).astype(dtype)
    pixels[[b for b in EMPTY if b < count]] = -32768
    place = from_origin(500_000 + 30 * left, 5_000_000 - 30 * top, 30, 30)
    more = {"crs": "EPSG:32618", "transform": place, "nodata": -32768, "compress": "deflate"}
    with rasterio.open(path, "w", "GTiff", 128, 128, count, dtype=dtype, **more) as file:
        file.write(pixels)
    (path.parent / f"{patch}-QL_QUALITY_HAZE.TIF").write_bytes(b"")
    return path


def test_both_sensors_take_their_bands_and_leave_out_the_empty_ones(tmp_path):
    path = write_patch(tmp_path, 0, 146, 311)
    with rasterio.open(path) as file:
        kept = np.delete(file.read(), EMPTY, axis=0)
    for sensor in ("enmap-202", "enmap"):
        reading = read_hyspecnet(tmp_path, sensor)
        sample = reading.items[0].load()
        np.testing.assert_array_equal(sample.image, kept)
        assert sample.valid is None
        assert len(reading.sensor.bands) == 202
        assert bool(reading.notes) == (sensor == "enmap")


def test_only_one_file_is_opened_to_plan(tmp_path, monkeypatch):
    for n in range(3):
        write_patch(tmp_path, n, 0, 0)
    opened = []
    real = rasterio.open
    monkeypatch.setattr("rasterio.open", lambda path, *more: opened.append(path) or real(path, *more))
    assert len(read_hyspecnet(tmp_path).items) == 3
    assert len(opened) == 1


def test_positions_in_the_names_hold_out_blocks_of_a_scene(tmp_path):
    for left in (0, 128, 256, 384):
        write_patch(tmp_path, 0, 0, left)
    reading = read_hyspecnet(tmp_path)
    assert [i.bounds[0] for i in reading.items if i.bounds] == [0, 128, 256, 384]
    assert {i.place for i in reading.items} == {SCENE.format(0)}
    report = pack(reading, tmp_path / "store", split=SplitConfig("blocks"), progress=False)
    assert (report.images, report.gap) == ({"train": 2, "val": 1}, 1)


def test_patches_are_cut_into_tiles(tmp_path):
    write_patch(tmp_path, 0, 10, 20)
    whole = read_hyspecnet(tmp_path).items[0].load().image
    items = read_hyspecnet(tmp_path, tile=64).items
    assert [i.bounds for i in items] == [(x, -(y + 64), x + 64, -y) for y in (10, 74) for x in (20, 84)]
    np.testing.assert_array_equal(items[3].load().image, whole[:, 64:, 64:])
    with pytest.raises(ConfigError, match="tile is 256; HySpecNet-11k has patches of 128"):
        read_hyspecnet(tmp_path, tile=256)


def test_a_pixel_without_a_measurement_in_a_band_kept_is_missing(tmp_path):
    path = write_patch(tmp_path, 0, 0, 0)
    with rasterio.open(path, "r+") as file:
        band = file.read(5)
        band[3, 4] = -32768
        file.write(band, 5)
    valid = read_hyspecnet(tmp_path).items[0].load().valid
    assert np.argwhere(~valid).tolist() == [[3, 4]]


def test_broken_patches_are_refused_with_their_reason(tmp_path):
    write_patch(tmp_path, 5, 0, 0)
    torn, few, floats, odd = (
        write_patch(tmp_path, n, 0, 0, c, d)
        for n, c, d in ((0, 224, "int16"), (1, 202, "int16"), (2, 224, "float32"), (3, 224, "int16"))
    )
    torn.write_bytes(torn.read_bytes()[:5000])
    odd = odd.rename(odd.with_name("strange-SPECTRAL_IMAGE.TIF"))
    report = pack(read_hyspecnet(tmp_path), tmp_path / "store", split=SplitConfig("none"), progress=False)
    reasons = {r.source: r.reason for r in report.refused}
    assert "truncated or damaged" in reasons[str(torn)]
    assert "has 202 bands of 128×128 int16 numbers; 224 of 128×128 int16 are expected" in reasons[str(few)]
    assert "float32 numbers" in reasons[str(floats)]
    assert "is not named <scene>-Y<rows>_X<columns>" in reasons[str(odd)]
    assert report.images == {"train": 1}


def test_a_wrong_folder_or_sensor_is_refused(tmp_path):
    write_patch(tmp_path / "corpus" / "patches", 0, 0, 0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x-DATA.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"no HySpecNet-11k: expected <tile>/<patch>/.*found 1 × .npy"):
        read_hyspecnet(tmp_path / "other")
    with pytest.raises(ConfigError, match="sensor enmap has no band 'B01'"):
        read_hyspecnet(tmp_path, "sentinel-2-l2a")
    for level in (".", "corpus", "corpus/patches", f"corpus/patches/{SCENE.format(0)}"):
        assert len(read_hyspecnet(tmp_path / level).items) == 1
