"""A score of images that a head learned from is never a bare one, wherever and however the images lie."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dofa.cli import main
from dofa.datasets.fingerprints import image_digests, known_ground, window_hashes
from dofa.datasets.labelled import LabelledImages
from dofa.errors import CheckpointError
from dofa.evaluation.overlap import TEST, TRAIN, UNUSED, VAL
from dofa.evaluation.probe import probe
from dofa.finetuning.evaluate import Evaluation, evaluate
from dofa.finetuning.finetune import finetune
from dofa.model.checkpoint import save
from dofa.model.encoder import DOFA
from dofa.model.head_split import SplitRecord
from dofa.model.heads import load_head

from ..finetuning.test_finetune import FAST, masked, tinted
from ..labelled_images import labelled

QUICK = {"stats": "dataset", "folds": 3, "neighbours": 3, "baselines": False, "penalties": (1.0,)}
TUNED = {"epochs": 2, "batch": 12, **FAST}


def rows_of(data: LabelledImages, rows: list[int], **more) -> LabelledImages:
    """Some images of a data set, in an order of their own, under other names and another fingerprint."""
    masks = data.read_mask
    return replace(
        data,
        name="copied",
        labels=data.labels[rows],
        sources=tuple(f"elsewhere/{i}" for i in range(len(rows))),
        read=lambda i: data.read(rows[i]),
        read_mask=None if masks is None else lambda i: masks(rows[i]),
        fingerprint=f"another {len(rows)}",
        find_places=lambda: None,
        find_splits=lambda: None,
        **more,
    )


def joined(one: LabelledImages, two: LabelledImages) -> LabelledImages:
    """Two data sets of the same classes as one."""
    count = len(one)
    return replace(
        one,
        labels=np.concatenate([one.labels, two.labels]),
        sources=one.sources + two.sources,
        read=lambda i: one.read(i) if i < count else two.read(i - count),
        find_splits=lambda: None,
    )


@pytest.fixture
def probed(encoder: DOFA, tmp_path: Path) -> tuple[DOFA, LabelledImages, Path]:
    """A head that was fitted on all images of a data set."""
    data = labelled(per_class=6)
    probe(encoder, data, out=tmp_path / "probe", **QUICK)
    return encoder, data, tmp_path / "probe" / "head"


def overlap(found: Evaluation) -> tuple[int, int | None, int]:
    told = found.to_dict()["overlap"]
    return told["judged"], told["learned_from"], told["left_out"]


def test_images_that_a_head_learned_from_get_no_bare_score(probed, capsys, tmp_path) -> None:
    model, data, head = probed
    found = evaluate(head, model, data, out=tmp_path / "judged", device="cpu")
    assert overlap(found) == (18, 18, 0)
    assert json.loads((tmp_path / "judged" / "evaluate.json").read_text())["overlap"]["learned_from"] == 18
    found.print()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "accuracy" in line)
    assert "LEARNED FROM" in line
    assert " %" in line


@pytest.mark.parametrize("kind", ["shuffled", "subset", "other labels", "other dtype", "classes renumbered"])
def test_the_same_images_are_recognised_however_they_lie(probed, kind) -> None:
    model, data, head = probed
    rows = list(np.random.default_rng(0).permutation(18))
    copy = rows_of(data, rows[:5] if kind == "subset" else rows)
    if kind == "other labels":
        copy = replace(copy, labels=(copy.labels + 1) % 3)
    if kind == "classes renumbered":
        copy = replace(copy, class_names=copy.class_names[::-1], labels=2 - copy.labels)
    if kind == "other dtype":
        inner = copy.read
        copy = replace(copy, read=lambda i: (inner(i)[0].astype(np.float64), np.ones((16, 16), bool)))
    found = evaluate(head, model, copy, device="cpu")
    assert overlap(found) == (len(copy), len(copy), 0)
    assert "LEARNED FROM" in found.line


@pytest.mark.parametrize("fresh", [1, 4])
def test_new_images_among_known_ones_are_scored_alone(probed, fresh) -> None:
    model, data, head = probed
    new = rows_of(labelled(per_class=6, seed=9), list(range(0, 18, 18 // fresh))[:fresh])
    mixed = evaluate(head, model, joined(data, new), device="cpu")
    alone = evaluate(head, model, new, device="cpu")
    assert overlap(mixed) == (fresh, 0, 18)
    assert overlap(alone) == (fresh, 0, 0)
    assert mixed.score.confusion.tolist() == alone.score.confusion.tolist()
    assert "LEARNED FROM" not in mixed.line
    assert "18" in mixed.line


def test_more_bands_than_the_head_reads_hide_nothing(encoder: DOFA, tmp_path: Path) -> None:
    data = labelled(per_class=6)
    few = data.select_bands(data.sensor.band_names[1:])
    probe(encoder, few, out=tmp_path / "probe", **QUICK)
    assert overlap(evaluate(tmp_path / "probe" / "head", encoder, data, device="cpu")) == (18, 18, 0)


def test_a_copied_folder_under_another_name_is_recognised(
    encoder: DOFA, tmp_path: Path, capsys, real_data: Path
) -> None:
    shutil.copy(real_data / "eurosat_ms" / "EuroSAT_MS_100.zip", tmp_path / "other_name.zip")
    weights = str(save(encoder, tmp_path / "model"))
    source = f"eurosat-ms:{real_data / 'eurosat_ms' / 'EuroSAT_MS_100.zip'}"
    quick = ["--stats", "dataset", "--penalties", "1", "--folds", "2", "--by", "image", "--random-seeds", "1"]
    assert main(["probe", "--weights", weights, "--data", source, *quick, "--out", str(tmp_path / "p")]) == 0
    assert "band statistics" in capsys.readouterr().out
    judged = ["--data", f"eurosat-ms:{tmp_path / 'other_name.zip'}", "--split", "all"]
    assert main(["evaluate", "--weights", weights, "--head", str(tmp_path / "p" / "head"), *judged]) == 0
    assert "LEARNED FROM" in capsys.readouterr().out
    assert main(["evaluate", "--head", str(tmp_path / "p" / "band-statistics"), *judged]) == 0
    assert "LEARNED FROM" in capsys.readouterr().out


# -- fine-tuning keeps its own split ----------------------------------------------------------------------------------


def tuned(tmp_path: Path, encoder: DOFA, data: LabelledImages, **more) -> Path:
    finetune(str(save(encoder, tmp_path / "w")), data, out=tmp_path / "run", **TUNED | more)
    return tmp_path / "run" / "head"


def test_a_fine_tuned_head_is_scored_on_the_test_part_that_was_drawn(encoder: DOFA, tmp_path: Path) -> None:
    data = replace(tinted(), find_splits=lambda: None)
    head = tuned(tmp_path, encoder, data, seed=4)
    told = json.loads((tmp_path / "run" / "finetune.json").read_text())
    with (tmp_path / "run" / "split.csv").open() as file:
        parts = [row["part"] for row in csv.DictReader(file)]
    assert {part: parts.count(part) for part in ("train", "val", "test")} == {
        part: told["data"][part] for part in ("train", "val", "test")
    }
    shuffled = list(np.random.default_rng(1).permutation(len(data)))
    for same in (data, rows_of(data, shuffled)):
        found = evaluate(head, encoder, same, device="cpu")
        assert found.score.confusion.tolist() == told["confusion"]
        assert overlap(found) == (told["images"], 0, len(data) - told["images"])
    again = evaluate(head, encoder, data, split="test", device="cpu")
    assert again.score.confusion.tolist() == told["confusion"]
    for part in ("train", "val"):
        known = evaluate(head, encoder, data, split=part, device="cpu")
        assert known.setting["overlap"]["learned_from"] == told["data"][part] == known.score.images
        assert "LEARNED FROM" in known.line
    everything = evaluate(head, encoder, data, split="all", device="cpu")
    assert overlap(everything) == (told["images"], 0, len(data) - told["images"])


def test_labels_that_were_left_out_are_not_the_test_part(encoder: DOFA, tmp_path: Path) -> None:
    data = replace(tinted(), find_splits=lambda: None)
    head = tuned(tmp_path, encoder, data, fraction=0.5)
    told = json.loads((tmp_path / "run" / "finetune.json").read_text())
    record = load_head(head).split
    counts = np.bincount(record.roles, minlength=4)
    assert counts.tolist() == [told["data"][part] for part in ("train", "val", "test")] + [len(data) - sum(counts[:3])]
    assert counts[UNUSED] > 10
    assert evaluate(head, encoder, data, device="cpu").score.images == told["images"]


def test_masks_are_known_by_their_images(encoder: DOFA, tmp_path: Path) -> None:
    data = masked()
    head = tuned(tmp_path, encoder, data, batch=6)
    copied = rows_of(data, list(range(20))[::-1])
    found = evaluate(head, encoder, copied, device="cpu")
    assert overlap(found) == (4, 0, 16)
    assert overlap(evaluate(head, encoder, rows_of(data, [3, 1, 13]), device="cpu")) == (3, 3, 0)


def test_blocks_of_a_single_image_are_known_and_the_image_itself(encoder: DOFA, tmp_path: Path) -> None:
    base = masked(count=1, size=96)
    rng = np.random.default_rng(3)
    truth = np.kron(rng.integers(0, 2, (12, 12)), np.ones((8, 8), int)).astype(np.int16)
    image = (rng.integers(20, 60, (3, 96, 96)) + 120 * truth).astype(np.uint8)
    data = replace(base, read=lambda i: (image, None), read_mask=lambda i: truth, find_splits=lambda: None)
    head = tuned(tmp_path, encoder, data, batch=6)
    told = json.loads((tmp_path / "run" / "finetune.json").read_text())
    found = evaluate(head, encoder, data, device="cpu")
    assert found.score.confusion.tolist() == told["confusion"]
    assert overlap(found)[:2] == (told["images"], 0)
    two = replace(
        data, labels=np.zeros(2, np.int64), sources=("a", "b"), fingerprint="two",
        read=lambda i: (image if i else image[:, ::-1], None), read_mask=lambda i: truth if i else truth[::-1],
    )  # fmt: skip
    assert overlap(evaluate(head, encoder, two, device="cpu")) == (1, 0, 1)


# -- the record -------------------------------------------------------------------------------------------------------


def test_a_head_without_a_record_still_opens_and_says_so(probed) -> None:
    model, data, head = probed
    (head / "split.safetensors").unlink()
    found = evaluate(head, model, data, device="cpu")
    assert overlap(found) == (18, None, 0)
    assert "not recorded" in found.line


def test_a_record_that_is_damaged_or_of_another_head_is_refused_in_one_line(probed, encoder, tmp_path) -> None:
    _, data, head = probed
    file = head / "split.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    with pytest.raises(CheckpointError, match=r"split\.safetensors is damaged"):
        load_head(head)
    probe(encoder, replace(data, labels=(data.labels + 1) % 3), out=tmp_path / "other", **QUICK)
    shutil.copy(tmp_path / "other" / "head" / "split.safetensors", file)
    with pytest.raises(CheckpointError, match="belongs to another head"):
        load_head(head)
    replace(load_head(tmp_path / "other" / "head"), split=None).save(tmp_path / "other" / "head")
    assert load_head(tmp_path / "other" / "head").split is None


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 3)), max_size=30), st.data())
def test_of_equal_images_the_use_that_taught_most_counts(pairs: list[tuple[int, int]], data) -> None:
    digests = np.array([digest for digest, _ in pairs], np.uint64)
    record = SplitRecord.of(digests, np.array([role for _, role in pairs], np.uint8))
    asked = data.draw(st.lists(st.integers(0, 2**64 - 1), max_size=5)) + [digest for digest, _ in pairs]
    expected = [min((role for d, role in pairs if d == digest), default=-1) for digest in asked]
    assert record.roles_of(np.array(asked, np.uint64)).tolist() == expected
    assert (TRAIN, VAL, TEST, UNUSED) == (0, 1, 2, 3)


def test_what_stands_in_gaps_and_signs_of_zero_change_no_digest() -> None:
    data = masked(count=4)
    _raw, valid = data.read(0)

    def read(index: int):
        image = data.read(index)[0].astype(np.float32)
        image[:, ~valid] = np.nan
        return image, valid

    same = image_digests(replace(data, read=read), np.arange(4))
    assert (same == image_digests(data, np.arange(4))).all()
    assert len(set(same.tolist())) == 4
    moved = replace(data, read=lambda i: (data.read(i)[0], np.roll(valid, 1, 0)))
    assert not np.isin(image_digests(moved, np.arange(4)), same).any()
    turned = replace(data, read=lambda i: (data.read(i)[0].transpose(0, 2, 1), valid))
    assert not np.isin(image_digests(turned, np.arange(4)), same).any()


# -- the same ground in another cut ------------------------------------------------------------------------------------


def cuts(image: np.ndarray, corners: list[tuple[int, int]], side: int) -> LabelledImages:
    """Squares of an image as a data set of classes."""
    base = labelled(per_class=max(1, len(corners) // 3), size=side)
    parts = [image[:, row : row + side, col : col + side] for row, col in corners]
    labels = np.arange(len(parts)) % 3
    return replace(
        base, labels=labels, sources=tuple(map(str, corners)), read=lambda i: (parts[i], None), fingerprint=str(corners)
    )


@pytest.mark.parametrize("side", [16, 24])
def test_chips_cut_anew_from_the_same_raster_are_no_unseen_images(encoder: DOFA, tmp_path: Path, side: int) -> None:
    raster = np.random.default_rng(2).integers(0, 255, (3, 64, 200)).astype(np.uint8)
    learned = cuts(raster, [(r, c) for r in range(0, 64, 16) for c in range(0, 96, 16)], 16)
    probe(encoder, learned, out=tmp_path / "probe", **QUICK)
    again = cuts(raster, [(r, c) for r in (3, 21, 37) for c in (5, 30, 61)], side)
    beyond = cuts(raster, [(r, c) for r in (3, 21, 37) for c in (100, 130, 170)], side)
    head = tmp_path / "probe" / "head"
    assert overlap(evaluate(head, encoder, again, device="cpu")) == (9, 9, 0)
    assert overlap(evaluate(head, encoder, beyond, device="cpu")) == (9, 0, 0)
    assert overlap(evaluate(head, encoder, joined(again, beyond), device="cpu")) == (9, 0, 9)


def test_unlike_images_share_no_windows_and_plain_ones_have_none(real_data: Path) -> None:
    from dofa.datasets.opening import open_labelled

    images = open_labelled(f"eurosat-ms:{real_data / 'eurosat_ms' / 'EuroSAT_MS_100.zip'}")
    hashes = [window_hashes(images.read(i), 16) for i in range(100)]
    for number in range(0, 100, 7):
        others = np.unique(np.concatenate([h for i, h in enumerate(hashes) if i != number]))
        assert not known_ground(images, [number], others, 16).any()
        assert known_ground(images, [number], np.unique(np.concatenate(hashes)), 16).all()
    plain = np.full((3, 32, 32), 7, np.uint8)
    assert not len(window_hashes((plain, None), 1))
    assert not len(window_hashes((plain[:, :3], None), 1))
    noise = np.random.default_rng(0).integers(0, 255, (3, 32, 32)).astype(np.uint8)
    valid = np.ones((32, 32), bool)
    valid[::3] = False
    assert len(window_hashes((noise, None), 1)) == 29 * 29
    assert not len(window_hashes((noise, valid), 1))
