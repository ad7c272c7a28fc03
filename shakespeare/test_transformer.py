"""Checks of the two networks, to run and read: `python test_transformer.py`. pytest collects them too.

Shape letters: B batch, L length, V vocabulary rows.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor

import clone  # noqa: F401  for its side effect
from checks import run_checks
from llada.costs.parameters import count_parameters, total_parameters
from llada.forward_process import mask_exact_count
from llada.models import (
    EncoderConfig,
    LLaDAConfig,
    MaskPredictor,
    Network,
    NetworkConfig,
    build_network,
)
from llada.objective import loss_weights, masked_nll, weighted_loss
from llada.system.device import choose_device, choose_precision, describe_device

ROWS, MASK_ROW, LENGTH = 69, 68, 64
CONFIGS: dict[str, NetworkConfig] = {
    "llada": LLaDAConfig(
        d_model=128,
        n_heads=2,
        n_layers=4,
        vocab_size=ROWS,
        mask_token_id=MASK_ROW,
        pad_token_id=0,
        eos_token_id=2,
        mlp_hidden_size=352,
        max_sequence_length=LENGTH,
    ),
    "encoder": EncoderConfig(ROWS, MASK_ROW, LENGTH, d_model=128, n_heads=2, n_layers=4),
}


def networks() -> Iterator[tuple[str, Network]]:
    """Build both networks, freshly initialised, in evaluation mode: without dropout."""
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        yield name, build_network(config).eval()


def random_rows(n: int, length: int) -> Tensor:
    return torch.randint(3, MASK_ROW, (n, length), generator=torch.Generator().manual_seed(1))


def test_shapes() -> None:
    for name, network in networks():
        logits = network(random_rows(2, LENGTH))
        assert logits.shape == (2, LENGTH, ROWS)
        assert logits.isfinite().all()
        print(f"  {name}: ids (2, {LENGTH}) in, logits {tuple(logits.shape)} out")


def test_attention_goes_both_ways() -> None:
    """A causal network would give the same logits at the first position, whatever the last token is."""
    for name, network in networks():
        rows = random_rows(1, LENGTH)
        changed = rows.clone()
        changed[0, -1] = 3 + (rows[0, -1] - 2) % (MASK_ROW - 3)
        difference = float((network(rows)[0, 0] - network(changed)[0, 0]).detach().abs().max())
        assert difference > 1e-6
        print(f"  {name}: another last token moves the first position's logits by up to {difference:.1e}")


def test_padding_changes_nothing() -> None:
    for name, network in networks():
        text = random_rows(1, 40)
        padded = torch.cat((text, torch.zeros(1, 24, dtype=torch.long)), dim=1)
        is_text = (torch.arange(64) < 40)[None]
        difference = float((network(padded, is_text)[:, :40] - network(text)).detach().abs().max())
        assert difference < 1e-5
        print(f"  {name}: 24 tokens of padding move the logits of 40 by at most {difference:.1e}")


def test_parameters_are_as_many_as_the_formula_says() -> None:
    for name, network in networks():
        built = sum(parameter.numel() for parameter in network.parameters())
        assert built == total_parameters(network.config)
        parts = ", ".join(f"{part} {n:,}" for part, n in count_parameters(network.config).items())
        print(f"  {name}: {built:,} ({parts})")


def loss_of(network: Network, x_0: Tensor) -> Tensor:
    """Compute LLaDA's loss, under the same masks in each call."""
    noisy = mask_exact_count(x_0, MASK_ROW, torch.Generator().manual_seed(2))
    logits = MaskPredictor(network, MASK_ROW, MASK_ROW)(noisy.x_t, positions=noisy.is_masked)
    return weighted_loss(masked_nll(logits, x_0, noisy), noisy.at_masked(loss_weights(noisy)))


def test_a_step_lowers_the_loss() -> None:
    for name, network in networks():
        x_0 = random_rows(8, LENGTH)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        before = loss_of(network, x_0)
        before.backward()
        optimizer.step()
        after = loss_of(network, x_0)
        assert after < before
        print(f"  {name}: {before.item():.3f} nats per token before one step of AdamW, {after.item():.3f} after")


def show_speed() -> None:
    """Time forward and backward of 8 sequences of 64; a number to read, not a test."""
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    print(f"  {describe_device(device)}, {precision.dtype}: {precision.reason}")
    for name, network in networks():
        network.to(device)
        x_0 = random_rows(8, LENGTH).to(device)
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            with precision.autocast(device):
                loss = network(x_0).float().logsumexp(-1).mean()
            loss.backward()
            loss.item()  # waits for the device
            seconds.append(time.perf_counter() - start)
        print(f"  {name}: {x_0.numel() / sorted(seconds)[5]:,.0f} tokens/s, forward and backward")


CHECKS = (
    test_shapes,
    test_attention_goes_both_ways,
    test_padding_changes_nothing,
    test_parameters_are_as_many_as_the_formula_says,
    test_a_step_lowers_the_loss,
    show_speed,
)

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # there is nothing to choose
    run_checks(CHECKS)
