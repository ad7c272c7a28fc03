"""Translate the options and commands in sentences of the library, which names them as Python does, into flags."""

from collections.abc import Sequence

from llada.system.errors import UserError, respelled

WITH_THREE_VALUES = {"compile"}
"""Options that are True, False or None, whose value is always typed; a plain switch has a `--no-` form instead."""


def flag_of(name: str, value: str | None = None) -> str:
    """Return an option as it is typed: `--steps`, `--steps 100`, `--no-complementary`."""
    if value == "False" and name not in WITH_THREE_VALUES:
        return f"--no-{name}"
    return f"--{name}" if value is None or value == "True" else f"--{name} {value}"


# Options that name a file, a folder or a repository.
PATHS = {
    "against", "base", "chat", "chat_val", "checkpoint", "config", "curve", "data_dir", "film", "hf", "input", "judge",
    "model_name", "output", "output_dir", "resume", "tokenizer",
}  # fmt: skip


def refuse_empty_paths(arguments: Sequence[str]) -> None:
    """Refuse a path that is an empty word, which a shell makes of a variable that is not set.

    Otherwise it would be the current folder, or the default run.

    Raises:
        UserError: there is one.
    """
    flag = ""
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if name.startswith("--"):
            flag = name.removeprefix("--").replace("-", "_")
        # A flag may have several values.
        if flag in PATHS and (argument == "" or (sign and name.startswith("--") and value == "")):
            raise UserError(f"--{flag} has an empty value: name a file or a folder, or leave it out.")


def in_flags(sentence: str, prepare_program: str = "llada prepare") -> str:
    """Return a sentence of the library with its options and commands as they are typed.

    Args:
        prepare_program: what to type to prepare a text.
    """
    programs = {"prepare": prepare_program}
    return respelled(sentence, flag_of, lambda name: programs.get(name, f"llada {name}"))
