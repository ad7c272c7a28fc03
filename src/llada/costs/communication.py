"""What many cards say to each other in a step of training, and how long that takes: a model, not a measurement.

Two ways to share a step (torch's names): `ddp` keeps all weights on every card and adds up gradients once a step;
`fsdp` keeps a part of them on each, gathers a layer's weights before its forward and its backward pass, and scatters
the summed gradients (ZeRO-3, arXiv 1910.02054; FSDP, arXiv 2304.11277); `hsdp` does the latter within a node and adds
up gradients between nodes.

Assumptions, all of them arguments or named here:

- Collectives run in rings, the bandwidth-optimal way (arXiv 1909.09756, section 2): gathering or scattering S bytes
  over N cards moves S (N - 1) / N bytes past every card and out of every node; adding up moves twice as much.
- A ring is as fast as its slowest link. A node's network cards work together.
- The latency of a collective grows with log2(N), as with trees: `latency` for each doubling.
- Communication overlaps with computing but for one layer's first gathering and last scattering.
- Nothing else slows a step down: no congestion, no card slower than the others, no waiting for data.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

Way = Literal["ddp", "fsdp", "hsdp"]


@dataclass(frozen=True)
class Cluster:
    """Cards and the links between them."""

    cards_per_node: int
    within: float
    """Bytes per second that a card sends to another of its node."""
    between: float
    """Bytes per second that a node sends to another, all of its network cards together."""
    latency: float = 1e-5
    """Seconds that a collective takes for each doubling of the cards, however little it moves."""


@dataclass(frozen=True)
class Shared:
    """What is shared in a step."""

    parameters: int
    """Trained weights."""
    layers: int
    """Parts that are gathered one after the other."""
    micro_batches: int = 1
    """Forward and backward passes of a card for one step."""
    weight_bytes: int = 2
    """Bytes of a weight as it is gathered, in bf16."""
    gradient_bytes: int = 4
    """Bytes of a gradient as it is added up, in fp32, so that the sum does not depend on the number of cards."""


class Traffic(NamedTuple):
    """What the collectives of a step move."""

    within: float
    """Bytes that a card sends to a card of its node."""
    between: float
    """Bytes that a node sends to another one."""
    seconds: float
    """Seconds that they take, if nothing else happens."""
    exposed: float
    """Seconds that nothing can hide: the first gathering and the last scattering of a layer."""


def step_traffic(way: Way, shared: Shared, n_cards: int, cluster: Cluster) -> Traffic:
    """The communication of one step on so many cards.

    Gradients are scattered once a step; with `fsdp` and `hsdp`, weights are gathered twice in each micro-batch.

    Raises:
        ValueError: the cards are neither one node, or a part of it, nor whole nodes.
    """
    per_node = cluster.cards_per_node
    if n_cards < 1 or (n_cards > per_node and n_cards % per_node):
        raise ValueError(f"{n_cards} cards are not whole nodes of {per_node}")
    weights, gradients = shared.parameters * shared.weight_bytes, shared.parameters * shared.gradient_bytes
    everywhere = _Ring(n_cards, n_cards > per_node)
    if way == "ddp":
        return _total([(everywhere, 2.0 * gradients, 2)], cluster, exposed=1 / shared.layers)
    gathered = 2.0 * shared.micro_batches * weights
    times = shared.layers * (2 * shared.micro_batches + 1)
    ring = everywhere if way == "fsdp" else _Ring(min(n_cards, per_node), False)
    parts = [(ring, gathered + gradients, times)]
    if way == "hsdp" and n_cards > per_node:
        # Each card adds up its part with its like in the other nodes: a node sends as much as all of them.
        parts.append((_Ring(n_cards // per_node, True), 2.0 * gradients, 2 * shared.layers))
    share = (weights + gradients) / shared.layers / (gathered + gradients)
    return _total(parts, cluster, exposed=share)


@dataclass(frozen=True)
class _Ring:
    members: int
    crosses_nodes: bool


def _total(parts: list[tuple[_Ring, float, int]], cluster: Cluster, exposed: float) -> Traffic:
    """Add up collectives: their ring, the bytes that they gather, scatter or add up, and how many they are."""
    within = between = seconds = 0.0
    for ring, size, times in parts:
        moved = size * (ring.members - 1) / ring.members
        links = [moved / cluster.within] if not ring.crosses_nodes or ring.members > cluster.cards_per_node else []
        within += moved if links else 0.0
        if ring.crosses_nodes:
            between += moved
            links.append(moved / cluster.between)
        seconds += max(links) + times * cluster.latency * math.log2(ring.members)
    return Traffic(within, between, seconds, exposed * seconds)


def step_seconds(computing: float, traffic: Traffic) -> float:
    """Length of a step whose computing takes so many seconds on each card, with all that can overlap overlapping."""
    return max(computing, traffic.seconds - traffic.exposed) + traffic.exposed
