"""Choice of device and precision, each with a reason to print, and what the machine has."""

import contextlib
import ctypes
import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor

from llada.system.errors import UserError
from llada.system.literals import check_literal

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
PrecisionName = Literal["auto", "bf16", "fp32"]

_M_MMAP_THRESHOLD = -3  # malloc.h
_MMAP_THRESHOLD_BYTES = 128 * 1024  # glibc's initial value; setting it keeps it from growing
_NOT_REPORTED = (OSError, RuntimeError, psutil.Error)  # in a sandbox of Linux without /proc, for example
CONTAINER_MEMORY = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
MATMUL_SIZE = {"cpu": 1024, "gpu": 8192}  # size of the matmuls that measure a device's speed


@dataclass(frozen=True)
class Precision:
    """The data type of matmuls and activations; weights, norms, softmax and loss stay in fp32."""

    dtype: torch.dtype
    reason: str

    def autocast(self, device: torch.device) -> torch.autocast:
        kind = "cpu" if device.type == "meta" else device.type  # "meta", a stand-in for a GPU, follows the CPU's
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def choose_device(name: DeviceName) -> torch.device:
    """Return the named device; "auto" is a GPU if there is one, NVIDIA's before Apple's.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    check_literal("device", name, DeviceName)
    has_gpu = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((gpu for gpu, is_there in has_gpu.items() if is_there), "cpu"))
    if not has_gpu.get(name, True):
        kind = "CUDA device" if name == "cuda" else "Apple GPU"
        raise UserError(f"No {kind} is available to this installation of torch: use `device=cpu` or auto.")
    return torch.device(name)


def choose_precision(name: PrecisionName, device: torch.device) -> Precision:
    """Choose bf16 matmuls where the processor has them in hardware and fp32 elsewhere, unless a name decides."""
    check_literal("precision", name, PrecisionName)
    if name != "auto":
        return Precision(torch.bfloat16 if name == "bf16" else torch.float32, "as asked for")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, "the GPU multiplies bf16 in hardware")
        return Precision(torch.float32, "the GPU has no bf16 in hardware")
    if device.type == "mps":
        return Precision(torch.float32, "not every Apple GPU has bf16 in hardware; it may be asked for")
    if has_bf16_cpu():
        return Precision(torch.bfloat16, "the processor multiplies bf16 in hardware")
    return Precision(torch.float32, "the processor has no bf16 in hardware (AMX or AVX512-BF16)")


def has_bf16_cpu() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting, which for an NVIDIA GPU needs page-locked memory to copy from.

    For Apple's GPUs it waits: they share the host's memory, and may read it after it is something else.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "mps")


def fp64_device(device: torch.device) -> torch.device:
    """The device on which the fp64 of tensors on this device is computed: the same one, or the CPU for Apple's GPUs."""
    return torch.device("cpu") if device.type == "mps" else device


def to_fp64(tensor: Tensor) -> Tensor:
    """Convert a tensor to fp64, on the `fp64_device` of its device."""
    return tensor.to(fp64_device(tensor.device)).double()


def memory_bytes(device: torch.device) -> int:
    """Total memory that this process may use, in bytes: that of the device, or of the container if that is less."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [path.read_text(encoding="utf-8").strip() for path in CONTAINER_LIMITS if path.is_file()]
    available = [_installed_bytes(), *_process_limits(), *(int(n) for n in limits if n.isdigit())]
    if device.type == "mps":  # it shares the memory of the host, and the system lets it have a part
        available.append(torch.mps.recommended_max_memory())
    return min(available)


def _installed_bytes() -> int:
    try:
        return int(psutil.virtual_memory().total)
    except _NOT_REPORTED:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _process_limits() -> list[int]:
    """Limits of the process (`ulimit`), in bytes; none where the system has no such limits."""
    kinds = [getattr(psutil, name) for name in ("RLIMIT_AS", "RLIMIT_DATA") if hasattr(psutil, name)]
    try:
        limits = [psutil.Process().rlimit(kind)[0] for kind in kinds]
    except _NOT_REPORTED:
        return []
    return [limit for limit in limits if limit != psutil.RLIM_INFINITY]


def free_memory_bytes() -> int | None:
    """Memory of the host that this process could still take, in bytes; None where the system does not report it."""
    try:
        free = int(psutil.virtual_memory().available)
    except _NOT_REPORTED:
        return None
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        limit, used = (int(path.read_text(encoding="utf-8")) for path in CONTAINER_MEMORY)
        free = min(free, limit - used)
    return free


def used_memory_bytes(device: torch.device) -> int | None:
    """Memory that this process uses, in bytes: the peak of what tensors took on a GPU since the process began, or what
    the process has of the host's now; None where the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return int(psutil.Process().memory_info().rss)
    except _NOT_REPORTED:
        return None


def give_back_freed_memory() -> None:
    """Make the C library give every freed tensor back to the system at once, for the rest of this process.

    By default glibc keeps what is freed in a heap whose gaps can take as much memory as the tensors themselves. This
    makes a step on a CPU take a third to four fifths longer (docs/EXPERIMENTS.md), so it is for runs that would not fit
    otherwise. It does nothing with another C library.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # Windows has no library without a name
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Measure the speed of square matmuls in FLOPs per second, the yardstick for the expected time of a run.

    On a GPU the matmuls are large and waited for together: one of size 1024 takes less time than the wait for it.
    """
    size = MATMUL_SIZE["cpu" if device.type == "cpu" else "gpu"]
    a = torch.randn(size, size, device=device, dtype=dtype)
    a @ a  # the first matmul pays for set-up
    _synchronize(device)
    n_matmuls = 1
    while True:  # twice as many, until it takes long enough to be measured
        start = time.perf_counter()
        for _ in range(n_matmuls):
            a @ a
        _synchronize(device)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds / 2:
            return n_matmuls * 2 * size**3 / elapsed
        n_matmuls *= 2


def known_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Return the speed of square matmuls in FLOPs per second, which is measured once for as many threads."""
    return _measured_once(device, dtype, torch.get_num_threads())


@functools.cache
def _measured_once(device: torch.device, dtype: torch.dtype, n_threads: int) -> float:
    return matmul_flops_per_second(device, dtype)


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"GPU of {torch.backends.mps.get_name()}"
    return f"CPU, {torch.get_num_threads()} threads"


def _synchronize(device: torch.device) -> None:
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type)
    if wait is not None:
        wait()
