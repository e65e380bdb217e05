"""Tiled equals whole, in bounded memory, whatever was finished before."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dofa.errors import DataError
from dofa.inference.chunks import Chunks
from dofa.inference.engine import BufferPool, Job, run
from dofa.inference.tile_encoder import EncoderTiles, specialised
from dofa.inference.tiles import Plan
from dofa.inference.workers import WorkerThreads, run_model
from dofa.model.config import EncoderConfig
from dofa.model.encoder import DOFA
from dofa.scene.grid import Window

from ..scene.conftest import ArrayScene, LocalModel, array_inputs


def whole(image, model, stride):
    """What the model says of the whole image: its passes, each on the image cropped by its shift, averaged."""
    height, width = image.shape[1:]
    rows, cols = -(-height // stride), -(-width // stride)
    total, count = np.zeros((model.channels, rows, cols)), np.zeros((rows, cols))
    for a, b in itertools.product(range(0, model.cell, stride), repeat=2):
        if (a and height - a < model.patch) or (b and width - b < model.patch):
            continue
        part = image[:, a:, b:]
        pad = [-n % model.patch for n in part.shape[1:]]
        part = np.pad(part, ((0, 0), (0, pad[0]), (0, pad[1])), "edge").astype(np.float32)
        run_model = model(torch.from_numpy(part)[None])[0].numpy().astype(np.float64)
        fine = run_model.repeat(model.cell // stride, 1).repeat(model.cell // stride, 2)
        top, left = a // stride, b // stride
        fine = fine[:, : rows - top, : cols - left]
        total[:, top : top + fine.shape[1], left : left + fine.shape[2]] += fine
        count[top : top + fine.shape[1], left : left + fine.shape[2]] += 1
    out = (total / count).astype(np.float32)
    if model.offset >= stride:  # the first cells lie outside the scene
        out[:, 0] = out[:, :, 0] = np.nan
    return out


def assembled(inputs, plan, model, skip=0, **how):
    out = np.full((model.channels, *plan.shape), np.nan, np.float32)
    seen = np.zeros(plan.shape, int)
    for block in run([Job(inputs, plan, model, skip)], **how):
        out[:, block.window.rows, block.window.cols] = np.where(block.valid, block.values, np.nan)
        seen[block.window.rows, block.window.cols] += 1
    return out, seen


@st.composite
def cases(draw):
    patch = draw(st.sampled_from([2, 4, 6]))
    cell = draw(st.sampled_from([c for c in range(1, patch + 1) if patch % c == 0]))
    stride = draw(st.sampled_from([c for c in range(1, cell + 1) if cell % c == 0]))
    offset = draw(st.integers(0, 1))
    # The neighbourhood reaches one pixel further than the cell, and one more with a patch_offset.
    halo = 2
    tile = patch * draw(st.integers(5, 7))
    least = 2 * cell * -(-halo // cell)
    overlap = draw(st.integers(least, max(least, tile - patch)))
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    plan = Plan(height, width, tile, overlap, patch, cell, stride, offset, halo, draw(st.sampled_from([0, 2 * tile])))
    return plan, draw(st.integers(0, 5)), draw(st.integers(1, 7)), draw(st.integers(0, 2**31))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_tiled_equals_whole_exactly_for_a_local_model(case):
    plan, skip, batch, seed = case
    image = np.random.default_rng(seed).standard_normal((2, plan.height, plan.width)).astype(np.float32)
    model = LocalModel(2, plan.patch, plan.cell, plan.offset)
    tiled, seen = assembled(array_inputs(image), plan, model, batch=batch, precision="float32")
    assert (seen == 1).all()
    np.testing.assert_array_equal(tiled, whole(image, model, plan.stride))
    skip = min(skip, len(plan.blocks))
    again, seen = assembled(array_inputs(image), plan, model, skip, batch=batch, precision="float32")
    for i, block in enumerate(plan.blocks):
        part = np.s_[block.rows, block.cols]
        assert (seen[part] == (i >= skip)).all()
        if i >= skip:
            np.testing.assert_array_equal(again[:, *part], tiled[:, *part])


def test_a_cell_with_less_than_half_its_pixels_measured_is_not_valid():
    image = np.ones((1, 16, 16), np.float32)
    valid = np.ones((16, 16), bool)
    valid[:4, :3] = False  # three of the first cell's four columns
    valid[4:8, :2] = False  # two of four: half is enough
    plan = Plan(16, 16, 8, 0, 4, 4, 4)
    out, _ = assembled(array_inputs(image, valid), plan, LocalModel(1, 4, 4, reach=0), precision="float32")
    assert np.isnan(out[0, 0, 0])
    assert np.isfinite(out[0, 1, 0])
    assert np.isfinite(out[0]).sum() == 15


def test_tiles_without_a_measurement_are_not_run():
    image = np.ones((1, 32, 32), np.float32)
    valid = np.zeros((32, 32), bool)
    valid[:8, :8] = True
    model = LocalModel(1, 4, 4, reach=0)
    out, seen = assembled(array_inputs(image, valid), Plan(32, 32, 8, 0, 4, 4, 4), model, batch=1, precision="float32")
    assert model.calls == 1
    assert (seen == 1).all()
    assert np.isfinite(out[0]).sum() == 4


def test_jobs_share_batches_and_come_one_after_another():
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((1, 8, 8)).astype(np.float32) for _ in range(5)]
    model = LocalModel(1, 4, 4)
    jobs = [Job(array_inputs(image), Plan(8, 8, 8, 0, 4, 4, 4), model) for image in images]
    blocks = list(run(jobs, batch=4, precision="float32"))
    assert [b.job for b in blocks] == [0, 1, 2, 3, 4]
    assert model.calls == 2
    for image, block in zip(images, blocks, strict=True):
        np.testing.assert_array_equal(block.values, whole(image, model, 4))


def test_answers_outlive_the_memory_of_their_images():
    class Echo(LocalModel):
        def __call__(self, images):
            return images

    images = np.full((3, 2, 4, 4), 1, np.float32)
    found = run_model(Echo(2, 4, 1), images, [True, True, True], torch.device("cpu"), False)
    images[:] = 2  # the next batch
    for one in found:
        np.testing.assert_array_equal(one, np.ones((4, 4, 2)))
    assert run_model(Echo(2, 4, 1), images, [True, False, True], torch.device("cpu"), False)[1] is None


def test_memory_of_a_batch_is_used_again_for_others_of_its_size_and_smaller():
    room = BufferPool()
    first = room.take((4, 2, 8, 8))
    place = first.ctypes.data
    room.give_back(first)
    again = room.take((3, 2, 8, 8))
    assert again.ctypes.data == place
    assert again.shape == (3, 2, 8, 8)
    assert not np.shares_memory(again, room.take((3, 2, 8, 8)))
    room.give_back(again)
    assert room.take((5, 2, 8, 8)).shape == (5, 2, 8, 8)


def test_an_answer_that_is_not_finite_names_the_scene_and_the_place():
    image = np.full((1, 8, 8), 1e30, np.float32)
    with pytest.raises(DataError, match=r"array: the model's answer for rows 0–8, columns 0–8 is not finite"):
        assembled(array_inputs(image), Plan(8, 8, 8, 0, 4, 4, 4), LocalModel(1, 4, 4), precision="float32")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_two_batches_at_a_time_are_one_after_the_other_to_the_last_bit(precision):
    """Each is computed by half of the threads, so two threads say what one says."""
    torch.manual_seed(0)
    model = DOFA(EncoderConfig(width=48, depth=2, heads=3, patch=8, image_size=64)).eval()
    image = np.random.default_rng(0).integers(1, 200, (3, 300, 260)).astype(np.uint8)
    inputs = array_inputs(image)
    tiles = EncoderTiles(specialised(model, inputs, "cpu", False, precision), "patch", ["pooled"], 64)
    plan = Plan(300, 260, 64, 16, 8, 8, 8, tiles.offset)
    alone, _ = assembled(inputs, plan, tiles, batch=3, precision=precision)
    torch.set_num_threads(2)
    together, seen = assembled(array_inputs(image), plan, tiles, batch=3, precision=precision)
    assert (seen == 1).all()
    np.testing.assert_array_equal(together, alone)
    assert torch.get_num_threads() == 2


def test_streams_share_the_threads_of_a_processor_and_leave_those_of_others_alone():
    torch.set_num_threads(4)
    with WorkerThreads(torch.device("cpu")) as streams:
        assert streams.count == 2
        both = threading.Barrier(2)  # passed only if two run at a time

        def here():
            both.wait(10)
            return torch.get_num_threads()

        assert [f.result() for f in [streams.submit(here), streams.submit(here)]] == [2, 2]
        with ThreadPoolExecutor(1) as another:
            assert another.submit(torch.get_num_threads).result() == 4
    assert torch.get_num_threads() == 4
    for threads, device in ((3, "cpu"), (4, "cuda")):
        with WorkerThreads(torch.device(device), threads) as streams:
            assert (streams.count, streams.submit(torch.get_num_threads).result()) == (1, threads)


def test_an_answer_that_fails_beside_another_ends_the_run_with_its_error():
    torch.set_num_threads(2)
    image = np.ones((1, 64, 64), np.float32)
    image[:, 40:, 40:] = 1e30
    with pytest.raises(DataError, match="is not finite"):
        assembled(array_inputs(image), Plan(64, 64, 8, 0, 4, 4, 4), LocalModel(1, 4, 4), batch=2, precision="float32")


def test_a_chunk_is_decoded_once_although_tiles_overlap():
    image = np.zeros((1, 700, 700), np.uint16)
    scene = ArrayScene(image, np.ones((700, 700), bool), (64, 64))
    chunks = Chunks(scene, 10**9)
    for row in range(0, 600, 50):
        for col in range(0, 600, 50):
            chunks.read(Window(row, col, 100, 100))
    assert len(scene.reads) == 9
    assert sum(w.height * w.width for w in scene.reads) == 700 * 700


def test_chunks_beyond_the_budget_are_forgotten_those_used_last_stay():
    image = np.zeros((1, 1024, 1024), np.uint16)
    scene = ArrayScene(image, np.ones((1024, 1024), bool), (256, 256))
    chunks = Chunks(scene, 3 * 256 * 256 * 3)
    for col in (0, 256, 512, 768):
        chunks.read(Window(0, col, 10, 10))
    chunks.read(Window(0, 768, 10, 10))
    assert len(scene.reads) == 4
    chunks.read(Window(0, 0, 10, 10))
    assert len(scene.reads) == 5


def test_an_error_while_reading_reaches_the_caller_and_the_next_one_tries_again():
    image = np.zeros((1, 64, 64), np.uint16)
    scene = ArrayScene(image, np.ones((64, 64), bool))
    good = scene.read

    def broken(window):
        scene.read = good
        raise DataError("array: damaged")

    scene.read = broken
    chunks = Chunks(scene, 10**6)
    with pytest.raises(DataError, match="damaged"):
        chunks.read(Window(0, 0, 8, 8))
    assert chunks.read(Window(0, 0, 8, 8)).valid.all()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_window_through_chunks_is_the_window_of_the_scene(data):
    height, width = data.draw(st.integers(1, 600)), data.draw(st.integers(1, 600))
    block = data.draw(st.sampled_from([(1, 600), (64, 64), (256, 256), (100, 7)]))
    image = np.arange(height * width, dtype=np.uint32).reshape(1, height, width) + 1
    chunks = Chunks(ArrayScene(image, np.ones((height, width), bool), block), 10**9)
    window = Window(
        data.draw(st.integers(-20, height - 1)), data.draw(st.integers(-20, width - 1)),
        data.draw(st.integers(21, 300)), data.draw(st.integers(21, 300)),
    )  # fmt: skip
    padded = np.pad(image, ((0, 0), (20, 320), (20, 320)))
    expected = padded[0, window.row + 20 :, window.col + 20 :][: window.height, : window.width]
    parts, valid = chunks.read(window)
    np.testing.assert_array_equal(parts[0][0], expected)
    np.testing.assert_array_equal(valid, expected > 0)
