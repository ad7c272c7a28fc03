"""`llada frontier`, and the default that it writes, which `llada sample` and `Model` follow."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import llada as package
from llada.checkpoints.sampling_default import SAMPLING_FILE
from llada.data.prepared import PreparedText
from llada.training.config import TrainConfig
from tests.support.commands import assert_one_sentence
from tests.support.runs import train

FEW = ["--windows", 2, "--policies", "random", "entropy", "entropy_bound", "--budgets", 1, 4, "--entropy_bounds", 0.5]
SAMPLES = ["--samples", 2, "--temperatures", 0.8]
CPU = ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def trained(data: PreparedText, small_run: TrainConfig) -> Path:
    train(small_run, data)
    return small_run.output_dir


def sample(llada: Any, folder: Path, *arguments: object) -> tuple[dict[str, Any], str]:
    result = llada("sample", "--checkpoint", folder, "--device", "cpu", "--json", "--gen_length", 24, *arguments)
    assert result.code == 0, result.err
    content = json.loads(result.out)
    del content["seconds"]
    return content, result.err


def test_table_pictures_and_numbers(llada, trained: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "new" / "frontier"
    result = llada("frontier", "--checkpoint", trained, *FEW, *SAMPLES, *CPU, "--output_dir", folder)
    assert result.code == 0, result.err
    content = json.loads((folder / "frontier.json").read_text(encoding="utf-8"))
    assert result.out.endswith(f"\n{content['recommended']['sentence']}\n")
    for picture in ("frontier.png", "samples.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    names = [
        "random, 1 a step", "entropy, 1 a step", "entropy_bound 0.5", "entropy_bound 0.5, left_to_right",
        "random, 4 a step", "entropy, 4 a step",
    ]  # fmt: skip
    assert [point["name"] for point in content["points"]] == names
    assert content.keys() == {
        "checkpoint", "text", "windows", "tolerance", "reference", "points", "left_out", "samples", "recommended",
    }  # fmt: skip
    assert content["points"][0].keys() == {
        "name", "policy", "positions_per_step", "nll_nats_per_token", "nll_stderr", "difference", "difference_stderr",
        "evaluations_per_256", "seconds_per_256", "sampler",
    }  # fmt: skip
    assert content["points"][4]["sampler"] == {"policy": "random", "steps": 6}
    assert (content["windows"], content["left_out"]) == (2, [])
    assert {"random, 1 a step", "low_confidence, 24 steps"} <= {point["name"] for point in content["samples"]}
    assert not (trained / SAMPLING_FILE).exists()
    command = ["evaluate", "--checkpoint", trained, "--windows", 2, "--json", *CPU]
    for order, steps, place in (("entropy", 4, 5), ("random", 1, 0)):
        exact = json.loads(llada(*command, "--policy", order, "--positions_per_step", steps).out)
        assert content["points"][place]["nll_nats_per_token"] == pytest.approx(exact["nll_nats_per_token"], abs=1e-6)


def test_minutes_stop_between_settings(llada, trained: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = llada(
        "frontier", "--checkpoint", trained, *FEW, *CPU, "--minutes", 1e-9, "--output_dir", tmp_path / "out", "--json"
    )
    assert result.code == 0, result.err
    assert "1 of 6 settings and 0 points of samples were measured" in result.err
    content = json.loads(result.out)
    assert len(content["points"]) == 1
    assert len(content["left_out"]) == 5


def test_the_recommendation_becomes_the_default(llada, trained: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """With a tolerance that lets the cheapest in: then samples have its evaluations, unless more is said."""
    plain, quiet = sample(llada, trained)
    assert plain["nfe"] == 24
    assert SAMPLING_FILE not in quiet
    line = ["frontier", "--checkpoint", trained, *FEW, *CPU, "--samples", None, "--output_dir", tmp_path / "out"]
    result = llada(*line, "--policies", "random", "--tolerance", 9, "--write_default")
    assert result.code == 0, result.err
    stored = json.loads((trained / SAMPLING_FILE).read_text(encoding="utf-8"))
    assert stored["sampler"] == {"policy": "random", "steps": 6}

    obeyed, said = sample(llada, trained)
    assert obeyed["nfe"] == 6
    assert said.count(SAMPLING_FILE) == 1
    assert sample(llada, trained, "--steps", 12)[0]["nfe"] == 12
    for given in (["--policy", "random"], ["--remasking", "random"]):
        overridden, quiet = sample(llada, trained, *given)
        assert overridden == plain
        assert SAMPLING_FILE not in quiet
    model = package.load(trained, device="cpu")
    assert model.generate(length=24) == obeyed["samples"][0]
    assert model.generate(length=24, policy="random") == plain["samples"][0]
    for given, written in (([], obeyed), (["--policy", "random"], plain)):  # samples that are measured have it, too
        line = ["evaluate", "--checkpoint", trained, "--samples", 1, "--sample_length", 24, "--ngram", 5, "--json"]
        measured = llada(*line, *given, *CPU)
        assert json.loads(measured.out)["texts"] == written["samples"]
        assert (SAMPLING_FILE in measured.err) == (not given)

    assert llada("export", "--checkpoint", trained, "--output_dir", tmp_path / "exported").code == 0
    assert sample(llada, tmp_path / "exported")[0] == obeyed


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not valid JSON"),
        ("[]", "no JSON object"),
        ('{"policy": "random"}', "sampler"),
        ('{"sampler": {"policy": "best"}}', "policy"),
        ('{"sampler": {"speed": 3}}', "speed"),
        ('{"sampler": {"steps": "many"}}', "steps"),
        ('{"sampler": {"steps": true}}', "steps"),
        ('{"sampler": {"steps": 0}}', "steps"),
        ('{"sampler": {"temperature": NaN}}', "temperature"),
        ('{"sampler": {"entropy_bound": 1' + "0" * 400 + "}}", "entropy_bound"),
        ('{"sampler": {"mask_schedule": 5}}', "mask_schedule"),
        ('{"sampler": {"order": ["random"]}}', "order"),
    ],
)
def test_a_broken_default_is_refused(llada, trained: Path, content: str, named: str) -> None:  # type: ignore[no-untyped-def]
    (trained / SAMPLING_FILE).write_text(content, encoding="utf-8")
    assert_one_sentence(llada("sample", "--checkpoint", trained, "--device", "cpu"), SAMPLING_FILE, named)
    with pytest.raises(package.UserError, match=SAMPLING_FILE):
        package.load(trained, device="cpu").generate()
    shutil.rmtree(trained)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--budgets", 0], "--budgets"),
        (["--thresholds", 2], "threshold"),
        (["--temperatures", -1], "temperature"),
        (["--minutes", 0], "--minutes"),
        (["--tolerance", -1], "--tolerance"),
        (["--samples", None, "--judge", "x"], "--judge"),
        (["--target_stderr", 0.1], "--target_stderr"),
        (["--write_default"], "--write_default"),
    ],
)
def test_bad_options_are_refused(llada, arguments: list[object], named: str) -> None:  # type: ignore[no-untyped-def]
    assert_one_sentence(llada("frontier", "--checkpoint", "not/there", *arguments), named)
