"""Batches of token ids: windows of a text, its stored sequences, or answers to prompts.

Shape letters: B batch, L length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from llada.data.prepared import Ids, PreparedText
from llada.data.sft import Pair
from llada.system.errors import UserError


@dataclass(frozen=True)
class TokenBatch:
    """A batch of clean ids (B, L), with the positions that may be masked and attended to."""

    x_0: Tensor
    maskable: Tensor | None = None
    """(B, L) bool, False where a token is given or padding; None means everywhere."""
    attention_mask: Tensor | None = None
    """(B, L) bool, False where a token is padding that must not be attended to; None means everywhere."""

    def __len__(self) -> int:
        """The number of rows, B."""
        return len(self.x_0)

    @property
    def is_maskable(self) -> Tensor:
        """The positions (B, L) bool that may be masked, also if `maskable` is None."""
        return torch.ones_like(self.x_0, dtype=torch.bool) if self.maskable is None else self.maskable

    @property
    def is_given(self) -> Tensor:
        """The tokens (B, L) bool that are never masked and are not padding, those of a prompt for example."""
        return ~self.is_maskable if self.attention_mask is None else ~self.is_maskable & self.attention_mask

    def rows(self, index: slice | Tensor) -> Self:
        return self._map(lambda tensor: tensor[index])

    def columns(self, length: int) -> Self:
        """Return the first `length` columns."""
        return self._map(lambda tensor: tensor[:, :length])

    @property
    def needed_columns(self) -> int:
        """Number of columns up to the last one in which something may be masked; only padding follows."""
        if self.maskable is None:
            return self.x_0.shape[1]
        return int(self.maskable.any(0).nonzero().max()) + 1

    @property
    def needed_attention_mask(self) -> Tensor | None:
        """The attention mask, or None without padding: attention is faster without a mask. This waits for the
        device."""
        mask = self.attention_mask
        return None if mask is None or bool(mask.all()) else mask

    def twice(self) -> Self:
        """Return the batch with all its rows repeated once."""
        return self._map(lambda tensor: tensor.repeat(2, 1))

    def to(self, device: torch.device | str) -> Self:
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        parts = (self.x_0, self.maskable, self.attention_mask)
        return type(self)(*(None if part is None else change(part) for part in parts))  # type: ignore[arg-type]


DrawBatch = Callable[[int, Generator], TokenBatch]
"""A function `draw(n_before, generator)`: the batch after `n_before` samples, the same whenever it is asked for."""


def check_window(data: PreparedText, length: int) -> None:
    """Refuse windows that are longer than the training text.

    Raises:
        UserError: they are longer.
    """
    n_tokens = len(data.tokens("train"))
    if length > n_tokens:
        raise UserError(f"A window of {length} does not fit the training text of {n_tokens:,} tokens: shorten it.")


def random_windows(data: PreparedText, batch_size: int, length: int) -> DrawBatch:
    """Make a source of windows (B, L) at any offset of the training text, so that each epoch over a short text has new
    cuts."""
    check_window(data, length)
    tokens = data.tokens("train")

    def draw(n_before: int, generator: Generator) -> TokenBatch:
        start = torch.randint(0, len(tokens) - length + 1, (batch_size,), generator=generator).numpy()
        return TokenBatch(_as_ids(tokens[start[:, None] + np.arange(length)]))

    return draw


def stored_sequences(data: PreparedText, batch_size: int, seed: int) -> DrawBatch:
    """Make a source of the stored rows as they are, each once an epoch, in a new order in every epoch."""
    rows, pad_id = data.rows["train"], data.tokenizer.pad_id

    def draw(n_before: int, generator: Generator) -> TokenBatch:
        x_0 = _as_ids(rows[_shuffled(n_before, batch_size, len(rows), seed)])
        is_text = x_0 != pad_id
        return TokenBatch(x_0) if bool(is_text.all()) else TokenBatch(x_0, is_text, is_text)

    return draw


def answers(pairs: Sequence[Pair], batch_size: int, padded_together: int, end_id: int, seed: int) -> DrawBatch:
    """Make a source of prompts with answers, each once an epoch; answers are padded to equal length by EOS, as LLaDA
    does.

    That padding is attended to, masked and learned like any other token of the answer (GUIDELINES.md, section 5),
    so that the model learns where an answer ends.

    Args:
        padded_together: number of consecutive rows that are padded to the longest of them; what follows in a row is
            not part of it, neither maskable nor needed.
        end_id: id of EOS.
    """

    def draw(n_before: int, generator: Generator) -> TokenBatch:
        drawn = [pairs[i] for i in _shuffled(n_before, batch_size, len(pairs), seed)]
        lengths = torch.tensor([len(pair.ids) for pair in drawn])
        n_given = torch.tensor([pair.n_given for pair in drawn])
        x_0 = torch.full((batch_size, int(lengths.max())), end_id)
        for row, pair in zip(x_0, drawn, strict=True):
            row[: len(pair.ids)] = torch.tensor(pair.ids)
        together = torch.arange(batch_size) // padded_together
        end = torch.stack([lengths[together == group].max() for group in together])
        column = torch.arange(x_0.shape[1])
        return TokenBatch(x_0, (column >= n_given[:, None]) & (column < end[:, None]))

    return draw


class Answered(Protocol):
    """A prompt with its answer."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids of the prompt and the answer."""

    @property
    def n_given(self) -> int:
        """Number of tokens of the prompt."""


def pad_answers(pairs: Sequence[Answered], pad_id: int) -> TokenBatch:
    """Pad prompts and answers at the end, for measuring.

    The padding is neither attended to nor scored, so that the result for an answer does not depend on the others.
    """
    length = max(len(pair.ids) for pair in pairs)
    x_0 = torch.tensor([[*pair.ids, *[pad_id] * (length - len(pair.ids))] for pair in pairs], dtype=torch.long)
    column = torch.arange(length)
    is_text = column < torch.tensor([len(pair.ids) for pair in pairs])[:, None]
    is_prompt = column < torch.tensor([pair.n_given for pair in pairs])[:, None]
    return TokenBatch(x_0, is_text & ~is_prompt, is_text)


def _shuffled(n_before: int, batch_size: int, n: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw the next items' numbers (B,): each of n once an epoch, in a new order in every epoch."""
    position = n_before + np.arange(batch_size)
    epoch, index = position // n, position % n
    for e in np.unique(epoch):
        order = np.random.default_rng((seed, int(e))).permutation(n)
        index[epoch == e] = order[index[epoch == e]]
    return index


def _as_ids(array: Ids) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
