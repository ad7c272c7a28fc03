"""The one exception whose message is for people, and short descriptions of all others."""

import errno
import gc
import os
import re
import traceback
from collections.abc import Callable

LONGEST_SENTENCE = 1000
"""Length in characters. What is quoted may be anything, such as a name of megabytes."""
_LONGEST_REASON = 200
# What a RuntimeError says if an allocation failed: torch on a CPU and on a GPU, CUDA's libraries, and oneDNN
# (dnnl.hpp), which names what it could not allocate. "could not create a primitive descriptor" means something else.
_NO_MEMORY = re.compile(
    "can't allocate memory|not enough memory|bad_alloc|out of memory|ALLOC_FAILED|could not create a memory object|"
    "could not create a primitive(?! desc)|could not execute a primitive"
)
# A command, with or without options behind it: `llada prepare` with `output_dir="data"`. Or an option: `steps`,
# `steps=100`.
_OPTION = r"`([a-z_0-9]+)(?:=([^`]+))?`"
_NAMES = re.compile(rf"`llada ([a-z]+)`(?: with {_OPTION})?|{_OPTION}")


class UserError(Exception):
    """Bad input, described in one sentence that names the problem and the remedy.

    Library code raises it; the command line prints its message and exits with code 2, without a traceback. Options
    stand in backticks, by their names in Python: `steps`, `device="cpu"`, `complementary=False`. `respelled` puts them
    as the command line has them.
    """

    def __init__(self, sentence: str) -> None:
        """Show line breaks and control characters, which a quoted file may hold, as Python writes them."""
        sentence = shortened(sentence, LONGEST_SENTENCE)
        if not sentence.isprintable():
            sentence = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in sentence)
        super().__init__(shortened(sentence, LONGEST_SENTENCE))


def shortened(sentence: str, longest: int) -> str:
    """Leave out the middle of a sentence that is too long: the problem is named first and the remedy last."""
    if len(sentence) <= longest:
        return sentence
    end = longest // 3
    return f"{sentence[: longest - end - 5]} ... {sentence[-end:]}"


def respelled(sentence: str, option: Callable[[str, str | None], str], command: Callable[[str], str]) -> str:
    """Spell the options and commands of a sentence, which stand in backticks, in another way.

    Args:
        option: the spelling of an option, from its name and the value that it is to have, if the sentence names one.
        command: the spelling of `llada NAME`, from the name.
    """

    def spelled(found: re.Match[str]) -> str:
        name, inner, inner_value, alone, value = found.groups()
        if name is None:
            return option(alone, _unquoted(value))
        return f"`{command(name)} {option(inner, _unquoted(inner_value))}`" if inner else f"`{command(name)}`"

    return _NAMES.sub(spelled, sentence)


def _unquoted(value: str | None) -> str | None:
    return value[1:-1] if value and len(value) > 1 and value[0] == value[-1] == '"' else value


SYSTEM_REMEDIES = {
    errno.ENOMEM: "free some memory, or raise `ulimit -v`",
    errno.EMFILE: "close some files, or raise `ulimit -n`",
    errno.ENFILE: "close some programs, for the system has too many files open",
}


def system_remedy(error: BaseException) -> str | None:
    """Return what helps against a lack of the system; None if the error is none of these.

    Libraries put the system's own words into errors of their own.
    """
    number = getattr(error, "errno", None)
    return next(
        (remedy for lack, remedy in SYSTEM_REMEDIES.items() if lack == number or os.strerror(lack) in str(error)), None
    )


def first_line(error: BaseException | str) -> str:
    """Quote an error as a clause: its first line with words, of at most 200 characters, or its type.

    Backticks become quotes, unless the error is our own: what they hold is not one of our options.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return "" if isinstance(error, str) else type(error).__name__
    line = lines[0].rstrip(".:")[:_LONGEST_REASON]
    return line if isinstance(error, UserError) else line.replace("`", "'")


def forget_frames(error: BaseException) -> None:
    """Let go of what the functions that an error has ended held, such as tensors; its traceback keeps its lines."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()  # what refers to itself, as the tensors that autograd keeps may


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's own, the system's, or one within torch and its libraries."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))
