"""Adapters: nothing at the start, W x + alpha/r B A x afterwards, peft's own files, and one sentence for each bad one.

Shape letters: B batch, L length, V vocabulary rows.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llada.adapters import (
    LoraOptions,
    adapter_weights,
    add_adapter,
    base_fingerprint,
    base_of_adapter,
    is_adapted,
    load_adapter,
    merge_adapter,
    quantise,
    save_adapter,
    target_pattern,
)
from llada.errors import UserError
from llada.models import (
    EncoderConfig,
    ILLaDAConfig,
    LLaDAConfig,
    LLaDAMoEConfig,
    Network,
    NetworkConfig,
    build_network,
    recompute_activations,
)
from llada.models.memory import NF4_BYTES, lora_parameters, stored_weights

bitsandbytes = pytest.importorskip("bitsandbytes")
peft = pytest.importorskip("peft")

SHAPE: dict[str, Any] = {
    "d_model": 64, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "vocab_size": 10, "mask_token_id": 9,
    "pad_token_id": 0, "eos_token_id": 2, "mlp_hidden_size": 128, "max_sequence_length": 16,
}  # fmt: skip
LLADA = LLaDAConfig(**SHAPE)
ILLADA = ILLaDAConfig(**SHAPE | {"weight_tying": True})
MOE = LLaDAMoEConfig(**SHAPE, n_experts=4, n_experts_per_token=2)
ENCODER = EncoderConfig(
    vocab_size=10, mask_token_id=9, max_sequence_length=16, d_model=64, n_heads=2, n_layers=2, dropout=0.0
)
ALL = pytest.mark.parametrize(
    "config",
    [pytest.param(config, id=type(config).__name__.removesuffix("Config")) for config in (LLADA, ILLADA, MOE, ENCODER)],
)
ROWS = torch.tensor([[1, 3, 9, 8, 2, 7], [9, 9, 4, 0, 0, 5]])  # (B, L) = (2, 6)
OPTIONS = LoraOptions(lora_rank=4, lora_alpha=12)
SCALE = 3.0  # 12 / 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine, two threads wait for each other longer than such small products take."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def build(config: NetworkConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Network:
    """The same network for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_network(config).to(dtype)


def adapted(config: NetworkConfig) -> Network:
    """A network with an adapter that changes something."""
    network = build(config)
    add_adapter(network, OPTIONS, seed=0)
    draw(adapter_weights(network).values())
    return network


def draw(weights: Iterable[Tensor]) -> None:
    """As if they had been trained."""
    generator = torch.Generator().manual_seed(1)
    for weight in weights:
        weight.data.normal_(std=0.05, generator=generator)


def stored(folder: Path, config: NetworkConfig = LLADA) -> Path:
    """A folder with such an adapter."""
    folder.mkdir()
    save_adapter(folder, adapted(config), "the/base")
    return folder


@torch.no_grad()
def logits(network: nn.Module) -> Tensor:
    return network(ROWS)


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


def test_seed_fixes_the_adapter_and_leaves_other_draws_alone() -> None:
    first, second, other = (build(LLADA) for _ in range(3))
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
        (LLADA, "all", "q_proj k_proj v_proj attn_out ff_proj up_proj ff_out"),
        (LLADA, "attention", "q_proj k_proj v_proj attn_out"),
        (ILLADA, "all", "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj "
                        "mlp.gate_proj mlp.up_proj mlp.down_proj"),
        (ILLADA, "attention", "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"),
        (MOE, "all", "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"),
        (ENCODER, "all", "qkv attention_out up down"),
        (ENCODER, "attention", "qkv attention_out"),
    ],
)  # fmt: skip
def test_names_in_the_file_are_the_official_ones(config: NetworkConfig, targets: Any, names: str) -> None:
    prefix = {LLADA: "model.transformer.blocks", ENCODER: "layers"}.get(config, "model.layers")
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
    assert target_pattern(build(LLADA)) == r".*\.blocks\.\d+\.(q_proj|k_proj|v_proj|attn_out|ff_proj|up_proj|ff_out)$"
    attention = r"(self_attn\.q_proj|self_attn\.k_proj|self_attn\.v_proj|self_attn\.o_proj)$"
    assert target_pattern(build(MOE)) == r".*\.layers\.\d+\." + attention


def test_head_is_never_touched() -> None:
    network = adapted(LLADA)
    assert type(network.get_submodule("model.transformer.ff_out")) is nn.Linear
    assert type(network.get_submodule("model.transformer.wte")) is nn.Embedding


def test_adapted_map_by_hand() -> None:
    network = adapted(LLADA)
    before = build(LLADA).state_dict()["model.transformer.blocks.0.up_proj.weight"]
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
    network = build(LLADA, dtype=torch.bfloat16)
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
        assert file.metadata() == {"format": "pt", "base_fingerprint": base_fingerprint(build(LLADA))}
    content = json.loads((tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8"))
    wanted = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, "base_model_name_or_path": "the/base", "bias": "none"}
    assert content | wanted == content
    assert content["target_modules"] == target_pattern(build(LLADA))
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
    model = peft.get_peft_model(build(LLADA), peft.LoraConfig(r=4, lora_alpha=12, **lora))
    draw(weight for weight in model.parameters() if weight.requires_grad)
    model.save_pretrained(str(tmp_path))
    fresh = build(LLADA)
    load_adapter(fresh, tmp_path)
    assert torch.equal(logits(fresh), logits(model))
    merge_adapter(fresh)
    torch.testing.assert_close(logits(fresh), logits(model), atol=4e-6, rtol=0)


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for recomputes in (False, True):
        network = adapted(LLADA)
        if recomputes:
            recompute_activations(network)
        network(ROWS).square().sum().backward()
        gradients.append([weight.grad for weight in adapter_weights(network).values()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_fingerprint_is_of_the_base() -> None:
    network = build(LLADA)
    before = base_fingerprint(network)
    assert base_fingerprint(build(LLADA, dtype=torch.bfloat16)) == before  # in whatever precision it was opened
    assert base_fingerprint(build(LLADA, seed=1)) != before
    changed = build(LLADA)
    changed.get_parameter("model.transformer.blocks.1.ff_norm.weight").data[3] = 2
    assert base_fingerprint(changed) != before
    add_adapter(network, OPTIONS, seed=0)
    assert base_fingerprint(network) == before
    in_four_bits = build(LLADA)
    quantise(in_four_bits)
    assert base_fingerprint(in_four_bits) == before


@ALL
def test_layers_are_in_four_bits_and_all_else_is_not(config: NetworkConfig) -> None:
    network = build(config)
    quantise(network)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            is_outside = name in ("model.transformer.ff_out", "lm_head", "output") or name.endswith("mlp.gate")
            assert (type(module) is nn.Linear) == is_outside, name
    assert {parameter.dtype for parameter in network.parameters()} == {torch.uint8, torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in network.parameters())


@ALL
def test_four_bits_are_close(config: NetworkConfig) -> None:
    """Normal weights rounded to the nearest of 16 levels are off by 9 % of their size, and so is what they make.

    In two random layers this adds up to a third or so of the logits.
    """
    network = build(config, dtype=torch.bfloat16)
    expected = logits(network).float()
    exact = {name: weight.float() for name, weight in network.state_dict().items()}
    maps = {name for name, module in network.named_modules() if module in set(linears(network))}
    inputs = torch.randn(50, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    quantise(network)
    for name in maps:
        weight = exact[f"{name}.weight"]
        before = F.linear(inputs[:, : weight.shape[1]].float(), weight)
        error = (through(network, name, inputs) - before).norm() / before.norm()
        assert error < 0.01 if name.endswith("mlp.gate") else 0.08 < error < 0.105, name
    assert (logits(network).float() - expected).norm() < 0.5 * expected.norm()


def test_a_map_that_ends_within_a_block_is_left_alone() -> None:
    network = build(LLaDAConfig(**SHAPE | {"mlp_hidden_size": 96}))
    quantise(network)
    in_bf16 = [linear for linear in linears(network) if type(linear) is nn.Linear]
    assert in_bf16 == [layer.ff_out for layer in network.layers]


def linears(network: Network) -> list[nn.Linear]:
    return [module for module in network.layers.modules() if isinstance(module, nn.Linear)]


def test_bytes_of_a_weight_in_four_bits() -> None:
    config = LLaDAConfig(**SHAPE | {"d_model": 512, "n_layers": 1, "mlp_hidden_size": 1024})
    network = build(config)
    quantise(network)
    n_weights = n_bytes = 0
    for linear in linears(network):
        state = linear.weight.quant_state
        tensors = (linear.weight, state.absmax, state.state2.absmax)
        n_weights += linear.in_features * linear.out_features
        n_bytes += sum(tensor.nbytes for tensor in tensors)
        # Beside these, a table of 16 and one of 256 levels and an offset, whatever the size.
        assert state.code.nbytes + state.state2.code.nbytes + state.offset.nbytes == 4 * (16 + 256 + 1)
    assert n_bytes / n_weights == pytest.approx(NF4_BYTES, rel=1e-3)
    in_bf16 = sum(parameter.nbytes for parameter in network.parameters() if parameter.dtype == torch.bfloat16)
    assert in_bf16 + n_bytes == pytest.approx(stored_weights(config, quantised=True), rel=1e-3)


@ALL
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_training_beside_four_bits(config: NetworkConfig, autocast: bool) -> None:
    """Evaluated first, as in a run: the loss falls, the adapter alone has gradients, the base stays as it is."""
    network = build(config, dtype=torch.bfloat16)
    quantise(network)
    add_adapter(network, OPTIONS, seed=0)
    base = {name: weight.clone() for name, weight in network.named_parameters() if not weight.requires_grad}
    logits(network.eval())
    network.train()
    optimizer = torch.optim.AdamW(adapter_weights(network).values(), lr=3e-2)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = network(ROWS)
        loss = F.cross_entropy(output.float().flatten(0, 1), ROWS.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == ("lora_" in name), name
        if name in base:
            assert torch.equal(parameter, base[name]), name


def test_gradients_beside_four_bits_are_those_of_the_restored_network() -> None:
    """In bf16 the two differ by rounding only, after evaluation too, in which a CPU may rearrange 4-bit weights."""
    in_four_bits, restored = (build(LLADA, dtype=torch.bfloat16) for _ in range(2))
    quantise(in_four_bits)
    quantise(restored)
    add_adapter(restored, OPTIONS, seed=0)
    merge_adapter(restored)
    gradients = []
    for network in (in_four_bits, restored):
        add_adapter(network, OPTIONS, seed=3)
        logits(network.eval())
        network.train()
        network(ROWS).float().square().sum().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in adapter_weights(network).values()]))
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[1].norm()


@ALL
def test_merging_into_four_bits_gives_a_plain_network(config: NetworkConfig) -> None:
    network = build(config, dtype=torch.bfloat16)
    quantise(network)
    add_adapter(network, OPTIONS, seed=0)
    draw(adapter_weights(network).values())
    names = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in adapter_weights(network)}
    inputs = torch.randn(20, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected, base = {name: through(network, name, inputs) for name in names}, build(config)
    merge_adapter(network)
    assert {name: weight.shape for name, weight in network.state_dict().items()} == {
        name: weight.shape for name, weight in base.state_dict().items()
    }
    assert {weight.dtype for weight in network.state_dict().values()} == {torch.bfloat16}
    for name in names:  # both in bf16
        assert (through(network, name, inputs) - expected[name]).norm() < 0.01 * expected[name].norm()
    assert set(vars(network)) == set(vars(base))


@torch.no_grad()
def through(network: Network, name: str, inputs: Tensor) -> Tensor:
    """What a map of the network makes of the first of these inputs, as many as it takes."""
    linear: Any = network.get_submodule(name)
    return linear(inputs[:, : linear.in_features]).float()


def test_adapter_of_four_bits_is_an_adapter_of_the_base(tmp_path: Path) -> None:
    network = build(LLADA, dtype=torch.bfloat16)
    quantise(network)
    add_adapter(network, OPTIONS, seed=0)
    save_adapter(tmp_path, network, "base")
    fresh, in_four_bits = build(LLADA), build(LLADA)
    load_adapter(fresh, tmp_path)
    quantise(in_four_bits)
    load_adapter(in_four_bits, tmp_path, trainable=True)
    for name, weight in adapter_weights(network).items():
        assert torch.equal(adapter_weights(fresh)[name], weight)
        assert torch.equal(adapter_weights(in_four_bits)[name], weight)


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
        (lambda folder: edit_config(folder, r=8), [f"{Q.replace('q_proj', 'attn_out')}.lora_A.weight", "[4, 64]"]),
        (lambda folder: edit_config(folder, r=0), ["cannot be used"]),
        (lambda folder: edit_config(folder, r="many"), ["cannot be used"]),
        (lambda folder: edit_config(folder, r=99_999_999_999), ["cannot be used"]),
        (lambda folder: edit_config(folder, rank_pattern=5), ["cannot be used"]),
        (lambda folder: edit_config(folder, target_modules="("), ["cannot be used"]),
        (lambda folder: edit_config(folder, target_modules=["wte"]), ["wte", "no linear map"]),
        (lambda folder: edit_config(folder, target_modules=["attn_norm"]), ["cannot be used"]),
        (lambda folder: edit_config(folder, target_modules=["query"]), ["cannot be used", "query"]),
        (lambda folder: edit_config(folder, target_modules=["q_proj"]), ["and 23 more are no part of it"]),
        (lambda folder: edit_weights(folder, lambda w: w.pop(f"{Q}.lora_A.weight")), [f"{Q}.lora_A.weight is missing"]),
        (
            lambda folder: edit_weights(folder, lambda w: w.update(extra=torch.zeros(1))),
            ["extra is no part of it"],
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
    network = build(LLADA)
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
    with pytest.raises(UserError, match=r"trained beside other weights than these: use its own base, the/base\.$"):
        load_adapter(build(LLADA, seed=1), folder)
    edit_weights(folder, lambda weights: None)  # as peft would store it
    load_adapter(build(LLADA, seed=1), folder)
    with pytest.raises(UserError, match="does not fit this network"):
        load_adapter(build(LLaDAConfig(**SHAPE | {"n_layers": 3})), folder)
    with pytest.raises(UserError, match="cannot be used"):
        load_adapter(build(ENCODER), folder)


def test_adapter_that_names_no_base(tmp_path: Path) -> None:
    folder = stored(tmp_path / "adapter")
    edit_config(folder, base_model_name_or_path=None)
    with pytest.raises(UserError, match="does not tell which checkpoint"):
        base_of_adapter(folder)


@pytest.mark.parametrize("wrong", [{"lora_rank": 0}, {"lora_alpha": 0}, {"lora_dropout": 1.0}, {"lora_dropout": -0.1}])
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(wrong))} must be"):
        LoraOptions(**wrong)


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"peft package: pip install peft"):
        add_adapter(build(LLADA), OPTIONS, seed=0)
    with pytest.raises(UserError, match=r"bitsandbytes package: pip install bitsandbytes"):
        quantise(build(LLADA))
    assert not is_adapted(build(LLADA))


def test_one_adapter_at_a_time() -> None:
    network = adapted(LLADA)
    with pytest.raises(ValueError, match="adapter already"):
        add_adapter(network, OPTIONS, seed=0)
    with pytest.raises(ValueError, match="adapter already"):
        quantise(network)
    assert is_adapted(network)
