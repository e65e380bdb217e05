"""SSL4EO-S12 as published: real samples of it, and corpora of the same names, types, sizes and half-pixel offsets."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin

from dofa import sensors
from dofa.corpus.command import pack_command
from dofa.corpus.pack import pack
from dofa.corpus.readers.ssl4eo import overlapping, read_ssl4eo_s12
from dofa.corpus.split import SplitConfig
from dofa.corpus.store import open_stores
from dofa.errors import ConfigError, DataError

FINE, MIDDLE, COARSE = ("B2", "B3", "B4", "B8"), ("B5", "B6", "B7", "B8A", "B11", "B12"), ("B1", "B9", "B10")
SHORT = {"sentinel-1-grd": "s1", "sentinel-2-l1c": "s2c", "sentinel-2-l2a": "s2a"}
DATES = ("20200604T054639_20200604T054831_T43RCP", "20200813T054639_20200813T054952_T43RCP")
RADAR = "S1A_IW_GRDH_1SDV_20200607T010800_20200607T010825_032904_03CFBA_D457"
PIXEL = 10 / 111_320  # degrees, at the equator


def bands_of(short: str) -> dict[str, int]:
    """Bands of a folder with their factor to the grid of 10 m."""
    if short == "s1":
        return {"VV": 1, "VH": 1}
    every = {b: k for names, k in ((FINE, 1), (MIDDLE, 2), (COARSE, 6)) for b in names}
    return {b: k for b, k in every.items() if short == "s2c" or b != "B10"}


def write_band(path: Path, pixels: np.ndarray, lon: float, lat: float, times: int) -> None:
    """A band as the published script writes it: its corner is half of its own pixel off, to the north-west."""
    side = times * PIXEL
    place = from_origin(lon - side / 2, lat + side / 2, side, side)
    height, width = pixels.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", "GTiff", width, height, 1, crs="EPSG:4326", transform=place, dtype=pixels.dtype
    ) as file:
        file.write(pixels, 1)


def write_scene(root: Path, short: str, location: int, scene: str, lon=0.0, lat=0.0, side=264, **said) -> Path:
    """One scene, its bands drawn from their names so that no two are alike."""
    folder = root / short / f"{location:07}" / scene
    for n, (band, times) in enumerate(bands_of(short).items()):
        rng = np.random.default_rng([location, n, len(scene), sum(map(ord, scene))])
        size = (side // times, side // times)
        pixels = rng.normal(-15, 3, size).astype("f4") if short == "s1" else rng.integers(1, 9000, size, np.uint16)
        write_band(folder / f"{band}.tif", pixels, lon, lat, times)
    level = {"s1": "GRD", "s2c": "MSIL1C", "s2a": "MSIL2A"}[short]
    metadata = {"PRODUCT_ID": f"S2B_{level}_{scene}", "PROCESSING_BASELINE": "02.14", **said}
    (folder / "metadata.json").write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}))
    return folder


def corpus(root: Path, short="s2a", locations=3, dates=DATES, side=48) -> Path:
    """Locations 0.1° apart."""
    for n in range(locations):
        for date in dates:
            write_scene(root, short, n, date, lon=0.1 * n, side=side)
    return root


def expected(folder: Path, name: str, side: int) -> np.ndarray:
    """A band on the grid of 10 m, pixel by pixel from its own file."""
    with rasterio.open(folder / f"{name}.tif") as file:
        raw = file.read(1)
    at = np.arange(side) * len(raw) // side
    return raw[at[:, None], at[None, :]]


# -- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sensor", SHORT)
def test_real_samples_are_read_pixel_by_pixel_in_the_sensors_order(real_data, tmp_path, sensor):
    root = real_data / "true_formats" / "SSL4EO-S12"
    reading = read_ssl4eo_s12(root, sensor)
    assert [i.source for i in reading.items] == [str(p) for p in sorted((root / SHORT[sensor]).glob("*/*"))]
    assert len(reading.items) == 2
    assert {i.place for i in reading.items} == {"0000200"}
    pack(reading, tmp_path / "store", split=SplitConfig("none"), progress=False)
    store = open_stores(tmp_path / "store")[sensor]
    for n, item in enumerate(reading.items):
        image, valid = store.read(n)
        assert image.shape == (len(sensors.get(sensor).bands), 264, 264)
        assert image.dtype == ("float32" if sensor == "sentinel-1-grd" else "uint16")
        assert valid is None
        for band, name in zip(image, reading.sensor.band_names, strict=True):
            np.testing.assert_array_equal(band, expected(Path(item.source), name.replace("B0", "B"), 264))
    middle = np.median(store.scaling.physical(image), axis=(1, 2))
    if sensor == "sentinel-1-grd":
        assert store.scaling.unit == "db"
        assert -13 < middle[0] < -8 < 0 < middle[0] - middle[1]  # VV first, and stronger than VH
    else:
        assert reading.sensor.bands == sensors.get(sensor).bands  # with their wavelengths
        assert 0.1 < middle[reading.sensor.index(["B04"])[0]] < 0.2


@pytest.mark.parametrize("sensor", SHORT)
def test_bands_of_three_resolutions_become_one_image_of_their_own_numbers(tmp_path, sensor):
    short = SHORT[sensor]
    folder = write_scene(tmp_path, short, 7, RADAR if short == "s1" else DATES[0])
    reading = read_ssl4eo_s12(tmp_path, sensor)
    sample = reading.items[0].load()
    assert sample.valid is None
    for band, name in zip(sample.image, reading.sensor.band_names, strict=True):
        np.testing.assert_array_equal(band, expected(folder, name.replace("B0", "B"), 264))
    said = " ".join(reading.notes)
    assert ("of 20 m and B01, B09" in said and "nothing is averaged" in said) == (short != "s1")
    assert ("20 to 50 m off" in said) == (short != "s1")


def test_some_bands_of_a_sensor_are_read_alone_and_on_their_own_grid(tmp_path):
    folder = write_scene(tmp_path, "s2a", 7, DATES[0])
    reading = read_ssl4eo_s12(tmp_path, sensors.get("sentinel-2-l2a").select(["B12", "B05"]))
    assert reading.tile == (132, 132)
    image = reading.items[0].load().image
    np.testing.assert_array_equal(image, [expected(folder, b, 132) for b in ("B12", "B5")])
    assert not reading.notes


def test_images_are_cut_into_tiles_that_know_where_they_lie(tmp_path):
    folder = write_scene(tmp_path, "s1", 7, RADAR)
    reading = read_ssl4eo_s12(tmp_path, "sentinel-1-grd", tile=132)
    whole = np.stack([expected(folder, b, 264) for b in ("VV", "VH")])
    assert len(reading.items) == 4
    for item in reading.items:
        top, left = map(int, item.source.rpartition("@")[2].split(","))
        np.testing.assert_array_equal(item.load().image, whole[:, top : top + 132, left : left + 132])
        assert item.bounds == pytest.approx(
            ((left - 0.5) * PIXEL, (0.5 - top - 132) * PIXEL, (left + 131.5) * PIXEL, (0.5 - top) * PIXEL)
        )
    with pytest.raises(ConfigError, match="tile 300 is larger than the images of 264×264"):
        read_ssl4eo_s12(tmp_path, "sentinel-1-grd", tile=300)


def test_what_is_nought_in_every_band_is_missing_and_nought_in_one_is_a_measurement(tmp_path):
    corpus(tmp_path, locations=1, dates=DATES[:1])
    folder = tmp_path / "s2a" / "0000000" / DATES[0]
    for band, times in bands_of("s2a").items():
        with rasterio.open(folder / f"{band}.tif", "r+") as file:
            pixels = file.read(1)
            pixels[: 12 // times, : 6 // times] = 0
            if band == "B9":
                pixels[:] = 0
            file.write(pixels, 1)
    sample = read_ssl4eo_s12(tmp_path, "sentinel-2-l2a").items[0].load()
    missing = np.zeros((48, 48), bool)
    missing[:12, :6] = True
    np.testing.assert_array_equal(sample.valid, ~missing)


def test_a_radar_pixel_that_is_no_number_is_missing(tmp_path):
    folder = write_scene(tmp_path, "s1", 0, RADAR, side=48)
    with rasterio.open(folder / "VH.tif", "r+") as file:
        pixels = file.read(1)
        pixels[3, 5] = np.nan
        pixels[4, 5] = -np.inf
        file.write(pixels, 1)
    valid = read_ssl4eo_s12(tmp_path, "sentinel-1-grd").items[0].load().valid
    assert np.argwhere(~valid).tolist() == [[3, 5], [4, 5]]


# -- what the numbers mean --------------------------------------------------------------------------------------------


def refusals(root: Path, **more) -> list[str]:
    """Reasons of the images that are refused when they are packed."""
    report = pack(read_ssl4eo_s12(root, "sentinel-2-l2a", **more), root / "store", progress=False)
    return [r.reason for r in report.refused]


def test_an_image_that_carries_the_offset_or_may_carry_it_is_refused_and_named(tmp_path):
    corpus(tmp_path, locations=2, side=24)
    write_scene(tmp_path, "s2a", 3, DATES[0], lon=3, side=24, BOA_ADD_OFFSET=-1000, PROCESSING_BASELINE="04.00")
    write_scene(tmp_path, "s2a", 4, DATES[0], lon=4, side=24, PROCESSING_BASELINE="05.09")
    carries, may = refusals(tmp_path)
    assert "carries an offset by its metadata.json (-1000 is to be added)" in carries
    assert "processing baseline 05.09 adds 1000 to every number, unless the provider took it off" in may
    assert "--dn-offset -1000" in carries
    assert "--dn-offset -1000" in may


def test_the_users_word_on_the_offset_ends_the_matter(tmp_path):
    write_scene(tmp_path, "s2a", 3, DATES[0], side=24, PROCESSING_BASELINE="05.09")
    reading = read_ssl4eo_s12(tmp_path, "sentinel-2-l2a", dn_offset=-1000)
    image = reading.items[0].load().image
    assert reading.sensor.scaling is not None
    np.testing.assert_allclose(reading.sensor.scaling.physical(image), image * 1e-4 - 0.1, atol=1e-6)
    assert reading.sensor.scaling.physical_source == "user"
    with pytest.raises(ConfigError, match="a matter of Sentinel-2"):
        read_ssl4eo_s12(tmp_path, "sentinel-1-grd", dn_offset=0)


def test_without_a_word_dark_pixels_speak_against_an_offset(tmp_path):
    for n, lowest in enumerate((1, 1, 1000)):
        folder = write_scene(tmp_path, "s2a", n, DATES[0], lon=n, side=24)
        (folder / "metadata.json").unlink()
        for band in bands_of("s2a"):
            with rasterio.open(folder / f"{band}.tif", "r+") as file:
                file.write(file.read(1).clip(lowest), 1)
    (bright,) = refusals(tmp_path)
    assert "darkest pixels lie at 1000 in every band" in bright


# -- places -----------------------------------------------------------------------------------------------------------


def test_all_dates_of_a_location_and_all_ground_it_shares_are_one_place(tmp_path):
    side = 48 * PIXEL
    for n, lon in enumerate((0.0, 0.9 * side, 1.8 * side, 5 * side)):  # 0 and 2 do not overlap, but both overlap 1
        for date in DATES:
            write_scene(tmp_path, "s2a", n, date, lon=lon, side=48)
    reading = read_ssl4eo_s12(tmp_path, "sentinel-2-l2a")
    assert [i.place for i in reading.items] == ["0000000"] * 6 + ["0000003"] * 2
    pack(reading, tmp_path / "store", split=SplitConfig(val_fraction=0.5), progress=False)
    store = open_stores(tmp_path / "store")["sentinel-2-l2a"]
    train, val = (set(store.places(store.indices(split))) for split in ("train", "val"))
    assert len(train) == len(val) == 1
    assert not train & val


boxes = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 4), st.sampled_from("ab")), max_size=9
)


def test_locations_without_a_georeference_are_places_of_their_own():
    box = (0.0, 0.0, 264.0, 264.0)
    assert overlapping({"0": ("pixels", box), "1": ("pixels", box)}) == {"0": "0", "1": "1"}


@given(boxes)
def test_places_are_exactly_the_groups_that_overlap(drawn):
    grounds = {f"{n:02}": (f, (x, y, x + s, y + s)) for n, (x, y, s, f) in enumerate(drawn)}
    names = sorted(grounds)

    def touch(a: str, b: str) -> bool:
        (fa, (l1, b1, r1, t1)), (fb, (l2, b2, r2, t2)) = grounds[a], grounds[b]
        return fa == fb and min(r1, r2) > max(l1, l2) and min(t1, t2) > max(b1, b2)

    linked = {a: {b for b in names if touch(a, b)} for a in names}
    for _ in names:  # the transitive closure
        linked = {a: set().union(*(linked[b] for b in near)) for a, near in linked.items()}
    assert overlapping(grounds) == {a: min(linked[a]) for a in names}


def test_planning_opens_one_header_a_location(tmp_path, monkeypatch):
    corpus(tmp_path, locations=3)
    opened = []
    real = rasterio.open
    monkeypatch.setattr("rasterio.open", lambda path, *more: opened.append(str(path)) or real(path, *more))
    reading = read_ssl4eo_s12(tmp_path, "sentinel-2-l2a")
    assert len(reading.items) == 6
    assert len(opened) == 3  # of 72 files


# -- what is refused --------------------------------------------------------------------------------------------------


def test_broken_images_are_refused_with_their_file_and_the_others_packed(tmp_path):
    corpus(tmp_path, locations=6)
    scenes = sorted((tmp_path / "s2a").glob("*/*"))
    (scenes[0] / "B11.tif").unlink()
    whole = (scenes[1] / "B5.tif").read_bytes()
    (scenes[1] / "B5.tif").write_bytes(whole[: len(whole) // 2])
    write_band(scenes[2] / "B9.tif", np.ones((7, 7), np.uint16), 0.1, 0, 6)
    write_band(scenes[3] / "B9.tif", np.ones((8, 8), np.float32), 0.1, 0, 6)
    write_band(scenes[4] / "B9.tif", np.ones((8, 8), np.uint16), 0.21, 0, 6)
    for scene in scenes[6].parent.iterdir():
        (scene / "B2.tif").write_bytes(b"")
    for band, times in bands_of("s2a").items():
        write_band(scenes[8] / f"{band}.tif", np.ones((60 // times, 60 // times), np.uint16), 0.4, 0, times)
    report = pack(read_ssl4eo_s12(tmp_path, "sentinel-2-l2a"), tmp_path / "store", progress=False)
    reasons = {r.source: r.reason for r in report.refused}
    told = [reasons.pop(str(s)) for s in (*scenes[:5], scenes[8])]
    assert "B11.tif cannot be opened" in told[0]
    assert "B5.tif" in told[1]
    assert "B9.tif has 7×7 pixels, no whole part of the 48×48" in told[2]
    assert "B9.tif is of type float32, the finest band of uint16" in told[3]
    assert "other ground" in told[4]
    assert "is 60×60 pixels, the others are 48×48" in told[5]
    (location,) = reasons.items()
    assert location[0] == str(scenes[6].parent)
    assert "B2.tif cannot be opened" in location[1]
    assert sum(report.images.values()) == 12 - 2 - 6


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("", r"holds s1, s2c and not s2a: expected s2a/<7 digits>.*extract it beside them"),
        ("s1", r"holds sentinel-1-grd \(s1\): expected s2a/.*name the folder above, or take that sensor"),
        ("s2c", r"holds sentinel-2-l1c \(s2c\): expected s2a/"),
        ("s2c/0000000", r"one location of SSL4EO-S12: .*two levels above"),
        (f"s2c/0000000/{DATES[0]}", r"one scene of SSL4EO-S12: .*three levels above"),
        ("..", r"no SSL4EO-S12: expected .*found .*it looks as if you want: dofa pack ssl4eo-s12 .*/corpus$"),
        ("nowhere", r"found no such folder"),
        ("newer", r"release 1.1 of SSL4EO-S12 \(S1GRD, S2L2A\), which is not read"),
    ],
)
def test_a_wrong_folder_says_what_was_expected_and_found(tmp_path, where, said):
    root = tmp_path / "corpus"
    corpus(root, "s2c", locations=1, side=24)
    write_scene(root, "s1", 0, RADAR, side=24)
    for name in ("S2L2A", "S1GRD"):
        (root / "newer" / "train" / name).mkdir(parents=True)
    with pytest.raises(DataError, match=said):
        read_ssl4eo_s12(root / where, "sentinel-2-l2a")


def test_a_sensor_that_took_none_of_these_images_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"whose images .* are wanted: sensor sentinel-1-grd or sentinel-2-l1c"):
        read_ssl4eo_s12(tmp_path)
    with pytest.raises(ConfigError, match="no images of sentinel-2-dofa9: it has sentinel-1-grd, sentinel-2-l1c"):
        read_ssl4eo_s12(tmp_path, "sentinel-2-dofa9")


def test_the_folder_of_one_sensor_will_do(tmp_path):
    corpus(tmp_path, locations=1, side=24)
    sources = [i.source for i in read_ssl4eo_s12(tmp_path, "sentinel-2-l2a").items]
    assert [i.source for i in read_ssl4eo_s12(tmp_path / "s2a", "sentinel-2-l2a").items] == sources
    (tmp_path / "s2a").rename(tmp_path / "l2a")
    assert len(read_ssl4eo_s12(tmp_path / "l2a", "sentinel-2-l2a").items) == 2


# -- packing ----------------------------------------------------------------------------------------------------------


def test_an_interrupted_pack_of_the_corpus_ends_at_the_same_bytes(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("dofa.corpus.pack.SHARD_BYTES", 120_000)  # two images a shard
    reading = read_ssl4eo_s12(corpus(tmp_path / "in", locations=4), "sentinel-2-l2a")
    pack(reading, tmp_path / "whole", progress=False)

    def breaks():
        raise KeyboardInterrupt

    items = [replace(item, load=breaks) if n == 5 else item for n, item in enumerate(reading.items)]
    with pytest.raises(KeyboardInterrupt):
        pack(replace(reading, items=items), tmp_path / "resumed", progress=False)
    pack(read_ssl4eo_s12(tmp_path / "in", "sentinel-2-l2a"), tmp_path / "resumed", progress=False)
    assert toy.tree(tmp_path / "whole") == toy.tree(tmp_path / "resumed")


def test_the_command_packs_the_sensor_it_is_told(tmp_path, capsys):
    write_scene(tmp_path / "in", "s1", 0, RADAR, side=24)
    pack_command("ssl4eo-s12", [str(tmp_path / "in"), str(tmp_path / "store")], sensor="sentinel-1-grd", split="none")
    assert "sentinel-1-grd, 1 images: 1 train (1 places)" in capsys.readouterr().out
    write_scene(tmp_path / "in", "s2a", 0, DATES[0], side=24, PROCESSING_BASELINE="05.09")
    pack_command(
        "ssl4eo-s12",
        [str(tmp_path / "in"), str(tmp_path / "store")],
        sensor="sentinel-2-l2a",
        dn_offset=-1000,
        split="none",
    )
    assert open_stores(tmp_path / "store")["sentinel-2-l2a"].scaling.offset[0] == pytest.approx(-0.1)


def test_the_metadata_of_a_scene_must_be_readable(tmp_path):
    folder = write_scene(tmp_path, "s2a", 0, DATES[0], side=24)
    reading = read_ssl4eo_s12(tmp_path, "sentinel-2-l2a")
    (folder / "metadata.json").write_text("{")
    with pytest.raises(DataError, match=r"metadata\.json"):
        reading.items[0].load()
