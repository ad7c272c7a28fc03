"""The options of the optimizers, and which of them trains which parameter. Frozen parameters belong to none."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from llada.optim.adamw import AdamW16, StateName
from llada.optim.ema import trained_weights
from llada.optim.muon import Muon
from llada.optim.parts import own_part
from llada.optim.schedule import ScheduleName
from llada.system.ranges import ABOVE_0, AT_LEAST_0, SHARE, Checked, Range

# Decay of AdamW's first moment; the published value of every recipe that this package follows.
BETA1 = 0.9


@dataclass(frozen=True)
class OptimizerOptions(Checked):
    """The optimizer and its learning rate schedule."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """Which optimizer trains the weights: "muon", Muon for the matrices in the layers and AdamW for the rest; "adamw",
    AdamW for all."""
    optimizer_state: StateName = "fp32"
    """Type of AdamW's moments: "8bit" takes a quarter of the memory of "fp32" and needs bitsandbytes."""
    learning_rate: Annotated[float, AT_LEAST_0] = 3e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: Annotated[float, AT_LEAST_0] = 0.02
    """Peak learning rate of Muon."""
    weight_decay: Annotated[float, AT_LEAST_0] = 0.0
    """Decoupled weight decay, applied to matrices only."""
    beta2: Annotated[float, SHARE] = 0.95
    """Decay of AdamW's second moment."""
    warmup_steps: Annotated[int, AT_LEAST_0] = 50
    """Number of steps over which the learning rate rises to its peak."""
    schedule: ScheduleName = "wsd"
    """Learning rate schedule. "wsd": constant, then a linear fall over the last part. "cosine": half a cosine over the
    whole run. "cosine_after_warmup": half a cosine from the end of the warm-up."""
    decay: Annotated[float, Range(above=0, at_most=1)] = 1.0
    """Fraction of the run over which "wsd" falls; 1 is a straight line from the peak."""
    final_rate: Annotated[float, AT_LEAST_0] = 0.0
    """Learning rate at the end, as a fraction of the peak."""
    clip: Annotated[float, ABOVE_0] = 1.0
    """Norm to which larger gradients are clipped."""
    ema: Annotated[float, SHARE] = 0.98
    """Decay of the moving average of the weights, which is saved and evaluated; 0 turns it off."""


class WaitingAdamW(torch.optim.AdamW):
    """AdamW of torch for Apple's GPUs, with `found_inf` checked on the host, because the fused kernel there ignores it.

    The source is MultiTensorApply.h in torch's mps folder, by reading. Each step waits for the device.
    """

    found_inf: Tensor | None = None

    def step(self, closure: Any = None) -> Any:
        if self.found_inf is not None and bool(self.found_inf):
            return None
        self.found_inf = None
        return super().step(closure)


def make_optimizers(
    network: nn.Module, options: OptimizerOptions, matmul_dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """Make the optimizers of a run; each parameter group has its `peak_lr`.

    Muon takes the matrices in the layers. The embedding and the head look rows up rather than transform features, and
    norms and biases are not matrices: AdamW trains them, as Muon's author advises.

    Args:
        network: a network whose layers are in `layers`.
        matmul_dtype: the type that Muon's matmuls run in.
    """
    matrices: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    layers = network.layers
    assert isinstance(layers, nn.Module)
    in_layers = {own_part(parameter) for parameter in layers.parameters()}
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
        optimizers.append(Muon(matrices, lr=rate, weight_decay=decay, matmul_dtype=matmul_dtype))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
