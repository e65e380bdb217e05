"""The contract of mixture and epoch (docs/architecture.md), as properties of the plan."""

import math
import time
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dofa.corpus.mixture import Mixture
from dofa.errors import ConfigError

SENSORS = ["s1", "s2", "naip", "enmap", "gaofen", "landsat"]


@st.composite
def mixtures(draw, weighted=None, smallest_in_batches=0, largest=300):
    names = SENSORS[: draw(st.integers(1, 6))]
    batch = {s: draw(st.integers(1, 9)) for s in names}
    counts = {s: max(1, smallest_in_batches * batch[s]) + draw(st.integers(0, largest)) for s in names}
    weights = None
    if draw(st.booleans()) if weighted is None else weighted:
        weights = {s: draw(st.sampled_from([0, 0.1, 1, 2.5, 7])) for s in names}
        weights[names[0]] = 1.0
    return Mixture(counts, batch, draw(st.integers(1, 12)), weights, draw(st.integers(0, 5)))


def drawn(mixture, updates):
    """Samples of each sensor in order, and micro-batches of each."""
    samples = {s: [] for s in mixture.sensors}
    for update in updates:
        for micro in mixture.plan(update):
            samples[micro.sensor] += micro.indices
    return samples


@given(mixtures(), st.integers(0, 10**6))
def test_every_update_deals_each_sensor_its_share_rounded_down_or_up(mixture, update):
    dealt = Counter(micro.sensor for micro in mixture.plan(update))
    assert sum(dealt.values()) == mixture.micro_batches_per_update
    for sensor, share in mixture.shares.items():
        assert math.floor(share) <= dealt[sensor] <= math.ceil(share)


@given(mixtures(), st.integers(0, 10**6))
def test_a_sensor_whose_share_is_one_micro_batch_is_in_every_update(mixture, update):
    here = {micro.sensor for micro in mixture.plan(update)}
    assert {s for s, share in mixture.shares.items() if share >= 1} <= here


@given(mixtures(), st.integers(0, 100_000))
def test_what_rounding_owes_a_sensor_it_gets_soon(mixture, start):
    before = mixture._dealt(start)[0]
    for update in range(start, start + 20):
        after = mixture._dealt(update)[1]
        for now, then, share in zip(after, before, mixture.shares.values(), strict=True):
            assert abs(now - then - share * (update + 1 - start)) < 3
            assert abs(now - share * (update + 1)) < 1.5


@given(mixtures(weighted=True))
def test_weights_are_shares_of_micro_batches(mixture):
    total = sum(mixture.shares.values())
    assert total == mixture.micro_batches_per_update
    assert set(mixture.shares) == set(mixture.sensors)


def test_a_weight_of_zero_leaves_a_sensor_out():
    mixture = Mixture({"a": 10, "b": 10}, {"a": 2, "b": 2}, 3, {"a": 0, "b": 1})
    assert {micro.sensor for u in range(20) for micro in mixture.plan(u)} == {"b"}


@given(mixtures())
@settings(deadline=None)
def test_no_sample_comes_twice_within_a_permutation_and_each_comes_once(mixture):
    samples = drawn(mixture, range(30))
    for sensor, walk in samples.items():
        count = mixture.counts[sensor]
        for turn in range(len(walk) // count):
            assert sorted(walk[turn * count : (turn + 1) * count]) == list(range(count))
        rest = walk[len(walk) // count * count :]
        assert len(set(rest)) == len(rest)


@given(mixtures(weighted=False, smallest_in_batches=1, largest=60), st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_after_e_epochs_of_natural_weights_every_sample_was_seen_e_times_give_or_take_one(mixture, epochs):
    assume(mixture.updates_per_epoch >= 1)  # else rounding to whole updates alone is more than one sample's turn
    samples = drawn(mixture, range(mixture.updates(epochs)))
    for sensor, walk in samples.items():
        seen = Counter(walk)
        for sample in range(mixture.counts[sensor]):
            assert abs(seen[sample] - epochs) <= 1, (
                f"{sensor} {sample} was seen {seen[sample]} times in {epochs} epochs"
            )


def test_many_epochs_do_not_drift():
    # One epoch is 3.03 updates: rounding every epoch by itself would lose a sample's turn every thirty epochs.
    mixture = Mixture({"a": 70, "b": 27}, {"a": 8, "b": 8}, 4)
    assert mixture.updates(100) == 303
    for walk in drawn(mixture, range(mixture.updates(100))).values():
        assert {99, 100, 101} >= set(Counter(walk).values())


def test_a_sensor_smaller_than_a_micro_batch_repeats():
    mixture = Mixture({"tiny": 3, "big": 40}, {"tiny": 8, "big": 8}, 2, {"tiny": 1, "big": 1})
    (micro,) = [m for m in mixture.plan(0) if m.sensor == "tiny"]
    assert sorted(micro.indices[:3]) == [0, 1, 2] == sorted(micro.indices[3:6])
    assert len(micro.indices) == 8


@given(mixtures(), st.integers(0, 10**9))
@settings(deadline=None)
def test_a_plan_is_a_function_of_the_update_alone(mixture, update):
    again = Mixture(mixture.counts, mixture.batch, mixture.micro_batches_per_update, dict(mixture.shares), mixture.seed)
    plan = mixture.plan(update)
    again.plan(update + 7)
    assert again.plan(update) == plan


@given(mixtures(), st.integers(0, 1000))
def test_positions_number_the_images_of_the_global_batch(mixture, update):
    positions = [p for micro in mixture.plan(update) for p in micro.positions]
    assert positions == list(range(len(positions)))


@given(mixtures(), st.integers(0, 1000))
def test_micro_batches_of_one_sensor_stand_together_so_that_ranks_share_it(mixture, update):
    order = [micro.sensor for micro in mixture.plan(update)]
    runs = [s for i, s in enumerate(order) if i == 0 or order[i - 1] != s]
    assert len(runs) == len(set(runs))


def test_the_ranks_together_do_the_same_whatever_their_number():
    plans = []
    for ranks in (1, 2, 3):
        mixture = Mixture({"a": 50, "b": 9, "c": 4}, {"a": 4, "b": 4, "c": 4}, 6)
        accumulation = 6 // ranks
        taken = [
            mixture.plan(update)[step * ranks + rank]
            for update in range(10)
            for step in range(accumulation)
            for rank in range(ranks)
        ]
        plans.append(taken)
    assert plans[0] == plans[1] == plans[2]


def test_another_sensor_does_not_change_the_order_of_the_others():
    walks = []
    for counts in ({"a": 40}, {"a": 40, "b": 11}):
        mixture = Mixture(counts, dict.fromkeys(counts, 4), 2, dict.fromkeys(counts, 1.0), seed=3)
        walks.append(drawn(mixture, range(10))["a"][:20])
    assert walks[0] == walks[1]


def test_sensors_of_one_size_are_not_walked_in_step():
    plan = Mixture({"a": 100, "b": 100}, {"a": 50, "b": 50}, 2).plan(0)
    assert plan[0].indices != plan[1].indices


def test_another_seed_gives_another_order():
    first, second = (Mixture({"a": 100}, {"a": 50}, 1, seed=s).plan(0)[0].indices for s in (0, 1))
    assert first != second


def test_planning_is_as_quick_late_in_training_as_early():
    mixture = Mixture(
        {"a": 410_000, "b": 11_483, "c": 60_000, "d": 200_000, "e": 5}, {"a": 64, "b": 16, "c": 64, "d": 64, "e": 4}, 8
    )
    began = time.process_time()
    for update in (10**7, 10**9):
        mixture.plan(update)
    assert time.process_time() - began < 0.5


def test_natural_weights_follow_samples_not_micro_batches():
    mixture = Mixture({"a": 100, "b": 100}, {"a": 10, "b": 5}, 3)
    assert mixture.shares == {"a": Fraction(1), "b": Fraction(2)}
    assert mixture.updates_per_epoch == 10


@pytest.mark.parametrize(
    ("counts", "batch", "micro", "weights", "words"),
    [
        ({"a": 0}, {"a": 1}, 1, None, "sensor a has no training samples"),
        ({"a": 5}, {"a": 0}, 1, None, "batch of sensor a is 0"),
        ({"a": 5}, {"a": 1}, 0, None, "0 micro-batches"),
        ({"a": 5}, {}, 1, None, "batch says nothing about sensor a"),
        ({"naip-rgb": 5}, {"naip-rgb": 1}, 1, {"naip-rgbn": 1}, "did you mean naip-rgb"),
        ({"a": 5, "b": 5}, {"a": 1, "b": 1}, 1, {"a": 1}, "0 leaves it out"),
        ({"a": 5}, {"a": 1}, 1, {"a": -1}, "at least 0 each"),
        ({"a": 5}, {"a": 1}, 1, {"a": 0}, "one above"),
    ],
)
def test_a_mixture_that_does_not_hold_together_is_refused_in_one_line(counts, batch, micro, weights, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Mixture(counts, batch, micro, weights)
    assert "\n" not in str(caught.value)
