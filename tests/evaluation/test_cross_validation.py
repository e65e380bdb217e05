"""The numeric half of the probe, on plain arrays."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from dofa.datasets.folds import split_folds
from dofa.datasets.opening import read_eurosat_rgb
from dofa.errors import ConfigError, DataError
from dofa.evaluation.cross_validation import (
    PENALTIES,
    bootstrap,
    check_features,
    choose_penalty,
    fit_logistic,
    knn_predict,
    softmax,
)
from dofa.evaluation.frozen_features import band_statistics


def correlated(count: int = 300, width: int = 12, classes: int = 4, seed: int = 0):
    """Features like those of a network: strongly correlated, far from zero, of unequal spread."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    hidden = rng.normal(size=(count, width)) + 0.9 * rng.normal(size=(classes, width))[labels]
    mix = rng.normal(size=(width, width)) * np.logspace(0, -2, width)
    return (hidden @ mix + 30 * rng.normal(size=width)).astype(np.float32), labels


def newton(features: NDArray, labels: NDArray, penalty: float) -> tuple[NDArray, NDArray]:
    """Softmax regression to its optimum by full Newton steps: slow, and another way than the code under test."""
    count, width, classes = len(features), features.shape[1], labels.max() + 1
    inputs = np.concatenate([features, np.ones((count, 1))], axis=1)
    ridge = np.diag(np.tile(np.append(np.ones(width), 1e-12), classes)) / penalty
    layer = np.zeros((classes, width + 1))
    truth = np.eye(classes)[labels]
    for _ in range(60):
        probability = softmax(inputs @ layer.T)
        gradient = ((probability - truth).T @ inputs).ravel() + ridge @ layer.ravel()
        if np.abs(gradient).max() < 1e-10 * count:
            return layer[:, :-1], layer[:, -1]
        hessian = ridge.copy()
        for i in range(classes):
            for j in range(classes):
                weight = probability[:, i] * ((i == j) - probability[:, j])
                block = np.s_[i * (width + 1) : (i + 1) * (width + 1), j * (width + 1) : (j + 1) * (width + 1)]
                hessian[block] += inputs.T * weight @ inputs
        layer = layer - np.linalg.lstsq(hessian, gradient, rcond=1e-14)[0].reshape(layer.shape)
    raise AssertionError("Newton's method did not arrive")


def standardised(train: NDArray, *parts: NDArray) -> list[NDArray]:
    mean, std = train.astype(np.float64).mean(0), train.astype(np.float64).std(0)
    return [(part - mean) / std for part in parts]


@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_logistic_regression_reaches_the_optimum_newtons_method_finds(penalty: float) -> None:
    features, labels = correlated()
    train, test = features[:200], features[200:]
    scaled_train, scaled_test = standardised(train, train, test)
    weight, bias = newton(scaled_train, labels[:200], penalty)
    model = fit_logistic(train, labels[:200], penalty)
    np.testing.assert_allclose(softmax(model.logits(test)), softmax(scaled_test @ weight.T + bias), atol=2e-5)
    assert (model.predict(test) == (scaled_test @ weight.T + bias).argmax(1)).all()


def test_two_classes_give_scikit_learns_probabilities() -> None:
    features, labels = correlated(classes=2)
    model = fit_logistic(features, labels, 0.5)
    (scaled,) = standardised(features, features)
    reference = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000).fit(scaled, labels)
    np.testing.assert_allclose(softmax(model.logits(features)), reference.predict_proba(scaled), atol=1e-5)


def test_features_without_variance_change_nothing() -> None:
    features, labels = correlated()
    dead = np.full((len(features), 2), 1e4, np.float32)
    dead[0, 1] += 1e-3  # lost in float32
    one = fit_logistic(features, labels, 1.0)
    two = fit_logistic(np.concatenate([features, dead], axis=1), labels, 1.0)
    np.testing.assert_allclose(one.logits(features), two.logits(np.concatenate([features, dead], axis=1)), atol=1e-4)
    assert (two.weight[:, -2:] == 0).all()


def test_more_features_than_images_is_no_obstacle() -> None:
    features, labels = correlated(count=40, width=120, classes=4)
    scaled, _ = standardised(features, features, features)
    reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=20_000).fit(scaled, labels)
    model = fit_logistic(features, labels, 1.0)
    np.testing.assert_allclose(softmax(model.logits(features)), reference.predict_proba(scaled), atol=1e-5)


def test_eurosat_band_statistics_give_the_published_floor_at_its_penalty(real_data: Path) -> None:
    """The data README's 54.5 % (1,200 images) and the reference's 56.8 % (2,000) are what C = 0.1 gives."""
    data = read_eurosat_rgb(real_data / "eurosat_rgb" / "EuroSAT_RGB_2000.zip")
    features, labels = band_statistics(data).features, data.labels

    def accuracy(rows: NDArray, penalty: float | None) -> float:
        right = 0
        for fold in split_folds(labels[rows], 5, seed=0):
            train, test = rows[fold.train], rows[fold.test]
            c = choose_penalty(features[train], labels[train]) if penalty is None else penalty
            right += (fit_logistic(features[train], labels[train], c).predict(features[test]) == labels[test]).sum()
        return right / len(rows)

    def independent(penalty: float) -> float:
        right = 0
        for fold in split_folds(labels, 5, seed=0):
            train, test = standardised(features[fold.train], features[fold.train], features[fold.test])
            weight, bias = newton(train, labels[fold.train], penalty)
            right += ((test @ weight.T + bias).argmax(1) == labels[fold.test]).sum()
        return right / len(labels)

    everything, part = np.arange(2000), np.arange(2000).reshape(10, 200)[:, :120].ravel()
    assert accuracy(everything, 0.1) == pytest.approx(0.5665, abs=0.0005)
    assert accuracy(part, 0.1) == pytest.approx(0.545, abs=0.003)
    assert abs(accuracy(everything, 1.0) - independent(1.0)) <= 0.001
    # The fair floor lets inner folds choose: a weaker penalty serves six features far better.
    assert accuracy(everything, None) == pytest.approx(0.643, abs=0.003)


@given(
    counts=st.lists(st.integers(5, 30), min_size=2, max_size=6), folds=st.integers(2, 5), seed=st.integers(0, 2**32 - 1)
)
def test_folds_judge_every_image_once_and_spread_each_class_evenly(counts, folds: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    parts = split_folds(labels, folds, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([p.test for p in parts])), np.arange(len(labels)))
    for part in parts:
        np.testing.assert_array_equal(np.sort(np.concatenate([part.train, part.test])), np.arange(len(labels)))
    held = np.array([np.bincount(labels[p.test], minlength=len(counts)) for p in parts])
    assert (np.ptp(held, axis=0) <= 1).all()
    assert np.ptp(held.sum(1)) <= 1


@settings(deadline=None, max_examples=40)
@given(places=st.lists(st.integers(0, 11), min_size=24, max_size=60), seed=st.integers(0, 2**31 - 1))
def test_no_place_is_learned_from_and_judged(places: list[int], seed: int) -> None:
    names = [f"p{p}" for p in places]
    labels = np.arange(len(places)) % 3
    if len(set(names)) < 3:
        return
    parts = split_folds(labels, 3, seed, names)
    np.testing.assert_array_equal(np.sort(np.concatenate([p.test for p in parts])), np.arange(len(labels)))
    for part in parts:
        assert not {names[i] for i in part.train} & {names[i] for i in part.test}


def test_folds_depend_on_nothing_but_labels_and_seed() -> None:
    labels = np.arange(50) % 4
    one, same, other = (split_folds(labels, 5, seed) for seed in (1, 1, 2))
    assert all((a.test == b.test).all() for a, b in zip(one, same, strict=True))
    assert any((a.test != b.test).any() for a, b in zip(one, other, strict=True) if len(a.test) == len(b.test))


def test_degenerate_input_is_refused_in_one_line() -> None:
    features, labels = correlated(count=20, classes=2)
    names = [f"image {i}" for i in range(20)]
    with pytest.raises(DataError, match="class river has 3 images, fewer than the 5 folds"):
        split_folds(np.array([0] * 17 + [1] * 3), 5, 0, names=["forest", "river"])
    with pytest.raises(ConfigError, match="2 places do not fill 5 folds"):
        split_folds(labels, 5, 0, places=["a", "b"] * 10)
    with pytest.raises(ConfigError, match="--folds 1"):
        split_folds(labels, 1, 0)
    broken = features.copy()
    broken[7, 2] = np.nan
    with pytest.raises(DataError, match="block 3: 1 of 20 images have a NaN or infinite feature, image 7 first"):
        check_features(broken, labels, names, "block 3")
    with pytest.raises(DataError, match="20 labels"):
        check_features(features[:5], labels, names, "block 3")
    with pytest.raises(ConfigError, match="--neighbours 21"):
        knn_predict(features, labels, features, 21)


def test_penalty_is_chosen_by_what_helps_on_rows_not_fitted() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    noise = rng.normal(size=(120, 60))
    weak = noise.copy()
    weak[:, 0] += 2 * labels  # one useful feature among 59 of noise
    clean = np.stack([labels + 0.01 * rng.normal(size=120), rng.normal(size=120)], axis=1)
    assert choose_penalty(weak, labels) < 0.1
    assert choose_penalty(clean, labels, (1e-4, 1.0)) == 1e-4  # both are perfect: the stronger one wins
    assert choose_penalty(weak, labels, (7.0,)) == 7.0
    assert choose_penalty(weak, labels, PENALTIES, 0, ["only one place"] * 120) in PENALTIES


@pytest.mark.parametrize("neighbours", [1, 5])
def test_nearest_neighbours_vote_as_scikit_learns_do(neighbours: int) -> None:
    features, labels = correlated(count=200, classes=2)
    train, test = standardised(features[:150], features[:150], features[150:])
    reference = KNeighborsClassifier(neighbours, metric="cosine").fit(train, labels[:150]).predict(test)
    np.testing.assert_array_equal(knn_predict(features[:150], labels[:150], features[150:], neighbours), reference)


def test_equal_votes_go_to_the_nearer_class() -> None:
    train = np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, -0.2], [-0.6, -0.6]])
    assert knn_predict(train, np.array([0, 1, 0, 1]), np.array([[1.0, 0.05]]), 2).tolist() == [0]
    assert knn_predict(train, np.array([1, 0, 0, 1]), np.array([[1.0, 0.05]]), 2).tolist() == [1]


def test_a_method_against_itself_differs_by_exactly_nothing() -> None:
    correct = np.random.default_rng(0).random(200) < 0.7
    found = bootstrap(correct.astype(float) - correct, np.arange(200), 0)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(20, 150))
def test_paired_interval_is_antisymmetric_and_holds_the_difference(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = (rng.random(count) < 0.8).astype(float), (rng.random(count) < 0.6).astype(float)
    forward = bootstrap(one - two, np.arange(count), 1, draws=300)
    backward = bootstrap(two - one, np.arange(count), 1, draws=300)
    assert forward.low is not None
    assert forward.low <= forward.value <= forward.high
    assert forward.value == pytest.approx(one.mean() - two.mean())
    np.testing.assert_allclose([forward.low, forward.high], [-backward.high, -backward.low], atol=1e-12)


def test_paired_interval_is_narrower_where_methods_fail_on_the_same_images() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400) < 0.4
    one = (~hard).astype(float)
    two = one * (rng.random(400) > 0.05)
    paired = bootstrap(one - two, np.arange(400), 0)
    shuffled = bootstrap(one - rng.permutation(two), np.arange(400), 0)
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_resampling_places_is_wider_where_images_of_a_place_succeed_together() -> None:
    places = np.repeat(np.arange(20), 10)
    correct = np.repeat(np.random.default_rng(0).random(20) < 0.6, 10).astype(float)
    by_place, by_image = bootstrap(correct, places, 0), bootstrap(correct, np.arange(200), 0)
    assert by_place.high - by_place.low > 2 * (by_image.high - by_image.low)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(150):
        found = bootstrap((rng.random(100) < 0.7).astype(float), np.arange(100), seed, draws=300)
        hits += found.low <= 0.7 <= found.high
    assert 0.90 <= hits / 150 <= 0.985


def test_no_interval_is_given_for_a_handful_of_places() -> None:
    found = bootstrap(np.ones(40), np.arange(40) % 4, 0)
    assert (found.value, found.low, found.high) == (1.0, None, None)
    assert bootstrap(np.ones(40), np.arange(40) % 5, 0).low == 1.0


def test_bootstrap_is_a_function_of_its_seed() -> None:
    values = np.random.default_rng(0).random(60)
    assert bootstrap(values, np.arange(60), 4) == bootstrap(values, np.arange(60), 4)
    assert bootstrap(values, np.arange(60), 4) != bootstrap(values, np.arange(60), 5)
