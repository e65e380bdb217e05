"""Frozen teachers: ordinary RGB Vision Transformers from timm-, DINOv2- and MAE-style weights, run by our own blocks.

Every key of a file is accounted for: used, dropped by name because features need it not, or refused because the network
would be another. docs/teachers.md says where such files come from.
"""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dofa.documents import read_json
from dofa.errors import CheckpointError, ConfigError, DataError
from dofa.model.config import EncoderConfig
from dofa.model.convert import read_released
from dofa.model.encoder import StaticViT, check_finite, patch_grid
from dofa.model.model_folder import CONFIG, WEIGHTS, file_sha256, fill
from dofa.model.patch_embed import embed_patches
from dofa.model.released import HEADS
from dofa.model.vit import Grid, block_indices, interpolate_positions
from dofa.pixels import IMAGENET_MEAN, IMAGENET_STD

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)  # of RGB in [0, 1]: DINOv2, MAE, most of timm
HALF = ((0.5,) * 3, (0.5,) * 3)  # timm's augreg weights
GRIDS_KEPT = 16  # position tables; a run has one grid a crop size
_PATCH = "patch_embed.proj.weight"
_FILES = (".safetensors", ".pth", ".pt", ".bin")
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Behind the blocks or beside them: raw block outputs do not depend on these.
_DROPPED = {
    "head.": "the classifier",
    "head_dist.": "the classifier",
    "pre_logits.": "the classifier",
    "fc_norm.": "the classifier's norm",
    "mask_token": "of its pretraining",
    "decoder_": "the decoder of its pretraining",
}
# In front of the blocks or inside them: leaving these out would be another network.
_REFUSED = {
    r"reg(ister)?_tokens?$": "register tokens; take the weights of the same name without registers",
    r"dist_token$": "a distillation token beside CLS; take weights that are not 'distilled'",
    r"norm_pre\.|ln_pre\.": "a norm before the blocks (CLIP); take a timm, DINOv2 or MAE ViT",
    r"blocks\..*\.[qk]_norm\.": "normalised queries and keys; take a ViT without qk-norm",
    r"blocks\..*\.mlp\.(w12|w3|fc1_g|fc1_x)\.": "SwiGLU blocks (DINOv2 giant); take small, base or large",
    r"blocks\..*\.(gamma_[12]|relative_position|attn\.[qv]_bias)": "BEiT blocks; take a timm, DINOv2 or MAE ViT",
}
_KNOWN_LAYOUTS = "timm, DINOv2 and MAE ViTs are known"


class TeacherWarning(UserWarning):
    """Something about a teacher that no file says and that we had to assume."""


@dataclass(frozen=True)
class VitFile:
    """An ordinary ViT's weights under our names, and what its source tells beside them.

    Attributes:
        tensors: cls_token, pos_embed (1, 1 + N, D), patch_embed.proj, blocks, norm.
        config: sizes, as of the file.
        name: of the source.
        sha256: of the weights' file.
        mean: of RGB in [0, 1], that the input is normalised with.
        std: likewise.
        licence: SPDX identifier, where the source says one.
        notes: what was dropped, created or assumed, for people.
    """

    tensors: dict[str, Tensor]
    config: EncoderConfig
    name: str
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str = ""
    notes: tuple[str, ...] = field(default=())


class Teacher(nn.Module):
    """A frozen RGB ViT whose block outputs a student is held to.

    It stays in eval mode and asks for no gradients whatever is done to the model around it. `.to(torch.bfloat16)` makes
    a bf16 teacher; the normalisation of its input stays in float32.

    Attributes:
        vit: the network, without norm or head behind the blocks in use.
        name: what was loaded.
        sha256: of the weights' file.
        licence: of the weights where the source says it, else empty.
        notes: what was dropped, created or assumed while loading.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, file: VitFile) -> None:
        super().__init__()
        with torch.device("meta"):
            self.vit = StaticViT(file.config, 3)
        fill(self.vit, file.tensors, file.name)
        self.name, self.sha256, self.licence, self.notes = file.name, file.sha256, file.licence, file.notes
        self.register_buffer("mean", torch.tensor(file.mean), persistent=False)
        self.register_buffer("std", torch.tensor(file.std), persistent=False)
        self._tables: dict[Grid, Tensor] = {}
        self.requires_grad_(False)
        self.eval()

    @property
    def config(self) -> EncoderConfig:
        """Width, depth, heads and patch."""
        return self.vit.config

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode."""
        return super().train(False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        mean, std = self.mean, self.std
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # bf16 knows 0.485 to two digits: the constants follow the weights to their device, not to their precision.
        self.mean, self.std = mean.to(self.mean.device), std.to(self.std.device)
        self._tables = {}
        return self

    def _positions(self, grid: Grid) -> Tensor:
        """The position table on another grid, carried there once: the weights are frozen."""
        if grid not in self._tables:
            if len(self._tables) == GRIDS_KEPT:
                self._tables.clear()
            self._tables[grid] = interpolate_positions(self.vit.pos_embed, self.vit.grid, grid)
        return self._tables[grid]

    @torch.no_grad()
    def forward(
        self, rgb: Tensor, blocks: Sequence[int], grid: Grid | None = None, *, normalised: bool = False
    ) -> list[Tensor]:
        """Raw outputs of chosen blocks, in the precision of the weights whatever the autocast around.

        Args:
            rgb: (B, 3, H, W): red, green, blue in [0, 1].
            blocks: numbers from 0, negative from the end; nothing behind the deepest is computed.
            grid: rows and columns of patches the image is resized to (bilinear, antialiased) so that each teacher's
                token lies on a student's; None keeps the size, sides rounded up to whole patches.
            normalised: the input is normalised already (the paper feeds the sensor's own normalisation).

        Returns:
            (B, 1 + N, D) a block, in the order asked: CLS, then the patches row by row; no norm behind them.

        Raises:
            ConfigError: there is no such block.
            DataError: not a batch of three-band images, smaller than a patch, or not finite.
        """
        if rgb.ndim != 4 or rgb.shape[1] != 3:
            raise DataError(f"a teacher sees (B, 3, H, W) of red, green and blue, not {tuple(rgb.shape)}")
        check_finite(rgb, training=True)  # on the CPU alone: elsewhere it would wait for the device
        wanted = block_indices(blocks, self.config.depth)
        patch, weight = self.config.patch, self.vit.cls_token
        with torch.autocast(weight.device.type, enabled=False):
            x = rgb.float()
            if grid is not None and (side := (grid[0] * patch, grid[1] * patch)) != x.shape[-2:]:
                x = F.interpolate(x, size=side, mode="bilinear", antialias=True, align_corners=False)
            if not normalised:
                x = (x - self.mean[:, None, None]) / self.std[:, None, None]
            x = x.to(weight.dtype)
            proj = self.vit.patch_embed["proj"]
            tokens = embed_patches(x, patch, 0, cast(Tensor, proj.weight).flatten(1).T, cast(Tensor, proj.bias))
            table = self._positions(patch_grid(x, patch))
            cls = (self.vit.cls_token + table[:, :1]).expand(len(tokens), -1, -1)
            tokens = torch.cat([cls, tokens + table[:, 1:]], dim=1)
            found: dict[int, Tensor] = {}
            for i, block in enumerate(self.vit.blocks[: max(wanted) + 1]):
                tokens = block(tokens)
                found[i] = tokens
        return [found[i] for i in wanted]


def load_teacher(
    source: str | Path,
    *,
    heads: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
) -> Teacher:
    """A frozen teacher from a file, a folder, or the hub.

    Args:
        source: .safetensors, or .pth/.pt/.bin (read with weights_only), in timm's, DINOv2's or MAE's layout; a folder
            with timm's config.json and model.safetensors; or owner/model of such a folder on the Hugging Face hub, for
            example `timm/vit_base_patch16_224.augreg2_in21k_ft_in1k`.
        heads: of the attention, which no tensor shows; by default config.json's, else 64 channels a head (16 heads for
            width 1280).
        mean: of RGB in [0, 1]; by default config.json's, else 0.5 where the name says augreg, else ImageNet's.
        image_size: side in pixels the positions are interpolated to; None keeps the table, and every other size
            interpolates when it first occurs.

    Returns:
        In float32, on the CPU, frozen.

    Raises:
        CheckpointError: unreadable, unreachable, another architecture, or a key we do not know.
        ConfigError: image_size is no multiple of the patch, mean or std are not three numbers.
    """
    return Teacher(read_vit(source, heads=heads, mean=mean, std=std, image_size=image_size))


def read_vit(
    source: str | Path,
    *,
    heads: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
) -> VitFile:
    """The weights of an ordinary RGB ViT, every key accounted for; arguments and errors as `load_teacher`."""
    path, config_json, name = _locate(source)
    settings = _hub_settings(config_json) if config_json else {}
    raw, left = read_released(path)
    tensors, notes = _sort(raw, name)
    notes += [f"dropped {key}: training state beside the weights" for key in left]
    config = _sizes(tensors, name, heads if heads is not None else settings.get("num_heads"))
    if not any(key.startswith("norm.") for key in tensors):
        tensors |= {"norm.weight": torch.ones(config.width), "norm.bias": torch.zeros(config.width)}
        notes.append("created norm as identity affine: the file has none")
    if image_size is not None and image_size != config.image_size:
        config = _resized(config, tensors, image_size)
    # Only DINOv2, MAE and DeiT III leave these behind, and all three know ImageNet's constants.
    known = any(mark in key for key in raw for mark in ("mask_token", "decoder_", ".ls1."))
    centre, spread, told = _normalisation(name, settings, mean, std, known)
    sha256, licence = file_sha256(path), str(settings.get("license") or "")
    return VitFile(tensors, config, name, sha256, centre, spread, licence, (*notes, told))


def _locate(source: str | Path) -> tuple[Path, Path | None, str]:
    """The file of weights, the config.json that belongs to it, and a name for both."""
    path, name = Path(source).expanduser(), str(source)
    if path.is_file():
        beside = path.parent / CONFIG
        return path, beside if path.name == WEIGHTS and beside.is_file() else None, path.name
    if path.is_dir():
        for needed in (CONFIG, WEIGHTS):
            if not (path / needed).is_file():
                raise CheckpointError(
                    f"{path} is no folder of a teacher: {needed} is missing (or give the file itself)"
                )
        return path / WEIGHTS, path / CONFIG, path.resolve().name
    if path.suffix.lower() in _FILES or not _REPOSITORY.fullmatch(name):
        raise CheckpointError(f"no teacher {name}: a file of weights, a folder, or owner/model on the hub is expected")
    from dofa.model import hub  # a local file needs no HTTP client

    folder = hub.fetch_repository(name)
    return folder / WEIGHTS, folder / CONFIG, name


def _hub_settings(path: Path) -> dict[str, Any]:
    """mean, std, license and num_heads of timm's config.json, as far as it says them."""
    record = read_json(path, CheckpointError)
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} is no config of a model")
    if "format_version" in record:
        raise CheckpointError(f"{path.parent} holds a DOFA model; a teacher is an ordinary RGB ViT ({_KNOWN_LAYOUTS})")
    found: dict[str, Any] = {}
    for part in (record, record.get("pretrained_cfg"), record.get("model_args")):
        if isinstance(part, dict):
            found |= {key: part[key] for key in ("mean", "std", "license", "num_heads") if part.get(key) is not None}
    return found


def _sort(raw: Mapping[str, Tensor], name: str) -> tuple[dict[str, Tensor], list[str]]:
    """The file's tensors under our names, and a note on each group that was dropped."""
    prefix = next((key.removesuffix(_PATCH) for key in raw if key.endswith(_PATCH)), None)
    if any("weight_generator." in key for key in raw):
        raise CheckpointError(f"{name} is a DOFA model; a teacher is an ordinary RGB ViT ({_KNOWN_LAYOUTS})")
    if prefix is None:
        cure = ""
        if any("patch_embeddings.projection" in key for key in raw):
            cure = "; this is the layout of transformers: take the same weights from timm/… on the hub"
        raise CheckpointError(f"{name} has no {_PATCH}: not an ordinary ViT ({_KNOWN_LAYOUTS}{cure})")
    tensors: dict[str, Tensor] = {}
    dropped: dict[str, int] = {}
    for key, tensor in raw.items():
        # DINOv2's large files keep blocks in chunks; the second number is the block's own.
        ours = re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", key.removeprefix(prefix))
        if why := next((why for pattern, why in _REFUSED.items() if re.match(pattern, ours)), None):
            raise CheckpointError(f"{name}: {key} belongs to {why}")
        if why := next((why for start, why in _DROPPED.items() if ours.startswith(start)), None):
            dropped[why] = dropped.get(why, 0) + 1
            continue
        if ours in tensors:
            raise CheckpointError(f"{name}: {key} and another key both mean {ours}")
        tensors[ours] = tensor
    return tensors, [f"dropped {count} tensors: {why}" for why, count in dropped.items()]


def _sizes(tensors: dict[str, Tensor], name: str, heads: int | None) -> EncoderConfig:
    """Sizes off the shapes; a position table without a row for CLS gets one of zeros."""
    for key, rank in ((_PATCH, 4), ("cls_token", 3), ("pos_embed", 3), ("blocks.0.mlp.fc1.weight", 2)):
        if key not in tensors or tensors[key].ndim != rank:
            told = f"{key} {tuple(tensors[key].shape)}" if key in tensors else f"no {key}"
            raise CheckpointError(f"{name} has {told}: not an ordinary ViT with a CLS token ({_KNOWN_LAYOUTS})")
    width, bands, patch, other = tensors[_PATCH].shape
    if bands != 3 or patch != other:
        raise CheckpointError(
            f"{name} embeds {bands} bands in patches of {patch} × {other}; a teacher sees RGB in squares"
        )
    if (hidden := len(tensors["blocks.0.mlp.fc1.weight"])) != 4 * width:
        raise CheckpointError(
            f"{name} has {hidden} hidden channels in its MLP, not 4 × {width}: SwiGLU or another architecture; take "
            "small, base or large"
        )
    rows = tensors["pos_embed"].shape[1]
    if math.isqrt(rows) ** 2 == rows:  # timm's no_embed_class: CLS has no position
        tensors["pos_embed"] = F.pad(tensors["pos_embed"], (0, 0, 1, 0))
    elif math.isqrt(rows - 1) ** 2 != rows - 1:
        raise CheckpointError(f"{name}: pos_embed has {rows} rows, which is no square grid with or without CLS")
    if heads is None and width not in HEADS and width % 64:
        raise CheckpointError(
            f"{name}: no tensor shows the attention heads and width {width} is no multiple of 64: say heads"
        )
    if heads is None:
        heads = HEADS.get(width, width // 64)
    if heads < 1 or width % heads:
        raise CheckpointError(f"{name}: {heads} heads do not divide the width {width}")
    depth = 1 + max(int(match[1]) for key in tensors if (match := re.match(r"blocks\.(\d+)\.", key)))
    return EncoderConfig(
        width=width,
        depth=depth,
        heads=heads,
        patch=patch,
        image_size=patch * math.isqrt(tensors["pos_embed"].shape[1] - 1),
        layer_scale=1.0 if "blocks.0.ls1.gamma" in tensors else None,
        pooled_norm=False,
        polarisation_embedding=False,
    )


def _resized(config: EncoderConfig, tensors: dict[str, Tensor], image_size: int) -> EncoderConfig:
    """Carries the positions to another image size."""
    moved = replace(config, image_size=image_size)
    tensors["pos_embed"] = interpolate_positions(tensors["pos_embed"], (config.grid,) * 2, (moved.grid,) * 2)
    return moved


def _normalisation(
    name: str,
    settings: Mapping[str, Any],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    known: bool,
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Mean and std of the input, and where they come from: the caller, config.json, the name, or ImageNet."""
    if "mean" in settings and "std" in settings:
        usual, source = (settings["mean"], settings["std"]), CONFIG
    elif "augreg" in name.lower():
        usual, source = HALF, "0.5, as the name says augreg"
    else:
        usual, source = IMAGENET, "ImageNet's"
        if not known and (mean is None or std is None):
            source += ", assumed: nothing in the file says them (augreg weights want 0.5; pass mean and std)"
            warnings.warn(f"{name}: mean and std are {source}", TeacherWarning, stacklevel=4)
    found = []
    for what, given, default in (("mean", mean, usual[0]), ("std", std, usual[1])):
        values = default if given is None else given
        if len(values) != 3 or not all(math.isfinite(v) for v in values) or (what == "std" and min(values) <= 0):
            raise ConfigError(
                f"{name}: {what} is {list(values)}; three numbers for red, green, blue in [0, 1] are expected"
            )
        found.append(tuple(float(v) for v in values))
    if mean is not None and std is not None:
        source = "the caller's"
    return found[0], found[1], f"mean and std: {source}"
