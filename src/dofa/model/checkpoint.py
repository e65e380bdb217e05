"""Models by name or folder: create, load, save. The parts are `native`, `convert` and `hub`."""

import re
from pathlib import Path
from typing import Any

from dofa.errors import CheckpointError, nearest
from dofa.model.config import PRESETS, preset
from dofa.model.convert import convert, from_released, mae_from_released
from dofa.model.encoder import DOFA
from dofa.model.mae import MaskedAutoencoder
from dofa.model.model_folder import encoder_sha256, load_autoencoder, load_encoder, save
from dofa.model.released import RELEASED

__all__ = [
    "convert",
    "create",
    "encoder_sha256",
    "from_released",
    "load",
    "load_mae",
    "mae_from_released",
    "resolve",
    "save",
]

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/model


def create(name: str, **changes: Any) -> DOFA:
    """A new model with random weights.

    Args:
        name: tiny, tiny-p8, small, base, large, huge, plus-small, plus-base or plus-large.
        changes: fields of `EncoderConfig` to set otherwise, for example `patch=8, image_size=96`.

    Raises:
        ConfigError: an unknown name or field; the nearest are said.
    """
    return DOFA(preset(name, **changes))


def load(name_or_folder: str | Path, *, revision: str | None = None) -> DOFA:
    """An encoder with its weights; every key is accounted for or it is an error.

    Args:
        name_or_folder: a model folder; or dofa-v1-base, dofa-v1-large, dofa-v1-base-full (with its decoder, for
            `load_mae`), dofa-v2-base, dofa-v2-large (the authors' files, fetched and converted once); or owner/model, a
            repository on the hub in the native format.
        revision: branch, tag or commit of a repository.

    Returns:
        The encoder in eval mode, float32, on the CPU. Of a folder with a decoder, the encoder alone.

    Raises:
        CheckpointError: unknown, unreachable, or files that do not fit.
    """
    model = load_encoder(resolve(name_or_folder, revision))
    model.name = "/".join(Path(name_or_folder).parts[-2:])
    return model


def load_mae(name_or_folder: str | Path, *, revision: str | None = None) -> MaskedAutoencoder:
    """A masked autoencoder with its weights, to continue pretraining; arguments and errors as `load`."""
    return load_autoencoder(resolve(name_or_folder, revision))


def resolve(name_or_folder: str | Path, revision: str | None = None) -> Path:
    """The model folder a name stands for; a local folder comes before any name.

    Args:
        name_or_folder: a model folder, a name of released weights, or `owner/repository` of the hub.
        revision: of that repository; None for its newest.

    Raises:
        CheckpointError: there is none; the nearest names are said.
    """
    path, name = Path(name_or_folder).expanduser(), str(name_or_folder)
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file; a model is a folder with config.json and model.safetensors "
            "(dofa convert makes one from released weights)"
        )
    is_repository = _REPOSITORY.fullmatch(name) is not None and not path.is_dir() and isinstance(name_or_folder, str)
    if revision is not None and not is_repository:
        raise CheckpointError(f"{name} is no repository, so it has no revision {revision!r}")
    if path.is_dir():
        return path
    if is_repository or name in RELEASED:
        from dofa.model import hub  # a local folder needs no HTTP client

        return hub.fetch_repository(name, revision) if is_repository else hub.fetch_released(name)
    if name in PRESETS:
        raise CheckpointError(f"{name} is a size without weights: dofa.create({name!r}) makes one with random weights")
    raise CheckpointError(f"no model folder and no known name {name!r}: {nearest(name, RELEASED)}")
