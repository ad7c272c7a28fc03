"""Bytes and seconds of communication, worked out by hand."""

import math

import pytest

from llada.costs.communication import Cluster, Shared, Way, step_seconds, step_traffic

CLUSTER = Cluster(cards_per_node=4, within=100.0, between=10.0, latency=0.5)
SHARED = Shared(parameters=1000, layers=5, micro_batches=3, weight_bytes=2, gradient_bytes=4)


@pytest.mark.parametrize("way", ["ddp", "fsdp", "hsdp"])
def test_a_card_alone_says_nothing(way: Way) -> None:
    assert step_traffic(way, SHARED, 1, CLUSTER) == (0, 0, 0, 0)


def test_ddp_adds_up_the_gradients_once() -> None:
    traffic = step_traffic("ddp", SHARED, 4, CLUSTER)
    assert traffic.within == 2 * 4000 * 3 / 4
    assert traffic.between == 0
    assert traffic.seconds == 6000 / 100 + 2 * 0.5 * 2
    assert traffic.exposed == traffic.seconds / 5


def test_fsdp_gathers_weights_twice_in_each_micro_batch_and_scatters_gradients_once() -> None:
    traffic = step_traffic("fsdp", SHARED, 4, CLUSTER)
    moved = (2 * 3 * 2000 + 4000) * 3 / 4
    assert traffic.within == moved
    assert traffic.seconds == moved / 100 + 5 * 7 * 0.5 * 2
    assert traffic.exposed == pytest.approx(traffic.seconds * (2000 + 4000) / 5 / 16000)


def test_a_ring_over_nodes_is_as_fast_as_its_slowest_link() -> None:
    traffic = step_traffic("fsdp", SHARED, 8, CLUSTER)
    moved = 16000 * 7 / 8
    assert (traffic.within, traffic.between) == (moved, moved)
    assert traffic.seconds == moved / 10 + 35 * 0.5 * 3


def test_hsdp_sends_gradients_alone_between_nodes() -> None:
    traffic = step_traffic("hsdp", SHARED, 8, CLUSTER)
    assert traffic.within == 16000 * 3 / 4
    assert traffic.between == 2 * 4000 / 2
    assert traffic.seconds == 12000 / 100 + 35 * 0.5 * 2 + 4000 / 10 + 10 * 0.5 * 1
    alone = [step_traffic(way, SHARED, 4, CLUSTER) for way in ("fsdp", "hsdp")]
    assert alone[0] == alone[1]


def test_what_overlaps_costs_nothing_until_it_is_longer_than_the_computing() -> None:
    traffic = step_traffic("ddp", SHARED, 4, CLUSTER)
    assert step_seconds(1e6, traffic) == 1e6 + traffic.exposed
    assert step_seconds(0, traffic) == traffic.seconds


@pytest.mark.parametrize("cards", [0, 5, 6])
def test_cards_that_are_not_whole_nodes(cards: int) -> None:
    with pytest.raises(ValueError, match=f"{cards} cards are not whole nodes of 4"):
        step_traffic("ddp", SHARED, cards, CLUSTER)
    assert math.isfinite(step_traffic("ddp", SHARED, 3, CLUSTER).seconds)
