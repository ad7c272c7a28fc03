"""Checkpoints: bit for bit there and back, in the public layout, and one sentence for each way to be broken."""

import contextlib
import errno
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llada import checkpoint as checkpoint_module
from llada import weights as weights_module
from llada.checkpoint import find_checkpoint, load_checkpoint, load_weights, make_predictor, save_weights
from llada.errors import UserError
from llada.models import EncoderConfig, ILLaDAConfig, LLaDAConfig, LLaDAMoEConfig, NetworkConfig
from llada.text.tokenizer import CharTokenizer
from llada.weights import StoredWeights, save_tensors

# Six characters: the ids 3..8, the row 9 for MASK, ten rows in all.
TOKENIZER = CharTokenizer("abcdef")
X_T = torch.tensor([[1, 3, 126336, 8, 2], [126336, 126336, 4, 0, 0]])  # (B, L) = (2, 5)

LLADA = LLaDAConfig(
    d_model=8,
    n_heads=2,
    n_layers=2,
    vocab_size=10,
    mask_token_id=9,
    pad_token_id=0,
    eos_token_id=2,
    mlp_hidden_size=12,
    max_sequence_length=16,
)
SMALL_KV = LLaDAConfig(**{**vars(LLADA), "n_kv_heads": 1, "weight_tying": True, "rope_theta": 5e5})
ENCODER = EncoderConfig(
    vocab_size=10, mask_token_id=9, max_sequence_length=16, d_model=8, n_heads=2, n_layers=1, dropout=0.5
)

ILLADA = ILLaDAConfig(**vars(SMALL_KV))
MOE = LLaDAMoEConfig(**vars(LLADA), n_experts=3, n_experts_per_token=2)

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
BOTH = pytest.mark.parametrize(
    "config",
    [
        pytest.param(LLADA, id="llada"),
        pytest.param(SMALL_KV, id="tied"),
        pytest.param(ILLADA, id="illada"),
        pytest.param(MOE, id="moe"),
        pytest.param(ENCODER, id="encoder"),
    ],
)


def assert_one_sentence(error: UserError) -> None:
    assert str(error).endswith(".")
    assert "\n" not in str(error)


def save_new(folder: Path, config: NetworkConfig) -> dict[str, Tensor]:
    """Write a checkpoint with random weights, biases and norms included, and return them."""
    weights = make_predictor(config, TOKENIZER).network.state_dict()
    weights = {name: torch.randn(tensor.shape) for name, tensor in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder, config, TOKENIZER, weights)
    return weights


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def assert_refused(path: Path, *named: str) -> None:
    """The checkpoint is refused in one sentence that names these."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert_one_sentence(caught.value)
    for name in named:
        assert name in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small `llada` checkpoint."""
    save_new(tmp_path / "checkpoint", LLADA)
    return tmp_path / "checkpoint"


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
    checkpoint = load_checkpoint(tmp_path)
    with torch.inference_mode():
        expected, logits = model(X_T), checkpoint.model(X_T)
    assert logits.shape == (2, 5, 10)
    # To the bit but for the order of sums, which may depend on where in memory a matrix begins.
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)
    assert expected.std() > 0.01


@BOTH
def test_a_loaded_model_has_the_same_weights_in_the_same_type(tmp_path: Path, config: NetworkConfig) -> None:
    weights = save_new(tmp_path, config)
    loaded = load_checkpoint(tmp_path).model.network.state_dict()
    assert set(loaded) == set(weights)
    assert all(loaded[name].equal(tensor) for name, tensor in weights.items())
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}


@BOTH
def test_a_loaded_model_does_not_drop_out(tmp_path: Path, config: NetworkConfig) -> None:
    save_new(tmp_path, config)
    model = load_checkpoint(tmp_path).model
    assert not any(module.training for module in model.modules())
    with torch.inference_mode():
        assert model(X_T).equal(model(X_T))


@BOTH
def test_configuration_and_vocabulary_come_back(tmp_path: Path, config: NetworkConfig) -> None:
    save_new(tmp_path, config)
    checkpoint = load_checkpoint(str(tmp_path))
    assert vars(checkpoint.config) | {"n_kv_heads": None} == vars(config) | {"n_kv_heads": None}
    assert getattr(checkpoint.config, "kv_heads", None) == getattr(config, "kv_heads", None)
    assert checkpoint.tokenizer.characters == ["a", "b", "c", "d", "e", "f"]
    assert checkpoint.folder == tmp_path
    assert (checkpoint.model.mask_id, checkpoint.model.mask_row) == (126336, 9)


def test_a_checkpoint_is_three_files(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "vocab.json"]


@pytest.mark.usefixtures("_usual_umask")
def test_others_may_read_a_checkpoint(tmp_path: Path) -> None:
    save_new(tmp_path, LLADA)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "config.json": 0o644,
        "model.safetensors": 0o644,
        "vocab.json": 0o644,
    }


def test_a_text_may_be_as_long_as_those_of_the_training(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    checkpoint.check_length(16)
    with pytest.raises(UserError, match="17 tokens are more than the 16") as caught:
        checkpoint.check_length(17)
    assert_one_sentence(caught.value)


# The public layout


def test_the_tensors_have_the_official_names_and_shapes(tmp_path: Path) -> None:
    save_new(tmp_path, LLADA)
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
    save_new(tmp_path, SMALL_KV)
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
    }


def test_further_keys_of_a_public_checkpoint_do_no_harm(folder: Path) -> None:
    edit_json(folder / "config.json", lambda content: content.update(auto_map={}, transformers_version="4.46.3"))
    assert load_checkpoint(folder).config.n_layers == 2


# Which folder


def test_a_checkpoint_is_found_in_its_folder(folder: Path) -> None:
    assert find_checkpoint(folder) == folder


def test_the_best_checkpoint_of_a_run_comes_before_the_last(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in ("step-00000001", "step-00000002"):
        save_new(run / "checkpoints" / step, LLADA)
    (run / "config.json").write_text("{}", encoding="utf-8")  # the configuration of the run, not of a network
    (run / "checkpoints" / "last").symlink_to("step-00000002")
    assert find_checkpoint(run) == run / "checkpoints" / "last"
    (run / "checkpoints" / "best").symlink_to("step-00000001")
    assert find_checkpoint(run) == run / "checkpoints" / "best"
    assert load_checkpoint(run).folder == run / "checkpoints" / "step-00000001"
    assert find_checkpoint(run / "checkpoints" / "last") == run / "checkpoints" / "last"


def test_a_run_that_goes_on_does_not_mix_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link moves on after the configuration was read."""
    first, second = (tmp_path / "checkpoints" / name for name in ("step-00000001", "step-00000002"))
    weights = save_new(first, LLADA)
    save_new(second, LLADA)
    best = tmp_path / "checkpoints" / "best"
    best.symlink_to(first.name)
    read_tokenizer = checkpoint_module.read_tokenizer

    def move_on(folder: Path) -> Any:
        best.unlink()
        best.symlink_to(second.name)
        return read_tokenizer(folder)

    monkeypatch.setattr(checkpoint_module, "read_tokenizer", move_on)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.folder == first
    loaded = checkpoint.model.network.state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in weights.items())


def test_a_link_to_nothing_is_passed_over(tmp_path: Path) -> None:
    save_new(tmp_path / "checkpoints" / "last", LLADA)
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
    save_new(tmp_path / "other", ENCODER)
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    assert_refused(folder, "do not fit its config.json")


@pytest.mark.parametrize("how", ["another file", "other content"])
def test_a_file_that_changes_while_it_is_read_is_refused(folder: Path, how: str) -> None:
    """Of the same names and shapes, so that nothing else would show it."""
    stored, path = StoredWeights.of(folder), folder / "model.safetensors"
    if how == "another file":
        times = path.stat()
        save_new(folder, LLADA)
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


def write_by_hand(path: Path, header: dict[str, Any], data: bytes, padding: int = 0) -> None:
    text = json.dumps(header).encode() + b" " * padding
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("offsets", [[0, 16], [4, 12], [-8, 0], [0, 4]])
def test_a_tensor_outside_of_its_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offsets: list[int]
) -> None:
    """By our own check as well as by the library's."""
    header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}
    write_by_hand(tmp_path / "model.safetensors", header, bytes(8))
    for opening in (weights_module.safe_open, lambda *args, **kwargs: contextlib.nullcontext()):
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
    ("config", "key"), [*((LLADA, key) for key in LLADA_KEYS), *((ENCODER, key) for key in ENCODER_KEYS)]
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
    assert vars(load_checkpoint(folder).config) == {**vars(LLADA), "n_kv_heads": 2}


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
        *((LLADA, key) for key in ("d_model", "vocab_size", "n_layers", "mlp_hidden_size")),
        *((MOE, key) for key in ("hidden_size", "num_experts", "num_hidden_layers", "expert_intermediate_size")),
        *((ENCODER, key) for key in ("d_model", "vocab_size", "n_layers", "max_sequence_length")),
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


# Weights as they are stored


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mappings_of(path: Path) -> list[range]:
    """Addresses of this process that are this file."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    places = [line[0].split("-") for line in lines if line[5:] == [str(path)]]
    return [range(int(start, 16), int(end, 16)) for start, end in places]


tells_mappings = pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="the kernel does not tell what is mapped"
)


@tells_mappings
def test_weights_in_the_wanted_type_are_the_mapped_file_and_writing_leaves_it_alone(folder: Path) -> None:
    before = snapshot(folder)
    for dtype in (torch.float32, None):
        network = load_checkpoint(folder, dtype=dtype).model.network
        mapped = mappings_of(folder / "model.safetensors")
        for tensor in network.state_dict().values():
            assert any(tensor.data_ptr() in addresses for addresses in mapped)
        for parameter in network.parameters():
            assert parameter.requires_grad
            parameter.data.add_(1)
    assert snapshot(folder) == before


@tells_mappings
def test_a_tensor_has_its_own_bytes_mapped_until_it_is_forgotten(tmp_path: Path) -> None:
    """Not the whole file for each, and no file stays open."""
    path = tmp_path / "model.safetensors"
    save_tensors(tmp_path, {f"{i}": torch.randn(50_000) for i in range(8)}, shard_bytes=10**9)
    stored, n_open = StoredWeights.of(tmp_path), len(os.listdir("/proc/self/fd"))
    tensors = {name: stored.tensor(name, torch.device("cpu"), None) for name in stored.entries}
    assert sum(map(len, mappings_of(path))) <= path.stat().st_size + len(tensors) * 2 * mmap.PAGESIZE
    assert len(os.listdir("/proc/self/fd")) == n_open
    assert all(tensor.equal(load_file(path)[name]) for name, tensor in tensors.items())
    part = tensors["3"][1000:]
    expected = part.clone()
    tensors.clear()
    assert sum(map(len, mappings_of(path))) <= part.untyped_storage().nbytes() + 2 * mmap.PAGESIZE
    assert part.equal(expected)
    del part
    assert mappings_of(path) == []


def test_a_system_that_maps_nothing_more_is_told_in_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the C library returns when it fails, and the reason that it leaves behind."""
    monkeypatch.setattr(weights_module._LIBC, "mmap", lambda *args: weights_module._MAP_FAILED)
    monkeypatch.setattr(weights_module.ctypes, "get_errno", lambda: errno.ENOMEM)
    assert_refused(folder, "model.safetensors cannot be read", "Cannot allocate memory", "`ulimit -v`")


@pytest.mark.parametrize("padding", range(4))
@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "F32"), (torch.bfloat16, "BF16")])
def test_numbers_may_begin_anywhere_in_a_file(tmp_path: Path, dtype: torch.dtype, name: str, padding: int) -> None:
    numbers = torch.arange(6, dtype=dtype).view(2, 3)
    data = bytes(numbers.view(torch.uint8).flatten().tolist())
    header = {"x": {"dtype": name, "shape": [2, 3], "data_offsets": [0, len(data)]}}
    write_by_hand(tmp_path / "model.safetensors", header, data, padding)
    read = StoredWeights.of(tmp_path).tensor("x", torch.device("cpu"), None)
    assert read.equal(numbers)
    assert read.data_ptr() % dtype.itemsize == 0


def test_a_tensor_without_numbers_is_read(tmp_path: Path) -> None:
    save_tensors(tmp_path, {"empty": torch.zeros(0, 4), "full": torch.ones(2)}, shard_bytes=1000)
    stored = StoredWeights.of(tmp_path)
    for dtype in (None, torch.bfloat16):
        assert stored.tensor("empty", torch.device("cpu"), dtype).shape == (0, 4)
    assert stored.are_equal("empty", "empty")
    assert not stored.are_equal("empty", "full")


@BOTH
def test_stored_types_that_differ_become_that_of_the_embedding(tmp_path: Path, config: NetworkConfig) -> None:
    weights = save_new(tmp_path, config)
    mixed = {name: tensor.bfloat16() if tensor.dim() == 2 else tensor for name, tensor in weights.items()}
    save_weights(tmp_path, config, TOKENIZER, mixed)
    model = load_checkpoint(tmp_path, dtype=None).model
    assert {tensor.dtype for tensor in model.network.state_dict().values()} == {torch.bfloat16}
    with torch.inference_mode():
        assert model(X_T).isfinite().all()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, None])
def test_each_type_is_read_into_each(folder: Path, stored: torch.dtype, wanted: torch.dtype | None) -> None:
    weights = {name: tensor.to(stored) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    loaded = load_checkpoint(folder, dtype=wanted).model.network.state_dict()
    assert all(tensor.equal(weights[name].to(wanted or stored)) for name, tensor in loaded.items())
    assert {tensor.dtype for tensor in loaded.values()} == {wanted or stored}


def test_a_tensor_of_many_pieces_is_read_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "PIECE_BYTES", 70)  # two rows of most tensors, and a part of the norms
    expected = load_file(folder / "model.safetensors")
    loaded = load_checkpoint(folder, dtype=torch.float64).model.network.state_dict()
    assert all(tensor.equal(expected[name].double()) for name, tensor in loaded.items())


def test_loading_into_a_model_fills_its_own_tensors(folder: Path) -> None:
    model = make_predictor(LLADA, TOKENIZER)
    places = {name: tensor.data_ptr() for name, tensor in model.network.state_dict().items()}
    load_weights(model, folder)
    expected = load_file(folder / "model.safetensors")
    for name, tensor in model.network.state_dict().items():
        assert tensor.data_ptr() == places[name]
        assert tensor.equal(expected[name])


def test_a_mapped_model_can_be_saved_over_its_own_file(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    expected = {name: tensor.clone() for name, tensor in checkpoint.model.network.state_dict().items()}
    save_weights(folder, checkpoint.config, checkpoint.tokenizer, checkpoint.model.network.state_dict())
    assert all(tensor.equal(expected[name]) for name, tensor in load_file(folder / "model.safetensors").items())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "vocab.json"]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.int64, "I64"), (torch.bool, "BOOL"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.uint8, "U8")],
)
def test_other_types_are_refused_by_name(folder: Path, dtype: torch.dtype, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.transformer.ln_f.weight"] = torch.ones(8).to(dtype)
    save_file(weights, folder / "model.safetensors")
    assert_refused(folder, "model.transformer.ln_f.weight", f"stored as {name}", "fp32, bf16 and fp16")


def test_what_is_missing_and_what_is_left_over_are_both_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.transformer.wte.weight"], weights["model.transformer.ln_f.weight"]
    save_file(weights | {"extra": torch.ones(2)}, folder / "model.safetensors")
    assert_refused(folder, "model.transformer.ln_f.weight and 1 more are missing", "extra is no part of it")


# Tied heads


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path: Path) -> None:
    weights = save_new(tmp_path, SMALL_KV)
    table = weights["model.transformer.wte.weight"]
    save_file({**weights, "model.transformer.ff_out.weight": table.clone()}, tmp_path / "model.safetensors")
    assert "model.transformer.ff_out.weight" not in load_checkpoint(tmp_path).model.network.state_dict()
    save_file({**weights, "model.transformer.ff_out.weight": table + 0.1}, tmp_path / "model.safetensors")
    assert_refused(tmp_path, "ff_out.weight is not model.transformer.wte.weight", "tied")
    save_file({**weights, "model.transformer.ff_out.weight": table.bfloat16()}, tmp_path / "model.safetensors")
    assert_refused(tmp_path, "tied")


def test_a_tied_head_without_a_shape_is_refused(tmp_path: Path) -> None:
    one = torch.tensor(1.0)
    weights = save_new(tmp_path, SMALL_KV)
    scalars = {"model.transformer.wte.weight": one, "model.transformer.ff_out.weight": one.clone()}
    save_file({**weights, **scalars}, tmp_path / "model.safetensors")
    assert_refused(tmp_path, "wte.weight has shape [] instead of [10, 8]")


def test_tensors_are_compared_bit_for_bit_and_those_of_two_types_by_value(tmp_path: Path) -> None:
    table = torch.randn(3, 4).bfloat16()
    table[1, 1] = torch.nan
    tensors = {"x": table, "same": table.clone(), "wide": table.float()}
    tensors["other"] = table.float() + torch.eye(3, 4) * 1e-6
    save_tensors(tmp_path, tensors, shard_bytes=10**6)
    stored = StoredWeights.of(tmp_path)
    assert stored.are_equal("x", "same")
    assert stored.are_equal("x", "wide")
    assert stored.are_equal("wide", "x")
    assert not stored.are_equal("wide", "other")
    assert not stored.are_equal("x", "other")


def test_a_tied_illada_is_stored_with_its_head(tmp_path: Path) -> None:
    weights = save_new(tmp_path, ILLADA)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() - weights.keys() == {"lm_head.weight"}
    assert stored["lm_head.weight"].equal(weights["model.embed_tokens.weight"])
    assert load_checkpoint(tmp_path).model.network.state_dict().keys() == weights.keys()


def test_tensors_that_share_memory_are_stored_each(tmp_path: Path) -> None:
    weights = make_predictor(LLADA, TOKENIZER).network.state_dict()
    weights["model.transformer.ff_out.weight"] = weights["model.transformer.wte.weight"]
    save_weights(tmp_path, LLADA, TOKENIZER, weights)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["model.transformer.ff_out.weight"].equal(stored["model.transformer.wte.weight"])


# Several files


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    weights = {name: torch.randn(t.shape) for name, t in make_predictor(LLADA, TOKENIZER).network.state_dict().items()}
    save_weights(tmp_path, LLADA, TOKENIZER, weights, shard_bytes=1500)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    return tmp_path


@pytest.mark.parametrize(("before", "after"), [(1500, 10**6), (10**6, 1500), (1000, 1500)])
def test_weights_take_the_place_of_those_in_other_files(tmp_path: Path, before: int, after: int) -> None:
    """Several to one, one to several, and several to fewer."""
    (tmp_path / "adapter_model.safetensors").touch()
    shapes = {name: tensor.shape for name, tensor in make_predictor(LLADA, TOKENIZER).network.state_dict().items()}
    n_files = []
    for shard_bytes in (before, after):
        weights = {name: torch.randn(shape) for name, shape in shapes.items()}
        save_weights(tmp_path, LLADA, TOKENIZER, weights, shard_bytes)
        n_files.append(len(list(tmp_path.glob("model*.safetensors"))))
    assert n_files[0] != n_files[1]
    names = {path.name for path in tmp_path.glob("model*")}
    if after == 10**6:
        assert names == {"model.safetensors"}
    else:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert names == {"model.safetensors.index.json", *index["weight_map"].values()}
    loaded = load_checkpoint(tmp_path).model.network.state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in weights.items())
    assert (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../model.safetensors", "config.json", "model\n.safetensors", "\x1b.safetensors", 5]
)
def test_an_index_names_weight_files_of_its_own_folder(shards: Path, name: Any) -> None:
    index = shards / "model.safetensors.index.json"
    edit_json(index, lambda content: content["weight_map"].update({"model.transformer.ln_f.weight": name}))
    assert_refused(shards, "names no files of its folder")


def test_an_index_that_disagrees_with_its_files_is_refused(shards: Path) -> None:
    index = shards / "model.safetensors.index.json"
    whole, name = index.read_text(), "model.transformer.ln_f.weight"
    last = sorted(shards.glob("model-*.safetensors"))[-1].name
    first = sorted(shards.glob("model-*.safetensors"))[0].name
    at = json.loads(whole)["weight_map"][name]
    for edit, words in (
        (lambda content: content["weight_map"].update({name: first if at == last else last}), f"is in {at}"),
        (lambda content: content["weight_map"].pop(name), "should be in no file"),
        (lambda content: content["weight_map"].update(phantom=last), "phantom should be in"),
        (lambda content: content["weight_map"].update({name: "model-00009-of-00009.safetensors"}), "cannot be read"),
    ):
        edit_json(index, edit)
        assert_refused(shards, words)
        index.write_text(whole)
    assert load_checkpoint(shards).config.n_layers == 2


def test_a_tensor_in_two_files_is_refused(shards: Path) -> None:
    first, second = sorted(shards.glob("model-*.safetensors"))[:2]
    save_file(load_file(first) | load_file(second), second)
    assert_refused(shards, "is both in", first.name, second.name)


def test_shards_without_their_index_are_refused(shards: Path) -> None:
    (shards / "model.safetensors.index.json").unlink()
    assert_refused(shards, "no index")


# What is no safetensors checkpoint at all, and code that comes along


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.pth"])
def test_weights_that_could_run_code_are_never_opened(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    before = snapshot(folder)
    assert_refused(folder, f"no weights in safetensors ({name}", "convert it")
    assert_refused(folder / name, "convert it")
    assert snapshot(folder) == before


def test_weights_without_a_configuration_and_files_for_folders_are_told_apart(folder: Path) -> None:
    assert_refused(folder / "model.safetensors", "is one file of a checkpoint", "name its folder")
    (folder / "config.json").unlink()
    assert_refused(folder, "has weights but no config.json")


def test_code_of_a_folder_is_not_run(folder: Path) -> None:
    for name in ("modeling_llada.py", "configuration_llada.py", "setup.py", "__init__.py"):
        (folder / name).write_text("raise SystemExit('run')", encoding="utf-8")
    auto_map = {"AutoModel": "modeling_llada.LLaDAModelLM", "AutoConfig": "configuration_llada.LLaDAConfig"}
    edit_json(folder / "config.json", lambda content: content.update(auto_map=auto_map))
    before = snapshot(folder)
    load_checkpoint(folder)
    assert snapshot(folder) == before


def test_a_tensor_may_be_a_number(tmp_path: Path) -> None:
    """The shares of the local network are."""
    save_tensors(tmp_path, {"share": torch.tensor(0.75)}, shard_bytes=1000)
    stored = StoredWeights.of(tmp_path)
    assert float(stored.tensor("share", torch.device("cpu"), torch.bfloat16)) == 0.75
    assert stored.are_equal("share", "share")
