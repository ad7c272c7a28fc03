"""Parquet files, read by pyarrow: a document is the value of a column."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llada.data.pieces import Bad, Piece, not_utf8
from llada.system.errors import UserError, first_line

_ROWS = 256  # that are read at a time


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{path} is Parquet, which pyarrow reads: `pip install pyarrow` (the extra parquet), or convert the file "
            "to JSONL."
        ) from None
    with contextlib.ExitStack() as stack:
        try:
            # Bytes, since pyarrow takes a name for UTF-8, which it need not be.
            file = stack.enter_context(pyarrow.OSFile(os.fsencode(path)))
            opened = stack.enter_context(parquet.ParquetFile(file))
        except Exception as error:  # a damaged file makes its reader raise almost anything
            raise UserError(f"{path} is damaged, or not Parquet ({first_line(error)}): restore it.") from error
        yield opened


def check_column(path: Path, text_key: str) -> int:
    """Refuse a file without a column of texts, and return its number of bytes without compression.

    Raises:
        UserError: it has no such column, or is damaged.
    """
    with _parquet(path) as file:
        schema = file.schema_arrow
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
    if text_key not in schema.names:
        columns = ", ".join(schema.names[:20]) + (", ..." if len(schema.names) > 20 else "")
        raise UserError(f"{path} has no column {text_key!r} (its columns: {columns}): choose one by `text_key`.")
    if schema.names.count(text_key) > 1:
        raise UserError(f"{path} has several columns {text_key!r}: rename them, or choose another `text_key`.")
    kind = schema.field(text_key).type
    if not _is_text(kind):
        raise UserError(f"The column {text_key!r} of {path} is of type {kind}, not text: choose another `text_key`.")
    return int(size)


def _is_text(kind: Any) -> bool:
    """Whether values of a type of Arrow are texts: strings, or numbers that stand for strings."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def parquet_pieces(path: Path) -> Iterator[Piece]:
    with _parquet(path) as opened:
        groups = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
        facts = [(group.num_rows, group.total_byte_size) for group in groups]
    first = 1
    for i, (n_rows, n_bytes) in enumerate(facts):
        yield Piece(str(path), "parquet", i, i + 1, n_bytes, first=first)
        first += n_rows


def parquet_documents(piece: Piece, text_key: str) -> Iterator[str | Bad]:
    number = 0
    try:
        with _parquet(Path(piece.path)) as file:
            groups = list(range(piece.start, piece.end))
            for batch in file.iter_batches(_ROWS, row_groups=groups, columns=[text_key], use_threads=False):
                for text in _texts(batch.column(text_key)):
                    number += 1
                    yield Bad(piece, number, not_utf8(text)) if isinstance(text, UnicodeDecodeError) else text or ""
    except UserError:
        raise
    except Exception as error:  # a damaged file makes its reader raise almost anything
        row = piece.first + number
        raise UserError(f"{piece.path} is damaged near row {row:,} ({first_line(error)}): restore it.") from error


def _texts(column: Any) -> list[str | UnicodeDecodeError | None]:
    """Return the texts of a column; what is not UTF-8, which Parquet does not check, as the error."""
    try:
        texts: list[str | UnicodeDecodeError | None] = column.to_pylist()
    except UnicodeDecodeError:
        texts = []
        for value in column:
            try:
                texts.append(value.as_py())
            except UnicodeDecodeError as error:
                texts.append(error)
    return texts
