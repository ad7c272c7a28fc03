"""The learning rate over a run, by hand."""

import math

import pytest

from llada.optim.schedule import learning_rate_factor
from llada.training.presets import PRESETS


def factor(schedule: str, progress: float, **kwargs: float) -> float:
    options = {"step": 1000, "warmup_steps": 10, "decay": 0.2, "final": 0.1} | kwargs
    return learning_rate_factor(schedule, progress, **options)  # type: ignore[arg-type]


def test_warm_up_is_linear_and_never_zero() -> None:
    assert [factor("wsd", 0.0, step=s) for s in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert factor("wsd", 0.0, step=0, warmup_steps=0) == 1.0


def test_wsd_is_stable_and_then_falls_linearly() -> None:
    assert [factor("wsd", p) for p in (0.0, 0.5, 0.8)] == pytest.approx([1.0, 1.0, 1.0])
    assert factor("wsd", 0.9) == pytest.approx(0.1 + 0.9 * 0.5)
    assert factor("wsd", 1.0) == pytest.approx(0.1)
    assert factor("wsd", 0.25, decay=1.0, final=0.0) == pytest.approx(0.75)


def test_cosine_is_half_a_cosine() -> None:
    assert factor("cosine", 0.0) == pytest.approx(1.0)
    assert factor("cosine", 0.5) == pytest.approx(0.55)
    assert factor("cosine", 1 / 3, final=0.0) == pytest.approx((1 + math.cos(math.pi / 3)) / 2)
    assert factor("cosine", 1.0) == pytest.approx(0.1)


def test_cosine_after_warm_up_is_nanogpts() -> None:
    """Its rule, written out: linear to the peak over the warm-up, then half a cosine over the steps that are left."""
    warmup, total, final = 100, 2000, 0.1
    for step in (0, 50, 99, 100, 101, 500, 1050, 1999):
        if step < warmup:
            expected = (step + 1) / warmup
        else:
            ratio = (step - warmup) / (total - warmup)
            expected = final + 0.5 * (1 + math.cos(math.pi * ratio)) * (1 - final)
        value = factor("cosine_after_warmup", step / total, step=step, warmup_steps=warmup)
        assert value == pytest.approx(expected), step
    assert factor("cosine_after_warmup", 1.0, step=total, warmup_steps=warmup) == pytest.approx(final)
    assert factor("cosine_after_warmup", 0.5, step=3, warmup_steps=0) == pytest.approx(factor("cosine", 0.5))


def test_only_the_recipe_of_nanogpt_waits_for_the_warm_up() -> None:
    waiting = {name for name, config in PRESETS.items() if config.optimizer.schedule == "cosine_after_warmup"}
    assert waiting == {"autoregressive"}
