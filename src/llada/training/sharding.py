"""The matrices of a network shared out among processes by torch's FSDP2 (`fully_shard`).

Each process keeps some rows of every matrix, with their gradients, moments and moving average. A layer is whole where
it is computed, and for as long as that takes; embeddings and head from the forward pass of a batch to the end of its
backward pass, since the loss computes the head in pieces. Vectors stay whole in every process, as do adapters: they are
small, and their gradients are added up like those of a network that is not shared out.
"""

import warnings
from typing import Any

import torch
from torch import nn

from llada.models import Network
from llada.optim.parts import is_shared_out, own_part


def share_out(network: Network, processes: int, device: torch.device, matmul_dtype: torch.dtype) -> None:
    """Share out a network that is on the meta device, in place: each process has memory for its part, to be filled.

    What is frozen is so before the call.

    Args:
        matmul_dtype: type that the matrices of layers are sent in: that of the matmuls, to which autocast would round
            them anyway. Embeddings and head are sent as they are kept.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (processes,))
    whole = {parameter for parameter in network.parameters() if parameter.dim() != 2}
    sent_as = matmul_dtype if matmul_dtype == torch.bfloat16 else None
    policy = MixedPrecisionPolicy(param_dtype=sent_as, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in network.layers:
        assert isinstance(layer, nn.Module)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=whole)
    kept = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    fully_shard(network, mesh=mesh, reshard_after_forward=False, mp_policy=kept, ignored_params=whole)
    register_fsdp_forward_method(network, "features")
    # It warns of changing such a result in place, which no network here does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    network.to_empty(device=device)
    for part in _parts(network):
        # The loss of a process is already its share of the whole: gradients are added up, not averaged.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
        part.unshard()  # FSDP2 takes the new memory when it first brings a part together
        part.reshard()


def _parts(network: Network) -> list[Any]:
    """What is brought together at a time: each layer, and all that is outside of them."""
    return [*network.layers, network]


def exchange_gradients(network: Network, is_now: bool) -> None:
    """Say whether the next backward pass exchanges gradients, or accumulates them, whole."""
    switch: Any = getattr(network, "set_requires_gradient_sync", None)
    if switch is not None:
        switch(is_now)


def take_gradients(network: Network) -> None:
    """Hand the gradients of the weights that are shared out to the process's own parts."""
    for parameter in network.parameters():
        if is_shared_out(parameter) and parameter.grad is not None:
            gradient: Any = parameter.grad
            own_part(parameter).grad, parameter.grad = gradient.to_local(), None


def let_go(network: Network) -> None:
    """Keep a part of embeddings and head again, which stay whole after a forward pass without a backward pass."""
    reshard: Any = getattr(network, "reshard", None)
    if reshard is not None:
        reshard()


def own_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return all weights of a network by name, frozen ones as well; of those that are shared out, the own parts."""
    return {name: own_part(parameter) for name, parameter in network.named_parameters()}
