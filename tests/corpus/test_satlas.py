"""SatlasPretrain in its true layout: pixels, places, refusals, and folders of the wrong level."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rasterio.warp import transform

from dofa.corpus import pack as packing
from dofa.corpus.pack import pack
from dofa.corpus.readers.satlas import read_satlas_naip, read_satlas_s1, read_satlas_s2
from dofa.corpus.split import SplitConfig
from dofa.corpus.store import open_stores
from dofa.errors import ConfigError, DataError

# The published wavelengths of the nine bands, in their order, to the rounding of the corpus' description.
S2_UM = (0.665, 0.56, 0.49, 0.705, 0.74, 0.783, 0.842, 1.61, 2.19)
READERS = {"satlas-s1": read_satlas_s1, "satlas-s2": read_satlas_s2, "satlas-naip": read_satlas_naip}


@pytest.fixture(scope="module")
def satlas(layouts, tmp_path_factory):
    """The three products side by side as the archives unpack, and what was written."""
    root = tmp_path_factory.mktemp("published") / "satlas"
    truth = {
        "satlas-s1": layouts.satlas_s1(root / "sentinel1"),
        "satlas-s2": layouts.satlas_s2(root / "sentinel2"),
        "satlas-naip": layouts.satlas_naip(root / "naip"),
    }
    return root, truth


FOLDERS = {"satlas-s1": "sentinel1", "satlas-s2": "sentinel2", "satlas-naip": "naip"}
SENSORS = {"satlas-s1": "sentinel-1-satlas", "satlas-s2": "sentinel-2-dofa9", "satlas-naip": "naip-rgb"}
BANDS = {
    "satlas-s1": ("VV", "VH"),
    "satlas-s2": ("B04", "B03", "B02", "B05", "B06", "B07", "B08", "B11", "B12"),
    "satlas-naip": ("R", "G", "B"),
}


def key(source: str) -> tuple[str, int, int]:
    """Scene, column and row of a source: <scene>/<folder>/<col>_<row>.png."""
    path = Path(source)
    col, row = path.stem.split("_")
    return path.parent.parent.name, int(col), int(row)


@pytest.mark.parametrize("layout", READERS)
def test_every_pixel_reaches_the_store_in_the_order_of_the_sensor(layout, satlas, tmp_path):
    root, truth = satlas
    report = pack(READERS[layout](root / FOLDERS[layout]), tmp_path / "store", progress=False)
    assert report.refused == []
    store = open_stores(tmp_path / "store")[SENSORS[layout]]
    assert store.sensor.band_names == BANDS[layout]
    assert store.dtype == np.uint8
    assert store.shape == (len(BANDS[layout]), 512, 512)
    sources = store.sources(range(len(store)))
    assert {key(s) for s in sources} == set(truth[layout])
    for n, source in enumerate(sources):
        image, valid = store.read(n)
        assert valid is None
        np.testing.assert_array_equal(image, truth[layout][key(source)])


def test_the_nine_bands_are_those_of_the_published_model(satlas, tmp_path):
    sensor = read_satlas_s2(satlas[0] / "sentinel2").sensor
    np.testing.assert_allclose([b.wavelength_um for b in sensor.bands], S2_UM, atol=0.013)


@pytest.mark.parametrize("layout", READERS)
def test_statistics_are_those_of_the_training_images_on_the_8_bit_scale(layout, satlas, tmp_path):
    root, truth = satlas
    reading = READERS[layout](root / FOLDERS[layout])
    pack(reading, tmp_path / "store", progress=False, split=SplitConfig(val_fraction=0.4))
    store = open_stores(tmp_path / "store")[SENSORS[layout]]
    train = [truth[layout][key(s)] for s in store.sources(store.indices("train"))]
    assert 0 < len(train) < len(truth[layout])
    pixels = np.stack(train, axis=1).astype(float)
    assert store.scaling.unit == "uint8"
    assert store.scaling.stats_source == "corpus"
    np.testing.assert_allclose(store.scaling.mean, pixels.mean(axis=(1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(store.scaling.std, pixels.std(axis=(1, 2, 3)), rtol=1e-5)
    assert not np.allclose(store.scaling.mean, reading.sensor.scaling.mean, rtol=1e-3)


# -- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", READERS)
@pytest.mark.parametrize("seed", range(3))
def test_no_ground_stands_on_both_sides_of_a_split_whatever_the_scene(layout, seed, satlas, tmp_path):
    root, truth = satlas
    reading = READERS[layout](root / FOLDERS[layout])
    pack(reading, tmp_path / "store", progress=False, split=SplitConfig(val_fraction=0.5, seed=seed))
    store = open_stores(tmp_path / "store")[SENSORS[layout]]
    ground = {split: {key(s)[1:] for s in store.sources(store.indices(split))} for split in ("train", "val")}
    assert ground["train"]
    assert ground["val"]
    assert not ground["train"] & ground["val"]
    assert len(store) == len(truth[layout])


def test_a_tile_lies_where_the_corpus_documents_it(satlas):
    # SatlasPretrain.md: column 1867 and row 3287 of zoom 13 begin at 33.4681 N, 97.9541 W.
    items = {key(i.source)[1:]: i for i in read_satlas_s2(satlas[0] / "sentinel2").items}
    item = items[1867, 3287]
    assert item.frame == "EPSG:3857"
    left, bottom, right, top = item.bounds
    (longitude,), (latitude,) = transform(item.frame, "EPSG:4326", [left], [top])
    assert (longitude, latitude) == pytest.approx((-97.9541, 33.4681), abs=5e-5)
    assert right - left == pytest.approx(top - bottom)
    below = items[1867, 3288].bounds  # "the next row down"
    assert below[3] == pytest.approx(bottom)


def test_a_naip_tile_belongs_to_the_tile_of_zoom_13_that_holds_it(satlas, layouts, tmp_path):
    items = {key(i.source)[1:]: i for i in read_satlas_naip(satlas[0] / "naip").items}
    assert {k: i.place for k, i in items.items()} == {
        (36848, 49952): "2303_3122",
        (36849, 49952): "2303_3122",
        (36863, 49967): "2303_3122",
        (36864, 49968): "2304_3123",
    }
    layouts.satlas_s2(tmp_path, scenes=layouts.S2_SCENES[:1], tiles=[(2303, 3122)])
    (parent,) = (i.bounds for i in read_satlas_s2(tmp_path).items)
    first, last = items[36848, 49952].bounds, items[36863, 49967].bounds
    assert (first[0], first[3]) == pytest.approx((parent[0], parent[3]))
    assert (last[2], last[1]) == pytest.approx((parent[2], parent[1]))
    assert first[2] - first[0] == pytest.approx((parent[2] - parent[0]) / 16)


# -- other places for the same files ----------------------------------------------------------------------------------


def test_sentinel_1_is_read_with_and_without_folders_of_scenes(layouts, tmp_path):
    truth = layouts.satlas_s1(tmp_path, months=[""])
    reading = read_satlas_s1(tmp_path)
    assert len(reading.items) == len(layouts.S1_TILES)
    for item in reading.items:
        _, col, row = key(item.source)
        np.testing.assert_array_equal(item.load().image, truth["", col, row])


@pytest.mark.parametrize(
    ("folder", "inner"),
    [("tci", ""), ("", ""), ("", "m_2508008_nw_17_1_20151013"), ("tci", "m_2508008_nw_17_1_20151013")],
)
def test_naip_tiles_are_read_from_scenes_with_and_without_tci_and_from_one_scene(layouts, tmp_path, folder, inner):
    truth = layouts.satlas_naip(tmp_path, folder=folder)
    reading = read_satlas_naip(tmp_path / inner)
    scenes = [s for s in layouts.NAIP_SCENES if inner in ("", s)]
    assert len(reading.items) == len(scenes) * len(layouts.NAIP_TILES)
    for item in reading.items:
        path = Path(item.source)
        scene = path.parent.parent.name if folder else path.parent.name
        col, row = map(int, path.stem.split("_"))
        np.testing.assert_array_equal(item.load().image, truth[scene, col, row])


@pytest.mark.parametrize("stride", [None, 128])
def test_tiles_may_be_cut_smaller_and_know_where_they_lie(satlas, stride):
    root, truth = satlas
    reading = read_satlas_s1(root / "sentinel1", tile=256, stride=stride)
    assert len(reading.items) == len(truth["satlas-s1"]) * (4 if stride is None else 9)
    whole = {key(i.source): i.bounds for i in read_satlas_s1(root / "sentinel1").items}
    for item in reading.items:
        source, _, corner = item.source.rpartition("@")
        top, left = map(int, corner.split(","))
        image = truth["satlas-s1"][key(source)]
        np.testing.assert_array_equal(item.load().image, image[:, top : top + 256, left : left + 256])
        west, _, east, north = whole[key(source)]
        pixel = (east - west) / 512
        expected = (west + left * pixel, north - (top + 256) * pixel, west + (left + 256) * pixel, north - top * pixel)
        assert item.bounds == pytest.approx(expected)


def test_tiles_larger_than_those_of_the_corpus_are_refused(satlas):
    with pytest.raises(ConfigError, match="tile is 1024; Sentinel-1 of SatlasPretrain has tiles of 512"):
        read_satlas_s1(satlas[0] / "sentinel1", tile=1024)


# -- what a scene does not cover --------------------------------------------------------------------------------------


def test_black_is_no_measurement_only_where_all_bands_are_black(layouts, tmp_path):
    scene, tiles = layouts.S2_SCENES[0], [(10, 20), (11, 20)]
    truth = layouts.satlas_s2(tmp_path / "in", scenes=[scene], tiles=tiles)
    for n, band in enumerate(layouts.S2_BANDS):
        for (col, row), black in zip(tiles, (slice(0, 100), slice(None)), strict=True):
            image = truth[scene, col, row]
            part = image[:3] if band == "tci" else image[n + 2 : n + 3]
            part[:, black] = 0
            part[0, 200] = 0  # one band of three, or of one: black there, but not in all nine
            if band == "b12":
                part[0, 200] = 9
            layouts.save_png(tmp_path / "in" / scene / band / f"{col}_{row}.png", part)
    truth[scene, 11, 20][:] = 0
    for band, count in zip(layouts.S2_BANDS, (3, 1, 1, 1, 1, 1, 1), strict=True):
        layouts.save_png(tmp_path / "in" / scene / band / "11_20.png", np.zeros((count, 512, 512), np.uint8))
    reading = read_satlas_s2(tmp_path / "in")
    assert any("0 in all bands" in note for note in reading.notes)
    report = pack(reading, tmp_path / "store", progress=False, split=SplitConfig("none"))
    assert [(key(r.source)[1:], r.reason) for r in report.refused] == [((11, 20), "has no valid pixel: all nodata")]
    _, valid = open_stores(tmp_path / "store")["sentinel-2-dofa9"].read(0)
    assert not valid[:100].any()
    assert valid[100:].all()


# -- files that are not what their names say --------------------------------------------------------------------------


def test_bad_tiles_are_refused_by_name_and_the_rest_is_packed(layouts, tmp_path):
    scene = layouts.S2_SCENES[0]
    tiles = [(n, 5) for n in range(12)]
    truth = layouts.satlas_s2(tmp_path / "in", scenes=[scene], tiles=tiles)
    at = tmp_path / "in" / scene
    (at / "b06" / "0_5.png").unlink()
    (at / "b11" / "0_5.png").unlink()
    (at / "tci" / "1_5.png").unlink()
    Image.fromarray(truth[scene, 2, 5][4].astype(np.uint16) * 256).save(at / "b06" / "2_5.png")
    Image.fromarray(truth[scene, 3, 5][4, :300, :300]).save(at / "b06" / "3_5.png")
    whole = (at / "b12" / "4_5.png").read_bytes()
    (at / "b12" / "4_5.png").write_bytes(whole[: len(whole) // 2])
    (at / "b12" / "5_5.png").write_bytes(b"")
    Image.fromarray(truth[scene, 6, 5][0]).save(at / "tci" / "6_5.png")
    Image.fromarray(truth[scene, 7, 5][:3].transpose(1, 2, 0)).convert("P").save(at / "tci" / "7_5.png")
    Image.fromarray(truth[scene, 8, 5][:3].transpose(1, 2, 0)).convert("RGBA").save(at / "tci" / "8_5.png")
    Image.fromarray(truth[scene, 9, 5][6, ::2, ::2]).save(at / "b08" / "9_5.png")
    shutil.copy(at / "b05" / "11_5.png", at / "b05" / "copy of 11_5.png")
    for band in layouts.S2_BANDS:
        shutil.copy(at / band / "11_5.png", at / band / "8192_5.png")
    (at / "b05" / "Thumbs.db").write_bytes(b"no picture")

    report = pack(read_satlas_s2(tmp_path / "in"), tmp_path / "store", progress=False)

    reasons = {Path(r.source).name: r.reason for r in report.refused}
    assert reasons.pop("0_5.png") == "lacks b06, b11"
    assert reasons.pop("1_5.png") == "lacks tci"
    assert reasons.pop("2_5.png") == "b06/2_5.png has 16-bit numbers, not one band of 8 bits"
    assert reasons.pop("3_5.png") == "b06/3_5.png is 300×300 pixels, not 512×512"
    assert reasons.pop("4_5.png").startswith("b12/4_5.png cannot be read, truncated or damaged")
    assert reasons.pop("5_5.png").startswith("b12/5_5.png cannot be read, truncated or damaged")
    assert reasons.pop("6_5.png") == "tci/6_5.png has one band, not 3 bands of 8 bits"
    assert reasons.pop("7_5.png") == "tci/7_5.png has a colour table, not 3 bands of 8 bits"
    assert reasons.pop("8_5.png") == "tci/8_5.png has four bands, not 3 bands of 8 bits"
    assert reasons.pop("9_5.png") == "b08/9_5.png is 256×256 pixels, not 512×512"
    assert reasons.pop("copy of 11_5.png") == "is not named <col>_<row>.png"
    assert reasons.pop("8192_5.png") == "its column or row is outside the grid, which has 2^13 of each"
    assert reasons == {}
    store = open_stores(tmp_path / "store")["sentinel-2-dofa9"]
    assert {key(s)[1] for s in store.sources(range(len(store)))} == {10, 11}


def test_bands_of_20_m_may_be_stored_with_half_as_many_pixels(layouts, tmp_path):
    scene = layouts.S2_SCENES[0]
    truth = layouts.satlas_s2(tmp_path, scenes=[scene], tiles=[(3, 4)])[scene, 3, 4]
    for n, band in enumerate(layouts.S2_BANDS[1:], 3):
        if band != "b08":
            half = truth[n, ::2, ::2]
            layouts.save_png(tmp_path / scene / band / "3_4.png", half[None])
            truth[n] = np.kron(half, np.ones((2, 2), np.uint8))
    (item,) = read_satlas_s2(tmp_path).items
    np.testing.assert_array_equal(item.load().image, truth)


def test_planning_opens_no_file(layouts, tmp_path):
    for scene in layouts.S2_SCENES:
        for band in layouts.S2_BANDS:
            folder = tmp_path / scene / band
            folder.mkdir(parents=True)
            for n in range(100):
                (folder / f"{n}_{n}.png").touch()
    reading = read_satlas_s2(tmp_path)
    assert len(reading.items) == 300
    assert reading.refused == ()
    assert reading.items[-1].source == reading.items[299].source
    assert [i.source for i in reading.items[5:8]] == [reading.items[n].source for n in (5, 6, 7)]
    with pytest.raises(IndexError):
        reading.items[300]
    with pytest.raises(DataError, match="truncated or damaged"):
        reading.items[0].load()


def test_a_corpus_without_one_whole_tile_says_what_is_missing(layouts, tmp_path):
    layouts.satlas_s2(tmp_path, scenes=layouts.S2_SCENES[:1])
    shutil.rmtree(tmp_path / layouts.S2_SCENES[0] / "b11")
    with pytest.raises(DataError, match=r"expected <scene>/\{tci,b05.*the first of 3 refused.*lacks b11"):
        read_satlas_s2(tmp_path)


def test_folders_of_something_else_among_the_scenes_are_named(layouts, tmp_path):
    layouts.satlas_s2(tmp_path, scenes=layouts.S2_SCENES[:1])
    (tmp_path / "metadata").mkdir()
    assert any("1 folders without tiles are left out" in n for n in read_satlas_s2(tmp_path).notes)


# -- folders of the wrong level ---------------------------------------------------------------------------------------

SCENE = "S2A_MSIL1C_20160808T181452_N0204_R041_T12SVC_20160808T181447"


@pytest.mark.parametrize(
    ("layout", "given", "advice"),
    [
        ("satlas-s2", ".", "satlas-s2 {root}/sentinel2"),
        ("satlas-s2", "..", "satlas-s2 {root}/sentinel2"),
        ("satlas-s2", f"sentinel2/{SCENE}", "satlas-s2 {root}/sentinel2"),
        ("satlas-s2", f"sentinel2/{SCENE}/b05", "satlas-s2 {root}/sentinel2"),
        ("satlas-s2", f"sentinel2/{SCENE}/tci", "satlas-s2 {root}/sentinel2"),
        ("satlas-s2", "naip", "satlas-naip {root}/naip"),
        ("satlas-s2", "sentinel1", "satlas-s1 {root}/sentinel1"),
        ("satlas-s1", "sentinel2", "satlas-s2 {root}/sentinel2"),
        ("satlas-s1", ".", "satlas-s1 {root}/sentinel1"),
        ("satlas-s1", "sentinel1/2022-01/vv", "satlas-s1 {root}/sentinel1/2022-01"),
        ("satlas-naip", ".", "satlas-naip {root}/naip"),
        ("satlas-naip", "..", "satlas-naip {root}/naip"),
        ("satlas-naip", "sentinel2", "satlas-s2 {root}/sentinel2"),
    ],
)
def test_a_folder_of_the_wrong_level_or_corpus_names_the_right_one(layout, given, advice, satlas):
    root = satlas[0]
    folder = (root / given).resolve()
    with pytest.raises(DataError) as error:
        READERS[layout](folder)
    said = str(error.value)
    assert said.startswith(f"{folder} is no ")
    assert ": expected <scene>/" in said
    assert " × .png" in said
    assert said.endswith(f"; it looks as if you want: dofa pack {advice.format(root=root)}")


def test_tiles_of_a_sentinel_are_not_taken_for_naip(satlas):
    with pytest.raises(DataError, match="is it a tile of zoom 13, of a Sentinel"):
        read_satlas_naip(satlas[0] / "sentinel2" / SCENE / "tci")


@pytest.mark.parametrize("layout", READERS)
def test_a_folder_that_is_not_there_or_holds_nothing_is_said_so(layout, tmp_path):
    with pytest.raises(DataError, match=r"found no such folder$"):
        READERS[layout](tmp_path / "absent")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"found an empty folder$"):
        READERS[layout](tmp_path / "none")


# -- interruption -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 3, 7])
def test_an_interrupted_pack_of_published_tiles_continues_to_the_same_bytes(satlas, toy, tmp_path, monkeypatch, after):
    monkeypatch.setattr(packing, "SHARD_BYTES", 2 * 2 * 512 * 512)  # two images
    reading = read_satlas_s1(satlas[0] / "sentinel1")
    pack(reading, tmp_path / "whole", progress=False)

    def breaks():
        raise KeyboardInterrupt

    broken = [replace(item, load=breaks) if n == after else item for n, item in enumerate(reading.items)]
    with pytest.raises(KeyboardInterrupt):
        pack(replace(reading, items=broken), tmp_path / "resumed", progress=False, workers=2)
    pack(read_satlas_s1(satlas[0] / "sentinel1"), tmp_path / "resumed", progress=False)
    assert toy.tree(tmp_path / "whole") == toy.tree(tmp_path / "resumed")
