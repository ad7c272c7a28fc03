"""Linear layers of a network in 4 bits, by bitsandbytes (QLoRA, arXiv 2305.14314, section 3).

They are in NF4 with double quantisation, with matmuls in bf16. Embeddings, norms, biases and head are stored in bf16;
so is the router of experts, since rounding would change which of them are chosen, and so are linear layers whose inputs
are not a multiple of a block, which on a CPU bitsandbytes 0.50 reads with the scales of other blocks (an error of 24 %
instead of 9 %).
"""

from typing import Any

import torch
from torch import nn

from llada.models import Network
from llada.system.bitsandbytes import importing_bitsandbytes
from llada.system.errors import UserError

BLOCK = 64  # number of weights that share a scale
ROUTER = "mlp.gate"
FLAG = "is_loaded_in_4bit"  # attribute of a network in 4 bits, which peft looks for


def is_quantised(network: Network) -> bool:
    """Whether the layers are in 4 bits."""
    return getattr(network, FLAG, False)


def store_in_four_bits(network: Network, device: torch.device | str | None = None) -> None:
    """Round the weights to 4 bits, in place and one layer after the other, and freeze the network.

    Args:
        device: the device to move to, which never holds more than the result and one layer; None moves nothing.

    Raises:
        UserError: bitsandbytes is not installed, or the device is a GPU of Apple's.
    """
    if device is not None and torch.device(device).type == "mps":
        raise UserError("Weights in 4 bits are not for Apple's GPUs: add `device=cpu`.")
    library = _bitsandbytes()
    for layer in network.layers:
        for name, module in list(layer.named_modules()):
            if type(module) is nn.Linear and name != ROUTER and module.in_features % BLOCK == 0:
                layer.set_submodule(name, _quantised(library, module, device))
    network.to(device=device, dtype=torch.bfloat16)
    network.requires_grad_(False)
    setattr(network, FLAG, True)


def restore_from_four_bits(network: Network) -> None:
    """Turn the layers in 4 bits into plain linear layers in bf16, with the values that they stand for."""
    library = _bitsandbytes()
    for name, module in list(network.named_modules()):
        if isinstance(module, library.nn.Linear4bit):
            network.set_submodule(name, _dequantised(library, module))
    delattr(network, FLAG)


def _quantised(library: Any, linear: nn.Linear, device: torch.device | str | None) -> nn.Module:
    has_bias = linear.bias is not None
    quantised = library.nn.Linear4bit(
        linear.in_features, linear.out_features, has_bias, torch.bfloat16, quant_type="nf4", device="meta"
    )
    weight = library.nn.Params4bit(
        linear.weight.detach().to(torch.bfloat16),
        blocksize=BLOCK,
        compress_statistics=True,
        quant_type="nf4",
        module=quantised,
    )
    quantised.weight = weight.to(device or linear.weight.device)  # this is what rounds
    quantised.bias = linear.bias
    # Otherwise a CPU with AVX512-BF16 rearranges the weights at the first use in evaluation, for good, and
    # no gradient passes through them any more.
    quantised.support_avx512bf16_for_cpu = False
    return quantised.train(linear.training)


def _dequantised(library: Any, linear: Any) -> nn.Linear:
    plain = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
    plain.weight = nn.Parameter(library.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state))
    plain.bias = linear.bias
    return plain.train(linear.training)


def _bitsandbytes() -> Any:
    try:
        with importing_bitsandbytes():
            import bitsandbytes
    except ImportError as error:
        raise UserError(
            "Weights in 4 bits need the bitsandbytes package: pip install bitsandbytes, or use LoRA."
        ) from error
    return bitsandbytes
