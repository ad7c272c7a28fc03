"""Prompts and their answers in ids, from dialogues: what chat fine-tuning learns from.

A dialogue of n answers makes n pairs: each answer, with all that comes before it as its prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llada.errors import UserError
from llada.files import sha256_of
from llada.text.chat import ChatFormat, chat_format, fitting_prompt
from llada.text.dataset import Ids, Split
from llada.text.dialogues import Dialogue, Message, read_dialogues
from llada.text.vocabulary import Tokenizer


@dataclass(frozen=True)
class Pair:
    """A prompt and its answer."""

    ids: tuple[int, ...]
    """Prompt, answer, and one EOS."""
    n_given: int
    """How many of them are the prompt."""
    messages: tuple[Message, ...]
    """Those of the prompt."""

    @property
    def answer(self) -> tuple[int, ...]:
        """Ids of the answer, EOS included."""
        return self.ids[self.n_given :]


@dataclass(frozen=True)
class Answers:
    """The pairs of a file of dialogues, some for training, the others for validation."""

    folder: Path
    """The file."""
    tokenizer: Tokenizer
    form: ChatFormat
    pairs: dict[Split, list[Pair]]
    n_shortened: int
    """Pairs whose prompt has lost its oldest turns."""
    n_left_out: int
    """Pairs that are too long even so."""
    text_sha256: str
    """Of the file, or of both files."""

    @classmethod
    def load(
        cls,
        path: Path,
        tokenizer: Tokenizer,
        max_length: int,
        validation: Path | None = None,
        validation_share: float = 0.1,
    ) -> "Answers":
        """Read dialogues and put them into tokens.

        A pair that is longer than `max_length` loses its oldest turns, the system message and the last question never
        among them; one that is too long even so is left out, since a cut answer would teach not to end.

        Args:
            validation: a file of dialogues to measure on; without one, the last part of `path` is kept for that.
            validation_share: that part, at least one dialogue.

        Raises:
            UserError: a file is broken, too short to be split, or holds nothing that fits.
        """
        dialogues = {"train": read_dialogues(path)}
        if validation is not None:
            dialogues["val"] = read_dialogues(validation)
        else:
            n_validation = max(1, round(validation_share * len(dialogues["train"])))
            if n_validation >= len(dialogues["train"]):
                raise UserError(f"{path} is too short to keep a dialogue for validation: add some, or --chat_val FILE.")
            dialogues["val"] = dialogues["train"][-n_validation:]
            del dialogues["train"][-n_validation:]
        origin = {"train": path, "val": path if validation is None else validation}
        made = {split: _make_pairs(origin[split], dialogues[split], tokenizer, max_length) for split in dialogues}
        files = [path] if validation is None else [path, validation]
        return cls(
            folder=path,
            tokenizer=tokenizer,
            form=chat_format(tokenizer),
            pairs={"train": made["train"][0], "val": made["val"][0]},
            n_shortened=sum(n_shortened for _, n_shortened, _ in made.values()),
            n_left_out=sum(n_left_out for _, _, n_left_out in made.values()),
            text_sha256=" ".join(map(sha256_of, files)),
        )

    @property
    def fingerprints(self) -> dict[str, str]:
        """What a run learns from, by checksums."""
        return {"text": self.text_sha256}

    @property
    def sequence_length(self) -> int:
        """Tokens of the longest pair."""
        return max(len(pair.ids) for pairs in self.pairs.values() for pair in pairs)

    def tokens(self, split: Split) -> Ids:
        """All that is to be learned: the ids of the answers, one after the other."""
        return np.concatenate([np.asarray(pair.answer, dtype=np.uint64) for pair in self.pairs[split]])


def read_pairs(path: Path, tokenizer: Tokenizer, max_length: int) -> tuple[list[Pair], int, int]:
    """All pairs of a file of dialogues, how many of them were shortened, and how many were left out.

    Raises:
        UserError: the file is broken, or holds nothing that fits.
    """
    return _make_pairs(path, read_dialogues(path), tokenizer, max_length)


def _make_pairs(
    path: Path, dialogues: Sequence[Dialogue], tokenizer: Tokenizer, max_length: int
) -> tuple[list[Pair], int, int]:
    form = chat_format(tokenizer)
    pairs, n_shortened, n_left_out = [], 0, 0
    for dialogue in dialogues:
        for i, message in enumerate(dialogue):
            if message.role != "assistant":
                continue
            answer = [*form.answer(dialogue[:i], message.content), tokenizer.eos_id]
            prompt = fitting_prompt(form, dialogue[:i], max_length - len(answer))
            if prompt is None:
                n_left_out += 1
                continue
            ids, kept = prompt
            n_shortened += len(kept) < i
            pairs.append(Pair((*ids, *answer), len(ids), tuple(kept)))
    if not pairs:
        raise UserError(
            f"None of the {len(dialogues)} dialogues of {path} fits {max_length:,} tokens: raise --chat_length, or "
            "shorten them."
        )
    return pairs, n_shortened, n_left_out
