"""Addresses without what may be secret in them, for every message, file and record that people share."""

import re
from typing import Any

# An address in a text. Quotes, brackets and blanks end it, and so do the marks of a sentence.
# One that went through `Path` has a single slash left; C:/ is none.
_ADDRESS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*(?=://)|\b(?:https?|ftps?|s3|gs|gcs|az|abfss?|wasbs?)(?=:/))(?P<mark>://?)"
    r"(?P<rest>[^\s\"'<>|\\^`{}]+)",
    re.IGNORECASE,
)
_USER = re.compile(r"[^/?#]*@|[^/?#@:]+:(?!\d*(?:[/?#]|$))[^@?]*@")  # also where a password holds a slash
_OPTIONS = re.compile(r"(?P<head>/vsi[a-z0-9_]+)\?[^\s\"'<>]+", re.IGNORECASE)  # GDAL's: /vsicurl?header…=…&url=…
_PASSWORD = re.compile(r"\b(?P<key>password|passwd|pwd)=(?:…|'[^']*'|[^\s'\"&;,]+)", re.IGNORECASE)  # PG:… password=…
_CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")  # CONTAINER@ACCOUNT: no user


def redact(text: str) -> str:
    """A text with every address in it stripped of user names, passwords and queries (signatures, keys, tokens).

    Args:
        text: an address, or a message with addresses in it; anything else comes back as it is.

    Returns:
        `https://…?…` where a query was; the same for a text that was stripped before, so that two forms compare.
    """
    if ":/" in text:
        text = _ADDRESS.sub(lambda m: f"{m['scheme']}{m['mark']}{_public(m['scheme'], m['rest'])}", text)
    if "/vsi" in text:
        text = _OPTIONS.sub(lambda found: f"{found['head']}?…", text)
    return _PASSWORD.sub(lambda found: f"{found['key']}=…", text) if "=" in text else text


def redact_values(value: Any) -> Any:
    """JSON values with every text in them as `redact` gives it; keys of mappings too.

    Args:
        value: of mappings, sequences, texts, numbers and None.
    """
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact_values(key): redact_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redact_values(entry) for entry in value) if type(value) in (list, tuple) else value
    return value


def with_path(address: str, path: str) -> str:
    """The address of something below another: before its query, where it has one.

    Args:
        address: https://host/store?sig=…
        path: store/zarr.json
    """
    base, mark, query = address.partition("?") if "://" in address else (address, "", "")
    return f"{base.rstrip('/')}/{path}{mark}{query}" if path else address


def _public(scheme: str, rest: str) -> str:
    """What may be shown of an address behind its ://"""
    ends = rest.rstrip(".,:;)]")
    tail = rest[len(ends) :]
    user = _USER.match(ends)
    if user is not None and (":" in user[0] or scheme.lower() not in _CONTAINERS):
        ends = ends[user.end() :]
    path, mark, _ = ends.partition("?")
    return f"{path}?…{tail}" if mark else ends + tail
