"""The windows of a text that is measured, and how much text they are.

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
    """Windows (W, L) of a text, in which every token is scored once; its last, shorter piece is left out.

    Args:
        length: L, at least 1.
        at_most: only so many, spread evenly over the text.
        given: so many tokens at the start of each window are there to be read, not to be scored; they are the last
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
    return torch.from_numpy(np.asarray(tokens)[starts[:, None] + np.arange(length)].astype(np.int64))


def scored_places(windows: Tensor, given: int, eos_id: int) -> Tensor | None:
    """(W, L) bool, False at the tokens that are given, and at each EOS, which stands between two documents and is no
    text; None if there are none of either."""
    places = (torch.arange(windows.shape[1]) >= given) & (windows != eos_id)
    return None if bool(places.all()) else places


def scored_windows(
    tokens: Ids, length: int, eos_id: int, at_most: int | None = None, given: int = 0
) -> tuple[Tensor, Tensor | None]:
    """The windows of a text by `cut_windows`, but for those without anything to score, and their `scored_places`.

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
    """All items, or only so many of them, from the first to the last."""
    if at_most >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, at_most).round().astype(int)]


@dataclass(frozen=True)
class TextSize:
    """How much text was scored."""

    characters: int
    bytes: int
    """In UTF-8."""
    words: int
    """Separated by white space."""

    @classmethod
    def of(cls, text: str) -> Self:
        return cls(len(text), len(text.encode("utf-8", errors="replace")), len(text.split()))

    @classmethod
    def sum(cls, sizes: Iterable[Self]) -> Self:
        """Of texts apart."""
        parts = [(size.characters, size.bytes, size.words) for size in sizes]
        return cls(*map(sum, zip(*parts, strict=True)))
