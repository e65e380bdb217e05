"""Linear layers for several labels at once, and LARS, against independent fits."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dofa.datasets.folds import deal_folds, fewer_labels
from dofa.errors import ConfigError
from dofa.evaluation.cross_validation import choose_penalty, knn_scores
from dofa.evaluation.linear import fit_lars, fit_logistic, sigmoid


def flags(count: int = 240, width: int = 10, classes: int = 4, seed: int = 0):
    """Correlated features far from zero, and labels that do not exclude each other."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(count, width))
    labels = (hidden @ rng.normal(size=(width, classes)) + 2 * rng.normal(size=(count, classes)) > 1).astype(np.int64)
    mixed = hidden @ (rng.normal(size=(width, width)) * np.logspace(0, -1.5, width)) + 20
    return mixed.astype(np.float32), labels


@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_several_labels_are_scikit_learns_regressions_one_by_one(penalty: float) -> None:
    features, labels = flags()
    model = fit_logistic(features, labels, penalty)
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    for number in range(labels.shape[1]):
        reference = LogisticRegression(C=penalty, tol=1e-10, max_iter=20_000).fit(scaled, labels[:, number])
        found = sigmoid(model.logits(features))[:, number]
        np.testing.assert_allclose(found, reference.predict_proba(scaled)[:, 1], atol=2e-5)
    assert not model.exclusive
    np.testing.assert_array_equal(model.predict(features), model.logits(features) > 0)


@pytest.mark.parametrize("optimizer", ["lbfgs", "lars"])
def test_a_label_that_every_image_or_none_has_is_a_finite_constant(optimizer: str) -> None:
    features, labels = flags(count=60)
    labels[:, 0], labels[:, 2] = 1, 0
    model = fit_logistic(features, labels, 1.0) if optimizer == "lbfgs" else fit_lars(features, labels, 1.0)
    assert (model.weight[[0, 2]] == 0).all()
    assert (model.weight[[1, 3]] != 0).any()
    np.testing.assert_allclose(model.bias[[0, 2]], [np.log(60.5 / 0.5), np.log(0.5 / 60.5)])


def test_lars_ends_near_the_optimum_whatever_the_unit_of_the_features() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(4000) % 3
    features = rng.normal(size=(4000, 8)) + 1.5 * rng.normal(size=(3, 8))[labels]
    train, test = slice(0, 3000), slice(3000, None)
    wanted = (
        LogisticRegression(C=1e3, max_iter=5000).fit(features[train], labels[train]).score(features[test], labels[test])
    )
    model = fit_lars(features[train], labels[train], 10.0, seed=2)
    assert (model.predict(features[test]) == labels[test]).mean() == pytest.approx(wanted, abs=0.01)
    other = fit_lars(1000 + 50 * features[train], labels[train], 10.0, seed=2)
    np.testing.assert_allclose(other.logits(1000 + 50 * features), model.logits(features), atol=1e-3)
    again, another = (fit_lars(features[train], labels[train], 10.0, seed=seed) for seed in (2, 3))
    np.testing.assert_array_equal(model.weight, again.weight)
    assert (model.weight != another.weight).any()


def test_the_sweep_for_several_labels_takes_what_ranks_unseen_rows_best() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((120, 3)) < 0.3).astype(np.int64)
    noisy = rng.normal(size=(120, 60))
    noisy[:, :3] += labels
    assert choose_penalty(noisy, labels) < 1
    assert choose_penalty(noisy, labels, (0.5, 5.0), optimizer="lars") in (0.5, 5.0)


def test_votes_of_several_labels_are_shares_of_the_neighbours() -> None:
    train = np.array([[1.0, 0.0], [0.9, 0.2], [-1.0, 0.1], [-0.9, -0.3]])
    labels = np.array([[1, 1], [1, 0], [0, 1], [0, 0]])
    votes = knn_scores(train, labels, np.array([[1.0, 0.1]]), 2)
    assert votes[0, 0] == pytest.approx(2, abs=0.51)
    assert votes[0, 0] > votes[0, 1]


def test_a_larger_part_of_the_labels_holds_the_smaller_and_every_class_has_its_share() -> None:
    labels = np.repeat(np.arange(4), [10, 20, 40, 3])
    rows = np.arange(len(labels))
    parts = [fewer_labels(labels, rows, share, 7) for share in (0.1, 0.5, 1.0)]
    assert set(parts[0]) < set(parts[1]) < set(parts[2])
    np.testing.assert_array_equal(np.bincount(labels[parts[0]]), [1, 2, 4, 1])
    np.testing.assert_array_equal(parts[2], rows)
    for share in (0.0, 1.5):
        with pytest.raises(ConfigError, match="share of the training labels"):
            fewer_labels(labels, rows, share, 7)


def test_units_are_dealt_whole_and_evenly() -> None:
    units = [f"u{i % 7}" for i in range(50)]
    parts = deal_folds(units, 3, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate([p.test for p in parts])), np.arange(50))
    sides = [({units[i] for i in p.train}, {units[i] for i in p.test}) for p in parts]
    assert all(not train & test for train, test in sides)
    assert sorted(len(test) for _, test in sides) == [2, 2, 3]
    with pytest.raises(ConfigError, match="8 folds of 7 places"):
        deal_folds(units, 8, 0)
