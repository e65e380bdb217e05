"""`dofa embed` and `dofa predict` killed with -9 at random moments: the same command goes on to the same file."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from ..scene.conftest import model_and_head, tree, write_tiff

BANDS = ["B02", "B03", "B04", "B08"]
# Imports once, then forks a process for every command: kills fall into the work, not into imports.
SERVER = """
import json, os, sys, time
import rasterio, torch, zarr, pyarrow.parquet
import dofa.cli, dofa.inference.embed, dofa.inference.predict
import dofa.outputs.cog, dofa.outputs.zarr_store, dofa.outputs.geoparquet
from dofa.outputs import work_file
work_file.SYNC_S = 0.03  # a run of a second comes to the disk as often as one of an hour
torch.set_num_threads(1)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os.dup2(2, 1)
        os._exit(dofa.cli.main(json.loads(line)))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scene, a model, and a head on it."""
    folder = tmp_path_factory.mktemp("kills")
    rng = np.random.default_rng(0)
    image = (500 + 4000 * rng.random((4, 60, 55)).repeat(8, 1).repeat(8, 2)).astype(np.uint16)
    image[:, :50, :60] = 0
    write_tiff(folder / "scene.tif", image, names=BANDS, nodata=0, tiled=True, blockxsize=64, blockysize=64)
    model_and_head(folder, folder / "scene.tif")
    return folder


@pytest.fixture(scope="module")
def server():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.stdin.close()


def run(server, words, seconds=None):
    """The command in a process of its own, killed after so many seconds unless it was quicker; how it ended."""
    server.stdin.write(json.dumps(words) + "\n")
    server.stdin.flush()
    pid = int(server.stdout.readline())
    if seconds is not None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return int(server.stdout.readline())


def done(out):
    """Blocks that are on the disk, None where no journal is."""
    journal = out.with_name(f".{out.name}.part") / "journal.json"
    return json.loads(journal.read_bytes())["done"] if journal.exists() else None


@pytest.mark.parametrize(
    ("verb", "name", "words"),
    [
        ("embed", "x.tif", ["--stats", "scene", "--pca", "8", "--stride", "4"]),
        pytest.param(
            "embed", "x.zarr", ["--stats", "scene", "--dtype", "int8", "--stride", "4"], marks=pytest.mark.slow
        ),
        pytest.param("embed", "x.parquet", ["--stats", "scene", "--stride", "4"], marks=pytest.mark.slow),
        ("predict", "x.tif", ["--head", "head", "--stride", "4"]),
    ],
)
def test_a_command_killed_at_random_moments_goes_on_to_the_file_of_a_quiet_run(
    server, folder, tmp_path, verb, name, words
):
    words = [str(folder / "head") if w == "head" else w for w in words]
    words = [verb, str(folder / "scene.tif"), "--weights", str(folder / "model"), *words]
    words += ["--sensor", "sentinel-2-l2a", "--dn-offset", "0", "--precision", "float32"]
    quiet, out = tmp_path / f"quiet-{name}", tmp_path / name
    began = time.monotonic()
    assert run(server, [*words, "--out", str(quiet)]) == 0
    whole = time.monotonic() - began
    draw, seen, before = random.Random(f"{verb} {name}"), Counter(), 0
    while seen["writing"] < 4:
        assert seen.total() < 40, f"kills fell into {dict(seen)}"
        code = run(server, [*words, "--out", str(out)], draw.uniform(0, whole * 0.7))
        assert code in (0, -signal.SIGKILL)
        if out.exists():  # it was quicker, or killed behind its last step
            assert tree(out) == tree(quiet)
            (tmp_path / f"finished{seen.total()}").mkdir()
            out.rename(tmp_path / f"finished{seen.total()}" / name)
            seen["finished"] += 1
            before, whole = 0, 0.8 * whole  # the quiet run met a busier machine: kill earlier
            continue
        now = done(out)
        assert (now or 0) >= before  # what was on the disk is never done again
        seen["writing" if now and now > before else "at the same"] += 1
        wrote, before = bool(now and now > before), now or 0
        if not wrote:
            whole *= 1.1  # likewise where this one meets a busier one: kill later
    assert run(server, [*words, "--out", str(out)]) == 0
    assert tree(out) == tree(quiet)
    assert not out.with_name(f".{name}.part").exists()
