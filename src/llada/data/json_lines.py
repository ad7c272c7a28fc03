"""Files with an object of JSON a line (JSONL), each of which holds a document."""

import json
from collections.abc import Iterator

from llada.data.pieces import Bad, Piece, not_utf8, opened, start_of_line
from llada.system.errors import first_line

LONGEST_LINE = 1 << 26
"""Largest number of bytes of a line."""
_MARK = b"\xef\xbb\xbf"


def line_documents(piece: Piece, text_key: str) -> Iterator[str | Bad]:
    for i, line in enumerate(_lines(piece)):
        if line is None:
            yield Bad(piece, i + 1, f"is longer than {LONGEST_LINE:,} bytes")
            continue
        try:
            found = _text_in(line, text_key)
        except (ValueError, RecursionError) as error:
            yield Bad(piece, i + 1, _json_problem(error))
            continue
        if found is not None:
            yield found if isinstance(found, str) else Bad(piece, i + 1, found[0])


def _text_in(line: bytes, text_key: str) -> str | tuple[str] | None:
    """Return the text of a line, a problem in a tuple, or None for a blank line."""
    line = line.strip(b" \t\r\n").removesuffix(b",")
    if not line:
        return None
    text = text_of(json.loads(line.decode("utf-8")), text_key)
    if isinstance(text, str) and b"\\u" in line:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return ("holds half of a surrogate pair, which is not a character",)
    return text


def text_of(content: object, text_key: str) -> str | tuple[str]:
    """Return the text of a row, or a problem in a tuple; null is an empty text."""
    if not isinstance(content, dict):
        return (f"holds {_kind_of(content)}, not an object with a {text_key!r}",)
    if text_key not in content:
        keys = ", ".join(map(str, list(content)[:8])) or "none"
        return (f"has no {text_key!r} (its keys: {keys})",)
    text = content[text_key]
    if text is None:
        return ""
    return text if isinstance(text, str) else (f"has {_kind_of(text)} for {text_key!r}, not a text",)


def _kind_of(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _json_problem(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON ({error.msg})"
    if isinstance(error, UnicodeDecodeError):
        return not_utf8(error)
    return f"is not valid JSON ({'it is too deep' if isinstance(error, RecursionError) else first_line(error)})"


def _lines(piece: Piece) -> Iterator[bytes | None]:
    """Iterate over the lines that begin in a piece; None for one that is too long."""
    start, end = piece.span
    with opened(piece) as file:
        at = start_of_line(file, start)
        while at < end:
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            at += len(line)
            if len(line) > LONGEST_LINE:
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = file.readline(LONGEST_LINE)
                    at += len(rest)
                yield None
            else:
                yield line.removeprefix(_MARK) if at == len(line) else line
