"""Folders and published layouts, real and broken files among them."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from dofa.corpus.command import pack_command
from dofa.corpus.pack import pack
from dofa.corpus.readers.hyspecnet import read_hyspecnet
from dofa.corpus.readers.images import read_images
from dofa.corpus.split import SplitConfig
from dofa.corpus.store import open_stores
from dofa.errors import ConfigError, DataError


def write_tif(path: Path, image: np.ndarray, west=500_000.0, north=5_000_000.0, crs="EPSG:32633", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = options.pop("names", None)
    tags = options.pop("tags", {})
    place = {"crs": crs, "transform": from_origin(west, north, 10, 10)} if crs else {}
    count, height, width = image.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=image.dtype, **place, **options
    ) as file:
        file.write(image)
        file.update_tags(**tags)
        for n, name in enumerate(names or (), 1):
            file.set_band_description(n, name)
    return path


def photo(path: Path, seed: int, size=(40, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def rgb(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).transpose(2, 0, 1)


# -- plain files ------------------------------------------------------------------------------------------------------


def test_folders_files_patterns_and_lists_are_read_once_each_in_order(tmp_path):
    for n in range(6):
        photo(tmp_path / ("deep/er" if n % 2 else "flat") / f"{n}.png", n)
    (tmp_path / "flat" / "notes.md").write_text("no image")
    (tmp_path / "list.txt").write_text("flat/0.png\n\nflat/2.png\n")
    everything = sorted(str(p) for p in tmp_path.rglob("*.png"))

    def sources(*what):
        return [i.source for i in read_images([str(w) for w in what], "rgb-aerial").items]

    assert sources(tmp_path) == everything
    assert sources(tmp_path / "flat", tmp_path / "**" / "*.png") == everything
    assert sources(tmp_path / "list.txt") == [str(tmp_path / "flat" / f"{n}.png") for n in (0, 2)]
    assert sources(tmp_path / "flat" / "4.png") == [str(tmp_path / "flat" / "4.png")]


def test_pictures_are_packed_pixel_by_pixel(tmp_path):
    files = [photo(tmp_path / "in" / f"{n}.png", n) for n in range(3)]
    pack(read_images(tmp_path / "in", "rgb-aerial"), tmp_path / "store", progress=False)
    store = open_stores(tmp_path / "store")["rgb-aerial"]
    for n, file in enumerate(files):
        np.testing.assert_array_equal(store.read(n)[0], rgb(file))


def test_large_images_are_cut_into_tiles_and_nothing_is_lost(tmp_path):
    file = photo(tmp_path / "large.png", 0, size=(50, 70))
    reading = read_images(file, "rgb-aerial", tile=32)
    covered = np.zeros((50, 70), int)
    for item in reading.items:
        top, left = map(int, item.source.rpartition("@")[2].split(","))
        np.testing.assert_array_equal(item.load().image, rgb(file)[:, top : top + 32, left : left + 32])
        covered[top : top + 32, left : left + 32] += 1
    assert len(reading.items) == 6
    assert covered.min() == 1
    assert len(read_images(file, "rgb-aerial", tile=32, stride=16).items) == 3 * 4


def test_bad_files_among_good_ones_are_refused_counted_and_listed(tmp_path):
    folder = tmp_path / "in"
    for n in range(4):
        photo(folder / f"good{n}.png", n, size=(64, 64))
    names = ["R", "G", "B"]
    noise = np.random.default_rng(0).integers(1, 255, (3, 64, 64), dtype=np.uint8)
    whole = write_tif(folder / "truncated.tif", noise, names=names).read_bytes()
    (folder / "truncated.tif").write_bytes(whole[: len(whole) // 2])
    jpeg = io.BytesIO()
    Image.fromarray(noise.transpose(1, 2, 0)).save(jpeg, "JPEG")
    (folder / "truncated.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    good = (folder / "good0.png").read_bytes()
    (folder / "truncated.png").write_bytes(good[: len(good) // 2])
    (folder / "empty.tif").write_bytes(b"")
    write_tif(folder / "one_band.tif", noise[:1])
    write_tif(folder / "nodata.tif", np.full((3, 64, 64), 7, np.uint8), names=names, nodata=7)
    write_tif(folder / "small.tif", noise[:, :40], names=names)
    np.savez(folder / "other.npz", y=noise)
    np.savez(folder / "objects.npz", x=np.array([{}], object))
    (folder / "truncated.npz").write_bytes((folder / "other.npz").read_bytes()[:500])

    report = pack(read_images(folder, "rgb-aerial", tile=64), tmp_path / "store", progress=False)

    reasons = {Path(r.source).name: r.reason for r in report.refused}
    assert sum(report.images.values()) == 4
    for name in ("truncated.jpg", "truncated.png", "truncated.npz"):
        assert "truncated or damaged" in reasons.pop(name)
    for name in ("truncated.tif", "empty.tif"):
        assert "cannot be opened" in reasons.pop(name)
    assert "rgb-aerial has 3" in reasons.pop("one_band.tif")
    assert "no valid pixel" in reasons.pop("nodata.tif")
    assert "smaller than a tile of 64" in reasons.pop("small.tif")
    assert "holds y; images are expected under x" in reasons.pop("other.npz")
    assert "x is of type object" in reasons.pop("objects.npz")
    assert not reasons
    assert len((tmp_path / "store" / "rgb-aerial" / "refused.jsonl").read_text().splitlines()) == 10


def test_the_order_of_bands_in_a_file_does_not_matter(tmp_path):
    image = np.random.default_rng(0).integers(1, 9, (3, 20, 20), dtype=np.uint8)
    write_tif(tmp_path / "a.tif", image, names=["R", "G", "B"])
    write_tif(tmp_path / "b.tif", image[::-1], names=["B", "G", "R"])
    first, second = (i.load().image for i in read_images(tmp_path, "rgb-aerial").items)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, image)


def test_files_that_lack_a_band_of_the_others_are_refused(tmp_path):
    image = np.ones((3, 20, 20), np.uint16)
    for n in range(3):
        write_tif(tmp_path / f"{n}.tif", image, names=["B04", "B03", "B02"])
    write_tif(tmp_path / "less.tif", image[:2], names=["B04", "B03"])
    reading = read_images(tmp_path, "sentinel-2-l2a", dn_offset=0)
    assert reading.sensor.band_names == ("B02", "B03", "B04")
    assert [r.reason for r in reading.refused] == ["lacks B02"]
    assert "3 of the 12 bands of sentinel-2-l2a: without B01" in " ".join(reading.notes)


def test_files_of_two_processing_baselines_mean_the_same_in_the_store(tmp_path):
    dn = np.random.default_rng(0).integers(0, 4000, (2, 24, 24), dtype=np.uint16)
    names = ["B04", "B08"]
    write_tif(tmp_path / "old.tif", dn, names=names, tags={"PROCESSING_BASELINE": "03.01"})
    write_tif(tmp_path / "new.tif", dn + 1000, names=names, tags={"BOA_ADD_OFFSET": "-1000"}, west=600_000)
    reading = read_images(tmp_path, "sentinel-2-l2a")
    new, old = (i.load().image for i in reading.items)
    np.testing.assert_array_equal(new, old)
    assert reading.sensor.scaling is not None
    np.testing.assert_allclose(reading.sensor.scaling.physical(new), dn * 1e-4, atol=1e-6)


def test_reflectances_below_zero_survive_beside_files_that_cannot_hold_them(tmp_path):
    dn = np.full((1, 24, 24), 940, np.uint16)  # −0.006, dark water after atmospheric correction
    write_tif(tmp_path / "new.tif", dn, names=["B04"], tags={"BOA_ADD_OFFSET": "-1000"})
    write_tif(tmp_path / "old.tif", dn, names=["B04"], tags={"PROCESSING_BASELINE": "03.01"}, west=600_000)
    reading = read_images(tmp_path, "sentinel-2-l2a")
    new, old = (reading.sensor.scaling.physical(i.load().image) for i in reading.items)
    np.testing.assert_allclose(new, -0.006, atol=1e-6)
    np.testing.assert_allclose(old, 0.094, atol=1e-6)


def test_numbers_of_another_scale_are_refused_and_not_mixed_in(tmp_path):
    image = np.full((2, 24, 24), 1000, np.uint16)
    for n in range(2):
        file = write_tif(tmp_path / f"{n}.tif", image, names=["B04", "B08"], tags={"BOA_ADD_OFFSET": "0"}, west=6e5 + n)
    with rasterio.open(file, "r+") as opened:
        opened.scales = (0.001, 0.001)
    report = pack(read_images(tmp_path, "sentinel-2-l2a"), tmp_path / "store", progress=False)
    assert sum(report.images.values()) == 1
    assert "pack it into a store of its own" in report.refused[0].reason


def test_images_of_several_sizes_need_a_tile(tmp_path):
    photo(tmp_path / "a.png", 0)
    photo(tmp_path / "b.png", 1, size=(50, 50))
    with pytest.raises(DataError, match=r"differ in size \(40×32 and 50×50 pixels\): pass --tile"):
        read_images(tmp_path, "rgb-aerial")
    with pytest.raises(DataError, match="every image is smaller than a tile of 99"):
        read_images(tmp_path, "rgb-aerial", tile=99)


def test_a_wrong_folder_says_what_was_expected_and_found(tmp_path):
    (tmp_path / "a.csv").write_text("1")
    (tmp_path / "b.csv").write_text("1")
    with pytest.raises(DataError, match=r"holds no images \(.tif, .*found 2 × .csv"):
        read_images(tmp_path, "rgb-aerial")
    with pytest.raises(DataError, match=r"no HySpecNet-11k: expected <tile>/<patch>/.*found 2 × .csv"):
        read_hyspecnet(tmp_path)
    with pytest.raises(DataError, match="found no such folder"):
        read_hyspecnet(tmp_path / "absent")
    with pytest.raises(DataError, match="no file, no folder and no pattern"):
        read_images(tmp_path / "*.tif", "rgb-aerial")


def test_labels_are_names_of_folders(tmp_path):
    for n, name in enumerate(["river", "forest", "river"]):
        photo(tmp_path / "in" / name / f"{n}.png", n)
    pack(read_images(tmp_path / "in", "rgb-aerial", labels=True), tmp_path / "store", progress=False)
    store = open_stores(tmp_path / "store")["rgb-aerial"]
    assert store.class_names == ("forest", "river")
    assert [store.class_names[i] for i in store.labels] == [Path(s).parent.name for s in store.sources(range(3))]


# -- places -----------------------------------------------------------------------------------------------------------


def test_the_same_ground_at_other_dates_is_one_place_even_a_few_metres_aside(tmp_path):
    image = np.ones((3, 20, 20), np.uint8)
    for date in range(8):  # centres that straddle any fixed grid of a tenth of a degree somewhere
        for site in range(12):
            west = 300_000 + site * 40_000
            write_tif(
                tmp_path / f"{site}_{date}.tif", image, names=list("RGB"), west=west + date * 37, north=5e6 - date * 41
            )
    reading = read_images(tmp_path, "rgb-aerial")
    by_site = {}
    for item in reading.items:
        by_site.setdefault(Path(item.source).name.split("_")[0], set()).add(item.place)
    assert all(len(places) == 1 for places in by_site.values())
    assert len(set.union(*by_site.values())) == 12


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("path", ["in/a/x1.png", "in/a/x2.png", "in/b/x1.png"]),
        ("folder", ["in/a", "in/a", "in/b"]),
        (r"x(\d)", ["1", "2", "1"]),
        ("auto", ["in/a/x1.png", "in/a/x2.png", "in/b/x1.png"]),
    ],
)
def test_places_by_path_folder_or_pattern(tmp_path, monkeypatch, place, expected):
    monkeypatch.chdir(tmp_path)
    for n, name in enumerate(["a/x1", "a/x2", "b/x1"]):
        photo(Path("in") / f"{name}.png", n)
    assert [i.place for i in read_images("in", "rgb-aerial", place=place).items] == expected


def test_a_place_that_cannot_be_told_is_refused(tmp_path):
    photo(tmp_path / "a.png", 0)
    with pytest.raises(DataError, match="has no georeference"):
        read_images(tmp_path, "rgb-aerial", place="georeference")
    with pytest.raises(DataError, match="is not found in"):
        read_images(tmp_path, "rgb-aerial", place=r"site_(\d+)")
    with pytest.raises(ConfigError, match="nor a regular expression"):
        read_images(tmp_path, "rgb-aerial", place="(")


# -- archives ---------------------------------------------------------------------------------------------------------


def test_an_archive_may_name_its_bands_places_and_labels(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (4, 3, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=x, bands=["B", "G", "R"], place=["p", "q", "p", "r"], label=[0, 1, 1, 0])
    reading = read_images(tmp_path / "a.npz", "rgb-aerial")
    assert [i.place for i in reading.items] == ["p", "q", "p", "r"]
    np.testing.assert_array_equal(reading.items[1].load().image, x[1, ::-1])
    assert [i.load().label for i in reading.items] == [0, 1, 1, 0]
    assert reading.class_names == ("0", "1")


def test_nan_pixels_are_refused_unless_they_are_the_nodata_value(tmp_path):
    x = np.random.default_rng(0).random((3, 2, 12, 12)).astype(np.float32) - 20
    x[1, 0, 3] = np.nan
    np.savez(tmp_path / "a.npz", x=x)
    report = pack(read_images(tmp_path / "a.npz", "sentinel-1-grd"), tmp_path / "one", progress=False)
    assert [r.reason for r in report.refused] == ["has 12 NaN or infinite pixels where pixels count as valid"]
    reading = read_images(tmp_path / "a.npz", "sentinel-1-grd", nodata=float("nan"))
    pack(reading, tmp_path / "two", progress=False)
    store = open_stores(tmp_path / "two")["sentinel-1-grd"]
    assert store.count == 3
    assert not store.read(1)[1][3].any()


def test_undeclared_fill_values_never_enter_a_store_s_statistics(tmp_path):
    x = np.random.default_rng(0).integers(200, 3000, (3, 2, 32, 32)).astype(np.int16)
    clean = x.copy()
    x[1, :, :8] = -9999
    np.savez(tmp_path / "a.npz", x=x, bands=["B04", "B08"])
    report = pack(read_images(tmp_path / "a.npz", "sentinel-2-l2a", dn_offset=0), tmp_path / "one", progress=False)
    (refused,) = report.refused
    assert "25% of the pixels looked at are -9999" in refused.reason
    assert "--nodata -9999" in refused.reason
    reading = read_images(tmp_path / "a.npz", "sentinel-2-l2a", dn_offset=0, nodata=-9999)
    assert not pack(reading, tmp_path / "two", progress=False).refused
    store = open_stores(tmp_path / "two")["sentinel-2-l2a"]
    assert not store.read(1)[1][:8].any()
    assert min(store.scaling.mean) > 0.1
    assert max(store.scaling.std) < 2 * clean.std() * 1e-4


def test_an_undeclared_fill_value_of_a_file_is_no_measurement_of_its_store(tmp_path):
    for i in range(3):
        array = np.random.default_rng(i).integers(200, 3000, (2, 32, 32)).astype(np.int16)
        array[:, :8] = -9999 if i == 1 else array[:, :8]
        write_tif(tmp_path / "tiles" / f"{i}.tif", array, names=["B04", "B08"])
    reading = read_images(tmp_path / "tiles", "sentinel-2-l2a", dn_offset=0)
    assert not pack(reading, tmp_path / "store", progress=False).refused
    store = open_stores(tmp_path / "store")["sentinel-2-l2a"]
    assert min(store.scaling.mean) > 0.1
    assert [bool(valid is None or valid.all()) for _, valid in map(store.read, range(3))] == [True, False, True]


def test_a_border_of_zeros_is_no_measurement_of_its_store_and_a_dark_picture_is_one(tmp_path):
    for dtype, sensor, names in (("uint16", "sentinel-2-l2a", ["B04", "B08"]), ("uint8", "naip-rgb", ["R", "G", "B"])):
        array = np.random.default_rng(0).integers(100, 250, (len(names), 64, 64)).astype(dtype)
        array[0, 40:44, 40:44] = 0  # water in one band
        array[:, :20] = 0
        write_tif(tmp_path / dtype / "a.tif", array, names=names)
        reading = read_images(tmp_path / dtype, sensor, dn_offset=None if dtype == "uint8" else 0)
        pack(reading, tmp_path / f"{dtype}-store", progress=False)
        _, valid = open_stores(tmp_path / f"{dtype}-store")[sensor].read(0)
        border = np.arange(64)[:, None] < (20 if dtype == "uint16" else 0)
        assert np.array_equal(np.ones((64, 64), bool) if valid is None else valid, np.broadcast_to(~border, (64, 64)))


def test_a_wrong_number_of_bands_in_an_archive_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((5, 12, 12), np.uint8))
    with pytest.raises(DataError, match="x has 5 bands, 3 are named or are those of rgb-aerial"):
        read_images(tmp_path / "a.npz", "rgb-aerial")


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_packs_and_reports(tmp_path, capsys):
    for n in range(5):
        photo(tmp_path / "in" / f"{n}.png", n)
    pack_command("images", [str(tmp_path / "in")], str(tmp_path / "store"), "rgb-aerial", tile=16)
    assert "rgb-aerial, 30 images: 24 train (4 places), 6 val (1 places)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("image", ["x"], "s"), "did you mean images"),
        (("images", ["x"], "s"), "--sensor NAME"),
        (("images", ["x"], "s", "sentinel-2-l2b"), "sentinel-2-l2a"),
        (("hyspecnet", ["x", "y"], "s"), "takes one folder"),
    ],
)
def test_a_command_that_cannot_be_run_says_why(arguments, words):
    with pytest.raises(ConfigError, match=words):
        pack_command(*arguments)


# -- real data --------------------------------------------------------------------------------------------------------


def test_real_sentinel_2_chips(real_data, tmp_path):
    report = pack(
        read_images(real_data / "sentinel2_l2a", "sentinel-2-l2a", place=r"#(\d+)"), tmp_path / "store", progress=False
    )
    assert report.images == {"train": 288, "val": 32}
    chips = np.load(real_data / "sentinel2_l2a" / "chips_320.npz")["x"]
    store = open_stores(tmp_path / "store")["sentinel-2-l2a"]
    np.testing.assert_array_equal(store.read(77)[0], chips[77])
    train = chips[store.indices("train")] * 1e-4
    np.testing.assert_allclose(store.scaling.mean, train.mean(axis=(0, 2, 3)), rtol=1e-5)


def test_real_naip_of_three_dates_is_one_place_cut_into_the_same_blocks(real_data, tmp_path):
    reading = read_images(real_data / "naip", "naip-rgbn", tile=128)
    assert len({i.place for i in reading.items}) == 1
    pack(reading, tmp_path / "store", progress=False, split=SplitConfig("blocks"))
    store = open_stores(tmp_path / "store")["naip-rgbn"]
    bounds = {i.source: i.bounds for i in reading.items}
    held = [bounds[s] for s in store.sources(store.indices("val"))]
    kept = [bounds[s] for s in store.sources(store.indices("train"))]
    dates = {s.partition("@")[0] for s in store.sources(store.indices("val"))}
    assert len(dates) == 3
    assert len(kept) > 2 * len(held) > 0
    crop = 128 * 5
    for a in held:
        for b in kept:
            assert b[0] - a[2] >= crop * 0.999 or a[0] - b[2] >= crop * 0.999


def test_real_sentinel_1_chips_keep_their_nan_as_invalid(real_data, tmp_path):
    report = pack(
        read_images(real_data / "sen1floods11" / "S1Hand", "sentinel-1-grd", tile=224),
        tmp_path / "store",
        progress=False,
    )
    assert report.places == {"train": 5, "val": 1}
    assert not report.refused
    store = open_stores(tmp_path / "store")["sentinel-1-grd"]
    assert store.attributes["counts"]["partly_valid"] > 0
    assert -25 < store.scaling.mean[1] < store.scaling.mean[0] < -5


def test_real_hyspecnet_in_its_own_layout(real_data, tmp_path):
    report = pack(read_hyspecnet(real_data / "enmap_hyspecnet11k"), tmp_path / "store", progress=False)
    store = open_stores(tmp_path / "store")["enmap-202"]
    assert store.shape == (202, 128, 128)
    assert len(report.constant) == 35
    (place,) = set(store.places(range(store.count)))
    assert place == "ENMAP01-____L2A-DT0000004950_20221103T162438Z_001_V010110_20221118T145147Z"
    with rasterio.open(store.sources([0])[0]) as file:
        kept = [b for b in range(224) if not (126 <= b <= 140 or 160 <= b <= 166)]
        np.testing.assert_array_equal(store.read(0)[0], file.read([b + 1 for b in kept]))


def test_real_enmap_of_two_sources_stands_in_one_store(real_data, tmp_path):
    sources = [real_data / "enmap_potsdam", real_data / "enmap_hyspecnet11k" / "**" / "*SPECTRAL_IMAGE.TIF"]
    reading = read_images(sources, "enmap-202", tile=64, bands="enmap", nodata=-32768)
    report = pack(reading, tmp_path / "store", progress=False)
    assert report.images == {"train": 2, "val": 8} or report.images == {"train": 8, "val": 2}
    assert not report.refused


def test_a_truncated_real_image_among_good_ones_is_refused(real_data, tmp_path):
    for file in sorted((real_data / "sen1floods11" / "S1Hand").glob("*.tif"))[:3]:
        shutil.copy(file, tmp_path)
    (broken, *_) = sorted(tmp_path.glob("*.tif"))
    broken.write_bytes(broken.read_bytes()[:-200_000])
    report = pack(read_images(tmp_path, "sentinel-1-grd"), tmp_path / "store", progress=False)
    assert [Path(r.source).name for r in report.refused] == [broken.name]
    assert sum(report.images.values()) == 2


@pytest.mark.parametrize(("factor", "unit"), [(1.0, "reflectance"), (100.0, "percent"), (10_000.0, "dn")])
@pytest.mark.parametrize("archive", [True, False])
def test_float_images_are_read_by_their_values_aloud_or_by_the_users_word(tmp_path, archive, factor, unit):
    reflectance = np.random.default_rng(0).uniform(0.01, 0.4, (4, 12, 12))
    numbers = (reflectance * factor).astype(np.float32)
    if archive:
        np.savez(tmp_path / "a.npz", x=numbers, bands=["B02", "B03", "B04", "B08"])
    else:
        rasterio = pytest.importorskip("rasterio")
        with rasterio.open(
            tmp_path / "a.tif", "w", driver="GTiff", count=4, height=12, width=12, dtype="float32"
        ) as file:
            file.write(numbers)
            file.descriptions = ["B02", "B03", "B04", "B08"]
    for words in ({}, {"unit": unit}):
        reading = read_images(tmp_path, "sentinel-2-l2a", **words)
        sample = reading.items[0].load()
        assert np.allclose(reading.sensor.scaling.physical(sample.image), reflectance, atol=1e-5)
        assert any("scale-assumed" in note for note in reading.notes) == (not words)
    scaled = read_images(tmp_path, "sentinel-2-l2a", dn_scale=0.5)
    assert set(scaled.sensor.scaling.scale) == {0.5}
