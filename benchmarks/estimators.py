"""Scatter of an evaluation, for ours and for other estimators of the same bound, at the same number of passes.

    python benchmarks/estimators.py --checkpoint runs/demo [--windows 32] [--masks 8] [--repeats 40]

The same windows are evaluated again and again with other masks. The variance of an estimator over the repeats, as a
multiple of ours, is how many times more masks it needs for the same error.
"""

import argparse
import datetime
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor

from llada.checkpoints.folder import read_checkpoint
from llada.data.batches import TokenBatch
from llada.data.prepared import DEFAULT_FOLDER, PreparedText
from llada.evaluation.nelbo import BoundOptions, estimate_nelbo, nll_by_model
from llada.evaluation.standard_errors import in_words, mean_stderr
from llada.evaluation.windows import cut_windows
from llada.forward_process import NoisyBatch, mask_bernoulli, mask_exact_count
from llada.objective import sequence_bounds
from llada.system.device import choose_precision
from llada.system.environment import set_defaults

Draw = Callable[[Tensor, Generator], NoisyBatch]


def row_by_row(mask_id: int, mask: Callable[[Tensor, int, Generator], NoisyBatch]) -> Draw:
    """Make a `Draw` that masks rows (B, L) one at a time, so that nothing is stratified."""

    def draw(rows: Tensor, generator: Generator) -> NoisyBatch:
        drawn = [mask(row[None], mask_id, generator) for row in rows]
        parts = zip(*(vars(noisy).values() for noisy in drawn), strict=True)
        return NoisyBatch(*(torch.cat(part) for part in parts))

    return draw


def main() -> None:
    set_defaults()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--checkpoint", default="runs/demo")
    parser.add_argument("--data_dir", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--masks", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    device = torch.device("cpu")
    checkpoint = read_checkpoint(options.checkpoint, device)
    mask_id, data = checkpoint.tokenizer.mask_id, PreparedText.open(options.data_dir)
    windows = cut_windows(data.tokens("val"), checkpoint.config.max_sequence_length, options.windows)
    nll = nll_by_model(checkpoint.model, choose_precision("auto", device))

    @torch.inference_mode()
    def by_rows(draw: Draw, seed: int) -> float:
        generator, bounds = Generator().manual_seed(seed), []
        for rows in windows.repeat_interleave(options.masks, 0).split(32):
            noisy = draw(rows, generator)
            bounds.append(sequence_bounds(nll.at_masked(noisy, TokenBatch(rows)), noisy).double())
        return float(torch.cat(bounds).mean())

    def ours(seed: int) -> tuple[float, float | None]:
        result = estimate_nelbo(nll, TokenBatch(windows), BoundOptions(options.masks, seed=seed))
        return result.nelbo_nats_per_token, result.mask_stderr

    own = [ours(seed) for seed in range(options.repeats)]
    values = {"ours: counts stratified over windows, complementary pairs": [mean for mean, _ in own]}
    others = {
        "counts exact, each drawn by itself": row_by_row(mask_id, mask_exact_count),
        "t drawn by itself, tokens masked independently (LLaDA's loss)": row_by_row(mask_id, mask_bernoulli),
    }
    for n_done, (name, draw) in enumerate(others.items(), start=1):  # each with seeds of its own: independent means
        first = n_done * options.repeats
        values[name] = [by_rows(draw, seed) for seed in range(first, first + options.repeats)]
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(
        title=f"{datetime.date.today()} · {options.repeats} evaluations of {options.windows} windows, "
        f"{options.masks} masks each · {options.checkpoint}"
    )
    for column in ("estimator", "mean ± s.e.", "scatter", "variance, x ours"):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    variance = torch.tensor(list(values.values()), dtype=torch.float64).var(1)
    for (name, drawn), own_variance in zip(values.items(), variance, strict=True):
        means = torch.tensor(drawn, dtype=torch.float64)
        mean = in_words(float(means.mean()), mean_stderr(means))
        table.add_row(name, mean, f"{own_variance**0.5:.4f}", f"{own_variance / variance[0]:.1f}")
    console.print(table)
    stated = sum(error or 0.0 for _, error in own) / len(own)
    console.print(f"The error that ours states for the masks alone, on average: {stated:.4f}")


if __name__ == "__main__":
    main()
