"""Which files and data sets are read, in which order, and what is refused before anything is read."""

import errno
import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from llada.data import copies, json_lines, sources
from llada.data.blocks import blocks_of, documents_of
from llada.data.copies import unpacked
from llada.data.hub_source import HubSource
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


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst"])
@pytest.mark.parametrize("size", [10, 700, 10**6])
def test_a_line_that_is_too_long_is_not_copied_whole(
    tmp_path: Path, kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (copies, json_lines):
        monkeypatch.setattr(module, "LONGEST_LINE", 500)
    monkeypatch.setattr(copies, "_READ", 64)
    documents = [*some_documents(3), "x" * 50_000, *some_documents(20, start=3)]
    path = write_as(tmp_path, kind, documents)
    blocks = list(blocks_of(find_files([str(path)], "text").pieces(size, tmp_path), size))
    found = [each for block in blocks for each in documents_of(block, "text")]
    assert [each for each in found if isinstance(each, str)] == documents[:3] + documents[4:]
    problems = [each.describe() for each in found if isinstance(each, Bad)]
    assert problems == [f"Line 4 of {path} is longer than 500 bytes"]
    if size < 10**6:  # of a copy that ends in the line, only what shows its length is written
        assert max(block.size for block in blocks) <= size + 500 + 2 * 64


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
