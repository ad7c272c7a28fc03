"""Facts about torch and what it would use, from the answer of `inspection.describe_torch`."""

from llada.system.child_process import Answer
from llada.system.fact import Fact
from llada.system.format import bytes_in_words
from llada.system.installation import Package, again

_UNKNOWN = "not known: torch cannot be imported"


def torch_fact(package: Package, answer: Answer, has_nvidia: bool) -> Fact:
    """Judge torch itself.

    Args:
        package: torch according to its metadata.
        answer: the result of `inspection.describe_torch`.
        has_nvidia: whether the system has a GPU and a driver that torch could use.
    """
    found = answer.value or {}
    version, cuda = found.get("version") or package.version, found.get("cuda")
    values = {"version": version, "cuda": cuda, "required": package.required, "failure": answer.failure or None}
    install = f"pip install '{package.requirement}'"
    if answer.failure and package.version is None:
        advice = f"torch is not installed, and nothing runs without it: {install}."
        return Fact("torch", "problem", f"not installed: {install}", advice, values)
    if answer.failure:
        advice = f"torch {version} cannot be imported ({answer.failure}): install it again, {again(install)}."
        return Fact("torch", "problem", f"{version}, cannot be imported", advice, values)
    build = f"built for CUDA {cuda}" if cuda else "built for the CPU"
    summary = f"{version}, {build}"
    if package.is_older:
        advice = f"torch {version} is too old: {install}."
        return Fact("torch", "problem", f"{summary}, too old", advice, values)
    if package.is_newer:
        advice = f"torch {version} is newer than what this version was tested with: if it fails, {install}."
        return Fact("torch", "note", f"{summary}, outside {package.required}", advice, values)
    if has_nvidia and found.get("device", {}).get("value", {}).get("type") == "cpu":
        remedy = "check its driver with nvidia-smi, and CUDA_VISIBLE_DEVICES" if cuda else "install torch's CUDA build"
        advice = f"There is an NVIDIA GPU, but torch {version} ({build}) cannot use it: {remedy}."
        return Fact("torch", "note", f"{summary}, does not use the NVIDIA GPU", advice, values)
    return Fact("torch", "fine", summary, values=values)


def torch_part(answer: Answer, name: str) -> Answer:
    """Return one part of the answer of `inspection.describe_torch`."""
    if answer.failure:
        return Answer(failure=_UNKNOWN)
    part = answer.value[name]
    return Answer(part.get("value"), part.get("failure", ""))


def device_fact(answer: Answer) -> Fact:
    """Report the device that `device="auto"` takes."""
    part = torch_part(answer, "device")
    values = part.value or {"type": None, "description": None, "memory_bytes": None}
    if part.failure:
        return Fact("device", "note", part.failure, values=values)
    memory = f", {bytes_in_words(values['memory_bytes'])}" if values["memory_bytes"] else ""
    return Fact("device", "fine", f"{values['description']}{memory}", values=values)


def precision_fact(answer: Answer) -> Fact:
    """Report the precision that `precision="auto"` takes, and why."""
    part = torch_part(answer, "precision")
    values = part.value or {"dtype": None, "reason": None}
    if part.failure:
        return Fact("precision", "note", part.failure, values=values)
    name = {"bfloat16": "bf16", "float32": "fp32"}.get(values["dtype"], values["dtype"])
    return Fact("precision", "fine", f"{name}: {values['reason']}", values=values)


def vectors_fact(answer: Answer) -> Fact:
    """Report the vector instructions that torch's own kernels and bf16 matmuls use."""
    part = torch_part(answer, "vectors")
    values = part.value or {"capability": None, "avx512_bf16": None, "amx": None}
    if part.failure:
        return Fact("vector_instructions", "note", part.failure, values=values)
    has = [
        f"{name} {'yes' if values[key] else 'no'}" for key, name in (("avx512_bf16", "AVX-512-BF16"), ("amx", "AMX"))
    ]
    return Fact("vector_instructions", "fine", ", ".join([values["capability"], *has]), values=values)
