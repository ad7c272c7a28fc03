"""Which rows of a step a process computes.

A step has `batch_size` times `accumulate` rows, however many processes there are: the settings of a run say what it
learns, and the number of processes only how fast. The processes first share the batches that are accumulated; if there
are more processes than batches, several of them share each batch.

Letters: B rows of a step, R rows of a process.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llada.system.errors import UserError


@dataclass(frozen=True)
class Share:
    """The rows of a step that one of several processes computes."""

    batch_size: int
    """Rows that go through the network together, here."""
    accumulate: int
    """Batches of these that the process adds up for a step."""
    rows: Tensor
    """Numbers (R,) of its rows among the B of the step, in the order in which it computes them."""
    processes: int = 1

    @classmethod
    def of(cls, batch_size: int, accumulate: int, rank: int = 0, processes: int = 1) -> "Share":
        """Return the share of a process.

        Args:
            batch_size, accumulate: those of the run.
            rank: the number of the process, from 0.

        Raises:
            UserError: the rows cannot be shared equally.
        """
        sharing = math.gcd(accumulate, processes)  # groups of processes, each with batches of its own
        together = processes // sharing  # processes in a group, which share each batch of it
        if batch_size % together:
            raise UserError(
                f"{processes} processes cannot share {batch_size} x {accumulate} sequences equally (`batch_size` x "
                f"`accumulate`): choose an `accumulate` or a `batch_size` that {processes} divides."
            )
        micro = batch_size // together
        group, place = divmod(rank, together)
        starts = torch.arange(group, accumulate, sharing) * batch_size + place * micro
        rows = (starts[:, None] + torch.arange(micro)).flatten()
        return cls(micro, accumulate // sharing, rows, processes)

    @property
    def is_whole(self) -> bool:
        """Whether there is one process, which computes all rows."""
        return self.processes == 1

    @property
    def in_words(self) -> str:
        """How the rows of a step come about."""
        parts = [f"{self.batch_size} at a time"]
        if self.accumulate > 1:
            parts.append(f"{self.accumulate} accumulated")
        if self.processes > 1:
            parts.append(f"{self.processes} processes")
        return " x ".join(parts)
