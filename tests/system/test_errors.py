"""A sentence for people is one line, whatever it quotes."""

import errno
import os
import traceback
import weakref

import pytest

from llada.system.errors import UserError, first_line, forget_frames, is_out_of_memory, system_remedy


def test_control_characters_are_shown_not_obeyed() -> None:
    assert str(UserError("a\nb\x1b[31mc\ud800 \u2028d ä世.")) == "a\\nb\\x1b[31mc\\ud800 \\u2028d ä世."
    assert str(UserError("It is plain: do nothing.")) == "It is plain: do nothing."


@pytest.mark.parametrize(
    ("error", "clause"),
    [
        (ValueError("\n  no such thing.\nfurther lines"), "no such thing"),
        (ValueError(""), "ValueError"),
        ("", ""),
        (OSError("x" * 300), "x" * 200),
        (RuntimeError("when calling `create`:"), "when calling 'create'"),  # which is not an option of ours
        (UserError("lower `gen_length`."), "lower `gen_length`"),
    ],
)
def test_an_error_is_quoted_by_its_first_line(error: BaseException | str, clause: str) -> None:
    assert first_line(error) == clause


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "CUDA out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
        "could not create a primitive",
        "could not execute a primitive",
        "could not create a memory object",
    ],
)
def test_what_libraries_say_when_memory_is_gone(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(ValueError(said))


def test_what_the_functions_held_that_an_error_ended_can_be_let_go() -> None:
    class Large:
        def __init__(self) -> None:
            self.itself = self

    alive: list[weakref.ref[Large]] = []

    def compute() -> None:
        large = Large()
        alive.append(weakref.ref(large))
        raise MemoryError("no more")

    with pytest.raises(MemoryError) as caught:
        compute()
    assert alive[0]() is not None
    forget_frames(caught.value)
    assert alive[0]() is None
    assert 'raise MemoryError("no more")' in "".join(traceback.format_exception(caught.value))


def test_what_is_missing_may_be_something_else_than_memory() -> None:
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    unsupported = "could not create a primitive descriptor for the matmul primitive"
    assert not is_out_of_memory(RuntimeError(unsupported))


@pytest.mark.parametrize(("number", "word"), [(errno.EMFILE, "ulimit -n"), (errno.ENOMEM, "ulimit -v")])
def test_a_lack_of_the_system_is_known_whoever_reports_it(number: int, word: str) -> None:
    """By its number, or by the system's words in the error of a library."""
    for error in (OSError(number, "whatever"), RuntimeError(f"library: {os.strerror(number)} (os error {number})")):
        assert word in (system_remedy(error) or "")
    for other in (ValueError("bad header"), OSError(errno.EISDIR, os.strerror(errno.EISDIR))):
        assert system_remedy(other) is None
