"""The command `llada doctor`: whether the machine and the installation are ready."""

import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from llada.cli import Program
from llada.cli.flags import in_flags
from llada.system.doctor import KEYS, examine
from llada.system.fact import Fact, Level
from llada.system.terminal import say, tell

DESCRIPTION = """Check whether this machine and installation are ready, what a run will use, and how to fix what is
missing.

The exit code is 0 if they are ready and 1 if there is a problem. A note is not a problem: everything runs, but slower
or with less."""

PROBLEM = 1
SHORT = ("torch", "device", "precision", "memory", "disk")
MARKS: dict[Level, str] = {"fine": "ok", "note": "note", "problem": "PROBLEM"}
COLOURS: dict[Level, str] = {"fine": "32", "note": "33", "problem": "1;31"}
NAMES = {"compile_cache": "compile cache", "compiled_code": "compiled code", "lm_eval": "lm-eval"}


@dataclass(frozen=True)
class DoctorOptions:
    json: bool = False
    """Print one JSON object instead of lines."""
    quick: bool = False
    """Leave out the slow checks (compiled code, imports of the optional parts, access to the hub) and print less."""


def run(arguments: Sequence[str], program: Program) -> int:
    options = _parse(arguments, program)
    if sys.stdout is not None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may have letters that the terminal cannot encode
    facts = examine(options.quick)
    if options.json:
        found = list(facts)
        tell(json.dumps(to_json(found)))
    else:
        found = _print_lines(facts, options.quick)
        _print_advice(found)
    return PROBLEM if any(fact.level == "problem" for fact in found) else 0


def _parse(arguments: Sequence[str], program: Program) -> DoctorOptions:
    try:
        from llada.cli.options import parse
    except ImportError:  # without the parser, which the report is about to name as missing
        return DoctorOptions("--json" in arguments, "--quick" in arguments)
    return parse(DoctorOptions, program.name, arguments, DESCRIPTION)


def to_json(facts: Sequence[Fact]) -> dict[str, Any]:
    """Return the report for programs: verdict, sentences by level, and every fact by its key, None if left out."""
    found = {fact.key: {"level": fact.level, "summary": fact.summary, **fact.values} for fact in facts}
    return {
        "is_ready": all(fact.level != "problem" for fact in facts),
        "problems": [in_flags(fact.advice) for fact in facts if fact.level == "problem"],
        "notes": [in_flags(fact.advice) for fact in facts if fact.level == "note" and fact.advice],
        "facts": {**dict.fromkeys(KEYS), **found},
    }


def _print_lines(facts: Iterable[Fact], quick: bool) -> list[Fact]:
    """Print each fact as soon as it is known, because the last one takes a minute; the quick report omits some."""
    found = []
    for fact in facts:
        found.append(fact)
        if not quick or fact.key in SHORT or fact.level != "fine":
            tell(_line(fact), ahead=_mark(fact.level))
        if not quick and fact.key == "compiler" and sys.stderr is not None and sys.stderr.isatty():
            say("         compiling a small network, to compare it with the plain one: a minute or so ...")
    return found


def _line(fact: Fact) -> str:
    name = NAMES.get(fact.key, fact.key.replace("_", " "))
    width = max(len(key) for key in KEYS)
    return f"  {name:{width}}  {fact.summary}"


def _mark(level: Level) -> str:
    text, colour = f"{MARKS[level]:7}", COLOURS[level]
    stream: TextIO | None = sys.stdout
    has_colours = stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    return f"\033[{colour}m{text}\033[0m" if has_colours and not os.environ.get("NO_COLOR") else text


def _print_advice(facts: Sequence[Fact]) -> None:
    """Print the sentences and the verdict; problems come last, where they are seen."""
    for level in ("note", "problem"):
        sentences = [in_flags(fact.advice) for fact in facts if fact.level == level and fact.advice]
        if sentences:
            tell(f"\n{'Notes' if level == 'note' else 'Problems'}:")
        for sentence in sentences:
            tell(f"- {sentence}")
    n_problems = sum(fact.level == "problem" for fact in facts)
    problems = f"{n_problems} problem{'s' if n_problems > 1 else ''}"
    verdict = f"Not ready: {problems}." if n_problems else "Ready."
    tell(f"\n{verdict}")
