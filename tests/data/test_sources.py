"""Which files and data sets are read, in which order, and what is refused before anything is read."""

import errno
import json
import tracemalloc
from pathlib import Path

import pytest

from llada.data import copies
from llada.data.blocks import blocks_of, documents_of
from llada.data.copies import unpacked
from llada.data.hub_source import HubSource
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


def test_a_parquet_without_the_column_names_those_that_it_has(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["a"], key="body")
    with pytest.raises(UserError, match=r"has no column 'text' \(its columns: id, body\)") as caught:
        find_files([str(path)], "text")
    assert_one_sentence(caught.value)
    with pytest.raises(UserError, match=r"column 'id' of .* is of type int64, not text"):
        find_files([str(path)], "id")


def test_a_column_of_lists_of_texts_is_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {"lists": [["a"], ["b"]], "named": pyarrow.array(["a", "b"]).dictionary_encode()}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"of type list<.*: string>, not text") as caught:
        find_files([str(tmp_path / "a.parquet")], "lists")
    assert_one_sentence(caught.value)
    assert find_files([str(tmp_path / "a.parquet")], "named").size


@pytest.mark.parametrize("name", ["nothing", "*.jsonl"])
def test_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="No file matches"):
        find_files([str(tmp_path / name)], "text")
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7")
    with pytest.raises(UserError, match="holds no file of text, JSONL or Parquet"):
        find_files([str(tmp_path)], "text")


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst"])
def test_a_packed_file_that_breaks_off_is_refused(tmp_path: Path, kind: str) -> None:
    path = write_as(tmp_path, kind, some_documents(200))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match="cannot be unpacked") as caught:
        list(find_files([str(path)], "text").pieces(10**6, tmp_path))
    assert_one_sentence(caught.value)


def test_a_full_disk_is_not_taken_for_a_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_as(tmp_path, "jsonl.gz", some_documents(20))

    def fill(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(copies, "_copy_lines", fill)
    with pytest.raises(OSError, match="No space left"):
        list(find_files([str(path)], "text").pieces(10**6, tmp_path))


def test_zstd_that_stands_for_thousands_of_times_its_size_is_unpacked_a_little_at_a_time(tmp_path: Path) -> None:
    import zstandard

    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b" " * 100_000_000) + zstandard.compress(b"\n{}"))
    tracemalloc.start()
    try:
        with open(tmp_path / "a.jsonl.zst", "rb") as raw:
            stream, n = unpacked(raw, "zstd", tmp_path / "a.jsonl.zst"), 0
            while chunk := stream.read(1 << 20):
                n += len(chunk)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (n, most < 60_000_000) == (100_000_003, True)


@pytest.mark.parametrize("size", [200, 10**6])
def test_a_data_set_is_streamed_by_the_hugging_face_library(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    documents = some_documents(20)
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(to_lines(documents))
    source = HubSource(str(folder), "train", "text")
    blocks = list(blocks_of(source.pieces(size, tmp_path), size))
    assert (len(blocks) > 1) == (size == 200)
    assert [found for block in blocks for found in documents_of(block, "text")] == documents
    with pytest.raises(UserError, match=r"has no column 'body' \(its columns: id, text\)"):
        next(HubSource(str(folder), "train", "body").pieces(size, tmp_path))
    with pytest.raises(UserError, match="cannot be read") as caught:
        next(HubSource(str(folder), "missing", "text").pieces(size, tmp_path))
    assert_one_sentence(caught.value)
    assert json.dumps(source.identity())
