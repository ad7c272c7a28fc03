"""The interface of all tokenizers, and loading the one in a folder."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from llada.tokenizers.bpe import MODEL_FILE, VOCABULARY_KEYS, BPETokenizer, find_token
from llada.tokenizers.char import VOCAB_FILE, CharTokenizer


class Rows(Protocol):
    """The facts about a vocabulary that a network needs: how many rows its embedding has, and which are special."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def mask_row(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...


class Tokenizer(Rows, Protocol):
    """A translation of text to ids and back. It owns every id; only MASK's may differ from its row."""

    @property
    def unit(self) -> str:
        """The meaning of an id: "character" or "token"."""

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
    """Load the tokenizer in a folder.

    Args:
        content: content of the config.json or metadata.json next to it, which names the ids of a BPE tokenizer.

    Raises:
        UserError: there is no tokenizer, or it is damaged.
    """
    if (folder / VOCAB_FILE).is_file() and not (
        folder / MODEL_FILE
    ).is_file():  # a BPE folder may hold a vocab.json as well
        return CharTokenizer.load(folder)
    ids = [content.get(key) for key in ("pad_token_id", "eos_token_id")]
    has_other_ids = None not in ids and ids != [CharTokenizer.pad_id, CharTokenizer.eos_id]
    if (folder / MODEL_FILE).is_file() or has_other_ids:
        return BPETokenizer.load(folder, content)
    return CharTokenizer.load(folder)


def find_mask_row(folder: Path, name: str) -> int | None:
    """Find MASK's row in a network for the tokenizer in a folder; None if there is no tokenizer.

    Args:
        name: name of MASK in a byte-level BPE.

    Raises:
        UserError: the tokenizer is damaged, or has no MASK.
    """
    if (folder / VOCAB_FILE).is_file() and not (folder / MODEL_FILE).is_file():
        return CharTokenizer.load(folder).mask_row
    return find_token(folder, name)


def ids_of(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the keys that `load_tokenizer` reads."""
    values = (tokenizer.vocab_size, tokenizer.mask_id, tokenizer.pad_id, tokenizer.eos_id)
    return dict(zip(VOCABULARY_KEYS, values, strict=True))


def speechless_rows(tokenizer: Tokenizer, end_ids: Iterable[int]) -> tuple[int, ...]:
    """Return the columns of the logits that no answer may contain: those that are not text, except the ids that end
    it."""
    return tuple(sorted(set(tokenizer.forbidden_rows) - set(end_ids)))
