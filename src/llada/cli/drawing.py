"""Unfinished text in a terminal."""

from collections.abc import Iterable
from itertools import groupby

from rich.text import Text

from llada.system.terminal import visible
from llada.tokenizers.base import Tokenizer

OPEN = "░"  # a mask, for people


def draw_tokens(tokenizer: Tokenizer, ids: Iterable[int]) -> Text:
    """Ids as text, masks dim; neighbours together, since a character may be of several tokens."""
    picture = Text()
    for is_masked, run in groupby(ids, key=lambda token: token == tokenizer.mask_id):
        # Here already, so that lines are as wide as they are counted.
        picture.append(visible(tokenizer.decode(run, mask_symbol=OPEN)), style="dim" if is_masked else "bold")
    return picture
