"""Sampling policies: which masked positions are revealed at a step.

A policy is one function of what is visible,

    choose(log_p, is_open, state) -> revealed,

and it never sees the tokens that are drawn at the positions it reveals. `sampling.unmask` draws there, and
`evaluation.exact_likelihood` scores there: the probabilities of the revealed tokens multiply to that of the text under
the sampler, exactly, however many positions a step reveals (DUEL, arXiv 2603.01367).

Most policies are a ranking of the open positions and an amount: how many of the ranked ones are revealed.

    left_to_right, random     the order is known beforehand (random, one a step: first-hitting, arXiv 2409.02908)
    confidence                the probability of the likeliest token
    margin                    the difference between the two likeliest tokens
    entropy                   the least entropy
    threshold, factor         by confidence, as many as are confident enough (Fast-dLLM, arXiv 2505.22618)
    entropy_bound             by entropy, as many as are nearly independent (arXiv 2505.24857)
    runs                      the most confident position of each run of masks (hierarchical decoding, as dInfer has it)

Shape letters: B batch, L length, N open positions of the whole batch in row order, V vocabulary rows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from llada.sampling.predictions import Predictions, predictions
from llada.system.literals import check_literals

PolicyName = Literal[
    "left_to_right", "random", "confidence", "margin", "entropy", "threshold", "factor", "entropy_bound", "runs"
]
Order = Literal["left_to_right", "random", "confidence", "margin", "entropy"]
Predicted = Tensor | Predictions
"""What is predicted at N positions: log-probabilities (N, V), or what computes those numbers only that are needed."""


@dataclass(frozen=True)
class StepState:
    """What a policy may know besides the predictions."""

    budget: Tensor
    """(B,) how many positions this step reveals at least, so that the steps suffice; with a fixed budget, exactly."""
    priority: Tensor
    """(B, L) numbers drawn once for the whole text; the greatest comes first in the order "random"."""

    def rows(self, index: Tensor) -> "StepState":
        """The state of some rows, by their indices (n,)."""
        return StepState(self.budget[index], self.priority[index])


class Choose(Protocol):
    """Says which open positions a step reveals."""

    def __call__(self, log_p: Predicted, is_open: Tensor, state: StepState) -> Tensor:
        """Return `revealed`, (B, L) bool, at least `state.budget` of a row's open positions.

        Args:
            log_p: (N, V) log-probabilities at the open positions, in row order, or predictions, of which a policy
                computes no more than it needs.
            is_open: (B, L) bool, where a token may be revealed.
            state: the step's budget, and the order drawn for the text.
        """


@dataclass(frozen=True)
class Policy:
    """A way to choose the positions of a step."""

    choose: Choose
    foresee: Callable[[Tensor, StepState], Tensor] | None = None
    """The same choice from `is_open` and `state` alone, where it does not depend on predictions: then they are needed
    at the chosen positions only."""
    has_budget: bool = True
    """Whether it reveals `state.budget` positions; other policies may reveal more."""


@dataclass(frozen=True)
class PolicyOptions:
    """The numbers of the policies, each of which uses its own."""

    threshold: float = 0.9
    """"threshold" and "runs": probability from which a position is revealed."""
    factor: float = 1.0
    """"factor": n positions are revealed together while (n + 1) times the doubt about the n-th is less than this."""
    entropy_bound: float = 0.1
    """"entropy_bound": nats by which the tokens of one step may depend on each other; 0 is one a step unless
    certain."""
    run_threshold: float = 0.5
    """"runs": probability that the most confident position of a run of masks must have."""
    order: Order | None = None
    """Ranking of "threshold", "factor" and "entropy_bound", in the place of their own."""

    def __post_init__(self) -> None:
        check_literals(self)
        for name in ("threshold", "run_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability, from 0 to 1, not {getattr(self, name)}")
        for name in ("factor", "entropy_bound"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number from 0 up, not {getattr(self, name)}")


DEFAULTS = PolicyOptions()


# -- how positions are ranked -----------------------------------------------------------------------------------------

Rank = Callable[[Predicted, Tensor, StepState], Tensor]
"""(log_p, is_open, state) to the urgency (B, L) of each open position; other positions do not matter."""
Foresight = Callable[[Tensor, StepState], Tensor]
"""(is_open, state) to the urgency (B, L): an order that is known beforehand."""


def confidence(log_p: Predicted) -> Tensor:
    """The log-probability of the likeliest token, (N,)."""
    return log_p.confidence if isinstance(log_p, Predictions) else log_p.amax(-1)


def margin(log_p: Predicted) -> Tensor:
    """The difference of the probabilities of the two likeliest tokens, (N,)."""
    return predictions(log_p).margin


def entropy(log_p: Predicted) -> Tensor:
    """The entropy in nats, (N,)."""
    return predictions(log_p).entropy


def on_canvas(values: Tensor, is_open: Tensor) -> Tensor:
    """Values (N,) of the open positions at their places, (B, L); minus infinity elsewhere."""
    return torch.full(is_open.shape, -torch.inf, dtype=values.dtype, device=is_open.device).masked_scatter(
        is_open, values
    )


def _leftmost(is_open: Tensor, state: StepState) -> Tensor:
    return -torch.arange(is_open.shape[1], device=is_open.device).expand_as(is_open).float()


def _drawn(is_open: Tensor, state: StepState) -> Tensor:
    return state.priority


def _by(urgency: Callable[[Predicted], Tensor]) -> Rank:
    return lambda log_p, is_open, state: on_canvas(urgency(log_p), is_open)


def _foreseen(order: Foresight) -> Rank:
    return lambda log_p, is_open, state: order(is_open, state)


FORESIGHTS: Mapping[Order, Foresight] = {"left_to_right": _leftmost, "random": _drawn}
RANKS: Mapping[Order, Rank] = {
    **{name: _foreseen(order) for name, order in FORESIGHTS.items()},
    "confidence": _by(confidence),
    "margin": _by(margin),
    "entropy": _by(lambda log_p: -entropy(log_p)),
}


# -- how many are revealed --------------------------------------------------------------------------------------------

Amount = Callable[[Predicted, Tensor, Tensor, StepState], Tensor]
"""(log_p, is_open, ranking, state) to how many positions are revealed, (B,); `ranking` (B, L) lists positions."""


def _budget(log_p: Predicted, is_open: Tensor, ranking: Tensor, state: StepState) -> Tensor:
    return state.budget


def _leading(is_good: Tensor) -> Tensor:
    """How many of each row's first entries are True: (B,)."""
    return is_good.long().cumprod(1).sum(1)


def at_least(threshold: float) -> Amount:
    """Reveal as many as have a token of that probability."""

    def amount(log_p: Predicted, is_open: Tensor, ranking: Tensor, state: StepState) -> Tensor:
        return _leading(on_canvas(confidence(log_p).exp(), is_open).gather(1, ranking) >= threshold)

    return amount


def by_factor(factor: float) -> Amount:
    """The n for which (n + 1) (1 - p_n) < factor, where p_n is the probability of the likeliest token of the n-th."""

    def amount(log_p: Predicted, is_open: Tensor, ranking: Tensor, state: StepState) -> Tensor:
        doubt = 1 - on_canvas(confidence(log_p).exp(), is_open).gather(1, ranking)
        n = torch.arange(1, ranking.shape[1] + 1, device=ranking.device)
        return _leading((n + 1) * doubt < factor)

    return amount


def within_entropy(bound: float) -> Amount:
    """Reveal as many as have a sum of entropies, without the greatest of them, of at most the bound in nats.

    That difference bounds the divergence between drawing the tokens together and drawing each by itself, if the
    marginals are right (arXiv 2505.24857, section 3).
    """

    def amount(log_p: Predicted, is_open: Tensor, ranking: Tensor, state: StepState) -> Tensor:
        nats = on_canvas(entropy(log_p), is_open).gather(1, ranking)
        nats = nats.masked_fill(nats.isneginf(), torch.inf)  # what is not open is never revealed
        return _leading(nats.cumsum(1) - nats.cummax(1).values <= bound)

    return amount


# -- policies ---------------------------------------------------------------------------------------------------------


def ranked(rank: Rank, amount: Amount) -> Choose:
    """The policy that reveals the first positions of a ranking; in a tie, the leftmost comes first."""

    def choose(log_p: Predicted, is_open: Tensor, state: StepState) -> Tensor:
        ranking = _ranking(rank(log_p, is_open, state), is_open)
        return _first(ranking, amount(log_p, is_open, ranking, state).maximum(state.budget)) & is_open

    return choose


def _ranking(urgency: Tensor, is_open: Tensor) -> Tensor:
    """The positions of each row, (B, L), the most urgent open ones first."""
    return urgency.masked_fill(~is_open, -torch.inf).argsort(dim=1, descending=True, stable=True)


def _first(ranking: Tensor, count: Tensor) -> Tensor:
    """Mark the first `count` (B,) positions of each row's ranking, (B, L) bool."""
    return ranking.argsort(dim=1) < count[:, None]


def most_confident(confidence: Tensor, count: Tensor) -> Tensor:
    """Mark the `count` (B,) most confident positions of each row, (B, L) bool; the first ones win a tie."""
    return _first(confidence.argsort(dim=1, descending=True, stable=True), count)


def best_of_runs(threshold: float, run_threshold: float) -> Choose:
    """The most confident position of each run of masks, if confident enough, and all that reach the threshold."""

    def choose(log_p: Predicted, is_open: Tensor, state: StepState) -> Tensor:
        p = on_canvas(confidence(log_p).exp(), is_open)
        place = p.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # 0 is the most confident of the row
        starts = is_open & ~torch.nn.functional.pad(is_open[:, :-1], (1, 0))
        run = starts.cumsum(1).masked_fill(~is_open, 0)
        nobody = place.new_full((len(place), place.shape[1] + 1), place.shape[1])  # runs are counted from 1
        first_of_run = nobody.scatter_reduce(1, run, place, "amin")
        is_best = is_open & (place == first_of_run.gather(1, run))
        return is_open & ((is_best & (p >= run_threshold)) | (p >= threshold) | (place < state.budget[:, None]))

    return choose


def _budgeted(order: Order) -> Policy:
    order_of = FORESIGHTS.get(order)

    def foresee(is_open: Tensor, state: StepState) -> Tensor:
        assert order_of is not None
        return _first(_ranking(order_of(is_open, state), is_open), state.budget) & is_open

    return Policy(ranked(RANKS[order], _budget), foresee if order_of else None)


def _confident(order: Order | None, own: Order, amount: Amount) -> Policy:
    return Policy(ranked(RANKS[order or own], amount), has_budget=False)


POLICIES: Mapping[PolicyName, Callable[[PolicyOptions], Policy]] = {
    "left_to_right": lambda options: _budgeted("left_to_right"),
    "random": lambda options: _budgeted("random"),
    "confidence": lambda options: _budgeted("confidence"),
    "margin": lambda options: _budgeted("margin"),
    "entropy": lambda options: _budgeted("entropy"),
    "threshold": lambda options: _confident(options.order, "confidence", at_least(options.threshold)),
    "factor": lambda options: _confident(options.order, "confidence", by_factor(options.factor)),
    "entropy_bound": lambda options: _confident(options.order, "entropy", within_entropy(options.entropy_bound)),
    "runs": lambda options: Policy(best_of_runs(options.threshold, options.run_threshold), has_budget=False),
}
assert set(POLICIES) == set(get_args(PolicyName))


def make_policy(name: PolicyName, options: PolicyOptions = DEFAULTS) -> Policy:
    """The policy of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, not {name!r}")
    return POLICIES[name](options)
