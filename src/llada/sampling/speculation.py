"""Lossless greedy speculation: several steps of the sampler by one evaluation, where the network would agree anyway.

At temperature 0 a step is a function of the predictions. Those of the last evaluation are used to guess the next steps,
and the texts after each guess go through the network together, as rows of a batch. Then the steps are taken again, by
the predictions for their own texts; as long as a step gives the text that was guessed, the predictions for it are
there. What is written is thus what one evaluation a step writes, token for token (Self Speculative Decoding, arXiv
2510.04147): each row is evaluated as it would be alone, up to the rounding of a batch (see `unmask_together`).

An evaluation computes up to `n_guesses + 1` rows. That saves time where a pass takes as long for several rows as for
one, as on a GPU with a large network and few rows; where a pass takes as long as its matmuls, it costs time.

Shape letters: B batch, L length, V vocabulary rows, G texts of a batch: the present one and the guesses.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from llada.models.predictor import PredictAt
from llada.sampling.config import SamplerConfig
from llada.sampling.filling import Filling, begin
from llada.sampling.guidance import Predict, at_positions, guide, penalized
from llada.sampling.unmask import check_shape


@dataclass(frozen=True)
class SpeculatedCanvas:
    """The state of one text after an evaluation."""

    x_t: Tensor
    """(1, L) token ids, MASK where nothing is decided."""
    nfe: int
    """Evaluations of the network so far; with guidance, each is two."""
    rows: int
    """Texts that were evaluated in them, guesses among them."""
    steps: int
    """Steps so far: what the evaluations would have been without guesses."""


def check_lossless(config: SamplerConfig, n_guesses: int) -> None:
    """Refuse settings under which guesses could change the text.

    Raises:
        ValueError: the temperature is above 0, a step depends on more than the text that it is taken on, or there is
            nothing to guess.
    """
    if n_guesses < 1:
        raise ValueError(f"speculate must be at least 1, not {n_guesses}")
    if config.temperature != 0:
        raise ValueError("speculate writes the same text at temperature 0 only")
    if config.remdm_eta or config.p2_tokens:
        raise ValueError("speculate does not go with remdm_eta and p2_tokens, which mask written tokens again")
    if config.stable_entropy is not None:
        raise ValueError("speculate does not go with stable_entropy, which looks at the step before")


@torch.no_grad()
def speculate(
    predict: Predict | PredictAt,
    template: Tensor,
    mask_id: int,
    config: SamplerConfig,
    n_guesses: int,
    generator: Generator | None = None,
) -> Iterator[SpeculatedCanvas]:
    """Fill one template (1, L) as `unmask` does at temperature 0, yielding the canvas after each evaluation.

    Args:
        n_guesses: how many steps are guessed for an evaluation.
        generator: for the order "random", as in `unmask`.

    Raises:
        ValueError: see `check_lossless`; or the template is not one text.
        UserError: the predictions are not finite numbers.
    """
    check_shape(template)
    if len(template) != 1:
        raise ValueError(f"speculate fills one text at a time, not {len(template)}")
    check_lossless(config, n_guesses)
    now = begin(template, mask_id, config, generator)
    nfe = rows = steps = 0
    known: _Known | None = None
    while not bool(now.is_done().all()):
        texts = [now, *(_guesses(now, known, n_guesses) if known else ())]
        asked = [text.situation().is_open for text in texts]  # more than a step needs, for the guesses
        logits = _ask(predict, texts, asked)
        nfe, rows = nfe + (2 if config.cfg_scale else 1), rows + len(texts)
        for place, text in enumerate(texts):
            if not torch.equal(text.x_t, now.x_t):
                break
            known = _Known(asked[place], logits[place])
            now, steps = _after(now, known), steps + 1
            if bool(now.is_done().all()):
                break
        yield SpeculatedCanvas(now.x_t, nfe, rows, steps)


@dataclass(frozen=True)
class _Known:
    """The predictions for some text."""

    positions: Tensor
    """(1, L) bool, the N positions that were asked."""
    logits: Tensor
    """(N, V)."""


def _guesses(now: Filling, known: _Known, n: int) -> Iterator[Filling]:
    """The texts after the next steps, at most n, if the predictions stayed as they are known."""
    for _ in range(n):
        if bool((now.situation().is_open & ~known.positions).any()):  # of the next block nothing is known
            return
        now = _after(now, known)
        if bool(now.is_done().all()):
            return
        yield now


def _after(text: Filling, known: _Known) -> Filling:
    """The text after the step that these predictions give."""
    situation, config = text.situation(), text.config
    needed = text.step.asks(situation)
    logits = known.logits[needed[known.positions]]
    if config.repetition_penalty != 1:
        logits = penalized(logits, text.x_t, needed, text.mask_id, config.repetition_penalty)
    after = replace(text)
    after.apply(text.step.decide(logits, needed, situation), situation)
    return after


def _ask(predict: Predict | PredictAt, texts: list[Filling], asked: list[Tensor]) -> list[Tensor]:
    """The logits (N, V) of each text, by one evaluation of all as the rows of a batch (G, L); two with guidance."""
    first = texts[0]
    x_t, positions = (torch.cat(parts) for parts in ([text.x_t for text in texts], asked))
    predict_at = at_positions(predict)
    if first.config.cfg_scale:
        predict_at = guide(predict_at, first.given.expand_as(x_t), first.mask_id, first.config.cfg_scale)
    return list(predict_at(x_t, positions=positions).split(positions.sum(1).tolist()))
