"""Many scenes in one command: one that fails stops no other, and a folder is one scene or many, told in a line."""

import json
import shutil

import numpy as np
import pytest
import rasterio

from dofa.cli import main
from dofa.errors import ConfigError
from dofa.inference.many import merge_warnings, output_paths
from dofa.outputs.work_file import open_features
from dofa.raster.factors import check_dn_offsets, dn_offset_of
from dofa.scene.folders import scenes_of

from ..scene.conftest import model_and_head, write_tiff

BANDS = ["B02", "B03", "B04", "B08"]


def scene(path, seed=0, height=300, width=341, bands=BANDS, **profile):
    """A compressed GeoTIFF of blobs, too large to be looked at whole when it is opened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = rng.random((len(bands), -(-height // 8), -(-width // 8))).repeat(8, 1).repeat(8, 2)[:, :height, :width]
    image = (500 + 4000 * coarse + 100 * rng.random((len(bands), height, width))).astype(np.uint16)
    tiling = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    return write_tiff(path, image, names=bands, nodata=0, **{**tiling, **profile})


def damage(path, row=4, col=0):
    """Zero a compressed block that no look at samples of the scene meets."""
    with rasterio.open(path) as file:
        at = int(file.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1))
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five scenes, two of them of no use, a model, and a head on it."""
    folder = tmp_path_factory.mktemp("many")
    for number, name in enumerate("abcd"):
        scene(folder / "scenes" / f"{name}.tif", number)
    damage(folder / "scenes" / "b.tif")
    (folder / "scenes" / "e.tif").write_text("no raster")
    model_and_head(folder, folder / "scenes" / "a.tif")
    return folder


def run(verb, folder, *words):
    head = ["--head", str(folder / "head")] if verb == "predict" else ["--stats", "scene"]
    model = ["--weights", str(folder / "model"), "--batch", "4"]
    return main([verb, *map(str, words), *model, *head, "--sensor", "sentinel-2-l2a", "--dn-offset", "0"])


@pytest.mark.parametrize("verb", ["embed", "predict"])
def test_scenes_that_fail_stop_no_other_and_the_same_command_does_what_is_missing(verb, folder, tmp_path, capsys):
    scenes = shutil.copytree(folder / "scenes", tmp_path / "scenes")
    words = [scenes / f"{name}.tif" for name in "abcde"] + ["--out", tmp_path / "out"]
    assert run(verb, folder, *words) == 2
    told = capsys.readouterr()
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tif")) == ["a.tif", "c.tif", "d.tif"]
    failed = [line for line in told.err.splitlines() if "b.tif" in line or "e.tif" in line]
    assert len(failed) == 2
    assert all(line.startswith("dofa: ") for line in failed)
    assert "2 of 5 scenes failed" in told.err
    assert [line.split("/")[-1] for line in told.out.splitlines() if line.startswith("/")] == [
        "a.tif",
        "c.tif",
        "d.tif",
    ]
    for name in "acd":  # what others fail does not change a scene
        alone = tmp_path / f"{name}-alone.tif"
        assert run(verb, folder, scenes / f"{name}.tif", "--out", alone) == 0
        one, many = open_features(alone).read(), open_features(tmp_path / "out" / f"{name}.tif").read()
        np.testing.assert_allclose(one, many, rtol=0, atol=2e-3)
    scene(scenes / "b.tif", 1)
    scene(scenes / "e.tif", 4)
    written = {name: (tmp_path / "out" / f"{name}.tif").stat().st_mtime_ns for name in "acd"}
    capsys.readouterr()
    assert run(verb, folder, *words) == 0
    assert capsys.readouterr().out.count("(was there)") == 3
    assert written == {name: (tmp_path / "out" / f"{name}.tif").stat().st_mtime_ns for name in "acd"}
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tif")) == [f"{name}.tif" for name in "abcde"]


@pytest.mark.parametrize("words", [["--stats", "dataset"], ["--pca", "2"]])
def test_what_is_measured_of_all_scenes_leaves_out_the_one_that_fails(words, folder, tmp_path, capsys):
    small = [scene(tmp_path / f"{name}.tif", n, 64, 64) for n, name in enumerate("ab")]
    bad = scene(tmp_path / "bad.tif", 7, 640, 640)
    for row in range(10):
        for col in range(10):
            if (row, col) != (5, 5):
                damage(bad, row, col)
    assert run("embed", folder, *small, bad, "--out", tmp_path / "out", *words) == 2
    told = capsys.readouterr().err
    assert "1 of 3 scenes failed" in told
    assert "bad.tif" in told
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tif")) == ["a.tif", "b.tif"]


@pytest.mark.slow
def test_scenes_that_fail_on_a_cluster_stop_no_other(folder, tmp_path, capsys):
    pytest.importorskip("distributed")
    words = [folder / "scenes" / f"{name}.tif" for name in "abcd"]
    assert run("embed", folder, *words, "--out", tmp_path / "out", "--cluster", "local:1") == 2
    assert "b.tif" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tif")) == ["a.tif", "c.tif", "d.tif"]


def test_info_tells_what_it_can_of_the_others(folder, capsys):
    files = [str(folder / "scenes" / f"{name}.tif") for name in "ae"]
    assert main(["info", *files, "--sensor", "sentinel-2-l2a", "--json"]) == 2
    told = capsys.readouterr()
    assert [one["scene"] for one in json.loads(told.out)] == ["a.tif"]
    assert "e.tif" in told.err


@pytest.mark.parametrize(
    "wrong", [["--sensor", "sentinel-2-l2b"], ["--mask", "nowhere"], ["--bands", "B02", "B03"], ["--dn-offset", "much"]]
)
def test_a_mistake_about_all_scenes_is_told_once(wrong, folder, tmp_path, capsys):
    files = [str(scene(tmp_path / f"{name}.tif", n, 64, 64)) for n, name in enumerate("ab")]
    out = ["--out", str(tmp_path / "out"), "--weights", str(folder / "model")]
    assert main(["embed", *files, *out, "--sensor", "sentinel-2-l2a", *wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["embed", "predict"])
@pytest.mark.parametrize("wrong", ["path", "mask", "exists"])
def test_mistakes_about_the_scene_are_told_before_weights_are_loaded(
    verb, wrong, folder, tmp_path, monkeypatch, capsys
):
    def never(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("dofa.inference.predict.load", never)
    monkeypatch.setattr("dofa.inference.features.load", never)
    file = scene(tmp_path / "a.tif", 0, 64, 64)
    if wrong == "exists":
        (tmp_path / "out.tif").touch()
    words = {"path": [tmp_path / "b.tif"], "mask": [file, "--mask", "SLC"], "exists": [file]}[wrong]
    assert run(verb, folder, *words, "--out", tmp_path / "out.tif") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_equal_warnings_stand_once_with_the_number_of_scenes(folder, tmp_path, capsys):
    files = [tmp_path / f"{name}.tif" for name in "abc"]
    rng = np.random.default_rng(0)
    for file in files:  # numbers above 1000 in every band, and nothing that says whether an offset is in them
        write_tiff(file, rng.integers(1000, 4000, (4, 64, 64), np.uint16), names=BANDS)
    words = ["--weights", str(folder / "model"), "--stats", "scene", "--out", str(tmp_path / "out")]
    assert main(["embed", *map(str, files), *words, "--sensor", "sentinel-2-l2a"]) == 0
    doubts = [line for line in capsys.readouterr().out.splitlines() if "offset" in line]
    assert len(doubts) == 1
    assert "3 scenes, first: a.tif" in doubts[0]
    main(["info", *map(str, files), "--sensor", "sentinel-2-l2a"])
    assert capsys.readouterr().out.count("offset-unknown") == 1


def test_warnings_are_folded_where_they_say_the_same():
    alike = ["zero: a.tif: a corner is 0", "zero: b.tif: a corner is 0"]
    numbers = ["gsd: a.tif: 3 m", "gsd: b.tif: 4 m"]
    other = ["zero: c.tif: no corner is 0"]
    one, two, three = merge_warnings([*alike, *numbers, *other])
    assert one == "zero: a corner is 0 (2 scenes, first: a.tif)"
    assert two.startswith("gsd: 3 m (2 scenes, first: a.tif; ")
    assert three == other[0]


def test_scenes_of_one_name_are_told_apart_by_their_folders(folder, tmp_path, capsys):
    files = [scene(tmp_path / name / "stack.tif", n, 64, 64) for n, name in enumerate("ab")]
    assert run("embed", folder, *files, tmp_path / "a", "--out", tmp_path / "out") == 0  # a/ is one scene of one file
    names = sorted(p.name for p in (tmp_path / "out").glob("*.tif"))
    assert names == ["a.tif", "a_stack.tif", "b_stack.tif"]


def test_names_are_told_apart_by_as_many_folders_as_it_takes(tmp_path):
    paths = output_paths(
        ["s.tif"] * 3 + ["t.tif"], tmp_path, None, ["/x/1/r/s.tif", "/x/2/r/s.tif", "/y/1/r/s.tif", "/y/t.tif"]
    )
    assert [p.stem for p in paths] == ["x_1_r_s", "x_2_r_s", "y_1_r_s", "t"]
    both = output_paths(["s.tif", "S.jp2"], tmp_path, None, ["/x/s.tif", "/x/S.jp2"])
    assert len({p.name.lower() for p in both}) == 2


def test_a_scene_named_twice_is_refused(folder, tmp_path, capsys):
    file = scene(tmp_path / "a.tif", 0, 64, 64)
    assert run("embed", folder, file, file, "--out", tmp_path / "out") == 2
    assert "named twice" in capsys.readouterr().err


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_whole_scenes_is_many_scenes(folder, tmp_path, capsys):
    assert run("embed", folder, folder / "scenes", "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert f"{folder / 'scenes'}: 5 scenes" in told
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tif")) == ["a.tif", "c.tif", "d.tif"]


def test_a_folder_of_band_files_is_one_scene(tmp_path, capsys):
    for n, band in enumerate(BANDS):
        scene(tmp_path / "bands" / f"T33_{band}.tif", n, 64, 64, bands=[band])
    found = scenes_of(str(tmp_path / "bands"))
    assert found.scenes == (str(tmp_path / "bands"),)
    assert found.note == f"{tmp_path / 'bands'}: one scene of 4 band files"
    assert main(["info", str(tmp_path / "bands"), "--sensor", "sentinel-2-l2a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"][0]["bands"][3]["name"] == "B08"


def kinds(path):
    """Folders by what they are: how many scenes, None where nobody can tell."""
    two = [["B02", "B03"], ["B11", "B12"]]
    yield 1, [("10m.tif", two[0]), ("20m.tif", two[1])], []
    yield 2, [("a.tif", BANDS), ("b.tif", BANDS[:3])], []
    yield 2, [("a.tif", ["", "", ""]), ("b.tif", ["", "", ""])], []
    yield 2, [("a.tif", BANDS), ("b.tif", BANDS), ("a_udm2.tif", ["clear", "snow"]), ("b_mask.tif", [""])], []
    yield None, [("a.tif", BANDS), ("b.tif", BANDS), ("dem.tif", [""])], []
    yield 1, [("a.tif", BANDS), ("dem.tif", [""])], []
    yield 1, [("SPECTRAL_IMAGE.TIF", ["1", "2", "3"]), ("QL_PIXELMASK.TIF", ["1", "2", "3"])], ["ENMAP01-METADATA.XML"]
    yield 1, [("LC08_SR_B4.TIF", [""]), ("LC08_SR_B5.TIF", [""])], ["LC08_MTL.txt", "LC08_MTL.json"]


@pytest.mark.parametrize("number", range(8))
def test_what_a_folder_holds(number, tmp_path):
    count, files, others = list(kinds(tmp_path))[number]
    for name, bands in files:
        scene(tmp_path / "s" / name, len(name), 32, 32, bands=bands)
    for name in others:
        (tmp_path / "s" / name).touch()
    if count is None:
        with pytest.raises(ConfigError, match="--stack"):
            scenes_of(str(tmp_path / "s"))
        return
    assert len(scenes_of(str(tmp_path / "s")).scenes) == count


def test_a_folder_of_folders_is_a_scene_each(tmp_path):
    for name in ("p", "q"):
        for n, band in enumerate(BANDS):
            scene(tmp_path / name / f"{band}.tif", n, 32, 32, bands=[band])
    assert len(scenes_of(str(tmp_path)).scenes) == 2


def test_single_band_files_of_a_single_band_sensor_are_scenes(tmp_path):
    for name in "pq":
        scene(tmp_path / "pan" / f"{name}.tif", 0, 32, 32, bands=[""])
    assert len(scenes_of(str(tmp_path / "pan"), bands=1).scenes) == 2
    assert len(scenes_of(str(tmp_path / "pan")).scenes) == 1


# -- offsets by file --------------------------------------------------------------------------------------------------


def test_an_offset_for_all_or_by_file():
    assert dn_offset_of(None, ["a.tif"]) is None
    assert dn_offset_of(-1000.0, ["a.tif"]) == -1000
    assert dn_offset_of("-1000", ["a.tif"]) == -1000
    by_file = "S2B*=-1000, /data/old/*=0"
    assert dn_offset_of(by_file, ["/data/new/S2B_1.tif"]) == -1000
    assert dn_offset_of(by_file, ["/data/old/S2A_1.tif"]) == 0
    assert dn_offset_of(by_file, ["/data/new/S2A_1.tif"]) is None
    with pytest.raises(ConfigError):
        dn_offset_of("S2B*=none", ["a.tif"])
    with pytest.raises(ConfigError, match="S2C"):
        check_dn_offsets("S2C*=-1000", [["S2B_1.tif"]])


@pytest.mark.parametrize("verb", ["info", "embed"])
def test_offsets_by_file_reach_the_scenes(verb, folder, tmp_path, capsys):
    files = [str(scene(tmp_path / f"{name}.tif", 0, 64, 64)) for name in ("old_1", "new_1", "new_2")]
    words = ["--sensor", "sentinel-2-l2a", "--dn-offset", "new*=-1000,*=0"]
    if verb == "info":
        assert main(["info", *files, *words, "--json"]) == 0
        found = [one["parts"][0]["bands"][0]["median"] for one in json.loads(capsys.readouterr().out)]
    else:
        words += ["--weights", str(folder / "model"), "--stats", "scene", "--out", str(tmp_path / "out")]
        assert main(["embed", *files, *words]) == 0
        made = [open_features(tmp_path / "out" / f"{name}.tif") for name in ("old_1", "new_1", "new_2")]
        found = [one.meta["scaling"][0]["mean"][0] for one in made]
    assert found[0] - found[1] == pytest.approx(0.1, abs=1e-4)
    assert found[1] == pytest.approx(found[2])
