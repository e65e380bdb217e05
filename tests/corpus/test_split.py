"""Who is held out: places, or blocks of ground with a gap."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dofa.corpus.items import Item
from dofa.corpus.split import SplitConfig, assign
from dofa.errors import ConfigError, DataError


def nothing():
    raise AssertionError("planning loads no image")


def items_of(places):
    return [Item(str(n), place, nothing) for n, place in enumerate(places)]


def tiles(place, columns, rows, size=10.0, shift=0.0, frame="EPSG:32633"):
    """A grid of square tiles, as one date of a place."""
    return [
        Item(f"{place} {c} {r} {shift}", place, nothing, (x, y, x + size, y + size), frame)
        for c in range(columns)
        for r in range(rows)
        for x, y in [(1000 + c * size + shift, 2000 + r * size - shift)]
    ]


@given(
    st.lists(st.sampled_from([f"p{i}" for i in range(30)]), min_size=1, max_size=80),
    st.floats(0.01, 0.99),
    st.integers(0, 9),
)
def test_a_split_by_place_never_divides_a_place_and_leaves_both_sides_one(places, fraction, seed):
    items = items_of(places)
    split = assign(items, SplitConfig("place", fraction, seed))
    sides = {side: {p for p, s in zip(places, split, strict=True) if s == side} for side in ("train", "val")}
    assert not sides["train"] & sides["val"]
    assert sides["train"]
    count = len(set(places))
    if count >= 2:
        assert len(sides["val"]) == min(max(1, round(fraction * count)), count - 1)
    backwards = assign(items[::-1], SplitConfig("place", fraction, seed))
    assert backwards[::-1] == split


def test_another_seed_holds_out_other_places():
    items = items_of([f"p{i}" for i in range(50)])
    assert assign(items, SplitConfig(seed=0)) != assign(items, SplitConfig(seed=1))


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.floats(0.05, 0.4),
    st.integers(0, 5),
    st.floats(0, 0.9),
)
@settings(max_examples=200)
def test_blocks_keep_a_gap_of_a_tile_at_all_dates(columns, rows, fraction, seed, shift):
    dates = tiles("town", columns, rows) + tiles("town", columns, rows, shift=shift)
    config = SplitConfig("blocks", fraction, seed)
    assume(max(columns, rows) >= 4)
    split = assign(dates, config)
    axis = int(rows > columns)
    held = [(d.bounds[axis], d.bounds[axis + 2]) for d, s in zip(dates, split, strict=True) if s == "val"]
    kept = [(d.bounds[axis], d.bounds[axis + 2]) for d, s in zip(dates, split, strict=True) if s == "train"]
    assert held
    assert kept
    for low, high in kept:
        assert all(low - end >= 10 - 1e-3 or start - high >= 10 - 1e-3 for start, end in held)
    # Nothing is given away but the gap: two dates a metre apart lose at most two rows of tiles.
    across = min(columns, rows)
    assert split.count(None) <= 2 * 2 * across
    # The same ground is held out at both dates.
    half = len(dates) // 2
    assert split[:half].count("val") > 0
    assert split[half:].count("val") > 0


def test_every_place_is_cut_by_itself():
    split = assign(tiles("a", 8, 2) + tiles("b", 2, 9), SplitConfig("blocks"))
    assert {"train", "val", None} == set(split[:16]) == set(split[16:])


def test_a_place_too_small_for_blocks_is_refused_with_a_cure():
    with pytest.raises(DataError, match=r"place town is too small for blocks.*2.0 images in a row; pack smaller tiles"):
        assign(tiles("town", 2, 2), SplitConfig("blocks"))


def test_blocks_need_positions_in_one_frame():
    with pytest.raises(DataError, match="needs positions, and 0 has none"):
        assign(items_of(["a"]), SplitConfig("blocks"))
    mixed = tiles("a", 5, 5) + tiles("a", 5, 5, frame="EPSG:32634")
    with pytest.raises(DataError, match="EPSG:32633 and EPSG:32634"):
        assign(mixed, SplitConfig("blocks"))


def test_no_split_trains_on_everything():
    assert assign(items_of(["a", "b"]), SplitConfig("none")) == ["train", "train"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "palce"}, "did you mean place"),
        ({"val_fraction": 0.0}, "between 0 and 1"),
        ({"val_fraction": 1}, "0 and 1"),
    ],
)
def test_a_split_that_does_not_hold_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        SplitConfig(**settings)
