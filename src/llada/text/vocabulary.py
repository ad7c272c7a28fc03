"""What every tokenizer is, and which one a folder holds."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from llada.text.bpe import MODEL_FILE, VOCABULARY_KEYS, BPETokenizer
from llada.text.tokenizer import VOCAB_FILE, CharTokenizer


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
    is_bpe = (folder / MODEL_FILE).is_file() or content.get("pad_token_id") == content.get("eos_token_id") is not None
    if is_bpe and not (folder / VOCAB_FILE).is_file():  # LLaDA's own, whose padding is the end
        return BPETokenizer.load(folder, content)
    return CharTokenizer.load(folder)


def ids_of(tokenizer: Tokenizer) -> dict[str, int]:
    """The keys that `load_tokenizer` reads."""
    values = (tokenizer.vocab_size, tokenizer.mask_id, tokenizer.pad_id, tokenizer.eos_id)
    return dict(zip(VOCABULARY_KEYS, values, strict=True))
