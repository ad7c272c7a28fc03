"""Bulk encoding gives the ids of the tokenizers themselves, with an EOS behind each text."""

from pathlib import Path

import numpy as np
import pytest

from llada.system.errors import UserError
from llada.tokenizers.base import Tokenizer, ids_of
from llada.tokenizers.bulk import bulk_encoder
from llada.tokenizers.char import CharTokenizer
from llada.tokenizers.train_bpe import train_bpe

TEXTS = ["to be, or not to be", "é 世界 <EOS>", "x", "that is\n\nthe question <MASK>\U0001f600"]


def check(tokenizer: Tokenizer, folder: Path, dtype: str) -> None:
    tokenizer.save(folder)
    ids, ends = bulk_encoder(folder, ids_of(tokenizer), dtype).encode(TEXTS, tokenizer.eos_id)
    assert ids.dtype == np.dtype(dtype)
    expected = [[*tokenizer.encode(text), tokenizer.eos_id] for text in TEXTS]
    assert ids.tolist() == [id_ for each in expected for id_ in each]
    assert ends.tolist() == np.cumsum([len(each) for each in expected]).tolist()


def test_characters(tmp_path: Path) -> None:
    check(CharTokenizer("".join(TEXTS)), tmp_path, "<u1")


def test_byte_pairs(tmp_path: Path) -> None:
    check(train_bpe(iter([TEXTS * 3]), 280), tmp_path, "<u2")


def test_a_character_that_is_not_known_is_named(tmp_path: Path) -> None:
    CharTokenizer("abc").save(tmp_path)
    with pytest.raises(UserError, match="character 'd' is not in the vocabulary"):
        bulk_encoder(tmp_path, {}, "<u1").encode(["abc", "bcd"], 2)


def test_training_twice_gives_the_same_vocabulary() -> None:
    """Whatever the batches."""
    texts = [f"{a}{b} and {b}{a}" for a in ("sea", "sun", "star") for b in ("light", "ward", "side")]
    first = train_bpe(iter([texts]), 320)
    assert first == train_bpe(iter([[text] for text in texts]), 320)
    assert first.vocab_size <= 320
    assert first.decode(first.encode("seaside é")) == "seaside é"
    assert (first.pad_id, first.eos_id, first.mask_id) == (0, 2, first.vocab_size - 1)
    assert first.bos_token == "<BOS>"


def test_bytes_need_their_room() -> None:
    with pytest.raises(UserError, match="`vocab_size=259` does not hold the 256 bytes"):
        train_bpe(iter([["a"]]), 259)
