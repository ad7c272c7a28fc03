"""Sweeps over policies: on a predictor that is a table, and on points that are worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from llada.data.batches import TokenBatch
from llada.evaluation.exact_likelihood import ScoredWindows, measure_exact_nll, score_windows
from llada.evaluation.frontier import Frontier, Point, Setting, settings_of, sweep
from llada.evaluation.sample_frontier import Written, distinct_share, sweep_temperatures
from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import at_positions
from llada.sampling.policies import PolicyOptions, make_policy
from tests.support.toys import MASK, N_TOKENS, table_predictor

TABLE_AT = at_positions(table_predictor(length=4, seed=3))
WINDOWS = TokenBatch(torch.randint(N_TOKENS, (6, 4), generator=torch.Generator().manual_seed(0)))
SETTINGS = settings_of(("random", "entropy", "entropy_bound", "threshold", "runs"), (1, 2), (0.6,), (0.8,))


def score(setting: Setting) -> ScoredWindows:
    policy = make_policy(setting.policy, setting.options)
    return score_windows(TABLE_AT, WINDOWS, MASK, policy=policy, positions_per_step=setting.positions_per_step)


def test_numbers_are_those_of_the_exact_likelihood() -> None:
    frontier = sweep(score, SETTINGS, tokens_per_window=4)
    assert [point.setting for point in frontier.points] == SETTINGS
    for point in frontier.points:
        setting = point.setting
        exact = measure_exact_nll(
            TABLE_AT, WINDOWS, MASK, policy=setting.policy, options=setting.options,
            positions_per_step=setting.positions_per_step,
        )  # fmt: skip
        assert (point.nats, point.stderr) == (exact.nll_nats_per_token, exact.nll_stderr)
        assert point.evaluations == exact.nfe_per_window * 64
        if setting.has_budget:
            assert point.evaluations == 256 / setting.positions_per_step


def scored(*nll: float, nfe: float = 4) -> ScoredWindows:
    return ScoredWindows(torch.tensor(nll).double(), torch.full((len(nll),), nfe).double(), seconds=2.0)


def test_differences_are_of_the_same_windows() -> None:
    """The texts differ by nats, their differences by hundredths."""
    first, second = Setting("random"), Setting("entropy")
    values = {first: scored(1.0, 2.0, 3.0), second: scored(0.9, 1.9, 2.6)}
    random, entropy = sweep(values.__getitem__, [first, second], tokens_per_window=128).points
    assert (entropy.difference, entropy.difference_stderr) == (0, 0)  # the better one is the reference
    assert random.difference == pytest.approx(0.2)
    assert random.difference_stderr == pytest.approx(math.sqrt(0.03 / 3))  # of 0.1 0.1 0.4
    assert random.stderr == pytest.approx(math.sqrt(1 / 3))
    assert random.evaluations == 4 * 2
    assert random.seconds == pytest.approx(2 / 3 * 2)


def test_one_window_has_no_errors() -> None:
    (point,) = sweep(lambda setting: scored(1.0), [Setting("random")], 4).points
    assert (point.stderr, point.difference, point.difference_stderr) == (None, 0, None)


def test_a_sweep_that_is_late_leaves_out_the_rest_but_not_the_first() -> None:
    frontier = sweep(score, SETTINGS, 4, is_late=lambda: True)
    assert len(frontier.points) == 1
    assert frontier.left_out == tuple(SETTINGS[1:])
    with pytest.raises(ValueError, match="one position at a time"):
        sweep(score, [Setting("runs")], 4)


def test_settings_begin_with_all_orders_one_at_a_time() -> None:
    assert [setting.name for setting in SETTINGS] == [
        "random, 1 a step", "entropy, 1 a step", "entropy_bound 0.8", "entropy_bound 0.8, left_to_right",
        "threshold 0.6", "runs 0.9 0.5", "random, 2 a step", "entropy, 2 a step",
    ]  # fmt: skip
    assert [setting.name for setting in settings_of(("factor",), (2,), (), ())] == [
        "left_to_right, 1 a step",
        "factor 1",
    ]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_setting_as_options_of_the_sampler_is_the_same_policy(setting: Setting) -> None:
    config = SamplerConfig(**{"steps": None, **setting.sampler(length=101)})
    assert config.policy == setting.policy
    assert {name: getattr(config, name) for name in vars(setting.options)} == vars(setting.options)
    assert config.steps == (None if setting.positions_per_step == 1 else 51)


# -- the recommendation -----------------------------------------------------------------------------------------------


def point(name: str, difference: float, evaluations: float, stderr: float | None = 0.0) -> Point:
    bound = PolicyOptions(entropy_bound=float(name))
    return Point(
        Setting("entropy_bound", options=bound), 1.7 + difference, 0.02, difference, stderr, evaluations, evaluations
    )


REFERENCE = replace(point("0", 0.0, 256), setting=Setting("left_to_right"))


def frontier(*points: Point) -> Frontier:
    return Frontier((REFERENCE, *points), REFERENCE)


def test_the_fewest_evaluations_within_the_tolerance_are_recommended() -> None:
    found = frontier(point("1", 0.004, 128), point("2", 0.009, 95), point("3", 0.011, 60))
    assert found.recommend(0.01) == found.points[2]
    assert found.in_one_sentence(0.01) == (
        "Within 0.01 nats of one at a time (left_to_right, 1 a step): entropy_bound 2, 2.7 times fewer evaluations."
    )
    assert found.recommend(0.02) == found.points[3]


def test_the_standard_error_of_the_difference_counts() -> None:
    """What may well be beyond the tolerance is not recommended, but named."""
    found = frontier(point("1", 0.004, 128, 0.001), point("2", 0.009, 95, 0.002))
    assert found.recommend(0.01) == found.points[1]
    assert found.undecided(0.01) == found.points[2]
    assert found.undecided(0.011) is None


def test_of_as_many_evaluations_the_likelier_is_recommended() -> None:
    found = frontier(point("1", 0.006, 64), point("2", 0.002, 64), point("3", 0.004, 64))
    assert found.recommend(0.01) == found.points[2]


def test_a_policy_that_is_better_than_the_reference_is_within_any_tolerance() -> None:
    found = frontier(point("1", -0.01, 200))
    assert found.recommend(0.0) == found.points[1]


def test_where_nothing_is_cheaper_the_reference_stays() -> None:
    for found in (frontier(), frontier(point("1", 0.2, 64)), frontier(point("1", 0.0, 300))):
        assert found.recommend(0.01) is REFERENCE
        assert found.in_one_sentence(0.01) == (
            "Nothing cheaper is within 0.01 nats of one at a time: left_to_right, 1 a step, 256 evaluations."
        )


def test_the_frontier_itself_is_what_nothing_beats() -> None:
    found = frontier(point("1", 0.1, 128), point("2", 0.2, 128), point("3", 0.1, 64), point("4", 0.3, 32))
    assert found.is_best == [True, False, False, True, True]


# -- samples ----------------------------------------------------------------------------------------------------------


def test_repetition_lowers_the_share_of_different_ngrams() -> None:
    assert distinct_share("abcdefg") == 1
    assert distinct_share("ababababab") == 2 / 5
    assert distinct_share("abc") is None


def test_samples_of_each_way_at_each_temperature() -> None:
    seen = []

    def write(config: SamplerConfig) -> Written:
        seen.append(config)
        return Written(["abababab", "aaaaaaaa"], 32.0, 0.5)

    ways = {"one": SamplerConfig(steps=4), "other": SamplerConfig(policy="runs")}
    late = iter([False, False, False, True])
    points = sweep_temperatures(write, ways, (0.5, 1.0), lambda text: 2.0 * len(text), lambda: next(late))
    assert [(config.policy, config.temperature) for config in seen] == [(None, 0.5), ("runs", 0.5), (None, 1.0)]
    assert [(one.name, one.temperature) for one in points] == [("one", 0.5), ("other", 0.5), ("one", 1.0)]
    content = points[0].to_json()
    assert content["judge_nats_per_character"] == {"mean": 2.0, "stderr": 0.0}
    assert content["entropy_nats"]["mean"] == pytest.approx(math.log(2) / 2)
    assert content["distinct"]["mean"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert (content["evaluations_per_256"], content["seconds_per_256"]) == (32.0, 0.5)
