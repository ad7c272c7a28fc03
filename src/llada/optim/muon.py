"""Muon: momentum whose update is orthogonalised.

Shape letters: G matrices of one shape, R rows, C columns.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from llada.optim.parts import to_own, to_whole, whole_shape
from llada.optim.skipping import must_skip, skip_on_device

# Newton-Schulz coefficients and step count of Keller Jordan's Muon (2024), tuned for a steep slope at zero.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for the matrices inside the layers (Keller Jordan, 2024).

    torch has a Muon of its own, which orthogonalises in bf16: on a processor without bf16 matmuls that takes longer
    than the rest of the step (docs/EXPERIMENTS.md). This one takes the type as an argument, and orthogonalises all
    matrices of a shape at once.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        matmul_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.matmul_dtype = matmul_dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if must_skip(self):
            return
        skip = skip_on_device(self)
        for group in self.param_groups:
            for parameters in _by_shape(group["params"]):
                gradients = [p.grad for p in parameters if p.grad is not None]
                momenta = [self._momentum_of(p) for p in parameters]
                if skip is not None:  # a momentum that moves towards itself stays as it is
                    gradients = [torch.where(skip, m, g) for m, g in zip(momenta, gradients, strict=True)]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
                # Whole matrices, also where a process keeps some of their rows only.
                matrices = [to_whole(p, n) for p, n in zip(parameters, nesterov, strict=True)]
                update = orthogonalise(torch.stack(matrices), self.matmul_dtype)  # (G, R, C)
                rows, columns = update.shape[-2:]
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                decay: Any = 1 - group["lr"] * group["weight_decay"]
                if skip is not None:
                    update, decay = torch.where(skip, 0.0, update), torch.where(skip, 1.0, decay)
                torch._foreach_mul_(parameters, decay)
                updates = [to_own(p, u) for p, u in zip(parameters, update.unbind(), strict=True)]
                torch._foreach_add_(parameters, updates, alpha=-rate)

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


def orthogonalise(matrices: Tensor, matmul_dtype: torch.dtype = torch.float32) -> Tensor:
    """Return roughly the nearest semi-orthogonal matrix of each of (G, R, C).

    Singular values end between 0.7 and 1.2, except those that were close to 0: of square Gaussian matrices, a
    tenth end below, the least near 0.

    Args:
        matmul_dtype: the type that the matmuls run in. bf16 changes the result by a few %, less than five steps of
            the iteration leave open anyway.
    """
    a, b, c = _NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    # Contiguous, with additions fused into the matmuls (baddbmm): for small matrices, memory traffic dominates.
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).to(matmul_dtype).contiguous()
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)


def _by_shape(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    groups: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            groups.setdefault(whole_shape(parameter), []).append(parameter)
    yield from groups.values()
