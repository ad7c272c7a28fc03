"""One step of the sampler: which positions it reveals, and with which tokens.

Shape letters: B batch, L length, N positions that are asked, R positions that are revealed, V vocabulary rows.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from llada.models.predictor import PredictAt
from llada.sampling.config import SamplerConfig
from llada.sampling.draws import Generators, draw, shaped, uniforms
from llada.sampling.policies import Policy, PolicyName, StepState, entropy, make_policy, most_confident, on_canvas
from llada.system.device import to_fp64
from llada.system.errors import UserError

UNSURE = 1e-3  # nats by which fp32 may be off, with a margin: log-probabilities of large logits are to 1e-5
NOT_FINITE = "The model's predictions are not finite numbers: it is broken, use an earlier checkpoint."


class Chosen(NamedTuple):
    """What a step decides."""

    revealed: Tensor
    """Positions that the step reveals, (B, L) bool."""
    tokens: Tensor
    """Tokens of the revealed positions, (R,), in row order."""
    asked: Tensor
    """Positions at which there are predictions, (B, L) bool."""
    log_p: Tensor
    """Log-probabilities at the asked positions, (N, V)."""


@dataclass(frozen=True)
class ChooseThenDraw:
    """A step of a policy: the positions are chosen by what is visible, then their tokens are drawn."""

    policy: Policy
    config: SamplerConfig
    priority: Tensor
    """(B, L) for the order "random"."""
    generator: Generators

    @property
    def has_budget(self) -> bool:
        return self.policy.has_budget

    def __call__(
        self, predict_at: PredictAt, x_t: Tensor, is_open: Tensor, n_now: Tensor, attention_mask: Tensor | None
    ) -> Chosen:
        state = StepState(n_now, self.priority)
        asked = self.policy.foresee(is_open, state) if self.policy.foresee else is_open
        log_p = finite(predict_at(x_t, attention_mask=attention_mask, positions=asked)).float().log_softmax(-1)
        revealed = asked if self.policy.foresee else self.policy.choose(log_p, is_open, state)
        config = self.config
        drawn_from = shaped(log_p[revealed[asked]], config.temperature, config.top_k, config.top_p)
        if config.temperature == 0:
            return Chosen(revealed, drawn_from.argmax(-1), asked, log_p)
        return Chosen(revealed, draw(drawn_from, uniforms(revealed.sum(1).tolist(), self.generator)), asked, log_p)


@dataclass(frozen=True)
class DrawThenChoose:
    """LLaDA's step: a token is drawn at every open position, and the most confident ones stay.

    Since the choice looks at the tokens, the text has no exact likelihood under it (arXiv 2603.01367).
    """

    config: SamplerConfig
    generator: Generators
    has_budget = True

    def __call__(
        self, predict_at: PredictAt, x_t: Tensor, is_open: Tensor, n_now: Tensor, attention_mask: Tensor | None
    ) -> Chosen:
        # Elsewhere nothing is drawn: a whole canvas of LLaDA's logits in fp64 is 1 MB a token.
        logits = finite(predict_at(x_t, attention_mask=attention_mask, positions=is_open))
        config, log_p = self.config, logits.float().log_softmax(-1)
        if config.temperature == 0:
            token = logits.argmax(-1)
        else:
            drawn_from = shaped(log_p, config.temperature, config.top_k, config.top_p)
            token = draw(drawn_from, uniforms(is_open.sum(1).tolist(), self.generator))
        confidence = confidence_near_cut(logits, log_p, token, is_open, n_now)  # on the CPU, if that of x_t has no fp64
        chosen = most_confident(confidence, n_now.to(confidence.device)).to(x_t.device) & is_open
        return Chosen(chosen, token[chosen[is_open]], is_open, log_p)


class UntilStable:
    """A step that fills in all that is open in a row where the predictions are stable.

    They are when the likeliest tokens of all open positions are those of the step before and the mean of their
    entropies is small: the rule by which DiffusionGemma ends early. The texts have no exact likelihood.
    """

    has_budget = False

    def __init__(self, step: ChooseThenDraw | DrawThenChoose, entropy_bound: float) -> None:
        self.step, self.entropy_bound = step, entropy_bound
        self.likeliest: Tensor | None = None  # (B, L) of the step before, -1 where nothing was asked

    def __call__(
        self, predict_at: PredictAt, x_t: Tensor, is_open: Tensor, n_now: Tensor, attention_mask: Tensor | None
    ) -> Chosen:
        logits = finite(predict_at(x_t, attention_mask=attention_mask, positions=is_open))
        chosen = self.step(_Asked(is_open, logits), x_t, is_open, n_now, attention_mask)
        log_p = logits.float().log_softmax(-1)
        likeliest = torch.full_like(x_t, -1).masked_scatter(is_open, log_p.argmax(-1).to(x_t.dtype))
        nats = torch.zeros(x_t.shape, device=x_t.device).masked_scatter(is_open, entropy(log_p))
        # A running sum, which zeros of padding do not change in the last bit.
        is_sure = nats.cumsum(1)[:, -1] < self.entropy_bound * is_open.sum(1)
        before, self.likeliest = self.likeliest, likeliest
        if before is None:
            return chosen
        is_stable = is_sure & ((likeliest == before) | ~is_open).all(1)
        revealed = chosen.revealed | (is_open & is_stable[:, None])
        tokens = likeliest.masked_scatter(chosen.revealed, chosen.tokens.to(x_t.dtype))
        return Chosen(revealed, tokens[revealed], is_open, log_p)


class _Asked:
    """A predictor that has been asked already."""

    def __init__(self, positions: Tensor, logits: Tensor) -> None:
        self.positions, self.logits = positions, logits

    def __call__(self, x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor) -> Tensor:
        return self.logits[positions[self.positions]]


Step = ChooseThenDraw | DrawThenChoose | UntilStable


def confidence_near_cut(logits: Tensor, log_p: Tensor, token: Tensor, is_open: Tensor, n_now: Tensor) -> Tensor:
    """Numbers (B, L) in fp64 whose `n_now` (B,) greatest are those of the tokens' probabilities in fp64.

    In lower precision probabilities tie near 1, and ties make the order depend on hardware. But fp64 over a large
    vocabulary costs more than a small network: it is computed only where fp32 leaves open on which side of the cut a
    position is.

    Args:
        logits, log_p: (N, V) at the open positions; log_p in fp32.
        token: (N,) the tokens there.
        is_open: (B, L) bool.
    """
    rough = on_canvas(log_p.gather(-1, token[:, None])[:, 0], is_open)
    last = (n_now - 1).clamp(0, rough.shape[1] - 1)[:, None]
    cut = rough.sort(dim=1, descending=True).values.gather(1, last)
    is_close = is_open & ((rough - cut).abs() <= UNSURE)
    close = is_close[is_open]
    probability = to_fp64(logits[close]).softmax(-1)
    exact = probability.gather(-1, token[close][:, None].to(probability.device))[:, 0]
    ahead = torch.where(rough > cut, 2.0, -1.0).masked_fill(~is_open, -torch.inf)  # of any probability, or behind
    return to_fp64(ahead).masked_scatter(is_close.to(exact.device), exact)


def make_step(config: SamplerConfig, template: Tensor, generator: Generators, attention_mask: Tensor | None) -> Step:
    """Make the step that a configuration asks for, to fill a template (B, L).

    Raises:
        ValueError: the generators are not one for each row.
    """
    if generator is not None and not isinstance(generator, Generator) and len(generator) != len(template):
        raise ValueError(f"{len(generator)} generators do not go with {len(template)} rows")
    name: PolicyName | None = "random" if config.policy is None and config.remasking == "random" else config.policy
    if name is None:
        return _until_stable(DrawThenChoose(config, generator), config)
    # Padding draws nothing, so that a padded row has the order that it would have alone.
    is_text = torch.ones(template.shape, dtype=torch.bool) if attention_mask is None else attention_mask.bool().cpu()
    drawn = uniforms(is_text.sum(1).tolist(), generator).float()
    priority = torch.zeros(template.shape).masked_scatter(is_text, drawn).to(template.device)
    return _until_stable(ChooseThenDraw(make_policy(name, config), config, priority, generator), config)


def _until_stable(step: ChooseThenDraw | DrawThenChoose, config: SamplerConfig) -> Step:
    return step if config.stable_entropy is None else UntilStable(step, config.stable_entropy)


def finite(logits: Tensor) -> Tensor:
    """The logits, unless they are of a broken model.

    Raises:
        UserError: a position has a logit that is NaN or infinitely high, or none above minus infinity.
    """
    if not bool(logits.amax(-1).isfinite().all()):  # what is suppressed is minus infinity, which no maximum shows
        raise UserError(NOT_FINITE)
    return logits
