"""Blocks: the parts in which large sources are read, one block at a time and by any number of processes.

A block is a list of pieces (pieces.py). Which documents it holds depends on the files and on the size of a block alone,
so that it does not matter who reads it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llada.data.json_lines import line_documents
from llada.data.parquet_files import parquet_documents
from llada.data.pieces import Bad, Piece, lines_before
from llada.data.text_files import text_documents


@dataclass(frozen=True)
class Block:
    """What one process reads at a time."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)


def blocks_of(pieces: Iterable[Piece], size: int) -> Iterator[Block]:
    """Gather pieces into blocks of at most `size` bytes; a larger piece is a block of its own."""
    gathered: list[Piece] = []
    filled = number = 0
    for piece in pieces:
        if gathered and filled + piece.size > size:
            yield Block(number, tuple(gathered))
            gathered, filled, number = [], 0, number + 1
        gathered.append(piece)
        filled += piece.size
    if gathered:
        yield Block(number, tuple(gathered))


def documents_of(block: Block, text_key: str) -> Iterator[str | Bad]:
    """Iterate over the documents of a block and what is broken in it, in the order of the source.

    Raises:
        UserError: a file cannot be read any more.
    """
    for piece in block.pieces:
        if piece.kind == "parquet":
            yield from parquet_documents(piece, text_key)
        elif piece.kind == "lines":
            yield from line_documents(piece, text_key)
        else:
            yield from text_documents(piece)
        if piece.breaks_off and piece.kind == "text":
            yield Bad(piece, piece.end, "breaks off")
        elif piece.breaks_off:
            yield Bad(piece, lines_before(Path(piece.copy), piece.size) + 1, "breaks off, and the file with it")
