"""A mixture: several prepared texts in the same tokens, with the share of a run's rows that each of them gives.

Letters: F folders, B rows of a batch.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from llada.data.batches import DrawBatch, TokenBatch
from llada.data.interleaving import Interleaving
from llada.data.order import Numbers
from llada.data.prepared import PreparedText
from llada.system.errors import UserError
from llada.system.files import resolved
from llada.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Mixture:
    """Several prepared texts (F) that a run learns from, each in the order and at the pace of its own epochs."""

    folders: tuple[Path, ...]
    """Where the texts were prepared."""
    texts: tuple[PreparedText, ...]
    weights: tuple[float, ...]
    """In which proportion rows are taken from the texts."""

    @cached_property
    def interleaving(self) -> Interleaving:
        """Which text each row of the run comes from."""
        return Interleaving(self.weights)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.texts[0].tokenizer

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each folder: its last part, or the whole path where another one ends alike."""
        last = [resolved(folder).name for folder in self.folders]
        return tuple(
            str(folder) if last.count(name) > 1 or not name else name
            for folder, name in zip(self.folders, last, strict=True)
        )

    @property
    def fingerprints(self) -> dict[str, str]:
        """Checksums of what a run learns from: those of each text, and the proportion."""
        parts = {
            f"{name} of folder {number}": digest
            for number, text in enumerate(self.texts, start=1)
            for name, digest in text.fingerprints.items()
        }
        return {**parts, "weights": hashlib.sha256(repr(self.interleaving.parts).encode()).hexdigest()}

    def check_same_tokens(self) -> None:
        """Refuse texts in different tokens.

        Raises:
            UserError: two of them were prepared with different tokenizers.
        """
        for folder, text in zip(self.folders, self.texts, strict=True):
            if text.tokenizer != self.tokenizer:
                raise UserError(
                    f"{folder} and {self.folders[0]} were prepared with different tokenizers, so they cannot be mixed: "
                    f'run `llada prepare` with `tokenizer="{self.folders[0]}"` for {folder}.'
                )


def texts_of(data: PreparedText | Mixture) -> tuple[PreparedText, ...]:
    """Return the prepared texts, which may be a single one."""
    return data.texts if isinstance(data, Mixture) else (data,)


def check_distinct(folders: Sequence[Path]) -> None:
    """Refuse a folder that is named twice, also by two paths.

    Raises:
        UserError: there is one.
    """
    places = [resolved(folder) for folder in folders]
    for number, folder in enumerate(folders):
        if places[number] in places[:number]:
            raise UserError(f"`data_dir` names {folder} twice: name it once, and raise its weight by `data_weights`.")


def mixed_rows(
    interleaving: Interleaving, places: Numbers, draws: Sequence[Callable[[Numbers], TokenBatch]]
) -> DrawBatch:
    """Make a source of rows from several sources.

    Args:
        places: (B,) numbers of the wanted rows in a batch, from 0, in their order.
        draws: for each folder, a function that draws rows by their numbers within that folder; all rows have the same
            length.
    """

    def draw(n_before: int, generator: torch.Generator) -> TokenBatch:
        folder, number = interleaving.at(n_before + places)
        # Where the rows of each folder are in the batch.
        where = [np.flatnonzero(folder == i) for i in range(len(draws))]
        drawn = [of_folder(number[here]) for of_folder, here in zip(draws, where, strict=True) if len(here)]
        return TokenBatch.joined(drawn).rows(torch.from_numpy(np.argsort(np.concatenate(where))))

    return draw
