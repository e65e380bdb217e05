"""Files behind a network: their names for GDAL, and asking again when an answer is lost on the way.

GDAL itself asks again where a server is busy (429, 500–504) or does not answer in time. It does not where an answer is
cut off, and it keeps the piece that it got: only a new handle, opened after the old one is closed, asks anew
(`gdal.OPTIONS` tells it to forget what a closed file had).
"""

import contextlib
import http.client
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from dofa.addresses import redact
from dofa.errors import DataError

WAITS_S: tuple[float, ...] = (1.0, 3.0)  # before the second and the third attempt
TIMEOUT_S = 10.0  # without a byte
PATIENCE_S = 25.0  # after which nothing is asked again: a server that stays silent is told within a minute
SLOWEST = 1000  # bytes a second of a document
LARGEST = 64 * 2**20  # bytes of a document; items of catalogues have some ten thousand

SCHEMES = {"http": "/vsicurl/http", "https": "/vsicurl/https", "s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}
NETWORK = re.compile(r"/vsi(curl|s3|gs|az|adls|oss|swift|webhdfs)\b|(?<![a-z])(https?|s3|gs|az)://")
# Answers that another attempt would not change.
FINAL = re.compile(
    r"HTTP (?:response|error) code\D*4(?!08|29)\d\d|not resolve host|Network is unreachable|_ACCESS_KEY|credentials",
    re.IGNORECASE,
)
Answer = TypeVar("Answer")


def is_remote(path: str) -> bool:
    """Whether GDAL fetches this name over a network."""
    return NETWORK.search(path) is not None


def gdal_name(path: str) -> str:
    """GDAL's name of a file or an address: https://… becomes /vsicurl/https://…, s3://… /vsis3/…"""
    scheme, colon, rest = path.partition("://")
    head = SCHEMES.get(scheme.lower()) if colon else None
    if head is None:
        return path
    return f"{head}://{rest}" if head.startswith("/vsicurl") else head + rest


def with_retries(path: str, act: Callable[[], Answer], forget: Callable[[], None], *, lost: type[Exception]) -> Answer:
    """Do something with a file; over a network up to three times.

    Args:
        forget: called before each further attempt: to close what GDAL has of the file.
        lost: the error that may be the network's.

    Raises:
        Exception: `lost`, of the last attempt.
    """
    began = time.monotonic()
    for wait in WAITS_S if is_remote(path) else ():
        try:
            return act()
        except lost as error:
            if FINAL.search(reason(error)) or time.monotonic() - began > PATIENCE_S:
                raise
            forget()
            time.sleep(wait)
    return act()


def reason(error: BaseException, holds: str = "the server sent") -> str:
    """Why something was not read, on one line: the first cause, which GDAL and rasterio hide behind general ones.

    Args:
        error: as it was raised.
        holds: what is said before a number of bytes that falls short.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    cut = re.search(r"got (\d+) bytes, expected (\d+)", text)
    return f"{holds} {cut[1]} of {cut[2]} bytes" if cut else text


def fetch(url: str) -> bytes:
    """A document, asked for up to three times, within a minute.

    Raises:
        DataError: it did not come; one line with the address and the reason.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{redact(url)}: documents are fetched from http and https addresses alone: download it first")
    why = ""
    began = time.monotonic()
    for wait in (*WAITS_S, None):
        try:
            with _opened(url) as answer:
                data = _read(answer, began)
                if (
                    answer.length and len(data) <= LARGEST
                ):  # bytes that are to come: `read` itself takes them for the end
                    raise http.client.IncompleteRead(data, answer.length)
            if len(data) > LARGEST:
                raise DataError(f"{redact(url)} is larger than {LARGEST // 2**20} MB: it is no catalogue item")
            return data
        except urllib.error.HTTPError as error:
            why = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                break
        except http.client.IncompleteRead as error:
            why = f"the server sent {len(error.partial)} of {len(error.partial) + (error.expected or 0)} bytes"
        except urllib.error.URLError as error:
            why = str(error.reason)
            if isinstance(error.reason, socket.gaierror):  # no network, or no such server
                break
        except (OSError, http.client.HTTPException) as error:
            why = str(error) or type(error).__name__
        if wait is None or time.monotonic() - began > PATIENCE_S:
            break
        time.sleep(wait)
    raise DataError(f"{redact(url)} cannot be fetched: {' '.join(why.split())}")


def _read(answer: http.client.HTTPResponse, began: float) -> bytes:
    """The body of an answer, a piece at a time: each byte of one that drips comes within any time limit of its own."""
    pieces: list[bytes] = []
    held = 0
    while held <= LARGEST and (piece := answer.read1(2**20)):
        pieces.append(piece)
        held += len(piece)
        seconds = time.monotonic() - began
        if seconds > PATIENCE_S and held / seconds < SLOWEST:
            raise TimeoutError(f"{held} bytes in {seconds:.0f} s")
    return b"".join(pieces)


def _opened(url: str, method: str = "GET") -> Any:
    """An answer; user and password of the address are told to its server alone, and only when it asks for them."""
    parts = urlsplit(url)
    user, mark, host = parts.netloc.rpartition("@")
    plain = urlunsplit(parts._replace(netloc=host))
    handlers = []
    if mark:
        name, _, password = user.partition(":")
        known = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        known.add_password(None, f"{parts.scheme}://{host}/", unquote(name), unquote(password))
        handlers.append(urllib.request.HTTPBasicAuthHandler(known))
    asked = urllib.request.Request(plain, method=method)
    return urllib.request.build_opener(*handlers).open(asked, timeout=TIMEOUT_S)


def version(path: str) -> str | None:
    """What a server says to tell versions of a file apart: its ETag, when it changed, and its length.

    None for files that are not on a web server, and where it does not answer; nobody waits for a second try.
    """
    url = path.removeprefix("/vsicurl/")
    if urlsplit(url).scheme not in ("http", "https"):
        return None
    try:
        with _opened(url, "HEAD") as answer:
            told = [answer.headers.get(key) for key in ("ETag", "Last-Modified", "Content-Length")]
    except (OSError, http.client.HTTPException):
        return None
    return " ".join(t for t in told if t) or None


def suffix(path: str | Path) -> str:
    """The ending of a name or an address, lower case, without a query: .tif"""
    name = str(path)
    with contextlib.suppress(ValueError):  # an address that is none, such as http://[
        name = urlsplit(name).path if "://" in name else name
    return Path(name).suffix.lower()
