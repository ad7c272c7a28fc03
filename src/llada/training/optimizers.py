"""Which optimizer trains which parameter."""

import torch
from torch import nn

from llada.optim import Muon
from llada.training.config import OptimizerOptions

# Momentum of the gradient's first moment; the published value of every recipe that we follow.
BETA1 = 0.9


def make_optimizers(network: nn.Module, options: OptimizerOptions) -> list[torch.optim.Optimizer]:
    """The optimizers of a run; each parameter group carries its `peak_lr`.

    Muon takes the matrices inside the layers. The embedding and the head are look-up tables rather than maps between
    features, and norms and biases are no matrices: they stay with AdamW, as Muon's author advises.
    """
    matrices: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        is_inside_layer = ".blocks." in f".{name}" or name.startswith("layers.")
        kind = vectors if parameter.dim() < 2 else matrices if is_inside_layer else tables
        kind.append(parameter)
    by_adamw = tables if options.optimizer == "muon" else matrices + tables
    groups = [
        {"params": by_adamw, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=options.learning_rate, betas=(BETA1, options.beta2), fused=True)
    ]
    if options.optimizer == "muon":
        optimizers.append(Muon(matrices, lr=options.muon_learning_rate, weight_decay=options.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
