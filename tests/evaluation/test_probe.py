"""`probe` from labelled images to table, JSON and head folder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from dofa.datasets.folds import split_folds
from dofa.datasets.labelled import LabelledImages
from dofa.errors import ConfigError, DataError
from dofa.evaluation import probe_images as room
from dofa.evaluation.bootstrap import Classes, score_images
from dofa.evaluation.cross_validation import fit_logistic
from dofa.evaluation.frozen_features import encode
from dofa.evaluation.probe import probe
from dofa.model import checkpoint
from dofa.model.encoder import DOFA
from dofa.model.heads import load_head
from dofa.pixels import Scaling

from ..vit_files import write_vit

QUICK = {"stats": "dataset", "random_seeds": 2, "neighbours": 3, "penalties": (0.1, 10.0)}


def test_stripes_are_told_apart_by_features_and_not_by_band_statistics(
    make_images, encoder: DOFA, tmp_path: Path, capsys
) -> None:
    data = make_images(per_class=30)
    result = probe(encoder, data, blocks=["pooled", 0, "-1"], out=tmp_path, **QUICK)
    names = ["pooled", "block 0", "block 2"]
    assert [r.features for r in result.rows[::2]] == [*names, *(f"random {n}" for n in names), "band statistics"]
    assert result.row("block 0").score.value > 0.8
    assert result.row("band statistics").score.value < 0.6
    margin = next(d for d in result.differences if (d.features, d.against) == ("block 0", "band statistics"))
    assert margin.difference.low is not None
    assert margin.difference.low > 0
    assert len(result.differences) == 3 * 2 * 2
    assert len(result.row("random pooled").chosen) == 2 * 5

    record = json.loads((tmp_path / "probe.json").read_text())
    assert record["format_version"] == 2
    assert record["data"]["classes"] == {f"stripes {c}": 30 for c in range(3)}
    assert record["encoder"]["sha256"] == checkpoint.encoder_sha256(encoder)
    assert record["protocol"] == result.setting["protocol"]
    assert record["rows"][0]["score"]["value"] == result.rows[0].score.value
    result.print()
    shown = capsys.readouterr().out
    assert "90 images judged, 3 classes, 5 folds by image" in shown
    assert f"{100 * result.row('block 0').score.value:.1f}" in shown


def test_the_saved_head_is_the_best_levels_layer_on_all_images(make_images, encoder: DOFA, tmp_path: Path) -> None:
    data = make_images()
    result = probe(encoder, data, blocks=["pooled", 0], out=tmp_path, size=24, **QUICK)
    head = load_head(tmp_path / "head", encoder)
    (level,) = head.levels
    name = "pooled" if level == "pooled" else f"block {level}"
    assert result.row(name).score.value == max(result.row(n).score.value for n in ("pooled", "block 0"))
    features = encode(encoder, data, head.scaling, [level], size=24)[level]
    expected = fit_logistic(features, data.labels, head.validation["penalty"])
    np.testing.assert_allclose(head.predict_proba(features).argmax(1), expected.predict(features))
    assert head.tile_size == 24
    assert head.gsd_m == pytest.approx(data.sensor.gsd_m * 16 / 24)
    assert head.class_names == data.class_names
    assert head.validation["score"]["value"] == result.row(name).score.value
    pixels = np.stack([data.read(i)[0] for i in range(len(data))]).astype(float)
    np.testing.assert_allclose(head.scaling.mean, pixels.mean((0, 2, 3)), rtol=1e-6)


def test_the_same_seed_gives_the_same_result_and_the_cache_changes_nothing(
    make_images, encoder, tmp_path: Path
) -> None:
    data = make_images(per_class=8)
    one = probe(encoder, data, seed=5, **QUICK).to_dict()
    two = probe(encoder, data, seed=5, cache=tmp_path, **QUICK).to_dict()
    three = probe(encoder, data, seed=5, cache=tmp_path, **QUICK).to_dict()
    assert one == two == three
    assert one != probe(encoder, data, seed=6, **QUICK).to_dict()


@pytest.mark.parametrize("classifier", ["logistic", "LARS", "k-NN"])
def test_judged_images_leave_no_trace_in_what_is_learned(make_images, encoder: DOFA, classifier) -> None:
    """Standardisation, penalty and weights come from training folds: wrecking other judged images changes nothing."""
    data = make_images()
    scaling = data.scaling.with_stats([120] * 3, [40] * 3, "user")
    clean = encode(encoder, data, scaling)["pooled"]
    parts = split_folds(data.labels, 3, 0)

    def judge(of_folds):
        units = np.arange(len(data))
        run = score_images(
            classifier, of_folds, data.labels, parts, units, classes=3, candidates=(0.01, 1.0, 100.0), neighbours=5
        )
        assert isinstance(run.judged, Classes)
        return np.split(run.judged.correct, np.cumsum([len(part.test) for part in parts])[:-1]), run.chosen

    correct, chosen = judge([clean] * 3)
    wrecked = []
    for part in parts:
        features = clean.copy()
        features[part.test[1:]] = 1e6 * np.random.default_rng(0).normal(size=features[part.test[1:]].shape)
        wrecked.append(features)
    correct_again, chosen_again = judge(wrecked)
    assert chosen == chosen_again
    assert [c[0] for c in correct] == [c[0] for c in correct_again]
    assert any((a != b).any() for a, b in zip(correct, correct_again, strict=True))


def test_dataset_statistics_of_a_fold_see_its_training_images_only(make_images, encoder, monkeypatch) -> None:
    data = make_images(per_class=8)
    used: list[Scaling] = []

    def spy(model, images, scaling, *arguments, **options):
        used.append(scaling)
        return encode(model, images, scaling, *arguments, **options)

    monkeypatch.setattr(room, "encode", spy)
    probe(encoder, data, folds=4, baselines=False, seed=3, **QUICK)
    parts = split_folds(data.labels, 4, 3)
    pixels = np.stack([data.read(i)[0] for i in range(len(data))]).astype(float)
    assert len(used) == 4
    for scaling, part in zip(used, parts, strict=True):
        np.testing.assert_allclose(scaling.mean, pixels[part.train].mean((0, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(scaling.std, pixels[part.train].std((0, 2, 3)), rtol=1e-6)


def test_places_are_kept_together_where_there_are_enough_of_them(make_images, encoder: DOFA) -> None:
    many = probe(encoder, make_images(places=9), baselines=False, **QUICK)
    assert many.setting["protocol"]["by"] == "place"
    assert many.setting["protocol"]["places"] == 9
    few = probe(encoder, make_images(places=3), baselines=False, **QUICK)
    assert few.setting["protocol"]["by"] == "image"
    assert "3 places do not fill 5 folds" in few.warnings[0]
    with pytest.raises(ConfigError, match="3 places do not fill 5 folds"):
        probe(encoder, make_images(places=3), by="place", **QUICK)
    with pytest.raises(DataError, match="does not say where"):
        probe(encoder, make_images(), by="place", **QUICK)
    handful = probe(encoder, make_images(places=3), by="place", folds=3, baselines=False, **QUICK)
    assert handful.rows[0].score.low is None


def test_a_class_judged_without_having_been_seen_is_said(make_images, encoder: DOFA) -> None:
    data = make_images()
    places = tuple("island" if label == 2 else f"place {i % 7}" for i, label in enumerate(data.labels))
    result = probe(encoder, replace(data, find_places=lambda: places), baselines=False, **QUICK)
    assert any("class stripes 2 lies in too few places" in note for note in result.warnings)


def test_the_published_split_learns_on_train_and_val_and_judges_test(
    make_images, encoder: DOFA, tmp_path: Path
) -> None:
    data = make_images(per_class=20, splits=True)
    result = probe(encoder, data, by="split", out=tmp_path, **QUICK)
    test = np.array(data.splits) == "test"
    assert result.setting["data"]["judged"] == test.sum() == len(result.rows[0].judged[0].correct)
    head = load_head(tmp_path / "head", encoder)
    pixels = np.stack([data.read(i)[0] for i in range(len(data))]).astype(float)
    np.testing.assert_allclose(head.scaling.mean, pixels[~test].mean((0, 2, 3)), rtol=1e-6)
    features = encode(encoder, data, head.scaling)["pooled"]
    right = head.predict_proba(features).argmax(1) == data.labels
    assert right[test].mean() == pytest.approx(result.row("pooled").score.value)
    with pytest.raises(DataError, match="no published split"):
        probe(encoder, make_images(), by="split", **QUICK)


def test_degenerate_data_is_refused_in_one_line(make_images, encoder: DOFA) -> None:
    data = make_images(per_class=4)
    with pytest.raises(DataError, match="class stripes 0 has 4 images, fewer than the 5 folds"):
        probe(encoder, data, **QUICK)
    with pytest.raises(DataError, match="all 12 images of stripes are of one class"):
        probe(encoder, make_images(classes=1), **QUICK)
    with pytest.raises(ConfigError, match="rgb-aerial has no statistics in this checkpoint"):
        probe(encoder, make_images(), **{**QUICK, "stats": None})
    with pytest.raises(ConfigError, match="block 'cls'"):
        probe(encoder, make_images(), blocks=["cls"], **QUICK)
    with pytest.raises(ConfigError, match="--neighbours 40: between 1 and the 28 training images"):
        probe(encoder, make_images(), **{**QUICK, "neighbours": 40})
    for penalties in [(), (0,), (0.1, float("nan"))]:
        with pytest.raises(ConfigError, match="penalties above 0"):
            probe(encoder, make_images(), **{**QUICK, "penalties": penalties})
    for wrong, said in [
        ({"gap": -1}, "--gap -1"),
        ({"pixels": 0}, "--pixels 0"),
        ({"block_side": 0}, "--block-side 0"),
    ]:
        with pytest.raises(ConfigError, match=said):
            probe(encoder, make_images(), **wrong, **QUICK)


def test_a_model_folder_and_a_real_set_go_in_by_name(encoder: DOFA, real_data: Path, tmp_path: Path) -> None:
    folder = checkpoint.save(encoder, tmp_path / "model")
    spec = f"eurosat-ms:{real_data / 'eurosat_ms' / 'EuroSAT_MS_100.zip'}"
    result = probe(
        str(folder), spec, **{**QUICK, "penalties": (1.0,), "random_seeds": 1}, size=32, out=tmp_path / "out"
    )
    assert result.setting["protocol"]["places"] == 76
    # The reference's prototype found 70.1 % for band statistics on these images.
    assert result.row("band statistics").score.value == pytest.approx(0.70, abs=0.05)
    assert load_head(tmp_path / "out" / "head", encoder).sensor.band_names[-1] == "B8A"


def several(make_images) -> LabelledImages:
    """The stripes, an image having its own direction and, at random, a label that shows in its brightness."""
    base = make_images(per_class=20)
    rng = np.random.default_rng(0)
    bright = rng.random(len(base)) < 0.4
    flags = np.concatenate([np.eye(3, dtype=np.int64)[base.labels], bright[:, None].astype(np.int64)], axis=1)
    return replace(
        base,
        task="multilabel",
        labels=flags,
        class_names=(*base.class_names, "bright"),
        read=lambda i: (np.clip(base.read(i)[0].astype(int) + 60 * bright[i], 0, 255).astype(np.uint8), None),
        fingerprint="several",
    )


def test_several_labels_are_judged_by_the_precision_of_all_pairs_together(
    make_images, encoder: DOFA, tmp_path: Path
) -> None:
    data = several(make_images)
    said = tuple(("train", "test")[i % 3 == 0] for i in range(len(data)))
    result = probe(encoder, replace(data, find_splits=lambda: said), by="split", blocks=[0], out=tmp_path, **QUICK)
    row = result.row("block 0")
    assert (row.metric, row.confusion) == ("micro AP", None)
    test = np.array(said) == "test"
    head = load_head(tmp_path / "head", encoder)
    features = encode(encoder, data, head.scaling, [0])[0]
    scores = head.predict_proba(features)[test]
    expected = average_precision_score(data.labels[test].ravel(), scores.ravel())
    assert row.score.value == pytest.approx(expected, abs=1e-5)
    assert row.score.low is not None
    assert row.score.low < row.score.value < row.score.high
    assert result.row("block 0", "k-NN").score.value > 0.5
    assert result.setting["data"]["classes"]["bright"] == data.labels[:, 3].sum()
    whole = probe(encoder, data, blocks=[0], baselines=False, **QUICK)
    assert whole.setting["protocol"]["by"] == "image"
    assert len(whole.rows[0].per_fold) == 5


def test_a_part_of_the_labels_teaches_and_all_others_are_judged_as_before(make_images, encoder: DOFA) -> None:
    data = make_images(per_class=30)
    whole = probe(encoder, data, blocks=[0], baselines=False, **QUICK)
    part = probe(encoder, data, blocks=[0], baselines=False, fraction=0.2, **QUICK)
    assert whole.setting["data"]["judged"] == part.setting["data"]["judged"] == 90
    assert part.setting["protocol"]["fraction"] == 0.2
    assert part.row("block 0").score.value < whole.row("block 0").score.value
    with pytest.raises(ConfigError, match="share of the training labels"):
        probe(encoder, data, fraction=0.0, **QUICK)


def test_the_papers_optimizer_is_swept_over_its_rates(make_images, encoder: DOFA) -> None:
    quick = {k: v for k, v in QUICK.items() if k != "penalties"}
    result = probe(encoder, make_images(per_class=150), blocks=[0], optimizer="lars", folds=2, baselines=False, **quick)
    row = result.row("block 0")
    assert row.classifier == "LARS"
    assert set(row.chosen) <= {0.5, 1.0, 10.0, 20.0}
    assert row.score.value > 0.5


def test_any_backbone_can_be_probed_and_leaves_no_head_that_would_not_open(make_images, tmp_path: Path) -> None:
    vit = write_vit(tmp_path / "vit", 24, 2, 2, 14, 28)
    result = probe(f"teacher:{vit}", make_images(), size=28, out=tmp_path, **(QUICK | {"stats": None}))
    assert [row.features for row in result.rows] == ["pooled", "pooled", "band statistics", "band statistics"]
    assert any("no random weights beside it" in note for note in result.warnings)
    assert result.head is None
    assert not (tmp_path / "head").exists()
    assert (tmp_path / "probe.json").is_file()
