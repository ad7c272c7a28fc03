"""The options of the training data: a prepared text, or dialogues and how they are read."""

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
    """The text or the dialogues to train on."""

    data_dir: Path = DEFAULT_FOLDER
    """Folder with the prepared text, written by `llada prepare`."""
    windows: Literal["random", "stored"] = "random"
    """Which sequences to train on: "random", windows at any offset of the text; "stored", the prepared sequences as
    they are."""
    sequence_length: Annotated[int, AT_LEAST_1] = 256
    """Number of tokens in a random window; stored sequences have their own length."""
    within_documents: bool = False
    """Keep attention within each document, where a window or a stored sequence holds several; a document ends with its
    EOS. Costs time and memory for a mask of all pairs of positions."""
    chat: Path | None = None
    """File of dialogues to train on instead of a text; only their answers are learned. It holds JSON objects (one a
    line, in an array, or over several lines) or is a Parquet file; each dialogue has "messages" ("conversations"),
    "prompt" and "completion" ("answer", "response"), or Alpaca's "instruction", "input" and "output"."""
    chat_val: Path | None = None
    """File of dialogues to evaluate on; if left out, a part of those of `chat` is used."""
    chat_val_share: Annotated[float, Range(above=0, at_most=0.9)] = 0.1
    """Fraction of the dialogues of `chat` that is kept for evaluation."""
    chat_split: SplitRule = "shuffled"
    """Which dialogues are kept for evaluation: "shuffled", drawn with `chat_split_seed`; "last", those at the end of
    the file."""
    chat_split_seed: Annotated[int, SEED] = 0
    """Seed that chooses the dialogues kept for evaluation; `seed` does not change them."""
    chat_length: Annotated[int | None, AT_LEAST_1] = None
    """Greatest number of tokens in a dialogue, the checkpoint's own if left out; long ones lose their oldest turns."""
    chat_last_answer: bool = False
    """Learn only the last answer of each dialogue; everything before it is the prompt."""
    chat_keys: Literal["obey", "ignore"] = "obey"
    """What to do with keys such as "weight" and "train". "obey": what they exclude is not learned, and dialogues that
    can be learned only in part (with tool calls or pictures) are refused. "ignore": all texts are learned, and such
    keys are counted."""
    skip_bad: bool = False
    """Leave out and count the dialogues that cannot be read or learned, instead of stopping at the first one."""

    @classmethod
    def of_then(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """Complete the data options in the config.json of an older run by the rules that applied when it was written.

        A run goes on with the dialogues that it has kept to measure on, so new rules are for new runs.
        """
        then = {"chat_split": "last", "chat_keys": "ignore"} if content.get("chat") is not None else {}
        return {**then, **content}

    def read_dialogues(self) -> SplitDialogues:
        """Read the dialogues to learn and those to evaluate on.

        Raises:
            UserError: a file is missing or broken, or none is named.
        """
        if self.chat is None:
            raise UserError("There are no dialogues to read: add `chat=FILE`.")
        reading = Reading(self.skip_bad, self.chat_last_answer, self.chat_keys)
        return split_dialogues(
            self.chat, self.chat_val, self.chat_val_share, self.chat_split, self.chat_split_seed, reading
        )
