"""What every tokenizer is, and which one a folder holds."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from llada.tokenizers.bpe import MODEL_FILE, VOCABULARY_KEYS, BPETokenizer, find_token
from llada.tokenizers.char import VOCAB_FILE, CharTokenizer


class Rows(Protocol):
    """What a network is told of a vocabulary: how many rows its embedding has, and which of them are special."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def mask_row(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...


class Tokenizer(Rows, Protocol):
    """Text to ids and back. It owns every id; only MASK's may differ from its row."""

    @property
    def unit(self) -> str:
        """What an id stands for: "character" or "token"."""

    @property
    def mask_id(self) -> int: ...
    @property
    def forbidden_rows(self) -> tuple[int, ...]: ...
    @property
    def file_names(self) -> tuple[str, ...]: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Iterable[int], mask_symbol: str = "_") -> str: ...
    def save(self, folder: Path) -> None: ...


def load_tokenizer(folder: Path, content: Mapping[str, Any]) -> CharTokenizer | BPETokenizer:
    """The tokenizer in a folder.

    Args:
        content: of the config.json or metadata.json beside it, which names the ids of a BPE tokenizer.

    Raises:
        UserError: there is none, or it is broken.
    """
    if (folder / VOCAB_FILE).is_file() and not (folder / MODEL_FILE).is_file():  # which may have one beside it
        return CharTokenizer.load(folder)
    ids = [content.get(key) for key in ("pad_token_id", "eos_token_id")]
    has_other_ids = None not in ids and ids != [CharTokenizer.pad_id, CharTokenizer.eos_id]
    if (folder / MODEL_FILE).is_file() or has_other_ids:
        return BPETokenizer.load(folder, content)
    return CharTokenizer.load(folder)


def find_mask_row(folder: Path, name: str) -> int | None:
    """MASK's row in a network for the tokenizer in a folder, None where there is no tokenizer.

    Args:
        name: MASK's in a byte-level BPE.

    Raises:
        UserError: the tokenizer is broken, or has no MASK.
    """
    if (folder / VOCAB_FILE).is_file() and not (folder / MODEL_FILE).is_file():
        return CharTokenizer.load(folder).mask_row
    return find_token(folder, name)


def ids_of(tokenizer: Tokenizer) -> dict[str, int]:
    """The keys that `load_tokenizer` reads."""
    values = (tokenizer.vocab_size, tokenizer.mask_id, tokenizer.pad_id, tokenizer.eos_id)
    return dict(zip(VOCABULARY_KEYS, values, strict=True))


def speechless_rows(tokenizer: Tokenizer, end_ids: Iterable[int]) -> tuple[int, ...]:
    """Columns of the logits that no answer may contain: those that stand for no text, but for the ids that end it."""
    return tuple(sorted(set(tokenizer.forbidden_rows) - set(end_ids)))
