"""The server under load, and under requests that are drawn from its own description."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from serving import measure
from tests.support.servers import Live, save_toy

REQUESTS = 10_000
SLACK = 1.2


@pytest.mark.parametrize(
    ("clients", "seconds"),
    [
        pytest.param(8, 1.0, id="some", marks=pytest.mark.slow),
        pytest.param(64, 60.0, id="all", marks=pytest.mark.faults),
    ],
)
def test_nobody_gets_an_error_or_the_text_of_another(clients: int, seconds: float, tmp_path: Path) -> None:
    found = measure(str(save_toy(tmp_path / "toy")), clients, seconds)
    assert found["errors"] == []
    assert found["wrong"] == 0
    assert found["texts"] >= clients
    if seconds > 10:
        assert found["memory_mb_after"] <= SLACK * found["memory_mb_before"]


@pytest.mark.parametrize(
    "n_requests", [pytest.param(60, id="some"), pytest.param(REQUESTS, id="all", marks=pytest.mark.faults)]
)
def test_requests_drawn_from_the_description_never_break_it(alive: Live, n_requests: int) -> None:
    """Half of them as the OpenAPI document wants them, half not; no answer is a failure of the server's."""
    schemathesis: Any = pytest.importorskip("schemathesis")
    modes = list(schemathesis.GenerationMode)
    schema = schemathesis.openapi.from_url(f"{alive.url}/docs/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 9
    statuses: Counter[int] = Counter()
    each = -(-n_requests // (len(operations) * len(modes)))
    for operation in operations:
        for mode in modes:

            @settings(
                max_examples=each, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                answer = case.call()
                statuses[answer.status_code] += 1
                assert answer.status_code < 500, answer.text
                assert "Traceback" not in answer.text
                if answer.status_code >= 400:
                    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

            try:
                ask()
            except Exception as error:
                if type(error).__name__ not in ("Unsatisfiable", "InvalidArgument", "SkipTest"):  # no bad one exists
                    raise
    assert sum(statuses.values()) > n_requests / 4
    assert statuses[200]
    assert statuses[400]
