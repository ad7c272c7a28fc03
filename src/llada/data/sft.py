"""Prompts and their answers in ids, from dialogues, for chat fine-tuning.

A dialogue with n answers makes n pairs: each answer, with all that precedes it as its prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from llada.data.dialogues import (
    Dialogue,
    Reading,
    Skipped,
    SplitDialogues,
    SplitRule,
    fingerprint,
    read_dialogues,
    split_dialogues,
)
from llada.data.prepared import Ids, Split
from llada.system.errors import UserError
from llada.tokenizers.base import Tokenizer
from llada.tokenizers.chat_template import ChatFormat, chat_format, fitting_prompt
from llada.tokenizers.message import Message

SHOWN_LINES = 8  # line numbers shown of pairs that are in both parts


@dataclass(frozen=True)
class Pair:
    """A prompt and its answer."""

    ids: tuple[int, ...]
    """Token ids of the prompt, the answer, and one EOS."""
    n_given: int
    """Number of tokens of the prompt."""
    messages: tuple[Message, ...]
    """Messages of the prompt."""
    number: int = 0
    """Number of the line or row of the file that it comes from."""

    @property
    def answer(self) -> tuple[int, ...]:
        """Ids of the answer, EOS included."""
        return self.ids[self.n_given :]


@dataclass(frozen=True)
class Answers:
    """The pairs of a file of dialogues, for training and for validation."""

    folder: Path
    """The file of training dialogues."""
    tokenizer: Tokenizer
    form: ChatFormat
    pairs: dict[Split, list[Pair]]
    n_shortened: int
    """Number of pairs whose prompt has lost its oldest turns."""
    n_left_out: int
    """Number of pairs that are left out because they are still too long."""
    text_sha256: str
    """SHA-256 of the file, or of both files."""
    dialogues_sha256: dict[Split, str] = field(default_factory=dict)
    """SHA-256 of the dialogues of each part, before they were put into tokens."""
    notes: list[str] = field(default_factory=list)
    """Sentences for people about what of the files is left out, and what is in both parts."""

    @classmethod
    def load(
        cls,
        path: Path,
        tokenizer: Tokenizer,
        max_length: int,
        validation: Path | None = None,
        validation_share: float = 0.1,
        rule: SplitRule = "shuffled",
        seed: int = 0,
        reading: Reading = Reading(),  # noqa: B008
    ) -> "Answers":
        """Read dialogues by `split_dialogues`, and put them into tokens.

        Raises:
            UserError: a file is damaged, too short to be split, or holds nothing that fits.
        """
        dialogues = split_dialogues(path, validation, validation_share, rule, seed, reading)
        return cls.of(dialogues, tokenizer, max_length)

    @classmethod
    def of(cls, dialogues: SplitDialogues, tokenizer: Tokenizer, max_length: int) -> "Answers":
        """Put dialogues into tokens.

        A pair that is longer than `max_length` loses its oldest turns, but never the system message and the last
        question; one that is still too long is left out, since a cut answer would teach the model not to end.

        Raises:
            UserError: nothing of a part fits, or the chat template does not take a dialogue.
        """
        parts: dict[Split, list[Dialogue]] = {"train": dialogues.train, "val": dialogues.val}
        skip_bad = dialogues.reading.skip_bad
        form = chat_format(tokenizer)
        made = {split: make_pairs(part, form, tokenizer, max_length, skip_bad) for split, part in parts.items()}
        pairs = {split: of_part.pairs for split, of_part in made.items()}
        notes = [*dialogues.notes, *(note for of_part in made.values() for note in of_part.notes)]
        return cls(
            folder=dialogues.path,
            tokenizer=tokenizer,
            form=form,
            pairs=pairs,
            n_shortened=sum(of_part.n_shortened for of_part in made.values()),
            n_left_out=sum(of_part.n_left_out for of_part in made.values()),
            text_sha256=dialogues.text_sha256,
            dialogues_sha256={split: fingerprint(part) for split, part in parts.items()},
            notes=[*notes, *_describe_copies(pairs, dialogues.val)],
        )

    @property
    def fingerprints(self) -> dict[str, str]:
        """Checksums of what a run learns from; they do not depend on the tokenizer or the length."""
        names: dict[Split, str] = {"train": "training dialogues", "val": "validation dialogues"}
        return {"text": self.text_sha256, **{names[split]: sum_ for split, sum_ in self.dialogues_sha256.items()}}

    @property
    def sequence_length(self) -> int:
        """Number of tokens of the longest pair."""
        return max(len(pair.ids) for pairs in self.pairs.values() for pair in pairs)

    def tokens(self, split: Split) -> Ids:
        """Return the ids of the answers, all that is to be learned, one after the other."""
        return np.concatenate([np.asarray(pair.answer, dtype=np.uint64) for pair in self.pairs[split]])


@dataclass(frozen=True)
class Pairs:
    """The pairs made from dialogues."""

    pairs: list[Pair]
    n_shortened: int
    """Number of pairs whose prompt has lost its oldest turns."""
    n_left_out: int
    """Number of pairs that are left out because they are still too long."""
    notes: list[str]
    """Sentences for people about what else is left out."""


def read_pairs(path: Path, tokenizer: Tokenizer, max_length: int, skip_bad: bool = False) -> Pairs:
    """All pairs of a file of dialogues.

    Args:
        skip_bad: count and leave out what is broken, instead of stopping there.

    Raises:
        UserError: the file is damaged, or holds nothing that fits.
    """
    file = read_dialogues(path, Reading(skip_bad=skip_bad))
    made = make_pairs(file.dialogues, chat_format(tokenizer), tokenizer, max_length, skip_bad)
    return replace(made, notes=[*file.notes, *made.notes])


def make_pairs(
    dialogues: Sequence[Dialogue], form: ChatFormat, tokenizer: Tokenizer, max_length: int, skip_bad: bool = False
) -> Pairs:
    """Make the pairs of dialogues, of which there must be at least one.

    Args:
        skip_bad: count and leave out the dialogues that the chat template does not take, instead of stopping there.

    Raises:
        UserError: nothing fits, or the chat template does not take a dialogue, which is named by its line.
    """
    pairs: list[Pair] = []
    n_shortened, n_left_out, skipped = 0, 0, Skipped()
    for dialogue in dialogues:
        try:
            of_dialogue = [_make_pair(dialogue, i, form, tokenizer, max_length) for i in dialogue.learned]
        except UserError as error:
            sentence = f"{dialogue.place}: {error}"
            if not skip_bad:
                raise UserError(sentence) from error
            skipped.add(sentence)
            continue
        found = [pair for pair in of_dialogue if pair is not None]
        n_left_out += len(of_dialogue) - len(found)
        n_shortened += sum(
            len(pair.messages) < i for pair, i in zip(of_dialogue, dialogue.learned, strict=True) if pair
        )
        pairs += found
    if not pairs:
        if skipped.n:
            raise UserError(f"The chat template takes none of the {skipped.n:,} dialogues: {skipped.first}.")
        raise UserError(
            f"None of the {len(dialogues)} dialogues of {dialogues[0].origin.path} fits {max_length:,} tokens: raise "
            "`chat_length`, or shorten them."
        )
    return Pairs(pairs, n_shortened, n_left_out, skipped.describe(f"of {len(dialogues):,} dialogues"))


def _make_pair(dialogue: Dialogue, i: int, form: ChatFormat, tokenizer: Tokenizer, max_length: int) -> Pair | None:
    """Make the pair whose answer is message i, with all that precedes it as the prompt; None if it is too long."""
    prompt = fitting_prompt(form, dialogue.messages[:i], max_length)
    if prompt is None:
        return None
    # The answer is written behind what can be kept, since a template takes long for thousands of turns.
    answer = [*form.answer(prompt[1], dialogue.messages[i].content), tokenizer.eos_id]
    if len(prompt[0]) + len(answer) > max_length:
        prompt = fitting_prompt(form, prompt[1], max_length - len(answer))
        if prompt is None:
            return None
    ids, kept = prompt
    return Pair((*ids, *answer), len(ids), tuple(kept), dialogue.number)


def _describe_copies(pairs: Mapping[Split, Sequence[Pair]], validation: Sequence[Dialogue]) -> list[str]:
    """Describe answers that are both learned and measured on, if there are any, by their lines."""
    learned = {pair.ids for pair in pairs["train"]}
    copies = [pair.number for pair in pairs["val"] if pair.ids in learned]
    if not copies:
        return []
    origin = validation[0].origin
    shown = ", ".join(map(str, copies[:SHOWN_LINES])) + (", ..." if len(copies) > SHOWN_LINES else "")
    return [
        f"{len(copies):,} of the {len(pairs['val']):,} answers to measure on are learned as well, with the same prompt "
        f"({origin.unit}s {shown} of {origin.path}): a measurement on them does not show what was understood."
    ]
