"""Whether an optimizer leaves a step out.

torch's fused optimizers read an attribute `found_inf`, a scalar that is 1 where the step is to be left out. Ours read
it, too. On a CPU the host looks at it. On a GPU nobody waits for it: the step is computed, and the device chooses
between old and new values.
"""

import torch
from torch import Tensor


def must_skip(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the host knows that the step is to be left out."""
    found_inf = _found_inf(optimizer)
    return found_inf is not None and found_inf.device.type == "cpu" and bool(found_inf)


def skip_on_device(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Return a boolean scalar on the device, True if the step is to be left out; None if the step is taken."""
    found_inf = _found_inf(optimizer)
    return None if found_inf is None or found_inf.device.type == "cpu" else found_inf.bool()


def _found_inf(optimizer: torch.optim.Optimizer) -> Tensor | None:
    return getattr(optimizer, "found_inf", None)
