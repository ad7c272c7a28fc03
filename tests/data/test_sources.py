"""Which files and data sets are read, in which order, and what is refused before anything is read."""

import gzip
import os
from pathlib import Path

import pytest

from llada.data import sources
from llada.data.blocks import blocks_of, documents_of
from llada.data.pieces import Bad
from llada.data.sources import describe_file, find_files
from llada.system.errors import UserError
from tests.support.corpora import some_documents, to_lines, write_as, write_parquet
from tests.support.sentences import assert_one_sentence


def test_files_of_a_folder_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", ".hidden.jsonl", "notes.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(to_lines([name]))
    found = [str(file.path.relative_to(tmp_path)) for file in find_files([str(tmp_path)], "text").files]
    assert found == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    globbed = find_files([str(tmp_path / "*.jsonl"), str(tmp_path / "a.jsonl")], "text").files
    assert [file.path.name for file in globbed] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("jsonl", "lines", None),
        ("jsonl.gz", "lines", "gzip"),
        ("jsonl.zst", "lines", "zstd"),
        ("parquet", "parquet", None),
    ],
)
def test_the_kind_of_a_file_is_found(tmp_path: Path, name: str, kind: str, compression: str | None) -> None:
    file = describe_file(write_as(tmp_path, name, some_documents(3)), "text")
    assert (file.kind, file.compression) == (kind, compression)


def test_a_file_is_unpacked_by_its_content_not_its_name(tmp_path: Path) -> None:
    packed = write_as(tmp_path, "jsonl.gz", some_documents(3)).rename(tmp_path / "a.jsonl")
    assert describe_file(packed, "text").compression == "gzip"
    (tmp_path / "b.jsonl.gz").write_bytes(to_lines(["plain"]))
    assert describe_file(tmp_path / "b.jsonl.gz", "text").compression is None


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("a.jsonl", b'[\n{"text": "a"}]', "holds a JSON array"),
        ("a.jsonl", b'{\n "text": "a"}', "has objects over several lines"),
        ("a.jsonl", b'{\r\n "text": "a"}', "has objects over several lines"),
        ("a.txt", b'{"text": "a"}\n', "is JSON, not a text"),
        ("a.parquet", b"PAR1\x15\x04", "is damaged, or not Parquet"),
        ("a.pdf", b"%PDF-1.7", "is a PDF, not text"),
        ("a.txt", b"\xff\xfea\0", "is UTF-16, not text"),
        ("a.parquet.gz", b"\x1f\x8b\x08", "is compressed as a whole"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, name: str, data: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=complaint) as caught:
        find_files([str(tmp_path / name)], "text")
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize(
    ("inner", "data", "complaint"),
    [
        ("", b'{"text": "a"}\n', r"is JSON, not a text: name it \.jsonl{suffix} if it has one object a line"),
        (".txt", b'{"text": "a"}\n' * 1000, "is JSON, not a text"),
        (".jsonl", b'[\n{"text": "a"}]', "holds a JSON array"),
        ("", b"PAR1\x15\x04", "is Parquet, not text"),
    ],
)
def test_what_is_packed_is_judged_by_what_is_in_it(
    tmp_path: Path, suffix: str, inner: str, data: bytes, complaint: str
) -> None:
    import zstandard

    def pack(content: bytes) -> bytes:
        return gzip.compress(content) if suffix == ".gz" else zstandard.compress(content)

    path = tmp_path / f"part-0001{inner}{suffix}"
    path.write_bytes(pack(data))
    with pytest.raises(UserError, match=complaint.replace("{suffix}", rf"\{suffix}")) as caught:
        find_files([str(path)], "text")
    assert_one_sentence(caught.value)
    path.write_bytes(pack(b"A text, no JSON.\n" * 1000))
    assert len(find_files([str(path)], "text").files) == 1


def test_a_parquet_without_the_column_names_those_that_it_has(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["a"], key="body")
    with pytest.raises(UserError, match=r"has no column 'text' \(its columns: id, body\)") as caught:
        find_files([str(path)], "text")
    assert_one_sentence(caught.value)
    with pytest.raises(UserError, match=r"column 'id' of .* is of type int64, not text"):
        find_files([str(path)], "id")


def test_two_columns_of_a_name_are_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    text = pyarrow.array(["a", "b"])
    parquet.write_table(pyarrow.Table.from_arrays([text, text], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has several columns 'text': rename them, or ") as caught:
        find_files([str(tmp_path)], "text")
    assert_one_sentence(caught.value)


def test_a_column_of_lists_of_texts_is_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {"lists": [["a"], ["b"]], "named": pyarrow.array(["a", "b"]).dictionary_encode()}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"of type list<.*: string>, not text") as caught:
        find_files([str(tmp_path / "a.parquet")], "lists")
    assert_one_sentence(caught.value)
    assert find_files([str(tmp_path / "a.parquet")], "named").size


def test_rows_of_parquet_that_are_not_utf8_are_broken_and_no_others(tmp_path: Path) -> None:
    """Which Parquet does not check, nor whether its readers take the name of a file; in the second group of rows."""
    import pyarrow
    from pyarrow import parquet

    documents: list[str | None] = [*some_documents(20), None]
    data = [text and text.encode() for text in documents]
    data[17] = b"caf\xe9"
    packed = pyarrow.array(data, pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), len(packed), packed.buffers())
    # A dot may stand in a name, or lead into a structure.
    table = pyarrow.table({"a": pyarrow.array([{"b": "wrong"}] * 21), "a.b": column})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=16)
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.parquet"))
    try:
        (tmp_path / "a.parquet").rename(path)
    except OSError:  # names of files are UTF-8 on this system
        path = tmp_path / "a.parquet"
    found = [
        found
        for block in blocks_of(find_files([str(path)], "a.b").pieces(10**6, tmp_path), 10**6)
        for found in documents_of(block, "a.b")
    ]
    bad = found.pop(17)
    assert isinstance(bad, Bad)
    assert bad.describe() == f"Row 18 of {path} is not UTF-8 text (byte 0xe9)"
    assert found == [*documents[:17], *documents[18:20], ""]


@pytest.mark.parametrize("name", ["nothing", "*.jsonl"])
def test_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="No file matches"):
        find_files([str(tmp_path / name)], "text")
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7")
    with pytest.raises(UserError, match="holds no file of text, JSONL or Parquet"):
        find_files([str(tmp_path)], "text")


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_the_size_is_that_without_compression(tmp_path: Path, kind: str) -> None:
    documents = some_documents(300)
    path = write_as(tmp_path, kind, documents)
    assert find_files([str(path)], "text").size == len(to_lines(documents))
    assert (path.stat().st_size < len(to_lines(documents)) / 3) == (kind != "jsonl")


def test_the_size_of_parquet_is_in_its_metadata(tmp_path: Path) -> None:
    from pyarrow import parquet

    path = write_parquet(tmp_path / "a.parquet", ["the same again and again " * 9] * 40)
    groups = parquet.ParquetFile(path).metadata
    size = sum(groups.row_group(i).total_byte_size for i in range(groups.num_row_groups))
    assert find_files([str(path)], "text").size == size


def test_the_beginnings_of_some_packed_files_stand_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MEASURED_FILES", 1)
    data = to_lines(some_documents(300))
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
    assert find_files([str(tmp_path)], "text").size == 2 * len(data)
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b damaged")  # which is reported when it is read
    assert find_files([str(tmp_path)], "text").size == 0
