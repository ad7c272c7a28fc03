"""Which device and which precision, and what the machine has; every choice comes with its reason, to be printed."""

import contextlib
import ctypes
import os
import re
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from llada.errors import UserError
from llada.system.literals import check_literal

DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "bf16", "fp32"]


# For each shape of a product in bf16 on a CPU, torch makes code, of a MB or more, and keeps that of 1024 shapes, twice:
# as good as a leak, to a run whose batches are of many lengths. A step needs some dozens. Read at the first product.
PRODUCTS_KEPT = 128
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, str(PRODUCTS_KEPT))

_M_MMAP_THRESHOLD = -3  # malloc.h
_MMAP_THRESHOLD_BYTES = 128 * 1024  # glibc's own at the start; setting it keeps it from growing
MEMORY_INFORMATION = Path("/proc/meminfo")
CONTAINER_MEMORY = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Precision:
    """The data type of matrix products and activations; weights, norms, softmax and loss stay in fp32."""

    dtype: torch.dtype
    reason: str

    def autocast(self, device: torch.device) -> torch.autocast:
        kind = "cpu" if device.type == "meta" else device.type  # "meta", a stand-in for a GPU, follows the CPU's
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def choose_device(name: DeviceName) -> torch.device:
    """The named device; "auto" is the GPU where there is one.

    Raises:
        UserError: CUDA is asked for and not there.
    """
    check_literal("device", name, DeviceName)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("No CUDA device is available to this installation of torch: use --device cpu or auto.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


def choose_precision(name: PrecisionName, device: torch.device) -> Precision:
    """bf16 products where the processor has them in hardware, fp32 elsewhere, unless a name decides."""
    check_literal("precision", name, PrecisionName)
    if name != "auto":
        return Precision(torch.bfloat16 if name == "bf16" else torch.float32, "as asked for")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, "the GPU multiplies bf16 in hardware")
        return Precision(torch.float32, "the GPU has no bf16 in hardware")
    if has_bf16_cpu():
        return Precision(torch.bfloat16, "the processor multiplies bf16 in hardware")
    return Precision(torch.float32, "the processor has no bf16 in hardware (AMX or AVX512-BF16)")


def has_bf16_cpu() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it, which on a GPU takes page-locked memory to copy from."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def memory_bytes(device: torch.device) -> int:
    """Memory that this process may use in all: of the device, or of the container if that is less."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [path.read_text().strip() for path in CONTAINER_LIMITS if path.is_file()]
    own = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    own = [limit for limit in own if limit != resource.RLIM_INFINITY]
    return min([installed, *own, *(int(limit) for limit in limits if limit.isdigit())])


def free_memory_bytes() -> int | None:
    """Memory of the host that this process could still take; None where the system does not tell."""
    try:
        told = re.search(r"MemAvailable:\s+(\d+) kB", MEMORY_INFORMATION.read_text())
    except OSError:
        return None
    if told is None:
        return None
    free = 1024 * int(told[1])
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        limit, used = (int(path.read_text()) for path in CONTAINER_MEMORY)
        free = min(free, limit - used)
    return free


def give_back_freed_memory() -> None:
    """Make the C library give every freed tensor back to the system at once, for the rest of this process.

    By default glibc keeps what is freed in a heap whose gaps can take as much memory as the tensors themselves. This
    makes a step on a CPU take a third to four fifths longer (docs/EXPERIMENTS.md), so it is for runs that would not fit
    otherwise. Does nothing with another C library.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Measured speed of square products, the yardstick for the expected time of a run."""
    a = torch.randn(1024, 1024, device=device, dtype=dtype)
    a @ a  # the first product pays for set-up
    _synchronize(device)
    n_products, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        a @ a
        _synchronize(device)
        n_products += 1
    return n_products * 2 * 1024**3 / (time.perf_counter() - start)


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
