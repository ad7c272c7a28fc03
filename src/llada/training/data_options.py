"""The options of the training data: a prepared text, a mixture of several, or dialogues and how they are read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from llada.data.dialogues import Reading, SplitDialogues, SplitRule, split_dialogues
from llada.data.mixture import Mixture, check_distinct
from llada.data.prepared import DEFAULT_FOLDER, PreparedText, text_for
from llada.system.errors import UserError
from llada.system.literals import LARGEST_FLOAT
from llada.system.ranges import AT_LEAST_1, SEED, Checked, Range
from llada.tokenizers.base import Tokenizer

DIALOGUE_FLAGS = ("chat_val", "chat_length", "chat_split", "chat_last_answer", "chat_keys", "skip_bad")


@dataclass(frozen=True)
class DataOptions(Checked):
    """The text or the dialogues to train on."""

    data_dir: tuple[Path, ...] = (DEFAULT_FOLDER,)
    """Folder with the prepared text, written by `llada prepare`. Several folders, prepared with the same tokenizer, are
    mixed."""
    data_weights: tuple[float, ...] = ()
    """In which proportion sequences are taken from several folders, a number for each; in that of their sizes if left
    out."""
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

    def __post_init__(self) -> None:
        super().__post_init__()
        n_folders, n_weights = len(self.data_dir), len(self.data_weights)
        if not n_folders:
            raise UserError("`data_dir` names nothing: add a prepared folder, or leave it out.")
        if n_weights not in (0, n_folders):
            raise UserError(
                f"`data_weights` has {n_weights} number{'s' * (n_weights > 1)} for {n_folders} "
                f"folder{'s' * (n_folders > 1)}: give one for each folder of `data_dir`."
            )
        for weight in self.data_weights:
            if not (math.isfinite(weight) and 0 < weight <= LARGEST_FLOAT):
                raise UserError(
                    f"`data_weights` must be numbers above 0, not {weight:g}: correct it, or leave out that folder."
                )

    @classmethod
    def of_then(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """Complete the data options in a config.json by the rules that applied when it was written.

        A run goes on with the dialogues that it has kept to measure on, so new rules are for new runs. A single folder
        is written as its path, as it was before there were mixtures.
        """
        then = {"chat_split": "last", "chat_keys": "ignore"} if content.get("chat") is not None else {}
        now = {"data_dir": [content["data_dir"]]} if isinstance(content.get("data_dir"), str) else {}
        return {**then, **content, **now}

    @classmethod
    def as_written(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return these options as a config.json has them, from which `of_then` makes them again."""
        folders = content["data_dir"]
        return {**content, "data_dir": folders[0] if len(folders) == 1 else folders}

    def open_texts(self, tokenizer: Tokenizer | None = None, is_checked: bool = True) -> PreparedText | Mixture:
        """Open the prepared text, or several as a mixture.

        Args:
            tokenizer: in whose tokens the texts are wanted, if not in their own.
            is_checked: whether texts in different tokens are refused.

        Raises:
            UserError: a folder is not a prepared text or is named twice, or two have different tokens.
        """
        check_distinct(self.data_dir)
        texts = [PreparedText.open(folder) for folder in self.data_dir]
        if tokenizer is not None:
            texts = [text_for(tokenizer, text) for text in texts]
        if len(texts) == 1:
            return texts[0]
        is_stored = self.windows == "stored"
        sizes = (len(text.rows["train"]) if is_stored else len(text.tokens("train")) for text in texts)
        mixture = Mixture(self.data_dir, tuple(texts), self.data_weights or tuple(sizes))
        if is_checked:
            mixture.check_same_tokens()
        return mixture

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
