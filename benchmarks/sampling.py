"""Speed of the sampler on this machine: tokens per second at one evaluation a token, by policy and way to compute.

    python benchmarks/sampling.py [--checkpoint RUN] [--batch 16] [--length 256] [--steps 4] [--repeats 3]

Without a checkpoint, a network of the preset laptop with random weights: at one evaluation a token, what it writes
does not change how long that takes. The ways: the whole network, of which the asked positions are taken (the
baseline); the last layer and the head at the asked positions; and with the cache of the local network. A row is the
median over steps at four stages of a text (all, 3/4, 1/2 and 1/4 of it open); the ways take turns, so that a drift of
the machine hits all of them alike, and the ratios hold where the seconds do not. "same" says whether a way gives the
very texts of the baseline; a random network is undecided, and texts may then differ by the last bit of a logit.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import islice

import torch
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor

from llada.checkpoints.load import open_model
from llada.models import LocalConfig, MaskPredictor, PredictAt, build_network
from llada.models.local_cache import with_cache
from llada.sampling.config import SamplerConfig
from llada.sampling.unmask import unmask
from llada.system.device import describe_device
from llada.training.presets import PRESETS

MASK_ID = 126_336
STAGES = (1.0, 0.75, 0.5, 0.25)
POLICIES = {
    "random": SamplerConfig(steps=None, temperature=1.0, policy="random"),
    "entropy_bound 0": SamplerConfig(steps=None, temperature=1.0, policy="entropy_bound", entropy_bound=0.0),
    "low_confidence": SamplerConfig(steps=None, temperature=1.0, remasking="low_confidence"),
}


class WholeNetwork:
    """The asked positions of what the network computes everywhere."""

    takes_positions = True

    def __init__(self, model: MaskPredictor) -> None:
        self.model = model

    def __call__(self, x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor) -> Tensor:
        features = self.model.network.features(self.model.checked_rows(x_t), attention_mask)
        return self.model.head(features.flatten(0, 1)[positions.flatten()])


WAYS: dict[str, Callable[[MaskPredictor], PredictAt]] = {
    "whole network": WholeNetwork,
    "where asked": lambda model: model,
    "cached": with_cache,
}


def make_model(checkpoint: str | None, length: int) -> MaskPredictor:
    if checkpoint is not None:
        return open_model(checkpoint).model
    torch.manual_seed(0)
    options, vocab_size = PRESETS["laptop"].network, 66
    config = LocalConfig(
        vocab_size=vocab_size,
        mask_token_id=vocab_size - 1,
        pad_token_id=0,
        eos_token_id=2,
        max_sequence_length=length,
        d_model=options.d_model,
        n_heads=options.n_heads,
        n_layers=options.n_layers,
        mlp_hidden_size=4 * options.d_model,
    )
    network = build_network(config)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return MaskPredictor(network, MASK_ID, vocab_size - 1).eval()


def make_template(batch: int, length: int, share_open: float) -> Tensor:
    """Random tokens (B, L), with MASK at a share of the positions, equally many in each row."""
    generator = Generator().manual_seed(1)
    ids = torch.randint(3, 60, (batch, length), generator=generator)
    place = torch.rand(batch, length, generator=generator).argsort(dim=1)
    return torch.where(place < round(share_open * length), MASK_ID, ids)


def time_steps(predict: PredictAt, template: Tensor, config: SamplerConfig, n_steps: int) -> tuple[list[float], Tensor]:
    """Seconds of each step but the first, which warms up; and the text after the last one."""
    seconds, x_t, start = [], template, time.perf_counter()
    for state in islice(unmask(predict, template, MASK_ID, config, Generator().manual_seed(2)), n_steps + 1):
        now = time.perf_counter()
        seconds.append(now - start)
        x_t, start = state.x_t, now
    return seconds[1:], x_t


def measure(model: MaskPredictor, policy: str, options: argparse.Namespace) -> dict[str, tuple[float, bool]]:
    """For each way the seconds of a step, and whether it gives the baseline's texts."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    texts: dict[str, list[Tensor]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for share_open in STAGES:
            template = make_template(options.batch, options.length, share_open)
            for way, make in WAYS.items():
                some, text = time_steps(make(model), template, POLICIES[policy], options.steps)
                seconds[way] += some
                texts[way].append(text)
    plain = texts["whole network"]
    return {way: (statistics.median(seconds[way]), all(map(torch.equal, texts[way], plain))) for way in WAYS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a local network's run or checkpoint; if left out, random weights")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4, help="steps at each stage")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model = make_model(options.checkpoint, options.length)
    table = Table("policy", "way", "ms a step", "tokens a second", "times the baseline", "same")
    for policy in POLICIES:
        results = measure(model, policy, options)
        baseline = results["whole network"][0]
        for way, (seconds, is_same) in results.items():
            rate, times = f"{options.batch / seconds:,.0f}", f"{baseline / seconds:.2f}"
            table.add_row(policy, way, f"{1000 * seconds:.2f}", rate, times, "yes" if is_same else "no")
    console = Console()
    console.print(f"{options.batch} x {options.length} tokens. {describe_device(torch.device('cpu'))}.")
    console.print(table)


if __name__ == "__main__":
    main()
