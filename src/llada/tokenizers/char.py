"""The character tokenizer, which owns every id.

PAD is 0, BOS 1, EOS 2; the characters of the text follow from 3 in sorted order, and MASK is 126336, its id in LLaDA's
own vocabulary. No stored text contains MASK; a network has a row for each of the other ids, and a last one for MASK.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from llada.system.errors import UserError
from llada.system.regular_files import read_bounded

PAD, BOS, EOS, MASK = "<PAD>", "<BOS>", "<EOS>", "<MASK>"
SPECIAL_IDS = {PAD: 0, BOS: 1, EOS: 2, MASK: 126336}
FIRST_CHARACTER_ID = 3
VOCAB_FILE = "vocab.json"
MOST_CHARACTERS = SPECIAL_IDS[MASK] - FIRST_CHARACTER_ID
LARGEST_VOCABULARY = 8_000_000  # bytes: three times what as many characters take


class CharTokenizer:
    """A translation of text to ids and back, one id per character."""

    unit = "character"
    file_names = (VOCAB_FILE,)
    pad_id = SPECIAL_IDS[PAD]
    bos_id = SPECIAL_IDS[BOS]
    eos_id = SPECIAL_IDS[EOS]
    mask_id = SPECIAL_IDS[MASK]

    def __init__(self, characters: Iterable[str]) -> None:
        """Number the characters.

        Raises:
            UserError: there are so many that one would have the id of MASK.
        """
        self.characters = sorted(set(characters))
        if len(self.characters) > MOST_CHARACTERS:
            raise UserError(
                f"The text has {len(self.characters):,} different characters, and there are ids for "
                f'{MOST_CHARACTERS:,}: choose `tokenizer="bpe"`.'
            )
        self._id_of = {character: FIRST_CHARACTER_ID + i for i, character in enumerate(self.characters)}
        self._text_of = {id_: character for character, id_ in self._id_of.items()}

    @property
    def vocab_size(self) -> int:
        """Number of ids, MASK included: the rows of a network's embedding."""
        return self.mask_row + 1

    @property
    def mask_row(self) -> int:
        """Row of MASK in a network's embedding; every other id is its own row."""
        return FIRST_CHARACTER_ID + len(self.characters)

    @property
    def forbidden_rows(self) -> tuple[int, ...]:
        """Columns of the logits that no sampler may choose: those that are not text."""
        return (self.pad_id, self.bos_id, self.eos_id, self.mask_row)

    def encode(self, text: str) -> list[int]:
        """Encode a text, without BOS or EOS.

        Raises:
            UserError: a character is not in the vocabulary.
        """
        try:
            return [self._id_of[character] for character in text]
        except KeyError as error:
            raise UserError(
                f"The character {error.args[0]!r} is not in the vocabulary of {len(self.characters)} characters "
                f"({self._sample_of_characters()}): leave it out or train on a text that has it."
            ) from None

    def decode(self, ids: Iterable[int], mask_symbol: str = "_") -> str:
        """Decode ids; PAD, BOS and EOS vanish, MASK shows as `mask_symbol`.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        specials = {self.pad_id: "", self.bos_id: "", self.eos_id: "", self.mask_id: mask_symbol}
        try:
            return "".join(self._text_of[i] if i in self._text_of else specials[i] for i in map(int, ids))
        except KeyError as error:
            raise ValueError(f"{error.args[0]} is not an id of this vocabulary") from None

    def save(self, folder: Path) -> None:
        """Write vocab.json."""
        text = json.dumps(self._to_json(), indent=2, ensure_ascii=False) + "\n"
        (folder / VOCAB_FILE).write_text(text, encoding="utf-8")

    def _to_json(self) -> dict[str, Any]:
        return {
            "type": "character",
            "vocab_size": self.vocab_size,
            "mask_row": self.mask_row,
            "special_tokens": SPECIAL_IDS,
            "token_to_id": {PAD: self.pad_id, BOS: self.bos_id, EOS: self.eos_id, **self._id_of, MASK: self.mask_id},
        }

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read vocab.json and check that it is of this kind.

        Raises:
            UserError: the file is missing, damaged, or not a character vocabulary with these ids.
        """
        path = folder / VOCAB_FILE
        try:
            content = json.loads(read_bounded(path, LARGEST_VOCABULARY))
            tokens = [token for token in content["token_to_id"] if token not in SPECIAL_IDS]
            tokenizer = cls(tokens)
            "".join(tokens).encode()  # half of a surrogate pair is not a character, and could not be written
            is_consistent = all(len(token) == 1 for token in tokens) and content == tokenizer._to_json()
        except FileNotFoundError:
            raise UserError(f"{path} is missing: name a folder that `llada prepare` or `llada train` wrote.") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            is_consistent = False
        if not is_consistent:
            raise UserError(f"{path} is not a character vocabulary of this package: prepare the text again.")
        return tokenizer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharTokenizer) and self.characters == other.characters

    __hash__ = None  # type: ignore[assignment]  # equal by content, as a list is

    def _sample_of_characters(self) -> str:
        visible = [character for character in self.characters if not character.isspace()]
        return " ".join(visible[:20]) + (" ..." if len(visible) > 20 else "")
