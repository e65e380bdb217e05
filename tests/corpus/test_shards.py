"""Crops read from local shards are those that Zarr reads, whatever is asked for; damage is told, not decoded."""

import json
import shutil

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from dofa.corpus import pack as packing
from dofa.corpus import shards
from dofa.corpus.items import Reading
from dofa.corpus.pack import DTYPES, pack
from dofa.corpus.shards import ABSENT, Layout
from dofa.corpus.store import SensorStore, open_stores
from dofa.errors import DataError


@pytest.fixture(scope="module", params=DTYPES)
def store(request, toy, tmp_path_factory) -> SensorStore:
    """Images of 100 × 70 in chunks of 32, two a shard, some pixels invalid in some images."""
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(1)
    images = rng.integers(0, 200, (5, 3, 100, 70)).astype(request.param)
    valid = rng.random((5, 100, 70)) < 0.9
    valid[1:4] = True
    valid[2, 40:60, 40:60] = False
    reading = Reading.from_arrays(toy.sensor(), images, list("abcde"), valid=valid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SHARD_BYTES", 2 * images[0].nbytes)
        pack(reading, folder, progress=False, chunk=32)
    return open_stores(folder)["toy"]


def layout_of(array) -> Layout | None:
    return Layout.read(json.loads((array / "zarr.json").read_text()))


def through_zarr(store: SensorStore, name: str) -> zarr.Array:
    return zarr.open_array(store.url, path=f"toy/{name}", mode="r")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_window_and_any_bands_are_those_that_zarr_reads(store, data):
    image = data.draw(st.integers(0, 4))
    top, bottom = sorted(data.draw(st.lists(st.integers(0, 100), min_size=2, max_size=2, unique=True)))
    left, right = sorted(data.draw(st.lists(st.integers(0, 70), min_size=2, max_size=2, unique=True)))
    bands = data.draw(st.none() | st.lists(st.integers(0, 2), min_size=1, max_size=4))
    raw, valid = store.read(image, top, left, bottom - top, right - left, bands)
    expected = through_zarr(store, "images")[image, :, top:bottom, left:right]
    np.testing.assert_array_equal(raw, expected if bands is None else expected[bands], strict=True)
    np.testing.assert_array_equal(valid, through_zarr(store, "valid")[image, top:bottom, left:right], strict=True)


def test_local_crops_go_past_zarr(store, monkeypatch):
    monkeypatch.setattr(SensorStore, "_array", lambda *_: pytest.fail("was read through Zarr"))
    raw, valid = store.read(4, 10, 10, 40, 40)
    assert raw.any()
    assert not valid.all()


def test_a_lost_mask_is_missed_where_it_was_true_all_over_the_shard(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SHARD_BYTES", 2 * 3 * 16 * 16 * 2)
    valid = np.ones((6, 16, 16), bool)
    valid[0, 0] = False
    pack(Reading.from_arrays(toy.sensor(), toy.images(6), list("abcdef"), valid=valid), tmp_path, progress=False)
    read = open_stores(tmp_path)["toy"].read(5, 2, 3, 4, 5)[1]
    np.testing.assert_array_equal(read, np.ones((4, 5), bool), strict=True)
    shutil.rmtree(tmp_path / "toy" / "valid" / "c" / "2")
    with pytest.raises(DataError, match="toy/valid/c/2/0/0 is missing"):
        open_stores(tmp_path)["toy"].read(5)


def test_a_store_of_version_1_has_no_file_for_a_mask_that_is_true_all_over_a_shard(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SHARD_BYTES", 2 * 3 * 16 * 16 * 2)
    valid = np.ones((6, 16, 16), bool)
    valid[0, 0] = False
    pack(Reading.from_arrays(toy.sensor(), toy.images(6), list("abcdef"), valid=valid), tmp_path, progress=False)
    toy.as_version_1(tmp_path)
    assert sorted(p.name for p in (tmp_path / "toy" / "valid" / "c").iterdir()) == ["0"]
    store = open_stores(tmp_path)["toy"]
    np.testing.assert_array_equal(store.read(5, 2, 3, 4, 5)[1], np.ones((4, 5), bool), strict=True)
    np.testing.assert_array_equal(store.read(0)[1], valid[0])


@pytest.mark.parametrize(
    "relaid",
    [
        {"shards": None},
        {"compressors": zarr.codecs.GzipCodec()},
        {"chunks": (1, 1, 32, 32)},
        {"chunks": (1, 3, 32, 16)},
        {"serializer": zarr.codecs.BytesCodec(endian="big")},
        {"chunk_key_encoding": {"name": "default", "separator": "."}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_store_of_version_1_that_another_program_laid_out_anew_is_read_through_zarr(toy, tmp_path, relaid):
    reading = toy.reading(3, side=64)
    pack(reading, tmp_path, progress=False, chunk=32)
    toy.as_version_1(tmp_path)
    array = tmp_path / "toy" / "images"
    pixels = zarr.open_array(array, mode="r")[:]
    assert layout_of(array) is not None
    shutil.rmtree(array)
    layout = {"chunks": (1, 3, 32, 32), "shards": (3, 3, 64, 64), "compressors": zarr.codecs.BloscCodec()}
    zarr.create_array(array, data=pixels, **{**layout, **relaid})
    assert layout_of(array) is None
    np.testing.assert_array_equal(open_stores(tmp_path)["toy"].read(2)[0], reading.items[2].load().image, strict=True)


def index_of(file) -> np.ndarray:
    """(chunks, 2) at the end of a shard's bytes."""
    return np.frombuffer(file.read_bytes()[-4 - 16 * 4 : -4], "<u8").reshape(4, 2)


def rewrite(file, index: np.ndarray | None = None, at: int = 0, byte: int | None = None) -> None:
    """Another index with its checksum made to fit, or another byte."""
    content = bytearray(file.read_bytes())
    if index is not None:
        checksum = shards.google_crc32c.value(index.tobytes()).to_bytes(4, "little")
        content[-4 - index.nbytes :] = index.tobytes() + checksum
    if byte is not None:
        content[at] = byte
    file.write_bytes(bytes(content))


@pytest.fixture
def one(toy, tmp_path):
    """One image of four chunks, and its shard."""
    pack(toy.reading(1, side=64), tmp_path, progress=False, chunk=32)
    return open_stores(tmp_path)["toy"], tmp_path / "toy" / "images" / "c" / "0" / "0" / "0" / "0"


def test_a_damaged_index_is_noticed(one):
    store, file = one
    rewrite(file, at=-20, byte=file.read_bytes()[-20] ^ 1)
    with pytest.raises(DataError, match="images of image 0 cannot be read: the checksum of the shard's index is wrong"):
        store.read(0)


def test_a_shard_that_is_cut_off_is_noticed(one):
    store, file = one
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match="images of image 0 cannot be read"):
        store.read(0)


def test_a_chunk_that_ends_before_its_bytes_do_is_noticed(one):
    store, file = one
    index = index_of(file).copy()
    index[3, 1] = len(file.read_bytes())
    rewrite(file, index)
    store.read(0, 0, 0, 32, 32)
    with pytest.raises(DataError, match="images of image 0 cannot be read: a chunk is cut short"):
        store.read(0)


@pytest.mark.parametrize("at", [0, 4, 12], ids=["version", "size", "compressed size"])
def test_a_chunk_with_a_damaged_header_is_noticed(one, at):
    store, file = one
    at += int(index_of(file)[0, 0])
    rewrite(file, at=at, byte=file.read_bytes()[at] ^ 0xFF)
    with pytest.raises(DataError, match="images of image 0 cannot be read"):
        store.read(0)


def test_a_chunk_that_is_left_out_is_missed_and_of_version_1_the_fill_value(one, toy, tmp_path):
    store, file = one
    index = index_of(file).copy()
    index[0] = ABSENT
    rewrite(file, index)
    with pytest.raises(DataError, match="a chunk is missing"):
        store.read(0)
    toy.as_version_1(tmp_path)
    store = open_stores(tmp_path)["toy"]
    assert not store.read(0)[0][:, :32, :32].any()
    assert store.read(0)[0][:, 32:, 32:].any()


@pytest.mark.parametrize("relaid", [{"serializer": zarr.codecs.BytesCodec(endian="big")}, {"shards": None}])
def test_a_store_with_checksums_that_was_laid_out_anew_is_refused(toy, tmp_path, relaid):
    pack(toy.reading(3, side=64), tmp_path, progress=False, chunk=32)
    array = tmp_path / "toy" / "images"
    pixels = zarr.open_array(array, mode="r")[:]
    shutil.rmtree(array)
    zarr.create_array(array, data=pixels, **{"chunks": (1, 3, 32, 32), "shards": (3, 3, 64, 64), **relaid})
    with pytest.raises(DataError, match=r"toy/images/zarr.json is not as it was written"):
        open_stores(tmp_path)["toy"].read(0)


def test_metadata_of_another_kind_is_left_to_zarr(tmp_path):
    zarr.create_array(tmp_path / "plain", shape=(4, 3, 8, 8), dtype="uint8")
    assert layout_of(tmp_path / "plain") is None
    metadata = json.loads((tmp_path / "plain" / "zarr.json").read_text())
    assert metadata["codecs"][0]["name"] == "bytes"
