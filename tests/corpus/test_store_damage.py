"""Damaged stores: whatever byte, file or value is another, it is noticed or harmless, never other data."""

import contextlib
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from dofa.corpus.items import Reading
from dofa.corpus.pack import pack
from dofa.corpus.store import open_stores
from dofa.errors import DataError, DofaError

FAULTS = Path(__file__).parents[3] / "shared" / "cases" / "faults"


@pytest.fixture(scope="module")
def made(toy, tmp_path_factory) -> Path:
    """Six labelled images in two shards, pixels of one of them invalid."""
    folder = tmp_path_factory.mktemp("made") / "store"
    valid = np.ones((6, 24, 24), bool)
    valid[1, :4] = False
    reading = Reading.from_arrays(
        toy.sensor(), toy.images(6, side=24), list("aabbcc"), sources=[f"file {n}.tif" for n in range(6)], valid=valid,
        labels=[0, 1, 2, 0, 1, 2], class_names=["water", "forest", "town"],
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dofa.corpus.pack.SHARD_BYTES", 3 * 3 * 24 * 24 * 2)
        pack(reading, folder, progress=False, chunk=8)
    return folder


def reading_of(toy) -> Reading:
    return Reading.from_arrays(toy.sensor(), toy.images(6, side=24), list("aabbcc"))


@pytest.mark.parametrize("lost", ["images/c/0/0/0/0", "images/c", "labels/c/0", "split/c/0", "source/zarr.json"])
def test_packing_again_into_a_store_that_has_lost_a_file_says_so(toy, tmp_path, lost):
    """It said that the store is complete."""
    pack(reading_of(toy), tmp_path / "store", progress=False)
    report = pack(reading_of(toy), tmp_path / "store", progress=False)
    assert sum(report.images.values()) == 6
    gone = tmp_path / "store" / "toy" / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(DataError, match=f"store.*{lost.partition('/')[0]}.*delete it and pack it again"):
        pack(reading_of(toy), tmp_path / "store", progress=False)


def everything(folder: Path | str) -> str:
    """All that a store says, to be compared; NaN equals NaN in it."""
    said = []
    for name, store in open_stores(folder).items():
        said += [name, store.sensor, store.scaling, store.class_names, store.digest, store.count, store.labels]
        said += [store.indices(split).tolist() for split in ("train", "val", "test")]
        said += [store.sources(range(store.count)), store.places(range(store.count))]
        for n in range(store.count):
            image, valid = store.read(n)
            said += [image.tobytes(), image.dtype, image.shape, None if valid is None else valid.tobytes()]
    return repr(said)


def answered(folder: Path, expected: str) -> bool:
    """Whether a damaged store is refused in one line that names it; anything but the right data fails the test."""
    found = refusal = None
    try:
        found = everything(folder)
    except DataError as error:
        refusal = str(error)
    assert found == expected if refusal is None else folder.name in refusal and "\n" not in refusal
    return refusal is not None


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_a_flipped_bit_anywhere_is_noticed_or_harmless(made, tmp_path):
    """Index, chunks, their headers and checksums, columns and all zarr.json; was other pixels in 150 of 150."""
    copy = shutil.copytree(made, tmp_path / "store")
    expected, rng = everything(made), np.random.default_rng(0)
    for file in files(copy):
        data = file.read_bytes()
        if not data:
            continue
        for _ in range(12):
            at, bit = int(rng.integers(len(data))), int(rng.integers(8))
            file.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            noticed = answered(copy, expected)
            assert noticed or not {"images", "valid"} & set(file.parts) or file.suffix, f"byte {at} of {file}"
        file.write_bytes(data)
    assert everything(copy) == expected


@pytest.mark.slow
def test_every_byte_of_a_shard_counts(made, tmp_path):
    copy = shutil.copytree(made, tmp_path / "store")
    expected, rng = everything(made), np.random.default_rng(1)
    for file in sorted((copy / "toy" / "images").rglob("c/0/0/0/0")) + sorted(
        (copy / "toy" / "valid").rglob("c/0/0/0")
    ):
        data = file.read_bytes()
        for at in range(0, len(data), 23):
            file.write_bytes(data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :])
            assert answered(copy, expected), f"byte {at} of {file}"
        file.write_bytes(data)


def test_a_file_that_is_gone_or_cut_off_is_named(made, tmp_path):
    """An absent chunk of labels, split, place, source or of a mask was read as zeros, or as valid all over."""
    copy = shutil.copytree(made, tmp_path / "store")
    expected = everything(made)
    for file in files(copy):
        data = file.read_bytes()
        for left in (None, 0, len(data) // 2, len(data) - 1):
            file.unlink() if left is None else file.write_bytes(data[:left])
            assert answered(copy, expected) or file.name == "refused.jsonl", f"{file} of {left} bytes"
            file.write_bytes(data)


@pytest.mark.parametrize("column", ["labels", "split", "place", "source"])
def test_an_absent_column_is_named(made, tmp_path, column):
    copy = shutil.copytree(made, tmp_path / "store")
    shutil.rmtree(copy / "toy" / column / "c")
    store = open_stores(copy)["toy"]
    with pytest.raises(DataError, match=rf"store.*(toy: {column} |{column} of toy )"):
        _ = {
            "labels": lambda: store.labels, "split": lambda: store.indices("train"),
            "place": lambda: store.places([0]), "source": lambda: store.sources([0]),
        }[column]()  # fmt: skip


def test_labels_that_are_all_zero_are_no_lost_ones(toy, tmp_path):
    pack(toy.reading(4, labels=[0, 0, 0, 0], class_names=["water"]), tmp_path, progress=False)
    assert open_stores(tmp_path)["toy"].labels.tolist() == [0, 0, 0, 0]


def test_a_store_of_version_1_opens_as_before(made, toy, tmp_path):
    copy = shutil.copytree(made, tmp_path / "store")
    toy.as_version_1(copy)
    assert everything(copy) == everything(made)


@pytest.mark.parametrize("column", ["split", "place", "source", "labels"])
def test_an_absent_column_of_version_1_is_named_too(made, toy, tmp_path, column):
    copy = shutil.copytree(made, tmp_path / "store")
    toy.as_version_1(copy)
    if column == "labels":  # of which some were none, as zeros they would all be the first class
        group = json.loads((copy / "toy" / "zarr.json").read_text())
        group["attributes"]["counts"]["labelled"] = 5
        (copy / "toy" / "zarr.json").write_text(json.dumps(group))
    shutil.rmtree(copy / "toy" / column / "c")
    with pytest.raises(DataError, match=rf"store.*(toy: {column} |{column} of toy )"):
        everything(copy)


@pytest.mark.parametrize("version", [2, 1])
def test_a_column_that_says_it_has_four_billion_texts_takes_no_memory(made, toy, tmp_path, version):
    copy = shutil.copytree(made, tmp_path / "store")
    if version == 1:
        toy.as_version_1(copy)
    path = copy / "toy" / "source" / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["codecs"] = metadata["codecs"][:1]  # what zstd made is then read as texts, its magic number as their count
    path.write_text(json.dumps(metadata))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="source"):
        open_stores(copy)["toy"].sources([0])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 200_000


# -- zarr.json --------------------------------------------------------------------------------------------------------

ODD = [None, True, -1, 0, 7, 2**63, 1e400, float("nan"), "", "x", "../../etc/passwd", [], {}, [[]], {"a": 1}, "e400"]


def mutated(value, rng):
    """A JSON value with one part of it replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = list(value)[rng.integers(len(value))]
        kind = rng.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.15:
            return {**value, f"{key}x": value[key]}
        return {**value, key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = int(rng.integers(len(value)))
        kind = rng.random()
        if kind < 0.1:
            return value[:at] + value[at + 1 :]
        if kind < 0.2:
            return value + value[at : at + 1]
        return [*value[:at], mutated(value[at], rng), *value[at + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.3:
        return value + 1
    return ODD[rng.integers(len(ODD))]


@pytest.mark.slow
@pytest.mark.parametrize("version", [2, 1])
def test_thousands_of_damaged_stores_are_answered_in_a_line_or_rightly(made, toy, tmp_path, version):
    """Bytes and JSON values of every file. Of version 1, whose metadata nothing seals, only that it is answered."""
    copy = shutil.copytree(made, tmp_path / "store")
    if version == 1:
        toy.as_version_1(copy)
    expected, rng = everything(copy), np.random.default_rng(version)
    every = files(copy)
    for _ in range(2000 if version == 2 else 1000):
        file = every[rng.integers(len(every))]
        data = file.read_bytes()
        if file.name == "zarr.json" and rng.random() < 0.8:
            file.write_text(json.dumps(mutated(json.loads(data), rng)))
        else:
            at, stop = sorted(rng.integers(0, len(data) + 1, 2).tolist())
            patch = rng.integers(0, 256, int(rng.integers(0, 40)), np.uint8).tobytes()
            file.write_bytes(data[:at] + patch + data[stop if rng.random() < 0.5 else at + len(patch) :])
        if version == 2:
            answered(copy, expected)
        else:
            with contextlib.suppress(DofaError):
                everything(copy)
        file.write_bytes(data)


@pytest.mark.skipif(not FAULTS.is_dir(), reason="the cases of faults are not here")
@pytest.mark.parametrize("case", sorted(FAULTS.glob("zarr-store-*")), ids=lambda p: p.name)
def test_damaged_metadata_of_the_fault_cases(case, tmp_path, toy):
    words = (case / "cmd.txt").read_text().split("mutated ")[1].split()[0]
    store = tmp_path / "store"
    pack(toy.reading(6), store, progress=False)
    shutil.copytree(store / "toy", store / "naip-rgbn")
    for path in store.rglob("zarr.json"):
        path.write_text(path.read_text().replace('"toy"', '"naip-rgbn"'))
    shutil.copy(case / "zarr.json", store / words)
    with pytest.raises(DataError, match="store"):
        everything(store)
