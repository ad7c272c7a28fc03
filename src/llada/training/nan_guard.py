"""What a run does about losses and gradients that are non-finite.

Such a step is left out: weights, moments and moving average stay as they were. It is decided on the device, which
nobody waits for; the host learns of it when a step is logged. If several in a row are left out, or half of those
lately, the run goes back to its last checkpoint and on with its data in another order; if that does not help, it stops
and reports what it saw.

Shape letters: B batch, L length.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from llada.system.device import to_fp64

FEW = 5  # steps in a row that are left out before the run goes back
LATELY, MANY = 20, 10  # or so many of the last ones


class Guard:
    """Decides which steps are left out, and counts them."""

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)  # skipped, in a row, most in a row, last step
        self._lately = torch.zeros(LATELY, dtype=torch.int64, device=device)  # 1 for each that was left out
        self.total = self.n_lately = 0
        """Steps that this process left out, and how many of the last ones; as of the last `take`."""
        self.skipped = self.in_a_row = self.most_in_a_row = 0
        """Counts at the last `take`; `skipped` and `most_in_a_row` restart at each `take`."""
        self.last_step = 0
        """Number of the last step that was left out."""

    @property
    def sums(self) -> Mapping[str, Tensor]:
        return {"counts": self._counts, "lately": self._lately}

    def judge(self, loss: Tensor, grad_norm: Tensor, step: int) -> Tensor:
        """Return 1 if the step is to be left out, else 0: a scalar on the device, as torch's optimizers take it
        (`found_inf`)."""
        is_bad = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
        skipped, in_a_row, most, last = self._counts.unbind()
        in_a_row = (in_a_row + 1) * is_bad
        last = torch.where(is_bad, step, last)
        self._counts.copy_(torch.stack((skipped + is_bad, in_a_row, torch.maximum(most, in_a_row), last)))
        self._lately[step % LATELY] = is_bad
        return is_bad.float()

    def take(self) -> None:
        """Copy the counts from the device and restart them."""
        self.skipped, self.in_a_row, self.most_in_a_row, self.last_step = self._counts.tolist()
        self.n_lately = int(self._lately.sum())
        self.total += self.skipped
        self._counts[0] = 0
        self._counts[2] = self.in_a_row

    def reset(self) -> None:
        self._counts.zero_()
        self._lately.zero_()
        self.take()

    def ask_in_a_row(self) -> int:
        """How many steps up to the last one were left out; asks the device."""
        return int(self._counts[1])

    @property
    def has_few(self) -> bool:
        """Whether so many steps were left out, in a row or lately, that the run should go back."""
        return self.most_in_a_row >= FEW or self.n_lately >= MANY

    def is_mostly_bad(self, n_steps: int) -> bool:
        """Whether most of the last of so many steps were left out; asks the device."""
        return 2 * int(self._lately.sum()) > min(LATELY, n_steps)


def finite_or_none(value: float) -> float | None:
    """Return a finite number as it is and None for others, which JSON does not have."""
    return value if math.isfinite(value) else None


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor with a non-finite number, None if all are finite; a GPU is asked once."""
    if not tensors:
        return None
    is_good = torch.stack([torch.isfinite(tensor).all() for tensor in tensors.values()])
    return next((name for name, good in zip(tensors, is_good.tolist(), strict=True) if not good), None)


def norms_by_layer(gradients: Mapping[str, Tensor | None]) -> dict[str, float]:
    """Norm of the gradient of each layer: of the parameters whose names agree up to a number, or up to their last part.

    "model.transformer.blocks.3.q_proj.weight" belongs to "model.transformer.blocks.3".
    """
    squares: dict[str, float] = {}
    for name, gradient in gradients.items():
        numbered = re.match(r".*?\.\d+(?=\.)", name)
        layer = numbered[0] if numbered else name.rpartition(".")[0] or name
        square = 0.0 if gradient is None else float(to_fp64(gradient).square().sum())
        squares[layer] = squares.get(layer, 0.0) + square
    return {layer: math.sqrt(square) for layer, square in squares.items()}
