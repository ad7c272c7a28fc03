"""A text whose ids are known by heart, and the folder with it."""

from pathlib import Path

from llada.data.corpus import Corpus
from llada.data.prepared import prepare
from llada.tokenizers.base import Tokenizer
from llada.tokenizers.char import CharTokenizer

# The characters a..j have the ids 3..12; 18 of the 20 are for training, "ij" for validation.
TEXT = "abcdefghij" * 2


def corpus_of(text: str) -> Corpus:
    return Corpus(text, "file", "my.txt")


def characters_of(tokenizer: Tokenizer) -> list[str]:
    """The vocabulary of a character tokenizer."""
    assert isinstance(tokenizer, CharTokenizer)
    return tokenizer.characters


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def prepare_text(folder: Path) -> Path:
    """A prepared folder with `TEXT` in sequences of 4."""
    prepare(corpus_of(TEXT), folder, 4)
    return folder
