"""Large sources: files of text, JSONL and Parquet, plain or compressed."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llada.data.copies import Compression, compressed_pieces, load_zstandard, measure, unpacked
from llada.data.corpus import looks_like_json
from llada.data.given import HEAD_BYTES, KINDS
from llada.data.input_files import input_files
from llada.data.parquet_files import check_column, parquet_pieces
from llada.data.pieces import Kind, Piece
from llada.system.errors import UserError

TEXT_SUFFIXES = (".txt",)
LINE_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIXES = (".parquet", ".pq")
COMPRESSED_SUFFIXES = (".gz", ".zst")
_PLAIN_SUFFIXES = (*TEXT_SUFFIXES, *LINE_SUFFIXES, *PARQUET_SUFFIXES)
READ_SUFFIXES = (*_PLAIN_SUFFIXES, *(inner + outer for inner in _PLAIN_SUFFIXES for outer in COMPRESSED_SUFFIXES))
"""Ends of the names of files that are read in a folder."""
# First bytes of files that hold no text, and of those that hold it compressed.
_COMPRESSED: dict[bytes, Compression] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    **{bytes([first]) + b"\x2a\x4d\x18": "zstd" for first in range(0x50, 0x60)},  # to be skipped (RFC 8878, 3.1.2)
}
_HEAD = 1 << 20
_MEASURED_FILES = 4  # that show how much the others were compressed


class Source(Protocol):
    """What is prepared, as pieces that follow each other."""

    @property
    def size(self) -> int | None:
        """Number of bytes, about; None if nobody knows."""

    def pieces(self, size: int, folder: Path) -> Iterator[Piece]:
        """Iterate over pieces of at most about `size` bytes, in the same order each time.

        Args:
            folder: where copies of what can only be read in order are written; whoever has used them removes them.
        """

    def check(self) -> None:
        """Refuse a source that has changed since it was found.

        Raises:
            UserError: it has changed.
        """

    def identity(self) -> dict[str, Any]:
        """Describe it so that another source, or the same one after a change, has another description."""

    def provenance(self) -> dict[str, Any]:
        """Describe it for the manifest."""


@dataclass(frozen=True)
class SourceFile:
    """A file, and how it is read."""

    path: Path
    kind: Kind
    compression: Compression | None
    size: int
    modified_ns: int
    content_size: int | None
    """Number of bytes without compression; None if only reading it shows."""

    def check(self) -> None:
        """Refuse the file if it has changed since it was described.

        Raises:
            UserError: it has changed, or cannot be found any more.
        """
        try:
            status = self.path.stat()
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be read any more ({error.strerror}): restore it, and repeat the command."
            ) from error
        if (status.st_size, status.st_mtime_ns) != (self.size, self.modified_ns):
            raise UserError(
                f"{self.path} has changed since its preparation began: repeat the command with `overwrite=True` when "
                "nothing writes to it any more."
            )


@dataclass(frozen=True)
class Files:
    """Files in a given order."""

    files: tuple[SourceFile, ...]
    text_key: str

    @functools.cached_property
    def size(self) -> int:
        """Number of bytes without compression, estimated for what is compressed as a whole."""
        packed = [(file.path, file.compression) for file in self.files if file.compression][:_MEASURED_FILES]
        found = [measure(path, compression) for path, compression in packed]
        expansion = sum(n for n, _ in found) / max(1, sum(n for _, n in found))
        sizes = (file.size * expansion if file.content_size is None else file.content_size for file in self.files)
        return round(sum(sizes))

    def pieces(self, size: int, folder: Path) -> Iterator[Piece]:
        for file in self.files:
            file.check()
            for piece in self._pieces_of(file, size, folder):
                yield piece
                file.check()

    def _pieces_of(self, file: SourceFile, size: int, folder: Path) -> Iterator[Piece]:
        if file.kind == "parquet":
            yield from parquet_pieces(file.path)
        elif file.compression is not None:
            yield from compressed_pieces(file.path, file.kind, file.compression, size, folder)
        else:
            for start in range(0, file.size, size):
                end = min(start + size, file.size)
                yield Piece(str(file.path), file.kind, start, end, end - start)

    def check(self) -> None:
        for file in self.files:
            file.check()

    def identity(self) -> dict[str, Any]:
        return {"files": [[str(file.path), file.size, file.modified_ns] for file in self.files]}

    def provenance(self) -> dict[str, Any]:
        return {"kind": "files", "files": [[str(file.path), file.size] for file in self.files]}


def find_files(
    inputs: Sequence[str],
    text_key: str,
    output_dir: Path | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Files:
    """Find the files of paths, folders and globs; those of a folder or a glob in the order of their names.

    Args:
        output_dir: what is in it is not read with a folder that it is in.
        say: called with a sentence on what was left out of a folder.

    Raises:
        UserError: there are none, one cannot be read here, or a Parquet file lacks the column.
    """
    wanted, other = "file of text, JSONL or Parquet", "not named as text, JSONL or Parquet"
    paths = input_files(inputs, READ_SUFFIXES, wanted, output_dir, other, say)
    files = tuple(describe_file(path, text_key) for path in paths)
    return Files(tuple(file for file in files if file.size), text_key)


def is_for_blocks(path: Path) -> bool:
    """Whether only the sharded format takes a file, by its name."""
    name = path.name.lower()
    return name.endswith((*LINE_SUFFIXES, *PARQUET_SUFFIXES, *COMPRESSED_SUFFIXES))


def describe_file(path: Path, text_key: str) -> SourceFile:
    """Find out how a file is read, by its name and its first bytes.

    Raises:
        UserError: it is not a regular file, cannot be read, or is of a kind that is not read here.
    """
    try:
        status = path.stat()
        if not path.is_file():
            raise UserError(f"{path} is not a regular file: copy what it gives into one.")
        with open(path, "rb") as file:
            head = file.read(_HEAD if path.name.endswith(LINE_SUFFIXES) else HEAD_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from error
    compression = next((value for magic, value in _COMPRESSED.items() if head.startswith(magic)), None)
    name = path.name.lower()
    inner = name.removesuffix(".gz").removesuffix(".zst")
    kind: Kind = "text"
    if head.startswith(b"PAR1") or inner.endswith(PARQUET_SUFFIXES):
        kind = "parquet"
    elif inner.endswith(LINE_SUFFIXES):
        kind = "lines"
    if kind == "parquet" and compression:
        raise UserError(f"{path} is compressed as a whole, which Parquet does by itself: unpack it.")
    if compression == "zstd":
        load_zstandard(path)
    if kind != "parquet":
        _check_head(path, _head_within(path, compression) if compression else head, kind)
    content_size = None if compression else status.st_size
    if kind == "parquet":
        content_size = check_column(path, text_key)
    return SourceFile(path, kind, compression, status.st_size, status.st_mtime_ns, content_size)


def _head_within(path: Path, compression: Compression) -> bytes:
    """Unpack the beginning of a file; it is empty if the file is damaged, which is reported when it is read."""
    with contextlib.suppress(Exception), open(path, "rb") as raw:  # those of zlib and zstandard have no common base
        return unpacked(raw, compression, path).read(HEAD_BYTES)
    return b""


def _check_head(path: Path, head: bytes, kind: Kind) -> None:
    """Refuse what is not text, and JSON that does not have one object a line."""
    other = next((words for magic, words in KINDS if head.startswith(magic)), None)
    if other is not None:
        raise UserError(f"{path} is {other}, not text: convert or unpack it, or leave it out.")
    text = head.decode("utf-8", errors="ignore").removeprefix("\ufeff").lstrip()
    if kind == "lines" and text.startswith("["):
        raise UserError(f"{path} holds a JSON array: write its objects one a line (JSONL).")
    if kind == "lines" and text.startswith(("{\n", "{\r\n")):
        raise UserError(f"{path} has objects over several lines: write them one a line (JSONL).")
    if kind == "text" and looks_like_json(text):
        name = f".jsonl{path.suffix}" if path.suffix.lower() in COMPRESSED_SUFFIXES else ".jsonl"
        raise UserError(f"{path} is JSON, not a text: name it {name} if it has one object a line, or leave it out.")
