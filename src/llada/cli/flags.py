"""Translate the options and commands in sentences of the library, which names them as Python does, into flags."""

from llada.system.errors import respelled

WITH_THREE_VALUES = {"compile"}
"""Options that are True, False or None, whose value is always typed; a plain switch has a `--no-` form instead."""


def flag_of(name: str, value: str | None = None) -> str:
    """Return an option as it is typed: `--steps`, `--steps 100`, `--no-complementary`."""
    if value == "False" and name not in WITH_THREE_VALUES:
        return f"--no-{name}"
    return f"--{name}" if value is None or value == "True" else f"--{name} {value}"


def in_flags(sentence: str, prepare_program: str = "llada prepare") -> str:
    """Return a sentence of the library with its options and commands as they are typed.

    Args:
        prepare_program: what to type to prepare a text.
    """
    programs = {"prepare": prepare_program}
    return respelled(sentence, flag_of, lambda name: programs.get(name, f"llada {name}"))
