"""The network of tables, convolutions and attention, against plain twins of its parts and of the whole.

Shape letters: B batch, L length, V vocabulary rows, D width, H heads, C channels of a head.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llada.models import LocalConfig, build_network, config_from_json, config_to_json
from llada.models.local import NEIGHBOURS, Local, NearMixing, Scores, attend_by_matmuls, pair_keys
from tests.support.configurations import ODD_LOCAL


def trained_network(config: LocalConfig = ODD_LOCAL) -> Local:
    """With nothing left at zero or one, as after some training."""
    torch.manual_seed(0)
    network = build_network(config)
    assert isinstance(network, Local)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def plain_norm(x: Tensor) -> Tensor:
    return torch.stack([row / (row.pow(2).mean() + 1e-6).sqrt() for row in x.flatten(0, -2)]).view_as(x)


def plain_rotation(x: Tensor) -> Tensor:
    """Channels c and c + C/2 as a complex number, turned by position times 10000^(-2c/C); x is (L, C)."""
    length, channels = x.shape
    half = channels // 2
    angle = torch.arange(length)[:, None] * 10_000.0 ** (-2 * torch.arange(half) / channels)
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=1)


def plain_logits(network: Local, rows: list[int]) -> Tensor:
    """One sequence, by position and by head."""
    config, length = network.config, len(rows)
    tables: Any = network.pair_embeddings
    layers: Any = network.layers

    def row_at(place: int) -> int:
        return rows[place] if 0 <= place < length else config.vocab_size

    x = torch.stack([network.token_embedding.weight[row] for row in rows])
    for (left, right), table in zip(NEIGHBOURS, tables, strict=True):
        keys = [row_at(i + left) * (config.vocab_size + 1) + row_at(i + right) for i in range(length)]
        x = x + table.weight[keys]
    x = embedded = plain_norm(x)
    first_values = None
    for layer in layers:
        x = x * layer.stream_share + embedded * layer.embedding_share
        taps = layer.near.weight[:, 0]  # (W, D)
        h = F.conv1d(plain_norm(x).T, taps.T[:, None], padding=len(taps) // 2, groups=config.d_model).T
        if not layer.attends:
            x = x + (h @ layer.up_proj.weight.T).clamp(min=0) ** 2 @ layer.ff_out.weight.T
            continue
        q, k, v = h @ layer.q_proj.weight.T, h @ layer.k_proj.weight.T, h @ layer.v_proj.weight.T
        first_values = v if first_values is None else first_values
        v = layer.value_share * v + layer.first_value_share * first_values
        mixed = []
        for head in range(config.n_heads):
            channels = slice(head * config.head_dim, (head + 1) * config.head_dim)
            query = layer.sharpness * plain_rotation(plain_norm(q[:, channels]))
            key = plain_rotation(plain_norm(k[:, channels]))
            mixed.append((query @ key.T / config.head_dim**0.5).softmax(-1) @ v[:, channels])
        x = x + torch.cat(mixed, dim=1) @ layer.attn_out.weight.T
        x = x + (plain_norm(x) @ layer.up_proj.weight.T).clamp(min=0) ** 2 @ layer.ff_out.weight.T
    return plain_norm(x) @ network.output.weight.T


def test_the_network_equals_its_plain_twin() -> None:
    network = trained_network()
    rows = torch.randint(0, 7, (3, 20), generator=torch.Generator().manual_seed(1))
    plain = torch.stack([plain_logits(network, row.tolist()) for row in rows])
    torch.testing.assert_close(network(rows), plain, rtol=1e-4, atol=1e-4)
    weights = torch.randn(3, 20, 7)
    fast = torch.autograd.grad((network(rows) * weights).sum(), list(network.parameters()))
    slow = torch.autograd.grad((plain * weights).sum(), list(network.parameters()))
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_the_last_layer_of_so_many_attends() -> None:
    assert [layer.attends for layer in trained_network().layers] == [False, True, False, True]
    one_in_five = trained_network(replace(ODD_LOCAL, n_layers=6, attention_every=5))
    assert [layer.attends for layer in one_in_five.layers] == [False, False, False, False, True, False]


def test_keys_of_pairs_by_hand() -> None:
    left_and_right, before, behind = (
        keys[0].tolist() for keys in pair_keys(torch.tensor([[3, 1, 6]]), None, ODD_LOCAL)
    )
    edge = 7
    assert left_and_right == [edge * 8 + 1, 3 * 8 + 6, 1 * 8 + edge]
    assert before == [edge * 8 + edge, edge * 8 + 3, 3 * 8 + 1]
    assert behind == [1 * 8 + 6, 6 * 8 + edge, edge * 8 + edge]


def test_more_pairs_than_rows_share_them() -> None:
    config = replace(ODD_LOCAL, vocab_size=126_464, mask_token_id=126_336, table_rows=1000)
    rows = torch.randint(0, 126_464, (4, 500), generator=torch.Generator().manual_seed(0))
    for keys in pair_keys(rows, None, config):
        assert int(keys.min()) >= 0
        assert int(keys.max()) < config.n_pairs == 1000
        assert keys.unique().numel() > 800  # of 2,000 draws from 1,000 rows, 865 are to be expected


def test_the_convolution_starts_as_no_change_and_equals_torchs() -> None:
    mixing, x = NearMixing(6, 5), torch.randn(2, 9, 6)
    assert torch.equal(mixing(x), x)
    with torch.no_grad():
        mixing.weight.normal_()
    theirs = F.conv1d(x.mT, mixing.weight[:, 0].T[:, None], padding=2, groups=6).mT
    torch.testing.assert_close(mixing(x), theirs)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_by_products_equals_torchs(has_bias: bool, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, out = (torch.randn(2, 3, 33, 8, generator=generator).to(dtype) for _ in range(4))
    bias = torch.randn(2, 1, 1, 33, generator=generator) if has_bias else None
    results = []

    def by_torch(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), bias).to(dtype)

    for attend in (attend_by_matmuls, by_torch):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        mixed = attend(inputs[0], inputs[1], inputs[2], bias)
        results.append([mixed, *torch.autograd.grad(mixed, inputs, out)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance)


def test_scores_have_the_gradients_of_a_matmul_and_lie_as_the_keys_do() -> None:
    q, k, direction = torch.randn(3, 2, 3, 5, 4, dtype=torch.float64).unbind()
    direction = direction @ torch.randn(4, 5, dtype=torch.float64)
    q.requires_grad_()
    k.requires_grad_()
    assert torch.equal(Scores.apply(q, k), q @ k.mT)
    ours = torch.autograd.grad((Scores.apply(q, k) * direction).sum(), (q, k))
    torch.testing.assert_close(ours, torch.autograd.grad((q @ k.mT * direction).sum(), (q, k)))
    assert ours[1].is_contiguous()  # which autograd's own is not


def test_padding_changes_nothing() -> None:
    network = trained_network()
    rows = torch.randint(0, 6, (1, 11), generator=torch.Generator().manual_seed(2))
    padded = torch.cat((rows, torch.full((1, 6), 3)), dim=1)
    attention_mask = torch.arange(17)[None] < 11
    torch.testing.assert_close(network(padded, attention_mask)[:, :11], network(rows), rtol=1e-4, atol=1e-4)
    assert bool(network(torch.cat((rows, rows)), torch.stack((torch.ones(11), torch.zeros(11)))).isfinite().all())


def test_long_sequences_go_another_way_to_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    network = trained_network()
    rows = torch.randint(0, 7, (2, 30), generator=torch.Generator().manual_seed(3))
    by_products = network(rows)
    monkeypatch.setattr("llada.models.local.LONGEST_SCORES", 20)
    torch.testing.assert_close(network(rows), by_products, rtol=1e-4, atol=1e-4)


def test_bf16_is_near_fp32() -> None:
    network = trained_network()
    rows = torch.randint(0, 7, (4, 40), generator=torch.Generator().manual_seed(4))
    exact = network(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = network(rows)
    assert rounded.dtype == torch.bfloat16
    assert float(((rounded.float() - exact).pow(2).mean() / exact.pow(2).mean()).detach()) < 2e-3


def test_its_configuration_is_stored_and_read() -> None:
    config = replace(ODD_LOCAL, conv_width=3, table_rows=50, rope_theta=500.0)
    assert config_from_json(config_to_json(config)) == config


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"conv_width": 4}, "odd"),
        ({"n_heads": 3}, "multiple"),
        ({"table_rows": 0}, "table_rows"),
        ({"mask_token_id": 7}, "not a row"),
        ({"rope_theta": float("nan")}, "rope_theta"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(change: dict[str, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        replace(ODD_LOCAL, **change)  # type: ignore[arg-type]
