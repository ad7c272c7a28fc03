"""Blocks of large sources: whatever their size, together they give each document once, in order."""

from pathlib import Path

import pytest

from llada.data import json_lines, text_files
from llada.data.blocks import Block, blocks_of, documents_of
from llada.data.pieces import Bad, Piece
from llada.data.sources import find_files
from tests.support.corpora import some_documents, to_lines, write_as, write_parquet


def read(path: Path, size: int, text_key: str = "text") -> list[str | Bad]:
    found: list[str | Bad] = []
    for block in blocks_of(find_files([str(path)], text_key).pieces(size, path.parent), size):
        found += documents_of(block, text_key)
    return found


@pytest.mark.parametrize("size", [1, 7, 100, 1000, 10**6])
def test_lines_are_read_once_in_order(tmp_path: Path, size: int) -> None:
    documents = some_documents(20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + to_lines(documents).removesuffix(b"\n"))
    assert read(path, size) == documents


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet"])
@pytest.mark.parametrize("size", [100, 1500, 10**6])
def test_packed_documents_are_read_once_in_order(tmp_path: Path, kind: str, size: int) -> None:
    documents = some_documents(60)
    assert read(write_as(tmp_path, kind, documents), size) == documents


@pytest.mark.parametrize("size", [3, 10, 64, 239, 1000])  # 239: an edge within the last character
@pytest.mark.parametrize("text", ["a line\nand another\n\nand more ü\r\n" * 9, "äöü世界" * 40, "x" * 500])
def test_a_text_is_cut_at_lines_or_characters_and_nothing_is_lost(
    tmp_path: Path, size: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "LONGEST_TEXT", 48)
    monkeypatch.setattr(text_files, "NEWLINE_WITHIN", 40)
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    found = read(path, size)
    assert all(isinstance(part, str) and 0 < len(part.encode()) <= 48 for part in found)
    assert "".join(map(str, found)) == text.replace("\r\n", "\n")
    if "\n" in text and size > 40:
        assert all(str(part).endswith("\n") for part in found)


def test_a_small_text_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read(tmp_path / "a.txt", 1000) == ["one\ntwo\n"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "a"', "is not valid JSON (Expecting ',' delimiter)"),
        (b'{"text": "caf\xe9"}', "is not UTF-8 text (byte 0xe9)"),
        (b'["text"]', "holds an array, not an object with a 'text'"),
        (b"7", "holds a number, not an object with a 'text'"),
        (b'{"body": "a", "id": 3}', "has no 'text' (its keys: body, id)"),
        (b'{"text": {"a": 1}}', "has an object for 'text', not a text"),
        (b'{"text": "\\ud83d"}', "holds half of a surrogate pair, which is not a character"),
        (b"[" * 100_000, "is not valid JSON (it is too deep)"),
    ],
)
@pytest.mark.parametrize("size", [30, 10**6])
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, line: bytes, problem: str, size: int) -> None:
    documents = some_documents(8)
    lines = to_lines(documents).splitlines(keepends=True)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join([*lines[:5], line, b"\n\n", *lines[5:]]))
    found = read(path, size)
    assert [each for each in found if isinstance(each, str)] == documents
    (bad,) = (each for each in found if isinstance(each, Bad))
    assert bad.describe() == f"Line 6 of {path} {problem}"


def test_a_broken_line_of_a_packed_file_is_named_by_its_number(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(to_lines(some_documents(30)) + b"broken\n" + to_lines(some_documents(3))))
    for size in (100, 700, 10**6):
        (bad,) = (each for each in read(path, size) if isinstance(each, Bad))
        assert bad.describe() == f"Line 31 of {path} is not valid JSON (Expecting value)"


@pytest.mark.parametrize(
    ("data", "problem"),
    [(b"caf\xe9 au lait", "is not UTF-8 text (byte 3)"), (b"ab\0c", "is not text: it has a NUL (byte 2)")],
)
def test_bytes_that_are_not_text_are_named_by_their_place(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    (bad,) = read(tmp_path / "a.txt", 1000)
    assert isinstance(bad, Bad)
    assert bad.describe() == f"{tmp_path / 'a.txt'} {problem}"


def test_a_line_that_is_too_long_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "LONGEST_LINE", 100)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + to_lines(["x" * 5000]) + b'{"text": "b"}\n')
    for size in (10, 10**6):
        found = read(path, size)
        assert [each for each in found if isinstance(each, str)] == ["a", "b"]
        (bad,) = (each for each in found if isinstance(each, Bad))
        assert bad.describe() == f"Line 2 of {path} is longer than 100 bytes"


def test_null_is_an_empty_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": ""}\n')
    assert read(tmp_path / "a.jsonl", 1000) == ["", ""]
    assert read(write_parquet(tmp_path / "a.parquet", ["a", None, "b"]), 1000) == ["a", "", "b"]


def test_small_pieces_share_a_block_and_large_ones_do_not() -> None:
    pieces = [Piece("a", "text", 0, size, size) for size in (3, 4, 3, 12, 1)]
    assert [block.size for block in blocks_of(pieces, 10)] == [10, 12, 1]
    assert list(blocks_of(pieces, 10))[1] == Block(1, (pieces[3],))
