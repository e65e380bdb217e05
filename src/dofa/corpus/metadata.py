"""The metadata of a store: its groups' attributes, read by address alone, checked and sealed with a digest.

Format version 2 seals the attributes of every group (`sha256`), whose `columns` hold the digest of each column; chunks
of pixels carry a crc32c each. Version 1 has none of these and is read with the checks that need none.
"""

from pathlib import Path
from typing import Any

import fsspec
from numpy.typing import NDArray
from zarr.storage import FsspecStore

from dofa.addresses import with_path
from dofa.corpus.http import HTTPStore
from dofa.documents import parse_json
from dofa.errors import DataError
from dofa.io import json_digest
from dofa.settings import check_version

FORMAT = "dofa-store"
FORMAT_VERSION = 2
SEAL = "sha256"
COPY_AGAIN = "copy the store again, or delete it and pack it again"


def local_path(url: str) -> Path | None:
    """The folder of a store on a local disk; None for any other address.

    Args:
        url: as the user gave it.
    """
    protocol, path = fsspec.core.split_protocol(url)
    return Path(path).absolute() if protocol in (None, "file", "local") else None


def zarr_store(url: str) -> str | FsspecStore:
    """What Zarr opens: a local path as it is, anything else through fsspec.

    Raises:
        DataError: a package for this kind of address is missing, or there is no such kind.
    """
    folder = local_path(url)
    if folder is not None:
        return str(folder)
    try:
        if url.lower().startswith(("http://", "https://")):
            base, _, query = url.partition("?")
            return FsspecStore(HTTPStore(query, asynchronous=True), read_only=True, path=base.rstrip("/"))
        remote: FsspecStore = FsspecStore.from_url(url, read_only=True)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: {error}") from None
    return remote


def fetch(url: str, path: str, end: int | None = None) -> bytes | None:
    """A file of a store; None where it is not there.

    Args:
        end: how many of its bytes; all where absent.

    Raises:
        DataError: it cannot be read, or its server does not answer.
    """
    folder = local_path(url)
    try:
        if folder is not None:
            with (folder / path).open("rb") as file:
                return file.read(-1 if end is None else end)
        if url.lower().startswith(("http://", "https://")):
            base, _, query = url.partition("?")
            data: bytes = HTTPStore(query).cat_file(f"{base.rstrip('/')}/{path}", start=0 if end else None, end=end)
        else:
            system, address = fsspec.core.url_to_fs(with_path(url, path))
            data = system.cat_file(address, start=0 if end else None, end=end)
        return data
    except (FileNotFoundError, NotADirectoryError):
        return None
    # Each of fsspec's backends (http, s3, gcs, adlfs …) raises its client's own kinds, which have no base in common but
    # this one; the cause stays on the error for whoever debugs.
    except Exception as error:
        raise DataError(f"{url} cannot be read as a store: {in_line(error)}") from error


def in_line(error: BaseException) -> str:
    """What an error says, on one line; its kind where it says nothing."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__} {text}".strip() if isinstance(error, KeyError) or not text else text


def read_json(url: str, path: str) -> dict[str, Any] | None:
    """A JSON mapping of a store; None where the file is not there.

    Raises:
        DataError: no JSON, no mapping, or it cannot be read.
    """
    data = fetch(url, path)
    if data is None:
        return None
    found = parse_json(data, f"{url} is damaged: {path}")
    if not isinstance(found, dict):
        raise DataError(f"{url} is damaged: {path} holds no mapping: {COPY_AGAIN}")
    return found


def read_attributes(url: str, path: str = "") -> dict[str, Any] | None:
    """Attributes of a group; None where there is none.

    Args:
        url: folder or address of a store.
        path: of the group in it; empty for the root.

    Raises:
        DataError: the address cannot be reached, or holds something else.
    """
    record = read_json(url, f"{path}/zarr.json" if path else "zarr.json")
    if record is None:
        return None
    attributes = record.get("attributes", {})
    if record.get("zarr_format") != 3 or record.get("node_type") != "group" or not isinstance(attributes, dict):
        raise DataError(f"{url} cannot be read as a store: its zarr.json describes no Zarr 3 group")
    return dict(attributes)


def check_format(attributes: dict[str, Any], url: str, sensor: str = "") -> None:
    """Refuse what is no store of ours, formats newer than this version knows, and attributes that were changed.

    Args:
        attributes: of the root, or of a sensor's group.
        sensor: of the group; empty for the root.

    Raises:
        DataError: with the cure.
    """
    where = f"{url}, {sensor}" if sensor else url
    if attributes.get("format") != FORMAT:
        raise DataError(f"{where} is Zarr but no store written by dofa pack")
    version = check_version(attributes.get("format_version"), FORMAT_VERSION, where)
    finished = not sensor or attributes.get("complete") is True
    if (SEAL in attributes or (version > 1 and finished)) and attributes.get(SEAL) != _digest(attributes):
        raise DataError(f"{where} is damaged: its zarr.json is not as it was written: {COPY_AGAIN}")


def sealed(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes with the digest that `check_format` compares.

    Args:
        attributes: JSON values.
    """
    return {**attributes, SEAL: _digest(attributes)}


def column_digest(values: NDArray[Any]) -> str:
    """SHA-256 of a column's values, in hexadecimal.

    Args:
        values: (N,) texts or whole numbers.
    """
    return json_digest(values.tolist())


def _digest(attributes: dict[str, Any]) -> str:
    rest = {key: value for key, value in attributes.items() if key != SEAL}
    return json_digest(rest)
