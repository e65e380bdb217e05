"""Probes of single pixels: features, samples, folds, scores, and the map of the head they leave."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.preprocessing import StandardScaler

from dofa.datasets.folds import Fold
from dofa.datasets.labelled import LabelledImages
from dofa.errors import ConfigError, DataError
from dofa.evaluation.backbones import open_backbone
from dofa.evaluation.pixel_features import BandPixels, EncoderPixels
from dofa.evaluation.pixel_probe import NONE, Ground, PixelTask, Sample, cut_blocks, draw_sample, gather, label_map
from dofa.evaluation.probe import probe
from dofa.model import checkpoint
from dofa.model.config import EncoderConfig
from dofa.model.encoder import DOFA
from dofa.model.heads import load_head
from dofa.options import JobOptions

QUICK = {"stats": "dataset", "random_seeds": 1, "penalties": (0.1, 10.0), "pixels": 600, "batch": 8}


def scenes(make_images, count: int = 12, size: int = 24, places: int | None = None, splits: bool = False):
    """Two covers of equal mean colour, smooth and striped, in halves of each image; a row of ignored labels."""
    base = make_images(per_class=count, classes=1, size=size, places=places)
    rng = np.random.default_rng(0)
    cuts = rng.integers(size // 3, 2 * size // 3, count)
    images, masks = [], []
    stripes = np.where(np.arange(size) % 4 < 2, 50, -50)
    for cut in cuts:
        mask = np.broadcast_to(np.arange(size) >= cut, (size, size)).astype(np.int16)
        noise = 12 * rng.normal(size=(3, size, size))
        images.append(np.clip(120 + stripes[:, None] * mask + noise, 0, 255).astype(np.uint8))
        masks.append(mask.copy())
        masks[-1][0] = 255
    said = tuple(("train", "test")[i % 3 == 2] for i in range(count))
    return replace(
        base,
        name="halves",
        task="segmentation",
        class_names=("smooth", "striped"),
        labels=np.zeros(count, np.int64),
        read=lambda index: (images[index], None),
        read_mask=lambda index: masks[index],
        ignore=255,
        fingerprint=f"halves {count} {size}",
        find_splits=lambda: said if splits else None,
    )


@pytest.fixture
def small() -> DOFA:
    torch.manual_seed(1)
    return DOFA(EncoderConfig(width=24, depth=2, heads=3, patch=4, image_size=24)).eval()


def encoder_pixels(model: DOFA, data: LabelledImages, stride: int, **changed) -> EncoderPixels:
    scaling = data.scaling.with_stats([120] * 3, [40] * 3, "user")
    settings_ = {"stride": stride, "size": None, "batch": 5, "precision": "float32", "device": None} | changed
    return EncoderPixels(open_backbone(model), data, scaling, [0, 1], **settings_)


@pytest.mark.parametrize("size", [24, 22])
def test_a_pixels_feature_is_the_mean_over_passes_shifted_by_the_stride(make_images, small: DOFA, size: int) -> None:
    data = scenes(make_images, count=2, size=size)
    features = encoder_pixels(small, data, 2)
    ((_, found),) = features.maps([1])
    raw = torch.from_numpy((data.read(1)[0].astype(np.float32) - 120) / 40)
    total, passes = np.zeros((size, size, 48)), np.zeros((size, size, 1))
    for a in (0, 2):
        for b in (0, 2):
            shifted = raw[:, a:, b:]
            over = [-side % 4 for side in shifted.shape[1:]]
            padded = torch.nn.functional.pad(shifted[None], (0, over[1], 0, over[0]), mode="replicate")
            with torch.no_grad():
                levels = small.forward_intermediates(padded, data.sensor, [0, 1])
            fine = torch.cat(levels, 1)[0].permute(1, 2, 0).numpy().repeat(4, 0).repeat(4, 1)
            total[a:, b:] += fine[: size - a, : size - b]
            passes[a:, b:] += 1
    rows, cols = features.cells(size, 0), features.cells(size, 1)
    np.testing.assert_allclose(found[np.ix_(rows, cols)], total / passes, atol=2e-5)


def test_the_patch_offset_and_a_resize_move_pixels_to_the_cells_that_cover_them(make_images) -> None:
    data = scenes(make_images, count=1, size=12)
    offset = DOFA(EncoderConfig(width=24, depth=2, heads=3, patch=4, image_size=24, patch_offset=1)).eval()
    assert encoder_pixels(offset, data, 4).cells(12, 0).tolist() == [0] * 3 + [1] * 4 + [2] * 5
    plain = DOFA(EncoderConfig(width=24, depth=2, heads=3, patch=4, image_size=24)).eval()
    assert encoder_pixels(plain, data, 4, size=24).cells(12, 1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_the_probe_of_masks_is_an_independent_fit_on_the_same_pixels_and_its_score_scikit_learns(
    make_images, small: DOFA, tmp_path: Path
) -> None:
    data = scenes(make_images, splits=True)
    result = probe(small, data, by="split", blocks=[1], stride=2, out=tmp_path, **(QUICK | {"penalties": (1.0,)}))
    (row, *_) = result.rows
    assert (row.features, row.metric) == ("block 1", "mIoU")
    assert row.score.value > 0.8

    test = np.array(data.splits) == "test"
    head = load_head(tmp_path / "head", small)
    features = EncoderPixels(
        open_backbone(small), data, head.scaling, [1], stride=2, size=None, batch=8, precision="float32", device=None
    )
    groups = np.where(test, -1, 0)
    sample = draw_sample(data, groups, 600, 0)
    chosen = sample.choose(np.ones(len(sample), bool), 600)
    train, labels = gather(features, sample, (24, 24))[chosen], sample.label[chosen]
    assert np.bincount(labels).tolist() == [300, 300]
    scaler = StandardScaler().fit(train.astype(np.float64))
    reference = LogisticRegression(C=1.0, tol=1e-9, max_iter=10_000).fit(scaler.transform(train), labels)
    truth, given_, ours = [], [], []
    cells = np.ix_(features.cells(24, 0), features.cells(24, 1))
    for index, found in features.maps(np.flatnonzero(test).tolist()):
        flat = found.reshape(-1, found.shape[-1])
        predicted = reference.predict(scaler.transform(flat)).reshape(found.shape[:2])[cells]
        by_head = head.predict_proba(flat).argmax(1).reshape(found.shape[:2])[cells]
        mask = data.read_mask(index)
        truth.append(mask[mask != 255])
        given_.append(predicted[mask != 255])
        ours.append(by_head[mask != 255])
    true, theirs, head_s = (np.concatenate(part) for part in (truth, given_, ours))
    counts = np.array(row.confusion)
    assert counts.sum() == len(true)
    assert abs(np.trace(counts) / counts.sum() - (theirs == true).mean()) <= 0.001
    assert row.score.value == pytest.approx(jaccard_score(true, head_s, average="macro"), abs=1e-3)


def test_a_map_of_the_saved_head_holds_what_the_probe_saw(make_images, small: DOFA, tmp_path: Path) -> None:
    from dofa.inference.predict import predict

    data = scenes(make_images)
    folder = checkpoint.save(small, tmp_path / "model")
    probe(str(folder), data, blocks=["pooled"], stride=2, out=tmp_path / "probe", baselines=False, **QUICK)
    head = load_head(tmp_path / "probe" / "head", small)
    assert (head.task, head.levels, head.class_names) == ("segmentation", (1,), data.class_names)
    raw = data.read(3)[0]
    where = rasterio.transform.from_origin(500_000, 4_000_000, head.gsd_m, head.gsd_m)
    profile = {"driver": "GTiff", "count": 3, "height": 24, "width": 24, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(tmp_path / "scene.tif", "w", transform=where, **profile) as file:
        file.write(raw)
    predict(
        [str(tmp_path / "scene.tif")], weights=str(folder), head=tmp_path / "probe" / "head", out=tmp_path / "map.tif",
        run=JobOptions(stride=2, precision="float32"),
    )  # fmt: skip
    features = EncoderPixels(
        open_backbone(small), data, head.scaling, [1], stride=2, size=None, batch=8, precision="float32", device=None
    )
    ((_, found),) = features.maps([3])
    expected = head.predict_proba(found.reshape(-1, 24)).argmax(1).reshape(12, 12)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.res == (2 * head.gsd_m, 2 * head.gsd_m)
        np.testing.assert_array_equal(file.read(1), expected)


def test_a_single_image_is_judged_block_by_block(make_images, small: DOFA, tmp_path: Path) -> None:
    big = scenes(make_images, count=1, size=60)
    quick = QUICK | {"stats": None}
    said = replace(big, corpus_scaling=big.scaling.with_stats([120] * 3, [40] * 3, "corpus"))
    result = probe(small, said, stride=4, gap=4, out=tmp_path, **quick)
    assert result.setting["protocol"]["by"] == "block"
    assert result.setting["data"]["judged"] == 25
    assert result.rows[0].judged[0].units == 25
    assert np.sum(result.rows[0].confusion) == 60 * 59
    record = json.loads((tmp_path / "probe.json").read_text())
    assert record["rows"][0]["metric"] == "mIoU"
    assert record["protocol"]["gap"] == 4
    with pytest.raises(ConfigError, match="fewer than two"):
        probe(small, said, block_side=60, **quick)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(0, 6), st.integers(1, 3))
def test_no_pixel_within_the_gap_of_a_judged_block_is_learned_from(seed: int, gap: int, judged: int) -> None:
    rng = np.random.default_rng(seed)
    across, down, (height, width) = 3, 2, (5, 4)
    blocks = rng.permutation(across * down)[:judged]
    image, row, col = (g.ravel() for g in np.mgrid[: across * down, :height, :width])
    sample = Sample(image, row, col, np.zeros(len(image), np.int64), rng.random(len(image)))
    free = Ground(across, (height, width), gap).free(sample, blocks)
    taken = np.zeros((down * height, across * width), bool)
    for block in blocks:
        taken[block // across * height :, block % across * width :][:height, :width] = True
    near = taken.copy()
    for y, x in np.argwhere(taken):
        near[max(0, y - gap) : y + gap + 1, max(0, x - gap) : x + gap + 1] = True
    np.testing.assert_array_equal(free, ~near[image // across * height + row, image % across * width + col])


def test_blocks_hold_the_images_own_pixels_and_masks(make_images) -> None:
    big = scenes(make_images, count=1, size=50)
    blocks, across = cut_blocks(big, 16)
    assert (len(blocks), across, blocks.shape) == (9, 3, (3, 16, 16))
    np.testing.assert_array_equal(blocks.read(5)[0], big.read(0)[0][:, 16:32, 32:48])
    np.testing.assert_array_equal(blocks.read_mask(5), big.read_mask(0)[16:32, 32:48])
    assert any("196 pixels at the edges" in note for note in blocks.notes)
    assert len(set(blocks.places)) == 9


def test_sampled_pixels_are_labelled_ones_drawn_evenly_and_ever_the_same(make_images) -> None:
    data = scenes(make_images)
    groups = np.arange(12) % 3
    groups[4] = -1
    sample = draw_sample(data, groups, 50, 3)
    for image in range(12):
        here = sample.image == image
        mask = label_map(data, image)
        np.testing.assert_array_equal(mask[sample.row[here], sample.col[here]], sample.label[here])
    assert not (sample.image == 4).any()
    for group in range(3):
        of_group = np.isin(sample.image, np.flatnonzero(groups == group))
        assert np.bincount(sample.label[of_group]).tolist() == [50, 50]
    chosen = sample.choose(groups[sample.image] != 1, 50)
    assert np.bincount(sample.label[chosen]).tolist() == [25, 25]
    assert len({*zip(sample.image, sample.row, sample.col, strict=True)}) == len(sample)
    again = draw_sample(data, groups, 50, 3)
    np.testing.assert_array_equal(again.key, sample.key)
    assert (draw_sample(data, groups, 50, 4).key != sample.key).any()


def test_judged_masks_leave_no_trace_in_what_is_learned(make_images, small: DOFA) -> None:
    data = scenes(make_images)
    parts = [Fold(np.arange(6), np.arange(6, 12))]
    groups = np.where(np.arange(12) < 6, 0, -1)

    def run(images: LabelledImages):
        task = PixelTask(
            images, parts, np.arange(6), draw_sample(images, groups, 200, 0), Ground(0, (24, 24), 0), 200, (0.1, 1.0),
            "lbfgs", 0,
        )  # fmt: skip
        return task.judge([encoder_pixels(small, images, 4)], 24, "encoder")[1]

    flipped = replace(
        data,
        read_mask=lambda i: (
            data.read_mask(i) if i < 6 else np.where(data.read_mask(i) == 255, 255, 1 - data.read_mask(i))
        ),
    )
    one, two = run(data), run(flipped)
    assert one.chosen == two.chosen
    np.testing.assert_array_equal(one.confusion, two.confusion[::-1])


def test_pixels_without_measurement_count_nowhere(make_images) -> None:
    data = scenes(make_images)
    valid = np.ones((24, 24), bool)
    valid[:, :5] = False
    partly = replace(data, read=lambda i: (np.where(valid, data.read(i)[0], 0), valid))
    assert (label_map(partly, 0)[:, :5] == NONE).all()
    ((_, found),) = BandPixels(partly).maps([0])
    raw = partly.read(0)[0].astype(float)
    assert found.shape == (24, 24, 9)
    np.testing.assert_allclose(found[..., :3][valid], raw[:, valid].T, atol=1e-4)
    np.testing.assert_allclose(found[10, 5, 3:6], raw[:, 8:13, 5:8].mean((1, 2)), atol=1e-3)
    np.testing.assert_allclose(found[10, 15, 6:], raw[:, 8:13, 13:18].std((1, 2)), atol=1e-3)


def test_masks_that_do_not_fit_are_refused_in_one_line(make_images, small: DOFA) -> None:
    data = scenes(make_images)
    with pytest.raises(DataError, match=r"image 0: 24 labels are 9; classes are 0 to 1 or 255 \(ignored\)"):
        label_map(replace(data, read_mask=lambda i: np.where(np.arange(24) == 3, 9, data.read_mask(i))), 0)
    with pytest.raises(DataError, match=r"image 0: a mask of \(12, 12\) for an image of \(24, 24\)"):
        label_map(replace(data, read_mask=lambda i: data.read_mask(i)[::2, ::2]), 0)
    with pytest.raises(DataError, match="no labelled pixel"):
        probe(small, replace(data, read_mask=lambda i: np.full((24, 24), 255, np.int16)), **QUICK)
    with pytest.raises(DataError, match="two classes are needed"):
        probe(small, replace(data, read_mask=lambda i: np.zeros((24, 24), np.int16)), **QUICK)
    with pytest.raises(ConfigError, match="stride 3: a divisor of 4"):
        probe(small, data, stride=3, **QUICK)
    with pytest.raises(ConfigError, match="20 folds of 12 places or images"):
        probe(small, data, folds=20, **QUICK)
