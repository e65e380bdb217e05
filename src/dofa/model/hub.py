"""Weights by name, through the Hugging Face hub and its cache."""

import ctypes
import errno
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from dofa.errors import CheckpointError
from dofa.model.convert import convert
from dofa.model.model_folder import CONFIG, FORMAT_VERSION, WEIGHTS, file_sha256
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
        revision: branch, tag or commit; None for the default branch.

    Returns:
        The folder of the snapshot, config.json and model.safetensors of one commit.

    Raises:
        CheckpointError: the repository, the revision or a file is not there, or the hub cannot be reached.
    """
    config = fetch_cached(name, CONFIG, name, revision)
    commit = config.parent.name  # the weights of the same commit, whatever is pushed meanwhile
    return fetch_cached(name, WEIGHTS, name, commit).parent


# -- One file from the Hugging Face hub: within stated times, resumed where it broke, every mistake in one line.

T = TypeVar("T")
# OSError and the base of the HTTP library's own errors, which is another library in each version of the hub's client.
_FETCH_ERRORS: Any = HfHubHTTPError.__bases__
_CONNECTING = ("ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError")  # of httpx and requests
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)
# The hub's client waits as long as a Retry-After says and asks a silent server again and again.
SILENT_S = 30.0  # without LEAST more bytes, a download is given up
LEAST = 1 << 16
DOWNLOADS = "dofa-downloads"  # in HF_ASSETS_CACHE


def fetch_file(repo: str, file: str, name: str) -> Path:
    """A file of a repository's default branch: from the hub's cache, or downloaded beside our converted models.

    A download that was interrupted, in this process or an earlier one, goes on where it broke.

    Args:
        name: what the user asked for, for messages.

    Raises:
        CheckpointError: not there, not reachable, no place to write, or nothing came for `SILENT_S`.
    """
    cached = try_to_load_from_cache(repo, file)
    return Path(cached) if isinstance(cached, str) else download(repo, file, name)


def download(repo: str, file: str, name: str) -> Path:
    """Like `fetch_file`, without a look at the hub's cache.

    Args:
        name: what the user asked for, for messages.
    """
    with _in_one_line(repo, file, name), _quiet():
        url = hf_hub_url(repo, file)
        found = _watched(lambda: get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT), lambda: 0, None)
        folder = Path(constants.HF_ASSETS_CACHE) / DOWNLOADS
        folder.mkdir(parents=True, exist_ok=True)
        # By its digest: another file under the same name is not mixed with the first half of this one.
        path = folder / f"{(found.etag or 'unknown')[:16]}-{file}"
        part = path.with_name(f"{path.name}.part")
        with WeakFileLock(part.with_suffix(".lock")):  # several processes may ask at once
            if path.is_file():
                return path
            with part.open("ab") as out:

                def fetch() -> None:
                    size = out.tell()
                    http_get(found.location, out, resume_size=size, expected_size=found.size, displayed_filename=file)

                _watched(fetch, lambda: part.stat().st_size, found.size)
            part.rename(path)
            return path


def fetch_cached(repo: str, file: str, name: str, revision: str | None = None) -> Path:
    """A file of a repository, in the hub's own cache.

    Args:
        name: what the user asked for, for messages.
        revision: branch, tag or commit; None for the default branch.

    Raises:
        CheckpointError: as `fetch_file`, or there is no such revision.
    """
    with _in_one_line(repo, file, name, revision), _quiet():
        size = None
        if not isinstance(try_to_load_from_cache(repo, file, revision=revision), str):
            # Asked once, so that a network that is not there is told at once: the client would try for half a minute.
            url = hf_hub_url(repo, file, revision=revision)
            found = _watched(lambda: get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT), lambda: 0, None)
            size = found.size
        blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
        before = _incomplete(blobs)
        return Path(
            _watched(
                lambda: hf_hub_download(repo, file, revision=revision),
                lambda: _incomplete(blobs) - before,
                size,
            )
        )


def _incomplete(blobs: Path) -> int:
    return sum(p.stat().st_size for p in blobs.glob("*.incomplete")) if blobs.is_dir() else 0


def _watched(work: Callable[[], T], grown: Callable[[], int], size: int | None) -> T:
    """What `work` returns; given up when too few bytes come, or more than were announced."""
    result: list[T] = []
    error: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as caught:
            error.append(caught)

    thread = threading.Thread(target=run, name="dofa-download", daemon=True)  # no process waits for it at its end
    thread.start()
    since, last = time.monotonic(), 0
    while thread.is_alive():
        thread.join(0.05 if time.monotonic() - since < 1 else 0.25)
        try:
            bytes_now = grown()
        except OSError:  # renamed between two looks
            continue
        if bytes_now - last >= LEAST:
            since, last = time.monotonic(), bytes_now
        if size is not None and bytes_now > size + LEAST:
            _stop(thread)
            raise TimeoutError(f"it sends more than the {size} bytes it announced")
        if thread.is_alive() and time.monotonic() - since > SILENT_S:
            _stop(thread)
            raise TimeoutError(f"less than {LEAST >> 10} kB came in {SILENT_S:.0f} s; run it again to go on from there")
    if error:
        raise error[0]
    return result[0]


def _stop(thread: threading.Thread) -> None:
    """End a download that is given up at its next piece, for an endless one would fill the disk.

    The client has no call for that in the versions that we take.
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))


@contextmanager
def _quiet() -> Iterator[None]:
    """The client's account of every attempt is left out: what matters is the one line at the end."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _in_one_line(repo: str, file: str, name: str, revision: str | None = None) -> Iterator[None]:
    where = f"{constants.ENDPOINT}/{repo}"
    unreachable = (
        f"{name}: {file} is not in the cache ({constants.HF_HUB_CACHE}) and {where} cannot be reached"
        f"{' (HF_HUB_OFFLINE is set)' if constants.HF_HUB_OFFLINE else ''}: connect once, or give a local model folder"
    )
    if constants.HF_HUB_OFFLINE and not isinstance(try_to_load_from_cache(repo, file, revision=revision), str):
        raise CheckpointError(unreachable)
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise CheckpointError(unreachable) from None
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
    except (*_FETCH_ERRORS, ValueError) as error:
        if any(cls.__name__ in _CONNECTING for cls in type(error).__mro__):
            raise CheckpointError(unreachable) from None
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            raise CheckpointError(
                f"{name}: {error.filename or constants.HF_HOME} cannot be written ({error.strerror}): name a folder "
                "for downloads and converted models, export HF_HOME=FOLDER"
            ) from None
        told = (str(error).splitlines() or [type(error).__name__])[0]
        wait = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After")
        asked = f" (it asks to wait {wait} s)" if wait else ""
        raise CheckpointError(f"{name}: fetching {file} from {where} failed: {told}{asked}") from None
