"""Templates: text in which `<MASK>` stands for a token to fill in, and `<MASK*20>` for 20 of them."""

import re
from collections.abc import Callable

from llada.tokenizers.base import Tokenizer
from llada.tokenizers.char import MASK

MOST_DIGITS = 9  # of a count of masks; more are too many anyway


def read_template(text: str, tokenizer: Tokenizer, check_length: Callable[[int], None]) -> list[int]:
    """The ids of a template, MASK's where it is to be filled in.

    Args:
        check_length: refuses more tokens than there may be, before there is a list of them.

    Raises:
        UserError: it is too long, or has a character that the vocabulary has not.
    """
    pieces = re.split(rf"{MASK[:-1]}(?:\*(\d+))?>", text)  # text, count, text, count, ..., text
    template = tokenizer.encode(pieces[0])
    for count, after in zip(pieces[1::2], pieces[2::2], strict=True):
        n_masks = int((count or "1")[:MOST_DIGITS])
        check_length(len(template) + n_masks)
        template += [tokenizer.mask_id] * n_masks + tokenizer.encode(after)
    check_length(len(template))
    return template
