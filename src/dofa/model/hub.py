"""Weights by name, through the Hugging Face hub and its cache."""

import os
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from dofa.errors import CheckpointError
from dofa.model.convert import convert
from dofa.model.download import DOWNLOADS, download, fetch_cached, fetch_file
from dofa.model.native import CONFIG, FORMAT_VERSION, WEIGHTS, file_sha256
from dofa.model.released import RELEASED, ReleasedFile


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
    try:
        # One process fetches and converts, the others wait for it: each would fetch a file that the first one removes.
        downloads = Path(constants.HF_ASSETS_CACHE) / DOWNLOADS
        downloads.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(downloads / f"{name}.lock"):
            return folder if (folder / CONFIG).is_file() else _fetch_and_convert(file, folder, name)
    except OSError as error:
        raise CheckpointError(
            f"{name}: {folder} cannot be written ({error.strerror}): name a folder for converted models, export "
            "HF_HOME=FOLDER"
        ) from None


def _fetch_and_convert(file: ReleasedFile, folder: Path, name: str) -> Path:
    source = fetch_file(file.repo, file.file, name)
    if file.sha256 is not None:
        source = _checked(source, file, name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Converted beside and moved in whole, for the process may be killed.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as beside:
        layout = True if file.decoder else None
        converted = convert(source, Path(beside) / name, num_heads=file.num_heads, legacy_layout=layout).folder
        if folder.is_dir():
            shutil.rmtree(folder)  # without its configuration: what a killed process left
        os.rename(converted, folder)
    if source.is_relative_to(constants.HF_ASSETS_CACHE):
        source.unlink(missing_ok=True)  # our own download: everything in it is in the folder, or was left out by name
    return folder


def _checked(source: Path, file: ReleasedFile, name: str) -> Path:
    """The file if it is the one the name stands for; a damaged or older copy is fetched again."""
    found = file_sha256(source)
    if found != file.sha256:
        if source.is_relative_to(constants.HF_ASSETS_CACHE):
            source.rename(source.with_name(f"{found[:16]}-{file.file}"))
            source = source.with_name(f"{found[:16]}-{file.file}")
        else:
            source = download(file.repo, file.file, name)
            found = file_sha256(source)
    if found != file.sha256:
        raise CheckpointError(
            f"{file.repo}/{file.file} has sha256 {found[:12]}…, but {name} is {str(file.sha256)[:12]}…: another file "
            f"lies there now; if you trust it, convert it yourself: dofa convert {source} --out FOLDER"
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
    config = fetch_cached(name, CONFIG, name, revision)
    commit = config.parent.name  # the weights of the same commit, whatever is pushed meanwhile
    return fetch_cached(name, WEIGHTS, name, commit).parent
