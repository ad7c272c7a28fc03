"""The layers of a network shared out among processes by torch's FSDP2 (`fully_shard`).

Each process keeps some rows of every weight of a layer, with their gradients, moments and moving average. A layer is
whole where it is computed, and for as long as that takes. Embedding, head and last norm stay whole in every process:
their features and logits are computed outside of any one module.
"""

from typing import Any

import torch
from torch import Tensor, nn

from llada.models import Network
from llada.optim.parts import is_shared_out, own_part, whole_of


def shard_layers(network: Network, processes: int, device: torch.device) -> None:
    """Share out the layers of a network, in place; each process keeps its part of the weights that are there.

    A network on the meta device comes to this device, with weights that are still to be filled.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    is_empty = next(network.parameters()).is_meta
    mesh = init_device_mesh(device.type, (processes,))
    for layer in network.layers:
        assert isinstance(layer, nn.Module)
        sharded: Any = fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        # The loss of a process is already its share of the whole: gradients are added up, not averaged.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    if is_empty:
        network.to_empty(device=device)
        for layer in network.layers:  # FSDP2 takes the new memory when it first brings a layer together
            layer.unshard()  # type: ignore[operator]
            layer.reshard()  # type: ignore[operator]


def is_sharded(network: nn.Module) -> bool:
    """Whether layers of the network are shared out."""
    return any(is_shared_out(parameter) for parameter in network.parameters())


def exchange_gradients(network: Network, is_now: bool) -> None:
    """Say whether the next backward pass exchanges gradients, the last of a step, or accumulates them."""
    for layer in network.layers:
        switch: Any = getattr(layer, "set_requires_gradient_sync", None)
        if switch is not None:
            switch(is_now)


def take_gradients(network: Network) -> None:
    """Hand the gradients of the weights that are shared out to the process's own parts."""
    for parameter in network.parameters():
        if is_shared_out(parameter) and parameter.grad is not None:
            gradient: Any = parameter.grad
            own_part(parameter).grad, parameter.grad = gradient.to_local(), None


def whole_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return all weights of a network by name, whole; all processes call it together."""
    return {name: whole_of(weight) for name, weight in network.state_dict().items()}
