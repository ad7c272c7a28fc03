"""The character tokenizer: every id by hand, vocab.json to the key, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llada.system.errors import UserError
from llada.tokenizers.char import CharTokenizer
from tests.support.sentences import assert_one_sentence

# "hello" has the characters e, h, l, o.
HELLO_VOCABULARY = {
    "type": "character",
    "vocab_size": 8,
    "mask_row": 7,
    "special_tokens": {"<PAD>": 0, "<BOS>": 1, "<EOS>": 2, "<MASK>": 126336},
    "token_to_id": {"<PAD>": 0, "<BOS>": 1, "<EOS>": 2, "e": 3, "h": 4, "l": 5, "o": 6, "<MASK>": 126336},
}


def write_vocabulary(folder: Path, token_to_id: dict[str, Any]) -> None:
    content = {**HELLO_VOCABULARY, "token_to_id": token_to_id}
    (folder / "vocab.json").write_text(json.dumps(content), encoding="utf-8")


def test_characters_are_numbered_from_3_in_sorted_order() -> None:
    tokenizer = CharTokenizer("hello")
    assert tokenizer.characters == ["e", "h", "l", "o"]
    assert tokenizer.encode("hello") == [4, 3, 5, 5, 6]


def test_the_order_is_that_of_the_code_points() -> None:
    assert CharTokenizer("zéa\nA ").characters == ["\n", " ", "A", "a", "z", "é"]


def test_no_character_has_the_id_of_mask() -> None:
    characters = [chr(0x10000 + i) for i in range(126_334)]
    assert CharTokenizer(characters[:-1]).encode(characters[-2]) == [126_335]
    with pytest.raises(UserError, match="has 126,334 different characters, and there are ids for 126,333") as caught:
        CharTokenizer(characters)
    assert_one_sentence(caught.value)


def test_the_special_ids_are_those_of_the_vocabulary_file() -> None:
    tokenizer = CharTokenizer("hello")
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (0, 1, 2, 126336)


@pytest.mark.parametrize(("text", "n_characters"), [("a", 1), ("hello", 4), ("".join(map(chr, range(65, 130))), 65)])
def test_a_network_has_four_rows_more_than_characters_and_mask_is_the_last(text: str, n_characters: int) -> None:
    tokenizer = CharTokenizer(text)
    assert tokenizer.vocab_size == n_characters + 4
    assert tokenizer.mask_row == n_characters + 3
    assert set(tokenizer.forbidden_rows) == {0, 1, 2, n_characters + 3}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "To be,\r\n\tor not.\x00",
        "Grüße, naïve façade: 世界, Привет",
        "\U0001d11e \U0001f469\u200d\U0001f467 e\u0301 \ufeff",
        "<PAD><MASK>",
    ],
)
def test_decoding_undoes_encoding(text: str) -> None:
    tokenizer = CharTokenizer(text)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert all(3 <= id_ < tokenizer.mask_row for id_ in ids)
    assert tokenizer.decode(ids) == text


def test_decoding_drops_specials_and_shows_masks() -> None:
    ids = [1, 4, 3, 126336, 126336, 6, 2, 0, 0]
    assert CharTokenizer("hello").decode(ids) == "he__o"
    assert CharTokenizer("hello").decode(ids, mask_symbol="░") == "he░░o"
    assert CharTokenizer("hello").decode(ids, mask_symbol="") == "heo"


@pytest.mark.parametrize("ids", [torch.tensor([4, 3]), np.array([4, 3], dtype=np.uint8), iter([4, 3])])
def test_decoding_takes_tensors_arrays_and_iterators(ids: Any) -> None:
    assert CharTokenizer("hello").decode(ids) == "he"


@pytest.mark.parametrize("id_", [7, -1, 126335])
def test_decoding_refuses_an_id_that_stands_for_nothing(id_: int) -> None:
    """7 among them: the row of MASK in the network is not an id."""
    with pytest.raises(ValueError, match=f"^{id_} is not an id"):
        CharTokenizer("hello").decode([4, id_])


@pytest.mark.parametrize(("text", "named"), [("help", "'p'"), ("hello\n", r"'\n'"), ("hé世", "'é'")])
def test_a_character_outside_of_the_vocabulary_is_named(text: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        CharTokenizer("hello").encode(text)
    assert_one_sentence(caught.value)
    assert f"The character {named} is not in the vocabulary of 4 characters (e h l o)" in str(caught.value)


def test_a_refusal_shows_no_more_than_twenty_characters() -> None:
    with pytest.raises(UserError, match=r"of 27 characters \(a b c d e f g h i j k l m n o p q r s t \.\.\.\)"):
        CharTokenizer("\nabcdefghijklmnopqrstuvwxyz").encode("!")


def test_the_vocabulary_file_says_all_ids(tmp_path: Path) -> None:
    CharTokenizer("hello").save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.json"]
    content = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert content == HELLO_VOCABULARY
    assert list(content["token_to_id"]) == ["<PAD>", "<BOS>", "<EOS>", "e", "h", "l", "o", "<MASK>"]


def test_the_vocabulary_file_can_be_read_by_people(tmp_path: Path) -> None:
    CharTokenizer("世é").save(tmp_path)
    assert '    "é": 3,\n    "世": 4,\n' in (tmp_path / "vocab.json").read_bytes().decode("utf-8")


def test_loading_gives_what_was_saved(tmp_path: Path) -> None:
    text = 'Grüße,\n\t"世界" \\ \U0001d11e \x00\u2028'
    saved = CharTokenizer(text)
    saved.save(tmp_path)
    loaded = CharTokenizer.load(tmp_path)
    assert loaded.characters == sorted(set(text))
    assert loaded.encode(text) == saved.encode(text)
    assert loaded == saved


def test_tokenizers_are_equal_by_their_characters() -> None:
    assert CharTokenizer("abba") == CharTokenizer("ab")
    assert CharTokenizer("ab") != CharTokenizer("ac")
    assert CharTokenizer("ab") != ["a", "b"]


def test_a_missing_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocab\.json is missing") as caught:
        CharTokenizer.load(tmp_path)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"token_to_id": {"<PAD>": 0',
        b"\xff\xfe{}",
        b"null",
        b"3",
        b'["e", "h", "l", "o"]',
        b"{}",
        b'{"token_to_id": null}',
        b'{"token_to_id": 7}',
        b'{"token_to_id": ["<PAD>", "<BOS>", "<EOS>", "e"]}',
    ],
)
def test_a_vocabulary_of_another_form_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vocab.json").write_bytes(content)
    with pytest.raises(UserError, match=r"vocab\.json is not a character vocabulary") as caught:
        CharTokenizer.load(tmp_path)
    assert_one_sentence(caught.value)


SPECIALS = {"<PAD>": 0, "<BOS>": 1, "<EOS>": 2, "<MASK>": 126336}


@pytest.mark.parametrize(
    "token_to_id",
    [
        pytest.param({**SPECIALS, "e": 4, "h": 3}, id="permuted"),
        pytest.param({**SPECIALS, "e": 4, "h": 5}, id="shifted"),
        pytest.param({**SPECIALS, "e": 3, "h": 5}, id="with a gap"),
        pytest.param({**SPECIALS, "e": 3, "h": 3}, id="the same id twice"),
        pytest.param({**SPECIALS, "e": "3", "h": "4"}, id="ids as text"),
        pytest.param({**SPECIALS, "<MASK>": 5, "e": 3, "h": 4}, id="another MASK"),
        pytest.param({**SPECIALS, "<PAD>": 1, "<BOS>": 0, "e": 3, "h": 4}, id="PAD and BOS exchanged"),
        pytest.param({"<PAD>": 0, "<BOS>": 1, "<EOS>": 2, "e": 3, "h": 4}, id="no MASK"),
        pytest.param({"e": 3, "h": 4}, id="no specials"),
        pytest.param({**SPECIALS, "<UNK>": 3}, id="another special"),
        pytest.param({**SPECIALS, "th": 3}, id="two characters in a token"),
        pytest.param({**SPECIALS, "": 3, "e": 4}, id="no character in a token"),
    ],
)
def test_a_vocabulary_with_other_ids_or_tokens_is_refused(tmp_path: Path, token_to_id: dict[str, Any]) -> None:
    write_vocabulary(tmp_path, token_to_id)
    with pytest.raises(UserError, match=r"vocab\.json is not a character vocabulary") as caught:
        CharTokenizer.load(tmp_path)
    assert_one_sentence(caught.value)
