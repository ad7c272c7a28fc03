"""Encoding of much text at once, for the processes that prepare a corpus, with the ids of `Tokenizer.encode`.

Shape letters: D documents, N ids of all of them, with an EOS behind each.
"""

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llada.system.errors import UserError, first_line
from llada.tokenizers.base import load_tokenizer
from llada.tokenizers.bpe import MODEL_FILE, read_files, setup_of
from llada.tokenizers.char import CharTokenizer
from llada.tokenizers.stranger import TokenizerService

N_CODES = 0x110000  # code points of Unicode
LONGEST_PART = 1 << 18
"""Number of characters, about, that are encoded at a time where a text may be cut: the library takes half a kilobyte a
token."""
# Between two words: ` ?\p{L}+` and the other alternatives of the byte-level pattern neither end in a space that a
# letter or digit follows nor look behind them, so that the words on both sides are found as in the whole text.
_CUT = re.compile(r"(?<=[^\W_]) (?=[^\W_])")
Ids = npt.NDArray[np.unsignedinteger[Any]]
Places = npt.NDArray[np.int64]


class BulkEncoder(Protocol):
    """An encoder of many texts in one call."""

    def encode(self, texts: Sequence[str], eos_id: int) -> tuple[Ids, Places]:
        """Return the ids (N,) of texts, each with an EOS behind it, and where each ends (D,), its EOS included."""


def bulk_encoder(folder: Path, vocabulary: Mapping[str, Any], dtype: str) -> BulkEncoder:
    """Load the tokenizer in a folder for much text.

    Args:
        vocabulary: keys that name the ids of a BPE tokenizer (`base.load_tokenizer`).
        dtype: numpy's name of the type of the ids.

    Raises:
        UserError: the tokenizer is damaged.
    """
    if (folder / MODEL_FILE).is_file():
        return _BPEEncoder(folder, vocabulary, dtype)
    tokenizer = load_tokenizer(folder, vocabulary)
    assert isinstance(tokenizer, CharTokenizer)
    return _CharEncoder(tokenizer, dtype)


def parts_of(text: str) -> Iterator[str]:
    """Cut a text after every `LONGEST_PART` characters."""
    for start in range(0, len(text), LONGEST_PART):
        yield text[start : start + LONGEST_PART]


def codes_of(text: str) -> npt.NDArray[np.uint32]:
    """Return the code points (N,) of a text."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


class _CharEncoder:
    """A table of ids by code points; 0, which PAD has, marks those that the vocabulary lacks."""

    def __init__(self, tokenizer: CharTokenizer, dtype: str) -> None:
        self._tokenizer = tokenizer
        self._id_of = np.zeros(N_CODES, dtype=dtype)
        codes = [ord(character) for character in tokenizer.characters]
        self._id_of[codes] = [id_ for character in tokenizer.characters for id_ in tokenizer.encode(character)]

    def encode(self, texts: Sequence[str], eos_id: int) -> tuple[Ids, Places]:
        ends = np.cumsum([len(text) + 1 for text in texts], dtype=np.int64)
        is_text = np.ones(ends[-1], dtype=bool)
        is_text[ends - 1] = False
        together = "".join(texts)
        found = np.concatenate([self._id_of[codes_of(part)] for part in parts_of(together)])
        if not found.all():
            self._tokenizer.encode(together)  # raises the error that names the character
        ids = np.full(len(is_text), eos_id, dtype=self._id_of.dtype)
        ids[is_text] = found
        return ids, ends


class _BPEEncoder:
    """The tokenizers library within this process.

    `BPETokenizer` has checked the files in a process with limits; the processes that encode a corpus can be lost as
    well, and their answers of many millions of ids do not go through a pipe.
    """

    def __init__(self, folder: Path, vocabulary: Mapping[str, Any], dtype: str) -> None:
        files = read_files(folder)
        service = TokenizerService()
        try:
            service.setup(files[MODEL_FILE], **setup_of(files))
            service.describe([vocabulary[key] for key in ("mask_token_id", "pad_token_id", "eos_token_id")])
        except Exception as error:  # an untrusted file makes the library raise almost anything
            raise UserError(f"The tokenizer in {folder} cannot be used ({first_line(error)}): use another.") from error
        service.model.encode_special_tokens = True  # names of special tokens in a text are text
        self._model, self._dtype = service.model, dtype
        self._parts_of = _parts_at_words if _splits_at_words(service.model) else _whole

    def encode(self, texts: Sequence[str], eos_id: int) -> tuple[Ids, Places]:
        ids, ends = array("I"), array("q")  # which numpy takes as they are, unlike lists
        for parts in self._groups_of(texts):
            encodings = self._model.encode_batch_fast([part for part, _ in parts], add_special_tokens=False)
            for encoding, (_, is_last) in zip(encodings, parts, strict=True):
                ids.fromlist(encoding.ids)
                if is_last:
                    ids.append(eos_id)
                    ends.append(len(ids))
        return np.frombuffer(ids, dtype="I").astype(self._dtype), np.frombuffer(ends, dtype=np.int64)

    def _groups_of(self, texts: Sequence[str]) -> Iterator[list[tuple[str, bool]]]:
        """Gather parts of texts into groups of about `LONGEST_PART` characters, with whether each ends its text."""
        group: list[tuple[str, bool]] = []
        waiting = 0
        for text in texts:
            left = len(text)
            for part in self._parts_of(text):
                left -= len(part)
                group.append((part, left == 0))
                waiting += len(part)
                if waiting >= LONGEST_PART:
                    yield group
                    group, waiting = [], 0
        if group:
            yield group


def _splits_at_words(model: Any) -> bool:
    """Whether each word is encoded for itself, by the byte-level pattern, whatever is around it."""
    from tokenizers.pre_tokenizers import ByteLevel

    split = model.pre_tokenizer
    is_byte_level = isinstance(split, ByteLevel) and split.use_regex and not split.add_prefix_space
    is_plain = all(token.special for token in model.get_added_tokens_decoder().values())  # those are text here
    return is_byte_level and is_plain and model.normalizer is None


def _whole(text: str) -> Iterator[str]:
    yield text


def _parts_at_words(text: str) -> Iterator[str]:
    """Cut a text between two words after every `LONGEST_PART` characters, if there are words."""
    start = 0
    while len(text) - start > LONGEST_PART and (cut := _CUT.search(text, start + LONGEST_PART)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]
