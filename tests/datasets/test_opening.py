"""EuroSAT in its published forms, and labelled stores."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from dofa.corpus.pack import pack
from dofa.corpus.readers.images import read_images
from dofa.corpus.store import open_stores
from dofa.datasets.opening import (
    EUROSAT_BANDS,
    EUROSAT_CLASSES,
    open_labelled,
    read_eurosat_ms,
    read_eurosat_rgb,
    read_labelled_store,
)
from dofa.errors import DataError


def jpeg(value: int = 90, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value, value + 10, value + 20)).save(out, "JPEG", quality=95)
    return out.getvalue()


def tif(first: int = 100, bands: int = 13, dtype: str = "uint16", east: float | None = 305_000.0) -> bytes:
    """Band i of the file holds first + i everywhere: whoever takes another order is found out."""
    where = {} if east is None else {"crs": "EPSG:32633", "transform": Affine(10, 0, east, 0, -10, 5_419_000)}
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=64, height=64, count=bands, dtype=dtype, interleave="pixel", **where
        ) as d:
            d.write(np.stack([np.full((64, 64), first + i) for i in range(bands)]).astype(dtype))
        return bytes(memory.read())


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_folder(path: Path, members: dict[str, bytes]) -> Path:
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture(scope="module")
def rgb_zip(real_data: Path) -> Path:
    return real_data / "eurosat_rgb" / "EuroSAT_RGB_2000.zip"


@pytest.fixture(scope="module")
def ms_zip(real_data: Path) -> Path:
    return real_data / "eurosat_ms" / "EuroSAT_MS_100.zip"


def test_real_rgb_zip_reads_as_2000_images_of_ten_classes(rgb_zip: Path) -> None:
    data = read_eurosat_rgb(rgb_zip)
    assert len(data) == 2000
    assert data.class_names == EUROSAT_CLASSES == tuple(sorted(EUROSAT_CLASSES))
    assert np.bincount(data.labels).tolist() == [200] * 10
    assert all(EUROSAT_CLASSES[label] in source for label, source in zip(data.labels, data.sources, strict=True))
    raw, valid = data.read(777)
    with zipfile.ZipFile(rgb_zip) as archive, Image.open(archive.open(data.sources[777].split("!")[1])) as image:
        np.testing.assert_array_equal(raw, np.asarray(image).transpose(2, 0, 1))
    assert valid is None
    assert data.places is None


def test_real_ms_zip_has_b8a_in_its_last_band(ms_zip: Path) -> None:
    data = read_eurosat_ms(ms_zip)
    assert len(data) == 100
    assert data.sensor.band_names == EUROSAT_BANDS
    mean = {
        name: np.mean(
            [data.scaling.physical(data.read(i)[0]).mean((1, 2)) for i in np.flatnonzero(data.labels == c)], 0
        )
        for c, name in enumerate(EUROSAT_CLASSES)
    }
    at = {band: i for i, band in enumerate(EUROSAT_BANDS)}
    forest, water = mean["Forest"], mean["SeaLake"]

    def ndvi(spectrum: np.ndarray, infrared: str) -> float:
        return (spectrum[at[infrared]] - spectrum[at["B04"]]) / (spectrum[at[infrared]] + spectrum[at["B04"]])

    # Vegetation is as bright in B8A as in B08, dark in B09 (water vapour) and black in B10 (cirrus).
    assert ndvi(forest, "B8A") > 0.7
    assert ndvi(forest, "B08") > 0.7
    assert ndvi(water, "B8A") < 0
    assert 0.95 < forest[at["B8A"]] / forest[at["B08"]] < 1.25
    assert forest[at["B09"]] < 0.5 * forest[at["B8A"]]
    assert all(spectrum[at["B10"]] < 0.005 for spectrum in mean.values())
    assert forest[at["B11"]] > 2 * forest[at["B12"]]


def test_rgb_is_the_same_reflectance_as_the_ms_bands_it_was_rendered_from(rgb_zip: Path, ms_zip: Path) -> None:
    rgb, ms = read_eurosat_rgb(rgb_zip), read_eurosat_ms(ms_zip).select_bands(["B04", "B03", "B02"])
    stems = {Path(s).stem: i for i, s in enumerate(ms.sources)}
    pairs = [(i, stems[Path(s).stem]) for i, s in enumerate(rgb.sources) if Path(s).stem in stems]
    assert len(pairs) == 5
    for i, j in pairs:
        seen = rgb.scaling.physical(rgb.read(i)[0])
        true = np.clip(ms.scaling.physical(ms.read(j)[0]), 0, 0.275)
        assert np.abs(seen - true).mean() < 0.003  # three grey levels of JPEG and rounding
        assert np.abs(seen[::-1] - true).mean() > 0.003


def test_places_of_real_ms_chips_are_cells_of_their_own_utm_zone(ms_zip: Path) -> None:
    places = read_eurosat_ms(ms_zip).places
    assert places is not None
    assert len(set(places)) == 76
    assert places[0].startswith("EPSG:326")


def test_file_band_order_is_taken_as_published_and_bands_are_selected_by_name(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "ms.zip", {"ds/images/tif/Forest/Forest_12.tif": tif(100)})
    data = read_eurosat_ms(path)
    assert [int(v) for v in data.read(0)[0][:, 0, 0]] == list(range(100, 113))
    picked = data.select_bands(["B8A", "B09", "B04"])
    assert [int(v) for v in picked.read(0)[0][:, 5, 5]] == [112, 108, 103]
    assert picked.sensor.band_names == picked.scaling.bands == ("B8A", "B09", "B04")
    assert picked.shape == (3, 64, 64)
    assert picked.fingerprint != data.fingerprint


def test_zip_and_folder_give_the_same_images_in_the_same_order(tmp_path: Path) -> None:
    members = {f"2750/{c}/{c}_{n}.jpg": jpeg(60 + 9 * n) for c in ("River", "Forest") for n in (10, 2, 1)}
    one = read_eurosat_rgb(
        write_zip(tmp_path / "a.zip", {**members, "2750/.DS_Store": b"x", "2750/River/notes.txt": b""})
    )
    two = read_eurosat_rgb(write_folder(tmp_path / "unpacked", members))
    assert [Path(s).name for s in one.sources] == [f"{c}_{n}.jpg" for c in ("Forest", "River") for n in (1, 2, 10)]
    assert [Path(s).name for s in one.sources] == [Path(s).name for s in two.sources]
    for i in range(len(one)):
        np.testing.assert_array_equal(one.read(i)[0], two.read(i)[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "unpacked"]  # nothing was unpacked anywhere


def test_fingerprint_changes_with_the_pixels(tmp_path: Path) -> None:
    before = read_eurosat_rgb(write_zip(tmp_path / "a.zip", {"Forest/Forest_1.jpg": jpeg(60)})).fingerprint
    same = read_eurosat_rgb(write_zip(tmp_path / "b.zip", {"Forest/Forest_1.jpg": jpeg(60)})).fingerprint
    other = read_eurosat_rgb(write_zip(tmp_path / "c.zip", {"Forest/Forest_1.jpg": jpeg(61)})).fingerprint
    assert before == same != other


@pytest.mark.parametrize(("reader", "form"), [(read_eurosat_rgb, "RGB"), (read_eurosat_ms, "MS")])
@pytest.mark.parametrize("there", [True, False])
def test_missing_set_says_where_to_get_it_and_what_it_looks_like(
    tmp_path: Path, reader, form: str, there: bool
) -> None:
    path = tmp_path if there else tmp_path / "nowhere"
    with pytest.raises(
        DataError, match=rf"EuroSAT_{form}\.zip from https://zenodo.org/records/7711810.*AnnualCrop_1\."
    ):
        reader(path)


@pytest.mark.parametrize("name", ["../Forest/Forest_1.jpg", "/Forest/Forest_1.jpg", "a/../../Forest/Forest_1.jpg"])
def test_zip_members_that_lead_out_of_it_are_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "a.zip", {"River/River_1.jpg": jpeg(), name: jpeg()})
    with pytest.raises(DataError, match="leads out of it"):
        read_eurosat_rgb(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"Forest/Forest_1.jpg": jpeg()[:300]}, r"Forest_1\.jpg is no whole JPEG"),
        ({"Forest/Forest_1.jpg": b"GIF89a"}, r"Forest_1\.jpg is no whole JPEG"),
        ({"Forest/Forest_1.jpg": jpeg(size=(64, 65))}, r"shape \(3, 65, 64\)"),
        ({"Forest/Forest_1.jpg": jpeg(mode="L")}, "mode L"),
        ({"Forest/Forest_1.jpg": b"\0" * (5 << 20)}, "would unpack to"),
        ({"Forest/Forest_1.jpg": jpeg(), "copy/Forest/Forest_1.jpg": jpeg()}, "there twice"),
    ],
)
def test_damaged_rgb_images_are_named(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_eurosat_rgb(write_zip(tmp_path / "a.zip", members)).read(0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tif()[:2000], "is no whole GeoTIFF"),
        (tif(bands=3), r"shape \(3, 64, 64\); EuroSAT MS images have \(13, 64, 64\)"),
        (tif(dtype="float32"), "float32 values"),
    ],
)
def test_damaged_ms_images_are_named(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_eurosat_ms(write_zip(tmp_path / "a.zip", {"River/River_1.tif": data})).read(0)


def test_a_member_that_fails_its_checksum_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("Forest/Forest_1.jpg", jpeg())
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"Forest_1\.jpg is damaged"):
        read_eurosat_rgb(path).read(0)


@pytest.mark.parametrize("spec", ["eurosat:EuroSAT.zip", "geo-bench:m-eurosat"])
def test_a_kind_that_nobody_knows_names_the_nearest(spec: str) -> None:
    with pytest.raises(DataError, match=r"did you mean (eurosat-|geobench)"):
        open_labelled(spec)


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="not a whole zip"):
        read_eurosat_rgb(tmp_path / "a.zip")


def split_files(folder: Path, **lists: str) -> None:
    for split, lines in lists.items():
        (folder / f"eurosat-{split}.txt").write_text(lines)


def test_published_splits_name_jpg_files_for_tifs_too(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {f"tif/River/River_{n}.tif": tif() for n in (1, 2, 3)})
    assert read_eurosat_ms(path).splits is None
    split_files(tmp_path, train="River_3.jpg\n", val="River_1.jpg\n", test="River_2.tif\n")
    assert read_eurosat_ms(path).splits == ("val", "test", "train")


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": "River_1.jpg", "val": "River_2.jpg"}, "not all of"),
        (
            {"train": "River_1.jpg River_2.jpg", "val": "River_2.jpg", "test": ""},
            "is listed in eurosat-train.txt and in",
        ),
        ({"train": "River_1.jpg", "val": "", "test": ""}, "1 images are in no split list.*River_2"),
        (
            {"train": "River_1.jpg", "val": "River_2.jpg", "test": "River_9.jpg"},
            "1 images are listed but absent.*River_9",
        ),
    ],
)
def test_splits_that_do_not_fit_the_images_are_refused(tmp_path: Path, lists: dict[str, str], message: str) -> None:
    folder = write_folder(tmp_path, {f"River/River_{n}.jpg": jpeg() for n in (1, 2)})
    split_files(folder, **lists)
    with pytest.raises(DataError, match=message):
        _ = read_eurosat_rgb(folder).splits


def test_chips_without_georeference_have_no_places(tmp_path: Path) -> None:
    members = {"River/River_1.tif": tif(), "River/River_2.tif": tif(east=None)}
    assert read_eurosat_ms(write_folder(tmp_path, members)).places is None


def test_labelled_store_gives_its_labels_places_splits_and_statistics(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, value in (("bright", 200), ("dark", 50)):
        (tmp_path / "png" / name).mkdir(parents=True)
        for n in range(6):
            pixels = np.clip(value + 10 * rng.normal(size=(16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "png" / name / f"{n}.png")
    reading = read_images(tmp_path / "png", "rgb-aerial", bands=["R", "G", "B"], labels=True, place="path")
    pack(reading, tmp_path / "store")
    store = open_stores(tmp_path / "store")["rgb-aerial"]
    data = read_labelled_store(store)
    assert len(data) == 12
    assert data.class_names == ("bright", "dark")
    for i in range(12):
        raw, _ = data.read(i)
        assert (raw.mean() < 128) == (data.class_names[data.labels[i]] == "dark")
    assert len(set(data.places or ())) == 12
    assert set(data.splits or ()) <= {"train", "val", "test"}
    assert data.scaling.mean is None
    assert data.corpus_scaling is not None
    assert data.corpus_scaling.stats_source == "corpus"
    again = open_labelled(f"{tmp_path / 'store'}#rgb-aerial")
    assert again.fingerprint == data.fingerprint
    with pytest.raises(DataError, match="no labelled images of sensor naip-rgb"):
        open_labelled(f"{tmp_path / 'store'}#naip-rgb")
