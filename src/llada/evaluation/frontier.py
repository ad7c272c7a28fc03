"""What fewer evaluations of the network cost: exact likelihoods of one text under many policies and budgets.

All policies score the same windows, so that the difference of two of them is known far better than either (DUEL, arXiv
2603.01367, has the likelihood; `exact_likelihood` computes it). The reference is the best order one position at a time,
and the recommendation is the policy with the fewest evaluations that costs no more than a tolerance over it.

Shape letters: W windows.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llada.evaluation.exact_likelihood import ScoredWindows
from llada.evaluation.standard_errors import mean_stderr
from llada.sampling.policies import DEFAULTS, Order, PolicyName, PolicyOptions, make_policy

PER = 256
"""Tokens for which evaluations and seconds are given, whatever the length of the windows."""
NUMBERS: Mapping[PolicyName, tuple[str, ...]] = {
    "threshold": ("threshold",),
    "factor": ("factor",),
    "entropy_bound": ("entropy_bound",),
    "runs": ("threshold", "run_threshold"),
}
"""The options that a policy uses; the others have none."""


@dataclass(frozen=True)
class Setting:
    """A policy with its numbers."""

    policy: PolicyName
    positions_per_step: int = 1
    """Exactly so many, of a policy with a budget; others decide for themselves, and reveal one at least."""
    options: PolicyOptions = DEFAULTS

    @property
    def has_budget(self) -> bool:
        return make_policy(self.policy, self.options).has_budget

    @property
    def is_one_at_a_time(self) -> bool:
        return self.has_budget and self.positions_per_step == 1

    @property
    def curve(self) -> str:
        """The policy without its budget or number, by which settings belong together."""
        return f"{self.policy}, {self.options.order}" if self.options.order else self.policy

    @property
    def name(self) -> str:
        if self.has_budget:
            return f"{self.policy}, {self.positions_per_step} a step"
        numbers = " ".join(f"{getattr(self.options, key):g}" for key in NUMBERS[self.policy])
        order = f", {self.options.order}" if self.options.order else ""
        return f"{self.policy} {numbers}{order}"

    def sampler(self, length: int) -> dict[str, Any]:
        """The options of `SamplerConfig` that sample a text of so many tokens like this.

        Steps for a shorter text reveal fewer tokens each, which is slower than it need be, and never worse.
        """
        chosen: dict[str, Any] = {"policy": self.policy}
        if self.has_budget:
            return chosen | (
                {"steps": math.ceil(length / self.positions_per_step)} if not self.is_one_at_a_time else {}
            )
        numbers = {key: getattr(self.options, key) for key in NUMBERS[self.policy]}
        return chosen | numbers | ({"order": self.options.order} if self.options.order else {})


def settings_of(
    policies: Sequence[PolicyName],
    budgets: Sequence[int],
    thresholds: Sequence[float],
    bounds: Sequence[float],
) -> list[Setting]:
    """The sweep: first every order one at a time, among which is the reference, then from cheap to dear.

    Args:
        policies: which; without one that has a budget, left to right is the reference.
        budgets: positions of a step, for the policies that have a budget.
        thresholds: of the policy "threshold", probabilities.
        bounds: of the policy "entropy_bound", nats; each with its own order and from left to right.
    """
    with_budget = [name for name in policies if make_policy(name).has_budget]
    sweep = [Setting(name) for name in with_budget or ["left_to_right"]]
    orders: tuple[Order | None, ...] = (None, "left_to_right")
    if "entropy_bound" in policies:
        sweep += [
            Setting("entropy_bound", options=PolicyOptions(entropy_bound=bound, order=order))
            for order in orders
            for bound in bounds
        ]
    if "threshold" in policies:
        sweep += [Setting("threshold", options=PolicyOptions(threshold=threshold)) for threshold in thresholds]
    sweep += [Setting(name) for name in policies if name in ("factor", "runs")]
    return sweep + [Setting(name, n) for n in sorted(set(budgets) - {1}, reverse=True) for name in with_budget]


@dataclass(frozen=True)
class Point:
    """What one setting costs and yields."""

    setting: Setting
    nats: float
    """Exact negative log-likelihood of the text under it, per token."""
    stderr: float | None
    """Over windows; None if there is one."""
    difference: float
    """Nats per token more than the reference."""
    difference_stderr: float | None
    """Over the differences of windows."""
    evaluations: float
    """Number of evaluations of the network for 256 tokens."""
    seconds: float
    """For 256 tokens, in batches of windows; drawing the tokens, which sampling adds, takes little."""

    def is_within(self, tolerance: float) -> bool:
        """Whether it costs no more than the tolerance, also if the truth is one standard error worse."""
        return self.difference + (self.difference_stderr or 0.0) <= tolerance

    def to_json(self, length: int) -> dict[str, Any]:
        return {
            "name": self.setting.name,
            "policy": self.setting.policy,
            "positions_per_step": self.setting.positions_per_step,
            "nll_nats_per_token": self.nats,
            "nll_stderr": self.stderr,
            "difference": self.difference,
            "difference_stderr": self.difference_stderr,
            "evaluations_per_256": self.evaluations,
            "seconds_per_256": self.seconds,
            "sampler": self.setting.sampler(length),
        }


@dataclass(frozen=True)
class Frontier:
    """A sweep, in the order in which it was measured."""

    points: tuple[Point, ...]
    reference: Point
    """The best one at a time."""
    left_out: tuple[Setting, ...] = ()
    """For which there was no time."""

    def recommend(self, tolerance: float) -> Point:
        """The point within the tolerance that needs the fewest evaluations, of several the likeliest; if nothing is
        cheaper than the reference, that."""
        within = [point for point in self.points if point.is_within(tolerance)]
        return min([self.reference, *within], key=lambda point: (point.evaluations, point.nats))

    def undecided(self, tolerance: float) -> Point | None:
        """The cheapest point that is within the tolerance but for its standard error, if it beats the recommended."""
        limit = self.recommend(tolerance).evaluations
        doubtful = [point for point in self.points if point.difference <= tolerance and point.evaluations < limit]
        return min(doubtful, key=lambda point: (point.evaluations, point.nats), default=None)

    def in_one_sentence(self, tolerance: float) -> str:
        """The recommendation for people."""
        best, reference = self.recommend(tolerance), self.reference
        if best is reference:
            return (
                f"Nothing cheaper is within {tolerance:g} nats of one at a time: {reference.setting.name}, "
                f"{reference.evaluations:.0f} evaluations."
            )
        times = reference.evaluations / best.evaluations
        return (
            f"Within {tolerance:g} nats of one at a time ({reference.setting.name}): {best.setting.name}, "
            f"{times:.{1 if times >= 1.5 else 2}f} times fewer evaluations."
        )

    @property
    def is_best(self) -> list[bool]:
        """For each point whether nothing is better with as few evaluations: the frontier itself."""
        return [
            not any(
                (other.evaluations, other.nats) != (point.evaluations, point.nats)
                and other.evaluations <= point.evaluations
                and other.nats <= point.nats
                for other in self.points
            )
            for point in self.points
        ]


def sweep(
    score: Callable[[Setting], ScoredWindows],
    settings: Iterable[Setting],
    tokens_per_window: float,
    is_late: Callable[[], bool] = lambda: False,
) -> Frontier:
    """Score the text under each setting.

    Args:
        score: nats and evaluations of each window under a setting, of the same windows in the same order.
        settings: one at a time among them, the first above all.
        tokens_per_window: how many are scored, on average.
        is_late: asked after each setting whether there is no time for more.

    Raises:
        ValueError: the first setting is not one at a time.
    """
    todo, done = list(settings), list[tuple[Setting, ScoredWindows]]()
    if not (todo and todo[0].is_one_at_a_time):
        raise ValueError("a sweep begins with a policy that reveals one position at a time")
    while todo and not (done and is_late()):
        done.append((todo[0], score(todo[0])))
        todo.pop(0)
    reference = min((scored for setting, scored in done if setting.is_one_at_a_time), key=lambda scored: scored.mean)
    share = PER / tokens_per_window
    points = [
        Point(
            setting=setting,
            nats=scored.mean,
            stderr=mean_stderr(scored.nll),
            difference=float((scored.nll - reference.nll).mean()),
            difference_stderr=mean_stderr(scored.nll - reference.nll),
            evaluations=scored.nfe_per_window * share,
            seconds=scored.seconds / len(scored.nll) * share,
        )
        for setting, scored in done
    ]
    at = next(i for i, (_, scored) in enumerate(done) if scored is reference)
    points[at] = replace(points[at], difference=0.0, difference_stderr=None if points[at].stderr is None else 0.0)
    return Frontier(tuple(points), points[at], tuple(todo))
