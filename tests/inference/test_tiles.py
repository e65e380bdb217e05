"""Windows, weights and blocks: every cell is covered, weights sum to one, blocks are finished when they say so."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dofa.errors import ConfigError
from dofa.inference.tiles import WHOLE, Plan, cut


@st.composite
def cuts(draw):
    patch = draw(st.sampled_from([1, 2, 4, 8, 14, 16]))
    cell = draw(st.sampled_from([c for c in range(1, patch + 1) if patch % c == 0]))
    tile = patch * draw(st.integers(1, 12))
    halo = draw(st.integers(0, tile // 4))
    least = 2 * cell * math.ceil(halo / cell)
    if least > tile - patch:
        halo = least = 0
    overlap = draw(st.integers(least, tile - patch))
    shift = draw(st.integers(0, patch - 1))
    length = draw(st.integers(1, 8 * tile)) + shift
    names = ("length", "tile", "overlap", "patch", "cell", "halo", "shift")
    return dict(zip(names, (length, tile, overlap, patch, cell, halo, shift), strict=True))


@given(cuts())
def test_every_cell_is_covered_and_the_weights_sum_to_one_exactly(given_):
    axis = cut(**given_)
    patch, cell, shift, length = (given_[k] for k in ("patch", "cell", "shift", "length"))
    total = np.zeros(patch * math.ceil((length - shift) / patch) // cell, np.int64)
    for i, start in enumerate(axis.starts):
        first = (start - shift) // cell
        weights = axis.weights[i]
        assert (weights >= 0).all()
        total[first : first + len(weights)] += weights
        assert (start - shift) % patch == 0
    assert (total == WHOLE).all()


@given(cuts())
def test_neighbours_share_the_overlap_and_the_halo_never_counts(given_):
    axis = cut(**given_)
    idle = math.ceil(given_["halo"] / given_["cell"])
    for i, start in enumerate(axis.starts):
        weights = axis.weights[i]
        if i:
            assert axis.starts[i - 1] + axis.tile - start >= given_["overlap"]
            assert (weights[:idle] == 0).all()
        if i + 1 < len(axis.starts) and idle:
            assert (weights[-idle:] == 0).all()


def test_a_scene_shorter_than_a_tile_is_one_tile_of_whole_patches():
    assert cut(100, 224, 56, 16, 16).starts == (0,)
    assert cut(100, 224, 56, 16, 16).tile == 112
    assert cut(1, 224, 56, 16, 16).tile == 16


@st.composite
def plans(draw):
    patch = draw(st.sampled_from([2, 4, 6]))
    cell = draw(st.sampled_from([c for c in range(1, patch + 1) if patch % c == 0]))
    stride = draw(st.sampled_from([c for c in range(1, cell + 1) if cell % c == 0]))
    tile = patch * draw(st.integers(3, 5))
    overlap = draw(st.integers(2 * cell, tile - patch))
    return Plan(
        height=draw(st.integers(1, 60)),
        width=draw(st.integers(1, 60)),
        tile=tile,
        overlap=overlap,
        patch=patch,
        cell=cell,
        stride=stride,
        offset=draw(st.integers(0, 1)),
        halo=draw(st.sampled_from([0, 1])),
        swath=draw(st.sampled_from([0, tile, 2 * tile])),
    )


@settings(deadline=None)
@given(plans())
def test_blocks_cover_the_output_once(plan):
    seen = np.zeros(plan.shape, int)
    for block in plan.blocks:
        seen[block.rows, block.cols] += 1
    assert (seen == 1).all()


@settings(deadline=None)
@given(plans())
def test_a_block_is_finished_by_its_own_tiles_and_those_before_it_in_its_swath(plan):
    ratio = plan.cell // plan.stride
    passes = len(plan.row_passes), len(plan.col_passes)
    for index, block in enumerate(plan.blocks):
        total = np.zeros(plan.shape, np.int64)
        for earlier in range(plan.begins(index), index + 1):
            for tile in plan.tiles_of(earlier):
                weight = np.repeat(np.repeat(np.outer(tile.rows, tile.cols), ratio, 0), ratio, 1)
                top, left = tile.window.row // plan.stride, tile.window.col // plan.stride
                part = total[top : top + len(weight), left : left + weight.shape[1]]
                part += weight[: part.shape[0], : part.shape[1]]
        inside = total[block.rows, block.cols]
        rows = np.arange(block.row, block.row + block.height)
        cols = np.arange(block.col, block.col + block.width)
        # Cells before the first of a shifted pass are not seen by it.
        by_row = sum((rows >= a.starts[0] // plan.stride).astype(int) for a in plan.row_passes)
        by_col = sum((cols >= a.starts[0] // plan.stride).astype(int) for a in plan.col_passes)
        assert by_row.max() <= passes[0]
        assert by_col.max() <= passes[1]
        assert (inside == WHOLE**2 * np.outer(by_row, by_col)).all()


@given(plans())
def test_tiles_are_counted_without_listing_them(plan):
    assert plan.tile_count == sum(len(plan.tiles_of(block)) for block in range(len(plan.blocks)))


def test_a_fine_stride_on_a_large_scene_is_planned_in_seconds():
    plan = Plan(10980, 10980, 224, 80, 16, 16, 1, swath=1536)
    began = time.process_time()
    assert plan.tile_count > 1_000_000
    assert plan.tiles_of(0)
    assert time.process_time() - began < 3  # a minute where the tiles are listed one by one


def test_a_stride_that_does_not_divide_the_patch_names_those_that_do():
    with pytest.raises(ConfigError, match="1, 2, 4, 8, 16"):
        Plan(64, 64, 32, 16, 16, 16, 5)


def test_an_overlap_smaller_than_two_halos_is_refused():
    with pytest.raises(ConfigError, match="--overlap 8: at least 16"):
        cut(100, 32, 8, 8, 8, halo=8)


def test_the_transform_is_moved_by_the_patch_offset_also_when_rotated():
    plan = Plan(64, 64, 32, 8, 16, 16, 4, offset=1)
    a, b, c, d, e, f = plan.transform((10, 1, 500, 2, -10, 900))
    assert (a, b, d, e) == (40, 4, 8, -40)
    assert (c, f) == (500 - 11, 900 + 8)
