"""Names and shapes of a network's tensors, without the network: one layer of each kind stands for all of them."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from llada.models.config_json import Network, NetworkConfig, build_network, kinds_of_layers, layer_alone

LAYER = re.compile(r"(.*\b(?:blocks|layers)\.)(\d+)(\..*)")
"""A tensor's name, split into what precedes the number of its layer, the number, and what follows."""


class Shape(NamedTuple):
    """A parameter, and the number of the network's layers that have it."""

    name: str
    """Name of the parameter in a one-layer network."""
    size: torch.Size
    times: int
    is_in_layer: bool


class _WithoutNumbers(TorchFunctionMode):
    """A mode in which nothing is initialised: on the meta device torch would import 800 modules (1 s) to draw no
    numbers."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.__name__ in ("normal_", "uniform_", "trunc_normal_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


@contextmanager
def without_values() -> Iterator[None]:
    """Let networks be built on the meta device, whose tensors have shapes and no values."""
    with torch.device("meta"), _WithoutNumbers():
        yield


def shape_only(config: NetworkConfig) -> Network:
    """Build a network on the meta device."""
    with without_values():
        return build_network(config)


@lru_cache(maxsize=256)
def parameter_shapes(config: NetworkConfig) -> tuple[Shape, ...]:
    """List every parameter of a network: those outside the layers, and those of one layer of each kind."""
    shapes: list[Shape] = []
    for number, (kind, times) in enumerate(kinds_of_layers(config).items()):
        network = shape_only(kind)
        in_layers = set(network.layers.parameters())
        for name, parameter in network.named_parameters():
            if parameter in in_layers:
                shapes.append(Shape(name, parameter.shape, times, True))
            elif number == 0:
                shapes.append(Shape(name, parameter.shape, 1, False))
    return tuple(shapes)


@lru_cache(maxsize=256)
def adapted_shapes(config: NetworkConfig, attention_only: bool = False) -> Counter[tuple[int, int]]:
    """Count the linear layers that adapters are added to, by their (outputs, inputs)."""
    found: Counter[tuple[int, int]] = Counter()
    for kind, times in kinds_of_layers(config).items():
        for _, linear in adaptable(shape_only(kind), attention_only):
            found[linear.out_features, linear.in_features] += times
    return found


def adaptable(network: Network, attention_only: bool = False) -> Iterator[tuple[str, nn.Linear]]:
    """Iterate over the linear layers that adapters are added to, with their names."""
    names = re.compile(f"{network.PARTS.layer}({'|'.join(network.PARTS.adapted(attention_only))})")
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and names.fullmatch(name):
            yield name, module


def expected_shapes(config: NetworkConfig, at_most: int | None = None) -> dict[str, torch.Size] | None:
    """Return the shape of every tensor of a network of this configuration, by name.

    Args:
        at_most: None is returned for a network with more tensors than this.
    """
    shapes: dict[str, torch.Size] = {}
    of_kind: dict[NetworkConfig, list[tuple[str, str, torch.Size]]] = {}
    for depth in range(config.n_layers):
        if at_most is not None and len(shapes) > at_most:
            return None
        kind = layer_alone(config, depth)
        if kind not in of_kind:
            of_kind[kind] = []
            for name, tensor in shape_only(kind).state_dict().items():
                if found := LAYER.fullmatch(name):
                    of_kind[kind].append((found[1], found[3], tensor.shape))
                else:
                    shapes[name] = tensor.shape
        for before, behind, shape in of_kind[kind]:
            shapes[f"{before}{depth}{behind}"] = shape
    return None if at_most is not None and len(shapes) > at_most else shapes
