"""The processes that train together, as `torchrun` starts them; one process alone is a group of one.

Whatever a run decides, all processes decide alike: gradients, losses and counts are added up, and the clock is that of
process 0. The group adds gradients up itself, once a step and after accumulation, in a few large pieces. So nothing is
exchanged while gradients are accumulated, and compiled code and plain code are shared alike; torch's
DistributedDataParallel would start to exchange during the backward pass, which pays off over slow links, by hooks that
compiled code has to be split for.

Process 0 writes all files and says what is to be said; the others speak of errors of their own.
"""

import os
import re
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llada.evaluation.distributed import Shard
from llada.optim.parts import rows_of
from llada.system.device import DeviceName
from llada.system.errors import UserError, first_line
from llada.training.rendezvous import met
from llada.training.roll_call import RollCall

BUCKET = 2**23  # numbers that are sent at once: 32 MB of gradients in fp32
BUCKETS_AT_ONCE = 2  # are copied at a time: one is sent while another is filled or read; gloo has two threads
MOST_NAMED = 5  # of what differs between processes

_OF_AN_EXCHANGE = re.compile("gloo|NCCL")  # in what torch's RuntimeErrors say if an exchange fails

Result = TypeVar("Result")


class OtherFailedError(Exception):
    """Another process reports what is wrong; this one ends without a word."""


@dataclass(frozen=True)
class Group:
    """The processes of a run; the methods below are called by all of them, and do nothing in one that is alone."""

    rank: int = 0
    """Number of this process, from 0."""
    processes: int = 1
    roll_call: RollCall | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        """This process as evaluations know it."""
        return Shard(self.rank, self.processes)

    # -- adding up ----------------------------------------------------------------------------------------------------

    def sum(self, values: Tensor) -> Tensor:
        """Add values up over the processes, in place."""
        if self.processes > 1:
            with self._naming_who_is_missing():
                dist.all_reduce(values)
        return values

    def sum_of_numbers(self, *numbers: float) -> list[int]:
        """Add whole numbers up over the processes, on the CPU."""
        if self.processes == 1:
            return [int(number) for number in numbers]
        return [int(number) for number in self.sum(torch.tensor(numbers, dtype=torch.float64)).tolist()]

    def is_any(self, is_it: bool) -> bool:
        """Whether it is so in any process."""
        return self.sum_of_numbers(is_it)[0] > 0

    def of_main(self, value: float) -> float:
        """Return process 0's value."""
        return float(self.sum(torch.tensor(value if self.is_main else 0.0, dtype=torch.float64)))

    def sum_gradients(self, weights: Mapping[str, nn.Parameter], loss: Tensor) -> Tensor:
        """Add the gradients of weights up over the processes; returns the loss, added up as well.

        Those of weights that are shared out were added up in the backward pass.
        A gradient is in all processes if it is in any of them.
        """
        if self.processes == 1:
            return loss
        parameters = [parameter for parameter in weights.values() if rows_of(parameter) is None]
        if self.is_any(any(parameter.grad is None for parameter in parameters)):
            is_there = self.sum(torch.tensor([parameter.grad is not None for parameter in parameters]).int())
            parameters = [parameter for parameter, n in zip(parameters, is_there.tolist(), strict=True) if n]
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self._sum_in_buckets([*gradients, loss])
        return loss

    def clip_gradients(self, weights: Mapping[str, nn.Parameter], longest: float) -> Tensor:
        """Clip gradients, added up before, to a norm; returns the norm that they had."""
        parameters = [parameter for parameter in weights.values() if parameter.grad is not None]
        parts = [parameter.grad for parameter in parameters if parameter.grad is not None and rows_of(parameter)]
        if not any(rows_of(parameter) for parameter in weights.values()):
            return torch.nn.utils.clip_grad_norm_(parameters, longest)
        whole = [parameter.grad for parameter in parameters if parameter.grad is not None and not rows_of(parameter)]
        square = self.sum(torch.nn.utils.get_total_norm(parts).square()) + torch.nn.utils.get_total_norm(whole).square()
        torch.nn.utils.clip_grads_with_norm_(parameters, longest, square.sqrt())
        return square.sqrt()

    def first_of(self, words: str | None) -> str | None:
        """Return the words of the first process that has any."""
        return next((each for each in self.all_of(words) if each is not None), None)

    def all_of(self, own: Result) -> list[Result]:
        """Return what each process has, in the order of their numbers."""
        everybody = [own] * self.processes
        if self.processes > 1:
            self._gather_objects(everybody, own)
        return everybody

    def _sum_in_buckets(self, tensors: Sequence[Tensor]) -> None:
        """Add tensors up over the processes, in place; small ones are sent together, of which a few copies exist."""
        with self._naming_who_is_missing():
            sums: deque[_Sum] = deque()
            for bucket in _buckets(tensors):
                if len(sums) == BUCKETS_AT_ONCE:
                    sums.popleft().write_back()
                sums.append(_Sum(bucket))
            while sums:
                sums.popleft().write_back()

    def gather(self, sums: Sequence[Tensor]) -> None:
        """Bring to process 0 what all have counted since the last time; the others begin anew."""
        if self.processes > 1:
            for values in sums:
                self.sum(values)
                if not self.is_main:
                    values.zero_()

    # -- agreeing -----------------------------------------------------------------------------------------------------

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.sum_of_numbers(0)

    def together(self, work: Callable[[], Result]) -> Result:
        """Do something in every process and go on only if it worked in all of them.

        Where it may fail in some of them only, nothing may be exchanged in it after that.

        Raises:
            OtherFailedError: it failed elsewhere, and here not at all or for the same reason, which that one gives.
        """
        if self.processes == 1:
            return work()
        reasons: list[str | None] = [None] * self.processes
        try:
            result = work()
        except Exception as error:
            self._gather_objects(reasons, str(error))
            if str(error) in reasons[: self.rank]:
                raise OtherFailedError from error
            raise
        self._gather_objects(reasons, None)
        if any(reason is not None for reason in reasons):
            raise OtherFailedError
        return result

    def _gather_objects(self, everybody: list[Any], own: object) -> None:
        with self._naming_who_is_missing():
            dist.all_gather_object(everybody, own)

    def main_first(self, work: Callable[[], Result]) -> Result:
        """Do something in process 0 first, which others then find done, and go on only if it worked in all."""
        if self.is_main:
            result = self.together(work)
            self.together(lambda: None)
            return result
        self.together(lambda: None)
        return self.together(work)

    def check_same(self, facts: Callable[[], Mapping[str, str]]) -> None:
        """Refuse to train with processes that differ in what must be the same.

        Args:
            facts: gives versions, checksums and the like, by their names for people.

        Raises:
            UserError: a process differs, in process 0.
            OtherFailedError: a process differs, in all others.
        """
        if self.processes == 1:
            return
        (_, ours), *others = self.all_of((socket.gethostname(), dict(facts())))
        for rank, (host, theirs) in enumerate(others, start=1):
            differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
            if differing and not self.is_main:
                raise OtherFailedError
            if differing:
                what = "; ".join(f"{name}: {theirs.get(name)}, not {ours.get(name)}" for name in differing[:MOST_NAMED])
                what += f"; and {len(differing) - MOST_NAMED} more" if len(differing) > MOST_NAMED else ""
                raise UserError(
                    f"Process {rank} (on {host}) differs from process 0 ({what}): give all processes the same version, "
                    "data and settings."
                )

    # -- who is missing -----------------------------------------------------------------------------------------------

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Name who is missing also if an exchange breaks off that torch does by itself, for layers that are shared out.

        Raises:
            UserError: a process is missing.
        """
        try:
            yield
        except RuntimeError as error:
            if self.processes == 1 or not _OF_AN_EXCHANGE.search(str(error)):
                raise
            raise self._missing(error) from error

    @contextmanager
    def _naming_who_is_missing(self) -> Iterator[None]:
        """Turn the end of a connection, or of the patience, into a sentence with the names of those who are missing."""
        try:
            yield
        except (RuntimeError, OSError) as error:  # gloo's errors have no class of their own
            raise self._missing(error) from error

    def _missing(self, error: BaseException) -> UserError:
        """Say who is missing."""
        assert self.roll_call is not None
        absent = self.roll_call.absent()
        if not absent.ended and not absent.others:
            return UserError(
                f"The processes lost each other ({first_line(error)}): see to the network between them, and go on with "
                "`resume`."
            )
        what = "ended or hangs" if absent.ended else "hangs, is busy, or waits for another one"
        return UserError(
            f"The run waited in vain for {' and '.join(absent.ended or absent.others)}, which {what} "
            "(`timeout_minutes` is the longest wait): see what it says, and go on with `resume`."
        )


ALONE = Group()


class _Sum:
    """The sum of some tensors over the processes, under way."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Send the tensors, as a flat copy; one alone needs none."""
        self.tensors = tensors
        parts = [tensor.flatten() for tensor in tensors]
        self.flat = torch.cat(parts) if len(parts) > 1 else parts[0]
        self.work = dist.all_reduce(self.flat, async_op=True)

    def write_back(self) -> None:
        """Wait for the sums and put them into the tensors; where nothing was copied, they are there."""
        self.work.wait()
        parts = self.flat.split([tensor.numel() for tensor in self.tensors])
        for part, tensor in zip(parts, self.tensors, strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Put consecutive tensors of one type and device together."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        is_alike = bucket and (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not is_alike or sum(map(torch.numel, bucket)) + tensor.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def is_started_by_torchrun() -> bool:
    """Whether this process is one of several, by the variables that `torchrun` sets."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def processes_here() -> int:
    """Number of the run's processes on this machine, by the variable that `torchrun` sets."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_started_by_torchrun() else 1


@contextmanager
def joined(timeout_minutes: float, device: DeviceName = "auto") -> Iterator[Group]:
    """Join the other processes, and leave them at the end; alone, there is nobody to join.

    They are connected by gloo on the CPU, and by NCCL between GPUs.

    Args:
        timeout_minutes: how long to wait for the others, now and later.
        device: the one that is asked for.

    Raises:
        UserError: the others cannot be reached, or there are fewer GPUs than processes here.
    """
    if not is_started_by_torchrun():
        yield ALONE
        return
    has_gpu = device != "cpu" and torch.cuda.is_available()
    if has_gpu:
        _take_own_gpu()
    group = _join(timedelta(minutes=timeout_minutes), "cpu:gloo,cuda:nccl" if has_gpu else "gloo")
    assert group.roll_call is not None
    try:
        with group.roll_call.answered():
            yield group
            group.barrier()  # a process that just ends breaks the others' connections
    finally:
        dist.destroy_process_group()


def _take_own_gpu() -> None:
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= there:
        raise UserError(
            f"Process {number} of this machine has no GPU of its own, of {there}: start as many processes as there are "
            'GPUs, or add `device="cpu"`.'
        )
    torch.cuda.set_device(number)


def _join(timeout: timedelta, backend: str) -> Group:
    from torch.distributed.rendezvous import rendezvous

    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, rank, processes = next(rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        store = met(store, rank, processes, timeout)
        roll_call = RollCall(store, rank, processes)
        dist.init_process_group(backend, store=store, rank=rank, world_size=processes, timeout=timeout)
    except (RuntimeError, ValueError, OSError) as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            raise UserError(
                f"The port of {place} is in use: choose another MASTER_PORT, or start with `torchrun --standalone`, "
                "which finds a free one."
            ) from error
        raise UserError(
            f"The other processes cannot be reached at {place} ({first_line(error)}): check that all of them were "
            "started, with the same MASTER_ADDR and MASTER_PORT."
        ) from error
    return Group(rank, processes, roll_call)
