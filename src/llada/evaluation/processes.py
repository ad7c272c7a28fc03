"""Several processes that share an evaluation, as `torchrun` and `accelerate launch` start them.

They exchange a few numbers at the end of a task and nothing else, so they speak over the CPU (gloo), whatever the model
computes on.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Processes:
    """This process among all; a launcher says which it is in the environment."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if self.world_size > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, which have one shape, one behind the other on the CPU; numbers as (P,)."""
        mine = tensor.cpu() if tensor.dim() else tensor.cpu()[None]
        if self.world_size == 1:
            return mine
        gathered = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(gathered, mine)
        return torch.cat(gathered)

    def gather_object(self, item: Any, rank: int = 0) -> list[Any] | None:
        """The objects of all processes at the process of that rank, None at the others."""
        if self.world_size == 1:
            return [item]
        gathered: list[Any] | None = [None] * self.world_size if self.rank == rank else None
        dist.gather_object(item, gathered, rank)
        return gathered

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def leave() -> None:
    """Part from the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()
