"""Questions of `llada doctor` for child processes (child_process.py): all imports of something that may be broken."""

import importlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any


def describe_torch() -> dict[str, Any]:
    """Describe torch and what it would use here.

    Returns:
        "version", "cuda" (version of the CUDA build, or None) and further parts by name, each {"value": ...} or, where
        this torch cannot say, {"failure": ...}, so that one failing part hides no other.
    """
    import torch

    parts: dict[str, Callable[[], Any]] = {
        "device": _device,
        "precision": _precision,
        "vectors": _vectors,
        "threads": torch.get_num_threads,
        "memory": _memory,
        "cache_folder": _cache_folder,
    }
    answers: dict[str, Any] = {"version": str(torch.__version__), "cuda": torch.version.cuda or torch.version.hip}
    for name, describe in parts.items():
        try:
            answers[name] = {"value": describe()}
        except Exception as error:
            answers[name] = {"failure": f"{type(error).__name__}: {error}"}
    return answers


def _device() -> dict[str, Any]:
    from llada.system.device import choose_device, describe_device, memory_bytes

    device = choose_device("auto")
    memory = memory_bytes(device) if device.type == "cuda" else None
    return {"type": device.type, "description": describe_device(device), "memory_bytes": memory}


def _precision() -> dict[str, str]:
    from llada.system.device import choose_device, choose_precision

    precision = choose_precision("auto", choose_device("auto"))
    return {"dtype": str(precision.dtype).removeprefix("torch."), "reason": precision.reason}


def _vectors() -> dict[str, Any]:
    import torch

    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }


def _memory() -> dict[str, int | None]:
    import torch

    from llada.system.device import free_memory_bytes, memory_bytes

    return {"usable_bytes": memory_bytes(torch.device("cpu")), "free_bytes": free_memory_bytes()}


def _cache_folder() -> str:
    from llada.system.toolchains import cache_folder

    return str(cache_folder())


def check_compiled_code() -> list[dict[str, Any]]:
    """Compare compiled code with the plain network on the device that a run would use; one verdict for each setting
    tried."""
    from llada.system.device import choose_device

    compile_ = importlib.import_module("llada.system.compile")
    return [asdict(verdict) for verdict in compile_.probe(choose_device("auto"))]


def import_modules(*names: str) -> dict[str, str]:
    """Import each module; returns, for those that fail, the reason by name."""
    failures = {}
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"
    return failures


def reach_hub(seconds: str) -> dict[str, Any]:
    """Ask the Hugging Face hub for any answer, in the way that its library downloads (proxies, certificates).

    Returns:
        "endpoint", "is_offline" (the environment forbids to ask) and "failure", None if it answered.
    """
    from huggingface_hub import constants, get_session

    answer = {"endpoint": constants.ENDPOINT, "is_offline": constants.HF_HUB_OFFLINE, "failure": None}
    if not answer["is_offline"]:
        try:
            status = get_session().head(constants.ENDPOINT, timeout=float(seconds)).status_code
            answer["failure"] = f"it answers with HTTP status {status}" if status >= 500 else None
        except Exception as error:
            answer["failure"] = type(error).__name__
    return answer
