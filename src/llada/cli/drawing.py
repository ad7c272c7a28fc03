"""Draw text with masks in it for a terminal."""

from collections.abc import Iterable
from itertools import groupby

from rich.text import Text

from llada.films.layout import MASK
from llada.system.terminal import visible
from llada.tokenizers.base import Tokenizer

OPEN = MASK  # stands for a mask


def draw_tokens(tokenizer: Tokenizer, ids: Iterable[int]) -> Text:
    """Draw ids as text, with masks dim.

    Neighbours are decoded together, because a character may consist of several tokens.
    """
    picture = Text()
    for is_masked, run in groupby(ids, key=lambda token: token == tokenizer.mask_id):
        # Control characters are replaced before rich counts the width of the lines.
        picture.append(visible(tokenizer.decode(run, mask_symbol=OPEN)), style="dim" if is_masked else "bold")
    return picture
