"""Scores from counts, against scikit-learn on random and on degenerate inputs."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from dofa.errors import DataError
from dofa.evaluation.metrics import (
    accuracy,
    binary_counts,
    confusion,
    f1,
    iou,
    macro_f1,
    mean_iou,
    micro_average_precision,
    micro_f1,
    multilabel_f1,
)

CLASSES = 5


@st.composite
def segmentations(draw):
    """Labels and predictions that may lack classes, agree, or have nothing that counts."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    shape = draw(st.sampled_from([(1, 1), (4, 7), (3, 5, 6)]))
    present = draw(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=CLASSES, unique=True))
    guessed = draw(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=CLASSES, unique=True))
    ignore = draw(st.sampled_from([None, -1, 255, 0]))
    labels = rng.choice(present, shape).astype(np.int16)
    predicted = np.where(rng.random(shape) < draw(st.sampled_from([0.0, 0.6, 1.0])), labels, rng.choice(guessed, shape))
    if ignore is not None:
        labels[rng.random(shape) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = ignore
    return predicted, labels, ignore


@given(segmentations())
@settings(deadline=None, max_examples=150)
def test_scores_of_exclusive_classes_are_scikit_learns(drawn):
    predicted, labels, ignore = drawn
    counts = confusion(predicted, labels, CLASSES, ignore)
    keep = labels != ignore
    true, given_ = labels[keep], predicted[keep]
    if not keep.any():
        assert counts.sum() == 0
        assert all(math.isnan(score(counts)) for score in (accuracy, mean_iou, macro_f1))
        assert np.isnan(iou(counts)).all()
        return
    everything = range(CLASSES)
    np.testing.assert_array_equal(counts, reference.confusion_matrix(true, given_, labels=everything))
    assert accuracy(counts) == pytest.approx(reference.accuracy_score(true, given_))
    assert accuracy(counts) == pytest.approx(reference.f1_score(true, given_, average="micro"))
    # Left to itself scikit-learn averages over the classes that occur or are predicted.
    assert mean_iou(counts) == pytest.approx(reference.jaccard_score(true, given_, average="macro"))
    assert macro_f1(counts) == pytest.approx(reference.f1_score(true, given_, average="macro"))
    absent = ~np.isin(everything, np.union1d(true, given_))
    for mine, theirs in ((iou, reference.jaccard_score), (f1, reference.f1_score)):
        each = theirs(true, given_, average=None, labels=everything, zero_division=0)
        np.testing.assert_allclose(mine(counts), np.where(absent, np.nan, each))


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.3, 1.0]))
@settings(deadline=None, max_examples=80)
def test_f1_of_classes_that_do_not_exclude_each_other_is_scikit_learns(seed, share, guessed):
    rng = np.random.default_rng(seed)
    labels, predicted = (rng.random((9, CLASSES)) < share).astype(int), rng.random((9, CLASSES)) < guessed
    labels[:, 2] = predicted[:, 2] = 0  # a class nobody ever saw or said
    counts = binary_counts(predicted, labels)
    np.testing.assert_array_equal(counts, reference.multilabel_confusion_matrix(labels, predicted))

    def theirs(average):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its word on classes without a score
            return reference.f1_score(labels, predicted, average=average, zero_division=np.nan)

    np.testing.assert_allclose(multilabel_f1(counts), theirs(None))
    np.testing.assert_allclose(micro_f1(counts), theirs("micro"))


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 9, 60]), st.sampled_from([0.02, 0.3, 1.0]), st.integers(0, 6))
@settings(deadline=None, max_examples=120)
def test_micro_average_precision_is_scikit_learns_ties_and_all(seed, images, share, digits):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(images, CLASSES)).round(digits)
    labels = (rng.random((images, CLASSES)) < share).astype(int)
    found = micro_average_precision(scores, labels)
    if labels.any():
        assert found == pytest.approx(reference.average_precision_score(labels, scores, average="micro"))
        assert found == micro_average_precision(np.exp(scores), labels)  # ranks are all that counts
    else:
        assert math.isnan(found)


@given(segmentations(), st.integers(1, 5))
@settings(deadline=None)
def test_counts_of_parts_add_up_to_those_of_the_whole(drawn, pieces):
    predicted, labels, ignore = drawn
    parts = [
        confusion(p, t, CLASSES, ignore)
        for p, t in zip(np.array_split(predicted.ravel(), pieces), np.array_split(labels.ravel(), pieces), strict=True)
    ]
    np.testing.assert_array_equal(sum(parts), confusion(predicted, labels, CLASSES, ignore))


def test_scores_of_many_matrices_at_once_are_those_of_each():
    rng = np.random.default_rng(0)
    draws = rng.integers(0, 4, (3, 2, CLASSES, CLASSES))
    draws[0, 0] = 0
    for score in (accuracy, mean_iou, macro_f1, iou, f1):
        together = score(draws)
        for index in np.ndindex(3, 2):
            np.testing.assert_array_equal(together[index], score(draws[index]))
    flags = rng.integers(0, 4, (3, CLASSES, 2, 2))
    for i in range(3):
        np.testing.assert_array_equal(micro_f1(flags)[i], micro_f1(flags[i]))


def test_an_ignored_value_may_be_a_class_that_is_predicted_all_the_same():
    counts = confusion([0, 1, 1, 0], [0, 0, 1, 1], 2, ignore=0)
    assert counts.tolist() == [[0, 0], [1, 1]]


def test_values_that_are_no_class_are_refused_by_number_and_name():
    with pytest.raises(DataError, match=r"3 labels are -1, 9; classes are 0 to 4 or 255 \(ignored\)"):
        confusion([0, 0, 0, 0], [9, -1, 9, 255], CLASSES, ignore=255)
    with pytest.raises(DataError, match="1 predictions are 5; classes are 0 to 4: map them"):
        confusion([5], [4], CLASSES)
    with pytest.raises(DataError, match="1 predictions are -1"):
        confusion([-1], [4], CLASSES)  # 4 · 5 − 1 would be another pair
    with pytest.raises(DataError, match="float64"):
        confusion([0.5], [0], CLASSES)
    with pytest.raises(DataError, match="shape"):
        confusion([0, 1], [0], CLASSES)
    with pytest.raises(DataError, match="0 or 1"):
        binary_counts(np.zeros((1, 2), bool), [[0, 2]])
    with pytest.raises(DataError, match=r"\(N, K\) both"):
        micro_average_precision([0.1, 0.2], [0, 1])
    with pytest.raises(DataError, match="1 of 2 scores are NaN"):
        micro_average_precision([[0.1, math.nan]], [[0, 1]])
