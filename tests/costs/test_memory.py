"""The formulas of memory: fixed parts by hand, activations against what autograd keeps, what fits against a search.

Shape letters: B batch, L length, V vocabulary rows, D width, H heads, M width of the feed-forward layer.
"""

import itertools
from dataclasses import replace

import pytest
import torch

from llada.checkpoints.hub import LLADA_8B
from llada.checkpoints.lora import LoraOptions, add_adapter
from llada.costs.activations import TrainingSetting, kept_by_layer, kept_by_layers, kept_outside_layers
from llada.costs.fit import largest_batch, largest_networks, longest_sequence, needed, ways_to_fit, with_length
from llada.costs.memory import (
    PIECEWISE_UPDATE,
    inference_memory,
    stored_weights,
    trained_parameters,
    training_memory,
)
from llada.costs.parameters import lora_parameters, matrix_parameters, total_parameters
from llada.models import EncoderConfig, LocalConfig, NetworkConfig, build_network, checkpoint_activations
from llada.models.dropout import rows_of
from llada.models.head import LOGITS_AT_ONCE
from llada.optim.adamw import AT_ONCE, MOMENT_BYTES
from llada.training.share import Share
from tests.support.configurations import COSTED_ENCODER, COSTED_LLADA, COSTED_LOCAL
from tests.support.networks import kept_for_backward

SETTING = TrainingSetting(batch_size=4, length=256)
RANK = 4


def kept_by(config: NetworkConfig, n_rows: int, length: int, bf16: bool = False, stores: str = "fp32") -> int:
    """Bytes that autograd keeps of a network that is made for it."""
    torch.manual_seed(0)
    network = build_network(config).train()
    if stores != "fp32":
        network.to(torch.bfloat16)
    if stores == "adapters":
        add_adapter(network, LoraOptions(lora_rank=RANK), seed=0)
    dropout = rows_of(network)
    if dropout is not None:
        dropout.know(torch.arange(n_rows), range(n_rows))
    rows = torch.randint(0, config.vocab_size, (n_rows, length))
    return kept_for_backward(network, rows, bf16)


NETWORKS = {
    "llada": COSTED_LLADA,
    "llada, wide": replace(COSTED_LLADA, d_model=192, n_heads=3, mlp_hidden_size=256),
    "llada, grouped heads": replace(COSTED_LLADA, n_heads=4, n_kv_heads=2),
    "encoder": COSTED_ENCODER,
    "local": COSTED_LOCAL,
    "local, every third layer attends": replace(COSTED_LOCAL, n_heads=1, n_layers=6, attention_every=3, conv_width=9),
    "encoder, dropout": replace(COSTED_ENCODER, dropout=0.1),
}


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("length", [64, 256])
@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS.keys())
def test_a_layer_keeps_what_it_keeps_on_fake_tensors(config: NetworkConfig, length: int, bf16: bool) -> None:
    """The difference that the last layer makes; under autocast, bf16 copies of its matrices are kept with it."""
    setting, n = TrainingSetting(batch_size=4, length=length, bf16=bf16), config.n_layers
    without = replace(config, n_layers=n - 1)
    difference = kept_by(config, 4, length, bf16) - kept_by(without, 4, length, bf16)
    copies = 2 * (matrix_parameters(config) - matrix_parameters(without)) if bf16 else 0
    copies += 2 * (config.conv_width * config.d_model + 5) if bf16 and isinstance(config, LocalConfig) else 0
    assert difference == pytest.approx(kept_by_layer(config, setting) + copies, rel=0.001)


@pytest.mark.parametrize("stores", ["bf16", "adapters"])
@pytest.mark.parametrize("config", [COSTED_LLADA, NETWORKS["llada, grouped heads"]], ids=["llada", "grouped heads"])
def test_a_layer_in_bf16_or_with_adapters_keeps_less(config: NetworkConfig, stores: str) -> None:
    """bf16 copies of the adapters are kept with it, and are small."""
    setting = TrainingSetting(batch_size=4, length=256, bf16=True, bf16_weights=stores == "bf16")
    if stores == "adapters":
        setting = replace(setting, bf16_weights=False, method="lora", lora_rank=RANK)
    three, two = (kept_by(replace(config, n_layers=n), 4, 256, True, stores) for n in (3, 2))
    adapters = 2 * lora_parameters(config, RANK) // 3 if stores == "adapters" else 0
    assert three - two == pytest.approx(kept_by_layer(config, setting) + adapters, rel=0.001)


@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS.keys())
def test_outside_the_layers_norms_and_embedding_are_kept(config: NetworkConfig) -> None:
    """All but the features that the head reads, which are one width more; statistics are the tolerance."""
    setting = TrainingSetting(batch_size=4, length=256)
    whole = kept_by(config, 4, 256)
    head_dim = 0 if isinstance(config, EncoderConfig) else config.head_dim
    rotary_table = 4 * 256 * head_dim  # one for all rows, and not in the formula
    outside = whole - rotary_table - kept_by_layers(config, setting)
    features = setting.tokens * 4 * config.d_model
    assert outside == pytest.approx(kept_outside_layers(config, setting) - features, rel=0.001)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("config", [COSTED_LLADA, COSTED_ENCODER, COSTED_LOCAL], ids=["llada", "encoder", "local"])
def test_attention_within_documents_keeps_one_bias_for_all_layers(config: NetworkConfig, bf16: bool) -> None:
    """Of all pairs of positions; a local network on a CPU keeps none of it, but which neighbours count."""
    setting = TrainingSetting(batch_size=4, length=256, bf16=bf16)
    torch.manual_seed(0)
    network, rows = build_network(config).train(), torch.randint(0, config.vocab_size, (4, 256))
    numbers = (torch.arange(256) // 100 + 1).int().expand(4, -1)
    measured = kept_for_backward(network, rows, bf16, numbers) - kept_for_backward(network, rows, bf16)
    without, within = (
        kept_by_layers(config, each) + kept_outside_layers(config, each)
        for each in (setting, replace(setting, within_documents=True))
    )
    assert measured == pytest.approx(within - without, rel=0.001)
    bias = 4 * 256 * 256 * (2 if bf16 else 4)
    if isinstance(config, LocalConfig):
        assert within - without < 0.1 * bias * config.n_layers
    else:
        assert within - without == bias


def test_a_gpu_keeps_a_bias_that_grows_with_the_square_of_the_length() -> None:
    for length in (256, 1024):
        config = replace(COSTED_LLADA, max_sequence_length=length)
        across, within = (
            training_memory(config, TrainingSetting(4, length, on_cpu=False, within_documents=is_within)).activations
            for is_within in (False, True)
        )
        assert within - across == pytest.approx(4 * 4 * length**2, rel=1e-5)


@pytest.mark.parametrize(
    "config", [COSTED_LLADA, COSTED_ENCODER, replace(COSTED_ENCODER, dropout=0.1)], ids=["llada", "encoder", "dropout"]
)
def test_recomputed_layers_keep_their_inputs_only_and_give_the_same_gradients(config: NetworkConfig) -> None:
    rows = torch.randint(0, config.vocab_size, (2, 32))
    gradients = []
    for recomputes in (False, True):
        torch.manual_seed(0)
        network = build_network(config).train()
        if recomputes:
            checkpoint_activations(network)
        torch.manual_seed(1)
        network(rows).logsumexp(-1).sum().backward()
        gradients.append([p.grad for p in network.parameters()])
        assert set(network.state_dict()) == set(build_network(config).state_dict())
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0)


def test_fixed_memory_by_hand() -> None:
    """All in fp32: weights and gradients, two states of AdamW or one of Muon, a running average."""
    n = total_parameters(LLADA_8B)
    one = replace(SETTING, batch_size=1, length=1)
    adamw = training_memory(LLADA_8B, one)
    assert (adamw.weights, adamw.gradients, adamw.optimizer, adamw.ema) == (4 * n, 4 * n, 8 * n, 0)
    assert adamw.fixed == 16 * n == 128_249_298_944
    assert training_memory(LLADA_8B, replace(one, ema=True)).fixed == 20 * n
    tables = 2 * 126_464 * 4096 + 65 * 4096  # embedding, head, norms: AdamW's, whatever trains the matrices
    assert training_memory(LLADA_8B, replace(one, optimizer="muon")).optimizer == 4 * (n + tables)


def test_the_peak_is_the_largest_moment_of_a_step() -> None:
    """Few tokens: all gradients are there at the end. Many: all activations are there at the start."""
    few = training_memory(LLADA_8B, replace(SETTING, batch_size=1, length=1))
    assert few.total == pytest.approx(few.weights + few.optimizer + few.gradients, rel=0.001)
    many = training_memory(COSTED_LLADA, replace(SETTING, batch_size=512))
    assert many.total == many.weights + many.optimizer + many.activations + max(many.logits, many.working)
    accumulating = training_memory(COSTED_LLADA, replace(SETTING, batch_size=512, accumulates=True))
    assert accumulating.total == many.total + many.gradients


def test_each_thrift_saves() -> None:
    """On a network of some depth; what is saved is what the benchmark measures."""
    deep = replace(COSTED_LLADA, n_layers=12)
    plain = training_memory(deep, replace(SETTING, batch_size=64)).total
    large = replace(SETTING, batch_size=64)
    for thrifty in (
        replace(large, activation_checkpointing=True), replace(large, bf16=True), replace(large, batch_size=32),
        replace(large, length=128),
    ):  # fmt: skip
        assert training_memory(deep, thrifty).total < plain
    dropout = replace(COSTED_ENCODER, dropout=0.1)
    on_cpu, on_gpu = (kept_by_layer(dropout, replace(SETTING, on_cpu=on_cpu)) for on_cpu in (True, False))
    # Attention of two heads, all of it and what is kept of it, with a boolean each, instead of its sums.
    assert on_cpu - on_gpu == 4 * 256 * (2 * 256 * (4 + 4 + 1) - 2 * 4)


# --- adapters and use


def test_adapters_of_the_published_network() -> None:
    """2,621,440 weights for each rank, 16.03 GB of bf16 weights, 5.7 GB with 4-bit layers: the fact sheet's figures."""
    assert lora_parameters(LLADA_8B, 1) == 2_621_440
    assert lora_parameters(LLADA_8B, 32) == 83_886_080
    assert stored_weights(LLADA_8B) == 16_031_162_368
    assert stored_weights(LLADA_8B, quantised=True) == pytest.approx(5.7e9, rel=0.01)


def test_adapters_have_as_many_weights_as_pairs_of_matrices_would() -> None:
    network = build_network(COSTED_LLADA)
    pairs = sum(5 * sum(p.shape) for p in network.layers.parameters() if p.dim() == 2)
    assert lora_parameters(COSTED_LLADA, 5) == pairs


@pytest.mark.parametrize("targets", ["all", "attention"])
@pytest.mark.parametrize("config", [COSTED_LLADA, COSTED_ENCODER], ids=["llada", "encoder"])
def test_what_is_trained_of_an_adapted_network_is_counted(config: NetworkConfig, targets: str) -> None:
    network = build_network(config)
    add_adapter(network, LoraOptions(lora_rank=RANK, lora_targets=targets), seed=0)  # type: ignore[arg-type]
    built = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    setting = replace(SETTING, method="lora", lora_rank=RANK, lora_on_attention_only=targets == "attention")
    assert trained_parameters(config, setting) == built


def test_adapters_take_less_than_all_weights_and_more_than_the_frozen_ones() -> None:
    setting = TrainingSetting(batch_size=1, length=1024, bf16=True, activation_checkpointing=True)
    full = training_memory(LLADA_8B, setting).total
    lora, qlora = (
        training_memory(LLADA_8B, replace(setting, method=method, lora_rank=32)) for method in ("lora", "qlora")
    )
    assert stored_weights(LLADA_8B) + 16 * 83_886_080 < lora.total < full / 4
    assert lora.gradients == 4 * 83_886_080
    assert lora.optimizer == 8 * 83_886_080
    assert lora.weights - qlora.weights == stored_weights(LLADA_8B) - stored_weights(LLADA_8B, quantised=True)
    assert qlora.total < lora.total


def test_weights_in_bf16_take_the_fact_sheets_bytes() -> None:
    """12 bytes a weight with fp32 moments, 6 with 8-bit ones and a scale for each 256 of them."""
    n = total_parameters(LLADA_8B)
    setting = TrainingSetting(batch_size=1, length=1, bf16=True, bf16_weights=True)
    memory = training_memory(LLADA_8B, setting)
    assert memory.weights + memory.gradients + memory.optimizer == 12 * n
    memory = training_memory(LLADA_8B, replace(setting, moment_bytes=MOMENT_BYTES["8bit"]))
    assert memory.weights + memory.gradients + memory.optimizer == pytest.approx(6 * n, rel=0.006)
    assert memory.update == PIECEWISE_UPDATE == 6 * 4 * AT_ONCE


def test_logits_in_pieces_do_not_grow_with_the_batch() -> None:
    """126,464 x 4096 logits in fp32 are 2 GB a sequence; pieces are 64 MB each, and a gradient of the head."""
    setting = TrainingSetting(batch_size=1, length=4096, logits_at_once=LOGITS_AT_ONCE)
    one, many = (training_memory(LLADA_8B, replace(setting, batch_size=size)).logits for size in (1, 64))
    assert one == many
    assert one == pytest.approx(3 * 4 * LOGITS_AT_ONCE + 2 * 4 * 126_464 * 4096, rel=0.01)
    whole = training_memory(LLADA_8B, replace(setting, logits_at_once=None)).logits
    assert whole == 3 * 4 * 4096 * 126_464
    few = replace(setting, length=8)  # fit at once, so nothing is cut
    assert training_memory(LLADA_8B, few).logits == 3 * 4 * 8 * 126_464


def test_sampling_takes_weights_and_the_logits_of_the_canvas() -> None:
    """Or, where that is more, a layer at work: its input, the stream, what is normed; gate, up and their product."""
    n, positions = total_parameters(LLADA_8B), 2 * 64
    assert inference_memory(LLADA_8B, 2, 64) == 2 * n + positions * 126_464 * (2 + 3 * 8)
    assert inference_memory(COSTED_LLADA, 1, 8, weight_bytes=4) == 4 * total_parameters(COSTED_LLADA) + 8 * 4 * (
        3 * 128 + 3 * 352
    )


# --- what fits


def fits(config: NetworkConfig, setting: TrainingSetting, limit: float) -> bool:
    return training_memory(with_length(config, setting.length), setting).total <= limit


def test_a_checkpoint_too_large_for_all_of_it_is_trained_in_part() -> None:
    """LLaDA-8B at length 1024 into 80 GB: not by all weights in fp32, but in every thriftier way."""
    setting = TrainingSetting(
        batch_size=1, length=1024, bf16=True, activation_checkpointing=True, on_cpu=False, logits_at_once=LOGITS_AT_ONCE
    )
    ways = ways_to_fit(LLADA_8B, setting, 80e9, is_fine_tuning=True)
    adapters = [{"method": "lora"}, {"method": "qlora"}]
    assert [way.options for way in ways] == [{"weights": "bf16", "optimizer_state": "8bit"}, *adapters]
    assert [way.options for way in ways_to_fit(LLADA_8B, setting, 24e9, is_fine_tuning=True)] == adapters
    assert ways_to_fit(LLADA_8B, replace(setting, method="lora"), 10e9, is_fine_tuning=True) == []


@pytest.mark.parametrize("limit", [3e6, 2e7, 1e8, 1e9])
def test_largest_batch_and_length_are_the_last_that_fit(limit: float) -> None:
    setting = replace(SETTING, length=1024)
    batch = largest_batch(COSTED_LLADA, setting, limit)
    expected = next(n for n in itertools.count() if not fits(COSTED_LLADA, replace(setting, batch_size=n + 1), limit))
    assert batch == min(expected, 1024)
    length = longest_sequence(COSTED_LLADA, setting, limit)
    lengths = [n for n in range(64, 1025, 64) if fits(COSTED_LLADA, replace(setting, length=n), limit)]
    assert length == max(lengths, default=0)


def test_ways_to_fit_do_and_say_how() -> None:
    config = replace(COSTED_ENCODER, dropout=0.1, n_layers=8)
    setting = TrainingSetting(batch_size=6, length=1024)
    limit = training_memory(with_length(config, 1024), setting).total / 2.2
    ways = ways_to_fit(config, setting, limit)
    assert [way.options for way in ways][:2] == [{"batch_size": 2, "accumulate": 3}, {"activation_checkpointing": True}]
    assert any(way.options == {"dropout": 0} for way in ways)
    assert ways[-1].options.keys() == {"sequence_length"}
    fixed = ways_to_fit(config, setting, limit, is_fine_tuning=True)
    same = [way.options for way in ways if way.options != {"dropout": 0}]
    assert [way.options for way in fixed][: len(same)] == same
    assert all(fits(way.config, way.setting, limit) for way in fixed)
    for way in ways:
        assert fits(way.config, way.setting, limit)
        assert way.setting.batch_size * (3 if way.setting.accumulates else 1) == 6


@pytest.mark.parametrize(("sequences", "processes"), [(64, 2), (64, 4), (12, 4), (24, 3)])
def test_what_fits_is_the_same_step_and_the_processes_can_share_it(sequences: int, processes: int) -> None:
    """The setting is that of one process, and what is asked for that of the run."""
    config, setting = replace(COSTED_LLADA, n_layers=8), TrainingSetting(sequences // processes, 256)
    half = replace(setting, batch_size=max(n for n in range(1, setting.batch_size) if setting.batch_size % n == 0))
    limit = needed(config, replace(half, accumulates=True))
    smaller, *_ = ways_to_fit(config, setting, limit, sequences, sharing=processes)
    assert smaller.options == {"batch_size": half.batch_size, "accumulate": sequences // half.batch_size}
    share = Share.of(smaller.options["batch_size"], smaller.options["accumulate"], 0, processes)
    assert (share.batch_size, share.accumulate > 1) == (smaller.setting.batch_size, smaller.setting.accumulates)
    assert (share.batch_size, len(share.rows)) == (half.batch_size, sequences // processes)


def test_sharing_out_the_network_is_named_first_where_it_is_possible_and_fits() -> None:
    config, setting = replace(COSTED_LLADA, n_layers=8), TrainingSetting(8, 256, sent_at_once=2**24)
    limit = needed(config, replace(setting, processes=4))
    assert limit < needed(config, setting)
    first, *others = ways_to_fit(config, setting, limit, 32, sharing=4, may_be_shared_out=True)
    assert (first.options, first.memory) == ({"parallel": "fsdp"}, limit)
    assert others == ways_to_fit(config, setting, limit, 32, sharing=4)
    # Where it does not fit by itself, it comes before all other changes, but not together with weights in 4 bits.
    least = needed(config, replace(setting, processes=4, batch_size=1, accumulates=True))
    (both,) = ways_to_fit(config, setting, least, 32, sharing=4, may_be_shared_out=True)
    assert both.options == {"parallel": "fsdp", "batch_size": 1, "accumulate": 32}
    ways = ways_to_fit(config, setting, least, 32, is_fine_tuning=True, sharing=4, may_be_shared_out=True)
    assert all(way.options.keys() & {"parallel", "method"} != {"parallel", "method"} for way in ways)


def test_where_no_change_suffices_they_are_combined() -> None:
    config = replace(COSTED_ENCODER, dropout=0.1, n_layers=8)
    setting = TrainingSetting(batch_size=6, length=1024)
    thrifty = replace(setting, batch_size=1, accumulates=True, activation_checkpointing=True)
    limit = training_memory(with_length(config, 1024), thrifty).total
    combined, shorter = ways_to_fit(config, setting, limit)
    assert combined.options == {"activation_checkpointing": True, "batch_size": 1, "accumulate": 6}
    assert (shorter.setting.batch_size, shorter.setting.activation_checkpointing) == (6, False)
    (last_resort,) = ways_to_fit(config, setting, 0.6 * limit)
    assert last_resort.options["activation_checkpointing"]
    assert fits(last_resort.config, last_resort.setting, 0.6 * limit)
    assert ways_to_fit(config, setting, 1e6) == []  # less than the weights


def test_largest_networks_fit_and_the_next_larger_one_does_not() -> None:
    def make(layers: int, width: int) -> NetworkConfig:
        return replace(COSTED_ENCODER, n_layers=layers, d_model=width, n_heads=width // 64, max_sequence_length=1024)

    setting = TrainingSetting(batch_size=1, length=1024, bf16=True, on_cpu=False)
    rungs = largest_networks(make, setting, 8e9)
    sizes = [total_parameters(rung.config) for rung in rungs]
    assert len(rungs) == 5
    assert sizes == sorted(sizes, reverse=True)
    for rung in rungs:
        assert fits(rung.config, rung.setting, 8e9)
        more = replace(rung.setting, batch_size=rung.setting.batch_size + 1)
        assert not fits(rung.config, more, 8e9)
    assert largest_networks(make, setting, 1e6) == []


def test_a_process_has_its_part_of_the_matrices_and_two_layers_and_all_outside_of_them_for_a_while() -> None:
    config, setting = replace(LLADA_8B, max_sequence_length=1024), TrainingSetting(1, 1024, bf16=True)
    layer, table = 4096 * 4096 * 4 + 3 * 4096 * 12288, 126464 * 4096
    norms = 65 * 4096
    assert total_parameters(config) == 32 * layer + 2 * table + norms
    for processes in (2, 8, 64):
        each = training_memory(config, replace(setting, processes=processes))
        own = (32 * layer + 2 * table) // processes + norms
        assert (each.weights, each.gradients, each.optimizer) == (4 * own, 4 * own, 8 * own)
        assert each.gathered == 2 * 2 * 2 * layer + 4 * 2 * table
        assert each.total > 16 * own + each.gathered
        accumulating = replace(setting, processes=processes, accumulates=True)
        more = training_memory(config, accumulating)
        whole = training_memory(config, replace(accumulating, keeps_gradients_whole=True))
        assert each.total < more.total < whole.total
        assert whole.gradients == more.gradients
    # One card of 80 GB does not suffice for AdamW in fp32; four do.
    thrifty = replace(setting, activation_checkpointing=True, logits_at_once=LOGITS_AT_ONCE)
    assert training_memory(config, thrifty).total > 120e9
    assert training_memory(config, replace(thrifty, processes=4)).total < 50e9


def test_processes_that_add_up_gradients_copy_some_of_them() -> None:
    at_once = 2**24
    one = replace(SETTING, batch_size=1, length=1, sent_at_once=at_once)
    large, small = training_memory(LLADA_8B, one), training_memory(COSTED_LLADA, one)
    assert (large.sent, large.total) == (4 * at_once, 16 * total_parameters(LLADA_8B) + 4 * at_once)
    n = total_parameters(COSTED_LLADA)
    assert n < at_once
    assert (small.sent, small.total) == (4 * n, (16 + 4) * n)
    assert training_memory(LLADA_8B, replace(one, bf16_weights=True)).sent == 2 * at_once
    assert training_memory(LLADA_8B, replace(one, processes=2)).sent == 0  # sent layer by layer
    adapters = replace(one, method="lora", lora_rank=1)  # which every process has whole, sharing out the base or not
    for processes in (1, 2):
        assert training_memory(LLADA_8B, replace(adapters, processes=processes)).sent == 4 * lora_parameters(
            LLADA_8B, 1
        )


def test_a_process_has_its_part_of_a_frozen_base_and_all_of_the_adapters() -> None:
    config = replace(LLADA_8B, max_sequence_length=1024)
    setting = TrainingSetting(1, 1024, bf16=True, method="lora", activation_checkpointing=True)
    alone, each = (training_memory(config, replace(setting, processes=processes)) for processes in (1, 8))
    adapters = 4 * lora_parameters(config, setting.lora_rank)
    norms = 65 * 4096
    assert alone.weights == 2 * total_parameters(config) + adapters
    assert each.weights == 2 * ((total_parameters(config) - norms) // 8 + norms) + adapters
    assert (each.gradients, each.optimizer) == (alone.gradients, alone.optimizer) == (adapters, 2 * adapters)
    assert each.total < alone.total


def test_all_matrices_of_adapters_may_be_muons() -> None:
    memory = training_memory(COSTED_LLADA, replace(SETTING, method="lora", optimizer="muon"))
    assert memory.optimizer == 4 * lora_parameters(COSTED_LLADA, SETTING.lora_rank)
