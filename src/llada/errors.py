"""The one exception that a person is meant to read."""


class UserError(Exception):
    """Bad input, described in one sentence that names the problem and the remedy.

    Library code raises it; the command line prints its message and exits with code 2, without a traceback.
    """

    def __init__(self, sentence: str) -> None:
        """Line breaks and control characters, which a quoted file may hold, are shown as Python writes them."""
        if not sentence.isprintable():
            sentence = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in sentence)
        super().__init__(sentence)
