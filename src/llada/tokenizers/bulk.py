"""Encoding of much text at once, for the processes that prepare a corpus, with the ids of `Tokenizer.encode`.

Shape letters: D documents, N ids of all of them, with an EOS behind each.
"""

from array import array
from collections.abc import Mapping, Sequence
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
        found = self._id_of[codes_of(together)]
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

    def encode(self, texts: Sequence[str], eos_id: int) -> tuple[Ids, Places]:
        ids, ends = array("I"), array("q")  # which numpy takes as they are, unlike lists
        for encoding in self._model.encode_batch_fast(texts, add_special_tokens=False):
            ids.fromlist(encoding.ids)
            ids.append(eos_id)
            ends.append(len(ids))
        return np.frombuffer(ids, dtype="I").astype(self._dtype), np.frombuffer(ends, dtype=np.int64)
