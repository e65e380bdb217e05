"""Five-Billion-Pixels in its true layout: inks that are bands, windows, borders, places, and what is left out."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from dofa.corpus.pack import pack
from dofa.corpus.readers.gaofen import read_five_billion_pixels
from dofa.corpus.readers.images import read_images
from dofa.corpus.split import SplitConfig
from dofa.corpus.store import open_stores
from dofa.errors import ConfigError, DataError


def where(source: str) -> tuple[str, int, int]:
    """Scene, top and left of a source: <scene>.tif@top,left."""
    path, _, corner = source.rpartition("@")
    top, left = corner.split(",")
    return Path(path).stem, int(top), int(left)


@pytest.fixture(scope="module")
def gaofen(layouts, tmp_path_factory):
    root = tmp_path_factory.mktemp("published") / "Five-Billion-Pixels"
    return root, layouts.five_billion_pixels(root)


def test_every_pixel_reaches_the_store_as_it_lies_in_the_file_and_in_the_order_of_the_sensor(gaofen, tmp_path):
    root, truth = gaofen
    report = pack(read_five_billion_pixels(root), tmp_path / "store", progress=False)
    assert report.refused == []
    store = open_stores(tmp_path / "store")["gaofen-2"]
    assert store.sensor.band_names == ("B", "G", "R", "NIR")
    assert [b.wavelength_um for b in store.sensor.bands] == pytest.approx([0.49, 0.56, 0.665, 0.83], abs=0.006)
    assert (store.dtype, store.scaling.unit, store.scaling.stats_source) == (np.uint8, "uint8", "corpus")
    seen = set()
    for n, source in enumerate(store.sources(range(len(store)))):
        scene, top, left = where(source)
        seen.add((scene, top, left))
        window = truth[scene][:, top : top + 512, left : left + 512]
        image, valid = store.read(n)
        # The file: near infrared, red, green, blue. The sensor: blue, green, red, near infrared.
        np.testing.assert_array_equal(image, window[[3, 2, 1, 0]])
        np.testing.assert_array_equal(valid, window.any(axis=0))
    # 700×900 in windows of 512 every 256, the last ones moved inwards.
    assert seen == {(s, top, left) for s in truth for top in (0, 188) for left in (0, 256, 388)}


def test_statistics_are_those_of_the_measured_pixels_of_the_training_scenes(gaofen, tmp_path):
    root, truth = gaofen
    pack(read_five_billion_pixels(root, tile=350), tmp_path / "store", progress=False)
    store = open_stores(tmp_path / "store")["gaofen-2"]
    windows = [where(s) for s in store.sources(store.indices("train"))]
    pixels = np.concatenate(
        [truth[scene][::-1, t : t + 350, x : x + 350].reshape(4, -1) for scene, t, x in windows], axis=1
    ).astype(float)
    pixels = pixels[:, pixels.any(axis=0)]
    np.testing.assert_allclose(store.scaling.mean, pixels.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(store.scaling.std, pixels.std(axis=1), rtol=1e-5)


def test_a_scene_of_the_published_size_has_728_windows_that_cover_it(layouts, tmp_path):
    path = tmp_path / f"{layouts.GAOFEN_SCENES[0]}.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=7200, height=6800, count=4, dtype="uint8", photometric="CMYK", SPARSE_OK=True
    ):
        pass
    reading = read_five_billion_pixels(tmp_path)
    covered = np.zeros((6800, 7200), bool)
    for item in reading.items:
        _, top, left = where(item.source)
        covered[top : top + 512, left : left + 512] = True
    assert len(reading.items) == 26 * 28
    assert covered.all()


def test_files_without_the_label_of_inks_are_read_alike(layouts, tmp_path):
    image = layouts.picture((9,), 4, 512, 512)
    layouts.write_tif(tmp_path / f"{layouts.GAOFEN_SCENES[0]}.tiff", image)
    (item,) = read_five_billion_pixels(tmp_path).items
    np.testing.assert_array_equal(item.load().image, image[::-1])


def test_inks_are_refused_where_they_would_be_turned_into_colours(gaofen):
    folder = gaofen[0] / "Image__8bit_NirRGB"
    with pytest.raises(DataError, match=r"marked as cyan.*dofa pack five-billion-pixels"):
        read_images(folder, "gaofen-2", tile=512)


def test_black_in_one_band_is_a_number_and_in_all_bands_the_border(layouts, tmp_path):
    image = layouts.picture((1,), 4, 512, 512)
    image[:, 100:110] = 0
    image[1:, 200:210] = 0
    layouts.write_tif(tmp_path / f"{layouts.GAOFEN_SCENES[0]}.tif", image, photometric="CMYK")
    (item,) = read_five_billion_pixels(tmp_path).items
    valid = item.load().valid
    expected = np.ones((512, 512), bool)
    expected[100:110] = False
    np.testing.assert_array_equal(valid, expected)


def test_annotations_and_16_bit_copies_are_left_out(gaofen):
    root, truth = gaofen
    for folder in (root, root / "Image__8bit_NirRGB", root.parent):
        sources = {where(i.source)[0] for i in read_five_billion_pixels(folder).items}
        assert sources == set(truth)


def test_scenes_that_are_not_as_published_are_refused_by_name(layouts, tmp_path):
    one, two, three = layouts.GAOFEN_SCENES
    truth = layouts.five_billion_pixels(tmp_path)
    images = tmp_path / "Image__8bit_NirRGB"
    whole = (images / f"{two}.tif").read_bytes()
    (images / f"{two}.tif").write_bytes(whole[: len(whole) // 3])
    names = [f"GF2_PMS1__L1A000000000{n}-MSS1" for n in range(4)]
    layouts.write_tif(images / f"{names[0]}.tif", truth[one][:3])
    layouts.write_tif(images / f"{names[1]}.tif", truth[one].astype(np.uint16))
    layouts.write_tif(images / f"{names[2]}.tif", truth[one][:, :300])
    (images / f"{names[3]}.tif").write_bytes(b"")
    (tmp_path / "copies").mkdir()
    (tmp_path / "copies" / f"{one}.tif").write_bytes((images / f"{one}.tif").read_bytes())
    reading = read_five_billion_pixels(tmp_path)
    report = pack(reading, tmp_path / "store", progress=False, split=SplitConfig("none"))
    reasons = {where(r.source)[0] if "@" in r.source else Path(r.source).stem: r.reason for r in report.refused}
    assert "4 are named" in reasons[names[0]] or "3 bands" in reasons[names[0]]
    assert reasons[names[1]] == "holds uint16 numbers; Image__8bit_NirRGB has 8 bits"
    assert reasons[names[2]] == "300×900 pixels are smaller than a window of 512"
    assert "cannot be opened" in reasons[names[3]]
    assert "once more" in reasons[one]
    assert two in reasons
    assert set(reasons) == {*names, one, two}
    store = open_stores(tmp_path / "store")["gaofen-2"]
    assert {where(s)[0] for s in store.sources(range(len(store)))} >= {one, three}


# -- places -----------------------------------------------------------------------------------------------------------


def test_scenes_of_the_same_ground_are_one_place_where_the_coordinates_are_there(layouts, tmp_path):
    one, two, three = layouts.GAOFEN_SCENES
    centres = {one: (30.52, 114.31), two: (-31.0, 114.31), three: (30.55, 114.28)}
    layouts.five_billion_pixels(tmp_path, centres=centres)
    reading = read_five_billion_pixels(tmp_path)
    places = {where(i.source)[0]: i.place for i in reading.items}
    assert places[one] == places[three] == "30.52N 114.31E"
    assert places[two] == "31.00S 114.31E"
    assert any("3 of 3 scenes have a centre" in note for note in reading.notes)
    for seed in range(4):
        pack(reading, tmp_path / f"{seed}", progress=False, split=SplitConfig(val_fraction=0.5, seed=seed))
        store = open_stores(tmp_path / f"{seed}")["gaofen-2"]
        sides = {split: {where(s)[0] for s in store.sources(store.indices(split))} for split in ("train", "val")}
        assert sorted(map(sorted, sides.values())) == sorted(map(sorted, ({one, three}, {two})))
    with pytest.raises(DataError, match="blocks need one frame"):
        pack(reading, tmp_path / "blocks", progress=False, split=SplitConfig("blocks"))


def test_without_coordinates_each_scene_is_a_place(gaofen, layouts):
    reading = read_five_billion_pixels(gaofen[0])
    assert {i.place for i in reading.items} == set(layouts.GAOFEN_SCENES)
    assert any("0 of 3 scenes have a centre" in note for note in reading.notes)


def test_a_coordinate_file_that_says_nothing_leaves_the_name(layouts, tmp_path):
    layouts.five_billion_pixels(tmp_path, scenes=layouts.GAOFEN_SCENES[:1])
    (tmp_path / f"{layouts.GAOFEN_SCENES[0]}.rpb").write_bytes(b"\xff\xfe no coefficients")
    assert {i.place for i in read_five_billion_pixels(tmp_path).items} == {layouts.GAOFEN_SCENES[0]}


# -- settings and folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "count"), [({"tile": 256}, 3 * 4), ({"tile": 256, "stride": 128}, 5 * 7), ({"stride": 512}, 2 * 2)]
)
def test_windows_are_the_users_where_told(layouts, tmp_path, settings, count):
    layouts.five_billion_pixels(tmp_path, scenes=layouts.GAOFEN_SCENES[:1])
    assert len(read_five_billion_pixels(tmp_path, **settings).items) == count
    with pytest.raises(ConfigError, match="stride"):
        read_five_billion_pixels(tmp_path, tile=256, stride=300)


@pytest.mark.parametrize("given", ["Annotation__index", "Image_16bit_BGRNir"])
def test_the_wrong_folder_of_the_corpus_names_the_corpus(gaofen, given):
    root = gaofen[0]
    with pytest.raises(DataError) as error:
        read_five_billion_pixels(root / given)
    said = str(error.value)
    assert "expected Image__8bit_NirRGB/GF2_PMS?__L1A*-MSS?.tif, found 3 × ." in said
    assert said.endswith(f"; it looks as if you want: dofa pack five-billion-pixels {root}")


def test_another_corpus_is_named(layouts, tmp_path):
    layouts.satlas_s1(tmp_path / "sentinel1", tiles=layouts.S1_TILES[:1])
    with pytest.raises(DataError, match=f"dofa pack satlas-s1 {tmp_path}/sentinel1$"):
        read_five_billion_pixels(tmp_path / "sentinel1")
    with pytest.raises(DataError, match="found no such folder"):
        read_five_billion_pixels(tmp_path / "absent")
