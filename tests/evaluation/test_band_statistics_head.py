"""A head of band statistics maps a scene without an encoder, as an independent fit and an independent filter say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report
from sklearn.preprocessing import StandardScaler

import dofa
from dofa.cli import main
from dofa.datasets.labelled import LabelledImages
from dofa.errors import CheckpointError, ConfigError
from dofa.evaluation.probe import probe
from dofa.finetuning.evaluate import evaluate
from dofa.inference import engine
from dofa.inference.areas import beside
from dofa.inference.cluster import run as run_jobs
from dofa.inference.predict import predict, predict_all
from dofa.inference.saving import write_all
from dofa.model.checkpoint import save
from dofa.model.encoder import DOFA
from dofa.model.export import export
from dofa.model.heads import Head, load_head
from dofa.options import JobOptions
from dofa.outputs.reading import open_features

from ..finetuning.test_finetune import masked
from ..labelled_images import labelled

QUICK = {"stats": "dataset", "random_seeds": 1, "penalties": (1.0,), "folds": 3}
NODATA = 0


def covers(count: int = 9, size: int = 32) -> LabelledImages:
    """Three covers told apart by colour and texture, in blobs, with gaps that nothing was measured in."""
    base = masked(count=count, size=size)
    rng = np.random.default_rng(5)
    truth = np.kron(rng.integers(0, 3, (count, size // 8, size // 8)), np.ones((8, 8), int)).astype(np.int16)
    level, noise = np.array([60, 110, 110]), np.array([6, 4, 30])
    images = (
        level[truth] + noise[truth] * rng.normal(size=(3, count, size, size)) + 8 * np.arange(3)[:, None, None, None]
    )
    images = np.clip(images, 1, 255).astype(np.uint8).transpose(1, 0, 2, 3)
    valid = rng.random((count, size, size)) > 0.1
    valid[0, 4:20, 6:25] = False
    images = np.where(valid[:, None], images, NODATA).astype(np.uint8)
    return replace(
        base,
        name="covers",
        class_names=("dark", "smooth", "rough"),
        read=lambda i: (images[i], valid[i]),
        read_mask=lambda i: truth[i],
        find_splits=lambda: tuple(["train"] * (count - 3) + ["test"] * 3),
    )


def features_of(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(H, W, 3C): value, mean and standard deviation over the measured pixels of the 5 × 5 window, edges mirrored."""
    out = []
    seen = sliding_window_view(np.pad(valid, 2, "symmetric"), (5, 5))
    for band in values.astype(np.float64):
        windows = sliding_window_view(np.pad(np.where(valid, band, np.nan), 2, "symmetric"), (5, 5))
        with np.errstate(invalid="ignore"):
            out.append((np.nanmean(windows, (2, 3)), np.nanstd(windows, (2, 3))))
    mean, std = (np.stack(part, -1) for part in zip(*out, strict=True))
    assert (seen.sum((2, 3))[valid] > 0).all()
    return np.concatenate([np.moveaxis(values, 0, -1), mean, std], -1)


def write_scene(path: Path, image: np.ndarray, gsd: float, nodata: float | None = NODATA) -> Path:
    where = rasterio.transform.from_origin(500_000, 4_000_000, gsd, gsd)
    profile = {"driver": "GTiff", "count": len(image), "height": image.shape[1], "width": image.shape[2]}
    profile |= {"dtype": image.dtype, "crs": "EPSG:32633", "transform": where, "nodata": nodata}
    with rasterio.open(path, "w", **profile) as file:
        file.write(image)
    return path


@pytest.fixture(scope="module")
def probed(tmp_path_factory) -> tuple[LabelledImages, Path, str]:
    """A probe of pixels that kept its heads, and the weights it judged; for reading only."""
    import torch

    from dofa.model.config import EncoderConfig

    torch.manual_seed(3)
    model = DOFA(EncoderConfig(width=24, depth=2, heads=3, patch=8, image_size=32)).eval()
    folder = tmp_path_factory.mktemp("probed")
    weights = str(save(model, folder / "model"))
    data = covers()
    probe(weights, data, stride=4, pixels=2000, by="split", out=folder / "probe", **QUICK)
    return data, folder / "probe" / "band-statistics", weights


def big_scene(seed: int = 1, shape: tuple[int, int] = (300, 530)) -> np.ndarray:
    """Larger than a tile both ways, with gaps alone and in heaps."""
    rng = np.random.default_rng(seed)
    blobs = np.kron(rng.integers(0, 3, (-(-shape[0] // 10), -(-shape[1] // 10))), np.ones((10, 10), int))
    truth = blobs[: shape[0], : shape[1]]
    level, noise = np.array([60, 110, 110]), np.array([6, 4, 30])
    image = level[truth] + noise[truth] * rng.normal(size=(3, *shape)) + 8 * np.arange(3)[:, None, None]
    image = np.clip(image, 1, 255).astype(np.uint8)
    gaps = rng.random(shape) < 0.05
    gaps[100:160, 200:290] = True
    image[:, gaps] = NODATA
    return image


def test_the_map_is_an_independent_fit_on_the_same_pixels_pixel_by_pixel(probed, tmp_path: Path) -> None:
    data, folder, _ = probed
    head = load_head(folder)
    assert head.encoder_sha256 is None
    # All training pixels (fewer than are asked for, classes alike) by scikit-learn, with features of numpy alone.
    rows = np.flatnonzero(np.array(data.splits) == "train")
    per_image = [(*data.read(row), data.read_mask(row)) for row in rows]
    found = [features_of(data.scaling.physical(raw), valid)[valid] for raw, valid, _ in per_image]
    truth = np.concatenate([mask[valid] for _, valid, mask in per_image])
    everything = np.concatenate(found)
    image = big_scene()
    scene = write_scene(tmp_path / "scene.tif", image, head.gsd_m)
    predict([str(scene)], head=folder, out=tmp_path / "map.tif")
    valid = (image != NODATA).all(0)
    values = features_of(data.scaling.physical(image), valid)
    logits = values[valid] @ head.weight.T + head.bias
    with rasterio.open(tmp_path / "map.tif") as file:
        mapped = file.read(1)
        assert (file.crs.to_epsg(), file.transform, file.nodata) == (32633, rasterio.open(scene).transform, 255)
    np.testing.assert_array_equal(mapped == 255, ~valid)
    np.testing.assert_array_equal(mapped[valid], logits.argmax(1))
    # The layer itself: scikit-learn on a sample of the same kind agrees on nearly all of the map.
    each = min(np.bincount(truth))
    chosen = np.concatenate([np.flatnonzero(truth == k)[:each] for k in range(3)])
    scaler = StandardScaler().fit(everything[chosen])
    reference = LogisticRegression(C=1.0, max_iter=2000).fit(scaler.transform(everything[chosen]), truth[chosen])
    agree = (reference.predict(scaler.transform(values[valid])) == mapped[valid]).mean()
    assert agree > 0.98
    areas = json.loads(beside(tmp_path / "map.tif").read_text())["classes"]
    assert [a["pixels"] for a in areas] == [(mapped == k).sum() for k in range(3)]
    assert areas[0]["hectares"] == pytest.approx((mapped == 0).sum() * head.gsd_m**2 / 1e4)


@pytest.mark.parametrize("tile", [32, 64, 1000])
def test_tiles_leave_no_trace(probed, tmp_path: Path, tile: int) -> None:
    _, folder, _ = probed
    head = load_head(folder)
    scene = write_scene(tmp_path / "scene.tif", big_scene(2, (90, 131)), head.gsd_m)
    found = []
    for number, side in enumerate((tile, 256)):
        (one,) = predict_all([dofa.open_scene(scene, head.sensor.name)], None, head, tile=side)
        path = tmp_path / f"{number}.tif"
        write_all([one.job], [one.output(path, "probabilities")], blocks=engine.run)
        found.append(open_features(path).read_stored())
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=2e-6)


def test_evaluate_of_a_band_head_gives_what_the_probe_found_on_the_test_part(probed) -> None:
    data, folder, _ = probed
    told = json.loads((folder.parent / "probe.json").read_text())
    (row,) = (row for row in told["rows"] if row["features"] == "band statistics")
    found = evaluate(folder, None, data)
    assert found.score.confusion.tolist() == row["confusion"]
    assert found.score.score.value == pytest.approx(row["score"]["value"])
    assert found.setting["overlap"] == {"judged": 3, "learned_from": 0, "left_out": 0, "own_test": 3}
    known = evaluate(folder, None, data, split="train")
    assert "LEARNED FROM" in known.line


def test_tables_by_class_are_scikit_learns(probed) -> None:
    data, folder, _ = probed
    found = evaluate(folder, None, data)
    counts = found.score.confusion
    true, answered = (np.repeat(axis.ravel(), counts.ravel()) for axis in np.indices(counts.shape))
    report = classification_report(true, answered, target_names=data.class_names, output_dict=True)
    for row in found.score.classes:
        expected = report[row["name"]]
        assert row["precision"] == pytest.approx(expected["precision"])
        assert row["recall"] == pytest.approx(expected["recall"])
        assert row["f1"] == pytest.approx(expected["f1-score"])
        assert row["count"] == expected["support"]
    told = json.loads((folder.parent / "probe.json").read_text())
    (judged,) = (row for row in told["rows"] if row["features"] == "band statistics")
    assert judged["classes"] == [dict(row) for row in found.score.classes]


def test_the_probe_says_which_is_best_and_the_command_that_maps_with_it(probed, tmp_path: Path, capsys) -> None:
    data, _, weights = probed
    result = probe(weights, data, stride=4, pixels=2000, by="split", out=tmp_path / "probe", **QUICK)
    result.print()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("best: "))
    scores = {row.features: row.score.value for row in result.rows}
    assert max(scores, key=scores.get) == "band statistics" == result.verdict.best
    assert "band statistics" in line
    command = line.partition("dofa predict ")[2].split()
    scene = write_scene(tmp_path / "SCENE.tif", big_scene(3, (40, 50)), load_head(tmp_path / "probe/head").gsd_m)
    command = [str(scene) if word == "SCENE.tif" else word for word in command]
    assert main(["predict", *[str(tmp_path / "MAP.tif") if word == "MAP.tif" else word for word in command]]) == 0
    assert (tmp_path / "MAP.tif").is_file()
    assert json.loads((tmp_path / "probe" / "probe.json").read_text())["verdict"]["kind"] == "band statistics"


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_images_are_mapped_tile_by_tile(encoder: DOFA, tmp_path: Path, task: str) -> None:
    data = labelled(per_class=8)
    rng = np.random.default_rng(1)
    tint = [np.clip(data.read(i)[0] + 30.0 * data.labels[i], 0, 255).astype(np.uint8) for i in range(len(data))]
    data = replace(data, read=lambda i: (tint[i], None))
    if task == "multilabel":
        data = replace(data, task=task, labels=np.eye(3, dtype=np.int64)[data.labels] | (rng.random((24, 3)) < 0.2))
    probe(encoder, data, out=tmp_path / "probe", neighbours=3, **QUICK)
    head = load_head(tmp_path / "probe" / "band-statistics")
    assert head.tile_size == 16
    image = np.concatenate([np.concatenate([tint[3 * i + j] for j in range(3)], 2) for i in range(5)], 1)
    whole = rng.integers(60, 200, (3, 85, 50)).astype(np.uint8)  # no whole tiles at the far edges
    whole[:, :80, :48] = image
    image = whole
    image[:, 17:30, 2:30] = 0
    scene = write_scene(tmp_path / "scene.tif", image, head.gsd_m, nodata=0)
    predict([str(scene)], head=tmp_path / "probe" / "band-statistics", out=tmp_path / "map.tif", output="probabilities")
    found = open_features(tmp_path / "map.tif")
    assert found.shape == (3, 6, 4)
    stored = found.read_stored()
    valid = (image != 0).all(0)
    for row in range(6):
        for col in range(4):
            at = np.s_[16 * row : 16 * row + 16, 16 * col : 16 * col + 16]
            if valid[at].mean() < 0.5:
                assert np.isnan(stored[:, row, col]).all()
                continue
            pixels = data.scaling.physical(image)[(slice(None), *at)][:, valid[at]].astype(np.float64)
            logits = head.weight @ np.concatenate([pixels.mean(1), pixels.std(1)]) + head.bias
            odds = np.exp(logits) / (1 + np.exp(logits)) if task == "multilabel" else np.exp(logits - logits.max())
            expected = odds if task == "multilabel" else odds / odds.sum()
            np.testing.assert_allclose(stored[:, row, col], expected, atol=1e-4)
    predict(
        [str(scene)], head=tmp_path / "probe" / "band-statistics", out=tmp_path / "fine.tif", output="probabilities",
        run=JobOptions(stride=8),
    )  # fmt: skip
    fine = open_features(tmp_path / "fine.tif")
    assert fine.shape == (3, 11, 7)  # of 85 × 50 pixels
    assert fine.transform[0] == pytest.approx(8 * head.gsd_m)


def test_an_interrupted_map_goes_on_where_it_stopped(probed, tmp_path: Path, monkeypatch) -> None:
    _, folder, _ = probed
    head = load_head(folder)
    monkeypatch.setattr(engine, "NARROWEST", 128)
    monkeypatch.setattr(engine, "BUDGET", 1)
    scene = write_scene(tmp_path / "scene.tif", big_scene(4, (200, 300)), head.gsd_m)

    def made(path: Path, stop: int | None = None) -> None:
        (one,) = predict_all([dofa.open_scene(scene, head.sensor.name)], None, head, tile=64)

        def blocks(jobs):
            for number, block in enumerate(engine.run(jobs)):
                if number == stop:
                    raise KeyboardInterrupt
                yield block

        write_all([one.job], [one.output(path, "classes")], blocks=blocks)

    made(tmp_path / "whole.tif")
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "map.tif", stop=3)
    made(tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as one, rasterio.open(tmp_path / "whole.tif") as two:
        np.testing.assert_array_equal(one.read(), two.read())


def test_what_a_band_head_cannot_do_is_one_line(probed, encoder: DOFA, tmp_path: Path, capsys) -> None:
    data, folder, weights = probed
    head: Head = load_head(folder)
    scene = write_scene(tmp_path / "scene.tif", big_scene(5, (40, 50)), head.gsd_m)
    coarse = write_scene(tmp_path / "coarse.tif", big_scene(5, (40, 50)), 4 * head.gsd_m)

    def refused(*words: str) -> str:
        assert main([*words]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    out = ["--out", str(tmp_path / "map.tif")]
    assert "leave out --weights" in refused("predict", str(scene), "--weights", weights, "--head", str(folder), *out)
    needs = refused("predict", str(scene), "--head", str(folder.parent / "head"), *out)
    assert "--weights" in needs
    assert "leave it out" in refused("predict", str(scene), "--head", str(folder), "--stride", "4", *out)
    assert "--gsd" in refused("predict", str(coarse), "--head", str(folder), *out)
    with pytest.raises(ConfigError, match="band statistics"):
        export(encoder, tmp_path / "out.pt2", head=head)
    with pytest.raises(CheckpointError, match="reads 9 numbers"):
        replace(head, weight=head.weight[:, :6])
    with pytest.raises(CheckpointError, match="belongs to no encoder"):
        evaluate(head, encoder, data)


@pytest.mark.slow
def test_workers_of_a_cluster_read_the_bands_as_this_process_does(probed, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    _, folder, _ = probed
    head = load_head(folder)
    scene = write_scene(tmp_path / "scene.tif", big_scene(6, (90, 131)), head.gsd_m)
    found = []
    for number, cluster in enumerate((None, "local:1")):
        (one,) = predict_all([dofa.open_scene(scene, head.sensor.name)], None, head, tile=64)
        path = tmp_path / f"{number}.tif"
        write_all([one.job], [one.output(path, "classes")], blocks=lambda jobs, at=cluster: run_jobs(jobs, cluster=at))
        found.append(open_features(path).read_stored())
    np.testing.assert_array_equal(found[0], found[1])


def test_of_several_scenes_the_good_ones_are_mapped(probed, tmp_path: Path, capsys) -> None:
    _, folder, _ = probed
    head = load_head(folder)
    good = [write_scene(tmp_path / f"good{n}.tif", big_scene(7 + n, (40, 50)), head.gsd_m) for n in range(2)]
    bad = write_scene(tmp_path / "bad.tif", big_scene(9, (40, 50)), 4 * head.gsd_m)
    words = [str(path) for path in (good[0], bad, good[1])]
    assert main(["predict", *words, "--head", str(folder), "--out", str(tmp_path / "maps")]) == 2
    said = capsys.readouterr()
    assert "bad" in said.err
    assert sorted(path.name for path in (tmp_path / "maps").glob("*.tif")) == ["good0.tif", "good1.tif"]
    assert len(list((tmp_path / "maps").glob("*.areas.json"))) == 2
    assert said.out.count("hectares") == 2


def test_no_head_of_an_earlier_probe_stays_beside_the_findings(make_images, encoder: DOFA, tmp_path: Path) -> None:
    probe(encoder, make_images(per_class=6), out=tmp_path, neighbours=3, **QUICK)
    probe(encoder, make_images(per_class=7), out=tmp_path, neighbours=3, baselines=False, **QUICK)
    assert load_head(tmp_path / "head").task == "classification"
    with pytest.raises(CheckpointError, match="no head folder"):
        load_head(tmp_path / "band-statistics")
