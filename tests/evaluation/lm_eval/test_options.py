from llada.evaluation.lm_eval.options import HarnessOptions
from llada.sampling.config import BENCHMARK, SamplerConfig


def test_sampler_options_are_keys_beside_the_others() -> None:
    options = HarnessOptions.read({"checkpoint": "x", "steps": "8", "cfg_scale": 1.5, "mask_schedule": "cosine"})
    assert options.sampler == SamplerConfig(steps=8, cfg_scale=1.5, mask_schedule="cosine")
    assert HarnessOptions.read({"checkpoint": "x"}).sampler == BENCHMARK
    content = options.to_json()
    assert (content["steps"], content["cfg_scale"], content["mc_num"]) == (8, 1.5, 128)
    assert HarnessOptions.read({**content, "device": "cpu"}).sampler == options.sampler


def test_a_request_overrides_the_temperature_and_fills_in_the_steps() -> None:
    options = HarnessOptions("x")
    assert options.writing_config(7, {}) == SamplerConfig(steps=7)
    asked = {"do_sample": True, "temperature": 0.5}
    assert options.writing_config(7, asked) == SamplerConfig(steps=7, temperature=0.5)
