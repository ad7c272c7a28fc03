"""A check that compiled code gives the same as the plain function, on this machine.

A compiler can be wrong in ways that no test on another machine finds: a kernel that returns NaN, or finite numbers that
are slightly off. So compiled code is run once on an example, forward and backward, and compared with plain code.

The tolerance follows from the precision. Where a function runs in bf16 by autocast, its exact result is taken from
fp32; the compiled result may be off from that by at most `TIMES_PLAIN` times what the plain bf16 result is off.
Otherwise compiled and plain may differ by `TOLERANCE` of the data type, relative to the norm.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

TIMES_PLAIN = 1.5
"""How much further from fp32 compiled bf16 may be than plain bf16, in norm; twice that in its largest element. Measured
on the laptop preset: 0.85 to 1.0, since fused code rounds less often (docs/EXPERIMENTS.md, 19)."""
FEW_ELEMENTS = 64
"""Tensors with fewer elements are compared together: how far a single number is off is a matter of luck."""
FEW = "a gradient of few elements"
RESULT = "the result"
FLOOR = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float64: 1e-12}
"""Tolerance that is added, as a share of the norm: the last bit may be rounded otherwise."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 2e-2, torch.float64: 1e-9}
"""Relative difference of compiled from plain that is allowed where there is no more precise result."""
LEAST = 1e-7
"""Share of the norm of all tensors together that is allowed in any case."""
MOST_OFF = 0.3
"""Share of its norm by which plain bf16 may be off from fp32 and still serve as a measure."""


@dataclass(frozen=True)
class Subject:
    """A function to compile, and an example to try it on."""

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    weights: Mapping[str, Tensor]
    """Tensors by name whose gradients are compared; those of `inputs` that ask for one are compared as well."""
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    """The context in which the function is called, such as autocast."""
    autocast: torch.dtype | None = None
    """The type of that autocast, if there is one."""
    has_dropout: bool = False
    """Whether there is dropout, which drops other elements in fp32, so that there is nothing more precise to compare
    with."""

    def to(self, device: torch.device) -> "Subject":
        """Copy the subject's inputs to a device; for subjects without weights."""
        inputs = [each.detach().to(device).requires_grad_(each.requires_grad) for each in self.inputs]
        return replace(self, inputs=tuple(inputs))


@dataclass(frozen=True)
class Finding:
    """The outcome of a comparison."""

    is_right: bool
    reason: str
    """A clause for people."""


@dataclass(frozen=True)
class Recipe:
    """How another process makes the same subject: a function by its module and name, and its arguments as JSON."""

    factory: str
    """A name "module:function"; the function returns a `Subject`."""
    arguments: Mapping[str, Any]

    def make(self) -> Subject:
        module, _, name = self.factory.partition(":")
        subject: Subject = getattr(importlib.import_module(module), name)(**self.arguments)
        return subject


def compile_function(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a function by torch.compile for the shapes of the first call.

    There is one definition, so that a process finds in its cache what another process compiled.
    """
    compiled: Callable[..., Tensor] = torch.compile(function, dynamic=False)
    return compiled


def compare(subject: Subject, compiled: Callable[..., Tensor]) -> Finding:
    """Check whether the compiled function gives what the plain one gives, in its result and all gradients.

    Weights that are zero everywhere, such as those of a fresh layer's last matmul, would hide what is behind them;
    for the comparison they get small random values.
    """
    gpus = {each.device for each in subject.inputs if each.is_cuda}
    with _without_zeros(subject.weights), torch.random.fork_rng(list(gpus)):
        plain = _run(subject, subject.function)
        exact = None
        if subject.autocast is not None and not subject.has_dropout and _all_fp32(subject.weights):
            exact = _run(subject, subject.function, in_context=False)
        found = _run(subject, compiled)
    return judge(plain, found, exact, subject.autocast or plain[RESULT].dtype)


def judge(
    plain: Mapping[str, Tensor], found: Mapping[str, Tensor], exact: Mapping[str, Tensor] | None, dtype: torch.dtype
) -> Finding:
    """Compare named tensors of the plain function and of the compiled one.

    Args:
        exact: tensors of a more precise run, if there was one.
        dtype: in which plain and compiled function compute.
    """
    for name, reference in plain.items():
        if found.keys() != plain.keys() or found[name].shape != reference.shape:
            return Finding(False, f"{name} is missing or has another shape")
        if not bool(torch.isfinite(found[name]).all()) and bool(torch.isfinite(reference).all()):
            return Finding(False, f"{name} is non-finite")
    plain, found = _pool_few(plain), _pool_few(found)
    exact = None if exact is None else _pool_few(exact)
    wholes = plain if exact is None else exact
    scale = float(_norm(torch.stack([_norm(value) for value in wholes.values()])))
    worst, worst_name = 0.0, ""
    for name, reference in plain.items():
        more_exact = None if exact is None else exact[name].float()
        luck = 3 if name == FEW else 1
        excess = _excess(found[name].float(), reference.float(), more_exact, dtype, LEAST * scale) / luck
        if not excess <= worst:  # NaN, too
            worst, worst_name = excess, name
    if not worst <= 1:
        return Finding(False, f"{worst_name} is off by {worst:.3g} times what rounding explains")
    return Finding(True, f"results and gradients equal the plain ones, to {worst:.0%} of what rounding allows")


def _pool_few(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather the tensors of few elements into one vector."""
    few = {name: value for name, value in tensors.items() if value.numel() < FEW_ELEMENTS}
    if not few:
        return dict(tensors)
    pooled = torch.cat([value.flatten().float() for value in few.values()])
    return {name: value for name, value in tensors.items() if name not in few} | {FEW: pooled}


def _excess(found: Tensor, plain: Tensor, exact: Tensor | None, dtype: torch.dtype, least: float) -> float:
    """Measure the deviation of a tensor in units of what is allowed, by norm or by largest element, whichever is worse.

    Args:
        least: deviation that is allowed in any case, for the last bits of a tensor that is almost zero.
    """
    worst, tiny = 0.0, torch.finfo(torch.float32).tiny
    for size, times in ((_norm, 1.0), (_largest, 2.0)):
        if exact is None:
            off, allowed = size(found - plain), times * TOLERANCE[dtype] * size(plain)
        else:
            own = torch.minimum(size(plain - exact), MOST_OFF * size(exact))
            off, allowed = size(found - exact), times * TIMES_PLAIN * own + FLOOR[dtype] * size(exact)
        worst = max(worst, float(off / (allowed + least).clamp(min=tiny)))
    return worst


def _norm(value: Tensor) -> Tensor:
    return torch.linalg.vector_norm(value.float())


def _largest(value: Tensor) -> Tensor:
    return value.float().abs().max() if value.numel() else torch.zeros(())


def _all_fp32(weights: Mapping[str, Tensor]) -> bool:
    return all(weight.dtype == torch.float32 for weight in weights.values())


def _run(subject: Subject, function: Callable[..., Tensor], in_context: bool = True) -> dict[str, Tensor]:
    """Compute the result and the gradients of a random linear function of it, on the CPU, by name."""
    torch.manual_seed(0)  # so that dropout drops the same elements in each run
    leaves = [each.detach().requires_grad_(each.requires_grad) for each in subject.inputs]
    wanted = {f"the gradient of {name}": weight for name, weight in subject.weights.items() if weight.requires_grad}
    wanted |= {f"the gradient of input {place}": leaf for place, leaf in enumerate(leaves) if leaf.requires_grad}
    with torch.enable_grad():
        with subject.context() if in_context else contextlib.nullcontext():
            result = function(*leaves)
        direction = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result.device)
        total = (result.float() * direction).sum()
        gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True) if wanted else ()
    found = {RESULT: result.detach().cpu()}
    for name, gradient in zip(wanted, gradients, strict=True):
        if gradient is not None:
            found[name] = gradient.detach().cpu()
    return found


@contextlib.contextmanager
def _without_zeros(weights: Mapping[str, Tensor]) -> Iterator[None]:
    generator = torch.Generator().manual_seed(2)
    zeros = [weight.detach() for weight in weights.values() if weight.is_floating_point() and not bool(weight.any())]
    for weight in zeros:
        fan_in = weight.shape[-1] if weight.dim() > 1 else 4
        weight.copy_(torch.randn(weight.shape, generator=generator) * fan_in**-0.5)
    try:
        yield
    finally:
        for weight in zeros:
            weight.zero_()


def rotation() -> Subject:
    """Build the smallest case in which a compiler was seen to be wrong: a rotation in bf16, read through a transpose.

    With g++ 12.2 at -O3 and -mtune=generic, on a processor with AVX-512, it returns NaN (torch 2.13).
    """
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(8, 128, 256, generator=generator).bfloat16().requires_grad_()
    cos, sin = (torch.randn(256, 64, generator=generator).bfloat16() for _ in range(2))

    def rotate(a: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        lower, upper = a.transpose(1, 2).chunk(2, -1)
        return torch.cat((lower * cos - upper * sin, upper * cos + lower * sin), -1)

    return Subject(rotate, (a, cos, sin), {})
