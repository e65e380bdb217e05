"""Weights by name, through the Hugging Face hub and its cache."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dofa.errors import CheckpointError
from dofa.model.convert import convert
from dofa.model.native import CONFIG, FORMAT_VERSION, WEIGHTS, file_sha256
from dofa.model.released import RELEASED, ReleasedFile

# OSError and the base of the HTTP library's own errors, which is another library in each version of the hub's client.
_FETCH_ERRORS: Any = HfHubHTTPError.__bases__


def fetch_released(name: str) -> Path:
    """The model folder of a released file: downloaded and converted the first time, from the cache ever after.

    Args:
        name: a key of `RELEASED`.

    Returns:
        A folder in the hub's assets cache (HF_HOME, HF_ASSETS_CACHE). Once it is there nothing is asked of the network.

    Raises:
        CheckpointError: the file cannot be fetched, or is another than the name stands for.
    """
    file = RELEASED[name]
    folder = Path(constants.HF_ASSETS_CACHE) / "dofa" / f"{name}-format{FORMAT_VERSION}"
    if (folder / CONFIG).is_file():
        return folder
    source = _download(file.repo, file.file, name)
    if file.sha256 is not None:
        source = _checked(source, file, name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Converted beside and moved in whole: several processes may do this at once, and each may be killed.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as beside:
        converted = convert(source, Path(beside) / name, num_heads=file.num_heads).folder
        try:
            os.rename(converted, folder)
        except OSError:
            if not (folder / CONFIG).is_file():
                shutil.rmtree(folder)
                os.rename(converted, folder)
    return folder


def _checked(source: Path, file: ReleasedFile, name: str) -> Path:
    """The download if it is the file the name stands for; a damaged copy is fetched again."""
    found = file_sha256(source)
    # The cache calls large files by their digest: under its own name, this is whole and another file.
    if found != file.sha256 and source.resolve().name != found:
        source = _download(file.repo, file.file, name, force=True)
        found = file_sha256(source)
    if found != file.sha256:
        raise CheckpointError(
            f"{file.repo}/{file.file} has sha256 {found[:12]}…, but {name} is {str(file.sha256)[:12]}…: another file "
            f"lies there now; if you trust it, convert it yourself: dofa convert {source}"
        )
    return source


def fetch_repository(name: str, revision: str | None = None) -> Path:
    """The model folder of a repository in the native format, in the hub's cache.

    Args:
        name: owner/model.
        revision: branch, tag or commit; None for the default branch.

    Returns:
        The folder of the snapshot, config.json and model.safetensors of one commit.

    Raises:
        CheckpointError: the repository, the revision or a file is not there, or the hub cannot be reached.
    """
    config = _download(name, CONFIG, name, revision)
    commit = config.parent.name  # the weights of the same commit, whatever is pushed meanwhile
    return _download(name, WEIGHTS, name, commit).parent


def _download(repo: str, file: str, name: str, revision: str | None = None, force: bool = False) -> Path:
    where = f"{constants.ENDPOINT}/{repo}"
    try:
        return Path(hf_hub_download(repo, file, revision=revision, force_download=force))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise CheckpointError(
            f"{name}: {file} is not in the cache ({constants.HF_HUB_CACHE}) and {where} cannot be reached: "
            "connect once, or give a local model folder"
        ) from None
    except EntryNotFoundError:
        raise CheckpointError(f"{name}: {where} has no file {file}") from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{name}: {where} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{name}: no repository {where}, or it needs a login (hf auth login); no such local folder either"
        ) from None
    except HFValidationError as error:
        raise CheckpointError(f"{name} is no repository name: {error}") from None
    except (*_FETCH_ERRORS, ValueError) as error:  # ValueError: a forced download that found no server
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name}: fetching {file} from {where} failed: {told}") from None
