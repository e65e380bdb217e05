"""Scores drawn again by the bootstrap are the scores of the images drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, jaccard_score

from dofa.errors import ConfigError
from dofa.evaluation.bootstrap import Classes, Pixels, Ranked, interval
from dofa.evaluation.metrics import confusion


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_micro_precision_of_drawn_units_is_scikit_learns_on_their_images(seed: int, units: int) -> None:
    rng = np.random.default_rng(seed)
    unit = np.sort(np.append(np.arange(units), rng.integers(0, units, 10)))
    scores = rng.integers(0, 6, (len(unit), 3)) / 6  # with ties
    labels = (rng.random((len(unit), 3)) < 0.4).astype(np.int64)
    labels[:, 0] = 1
    times = rng.integers(0, 3, units)
    times[0] = 1
    rows = np.repeat(np.arange(len(unit)), times[unit])
    expected = [
        average_precision_score(labels.ravel(), scores.ravel()),
        average_precision_score(labels[rows].ravel(), scores[rows].ravel()),
    ]
    found = Ranked(scores, labels, unit).scores(np.stack([np.ones(units), times]))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_no_positive_among_the_drawn_gives_no_score() -> None:
    ranked = Ranked(np.array([[0.9], [0.1]]), np.array([[1], [0]]), np.arange(2))
    found = ranked.scores(np.array([[1.0, 1.0], [0.0, 2.0]]))
    assert found[0] == 1
    assert np.isnan(found[1])


def test_mean_iou_of_drawn_images_is_scikit_learns_on_their_pixels() -> None:
    rng = np.random.default_rng(0)
    truth, given_ = rng.integers(0, 3, (6, 8, 8)), rng.integers(0, 3, (6, 8, 8))
    counts = np.stack([confusion(g, t, 3) for g, t in zip(given_, truth, strict=True)])
    times = np.array([2, 0, 1, 1, 0, 3])
    rows = np.repeat(np.arange(6), times)
    expected = jaccard_score(truth[rows].ravel(), given_[rows].ravel(), average="macro")
    assert Pixels(counts).scores(times[None].astype(float))[0] == pytest.approx(expected)


def test_a_difference_is_paired_and_that_of_a_method_to_itself_is_nothing() -> None:
    rng = np.random.default_rng(0)
    units = np.arange(200)
    hard = rng.random(200) < 0.4
    one, two = Classes((~hard).astype(float), units), Classes((~hard & (rng.random(200) > 0.05)).astype(float), units)
    same = interval([one], 0, [one])
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    found, alone = interval([one], 0, [two]), interval([one], 0)
    assert found.low is not None
    assert alone.low is not None
    assert found.low > 0
    assert found.high - found.low < 0.7 * (alone.high - alone.low)
    both = interval([one, two], 0)
    assert both.value == pytest.approx((one.correct.mean() + two.correct.mean()) / 2)
    with pytest.raises(ConfigError, match="different units"):
        interval([one], 0, [Classes(np.ones(3), np.arange(3))])
