"""What can only be read in order: its copies hold what is in it, and damage is not taken for a full disk."""

import errno
import gzip
import random
import string
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from llada.data import copies, json_lines, text_files
from llada.data.blocks import blocks_of, documents_of
from llada.data.copies import unpacked
from llada.data.pieces import Bad
from llada.data.sources import find_files
from llada.system.errors import UserError
from tests.support.corpora import documents_in, prepare_files, some_documents, to_lines, write_as
from tests.support.sentences import assert_one_sentence


def found_in(path: Path, size: int, folder: Path) -> list[Any]:
    """The documents of a file, and what is bad in it."""
    blocks = blocks_of(find_files([str(path)], "text").pieces(size, folder), size)
    return [each for block in blocks for each in documents_of(block, "text")]


@pytest.mark.parametrize("size", [3, 10, 64, 1000])
@pytest.mark.parametrize("text", ["a line\nand another\n\nand more ü\r\n" * 9, "äöü世界" * 40, "x" * 500])
def test_of_a_packed_text_nothing_is_lost_at_the_edges_of_copies(
    tmp_path: Path, size: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "LONGEST_TEXT", 48)
    for module in (text_files, copies):
        monkeypatch.setattr(module, "NEWLINE_WITHIN", 40)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    blocks = list(blocks_of(find_files([str(path)], "text").pieces(size, tmp_path), size))
    found = [each for block in blocks for each in documents_of(block, "text")]
    assert "".join(map(str, found)) == text.replace("\r\n", "\n")
    assert all(len(str(part).encode()) <= 48 for part in found)
    if "\n" in text:
        assert all(str(part).endswith("\n") for part in found)
    assert [piece.start for block in blocks for piece in block.pieces][1:] == [
        piece.end for block in blocks for piece in block.pieces
    ][:-1]


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


@pytest.mark.parametrize("size", [10, 700, 10**6])
@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst"])
def test_a_packed_file_that_breaks_off_gives_the_lines_before(tmp_path: Path, kind: str, size: int) -> None:
    rng = random.Random(0)  # so that a line takes more than a bit when it is packed
    documents = ["".join(rng.choices(string.printable, k=900)) for _ in range(200)]
    path = write_as(tmp_path, kind, documents)
    path.write_bytes(path.read_bytes()[: -len(path.read_bytes()) // 3])
    *found, last = found_in(path, size, tmp_path)
    assert found == documents[: len(found)]
    assert len(found) > (100 if kind == "jsonl.gz" else 20)  # of 133; zstd unpacks blocks of 128 KiB
    assert isinstance(last, Bad)
    assert last.describe() == f"Line {len(found) + 1} of {path} breaks off, and the file with it"


@pytest.mark.parametrize("magic", [0x50, 0x5A, 0x5F])
def test_a_zstd_file_may_begin_with_a_frame_to_be_skipped(tmp_path: Path, magic: int) -> None:
    """As pzstd writes them, for the sizes of what follows."""
    path = write_as(tmp_path, "jsonl.zst", some_documents(20))
    path.write_bytes(bytes([magic, 0x2A, 0x4D, 0x18, 4, 0, 0, 0, 1, 2, 3, 4]) + path.read_bytes())
    assert found_in(path, 10**6, tmp_path) == some_documents(20)


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst"])
@pytest.mark.parametrize("what", ["middle", "checksum"])
def test_a_damaged_packed_file_is_refused(tmp_path: Path, kind: str, what: str) -> None:
    """What is unpacked behind a damage, before a checksum shows it, may be other text than was written."""
    path = write_as(tmp_path, kind, some_documents(5000))
    packed = bytearray(path.read_bytes())
    at = len(packed) // 2 if what == "middle" else len(packed) - 6
    packed[at : at + 2] = bytes(255 - byte for byte in packed[at : at + 2])
    path.write_bytes(packed)
    with pytest.raises(UserError, match=r"cannot be unpacked \(.*\): restore it\.$") as caught:
        found_in(path, 700, tmp_path)
    assert_one_sentence(caught.value)


def test_of_a_packed_text_that_breaks_off_the_lines_before_are_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    content = "".join(f"line {i * i}\n" for i in range(3000))
    packed = gzip.compress(content.encode(), mtime=0)
    path.write_bytes(packed[: len(packed) // 2])
    text, last = found_in(path, 10**6, tmp_path)
    assert len(content) / 3 < len(text) < len(content)
    assert content.startswith(text)
    assert text.endswith("\n")
    assert last.describe() == f"{path} breaks off (byte {len(text):,})"


def test_a_file_that_breaks_off_stops_a_preparation_or_is_counted(tmp_path: Path) -> None:
    whole, broken = tmp_path / "b.jsonl", write_as(tmp_path, "jsonl.gz", some_documents(200))
    whole.write_bytes(to_lines(some_documents(50, start=200)))
    broken.write_bytes(broken.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"^Line 1?\d\d of .* breaks off, .*: add `skip_bad=True`, or ") as caught:
        prepare_files(tmp_path / "corpus", broken, whole)
    assert_one_sentence(caught.value)
    data = prepare_files(tmp_path / "corpus", broken, whole, skip_bad=True)
    assert data.metadata["left_out"]["bad"] == 1
    assert data.metadata["first_bad"] in str(caught.value)
    found = {*documents_in(data, "train"), *documents_in(data, "val")}
    assert {*some_documents(50, start=200)} < found < {*some_documents(250)}


def test_a_disk_that_fails_is_not_taken_for_a_file_that_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_as(tmp_path, "jsonl.gz", some_documents(20))

    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(gzip.GzipFile, "read1", fail)
    with pytest.raises(OSError, match="Input/output"):
        list(find_files([str(path)], "text").pieces(10**6, tmp_path))


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


def test_zstd_with_the_longest_window_is_unpacked(tmp_path: Path) -> None:
    """As `zstd --long=31` writes it."""
    import zstandard

    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    packing = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(packing.compress(b'{"text": "a"}\n') + packing.flush())
    with open(tmp_path / "a.jsonl.zst", "rb") as raw:
        assert unpacked(raw, "zstd", tmp_path / "a.jsonl.zst").read() == b'{"text": "a"}\n'
