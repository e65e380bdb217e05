"""JSON, YAML and XML from files that anyone may have written: plain values, or one line of what is wrong with them.

Every configuration, record and catalogue item is read here, so that size, depth, duplicate keys and characters that no
path may hold are checked once.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import yaml

from dofa.errors import ConfigError, DataError, DofaError, shorten

LARGEST = 64 * 2**20  # bytes of JSON or XML; real ones have some hundred thousand
LARGEST_YAML = 4 * 2**20
LARGEST_INT = 2**64  # beyond it neither NumPy nor torch takes a whole number
DEEPEST = 64  # levels of lists and mappings; code that walks over values by recursion is safe from RecursionError
MOST = 200_000  # values of a YAML document with its aliases written out
# libyaml's loader is ten times faster where PyYAML was built with it; both make plain values only.
_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BAD_TEXT = re.compile("[\x00\ud800-\udfff]")  # no file name may hold them, and no UTF-8 file can
_XML_DEEPEST = 200

Raises = Callable[[str], DofaError]


def read_json(file: Path, error: Raises = DataError, largest: int = LARGEST) -> Any:
    """The value in a JSON file.

    Args:
        file: to read.
        error: raised for what is wrong, with its message.
        largest: bytes that are read.

    Raises:
        FileNotFoundError: there is no such file; the caller knows what is missing.
        DofaError: `error`, if it cannot be read, or as `parse_json`.
    """
    return parse_json(read_bytes(file, error, largest), str(file), error, largest)


def read_bytes(file: Path, error: Raises = DataError, largest: int = LARGEST) -> bytes:
    """All bytes of a file that is not larger than expected.

    Args:
        file: to read.
        error: raised for what is wrong, with its message.
        largest: bytes that are read.

    Raises:
        FileNotFoundError: there is no such file.
        DofaError: `error`, if it cannot be read or is too large.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(largest + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as wrong:  # a name too long for the file system, or with a NUL
        raise error(f"{file} cannot be read: {getattr(wrong, 'strerror', None) or wrong}") from None
    if len(data) > largest:
        raise error(f"{file} is larger than {largest / 2**20:.0f} MB: it is not the file that belongs here")
    return data


def parse_json(data: bytes | str, what: str, error: Raises = DataError, largest: int = LARGEST) -> Any:
    """The value of a JSON document. Numbers may be NaN or infinite, as Python writes them: whoever uses one checks it.

    Args:
        error: raised for what is wrong, with its message.
        largest: bytes that it may have.

    Raises:
        DofaError: `error`: no JSON, cut off, too large, nested too deeply, a key twice in one object, text with a NUL
            or half a character, or a whole number of more than 64 bits.
    """
    if len(data) > largest:
        raise error(f"{what} is larger than {largest / 2**20:.0f} MB: it is not the file that belongs here")
    try:
        value = json.loads(data, object_pairs_hook=_unique)
    except RecursionError:
        raise error(f"{what} is nested more than {DEEPEST} levels deep: it is not the file that belongs here") from None
    except _RepeatedKeyError as wrong:
        raise error(f"{what} names {shorten(str(wrong))!r} twice in one object") from None
    except ValueError as wrong:  # JSONDecodeError, UnicodeDecodeError, an integer of more than 4,300 digits
        raise error(f"{what} is no JSON, or was cut off: {wrong}") from None
    return _check(value, what, error)


def parse_yaml(data: bytes | str, what: str, error: Raises = ConfigError) -> Any:
    """The value of a YAML document: mappings with text as keys, lists, text, numbers, true, false and null.

    Dates stay text, and whole numbers as keys become text.

    Args:
        error: raised for what is wrong, with its message.

    Raises:
        DofaError: `error`: no YAML, too large, nested too deeply, more values than a configuration has with its
            aliases written out, a tag of another type, a key twice in one mapping, a value not of its tag's form, or as
            `parse_json`.
    """
    if len(data) > LARGEST_YAML:
        raise error(f"{what} is larger than {LARGEST_YAML / 2**20:.0f} MB: it is no configuration")
    try:
        _count(data)
        value = yaml.load(data, Loader=_Loader)
    # PyYAML trips over values that are not of their tag's form (`!!int ""`, `!!bool maybe`) in as many ways.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as wrong:
        mark = getattr(wrong, "problem_mark", None)
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        told = getattr(wrong, "problem", None) or str(wrong)
        context = f" {wrong.context}" if isinstance(wrong, yaml.MarkedYAMLError) and wrong.context else ""
        raise error(f"{what} is not YAML: {shorten(told, 200)}{shorten(context, 100)}{where}") from None
    return _check(value, what, error)


def parse_xml(data: bytes, what: str, error: Raises = DataError) -> Element:
    """An XML document as a tree, tags without their namespace; one that declares entities is refused, unread.

    Args:
        error: raised for what is wrong, with its message.

    Raises:
        DofaError: `error`: damaged, too large, nested too deeply, or with a document type.
    """
    if len(data) > LARGEST:
        raise error(f"{what} is larger than {LARGEST // 2**20} MB: it is no metadata")
    builder, parser = TreeBuilder(), expat.ParserCreate(namespace_separator="}")
    depth = 0

    def refuse(*_: object) -> None:
        raise error(f"{what} declares a document type, which product metadata never do: it is not read")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _XML_DEEPEST:
            raise error(f"{what} is nested more than {_XML_DEEPEST} levels deep: it is no metadata")
        builder.start(tag.rsplit("}", 1)[-1], attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag.rsplit("}", 1)[-1])

    parser.StartDoctypeDeclHandler = refuse  # without one there are no entities: no bombs, no files from elsewhere
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError) as wrong:  # the last two: an encoding that Python lacks
        if isinstance(wrong, DofaError):
            raise
        raise error(f"{what} is damaged: {wrong}: copy or download it again") from None


class _RepeatedKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return found


class _Loader(_SAFE):  # type: ignore[misc]  # one of two classes, known when it runs
    """Dates are text, and a key that stands twice in one mapping is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's own class attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in _SAFE.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in getattr(node, "value", ()):
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {shorten(key.value)!r} stands twice in one mapping", _mark(key)
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _mark(of: Any) -> Any:
    return of.start_mark


_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}


def _count(data: bytes | str) -> None:
    """Refuse a YAML document that would grow without bounds, before any of it is built.

    An alias counts as many values as what it stands for: nested aliases and merged mappings double at each level.
    """
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = [(None, 0)]  # anchor of each open collection, and values in it so far
    for event in yaml.parse(data, Loader=_SAFE):
        tag = getattr(event, "tag", None)
        if tag not in (None, "!") and tag not in _PLAIN_TAGS:
            raise yaml.constructor.ConstructorError(
                None, None, f"the tag {shorten(str(tag))} is not read", _mark(event)
            )
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, 1))
            if len(open_) > DEEPEST:
                raise yaml.YAMLError(f"nested more than {DEEPEST} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
            if anchor is not None:
                sizes[anchor] = size
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise yaml.YAMLError(
                    f"the alias *{shorten(str(event.anchor))} stands for nothing, or for what it is in"
                )
            size = sizes[event.anchor]
        anchor, before = open_[-1]
        open_[-1] = anchor, before + size
        if before + size > MOST:
            raise yaml.YAMLError(f"more than {MOST} values with its aliases written out")


def _check(value: Any, what: str, error: Raises) -> Any:
    """Refuse values nested too deeply and text with a NUL or half a character; whole numbers as keys become text."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise error(f"{what} is nested more than {DEEPEST} levels deep: it is not the file that belongs here")
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                _text_keys(one, what, error)
                inner += one
                inner += one.values()
            elif isinstance(one, list):
                inner += one
            elif isinstance(one, str) and not one.isascii() and _BAD_TEXT.search(one):
                raise error(f"{what} holds text with half a character ({shorten(one)!r})")
            elif isinstance(one, str) and "\0" in one:
                raise error(f"{what} holds text with a NUL ({shorten(one)!r})")
            elif isinstance(one, int) and abs(one) > LARGEST_INT:
                raise error(f"{what} holds a whole number of more than 64 bits")
        level = inner
    return value


def _text_keys(mapping: dict[Any, Any], what: str, error: Raises) -> None:
    for key in [key for key in mapping if not isinstance(key, str)]:
        if isinstance(key, bool) or not isinstance(key, int) or str(key) in mapping:
            why = "YAML reads on, off, yes and no as true and false" if isinstance(key, bool) else "which is no text"
            raise error(f"{what} has the key {shorten(str(key))} ({why}): put it in quotes")
        items = [(str(k) if k is key else k, v) for k, v in mapping.items()]  # the order stays
        mapping.clear()
        mapping.update(items)


def as_mapping(value: Any, what: str, error: Raises = ConfigError) -> Mapping[str, Any]:
    """A document that is a mapping; an empty one counts as such.

    Raises:
        DofaError: `error`.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise error(f"{what} holds no mapping of settings, but {shorten(repr(value))}")
    return value
