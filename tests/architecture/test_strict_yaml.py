"""The strict reader agrees with other YAML readers on what it takes, and refuses what they could dispute."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from branchnet.errors import SpecError
from branchnet.specification.strict_yaml import MAX_DEPTH, Position, load_yaml, parse_document
from branchnet.specification.yaml_text import dump_yaml

RELAXED = settings(deadline=None, max_examples=200)
WORDS = ["no", "yes", "on", "off", "y", "n", "null", "~", "true", "1e-3", "12:30", "0x1f", "010", "1_000", "2001-01-01"]
WORDS += ["", " ", "=", "<<", "a: b", "a #b", "- a", "[a]", "{a}", "*a", "&a", "!a", "%a", "@a", "`a`", "'", '"', "\\"]
WORDS += [
    ".inf",
    ".nan",
    "1.",
    ".5",
    "+1",
    "1e400",
    "é",
    "名前",
    "😀",
    "a\nb",
    "\t",
    "\x00",
    "\x85",
    "\u2028",
    "\ufeff",
]
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(WORDS)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def problems(text: str) -> list[str]:
    return [f"{p.position.line}:{p.position.column} {p.text}" for p in parse_document(text.encode()).problems]


@RELAXED
@given(PLAIN)
def test_what_is_written_is_read_back_by_this_reader_and_by_pyyaml(data: object) -> None:
    text = dump_yaml(data)
    document = parse_document(text.encode())
    assert document.problems == []
    assert document.data == data
    assert yaml.safe_load(text) == data
    assert dump_yaml(document.data) == text


@RELAXED
@given(st.text(st.sampled_from("-+.0123456789eExX_:naiftrue~yo \n,[]{}#&*!|>'\"%@`ab"), max_size=12))
def test_a_document_that_is_taken_means_what_pyyaml_reads(text: str) -> None:
    document = parse_document(text.encode())
    assume(not document.problems)
    other = yaml.safe_load(text)
    assert _numbers_as_in_1_2(other) == document.data


def _numbers_as_in_1_2(value: object) -> object:
    """PyYAML follows YAML 1.1, where `1e3` is text; the one deliberate difference."""
    if isinstance(value, list):
        return [_numbers_as_in_1_2(item) for item in value]
    if isinstance(value, dict):
        return {key: _numbers_as_in_1_2(item) for key, item in value.items()}
    if isinstance(value, str) and ("e" in value.lower() or "." in value):
        try:
            return float(value)
        except ValueError:
            return value
    return value


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("-1.5E+2", -150.0), (".5", 0.5), ("0", 0), ("-17", -17), ("True", True), ("~", None)],
)
def test_plain_values(text: str, value: object) -> None:
    document = parse_document(f"a: {text}".encode())
    assert document.problems == []
    assert document.data == {"a": value}
    assert type(document.data["a"]) is type(value)


@pytest.mark.parametrize(
    "word",
    ["no", "Yes", "ON", "off", "12:30", "1:30:00", "010", "0o17", "0x1F", "0b11", "1_000", "2001-01-01", "=", "<<"],
)
def test_words_on_which_versions_differ_are_refused_with_advice(word: str) -> None:
    (problem,) = problems(f"a: {word}")
    assert problem.startswith("1:4")
    assert f'"{word}" in quotes as text' in problem
    assert parse_document(f'a: "{word}"'.encode()).data == {"a": word}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2", "2:1 duplicate key, first on line 1"),
        ("a: &x 1", "1:4 anchors are not allowed"),
        ("a: *x", "1:4 aliases are not allowed"),
        ("a: !!python/object/apply:os.system [ls]", "1:4 tags are not allowed"),
        ("a: !!str 1", "1:4 tags are not allowed"),
        ("a: ! 1", "1:4 tags are not allowed"),
        ("!!map {a: 1}", "1:1 tags are not allowed"),
        ("%YAML 1.1\n---\na: 1", "directives are not allowed"),
        ("%TAG ! tag:x,2000:\n---\na: 1", "directives are not allowed"),
        ("a: 1\n---\nb: 2", "a second document begins here"),
        ("a: .nan", "1:4 .nan is not a finite number"),
        ("a: -.inf", "1:4 -.inf is not a finite number"),
        ("a: 1e999", "1:4 1e999 is too large"),
        ("a: " + "9" * 100, "more than 40 digits"),
        ("1: a", '1:1 the key 1 is not text (write "1" in quotes)'),
        ("[a, b]: c", "a key must be text"),
        ("? {a: b}\n: c", "a key must be text"),
        ("~: c", "the key ~ is not text"),
        ("<<: {a: 1}", "means different things"),
        ('a: "\\ud800"', "half of a surrogate pair"),
        ("a: [", "expected the node content"),
        ("a: b: c", "mapping values are not allowed"),
        ("\ta: b", "cannot start any token"),
        ("a: \x07", "1:4 the character #x0007 is not allowed"),
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
    ],
)
def test_refused_documents_say_where_and_why(text: str, problem: str) -> None:
    found = problems(text)
    assert len(found) >= 1
    assert problem in found[0]


def test_nesting_is_bounded_before_anything_is_built() -> None:
    deep = parse_document(("[" * 100_000).encode())
    assert f"deeper than {MAX_DEPTH}" in deep.problems[0].text
    assert parse_document(("[" * MAX_DEPTH + "]" * MAX_DEPTH).encode()).problems == []


def test_an_alias_bomb_is_refused() -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
    assert len(problems(bomb)) == 7


def test_size_is_bounded_before_parsing(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(SpecError, match=r"big.yaml:1:1: the document is larger than 1000000 bytes"):
        load_yaml(tmp_path / "big.yaml")


def test_the_number_of_values_is_bounded() -> None:
    document = parse_document(("[" + "1," * 60_000 + "]").encode())
    assert document.problems[-1].text == "the document holds more than 50000 values"


def test_bytes_that_are_no_utf8_name_their_line() -> None:
    document = parse_document(b"a: 1\nb: \xff\n")
    assert document.problems[0].position.line == 2


def test_all_problems_are_listed_at_once_in_order(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: no\nb: *c\nb: !x 1\n")
    with pytest.raises(SpecError) as raised:
        load_yaml(tmp_path / "x.yaml")
    assert [problem.partition("x.yaml:")[2][:3] for problem in raised.value.problems] == ["1:4", "2:4", "3:1", "3:4"]


def test_positions_are_those_of_the_values(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a:\n  - b: [1, é, 3]\n")
    data, positions = load_yaml(tmp_path / "x.yaml")
    assert data == {"a": [{"b": [1, "é", 3]}]}
    assert positions["a", 0, "b", 2] == Position(2, 15)


def test_a_missing_file_is_a_spec_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        load_yaml(tmp_path / "none.yaml")
