"""On several processes: the file of one process to the last byte, whoever is killed on the way."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import dofa
from dofa.cli import VERBS, _parser, main
from dofa.errors import ConfigError, DataError, DofaError
from dofa.inference import cluster as clusters
from dofa.inference.embed import embed_command
from dofa.inference.features import embed
from dofa.outputs.work_file import Work

from ..scene.conftest import model_and_head, tree, write_tiff

pytest.importorskip("distributed")
BANDS = ["B02", "B03", "B04", "B08"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s"}
OPENING = ["--sensor", "sentinel-2-l2a", "--dn-offset", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two scenes, a model, and a head on it."""
    folder = tmp_path_factory.mktemp("cluster")
    rng = np.random.default_rng(0)
    for name, (height, width) in {"scene": (300, 341), "second": (90, 200)}.items():
        coarse = rng.random((4, -(-height // 8), -(-width // 8))).repeat(8, 1).repeat(8, 2)[:, :height, :width]
        image = (500 + 4000 * coarse + 100 * rng.random((4, height, width))).astype(np.uint16)
        image[:, :50, :60] = 0
        write_tiff(folder / f"{name}.tif", image, names=BANDS, nodata=0, tiled=True, blockxsize=64, blockysize=64)
    model_and_head(folder, folder / "scene.tif")
    return folder


def two_cores():
    """`local:2` shares out the cores of its process: one thread a worker, as everything here has."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


class Cluster:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder):
        self.folder, self.workers = folder, []
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", "at.json")
        self.address = self._wait(lambda: json.loads((folder / "at.json").read_text())["address"])

    def _start(self, kind, *words):
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *words, "--no-dashboard"]
        log = (self.folder / f"{kind}.log").open("ab")
        return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, env=ENVIRONMENT)

    def _wait(self, look):
        for _ in range(600):
            try:
                return look()
            except (OSError, ValueError, AssertionError):
                time.sleep(0.1)
        raise AssertionError((self.folder / "scheduler.log").read_text())

    def add(self):
        words = (self.address, "--nthreads", "1", "--no-nanny", "--host", "127.0.0.1", "--memory-limit", "0")
        self.workers.append(self._start("worker", *words, "--local-directory", str(self.folder)))
        return self.workers[-1]

    def hands(self, count):
        """Make it so many workers, and wait until the scheduler knows them."""
        from distributed import Client

        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < count:
            self.add()
        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=60)
        return self

    def close(self):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("workers"))
    yield cluster
    cluster.close()


def run(verb, folder, *words):
    """The command, in this process."""
    files = [str(folder / "scene.tif"), *(w for w in words if w.endswith("second.tif"))]
    rest = [w for w in words if not w.endswith("second.tif")]
    return main([verb, *files, "--weights", str(folder / "model"), *OPENING, *rest])


def of(folder, **how):
    """Features of the scene, not computed yet."""
    scene = dofa.open_scene(folder / "scene.tif", "sentinel-2-l2a", dn_offset=0)
    return embed(scene, folder / "model", stats="scene", batch=4, **how)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("embed", ["--stats", "scene", "--out", "x.tif", "--pca", "3", "--stride", "4"]),
        ("embed", ["--stats", "scene", "--out", "x.zarr", "--dtype", "int8", "--blocks", "0", "pooled"]),
        ("embed", ["--stats", "dataset", "--out", "x.parquet", "--level", "tile"]),
        ("predict", ["--head", "head", "--out", "x.tif"]),
    ],
)
def test_the_file_of_a_cluster_is_that_of_one_process(folder, cluster, tmp_path, verb, words, capsys):
    cluster.hands(2)
    words = [str(folder / "head") if w == "head" else w for w in words]
    made = []
    for name, where in (("one", ()), ("cluster", ("--cluster", cluster.address))):
        (tmp_path / name).mkdir()
        told = [str(tmp_path / name / w) if w.startswith("x.") else w for w in words]
        assert run(verb, folder, *told, *where) == 0, capsys.readouterr().err
        made.append(tree(tmp_path / name))
    assert made[0] == made[1]


def test_scenes_of_several_sizes_share_batches_and_come_out_the_same(folder, cluster, tmp_path):
    cluster.hands(2)
    for name, where in (("one", ()), ("cluster", ("--cluster", cluster.address))):
        words = [str(folder / "second.tif"), "--stats", "scene", "--out", str(tmp_path / name), *where]
        assert run("embed", folder, *words) == 0
    assert set(tree(tmp_path / "one")) == {"scene.tif", "second.tif"}
    assert tree(tmp_path / "one") == tree(tmp_path / "cluster")


def killing(processes, at):
    """Called with tiles done: ends processes, kill -9, when so many batches are."""
    calls = 0

    def progress(tiles, nbytes):
        nonlocal calls
        calls += 1
        if calls == at:
            for process in processes:
                process.kill()
                process.wait()

    return progress


def test_what_a_killed_worker_had_is_done_by_another(folder, cluster, tmp_path):
    want = of(folder).write(tmp_path / "one.tif")
    victim = cluster.hands(2).workers[0]
    one = of(folder, cluster=cluster.address, progress=killing([victim], at=5))
    made = one.write(tmp_path / "cluster.tif")
    assert victim.returncode == -signal.SIGKILL
    assert made.read_bytes() == want.read_bytes()


@pytest.mark.slow
def test_when_all_workers_are_killed_the_next_one_goes_on_with_the_model_made_again(folder, cluster, tmp_path):
    want = of(folder).write(tmp_path / "one.zarr")
    victims = list(cluster.hands(2).workers)
    kill = killing(victims, at=5)

    def progress(tiles, nbytes):
        kill(tiles, nbytes)
        if victims[-1].poll() is not None and len(cluster.workers) == 2:
            cluster.add()

    made = of(folder, cluster=cluster.address, progress=progress).write(tmp_path / "cluster.zarr")
    assert {victim.returncode for victim in victims} == {-signal.SIGKILL}
    assert tree(made) == tree(want)


@pytest.mark.slow
def test_without_its_scheduler_a_run_stops_in_one_line_and_goes_on_elsewhere(folder, tmp_path, monkeypatch):
    want = of(folder).write(tmp_path / "one.tif")
    out = tmp_path / "two.tif"
    own = Cluster(tmp_path)
    try:
        one = of(folder, cluster=own.hands(1).address, progress=killing([own.scheduler], at=40))
        with pytest.raises(
            DofaError, match=f"--cluster {own.address}: the scheduler is lost: .* same command, it goes"
        ):
            one.write(out)
    finally:
        own.close()
    began = []
    monkeypatch.setattr(Work, "write", counted(began))
    assert of(folder).write(out).read_bytes() == want.read_bytes()
    assert began[0] > 0  # what the cluster had done is not done again


def counted(began, write=Work.write):
    def writing(self, block, *rest):
        began.append(block)
        write(self, block, *rest)

    return writing


def test_files_that_workers_do_not_find_are_named_with_the_worker(folder, cluster, tmp_path):
    path = tmp_path / "scene.tif"
    path.write_bytes((folder / "scene.tif").read_bytes())
    scene = dofa.open_scene(path, "sentinel-2-l2a", dn_offset=0)
    one = embed(scene, folder / "model", stats="scene", cluster=cluster.hands(1).address)
    assert scene.fingerprint
    os.utime(path, (1, 1))
    with pytest.raises(
        DataError, match=r"worker tcp://\S+ finds other files of scene.tif .* the same files at the same"
    ):
        list(one)
    path.unlink()
    with pytest.raises(DataError, match=r"worker tcp://\S+: .*scene.tif.*; workers need the same files at the same"):
        list(one)


def test_workers_with_another_version_are_refused_before_they_compute(folder, cluster, monkeypatch):
    monkeypatch.setattr(clusters, "_versions", lambda: ("99.0", torch.__version__))
    with pytest.raises(ConfigError, match=rf"worker tcp://\S+ has dofa {dofa.__version__} .* this process 99.0"):
        list(of(folder, cluster=cluster.hands(1).address))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("local:0", "a scheduler's address such as tcp://HOST:8786, or local:4"),
        ("four", "a scheduler's address such as"),
        ("tcp://127.0.0.1:9", "no scheduler answers"),
        ("smoke://host", "no scheduler answers"),
    ],
)
def test_addresses_that_are_none_are_one_line(folder, tmp_path, address, said, monkeypatch, capsys):
    monkeypatch.setattr(clusters, "CONNECT_S", 0.5)
    words = ["--stats", "scene", "--out", str(tmp_path / "x.tif"), "--cluster", address]
    assert run("embed", folder, *words) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"--cluster {address}: " in told
    assert said in told


@pytest.mark.slow
def test_processes_on_this_machine_write_the_file_of_one(folder, tmp_path):
    made = []
    for name, where in (("one", ()), ("local", ("--cluster", "local:2"))):
        words = [
            "--weights",
            str(folder / "model"),
            *OPENING,
            "--stats",
            "scene",
            "--out",
            str(tmp_path / f"{name}.tif"),
        ]
        command = [sys.executable, "-m", "dofa", "embed", str(folder / "scene.tif"), *words, *where]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, preexec_fn=two_cores
        )
        assert done.returncode == 0, done.stderr
        made.append((tmp_path / f"{name}.tif").read_bytes())
    assert made[0] == made[1]


PAGE = Path(__file__).resolve().parents[2] / "docs" / "cluster.md"
SRUN = """#!/bin/sh
"$@" & "$@" & wait
"""  # two tasks


def block(language):
    """The only block of a language on the page."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return text


@pytest.mark.slow
def test_the_slurm_script_of_the_docs_writes_the_files_of_one_process(folder, tmp_path, monkeypatch):
    for name in ("scenes", "bin"):
        (tmp_path / name).mkdir()
    for name in ("scene.tif", "second.tif"):
        (tmp_path / "scenes" / name).symlink_to(folder / name)
    (tmp_path / "MODEL").symlink_to(folder / "model")
    (tmp_path / "bin" / "srun").write_text(SRUN)
    (tmp_path / "bin" / "srun").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**ENVIRONMENT, "PATH": path, "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}
    done = subprocess.run(
        ["bash", "-c", block("bash")], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    scenes = [str(tmp_path / "scenes" / name) for name in ("scene.tif", "second.tif")]
    monkeypatch.chdir(tmp_path)
    words = ["--weights", "MODEL", *OPENING, "--stats", "dataset", "--out", str(tmp_path / "one")]
    assert main(["embed", *scenes, *words]) == 0
    assert tree(tmp_path / "features") == tree(tmp_path / "one")
    assert not list(tmp_path.glob("scheduler-*"))


def test_the_kubernetes_file_of_the_docs_is_whole_and_its_command_is_one_of_ours():
    yaml = pytest.importorskip("yaml")
    parts = {(part["kind"], part["metadata"]["name"]): part for part in yaml.safe_load_all(block("yaml"))}
    service, worker = parts["Service", "dofa-scheduler"], parts["Deployment", "dofa-worker"]
    address = f"tcp://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert address in worker["spec"]["template"]["spec"]["containers"][0]["command"]
    pods = [part["spec"]["template"]["spec"] for part in parts.values() if part["kind"] != "Service"]
    for pod in pods:
        mounted = {mount["name"] for c in pod["containers"] for mount in c.get("volumeMounts", ())}
        assert mounted == {volume["name"] for volume in pod.get("volumes", ())}
    words = shlex.split(parts["Job", "dofa-embed"]["spec"]["template"]["spec"]["containers"][0]["command"][-1])
    told = vars(_parser(words[1], VERBS[words[1]], embed_command).parse_args(words[2:]))
    assert told["cluster"] == address
