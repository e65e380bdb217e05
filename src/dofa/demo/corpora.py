"""What the demo learns from and is judged on: simulated scenes, and the real pictures that come with the package."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from dofa import sensors
from dofa.corpus.items import Reading
from dofa.corpus.pack import pack
from dofa.corpus.readers.images import read_images
from dofa.corpus.split import SplitConfig
from dofa.simulate import CLASSES, observe_scenes

SIDE = 64  # pixels of every image of the demo
TRAINED = ("sentinel-1-grd", "sentinel-2-l2a", "naip-rgbn", "gaofen-2", "enmap-202")
NEVER_TRAINED = ("landsat-8-l2-sr", "planetscope-8")
SEEDS_APART = 1_000  # between the scenes of two sensors
PROBE_SEED = 100_000  # far above any training scene: the probe's landscapes were never seen by anybody
SCENES_A_TASK = 40
REAL = "-real"  # added to the names of sensors that real pictures are packed under: their statistics are their own
# Real pictures the model trains on beside the simulated ones, and what counts as one place in their file names.
REAL_TRAINED = {
    "naip-rgbn": r"(west|east)_",
    "rgb-aerial": r"/(\w+)\.tif",
    "sentinel-1-grd": r"/(\w+?)[_.]",
    "sentinel-2-l2a": r"/(\w+?)[_.]",
}


def pack_simulated(
    out: Path, scenes: Mapping[str, int], seed: int, *, held_out: bool, shared: bool, say: Callable[[str], None]
) -> None:
    """Pack simulated scenes of several sensors, observed by all processors together.

    Args:
        out: the store.
        scenes: of every class, by sensor name.
        seed: of the first scene.
        held_out: keep a tenth of the scenes from training.
        shared: all sensors look at the same ground; otherwise each at ground of its own, of which a model learns more.
        say: told of every sensor that is done.
    """
    split = SplitConfig("place", 0.1) if held_out else SplitConfig("none")
    with worker_processes() as pool:
        for number, (name, count) in enumerate(scenes.items()):
            start = seed if shared else seed + number * SEEDS_APART
            some = [(kind, i) for kind in CLASSES for i in range(start, start + count)]
            parts = [some[i : i + SCENES_A_TASK] for i in range(0, len(some), SCENES_A_TASK)]
            sensor = sensors.get(name)
            images = np.concatenate(list(pool.map(observe_scenes, [sensor] * len(parts), parts, [SIDE] * len(parts))))
            reading = Reading.from_arrays(
                sensor,
                images,
                [f"{kind}-{i}" for kind, i in some],
                sources=[f"simulated/{kind}/{i}" for kind, i in some],
                labels=[CLASSES.index(kind) for kind, _ in some],
                class_names=CLASSES,
            )
            report = pack(reading, out, split=split, progress=False)
            say(f"{name}: {sum(report.images.values())} scenes")


@contextmanager
def worker_processes() -> Iterator[Executor]:
    """One process a processor, none of which starts threads of its own."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
            yield pool
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def pack_real(out: Path) -> None:
    """Pack the package's real pictures in tiles, one place of each sensor held out."""
    for name, place in REAL_TRAINED.items():
        known = sensors.get(name)
        sensor = replace(known, name=name + REAL, title=f"{known.title} (real pictures)")
        reading = read_images(samples() / name, sensor, tile=SIDE, place=place)
        pack(reading, out, split=SplitConfig("place", 0.3), progress=False)


def samples() -> Path:
    """The folder of real pictures: SENSOR/NAME.tif, with LICENCES.md."""
    return Path(str(resources.files("dofa") / "samples"))
