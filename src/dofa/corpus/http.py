"""Stores on a web server: byte ranges, what is asked again and for how long, and signed addresses."""

import asyncio
import warnings
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

from dofa.addresses import redact
from dofa.raster import remote

LONGEST_WAIT_S = 30.0  # whatever a server asks for in Retry-After
DEADLINE_S = 60.0  # for one answer: a server may send a byte a second for ever
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that another attempt may change


class HTTPStore(HTTPFileSystem):  # type: ignore[misc]
    """HTTP for Zarr: asks again where an answer is lost, late, cut off or refused for now.

    A server may ignore Range, as `python -m http.server` does, and answer with the whole file.

    Args:
        query: of a signed address (`sv=…&sig=…`), put behind the address of every file.
    """

    def __init__(self, query: str = "", **options: Any) -> None:
        timeout = aiohttp.ClientTimeout(total=DEADLINE_S, sock_connect=remote.TIMEOUT_S, sock_read=remote.TIMEOUT_S)
        super().__init__(client_kwargs={"timeout": timeout}, **options)
        self.query = query

    async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        address = f"{url}?{self.query}" if self.query else url
        for wait in (*remote.WAITS_S, None):
            try:
                out: bytes = await super()._cat_file(address, start=start, end=end, **options)
                break
            except aiohttp.ClientResponseError as error:
                if wait is None or error.status not in PASSING:
                    raise OSError(_refused(error)) from None
                wait = max(wait, _retry_after(error))
            except (aiohttp.ServerTimeoutError, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                if wait is None:
                    raise OSError(f"{_lost(error)} (asked {1 + len(remote.WAITS_S)} times): try again later") from None
            except TimeoutError:
                raise OSError(f"the server sends too slowly, no whole answer within {DEADLINE_S:g} s") from None
            await asyncio.sleep(wait)
        # Zarr asks for whole files, for start to end, and for the last bytes (a negative start).
        if start is None or len(out) <= (-start if end is None else end - start):
            return out
        warnings.warn(
            f"the server of {redact(url)} ignores byte ranges: every crop costs a whole shard; serve the store with "
            "ranges",
            stacklevel=2,
        )
        return out[start:end]


def _lost(error: Exception) -> str:
    """Why no whole answer came."""
    if isinstance(error, aiohttp.ServerTimeoutError):
        return f"the server sends nothing for {remote.TIMEOUT_S:g} s"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the server cuts its answer off"
    return redact(" ".join(str(error).split())) or type(error).__name__


def _refused(error: aiohttp.ClientResponseError) -> str:
    """What a status says, and what to do."""
    said = f"the server answers {error.status} {error.message}".strip()
    if error.status in (401, 403):
        return f"{said}: look at the password or signature in its address, signatures run out"
    if error.status in PASSING:
        return f"{said} (asked {1 + len(remote.WAITS_S)} times): try again later"
    return f"{said}: look at the address"


def _retry_after(error: aiohttp.ClientResponseError) -> float:
    """Seconds that the server asks to wait, at most `LONGEST_WAIT_S`; 0 where it says nothing that can be read."""
    said = error.headers.get("Retry-After", "") if error.headers else ""
    try:
        seconds = float(said) if said.strip().isdigit() else _seconds_until(said)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT_S)


def _seconds_until(date: str) -> float:
    moment = parsedate_to_datetime(date)
    return moment.timestamp() - moment.now(moment.tzinfo).timestamp()
