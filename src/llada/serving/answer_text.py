"""The text of an answer while tokens are still masked: what is decided, what may be sent, and where it ends.

A stream can only append. So of a text that is filled in any order, the decided prefix is sent: all that stands before
the first mask, less what may begin a stop string, may be a part of a character, or may be removed at the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from llada.tokenizers.chat_template import cut_at_end

FinishReason = Literal["stop", "length"]
BROKEN_CHARACTER = "\ufffd"  # what a tokenizer writes for bytes that are not yet a character


@dataclass(frozen=True)
class Decided:
    """The decided prefix of an answer."""

    text: str
    """All of it, up to the sign of the end or a stop string."""
    sendable: str
    """The part that will not change whatever follows."""
    finish_reason: FinishReason | None
    """The reason why the answer is complete; None while it is not."""
    n_tokens: int
    """Number of tokens of the prefix, the sign of the end included."""


@dataclass(frozen=True)
class AnswerText:
    """What ends an answer, and how its ids are decoded."""

    decode: Callable[[Sequence[int]], str]
    mask_id: int
    end_ids: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()
    strips: bool = False
    """Whether space at both ends does not belong to the answer, as in a dialogue."""

    def decided(self, ids: Sequence[int], *, is_final: bool = False) -> Decided:
        """Return what is decided of an answer.

        Args:
            ids: all places of the answer, MASK where nothing is decided.
            is_final: whether no more will be decided.
        """
        first_mask = next((place for place, id_ in enumerate(ids) if id_ == self.mask_id), len(ids))
        prefix = cut_at_end(ids[:first_mask], self.end_ids)
        has_end = len(prefix) < first_mask
        text = self.decode(prefix)
        at = self._first_stop(text)
        if at is not None:
            n_tokens = self._tokens_up_to_stop(prefix)
            return self._complete(text[:at], "stop", n_tokens)
        if has_end:
            return self._complete(text, "stop", len(prefix) + 1)
        if is_final or first_mask == len(ids):
            return self._complete(text, "length", len(prefix))
        return Decided(self._stripped(text), self._sendable(text), None, len(prefix))

    def _complete(self, text: str, reason: FinishReason, n_tokens: int) -> Decided:
        text = self._stripped(text)
        return Decided(text, text, reason, n_tokens)

    def _stripped(self, text: str) -> str:
        return text.strip() if self.strips else text

    def _first_stop(self, text: str) -> int | None:
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        return min(found, default=None)

    def _tokens_up_to_stop(self, ids: Sequence[int]) -> int:
        """Return the number of tokens of the shortest prefix that holds a stop string."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            if self._first_stop(self.decode(ids[:middle])) is None:
                low = middle + 1
            else:
                high = middle
        return low

    def _sendable(self, text: str) -> str:
        text = text.rstrip(BROKEN_CHARACTER)
        text = text[: len(text) - self._may_begin_stop(text)]
        return text.strip() if self.strips else text

    def _may_begin_stop(self, text: str) -> int:
        """Return the length of the longest end of the text with which a stop string begins."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for n in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self.stops):
                return n
        return 0
