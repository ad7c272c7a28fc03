"""Output of a command for people: results to standard output, the rest to standard error.

A terminal obeys what it is sent: control sequences set its title, fill the clipboard and erase what was written, and
marks of direction let a text be read as another. Vocabularies, tokenizers and the names of files come from strangers,
so to a terminal such characters are sent as signs that show them. Files and pipes get the text as it is.
"""

import sys
from typing import IO, TextIO

from llada.system.errors import UserError
from llada.system.files import hush

_UNSEEN = "\ufffd"
_SHOWN: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},  # ␛ for escape, and so on
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), _UNSEEN),  # C1: one of them begins a sequence, like escape and a bracket
    **dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), _UNSEEN),  # direction
    **dict.fromkeys((0x2028, 0x2029), _UNSEEN),  # further ends of a line
    **dict.fromkeys(range(0xE0000, 0xE0080), _UNSEEN),  # tags, which nobody sees
}


def visible(text: str) -> str:
    """Replace each character that a terminal would obey by a visible sign; line ends and tabs stay."""
    return text.translate(_SHOWN)


def fit_for(stream: IO[str], text: str) -> str:
    """Prepare a text for a stream: made visible for a terminal, unchanged for everything else."""
    return visible(text) if stream.isatty() else text


def tell(text: str, ahead: str = "") -> None:
    """Write a result to standard output.

    Args:
        ahead: words of our own, which may have colours, to write before it.

    Raises:
        BrokenPipeError: nobody reads it any more.
        UserError: it cannot be written, for example because the disk is full.
    """
    stream: TextIO | None = sys.stdout
    if stream is None:  # as in a program of Windows without a console
        return
    try:
        print(ahead + fit_for(stream, text), file=stream, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise cannot_write(error) from error


def finish() -> None:
    """Flush what standard output still holds; raises like `tell`."""
    stream: TextIO | None = sys.stdout
    try:
        if stream is not None:
            stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise cannot_write(error) from error


def cannot_write(error: OSError) -> UserError:
    """Build the error for standard output that cannot be written; what it holds is dropped, or it would fail again."""
    hush(sys.stdout)
    reason = error.strerror or type(error).__name__
    return UserError(f"Standard output cannot be written ({reason}): free some space, or send it elsewhere.")


def note(text: str) -> None:
    """Write something to standard output that is not a result: if that fails, the work counts as done all the same."""
    try:
        tell(text)
    except BrokenPipeError:
        hush(sys.stdout)
    except UserError as error:
        say(str(error))


def say(sentence: str) -> None:
    """Write to standard error; if nobody reads it any more, the exit code still says how the command ended."""
    stream: TextIO | None = sys.stderr
    if stream is None:
        return
    try:
        print(fit_for(stream, sentence), file=stream, flush=True)
    except OSError:
        hush(stream)
