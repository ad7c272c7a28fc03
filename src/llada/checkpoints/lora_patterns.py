"""Patterns of an untrusted adapter_config.json: the linear layers that an adapter is for, with rank and scale of each.

peft matches them by Python's `re`, which some expressions keep busy for ever. Here they are matched by `regex`, which
can be stopped, and peft is given the full names. The rules are those of peft's `check_target_module_exists` and
`get_pattern_key`.
"""

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

MOST_PATTERNS, LONGEST_PATTERN = 10_000, 10_000
SECONDS = 2.0  # for all names; peft needs milliseconds for any adapter that was ever trained
PATTERN_FIELDS = (
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
)  # fmt: skip
ALL_LINEAR = "all-linear"
ANY_LAYER = r".*?\.[^.]*\."  # before the first number in a name


class Matcher:
    """A matcher of regular expressions, with a limit on the time that they may take in all."""

    def __init__(self, seconds: float = SECONDS) -> None:
        import regex  # type: ignore[import-untyped]  # a requirement of transformers, which peft requires

        self._library: Any = regex
        self._until = time.monotonic() + seconds
        self._compiled: dict[str, Any] = {}

    def match(self, pattern: str, name: str, whole: bool) -> Any:
        """Match a name as `re.fullmatch` does, or as `re.match` does.

        Raises:
            ValueError: the expression is broken, too long, or takes too long.
        """
        left = self._until - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            found = self._compiled.get(pattern)
            if found is None:
                if len(pattern) > LONGEST_PATTERN:
                    raise ValueError(f"a pattern of {len(pattern):,} characters")
                found = self._compiled[pattern] = self._library.compile(pattern)
            return (found.fullmatch if whole else found.match)(name, timeout=left)
        except TimeoutError:
            raise ValueError("its patterns take too long to be matched") from None
        except self._library.error as error:
            raise ValueError(f"the pattern {pattern[:60]!r} is broken: {error}") from error


@dataclass(frozen=True)
class Targets:
    """The linear layers that an adapter's configuration means in a network, by their full names."""

    names: Sequence[str]
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Ranks of the names that have one of their own."""
    alphas: Mapping[str, float] = field(default_factory=dict)

    def as_fields(self) -> dict[str, Any]:
        """Return the fields of peft's configuration that mean the same."""
        return {
            "target_modules": "|".join(map(re.escape, self.names)),
            "exclude_modules": None,
            "layers_to_transform": None,
            "layers_pattern": None,
            "rank_pattern": _by_value(self.ranks),
            "alpha_pattern": _by_value(self.alphas),
        }


def find_targets(network: nn.Module, config: Any) -> Targets:
    """Resolve the patterns of an adapter.

    Args:
        config: the configuration as peft holds it.

    Raises:
        ValueError: the patterns are broken, too many, or take too long, or nothing matches.
    """
    _check_sizes(config)
    matcher, modules = Matcher(), dict(network.named_modules())
    targets = config.target_modules
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        targets = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
    is_target = _pattern_test(matcher, targets)
    is_excluded = _pattern_test(matcher, config.exclude_modules or ())
    is_in_layers = _layers_test(matcher, config) if not isinstance(targets, str) else lambda name: True
    names = [
        name
        for name in modules
        if name and not is_excluded(name) and is_target(name) and (name in targets or is_in_layers(name))
    ]
    if not names:
        raise ValueError(f"Target modules {_shortened(targets)} not found in the base model")
    return Targets(
        names,
        _of_patterns(matcher, names, config.rank_pattern),
        _of_patterns(matcher, names, config.alpha_pattern),
    )


def _check_sizes(config: Any) -> None:
    for key in PATTERN_FIELDS:
        value = getattr(config, key)
        if isinstance(value, Collection) and not isinstance(value, str):
            if len(value) > MOST_PATTERNS:
                raise ValueError(f"{key} has {len(value):,} entries")
            if key != "layers_to_transform" and not all(isinstance(entry, str) for entry in value):
                raise ValueError(f"{key} holds something else than names")


def _pattern_test(matcher: Matcher, patterns: str | Collection[str] | None) -> Callable[[str], bool]:
    """Make a test of names: by one expression for the full name, or by several names or ends of names."""
    if isinstance(patterns, str):
        pattern = patterns
        return lambda name: bool(matcher.match(pattern, name, whole=True))
    known, ends = set(patterns or ()), tuple(f".{end}" for end in patterns or ())
    return lambda name: name in known or name.endswith(ends)


def _layers_test(matcher: Matcher, config: Any) -> Callable[[str], bool]:
    """Make a test whether a name is in one of the layers that are adapted."""
    wanted = config.layers_to_transform
    if wanted is None or wanted == []:
        return lambda name: True
    numbers = {wanted} if isinstance(wanted, int) else set(wanted)
    patterns = config.layers_pattern or []
    patterns = [patterns] if isinstance(patterns, str) else patterns
    expressions = [rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\." for pattern in patterns]

    def is_in_layers(name: str) -> bool:
        for expression in expressions or [rf"{ANY_LAYER}(?P<idx>\d+)\."]:
            if found := matcher.match(expression, name, whole=False):
                return int(found["idx"]) in numbers
        return False

    return is_in_layers


def _of_patterns(matcher: Matcher, names: Iterable[str], patterns: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return, for each name, the value of the first pattern that it ends in, if there is one."""
    found = {}
    for name in names:
        for pattern, value in (patterns or {}).items():
            if matcher.match(rf"(.*\.)?({pattern})$", name, whole=False):
                found[name] = value
                break
    return found


def _by_value(of_names: Mapping[str, Any]) -> dict[str, Any]:
    """Make one pattern for each value, which matches these full names and not the ends of others."""
    groups: dict[Any, list[str]] = {}
    for name, value in of_names.items():
        groups.setdefault(value, []).append(re.escape(name))
    return {rf"\A(?:{'|'.join(names)})": value for value, names in groups.items()}


def _shortened(targets: Any) -> str:
    text = str(targets if isinstance(targets, str) else sorted(targets or ()))
    return text if len(text) <= 100 else f"{text[:100]}..."
