"""Optimizers, the learning rate over a run, and the moving average of the weights.

Shape letters: G matrices of one shape, R rows, C columns.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llada.system.literals import check_literal

ScheduleName = Literal["cosine", "wsd"]

# Newton-Schulz coefficients and step count of Keller Jordan's Muon (2024), tuned for a steep slope at zero.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5


def learning_rate_factor(
    schedule: ScheduleName, progress: float, step: int, warmup_steps: int, decay: float, final: float
) -> float:
    """Factor on the peak learning rate.

    Args:
        schedule: "cosine" falls along half a cosine after the warm-up; "wsd" (warm-up, stable, decay: arXiv 2404.06395)
            stays at the peak and falls linearly over the last part of the run.
        progress: share of the run that is done, 0 to 1.
        step: steps done; the factor rises linearly over the first `warmup_steps`.
        decay: the share of the run over which "wsd" falls; 1 is a straight line from the peak.
        final: the factor at the end.
    """
    check_literal("schedule", schedule, ScheduleName)
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    half_cosine = (1 + math.cos(math.pi * progress)) / 2
    fall = half_cosine if schedule == "cosine" else min(1.0, (1 - progress) / decay)
    return warmup * (final + (1 - final) * fall)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for the matrices inside the layers (Keller Jordan, 2024).

    torch has a Muon of its own, which orthogonalises in bf16: on a processor without bf16 products that takes longer
    than the rest of the step (docs/EXPERIMENTS.md). This one is told in which type to, and takes all matrices of a
    shape at once.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        products: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.products = products

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        skip = skip_of(self)
        if skip is LEAVE_OUT:
            return
        for group in self.param_groups:
            for parameters in _by_shape(group["params"]):
                gradients = [p.grad for p in parameters if p.grad is not None]
                momenta = [self._momentum_of(p) for p in parameters]
                if skip is not None:  # towards itself, a momentum does not move
                    gradients = [torch.where(skip, m, g) for m, g in zip(momenta, gradients, strict=True)]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
                update = orthogonalise(torch.stack(nesterov), self.products)  # (G, R, C)
                rows, columns = update.shape[-2:]
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                decay: Any = 1 - group["lr"] * group["weight_decay"]
                if skip is not None:
                    update, decay = torch.where(skip, 0.0, update), torch.where(skip, 1.0, decay)
                torch._foreach_mul_(parameters, decay)
                torch._foreach_add_(parameters, list(update.unbind()), alpha=-rate)

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


LEAVE_OUT = torch.tensor(True)


def skip_of(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """What an optimizer's `found_inf` asks for, which is 1 where a step is to be left out (torch's own read it, too).

    Returns:
        None to take the step, LEAVE_OUT to leave it out, and where only a device knows, which it is: a boolean scalar
        there, which nobody waits for.
    """
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    if found_inf is None or found_inf.device.type != "cpu":
        return None if found_inf is None else found_inf.bool()
    return LEAVE_OUT if bool(found_inf) else None


def orthogonalise(matrices: Tensor, products: torch.dtype = torch.float32) -> Tensor:
    """The nearest semi-orthogonal matrix of each of (G, R, C), roughly: singular values end between 0.7 and 1.2,
    but for those that were close to 0: of square Gaussian matrices, a tenth end below, the least near 0.

    Args:
        products: the type to multiply in. bf16 changes the result by a few per cent, less than five steps of the
            iteration leave open anyway.
    """
    a, b, c = _NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    # In one piece, and with sums in the same pass as products, for small matrices are quickly multiplied.
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).to(products).contiguous()
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)


def _by_shape(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    groups: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            groups.setdefault(parameter.shape, []).append(parameter)
    yield from groups.values()


class ExponentialAverage:
    """Moving average, in fp32, of the weights that are trained: after n updates the decay is
    min(decay, (1 + n) / (10 + n)).

    torch's own, `torch.optim.swa_utils.AveragedModel`, copies the whole network, with what is not trained of it, and in
    the type of its weights; nor can it leave out an update by what only the device knows.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.n_updates = 0
        self.weights = {name: weight.detach().float().clone() for name, weight in trained_weights(network).items()}

    @torch.no_grad()
    def update(self, network: nn.Module, skip: Tensor | None = None) -> None:
        """
        Args:
            skip: scalar, not 0 where there was no step. On a CPU nothing is done then; elsewhere the update is counted.
        """
        if skip is not None and skip.device.type == "cpu":
            if bool(skip):
                return
            skip = None
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        current = [weight.float() for weight in trained_weights(network).values()]
        if skip is not None:
            is_left_out = skip.bool()
            current = [torch.where(is_left_out, a, c) for a, c in zip(self.weights.values(), current, strict=True)]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)
        self.n_updates += 1


def trained_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
