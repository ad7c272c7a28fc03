"""What a run measures of itself and writes down: the loss by t, metrics.jsonl, curves.png.

A line of metrics.jsonl is one of three kinds, each a JSON object. null stands where a number is not finite, or where
nothing was measured.

Every ``log_every`` steps, what was measured since the line before:
    step                    steps done
    tokens                  that went through the network so far, padding included
    seconds                 of training so far, evaluation included
    loss                    of the last step, weighted as it is trained, in nats per token
    nll                     mean cross-entropy at masked positions, unweighted, in nats
    nll_by_t                the same in ten bins of t, from 0 to 1
    grad_norm               of the last step, before clipping
    learning_rate_factor    on the peak learning rates
    tokens_per_second       of training alone; null in the first steps
    fraction_done           of the run, by steps or by time, whichever is further
    memory_bytes            of the process now, or the peak of its GPU; null where the system does not report it
    skipped_steps           left out since their loss or gradient was not finite; only if there were any
    spike_from              nll before it leapt; only if it did
    eos_predicted, eos_true share of EOS among the likeliest and the true tokens at masked positions; dialogues only

At every evaluation, also before the first step of fine-tuning, as step 0:
    step, nelbo, nelbo_stderr       the bound on the validation data, in nats per token, with its standard error
    nelbo/NAME                      the same on the folder of that name; mixtures only
    answer_length, reference_length tokens on average, of the model's answers and the true ones; dialogues only
    answers_ended, answers_empty, answers_exact         shares of the answers; dialogues only

When the run went back to a checkpoint:
    step                    of that checkpoint
    went_back_from          steps that were done then; they are taken anew
    data_order              how often the run went back

Letters: N masked positions, T bins of t.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llada.checkpoints.run_layout import each_row
from llada.forward_process import NoisyBatch
from llada.system.device import send
from llada.system.errors import UserError
from llada.system.files import file_written_whole, flush_to_disk, write_text_whole
from llada.system.regular_files import append_own
from llada.training.nan_guard import finite_or_none

N_BINS = 10
MOST_POINTS = 2000  # of a curve: more than its picture has columns of pixels


class LossByTime:
    """The unweighted cross-entropy in T bins of t, which explains a spike of the weighted loss.

    The training loss divides by p, so that one batch with few masks can move it by a lot without meaning anything.
    """

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros(N_BINS, device=device)
        self._count = torch.zeros(N_BINS)

    @torch.no_grad()
    def add(self, nll: Tensor, noisy: NoisyBatch) -> None:
        """Add the (N,) cross-entropies, on the device, at the masked positions of a batch, which is on the CPU."""
        bins = noisy.at_masked((noisy.t * N_BINS).long().clamp(max=N_BINS - 1)[:, None])
        self._sum.index_add_(0, send(bins, nll.device), nll.detach().float())
        self._count += torch.bincount(bins, minlength=N_BINS)

    @property
    def sums(self) -> Mapping[str, Tensor]:
        return {"sum": self._sum, "count": self._count}

    def take(self) -> tuple[float | None, list[float | None]]:
        """Return the mean over all and by bin, None where nothing was masked or a sum is non-finite, and reset."""
        sums, counts = self._sum.tolist(), self._count.tolist()
        self._sum.zero_()
        self._count.zero_()
        by_bin = [finite_or_none(s / c) if c else None for s, c in zip(sums, counts, strict=True)]
        return (finite_or_none(sum(sums) / sum(counts)) if sum(counts) else None), by_bin


class MetricsFile:
    """The file metrics.jsonl: one JSON object a line, appended and flushed."""

    def __init__(self, path: Path, from_step: int, data_order: int = 0) -> None:
        """Open for appending; lines that a run left which was stopped later than saved are dropped: those after
        `from_step`, and of having gone back more often than `data_order`."""
        self.path = path
        if os.path.lexists(path):  # a link is replaced, not written to
            kept = (r for r in self.rows() if r["step"] <= from_step and r.get("data_order", 0) <= data_order)
            write_text_whole(path, "".join(json.dumps(row) + "\n" for row in kept))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Iterate over the rows already in the file, one at a time, because long runs have millions."""
        return each_row(self.path) if self.path.exists() else iter(())

    def write(self, row: dict[str, Any]) -> None:
        """Append a line.

        Raises:
            UserError: the folder is gone.
        """
        try:
            append_own(self.path, json.dumps(row) + "\n")
        except FileNotFoundError:
            raise UserError(
                f"{self.path.parent} was renamed or removed while it was written: go on with `resume` from where it is "
                "now."
            ) from None

    def flush_to_disk(self) -> None:
        """Flush the file to the disk before a checkpoint, so that no step of the checkpoint is missing in the file."""
        if self.path.exists():
            flush_to_disk(self.path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all rows of a metrics.jsonl."""
    return list(each_row(path))


class Thinned:
    """Some of many rows, evenly spread, and the last: all of up to `MOST_POINTS`, then every second, ..."""

    def __init__(self) -> None:
        self._kept: list[dict[str, Any]] = []
        self._after: list[dict[str, Any]] = []  # the last, if it is not kept
        self._every, self._seen = 1, 0

    def add(self, row: dict[str, Any]) -> None:
        is_kept = self._seen % self._every == 0
        if is_kept and len(self._kept) == MOST_POINTS:
            self._kept, self._every = self._kept[::2], 2 * self._every
            is_kept = self._seen % self._every == 0
        if is_kept:
            self._kept.append(row)
        self._after = [] if is_kept else [row]
        self._seen += 1

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self._kept + self._after


def read_curves(metrics: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read the rows of a metrics.jsonl that curves are drawn of, thinned: those of training, and those of evaluations.

    Rows whose loss is not finite are left out.
    """
    training, evaluations = Thinned(), Thinned()
    for row in each_row(metrics):
        if row.get("nelbo") is not None:
            evaluations.add(row)
        elif row.get("loss") is not None and row.get("nll") is not None:
            training.add(row)
    return training.rows, evaluations.rows


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw the curves of a run: loss and bound over steps, and the cross-entropy by t at the start, middle and end."""
    from matplotlib.figure import Figure  # without pyplot, which takes as long again to import

    training, evaluations = read_curves(metrics)
    if not training:
        return
    figure = Figure(figsize=(11, 4))  # with margins of its own: a layout that finds them draws everything twice
    left, right = figure.subplots(
        1, 2, gridspec_kw={"left": 0.065, "right": 0.985, "bottom": 0.13, "top": 0.92, "wspace": 0.17}
    )
    steps = [row["step"] for row in training]
    left.plot(steps, [row["nll"] for row in training], color="tab:gray", lw=0.8, label="cross-entropy, unweighted")
    left.plot(steps, [row["loss"] for row in training], color="tab:blue", lw=0.8, alpha=0.5, label="training loss")
    if evaluations:
        left.errorbar(
            [row["step"] for row in evaluations],
            [row["nelbo"] for row in evaluations],
            yerr=[row["nelbo_stderr"] or 0 for row in evaluations],
            color="tab:red", marker="o", ms=3, label="NELBO, validation",
        )  # fmt: skip
    left.set(xlabel="step", ylabel="nats per token", title="Training")
    left.legend(frameon=False)
    centres = [(i + 0.5) / N_BINS for i in range(N_BINS)]
    for share, colour in ((0.0, "0.75"), (0.5, "0.45"), (1.0, "black")):
        row = training[round(share * (len(training) - 1))]
        values = [math.nan if value is None else value for value in row["nll_by_t"]]
        right.plot(centres, values, marker="o", ms=3, color=colour, label=f"step {row['step']}")
    right.set(xlabel="t (share of masked tokens)", ylabel="nats per masked token", title="Cross-entropy by t")
    right.legend(frameon=False)
    with file_written_whole(picture) as aside:
        figure.savefig(aside, dpi=130, format="png")
