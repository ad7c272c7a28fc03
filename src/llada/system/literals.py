"""Checks of option values: members of a fixed list, and numbers within reason, from Python as from the command line."""

from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

LARGEST, LARGEST_FLOAT = 10**12, 1e30
"""Largest whole number, and largest other number, that an option takes: beyond it, memory, loops and conversions fail
in ways that nobody can foresee."""


def check_literals(options: Any, error: type[Exception] = ValueError) -> None:
    """Refuse a dataclass with a field whose `Literal` type does not list its value; called by `__post_init__`.

    Raises:
        error: there is such a field; the message names the field and its values.
    """
    for name, values in _literal_fields(cast(Any, type(options))).items():
        _check(name, getattr(options, name), values, error)


def check_literal(name: str, value: Any, literal: Any, error: type[Exception] = ValueError) -> None:
    """Refuse a value of an argument that is not among those of its `Literal` type."""
    _check(name, value, _values_of(literal) or (), error)


def _check(name: str, value: Any, values: tuple[Any, ...], error: type[Exception]) -> None:
    if not any(value is known or (type(value) is type(known) and value == known) for known in values):
        choices = ", ".join(repr(known) for known in values if known is not None)
        raise error(f"{name} must be one of {choices}, not {value!r}")


@cache
def _literal_fields(kind: Any) -> dict[str, tuple[Any, ...]]:
    hints = get_type_hints(kind)
    found = {field.name: _values_of(hints[field.name]) for field in fields(kind)}
    return {name: values for name, values in found.items() if values}


def _values_of(hint: Any) -> tuple[Any, ...] | None:
    """Return all values of a `Literal`, None among them if the type allows it; None for any other type."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        values = _values_of(parts[0]) if len(parts) == 1 else None
        return None if values is None else (*values, None)
    return None
