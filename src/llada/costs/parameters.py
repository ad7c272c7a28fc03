"""How large a network is, counted on the network itself without its numbers: parameters by part, matrices.

Shape letters: V vocabulary rows, D width.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

from llada.models.config_json import FAMILIES, NetworkConfig
from llada.models.parts import Parts
from llada.models.shapes import adapted_shapes, parameter_shapes

REST = "others"  # what belongs to no part that the network names


class Kept(NamedTuple):
    """How many weights a process keeps."""

    total: int
    in_layers: int
    """Weights of the matrices in the layers, which are among them."""


def count_parameters(config: NetworkConfig) -> dict[str, int]:
    """Parameters by part; their sum equals the built network's to the last one."""
    parts: Parts = FAMILIES[type(config)].network.PARTS
    of_layers = {"attention": parts.attention, "feed-forward": parts.feed_forward}
    first, *others = parts.others.items()
    patterns = dict([first])
    patterns |= {name: f"{parts.layer}({'|'.join(names)})\\.[^.]*$" for name, names in of_layers.items() if names}
    patterns |= dict(others)
    counts = dict.fromkeys(patterns, 0)
    for shape in parameter_shapes(config):
        part = next((part for part, pattern in patterns.items() if re.search(pattern, shape.name)), REST)
        counts[part] = counts.get(part, 0) + shape.times * math.prod(shape.size)
    return counts


def total_parameters(config: NetworkConfig) -> int:
    return sum(shape.times * math.prod(shape.size) for shape in parameter_shapes(config))


def layer_matrices(config: NetworkConfig) -> Counter[tuple[int, int]]:
    """Shapes (out, in) of the matrices in all layers, and how many there are of each."""
    return _matrices(config, in_layers=True)


def _matrices(config: NetworkConfig, in_layers: bool) -> Counter[tuple[int, int]]:
    found: Counter[tuple[int, int]] = Counter()
    for shape in parameter_shapes(config):
        if shape.is_in_layer == in_layers and len(shape.size) == 2:
            found[shape.size[0], shape.size[1]] += shape.times
    return found


def outside_parameters(config: NetworkConfig) -> int:
    """Weights of the matrices outside the layers: embeddings, and the head if it is not tied."""
    return sum(times * math.prod(shape) for shape, times in _matrices(config, in_layers=False).items())


def kept_parameters(config: NetworkConfig, processes: int = 1) -> Kept:
    """Weights that the first of several processes keeps, which share out the rows of every matrix; of vectors, all."""
    in_layers, outside = (
        sum(times * -(-rows // processes) * columns for (rows, columns), times in _matrices(config, where).items())
        for where in (True, False)
    )
    vectors = total_parameters(config) - layer_parameters(config) - outside_parameters(config)
    return Kept(in_layers + outside + vectors, in_layers)


def layer_parameters(config: NetworkConfig) -> int:
    """Weights of the linear layers in all layers, without biases."""
    return sum(times * math.prod(shape) for shape, times in layer_matrices(config).items())


def matrix_parameters(config: NetworkConfig) -> int:
    """Weights of all linear layers: those in the layers and the head, tied or not."""
    return layer_parameters(config) + config.vocab_size * config.d_model


def lora_parameters(config: NetworkConfig, rank: int, attention_only: bool = False) -> int:
    """Weights of the adapters of the linear layers in the layers (LoRA, arXiv 2106.09685): rank (in + out) each.

    Experts and their router have none, as is usual.
    """
    return rank * sum(times * sum(shape) for shape, times in adapted_shapes(config, attention_only).items())
