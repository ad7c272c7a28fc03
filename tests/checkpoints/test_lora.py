"""Adapters: nothing at the start, W x + alpha/r B A x afterwards, and peft's own files.

Shape letters: B batch, L length, V vocabulary rows.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from llada.checkpoints.fingerprint import base_fingerprint
from llada.checkpoints.lora import (
    LoraOptions,
    adapter_weights,
    add_adapter,
    is_adapted,
    load_adapter,
    merge_adapter,
    quantise,
    save_adapter,
    target_pattern,
)
from llada.checkpoints.lora_files import base_of_adapter
from llada.costs.parameters import lora_parameters
from llada.models import NetworkConfig, checkpoint_activations
from llada.models.dropout import rows_of
from llada.models.embedding import DeterministicEmbedding
from llada.system.errors import UserError
from tests.support.configurations import WIDE_ENCODER, WIDE_ILLADA, WIDE_LLADA, WIDE_MOE
from tests.support.small_adapters import ALL, OPTIONS, ROWS, adapted, build, draw, logits, peft, stored

pytestmark = pytest.mark.usefixtures("one_thread")

SCALE = 3.0  # 12 / 4


@ALL
def test_new_adapter_changes_nothing(config: NetworkConfig) -> None:
    network = build(config)
    before = logits(network)
    add_adapter(network, OPTIONS, seed=0)
    assert torch.equal(logits(network), before)
    assert is_adapted(network)
    assert all(weight.requires_grad for weight in adapter_weights(network).values())
    assert not torch.equal(logits(adapted(config)), before)


@ALL
def test_exactly_the_adapter_is_trained(config: NetworkConfig) -> None:
    network = build(config, dtype=torch.bfloat16)
    add_adapter(network, OPTIONS, seed=0)
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    assert sum(weight.numel() for weight in trained) == lora_parameters(config, rank=4)
    assert {weight.dtype for weight in trained} == {torch.float32}
    assert {weight.dtype for weight in network.parameters() if not weight.requires_grad} == {torch.bfloat16}
    assert {id(weight) for weight in trained} == {id(weight) for weight in adapter_weights(network).values()}


def test_dropout_of_an_adapter_is_drawn_by_row() -> None:
    network = build(WIDE_LLADA)
    add_adapter(network, replace(OPTIONS, lora_dropout=0.5), seed=0)
    draw(adapter_weights(network).values())
    keys, dropping = torch.arange(len(ROWS)), rows_of(network.train())
    assert dropping is not None

    def features(rows: slice) -> torch.Tensor:
        with dropping.known_by(keys[rows], keys[rows].tolist()):
            return network.features(ROWS[rows])

    with torch.no_grad():
        whole = features(slice(None))
        for row in range(len(ROWS)):
            assert torch.allclose(features(slice(row, row + 1)), whole[row : row + 1], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(whole, network.eval().features(ROWS), rtol=1e-4, atol=1e-4)


def test_seed_fixes_the_adapter_and_leaves_other_draws_alone() -> None:
    first, second, other = (build(WIDE_LLADA) for _ in range(3))
    state = torch.get_rng_state()
    for network, seed in ((first, 7), (second, 7), (other, 8)):
        add_adapter(network, OPTIONS, seed)
    assert torch.equal(torch.get_rng_state(), state)
    name = "base_model.model.model.transformer.blocks.1.ff_out.lora_A.weight"
    a = adapter_weights(first)[name]
    assert torch.equal(a, adapter_weights(second)[name])
    assert not torch.equal(a, adapter_weights(other)[name])
    assert a.abs().max() <= 128**-0.5  # uniform up to 1 / sqrt(inputs)
    assert a.std().item() == pytest.approx((128 * 3) ** -0.5, rel=0.1)


@pytest.mark.parametrize(
    ("config", "targets", "names"),
    [
        (WIDE_LLADA, "all", "q_proj k_proj v_proj attn_out ff_proj up_proj ff_out"),
        (WIDE_LLADA, "attention", "q_proj k_proj v_proj attn_out"),
        (WIDE_ILLADA, "all", "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj "
                        "mlp.gate_proj mlp.up_proj mlp.down_proj"),
        (WIDE_ILLADA, "attention", "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"),
        (WIDE_MOE, "all", "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"),
        (WIDE_ENCODER, "all", "qkv attention_out up down"),
        (WIDE_ENCODER, "attention", "qkv attention_out"),
    ],
)  # fmt: skip
def test_names_in_the_file_are_the_official_ones(config: NetworkConfig, targets: Any, names: str) -> None:
    prefix = {WIDE_LLADA: "model.transformer.blocks", WIDE_ENCODER: "layers"}.get(config, "model.layers")
    expected = [
        f"base_model.model.{prefix}.{layer}.{name}.lora_{matrix}.weight"
        for layer in range(2)
        for name in names.split()
        for matrix in "AB"
    ]
    network = build(config)
    add_adapter(network, LoraOptions(lora_targets=targets), seed=0)
    assert sorted(adapter_weights(network)) == sorted(expected)


def test_patterns_are_the_published_ones() -> None:
    assert (
        target_pattern(build(WIDE_LLADA)) == r".*\.blocks\.\d+\.(q_proj|k_proj|v_proj|attn_out|ff_proj|up_proj|ff_out)$"
    )
    attention = r"(self_attn\.q_proj|self_attn\.k_proj|self_attn\.v_proj|self_attn\.o_proj)$"
    assert target_pattern(build(WIDE_MOE)) == r".*\.layers\.\d+\." + attention


def test_head_is_never_touched() -> None:
    network = adapted(WIDE_LLADA)
    assert type(network.get_submodule("model.transformer.ff_out")) is nn.Linear
    assert type(network.get_submodule("model.transformer.wte")) is DeterministicEmbedding


def test_adapted_map_by_hand() -> None:
    network = adapted(WIDE_LLADA)
    before = build(WIDE_LLADA).state_dict()["model.transformer.blocks.0.up_proj.weight"]
    name = "base_model.model.model.transformer.blocks.0.up_proj"
    a, b = (adapter_weights(network)[f"{name}.lora_{matrix}.weight"] for matrix in "AB")
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    expected = x @ before.T + SCALE * (x @ a.T) @ b.T
    torch.testing.assert_close(network.get_submodule("model.transformer.blocks.0.up_proj")(x), expected)


@ALL
def test_merged_equals_adapted(config: NetworkConfig) -> None:
    network = adapted(config)
    expected, base = logits(network), build(config)
    merge_adapter(network)
    torch.testing.assert_close(logits(network), expected, atol=4e-6, rtol=0)  # of some 2
    assert not is_adapted(network)
    assert list(network.state_dict()) == list(base.state_dict())
    assert [type(module) for module in network.modules()] == [type(module) for module in base.modules()]
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert set(vars(network)) == set(vars(base))
    assert base_fingerprint(network) != base_fingerprint(base)
    add_adapter(network, OPTIONS, seed=0)  # as on any other network


def test_merging_rounds_once() -> None:
    network = build(WIDE_LLADA, dtype=torch.bfloat16)
    name = "model.transformer.blocks.0.q_proj"
    before = network.state_dict()[f"{name}.weight"].float()
    add_adapter(network, OPTIONS, seed=0)
    a, b = (adapter_weights(network)[f"base_model.model.{name}.lora_{matrix}.weight"] for matrix in "AB")
    b.data.fill_(0.1)
    expected = before.double() + SCALE * (b.double() @ a.double())
    merge_adapter(network)
    merged = network.state_dict()[f"{name}.weight"]
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged.double(), expected, rtol=2**-8, atol=1e-8)  # half a unit in the last place


@ALL
def test_stored_adapter_comes_back_exactly(config: NetworkConfig, tmp_path: Path) -> None:
    network, fresh = adapted(config), build(config)
    save_adapter(tmp_path, network, "GSAI-ML/LLaDA-8B-Base")
    load_adapter(fresh, tmp_path)
    assert torch.equal(logits(fresh), logits(network))
    assert not any(parameter.requires_grad for parameter in fresh.parameters())
    assert base_of_adapter(tmp_path) == "GSAI-ML/LLaDA-8B-Base"
    again = build(config)
    load_adapter(again, tmp_path, trainable=True)
    trained = {id(parameter) for parameter in again.parameters() if parameter.requires_grad}
    assert trained == {id(weight) for weight in adapter_weights(again).values()}
    for name, weight in adapter_weights(network).items():
        assert torch.equal(adapter_weights(again)[name], weight)


def test_stored_files_are_those_of_peft(tmp_path: Path) -> None:
    stored(tmp_path / "a")
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "base_sha256": base_fingerprint(build(WIDE_LLADA))}
    content = json.loads((tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8"))
    wanted = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, "base_model_name_or_path": "the/base", "bias": "none"}
    assert content | wanted == content
    assert content["target_modules"] == target_pattern(build(WIDE_LLADA))
    beside = tmp_path / "beside"
    beside.touch()
    assert (tmp_path / "a" / "adapter_model.safetensors").stat().st_mode == beside.stat().st_mode


@ALL
def test_peft_opens_our_adapters(config: NetworkConfig, tmp_path: Path) -> None:
    network = adapted(config)
    save_adapter(tmp_path, network, "base")
    opened = peft.PeftModel.from_pretrained(build(config), str(tmp_path))
    assert torch.equal(logits(opened), logits(network))


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj", "v_proj", "up_proj"]},
        {"target_modules": ["q_proj", "ff_out"]},  # the head too, by peft's matching of endings
        {"target_modules": ["q_proj", "up_proj"], "use_rslora": True, "rank_pattern": {"q_proj": 2}},
        {"target_modules": ["q_proj", "up_proj"], "alpha_pattern": {"up_proj": 3}, "layers_to_transform": [1]},
    ],
    ids=["some", "head", "pattern", "one layer"],
)
def test_we_open_adapters_of_peft(lora: dict[str, Any], tmp_path: Path) -> None:
    model = peft.get_peft_model(build(WIDE_LLADA), peft.LoraConfig(r=4, lora_alpha=12, **lora))
    draw(weight for weight in model.parameters() if weight.requires_grad)
    model.save_pretrained(str(tmp_path))
    fresh = build(WIDE_LLADA)
    load_adapter(fresh, tmp_path)
    assert torch.equal(logits(fresh), logits(model))
    merge_adapter(fresh)
    torch.testing.assert_close(logits(fresh), logits(model), atol=4e-6, rtol=0)


def test_names_of_a_compiled_network_are_those_of_the_plain_one(tmp_path: Path) -> None:
    path = stored(tmp_path / "a") / "adapter_model.safetensors"
    weights = {
        name.replace("base_model.model.", "base_model.model._orig_mod."): w for name, w in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
    network = build(WIDE_LLADA)
    load_adapter(network, tmp_path / "a")
    assert torch.equal(logits(network), logits(adapted(WIDE_LLADA)))


def test_an_adapter_with_the_fingerprint_of_before_opens_with_its_base_alone(tmp_path: Path) -> None:
    """Of the first 64 values of each tensor, as it was written until now."""
    folder = stored(tmp_path / "a")
    digest = hashlib.sha256()
    for name, tensor in sorted(build(WIDE_LLADA).state_dict().items()):
        values = tensor.flatten()[:64].to(torch.bfloat16).view(torch.int16).numpy().tobytes()
        digest.update(f"{name} {list(tensor.shape)} ".encode() + values)
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "base_fingerprint": digest.hexdigest()})
    network = build(WIDE_LLADA)
    load_adapter(network, folder)
    assert torch.equal(logits(network), logits(adapted(WIDE_LLADA)))
    with pytest.raises(UserError, match="trained with other weights"):
        load_adapter(build(WIDE_LLADA, seed=1), folder)


def test_the_bytes_of_an_adapter_are_the_same_every_time(tmp_path: Path) -> None:
    """The library writes metadata of several keys in another order in every process, and often in every call."""
    network = build(WIDE_LLADA)
    quantise(network)  # which has three of them
    add_adapter(network, OPTIONS, seed=0)
    files = []
    for i in range(6):
        (tmp_path / f"{i}").mkdir()
        save_adapter(tmp_path / f"{i}", network, "the/base")
        files.append((tmp_path / f"{i}" / "adapter_model.safetensors").read_bytes())
    assert len(set(files)) == 1
    length = int.from_bytes(files[0][:8], "little")
    assert list(json.loads(files[0][8 : 8 + length])["__metadata__"]) == ["base_sha256", "base_stored_as", "format"]
    fresh = build(WIDE_LLADA)
    quantise(fresh)
    load_adapter(fresh, tmp_path / "0")
    for name, weight in adapter_weights(network).items():
        assert torch.equal(adapter_weights(fresh)[name], weight)


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for recomputes in (False, True):
        network = adapted(WIDE_LLADA)
        if recomputes:
            checkpoint_activations(network)
        network(ROWS).square().sum().backward()
        gradients.append([weight.grad for weight in adapter_weights(network).values()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_fingerprint_is_of_the_base() -> None:
    network = build(WIDE_LLADA)
    before = base_fingerprint(network)
    assert base_fingerprint(build(WIDE_LLADA, dtype=torch.bfloat16)) == before  # in whatever precision it was opened
    assert base_fingerprint(build(WIDE_LLADA, seed=1)) != before
    changed = build(WIDE_LLADA)
    changed.get_parameter("model.transformer.blocks.1.ff_norm.weight").data[3] = 2
    assert base_fingerprint(changed) != before
    for place in ((0, 0), (5, 63), (9, 63)):  # the last is far behind the first 64 values
        changed = build(WIDE_LLADA)
        changed.get_parameter("model.transformer.wte.weight").data[place] += 1
        assert base_fingerprint(changed) != before
    add_adapter(network, OPTIONS, seed=0)
    assert base_fingerprint(network) == before
    in_four_bits = build(WIDE_LLADA)
    quantise(in_four_bits)
    assert base_fingerprint(in_four_bits) == before
