"""One step of the sampler: which positions it reveals, and with which tokens.

Shape letters: B batch, L length, N positions that are asked, R positions that are revealed, V vocabulary rows.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from llada.sampling.config import SamplerConfig
from llada.sampling.draws import Generators, draw_at, uniforms
from llada.sampling.policies import Policy, PolicyName, StepState, most_confident, on_canvas
from llada.sampling.predictions import Predictions
from llada.system.device import to_fp64
from llada.system.errors import UserError

UNSURE = 1e-3  # nats by which fp32 may be off, with a margin: log-probabilities of large logits are to 1e-5
NOT_FINITE = "The model's predictions are not finite numbers: it is broken, use an earlier checkpoint."


class Situation(NamedTuple):
    """What a step may know, besides the predictions."""

    x_t: Tensor
    """(B, L) token ids."""
    is_open: Tensor
    """(B, L) bool, where a token may be revealed now."""
    n_now: Tensor
    """(B,) how many the step reveals at least."""
    priority: Tensor | None
    """(B, L) for the order "random"; drawn for the steps of policies only."""
    generator: Generators
    likeliest: Tensor | None
    """(B, L) likeliest tokens of the step before, -1 where nothing was asked; for `UntilStable` only."""
    remasked: Tensor | None = None
    """(B, L) bool: what the step masks again, if that does not depend on predictions (remask.py)."""
    is_written: Tensor | None = None
    """(B, L) bool: what it may mask again, if that does."""
    n_remasked: Tensor | None = None
    """(B,) how many of these."""


class Chosen(NamedTuple):
    """What a step decides."""

    revealed: Tensor
    """Positions that the step reveals, (B, L) bool."""
    tokens: Tensor
    """Tokens of the revealed positions, (R,), in row order."""
    asked: Tensor
    """Positions at which there are predictions, (B, L) bool."""
    predicted: Predictions
    """The predictions at the N asked positions, with guidance and penalty, without temperature."""
    likeliest: Tensor | None = None
    """What the next step is to know of this one."""
    remasked: Tensor | None = None
    """Positions that the step masks again, (B, L) bool; None if there are none."""


class Step(Protocol):
    """A step of the sampler, which depends on the configuration alone: first it asks, then it decides."""

    @property
    def has_priority(self) -> bool:
        """Whether it needs numbers for the order "random"."""

    def asks(self, now: Situation) -> Tensor:
        """The positions (B, L) at which it needs predictions."""

    def decide(self, logits: Tensor, asked: Tensor, now: Situation) -> Chosen:
        """Choose positions and tokens by the logits (N, V) at the asked positions."""


@dataclass(frozen=True)
class ChooseThenDraw:
    """A step of a policy: the positions are chosen by what is visible, then their tokens are drawn."""

    policy: Policy
    config: SamplerConfig
    has_priority = True

    def asks(self, now: Situation) -> Tensor:
        return self.policy.foresee(now.is_open, _state(now)) if self.policy.foresee else now.is_open

    def decide(self, logits: Tensor, asked: Tensor, now: Situation) -> Chosen:
        predicted, config = Predictions(logits), self.config
        revealed = asked if self.policy.foresee else self.policy.choose(predicted, now.is_open, _state(now))
        check_finite(predicted)
        tokens = _drawn(predicted, revealed[asked].nonzero()[:, 0], revealed, config, now.generator)
        return Chosen(revealed, tokens, asked, predicted)


def _state(now: Situation) -> StepState:
    assert now.priority is not None
    return StepState(now.n_now, now.priority)


@dataclass(frozen=True)
class DrawThenChoose:
    """LLaDA's step: a token is drawn at every open position, and the most confident ones stay.

    Since the choice looks at the tokens, the text has no exact likelihood under it (arXiv 2603.01367).
    """

    config: SamplerConfig
    has_priority = False

    def asks(self, now: Situation) -> Tensor:
        # Elsewhere nothing is drawn: a whole canvas of LLaDA's logits in fp64 is 1 MB a token.
        return now.is_open

    def decide(self, logits: Tensor, asked: Tensor, now: Situation) -> Chosen:
        is_open, predicted = now.is_open, Predictions(logits)
        everywhere = torch.arange(len(predicted), device=logits.device)
        token = _drawn(predicted, everywhere, is_open, self.config, now.generator)
        confidence = confidence_near_cut(predicted, token, is_open, now.n_now)  # on the CPU, if x_t's has no fp64
        check_finite(predicted)
        chosen = most_confident(confidence, now.n_now.to(confidence.device)).to(is_open.device) & is_open
        return Chosen(chosen, token[chosen[is_open]], is_open, predicted)


def _drawn(
    predicted: Predictions, places: Tensor, positions: Tensor, config: SamplerConfig, generator: Generators
) -> Tensor:
    """A token for each of the positions, a (B, L) bool that has the places (R,) among those predicted."""
    numbers = None if config.temperature == 0 else uniforms(positions.sum(1).tolist(), generator)
    return draw_at(predicted, places, numbers, config.temperature, config.top_k, config.top_p)


@dataclass(frozen=True)
class UntilStable:
    """A step that fills in all that is open in a row where the predictions are stable.

    They are when the likeliest tokens of all open positions are those of the step before and the mean of their
    entropies is small: the rule by which DiffusionGemma ends early. The texts have no exact likelihood.
    """

    step: ChooseThenDraw | DrawThenChoose
    entropy_bound: float

    @property
    def has_priority(self) -> bool:
        return self.step.has_priority

    def asks(self, now: Situation) -> Tensor:
        return now.is_open

    def decide(self, logits: Tensor, asked: Tensor, now: Situation) -> Chosen:
        x_t, is_open, needed = now.x_t, now.is_open, self.step.asks(now)
        chosen = self.step.decide(logits[needed[is_open]], needed, now)
        predicted = Predictions(logits)
        likeliest = torch.full_like(x_t, -1).masked_scatter(is_open, predicted.best.token.to(x_t.dtype))
        nats = torch.zeros(x_t.shape, device=x_t.device).masked_scatter(is_open, predicted.entropy)
        # A running sum, which zeros of padding do not change in the last bit.
        is_sure = nats.cumsum(1)[:, -1] < self.entropy_bound * is_open.sum(1)
        assert now.likeliest is not None
        is_stable = is_sure & ((likeliest == now.likeliest) | ~is_open).all(1)
        revealed = chosen.revealed | (is_open & is_stable[:, None])
        tokens = likeliest.masked_scatter(chosen.revealed, chosen.tokens.to(x_t.dtype))
        return Chosen(revealed, tokens[revealed], is_open, predicted, likeliest)


def confidence_near_cut(predicted: Predictions, token: Tensor, is_open: Tensor, n_now: Tensor) -> Tensor:
    """Numbers (B, L) in fp64 whose `n_now` (B,) greatest are those of the tokens' probabilities in fp64.

    In lower precision probabilities tie near 1, and ties make the order depend on hardware. But fp64 over a large
    vocabulary costs more than a small network: it is computed only where fp32 leaves open on which side of the cut a
    position is.

    Args:
        predicted: the predictions at the N open positions.
        token: (N,) the tokens there.
        is_open: (B, L) bool.
    """
    rough = on_canvas(predicted.log_p_of(token), is_open)
    last = (n_now - 1).clamp(0, rough.shape[1] - 1)[:, None]
    cut = rough.sort(dim=1, descending=True).values.gather(1, last)
    is_close = is_open & ((rough - cut).abs() <= UNSURE)
    close = is_close[is_open]
    exact = predicted.p_of_in_fp64(token[close], close.nonzero()[:, 0])
    ahead = torch.where(rough > cut, 2.0, -1.0).masked_fill(~is_open, -torch.inf)  # of any probability, or behind
    return to_fp64(ahead).masked_scatter(is_close.to(exact.device), exact)


def policy_of(config: SamplerConfig) -> PolicyName | None:
    """The policy that a configuration names; LLaDA's random remasking is one, its other remasking is not."""
    return "random" if config.policy is None and config.remasking == "random" else config.policy


def has_likelihood(config: SamplerConfig) -> bool:
    """Whether texts have an exact likelihood: where no step looks at the tokens that it draws."""
    return policy_of(config) is not None and config.stable_entropy is None and not config.remasks


def check_likelihood(config: SamplerConfig) -> None:
    """Refuse options by which the choice of positions or the order depends on tokens that are drawn, and those that
    `evaluation.exact_likelihood` does not follow: it would score another sampler.

    Raises:
        UserError: some are set.
    """
    names = [name for name in ("stable_entropy", "remdm_eta", "p2_tokens") if getattr(config, name)]
    if names:
        raise UserError(f"Texts written with `{names[0]}` have no exact likelihood: leave it out.")
    plain = SamplerConfig()
    for name in ("block_length", "cfg_scale", "repetition_penalty"):
        if getattr(config, name) != getattr(plain, name):
            raise UserError(f"The exact likelihood is that of sampling without `{name}`: leave it out.")


def draw_priority(template: Tensor, generator: Generators, attention_mask: Tensor | None) -> Tensor:
    """Draw numbers (B, L) for the order "random"; padding takes none, so that a padded row has the order of its own."""
    is_text = torch.ones(template.shape, dtype=torch.bool) if attention_mask is None else attention_mask.bool().cpu()
    drawn = uniforms(is_text.sum(1).tolist(), generator).float()
    return torch.zeros(template.shape).masked_scatter(is_text, drawn).to(template.device)


def check_finite(predicted: Predictions) -> None:
    """Refuse the predictions of a broken model.

    Raises:
        UserError: a position has a logit that is NaN or infinitely high, or none above minus infinity.
    """
    if not predicted.is_finite:
        raise UserError(NOT_FINITE)
