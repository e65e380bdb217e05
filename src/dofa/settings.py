"""Values of a file as the fields of a dataclass: types by its annotations, unknown keys with the nearest known name."""

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dofa.errors import ConfigError, DataError, DofaError, nearest, shorten

HUGE = 2**53  # beyond it a whole number is not itself as float64, and no size, count or code is meant


def check_types(owner: Any, where: str, *, skip: Collection[str] = ()) -> None:
    """Check the fields of a dataclass against their annotations; floats are finite, bool is no number.

    Args:
        skip: fields that are not checked.

    Raises:
        ConfigError: a field of another type; its name, its value and what is expected are said.
    """
    for name, hint in _hints(owner.__class__).items():
        if name not in skip and not _is(value := getattr(owner, name), hint):
            raise ConfigError(f"{where}{name} is {shorten(repr(value))}; {_named(hint)} is expected")


def check_keys(
    data: Any, known: Collection[str], where: str, required: Collection[str] = (), error: type[DofaError] = ConfigError
) -> Mapping[str, Any]:
    """Check that a value of a file is a mapping with these keys.

    Args:
        known: keys that it may have.
        required: keys that it must have.

    Returns:
        The mapping.

    Raises:
        DofaError: `error`: no mapping, an unknown key (the nearest known one is named), or a missing one.
    """
    if not isinstance(data, Mapping):
        raise error(f"{where} is {shorten(repr(data))}; a mapping of settings is expected")
    unknown = [str(key) for key in data if key not in known]
    if unknown:
        more = f" (and {len(unknown) - 1} more unknown keys)" if len(unknown) > 1 else ""
        raise error(f"{where}: unknown key {shorten(unknown[0])!r}{more}: {nearest(unknown[0], known)}")
    missing = [key for key in required if key not in data]
    if missing:
        raise error(f"{where}: {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing")
    return data


def field_names(owner: type) -> list[str]:
    """Names of a dataclass's fields, in order."""
    return [field.name for field in fields(owner)]


def whole_number(value: Any, what: str, low: int = 0, high: int = HUGE, error: type[DofaError] = ConfigError) -> int:
    """A whole number of a file, checked.

    Args:
        what: it is, for messages.

    Raises:
        DofaError: `error`.
    """
    if not _is(value, int) or not low <= value <= high:
        bounds = f"from {low}" if high == HUGE else f"from {low} to {high}"
        raise error(f"{what} is {shorten(repr(value))}; a whole number {bounds} is expected")
    return int(value)


def number(value: Any, what: str, *, finite: bool = True, error: type[DofaError] = ConfigError) -> float:
    """A number of a file, checked; so is a text that is one, since YAML reads 1e-4 (no dot) as a text.

    Args:
        what: it is, for messages.
        finite: whether infinity is refused; NaN always is.

    Raises:
        DofaError: `error`.
    """
    try:
        found = None if isinstance(value, bool) or not isinstance(value, str | Real) else float(value)
    except (ValueError, OverflowError):
        found = None
    if found is None or math.isnan(found) or (finite and math.isinf(found)):
        raise error(f"{what} is {shorten(repr(value))}; a {'' if found is None else 'finite '}number is expected")
    return found


def check_version(value: Any, newest: int, what: str, error: type[DofaError] = DataError) -> int:
    """The format version of a file, at most the newest one that this dofa reads.

    Args:
        what: the file, for messages.

    Raises:
        DofaError: `error`: no format version, or a newer one.
    """
    if not _is(value, int) or value < 1:
        raise error(f"{what} has no format_version ({shorten(repr(value))}): damaged, or not written by dofa")
    if value > newest:
        raise error(f"{what} has format_version {value}, newer than the {newest} this dofa reads: update dofa")
    return int(value)


def numbers(value: Any, what: str, error: type[DofaError] = ConfigError) -> tuple[float, ...]:
    """A list of finite numbers of a file, checked as `number`.

    Args:
        what: it is, for messages.

    Raises:
        DofaError: `error`.
    """
    return tuple(number(one, what, error=error) for one in list_of(value, object, what, error))


def positive(value: Any, what: str, error: type[DofaError] = ConfigError) -> float:
    """A finite number above 0 of a file, checked.

    Args:
        what: it is, for messages.

    Raises:
        DofaError: `error`.
    """
    found = number(value, what, error=error)
    if not found > 0:
        raise error(f"{what} is {found:g}; a number above 0 is expected")
    return found


def list_of(value: Any, kind: Any, what: str, error: type[DofaError] = ConfigError) -> list[Any]:
    """A list of a file whose entries are all of one type.

    Args:
        kind: of every entry, an annotation such as `str` or `int | None`.
        what: it is, for messages.

    Raises:
        DofaError: `error`.
    """
    if not isinstance(value, list | tuple):
        raise error(f"{what} is {shorten(repr(value))}; a list is expected")
    for number, entry in enumerate(value):
        if not _is(entry, kind):
            raise error(f"{what}: entry {number + 1} is {shorten(repr(entry))}; {_named(kind)} is expected")
    return list(value)


@cache
def _hints(owner: Any) -> dict[str, Any]:
    hints = get_type_hints(owner)
    return {name: hints[name] for name in field_names(owner)}


def _is(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_is(value, one) for one in inner)
    if kind is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if kind is tuple and inner:
        if not isinstance(value, tuple):
            return False
        if inner[-1] is Ellipsis:
            return all(_is(one, inner[0]) for one in value)
        return len(value) == len(inner) and all(map(_is, value, inner))
    if isinstance(kind, type) and issubclass(kind, Mapping) and inner:
        return isinstance(value, Mapping) and all(_is(k, inner[0]) and _is(v, inner[1]) for k, v in value.items())
    if isinstance(kind, type) and kind is not tuple and issubclass(kind, Sequence) and inner:
        return isinstance(value, kind) and not isinstance(value, str) and all(_is(one, inner[0]) for one in value)
    if kind in (int, float):  # NumPy's too, but true and false are no numbers
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return number and abs(value) <= (HUGE if kind is int else sys.float_info.max)  # NaN is not <=
    return True if kind is Any else isinstance(value, kind) if isinstance(kind, type) else True


_NAMES: dict[Any, str] = {
    int: "a whole number", float: "a finite number", str: "text", bool: "true or false", NoneType: "null",
}  # fmt: skip


def _named(hint: Any) -> str:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(_named(one) for one in inner)
    if kind is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if kind is tuple and inner:
        entries = [_named(one) for one in inner if one is not Ellipsis]
        return f"a list ({entries[0]} each)" if len(set(entries)) == 1 else f"a list ({', '.join(entries)})"
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a mapping" if not inner else f"a mapping ({_named(inner[1])} each)"
    return _NAMES.get(kind) or str(getattr(kind, "__name__", kind))
