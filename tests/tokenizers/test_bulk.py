"""Bulk encoding gives the ids of the tokenizers themselves, with an EOS behind each text."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llada.system.errors import UserError
from llada.tokenizers import bulk
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


@pytest.mark.parametrize("longest", [1, 3, 10])
def test_long_texts_are_cut_where_it_does_not_matter(
    tmp_path: Path, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of random words, numbers, signs and spaces, most of them next to each other."""
    monkeypatch.setattr(bulk, "LONGEST_PART", longest)
    rng = random.Random(0)
    pieces = [
        "a",
        "to",
        "be",
        "é",
        "世界",
        "7",
        "12",
        "²",
        "_",
        "'s",
        "'",
        ".",
        "!?",
        " ",
        "  ",
        "\n",
        "\t",
        "\xa0",
        "<EOS>",
    ]
    texts = ["".join(rng.choices([*pieces, " "], k=rng.randint(1, 60))) for _ in range(200)]
    tokenizer = train_bpe(iter([texts]), 500)
    tokenizer.save(tmp_path)
    encoder = bulk_encoder(tmp_path, ids_of(tokenizer), "<u2")
    ids, ends = encoder.encode(texts, 2)
    assert [part.tolist()[:-1] for part in np.split(ids, ends[:-1])] == [tokenizer.encode(text) for text in texts]
    assert [part for text in texts[:20] for part in bulk._parts_at_words(text)] != texts[:20]


def test_texts_of_a_tokenizer_that_looks_at_more_than_words_are_not_cut(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, normalizers, pre_tokenizers

    def cuts(change: Callable[[Tokenizer], object]) -> bool:
        model = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        change(model)
        return bulk._splits_at_words(model)

    train_bpe(iter([TEXTS]), 280).save(tmp_path)
    assert cuts(lambda model: None)
    assert not cuts(lambda model: setattr(model, "normalizer", normalizers.NFC()))
    assert not cuts(lambda model: setattr(model, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)))
    assert not cuts(lambda model: setattr(model, "pre_tokenizer", pre_tokenizers.Metaspace()))
    assert not cuts(lambda model: setattr(model, "pre_tokenizer", None))
    assert not cuts(lambda model: model.add_tokens(["to be"]))


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
