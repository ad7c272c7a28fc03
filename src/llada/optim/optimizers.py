"""The options of the optimizers, and which of them trains which parameter; what is frozen is trained by none."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from llada.optim.adamw import AdamW16, StateName
from llada.optim.ema import trained_weights
from llada.optim.muon import Muon
from llada.optim.schedule import ScheduleName
from llada.system.ranges import ABOVE_0, AT_LEAST_0, SHARE, Checked, Range

# Momentum of the gradient's first moment; the published value of every recipe that we follow.
BETA1 = 0.9


@dataclass(frozen=True)
class OptimizerOptions(Checked):
    """The optimizer and its schedule."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """"muon": Muon for the matrices inside the layers, AdamW for the rest. "adamw": AdamW for all."""
    optimizer_state: StateName = "fp32"
    """Of the moments of AdamW: "8bit" takes a quarter of the memory, and needs bitsandbytes."""
    learning_rate: Annotated[float, AT_LEAST_0] = 3e-3
    """Peak rate of AdamW."""
    muon_learning_rate: Annotated[float, AT_LEAST_0] = 0.02
    """Peak rate of Muon."""
    weight_decay: Annotated[float, AT_LEAST_0] = 0.0
    """Decoupled, on matrices."""
    beta2: Annotated[float, SHARE] = 0.95
    """Of AdamW."""
    warmup_steps: Annotated[int, AT_LEAST_0] = 50
    """Steps over which the rate rises."""
    schedule: ScheduleName = "wsd"
    """"wsd": stable, then a linear fall over the last part. "cosine": half a cosine over the whole run.
    "cosine_after_warmup": half a cosine from the end of the warm-up."""
    decay: Annotated[float, Range(above=0, at_most=1)] = 1.0
    """Share of the run over which "wsd" falls; 1 is a straight line from the peak."""
    final_rate: Annotated[float, AT_LEAST_0] = 0.0
    """Rate at the end, as a share of the peak."""
    clip: Annotated[float, ABOVE_0] = 1.0
    """Greatest norm of the gradient."""
    ema: Annotated[float, SHARE] = 0.98
    """Decay of the moving average of the weights, which is what is saved and evaluated; 0 is none."""


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
    network: nn.Module, options: OptimizerOptions, products: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """The optimizers of a run; each parameter group carries its `peak_lr`.

    Muon takes the matrices inside the layers. The embedding and the head are look-up tables rather than maps between
    features, and norms and biases are no matrices: they stay with AdamW, as Muon's author advises.

    Args:
        network: with its layers as `layers`.
        products: the type of matrix products.
    """
    matrices: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    layers = network.layers
    assert isinstance(layers, nn.Module)
    in_layers = set(layers.parameters())
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
