"""Broken weights, configurations and vocabularies of checkpoints: one sentence for each way to be broken."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from llada.checkpoints import safetensors as weights_module
from llada.checkpoints.folder import read_checkpoint
from llada.checkpoints.safetensors import StoredWeights
from llada.models import NetworkConfig
from llada.system.errors import UserError
from llada.tokenizers.char import CharTokenizer
from tests.support.checkpoints import assert_refused, edit_json, save_new, save_small, write_by_hand
from tests.support.configurations import TINY_ENCODER, TINY_LLADA, TINY_MOE
from tests.support.sentences import assert_one_sentence


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_small(tmp_path / "checkpoint")


# Broken weights


@pytest.mark.parametrize("n_bytes", [0, 1, 7, 8, 9, 100, 0.5, -1000, -4, -1])
def test_cut_weights_are_refused(folder: Path, n_bytes: float) -> None:
    """A number of bytes from the start, to the end, or a fraction of all."""
    whole = (folder / "model.safetensors").read_bytes()
    n_kept = int(n_bytes * len(whole)) if n_bytes == 0.5 else int(n_bytes)
    (folder / "model.safetensors").write_bytes(whole[:n_kept])
    assert_refused(folder, "model.safetensors cannot be read")


@pytest.mark.parametrize("content", [b"\xff" * 1000, b"\x00" * 1000, b'{"format": "pt"}' * 10])
def test_what_is_no_safetensors_file_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert_refused(folder, "model.safetensors cannot be read")


@pytest.mark.parametrize("name", ["model.transformer.wte.weight", "model.transformer.blocks.1.ff_norm.weight"])
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors")
    assert_refused(folder, "do not fit its config.json", name)


@pytest.mark.parametrize("name", ["model.transformer.blocks.2.q_proj.weight", "lora"])
def test_an_extra_tensor_is_named(folder: Path, name: str) -> None:
    save_file(load_file(folder / "model.safetensors") | {name: torch.zeros(8, 8)}, folder / "model.safetensors")
    assert_refused(folder, "do not fit its config.json", name)


@pytest.mark.parametrize("shape", [(8, 12), (96,), (12, 8, 1), (1, 8), (12, 9)])
def test_a_tensor_of_another_shape_is_named(folder: Path, shape: tuple[int, ...]) -> None:
    """As many numbers among them, and one that could be broadcast."""
    name = "model.transformer.blocks.0.up_proj.weight"  # (12, 8)
    save_file(load_file(folder / "model.safetensors") | {name: torch.zeros(shape)}, folder / "model.safetensors")
    assert_refused(folder, "do not fit its config.json", name)


def test_weights_of_the_other_network_are_refused(folder: Path, tmp_path: Path) -> None:
    save_new(tmp_path / "other", TINY_ENCODER)
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    assert_refused(folder, "do not fit its config.json")


@pytest.mark.parametrize("how", ["another file", "other content"])
def test_a_file_that_changes_while_it_is_read_is_refused(folder: Path, how: str) -> None:
    """Of the same names and shapes, so that nothing else would show it."""
    stored, path = StoredWeights.of(folder), folder / "model.safetensors"
    if how == "another file":
        times = path.stat()
        save_new(folder, TINY_LLADA)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    else:
        os.utime(path, ns=(0, 0))
    name = "model.transformer.ln_f.weight"
    for read in (
        lambda: stored.tensor(name, torch.device("cpu"), None),
        lambda: stored.tensor(name, torch.device("cpu"), torch.float64),
        lambda: stored.copy_into(name, torch.empty(8)),
        lambda: stored.are_equal(name, name),
    ):
        with pytest.raises(UserError, match="was changed while it was read") as caught:
            read()
        assert_one_sentence(caught.value)


@pytest.mark.parametrize("offsets", [[0, 16], [4, 12], [-8, 0], [0, 4]])
def test_a_tensor_outside_of_its_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offsets: list[int]
) -> None:
    """By our own check as well as by the library's."""
    header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}
    write_by_hand(tmp_path / "model.safetensors", header, bytes(8))
    for opening in (safetensors.safe_open, lambda *args, **kwargs: contextlib.nullcontext()):
        monkeypatch.setattr(weights_module, "safe_open", opening)
        with pytest.raises(UserError, match=r"model\.safetensors cannot be read") as caught:
            StoredWeights.of(tmp_path)
        assert_one_sentence(caught.value)


# Broken configuration or vocabulary

LLADA_KEYS = [
    "embedding_size",
    *("d_model", "n_heads", "n_kv_heads", "n_layers", "mlp_hidden_size", "max_sequence_length", "vocab_size"),
    *("mask_token_id", "pad_token_id", "eos_token_id", "rope_theta", "rms_norm_eps", "weight_tying"),
]
ENCODER_KEYS = ["d_model", "n_heads", "n_layers", "max_sequence_length", "vocab_size", "mask_token_id", "dropout"]


@pytest.mark.parametrize(
    ("config", "key"), [*((TINY_LLADA, key) for key in LLADA_KEYS), *((TINY_ENCODER, key) for key in ENCODER_KEYS)]
)
def test_a_missing_key_is_named_and_never_guessed(tmp_path: Path, config: NetworkConfig, key: str) -> None:
    save_new(tmp_path, config)
    edit_json(tmp_path / "config.json", lambda content: content.pop(key))
    assert_refused(tmp_path, "config.json cannot be used", f"lacks {key}")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"a":' * 100_000, "[" * 100_000])
def test_a_configuration_of_another_form_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content, encoding="utf-8")
    assert_refused(folder, "config.json")


@pytest.mark.parametrize("architectures", [["LlamaForCausalLM"], [], None, "LLaDAModelLM", 5])
def test_another_architecture_is_refused(folder: Path, architectures: Any) -> None:
    edit_json(folder / "config.json", lambda content: content.update(architectures=architectures))
    assert_refused(folder, "config.json cannot be used")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("rope", False), ("block_type", "sequential"), ("include_bias", True), ("embedding_size", 16)),
        ("multi_query_attention", True),
    ],
)
def test_another_member_of_the_family_is_refused(folder: Path, key: str, value: Any) -> None:
    edit_json(folder / "config.json", lambda content: content.update({key: value}))
    assert_refused(folder, "config.json cannot be used", key)


@pytest.mark.parametrize(("key", "value"), [("multi_query_attention", False), ("embedding_size", None)])
def test_other_words_for_the_published_network_are_read(folder: Path, key: str, value: Any) -> None:
    edit_json(folder / "config.json", lambda content: content.update({key: value}))
    assert vars(read_checkpoint(folder).config) == {**vars(TINY_LLADA), "n_kv_heads": 2}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0, 0, 0.0, True, 10**400])
@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps"])
def test_numbers_that_make_no_sense_are_refused_by_name(folder: Path, key: str, number: float) -> None:
    edit_json(folder / "config.json", lambda content: content.update({key: number}))
    assert_refused(folder, "config.json cannot be used", key)


@pytest.mark.parametrize("key", ["n_layers", "n_heads", "mlp_hidden_size", "pad_token_id", "n_kv_heads"])
def test_true_is_no_number(folder: Path, key: str) -> None:
    edit_json(folder / "config.json", lambda content: content.update({key: True}))
    assert_refused(folder, "config.json cannot be used", f"{key} = True")


@pytest.mark.parametrize("key", ["pad_token_id", "eos_token_id"])
def test_mask_is_neither_padding_nor_end(folder: Path, key: str) -> None:
    edit_json(folder / "config.json", lambda content: content.update({key: 9}))
    assert_refused(folder, "config.json cannot be used", "mask_token_id 9")


@pytest.mark.parametrize("number", [2**40, 10**8, 10**19, 10**400])
@pytest.mark.parametrize(
    ("config", "key"),
    [
        *((TINY_LLADA, key) for key in ("d_model", "vocab_size", "n_layers", "mlp_hidden_size")),
        *((TINY_MOE, key) for key in ("hidden_size", "num_experts", "num_hidden_layers", "expert_intermediate_size")),
        *((TINY_ENCODER, key) for key in ("d_model", "vocab_size", "n_layers", "max_sequence_length")),
    ],
)
def test_sizes_of_a_damaged_configuration_are_refused_at_once(
    tmp_path: Path, config: NetworkConfig, key: str, number: int
) -> None:
    save_new(tmp_path, config)
    follows = {"embedding_size": number} if key == "vocab_size" else {}
    if key == "hidden_size":
        follows = {"head_dim": number // 2}
    edit_json(tmp_path / "config.json", lambda content: content.update({key: number, **follows}))
    assert_refused(tmp_path, "config.json" if key != "vocab_size" else "does not fit together")


@pytest.mark.parametrize(
    ("key", "value"),
    [("n_heads", 3), ("n_heads", 0), ("n_kv_heads", 3), ("d_model", "8"), ("n_layers", "2"), ("mlp_hidden_size", None)],
)
def test_a_value_that_makes_no_network_is_refused(folder: Path, key: str, value: Any) -> None:
    edit_json(folder / "config.json", lambda content: content.update({key: value}))
    assert_refused(folder, "config.json")


@pytest.mark.parametrize("characters", ["abcde", "abcdefg"])
def test_a_vocabulary_of_another_size_is_refused(folder: Path, characters: str) -> None:
    CharTokenizer(characters).save(folder)
    assert_refused(folder, "does not fit together", "config.json has 10 rows", f"vocab.json {len(characters) + 4}")


def test_another_row_for_mask_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", lambda content: content.update(mask_token_id=4))
    assert_refused(folder, "does not fit together")


def test_a_broken_vocabulary_is_refused(folder: Path) -> None:
    edit_json(folder / "vocab.json", lambda content: content["token_to_id"].update(a=5))
    assert_refused(folder, "vocab.json")
