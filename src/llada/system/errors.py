"""The one exception that a person is meant to read."""

LONGEST_SENTENCE = 1000
"""Characters. What is quoted may be anything, such as a name of megabytes."""


class UserError(Exception):
    """Bad input, described in one sentence that names the problem and the remedy.

    Library code raises it; the command line prints its message and exits with code 2, without a traceback.
    """

    def __init__(self, sentence: str) -> None:
        """Line breaks and control characters, which a quoted file may hold, are shown as Python writes them."""
        sentence = shortened(sentence, LONGEST_SENTENCE)
        if not sentence.isprintable():
            sentence = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in sentence)
        super().__init__(shortened(sentence, LONGEST_SENTENCE))


def shortened(sentence: str, longest: int) -> str:
    """Leave out the middle of a sentence that is too long, for the problem is named first and the remedy last."""
    if len(sentence) <= longest:
        return sentence
    end = longest // 3
    return f"{sentence[: longest - end - 5]} ... {sentence[-end:]}"
