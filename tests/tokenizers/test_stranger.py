"""Templates and tokenizers that ask for all time or memory, or make the library panic: refused in one sentence."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llada.system.errors import UserError
from llada.system.regular_files import read_bounded
from llada.tokenizers.bpe import BPETokenizer, find_token
from llada.tokenizers.char import CharTokenizer
from llada.tokenizers.chat_template import TemplateFormat, chat_format
from llada.tokenizers.message import Message
from tests.support.sentences import assert_one_sentence

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PLAIN: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": BYTE_LEVEL, "post_processor": None, "decoder": BYTE_LEVEL,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3}, "merges": [["a", "b"]]},
}  # fmt: skip
IDS = {"vocab_size": 4, "mask_token_id": 2, "pad_token_id": 0, "eos_token_id": 1}


def make(**changes: object) -> BPETokenizer:
    return BPETokenizer({"tokenizer.json": json.dumps({**PLAIN, **changes}).encode()}, IDS)


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    tokenizer = make()
    assert tokenizer.encode("aabab") == [0, 3, 3]
    return tokenizer


LOOPS = "".join(f"{{% for a{i} in range(99999) %}}" for i in range(4)) + "{% endfor %}" * 4
TEMPLATES = {
    "loops": LOOPS,
    "output": "{% for a in range(99999) %}{% for b in range(1000) %}xxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "repetition": "{{ messages[0].content * (3 * 10**9) }}",
    "repeated list": "{{ ([messages] * 10**9)|length }}",
    "width": "{{ '%2000000000d' % messages|length }}",
    "formatted": "{{ '{:>3000000000}'.format(messages[0].content) }}",
    "centred": "{{ messages[0].content|center(3000000000) }}",
    "justified": "{{ messages[0].content.ljust(3000000000) }}",
    "indented": "{{ messages|tojson(indent=2000000000) }}",
    "lipsum": "{{ lipsum(10**7) }}",
    "power": "{{ (messages|length + 9) ** (10**9) }}",
    "doubling": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "nested list": "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
    "at compile time": "{{ 'a' * (3 * 10**9) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "many for": "".join(f"{{% for a{i} in [1] %}}" for i in range(30)) + "{% endfor %}" * 30,
    "parentheses": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "many if": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "long": "x" * 1_000_001,
    "surrogate": "{{ '\ud800' }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_templates_cost_bounded_time_and_memory(template: str, tokenizer: BPETokenizer) -> None:
    with pytest.raises(UserError, match=r"^The chat template of the checkpoint ") as caught:
        TemplateFormat(tokenizer, template, tokenizer.special_tokens)
    assert_one_sentence(caught.value)
    assert len(str(caught.value)) < 600


def test_a_template_that_goes_wrong_at_one_dialogue_takes_the_next(tokenizer: BPETokenizer) -> None:
    template = "{% if messages and messages[0].content == 'x' %}" + LOOPS + "{% endif %}b"
    form = TemplateFormat(tokenizer, template, tokenizer.special_tokens)
    with pytest.raises(UserError, match=r"takes more than .* s of computing"):
        form.prompt([Message("user", "x")])
    assert form.prompt([Message("user", "a")]) == [1]


def replace(pattern: dict[str, str], content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


VOCABULARY = {"a": 0, "b": 1, "c": 2, "ab": 3}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "growing": {"normalizer": {"type": "Sequence", "normalizers": [replace({"String": "a"}, "a" * 10)] * 9}},
    "grown at once": {"normalizer": replace({"Regex": "."}, "x" * 5_000_000)},
    "endless expression": {"pre_tokenizer": split("(a+)+$")},
    "no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "not precompiled": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}},
    "words": {"model": {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "[UNK]"}},
    "pieces": {
        "model": {"type": "WordPiece", "vocab": VOCABULARY, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100}
    },
    "no vocabulary": {"model": {"type": "BPE", "vocab": {}, "merges": []}},
    "high id": {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 4_000_000_000}, "merges": []}},
    "tokens of another kind": {"added_tokens": {"a": 1}},
    "tokens without a name": {"added_tokens": [{"id": 5}]},
}  # fmt: skip


@pytest.mark.parametrize("changes", TOKENIZERS.values(), ids=TOKENIZERS.keys())
def test_tokenizers_cost_bounded_time_and_memory(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({**PLAIN, **changes}))
    with pytest.raises(UserError, match=r"^The tokenizer in .* cannot be used") as caught:
        BPETokenizer.load(tmp_path, IDS)
    assert_one_sentence(caught.value)


def test_what_shows_at_some_texts_only_is_refused_there() -> None:
    decoders = [replace({"String": "a"}, "a" * 1000)] * 4
    tokenizer = make(decoder={"type": "Sequence", "decoders": decoders})
    with pytest.raises(UserError, match="The tokenizer of the checkpoint cannot be used on this text") as caught:
        tokenizer.decode([3] * 50)
    assert_one_sentence(caught.value)
    assert tokenizer.encode("ab") == [3]
    with pytest.raises(UserError, match="cannot be used on this text"):
        tokenizer.encode("\ud800")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes among the files here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "vocab.json")
    with pytest.raises(UserError, match=r"vocab\.json is not a regular file"):
        CharTokenizer.load(tmp_path)
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        BPETokenizer.load(tmp_path, IDS)
    assert find_token(tmp_path, "a") is None


def test_a_file_larger_than_any_tokenizer_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"{}")
    os.truncate(path, 10**12)  # sparse
    with pytest.raises(UserError, match=r"has more than 64,000,000 bytes"):
        BPETokenizer.load(tmp_path, IDS)
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(UserError, match="more than 4 bytes"):
        read_bounded(path, 4)


def test_a_vocabulary_of_half_a_character_is_refused(tmp_path: Path) -> None:
    CharTokenizer("ab").save(tmp_path)
    text = (tmp_path / "vocab.json").read_text()
    (tmp_path / "vocab.json").write_text(text.replace('"b"', '"\\ud800"'))
    with pytest.raises(UserError, match="is not a character vocabulary"):
        CharTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "described",
    [{"chat_template": [{"name": [], "template": "x"}, {"name": "default"}]}, {"chat_template": [1]},
     {"chat_template": {"default": 3}}, {"chat_template": 5}],
)  # fmt: skip
def test_a_list_of_templates_without_a_usable_one_is_none(described: dict[str, Any]) -> None:
    files = {"tokenizer.json": json.dumps(PLAIN).encode(), "tokenizer_config.json": json.dumps(described).encode()}
    assert BPETokenizer(files, IDS).template is None


def test_a_template_that_is_not_utf8_is_told() -> None:
    files = {"tokenizer.json": json.dumps(PLAIN).encode(), "chat_template.jinja": b"ab\xff"}
    with pytest.raises(UserError, match=r"chat_template\.jinja is not UTF-8 text \(byte 2\): convert it"):
        chat_format(BPETokenizer(files, IDS))
