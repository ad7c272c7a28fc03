import math

import pytest

from llada.evaluation.mixed_nelbo import mixed_nelbo
from llada.evaluation.nelbo import Nelbo


def bound(nats: float, stderr: float | None, windows: int) -> Nelbo:
    return Nelbo(nats, stderr, 0.0, nats / math.log(2), windows, 2, 8, 8 * windows, 1.0)


def test_the_bound_on_a_mixture_by_hand() -> None:
    result = mixed_nelbo({"a": bound(1.0, 0.04, 5), "b": bound(2.0, 0.09, 6)}, (0.75, 0.25))
    assert result.nelbo_nats_per_token == 1.25
    assert result.nelbo_stderr == pytest.approx(math.sqrt(0.03**2 + 0.0225**2))
    assert result.bits_per_token == pytest.approx(1.25 / math.log(2))
    assert (result.windows, result.tokens_scored, result.seconds) == (11, 88, 2.0)
    assert result.metrics == {"nelbo": 1.25, "nelbo_stderr": result.nelbo_stderr, "nelbo/a": 1.0, "nelbo/b": 2.0}
    assert result.with_error(2) == "1.25 ± 0.04 (a 1.00, b 2.00)"


def test_an_error_that_one_text_does_not_show_is_unknown() -> None:
    result = mixed_nelbo({"a": bound(1.0, 0.04, 5), "b": bound(2.0, None, 1)}, (0.5, 0.5))
    assert result.nelbo_stderr is None
    assert result.mask_stderr == 0.0
