"""Scatter of the estimate of an answer's log-likelihood about its true value, for ours and for the published script.

    python benchmarks/answers.py --checkpoint runs/demo [--tokens 8 11] [--answers 3] [--draws 128] [--repeats 1500]

Every mask of an answer is evaluated once, which gives the true value; draws are then looked up. Answers come from the
validation text, with the 32 tokens before them as prompts.
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

from llada.checkpoints.folder import Checkpoint, read_checkpoint
from llada.data.prepared import DEFAULT_FOLDER, PreparedText
from llada.evaluation.answer_likelihood import (
    Item,
    all_masks,
    estimate_from_rows,
    mask_answers,
    pad_items,
    predict_by_model,
)
from llada.evaluation.standard_errors import mean_stderr
from llada.forward_process import mask_exact_count
from llada.objective import masked_nll, sequence_bounds
from llada.system.device import Precision
from llada.system.environment import set_defaults

PROMPT = 32
PUBLISHED_BATCH = 16
Draw = Callable[[int, int, Generator], Tensor]


def ours(n: int, draws: int, generator: Generator) -> Tensor:
    """Draw masks (draws, n) bool as the evaluation does."""
    return mask_exact_count(torch.zeros(draws, n, dtype=torch.long), 1, generator, complementary=True).is_masked


def without_pairs(n: int, draws: int, generator: Generator) -> Tensor:
    return mask_exact_count(torch.zeros(draws, n, dtype=torch.long), 1, generator).is_masked


def published(n: int, draws: int, generator: Generator) -> Tensor:
    """Draw masks by the description of get_log_likelihood.py: counts of a batch at even distances from a random start,
    rounded half to even, and taken modulo n; any places."""
    masks = []
    for _ in range(draws // PUBLISHED_BATCH):
        start = float(torch.randint(1, n + 1, (), generator=generator))
        count = torch.linspace(start, start + (PUBLISHED_BATCH - 1) * n / PUBLISHED_BATCH, PUBLISHED_BATCH).round()
        first = torch.arange(n) < ((count.long() - 1) % n + 1)[:, None]
        order = torch.rand(PUBLISHED_BATCH, n, generator=generator).argsort(1)
        masks.append(first.gather(1, order))
    return torch.cat(masks)


@torch.inference_mode()
def bounds_of_all_masks(checkpoint: Checkpoint, item: Item) -> Tensor:
    """Compute the bounds under all masks of an answer, (2^n - 1,) fp64, in nats per token."""
    predict_at = predict_by_model(checkpoint.model, Precision(torch.float32, ""))
    bounds = []
    for masks in all_masks(len(item.answer))[0].split(256):
        batch = pad_items([item] * len(masks), "cpu")
        noisy = mask_answers(batch, masks.flatten(), checkpoint.tokenizer.mask_id)
        nll = masked_nll(predict_at(noisy.x_t, positions=noisy.is_masked), batch.x_0, noisy)
        bounds.append(sequence_bounds(nll, noisy).double())
    return torch.cat(bounds)


def main() -> None:
    set_defaults()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--checkpoint", default="runs/demo")
    parser.add_argument("--data_dir", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 11])
    parser.add_argument("--answers", type=int, default=3)
    parser.add_argument("--draws", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1500)
    options = parser.parse_args()
    checkpoint = read_checkpoint(options.checkpoint)
    text = torch.from_numpy(PreparedText.open(options.data_dir).tokens("val").astype("int64"))
    table = Table(
        title=f"{datetime.date.today()} · log-likelihood of answers, in nats; {options.repeats} times {options.draws} "
        f"draws · {options.checkpoint}"
    )
    for column in ("tokens", "by every mask", "draws", "mean error", "scatter", "stated", "covered by 1.96"):
        table.add_column(column, justify="left" if column == "draws" else "right")
    places, draws = Generator().manual_seed(0), options.draws
    for n in sorted(options.tokens * options.answers):
        start = int(torch.randint(0, len(text) - PROMPT - n, (), generator=places))
        ids = text[start : start + PROMPT + n].tolist()
        bounds = bounds_of_all_masks(checkpoint, Item(tuple(ids[:PROMPT]), tuple(ids[PROMPT:])))
        truth, code = estimate_from_rows(bounds, n, len(bounds)).nats, 2 ** torch.arange(n)
        for name, draw in (("ours", ours), ("ours, without pairs", without_pairs), ("published", published)):
            generator = Generator().manual_seed(1)
            rows = [bounds[(draw(n, draws, generator) * code).sum(1) - 1] for _ in range(options.repeats)]
            error = -n * torch.stack(rows).mean(1) - truth
            stated = covered = ""
            if name == "ours":
                stderr = torch.tensor([estimate_from_rows(row, n, draws).stderr or 0.0 for row in rows])
                stated, covered = (
                    f"{stderr.square().mean().sqrt():.3f}",
                    f"{(error.abs() < 1.96 * stderr).float().mean():.3f}",
                )
            mean = f"{error.mean():+.3f} ± {mean_stderr(error):.3f}"
            table.add_row(str(n), f"{truth:.3f}", name, mean, f"{error.std():.3f}", stated, covered)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
