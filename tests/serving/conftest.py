"""A live server for the tests of the endpoints."""

from collections.abc import Iterator

import pytest
import torch

from tests.support.servers import Live, live, served_toy


@pytest.fixture(scope="session")
def alive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of the `local` toy with the default limits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so small matmuls gain nothing from more
    with live(served_toy(tmp_path_factory.mktemp("served"))) as server:
        yield server
    torch.set_num_threads(before)
