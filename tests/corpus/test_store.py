"""Packing and reading stores: what is on disk, interruptions, refusals, addresses, processes."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import zarr

from dofa.corpus import pack as packing
from dofa.corpus.items import Reading
from dofa.corpus.pack import pack
from dofa.corpus.split import SplitConfig
from dofa.corpus.store import SensorStore, open_stores
from dofa.errors import DataError
from dofa.pixels import RunningStats
from dofa.progress import Progress


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of two toy images, so that a dozen images make several."""
    monkeypatch.setattr(packing, "SHARD_BYTES", 2 * 3 * 16 * 16 * 2)


def packed(reading, folder, **options) -> SensorStore:
    pack(reading, folder, progress=False, **options)
    return open_stores(folder)[reading.sensor.name]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("side", [16, 100])
def test_what_is_packed_is_read_back_in_its_own_type(toy, tmp_path, dtype, side):
    reading = toy.reading(7, side=side, dtype=dtype)
    store = packed(reading, tmp_path / "store")
    assert store.dtype == dtype
    assert (store.count, store.shape) == (7, (3, side, side))
    for n, item in enumerate(reading.items):
        image, valid = store.read(n)
        assert valid is None
        assert image.dtype == dtype
        np.testing.assert_array_equal(image, item.load().image)
    assert store.sources(range(7)) == [i.source for i in reading.items]
    assert store.places([5, 0]) == ["place 1", "place 0"]
    assert store.sensor.to_dict() == reading.sensor.to_dict()


def test_a_window_and_some_bands_are_read_in_the_order_asked(toy, tmp_path):
    reading = toy.reading(3, side=150)
    store = packed(reading, tmp_path / "store")
    image, _ = store.read(2, top=60, left=10, height=70, width=140, bands=[2, 0])
    np.testing.assert_array_equal(image, reading.items[2].load().image[[2, 0], 60:130, 10:150])


def test_zarr_itself_reads_the_store(toy, tmp_path, small_shards):
    reading = toy.reading(5, side=100)
    pack(reading, tmp_path / "store", progress=False, chunk=32)
    group = zarr.open_group(tmp_path / "store" / "toy", mode="r")
    images = group["images"]
    assert images.metadata.zarr_format == 3
    assert images.chunks == (1, 3, 32, 32)
    np.testing.assert_array_equal(images[:], np.stack([i.load().image for i in reading.items]))
    assert group.attrs["complete"] is True
    assert group.attrs["format_version"] == 2
    assert sorted(group.array_keys()) == ["images", "labels", "place", "source", "split"]


def test_validity_is_kept_where_there_is_any(toy, tmp_path):
    images = toy.images(4)
    valid = np.ones((4, 16, 16), bool)
    valid[1, :3] = False
    images[1][:, :3] = 0
    store = packed(Reading.from_arrays(toy.sensor(), images, list("abcd"), valid=valid), tmp_path / "store")
    np.testing.assert_array_equal(store.read(1, 2, 0, 2, 16)[1], valid[1, 2:4])
    assert store.read(0)[1].all()


def test_statistics_are_those_of_the_valid_training_pixels(toy, tmp_path):
    images = toy.images(10)
    valid = np.ones((10, 16, 16), bool)
    valid[:, 5:9] = False
    images[:, :, 5:9] = 60000
    store = packed(
        Reading.from_arrays(toy.sensor(), images, [str(i) for i in range(10)], valid=valid),
        tmp_path / "store",
        split=SplitConfig(val_fraction=0.3),
    )
    train = store.indices("train")
    assert len(train) == 7
    pixels = images[train].astype(float).transpose(1, 0, 2, 3)[:, valid[train]] * 0.01
    np.testing.assert_allclose(store.scaling.mean, pixels.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(store.scaling.std, pixels.std(axis=1), rtol=1e-5)
    assert store.scaling.stats_source == "corpus"


def test_the_number_of_workers_changes_not_a_byte(toy, tmp_path, small_shards):
    trees = []
    for workers in (1, 4):
        pack(toy.reading(11), tmp_path / str(workers), workers=workers, progress=False)
        trees.append(toy.tree(tmp_path / str(workers)))
    assert trees[0] == trees[1]


@pytest.mark.parametrize("after", range(0, 13, 2))
def test_an_interrupted_pack_continues_to_the_same_bytes(toy, tmp_path, small_shards, after):
    reading = toy.reading(12)
    bad = toy.images(1)[0][:2]  # a band is missing: refused, on every run
    items = [*reading.items[:5], toy.item(99, bad), *reading.items[5:]]
    pack(toy.with_items(reading, items), tmp_path / "whole", progress=False)

    def breaks():
        raise KeyboardInterrupt

    broken = [replace(i, load=breaks) if n == after else i for n, i in enumerate(items)]
    with pytest.raises(KeyboardInterrupt):
        pack(toy.with_items(reading, broken), tmp_path / "resumed", progress=False, workers=2)
    with pytest.raises(DataError, match=r"toy is packed only in part.*same dofa pack again"):
        open_stores(tmp_path / "resumed")
    pack(toy.with_items(reading, items), tmp_path / "resumed", progress=False)
    assert toy.tree(tmp_path / "whole") == toy.tree(tmp_path / "resumed")


def test_a_torn_line_of_the_journal_and_a_half_written_shard_do_not_matter(toy, tmp_path, small_shards):
    reading = toy.reading(12)
    pack(reading, tmp_path / "whole", progress=False)
    broken = [replace(i, load=lambda: 1 / 0) if n == 8 else i for n, i in enumerate(reading.items)]
    with pytest.raises(ZeroDivisionError):
        pack(toy.with_items(reading, broken), tmp_path / "torn", progress=False, workers=1)
    folder = tmp_path / "torn" / "toy"
    with (folder / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"line": {"items": 2, "sour')
    (folder / "images" / "c" / "4").mkdir(parents=True)
    (folder / "images" / "c" / "4" / "0").mkdir()
    (folder / "images" / "c" / "4" / "0" / "0").mkdir()
    (folder / "images" / "c" / "4" / "0" / "0" / "part").write_bytes(b"half a shard")
    broken = [replace(i, load=lambda: 1 / 0) if n == 11 else i for n, i in enumerate(reading.items)]
    with pytest.raises(ZeroDivisionError):  # and interrupted once more behind the torn line
        pack(toy.with_items(reading, broken), tmp_path / "torn", progress=False, workers=1)
    pack(reading, tmp_path / "torn", progress=False)
    assert toy.tree(tmp_path / "whole") == toy.tree(tmp_path / "torn")


def test_a_pack_that_dies_between_any_two_writes_of_metadata_continues(toy, tmp_path, monkeypatch):
    pack(toy.reading(4), tmp_path / "whole", progress=False)
    whole = toy.tree(tmp_path / "whole")
    put = zarr.storage._local._put
    left = [0]

    class Died(Exception):
        pass

    def dying(path, value, exclusive=False):
        if left[0] == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".0123.partial").write_bytes(b"half")
            raise Died
        left[0] -= 1
        return put(path, value, exclusive)

    monkeypatch.setattr(zarr.storage._local, "_put", dying)
    deaths = 0
    while True:
        target = tmp_path / f"dies at {deaths}"
        left[0] = deaths
        try:
            pack(toy.reading(4), target, progress=False)
            break
        except Died:
            left[0] = -1
        deaths += 1
        pack(toy.reading(4), target, progress=False)
        store = toy.tree(target)
        assert {k: v for k, v in store.items() if k != "zarr.0123.partial"} == whole
    assert deaths > 10


def test_packing_again_finds_the_store_complete_and_loads_nothing(toy, tmp_path):
    reading = toy.reading()
    first = pack(reading, tmp_path / "store", progress=False)
    untouchable = [replace(i, load=lambda: pytest.fail("was loaded again")) for i in reading.items]
    again = pack(toy.with_items(reading, untouchable), tmp_path / "store", progress=False)
    assert again.images == first.images == {"train": 9, "val": 3}


def test_other_images_are_not_mixed_into_a_store(toy, tmp_path):
    pack(toy.reading(12), tmp_path / "store", progress=False)
    with pytest.raises(DataError, match="already holds toy, packed from other images or with other options"):
        pack(toy.reading(8), tmp_path / "store", progress=False)
    with pytest.raises(DataError, match="already holds toy"):
        pack(toy.reading(12), tmp_path / "store", progress=False, split=SplitConfig("none"))


def test_a_begun_store_of_other_images_can_be_begun_anew(toy, tmp_path):
    reading = toy.reading(12)
    broken = [replace(i, load=lambda: 1 / 0) for i in reading.items]
    with pytest.raises(ZeroDivisionError):
        pack(toy.with_items(reading, broken), tmp_path / "store", progress=False)
    with pytest.raises(DataError, match="begun from other images"):
        pack(toy.reading(8), tmp_path / "store", progress=False)
    assert packed(toy.reading(8), tmp_path / "store", resume=False).count == 8


def test_a_store_holds_several_sensors(toy, tmp_path):
    for name in ("first", "second"):
        reading = toy.reading(6)
        pack(replace(reading, sensor=toy.sensor(name=name)), tmp_path / "store", progress=False)
    assert list(open_stores(tmp_path / "store")) == ["first", "second"]


def test_two_stores_of_one_sensor_are_refused(toy, tmp_path):
    for name in "ab":
        pack(toy.reading(), tmp_path / name, progress=False)
    with pytest.raises(DataError, match=r"both .*a and .*b hold toy"):
        open_stores([tmp_path / "a", tmp_path / "b"])


def test_a_folder_with_other_files_is_not_written_to(toy, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="holds other files"):
        pack(toy.reading(), tmp_path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


BAD_IMAGES = {
    "has 2 bands; sensor toy has 3": lambda good: (good[:2], None),
    "is 16×15 pixels, not 16×16": lambda good: (good[:, :, 1:], None),
    "has no valid pixel: all nodata": lambda good: (good, np.zeros((16, 16), bool)),
    "has 1 NaN or infinite pixels": lambda good: (np.where(np.arange(256).reshape(16, 16) == 9, np.nan, good), None),
    "has 256 NaN or infinite pixels": lambda good: (good * np.inf, None),
    "is of type complex64; the store holds float32": lambda good: (good.astype("complex64"), None),
}


@pytest.mark.parametrize("reason", BAD_IMAGES)
def test_a_bad_image_among_good_ones_is_refused_counted_and_listed(toy, tmp_path, reason):
    reading = toy.reading(6, dtype="float32")
    image, valid = BAD_IMAGES[reason](toy.images(1, dtype="float32")[0])
    items = [*reading.items[:2], toy.item(99, image, valid), *reading.items[2:]]
    report = pack(toy.with_items(reading, items), tmp_path / "store", progress=False)
    assert [r.source for r in report.refused] == ["image 99"]
    assert reason in report.refused[0].reason
    assert "1 refused" in " ".join(report.lines())
    listed = (tmp_path / "store" / "toy" / "refused.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in listed] == ["image 99"]
    store = open_stores(tmp_path / "store")["toy"]
    assert store.sources(range(6)) == [i.source for i in reading.items]
    assert np.isfinite(store.scaling.mean).all()


def test_invalid_pixels_may_be_nan(toy, tmp_path):
    image = toy.images(1, dtype="float32")[0]
    image[:, 0] = np.nan
    valid = np.ones((16, 16), bool)
    valid[0] = False
    items = [*toy.reading(4, dtype="float32").items, toy.item(9, image, valid)]
    report = pack(toy.with_items(toy.reading(4, dtype="float32"), items), tmp_path / "store", progress=False)
    assert not report.refused
    assert np.isfinite(open_stores(tmp_path / "store")["toy"].scaling.mean).all()


def test_an_image_with_too_few_valid_pixels_is_refused_where_a_share_is_asked_for(toy, tmp_path):
    valid = np.zeros((16, 16), bool)
    valid[:4] = True
    items = [*toy.reading(4).items, toy.item(9, toy.images(1)[0], valid)]
    report = pack(toy.with_items(toy.reading(4), items), tmp_path / "store", min_valid=0.5, progress=False)
    assert report.refused[0].reason == "has 25.0% valid pixels, less than the 50.0% asked for"


def test_nothing_to_pack_is_an_error_that_names_the_first_reason(toy, tmp_path):
    items = [toy.item(n, toy.images(1)[0][:1]) for n in range(3)]
    with pytest.raises(DataError, match="all 3 images are refused, the first, image 0: has 1 bands"):
        pack(toy.with_items(toy.reading(), items), tmp_path / "store", progress=False)


def test_when_all_held_out_images_are_refused_others_are_held_out(toy, tmp_path):
    images = toy.images(6)
    good = [toy.item(n, images[n]) for n in range(6)]
    pack(toy.with_items(toy.reading(), good), tmp_path / "first", progress=False)
    first = open_stores(tmp_path / "first")["toy"]
    (lost,) = first.indices("val")
    bad = [toy.item(n, images[n][:1] if n == lost else images[n]) for n in range(6)]
    store = packed(toy.with_items(toy.reading(), bad), tmp_path / "second")
    assert len(store.indices("val")) == 1
    assert len(store.indices("train")) == 4
    stats = RunningStats(store.scaling.bands)
    for n in store.indices("train"):
        stats.update(store.scaling.physical(store.read(int(n))[0]))
    np.testing.assert_allclose(store.scaling.mean, stats.mean, rtol=1e-9)


def test_a_band_without_variance_is_packed_and_named(toy, tmp_path):
    images = toy.images(6)
    images[:, 1] = 7
    report = pack(Reading.from_arrays(toy.sensor(), images, list("abcdef")), tmp_path / "store", progress=False)
    assert report.constant == ("B2",)
    assert "fed to models as 0: B2" in " ".join(report.lines())


def test_one_place_holds_nothing_out_and_says_so(toy, tmp_path):
    report = pack(toy.reading(5, places=1), tmp_path / "store", progress=False)
    assert report.images == {"train": 5}
    assert "nothing is held out" in " ".join(report.lines())


def test_labels_come_with_their_names(toy, tmp_path):
    reading = toy.reading(4, labels=[1, 0, 1, 1], class_names=["water", "forest"])
    store = packed(reading, tmp_path / "store")
    np.testing.assert_array_equal(store.labels, [1, 0, 1, 1])
    assert store.class_names == ("water", "forest")
    assert packed(toy.reading(4), tmp_path / "without").labels is None


def test_a_split_that_the_layout_brings_is_kept(toy, tmp_path):
    reading = toy.reading(6)
    splits = ["train", "val", "test", "train", "test", "train"]
    items = [replace(i, split=s) for i, s in zip(reading.items, splits, strict=True)]
    store = packed(toy.with_items(reading, items), tmp_path / "store")
    assert store.indices("test").tolist() == [2, 4]
    assert store.indices("val").tolist() == [1]
    only_test = [replace(i, split="test") for i in reading.items]
    with pytest.raises(DataError, match="no image belongs to the training split"):
        pack(toy.with_items(reading, only_test), tmp_path / "other", progress=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sensor": "no scaling"}, "toy has no default scaling"),
        ({"dtype": "complex64"}, "type complex64 are not packed"),
    ],
)
def test_a_reading_that_cannot_be_stored_is_refused(toy, tmp_path, change, words):
    if "sensor" in change:
        change = {"sensor": replace(toy.sensor(), scaling=None)}
    with pytest.raises(DataError, match=words):
        pack(replace(toy.reading(), **change), tmp_path / "store")


def test_packing_to_an_address_is_refused(toy):
    with pytest.raises(DataError, match="writes to a local folder"):
        pack(toy.reading(), "s3://bucket/store")


def test_a_format_version_from_the_future_is_refused_by_name(toy, tmp_path):
    pack(toy.reading(), tmp_path / "store", progress=False)
    for folder in (tmp_path / "store" / "toy", tmp_path / "store"):
        zarr.open_group(folder, mode="r+").attrs["format_version"] = 7
        with pytest.raises(DataError, match="format_version 7, newer than the 2 this dofa reads: update dofa"):
            open_stores(tmp_path / "store")


def test_what_is_no_store_is_refused(toy, tmp_path):
    with pytest.raises(DataError, match=r"no store at .*nowhere"):
        open_stores(tmp_path / "nowhere")
    zarr.open_group(tmp_path / "other", mode="w")
    with pytest.raises(DataError, match="no store written by dofa pack"):
        open_stores(tmp_path / "other")


def test_one_sensor_of_a_store_named_as_a_store_is_answered_with_the_store(toy, tmp_path):
    """Was a KeyError."""
    pack(toy.reading(), tmp_path / "store", progress=False)
    with pytest.raises(DataError, match=r"store/toy is one sensor of a store: name the store, .*/store$"):
        open_stores(tmp_path / "store" / "toy")


def test_a_lost_shard_is_an_error_and_not_an_image_of_zeros(toy, tmp_path, small_shards):
    pack(toy.reading(6), tmp_path / "store", progress=False)
    shutil.rmtree(tmp_path / "store" / "toy" / "images" / "c" / "1")
    store = open_stores(tmp_path / "store")["toy"]
    store.read(1)
    with pytest.raises(DataError, match=r"is damaged: toy/images/c/1/0/0/0 is missing"):
        store.read(2)


def test_a_damaged_shard_is_an_error_that_names_store_and_image(toy, tmp_path):
    pack(toy.reading(6), tmp_path / "store", progress=False)
    shard = tmp_path / "store" / "toy" / "images" / "c" / "0" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-30])
    with pytest.raises(DataError, match="toy: images of image 3 cannot be read"):
        open_stores(tmp_path / "store")["toy"].read(3)


def test_an_image_that_is_zero_everywhere_is_read_as_such(toy, tmp_path):
    images = toy.images(3)
    images[1] = 0
    store = packed(Reading.from_arrays(toy.sensor(), images, list("abc")), tmp_path / "store")
    assert not store.read(1)[0].any()


def test_a_window_outside_the_image_is_refused(toy, tmp_path):
    store = packed(toy.reading(3), tmp_path / "store")
    for window in ((0, 8, 0, 9), (3,), (-1,), (0, -1), (0, 0, 0, 17)):
        with pytest.raises(DataError, match="there are 3 of 16×16"):
            store.read(*window)


# -- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [True, False])
def test_a_store_is_read_over_http_without_listing(toy, tmp_path, serve, ranges):
    reading = toy.reading(9, side=96)
    pack(reading, tmp_path / "store", progress=False)
    store = open_stores(f"{serve(tmp_path, ranges).url}/store/")["toy"]
    if ranges:
        image, _ = store.read(4, 10, 20, 40, 50)
    else:
        with pytest.warns(UserWarning, match="ignores byte ranges"):
            image, _ = store.read(4, 10, 20, 40, 50)
    np.testing.assert_array_equal(image, reading.items[4].load().image[:, 10:50, 20:70])
    assert store.places([4]) == ["place 0"]
    assert len(store.indices("train")) + len(store.indices("val")) == 9


def test_a_crop_reads_little_more_than_itself(toy, tmp_path, serve):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60000, (2, 3, 512, 512), dtype=np.uint16)  # noise: nothing is gained by compression
    pack(Reading.from_arrays(toy.sensor(), images, list("ab")), tmp_path / "store", progress=False)
    server = serve(tmp_path)
    store = open_stores(f"{server.url}/store")["toy"]
    store.read(0, 0, 0, 8, 8)
    corners = rng.integers(0, 512 - 224, (10, 2))
    before = server.bytes_sent("images/c")
    for top, left in corners:
        store.read(1, int(top), int(left), 224, 224)
    read = (server.bytes_sent("images/c") - before) / len(corners)
    assert read < 2 * 3 * 224 * 224 * 2


def test_an_address_without_a_store_or_server_is_one_clear_line(tmp_path, serve):
    with pytest.raises(DataError, match="no store at http"):
        open_stores(f"{serve(tmp_path).url}/nothing")
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/x cannot be read as a store"):
        open_stores("http://127.0.0.1:9/x")


def test_a_lost_shard_is_noticed_over_http_too(toy, tmp_path, serve):
    pack(toy.reading(6), tmp_path / "store", progress=False)
    shutil.rmtree(tmp_path / "store" / "toy" / "images" / "c")
    store = open_stores(f"{serve(tmp_path).url}/store")["toy"]
    with pytest.raises(DataError, match="is damaged"):
        store.read(0)


# -- threads and processes --------------------------------------------------------------------------------------------


def _read_all(store: SensorStore) -> int:
    return int(sum(store.read(n)[0].astype(np.int64).sum() for n in range(store.count)))


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("remote", [False, True])
def test_workers_read_a_store_that_their_parent_has_read(toy, tmp_path, serve, start, remote):
    reading = toy.reading(8)
    pack(reading, tmp_path / "store", progress=False)
    store = open_stores(f"{serve(tmp_path).url}/store" if remote else tmp_path / "store")["toy"]
    total = _read_all(store)
    assert total == sum(int(i.load().image.astype(np.int64).sum()) for i in reading.items)
    with multiprocessing.get_context(start).Pool(2) as pool:
        assert pool.map_async(_read_all, [store] * 4).get(timeout=60) == [total] * 4


@pytest.mark.parametrize("remote", [False, True])
def test_a_forked_child_reads_the_store_object_of_its_parent(toy, tmp_path, serve, remote):
    pack(toy.reading(8), tmp_path / "store", progress=False)
    store = open_stores(f"{serve(tmp_path).url}/store" if remote else tmp_path / "store")["toy"]
    total = _read_all(store)  # the parent's connection and event loop are in use by now
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=lambda: sys.exit(_read_all(store) != total)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
        alive = child.is_alive()
        child.kill()
        assert not alive
        assert child.exitcode == 0


def test_threads_share_a_store(toy, tmp_path):
    store = packed(toy.reading(8), tmp_path / "store")
    total = _read_all(store)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(_read_all, [store] * 12)) == {total}


def test_a_store_survives_pickling(toy, tmp_path):
    store = packed(toy.reading(4), tmp_path / "store")
    store.read(0)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read(2)[0], store.read(2)[0])


# -- progress ---------------------------------------------------------------------------------------------------------


def test_progress_of_a_long_job_is_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = iter(range(0, 100, 6))
    monkeypatch.setattr("dofa.progress.time.monotonic", lambda: float(next(clock)))
    with Progress("packing toy", 4, 0, wanted=True) as progress:
        for _ in range(4):
            progress.advance(nbytes=10**6)
    said = capsys.readouterr().err
    assert [line.split(",")[0] for line in said.splitlines()] == ["packing toy: 2/4", "packing toy: 4/4"]
    assert "MB/s" in said
    assert "\x1b" not in said


def test_a_short_job_prints_no_progress_where_there_is_no_terminal(toy, tmp_path, capsys):
    pack(toy.reading(8), tmp_path / "store")
    assert capsys.readouterr().err == ""


KILLED = """
import sys, time
from dataclasses import replace
import numpy as np
from dofa.corpus import pack as packing
from dofa.corpus.items import Reading, Sample
from dofa.pixels import Scaling
from dofa.sensors import Band, Sensor
names = ["a", "b"]
sensor = Sensor("toy", (Band("a", 0.5), Band("b", 0.6)), 10, scaling=Scaling.uniform("reflectance", names, 0.01))
images = np.random.default_rng(0).integers(0, 9999, (300, 2, 48, 48), dtype=np.uint16)
valid = np.random.default_rng(1).random((300, 48, 48)) < 0.9
reading = Reading.from_arrays(sensor, images, [str(i // 3) for i in range(300)], valid=valid)
packing.SHARD_BYTES = 4 * 2 * 48 * 48 * 2
packing.pack(reading, sys.argv[1], progress=False, workers=2)
"""


@pytest.mark.slow
def test_a_pack_killed_at_any_moment_ends_as_the_same_store(toy, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(folder):
        return subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], env=environment)

    assert start(tmp_path / "whole").wait() == 0
    whole = toy.tree(tmp_path / "whole")
    rng = np.random.default_rng(3)
    target = tmp_path / "killed"
    journal = target / "toy" / "journal.jsonl"

    def length():
        return len(journal.read_bytes().splitlines()) if journal.exists() else 0

    lengths = []
    while len(lengths) < 12:
        before = length()
        process = start(target)
        while length() <= before and process.poll() is None:
            time.sleep(0.002)  # until it writes
        time.sleep(float(rng.uniform(0, 0.06)))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            lengths.append(length())
        else:
            assert toy.tree(target) == whole
            shutil.rmtree(target)
    assert start(target).wait() == 0
    assert toy.tree(target) == whole
    assert len({n for n in lengths if 0 < n < 75}) >= 3, f"the kills missed the writing: {lengths}"
