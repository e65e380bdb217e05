"""Judged images to look at: the right ones, the very answers that were scored, whole scenes, small safe files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dofa.bench.bench import bench
from dofa.evaluation.judged_images import GREY, NONE, SHOWN, SIDE, Panels, choose_images, coloured, make_panels
from dofa.evaluation.metrics import confusion
from dofa.evaluation.probe import probe
from dofa.finetuning.finetune import PANELS, finetune
from dofa.model import checkpoint
from dofa.model.config import EncoderConfig
from dofa.model.encoder import DOFA

from ..datasets.fixtures_published import write_ombria
from ..finetuning.test_finetune import masked
from .test_pixel_probe import QUICK, scenes


@pytest.fixture
def small() -> DOFA:
    torch.manual_seed(1)
    return DOFA(EncoderConfig(width=24, depth=2, heads=3, patch=4, image_size=24)).eval()


def counted(panels: Panels, name: str) -> np.ndarray:
    labels = np.where(panels.labels == NONE, -1, panels.labels.astype(np.int64))
    return confusion(panels.answers[name].astype(np.int64), labels, len(panels.classes), -1)


def test_what_is_shown_is_what_a_probe_was_scored_for(make_images, small) -> None:
    result = probe(small, scenes(make_images, count=SHOWN), folds=5, stride=4, **QUICK)
    assert result.panels is not None
    assert result.panels.labels.shape == (SHOWN, 24, 24)
    assert {row.features for row in result.rows} == set(result.panels.answers)
    for row in result.rows:
        np.testing.assert_array_equal(counted(result.panels, row.features), row.confusion)


def test_blocks_of_one_image_are_shown_as_that_image(make_images, small) -> None:
    big = scenes(make_images, count=1, size=60)
    said = replace(big, corpus_scaling=big.scaling.with_stats([120] * 3, [40] * 3, "corpus"))
    result = probe(small, said, stride=4, gap=4, **(QUICK | {"stats": None}))
    assert result.panels is not None
    assert big.read_mask is not None
    mask = big.read_mask(0)
    np.testing.assert_array_equal(result.panels.labels[0], np.where(mask == 255, NONE, mask))
    np.testing.assert_array_equal(counted(result.panels, "band statistics"), result.row("band statistics").confusion)
    # The picture lies as the image does: a brighter pixel there is not a darker one here.
    raw = big.read(0)[0].astype(float)
    assert np.corrcoef(raw.ravel(), result.panels.pictures[0].transpose(2, 0, 1).ravel())[0, 1] > 0.95


def test_what_is_shown_is_what_fine_tuning_was_scored_for(encoder, tmp_path) -> None:
    checkpoint.save(encoder, tmp_path / "mine")
    found = finetune(
        str(tmp_path / "mine"), masked(), out=tmp_path / "run", epochs=1, batch=6, stats="dataset", device="cpu"
    )
    panels = Panels.load(tmp_path / "run" / PANELS)
    assert panels is not None
    (name,) = panels.answers
    np.testing.assert_array_equal(counted(panels, name), found.test["confusion"])


def test_images_are_chosen_by_the_data_alone_and_those_of_more_classes_first(make_images) -> None:
    data = scenes(make_images, count=12)
    plain = {1, 4, 5, 7, 8, 10, 11}
    read = data.read_mask
    assert read is not None
    dull = replace(data, read_mask=lambda row: np.zeros_like(read(row)) if row in plain else read(row))
    assert choose_images(dull, range(12)) == [0, 2, 3, 6, 9]
    assert choose_images(dull, [11, 10, 8]) == [8, 10, 11]


def test_large_images_are_thinned_and_masks_keep_their_classes(make_images) -> None:
    data = scenes(make_images, count=2, size=600)
    mask = np.arange(600)[:, None] // 300 + np.zeros((600, 600), np.int64)
    panels = make_panels(data, {0: mask}, {"answers": {0: 1 - mask}})
    assert panels is not None
    assert max(panels.labels.shape) <= SIDE
    assert panels.pictures.shape == (*panels.labels.shape, 3)
    assert set(np.unique(panels.labels)) == {0, 1}
    np.testing.assert_array_equal(panels.answers["answers"], 1 - panels.labels)


def test_files_come_back_whole_and_others_are_no_panels(make_images, tmp_path) -> None:
    data = scenes(make_images, count=2)
    mask = np.zeros((24, 24), np.int64)
    panels = make_panels(data, {0: mask - 1, 1: mask}, {"block 1": {1: mask}})
    assert panels is not None
    panels.save(tmp_path / "a.npz")
    again = Panels.load(tmp_path / "a.npz")
    assert again is not None
    assert (again.names, again.classes) == (("image 0", "image 1"), ("smooth", "striped"))
    np.testing.assert_array_equal(again.labels, panels.labels)
    assert (again.labels[0] == NONE).all()
    assert (again.answers["block 1"][0] == NONE).all()
    np.testing.assert_array_equal(again.pictures, panels.pictures)
    whole = (tmp_path / "a.npz").read_bytes()
    for number, damaged in enumerate([b"", b"no zip", whole[: len(whole) // 2]]):
        (tmp_path / f"{number}.npz").write_bytes(damaged)
        assert Panels.load(tmp_path / f"{number}.npz") is None
    np.savez(tmp_path / "pickle.npz", names=np.array([{}], object))
    assert Panels.load(tmp_path / "pickle.npz") is None


def test_a_file_with_any_byte_damaged_is_no_panels_or_the_same_ones(tmp_path) -> None:
    """Bytes flipped inside once raised zlib's, struct's and zipfile's own errors out of a finished bench."""
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 2, (2, 1, 6, 6), np.uint8)
    colours, pictures = np.eye(2, 3, dtype=np.uint8), rng.integers(0, 255, (1, 6, 6, 3), np.uint8)
    panels = Panels(("a",), ("no", "yes"), colours, pictures, maps[0], {"block 1": maps[1]})
    file = tmp_path / "a.npz"
    panels.save(file)
    whole = file.read_bytes()
    lost = 0
    for at in range(len(whole)):
        for change in (0x01, 0x80, 0xFF):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])
            found = Panels.load(file)
            lost += found is None
            if found is not None:  # dates and the like
                np.testing.assert_array_equal(found.labels, panels.labels)
                np.testing.assert_array_equal(found.pictures, panels.pictures)
                np.testing.assert_array_equal(found.answers["block 1"], panels.answers["block 1"])
    assert lost > len(whole)


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": np.zeros((1, 6, 5), np.uint8)},
        {"labels": np.zeros((1, 6, 6), np.int64)},
        {"labels": np.full((1, 6, 6), 2, np.uint8)},
        {"answers": {"block 1": np.full((1, 6, 6), 7, np.uint8)}},
        {"pictures": np.zeros((1, 6, 6, 4), np.uint8)},
        {"colours": np.zeros((3, 3), np.uint8)},
        {"names": ("a", "b")},
    ],
    ids=lambda wrong: ", ".join(wrong),
)
def test_whole_files_that_do_not_fit_together_are_no_panels(tmp_path, wrong) -> None:
    zero = np.zeros((1, 6, 6), np.uint8)
    right = Panels(
        ("a",), ("no", "yes"), np.zeros((2, 3), np.uint8), np.zeros((1, 6, 6, 3), np.uint8), zero, {"block 1": zero}
    )
    right.save(tmp_path / "a.npz")
    assert Panels.load(tmp_path / "a.npz") is not None
    replace(right, **wrong).save(tmp_path / "a.npz")
    assert Panels.load(tmp_path / "a.npz") is None


def test_pixels_without_a_label_are_grey() -> None:
    drawn = coloured(np.array([[0, NONE]], np.uint8), np.array([[10, 20, 30]], np.uint8))
    assert drawn.tolist() == [[[10, 20, 30], [GREY] * 3]]


def test_a_bench_of_maps_shows_judged_images_and_does_without_lost_ones(tmp_path, small) -> None:
    write_ombria(tmp_path / "data" / "ombria")
    checkpoint.save(small, tmp_path / "mine")
    suite = {
        "models": {"{name}": {"weights": "{weights}"}, "band statistics": {"weights": "statistics"}},
        "data": {"Floods": {"data": "ombria:ombria#s2"}},
        "protocols": {
            "Pixels": {
                "call": "probe",
                "settings": {
                    "folds": 2,
                    "stats": "dataset",
                    "penalties": [0.1],
                    "pixels": 200,
                    "stride": 4,
                    "size": 32,
                },
            }
        },
    }
    (tmp_path / "s.yaml").write_text(json.dumps(suite))
    asked = {
        "suite": str(tmp_path / "s.yaml"),
        "data": str(tmp_path / "data"),
        "weights": [f"ours={tmp_path / 'mine'}"],
    }
    out = tmp_path / "out"
    assert bench(**asked, out=str(out)).counts["done"] == 2
    picture = out / "figures" / "pixels-floods-panels.png"
    assert picture.is_file()
    assert 'alt="pixels-floods-panels"' in (out / "table.html").read_text()
    before = picture.stat().st_size
    kept = sorted((out / "cells").glob("*.npz"))
    assert [file.with_suffix(".json").is_file() for file in kept] == [True, True]
    kept[0].unlink()  # as if by an older version: the page is drawn without that model
    bench(**asked, out=str(out))
    assert picture.stat().st_size < before
    assert "failed" not in (out / "table.md").read_text()
