"""kill -9 at random moments, while blocks are written and while the file is finished: the file comes out the same."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dofa.errors import ConfigError
from dofa.io import remove
from dofa.outputs.work_file import Layout, Work, open_features

HEIGHT, WIDTH, ROWS = 600, 400, 20
BLOCKS = HEIGHT // ROWS
SUFFIXES = {"cog": ".tif", "zarr": ".zarr", "geoparquet": ".parquet"}

# Imports once, then forks a process for every line it is told: kills fall into the work, not into imports.
SERVER = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("kills", sys.argv[1])
kills = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kills)
import rasterio, zarr, pyarrow.parquet, dofa.outputs.cog, dofa.outputs.zarr_store, dofa.outputs.geoparquet
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        kills.job(line.strip(), lambda what: os.write(1, b"at %d\\n" % what))
        os._exit(0)
    print(pid, flush=True)
    print("end", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def content(dtype):
    rng = np.random.default_rng(3)
    stored = (rng.normal(0, 40, (3, HEIGHT, WIDTH))).astype(dtype)
    stored[:, rng.random((HEIGHT, WIDTH)) < 0.2] = -128 if dtype == "int8" else np.nan
    scaled = {"scale": [0.5, 1, 2], "zero": [0, 1, 2]} if dtype == "int8" else {}
    nodata = -128 if dtype == "int8" else float("nan")
    place = {"crs": "EPSG:32632", "transform": (10.0, 0.0, 4e5, 0.0, -10.0, 5e6), "meta": {"levels": ["last"]}}
    return Layout(HEIGHT, WIDTH, 3, dtype, ("a", "b", "c"), nodata=nodata, **scaled, **place), stored


def job(out, tell=lambda what: None):
    """The work, resumed where it stopped; the journal is brought to the disk with every block."""
    layout, stored = content("int8" if ".int8" in out else "float16")
    with Work.open(out, layout, {"job": 1}, overwrite=True) as work:
        for block, row in enumerate(range(0, HEIGHT, ROWS)):
            if block >= work.done:
                tell(block)
                work.write(block, row, 0, stored[:, row : row + ROWS])
                work.sync()
        tell(BLOCKS)
        work.finish()


def tree(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()}


@pytest.fixture(scope="module")
def server():
    command = [sys.executable, "-c", SERVER, __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


def run(server, out, at=None, seconds=0.0):
    """One process at the work, killed so many seconds after it came to a block, or to the end; how it ended."""
    server.stdin.write(f"{out}\n")
    server.stdin.flush()
    pid = int(server.stdout.readline())
    while True:
        what, number = server.stdout.readline().split()
        if what == "end":
            return int(number)
        if int(number) == at:
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):  # it was quicker
                os.kill(pid, signal.SIGKILL)


def blocks_done(out):
    """Blocks that the journal counts."""
    journal = out.with_name(f".{out.name}.part") / "journal.json"
    return json.loads(journal.read_bytes())["done"] if journal.exists() else 0


def state(out, layout, stored):
    """What a kill left behind: none, writing or finishing. Blocks that the journal counts must be there."""
    folder = out.with_name(f".{out.name}.part")
    if not (folder / "journal.json").exists():
        return "none"
    values = np.fromfile(folder / "values.bin", layout.dtype).reshape(HEIGHT, WIDTH, 3)
    rows = blocks_done(out) * ROWS
    np.testing.assert_array_equal(values[:rows].transpose(2, 0, 1), stored[:, :rows])
    return "finishing" if rows == HEIGHT else "writing"


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("kind", sorted(SUFFIXES))
def test_a_file_finished_after_any_number_of_kills_is_the_one_of_a_quiet_run(server, tmp_path, kind, dtype):
    layout, stored = content(dtype)
    quiet = tmp_path / f"quiet.{dtype}{SUFFIXES[kind]}"
    assert run(server, quiet) == 0
    want = tree(quiet)
    out = tmp_path / f"out.{dtype}{SUFFIXES[kind]}"
    old = Layout(2, 2, 1, "float32", ("old",), crs="EPSG:4326")
    with Work.open(out, old, {}) as work:
        work.write(0, 0, 0, np.ones((1, 2, 2), np.float32))
        work.finish()
    before = tree(out)
    draw, seen, patience = random.Random(f"{kind} {dtype}"), Counter(), 0.2
    while seen["writing"] < 5 or seen["finishing"] < 5:
        assert seen.total() < 60, f"kills fell into {dict(seen)}"
        if seen.total() % 4 == 0:
            remove(out.with_name(f".{out.name}.part"))
        if seen.total() % 4 == 3:
            run(server, out, BLOCKS, draw.uniform(0, patience))
        else:
            run(server, out, draw.randrange(blocks_done(out), BLOCKS + 1), draw.uniform(0, 0.01))
        left = state(out, layout, stored)
        assert tree(out) in (before, want)  # never anything between
        patience = 0.8 * patience if left == "none" else 1.1 * patience
        seen[left] += 1
    assert run(server, out) == 0
    assert tree(out) == want
    assert not out.with_name(f".{out.name}.part").exists()
    np.testing.assert_array_equal(open_features(out).read_stored(), stored)


class Killed(BaseException):
    """Stands for the moment at which nothing more is done."""


@pytest.mark.parametrize(("suffix", "renames"), [(".tif", 0), (".zarr", 0), (".zarr", 1)])
def test_a_kill_before_or_between_the_renames_is_mended_by_the_next_run(tmp_path, suffix, renames, monkeypatch):
    out = tmp_path / f"out.int8{suffix}"
    job(str(tmp_path / f"quiet.int8{suffix}"))
    with Work.open(out, Layout(2, 2, 1, "float32", ("old",)), {}) as work:
        work.write(0, 0, 0, np.ones((1, 2, 2), np.float32))
        work.finish()
    before, left, real = tree(out), renames, os.replace

    def replace(source, target):
        nonlocal left
        if out in (Path(source), Path(target)):
            if left == 0:
                raise Killed
            left -= 1
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            job(str(out))
    assert out.exists() == (renames == 0)
    with pytest.raises(ConfigError, match="exists"):
        Work.open(out, content("int8")[0], {"job": 1})
    assert tree(out) == before  # what was there is there again
    job(str(out))
    assert tree(out) == tree(tmp_path / f"quiet.int8{suffix}")
    assert not out.with_name(f".{out.name}.part").exists()


@pytest.mark.parametrize("again", [True, False])
def test_a_kill_before_the_side_files_leaves_no_wrong_ones_and_no_folder(tmp_path, again, monkeypatch):
    out, stale = tmp_path / "out.int8.tif", tmp_path / "out.int8.tif.aux.xml"
    stale.write_text("<PAMDataset/>")  # statistics that QGIS left of an older file
    with monkeypatch.context() as patch:
        patch.setattr(Work, "_place_side_files", lambda self: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            job(str(out))
    placed = tree(out)
    assert out.with_name(".out.int8.tif.part").exists()
    if again:
        job(str(out))
    else:
        with pytest.raises(ConfigError, match="exists"):
            Work.open(out, content("int8")[0], {"job": 1})
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
    assert tree(out) == placed
