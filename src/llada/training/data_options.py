"""What a run learns from, as options: a prepared text, or dialogues and how they are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from llada.data.dialogues import Reading, SplitDialogues, SplitRule, split_dialogues
from llada.data.prepared import DEFAULT_FOLDER
from llada.system.errors import UserError
from llada.system.ranges import AT_LEAST_1, SEED, Checked, Range

DIALOGUE_FLAGS = ("chat_val", "chat_length", "chat_split", "chat_last_answer", "chat_keys", "skip_bad")


@dataclass(frozen=True)
class DataOptions(Checked):
    """The text to learn, or the dialogues."""

    data_dir: Path = DEFAULT_FOLDER
    """Folder that `llada prepare` wrote."""
    windows: Literal["random", "stored"] = "random"
    """"random": windows at any offset of the text. "stored": the prepared sequences as they are."""
    sequence_length: Annotated[int, AT_LEAST_1] = 256
    """Length of a random window; stored sequences have their own."""
    chat: Path | None = None
    """File of dialogues, whose answers are learned, instead of a text: JSON objects, one a line, in an array or over
    several lines, or Parquet; each with "messages" ("conversations"), "prompt" and "completion" ("answer", "response"),
    or Alpaca's "instruction", "input" and "output"."""
    chat_val: Path | None = None
    """Dialogues to measure on; if left out, some of `chat` are kept for that."""
    chat_val_share: Annotated[float, Range(above=0, at_most=0.9)] = 0.1
    """How many of them."""
    chat_split: SplitRule = "shuffled"
    """Which of them: "shuffled", any, by `chat_split_seed`; "last", those at the end of the file."""
    chat_split_seed: Annotated[int, SEED] = 0
    """Fixes which dialogues are kept; `seed` does not change them."""
    chat_length: Annotated[int | None, AT_LEAST_1] = None
    """Longest dialogue in tokens, beyond which its oldest turns are left out; if left out, the checkpoint's own
    length."""
    chat_last_answer: bool = False
    """Learn only the last answer of each dialogue, with all before it as its prompt."""
    chat_keys: Literal["obey", "ignore"] = "obey"
    """"obey": what keys such as "weight" and "train" exclude is not learned, and dialogues of which only a part could
    be learned (calls of tools, pictures) are refused. "ignore": texts are learned as they stand, such keys counted."""
    skip_bad: bool = False
    """Count and leave out the dialogues that cannot be read or learned, instead of stopping at the first."""

    @classmethod
    def of_then(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """What the config.json of a run says of its data, with the rules of its time where it does not name them.

        A run goes on with the dialogues that it has kept to measure on, so new rules are for new runs.
        """
        then = {"chat_split": "last", "chat_keys": "ignore"} if content.get("chat") is not None else {}
        return {**then, **content}

    def read_dialogues(self) -> SplitDialogues:
        """The dialogues to learn and those to measure on.

        Raises:
            UserError: a file is missing or broken, or there is none.
        """
        if self.chat is None:
            raise UserError("There are no dialogues to read: add `chat=FILE`.")
        reading = Reading(self.skip_bad, self.chat_last_answer, self.chat_keys)
        return split_dialogues(
            self.chat, self.chat_val, self.chat_val_share, self.chat_split, self.chat_split_seed, reading
        )
