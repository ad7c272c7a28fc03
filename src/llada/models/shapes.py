"""Names and shapes of a network's tensors, without the network: its layers are alike, so two of them tell of all."""

import re
from dataclasses import replace

import torch

from llada.models.config_json import NetworkConfig, build_network
from llada.models.local import LocalConfig

LAYER = re.compile(r"(.*\b(?:blocks|layers)\.)(\d+)(\..*)")
"""Of a tensor's name: what is before the number of its layer, the number, and what is behind it."""


def expected_shapes(config: NetworkConfig, at_most: int | None = None) -> dict[str, torch.Size] | None:
    """The shape of every tensor that a network of this configuration has, by name.

    Args:
        at_most: None is returned for a network of more tensors than that.
    """
    few = replace(config, n_layers=1)
    if isinstance(config, LocalConfig):  # a layer that does not attend, and one that does
        few = replace(config, n_layers=2, attention_every=2)
    with torch.device("meta"):
        tensors = build_network(few).state_dict()
    shapes: dict[str, torch.Size] = {}
    of_layer: list[list[tuple[str, str, torch.Size]]] = [[] for _ in range(few.n_layers)]
    for name, tensor in tensors.items():
        if found := LAYER.fullmatch(name):
            of_layer[int(found[2])].append((found[1], found[3], tensor.shape))
        else:
            shapes[name] = tensor.shape
    for depth in range(config.n_layers):
        if at_most is not None and len(shapes) > at_most:
            return None
        attends = isinstance(config, LocalConfig) and config.attends(depth)
        for before, behind, shape in of_layer[1 if attends else 0]:
            shapes[f"{before}{depth}{behind}"] = shape
    return None if at_most is not None and len(shapes) > at_most else shapes
