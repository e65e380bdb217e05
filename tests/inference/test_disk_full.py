"""A disk that fills under a command: one line, what was there before stays, and the same command goes on."""

import os

import numpy as np
import pytest

from dofa.cli import main

from ..scene.conftest import model_and_head, small_disk, tree, write_tiff

OPENING = ["--sensor", "sentinel-2-l2a"]
SCENE = [*OPENING, "--dn-offset", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scene, a model, and a head on it."""
    folder = tmp_path_factory.mktemp("full")
    image = (500 + 4000 * np.random.default_rng(0).random((4, 200, 200))).astype(np.uint16)
    write_tiff(folder / "scene.tif", image, names=["B02", "B03", "B04", "B08"], nodata=0)
    model_and_head(folder, folder / "scene.tif")
    return folder


@pytest.mark.parametrize(
    ("verb", "name", "words", "kilobytes"),
    [
        ("embed", "x.tif", [*SCENE, "--stats", "scene", "--stride", "4"], 600),
        ("embed", "x.zarr", [*SCENE, "--stats", "scene", "--stride", "4"], 300),
        ("embed", "x.parquet", [*SCENE, "--stats", "scene", "--stride", "4"], 300),
        ("predict", "x.tif", ["--dn-offset", "0", "--head", "head", "--stride", "2"], 100),
        ("similar", "x.tif", [*SCENE, "--stats", "scene", "--pixel", "50,50", "--stride", "2"], 200),
        ("similar", "x.png", [*SCENE, "--stats", "scene", "--pixel", "50,50"], 20),
        ("preview", "x.png", [*SCENE, "--stats", "scene"], 20),
        pytest.param("export", "x.pt2", OPENING, 100, marks=pytest.mark.slow),
        pytest.param("export", "x.onnx", OPENING, 100, marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_one_line_and_nothing_is_lost(folder, tmp_path, capsys, verb, name, words, kilobytes):
    words = [str(folder / "head") if w == "head" else w for w in words]
    sources = [] if verb == "export" else [str(folder / "scene.tif")]
    with small_disk(tmp_path / "disk", 50_000) as resize:
        out = tmp_path / "disk" / name
        told = [verb, *sources, "--weights", str(folder / "model"), *words, "--out", str(out)]
        assert main(told) == 0, capsys.readouterr().err
        before = tree(out)
        beside = sorted(os.listdir(out.parent))
        used = sum(map(len, tree(out.parent).values())) // 1000
        resize(used + kilobytes)
        capsys.readouterr()
        assert main([*told, "--overwrite"]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith(f"dofa: {out}: ")
        assert "make room" in said
        assert tree(out) == before
        assert [n for n in sorted(os.listdir(out.parent)) if not n.endswith(".part")] == beside
        resize(50_000)
        assert main([*told, "--overwrite"]) == 0
        if verb != "export":  # a program holds the names of what was traced
            assert tree(out) == before
        assert sorted(os.listdir(out.parent)) == beside
