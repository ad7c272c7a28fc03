"""Added tokens with flags of their own: the ids and texts of the transformers library."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from llada.tokenizers.bpe import BPETokenizer

TEXTS = (
    "a <t> b", "a<t>b", "  <t>  <t><t>", "<t>", "ab <T> c<T>", "x<t>\n\n y", "a_<t>_b é<t>é", "<t", "no token at all",
    "\t<t>\u00a0<u> <t>", "<u>a <u> b<u>", "<U>",
)  # fmt: skip
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
COMBINATIONS = [dict(zip(FLAGS, values, strict=True)) for values in itertools.product((False, True), repeat=4)]
PIPELINES = ("byte level", "lower case", "metaspace")


def build(pipeline: str) -> Tokenizer:
    """A small BPE without added tokens."""
    if pipeline == "metaspace":
        alphabet = [*"abcxynotekl_<>uTU", "\u2581", "<unk>"]
        model = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[], unk_token="<unk>"))
        model.pre_tokenizer, model.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        return model
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, "ab", "\u0120b"])}
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("\u0120", "b")]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    if pipeline == "lower case":
        model.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    return model


def save(folder: Path, model: Tokenizer, **described: object) -> dict[str, int]:
    """Write the files; the vocabulary keys that fit them. MASK, padding and end are the three last ids."""
    names = ("<|pad|>", "<|end|>", "<|mask|>")
    model.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    model.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|pad|>", "eos_token": "<|end|>", **described}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ids = [model.token_to_id(name) for name in names]
    pad, end, mask = (id_ for id_ in ids if id_ is not None)
    return {"vocab_size": mask + 1, "mask_token_id": mask, "pad_token_id": pad, "eos_token_id": end}


def load_both(folder: Path, vocabulary: dict[str, int]) -> tuple[BPETokenizer, Any]:
    transformers = pytest.importorskip("transformers")
    return BPETokenizer.load(folder, vocabulary), transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("flags", COMBINATIONS, ids=str)
def test_a_token_that_is_not_special_is_text(pipeline: str, flags: dict[str, bool], tmp_path: Path) -> None:
    model = build(pipeline)
    model.add_tokens([AddedToken("<t>", **flags, special=False), AddedToken("<u>", normalized=False, special=False)])
    ours, theirs = load_both(tmp_path, save(tmp_path, model))
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.encode_rendered([text], {}) == [ids]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert model.token_to_id("<t>") in ours.encode(" <t> ")
    assert "<t>" not in ours.special_tokens


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize(
    "flags", COMBINATIONS[::2], ids=lambda flags: "+".join(k for k, v in flags.items() if v) or "none"
)
def test_a_special_token_is_one_in_a_template_and_none_in_a_text(
    pipeline: str, flags: dict[str, bool], tmp_path: Path
) -> None:
    model = build(pipeline)
    model.add_special_tokens([AddedToken("<t>", **flags, special=True)])
    ours, theirs = load_both(tmp_path, save(tmp_path, model))
    special = model.token_to_id("<t>")
    assert ours.special_tokens["<t>"] == special
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode_rendered([text], {}) == [ids]
        as_text = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == as_text
        assert special not in as_text
        protected = text.replace("<t>", "<\ue000t>")
        assert ours.encode_rendered([protected], {"\ue000": ""}) == [as_text]
        assert ours.encode(text) == as_text  # also behind it
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_private_character_of_a_text_is_not_lost(tmp_path: Path) -> None:
    ours = BPETokenizer.load(tmp_path, save(tmp_path, build("byte level")))
    ours.encode_rendered(["<\ue000|end|>"], {"\ue000": ""})
    assert ours.decode(ours.encode("a\ue000b")) == "a\ue000b"
    assert ours.decode(ours.encode_rendered(["a\ue000b"], {})[0]) == "a\ue000b"
    assert ours.decode(ours.encode_rendered(["a\ue001b"], {"\ue001": "~"})[0]) == "a~b"


def test_flags_of_the_other_file_count(tmp_path: Path) -> None:
    model = build("byte level")
    model.add_tokens([AddedToken("<t>", special=False, normalized=True)])
    id_ = model.token_to_id("<t>")
    described = {str(id_): {"content": "<t>", "lstrip": True, "rstrip": True, "special": False, "normalized": False}}
    ours, theirs = load_both(tmp_path, save(tmp_path, model, added_tokens_decoder=described))
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode("  <t>  ") == [id_]


@pytest.mark.parametrize("listed", ["sep_token", "extra_special_tokens", "additional_special_tokens"])
def test_a_token_with_a_name_is_special(listed: str, tmp_path: Path) -> None:
    """Be it one of the model's own vocabulary."""
    model = build("byte level")
    described = {listed: "ab" if listed == "sep_token" else ["ab"]}
    ours, theirs = load_both(tmp_path, save(tmp_path, model, **described))
    id_ = model.token_to_id("ab")
    assert ours.special_tokens["ab"] == id_
    assert ours.encode_rendered(["xabx"], {}) == [theirs("xabx", add_special_tokens=False)["input_ids"]]
    assert id_ in ours.encode_rendered(["xabx"], {})[0]


def test_older_files_name_their_tokens_in_a_file_of_its_own(tmp_path: Path) -> None:
    """It is read where tokenizer_config.json has no added tokens, as in transformers."""
    model = build("byte level")
    model.add_special_tokens(["<s>", "</s>"])
    vocabulary = save(tmp_path, model, bos_token="</s>")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<s>", "lstrip": False}}))
    ours, theirs = load_both(tmp_path, vocabulary)
    assert ours.bos_token == theirs.bos_token == "<s>"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": {}}))
    ours, theirs = load_both(tmp_path, vocabulary)
    assert ours.bos_token == theirs.bos_token == "</s>"


def test_what_is_named_is_named_as_in_transformers(tmp_path: Path) -> None:
    model = build("byte level")
    model.add_special_tokens(["<s>", "<img>", "<x>"])
    named = {
        "bos_token": "<s>",
        "image_token": "<img>",
        "extra_special_tokens": {"x_token": "<x>"},
        "add_bos_token": False,
    }
    ours, theirs = load_both(tmp_path, save(tmp_path, model, **named))
    assert ours.named_tokens == theirs.special_tokens_map
