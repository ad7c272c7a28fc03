"""The words of docstrings and comments: whole sentences in the field's own terms."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "llada"
# "" is the package itself, without its folders.
ROOMS = ("", *sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))

# A home-made or outdated expression, as a pattern, and what to write instead.
FORBIDDEN = {
    r"(?<!here )\b(?:is|are) no\b(?! (?:longer|more)\b)": "is not a",
    r"\bbeside\b": "next to, compared with, in addition to",
    r"\bby heart\b": "overfitting",
    r"\bmend(?:s|ed)?\b": "fix",
    r"\bproducts?\b": "matmul",
    r"\blinear maps?\b": "linear layer",
    r"\bto be had\b|\b(?:cannot|could not) be had\b": "cannot be obtained",
    r"\b(?:told|tells)\b": "report, say, show",
    r"\brecomput(?:e|es|ed|ing)\b": "activation checkpointing",
    r"\ba number that is none\b|\bnumbers that are none\b": "non-finite",
    r"\bfounding document\b": 'the preset "founding"',
}
# Places where such an expression is right: a module, a piece of its text, and the reason.
ALLOWED: tuple[tuple[str, str, str], ...] = ()

# Words with which a docstring begins that is a fragment, such as "Of a text." for the length of a text.
FRAGMENT = re.compile(r"(?:Of|That|Those|By|As|With|Without) ")
# A capital; or code, a formula, or a name that is written small.
OPENING = re.compile(r"[A-Z]|`|[a-z]\(|llada-trainer\b|iLLaDA\b")
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def modules_of(room: str) -> list[Path]:
    folder = PACKAGE / room
    return sorted(folder.glob("*.py") if room == "" else folder.rglob("*.py"))


def docstrings_of(source: str) -> Iterator[tuple[int, str, bool]]:
    """Yield the line and text of each docstring, and whether it is that of a field or constant."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, DEFINITIONS):
            continue
        for place, statement in enumerate(node.body):
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value.strip(), place > 0


def comments_of(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each comment; the lines of one that has several are joined."""
    line, text = -1, ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if text and token.start[0] == line + 1:
            text += " " + token.string.lstrip("# ")
        else:
            if text:
                yield line, text
            text = token.string.lstrip("# ")
        line = token.start[0]
    if text:
        yield line, text


def bad_words(source: str) -> Iterator[str]:
    """Yield a complaint for each forbidden expression in the docstrings and comments of a module."""
    texts = [*((line, text) for line, text, _ in docstrings_of(source)), *comments_of(source)]
    for line, text in texts:
        plain = " ".join(text.split())
        for pattern, better in FORBIDDEN.items():
            for found in re.finditer(pattern, plain, re.IGNORECASE):
                around = plain[max(0, found.start() - 40) : found.end() + 20]
                yield f"line {line}: {around!r} (better: {better})"


def bad_beginnings(source: str) -> Iterator[str]:
    """Yield a complaint for each docstring whose first sentence does not stand alone."""
    for line, text, is_of_field in docstrings_of(source):
        first = " ".join(text.split("\n\n")[0].split())
        if FRAGMENT.match(first):
            yield f"line {line}: {first[:60]!r} is a fragment"
        if not OPENING.match(first) and not (is_of_field and re.match(r'["(]', first)):
            yield f"line {line}: {first[:60]!r} does not begin with a capital"
        if not re.search(r"\.(?:\s|$)", first):
            yield f"line {line}: {first[:60]!r} has no full stop in its first paragraph"


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_and_comments_use_the_fields_words(room: str) -> None:
    complaints = [
        f"{path.relative_to(PACKAGE)} {one}" for path in modules_of(room) for one in bad_words(path.read_text())
    ]
    unexpected = [
        one for one in complaints if not any(one.startswith(name) and text in one for name, text, _ in ALLOWED)
    ]
    assert unexpected == []


@pytest.mark.parametrize("room", ROOMS)
def test_the_first_sentence_of_a_docstring_stands_alone(room: str) -> None:
    found = [
        f"{path.relative_to(PACKAGE)} {one}" for path in modules_of(room) for one in bad_beginnings(path.read_text())
    ]
    assert found == []


def test_each_rule_finds_what_it_forbids() -> None:
    source = '''"""It is no table, nor is there no row; it is no longer one."""
# Products of matrices stand
# beside it.
x = 1
"""Of a text."""
def f():
    """lower case, and without an end"""
'''
    found = [line.split(": ")[0] + line[line.index(" (better") :] for line in bad_words(source)]
    assert found == [
        "line 1 (better: is not a)",
        "line 3 (better: next to, compared with, in addition to)",
        "line 3 (better: matmul)",
    ]
    assert [line.rpartition("' ")[2] for line in bad_beginnings(source)] == [
        "is a fragment",
        "does not begin with a capital",
        "has no full stop in its first paragraph",
    ]
