"""The errors a user can cause, told in one line: what, where and the cure."""

import difflib
from collections.abc import Iterable, Mapping


class DofaError(Exception):
    """A mistake in the input; the command line prints it without a traceback.

    Args:
        message: one line.
        flags: what would mend it on the command line, None for a flag to leave out: the whole command is then printed.
    """

    def __init__(self, message: str = "", flags: Mapping[str, str | None] | None = None) -> None:
        super().__init__(message)
        self.flags = dict(flags or {})


class ConfigError(DofaError, ValueError):
    """A setting, sensor or name that does not hold together."""


class DataError(DofaError, ValueError):
    """A raster, sample or store that cannot be used as it is."""


class CheckpointError(DofaError, ValueError):
    """Weights whose keys, shapes or format version do not fit."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The closest known names, whatever the case, as a phrase for an error message; all names if nothing is close.

    Args:
        name: as the user wrote it.
        known: what there is.
    """
    names = {known_name.lower(): known_name for known_name in sorted(known)}
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(names[key] for key in close)}?"
    listed = list(names.values())
    return f"known: {', '.join(listed[:30])}{f' and {len(listed) - 30} more' if len(listed) > 30 else ''}"
