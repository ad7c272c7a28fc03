"""A fingerprint of an adapter's base, in whatever precision it is: a hash of all its weights."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from llada.checkpoints.safetensors import PIECE_BYTES
from llada.optim.parts import is_shared_out, whole_of

FINGERPRINT, OLD_FINGERPRINT = "base_sha256", "base_fingerprint"
"""Keys in the metadata of an adapter's file: hash of all values, and the older hash of each tensor's first values."""
OLD_VALUES = 64  # values hashed of each tensor by the older fingerprint
KEPT = "llada_fingerprints"  # attribute of a network whose weights do not change any more
THREADS = 8


def base_fingerprint(network: nn.Module, kind: str = FINGERPRINT) -> str:
    """Hash names, shapes and values of a network's weights, without those of an adapter.

    The values are taken in bf16, so that it does not matter in which precision the base was opened. Of a network that
    is shared out, all processes call it together.
    """
    kept: dict[str, str] = getattr(network, KEPT, {})
    return kept[kind] if kind in kept else KINDS[kind](network)


def keep_fingerprint(network: nn.Module, kind: str) -> str:
    """Compute the fingerprint and keep it: only an adapter is trained from now on, and the weights may be rounded."""
    value = base_fingerprint(network, kind)
    setattr(network, KEPT, {**getattr(network, KEPT, {}), kind: value})
    return value


def forget_fingerprints(network: nn.Module) -> None:
    """Drop the kept fingerprints, so that they are computed anew."""
    if hasattr(network, KEPT):
        delattr(network, KEPT)


def _hash_all(network: nn.Module) -> str:
    tensors = list(_base_tensors(network))
    if any(is_shared_out(tensor) for _, tensor in tensors):  # all processes bring the same one together
        hashes = [_hash(whole_of(tensor)) for _, tensor in tensors]
    else:
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:  # hashing does not hold the interpreter
            hashes = list(pool.map(_hash, (tensor for _, tensor in tensors)))
    lines = [f"{name} {list(tensor.shape)} {hash_}\n" for (name, tensor), hash_ in zip(tensors, hashes, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _hash(tensor: Tensor) -> str:
    digest, values = hashlib.sha256(), tensor.detach().flatten()
    for piece in torch.split(values, PIECE_BYTES):
        digest.update(_in_bf16(piece))
    return digest.hexdigest()


def _hash_first(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in _base_tensors(network):
        digest.update(f"{name} {list(tensor.shape)} ".encode() + _in_bf16(whole_of(tensor).flatten()[:OLD_VALUES]))
    return digest.hexdigest()


def _in_bf16(values: Tensor) -> bytes:
    return values.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()


def _base_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterate over names and tensors in the order of the names, as they are without an adapter."""
    tensors = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in network.state_dict().items()
        if ".lora_" not in name
    }
    yield from sorted(tensors.items())


KINDS: dict[str, Callable[[nn.Module], str]] = {FINGERPRINT: _hash_all, OLD_FINGERPRINT: _hash_first}
"""Kinds of fingerprints, the most exact one first."""
