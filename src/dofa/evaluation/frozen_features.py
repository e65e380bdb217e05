"""Frozen features of labelled images, computed once: an encoder's blocks, and band statistics as the floor.

What was computed is kept in a cache file whose name is a digest of everything that went in: weights, pixels, transform.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor
from torch.nn import functional as F

from dofa.datasets.labelled import LabelledImages
from dofa.errors import ConfigError, DataError
from dofa.evaluation.backbones import Backbone, open_backbone
from dofa.inference.band_statistics import image_statistics
from dofa.io import write_atomically
from dofa.model.devices import choose_device
from dofa.model.encoder import DOFA
from dofa.model.heads import Block
from dofa.model.vit import block_indices
from dofa.pixels import Scaling, convert_units

Precision = Literal["float32", "bf16"]
Floats = NDArray[np.float32]
Progress = Callable[[int], None]

CACHE_FORMAT = 1


@dataclass(frozen=True)
class BandStatistics:
    """Mean and spread of each band within each image, in physical values, valid pixels only.

    Attributes:
        mean: (N, C) float64; NaN where an image has no valid pixel.
        std: (N, C) float64.
        count: (N,) float64 valid pixels.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    count: NDArray[np.float64]

    @property
    def features(self) -> Floats:
        """(N, 2C): what a classifier without any model gets to see."""
        return np.concatenate([self.mean, self.std], axis=1).astype(np.float32)

    def over(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(C,) mean and std of all pixels of some images together, as one pass over them would give."""
        filled = rows[self.count[rows] > 0]
        weight = (self.count[filled] / self.count[filled].sum())[:, None]
        mean = (weight * self.mean[filled]).sum(0)
        square = (weight * (self.std[filled] ** 2 + (self.mean[filled] - mean) ** 2)).sum(0)
        return mean, np.sqrt(square)


def band_statistics(data: LabelledImages, cache: Path | None = None) -> BandStatistics:
    """Reads every image once for its band means and spreads; cached like features.

    Args:
        cache: folder of the feature cache, None for none.

    Returns:
        Mean, spread and number of valid pixels of every band of every image, in physical values.
    """

    def compute() -> dict[str, NDArray[Any]]:
        means, stds, counts = [], [], []
        for index in range(len(data)):
            raw, valid = data.read(index)
            mean, std = image_statistics(data.scaling.physical(raw), valid)
            counts.append(raw[0].size if valid is None else int(valid.sum()))
            means.append(mean)
            stds.append(std)
        return {"mean": np.stack(means), "std": np.stack(stds), "count": np.array(counts, np.float64)}

    key = {"kind": "band statistics", "data": data.fingerprint, "scaling": data.scaling.to_dict()}
    return BandStatistics(**_cached(cache, key, compute))


def prepare(data: LabelledImages, index: int, scaling: Scaling) -> Floats:
    """One image as the encoder takes it, (C, H, W).

    Args:
        scaling: what normalises it, in the model's unit.

    Raises:
        DataError: no valid pixel, or values that are not finite; the source is named.
    """
    raw, valid = data.read(index)
    if valid is not None and not valid.any():
        raise DataError(f"{data.sources[index]} has no valid pixel: leave it out")
    physical = data.scaling.physical(raw)
    try:
        mapped = convert_units(physical, data.sensor.band_names, data.scaling.unit, scaling.unit, data.sensor.platform)
        return scaling.normalise_physical(mapped, valid)
    except DataError as error:
        raise DataError(f"{data.sources[index]}: {error}") from None


def encode(
    model: DOFA | Backbone,
    data: LabelledImages,
    scaling: Scaling,
    blocks: Sequence[Block] = ("pooled",),
    *,
    size: int | None = None,
    batch: int = 64,
    precision: Precision = "float32",
    device: str | None = None,
    cache: Path | None = None,
    progress: Progress = lambda images: None,
) -> dict[Block, Floats]:
    """Frozen features of every image.

    Args:
        model: encoder or any backbone; left in evaluation mode and on the device.
        scaling: with statistics, from `Backbone.scaling`.
        blocks: block numbers (negative from the end) for the mean of that block's patch tokens, and `pooled` for the
            model's own pooled vector.
        size: side in pixels the images are resized to, bilinear with antialiasing; None leaves them.
        precision: bf16 runs the encoder under autocast; features are float32 either way.
        device: of the computation; None for CUDA where there is one.
        cache: folder of the feature cache, None for none.
        progress: called with the number of images just encoded.

    Returns:
        (N, D) float32 for each entry of `blocks`.

    Raises:
        ConfigError: there is no such block, or a size for images that are not square.
        DataError: an image that cannot be used, named.
    """
    if size is not None and data.shape[1] != data.shape[2]:
        raise ConfigError(f"size {size} would distort images of {data.shape[1]} × {data.shape[2]}: cut squares first")
    backbone = open_backbone(model) if isinstance(model, DOFA) else model
    wanted = {block: block_number(block, backbone.depth) for block in blocks}
    key = _feature_key(backbone, data, scaling, size, precision)
    keys = {number: {**key, "block": number} for number in dict.fromkeys(wanted.values())}
    hits = {number: _lookup(cache, key) for number, key in keys.items()}
    found = {number: hit["features"] for number, hit in hits.items() if hit is not None}
    missing = [number for number in keys if number not in found]
    if missing:
        target = choose_device(device)
        parts: dict[Block, list[Floats]] = {number: [] for number in missing}
        with torch.inference_mode(), torch.autocast(target.type, torch.bfloat16, enabled=precision == "bf16"):
            backbone.module.to(target).eval()
            for images in _batches(data, scaling, size, batch):
                for number, feature in backbone.vectors(images.to(target), data.sensor, missing).items():
                    parts[number].append(feature.float().cpu().numpy())
                progress(len(images))
        for number in missing:
            found[number] = np.concatenate(parts[number])
            _store(cache, keys[number], {"features": found[number]})
    else:
        progress(len(data))
    return {block: found[number] for block, number in wanted.items()}


def block_number(block: int | str, depth: int) -> Block:
    """A block as a user may write it (`pooled`, 11, "-1") as its number from 0, or `pooled`.

    Args:
        block: as the user wrote it.

    Raises:
        ConfigError: there is none.
    """
    if block == "pooled":
        return "pooled"
    try:
        return block_indices([int(block)], depth)[0]
    except ValueError:
        raise ConfigError(
            f"block {block!r}: pooled, or a number from 0 to {depth - 1} (negative from the end)"
        ) from None


def _batches(data: LabelledImages, scaling: Scaling, size: int | None, batch: int) -> Iterator[Tensor]:
    for start in range(0, len(data), batch):
        rows = range(start, min(start + batch, len(data)))
        images = torch.from_numpy(np.stack([prepare(data, i, scaling) for i in rows]))
        if size is not None and images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
        yield images


def _feature_key(
    backbone: Backbone, data: LabelledImages, scaling: Scaling, size: int | None, precision: Precision
) -> dict[str, Any]:
    """Everything a feature depends on but its block."""
    return {
        "kind": "encoder",
        **backbone.key(data),
        "data": data.fingerprint,
        "physical": data.scaling.to_dict(),
        "scaling": scaling.to_dict(),
        "size": size,
        "precision": precision,
    }


def _cached(cache: Path | None, key: Mapping[str, Any], compute: Callable[[], dict[str, NDArray[Any]]]) -> Any:
    found = _lookup(cache, key)
    if found is None:
        found = compute()
        _store(cache, key, found)
    return found


def _cache_file(cache: Path, key: Mapping[str, Any]) -> tuple[Path, str]:
    text = json.dumps({"format_version": CACHE_FORMAT, **key}, sort_keys=True)
    return cache / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors", text


def _lookup(cache: Path | None, key: Mapping[str, Any]) -> dict[str, NDArray[Any]] | None:
    """The arrays kept under a key; None where there are none, or the file is damaged: it is then written anew."""
    if cache is None:
        return None
    file, text = _cache_file(cache, key)
    if not file.is_file():
        return None
    try:
        with safe_open(file, "numpy") as handle:
            if handle.metadata() != {"key": text}:
                return None
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except SafetensorError:
        return None


def _store(cache: Path | None, key: Mapping[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    if cache is None:
        return
    file, text = _cache_file(cache, key)
    write_atomically(file, save({n: np.ascontiguousarray(a) for n, a in arrays.items()}, {"key": text}))
