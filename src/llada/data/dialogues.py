"""Files of dialogues: one reader for every layout (rows.py) and form (dialogue_forms.py)."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from llada.data.dialogue_forms import Turn, turns_of
from llada.data.dialogue_keys import Keys
from llada.data.given import open_given
from llada.data.rows import Row, rows_of
from llada.system.errors import UserError
from llada.tokenizers.message import Message, check_turns

SplitRule = Literal["shuffled", "last"]


@dataclass(frozen=True)
class Origin:
    """A file of dialogues."""

    path: Path
    unit: str
    """The unit that a dialogue's number counts: "line" or "row"."""


@dataclass(frozen=True)
class Dialogue:
    """The messages of one row of a file."""

    messages: tuple[Message, ...]
    learned: tuple[int, ...]
    """Indices of the answers to be learned."""
    origin: Origin
    number: int

    @property
    def place(self) -> str:
        """The place of the dialogue for the beginning of a sentence: "Line 3 of chat.jsonl"."""
        return f"{self.origin.unit.capitalize()} {self.number} of {self.origin.path}"


@dataclass(frozen=True)
class Reading:
    """Options for reading a file of dialogues."""

    skip_bad: bool = False
    """Count and leave out what cannot be read or learned, instead of stopping there."""
    last_answer: bool = False
    """Learn the last answer of each dialogue only."""
    keys: Literal["obey", "ignore"] = "obey"
    """Treatment of keys: with "obey", keys that say what is to be learned are obeyed, and what cannot be learned is
    refused; with "ignore", they are counted."""


@dataclass
class Skipped:
    """Count of what `skip_bad` leaves out, with the first reason."""

    n: int = 0
    first: str = ""

    def add(self, sentence: str) -> None:
        self.first = self.first or sentence.rstrip(".")
        self.n += 1

    def describe(self, what: str) -> list[str]:
        """Describe what was skipped in a sentence, if anything was."""
        return [f"Skipped {self.n:,} {what}; the first: {self.first}."] if self.n else []


@dataclass(frozen=True)
class DialogueFile:
    """The content of a file of dialogues."""

    path: Path
    dialogues: list[Dialogue]
    """Dialogues that have an answer to learn."""
    sha256: str
    notes: list[str] = field(default_factory=list)
    """Sentences for people about what is left out of the file."""


def read_dialogues(path: Path, reading: Reading = Reading()) -> DialogueFile:
    """Read the dialogues of a file, once, from beginning to end.

    Raises:
        UserError: the file is missing, empty, or neither JSON nor Parquet; or a line, named by its number, is not a
            dialogue with an answer.
    """
    keys, skipped, dialogues, n_rows, n_unlearned = Keys(reading.keys == "obey"), Skipped(), [], 0, 0
    with open_given(path) as given:
        rows = rows_of(given)
        origin = Origin(path, rows.unit)
        for row in rows.rows:
            n_rows += 1
            keys.begin_row()
            try:
                dialogue = _read_row(row, origin, keys, reading.last_answer)
            except UserError as error:
                if not reading.skip_bad:
                    raise
                skipped.add(str(error))
                keys.forget_row()
                continue
            n_unlearned += sum(message.role == "assistant" for message in dialogue.messages) - len(dialogue.learned)
            if dialogue.learned:
                dialogues.append(dialogue)
        sha256, is_pipe = given.sha256, given.is_pipe
    notes = skipped.describe(f"of {n_rows:,} {rows.unit}s of {path}")
    unused = keys.describe(rows.unit)
    if unused:
        notes.append(f"Of {path}, these are not used: {unused}.")
    if n_unlearned and not reading.last_answer:
        notes.append(f"Answers of {path} that are not learned, as it says: {n_unlearned:,}.")
    if is_pipe:
        notes.append(
            f"{path} is a pipe, which is read once: a run that is to be resumed needs a file with the same content."
        )
    if not dialogues:
        raise UserError(_nothing_in(path, n_rows, skipped))
    return DialogueFile(path, dialogues, sha256, notes)


def _nothing_in(path: Path, n_rows: int, skipped: Skipped) -> str:
    if skipped.n:
        return f"{path} holds no dialogue that can be learned ({skipped.n:,} are skipped): {skipped.first}."
    if n_rows:
        return f"None of the {n_rows:,} dialogues of {path} has an answer that is to be learned: see to their weights."
    return f"{path} holds no dialogue: write one JSON object a line."


def _read_row(row: Row, origin: Origin, keys: Keys, last_answer: bool) -> Dialogue:
    dialogue = Dialogue((), (), origin, row.number)
    if row.problem is not None:
        raise UserError(f"{dialogue.place} {row.problem}: correct or remove it.")
    try:
        turns = _in_turns(turns_of(row.content, keys), keys)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is too deep"
        raise UserError(f"{dialogue.place} is not a dialogue to learn ({reason}): correct or remove it.") from None
    answers = [i for i, turn in enumerate(turns) if turn.message.role == "assistant"]
    if last_answer:
        answers = answers[-1:]
    learned = tuple(i for i in answers if turns[i].is_learned)
    return replace(dialogue, messages=tuple(turn.message for turn in turns), learned=learned)


def _in_turns(turns: list[Turn], keys: Keys) -> list[Turn]:
    """Check the turns and return those from the first question on.

    Raises:
        ValueError: they are not a dialogue with an answer.
    """
    n_before = sum(turn.message.role == "system" for turn in turns[:1])
    rest = turns[n_before:]
    if [turn.message.role for turn in rest[:2]] == ["assistant", "user"]:
        keys.count("what the assistant says before the first question")
        rest = rest[1:]
    turns = [*turns[:n_before], *rest]
    messages = [turn.message for turn in turns]
    check_turns(messages)
    if len(messages) < 2 or not any(message.role == "assistant" for message in messages):
        raise ValueError("it has no answer, a message of the assistant")
    if messages[-1].role == "user":
        keys.count("a last question without an answer")
    return turns


# -- training and validation ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitDialogues:
    """Dialogues to learn from, and others for validation."""

    path: Path
    """The file of the training dialogues."""
    train: list[Dialogue]
    val: list[Dialogue]
    text_sha256: str
    """SHA-256 of the file, or of both files."""
    notes: list[str]
    reading: Reading

    @property
    def characters(self) -> set[str]:
        """All characters of the dialogues, and the line break that a system message needs."""
        return {"\n"}.union(
            *(message.content for part in (self.train, self.val) for d in part for message in d.messages)
        )


def split_dialogues(
    path: Path,
    validation: Path | None = None,
    validation_share: float = 0.1,
    rule: SplitRule = "shuffled",
    seed: int = 0,
    reading: Reading = Reading(),
) -> SplitDialogues:
    """Read dialogues, and keep some of them for validation.

    Args:
        validation: a file of validation dialogues; without one, a part of `path` is kept for validation.
        validation_share: size of that part as a share; at least one dialogue.
        rule: "shuffled" chooses them by `seed`; "last" takes the last ones of the file, as early runs did.

    Raises:
        UserError: a file is damaged, or too short to be split.
    """
    given = read_dialogues(path, reading)
    if validation is not None:
        other = read_dialogues(validation, reading)
        sums, notes = f"{given.sha256} {other.sha256}", [*given.notes, *other.notes]
        return SplitDialogues(path, given.dialogues, other.dialogues, sums, notes, reading)
    n = len(given.dialogues)
    n_validation = max(1, round(validation_share * n))
    if n_validation >= n:
        raise UserError(f"{path} is too short to keep a dialogue for validation: add some, or `chat_val=FILE`.")
    chosen = set(range(n - n_validation, n)) if rule == "last" else set(_shuffled(n, seed)[:n_validation])
    train, val = ([d for i, d in enumerate(given.dialogues) if (i in chosen) == is_val] for is_val in (False, True))
    return SplitDialogues(path, train, val, given.sha256, given.notes, reading)


def _shuffled(n: int, seed: int) -> list[int]:
    """Sort the numbers below n by their hashes, an order that no version of a library changes."""
    return sorted(range(n), key=lambda i: hashlib.sha256(f"{seed}/{i}".encode()).digest())


def fingerprint(dialogues: Iterable[Dialogue]) -> str:
    """Hash the texts of dialogues and which of their answers are learned, in order."""
    digest = hashlib.sha256()
    for dialogue in dialogues:
        content = [dialogue.learned, [[message.role, message.content] for message in dialogue.messages]]
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()
