"""Batches of token ids: windows of a text, its stored sequences, or answers to prompts.

Shape letters: B batch, L length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import torch
from torch import Generator, Tensor

from llada.data.order import Numbers, integers, shuffled
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
    """(B, L) bool, False where a token is padding that must not be attended to; None means everywhere. Or integers, the
    numbers of documents that attend to themselves alone, 0 for padding."""

    @classmethod
    def joined(cls, batches: Sequence[Self]) -> Self:
        """Return the rows of all batches, which have the same length, one after the other."""

        def join(tensors: Sequence[Tensor | None]) -> Tensor | None:
            if all(tensor is None for tensor in tensors):
                return None
            everywhere = [torch.ones_like(batch.x_0, dtype=torch.bool) for batch in batches]
            pairs = zip(tensors, everywhere, strict=True)
            return torch.cat([ones if tensor is None else tensor for tensor, ones in pairs])

        return cls(
            torch.cat([batch.x_0 for batch in batches]),
            join([batch.maskable for batch in batches]),
            join([batch.attention_mask for batch in batches]),
        )

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
        return ~self.is_maskable if self.attention_mask is None else ~self.is_maskable & (self.attention_mask != 0)

    @property
    def is_within_documents(self) -> bool:
        """Whether attention stays within each document."""
        return self.attention_mask is not None and self.attention_mask.dtype != torch.bool

    def within_documents(self, end_id: int) -> Self:
        """Return the batch with attention within each document, which ends with its EOS (`end_id`)."""
        numbers = document_numbers(self.x_0, end_id)
        if self.attention_mask is not None:
            numbers = numbers.masked_fill(self.attention_mask == 0, 0)
        return replace(self, attention_mask=numbers)

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
        """The attention mask, or None without padding and documents: attention is faster without a mask. This waits for
        the device."""
        mask = self.attention_mask
        return None if mask is None or (not self.is_within_documents and bool(mask.all())) else mask

    def twice(self) -> Self:
        """Return the batch with all its rows repeated once."""
        return self._map(lambda tensor: tensor.repeat(2, 1))

    def to(self, device: torch.device | str) -> Self:
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        parts = (self.x_0, self.maskable, self.attention_mask)
        return type(self)(*(None if part is None else change(part) for part in parts))  # type: ignore[arg-type]


def document_numbers(ids: Tensor, end_id: int) -> Tensor:
    """Number the documents in windows of ids (B, L) from 1: (B, L) int32, for each token that of its document.

    A document ends with its EOS (`end_id`). The first and the last of a window may be parts of one.
    """
    is_end = (ids == end_id).int()
    return is_end.cumsum(1, dtype=torch.int32) - is_end + 1


DrawBatch = Callable[[int, Generator], TokenBatch]
"""A function `draw(n_before, generator)`: the batch after `n_before` samples, the same whenever it is asked for."""


def drawn_within_documents(draw: DrawBatch, end_id: int) -> DrawBatch:
    """Make a source of the same batches, with attention within each document (`TokenBatch.within_documents`)."""
    return lambda n_before, generator: draw(n_before, generator).within_documents(end_id)


@dataclass(frozen=True)
class Numbered:
    """Samples that are drawn by their numbers in the run, each alone, so that any process can draw any part of a batch.

    Neither the generator nor the seed of a source matters for them.
    """

    places: Numbers
    """(B,) numbers of the wanted samples in a batch, from 0, in their order; a sample may come twice."""
    key: int
    """Which the random numbers depend on (`data.order`)."""


def check_window(data: PreparedText, length: int) -> None:
    """Refuse windows that are longer than the training text.

    Raises:
        UserError: they are longer.
    """
    n_tokens = len(data.tokens("train"))
    if length > n_tokens:
        raise UserError(
            f"A window of {length} does not fit the training text of {n_tokens:,} tokens in {data.folder}: shorten it."
        )


def random_windows(data: PreparedText, batch: int | Numbered, length: int) -> DrawBatch:
    """Make a source of windows (B, L) at any offset of the training text, so that each epoch over a short text has new
    cuts.

    Args:
        batch: the number of windows, or the numbered ones of them.
    """
    check_window(data, length)
    tokens = data.tokens("train")
    n_starts = len(tokens) - length + 1

    def draw(n_before: int, generator: Generator) -> TokenBatch:
        if isinstance(batch, Numbered):
            start = integers(batch.key, n_before + batch.places, n_starts)
        else:
            start = torch.randint(0, n_starts, (batch,), generator=generator).numpy()
        return TokenBatch(_as_ids(tokens[start[:, None] + np.arange(length)]))

    return draw


def stored_sequences(data: PreparedText, batch: int | Numbered, seed: int) -> DrawBatch:
    """Make a source of the stored rows as they are, each once an epoch, in a new order in every epoch.

    Args:
        batch: the number of rows, or the numbered ones of them.
        seed: of the order of rows that are not numbered.
    """
    rows, places = data.rows["train"], _places(batch)

    def draw(n_before: int, generator: Generator) -> TokenBatch:
        numbers = _items_at(n_before + places, len(rows), batch, seed)
        x_0 = _as_ids(rows[numbers])
        # By its place: where PAD is EOS, as of LLaDA-8B, the id does not tell it from the end of a document.
        is_text = torch.from_numpy(np.arange(x_0.shape[1]) < data.row_lengths("train", numbers)[:, None])
        return TokenBatch(x_0) if bool(is_text.all()) else TokenBatch(x_0, is_text, is_text)

    return draw


def answers(pairs: Sequence[Pair], batch: int | Numbered, padded_together: int, end_id: int, seed: int) -> DrawBatch:
    """Make a source of prompts with answers, each once an epoch; answers are padded to equal length by EOS, as LLaDA
    does.

    That padding is attended to, masked and learned like any other token of the answer (GUIDELINES.md, section 5),
    so that the model learns where an answer ends.

    Args:
        batch: the number of rows, or the numbered ones of them.
        padded_together: number of consecutive rows of the whole batch that are padded to the longest of them; what
            follows in a row is not part of it, neither maskable nor needed.
        end_id: id of EOS.
        seed: of the order of rows that are not numbered.
    """
    places = _places(batch)
    groups, group = np.unique(places // padded_together, return_inverse=True)
    # All rows of these groups count, also those that other processes compute.
    members = groups[:, None] * padded_together + np.arange(padded_together)

    def draw(n_before: int, generator: Generator) -> TokenBatch:
        drawn = [pairs[i] for i in _items_at(n_before + places, len(pairs), batch, seed)]
        n_given = torch.tensor([pair.n_given for pair in drawn])
        items = _items_at(n_before + members.flatten(), len(pairs), batch, seed)
        longest = torch.tensor([len(pairs[i].ids) for i in items]).view(members.shape).amax(1)
        end = longest[torch.from_numpy(group)]
        x_0 = torch.full((len(drawn), int(end.max())), end_id)
        for row, pair in zip(x_0, drawn, strict=True):
            row[: len(pair.ids)] = torch.tensor(pair.ids)
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


def _places(batch: int | Numbered) -> Numbers:
    return batch.places if isinstance(batch, Numbered) else np.arange(batch)


def _items_at(samples: Numbers, n: int, batch: int | Numbered, seed: int) -> Numbers:
    """Return the items (B,) that these samples (B,) of a run take: each of n once an epoch, in a new order in every
    epoch."""
    if isinstance(batch, Numbered):
        return shuffled(batch.key, samples, n)
    epoch, index = samples // n, samples % n
    for e in np.unique(epoch):
        order = np.random.default_rng((seed, int(e))).permutation(n)
        index[epoch == e] = order[index[epoch == e]]
    return index


def _as_ids(array: Ids) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
