"""Whether a run learns, and which setting is likely to blame if it does not."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from llada.data.mixture import Mixture
from llada.data.prepared import Ids
from llada.data.sharded import ShardedIds
from llada.models import LocalConfig
from llada.training.plan import RunPlan

# Steps over which the cross-entropy is averaged: a tenth of the run, within bounds.
SMALLEST_WINDOW, LARGEST_WINDOW, WINDOWS_IN_A_RUN = 10, 100, 10
UNLEARNT_MARGIN = 0.05  # nats below the unigram entropy that count as having learned something from context
WORSE_MARGIN = 0.3  # nats above it, or above the best so far, that count as getting worse
PATIENCE = 0.25  # the share of the run by which something has to be learned
SPIKE_WINDOW, SPIKE_DISTANCES, SPIKE_SHARE = 40, 8.0, 0.1

# Rates that work: Muon's does not depend on the width (Keller Jordan, 2024); AdamW's falls with it (arXiv 2203.03466),
# from the laptop preset's by way of GPT-2's 6e-4 to LLaDA's 4e-4 with its own for fine-tuning (arXiv 2502.09992).
USUAL_MUON_RATE = 0.02
USUAL_ADAMW_RATE, REFERENCE_WIDTH = 3e-3, 128
USUAL_FINE_TUNING_RATE = 2.5e-5
USUAL_TABLE_RATE = 1e-2  # rows of a table are seldom seen (docs/EXPERIMENTS.md, 12)
TOLERATED_FACTOR = 3.0


def unigram_entropy(*texts: Ids | ShardedIds, shares: Sequence[float] = (1.0,)) -> float:
    """Nats per token of a model that knows only how often each token comes, in a text or in a mixture by `shares`."""
    # A corpus of any size has its counts in a file; numpy 1 does not count uint64.
    counts = [ids.counts() if isinstance(ids, ShardedIds) else np.bincount(ids.astype(np.int64)) for ids in texts]
    mixed = np.zeros(max(map(len, counts)))
    for share, count in zip(shares, counts, strict=True):
        mixed[: len(count)] += share * count / count.sum()
    mixed = mixed[mixed > 0]
    return float(-(mixed * np.log(mixed)).sum())


class ConvergenceWatch:
    """Given the unweighted cross-entropy of the logged steps, reports each trouble once.

    It looks at means over windows of steps, since single steps depend on their t.
    """

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        if isinstance(plan.data, Mixture):
            texts, shares = (text.tokens("train") for text in plan.data.texts), plan.data.interleaving.shares
            self.unlearnt = unigram_entropy(*texts, shares=shares)
        else:
            self.unlearnt = unigram_entropy(plan.data.tokens("train"))
        steps = plan.total_steps or LARGEST_WINDOW * WINDOWS_IN_A_RUN
        self._window = min(LARGEST_WINDOW, max(SMALLEST_WINDOW, steps // WINDOWS_IN_A_RUN))
        self._values: list[float] = []
        self._first_step: int | None = None
        self._means: list[float] = []
        self._said: set[str] = set()

    def add(self, step: int, fraction_done: float, nll: float | None) -> str | None:
        """A warning for people, or None.

        Args:
            fraction_done: of the run.
            nll: mean cross-entropy at masked positions since the last call, in nats.
        """
        if nll is None:
            return None
        if self._first_step is None:
            self._first_step = step
        self._values.append(nll)
        if step - self._first_step < self._window:
            return None
        self._means.append(sum(self._values) / len(self._values))
        self._values, self._first_step = [], None
        if len(self._means) == 1 or step < 2 * self.plan.config.optimizer.warmup_steps:
            return None  # it has hardly begun
        return self._judge(self._means[-1], min(self._means), fraction_done)

    def _judge(self, mean: float, best: float, fraction_done: float) -> str | None:
        unit = self.plan.data.tokenizer.unit
        if mean > self.unlearnt + WORSE_MARGIN:
            trouble = f"is {mean:.2f} nats, above the {self.unlearnt:.2f} of knowing how often each {unit} comes"
            return self._say_once("above", f"The loss does not fall: it {trouble}", is_too_fast=True)
        if mean > best + WORSE_MARGIN:
            return self._say_once("rising", f"The loss rose from {best:.2f} to {mean:.2f} nats", is_too_fast=True)
        if mean > self.unlearnt - UNLEARNT_MARGIN and fraction_done > PATIENCE:
            trouble = f"at {mean:.2f} nats, it knows only how often each {unit} comes ({self.unlearnt:.2f})"
            return self._say_once("stuck", f"The loss hardly falls: {trouble}", is_too_fast=False)
        return None

    def _say_once(self, kind: str, what: str, is_too_fast: bool) -> str | None:
        if kind in self._said:
            return None
        self._said.add(kind)
        return f"{what}; {likely_setting(self.plan, is_too_fast)}."


class SpikeWatch:
    """Detects a loss that leaps out of its recent range, by the unweighted cross-entropy of the logged steps.

    It leaps if it is above the median of the last ones by so many of their usual distances from it, and by a share of
    it. The weighted loss would not do: one batch with few masks moves it by a lot.
    """

    def __init__(self) -> None:
        self._lately: deque[float] = deque(maxlen=SPIKE_WINDOW)

    def add(self, nll: float | None) -> float | None:
        """The median that this cross-entropy leapt from, or None."""
        if nll is None:
            return None
        before = np.array(self._lately)
        self._lately.append(nll)
        if len(before) < SPIKE_WINDOW // 4:
            return None
        median = float(np.median(before))
        distance = max(float(np.median(np.abs(before - median))), SPIKE_SHARE * abs(median) / SPIKE_DISTANCES)
        return median if nll > median + SPIKE_DISTANCES * distance else None


def likely_setting(plan: RunPlan, is_too_fast: bool) -> str:
    """Which setting is likely to blame for a loss that rises (`is_too_fast`) or does not fall, and what to try."""
    options, width = plan.config.optimizer, plan.network_config.d_model
    if isinstance(plan.network_config, LocalConfig):
        usual = USUAL_TABLE_RATE
    elif plan.config.base is None:
        usual = USUAL_ADAMW_RATE * REFERENCE_WIDTH / max(width, REFERENCE_WIDTH)
    else:
        usual = USUAL_FINE_TUNING_RATE
    rates = [("learning_rate", options.learning_rate, usual)]
    if options.optimizer == "muon":
        rates.insert(0, ("muon_learning_rate", options.muon_learning_rate, USUAL_MUON_RATE))
    for name, rate, usual_rate in rates:
        if rate > TOLERATED_FACTOR * usual_rate:
            return f"the likely cause is `{name}={rate:g}`, which is high: try {usual_rate:.1g}"
        if rate < usual_rate / TOLERATED_FACTOR and not is_too_fast:
            return f"the likely cause is `{name}={rate:g}`, which is low: try {usual_rate:.1g}"
    name, rate, _ = rates[0]
    if is_too_fast:
        if options.warmup_steps == 0:
            return "the likely cause is `warmup_steps=0`: try 100"
        return f"the likely cause is `{name}`: try {rate / TOLERATED_FACTOR:.1g}"
    return "it needs more steps (`epochs` or `steps`), or shorter sequences, which make more steps of an epoch"
