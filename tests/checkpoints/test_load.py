"""Models opened by name: types of weights, names of tensors, adapters whose base has moved, and memory."""

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import llada
from llada.checkpoints import folder as checkpoint_module
from llada.checkpoints import load as opening
from llada.checkpoints.dummy import write_random_checkpoint
from llada.checkpoints.folder import load_weights, make_predictor, read_checkpoint, weights_dtype
from llada.checkpoints.load import open_model, open_to_measure
from llada.checkpoints.safetensors import StoredWeights
from llada.cli import export
from llada.models import LLaDAConfig, NetworkConfig, build_network, expected_shapes
from llada.sampling.config import SamplerConfig
from llada.sampling.unmask import generate
from llada.system.errors import UserError
from tests.support.checkpoints import X_T, adapter_of, assert_refused, edit_json, save_new, save_small, write_by_hand
from tests.support.configurations import ODD_LOCAL, TINY_ILLADA, TINY_LLADA, TINY_MOE, TOKENIZER
from tests.support.sentences import assert_one_sentence


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_small(tmp_path / "checkpoint")


def rewrite(folder: Path, rename: Any) -> dict[str, Tensor]:
    """Give the stored tensors other names."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({rename(name): tensor for name, tensor in weights.items()}, path)
    return weights


# -- names ------------------------------------------------------------------------------------------------------------

RENAMED = {
    "compiled": (lambda name: f"_orig_mod.{name}", "'_orig_mod.' in front"),
    "parallel": (lambda name: f"module.{name}", "'module.' in front"),
    "both": (lambda name: f"module._orig_mod.{name}", "'module._orig_mod.' in front"),
    "peft": (lambda name: f"base_model.model.{name}", "'base_model.model.' in front"),
    "doubled": (lambda name: f"model.{name}", "'model.' in front"),
    "missing": (lambda name: name.removeprefix("model."), "no 'model.' in front"),
    "within": (lambda name: name.replace(".0.", ".0._orig_mod."), "_orig_mod."),
}


@pytest.mark.parametrize("config", [TINY_LLADA, TINY_ILLADA, TINY_MOE], ids=["llada", "illada", "moe"])
@pytest.mark.parametrize(("rename", "said"), RENAMED.values(), ids=RENAMED.keys())
def test_known_prefixes_are_taken_off_and_reported(
    tmp_path: Path, config: NetworkConfig, rename: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_new(tmp_path, config)
    weights = rewrite(tmp_path, rename)
    model = read_checkpoint(tmp_path).model
    assert said in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    for name, tensor in model.network.state_dict().items():
        assert tensor.equal(weights[name])
    filled = make_predictor(config, TOKENIZER)
    load_weights(filled, tmp_path)
    assert all(tensor.equal(weights[name]) for name, tensor in filled.network.state_dict().items())


def test_usual_names_are_taken_without_a_word(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_checkpoint(folder)
    assert not caplog.records


def test_other_names_are_named_as_they_are_stored(folder: Path) -> None:
    rewrite(folder, lambda name: f"student.{name}")
    assert_refused(folder, "student.model.transformer", "not part of it", "missing")


def test_one_tensor_under_two_names_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = {f"module.{name}": tensor for name, tensor in load_file(path).items()}
    name = next(iter(weights))
    save_file({**weights, f"module.{name}": weights[name].clone()}, path)
    assert_refused(folder, "not part of it")


# -- types ------------------------------------------------------------------------------------------------------------


def stored_as(folder: Path, dtype: torch.dtype) -> None:
    path = folder / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("stored", "computed"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.bfloat16)],
)
def test_weights_are_computed_in_the_type_they_are_stored_in_but_never_in_fp16(
    folder: Path, stored: torch.dtype, computed: torch.dtype
) -> None:
    stored_as(folder, stored)
    for opened in (read_checkpoint(folder), open_model(folder), llada.load_checkpoint(folder)):
        assert {tensor.dtype for tensor in opened.model.network.state_dict().values()} == {computed}
        with torch.inference_mode():
            assert opened.model(X_T).isfinite().all()


def test_names_of_types() -> None:
    assert weights_dtype("auto") is None
    assert weights_dtype("bf16") == torch.bfloat16
    assert weights_dtype("auto", "fp32") == weights_dtype("fp32", "bf16") == torch.float32
    assert weights_dtype("bf16", "fp32") == torch.bfloat16


@pytest.mark.parametrize("dtype", ["auto", "bf16", "fp32"])
def test_every_command_opens_the_type_that_is_asked_for(
    llada: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    folder = tmp_path / "public"
    write_random_checkpoint(folder, text, d_model=32, dtype=torch.float16, max_sequence_length=64)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    assert llada("prepare", "--input", tmp_path / "text.txt", "--output_dir", tmp_path / "data").code == 0
    seen: list[torch.dtype | None] = []
    real = StoredWeights.tensor

    def tensor(self: Any, name: str, device: torch.device, wanted: torch.dtype | None) -> Tensor:
        seen.append(wanted)
        return real(self, name, device, wanted)

    monkeypatch.setattr(StoredWeights, "tensor", tensor)
    few = ["--data_dir", tmp_path / "data", "--windows", 2, "--masks_per_window", 2, "--device", "cpu"]
    for command in (
        ["sample", "--checkpoint", folder, "--prompt", "to be", "--gen_length", 2],
        ["chat", "--checkpoint", folder, "--prompt", "to be", "--gen_length", 2],
        ["evaluate", "--checkpoint", folder, *few],
        ["compare", folder, folder, *few],
    ):
        seen.clear()
        result = llada(*command, "--dtype", dtype)
        assert result.code == 0, result.err
        assert set(seen) == {torch.float32 if dtype == "fp32" else torch.bfloat16}
    seen.clear()
    assert llada("evaluate", "--checkpoint", folder, *few, "--precision", "fp32").code == 0
    assert set(seen) == {torch.float32}


def test_an_export_keeps_fp16_and_every_bit_of_it(llada: Any, folder: Path, tmp_path: Path) -> None:
    stored_as(folder, torch.float16)
    assert llada("export", "--checkpoint", folder, "--output_dir", tmp_path / "out").code == 0
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "out"))
    assert all(tensor.dtype == torch.float16 and tensor.equal(before[name]) for name, tensor in after.items())


def test_broken_weights_are_neither_sampled_from_nor_exported(llada: Any, folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = "model.transformer.blocks.1.attn_norm.weight"
    weights[name][3] = torch.nan
    save_file(weights, path)
    words = "predictions are not finite numbers: it is broken, use an earlier checkpoint."
    for command in (["sample", "--gen_length", 3], ["chat", "--prompt", "ab"]):
        result = llada(command[0], "--checkpoint", folder, *command[1:])
        assert result.code == 2
        assert words in result.err
        assert result.out == ""
    opened = open_model(folder)
    with pytest.raises(UserError, match="not finite"):
        generate(opened.predict, torch.tensor([[3]]), 2, TOKENIZER.mask_id, SamplerConfig(steps=2))
    result = llada("export", "--checkpoint", folder, "--output_dir", tmp_path / "out")
    assert result.code == 2
    assert f"{name} of" in result.err
    assert not (tmp_path / "out").exists()


def test_weights_that_no_memory_holds_are_refused_before_they_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "memory_bytes", lambda device: 1000)
    read_checkpoint(folder)  # mapped: the file itself
    with pytest.raises(UserError, match=r"as float64, and there are 0.0 MB of memory: open them as bf16"):
        read_checkpoint(folder, dtype=torch.float64)
    with pytest.raises(UserError, match="use a device with more memory") as caught:
        read_checkpoint(folder, dtype=torch.bfloat16)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), OSError(12, "ENOMEM")])
@pytest.mark.parametrize("command", ["sample", "chat", "evaluate", "compare", "export"])
def test_memory_that_runs_out_is_a_sentence_in_every_command(
    llada: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, error: Exception
) -> None:
    import importlib

    def fail(*_: Any, **__: Any) -> None:
        raise error

    module = importlib.import_module(f"llada.cli.{command}")
    monkeypatch.setattr(module, "open_to_measure" if command in ("evaluate", "compare") else "open_model", fail)
    rest: dict[str, list[object]] = {
        "compare": [folder, folder],
        "export": ["--checkpoint", folder, "--output_dir", tmp_path / "out"],
    }
    result = llada(command, *rest.get(command, ["--checkpoint", folder]))
    assert result.code == 2
    assert result.err.startswith("llada: The memory is not enough for this: ")
    assert "--" in result.err
    assert result.err.count("\n") == 1


# -- ids of the end ---------------------------------------------------------------------------------------------------


def test_every_eos_of_the_configuration_ends_an_answer_and_null_is_the_tokenizers(text: str, tmp_path: Path) -> None:
    from llada.tokenizers.message import Message

    folder = tmp_path / "public"
    write_random_checkpoint(folder, text, d_model=32, max_sequence_length=64)
    plain = open_model(folder)
    path, end = folder / "config.json", plain.tokenizer.encode("to")[0]
    edit_json(path, lambda content: content.update(eos_token_id=[content["eos_token_id"], end]))
    several = open_model(folder)
    assert several.tokenizer.eos_id == plain.tokenizer.eos_id
    assert several.further_end_ids == {end}

    class SaysTheEnd(torch.nn.Module):
        network = several.model.network

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x_t: Tensor) -> Tensor:
            logits = torch.zeros(*x_t.shape, several.config.vocab_size)
            logits[..., end] = 1.0
            return logits

    object.__setattr__(several, "model", SaysTheEnd())
    config = SamplerConfig(steps=8, block_length=1)
    states = several.assistant().answer([Message("user", "be")], 8, config)
    assert len(list(states)) == 1  # the first token is the end
    edit_json(path, lambda content: content.update(eos_token_id=None, pad_token_id=None))
    null = open_model(folder)
    assert (null.config, null.tokenizer) == (plain.config, plain.tokenizer)


# -- names and counts, before there is a network ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [TINY_LLADA, TINY_ILLADA, TINY_MOE, ODD_LOCAL, replace(ODD_LOCAL, n_layers=7, attention_every=3)],
    ids=["llada", "illada", "moe", "local", "few attend"],
)
def test_expected_shapes_are_those_of_the_network(config: NetworkConfig) -> None:
    expected = {name: tensor.shape for name, tensor in build_network(config).state_dict().items()}
    assert expected_shapes(config) == expected
    assert expected_shapes(config, at_most=len(expected)) == expected
    assert expected_shapes(config, at_most=len(expected) - 1) is None


def empty_tensors(n: int) -> dict[str, Any]:
    facts = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return {f"model.transformer.blocks.{i}.q_proj.weight": facts for i in range(n)}


@pytest.mark.parametrize(
    ("n_tensors", "n_layers", "said"),
    [
        (10**6, 2, "a header of"),
        (90_000, 90_000, "90000 tensors are too few for 90000 layers"),
        (90_000, 12_000, "missing"),
        (20, 900_000, "20 tensors are too few for 900000 layers"),
    ],
)
def test_a_million_tensors_or_layers_are_refused_in_a_moment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, n_tensors: int, n_layers: int, said: str
) -> None:
    edit_json(folder / "config.json", lambda content: content.update(n_layers=n_layers))
    write_by_hand(folder / "model.safetensors", empty_tensors(n_tensors), b"")

    def build(*_: Any) -> None:
        raise AssertionError("a network was built")

    monkeypatch.setattr(checkpoint_module, "make_predictor", build)
    start = time.process_time()
    assert_refused(folder, said)
    assert time.process_time() - start < 5


def test_more_experts_than_any_network_has_are_refused() -> None:
    with pytest.raises(ValueError, match="n_experts 5000 is more than 1024"):
        type(TINY_MOE)(**{**vars(TINY_MOE), "n_experts": 5000})


# -- errors in Python -------------------------------------------------------------------------------------------------


def test_ids_that_the_network_cannot_read_get_a_sentence(folder: Path) -> None:
    model = llada.load_checkpoint(folder).model
    with pytest.raises(ValueError, match=r"must have the shape \(B, L\), not \(3,\): ids\[None\]"):
        model(torch.tensor([3, 4, 5]))
    with pytest.raises(ValueError, match="17 tokens are more than the 16 that this model was trained on"):
        model(torch.full((1, 17), 3))
    for strange in (10, -1, 126335):
        with pytest.raises(IndexError, match=f"{strange} is not a token id of this model: they are 0 to 9, and 126336"):
            model(torch.tensor([[3, strange, 4]]))
    model(torch.full((1, 16), TOKENIZER.mask_id))


# -- adapters whose base has moved ------------------------------------------------------------------------------------


def test_an_adapter_and_its_base_can_be_moved_together(tmp_path: Path) -> None:
    base = save_small(tmp_path / "here" / "base")
    adapter = adapter_of(base, tmp_path / "here" / "runs" / "adapter")
    named = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    assert named == "../../base"
    expected = open_model(adapter).model(X_T)
    (tmp_path / "here").rename(tmp_path / "there")
    assert torch.equal(llada.load_checkpoint(tmp_path / "there" / "runs" / "adapter").model(X_T), expected)


def test_base_says_where_it_is_now_and_its_weights_decide(llada: Any, tmp_path: Path) -> None:
    base = save_small(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter")
    expected = open_model(adapter).model(X_T)
    base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"cannot be obtained .*: say by `base` where it is") as caught:
        open_model(adapter)
    assert_one_sentence(caught.value)
    assert torch.equal(open_model(adapter, base=str(tmp_path / "moved")).model(X_T), expected)
    other = save_small(tmp_path / "other")
    with pytest.raises(UserError, match="trained with other weights than these"):
        open_model(adapter, base=str(other))
    for command in (["sample", "--gen_length", 2], ["chat", "--prompt", "ab"]):
        arguments = [command[0], "--checkpoint", adapter, *command[1:]]
        assert llada(*arguments, "--base", tmp_path / "moved").code == 0
        assert llada(*arguments).code == 2
    exported = llada("export", "--checkpoint", adapter, "--base", tmp_path / "moved", "--output_dir", tmp_path / "out")
    assert exported.code == 0
    with pytest.raises(UserError, match="is not an adapter and has no base: leave out `base`"):
        open_model(other, base=str(other))
    assert llada("compare", other, other, "--base", other).code == 2


def test_one_value_far_behind_makes_it_another_base(tmp_path: Path) -> None:
    """The fingerprint of before took the first 64 of each tensor."""
    base = save_small(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter")
    path = base / "model.safetensors"
    weights = load_file(path)
    weights["model.transformer.wte.weight"][-1, -1] += 1  # the last of 80
    save_file(weights, path)
    with pytest.raises(UserError, match="trained with other weights than these"):
        open_model(adapter)


def test_an_adapter_on_four_bits_keeps_them_and_is_exported_in_the_type_that_is_asked_for(
    llada: Any, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    from llada.checkpoints.lora import LoraOptions, adapter_weights, add_adapter, quantise, save_adapter

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_new(base, replace(TINY_LLADA, d_model=64, mlp_hidden_size=64))
    network = open_model(base, dtype=torch.bfloat16).model.network
    quantise(network)
    add_adapter(network, LoraOptions(lora_rank=2), seed=0)
    for weight in adapter_weights(network).values():
        torch.nn.init.normal_(weight.data, std=0.1)
    adapter.mkdir()
    save_adapter(adapter, network, str(base))
    with pytest.raises(UserError, match="trained on layers in 4 bits and bf16: leave out `dtype`"):
        open_model(adapter, dtype=torch.float32)
    measured = open_to_measure(adapter, torch.device("cpu"), "auto", "fp32")
    assert torch.equal(measured.model(X_T), open_model(adapter).model(X_T))
    written = {}
    for dtype in ("stored", "fp32"):
        out = tmp_path / dtype
        assert llada("export", "--checkpoint", adapter, "--output_dir", out, "--dtype", dtype).code == 0
        written[dtype] = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in written["stored"].values()} == {torch.bfloat16}
    assert all(tensor.equal(written["stored"][name].float()) for name, tensor in written["fp32"].items())
    assert {tensor.dtype for tensor in written["fp32"].values()} == {torch.float32}


# -- exports ----------------------------------------------------------------------------------------------------------


def test_an_export_says_how_transformers_opens_it(llada: Any, text: str, tmp_path: Path) -> None:
    how = {"llada": "trust_remote_code=True", "illada": "of ILLaDAForCausalLM into the folder. Then put auto_map"}
    for layout, said in how.items():
        write_random_checkpoint(tmp_path / layout, text, layout, d_model=32)  # type: ignore[arg-type]
        result = llada("export", "--checkpoint", tmp_path / layout, "--output_dir", tmp_path / f"{layout} out")
        assert said in result.out
    assert "auto_map" not in json.loads((tmp_path / "illada out" / "config.json").read_text(encoding="utf-8"))
    content = json.loads((tmp_path / "llada out" / "config.json").read_text(encoding="utf-8"))
    assert content["auto_map"]["AutoModel"] == "GSAI-ML/LLaDA-8B-Instruct--modeling_llada.LLaDAModelLM"
    assert isinstance(open_model(tmp_path / "llada out").config, LLaDAConfig)


def test_the_class_of_a_model_from_the_hub_is_that_of_its_repository(
    llada: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    write_random_checkpoint(folder, text, "illada", d_model=32)
    classes = {
        "AutoConfig": "configuration_illada.ILLaDAConfig",
        "AutoModel": "modeling_illada.ILLaDAForCausalLM",
        "AutoModelForCausalLM": "some/body--modeling.Else",  # another repository's: not kept
        "AutoTokenizer": ["tokenization.Own", None],
    }
    edit_json(folder / "config.json", lambda content: content.update(auto_map=classes))
    for module in (opening, export):
        monkeypatch.setattr(module, "fetch", lambda name, config: folder)
        monkeypatch.setattr(module, "read_published_config", lambda name: None)
    result = llada("export", "--checkpoint", "GSAI-ML/iLLaDA", "--output_dir", tmp_path / "out")
    assert "names the class in the repository GSAI-ML/iLLaDA." in result.out
    content = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert content["auto_map"] == {
        "AutoConfig": "GSAI-ML/iLLaDA--configuration_illada.ILLaDAConfig",
        "AutoModel": "GSAI-ML/iLLaDA--modeling_illada.ILLaDAForCausalLM",
    }
