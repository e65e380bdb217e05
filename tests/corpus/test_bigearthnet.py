"""BigEarthNet v2 as published: real samples of it, and corpora of the same names, types and sizes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from dofa import sensors
from dofa.corpus.command import pack_command
from dofa.corpus.pack import pack
from dofa.corpus.readers.bigearthnet import read_bigearthnet
from dofa.corpus.split import SplitConfig
from dofa.corpus.store import open_stores
from dofa.errors import ConfigError, DataError

pq = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")

TIMES = dict.fromkeys(("B02", "B03", "B04", "B08"), 1) | dict.fromkeys(("B01", "B09"), 6)
TIMES |= dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 2)
S2 = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
S1 = "S1A_IW_GRDH_1SDV_20170613T165043"
CORNERS = {"33UUP": (300_000, 5_400_000), "33UVP": (399_960, 5_400_000), "33UUQ": (300_000, 5_500_020)}


def write_patch(root: Path, product: str, column: int, row: int, tile: str | None = None, aside=0) -> Path:
    """One patch, its bands drawn from its name so that no two are alike."""
    tile = tile or product[-5:]
    radar = product.startswith("S1")
    name = f"{product}_{tile}_{column}_{row}" if radar else f"{product}_{column}_{row}"
    folder = root / ("BigEarthNet-S1" if radar else "BigEarthNet-S2") / product / name
    folder.mkdir(parents=True)
    west, north = CORNERS[tile]
    for n, (band, times) in enumerate({"VV": 1, "VH": 1}.items() if radar else TIMES.items()):
        rng = np.random.default_rng([n, column, row, sum(map(ord, product))])
        size = (120 // times, 120 // times)
        pixels = rng.normal(-15, 3, size).astype("f4") if radar else rng.integers(1, 9000, size, np.uint16)
        place = from_origin(west + 1200 * column + aside, north - 1200 * row, 10 * times, 10 * times)
        more = {} if radar else {"nodata": 0}
        with rasterio.open(
            folder / f"{name}_{band}.tif", "w", "GTiff", *size, 1, "EPSG:32633", place, pixels.dtype, **more
        ) as file:
            file.write(pixels, 1)
    return folder


def listed(root: Path, rows: list[tuple[str, str, str]], name="metadata.parquet") -> None:
    """The table beside the folders, with the columns of the published one."""
    columns = {
        "patch_id": [r[0] for r in rows],
        "labels": [["Pastures", "Marine waters"] for _ in rows],
        "split": [r[2] for r in rows],
        "country": ["Austria" for _ in rows],
        "s1_name": [r[1] for r in rows],
        "s2v1_name": [r[0].replace("_N9999_R022_T33UUP", "") for r in rows],
        "contains_seasonal_snow": [False for _ in rows],
        "contains_cloud_or_shadow": [False for _ in rows],
    }
    pq.write_table(pa.table(columns), root / name)


def expected(folder: Path, band: str) -> np.ndarray:
    """A band on the grid of 10 m, pixel by pixel from its own file."""
    with rasterio.open(folder / f"{folder.name}_{band}.tif") as file:
        raw = file.read(1)
    at = np.arange(120) * len(raw) // 120
    return raw[at[:, None], at[None, :]]


# -- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sensor", ["sentinel-1-grd", "sentinel-2-l2a"])
def test_real_samples_are_read_pixel_by_pixel_in_the_sensors_order(real_data, tmp_path, sensor):
    root = real_data / "true_formats" / "BigEarthNet"
    reading = read_bigearthnet(root, sensor)
    (item,) = reading.items
    assert reading.sensor.bands == sensors.get(sensor).bands  # with their wavelengths
    pack(reading, tmp_path / "store", split=SplitConfig("none"), progress=False)
    store = open_stores(tmp_path / "store")[sensor]
    image, valid = store.read(0)
    assert image.shape == (len(reading.sensor.bands), 120, 120)
    assert image.dtype == ("float32" if sensor == "sentinel-1-grd" else "uint16")
    assert valid is None
    for band, name in zip(image, reading.sensor.band_names, strict=True):
        np.testing.assert_array_equal(band, expected(Path(item.source), name))
    with rasterio.open(next(Path(item.source).glob("*_VV.tif" if "S1" in item.source else "*_B02.tif"))) as file:
        assert item.bounds == pytest.approx(tuple(file.bounds))
        assert item.frame == file.crs.to_string()
    middle = np.median(store.scaling.physical(image), axis=(1, 2))
    if sensor == "sentinel-1-grd":
        assert -14 < middle[0] < -8 < 0 < middle[0] - middle[1]  # VV first, and stronger than VH
    else:
        red, infrared = middle[reading.sensor.index(["B04", "B08"])]
        assert 0.02 < red < 0.1 < 0.3 < infrared < 0.5  # vegetation in June


def test_bands_of_three_resolutions_become_one_image_of_their_own_numbers(tmp_path):
    folder = write_patch(tmp_path, S2, 75, 43)
    reading = read_bigearthnet(tmp_path, "sentinel-2-l2a")
    sample = reading.items[0].load()
    assert sample.valid is None
    for band, name in zip(sample.image, reading.sensor.band_names, strict=True):
        np.testing.assert_array_equal(band, expected(folder, name))
    assert "B01, B09 of 60 m are repeated onto the grid of 10 m (nearest): nothing is averaged" in reading.notes[0]


def test_what_is_nought_in_every_band_is_missing_and_nought_in_one_is_a_measurement(tmp_path):
    folder = write_patch(tmp_path, S2, 75, 43)
    for path in folder.glob("*.tif"):
        with rasterio.open(path, "r+") as file:
            pixels = file.read(1)
            times = 120 // len(pixels)
            pixels[: 6 // times, 6 // times : 12 // times] = 0
            if path.name.endswith("B09.tif"):
                pixels[5] = 0
            file.write(pixels, 1)
    valid = read_bigearthnet(tmp_path, "sentinel-2-l2a").items[0].load().valid
    missing = np.zeros((120, 120), bool)
    missing[:6, 6:12] = True
    np.testing.assert_array_equal(valid, ~missing)


def test_patches_are_cut_into_tiles_that_know_where_they_lie(tmp_path):
    folder = write_patch(tmp_path, S1, 70, 48, "33UUP")
    reading = read_bigearthnet(tmp_path, "sentinel-1-grd", tile=64, stride=56)
    whole = np.stack([expected(folder, b) for b in ("VV", "VH")])
    assert len(reading.items) == 4
    for item in reading.items:
        top, left = map(int, item.source.rpartition("@")[2].split(","))
        np.testing.assert_array_equal(item.load().image, whole[:, top : top + 64, left : left + 64])
        west, north = 384_000 + 10 * left, 5_342_400 - 10 * top
        assert item.bounds == pytest.approx((west, north - 640, west + 640, north))


# -- places and splits ------------------------------------------------------------------------------------------------


def test_a_place_is_a_square_of_ground_whatever_tile_date_or_sensor_shows_it(tmp_path):
    beside = S2.replace("33UUP", "33UVP")
    write_patch(tmp_path, S2, 10, 10)
    write_patch(tmp_path, S2.replace("20170613", "20180421"), 10, 10)  # another date
    write_patch(tmp_path, S2, 83, 10)  # centre 400.2 km E: in the strip that both tiles show
    write_patch(tmp_path, beside, 0, 10)  # centre 400.6 km E: the same ground for two thirds
    write_patch(tmp_path, S1, 10, 10, "33UUP")
    write_patch(tmp_path, S1, 0, 10, "33UVP")
    optical = read_bigearthnet(tmp_path, "sentinel-2-l2a").items
    radar = read_bigearthnet(tmp_path, "sentinel-1-grd").items
    by_name = {Path(i.source).name: i.place for i in (*optical, *radar)}
    first, second = "EPSG:32633 100 km 3 E 53 N", "EPSG:32633 100 km 4 E 53 N"
    assert sorted(by_name.values()) == [first] * 3 + [second] * 3
    assert by_name[f"{S2}_83_10"] == by_name[f"{beside}_0_10"] == by_name[f"{S1}_33UVP_0_10"] == second


def test_listing_opens_one_patch_of_a_tile(tmp_path, monkeypatch):
    for row in range(5):
        write_patch(tmp_path, S2, 1, row)
        write_patch(tmp_path, S2.replace("33UUP", "33UUQ"), 1, row)
    opened = []
    real = rasterio.open
    monkeypatch.setattr("rasterio.open", lambda path, *more: opened.append(str(path)) or real(path, *more))
    assert len(read_bigearthnet(tmp_path, "sentinel-2-l2a").items) == 10
    assert len({Path(p).parent for p in opened}) == 2


@pytest.mark.parametrize("sensor", ["sentinel-1-grd", "sentinel-2-l2a"])
def test_the_published_split_is_kept_for_both_sensors(tmp_path, sensor):
    rows = [(f"{S2}_1_{r}", f"{S1}_33UUP_1_{r}", s) for r, s in enumerate(("train", "train", "validation", "test"))]
    for row in range(5):  # the last one is not listed
        write_patch(tmp_path, S2, 1, row)
        write_patch(tmp_path, S1, 1, row, "33UUP")
    listed(tmp_path, rows)
    reading = read_bigearthnet(tmp_path, sensor)
    assert [i.split for i in reading.items] == ["train", "train", "val", "test"]
    assert "1 patches are left out: metadata.parquet does not list them" in reading.notes
    report = pack(reading, tmp_path / "store", progress=False)
    assert report.images == {"test": 1, "train": 2, "val": 1}

    snow = [(f"{S2}_1_4", f"{S1}_33UUP_1_4", "train")]
    listed(tmp_path, snow, "metadata_for_patches_with_snow_cloud_or_shadow.parquet")
    again = read_bigearthnet(tmp_path / ("BigEarthNet-S1" if "1" in sensor[:10] else "BigEarthNet-S2"), sensor)
    assert [i.split for i in again.items] == ["train", "train", "val", "test", "train"]


def test_a_table_that_does_not_fit_is_refused(tmp_path):
    write_patch(tmp_path, S2, 1, 1)
    table = tmp_path / "metadata.parquet"
    listed(tmp_path, [(f"{S2}_9_9", "x", "train")])
    with pytest.raises(DataError, match="lists none of the 1 patches"):
        read_bigearthnet(tmp_path, "sentinel-2-l2a")
    listed(tmp_path, [(f"{S2}_1_1", "x", "training")])
    with pytest.raises(DataError, match="has the split 'training': expected train, validation, test"):
        read_bigearthnet(tmp_path, "sentinel-2-l2a")
    pq.write_table(pa.table({"patch": ["x"]}), table)
    with pytest.raises(DataError, match="lacks the columns patch_id and split"):
        read_bigearthnet(tmp_path, "sentinel-2-l2a")
    table.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"metadata\.parquet cannot be read"):
        read_bigearthnet(tmp_path, "sentinel-2-l2a")


def test_without_pyarrow_a_split_is_not_silently_lost(tmp_path, monkeypatch):
    write_patch(tmp_path, S2, 1, 1)
    listed(tmp_path, [(f"{S2}_1_1", "x", "train")])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match="needs pyarrow: pip install pyarrow"):
        read_bigearthnet(tmp_path, "sentinel-2-l2a")


# -- what is refused --------------------------------------------------------------------------------------------------


def test_broken_patches_are_refused_with_their_file_and_the_others_packed(tmp_path):
    good = [write_patch(tmp_path, S2, 1, row) for row in range(3)]
    torn, lacking = write_patch(tmp_path, S2, 2, 1), write_patch(tmp_path, S2, 0, 1)
    file = torn / f"{torn.name}_B02.tif"
    file.write_bytes(file.read_bytes()[:9000])
    (lacking / f"{lacking.name}_B8A.tif").unlink()
    aside = write_patch(tmp_path, S2, 3, 1, aside=2400)
    lost = write_patch(tmp_path, S2.replace("33UUP", "33UUQ"), 1, 1)
    for band in lost.iterdir():
        band.write_bytes(b"")
    reading = read_bigearthnet(tmp_path, "sentinel-2-l2a")
    report = pack(reading, tmp_path / "store", split=SplitConfig("none"), progress=False)
    reasons = {r.source: r.reason for r in report.refused}
    assert "B02.tif" in reasons.pop(str(torn))
    assert "B8A.tif cannot be opened" in reasons.pop(str(lacking))
    said = "begins at 306000, 5398800 by its files and at 303600, 5398800 by its name"
    assert said in reasons.pop(str(aside))
    assert "cannot be opened" in reasons.pop(str(lost))
    assert not reasons
    assert report.images == {"train": len(good)}


@pytest.mark.parametrize(
    ("where", "sensor", "said"),
    [
        ("BigEarthNet-S1", "sentinel-2-l2a", "holds sentinel-1-grd: expected BigEarthNet-S2/<product>/<patch>/.*above"),
        ("", "sentinel-2-l2a", "holds BigEarthNet-S1 and not BigEarthNet-S2: .*extract it beside them"),
        (f"BigEarthNet-S1/{S1}", "sentinel-1-grd", "is one product of BigEarthNet: .*two levels above"),
        (f"BigEarthNet-S1/{S1}/{S1}_33UUP_1_1", "sentinel-1-grd", "is one patch of BigEarthNet: .*three levels above"),
        ("v1", "sentinel-2-l2a", r"without a folder for each product \(S2A_MSIL2A_20170613T101031_0_45\), as .* v1"),
        ("v1", "sentinel-1-grd", "as BigEarthNet v1 does: .*which is version 2"),
        (
            "Reference_Maps",
            "sentinel-2-l2a",
            "holds no bands, its first patch has .*_reference_map.tif: expected",
        ),
        ("..", "sentinel-1-grd", "no BigEarthNet v2: .*it looks as if you want: dofa pack bigearthnet .*/corpus$"),
        ("nowhere", "sentinel-1-grd", "found no such folder"),
    ],
)
def test_a_wrong_folder_says_what_was_expected_and_found(tmp_path, where, sensor, said):
    root = tmp_path / "corpus"
    write_patch(root, S1, 1, 1, "33UUP")
    (root / "v1" / "S2A_MSIL2A_20170613T101031_0_45").mkdir(parents=True)
    reference = root / "Reference_Maps" / S2 / f"{S2}_26_57"
    reference.mkdir(parents=True)
    (reference / f"{S2}_26_57_reference_map.tif").write_bytes(b"")
    with pytest.raises(DataError, match=said):
        read_bigearthnet(root / where, sensor)


def test_a_sensor_that_took_none_of_these_images_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no images of sentinel-2-l1c: it has sentinel-1-grd, sentinel-2-l2a"):
        read_bigearthnet(tmp_path, "sentinel-2-l1c")
    with pytest.raises(ConfigError, match=r"say whose images .*: sensor sentinel-1-grd or sentinel-2-l2a"):
        read_bigearthnet(tmp_path)


# -- packing ----------------------------------------------------------------------------------------------------------


def test_an_interrupted_pack_of_the_corpus_ends_at_the_same_bytes(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("dofa.corpus.pack.SHARD_BYTES", 240_000)  # two patches a shard
    for row in range(6):
        write_patch(tmp_path / "in", S1, 1, row, "33UUP")
    reading = read_bigearthnet(tmp_path / "in", "sentinel-1-grd")
    pack(reading, tmp_path / "whole", split=SplitConfig("blocks"), progress=False)

    def breaks():
        raise KeyboardInterrupt

    items = [replace(item, load=breaks) if n == 3 else item for n, item in enumerate(reading.items)]
    with pytest.raises(KeyboardInterrupt):
        pack(replace(reading, items=items), tmp_path / "resumed", split=SplitConfig("blocks"), progress=False)
    again = read_bigearthnet(tmp_path / "in", "sentinel-1-grd")
    report = pack(again, tmp_path / "resumed", split=SplitConfig("blocks"), progress=False)
    assert toy.tree(tmp_path / "whole") == toy.tree(tmp_path / "resumed")
    assert report.images == {"train": 4, "val": 1}
    assert report.gap == 1


def test_the_command_packs_the_sensor_it_is_told(tmp_path, capsys):
    write_patch(tmp_path / "in", S1, 1, 1, "33UUP")
    given = ["bigearthnet", [str(tmp_path / "in"), str(tmp_path / "store")]]
    pack_command(*given, sensor="sentinel-1-grd", split="none")
    assert "sentinel-1-grd, 1 images: 1 train (1 places)" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--dn-offset belongs to the layout images"):
        pack_command(*given, sensor="sentinel-2-l2a", dn_offset=-1000)
