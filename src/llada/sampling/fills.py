"""Texts that are filled in step by step, any number of them with one evaluation of the network.

A `Fill` is one text: its tokens, its plan of windows and budgets, its randomness. `start` makes one, and `advance`
takes any number of them, at different steps, of different lengths and settings, one step further. What becomes of a
text does not depend on the others: to the bit, if a row of the predictor does not.

    fill = start(template, mask_id, config, generator)
    while not fill.is_done:
        (step,) = advance(predict, [fill])

`sampling.unmask` is the same for texts that are alike, without a split into single ones (filling.py).

Shape letters: L length, N asked positions, R revealed positions, V vocabulary rows.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from llada.models.predictor import PredictAt
from llada.sampling.config import SamplerConfig
from llada.sampling.filling import Filling, advance_together, begin
from llada.sampling.guidance import Predict
from llada.sampling.predictions import Predictions
from llada.sampling.steps import Chosen


@dataclass(frozen=True)
class StepResult:
    """What one step did to a text."""

    positions: Tensor
    """(R,) positions that were revealed, in rising order."""
    tokens: Tensor
    """(R,) the tokens there."""
    log_p: Tensor
    """(R,) their log-probabilities as the model has them (with guidance and penalty, without temperature). Minus their
    sum over all steps is the text's exact likelihood in nats under a policy, if no step looks at the tokens."""
    asked: Tensor
    """(N,) positions at which there are predictions, in rising order."""
    predicted: Predictions
    """The predictions there."""
    remasked: Tensor
    """(M,) positions that were masked again."""

    @property
    def asked_log_p(self) -> Tensor:
        """The log-probabilities of all tokens at the asked positions, (N, V)."""
        return self.predicted.log_p

    def entropy(self) -> Tensor:
        """The entropies of the predictions in nats, (N,)."""
        return self.predicted.entropy

    def revealed_log_p(self) -> Tensor:
        """The predictions at the revealed positions, (R, V)."""
        return self.predicted.at(torch.searchsorted(self.asked, self.positions))

    def likeliest(self, k: int) -> tuple[Tensor, Tensor]:
        """The k likeliest tokens at the asked positions, (N, k), and their probabilities, (N, k)."""
        best = self.asked_log_p.topk(min(k, self.asked_log_p.shape[-1]), dim=-1)
        return best.indices, best.values.exp()


class Fill:
    """One text that is being filled in; made by `start`, taken further by `advance`."""

    def __init__(self, filling: Filling, generator: Generator) -> None:
        self.filling, self.generator = filling, generator
        self.n_steps = 0
        """Steps so far."""
        self._at = 0

    @property
    def ids(self) -> Tensor:
        """Token ids (L,), MASK where nothing is decided."""
        return self.filling.x_t[0]

    @property
    def given(self) -> Tensor:
        """What the template had, (L,) bool."""
        return self.filling.given[0]

    @property
    def config(self) -> SamplerConfig:
        return self.filling.config

    @property
    def mask_id(self) -> int:
        return self.filling.mask_id

    @property
    def limit(self) -> int:
        """The most steps that it may still need."""
        return self.filling.plan.shape[1] - 1 - self._at

    @property
    def is_done(self) -> bool:
        return self.limit == 0

    @property
    def n_open(self) -> int:
        """How many tokens are still masked."""
        return int((self.ids == self.mask_id).sum())

    @property
    def nfe(self) -> int:
        """Evaluations of the network so far: one a step, or two with guidance."""
        return self.n_steps * self._nfe_of_step

    @property
    def nfe_saved(self) -> int:
        """Evaluations that the end of the text made needless."""
        return int(self.filling.saved[0]) * self._nfe_of_step

    @property
    def _nfe_of_step(self) -> int:
        return 2 if self.config.cfg_scale else 1


def start(
    template: Tensor | Sequence[int],
    mask_id: int,
    config: SamplerConfig,
    generator: Generator,
    device: torch.device | str | None = None,
    end_ids: Collection[int] = (),
) -> Fill:
    """Begin to fill a template (L,), which has MASK where a token is to be filled in; the others are never rewritten.

    Args:
        generator: source of randomness, on the CPU.
        device: where the predictor expects its token ids; that of the template if None.
        end_ids: tokens that end the text: as soon as one is written and nothing is open before it, the text is done,
            and what is open behind it stays MASK. Where tokens are masked again, that is when its window is left.

    Raises:
        ValueError: the template has another number of dimensions.
    """
    ids = torch.as_tensor(template, dtype=torch.long, device=device)
    if ids.dim() != 1:
        raise ValueError(f"a template must have the shape (L,), not {tuple(ids.shape)}: start each text by itself")
    return Fill(begin(ids[None], mask_id, config, [generator], end_ids=end_ids), generator)


@torch.no_grad()
def advance(predict: Predict | PredictAt, fills: Sequence[Fill], pad_id: int = 0) -> list[StepResult]:
    """Take each text one step further, by one evaluation of the network for all; two if there is guidance among them.

    Texts may come and go between the calls. One that is done may stay: nothing is asked for it, and its row keeps the
    shape of the batch, as a predictor that remembers its last call needs it.

    Args:
        predict: one that knows padding (`attention_mask`), if the texts are not of one length.
        pad_id: the token on the right of shorter texts, hidden by the attention mask.

    Raises:
        ValueError: the texts have different MASKs, or the predictor knows no padding.
        UserError: the predictions are not finite numbers.
    """
    if len({fill.mask_id for fill in fills}) > 1:
        raise ValueError("texts with different MASKs cannot be filled together")
    if all(fill.is_done for fill in fills):
        return [_nothing(fill) for fill in fills]
    longest = max((len(fill.ids) for fill in fills), default=0)
    is_padded = any(len(fill.ids) < longest or fill.filling.attention_mask is not None for fill in fills)
    alike: dict[tuple[SamplerConfig, frozenset[int]], list[Fill]] = {}
    for fill in fills:
        alike.setdefault((fill.config, fill.filling.end_ids), []).append(fill)
    together = [_joined(group, longest, pad_id, is_padded) for group in alike.values()]
    results: dict[int, StepResult] = {}
    for group, filling, chosen in zip(alike.values(), together, advance_together(predict, together), strict=True):
        for fill, result in zip(group, _split(chosen), strict=True):
            results[id(fill)] = result
        _hand_back(group, filling)
    return [results[id(fill)] for fill in fills]


def _joined(fills: Sequence[Fill], length: int, pad_id: int, is_padded: bool) -> Filling:
    """Texts of one configuration as rows of that length, with padding on the right, where it moves no token."""
    parts = [fill.filling for fill in fills]
    first, n_steps = parts[0], max(part.plan.shape[1] for part in parts)

    def rows(tensors: Sequence[Tensor | None], value: int | bool = 0) -> Tensor:
        longer = [F.pad(one, (0, length - one.shape[1]), value=value) for one in tensors if one is not None]
        return torch.cat(longer)

    masks = [_all_true(part) if part.attention_mask is None else part.attention_mask for part in parts]
    return replace(
        first,
        x_t=rows([part.x_t for part in parts], pad_id),
        given=rows([part.given for part in parts], True),
        plan=torch.cat([F.pad(part.plan, (0, 0, 0, n_steps - part.plan.shape[1])) for part in parts]),
        at=torch.cat([part.at for part in parts]),
        saved=torch.cat([part.saved for part in parts]),
        priority=None if first.priority is None else rows([part.priority for part in parts]),
        likeliest=None if first.likeliest is None else rows([part.likeliest for part in parts], -1),
        attention_mask=rows(masks, False) if is_padded else None,
        generator=[fill.generator for fill in fills],
    )


def _all_true(part: Filling) -> Tensor:
    return torch.ones_like(part.given)


def _hand_back(fills: Sequence[Fill], together: Filling) -> None:
    """Give each text its row of what was filled together."""
    for row, (fill, at) in enumerate(zip(fills, together.at.tolist(), strict=True)):
        part = fill.filling
        if not fill.is_done:
            fill.n_steps += 1
        fill._at = at
        one, length = slice(row, row + 1), part.x_t.shape[1]
        fill.filling = replace(
            part,
            x_t=together.x_t[one, :length],
            at=together.at[one],
            saved=together.saved[one],
            likeliest=None if together.likeliest is None else together.likeliest[one, :length],
        )


def _nothing(fill: Fill) -> StepResult:
    none = fill.ids[:0]
    return StepResult(none, none, none.float(), none, Predictions(none.float()[:, None]), none)


def _split(chosen: Chosen) -> list[StepResult]:
    """What a step did to each row of a batch."""
    is_revealed = chosen.revealed[chosen.asked]
    log_p = chosen.predicted.at(is_revealed).gather(1, chosen.tokens[:, None])[:, 0]
    n_revealed, n_asked = chosen.revealed.sum(1).tolist(), chosen.asked.sum(1).tolist()
    remasked = torch.zeros_like(chosen.asked) if chosen.remasked is None else chosen.remasked
    return [
        StepResult(*parts)
        for parts in zip(
            chosen.revealed.nonzero()[:, 1].split(n_revealed),
            chosen.tokens.split(n_revealed),
            log_p.split(n_revealed),
            chosen.asked.nonzero()[:, 1].split(n_asked),
            chosen.predicted.split(n_asked),
            remasked.nonzero()[:, 1].split(remasked.sum(1).tolist()),
            strict=True,
        )
    ]
