"""Splitting the rows of an evaluation among processes, started by `torchrun`; the result is the same for any number.

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

    def of(self, rows: Tensor) -> Tensor:
        """The indices (n,) of the rows (N,) that are this process's."""
        return torch.arange(self.rank, len(rows), self.processes)

    def sum(self, values: Tensor) -> Tensor:
        """Values (N,) that each process has for its own rows, and 0 for the others, in full."""
        if self.processes > 1:
            dist.all_reduce(values)
        return values

    def device(self, chosen: torch.device) -> torch.device:
        """This process's own of several GPUs, if a GPU is chosen: that of its number on its machine."""
        if chosen.type != "cuda" or self.processes == 1:
            return chosen
        number = os.environ.get("LOCAL_RANK")
        return torch.device("cuda", int(number) if number else self.rank % torch.cuda.device_count())


ALONE = Shard()


def join() -> Shard:
    """This process's shard, by the variables that `torchrun` sets; all of it if it was started alone.

    The processes then know each other: they exchange numbers on the CPU, over gloo.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1 or "RANK" not in os.environ:  # some clusters' shells tell the number alone
        return ALONE
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return Shard(dist.get_rank(), processes)


@contextmanager
def joined() -> Iterator[Shard]:
    """`join`, and part at the end: a process that just ends while others are talking to it is aborted."""
    shard = join()
    try:
        yield shard
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
