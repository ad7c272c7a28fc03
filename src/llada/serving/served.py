"""The model that is served: opened once, kept in memory whatever happens to its files, with what requests say of it.

Shape letters: L length.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from llada.checkpoints.folder import Checkpoint, find_checkpoint
from llada.checkpoints.identity import identity_of
from llada.checkpoints.load import find_adapter
from llada.checkpoints.sampling_default import CHOOSES_ANEW, read_default
from llada.models import block_length_of
from llada.sampling.config import ANSWER, FREE_TEXT, SamplerConfig
from llada.sampling.dialogue import Assistant
from llada.sampling.events import TokenTexts
from llada.sampling.policies import PolicyName
from llada.sampling.template import read_template
from llada.serving.errors import ApiError, bad_request
from llada.system.errors import UserError
from llada.system.files import resolved
from llada.tokenizers.base import Tokenizer
from llada.tokenizers.char import CharTokenizer
from llada.tokenizers.message import Message, is_unicode

LARGEST_LISTED = 4096  # tokens of a vocabulary that is listed whole
MOST_NAMED = 10  # characters in a sentence
OnDisk = Literal["same", "replaced", "missing"]


@dataclass(frozen=True)
class Served:
    """A checkpoint with a name."""

    checkpoint: Checkpoint
    source: str
    """The path or the name that it was opened by."""
    name: str
    """The name of the model in requests."""
    fingerprint: str
    """The identity of what is in memory."""
    free_text: SamplerConfig
    """How texts are written if a request does not say otherwise."""
    assistant: Assistant
    """The chat format, and the tokens that end an answer."""
    texts: TokenTexts
    """The texts of single tokens."""
    _seen: dict[str, tuple[object, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint, source: str, name: str | None = None) -> "Served":
        """Make a checkpoint ready to be served.

        Raises:
            UserError: its chat template or its default for sampling cannot be used.
        """
        own_weights(checkpoint.model)
        default = read_default(checkpoint.folder) or FREE_TEXT
        free_text = replace(default, block_length=block_length_of(checkpoint.model, default.block_length))
        fingerprint = identity_of(checkpoint.folder)
        return cls(
            checkpoint,
            source,
            name or name_of(source),
            fingerprint,
            free_text,
            checkpoint.assistant(),
            TokenTexts(checkpoint.tokenizer),
        )

    @property
    def max_length(self) -> int:
        """The longest text in tokens."""
        return self.checkpoint.config.max_sequence_length

    @property
    def mask_id(self) -> int:
        return self.checkpoint.tokenizer.mask_id

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text outside of dialogues."""
        return frozenset({self.checkpoint.tokenizer.eos_id, *self.checkpoint.further_end_ids})

    # -- settings -----------------------------------------------------------------------------------------------------

    def sampler(self, given: dict[str, Any], *, in_dialogue: bool = False) -> SamplerConfig:
        """Return the default for sampling with the given fields in the place of its own.

        Raises:
            ApiError: the fields do not work together.
        """
        default = FREE_TEXT if CHOOSES_ANEW & given.keys() else self.free_text
        if in_dialogue:
            default = ANSWER
        if self.checkpoint.model.is_causal:
            default = replace(default, block_length=1)
        try:
            config = replace(default, **given)
            return replace(config, block_length=block_length_of(self.checkpoint.model, config.block_length))
        except (TypeError, ValueError, UserError) as error:
            reason = str(error).rstrip(".")
            param = next((name for name in given if name in reason.split()), None)
            raise bad_request(f"These settings do not work ({reason}): correct them.", param) from error

    # -- text and tokens ----------------------------------------------------------------------------------------------

    def encode(self, text: str, param: str) -> list[int]:
        """Encode a text.

        Raises:
            ApiError: it has what the vocabulary has not; the sentence names it.
        """
        if not is_unicode(text):
            raise ApiError(400, f"The field '{param}' has half a character, a lone surrogate: remove it.", param=param)
        try:
            return self.checkpoint.tokenizer.encode(text)
        except UserError as error:
            raise bad_request(_all_missing(self.checkpoint.tokenizer, text) or error, param) from error

    def read_template(self, text: str, param: str) -> list[int]:
        """Encode a text with `<MASK>` or `<MASK*20>` where tokens are to be filled in; errors are those of `encode`."""
        if not is_unicode(text):
            raise ApiError(400, f"The field '{param}' has half a character, a lone surrogate: remove it.", param=param)
        try:
            return read_template(text, self.checkpoint.tokenizer, self.checkpoint.check_length)
        except UserError as error:
            raise bad_request(error, param) from error

    def check_ids(self, ids: Iterable[int], param: str) -> None:
        """Refuse ids that no text has.

        Raises:
            ApiError: one is not an id of this vocabulary, or that of a mask.
        """
        tokenizer = self.checkpoint.tokenizer
        strange = next((id_ for id_ in ids if not 0 <= id_ < tokenizer.vocab_size or id_ == tokenizer.mask_row), None)
        if strange is not None:
            raise ApiError(
                400,
                f"{strange} is not the id of a token of this model, which are 0 to {tokenizer.vocab_size - 1} without "
                f"{tokenizer.mask_row}: correct '{param}'.",
                param=param,
            )

    def check_length(self, length: int, param: str) -> None:
        """Refuse a text that is longer than the model's.

        Raises:
            ApiError: it is; the sentence has both numbers.
        """
        if length > self.max_length:
            raise ApiError(
                400,
                f"The text would have {length} tokens, and this model takes {self.max_length}: shorten the prompt or "
                "the length asked for.",
                param=param,
                code="context_length_exceeded",
            )

    def check_template(self, ids: Sequence[int], param: str) -> None:
        """Refuse a template that is too long, or in which there is nothing to fill.

        Raises:
            ApiError: it is one.
        """
        self.check_length(len(ids), param)
        if self.mask_id not in ids:
            raise ApiError(400, "There is nothing to fill in: ask for at least one token, or put a mask.", param=param)
        if self.checkpoint.model.is_causal and self.mask_id in ids[: len(ids) - ids.count(self.mask_id)]:
            raise ApiError(
                400, "This model sees only what is before a gap: let the text end with its one gap.", param=param
            )

    def prompt(self, messages: Sequence[Message], gen_length: int) -> tuple[list[int], int]:
        """Return what precedes the answer to a dialogue; see `Assistant.prompt`."""
        return self.assistant.prompt(messages, gen_length)

    def decode(self, ids: Sequence[int]) -> str:
        return self.checkpoint.tokenizer.decode(ids)

    def token_text(self, id_: int) -> str:
        """Return the text of one token by itself; that of a token that is not text is empty."""
        return self.texts.of([id_])[0]

    # -- what the model is --------------------------------------------------------------------------------------------

    def description(self) -> dict[str, Any]:
        """Describe the model for the page."""
        tokenizer, model = self.checkpoint.tokenizer, self.checkpoint.model
        tokens = None
        if tokenizer.vocab_size <= LARGEST_LISTED:
            ids = [id_ for id_ in range(tokenizer.vocab_size) if id_ not in tokenizer.forbidden_rows]
            named = zip(self.texts.of(ids), ids, strict=True)
            tokens = {text: id_ for text, id_ in reversed([*named]) if text}
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "max_length": self.max_length,
            "vocabulary_size": tokenizer.vocab_size,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "policies": list(get_args(PolicyName)),
            "default_settings": asdict(self.free_text),
            "tokens": tokens,
            "is_causal": model.is_causal,
        }

    def on_disk(self) -> tuple[OnDisk, str | None]:
        """Compare the files that would be opened now with what is in memory: the state, and the fingerprint of a
        checkpoint that is there. Files are read only when they have changed."""
        try:
            path = Path(self.source)
            folder = resolved(find_adapter(path) or find_checkpoint(path)) if path.exists() else self.checkpoint.folder
            state = (folder, [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in folder.iterdir()])
            seen, fingerprint = self._seen.get("last", (None, ""))
            if seen != state:
                fingerprint = identity_of(folder)
                self._seen["last"] = (state, fingerprint)
        except (UserError, OSError):
            return "missing", None
        return ("same" if fingerprint == self.fingerprint else "replaced"), fingerprint


def _all_missing(tokenizer: Tokenizer, text: str) -> str | None:
    """Name all characters that a vocabulary lacks, if it is one of characters: its own error names the first."""
    if not isinstance(tokenizer, CharTokenizer):
        return None
    missing = [repr(character) for character in sorted(set(text) - set(tokenizer.characters))]
    named = ", ".join(missing[:MOST_NAMED]) + (" and others" if len(missing) > MOST_NAMED else "")
    return f"These characters are not in the vocabulary: {named}; leave them out, or serve a model that has them."


def name_of(source: str) -> str:
    """Return the name of a model: that of its folder, or of its repository on the hub."""
    path = Path(source)
    return resolved(path).name if path.exists() else source


def own_weights(model: nn.Module) -> None:
    """Copy weights that are mapped from a file on the CPU into memory of our own.

    A file that is overwritten in place would change under the model's feet, and one that is cut short would end the
    process.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
