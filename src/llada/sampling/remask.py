"""Tokens that were written are masked again, so that the model may think better of them.

A step that masks M tokens again reveals M more than the plan says, so that as many are written after it as without: the
marginals, which are the probabilities of a position's tokens and of MASK at each time, stay as they are. The last step
of a window masks nothing, and no MASK is left. Given tokens are never touched.

    ReMDM-cap (arXiv 2503.00307)  each written token with the probability min(eta, (1 - alpha_s) / alpha_t), where alpha
                                  is the share that is written, before the step (t) and after it (s)
    P2 (arXiv 2502.03540)         the k written tokens that the model, which sees them, finds least likely

The model sees what is masked again while it predicts the others. A text has no exact likelihood: one that is written in
several ways would need the sum over them.

Shape letters: B batch, L length, N asked positions, V vocabulary rows.
"""

from dataclasses import dataclass

from torch import Tensor

from llada.sampling.config import SamplerConfig
from llada.sampling.draws import uniforms
from llada.sampling.policies import most_confident, on_canvas
from llada.sampling.predictions import Predictions
from llada.sampling.steps import Chosen, Situation, Step, check_finite


def remask(now: Situation, is_written: Tensor, config: SamplerConfig) -> Situation:
    """The situation of a step that also masks written tokens again; `is_written` (B, L) says which it may."""
    n_written, n_open = is_written.sum(1), now.is_open.sum(1)
    room = (n_open - now.n_now).clamp(min=0)  # masks after the step
    if config.p2_tokens:
        count = n_written.minimum(room).clamp(max=config.p2_tokens)
        return now._replace(n_now=now.n_now + count, is_written=is_written, n_remasked=count)
    sigma = (room / n_written.clamp(min=1)).clamp(max=config.remdm_eta)  # (1 - alpha_s) / alpha_t
    drawn = on_canvas(-uniforms(n_written.tolist(), now.generator).to(is_written.device).float(), is_written)
    n_drawn = (is_written & (-drawn < sigma[:, None])).sum(1)
    # At least one where the step would reveal nothing; by chance there may be more than fit.
    count = n_drawn.maximum((now.n_now == 0).long()).minimum(room).minimum(n_written)
    return now._replace(n_now=now.n_now + count, remasked=most_confident(drawn, count) & is_written)


@dataclass(frozen=True)
class RemaskLeastLikely:
    """A step that masks the least likely written tokens again (P2), by the predictions at their own places."""

    step: Step

    @property
    def has_priority(self) -> bool:
        return self.step.has_priority

    def asks(self, now: Situation) -> Tensor:
        assert now.is_written is not None
        return self.step.asks(now) | now.is_written

    def decide(self, logits: Tensor, asked: Tensor, now: Situation) -> Chosen:
        assert now.is_written is not None
        assert now.n_remasked is not None
        needed = asked & ~now.is_written
        chosen = self.step.decide(logits[needed[asked]], needed, now)
        written = Predictions(logits[now.is_written[asked]])
        doubt = on_canvas(-written.log_p_of(now.x_t[now.is_written]), now.is_written)
        check_finite(written)
        return chosen._replace(remasked=most_confident(doubt, now.n_remasked) & now.is_written)
