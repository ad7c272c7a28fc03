"""Rows of every layout: the same values with the lines where they begin, and broken ones by their line."""

import builtins
import contextlib
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llada.data import rows
from llada.data.given import open_given
from llada.data.rows import Repeated, Row, rows_of
from llada.system.errors import UserError
from tests.support.sentences import assert_one_sentence

VALUES: list[dict[str, Any]] = [{"a": "x\u2028\x85y", "b": [1, {"c": None}]}, {"a": '", [}{'}, {"a": "z", "n": 12}]


def read(path: Path) -> list[Row]:
    with open_given(path) as file:
        return list(rows_of(file).rows)


def read_bytes(tmp_path: Path, data: bytes) -> list[Row]:
    (tmp_path / "rows.json").write_bytes(data)
    return read(tmp_path / "rows.json")


LINES = [json.dumps(value, ensure_ascii=False) for value in VALUES]
PRETTY = [json.dumps(value, ensure_ascii=False, indent=2) for value in VALUES]  # of 9, 3 and 4 lines
LAYOUTS = {
    "a line each": ("\n".join(LINES), [1, 2, 3]),
    "blank lines between": ("\n \n" + "\n\n".join(LINES) + "\n\n", [3, 5, 7]),
    "a comma at the end of lines": (",\n".join(LINES) + ",\n", [1, 2, 3]),
    "CRLF": ("\r\n".join(LINES) + "\r\n", [1, 2, 3]),
    "CR": ("\r".join(LINES), [1, 2, 3]),
    "byte order marks, as concatenated files have": ("\ufeff" + "\n\ufeff".join(LINES), [1, 2, 3]),
    "over several lines": ("\n".join(PRETTY), [1, 10, 13]),
    "over several lines with commas": (",\n".join(PRETTY), [1, 10, 13]),
    "over several lines with CRLF": ("\n".join(PRETTY).replace("\n", "\r\n"), [1, 10, 13]),
    "an array in a line": (json.dumps(VALUES), [1, 1, 1]),
    "an array over lines": (json.dumps(VALUES, indent=0), [2, 11, 14]),
    "an array of lines": ("[\n" + ",\n".join(LINES) + "\n]\n", [2, 3, 4]),
    "an array behind a mark": ("\ufeff\n [" + ", ".join(LINES) + "]", [2, 2, 2]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_every_layout_has_the_same_rows(
    layout: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_CHUNK", chunk)
    text, numbers = LAYOUTS[layout]
    assert read_bytes(tmp_path, text.encode()) == [
        Row(number, value) for number, value in zip(numbers, VALUES, strict=True)
    ]


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"[]", b" [ \n ]\n"])
def test_a_file_may_hold_no_rows(tmp_path: Path, content: bytes) -> None:
    assert read_bytes(tmp_path, content) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": 1', "is not valid JSON (Expecting ',' delimiter)"),
        (b"hello", "is not valid JSON (Expecting value)"),
        (b'{"a": 1} {"a": 2}', "is not valid JSON (Extra data)"),
        (b'{"a": "\x00"}', "is not valid JSON (Invalid control character at)"),
        (b"\x00\x00", "is not valid JSON (Expecting value)"),
        (b'{"a": "\xe9"}', "is not UTF-8 text (byte 0xe9)"),
        (b"[" * 100_000, "is not valid JSON (it is too deep)"),
        (b'{"a":' * 100_000, "is not valid JSON (it is too deep)"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_broken_line_is_a_row_with_a_problem_and_the_next_goes_on(
    line: bytes, problem: str, place: int, tmp_path: Path
) -> None:
    if place == 0 and line.startswith(b"["):
        pytest.skip("an array, if it comes first")
    good = [Row(1, {"a": 1}), Row(2, {"a": 2}), Row(3, {"a": 3})]
    lines = [json.dumps(row.content).encode() for row in good]
    good[place], lines[place] = Row(place + 1, problem=problem), line
    assert read_bytes(tmp_path, b"\n".join(lines)) == good


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("n", [101, 102, 100_000])
def test_a_line_that_is_too_long_is_not_held_and_the_next_goes_on(
    n: int, place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "LONGEST_ROW", 100)
    values: list[Any] = [{"a": 1}, {"a": 2}, {"a": 3}]
    lines = [json.dumps(value) for value in values]
    lines[place] = json.dumps({"a": "x" * (n - 9)})  # n characters with its line break
    found = read_bytes(tmp_path, "".join(f"{line}\n" for line in lines).encode())
    assert [row.number for row in found] == [1, 2, 3]
    assert [row.content for row in found if row.problem is None] == [v for i, v in enumerate(values) if i != place]
    assert found[place].problem == "is longer than 100 characters"


@pytest.mark.parametrize("beginning", ['{"a": "', '[{"a": "', '{\n"a": "', "[" * 9, '{"a": 1}\n{"a": "'])
def test_no_more_is_read_for_a_row_than_it_may_be_long(
    beginning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every layout; the place in the file says how far."""
    monkeypatch.setattr(rows, "LONGEST_ROW", 10_000)
    (tmp_path / "a.json").write_text(beginning + "x" * 30_000_000)
    with open_given(tmp_path / "a.json") as file:
        found = iter(rows_of(file).rows)
        with contextlib.suppress(UserError):
            while next(found).problem is None:
                pass
        assert file.file.tell() < 3_000_000


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[\n{"a": 1},\n{"a": 2\n}', "Line 4 of .*the array has no end"),
        ('[\n{"a": 1}\n{"a": 2}]', "Line 3 of .*a comma is missing"),
        ('[\n{"a": 1},\n{"a" 2}]', "Line 3 of .*Expecting ':' delimiter"),
        ('[{"a": 1}]\n{"a": 2}', "Line 2 of .*goes on behind its array"),
        ('{\n"a": 1}\n{\n"a" 2}', "Line 4 of .*Expecting ':' delimiter"),
        ('{\n"a": 1}\n{\n"a": 2', "Line 4 of .*Expecting ',' delimiter"),
        ("[" * 100_000, "Line 1 of .*too deep"),
    ],
)
def test_where_rows_extend_over_lines_a_broken_one_is_the_end(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        read_bytes(tmp_path, text.encode())
    assert_one_sentence(caught.value)


def test_bytes_that_are_not_utf8_are_named_by_their_line_in_an_array(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Line 3 of .* is not UTF-8 text \(byte 0xe9\)"):
        read_bytes(tmp_path, b'[\n{"a": 1},\n{"a": "\xe9"}\n]')


def test_a_key_that_is_there_twice_is_known(tmp_path: Path) -> None:
    (row,) = read_bytes(tmp_path, b'{"a": 1, "b": {"c": 2, "c": 3}}')
    inner = row.content["b"]
    assert (inner, inner.key) == ({"c": 3}, "c")
    assert isinstance(inner, Repeated)
    assert not isinstance(row.content, Repeated)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ('{"a": 1}\n'.encode("utf-16"), "is UTF-16, not UTF-8 text: convert it"),
        (b"\x1f\x8b\x08", "is compressed by gzip, not JSON: unpack or convert it"),
    ],
)
def test_what_is_no_text_is_named(data: bytes, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        read_bytes(tmp_path, data)
    assert_one_sentence(caught.value)


# Parquet


def write_parquet(path: Path, values: list[dict[str, Any]]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(values), path)
    return path


def test_rows_of_parquet_are_counted_from_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PARQUET_ROWS", 2)
    values: list[dict[str, Any]] = [
        {"a": "x", "b": [{"c": "y", "d": None}]},
        {"a": None, "b": []},
        {"a": "z", "b": None},
    ]
    path = write_parquet(tmp_path / "a.parquet", values)
    with open_given(path) as file:
        found = rows_of(file)
        assert found.unit == "row"
        assert list(found.rows) == [Row(number, value) for number, value in enumerate(values, 1)]
        assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_damaged_parquet_is_one_sentence(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"a": "x"}])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="is damaged behind row 0") as caught:
        read(path)
    assert_one_sentence(caught.value)


def test_without_pyarrow_a_sentence_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    import_ = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return import_(name, *arguments, **named)

    for name in [name for name in sys.modules if name.startswith("pyarrow")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="is Parquet, which pyarrow reads: `pip install pyarrow`") as caught:
        read(tmp_path / "a.parquet")
    assert_one_sentence(caught.value)
