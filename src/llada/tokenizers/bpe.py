"""A published checkpoint's tokenizer: byte-level BPE, read by the tokenizers library.

Its ids are the network's rows, MASK's included. The files are kept as they were read, byte for byte.

The library works in a process of its own (system/limited_process.py), since an untrusted file can make it take any time
and memory, panic, or abort: normalizers that grow a text, regular expressions that never end. The file is parsed there,
once.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Self
from weakref import WeakValueDictionary

from llada.system.errors import UserError
from llada.system.limited_process import BoundedProcess, Limits, WorkError
from llada.system.regular_files import read_optional

MODEL_FILE, NAMES_FILE, TEMPLATE_FILE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
SPECIAL_MAP_FILE = "special_tokens_map.json"
# Not every checkpoint has them all; they describe the chat template and the names of special tokens.
OTHER_FILES = (NAMES_FILE, SPECIAL_MAP_FILE, TEMPLATE_FILE)
LARGEST_FILE = {MODEL_FILE: 64_000_000, NAMES_FILE: 8_000_000, SPECIAL_MAP_FILE: 1_000_000, TEMPLATE_FILE: 1_000_000}
VOCABULARY_KEYS = ("vocab_size", "mask_token_id", "pad_token_id", "eos_token_id")

STRANGER = Path(__file__).with_name("stranger.py")
# A vocabulary of 157k tokens takes 0.9 s and 250 MB to read, a token of a text 230 bytes. The limits are two to five
# times that, and twenty times the time of a text.
_MEGABYTES = 450
_CHARACTERS_PER_MEGABYTE = 1600
_SECONDS_PER_CHARACTER = 20e-6
_SECONDS_PER_BYTE_READ = 0.2e-6


class BPETokenizer:
    """A translation of text to ids and back; the ids of MASK, padding and end come with the network's configuration."""

    unit = "token"

    def __init__(self, files: Mapping[str, bytes], vocabulary: Mapping[str, int]) -> None:
        """Load the tokenizer from the content of its files.

        Args:
            files: name and content of the tokenizer's files, tokenizer.json at least.
            vocabulary: the keys of config.json that name ids, VOCABULARY_KEYS.

        Raises:
            ValueError: the files and the vocabulary do not fit together.
        """
        self._files = dict(files)
        self.vocabulary = {key: int(vocabulary[key]) for key in VOCABULARY_KEYS}
        self.vocab_size, self.mask_id, self.pad_id, self.eos_id = self.vocabulary.values()
        self.mask_row = self.mask_id
        self._names = _read_names(self._files)
        self._library = _Library.of(self._files, (self.mask_id, self.pad_id, self.eos_id))
        self._known = self._library.known
        if max(self._known) >= self.vocab_size:
            raise ValueError(f"{MODEL_FILE} has ids up to {max(self._known)}, the network {self.vocab_size} rows")
        missing = {key: id_ for key, id_ in self.vocabulary.items() if key != "vocab_size" and id_ not in self._known}
        if missing:
            raise ValueError(f"{MODEL_FILE} lacks the ids that config.json names: {missing}")

    @property
    def forbidden_rows(self) -> tuple[int, ...]:
        """The columns of MASK, of rows that no token has, and of PAD, unless it also ends a text."""
        padding = () if self.pad_id == self.eos_id else (self.pad_id,)
        return (self.mask_id, *padding, *(row for row in range(self.vocab_size) if row not in self._known))

    @property
    def special_tokens(self) -> dict[str, int]:
        """Names and ids of the tokens that no text has, MASK's among them; `encode` never returns one.

        These are the added tokens that the files flag as special or name (`bos_token`, ...), and those whose ids
        config.json names. Other added tokens are text: they are found in it by their flags.
        """
        return self._library.special

    @property
    def named_tokens(self) -> dict[str, str]:
        """The special tokens by the names that a chat template uses for them: `bos_token`, `eos_token`, ..."""
        return _named_tokens(self._names)

    @property
    def bos_token(self) -> str | None:
        """Name of the token that begins a text."""
        return self.named_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """Name of the token that ends a text."""
        by_id = {id_: name for name, id_ in self.special_tokens.items()}
        return self.named_tokens.get("eos_token") or by_id.get(self.eos_id)

    @property
    def template(self) -> str | None:
        """The chat template, in Jinja, if the checkpoint has one; a file of its own takes precedence.

        Raises:
            UserError: the file is not UTF-8.
        """
        if TEMPLATE_FILE in self._files:
            try:
                return self._files[TEMPLATE_FILE].decode()
            except UnicodeDecodeError as error:
                raise UserError(f"{TEMPLATE_FILE} is not UTF-8 text (byte {error.start}): convert it.") from None
        template = self._names.get("chat_template")
        if isinstance(template, list):  # several, by name
            entries = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
            template = entries[-1].get("template") if entries else None
        elif isinstance(template, dict):
            template = template.get("default")
        return template if isinstance(template, str) else None

    @property
    def file_names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def encode(self, text: str) -> list[int]:
        """Encode a text, without any special token.

        Raises:
            UserError: the tokenizer fails on it, or takes too much time or memory for it.
        """
        return self._library.encode([text])[0]

    def encode_rendered(self, texts: Sequence[str], stand_ins: Mapping[str, str]) -> list[list[int]]:
        """Encode texts in which names of special tokens are special tokens, those of a chat template.

        Args:
            stand_ins: characters that keep plain text from being taken for special tokens, and what they
                stand for, which is "" for one that is only in between.

        Raises:
            UserError: as `encode`.
        """
        return self._library.encode(texts, stand_ins)

    def decode(self, ids: Iterable[int], mask_symbol: str = "_") -> str:
        """Decode ids; special tokens vanish, MASK shows as `mask_symbol`.

        Raises:
            UserError: as `encode`.
        """
        runs = [(is_mask, list(run)) for is_mask, run in groupby(map(int, ids), key=lambda id_: id_ == self.mask_id)]
        texts = iter(self._library.decode([run for is_mask, run in runs if not is_mask]))
        return "".join(mask_symbol * len(run) if is_mask else next(texts) for is_mask, run in runs)

    def save(self, folder: Path) -> None:
        """Write the files as they were read."""
        for name, content in self._files.items():
            (folder / name).write_bytes(content)

    @classmethod
    def load(cls, folder: Path, vocabulary: Mapping[str, Any]) -> Self:
        """Read the tokenizer's files.

        Args:
            vocabulary: the keys of config.json that name ids; those of padding and end that a network does not have
                are found by their names in tokenizer_config.json.

        Raises:
            UserError: tokenizer.json is missing or damaged, or does not fit the vocabulary.
        """
        if not (folder / MODEL_FILE).is_file():
            raise UserError(f"{folder / MODEL_FILE} is missing: download the whole checkpoint again.")
        try:
            files = read_files(folder)
            return cls(files, {**_named_ids(files, vocabulary), **vocabulary})
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(f"The tokenizer in {folder} cannot be used ({error}): use another checkpoint.") from error

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BPETokenizer)
            and self._files[MODEL_FILE] == other._files[MODEL_FILE]
            and self.vocabulary == other.vocabulary
        )

    __hash__ = None  # type: ignore[assignment]  # equal by content, as a list is


def find_token(folder: Path, name: str) -> int | None:
    """Find the id of a token in a folder's tokenizer.json; None if there is no such file.

    Raises:
        UserError: it cannot be read, or lacks the token: another one, like that for unknown text, cannot replace it.
    """
    if not (folder / MODEL_FILE).is_file():
        return None
    try:
        id_ = _Library.find(read_files(folder), name)
    except ValueError as error:
        raise UserError(f"The tokenizer in {folder} cannot be used ({error}): use another checkpoint.") from error
    if id_ is None:
        raise UserError(f"{folder / MODEL_FILE} lacks the token {name}: use the checkpoint's own tokenizer.")
    return id_


class _Library:
    """The tokenizers library with one tokenizer, in a process of its own. Tokenizers with equal files share it."""

    _living: ClassVar["WeakValueDictionary[tuple[str, tuple[int, ...]], _Library]"] = WeakValueDictionary()
    # The process of the last tokenizer in which `find` looked: that tokenizer is usually opened next.
    _spare: ClassVar[tuple[str, BoundedProcess] | None] = None
    _found: ClassVar[dict[tuple[str, str], int | None]] = {}

    def __init__(self, process: BoundedProcess, special_ids: Sequence[int]) -> None:
        question = {"name": "describe", "special_ids": special_ids}
        try:
            facts = process.prepare(question, Limits(2.0, _MEGABYTES))
        except WorkError as error:
            raise ValueError(f"{MODEL_FILE} cannot be used: {error}") from error
        self._process = process
        self.known = {id_ for first, last in facts["runs"] for id_ in range(first, last + 1)}
        self.special: dict[str, int] = facts["special"]
        if not self.known:
            raise ValueError(f"{MODEL_FILE} has no token")

    @classmethod
    def of(cls, files: Mapping[str, bytes], special_ids: tuple[int, ...]) -> "_Library":
        """Return the library for these files.

        Args:
            special_ids: ids of tokens that are special whatever the files say.

        Raises:
            ValueError: the files cannot be read, or do not fit together.
        """
        digest = _digest(files)
        library = cls._living.get((digest, special_ids))
        if library is None:
            if cls._spare is not None and cls._spare[0] == digest:
                process, cls._spare = cls._spare[1], None
            else:
                process = _start(files)
            library = cls._living[digest, special_ids] = cls(process, special_ids)
        return library

    @classmethod
    def find(cls, files: Mapping[str, bytes], name: str) -> int | None:
        """Find the id of a token; raises the same errors as `of`."""
        digest = _digest(files)
        if (digest, name) not in cls._found:
            process = _start(files)
            try:
                cls._found[digest, name] = process.ask({"name": "id_of", "token": name}, Limits(1.0, _MEGABYTES))
            except WorkError as error:
                raise ValueError(f"{MODEL_FILE} cannot be used: {error}") from error
            cls._spare = digest, process
        return cls._found[digest, name]

    def encode(self, texts: Sequence[str], stand_ins: Mapping[str, str] | None = None) -> list[list[int]]:
        """Encode each text; special tokens are found if `stand_ins` is given, even if it is empty."""
        question = {"name": "encode", "texts": texts, "stand_ins": None if stand_ins is None else dict(stand_ins)}
        answer: list[list[int]] = self._ask(question, sum(map(len, texts)))
        return answer

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        answer: list[str] = self._ask({"name": "decode", "rows": rows}, 8 * sum(map(len, rows))) if rows else []
        return answer

    def _ask(self, question: Mapping[str, Any], n_characters: int) -> Any:
        seconds = 1 + _SECONDS_PER_CHARACTER * n_characters
        try:
            return self._process.ask(question, Limits(seconds, _MEGABYTES + n_characters // _CHARACTERS_PER_MEGABYTE))
        except WorkError as error:
            raise UserError(
                f"The tokenizer of the checkpoint cannot be used on this text ({error}): use another checkpoint."
            ) from error


def setup_of(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return what `stranger.TokenizerService.setup` is asked for these files, without the content of tokenizer.json.

    Raises:
        ValueError: a file is not JSON.
    """
    names = _read_names(files)
    extra = names.get("extra_special_tokens") or names.get("additional_special_tokens")
    listed = [_content(token) for token in extra] if isinstance(extra, list) else []
    return {
        "described": names.get("added_tokens_decoder") or {},
        "named": [*_named_tokens(names).values(), *(name for name in listed if name is not None)],
    }


def _start(files: Mapping[str, bytes]) -> BoundedProcess:
    question = {"name": "setup", **setup_of(files)}
    process, content = BoundedProcess(STRANGER, "tokenizer"), files[MODEL_FILE]
    try:
        process.prepare(question, Limits(1 + _SECONDS_PER_BYTE_READ * len(content), _MEGABYTES), content)
    except WorkError as error:
        raise ValueError(f"{MODEL_FILE} cannot be read: {error}") from error
    return process


def _named_ids(files: Mapping[str, bytes], vocabulary: Mapping[str, Any]) -> dict[str, int]:
    """Find the ids of the padding and the end, as far as the vocabulary does not say them."""
    names, found = _named_tokens(_read_names(files)), {}
    for key in ("pad_token_id", "eos_token_id"):
        name = names.get(key.removesuffix("_id"))
        if key not in vocabulary and name is not None:
            id_ = _Library.find(files, name)
            if id_ is not None:
                found[key] = id_
    return found


def _digest(files: Mapping[str, bytes]) -> str:
    digests = (hashlib.sha256(files.get(name, b"")).hexdigest() for name in (MODEL_FILE, NAMES_FILE, SPECIAL_MAP_FILE))
    return " ".join(digests)


def read_files(folder: Path) -> dict[str, bytes]:
    """Read the tokenizer's files in a folder, by their names."""
    contents = {name: read_optional(folder / name, LARGEST_FILE[name]) for name in (MODEL_FILE, *OTHER_FILES)}
    return {name: content for name, content in contents.items() if content is not None}


def _read_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Read the JSON object in a file; an empty one if there is no file."""
    try:
        content = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON ({str(error) or 'too deep'})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds no JSON object")
    return content


def _read_names(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Read tokenizer_config.json; older checkpoints, in which it has no added tokens, name some in another file."""
    names = _read_object(files, NAMES_FILE)
    return names if "added_tokens_decoder" in names else {**names, **_read_object(files, SPECIAL_MAP_FILE)}


def _named_tokens(names: Mapping[str, Any]) -> dict[str, str]:
    extra = names.get("extra_special_tokens")
    candidates = {key: value for key, value in names.items() if key.endswith("_token")}
    candidates.update(extra if isinstance(extra, dict) else {})
    return {key: name for key, value in candidates.items() if (name := _content(value)) is not None}


def _content(token: object) -> str | None:
    """Read the text of a token, which is given as such or in an object with a content."""
    name = token.get("content") if isinstance(token, dict) else token
    return name if isinstance(name, str) else None
