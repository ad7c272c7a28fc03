"""The moving average of the weights, by hand."""

import pytest
from torch import nn

from llada.optim.ema import ExponentialAverage


def test_average_follows_its_rule() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    average = ExponentialAverage(network, decay=0.5)
    expected = 0.0
    for n in range(12):
        nn.init.constant_(network.weight, float(n + 1))
        average.update(network)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * (n + 1)
    assert average.n_updates == 12
    assert float(average.weights["weight"]) == pytest.approx(expected, rel=1e-6)
    assert network.weight.item() == 12.0
