"""Which optimizer trains which parameter; what is frozen is trained by none."""

from typing import Any

import torch
from torch import Tensor, nn

from llada.models import Network
from llada.optim.adamw import AdamW16
from llada.optim.muon import Muon, trained_weights
from llada.training.config import OptimizerOptions

# Momentum of the gradient's first moment; the published value of every recipe that we follow.
BETA1 = 0.9


class WaitingAdamW(torch.optim.AdamW):
    """torch's AdamW for Apple's GPUs, whose fused kernel does not look at `found_inf`: the host does, before a step.

    (MultiTensorApply.h of torch's mps folder, by reading.) A step waits for the device there.
    """

    found_inf: Tensor | None = None

    def step(self, closure: Any = None) -> Any:
        if self.found_inf is not None and bool(self.found_inf):
            return None
        self.found_inf = None
        return super().step(closure)


def make_optimizers(
    network: Network, options: OptimizerOptions, products: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """The optimizers of a run; each parameter group carries its `peak_lr`.

    Muon takes the matrices inside the layers. The embedding and the head are look-up tables rather than maps between
    features, and norms and biases are no matrices: they stay with AdamW, as Muon's author advises.

    Args:
        products: the type of matrix products.
    """
    matrices: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    in_layers = set(network.layers.parameters())
    for parameter in trained_weights(network).values():
        is_matrix = parameter.dim() == 2  # not the taps of a convolution, which are scales
        kind = vectors if not is_matrix else matrices if parameter in in_layers else tables
        kind.append(parameter)
    by_adamw = tables if options.optimizer == "muon" else matrices + tables
    groups = [
        {"params": by_adamw, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    rate, betas = options.learning_rate, (BETA1, options.beta2)
    is_fp32 = all(parameter.dtype == torch.float32 for parameter in by_adamw)
    plain = WaitingAdamW if any(parameter.device.type == "mps" for parameter in by_adamw) else torch.optim.AdamW
    optimizers: list[torch.optim.Optimizer] = [
        plain(groups, lr=rate, betas=betas, fused=True)
        if is_fp32 and options.optimizer_state == "fp32"
        else AdamW16(groups, lr=rate, betas=betas, state=options.optimizer_state)
    ]
    if options.optimizer == "muon":
        rate, decay = options.muon_learning_rate, options.weight_decay
        optimizers.append(Muon(matrices, lr=rate, weight_decay=decay, products=products))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
