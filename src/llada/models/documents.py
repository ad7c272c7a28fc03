"""Several documents in one sequence: which of its positions attend to which.

An attention mask (B, L) is of booleans, False where a token is padding, or of integers: the number of the document that
a token belongs to, and 0 where it is padding. With numbers, attention stays within each document, and each is computed
as it would be alone, except that positions count on from one to the next: rotary ones are relative, learned ones are
not.

Shape letters: B batch, L length.
"""

import torch
from torch import Tensor


def numbers_of(attention_mask: Tensor | None) -> Tensor | None:
    """Return an attention mask of document numbers as it is, and None for one that only marks padding."""
    if attention_mask is None or attention_mask.dtype == torch.bool or attention_mask.is_floating_point():
        return None
    return attention_mask


def attends(queries: Tensor, keys: Tensor) -> Tensor:
    """Whether a position attends to another, by the numbers of their documents; the shapes are broadcast.

    A token attends to those of its own document and to no padding. Padding, whose results nobody reads, attends to all
    tokens, so that the numbers 0 and 1 mean what False and True do.
    """
    return (keys != 0) & ((queries == keys) | (queries == 0))


def key_mask(attention_mask: Tensor) -> Tensor:
    """The keys that each query attends to: (B, 1, 1, L) bool, alike for all queries, or (B, 1, L, L) for documents."""
    numbers = numbers_of(attention_mask)
    if numbers is None:
        return attention_mask.bool()[:, None, None, :]
    return attends(numbers[:, None, :, None], numbers[:, None, None, :])


def bias_of(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Additive bias that hides what is False in a mask.

    It is finite, so that a row in which everything is hidden attends evenly instead of becoming NaN, as in LLaDA's
    official code.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def one_document(attention_mask: Tensor | None) -> Tensor | None:
    """The mask (B, L) bool of rows that hold one document each.

    Raises:
        ValueError: a row holds several.
    """
    numbers = numbers_of(attention_mask)
    if numbers is not None and bool((numbers.masked_fill(numbers == 0, 1) != 1).any()):
        raise ValueError("a cache is for rows of one document each, whose number is 1")
    return None if attention_mask is None else attention_mask.bool()
