"""Scenes in memory and models that can be checked by hand."""

import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dofa.inference.inputs import Inputs
from dofa.pixels import Scaling
from dofa.scene.grid import Window
from dofa.sensors import Band, Sensor


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order, and no fight over two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Part:
    sensor: Sensor
    scaling: Scaling


@dataclass
class ArrayScene:
    """A scene in memory; what lies outside is 0 and invalid."""

    image: NDArray[Any]
    valid: NDArray[np.bool_]
    block: tuple[int, int] = (16, 16)
    name: str = "array"
    crs: Any = None
    transform: Any = (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
    gsd_m: float | None = 10.0
    control_points: Any = None
    reads: list[Window] = field(default_factory=list)

    def __post_init__(self):
        names = tuple(f"b{i}" for i in range(len(self.image)))
        bands = tuple(Band(n, 0.5 + 0.1 * i) for i, n in enumerate(names))
        scaling = Scaling.uniform("reflectance", names)
        self.parts = (Part(Sensor("array", bands, gsd_m=10.0, scaling=scaling), scaling),)
        self.height, self.width = self.image.shape[1:]
        self.pixel_bytes = self.image.itemsize * len(self.image)

    def read(self, window: Window):
        self.reads.append(window)
        return [self.image[:, window.rows, window.cols]], self.valid[window.rows, window.cols]


def array_inputs(image, valid=None, block=(16, 16)) -> Inputs:
    valid = np.ones(image.shape[1:], bool) if valid is None else valid
    scene = ArrayScene(image, valid, block)
    scaling = scene.parts[0].scaling.with_stats([0.0] * len(image), [1.0] * len(image), "user")
    return Inputs(scene, [scaling])


class LocalModel:
    """A function of a small neighbourhood that knows no position: what a tiled run must give back exactly.

    Each cell is the mean over its patch of a nonlinear function of the 3 × 3 pixels around.
    """

    def __init__(self, bands: int, patch: int, cell: int, offset: int = 0, reach: int = 1):
        self.patch, self.cell, self.offset, self.reach = patch, cell, offset, reach
        self.channels = 2 * bands
        self.calls = 0

    def __call__(self, images):
        self.calls += 1
        x = images.double()
        if self.reach:
            x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1)
        x = torch.cat([x, x.square()], 1)
        if self.offset:
            x = F.pad(x, (self.offset, 0, self.offset, 0))[..., : x.shape[-2], : x.shape[-1]]
        pooled = F.avg_pool2d(x, self.cell) if self.cell > 1 else x
        return pooled.float()


@pytest.fixture
def small_model():
    """A small encoder with random weights."""
    import dofa

    torch.manual_seed(0)
    return dofa.create("tiny", width=48, depth=2, heads=3, patch=8, image_size=32).eval()


def write_tiff(path: Path, image: NDArray[Any], crs: str | None = "EPSG:32633", **profile: Any) -> Path:
    """A real GeoTIFF of (C, H, W)."""
    import rasterio
    from rasterio.transform import from_origin

    profile = {"transform": from_origin(500000, 5000000, 10, 10), "crs": crs, **profile}
    names = profile.pop("names", None)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(image), height=image.shape[1], width=image.shape[2],
        dtype=image.dtype, **profile,
    ) as out:  # fmt: skip
        out.write(image)
        for i, name in enumerate(names or [], 1):
            out.set_band_description(i, name)
    return path


@contextmanager
def small_disk(folder, kilobytes):
    """A real file system of that size; skipped where nobody may mount one."""
    folder.mkdir()
    options = f"size={kilobytes}k"
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        folder.rmdir()
        pytest.skip(f"a small tmpfs cannot be mounted here: {made.stderr.strip()}")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}k", folder], check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


def tree(path):
    """Every file's bytes."""
    return {str(p.relative_to(path)): p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()}


def model_and_head(folder: Path, scene: Path) -> None:
    """Folders `model`, a small encoder with random weights, and `head`, three classes of four bands on it."""
    import dofa
    from dofa.model.checkpoint import encoder_sha256, save
    from dofa.model.heads import Head, palette

    torch.manual_seed(0)
    model = dofa.create("tiny", width=48, depth=2, heads=3, patch=8, image_size=32).eval()
    save(model, folder / "model", provenance={})
    part = dofa.open_scene(scene, "sentinel-2-l2a", dn_offset=0).parts[0]
    scaling = part.scaling.with_stats([0.2] * 4, [0.1] * 4, "head")
    rng = np.random.default_rng(0)
    Head(
        task="classification", class_names=("water", "field", "town"), colours=palette(3),
        encoder_sha256=encoder_sha256(model), levels=(0, 1), sensor=part.sensor, scaling=scaling, patch_offset=0,
        tile_size=32, gsd_m=10.0, weight=rng.standard_normal((3, 96)), bias=rng.standard_normal(3),
    ).save(folder / "head")  # fmt: skip
