"""The formulas of size and cost against networks that are built, run and counted.

Shape letters: B batch, L length, V vocabulary rows, D width, H heads, M width of the feed-forward layer.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llada.checkpoints.hub import LLADA_8B
from llada.cli import size_report
from llada.cli.size_report import SizeOptions
from llada.costs.flops import attention_flops_per_token, training_flops_per_token, training_seconds
from llada.costs.parameters import count_parameters, layer_parameters, matrix_parameters, total_parameters
from llada.data.corpus import Corpus
from llada.data.prepared import prepare
from llada.models import NetworkConfig, build_network
from llada.training import forecast
from llada.training.config import DataOptions, NetworkOptions, TrainConfig
from llada.training.plan import RunPlan
from tests.support.configurations import COSTED_ENCODER, COSTED_LLADA, COSTED_LOCAL

SHAPES: dict[str, NetworkConfig] = {
    "llada": COSTED_LLADA,
    "llada, grouped heads": replace(COSTED_LLADA, n_heads=4, n_kv_heads=2),
    "llada, one key-value head, tied": replace(COSTED_LLADA, n_kv_heads=1, weight_tying=True),
    "local": COSTED_LOCAL,
    "local, many pairs": replace(
        COSTED_LOCAL, vocab_size=300, mask_token_id=299, n_layers=4, attention_every=2, table_rows=99
    ),
    "encoder": COSTED_ENCODER,
    "causal": replace(COSTED_ENCODER, is_causal=True),
    "encoder, wider than deep": replace(COSTED_ENCODER, d_model=96, n_heads=3, n_layers=1, max_sequence_length=7),
}
all_shapes = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())


def part_of(name: str) -> str:
    """Where a reader would look for this tensor in the table of parts."""
    if "pair_embeddings" in name:
        return "pairs"
    if "near" in name:
        return "convolutions"
    if "share" in name or "sharpness" in name:
        return "shares"
    if "norm" in name or "ln_f" in name:
        return "norms"
    if "embedding" in name or "wte" in name:
        return "embedding"
    if name.startswith("output.") or name == "model.transformer.ff_out.weight":
        return "head"
    is_attention = any(part in name for part in ("q_proj", "k_proj", "v_proj", "attn_out", "qkv", "attention_out"))
    return "attention" if is_attention else "feed-forward"


# --- parameters


@all_shapes
def test_each_part_has_as_many_parameters_as_in_the_built_network(config: NetworkConfig) -> None:
    built: Counter[str] = Counter()
    for name, parameter in build_network(config).named_parameters():
        built[part_of(name)] += parameter.numel()
    assert {part: n for part, n in count_parameters(config).items() if n} == built


def test_parameters_of_published_networks() -> None:
    """LLaDA-8B with its 6.98B outside of the tables, and another project's network of 100M in the same layout."""
    parts = count_parameters(LLADA_8B)
    assert sum(parts.values()) == 8_015_581_184
    assert sum(parts.values()) - parts["embedding"] - parts["head"] == 6_979_588_096
    assert (parts["attention"] + parts["feed-forward"] + parts["norms"] - 4096) // 32 == 218_112_000
    small = replace(COSTED_LLADA, d_model=448, n_heads=7, n_layers=6, mlp_hidden_size=768, vocab_size=126_464)
    assert sum(count_parameters(small).values()) == 124_327_616


def test_llada_8b_has_the_tensors_and_bytes_of_the_published_files() -> None:
    with torch.device("meta"):
        network = build_network(LLADA_8B)
    tensors = network.bfloat16().state_dict().values()
    assert all(tensor.is_meta for tensor in tensors)
    assert len(tensors) == 291
    assert sum(tensor.numel() for tensor in tensors) == 8_015_581_184
    assert sum(tensor.nbytes for tensor in tensors) == 16_031_162_368


# --- FLOPs


def counted_flops_per_token(config: NetworkConfig, length: int) -> float:
    """Forward and backward by PyTorch's counter; its table lacks the CPU's fused attention, hence plain products."""
    network, n_rows = build_network(config), 2
    rows = torch.randint(0, config.vocab_size, (n_rows, length), generator=Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(rows).sum().backward()
    return counter.get_total_flops() / (n_rows * length)


@all_shapes
@pytest.mark.parametrize("length", [3, 7])
def test_flops_are_those_that_pytorch_counts(config: NetworkConfig, length: int) -> None:
    """Exactly, a bias being no product."""
    assert training_flops_per_token(config, length) == counted_flops_per_token(config, length)


def test_attention_is_the_only_part_that_grows_with_the_length() -> None:
    """By 12 L D a layer: two products forward and four backward, of 2 L D each, over 32 layers of 4096."""
    longer = training_flops_per_token(LLADA_8B, 4096) - training_flops_per_token(LLADA_8B, 1024)
    assert longer == 12 * 32 * (4096 - 1024) * 4096
    in_products = 8_015_581_184 - 126_464 * 4096 - 65 * 4096  # neither the embedding, which is looked up, nor the norms
    assert training_flops_per_token(LLADA_8B, 0) == 6 * in_products


def test_matrices_are_those_of_the_built_network() -> None:
    for config in SHAPES.values():
        network = build_network(config)
        inside = [p for name, p in network.layers.named_parameters() if p.dim() == 2]
        assert layer_parameters(config) == sum(p.numel() for p in inside)
        assert matrix_parameters(config) == layer_parameters(config) + config.vocab_size * config.d_model


# --- time


def test_time_by_hand() -> None:
    """At twice the speed half the time; recomputing adds a third; a CPU's dropout 20 ns for each attention weight."""
    flops = 1000 * training_flops_per_token(COSTED_LLADA, 64)
    assert training_seconds(COSTED_LLADA, 64, 1000, flops_per_second=1e6) == pytest.approx(flops / 0.5e6)
    assert training_seconds(COSTED_LLADA, 64, 1000, 2e6) == pytest.approx(flops / 1e6)
    assert training_seconds(COSTED_LLADA, 64, 1000, 1e6, activation_checkpointing=True) == pytest.approx(
        flops * 4 / 3 / 0.5e6
    )
    with_dropout = replace(COSTED_ENCODER, dropout=0.1)
    serial = training_seconds(with_dropout, 64, 1000, 1e6, on_cpu=True) - training_seconds(
        COSTED_ENCODER, 64, 1000, 1e6
    )
    assert serial == pytest.approx(1000 * 3 * 2 * 64 * 10e-9)  # tokens, layers, heads, length
    assert training_seconds(with_dropout, 64, 1000, 1e6) == training_seconds(COSTED_ENCODER, 64, 1000, 1e6, on_cpu=True)


# --- the founding document's networks


@pytest.mark.parametrize(
    ("layers", "width", "claimed", "true", "whole"),
    [
        (24, 768, 15e6, 170e6, 173_363_781),
        (32, 1024, 45e6, 403e6, 407_418_949),
        (48, 1536, 150e6, 1.36e9, 1_366_422_597),
    ],
)
def test_the_founding_documents_networks_are_an_order_larger(
    layers: int, width: int, claimed: float, true: float, whole: int
) -> None:
    """SHAKESPEARE_README.md gives these; 12 L D^2 is the usual estimate, and the whole is built below."""
    config = replace(COSTED_ENCODER, d_model=width, n_heads=width // 64, n_layers=layers, max_sequence_length=4096)
    assert layer_parameters(config) == 12 * layers * width**2 == pytest.approx(true, rel=0.01)
    assert total_parameters(config) == whole
    with torch.device("meta"):
        assert sum(p.numel() for p in build_network(config).parameters()) == whole
    assert whole > 8 * claimed


def test_attention_share() -> None:
    assert attention_flops_per_token(COSTED_LLADA, 64) == 12 * 3 * 64 * 128


@pytest.fixture
def on_a_cpu_of_a_teraflop(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (size_report, forecast):
        monkeypatch.setattr(module, "known_flops_per_second", lambda *_: 1e12)
    monkeypatch.setattr(size_report, "choose_device", lambda _: torch.device("cpu"))


@pytest.mark.usefixtures("on_a_cpu_of_a_teraflop")
def test_a_gpus_time_is_not_that_of_this_cpu() -> None:
    """It is said where its speed is given; a CPU that is meant by name is this one."""

    def work(hardware: Any, tflops: float | None, memory: float | None = None) -> dict[str, Any]:
        shape = {"network": "encoder", "n_layers": 2, "d_model": 64, "n_heads": 2, "dropout": 0.1}
        options = SizeOptions(**shape, hardware=hardware, tflops=tflops, hardware_memory=memory)  # type: ignore[arg-type]
        found: dict[str, Any] = size_report.make_report(options)["work"]
        return found

    assert work("auto", None)["seconds"] == work("cpu", None)["seconds"] == work("cpu", 1.0)["seconds"]
    assert work("gpu", 1.0)["seconds"] < work("cpu", 1.0)["seconds"]  # dropout
    assert work("gpu", None)["seconds"] is work("auto", None, memory=24)["seconds"] is None
    assert work("gpu", None)["flops_per_second"] is None


@pytest.mark.usefixtures("on_a_cpu_of_a_teraflop")
@pytest.mark.parametrize("network", ["llada", "encoder", "local"])
def test_size_and_train_forecast_the_same_time_for_the_same_options(tmp_path: Path, network: Any) -> None:
    data = prepare(Corpus("to be or not to be " * 500, "file", "text"), tmp_path, 64)
    shape = {"d_model": 64, "n_heads": 2, "n_layers": 2, "dropout": 0.1 if network == "encoder" else 0.0}
    plan = RunPlan.of(
        TrainConfig(
            network=NetworkOptions(network=network, **shape), data=DataOptions((tmp_path,), sequence_length=64),  # type: ignore[arg-type]
            batch_size=2, accumulate=3, epochs=7.0, steps=None, device="cpu",
        ),
        data,
    )  # fmt: skip
    options = SizeOptions(
        network=network, **shape, sequence_length=64, batch_size=2, accumulate=3, epochs=7,  # type: ignore[arg-type]
        vocab_size=data.tokenizer.vocab_size, text_tokens=len(data.tokens("train")),
    )  # fmt: skip
    work = size_report.make_report(options)["work"]
    assert work["steps"] == plan.total_steps
    assert work["seconds"] == forecast.expected_seconds(plan)
