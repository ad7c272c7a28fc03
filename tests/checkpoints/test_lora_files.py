"""Adapters that are refused: one sentence for each, and the network is as it was."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llada.checkpoints.lora import LoraOptions, add_adapter, is_adapted, load_adapter, quantise
from llada.checkpoints.lora_files import base_of_adapter
from llada.system.errors import UserError
from tests.support.configurations import WIDE_ENCODER, WIDE_LLADA
from tests.support.small_adapters import OPTIONS, adapted, build, logits, stored

pytestmark = pytest.mark.usefixtures("one_thread")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


def rename_to_bin(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


Q = "base_model.model.model.transformer.blocks.0.q_proj"


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), ["adapter_config.json", "holds no adapter"]),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), ["adapter_config.json", "JSON"]),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), ["adapter_model.safetensors", "missing"]),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 9), ["cannot be read"]),
        (rename_to_bin, ["adapter_model.bin", "unpickled", "safetensors"]),
        (lambda folder: edit_config(folder, peft_type="IA3"), ["IA3", "LORA"]),
        (lambda folder: edit_config(folder, peft_type=None), ["None", "LORA"]),
        (lambda folder: edit_config(folder, use_dora=True), ["plain LoRA", "use_dora"]),
        (lambda folder: edit_config(folder, modules_to_save=["wte"]), ["plain LoRA", "modules_to_save"]),
        (lambda folder: edit_config(folder, init_lora_weights="pissa"), ["plain LoRA", "init_lora_weights", "pissa"]),
        (lambda folder: edit_config(folder, init_lora_weights="olora"), ["plain LoRA", "olora"]),
        (lambda folder: edit_config(folder, trainable_token_indices=[1]), ["plain LoRA", "trainable_token_indices"]),
        (lambda folder: edit_config(folder, bias="all"), ["plain LoRA", "bias"]),
        (lambda folder: edit_config(folder, r=8), [f"{Q.replace('q_proj', 'attn_out')}.lora_A.weight", "[4, 64]"]),
        (lambda folder: edit_config(folder, r=0), ["cannot be used (r = 0)"]),
        (lambda folder: edit_config(folder, r="many"), ["cannot be used"]),
        (lambda folder: edit_config(folder, r=99_999_999_999), ["cannot be used"]),
        (lambda folder: edit_config(folder, rank_pattern=5), ["cannot be used"]),
        (lambda folder: edit_config(folder, target_modules="("), ["cannot be used"]),
        (lambda folder: edit_config(folder, lora_alpha=float("nan")), ["cannot be used (lora_alpha = nan)"]),
        (lambda folder: edit_config(folder, lora_alpha=10**400), ["cannot be used (lora_alpha = 1000"]),
        (lambda folder: edit_config(folder, alpha_pattern={"q_proj": float("inf")}), ["lora_alpha = inf in a pattern"]),
        (
            lambda folder: edit_config(folder, target_modules=[f"q{i}" for i in range(20_000)]),
            ["cannot be used", "20,000"],
        ),
        (
            lambda folder: edit_weights(folder, lambda w: w[f"{Q}.lora_A.weight"].fill_(torch.nan)),
            ["numbers that are not finite"],
        ),
        (lambda folder: edit_config(folder, target_modules=["wte"]), ["wte", "not a linear layer"]),
        (lambda folder: edit_config(folder, target_modules=["attn_norm"]), ["cannot be used"]),
        (lambda folder: edit_config(folder, target_modules=["query"]), ["cannot be used", "query"]),
        (lambda folder: edit_config(folder, target_modules=["q_proj"]), ["and 23 more are not part of it"]),
        (lambda folder: edit_weights(folder, lambda w: w.pop(f"{Q}.lora_A.weight")), [f"{Q}.lora_A.weight is missing"]),
        (
            lambda folder: edit_weights(folder, lambda w: w.update(extra=torch.zeros(1))),
            ["extra is not part of it"],
        ),
        (
            lambda folder: edit_weights(folder, lambda w: w.update({f"{Q}.lora_B.weight": torch.zeros(3, 4)})),
            [f"{Q}.lora_B.weight has shape [3, 4] instead of [64, 4]"],
        ),
    ],
)
def test_bad_adapters_are_refused(spoil: Callable[[Path], object], named: list[str], tmp_path: Path) -> None:
    folder = stored(tmp_path / "adapter")
    spoil(folder)
    network = build(WIDE_LLADA)
    before, names, attributes = logits(network), list(network.state_dict()), set(vars(network))
    with pytest.raises(UserError) as caught:
        load_adapter(network, folder)
    message = str(caught.value)
    assert all(name in message for name in [*named, str(folder)]), message
    assert message.endswith(".")
    assert "\n" not in message
    assert list(network.state_dict()) == names
    assert torch.equal(logits(network), before)
    assert set(vars(network)) == attributes
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    folder = stored(tmp_path / "adapter")
    with pytest.raises(
        UserError, match=r"trained with other weights than these: use its own base, the/base, or say by `base`"
    ):
        load_adapter(build(WIDE_LLADA, seed=1), folder)
    edit_weights(folder, lambda weights: None)  # as peft would store it
    load_adapter(build(WIDE_LLADA, seed=1), folder)
    with pytest.raises(UserError, match="does not fit this network"):
        load_adapter(build(replace(WIDE_LLADA, n_layers=3)), folder)
    with pytest.raises(UserError, match="cannot be used"):
        load_adapter(build(WIDE_ENCODER), folder)


def test_adapter_that_names_no_base(tmp_path: Path) -> None:
    folder = stored(tmp_path / "adapter")
    edit_config(folder, base_model_name_or_path=None)
    with pytest.raises(UserError, match="does not say which checkpoint"):
        base_of_adapter(folder)


@pytest.mark.parametrize("wrong", [{"lora_rank": 0}, {"lora_alpha": 0}, {"lora_dropout": 1.0}, {"lora_dropout": -0.1}])
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(wrong))}` must be"):
        LoraOptions(**wrong)


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"peft package: pip install peft"):
        add_adapter(build(WIDE_LLADA), OPTIONS, seed=0)
    with pytest.raises(UserError, match=r"bitsandbytes package: pip install bitsandbytes"):
        quantise(build(WIDE_LLADA))
    assert not is_adapted(build(WIDE_LLADA))


def test_one_adapter_at_a_time() -> None:
    network = adapted(WIDE_LLADA)
    with pytest.raises(ValueError, match="adapter already"):
        add_adapter(network, OPTIONS, seed=0)
    with pytest.raises(ValueError, match="adapter already"):
        quantise(network)
    assert is_adapted(network)
