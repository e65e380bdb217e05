"""`dofa pack`: layouts, where the store is named, samples, and settings that do not belong."""

import glob
import inspect
import os
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dofa import sensors
from dofa.cli import main
from dofa.corpus.command import LAYOUTS, pack_command
from dofa.corpus.items import Item, Reading, Sample
from dofa.corpus.readers.folders import sample
from dofa.corpus.readers.satlas import read_satlas_s1
from dofa.corpus.store import open_stores
from dofa.errors import ConfigError


@pytest.fixture(scope="module")
def s1(layouts, tmp_path_factory):
    root = tmp_path_factory.mktemp("published") / "sentinel1"
    layouts.satlas_s1(root)
    return root


# -- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_a_reader_that_takes_what_the_command_gives(layout):
    known = LAYOUTS[layout]
    module, function = known.reader.split(":")
    parameters = inspect.signature(getattr(import_module(module), function)).parameters
    assert {"folder", "tile", "stride"} <= set(parameters)
    assert parameters["tile"].kind is parameters["stride"].kind is inspect.Parameter.KEYWORD_ONLY
    if known.sensor is None:
        assert "sensor" in parameters
    else:
        assert sensors.get(known.sensor).scaling is not None


@pytest.mark.parametrize(
    ("layout", "sensor", "images"),
    [
        ("satlas-s1", "sentinel-1-satlas", 8),
        ("satlas-s2", "sentinel-2-dofa9", 9),
        ("satlas-naip", "naip-rgb", 8),
        ("five-billion-pixels", "gaofen-2", 18),
    ],
)
def test_a_published_folder_is_packed_by_name(layout, sensor, images, layouts, tmp_path, capsys):
    layouts.WRITERS[layout](tmp_path / "in")
    assert main(["pack", layout, str(tmp_path / "in"), str(tmp_path / "store")]) == 0
    assert f"{sensor}, {images} images" in capsys.readouterr().out
    assert len(open_stores(tmp_path / "store")[sensor]) == images


@pytest.mark.parametrize("layout", ["satlas-s1", "satlas-s2", "five-billion-pixels"])
@pytest.mark.parametrize("kind", ["another time", "another size"])
def test_a_file_that_changed_under_the_same_name_is_not_passed_over(layout, kind, layouts, tmp_path, capsys):
    """The store kept the old pixels, and said that all was packed."""
    layouts.WRITERS[layout](tmp_path / "in")
    command = ["pack", layout, str(tmp_path / "in"), str(tmp_path / "store")]
    assert main(command) == 0
    assert main(command) == 0, "nothing has changed"
    (store,) = open_stores(tmp_path / "store").values()
    file = Path(sorted(glob.glob(store.sources([0])[0].split("@")[0]))[-1])
    before = file.stat()
    if kind == "another size":
        file.write_bytes(file.read_bytes() + b" ")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    capsys.readouterr()
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "files that have changed since" in said
    assert str(tmp_path / "store") in said


def test_an_interrupted_pack_of_files_that_changed_begins_anew_on_the_users_word(tmp_path, toy, capsys, monkeypatch):
    for n, image in enumerate(toy.images(6)):
        np.savez(tmp_path / f"{n}.npz", x=image)
    command = [
        "pack",
        "images",
        str(tmp_path / "*.npz"),
        str(tmp_path / "store"),
        "--sensor",
        "naip-rgb",
        "--place",
        "path",
    ]
    with monkeypatch.context() as patch:
        patch.setattr("dofa.corpus.pack._finish", lambda *_: (_ for _ in ()).throw(RuntimeError))
        with pytest.raises(RuntimeError):
            main(command)
    np.savez(tmp_path / "3.npz", x=toy.images(6, seed=1)[3])
    assert main(command) == 2
    assert "--no-resume" in capsys.readouterr().err
    assert main([*command, "--no-resume"]) == 0
    store = open_stores(tmp_path / "store")["naip-rgb"]
    np.testing.assert_array_equal(store.read(3)[0], toy.images(6, seed=1)[3])


def test_the_store_may_be_named_last_or_by_its_option(s1, tmp_path, toy):
    assert main(["pack", "satlas-s1", str(s1), str(tmp_path / "last")]) == 0
    assert main(["pack", "satlas-s1", str(s1), "--store", str(tmp_path / "option")]) == 0
    assert toy.tree(tmp_path / "last") == toy.tree(tmp_path / "option")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["satlas-s3", "x", "s"], "unknown layout 'satlas-s3': did you mean satlas-s"),
        (["satlas-s1", "x"], "say where to write: dofa pack satlas-s1 x STORE"),
        (["images", "a.tif", __file__, "--sensor", "naip-rgb"], "test_command.py, named last, is where to write"),
        (["images", "a", "*.tif", "--sensor", "naip-rgb"], "*.tif, named last, is where to write"),
        (["satlas-s1", "x", "y", "s"], "satlas-s1 takes one folder, not 2: x, y"),
        (["satlas-s1", "x", "s", "--bands", "VV,VH"], "bands belongs to the layout images; satlas-s1 brings its own"),
        (["satlas-s1", "x", "s", "--place", "path"], "place belongs to the layout images"),
        (["satlas-s1", "x", "s", "--labels"], "labels belongs to the layout images"),
        (["satlas-s1", "x", "s", "--nodata", "0"], "nodata belongs to the layout images"),
        (["satlas-s1", "x", "s", "--dn-offset", "0"], "--dn-offset belongs to the layout images"),
        (
            ["satlas-s1", "x", "s", "--sensor", "naip-rgb"],
            "satlas-s1 holds images of sentinel-1-satlas, none of naip-rgb",
        ),
        (["satlas-s1", "{s1}", "s", "--sample", "0"], "sample is 0"),
        (["satlas-s1", "{s1}", "s", "--tile", "0"], "tile 0"),
        (["satlas-s2", "{s1}", "s"], "it looks as if you want: dofa pack satlas-s1 {s1}"),
    ],
)
def test_a_command_that_cannot_be_run_says_why_in_one_line(argv, words, s1, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["pack", *(a.format(s1=s1) for a in argv)]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dofa: ")]
    assert len(said) == 1
    assert words.format(s1=s1) in said[0]
    assert not (tmp_path / "s").exists()


# -- samples ----------------------------------------------------------------------------------------------------------


def corpus(per_place: dict[str, int], root: str = "/data") -> Reading:
    """Images that are never loaded: so many of each place."""
    sensor = sensors.get("naip-rgb")

    def load() -> Sample:
        raise AssertionError("drawing a sample loads nothing")

    items = [Item(f"{root}/{p}/{n}.png", p, load) for p, count in per_place.items() for n in range(count)]
    return Reading(sensor, items, (8, 8), "uint8")


places = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 9), min_size=1, max_size=12)


@given(per_place=places, count=st.integers(1, 120), seed=st.integers(0, 3))
def test_a_sample_is_even_over_places(per_place, count, seed):
    drawn = sample(corpus(per_place), count, seed)
    assert len(drawn.items) == min(count, sum(per_place.values()))
    taken = Counter(i.place for i in drawn.items)
    most = max(taken.values())
    # Nobody has two more than another that still had some to give.
    assert all(taken[p] >= min(n, most - 1) for p, n in per_place.items())


@given(per_place=places, count=st.integers(1, 60), seed=st.integers(0, 3))
def test_a_sample_depends_on_nothing_but_seed_and_content_and_grows_by_addition(per_place, count, seed):
    here = corpus(per_place)
    drawn = [i.source for i in sample(here, count, seed).items]
    assert drawn == [i.source for i in here.items if i.source in set(drawn)]  # in the corpus' order
    elsewhere = sample(corpus(per_place, "/other/deeper"), count, seed)
    assert [i.source.removeprefix("/other/deeper") for i in elsewhere.items] == [d.removeprefix("/data") for d in drawn]
    backwards = Reading(here.sensor, here.items[::-1], here.tile, here.dtype)
    assert {i.source for i in sample(backwards, count, seed).items} == set(drawn)
    assert set(drawn) <= {i.source for i in sample(here, count + 5, seed).items}


def test_another_seed_draws_others():
    here = corpus({f"p{n}": 5 for n in range(40)})
    drawn = [frozenset(i.source for i in sample(here, 30, seed).items) for seed in range(4)]
    assert len(set(drawn)) == 4


def test_a_sample_of_a_corpus_is_packed_alike_wherever_it_lies(layouts, tmp_path, capsys):
    names = []
    for folder in ("one", "two/deeper"):
        layouts.satlas_s1(tmp_path / folder / "sentinel1")
        store = tmp_path / folder / "store"
        pack_command("satlas-s1", [str(tmp_path / folder / "sentinel1"), str(store)], sample=5, seed=3)
        assert "5 of 8 images are taken, of 4 of 4 places, drawn with seed 3" in capsys.readouterr().out
        packed = open_stores(store)["sentinel-1-satlas"]
        assert len(packed) == 5
        names.append([s.removeprefix(str(tmp_path / folder)) for s in packed.sources(range(5))])
        assert len(set(packed.places(range(5)))) == 4
        train, val = (set(packed.places(packed.indices(split))) for split in ("train", "val"))
        assert not train & val
    assert names[0] == names[1]


def test_a_sample_larger_than_the_corpus_takes_all_and_says_so(s1):
    reading = read_satlas_s1(s1)
    drawn = sample(reading, 1000)
    assert [i.source for i in drawn.items] == [i.source for i in reading.items]
    assert "1000 images were asked for, and the corpus has 8: all are taken" in drawn.notes


def test_a_sample_of_arrays_in_memory_is_drawn_too(toy):
    reading = toy.reading(12, places=4)
    drawn = sample(reading, 4)
    assert sorted(i.place for i in drawn.items) == [f"place {n}" for n in range(4)]
    with pytest.raises(ConfigError, match="sample is -1"):
        sample(reading, -1)
    assert np.asarray(drawn.items[0].load().image).shape == (3, 16, 16)
    assert Path(drawn.items[0].source).name.isdigit()
