"""Small real stores: images that share structure across sensors, packed by dofa itself."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dofa import sensors
from dofa.corpus.items import Reading
from dofa.corpus.pack import pack
from dofa.corpus.split import SplitConfig
from dofa.train.config import PretrainConfig
from dofa.train.recipes import from_dict

from ..vit_files import write_vit


def smooth_fields(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """(count, size, size) patchy fields in 0..1."""
    coarse = rng.random((count, size // 8 + 2, size // 8 + 2))
    rows = np.linspace(0, coarse.shape[1] - 1.001, size)
    low, share = rows.astype(int), rows % 1
    lines = coarse[:, low] * (1 - share)[:, None] + coarse[:, low + 1] * share[:, None]
    return lines[:, :, low] * (1 - share) + lines[:, :, low + 1] * share


def write_store(
    folder: Path, name: str, count: int, size: int, seed: int = 0, places: int = 8, invalid: bool = False
) -> str:
    """Pack `count` images of a catalogued sensor."""
    sensor = sensors.get(name)
    rng = np.random.default_rng(seed)
    fields = smooth_fields(rng, 2 * count, size).reshape(count, 2, size, size)
    mix = rng.random((len(sensor.bands), 2)) * [1, 0.5] + 0.1
    images = np.einsum("cf,nfhw->nchw", mix, fields) + 0.02 * rng.standard_normal((count, len(mix), size, size))
    images += 0.1 * np.sin(np.arange(size) * np.pi / 4)  # what every patch of 8 has in common can be learned at once
    raw = {
        "db": lambda x: (10 * x - 20).astype(np.float32),
        "uint8": lambda x: np.clip(150 * x, 0, 255).astype(np.uint8),
        "reflectance": lambda x: np.clip(4000 * x + 100, 1, 9999).astype(np.uint16),
    }[sensor.scaling.unit](images)
    valid = None
    if invalid:
        valid = np.ones((count, size, size), bool)
        valid[:, : size // 3, : size // 3] = False
    reading = Reading.from_arrays(
        sensor,
        raw,
        [f"{name}-place-{i % places}" for i in range(count)],
        sources=[f"{name}-{i:03d}.tif" for i in range(count)],
        valid=valid,
    )
    pack(reading, folder, split=SplitConfig("place", 0.3), workers=1, progress=False)
    return str(folder)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order: equality to the bit, and no fight over two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> str:
    """Radar, optical and 8-bit RGB of different sizes; the radar corpus is smaller than a micro-batch of 8."""
    folder = tmp_path_factory.mktemp("corpus") / "store"
    write_store(folder, "sentinel-1-grd", 7, 32, seed=1, places=4)
    write_store(folder, "sentinel-2-l2a", 24, 40, seed=2, invalid=True)
    write_store(folder, "naip-rgb", 33, 32, seed=3)
    return str(folder)


@pytest.fixture
def settings(store, tmp_path) -> Callable[..., PretrainConfig]:
    """A configuration of a very small run; keyword `section__key=value` changes it."""

    def make(**changes: object) -> PretrainConfig:
        plain: dict = {
            "model": {
                "size": "tiny",
                "changes": {"width": 48, "depth": 2, "heads": 3, "patch": 8, "image_size": 32},
                "decoder": {"width": 32, "depth": 1, "heads": 2},
            },
            "data": {"stores": [store], "crop": 32, "batch": 4, "jitter": {"share": 0.7}, "band_keep": 0.75},
            "optim": {"lr": 1e-3, "clip": 1.0},
            "run": {"out": str(tmp_path / "run"), "updates": 4, "micro_batches": 2, "device": "cpu", "log_every": 1},
        }
        for key, value in changes.items():
            *parents, last = key.split("__")
            part = plain
            for parent in parents:
                part = part.setdefault(parent, {})
            part[last] = value
            if key == "run__epochs":
                part.pop("updates")
        return from_dict(plain)

    return make


def environment() -> dict[str, str]:
    """Of a child process: one thread, no display."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(config: Path, processes: int = 1, resume: bool = False) -> list[str]:
    """The command line that trains, under torchrun where there are several processes."""
    call = [str(Path(sys.executable).with_name("dofa")), "pretrain", "--config", str(config)]
    call += ["--resume"] if resume else []
    if processes == 1:
        return call
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    return [*torchrun, "--nproc-per-node", str(processes), *call]


def descendants(pid: int) -> list[int]:
    """A process and all that it has started; torchrun's workers are in groups of their own."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


@pytest.fixture
def train_outside(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `dofa pretrain` in processes of its own and wait."""

    def run(config: PretrainConfig, processes: int = 1, resume: bool = False) -> subprocess.CompletedProcess[str]:
        from dofa.train.recipes import to_yaml

        file = tmp_path / f"config-{Path(config.run.out).name}.yaml"
        file.write_text(to_yaml(config))
        return subprocess.run(
            command(file, processes, resume), env=environment(), capture_output=True, text=True, timeout=300
        )

    return run


@pytest.fixture(scope="session")
def vits(tmp_path_factory) -> dict[str, Path]:
    """Teachers by what distinguishes them from the student."""
    folder = tmp_path_factory.mktemp("vits")
    return {
        "same": write_vit(folder / "same", 48, 2, 3, 8, 32),
        "wide": write_vit(folder / "wide", 64, 3, 4, 8, 32, seed=1),
        "fine": write_vit(folder / "fine", 48, 2, 3, 4, 32, seed=2),
    }


@pytest.fixture
def taught(settings, vits) -> Callable[..., PretrainConfig]:
    """A configuration with a teacher of the student's form; keywords as in `settings`, and under distill."""

    def make(distill: dict | None = None, **changes: object) -> PretrainConfig:
        return settings(distill={"teacher": str(vits["same"]), **(distill or {})}, **changes)

    return make
