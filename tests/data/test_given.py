"""The one place where files that a person names are opened: what is refused unread, and what is read once."""

import hashlib
import os
import socket
import threading
from pathlib import Path

import pytest

from llada.data import given
from llada.data.given import HEAD_BYTES, largest_bytes, open_given, read_given_text
from llada.system.errors import UserError
from tests.support.sentences import assert_one_sentence


def read(path: Path) -> tuple[bytes, str, bool]:
    with open_given(path) as file:
        return file.stream.read(), file.sha256, file.is_pipe


def pipe_of(content: bytes) -> int:
    """A descriptor to read from; what is more than a pipe holds is written by a thread."""
    ours, theirs = os.pipe()

    def write() -> None:
        with os.fdopen(theirs, "wb") as file:
            file.write(content)

    threading.Thread(target=write, daemon=True).start()
    return ours


@pytest.mark.parametrize("n_bytes", [0, 3, HEAD_BYTES, HEAD_BYTES + 1, 1_000_003])
def test_files_and_pipes_are_read_once_and_whole(tmp_path: Path, n_bytes: int) -> None:
    content = (b"0123456789" * (n_bytes // 10 + 1))[:n_bytes]
    (tmp_path / "file").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    assert read(tmp_path / "file") == (content, digest, False)
    ours = pipe_of(content)
    try:
        assert read(Path(f"/dev/fd/{ours}")) == (content, digest, True)
    finally:
        os.close(ours)


def test_what_is_no_file_and_no_pipe_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # the name of a socket must be short
        listening.bind("socket")
        for path, complaint in (
            (tmp_path / "nowhere", "is missing: check the path"),
            (tmp_path, "is a folder: name a file in it"),
            (Path("/dev/zero"), "is neither a file nor a pipe"),
            (Path("/dev/null"), "is neither a file nor a pipe"),
            (tmp_path / "socket", "cannot be read"),
            (tmp_path / ("x" * 300), "cannot be read"),
            (tmp_path / "a\0b", "is not a path"),
        ):
            with pytest.raises(UserError, match=complaint) as caught:
                read(path)
            assert_one_sentence(caught.value)


def test_a_pipe_that_nobody_writes_to_is_empty(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert read(tmp_path / "fifo")[0] == b""


def test_more_than_can_be_held_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file by its size, without reading it; a pipe, which does not say its size, where it has given too much."""
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"is larger than the .* that can be read here: use a part") as caught:
        read(tmp_path / "sparse")
    assert_one_sentence(caught.value)
    monkeypatch.setattr(given, "largest_bytes", lambda: 1_000_000)
    ours = pipe_of(b"x" * 1_000_001)
    with pytest.raises(UserError, match=r"is larger than the 1\.0 MB"):
        read(Path(f"/dev/fd/{ours}"))
    os.close(ours)


@pytest.mark.parametrize(
    ("free", "expected"), [(None, 16 << 30), (8 << 30, 4 << 30), (1 << 40, 16 << 30), (0, 64 << 20)]
)
def test_the_limit_is_half_of_the_free_memory(free: int | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llada.system.device.free_memory_bytes", lambda: free)
    assert largest_bytes() == expected


# Texts


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("Grüße,\n世界\n".encode(), "Grüße,\n世界\n"),
        (b"\xef\xbb\xbfa\r\nb\rc\n", "a\nb\nc\n"),
        ("a\u2028b\x0b".encode(), "a\u2028b\x0b"),
        (b"", ""),
    ],
)
def test_a_text_is_read_with_line_breaks_of_one_kind(tmp_path: Path, data: bytes, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert read_given_text(tmp_path / "a.txt") == text


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("Grüße".encode("latin-1"), r"is not UTF-8 \(byte 2\): convert it"),
        ("Grüße".encode()[:3], r"is not UTF-8 \(byte 2\)"),
        ("ab".encode("utf-16"), r"is UTF-16, not UTF-8"),
        ("ab".encode("utf-32"), r"is UTF-32, not UTF-8"),
        ("ab".encode("utf-16-le"), r"is not text \(byte 1 is NUL\)"),
        (b"a" * 3_000_000 + b"\0", r"is not text \(byte 3000000 is NUL\)"),
        (b"PAR1" + b"\x15\x04", r"is Parquet, not text: take the text out of it, or choose `format=\"sharded\"`\."),
        (b"\x1f\x8b\x08", r"is compressed by gzip, not text: unpack it, or choose `format=\"sharded\"`\."),
        (b"\x28\xb5\x2f\xfd", r"compressed by zstd, not text: unpack it, or choose `format=\"sharded\"`\."),
        (b"BZh9", r"compressed by bzip2, not text: unpack it\."),
        (b"PK\x03\x04", r"is a zip archive, not text"),
        (b"%PDF-1.7\n", r"is a PDF, not text"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, data: bytes, complaint: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UserError, match=complaint) as caught:
        read_given_text(tmp_path / "a.txt")
    assert_one_sentence(caught.value)


def test_an_endless_pipe_of_no_text_is_refused_at_its_beginning() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"\0" * HEAD_BYTES)
    os.close(theirs)
    with pytest.raises(UserError, match="byte 0 is NUL"):
        read_given_text(Path(f"/dev/fd/{ours}"))
    os.close(ours)
