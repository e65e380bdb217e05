"""JSON, YAML and XML of unknown origin, and the typed settings made of them."""

import json
import math
import time
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dofa.documents import DEEPEST, parse_json, parse_xml, parse_yaml, read_json
from dofa.errors import LONGEST, ConfigError, DataError, DofaError, nearest
from dofa.settings import check_keys, check_types, list_of, number, positive, whole_number

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs", "Cc"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_what_json_holds_comes_back(value):
    assert parse_json(json.dumps(value).encode(), "x") == value


# Without what YAML 1.1 reads otherwise: numbers such as 1e-05, and escapes of characters beyond 16 bits.
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="ascii", categories=["L"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=4),
    max_leaves=20,
)


@given(PLAIN)
def test_json_is_yaml_of_the_same_value(value):
    assert parse_yaml(json.dumps({"a": value}), "x") == {"a": value}


@pytest.mark.parametrize("depth", [DEEPEST + 1, 900, 5000, 10**7])
@pytest.mark.parametrize("pair", ["[]", '{"a":}'])
def test_depth_ends_in_one_line_and_soon(depth, pair):
    began = time.monotonic()
    text = (pair[:-1] * depth)[: 20 * 2**20]
    with pytest.raises(DataError, match=r"nested|no JSON"):
        parse_json(text.encode() + (b"1" if ":" in pair else b"") + pair[-1].encode() * depth, "x", largest=2**28)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "cut off"),
        ('{"a": 1, "a": 2}', "twice"),
        ('["\\ud800"]', "half a character"),
        ('{"\\u0000": 1}', "NUL"),
        (b"\xff\xfe", "no JSON"),
        ("9" * 5000, "no JSON"),
        (f"[{10**30}]", "64 bits"),
        ("1" * 2**21, "larger than"),
    ],
)
def test_json_that_no_one_means_is_refused_in_one_line(text, told):
    with pytest.raises(CheckError, match=told) as caught:
        parse_json(text, "x.json", CheckError, largest=2**20)
    assert str(caught.value).startswith("x.json")
    assert len(str(caught.value)) <= LONGEST


class CheckError(DofaError):
    pass


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [id]",
        "a: !!int ''",
        "a: !!bool zz",
        "a: !!timestamp zz",
        "a: !!float x",
        "a: !custom x",
        "a: !!binary zz",
        "a: !!set {b}",
        "&a [*a]",
        "a: *nothing",
        "a: 1\na: 2",
        "? [1, 2]\n: 3",
        "1.5: 2",
        "true: 2",
        "2020-01-01: [\0]",
        "[" * 5000,
        "a: {" * 5000,
        'a: "\\0"',
        "\ta: 1",
        "%YAML 9.9\n---\na",
        "- a: &x {b: 1}\n  <<: [*x, 3]",
        "a: " + "9" * 30,
        b"\xff\xfe\x00",
        "a\n---\nb",
    ],
)
def test_yaml_that_no_one_means_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match=r"x\.yaml") as caught:
        parse_yaml(text, "x.yaml")
    assert len(str(caught.value)) <= LONGEST
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["[{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}]", "{{<<: [{0}, {0}], k{1}: 1}}"])
def test_nested_aliases_are_counted_before_they_are_written_out(form):
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{i}: &a{i} " + form.format(f"*a{i - 1}", i) for i in range(1, 40)]
    began = time.monotonic()
    with pytest.raises(ConfigError, match="aliases"):
        parse_yaml("\n".join(lines), "x")
    assert time.monotonic() - began < 5


def test_ordinary_yaml_is_read():
    text = "base: &b {lr: 1e-4, flip: yes}\nmine:\n  <<: *b\n  lr: 0.5\n12: x\nday: 2020-13-45\nfine: 2020-01-01\n"
    found = parse_yaml(text, "x")
    assert found["mine"] == {"lr": 0.5, "flip": True}
    assert (found["12"], found["day"], found["fine"]) == ("x", "2020-13-45", "2020-01-01")


def test_xml_with_entities_depth_or_damage_is_refused():
    for text in (
        b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        b"<a>" * 100_000,
        b"<a>",
        b"",
        b'<?xml version="1.0" encoding="klingon"?><a/>',
        b"<a>\xff</a>",
    ):
        with pytest.raises(DataError, match="x"):
            parse_xml(text, "x")
    assert parse_xml(b"<n:a xmlns:n='u'><b>c</b></n:a>", "x").findtext("b") == "c"


@dataclass
class Settings:
    count: int = 1
    rate: float | None = None
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    table: dict[str, list[int]] | None = None


@pytest.mark.parametrize(
    "given_",
    [
        {"count": True},
        {"count": 1.0},
        {"count": 2**70},
        {"rate": math.nan},
        {"rate": math.inf},
        {"rate": False},
        {"rate": 10**400},
        {"kind": "c"},
        {"kind": ["a"]},
        {"names": ["a"]},
        {"names": ("a", 1)},
        {"table": {"a": [1.5]}},
        {"table": {1: [1]}},
    ],
)
def test_a_field_of_another_type_is_named(given_):
    with pytest.raises(ConfigError, match=next(iter(given_))):
        check_types(Settings(**given_), "")


def test_fields_of_their_types_pass():
    check_types(Settings(3, 1, "b", ("x",), {"a": [1, 2]}), "")
    check_types(Settings(rate=0.5), "")


def test_helpers_refuse_what_is_out_of_range():
    for refused in (
        lambda: whole_number(1.0, "n"),
        lambda: whole_number(-1, "n"),
        lambda: whole_number(True, "n"),
        lambda: number("x", "n"),
        lambda: number(math.inf, "n"),
        lambda: positive(0, "n"),
        lambda: list_of("ab", str, "n"),
        lambda: list_of([1, "a"], int, "n"),
        lambda: check_keys([], ("a",), "n"),
        lambda: check_keys({"b": 1}, ("a",), "n"),
        lambda: check_keys({}, ("a",), "n", ("a",)),
    ):
        with pytest.raises(ConfigError, match="n"):
            refused()
    assert number("1e-4", "n") == 1e-4
    assert number(math.inf, "n", finite=False) == math.inf


@given(st.text(min_size=0, max_size=3000), st.lists(st.text(max_size=2000), max_size=40))
def test_messages_are_one_short_printable_line(name, known):
    told = str(DataError(f"{name} is odd: {nearest(name, known)}"))
    assert len(told) <= LONGEST
    assert told.isprintable()


def test_many_unknown_keys_are_counted_not_listed():
    with pytest.raises(ConfigError, match="and 999 more unknown keys") as caught:
        check_keys({f"k{i}": i for i in range(1000)}, ("width", "depth"), "encoder")
    assert len(str(caught.value)) < 200


def test_a_file_beyond_its_limit_is_not_read(tmp_path):
    (tmp_path / "x.json").write_bytes(b" " * 2000)
    with pytest.raises(DataError, match="larger than"):
        read_json(tmp_path / "x.json", largest=1000)
    with pytest.raises(DataError, match="cannot be read"):
        read_json(tmp_path / ("x" * 5000))
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "y.json")
