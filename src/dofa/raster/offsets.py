"""`--dn-offset`, for all files or by file: processing baselines differ within a time series."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from dofa.errors import ConfigError


def dn_offsets(text: str | float | None) -> list[tuple[str, float]]:
    """Patterns of file names and what is added to the numbers of those files.

    Args:
        text: `-1000` for all files, or `PATTERN=NUMBER` entries with commas between them, the first that fits counts:
            `S2B*=-1000,*=0`.

    Raises:
        ConfigError: an entry that is no number.
    """
    if text is None:
        return []
    out = []
    for entry in str(text).split(","):
        pattern, equals, number = entry.rpartition("=")
        try:
            out.append((pattern.strip() if equals else "*", float(number)))
        except ValueError:
            raise ConfigError(
                f"--dn-offset {text}: a number such as -1000, or one by file, such as --dn-offset 'S2B*=-1000,*=0'"
            ) from None
    return out


def dn_offset_of(text: str | float | None, sources: Sequence[str]) -> float | None:
    """The offset of a scene.

    Args:
        text: as for `dn_offsets`.
        sources: files of the scene; the last part of a path, or all of it, is compared with the patterns.

    Returns:
        None where nothing fits.
    """
    names = [name for source in sources for name in (source, source.rstrip("/").rsplit("/", 1)[-1])]
    fitting = (value for pattern, value in dn_offsets(text) if any(fnmatchcase(name, pattern) for name in names))
    return next(fitting, None)


def check_dn_offsets(text: str | float | None, sources: Sequence[Sequence[str]]) -> None:
    """Refuse a pattern that fits none of the files: it is a slip, and its files would be read without the offset.

    Args:
        text: as for `dn_offsets`.
        sources: files of each scene.

    Raises:
        ConfigError: such a pattern.
    """
    for pattern, value in dn_offsets(text):
        if pattern != "*" and all(dn_offset_of(f"{pattern}={value}", one) is None for one in sources):
            raise ConfigError(f"--dn-offset {text}: no file given is named like {pattern}")
