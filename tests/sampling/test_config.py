import math

import pytest

from llada.sampling.config import ANSWER, BENCHMARK, FREE_TEXT, SamplerConfig


def test_defaults_are_lladas_and_one_set_for_each_purpose() -> None:
    assert SamplerConfig() == SamplerConfig(
        steps=128, block_length=None, temperature=0.0, cfg_scale=0.0, remasking="low_confidence", mask_schedule="linear"
    )
    assert SamplerConfig(steps=None, block_length=None, temperature=1.0, remasking="random") == FREE_TEXT
    assert SamplerConfig(steps=None, block_length=32, temperature=0.0) == ANSWER
    assert SamplerConfig(steps=None, temperature=0.0) == BENCHMARK


@pytest.mark.parametrize("remasking", ["entropy", "low-confidence", "", None])
def test_a_remasking_that_does_not_exist_is_refused(remasking: object) -> None:
    with pytest.raises(ValueError, match="remasking must be one of 'low_confidence', 'random', not"):
        SamplerConfig(remasking=remasking)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"block_length": 0},
        {"temperature": -1.0},
        {"cfg_scale": -0.5},
        {"mask_schedule": "sine"},
        {"temperature": math.nan},
        {"cfg_scale": math.nan},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": math.nan},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.nan},
        {"stable_entropy": 0.0},
        {"stable_entropy": math.nan},
    ],
    ids=str,
)
def test_impossible_options_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SamplerConfig(**values)  # type: ignore[arg-type]


def test_a_policy_that_does_not_exist_is_refused_with_the_choices() -> None:
    with pytest.raises(
        ValueError, match=r"policy must be one of 'left_to_right', 'random', .*, 'runs', not 'entropie'"
    ):
        SamplerConfig(policy="entropie")  # type: ignore[arg-type]
