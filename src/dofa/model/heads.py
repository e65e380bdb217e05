"""The head folder: what a task learned on top of a frozen encoder, and everything needed to feed it right again.

`head.json` says what the head is for and which encoder, bands, pixel scale and image size it was trained with;
`head.safetensors` holds its linear layer with the feature standardisation folded in (design.md section 3).
"""

import colorsys
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from dofa.errors import CheckpointError, ConfigError
from dofa.files import write_atomically
from dofa.model.checkpoint import encoder_sha256
from dofa.model.encoder import DOFA
from dofa.model.native import read_record
from dofa.pixels import Scaling
from dofa.sensors import Sensor

FORMAT_VERSION = 1
CONFIG, WEIGHTS = "head.json", "head.safetensors"
Task = Literal["classification", "segmentation", "regression"]
Block = int | Literal["pooled"]
Colour = tuple[int, int, int]
_KEYS = (
    "format_version", "task", "class_names", "colours", "ignore", "nodata", "encoder_sha256", "levels", "sensor",
    "scaling", "patch_offset", "tile_size", "gsd_m", "validation", "weights_sha256",
)  # fmt: skip


@dataclass(frozen=True)
class Head:
    """A linear layer on frozen features, with what it was trained on.

    Attributes:
        task: what the outputs are: logits of classes of whole images (classification) or of places in them
            (segmentation), or values (regression).
        class_names: one an output, in order; of a regression, what its values are.
        colours: (red, green, blue) of each class, 0–255.
        encoder_sha256: of the encoder whose features it reads; see `dofa.model.checkpoint.encoder_sha256`.
        levels: whose features it reads, concatenated: block numbers (mean or single patch tokens) or `pooled`.
        sensor: bands in order; its own scaling is the raw-to-physical step.
        scaling: that normalised the images, with statistics; in another unit than the sensor's where the encoder's
            unit map stands between (`dofa.pixels.convert_units`).
        patch_offset: of the encoder.
        tile_size: side in pixels of the images the encoder was fed.
        gsd_m: metres a pixel of those images, after any resizing.
        weight: (K, D) float64.
        bias: (K,) float64.
        validation: the score it had and how it was measured.
        ignore: label value that counts in no loss and no score, None for none.
        nodata: value written where there is no prediction, None for none.
    """

    task: Task
    class_names: tuple[str, ...]
    colours: tuple[Colour, ...]
    encoder_sha256: str
    levels: tuple[Block, ...]
    sensor: Sensor
    scaling: Scaling
    patch_offset: int
    tile_size: int
    gsd_m: float
    weight: NDArray[np.float64] = field(repr=False)
    bias: NDArray[np.float64] = field(repr=False)
    validation: dict[str, Any] = field(default_factory=dict)
    ignore: int | None = None
    nodata: int | None = None

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        if self.task not in get_args(Task):
            raise CheckpointError(f"head is for the task {self.task!r}; this dofa knows {', '.join(get_args(Task))}")
        if self.weight.ndim != 2 or len(self.weight) != classes or self.bias.shape != (classes,):
            raise CheckpointError(
                f"head has weight {self.weight.shape} and bias {self.bias.shape} for {classes} classes; "
                f"({classes}, D) and ({classes},) fit"
            )
        if len(self.colours) != classes:
            raise CheckpointError(f"head has {len(self.colours)} colours for {classes} classes")
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all()):
            raise CheckpointError("head has NaN or infinite weights")
        if self.scaling.mean is None or self.scaling.bands != self.sensor.band_names:
            raise CheckpointError(f"head's scaling needs statistics for the bands {', '.join(self.sensor.band_names)}")

    @property
    def sha256(self) -> str:
        """Digest of what it was trained to: weights, levels, classes."""
        said = json.dumps([self.task, list(self.class_names), list(self.levels), self.scaling.to_dict()])
        return hashlib.sha256(said.encode() + self.weight.tobytes() + self.bias.tobytes()).hexdigest()

    def require(self, model: DOFA) -> None:
        """Refuse any encoder but the one this head was trained on.

        Raises:
            CheckpointError: the digests differ.
        """
        found = encoder_sha256(model)
        if found != self.encoder_sha256:
            raise CheckpointError(
                f"this head was trained on the encoder {self.encoder_sha256[:12]}…, not on {found[:12]}…: "
                "load the encoder it belongs to, or train a head for this one"
            )

    def apply(self, features: Tensor) -> Tensor:
        """Logits of pooled features or of every place of a feature map.

        Args:
            features: (B, D), or (B, D, h, w).

        Returns:
            (B, K), or (B, K, h, w), float32. The product runs in float64: folded weights of features with a large
            mean and a small spread would cancel digits in float32, and beside the encoder its cost is nothing.

        Raises:
            CheckpointError: another number of features.
        """
        if features.ndim not in (2, 4) or features.shape[1] != self.weight.shape[1]:
            raise CheckpointError(
                f"features of shape {tuple(features.shape)} do not fit a head of {self.weight.shape[1]} features: "
                "(B, D) or (B, D, h, w)"
            )
        weight = torch.from_numpy(self.weight).to(features.device)
        bias = torch.from_numpy(self.bias).to(features.device)
        last = features.double().movedim(1, -1)
        return (last @ weight.T + bias).movedim(-1, 1).float()

    def predict_proba(self, features: Tensor | NDArray[np.floating]) -> NDArray[np.float32]:
        """Class probabilities: (B, D) to (B, K), or (B, D, h, w) to (B, K, h, w)."""
        return self.apply(torch.as_tensor(features)).softmax(1).cpu().numpy()

    def save(self, folder: str | Path) -> Path:
        """Writes the head folder; a head already in it is replaced."""
        folder = Path(folder)
        weights = save({"weight": np.ascontiguousarray(self.weight), "bias": np.ascontiguousarray(self.bias)})
        record = {
            "format_version": FORMAT_VERSION,
            "task": self.task,
            "class_names": list(self.class_names),
            "colours": [list(c) for c in self.colours],
            "ignore": self.ignore,
            "nodata": self.nodata,
            "encoder_sha256": self.encoder_sha256,
            "levels": list(self.levels),
            "sensor": self.sensor.to_dict(),
            "scaling": self.scaling.to_dict(),
            "patch_offset": self.patch_offset,
            "tile_size": self.tile_size,
            "gsd_m": self.gsd_m,
            "validation": self.validation,
            # Two files cannot be renamed at once: the digest tells a pair that was torn in between.
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        }
        write_atomically(folder / WEIGHTS, weights)
        write_atomically(folder / CONFIG, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
        return folder


def load_head(folder: str | Path, model: DOFA | None = None) -> Head:
    """Reads a head folder, every key accounted for.

    Args:
        folder: with head.json and head.safetensors.
        model: the encoder it is meant for; another one is refused.

    Raises:
        CheckpointError: a file is missing, torn or from a newer dofa; keys, shapes or figures that do not fit; another
            encoder.
    """
    folder = Path(folder)
    record = read_record(folder / CONFIG, "head", FORMAT_VERSION, _KEYS)
    missing = [key for key in _KEYS if key not in record]
    if missing:
        raise CheckpointError(f"{folder / CONFIG}: {', '.join(missing)} missing")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} is no head folder: {WEIGHTS} is missing")
    data = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(data).hexdigest() != record["weights_sha256"]:
        raise CheckpointError(
            f"{folder / WEIGHTS} is not the file its {CONFIG} describes: a truncated copy or an interrupted save; "
            "copy or train it again"
        )
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS} is no safetensors file: {error}") from None
    if set(tensors) != {"weight", "bias"}:
        raise CheckpointError(f"{folder / WEIGHTS} holds {', '.join(sorted(tensors))}; a head is weight and bias")
    try:
        head = Head(
            task=record["task"],
            class_names=tuple(record["class_names"]),
            colours=tuple((int(r), int(g), int(b)) for r, g, b in record["colours"]),
            encoder_sha256=record["encoder_sha256"],
            levels=tuple(record["levels"]),
            sensor=Sensor.from_dict(record["sensor"]),
            scaling=Scaling.from_dict(record["scaling"]),
            patch_offset=record["patch_offset"],
            tile_size=record["tile_size"],
            gsd_m=record["gsd_m"],
            weight=tensors["weight"].astype(np.float64),
            bias=tensors["bias"].astype(np.float64),
            validation=record["validation"],
            ignore=record["ignore"],
            nodata=record["nodata"],
        )
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: {error}") from None
    if model is not None:
        head.require(model)
    return head


def palette(classes: int) -> tuple[Colour, ...]:
    """Colours far apart for any number of classes: hues by the golden ratio, three brightnesses in turn."""
    rgb = (colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.75, (0.95, 0.7, 0.5)[i % 3]) for i in range(classes))
    return tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb)
