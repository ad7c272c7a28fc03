"""How much of a step of the sampler is not the network's: with LLaDA's vocabulary of 126,464 and a small trunk.

    python benchmarks/sampler_overhead.py [--d_model 256] [--n_layers 2] [--masks 256] [--steps 5] [--repeats 3]

A row of the table is a way to sample, from a canvas with so many masks and as many random tokens between them: the
median seconds of a step, those within the predictor, and the rest as a share of the step. The suppression of tokens
that no text has is part of the rest. The wider the network, the smaller the share: the rest does not depend on it.
"""

import argparse
import statistics
import time
from itertools import islice

import torch
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor

from llada.models import LLaDAConfig, MaskPredictor, build_network
from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import suppress
from llada.sampling.unmask import unmask
from llada.system.device import describe_device

VOCABULARY, MASK_ID, FORBIDDEN = 126_464, 126_336, (0, 126_336)
WAYS = {
    "random": SamplerConfig(steps=None, temperature=1.0, policy="random"),
    "confidence": SamplerConfig(steps=None, temperature=0.0, policy="confidence"),
    "low_confidence": SamplerConfig(steps=None, temperature=0.0),
    "low_confidence, T 1": SamplerConfig(steps=None, temperature=1.0),
    "margin": SamplerConfig(steps=None, temperature=1.0, policy="margin"),
    "entropy_bound": SamplerConfig(steps=None, temperature=1.0, policy="entropy_bound"),
    "threshold": SamplerConfig(steps=None, temperature=0.0, policy="threshold"),
}


class Timed:
    """A predictor that adds up the seconds that it takes."""

    takes_positions = gives_new_logits = True

    def __init__(self, model: MaskPredictor) -> None:
        self.model, self.seconds = model, 0.0

    def __call__(self, x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor) -> Tensor:
        start = time.perf_counter()
        logits = self.model(x_t, attention_mask=attention_mask, positions=positions)
        self.seconds += time.perf_counter() - start
        return logits


def make_model(d_model: int, n_layers: int, length: int) -> MaskPredictor:
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=d_model,
        n_heads=d_model // 64,
        n_layers=n_layers,
        vocab_size=VOCABULARY,
        mask_token_id=MASK_ID,
        pad_token_id=0,
        eos_token_id=2,
        mlp_hidden_size=4 * d_model,
        max_sequence_length=length,
    )
    return MaskPredictor(build_network(config), MASK_ID, MASK_ID).eval()


def measure(model: MaskPredictor, config: SamplerConfig, n_masks: int, n_steps: int) -> tuple[list[float], list[float]]:
    """The seconds of each step but the first, which warms up, and those within the predictor."""
    timed, template = Timed(model), torch.full((1, 2 * n_masks), MASK_ID)
    # Without different neighbours, a random network's predictions are the same everywhere.
    template[0, ::2] = torch.randint(3, 1000, (n_masks,), generator=Generator().manual_seed(0))
    steps, inside, start, before = [], [], time.perf_counter(), 0.0
    predict = suppress(timed, FORBIDDEN)
    for _ in islice(unmask(predict, template, MASK_ID, config, Generator().manual_seed(1)), n_steps + 1):
        now = time.perf_counter()
        steps.append(now - start)
        inside.append(timed.seconds - before)
        start, before = time.perf_counter(), timed.seconds
    return steps[1:], inside[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d_model", type=int, default=256)
    parser.add_argument("--n_layers", type=int, default=2)
    parser.add_argument("--masks", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model = make_model(options.d_model, options.n_layers, 2 * options.masks)
    seconds: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in WAYS}
    for _ in range(options.repeats):
        for way, config in WAYS.items():
            for kept, new in zip(seconds[way], measure(model, config, options.masks, options.steps), strict=True):
                kept += new
    table = Table("way", "ms a step", "ms in the network", "ms of the rest", "share of the rest")
    for way, (steps, inside) in seconds.items():
        rest = [step - part for step, part in zip(steps, inside, strict=True)]
        shares = [part / step for part, step in zip(rest, steps, strict=True)]
        numbers = (1e3 * statistics.median(each) for each in (steps, inside, rest))
        table.add_row(way, *(f"{number:.1f}" for number in numbers), f"{100 * statistics.median(shares):.1f} %")
    console = Console()
    console.print(f"{options.n_layers} layers of {options.d_model}, {options.masks} masks, vocabulary {VOCABULARY:,}")
    console.print(table)
    console.print(describe_device(torch.device("cpu")))


if __name__ == "__main__":
    main()
