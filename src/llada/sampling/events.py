"""What happens to a text while it is filled in, as JSON: for the server, the page and the films.

A text has one list of events: its beginning, one for each step, and its end, or an error in its place.

    start   tokens, given, limit, seed, settings, model, fingerprint
    step    step, evaluations, seconds, revealed, remasked, entropy, open
    end     text, evaluations, seconds, nats, tokens_written, finish_reason
    error   message

A token is {"id": 17, "text": "a"}; null stands for MASK. The text of a token that is a part of a character only, as a
byte-level BPE has them, is U+FFFD, and that of a token that is not text, such as EOS, is empty; the text at the end is
decoded as a whole.

Shape letters: R revealed positions, V vocabulary rows.
"""

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from typing import Any

from llada.sampling.fills import Fill, StepResult
from llada.sampling.steps import has_likelihood
from llada.tokenizers.base import Tokenizer

Event = dict[str, Any]
BETWEEN = "\ud800"  # half of a surrogate pair, which no decoded text has
ALTERNATIVES = 5
"""Likeliest tokens that a step lists for each position that it reveals."""


class TokenTexts:
    """The texts of single tokens, each decoded once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def of(self, ids: Iterable[int]) -> list[str]:
        """The text of each id by itself; one question to the tokenizer for those that are new."""
        wanted = list(ids)
        new = [one for one in dict.fromkeys(wanted) if one not in self._known]
        if new:
            # A mask between two tokens keeps them apart: a tokenizer decodes what is between masks by itself.
            apart = [token for one in new for token in (one, self.tokenizer.mask_id)]
            texts = self.tokenizer.decode(apart, BETWEEN).split(BETWEEN)
            self._known |= dict(zip(new, texts, strict=False))
        return [self._known[one] for one in wanted]

    def tokens(self, ids: Iterable[int]) -> list[Event | None]:
        """The ids with their texts; None for MASK."""
        listed, mask_id = list(ids), self.tokenizer.mask_id
        texts = iter(self.of(one for one in listed if one != mask_id))
        return [None if one == mask_id else {"id": one, "text": next(texts)} for one in listed]


class FillEvents:
    """The events of one text.

    Args:
        fill: the text, before its first step.
        texts: of the tokenizer's tokens; shared by all texts.
        end_ids: tokens that end the text; what is written behind the first of them is left out of it.
        alternatives: how many of the likeliest tokens a step lists for each position that it reveals.
        clock: seconds.
    """

    def __init__(
        self,
        fill: Fill,
        texts: TokenTexts,
        *,
        end_ids: Collection[int] = (),
        alternatives: int = ALTERNATIVES,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.fill, self.texts, self.end_ids, self.alternatives, self.clock = fill, texts, end_ids, alternatives, clock
        self.nats = 0.0
        self.began = self.last = clock()

    def start(self, *, seed: int, model: str, fingerprint: str) -> Event:
        """The event of the beginning."""
        fill = self.fill
        self.began = self.last = self.clock()
        return {
            "type": "start",
            "tokens": self.texts.tokens(fill.ids.tolist()),
            "given": fill.given.tolist(),
            "limit": fill.limit,
            "seed": seed,
            "settings": asdict(fill.config),
            "model": model,
            "fingerprint": fingerprint,
        }

    def step(self, result: StepResult) -> Event:
        """The event of a step; its seconds are those since the event before."""
        self.nats -= float(result.log_p.double().sum())
        before, self.last = self.last, self.clock()
        return {
            "type": "step",
            "step": self.fill.n_steps,
            "evaluations": self.fill.nfe,
            "seconds": self.last - before,
            "revealed": self._revealed(result),
            "remasked": result.remasked.tolist(),
            "entropy": float(result.entropy().mean()) if len(result.asked) else None,
            "open": self.fill.n_open,
        }

    def end(self) -> Event:
        """The event of the end; `nats` is the exact likelihood under the policy, None where there is none."""
        fill = self.fill
        ids, given = fill.ids.tolist(), fill.given.tolist()
        ends = (place for place, one in enumerate(ids) if one in self.end_ids and not given[place])
        end = next(ends, len(ids))
        return {
            "type": "end",
            "text": self.texts.tokenizer.decode(ids[:end]),
            "evaluations": fill.nfe,
            "seconds": self.clock() - self.began,
            "nats": self.nats if has_likelihood(fill.config) else None,
            "tokens_written": given[:end].count(False),
            "finish_reason": "stop" if end < len(ids) else "length",
        }

    def _revealed(self, result: StepResult) -> list[Event]:
        """The tokens of a step with their probabilities, and the likeliest ones in their places."""
        predicted = result.revealed_log_p()
        best = predicted.topk(min(self.alternatives, predicted.shape[-1]), dim=-1)
        ids, probabilities = best.indices.tolist(), best.values.exp().tolist()
        texts = iter(self.texts.of([*result.tokens.tolist(), *(one for row in ids for one in row)]))
        revealed = [
            {"at": at, "id": token, "text": next(texts), "p": p}
            for at, token, p in zip(
                result.positions.tolist(), result.tokens.tolist(), result.log_p.exp().tolist(), strict=True
            )
        ]
        for one, row, row_p in zip(revealed, ids, probabilities, strict=True):
            listed = [{"id": token, "text": next(texts), "p": p} for token, p in zip(row, row_p, strict=True)]
            one["alternatives"] = [other for other in listed if other["p"] > 0]  # what may not be written has none
        return revealed


def error_event(message: str) -> Event:
    """The event that ends a text which cannot be written; the message is one sentence."""
    return {"type": "error", "message": message}
