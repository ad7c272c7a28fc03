"""Checkpoints: bit for bit there and back, in the public layout, and which folder is read."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llada.checkpoints import folder as checkpoint_module
from llada.checkpoints.folder import find_checkpoint, make_predictor, read_checkpoint, save_weights
from llada.models import NetworkConfig
from llada.models.block_cache import BlockCachedPredictor, CacheOptions
from llada.sampling.guidance import Suppressed
from llada.system.errors import UserError
from tests.support.checkpoints import BOTH, X_T, assert_refused, edit_json, save_new, save_small
from tests.support.configurations import TINY_ENCODER, TINY_LLADA, TINY_TIED, TOKENIZER
from tests.support.sentences import assert_one_sentence
from tests.support.texts import characters_of

# Where transformers finds LLaDA's class, in the repository that has it; the official file says the same of its own.
PUBLISHED_CLASSES = {
    "AutoConfig": "GSAI-ML/LLaDA-8B-Instruct--configuration_llada.LLaDAConfig",
    "AutoModel": "GSAI-ML/LLaDA-8B-Instruct--modeling_llada.LLaDAModelLM",
    "AutoModelForCausalLM": "GSAI-ML/LLaDA-8B-Instruct--modeling_llada.LLaDAModelLM",
}
# config.json of LLaDA-8B-Instruct, without auto_map and transformers_version, which name code and the writing program.
OFFICIAL = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_dropout": 0.0,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "use_cache": False,
    "vocab_size": 126464,
    "weight_tying": False,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_small(tmp_path / "checkpoint")


@pytest.fixture
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


# There and back


@BOTH
def test_a_loaded_model_computes_the_same(tmp_path: Path, config: NetworkConfig) -> None:
    model = make_predictor(config, TOKENIZER).eval()
    save_weights(tmp_path, config, TOKENIZER, model.network.state_dict())
    checkpoint = read_checkpoint(tmp_path)
    with torch.inference_mode():
        expected, logits = model(X_T), checkpoint.model(X_T)
    assert logits.shape == (2, 5, 10)
    # To the bit but for the order of sums, which may depend on where in memory a matrix begins.
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)
    assert expected.std() > 0.01


@BOTH
def test_a_loaded_model_has_the_same_weights_in_the_same_type(tmp_path: Path, config: NetworkConfig) -> None:
    weights = save_new(tmp_path, config)
    loaded = read_checkpoint(tmp_path).model.network.state_dict()
    assert set(loaded) == set(weights)
    assert all(loaded[name].equal(tensor) for name, tensor in weights.items())
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}


@BOTH
def test_a_loaded_model_does_not_drop_out(tmp_path: Path, config: NetworkConfig) -> None:
    save_new(tmp_path, config)
    model = read_checkpoint(tmp_path).model
    assert not any(module.training for module in model.modules())
    with torch.inference_mode():
        assert model(X_T).equal(model(X_T))


@BOTH
def test_configuration_and_vocabulary_come_back(tmp_path: Path, config: NetworkConfig) -> None:
    save_new(tmp_path, config)
    checkpoint = read_checkpoint(str(tmp_path))
    assert vars(checkpoint.config) | {"n_kv_heads": None} == vars(config) | {"n_kv_heads": None}
    assert getattr(checkpoint.config, "kv_heads", None) == getattr(config, "kv_heads", None)
    assert characters_of(checkpoint.tokenizer) == ["a", "b", "c", "d", "e", "f"]
    assert checkpoint.folder == tmp_path
    assert (checkpoint.model.mask_id, checkpoint.model.mask_row) == (126336, 9)


def test_a_checkpoint_is_three_files(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "vocab.json"]


@pytest.mark.usefixtures("_usual_umask")
def test_others_may_read_a_checkpoint(tmp_path: Path) -> None:
    save_new(tmp_path, TINY_LLADA)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "config.json": 0o644,
        "model.safetensors": 0o644,
        "vocab.json": 0o644,
    }


def test_a_text_may_be_as_long_as_those_of_the_training(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    checkpoint.check_length(16)
    with pytest.raises(UserError, match="17 tokens are more than the 16") as caught:
        checkpoint.check_length(17)
    assert_one_sentence(caught.value)


# The public layout


def test_a_checkpoint_is_sampled_with_a_block_cache_if_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    checkpoint, asked = read_checkpoint(folder), torch.ones(X_T.shape, dtype=torch.bool)
    plain = checkpoint.predict(X_T)
    cached = checkpoint.predict_with(CacheOptions("dual", 1), block_length=4)
    assert isinstance(cached, Suppressed)
    assert isinstance(cached.predict_at, BlockCachedPredictor)
    assert torch.equal(cached(X_T), plain)
    assistant = checkpoint.assistant(caching=CacheOptions("prefix", 1), block_length=4)
    assert isinstance(assistant.predict, BlockCachedPredictor)
    assert torch.equal(assistant.predict(X_T, positions=asked), checkpoint.model(X_T, positions=asked))
    with pytest.raises(UserError, match="set `block_length=32`") as refusal:
        checkpoint.predict_with(CacheOptions("dual"), block_length=None)
    assert_one_sentence(refusal.value)
    save_new(tmp_path / "encoder", TINY_ENCODER)
    with pytest.raises(UserError, match=r"LLaDA family.*leave out `cache`") as refusal:
        read_checkpoint(tmp_path / "encoder").predict_with(CacheOptions("dual"), block_length=4)
    assert_one_sentence(refusal.value)


def test_the_tensors_have_the_official_names_and_shapes(tmp_path: Path) -> None:
    save_new(tmp_path, TINY_LLADA)
    shapes: dict[str, tuple[int, ...]] = {
        "model.transformer.wte.weight": (10, 8),
        "model.transformer.ln_f.weight": (8,),
        "model.transformer.ff_out.weight": (10, 8),
    }
    for i in range(2):
        shapes |= {
            f"model.transformer.blocks.{i}.attn_norm.weight": (8,),
            f"model.transformer.blocks.{i}.q_proj.weight": (8, 8),
            f"model.transformer.blocks.{i}.k_proj.weight": (8, 8),
            f"model.transformer.blocks.{i}.v_proj.weight": (8, 8),
            f"model.transformer.blocks.{i}.attn_out.weight": (8, 8),
            f"model.transformer.blocks.{i}.ff_norm.weight": (8,),
            f"model.transformer.blocks.{i}.ff_proj.weight": (12, 8),
            f"model.transformer.blocks.{i}.up_proj.weight": (12, 8),
            f"model.transformer.blocks.{i}.ff_out.weight": (8, 12),
        }
    stored = load_file(tmp_path / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == shapes


def test_tied_weights_are_stored_once_and_shared_heads_narrow(tmp_path: Path) -> None:
    save_new(tmp_path, TINY_TIED)
    stored = load_file(tmp_path / "model.safetensors")
    assert "model.transformer.ff_out.weight" not in stored
    assert stored["model.transformer.blocks.0.k_proj.weight"].shape == (4, 8)  # one head of 4 channels


def test_the_configuration_has_the_official_keys_and_values(folder: Path) -> None:
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert stored == OFFICIAL | {
        "d_model": 8,
        "n_heads": 2,
        "n_kv_heads": 2,
        "n_layers": 2,
        "mlp_hidden_size": 12,
        "vocab_size": 10,
        "embedding_size": 10,
        "max_sequence_length": 16,
        "mask_token_id": 9,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "rope_theta": 10000.0,
        "auto_map": PUBLISHED_CLASSES,
    }


def test_further_keys_of_a_public_checkpoint_do_no_harm(folder: Path) -> None:
    edit_json(folder / "config.json", lambda content: content.update(auto_map={}, transformers_version="4.46.3"))
    assert read_checkpoint(folder).config.n_layers == 2


# Which folder


def test_a_checkpoint_is_found_in_its_folder(folder: Path) -> None:
    assert find_checkpoint(folder) == folder


def test_the_best_checkpoint_of_a_run_comes_before_the_last(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in ("step-00000001", "step-00000002"):
        save_new(run / "checkpoints" / step, TINY_LLADA)
    (run / "config.json").write_text("{}", encoding="utf-8")  # the configuration of the run, not of a network
    (run / "checkpoints" / "last").symlink_to("step-00000002")
    assert find_checkpoint(run) == run / "checkpoints" / "last"
    (run / "checkpoints" / "best").symlink_to("step-00000001")
    assert find_checkpoint(run) == run / "checkpoints" / "best"
    assert read_checkpoint(run).folder == run / "checkpoints" / "step-00000001"
    assert find_checkpoint(run / "checkpoints" / "last") == run / "checkpoints" / "last"


def test_a_run_that_goes_on_does_not_mix_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link moves on after the configuration was read."""
    first, second = (tmp_path / "checkpoints" / name for name in ("step-00000001", "step-00000002"))
    weights = save_new(first, TINY_LLADA)
    save_new(second, TINY_LLADA)
    best = tmp_path / "checkpoints" / "best"
    best.symlink_to(first.name)
    read_tokenizer = checkpoint_module.read_tokenizer

    def move_on(folder: Path) -> Any:
        best.unlink()
        best.symlink_to(second.name)
        return read_tokenizer(folder)

    monkeypatch.setattr(checkpoint_module, "read_tokenizer", move_on)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.folder == first
    loaded = checkpoint.model.network.state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in weights.items())


def test_a_link_to_nothing_is_passed_over(tmp_path: Path) -> None:
    save_new(tmp_path / "checkpoints" / "last", TINY_LLADA)
    (tmp_path / "checkpoints" / "best").symlink_to("gone")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "last"


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "nowhere is not there")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, "holds no checkpoint")
    (tmp_path / "file").write_text("text", encoding="utf-8")
    assert_refused(tmp_path / "file", "holds no checkpoint")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.json"])
def test_a_checkpoint_without_one_of_its_files_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert_refused(folder, str(folder))
