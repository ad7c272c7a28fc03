"""The windows of a text that is measured, and the size of that text.

Shape letters: W windows, L length.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from llada.data.prepared import Ids
from llada.system.errors import UserError

Item = TypeVar("Item")


def cut_windows(tokens: Ids, length: int, at_most: int | None = None, given: int = 0) -> Tensor:
    """Cut a text into windows (W, L) that score every token once; the last, shorter piece is left out.

    Args:
        length: L, at least 1.
        at_most: largest number of windows, spread evenly over the text.
        given: number of tokens at the start of each window that are read but not scored; they are the last
            ones of the window before. With 1, and windows of 257, it is the conditioning of nanoGPT's evaluation.

    Raises:
        UserError: the text is shorter than one window, or nothing of a window would be scored.
    """
    if not 0 <= given < length:
        raise UserError(f"Of windows of {length} tokens, {given} cannot be given: choose a `prefix` below {length}.")
    stride = length - given
    n_windows = (len(tokens) - given) // stride
    if n_windows < 1:
        raise UserError(
            f"The text of {len(tokens):,} tokens is shorter than a window of {length}: "
            "shorten `sequence_length`, or use a longer text."
        )
    starts = np.arange(n_windows) * stride
    if at_most is not None:
        starts = starts[evenly_spread(range(n_windows), at_most)]
    return torch.from_numpy(tokens[starts[:, None] + np.arange(length)].astype(np.int64))


def scored_places(windows: Tensor, given: int, eos_id: int) -> Tensor | None:
    """Mark the scored tokens, (W, L) bool, False where a token is given or an EOS, which separates documents; None if
    all are scored."""
    places = (torch.arange(windows.shape[1]) >= given) & (windows != eos_id)
    return None if bool(places.all()) else places


def scored_windows(
    tokens: Ids, length: int, eos_id: int, at_most: int | None = None, given: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Cut the windows of a text, without those that hold nothing to score, and mark their scored tokens.

    Raises:
        UserError: as `cut_windows`, or there is nothing to score in any of them.
    """
    windows = cut_windows(tokens, length, at_most, given)
    places = scored_places(windows, given, eos_id)
    if places is None:
        return windows, None
    has_any = places.any(1)
    if not bool(has_any.any()):
        raise UserError("The text holds nothing to score but the ends of documents: use a longer `sequence_length`.")
    return windows[has_any], places[has_any]


def evenly_spread(items: Sequence[Item], at_most: int) -> list[Item]:
    """Choose `at_most` of the items, evenly spread from the first to the last; all if there are no more."""
    if at_most >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, at_most).round().astype(int)]


@dataclass(frozen=True)
class TextSize:
    """The amount of text that was scored."""

    characters: int
    bytes: int
    """Number of bytes in UTF-8."""
    words: int
    """Number of words, separated by white space."""

    @classmethod
    def of(cls, text: str) -> Self:
        return cls(len(text), len(text.encode("utf-8", errors="replace")), len(text.split()))

    @classmethod
    def sum(cls, sizes: Iterable[Self]) -> Self:
        """Add up the sizes of separate texts."""
        parts = [(size.characters, size.bytes, size.words) for size in sizes]
        return cls(*map(sum, zip(*parts, strict=True)))
