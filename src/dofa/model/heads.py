"""The head folder: what a task learned on top of an encoder, and everything needed to feed it right again.

`head.json` says what the head is for and which encoder, bands, pixel scale and image size it was trained with;
`head.safetensors` holds its linear layer with the feature standardisation folded in (docs/architecture.md), and the
weights of a decoder where one stands before that layer. `split.safetensors` says which images it was trained on. A head
of band statistics reads the bands themselves and belongs to no encoder.
"""

import colorsys
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from dofa.addresses import redact, redact_values
from dofa.documents import read_bytes
from dofa.errors import CONTROLS, CheckpointError, ConfigError, nearest, shorten
from dofa.io import write_atomically
from dofa.model.checkpoint import encoder_sha256
from dofa.model.decoders import DPTDecoder, UPerNet
from dofa.model.encoder import DOFA, StaticViT
from dofa.model.head_split import FILE as SPLIT
from dofa.model.head_split import SplitRecord, read_split
from dofa.model.model_folder import read_record
from dofa.pixels import Scaling
from dofa.sensors import Sensor
from dofa.settings import check_keys, check_types, list_of, whole_number

FORMAT_VERSION = 3  # of band statistics; 2 with a decoder, 1 linear: an older dofa reads those that it knows
LARGEST = 2**32  # bytes of weights that are read; a large decoder has 300 MB
CONFIG, WEIGHTS = "head.json", "head.safetensors"
Task = Literal["classification", "multilabel", "segmentation", "regression"]
Kind = Literal["upernet", "dpt"]
Block = int | Literal["pooled"]
Colour = tuple[int, int, int]
BAND_STATISTICS = "band statistics"  # features without an encoder (dofa.inference.band_statistics)
_KEYS = (
    "format_version", "task", "class_names", "colours", "ignore", "nodata", "encoder_sha256", "levels", "sensor",
    "scaling", "patch_offset", "tile_size", "gsd_m", "validation", "weights_sha256",
)  # fmt: skip
_DECODERS: dict[str, type[UPerNet | DPTDecoder]] = {"upernet": UPerNet, "dpt": DPTDecoder}
_OF_DECODER = "decoder."  # what its tensors' names begin with in the file
_LAST = ("classifier.weight", "classifier.bias")  # of a decoder: the head's own linear layer


@dataclass(frozen=True)
class Decoder:
    """What stands between an encoder's maps and the linear layer of a segmentation head (`dofa.model.decoders`).

    Attributes:
        kind: upernet or dpt.
        width: of the encoder's maps.
        channels: that reach the linear layer.
        state: its weights by name, without those of the linear layer.
    """

    kind: Kind
    width: int
    channels: int
    state: Mapping[str, NDArray[Any]] = field(repr=False)

    def __post_init__(self) -> None:
        if self.kind not in [*_DECODERS]:
            raise CheckpointError(
                f"head has the decoder {shorten(repr(self.kind))}: {nearest(str(self.kind), _DECODERS)}"
            )


def new_decoder(kind: Kind, width: int, classes: int, channels: int) -> UPerNet | DPTDecoder:
    """A decoder with random weights.

    Args:
        kind: `upernet` or `dpt`.
        width: D of the encoder's maps.
    """
    return _DECODERS[kind](width, classes, channels)


@dataclass(frozen=True)
class Head:
    """A linear layer on an encoder's features, or on what a decoder makes of them, with what it was trained on.

    Attributes:
        task: what the outputs are: logits of classes of whole images that exclude each other (classification) or do
            not (multilabel), of places in them (segmentation), or values (regression).
        class_names: one an output, in order; of a regression, what its values are.
        colours: (red, green, blue) of each class, 0–255.
        encoder_sha256: of the encoder whose features it reads; see `dofa.model.checkpoint.encoder_sha256`. None for a
            head of band statistics, which reads mean and spread of the bands and needs no encoder.
        levels: whose features it reads, concatenated: block numbers (mean or single patch tokens) or `pooled`; a
            decoder takes them one by one, the shallowest first. Of band statistics none.
        sensor: bands in order; its own scaling is the raw-to-physical step.
        scaling: that normalised the images, with statistics; in another unit than the sensor's where the encoder's
            unit map stands between (`dofa.pixels.convert_units`).
        patch_offset: of the encoder.
        tile_size: side in pixels of the images the encoder was fed.
        gsd_m: metres a pixel of those images, after any resizing.
        weight: (K, D) float64; with a decoder D is its channels.
        bias: (K,) float64.
        validation: the score it had and how it was measured.
        ignore: label value that counts in no loss and no score, None for none.
        nodata: value written where there is no prediction, None for none.
        decoder: before the linear layer; None for a linear head.
        split: which images it was trained, validated and tested on; None where that is not recorded.
    """

    task: Task
    class_names: tuple[str, ...]
    colours: tuple[Colour, ...]
    encoder_sha256: str | None
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
    decoder: Decoder | None = None
    split: SplitRecord | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        if self.task not in [*get_args(Task)]:
            raise CheckpointError(
                f"head is for the task {shorten(repr(self.task))}; this dofa knows {', '.join(get_args(Task))}"
            )
        check_types(self, "head: ", skip=("weight", "bias", "decoder", "split"))
        if any(CONTROLS.search(name) for name in self.class_names):
            raise CheckpointError("head has class names with control characters: get it again from whoever trained it")
        if self.patch_offset not in (0, 1) or not 1 <= self.tile_size <= 2**15 or not self.gsd_m > 0:
            raise CheckpointError(
                f"head has patch_offset {self.patch_offset}, tile_size {self.tile_size} and gsd_m {self.gsd_m:g}; 0 or "
                "1, pixels from 1, and metres above 0 fit"
            )
        if (self.encoder_sha256 is not None and not self.levels) or not all(
            level == "pooled" or -256 <= int(level) < 256 for level in self.levels
        ):
            raise CheckpointError(f"head reads the levels {shorten(repr(self.levels))}; blocks of an encoder fit")
        if self.weight.ndim != 2 or len(self.weight) != classes or self.bias.shape != (classes,):
            raise CheckpointError(
                f"head has weight {self.weight.shape} and bias {self.bias.shape} for {classes} classes; "
                f"({classes}, D) and ({classes},) fit"
            )
        if len(self.colours) != classes:
            raise CheckpointError(f"head has {len(self.colours)} colours for {classes} classes")
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all()):
            raise CheckpointError("head has NaN or infinite weights")
        needed = self.encoder_sha256 is not None  # band statistics are of physical values
        if (needed and self.scaling.mean is None) or self.scaling.bands != self.sensor.band_names:
            raise CheckpointError(f"head's scaling needs statistics for the bands {', '.join(self.sensor.band_names)}")
        if not needed:
            numbers = (3 if self.task == "segmentation" else 2) * len(self.sensor.bands)
            if self.levels or self.decoder is not None or self.weight.shape[1] != numbers:
                raise CheckpointError(
                    f"a head of band statistics reads {numbers} numbers of its {len(self.sensor.bands)} bands and no "
                    f"levels, this one {self.weight.shape[1]} and {len(self.levels)} levels"
                )
        if self.decoder is not None:
            if self.task != "segmentation" or "pooled" in self.levels:
                raise CheckpointError("a head with a decoder is for segmentation and reads the maps of blocks")
            self.module()  # tensors that do not fit are told at once

    @property
    def sha256(self) -> str:
        """Digest of what it was trained to: weights, levels, classes."""
        said = json.dumps([self.task, list(self.class_names), list(self.levels), self.scaling.to_dict()])
        found = hashlib.sha256(said.encode() + self.weight.tobytes() + self.bias.tobytes())
        if self.decoder is not None:
            found.update(self.decoder.kind.encode())
            for name, array in sorted(self.decoder.state.items()):
                found.update(name.encode() + array.tobytes())
        return found.hexdigest()

    def require(self, model: DOFA | None) -> None:
        """Refuse any encoder but the one this head was trained on.

        Args:
            model: the encoder; None for none.

        Raises:
            CheckpointError: the digests differ, an encoder is missing, or there is one beside band statistics.
        """
        if self.encoder_sha256 is None:
            if model is not None:
                raise CheckpointError("this head reads band statistics and belongs to no encoder: leave out --weights")
            return
        if model is None:
            raise CheckpointError(
                f"this head was trained on the encoder {self.encoder_sha256[:12]}…: name its folder with --weights (of "
                "a fine-tuning that changed it: model, beside head)"
            )
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
        if self.decoder is not None:
            raise CheckpointError(
                f"this head reads maps through its {self.decoder.kind} decoder: Head.module applies it"
            )
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
        return self.probabilities(self.apply(torch.as_tensor(features))).cpu().numpy()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, K, …) as probabilities: of one class or another, or of each class by itself (multilabel)."""
        return logits.sigmoid() if self.task == "multilabel" else logits.softmax(1)

    def module(self) -> UPerNet | DPTDecoder:
        """The decoder with the linear layer at its end, in eval mode: maps and the size they cover to logits.

        Raises:
            CheckpointError: a linear head, or tensors that are not the decoder's.
        """
        if self.decoder is None:
            raise CheckpointError("a linear head has no decoder: Head.apply gives its answers")
        with torch.device("meta"):
            module = new_decoder(self.decoder.kind, self.decoder.width, len(self.class_names), self.decoder.channels)
        own = module.state_dict()
        given = {name: torch.from_numpy(np.array(array)) for name, array in self.decoder.state.items()}
        weight = torch.from_numpy(self.weight)[:, :, None, None].float()
        given |= dict(zip(_LAST, (weight, torch.from_numpy(self.bias).float()), strict=True))
        faults = [n for n in sorted(own.keys() | given.keys()) if n not in own or n not in given]
        faults += [n for n in own if n not in faults and own[n].shape != given[n].shape]
        faults += [n for n in own if n not in faults and not bool(torch.isfinite(given[n]).all())]
        if len(module.widths) != len(self.levels):
            faults.append(f"{len(self.levels)} levels for {len(module.widths)} maps")
        if faults:
            raise CheckpointError(f"{self.decoder.kind} decoder of the head does not fit: {', '.join(faults[:3])}")
        module.load_state_dict(given, assign=True)
        return module.eval().requires_grad_(False)

    def save(self, folder: str | Path) -> Path:
        """Writes the head folder; a head already in it is replaced."""
        folder = Path(folder)
        tensors = {"weight": self.weight, "bias": self.bias}
        decoder = self.decoder
        if decoder is not None:
            tensors |= {_OF_DECODER + name: array for name, array in decoder.state.items()}
        weights = save({name: np.array(array, order="C") for name, array in tensors.items()})
        record = {
            "format_version": FORMAT_VERSION if self.encoder_sha256 is None else 1 if decoder is None else 2,
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
        if decoder is not None:
            record["decoder"] = {"kind": decoder.kind, "width": decoder.width, "channels": decoder.channels}
        if self.encoder_sha256 is None:
            record["features"] = BAND_STATISTICS
        if self.split is None:
            (folder / SPLIT).unlink(missing_ok=True)
        else:
            write_atomically(folder / SPLIT, self.split.to_bytes(str(record["weights_sha256"])))
        write_atomically(folder / WEIGHTS, weights)
        write_atomically(
            folder / CONFIG, (json.dumps(redact_values(record), indent=1, ensure_ascii=False) + "\n").encode()
        )
        return folder


def load_head(folder: str | Path, model: DOFA | None = None) -> Head:
    """Reads a head folder, every key accounted for.

    Args:
        model: the encoder it is meant for; another one is refused.

    Raises:
        CheckpointError: a file is missing, torn or from a newer dofa; keys, shapes or figures that do not fit; another
            encoder.
    """
    folder = Path(folder)
    record = read_record(folder / CONFIG, "head", FORMAT_VERSION, (*_KEYS, "decoder", "features"))
    check_keys(record, (*_KEYS, "decoder", "features"), str(folder / CONFIG), _KEYS, CheckpointError)
    if (record["encoder_sha256"] is None) != (record.get("features") == BAND_STATISTICS):
        told = shorten(repr(record.get("features")))
        raise CheckpointError(f"{folder / CONFIG}: features is {told}, encoder_sha256 does not fit it")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{redact(str(folder))} is no head folder: {WEIGHTS} is missing")
    data = read_bytes(folder / WEIGHTS, CheckpointError, LARGEST)
    if hashlib.sha256(data).hexdigest() != record["weights_sha256"]:
        raise CheckpointError(
            f"{folder / WEIGHTS} is not the file its {CONFIG} describes: a truncated copy or an interrupted save; "
            "copy or train it again"
        )
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS} is no safetensors file: {error}") from None
    own = {n.removeprefix(_OF_DECODER): tensors.pop(n) for n in list(tensors) if n.startswith(_OF_DECODER)}
    said = record.get("decoder")
    if set(tensors) != {"weight", "bias"} or bool(own) != bool(said):
        held = ", ".join(sorted(tensors)) + f" and {len(own)} tensors of a decoder"
        raise CheckpointError(f"{folder / WEIGHTS} holds {held}; a head is weight and bias, and the decoder it names")
    try:
        head = _of_record(record, tensors, own, read_split(folder / SPLIT, record["weights_sha256"]))
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    if model is not None:
        head.require(model)
    return head


def _of_record(
    record: dict[str, Any], tensors: dict[str, NDArray[Any]], own: dict[str, NDArray[Any]], split: SplitRecord | None
) -> Head:
    said = record.get("decoder")
    decoder = None
    if said is not None:
        check_keys(said, ("kind", "width", "channels"), "decoder", ("kind", "width", "channels"))
        width, channels = (whole_number(said[key], f"decoder: {key}", 1, 2**15) for key in ("width", "channels"))
        decoder = Decoder(said["kind"], width, channels, own)
    colours = [list_of(colour, int, "colours") for colour in list_of(record["colours"], object, "colours")]
    return Head(
        task=record["task"],
        class_names=tuple(list_of(record["class_names"], str, "class_names")),
        colours=tuple((red, green, blue) for red, green, blue in map(_rgb, colours)),
        encoder_sha256=record["encoder_sha256"],
        levels=tuple(list_of(record["levels"], Block, "levels")),
        sensor=Sensor.from_dict(record["sensor"]),
        scaling=Scaling.from_dict(record["scaling"]),
        patch_offset=record["patch_offset"],
        tile_size=record["tile_size"],
        gsd_m=record["gsd_m"],
        weight=_floats(tensors["weight"], "weight"),
        bias=_floats(tensors["bias"], "bias"),
        validation=record["validation"],
        ignore=record["ignore"],
        nodata=record["nodata"],
        decoder=decoder,
        split=split,
    )


def _rgb(colour: list[int]) -> Colour:
    if len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
        raise ConfigError(f"colours holds {shorten(repr(colour))}; red, green and blue from 0 to 255 are expected")
    return colour[0], colour[1], colour[2]


def _floats(array: NDArray[Any], what: str) -> NDArray[np.float64]:
    if array.dtype.kind != "f":
        raise CheckpointError(f"{WEIGHTS}: {what} holds {array.dtype}, which are no weights")
    return array.astype(np.float64)


def split_decoder(module: UPerNet | DPTDecoder, kind: Kind) -> tuple[Decoder, NDArray[np.float64], NDArray[np.float64]]:
    """A trained decoder as a head keeps it: what stands before the linear layer, its weight (K, D) and its bias.

    Args:
        module: trained, its last layer the linear one.
        kind: `upernet` or `dpt`.
    """
    state = {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()}
    weight, bias = (state.pop(name).astype(np.float64) for name in _LAST)
    return Decoder(kind, module.widths[0], weight.shape[1], state), weight[:, :, 0, 0], bias


def palette(classes: int) -> tuple[Colour, ...]:
    """Colours far apart for any number of classes: hues by the golden ratio, three brightnesses in turn."""
    rgb = (colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.75, (0.95, 0.7, 0.5)[i % 3]) for i in range(classes))
    return tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb)


# -- Features of levels: blocks of an encoder, and `pooled`, the last one with the norm of the pooled vector.


def level_features(
    vit: DOFA | StaticViT, intermediates: Callable[..., Any], image: Tensor, levels: Sequence[Block], maps: bool
) -> dict[str, Tensor]:
    """Features of levels by name: of whole images (B, D), or of single patches (B, D, h, w).

    Args:
        vit: whose pool and norm are used.
        intermediates: its `forward_intermediates`, the bands filled in.
        image: (B, C, H, W) normalised.
        levels: block numbers, whose patch tokens are averaged, and `pooled`.
    """
    last = len(vit.blocks) - 1
    wanted = sorted({last if level == "pooled" else level for level in levels})
    found = dict(zip(wanted, intermediates(image, indices=wanted, return_prefix_tokens=True), strict=True))
    out = {}
    for level in levels:
        grid, cls = found[last if level == "pooled" else level]
        if level != "pooled":
            features = grid if maps else grid.float().mean((2, 3))
        elif maps:
            features = vit.fc_norm(grid.movedim(1, -1)).movedim(-1, 1)
        else:
            features = vit.forward_head(torch.cat([cls, grid.flatten(2).transpose(1, 2)], dim=1), pre_logits=True)
        out[level_name(level)] = features
    return out


def level_name(level: Block) -> str:
    """`pooled`, or `block` and its number."""
    return level if level == "pooled" else f"block{level}"
