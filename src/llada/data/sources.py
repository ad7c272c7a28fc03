"""Large sources: files of text, JSONL and Parquet, plain or compressed, and data sets of the Hugging Face library."""

import contextlib
import errno
import glob
import importlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from llada.data.blocks import LONGEST_LINE, Kind, Piece, edge_in
from llada.system.errors import UserError, first_line
from llada.system.temporary_names import aside_of

Compression = Literal["gzip", "zstd"]
TEXT_SUFFIXES = (".txt", ".text", ".md")
LINE_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIXES = (".parquet", ".pq")
COMPRESSED_SUFFIXES = (".gz", ".zst")
# First bytes of files that hold no text, and of those that hold it compressed.
_COMPRESSED: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_READ = 1 << 20
_PACKED_READ = 1 << 16
_PACKED_AT_ONCE = 1 << 9  # 4 bytes of zstd can stand for 128 KiB: some 16 MB at a time then
_EDGE = 1 << 16
COPY = "copy"


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


@dataclass(frozen=True)
class Files:
    """Files in a given order."""

    files: tuple[SourceFile, ...]
    text_key: str

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def pieces(self, size: int, folder: Path) -> Iterator[Piece]:
        for file in self.files:
            if file.kind == "parquet":
                yield from _parquet_pieces(file)
            elif file.compression is not None:
                yield from _compressed_pieces(file, file.compression, size, folder)
            else:
                for start in range(0, file.size, size):
                    end = min(start + size, file.size)
                    yield Piece(str(file.path), file.kind, start, end, end - start)

    def identity(self) -> dict[str, Any]:
        return {"files": [[str(file.path), file.size, file.modified_ns] for file in self.files]}

    def provenance(self) -> dict[str, Any]:
        return {"kind": "files", "files": [[str(file.path), file.size] for file in self.files]}


def find_files(inputs: Sequence[str], text_key: str) -> Files:
    """Find the files of paths, folders and globs; those of a folder or a glob in the order of their names.

    Raises:
        UserError: there are none, one cannot be read here, or a Parquet file lacks the column.
    """
    paths = list(dict.fromkeys(path for name in inputs for path in _paths_of(name)))
    files = tuple(describe_file(path, text_key) for path in paths)
    return Files(tuple(file for file in files if file.size), text_key)


def is_for_blocks(path: Path) -> bool:
    """Whether only the sharded format takes a file, by its name."""
    name = path.name.lower()
    return name.endswith((*LINE_SUFFIXES, *PARQUET_SUFFIXES, *COMPRESSED_SUFFIXES))


def _paths_of(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        plain = (*TEXT_SUFFIXES, *LINE_SUFFIXES, *PARQUET_SUFFIXES)
        known = (*plain, *(inner + outer for inner in plain for outer in COMPRESSED_SUFFIXES))
        found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        files = [p for p in found if p.name.lower().endswith(known)]
        if not files:
            raise UserError(f"{path} holds no file of text, JSONL or Parquet: name the files themselves, or a glob.")
        return files
    found = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(name, recursive=True))]
    files = [p for p in found if not p.is_dir()]
    if not name or not files:
        raise UserError(f"No file matches {name!r}: check `input`.")
    return files


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
            head = file.read(_READ if path.name.endswith(LINE_SUFFIXES) else 4096)
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
        _zstandard(path)
    if not compression and kind != "parquet":
        _check_head(path, head, kind)
    described = SourceFile(path, kind, compression, status.st_size, status.st_mtime_ns)
    if kind == "parquet":
        _check_column(path, text_key)
    return described


def _check_head(path: Path, head: bytes, kind: Kind) -> None:
    """Refuse what is not text, and JSON that does not have one object a line."""
    from llada.data.corpus import looks_like_json
    from llada.data.given import KINDS

    other = next((words for magic, words in KINDS if head.startswith(magic)), None)
    if other is not None:
        raise UserError(f"{path} is {other}, not text: convert or unpack it, or leave it out.")
    text = head.decode("utf-8", errors="ignore").removeprefix("\ufeff").lstrip()
    if kind == "lines" and text.startswith("["):
        raise UserError(f"{path} holds a JSON array: write its objects one a line (JSONL).")
    if kind == "lines" and text.startswith("{\n"):
        raise UserError(f"{path} has objects over several lines: write them one a line (JSONL).")
    if kind == "text" and looks_like_json(text):
        raise UserError(f"{path} is JSON, not a text: name it .jsonl if it has one object a line, or leave it out.")


# -- Parquet ----------------------------------------------------------------------------------------------------------


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{path} is Parquet, which pyarrow reads: `pip install pyarrow` (the extra parquet), or convert the file "
            "to JSONL."
        ) from None
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # a damaged file makes its reader raise almost anything
        raise UserError(f"{path} is damaged, or not Parquet ({first_line(error)}): restore it.") from error


def _check_column(path: Path, text_key: str) -> None:
    with _parquet(path) as file:
        schema = file.schema_arrow
    if text_key not in schema.names:
        columns = ", ".join(schema.names[:20]) + (", ..." if len(schema.names) > 20 else "")
        raise UserError(f"{path} has no column {text_key!r} (its columns: {columns}): choose one by `text_key`.")
    kind = schema.field(text_key).type
    if not _is_text(kind):
        raise UserError(f"The column {text_key!r} of {path} is of type {kind}, not text: choose another `text_key`.")


def _is_text(kind: Any) -> bool:
    """Whether values of a type of Arrow are texts: strings, or numbers that stand for strings."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _parquet_pieces(file: SourceFile) -> Iterator[Piece]:
    with _parquet(file.path) as opened:
        groups = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
        facts = [(group.num_rows, group.total_byte_size) for group in groups]
    first = 1
    for i, (n_rows, n_bytes) in enumerate(facts):
        yield Piece(str(file.path), "parquet", i, i + 1, n_bytes, first=first)
        first += n_rows


# -- gzip and zstd ----------------------------------------------------------------------------------------------------


def _zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError:
        raise UserError(
            f"{path} is compressed by zstd: `pip install zstandard` (the extra corpora), or unpack it."
        ) from None
    return zstandard


@contextlib.contextmanager
def _unpacked(file: SourceFile, compression: Compression) -> Iterator[BinaryIO]:
    if compression == "gzip":
        import gzip

        with gzip.open(file.path, "rb") as stream:
            yield stream  # type: ignore[misc]  # a GzipFile is as good as a BinaryIO here
    else:
        with open(file.path, "rb") as raw:
            yield io.BufferedReader(_Zstd(raw, _zstandard(file.path)), _READ)


class _Zstd(io.RawIOBase):
    """The content of a zstd file, frame by frame; unlike the library's own reader, it finds out that a frame breaks
    off."""

    def __init__(self, raw: BinaryIO, library: Any) -> None:
        self._raw, self._library = raw, library
        self._frame: Any = None
        self._packed, self._held = memoryview(b""), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the protocol's name is not in typeshed
        while not self._held:
            self._packed = self._packed or memoryview(self._raw.read(_PACKED_READ))
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it breaks off")
                return 0
            if self._frame is None:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            given, self._packed = self._packed[:_PACKED_AT_ONCE], self._packed[_PACKED_AT_ONCE:]
            self._held = memoryview(self._frame.decompress(given))
            if self._frame.eof:
                unused = self._frame.unused_data
                self._packed = memoryview(unused + bytes(self._packed)) if unused else self._packed
                self._frame = None
        part, self._held = self._held[: len(buffer)], self._held[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _compressed_pieces(file: SourceFile, compression: Compression, size: int, folder: Path) -> Iterator[Piece]:
    """Unpack a file in order into copies, each of which ends with a line, or, in a text without lines, a character."""
    at, line = 0, 1
    try:
        with _unpacked(file, compression) as stream:
            for n_bytes, n_lines, copy in _copies(stream, file, size, folder):
                yield Piece(str(file.path), file.kind, at, at + n_bytes, n_bytes, str(copy), line)
                at, line = at + n_bytes, line + n_lines
    except (EOFError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
        ):  # of the disk of the copies: the file is sound
            raise
        raise UserError(f"{file.path} cannot be unpacked ({first_line(error)}): restore it.") from error
    except Exception as error:
        if type(error).__name__ not in ("ZstdError", "error"):  # of zstandard and zlib
            raise
        raise UserError(f"{file.path} cannot be unpacked ({first_line(error)}): restore it.") from error


def _copies(stream: BinaryIO, file: SourceFile, size: int, folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Yield the number of bytes and of lines of each copy, and the copy."""
    held = b""
    while True:
        copy, n_bytes, n_lines = aside_of(folder / COPY), 0, 0
        with open(copy, "wb") as written:
            while n_bytes < size:
                chunk = held or stream.read(_READ)
                if not chunk:
                    break
                room = size - n_bytes
                chunk, held = (chunk, b"") if len(chunk) < room else _cut(chunk, room, stream, file)
                written.write(chunk)
                n_bytes, n_lines = n_bytes + len(chunk), n_lines + chunk.count(b"\n")
        if not n_bytes:
            copy.unlink()
            return
        yield n_bytes, n_lines, copy


def _cut(chunk: bytes, room: int, stream: BinaryIO, file: SourceFile) -> tuple[bytes, bytes]:
    """Cut what was read near `room`; returns what belongs to the copy, and the rest."""
    while file.kind == "lines" and chunk.find(b"\n", room - 1) < 0 and len(chunk) <= room + LONGEST_LINE:
        more = stream.read(_READ)
        if not more:
            return chunk, b""
        chunk += more
    while len(chunk) < room + _EDGE and (more := stream.read(_EDGE)):
        chunk += more
    end = room - 1 + edge_in(chunk[room - 1 :] if file.kind == "lines" else chunk[room - 1 : room + _EDGE], 1)
    return chunk[:end], chunk[end:]


def pieces_of_texts(name: str, texts: Iterator[Any], text_key: str, size: int, folder: Path) -> Iterator[Piece]:
    """Write texts that come one by one into copies of about `size` bytes, a line of JSON each."""
    first = 1
    while True:
        copy, n_bytes, n_rows = aside_of(folder / COPY), 0, 0
        with open(copy, "wb") as written:
            for text in texts:
                line = json.dumps({text_key: text}).encode() + b"\n"
                n_bytes, n_rows = n_bytes + written.write(line), n_rows + 1
                if n_bytes >= size:
                    break
        if not n_bytes:
            copy.unlink()
            return
        yield Piece(name, "lines", 0, n_bytes, n_bytes, str(copy), first)
        first += n_rows


# -- the Hugging Face library -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubSource:
    """A data set that the Hugging Face library reads, streamed: from the hub, or from a folder."""

    name: str
    split: str
    text_key: str

    size: None = None

    def pieces(self, size: int, folder: Path) -> Iterator[Piece]:
        return pieces_of_texts(self.name, self._rows(), self.text_key, size, folder)

    def identity(self) -> dict[str, Any]:
        return {"hub": [self.name, self.split]}

    def provenance(self) -> dict[str, Any]:
        return {"kind": "hub", "name": self.name, "split": self.split}

    def _rows(self) -> Iterator[Any]:
        try:
            datasets = importlib.import_module("datasets")
        except ImportError:
            raise UserError(
                f"The library datasets reads {self.name}: `pip install datasets` (the extra hub), or name files."
            ) from None
        try:
            if (Path(self.name) / "dataset_info.json").is_file() or (Path(self.name) / "dataset_dict.json").is_file():
                loaded = datasets.load_from_disk(self.name)
                rows = (loaded[self.split] if isinstance(loaded, dict) else loaded).to_iterable_dataset()
            else:
                rows = datasets.load_dataset(self.name, split=self.split, streaming=True)
            for row in rows:
                if self.text_key not in row:
                    columns = ", ".join(map(str, row))
                    raise UserError(
                        f"{self.name} has no column {self.text_key!r} (its columns: {columns}): choose one by "
                        "`text_key`."
                    )
                yield row[self.text_key]
        except UserError:
            raise
        except Exception as error:  # the library passes on those of its HTTP client and of its file readers
            raise UserError(
                f"The data set {self.name} cannot be read ({first_line(error)}): check its name, its split and the "
                "network."
            ) from error
