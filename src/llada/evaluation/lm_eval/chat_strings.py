"""Prompts of a chat template as strings and back, for a harness that passes strings on.

A special token is written as its name after a sign that no text has. So the strings can be read back, and a message
that says "<
eot_id
>" stays text, as in training.
"""

import re
from collections.abc import Sequence
from itertools import groupby, takewhile

from llada.tokenizers.base import Tokenizer
from llada.tokenizers.chat_template import PRIVATE_USE, ChatFormat
from llada.tokenizers.message import Message

SIGN = chr(PRIVATE_USE[-1])


class Spelling:
    """A translation between the ids of a prompt and its string."""

    def __init__(self, tokenizer: Tokenizer, form: ChatFormat) -> None:
        self.tokenizer, self.form = tokenizer, form
        self._name_of = {id_: name for name, id_ in form.specials.items()}
        longest_first = sorted(form.specials, key=len, reverse=True)
        self._special = re.compile(f"{SIGN}({'|'.join(map(re.escape, longest_first))})")

    def prompt(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Write what comes before the answer to the last message; or, without a generation prompt, what the answer
        continues."""
        if add_generation_prompt:
            return self.write(self.form.prompt(messages))
        return self.write(self.form.prompt(messages[:-1])) + messages[-1].content

    def write(self, ids: Sequence[int]) -> str:
        pieces = []
        for is_special, run in groupby(ids, key=self._name_of.__contains__):
            some = list(run)
            pieces += [SIGN + self._name_of[id_] for id_ in some] if is_special else [self.tokenizer.decode(some)]
        return "".join(pieces)

    def read(self, text: str) -> list[int]:
        """Return the ids of what `write` made, or of any other text.

        Raises:
            UserError: a character is not in the vocabulary.
        """
        ids: list[int] = []
        for i, piece in enumerate(self._special.split(text)):  # text, name, text, name, ..., text
            ids += [self.form.specials[piece]] if i % 2 else self.tokenizer.encode(piece)
        return ids

    def read_pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids of a context and of its continuation.

        White space at the end of a context counts to the continuation, as in lm-evaluation-harness, since tokens begin
        with it; so does the end of a context that is tokenised differently with the continuation than without. The
        answer to a chat prompt is a text of its own, as in training.
        """
        if SIGN in context:
            return tuple(self.read(context)), tuple(self.read(continuation))
        whole = tuple(self.read(context + continuation))
        pairs = zip(whole, self.read(context.rstrip()), strict=False)
        n_given = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return whole[:n_given], whole[n_given:]
