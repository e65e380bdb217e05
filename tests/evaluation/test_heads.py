"""The head folder: written, read strictly, refused where it does not belong."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dofa import sensors
from dofa.errors import CheckpointError
from dofa.evaluation.cross_validation import fit_logistic
from dofa.model.checkpoint import encoder_sha256
from dofa.model.encoder import DOFA
from dofa.model.heads import Head, load_head, palette


def features_and_labels(classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """One feature has a mean 10⁴ times its spread: folding its standardisation into float32 would lose it."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % classes
    features = rng.normal(size=(200, 10)) + rng.normal(size=(classes, 10))[labels]
    features[:, 3] = features[:, 3] * 0.01 + 100
    return features.astype(np.float32), labels


def make_head(encoder: DOFA, classes: int = 4, **changes) -> Head:
    features, labels = features_and_labels(classes)
    layer = fit_logistic(features, labels, 1.0)
    sensor = sensors.get("rgb-aerial")
    assert sensor.scaling is not None
    head = Head(
        task="classification",
        class_names=tuple(f"class {c}" for c in range(classes)),
        colours=palette(classes),
        encoder_sha256=encoder_sha256(encoder),
        levels=("pooled",),
        sensor=sensor,
        scaling=sensor.scaling.with_stats([100, 110, 120], [40, 41, 42], "user"),
        patch_offset=0,
        tile_size=64,
        gsd_m=10.0,
        weight=layer.weight,
        bias=layer.bias,
        validation={"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}},
    )
    return replace(head, **changes)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_saved_and_loaded_head_gives_scikit_learns_probabilities(encoder: DOFA, tmp_path: Path, classes: int) -> None:
    features, labels = features_and_labels(classes)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, tol=1e-10, max_iter=50_000))
    reference.fit(features.astype(np.float64), labels)
    make_head(encoder, classes).save(tmp_path / "head")
    head = load_head(tmp_path / "head", encoder)
    expected = reference.predict_proba(features.astype(np.float64))
    np.testing.assert_allclose(head.predict_proba(features), expected, atol=1e-5)
    np.testing.assert_allclose(head.predict_proba(torch.from_numpy(features)), expected, atol=1e-5)


def test_class_names_that_a_terminal_obeys_are_refused(encoder: DOFA) -> None:
    with pytest.raises(CheckpointError, match="control characters"):
        make_head(encoder, class_names=("a", "b\x1b[2J", "c", "d"))


def test_a_round_trip_keeps_every_field(encoder: DOFA, tmp_path: Path) -> None:
    head = make_head(encoder, ignore=255, nodata=254, levels=(3, "pooled"))
    again = load_head(head.save(tmp_path / "head"))
    for name in Head.__dataclass_fields__:
        if name in ("weight", "bias"):
            np.testing.assert_array_equal(getattr(again, name), getattr(head, name))
        else:
            assert getattr(again, name) == getattr(head, name), name
    assert sorted(p.name for p in (tmp_path / "head").iterdir()) == ["head.json", "head.safetensors"]


def test_a_head_maps_every_place_of_a_feature_map_like_a_pooled_vector(encoder: DOFA) -> None:
    head = make_head(encoder)
    features, _ = features_and_labels()
    maps = torch.from_numpy(features[:24]).reshape(2, 3, 4, 10).permute(0, 3, 1, 2)
    logits = head.apply(maps)
    assert logits.shape == (2, 4, 3, 4)
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(
        logits.permute(0, 2, 3, 1).reshape(24, 4), head.apply(torch.from_numpy(features[:24])), atol=1e-6
    )
    with pytest.raises(CheckpointError, match=r"\(2, 9, 3, 4\) do not fit a head of 10"):
        head.apply(maps[:, :9])


def test_another_encoder_is_refused(encoder: DOFA, tmp_path: Path) -> None:
    make_head(encoder).save(tmp_path)
    load_head(tmp_path, encoder)
    with torch.no_grad():
        encoder.cls_token[0, 0, 0] += 1e-4
    with pytest.raises(CheckpointError, match="was trained on the encoder"):
        load_head(tmp_path, encoder)


def edit(folder: Path, **changes) -> None:
    record = json.loads((folder / "head.json").read_text())
    record.update(changes)
    (folder / "head.json").write_text(json.dumps({k: v for k, v in record.items() if v != "gone"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 4}, "format_version 4, newer than the 3"),
        ({"format_version": "gone"}, "no format_version"),
        ({"tile_size": "gone", "gsd_m": "gone"}, "tile_size, gsd_m are missing"),
        ({"tile_sizes": 3}, "unknown key 'tile_sizes'.*tile_size"),
        ({"task": "detection"}, "task 'detection'"),
        ({"class_names": ["a", "b"]}, r"weight \(4, 10\)"),
        ({"colours": [[0, 0, 0]]}, "1 colours for 4 classes"),
        ({"weights_sha256": "0" * 64}, "not the file its head.json describes"),
        ({"scaling": {"unit": "uint8"}}, "scaling: bands, scale"),
    ],
)
def test_a_head_json_that_does_not_hold_is_refused(encoder: DOFA, tmp_path: Path, changes, message: str) -> None:
    make_head(encoder).save(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_head(tmp_path)


def test_weights_that_are_missing_truncated_or_of_another_head_are_refused(encoder: DOFA, tmp_path: Path) -> None:
    make_head(encoder).save(tmp_path)
    file = tmp_path / "head.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(CheckpointError, match="truncated copy"):
        load_head(tmp_path)
    tensors = load(whole)
    save_file({**tensors, "scale": tensors["bias"]}, file)
    edit(tmp_path, weights_sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match="holds bias, scale, weight"):
        load_head(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"head\.safetensors is missing"):
        load_head(tmp_path)
    with pytest.raises(CheckpointError, match=r"head\.json is missing"):
        load_head(tmp_path / "nowhere")


def test_a_head_without_finite_weights_or_statistics_cannot_exist(encoder: DOFA) -> None:
    head = make_head(encoder)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        replace(head, bias=np.full(4, np.nan))
    with pytest.raises(CheckpointError, match="needs statistics for the bands R, G, B"):
        replace(head, scaling=head.scaling.without_stats())


def test_colours_differ_for_many_classes() -> None:
    assert len(set(palette(45))) == 45
    assert all(0 <= channel <= 255 for colour in palette(45) for channel in colour)
