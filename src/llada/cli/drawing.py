"""Unfinished text in a terminal."""

from collections.abc import Iterable

from rich.text import Text

from llada.text.vocabulary import Tokenizer

OPEN = "░"  # a mask, for people


def draw_tokens(tokenizer: Tokenizer, ids: Iterable[int]) -> Text:
    """Ids as text, masks dim."""
    picture = Text()
    for token in ids:
        is_masked = token == tokenizer.mask_id
        picture.append(tokenizer.decode([token], mask_symbol=OPEN), style="dim" if is_masked else "bold")
    return picture
