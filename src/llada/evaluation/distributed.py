"""Sharing of an evaluation's rows among processes, started by `torchrun`; any number of them gives the same result.

Shape letters: N rows.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """The part of the rows that one of several processes computes."""

    rank: int = 0
    processes: int = 1
    in_step: bool = False
    """Whether all compute equally many rows, as they must if the network is shared out among them."""

    def of(self, rows: Tensor) -> Tensor:
        """Return the indices (n,) of the rows (N,) that this process computes."""
        return torch.arange(len(rows))[self.rank :: self.processes]

    def computed(self, rows: Tensor) -> Tensor:
        """Return these indices, the first of them again where others have more; row 0 if there are none."""
        own = self.of(rows)
        most = -(-len(rows) // self.processes) if self.in_step else len(own)
        return torch.cat((own, own.new_full((most - len(own),), int(own[0]) if len(own) else 0)))

    def sum(self, values: Tensor) -> Tensor:
        """Add up values (N,) over processes, each of which has those of its own rows and 0 for the others."""
        if self.processes > 1:
            dist.all_reduce(values)
        return values

    def device(self, chosen: torch.device) -> torch.device:
        """Return this process's own GPU of several, by its number on its machine, if a GPU is chosen."""
        if chosen.type != "cuda" or self.processes == 1:
            return chosen
        number = os.environ.get("LOCAL_RANK")
        return torch.device("cuda", int(number) if number else self.rank % torch.cuda.device_count())


ALONE = Shard()


def join() -> Shard:
    """Return this process's shard, by the variables that `torchrun` sets; all rows if it was started alone.

    The processes are connected: they exchange numbers on the CPU, over gloo.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1 or "RANK" not in os.environ:  # some clusters' shells set the number alone
        return ALONE
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return Shard(dist.get_rank(), processes)


@contextmanager
def joined() -> Iterator[Shard]:
    """Join the other processes, and leave them at the end: a process that just ends breaks the others' connections."""
    shard = join()
    try:
        yield shard
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
