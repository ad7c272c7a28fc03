"""A process for an untrusted chat template or tokenizer: a script that `system/limited_process.py` runs.

It imports nothing of this package, so that it starts in a tenth of a second. Questions come on standard input
and answers go to standard output, each as its length and JSON; a question also has some bytes, which may be none.
"""

import contextlib
import datetime
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NoReturn

try:
    import resource
except ImportError:  # Windows: the asking process enforces the limits
    resource = None  # type: ignore[assignment]

LENGTH = struct.Struct(">Q")
LONGEST_REASON = 300
SAMPLE = " Hello, world!\n\n\t0123 it's \u00e9 \u4e16\u754c \U0001f600 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"


# -- templates --------------------------------------------------------------------------------------------------------


class TemplateService:
    """Jinja as the transformers library sets it up."""

    def __init__(self) -> None:
        from jinja2.ext import Extension
        from jinja2.nodes import CallBlock, Node
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """The tag `{% generation %}`, around what the assistant wrote: it is parsed, and changes nothing."""

            tags = {"generation"}  # noqa: RUF012  # as Jinja wants it

            def parse(self, parser: Parser) -> Node:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

            def _inside(self, caller: Callable[[], str]) -> str:
                return caller()

        self.environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
        )
        self.now = datetime.datetime.now()
        self.environment.filters["tojson"] = _to_json
        self.environment.globals.update(
            raise_exception=_raise_exception,
            strftime_now=lambda form: self.now.strftime(form),
            dict=_TemplateDict(),
            namespace=_make_namespace_class(),
        )

    def setup(self, blob: bytes) -> None:
        """Compile the template."""
        self.template = self.environment.from_string(blob.decode())

    def render(self, turns: Sequence[tuple[Any, bool]], names: Mapping[str, str], longest: int) -> list[Any]:
        """Render lists of messages, with or without a generation prompt; each gives [text, None] or [None, reason].

        They are rendered at one moment, should the template ask for the time.
        """
        self.now = datetime.datetime.now()
        results: list[list[str | None]] = []
        for messages, add_generation_prompt in turns:
            variables = {**names, "messages": messages, "add_generation_prompt": add_generation_prompt}
            try:
                results.append([self._render(variables, longest), None])
            except MemoryError:
                raise
            except Exception as error:  # a template can fail in any way that an expression can
                results.append([None, describe(error)])
        return results

    def _render(self, variables: Mapping[str, Any], longest: int) -> str:
        pieces, length = [], 0
        for piece in self.template.generate(tools=None, documents=None, **variables):
            pieces.append(piece)
            length += len(piece)
            if length > longest:
                raise ValueError(f"it writes more than {longest:,} characters")
        return "".join(pieces)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON as it is, without Jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


class _TemplateDict:
    """`dict` for templates, without the type's own attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


def _make_namespace_class() -> type:
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    def check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace has no attribute {name!r}")

    class TemplateNamespace(Namespace):
        """Jinja's namespace, without attributes that lead into Python."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, args = args[0], args[1:]
            attributes = dict(*args, **kwargs)
            for name in attributes:
                check(name)
            Namespace.__init__(self, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            Namespace.__setitem__(self, name, value)

    return TemplateNamespace


# -- tokenizers -------------------------------------------------------------------------------------------------------


class TokenizerService:
    """A tokenizer.json, read by the tokenizers library.

    Added tokens keep their flags, as in the transformers library: those of tokenizer_config.json take precedence where
    both files have a token, and tokens that it names (`bos_token`, ...) are special. So are the ids that the network's
    configuration names. A special token is found in the text as it stands, before the normalizer: only so can it be
    distinguished from one that a message spells out. A text is never cut or padded.
    """

    def __init__(self) -> None:
        from tokenizers import AddedToken, Tokenizer, normalizers

        self.AddedToken, self.Tokenizer, self.normalizers = AddedToken, Tokenizer, normalizers

    def setup(self, blob: bytes, described: Mapping[str, Mapping[str, Any]], named: Sequence[str]) -> None:
        """Read the file.

        Args:
            described: content and flags of the added tokens in tokenizer_config.json, by id.
            named: content of the tokens that have a name there.
        """
        content = json.loads(blob)
        stored = {int(token["id"]): token for token in content.get("added_tokens") or []}
        added = {**stored, **{int(id_): _with_flags(token) for id_, token in described.items()}}
        if all(added[id_] == stored[id_] for id_ in stored):
            del content
            self.model = self.Tokenizer.from_buffer(blob)
        else:  # other names or flags
            content["added_tokens"] = [{**added[id_], "id": id_} for id_ in sorted(added)]
            self.model = self.Tokenizer.from_str(json.dumps(content))
            del content
        self.model.no_truncation()
        self.model.no_padding()
        self._add([added[id_] for id_ in sorted(added) if id_ not in stored])
        self._make_special([name for name in named if self.model.token_to_id(name) is not None])
        wrong = (token["content"] for id_, token in added.items() if self.model.token_to_id(token["content"]) != id_)
        for name in wrong:
            raise ValueError(f"tokenizer.json and tokenizer_config.json do not agree on the id of {name}")
        self.normalizer = self.model.normalizer
        self.stand_ins: dict[str, str] = {}

    def _add(self, tokens: Sequence[Mapping[str, Any]]) -> None:
        self.model.add_tokens([self.AddedToken(**{k: v for k, v in token.items() if k != "id"}) for token in tokens])

    def _make_special(self, names: Sequence[str]) -> None:
        """Make these tokens special, and let all special tokens be found before the normalizer."""
        known = {token.content: token.__getstate__() for token in self.model.get_added_tokens_decoder().values()}
        known = {**{name: {"content": name} for name in names}, **known}
        special = [token for name, token in known.items() if token.get("special") or name in names]
        forced = {"special": True, "normalized": False}
        self.model.add_special_tokens([self.AddedToken(**{**token, **forced}) for token in special])

    def describe(self, special_ids: Sequence[int]) -> dict[str, Any]:
        """Return the known ids, as first and last of each run, and the special tokens, `special_ids` among them.

        It also encodes a text and decodes it, so that a tokenizer that fails is found out here.
        """
        self._make_special([name for id_ in special_ids if (name := self.model.id_to_token(id_)) is not None])
        runs: list[list[int]] = []
        for id_ in sorted(self.model.get_vocab(with_added_tokens=True).values()):
            if runs and id_ <= runs[-1][1] + 1:
                runs[-1][1] = id_
            else:
                runs.append([id_, id_])
        added = self.model.get_added_tokens_decoder()
        self.decode([self.encode([SAMPLE])[0]])
        return {"runs": runs, "special": {token.content: id_ for id_, token in added.items() if token.special}}

    def id_of(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        found: int | None = self.model.token_to_id(token)
        return found

    def encode(self, texts: Sequence[str], stand_ins: Mapping[str, str] | None = None) -> list[list[int]]:
        """Encode each text.

        Args:
            stand_ins: None where special tokens are text. Otherwise characters that keep spelled-out special tokens
                from being found, with what they stand for; they are replaced by it when special tokens are no longer
                looked for.
        """
        wanted = dict(stand_ins or {})
        if wanted != self.stand_ins:
            first = [self.normalizers.Replace(character, text) for character, text in wanted.items()]
            own = [] if self.normalizer is None else [self.normalizer]
            self.model.normalizer = self.normalizers.Sequence([*first, *own])
            self.stand_ins = wanted
        self.model.encode_special_tokens = stand_ins is None
        return [self.model.encode(text, add_special_tokens=False).ids for text in texts]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Decode each row of ids; special tokens vanish."""
        return [self.model.decode(row, skip_special_tokens=True) for row in rows]


def _with_flags(token: Mapping[str, Any]) -> dict[str, Any]:
    """Return an added token as tokenizer.json has it, with the library's own flags where none are given."""
    special = bool(token.get("special", False))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special}
    flags = {name: bool(token.get(name, default)) for name, default in flags.items()}
    return {"content": str(token["content"]), **flags, "special": special}


# -- questions and answers --------------------------------------------------------------------------------------------


def describe(error: BaseException) -> str:
    """Return the first line of an error, or its type if it has no text."""
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    if isinstance(error, RecursionError):
        return "it is too deep"
    lines = str(error).splitlines()
    reason = lines[0].strip().rstrip(".") if lines else ""
    return (reason or type(error).__name__)[:LONGEST_REASON]


def set_limits(seconds: float, megabytes: int) -> None:
    """Let the kernel end this process when it exceeds the limits from here on; 0 seconds means no limit."""
    if resource is None:
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    with contextlib.suppress(ValueError, OSError):  # a lower limit was set from outside
        resource.setrlimit(resource.RLIMIT_DATA, (megabytes * 1_000_000, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def read(stream: IO[bytes]) -> bytes:
    """Read a message; b"" at the end of the stream."""
    header = stream.read(LENGTH.size)
    return stream.read(LENGTH.unpack(header)[0]) if len(header) == LENGTH.size else b""


def serve(service: Any, questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until nobody asks any more, or memory runs out: the service may be broken then."""
    while text := read(questions):
        blob = read(questions)
        question = json.loads(text)
        set_limits(question.pop("seconds"), question.pop("megabytes"))
        name = question.pop("name")
        if name == "setup":
            question["blob"] = blob
        try:
            send({"answer": getattr(service, name)(**question)}, answers)
        except MemoryError as error:
            send({"failure": describe(error), "ends": True}, answers)
            return
        except BaseException as error:  # a panic of the tokenizers library is not an Exception
            send({"failure": describe(error)}, answers)


def send(reply: Mapping[str, Any], answers: IO[bytes]) -> None:
    """Write an answer, with the time that this process has taken so far, and stop counting."""
    message = json.dumps({**reply, "seconds": time.process_time()}).encode()
    if resource is not None:
        signal.setitimer(signal.ITIMER_PROF, 0)
    answers.write(LENGTH.pack(len(message)) + message)
    answers.flush()


def main() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):  # meant for the process that asks
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # printed text must not get among the answers
    service = TemplateService() if sys.argv[1] == "template" else TokenizerService()
    send({"answer": "ready"}, answers)
    serve(service, sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
