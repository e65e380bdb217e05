"""The errors a user can cause, told in one line: what, where and the cure."""

import difflib
import re
from collections.abc import Iterable, Mapping

from dofa.addresses import redact

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # what a terminal obeys rather than shows
LONGEST = 480  # characters of a message: a few lines of a terminal


class DofaError(Exception):
    """A mistake in the input; the command line prints it without a traceback.

    As text it is one line of printable characters, however long or odd the names are that a file put into it;
    addresses in it show no passwords or signatures.

    Args:
        message: one line.
        flags: what would mend it on the command line, None for a flag to leave out: the whole command is then printed.
    """

    def __init__(self, message: str = "", flags: Mapping[str, str | None] | None = None) -> None:
        super().__init__(redact(message))
        self.flags = dict(flags or {})

    def __str__(self) -> str:
        text = " ".join("".join(c if c.isprintable() else " " for c in super().__str__()).split())
        text = " ".join(shorten(word) if len(word) > 240 else word for word in text.split(" "))
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 122]} … {text[-119:]}"  # the cure stands last


class ConfigError(DofaError, ValueError):
    """A setting, sensor or name that does not hold together."""


class DataError(DofaError, ValueError):
    """A raster, sample or store that cannot be used as it is."""


class CheckpointError(DofaError, ValueError):
    """Weights whose keys, shapes or format version do not fit."""


def shorten(text: str, limit: int = 80) -> str:
    """A name or value for a message: one line of printable characters, cut at the limit.

    Args:
        text: of a file or a user.
    """
    text = "".join(c if c.isprintable() else " " for c in text[: 2 * limit])
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def listed(items: Iterable[object], most: int = 8) -> str:
    """The first of them, with commas, and how many there are.

    Args:
        items: anything with a text.
    """
    words = [str(i) for i in items]
    return ", ".join(words[:most]) + (f", … ({len(words)})" if len(words) > most else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """The closest known names, whatever the case, as a phrase for an error message; all names if nothing is close.

    Args:
        name: as the user wrote it.
    """
    name = name[:80]  # finding close names takes time by the square of their length
    names = {known_name.lower(): known_name for known_name in sorted(known)}
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(names[key] for key in close)}?"
    listed = list(names.values())
    return f"known: {', '.join(listed[:12])}{f' and {len(listed) - 12} more' if len(listed) > 12 else ''}"
