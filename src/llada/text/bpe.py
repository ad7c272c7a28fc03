"""The tokenizer of a published checkpoint: byte-level BPE, read by the tokenizers library.

Its ids are the network's rows, MASK's included. The files are kept as they were read, byte for byte.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer as FastTokenizer

from llada.errors import UserError

MODEL_FILE, NAMES_FILE, TEMPLATE_FILE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
# Not all are there in every checkpoint; they describe the chat template and the names of special tokens.
OTHER_FILES = (NAMES_FILE, "special_tokens_map.json", TEMPLATE_FILE)
VOCABULARY_KEYS = ("vocab_size", "mask_token_id", "pad_token_id", "eos_token_id")


class BPETokenizer:
    """Text to ids and back; the ids of MASK, padding and end come with the network's configuration."""

    unit = "token"

    def __init__(self, files: Mapping[str, bytes], vocabulary: Mapping[str, int]) -> None:
        """
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
        self._names = _read_object(self._files, NAMES_FILE)
        self._model = _read_model(self._files, (self.mask_id, self.pad_id, self.eos_id))
        # A text that happens to hold "<|mdm_mask|>" is text: only the forward process makes MASK.
        self._model.encode_special_tokens = True
        self._known = set(self._model.get_vocab(with_added_tokens=True).values())
        if max(self._known) >= self.vocab_size:
            raise ValueError(f"{MODEL_FILE} has ids up to {max(self._known)}, the network {self.vocab_size} rows")
        missing = {key: id_ for key, id_ in self.vocabulary.items() if key != "vocab_size" and id_ not in self._known}
        if missing:
            raise ValueError(f"{MODEL_FILE} lacks the ids that config.json names: {missing}")

    @property
    def forbidden_rows(self) -> tuple[int, ...]:
        """MASK, the rows of the network that no token has, and PAD, unless it is also the end of a text."""
        padding = () if self.pad_id == self.eos_id else (self.pad_id,)
        return (self.mask_id, *padding, *(row for row in range(self.vocab_size) if row not in self._known))

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Names and ids of the tokens that no text has, MASK's among them; `encode` never gives one."""
        return {token.content: id_ for id_, token in self._model.get_added_tokens_decoder().items()}

    @property
    def bos_token(self) -> str | None:
        """Name of the token that begins a text, which a chat template may ask for."""
        return self._name_of("bos_token")

    @property
    def eos_token(self) -> str | None:
        """Name of the token that ends a text."""
        return self._name_of("eos_token") or self._model.id_to_token(self.eos_id)

    @property
    def template(self) -> str | None:
        """The chat template, in Jinja, where the checkpoint brings one; a file of its own comes before the other."""
        if TEMPLATE_FILE in self._files:
            return self._files[TEMPLATE_FILE].decode()
        template = self._names.get("chat_template")
        if isinstance(template, list):  # several, by name
            by_name = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = by_name.get("default")
        return template if isinstance(template, str) else None

    def _name_of(self, key: str) -> str | None:
        """A token is named by its text, or by an object that has it as content."""
        token = self._names.get(key)
        name = token.get("content") if isinstance(token, dict) else token
        return name if isinstance(name, str) else None

    @property
    def file_names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without any special token."""
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int], mask_symbol: str = "_") -> str:
        """Text of the ids; special tokens vanish, MASK shows as `mask_symbol`."""
        pieces = []
        for is_mask, run in groupby(map(int, ids), key=lambda id_: id_ == self.mask_id):
            tokens = list(run)
            pieces.append(mask_symbol * len(tokens) if is_mask else self._model.decode(tokens))
        return "".join(pieces)

    def save(self, folder: Path) -> None:
        """Write the files as they were read."""
        for name, content in self._files.items():
            (folder / name).write_bytes(content)

    @classmethod
    def load(cls, folder: Path, vocabulary: Mapping[str, Any]) -> Self:
        """Read the tokenizer's files.

        Raises:
            UserError: tokenizer.json is missing or broken, or does not fit the vocabulary.
        """
        if not (folder / MODEL_FILE).is_file():
            raise UserError(f"{folder / MODEL_FILE} is missing: download the whole checkpoint again.")
        try:
            return cls(_read_files(folder), vocabulary)
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
    """The id of a token in a folder's tokenizer.json, None where there is no such file.

    Raises:
        UserError: it cannot be read, or lacks the token: another one, like that for unknown text, is no substitute.
    """
    if not (folder / MODEL_FILE).is_file():
        return None
    try:
        id_: int | None = _read_model(_read_files(folder)).token_to_id(name)
    except ValueError as error:
        raise UserError(f"The tokenizer in {folder} cannot be used ({error}): use another checkpoint.") from error
    if id_ is None:
        raise UserError(f"{folder / MODEL_FILE} lacks the token {name}: use the checkpoint's own tokenizer.")
    return id_


def _read_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (MODEL_FILE, *OTHER_FILES) if (folder / name).is_file()}


def _read_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The JSON object in a file, an empty one if it is not there."""
    try:
        content = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON ({str(error) or 'too deep'})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds no JSON object")
    return content


def _read_model(files: Mapping[str, bytes], special_ids: Iterable[int] = ()) -> FastTokenizer:
    """The tokenizer of these files.

    Added tokens may be in tokenizer.json, in tokenizer_config.json, or in both, where the latter has the name that
    counts. All are special here, whatever their flags say, and so are `special_ids`: no text may become one of them. A
    text is never cut or padded, either.

    Raises:
        ValueError: the files cannot be read, or do not fit together.
    """
    content, added = _read_object(files, MODEL_FILE), _read_object(files, NAMES_FILE).get("added_tokens_decoder", {})
    try:
        names = {int(token["id"]): token["content"] for token in content.get("added_tokens", [])}
        names.update({int(id_): token["content"] for id_, token in added.items()})
        vocabulary = content["model"]["vocab"]
        by_id = {id_: name for name, id_ in vocabulary.items()}
        names.update({id_: by_id[id_] for id_ in special_ids if id_ in by_id and id_ not in names})
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        content["added_tokens"] = [{"id": id_, "content": names[id_], **flags} for id_ in sorted(names)]
        model = FastTokenizer.from_str(json.dumps({**content, "truncation": None, "padding": None}))
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"{MODEL_FILE} cannot be read ({type(error).__name__}: {error})") from error
    wrong = next((name for id_, name in names.items() if model.token_to_id(name) != id_), None)
    if wrong is not None:
        raise ValueError(f"{MODEL_FILE} and {NAMES_FILE} do not agree on the id of {wrong}")
    return model
