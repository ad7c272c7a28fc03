import pytest

from llada.sampling.config import ANSWER, BENCHMARK, FREE_TEXT, SamplerConfig


def test_defaults_are_lladas_and_one_set_for_each_purpose() -> None:
    assert SamplerConfig() == SamplerConfig(128, None, 0.0, 0.0, "low_confidence", "linear")
    assert SamplerConfig(None, None, 1.0, 0.0, "random", "linear") == FREE_TEXT
    assert SamplerConfig(None, 32, 0.0, 0.0, "low_confidence", "linear") == ANSWER
    assert SamplerConfig(None, None, 0.0, 0.0, "low_confidence", "linear") == BENCHMARK


@pytest.mark.parametrize("remasking", ["entropy", "low-confidence", "", None])
def test_a_remasking_that_does_not_exist_is_refused(remasking: object) -> None:
    with pytest.raises(ValueError, match="remasking must be one of 'low_confidence', 'random', not"):
        SamplerConfig(remasking=remasking)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [{"steps": 0}, {"block_length": 0}, {"temperature": -1.0}, {"cfg_scale": -0.5}, {"mask_schedule": "sine"}],
    ids=str,
)
def test_impossible_options_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SamplerConfig(**values)  # type: ignore[arg-type]
