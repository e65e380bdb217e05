"""Released weights into the model folder: v1, v2, TorchGeo's copies, the full training file, every key accounted for.

Sizes are read off the shapes; the number of heads, which no shape shows, comes from the published table unless given.
The layouts are described in docs/checkpoints.md.
"""

import argparse
import math
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import dofa
from dofa.errors import CheckpointError, shorten
from dofa.model.config import SAR_WAVELENGTH_V1, SAR_WAVELENGTH_V2, DecoderConfig, EncoderConfig, MaskConfig, Origin
from dofa.model.encoder import DOFA
from dofa.model.mae import MaskedAutoencoder
from dofa.model.model_folder import CONFIG, build_autoencoder, build_encoder, file_sha256, fill, read_safetensors, save
from dofa.model.released import ATTRIBUTION, DECODER_HEADS, HEADS, LICENCE, RELEASED, trained_sensors

Fate = Literal["kept", "renamed", "dropped", "created"]
LAYER_SCALE_V2 = 1e-5  # the start of the published training; no tensor shows it
_KERNELS = "patch_embed.weight_generator.fc_weight.weight"
_DECODER_KERNELS = "decoder_pred.weight_generator.fc_weight.weight"
_DECODER = ("mask_token", "decoder_embed.", "decoder_pos_embed", "decoder_blocks.", "decoder_norm.", "decoder_pred.")
_CREATED = {
    "norm": "as identity affine: the file has none, so its pretraining latents and normed feature levels cannot be had",
    "fc_norm": "as identity affine: the released files have none",
}


class UnverifiedWeightsWarning(UserWarning):
    """Weights whose digest is none of those we know."""


@dataclass(frozen=True)
class KeyFate:
    """What became of one key of a released file, or of one that the model needs and the file lacks."""

    key: str
    fate: Fate
    reason: str = ""


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        folder: the model folder written.
        sha256: of the source file.
        recognised: the released name with that digest, None if it is unknown.
        fates: of every key.
    """

    folder: Path
    sha256: str
    recognised: str | None
    fates: tuple[KeyFate, ...]

    def lines(self) -> list[tuple[str, str, str]]:
        """(fate, key, reason) for people, what is not kept first; keys that differ in a number alone are one line."""
        merged: dict[tuple[str, str, str], int] = {}
        for f in self.fates:
            row = (f.fate, re.sub(r"(?<=blocks)\.\d+\.", ".*.", f.key), re.sub(r"\.\d+\.", ".*.", f.reason))
            merged[row] = merged.get(row, 0) + 1
        order = ["dropped", "created", "renamed", "kept"]
        rows = [(fate, key + (f" ({n})" if n > 1 else ""), reason) for (fate, key, reason), n in merged.items()]
        return sorted(rows, key=lambda row: order.index(row[0]))

    def print(self) -> None:
        """The fate of every key on the terminal."""
        from rich.console import Console
        from rich.table import Table

        console = Console()
        origin = f"recognised as {self.recognised}" if self.recognised else "an unknown file"
        if console.is_terminal:
            table = Table("fate", "key", "reason", title=f"{self.folder} from {origin}, sha256 {self.sha256[:12]}…")
            for row in self.lines():
                table.add_row(*row)
            console.print(table)
            return
        for fate, key, reason in (*self.lines(), ("written", str(self.folder), f"from {origin}, sha256 {self.sha256}")):
            line = f"{fate:8} {key}  {reason}".rstrip()
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def from_released(state_dict: Mapping[str, Tensor], num_heads: int | None = None) -> DOFA:
    """The encoder in a released state dict; a decoder or teacher in it is left out.

    Args:
        state_dict: of DOFA v1 or v2, TorchGeo's copy, the `full_weight` file, or any of them with a wrapper's prefix.
        num_heads: of the attention; by default as published for the width (384: 6, 768: 12, 1024: 16, 1280: 16).

    Returns:
        The encoder in eval mode, with the wavelengths and statistics it was trained with in its config.

    Raises:
        CheckpointError: another layout, a missing, unexpected or misshapen key, or an unknown number of heads.
    """
    return _encoder(_sort(state_dict, keep_decoder=False), num_heads)


def mae_from_released(
    state_dict: Mapping[str, Tensor],
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    *,
    legacy_layout: bool,
) -> MaskedAutoencoder:
    """The masked autoencoder in a `full_weight` state dict; the teacher and the projector are left out.

    Args:
        state_dict: with the keys of the decoder.
        num_heads: of the encoder; by default as published for its width.
        decoder_num_heads: of the decoder; by default 16 for 512 channels.
        legacy_layout: whether the decoder was trained by the published code, whose predictions mean (p, p, C). True for
            the authors' file; there is no default, because the wrong word reconstructs scrambled bands in silence.

    Raises:
        CheckpointError: as `from_released`, or there is no decoder.
    """
    if not isinstance(legacy_layout, bool):
        raise CheckpointError(f"legacy_layout is {legacy_layout!r}: True or False must be said, no tensor shows it")
    return _autoencoder(_sort(state_dict, keep_decoder=True), num_heads, decoder_num_heads, legacy_layout)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    legacy_layout: bool | None = None,
) -> Conversion:
    """Converts a file of released weights to a model folder.

    Args:
        source: .safetensors, or a PyTorch file (read with weights_only).
        out: folder to create.
        num_heads: of the attention, where the width is not a published one.
        decoder_num_heads: of the decoder's attention, where its width is not the published one.
        legacy_layout: of a file with a decoder, required there: True for the authors' `full_weight`.

    Returns:
        What became of every key; `Conversion.print` says it.

    Raises:
        CheckpointError: the file cannot be read or fits no layout, the word on legacy_layout is missing or has no
            object, or `out` already holds a model.
    """
    source, out = Path(source), Path(out)
    if (out / CONFIG).exists():
        raise CheckpointError(f"{out} already holds a model: choose another folder")
    state, left = read_released(source)
    has_decoder = any(key.endswith(_DECODER_KERNELS) for key in state)
    if has_decoder and legacy_layout is None:
        raise CheckpointError(
            f"{source} holds a decoder and nothing in it tells how its predictions are laid out: say legacy_layout "
            "True (--legacy-layout: p, p, C, as the published code trained the authors' file) or False "
            "(--no-legacy-layout: C, p, p)"
        )
    if not has_decoder and legacy_layout is not None:
        raise CheckpointError(f"{source} holds no decoder: legacy_layout says nothing about it, leave it out")
    sha256 = file_sha256(source)
    recognised = next((name for name, file in RELEASED.items() if file.sha256 == sha256), None)
    parts = _sort(state, keep_decoder=has_decoder)
    parts.fates.extend(KeyFate(key, "dropped", "training state beside the weights") for key in left)
    model = (
        _autoencoder(parts, num_heads, decoder_num_heads, bool(legacy_layout))
        if has_decoder
        else _encoder(parts, num_heads)
    )
    encoder = model.encoder if isinstance(model, MaskedAutoencoder) else model
    provenance = {
        "source": source.name,
        "source_sha256": sha256,
        "recognised_as": recognised,
        "dropped_keys": [f.key for f in parts.fates if f.fate == "dropped"],
        "created_keys": [f.key for f in parts.fates if f.fate == "created"],
    }
    encoder.origin = Origin(LICENCE, ATTRIBUTION, encoder.origin.provenance | provenance)
    if recognised is None:
        warnings.warn(_unverified(source, sha256, parts.version), UnverifiedWeightsWarning, stacklevel=2)
    return Conversion(save(model, out), sha256, recognised, tuple(parts.fates))


def read_released(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in a file, and the names of what lies beside it (an optimiser, an epoch).

    Raises:
        CheckpointError: missing, damaged, a pickle of more than tensors, or no state dict.
    """
    if not path.is_file():
        raise CheckpointError(f"no file {path}")
    with path.open("rb") as file:
        if file.read(30).startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: fetch them with git lfs pull")
    if path.suffix == ".safetensors":
        return read_safetensors(path), []
    content = unpickle(path)
    for inner in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(inner), Mapping):
            return _tensors(content[inner], path), [str(key) for key in content if key != inner]
    return _tensors(content, path), []


def unpickle(path: Path) -> Any:
    """What a PyTorch file holds, read with weights_only.

    Raises:
        CheckpointError: damaged, no such file, or a pickle of more than tensors.
    """
    try:
        # A Namespace of settings lies in files that training scripts write; it can hold data alone.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            raise CheckpointError(
                f"{path} is a pickle with {shorten(foreign[1])} in it, which could run code and is not read: "
                "save the state dict alone, best as .safetensors"
            ) from None
        raise CheckpointError(f"{path} is no PyTorch file of tensors, or damaged") from None
    # Damaged pickles fail in as many ways as there are instructions.
    except (RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError,
            AssertionError, MemoryError, struct.error) as error:  # fmt: skip
        told = (str(error).splitlines() or ["empty"])[0]
        raise CheckpointError(f"{path} is no PyTorch file, or truncated ({told})") from None


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    odd = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise CheckpointError(f"{path} is no state dict of a model: {', '.join(odd[:4])} are no tensors")
    return dict(content)


@dataclass
class _Parts:
    """A released state dict under our names: the encoder's tensors, the decoder's, and what became of every key."""

    version: int
    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor]
    fates: list[KeyFate]


def _sort(state: Mapping[str, Tensor], keep_decoder: bool) -> _Parts:
    prefix = next((key.removesuffix(_KERNELS) for key in state if key.endswith(_KERNELS)), None)
    if prefix is None:
        raise CheckpointError(f"no key {_KERNELS}: not a released DOFA layout (v1, v2, TorchGeo's copy, full_weight)")
    parts = _Parts(2 if f"{prefix}model.cls_token" in state else 1, {}, {}, [])
    for key, tensor in state.items():
        name = key.removeprefix(prefix)
        if parts.version == 2:
            if name.startswith("norm."):
                parts.fates.append(KeyFate(key, "dropped", "unused in v2; model.norm is the one that is kept"))
                continue
            name = name.removeprefix("model.")
        if reason := _dropped(name, keep_decoder):
            parts.fates.append(KeyFate(key, "dropped", reason))
            continue
        side = parts.decoder if name.startswith(_DECODER) else parts.encoder
        if name in side:
            raise CheckpointError(f"{key} and another key of the file both mean {name}")
        side[name] = tensor
        parts.fates.append(KeyFate(key, "kept") if name == key else KeyFate(key, "renamed", f"to {name}"))
    return parts


def _dropped(name: str, keep_decoder: bool) -> str:
    if name.startswith("teacher."):
        return "the frozen teacher of the distillation, a model of its own"
    if name.startswith("projector."):
        return "of the distillation loss; continued distillation starts a new one"
    if name.startswith("decoder_pred.weight_generator.fc_bias."):
        return "generated and thrown away by the published decoder"
    if name.startswith(_DECODER) and not keep_decoder:
        return "of the decoder; only full_weight with legacy_layout keeps one"
    return ""


def _encoder(parts: _Parts, num_heads: int | None) -> DOFA:
    if parts.decoder:
        raise CheckpointError(f"a decoder without a masked autoencoder to hold it: {', '.join(parts.decoder)}")
    model = build_encoder(_encoder_config(parts, num_heads))
    _create_norms(parts, model)
    fill(model, parts.encoder, "released state dict")
    model.origin = _origin(parts)
    return model.eval()


def _autoencoder(
    parts: _Parts, num_heads: int | None, decoder_num_heads: int | None, legacy_layout: bool
) -> MaskedAutoencoder:
    width, depth = _shape(parts.decoder, "decoder_embed.weight")[0], _depth(parts.decoder, "decoder_blocks")
    heads = _heads(decoder_num_heads, DECODER_HEADS, width, "decoder_num_heads")
    decoder = DecoderConfig(width, depth, heads)
    model = build_autoencoder(_encoder_config(parts, num_heads), decoder, MaskConfig(), legacy_layout)
    _create_norms(parts, model.encoder)
    tensors = {f"encoder.{name}": tensor for name, tensor in parts.encoder.items()} | parts.decoder
    fill(model, tensors, "released state dict")
    model.encoder.origin = _origin(parts)
    return model.eval()


def _encoder_config(parts: _Parts, num_heads: int | None) -> EncoderConfig:
    """Sizes off the shapes; conventions from what is published of the version (docs/architecture.md)."""
    state = parts.encoder
    width = _shape(state, "cls_token")[-1]
    rows, wave_dim = _shape(state, _KERNELS)
    patch = math.isqrt(rows // width)
    if patch * patch * width != rows:
        raise CheckpointError(f"{_KERNELS} has {rows} rows, which is no square patch times the width {width}")
    positions = _shape(state, "pos_embed")[1] - 1
    grid = math.isqrt(positions)
    if grid * grid != positions:
        raise CheckpointError(f"pos_embed holds CLS and {positions} patches, which is no square grid")
    classes = _shape(state, "head.weight")[0] if "head.weight" in state else 0
    if not classes:
        parts.fates.append(KeyFate("head", "created", "as identity: the file has no classes"))
    return EncoderConfig(
        width=width,
        depth=_depth(state, "blocks"),
        heads=_heads(num_heads, HEADS, width, "num_heads"),
        patch=patch,
        image_size=grid * patch,
        patch_offset=1,
        wave_dim=wave_dim,
        layer_scale=LAYER_SCALE_V2 if "blocks.0.ls1.gamma" in state else None,
        pooled_norm=parts.version == 1,
        sar_wavelength=SAR_WAVELENGTH_V1 if parts.version == 1 else SAR_WAVELENGTH_V2,
        polarisation_embedding=False,
        num_classes=classes,
        sensors=trained_sensors(parts.version),
    )


def _create_norms(parts: _Parts, model: DOFA) -> None:
    """Adds the norms a file lacks altogether; half a norm is an error of the file, told by `fill`."""
    for name, reason in _CREATED.items():
        keys = [key for key in model.state_dict() if key.startswith(f"{name}.")]
        if not keys or any(key in parts.encoder for key in keys):
            continue
        parts.encoder |= {
            f"{name}.weight": torch.ones(model.config.width),
            f"{name}.bias": torch.zeros(model.config.width),
        }
        parts.fates.extend(KeyFate(key, "created", reason) for key in keys)


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    ranks = {"cls_token": 3, "pos_embed": 3}
    if key not in state:
        raise CheckpointError(f"released state dict does not fit the model: missing {key}")
    shape = tuple(state[key].shape)
    if len(shape) != ranks.get(key, 2):
        raise CheckpointError(f"released state dict does not fit the model: misshapen {key} {shape}")
    return shape


def _depth(state: Mapping[str, Tensor], blocks: str) -> int:
    numbers = [int(match[1]) for key in state if (match := re.match(rf"{blocks}\.(\d+)\.", key))]
    if not numbers:
        raise CheckpointError(f"released state dict does not fit the model: missing {blocks}.0 and all others")
    return 1 + max(numbers)


def _heads(given: int | None, published: Mapping[int, int], width: int, option: str) -> int:
    heads = given if given is not None else published.get(width)
    if heads is None:
        raise CheckpointError(
            f"no tensor shows the attention heads and none are published for width {width}: pass {option}"
        )
    if heads < 1 or width % heads:
        raise CheckpointError(f"{option} is {heads}, which does not divide the width {width}")
    return heads


def _origin(parts: _Parts) -> Origin:
    provenance = {"layout": f"released v{parts.version}", "converted_by": f"dofa {dofa.__version__}"}
    return Origin(LICENCE, ATTRIBUTION, provenance)


def _unverified(source: Path, sha256: str, version: int) -> str:
    told = f"{source} has sha256 {sha256}, none of the released files whose digest we know"
    if version == 1:
        told += (
            ": an older DOFA_ViT_base_e100.pth (March 2024) was trained with scrambled kernels and looks alike in "
            "every shape, so use these weights only if you know where they come from"
        )
    return told
