"""The exponential moving average of the trained weights."""

import torch
from torch import Tensor, nn

from llada.optim.parts import own_part


class ExponentialAverage:
    """Keeps a moving average of the trained weights in fp32.

    The decay after n updates is min(decay, (1 + n) / (10 + n)).
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
    """Return the parameters that are not frozen, by name; of those that are shared out, this process's part."""
    return {name: own_part(parameter) for name, parameter in network.named_parameters() if parameter.requires_grad}
