"""The tokenizer of a published checkpoint: byte-level BPE, read by the tokenizers library.

Its ids are the network's rows, MASK's included. The files are kept as they were read, byte for byte.
"""

from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer as FastTokenizer

from llada.errors import UserError

MODEL_FILE = "tokenizer.json"
# Not all are there in every checkpoint; they describe the chat template and the names of special tokens.
OTHER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
VOCABULARY_KEYS = ("vocab_size", "mask_token_id", "pad_token_id", "eos_token_id")


class BPETokenizer:
    """Text to ids and back; the ids of MASK, padding and end come from the checkpoint's config.json."""

    unit = "token"

    def __init__(self, files: Mapping[str, bytes], vocabulary: Mapping[str, int]) -> None:
        """
        Args:
            files: name and content of the tokenizer's files, tokenizer.json at least.
            vocabulary: the keys of config.json that name ids, VOCABULARY_KEYS.

        Raises:
            ValueError: the files and the vocabulary do not fit together.
        """
        self._files = dict(files)
        self.vocabulary = {key: int(vocabulary[key]) for key in VOCABULARY_KEYS}
        self.vocab_size, self.mask_id, self.pad_id, self.eos_id = self.vocabulary.values()
        self.mask_row = self.mask_id
        try:
            self._model = FastTokenizer.from_buffer(self._files[MODEL_FILE])
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"{MODEL_FILE} cannot be read ({error})") from error
        # A text that happens to hold "<|mdm_mask|>" is text: only the forward process makes MASK.
        self._model.encode_special_tokens = True
        self._known = set(self._model.get_vocab(with_added_tokens=True).values())
        if max(self._known) >= self.vocab_size:
            raise ValueError(f"{MODEL_FILE} has ids up to {max(self._known)}, the network {self.vocab_size} rows")
        missing = {key: id_ for key, id_ in self.vocabulary.items() if key != "vocab_size" and id_ not in self._known}
        if missing:
            raise ValueError(f"{MODEL_FILE} lacks the ids that config.json names: {missing}")

    @property
    def forbidden_rows(self) -> tuple[int, ...]:
        """MASK, and the rows of the network that no token has; PAD is also the end of a text, and allowed."""
        return (self.mask_id, *(row for row in range(self.vocab_size) if row not in self._known))

    @property
    def file_names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without any special token."""
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int], mask_symbol: str = "_") -> str:
        """Text of the ids; special tokens vanish, MASK shows as `mask_symbol`."""
        pieces = []
        for is_mask, run in groupby(map(int, ids), key=lambda id_: id_ == self.mask_id):
            tokens = list(run)
            pieces.append(mask_symbol * len(tokens) if is_mask else self._model.decode(tokens))
        return "".join(pieces)

    def save(self, folder: Path) -> None:
        """Write the files as they were read."""
        for name, content in self._files.items():
            (folder / name).write_bytes(content)

    @classmethod
    def load(cls, folder: Path, vocabulary: Mapping[str, Any]) -> Self:
        """Read the tokenizer's files.

        Raises:
            UserError: tokenizer.json is missing or broken, or does not fit the vocabulary.
        """
        if not (folder / MODEL_FILE).is_file():
            raise UserError(f"{folder / MODEL_FILE} is missing: download the whole checkpoint again.")
        files = {name: (folder / name).read_bytes() for name in (MODEL_FILE, *OTHER_FILES) if (folder / name).is_file()}
        try:
            return cls(files, vocabulary)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"The tokenizer in {folder} cannot be used ({error}): use another checkpoint.") from error

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BPETokenizer)
            and self._files[MODEL_FILE] == other._files[MODEL_FILE]
            and self.vocabulary == other.vocabulary
        )

    __hash__ = None  # type: ignore[assignment]  # equal by content, as a list is
