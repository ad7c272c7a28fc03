"""`llada evaluate` and `llada compare` as a person or a program meets them, on runs made by the commands."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llada import cli
from tests.support.commands import PATIENCE, RunCommand, assert_one_sentence
from tests.support.corpora import some_documents, to_lines

SMALL = ["--n_layers", "1", "--batch_size", "4", "--sequence_length", "24", "--device", "cpu", "--precision", "fp32"]
SHORT = ["--steps", "12", "--evaluate_every", "12", "--evaluation_windows", "4"]
RUNS = {
    "masked": ["--preset", "tiny", "--d_model", "16"],
    "other": ["--preset", "tiny", "--d_model", "16", "--seed", "1"],
    "causal": ["--preset", "autoregressive", "--d_model", "16"],
    "answering": ["--preset", "tiny", "--d_model", "16", "--weight_power", "1", "--chat"],
    "within": ["--preset", "tiny", "--d_model", "16", "--within_documents"],
}


@pytest.fixture(scope="module")
def world(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared text, two masked models of it, an autoregressive one, another text, and a model of many documents."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "text.txt").write_text(text, encoding="utf-8")
    (folder / "foreign.txt").write_text(text.upper(), encoding="utf-8")
    commands = [
        ["prepare", "--input", folder / f"{name}.txt", "--output_dir", folder / name, "--sequence_length", "100"]
        for name in ("text", "foreign")
    ]
    (folder / "documents.jsonl").write_bytes(to_lines(some_documents(60)))
    corpus = ["--input", folder / "documents.jsonl", "--output_dir", folder / "documents", "--val_share", "0.2"]
    commands.append(["prepare", *corpus, "--sequence_length", "24", "--processes", "1"])
    lines = [json.dumps({"prompt": c, "answer": d}) for c in "abcd" for d in "abcd"]
    (folder / "chat.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name, options in RUNS.items():
        data = ["--data_dir", folder / ("documents" if name == "within" else "text")]
        data = [folder / "chat.jsonl"] if name == "answering" else data
        commands.append(["train", *options, *data, *SMALL, *SHORT, "--output_dir", folder / name])
    for arguments in commands:
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        assert not exit_.value.code
    return folder


def content_of(result: Any) -> dict[str, Any]:
    assert result.code == 0, result.err
    content: dict[str, Any] = json.loads(result.out)
    return content


FP32 = ["--precision", "fp32", "--device", "cpu"]


def test_bits_of_a_character_a_byte_and_a_word_are_of_the_scored_text(
    llada: RunCommand, world: Path, text: str
) -> None:
    content = content_of(llada("evaluate", "--checkpoint", world / "masked", "--json", *FP32))
    val = text[int(0.9 * len(text)) :]
    scored = val[: len(val) // 24 * 24]
    bits = content["nelbo_nats_per_token"] / math.log(2)
    assert content["bits_per_character"] == content["bits_per_byte"] == pytest.approx(bits)
    assert content["bits_per_word"] == pytest.approx(bits * len(scored) / len(scored.split()))


def test_target_is_reached_and_told(llada: RunCommand, world: Path) -> None:
    options = ["evaluate", "--checkpoint", world / "masked", "--windows", 8, *FP32]
    content = content_of(llada(*options, "--target_stderr", 0.02, "--json"))
    assert content["mask_stderr"] <= 0.02
    assert content["masks_per_window"] >= 8
    people = llada(*options, "--target_stderr", 0.02)
    assert f"± {content['mask_stderr']:.4f} of this very text" in people.out


def test_table_and_picture_by_t(llada: RunCommand, world: Path, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "curve.png"
    result = llada("evaluate", "--checkpoint", world / "masked", "--by_t", "--curve", picture, *FP32)
    assert result.code == 0
    assert "0.9 - 1.0" in result.out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_target_far_below_any_error_ends_at_the_most_masks(
    llada: RunCommand, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llada.evaluation.nelbo.MOST_MASKS", 64)
    result = llada("evaluate", "--checkpoint", world / "masked", "--windows", "1", "--target_stderr", "1e-200", *FP32)
    assert result.code == 0, result.err
    assert "--target_stderr 1e-200 was not reached with 64 masks" in result.out


def test_a_number_of_processes_without_a_rank_is_no_sharing(
    llada: RunCommand, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As shells of some clusters have it."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("RANK", raising=False)
    assert content_of(llada("evaluate", "--checkpoint", world / "masked", "--windows", "2", "--json", *FP32))


def test_a_causal_model_has_the_same_likelihood_in_one_pass_and_by_the_chain_rule(
    llada: RunCommand, world: Path
) -> None:
    options = ["evaluate", "--checkpoint", world / "causal", "--json", "--prefix", 1, *FP32]
    in_one_pass = content_of(llada(*options))
    assert in_one_pass["is_exact"]
    one_by_one = content_of(llada(*options, "--order", "left_to_right"))
    assert one_by_one["nll_nats_per_token"] == pytest.approx(in_one_pass["nelbo_nats_per_token"], abs=1e-5)
    assert one_by_one["nll_stderr"] == pytest.approx(in_one_pass["nelbo_stderr"], abs=1e-5)
    assert one_by_one["nfe"] == 23
    words = llada("evaluate", "--checkpoint", world / "causal", *FP32).out
    assert words.startswith("NLL ")
    assert "the negative log-likelihood itself" in words


def test_an_order_is_named_and_called_no_bound(llada: RunCommand, world: Path) -> None:
    result = llada(
        "evaluate",
        "--checkpoint",
        world / "masked",
        "--order",
        "margin",
        "--positions_per_step",
        5,
        "--windows",
        3,
        *FP32,
    )
    assert result.code == 0
    assert "where the policy margin says, 5 at a time; not a bound" in result.out
    assert "5.0 evaluations each" in result.out


def test_comparison_has_the_difference_of_both_evaluations(llada: RunCommand, world: Path) -> None:
    first, second = (
        content_of(llada("evaluate", "--checkpoint", world / name, "--json", *FP32)) for name in ("masked", "other")
    )
    result = content_of(llada("compare", world / "masked", world / "other", "--json", *FP32))
    difference = first["nelbo_nats_per_token"] - second["nelbo_nats_per_token"]
    assert result["difference"] == pytest.approx(difference, abs=1e-6)
    assert result["first"]["stderr"] == pytest.approx(first["nelbo_stderr"], rel=1e-4)
    turned = content_of(llada("compare", world / "other", world / "masked", "--json", *FP32))
    assert turned["difference"] == pytest.approx(-result["difference"], abs=1e-6)
    assert turned["p_value"] == pytest.approx(result["p_value"], rel=1e-3)


def test_comparison_in_words(llada: RunCommand, world: Path) -> None:
    same = llada("compare", world / "masked", world / "masked", *FP32).out
    assert "A - B +0.0000 ± 0.0000 nats per character, p = 1: no significant difference" in same
    mixed = llada("compare", world / "causal", world / "masked", *FP32).out
    assert "NLL of" in mixed
    assert "one is a likelihood, the other a bound" in mixed


def test_a_model_is_measured_within_documents_as_it_was_trained_unless_told_otherwise(
    llada: RunCommand, world: Path
) -> None:
    measured = ["evaluate", "--checkpoint", world / "within", *FP32]
    as_trained, within, across = (
        content_of(llada(*measured, *options, "--json"))
        for options in ([], ["--within_documents", "True"], ["--within_documents", "False"])
    )
    bounds = [content["nelbo_nats_per_token"] for content in (as_trained, within, across)]
    assert [content["within_documents"] for content in (as_trained, within, across)] == [True, True, False]
    assert bounds[0] == bounds[1] != bounds[2]
    assert "of the val split, attention within documents" in llada(*measured).out
    assert "within documents" not in llada(*measured, "--within_documents", "False").out
    exact = content_of(llada(*measured, "--policy", "left_to_right", "--windows", 4, "--json"))
    assert exact["within_documents"]
    pair = ["compare", world / "within", world / "within", *FP32]
    assert content_of(llada(*pair, "--json"))["first"]["mean"] == pytest.approx(bounds[0], abs=1e-6)
    assert llada(*pair).out.count("/checkpoints/step-00000012, attention within documents") == 2


def test_samples_are_measured_beside_held_out_text(llada: RunCommand, world: Path, text: str) -> None:
    options = [
        "evaluate", "--checkpoint", world / "masked", "--samples", 3, "--judge", world / "causal", "--ngram", 5, *FP32,
    ]  # fmt: skip
    content = content_of(llada(*options, "--json"))
    assert [len(sample) for sample in content["texts"]] == [24, 24, 24]
    assert set(content["samples"]) == {"judge_nats_per_character", "entropy_nats", "valid_words", "copied"}
    exact = content_of(llada("evaluate", "--checkpoint", world / "causal", "--json", *FP32))
    assert content["held_out"]["judge_nats_per_character"]["mean"] == pytest.approx(
        exact["nelbo_nats_per_token"], abs=1e-4
    )
    assert content["held_out"]["copied"]["mean"] > 0.9  # the text says three sentences again and again
    people = llada(*options).out
    assert "nats a character, under the judge" in people
    assert "share of 5-grams copied" in people
    # They are those of `llada sample`, however many are written together.
    for batch_size in (2, 3):
        texts = content_of(llada(*options, "--json", "--batch_size", batch_size))["texts"]
        sampled = llada("sample", "--checkpoint", world / "masked", "--n_samples", 3, "--json", "--device", "cpu")
        assert texts == content_of(sampled)["samples"]


def test_processes_share_the_windows_and_print_one_result(llada: RunCommand, world: Path) -> None:
    alone = content_of(llada("evaluate", "--checkpoint", world / "masked", "--json", *FP32))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "llada",
        "evaluate", "--checkpoint", str(world / "masked"), "--json", *FP32,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment)
    assert finished.returncode == 0, finished.stderr
    shared = json.loads(finished.stdout)
    for key in ("nelbo_nats_per_token", "nelbo_stderr", "mask_stderr"):
        assert shared[key] == pytest.approx(alone[key], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "--checkpoint", "masked", "--data_dir", "foreign"], ["not the same ones", "trained on"]),
        (["compare", "masked", "masked", "--data_dir", "foreign"], ["not the same ones"]),
        (["evaluate", "--checkpoint", "masked", "--sequence_length", "25"], ["more than the 24"]),
        (["evaluate", "--checkpoint", "masked", "--prefix", "24"], ["--prefix below 24"]),
        (["evaluate", "--checkpoint", "masked", "--target_stderr", "0"], ["--target_stderr", "above 0"]),
        (["evaluate", "--checkpoint", "masked", "--order", "margin", "--by_t"], ["no t"]),
        (["evaluate", "--checkpoint", "masked", "--judge", "causal"], ["add --samples"]),
        (["evaluate", "--checkpoint", "masked", "--samples", "1", "--judge", "other"], ["a bound only"]),
        (["evaluate", "--checkpoint", "masked", "--sample_steps", "4"], ["add --samples"]),
        (["evaluate", "--checkpoint", "masked", "--samples", "1", "--cfg_scale", "1"], ["leave out --cfg_scale"]),
        (["evaluate", "--checkpoint", "masked", "--curve", "x.nonsense"], ["x.nonsense", ".png"]),
        (["evaluate", "--checkpoint", "causal", "--curve", "x.png"], ["no curve over t"]),
        (["evaluate", "--checkpoint", "causal", "--order", "confidence"], ["from left to right"]),
        (["evaluate", "--checkpoint", "masked", "--samples", "1", "--by_t"], ["measures no bound"]),
        (["evaluate", "--checkpoint", "masked", "--samples", "1", "--target_stderr", "1"], ["for a bound"]),
        (["evaluate", "--checkpoint", "masked", "--order", "margin", "--target_stderr", "1"], ["for a bound"]),
        (["evaluate", "--checkpoint", "masked", "--positions_per_step", "2"], ["add --policy"]),
        (["evaluate", "--checkpoint", "masked", "--seed", str(2**64)], ["--seed must be from 0"]),
        (["evaluate", "--checkpoint", "masked", "--chat", "x", "--split", "train"], ["--split is for a text"]),
        (["evaluate", "--checkpoint", "answering", "--prefix", "2"], ["--prefix is for a text", "dialogues"]),
        (["compare", "masked", "masked", "--target_stderr", "0.1"], ["--target_stderr"]),
        (["sample", "--checkpoint", "causal", "--block_length", "4"], ["one position after another"]),
        (["sample", "--checkpoint", "causal", "--template", "<MASK*2>or"], ["before a gap"]),
        (["sample", "--checkpoint", "masked", "--cache", "dual"], ["set --block_length 32"]),
        (["sample", "--checkpoint", "causal", "--cache", "dual"], ["the LLaDA family", "leave out --cache"]),
        (["sample", "--checkpoint", "masked", "--cache_refresh", "0"], ["--cache_refresh must be at least 1"]),
        (["sample", "--checkpoint", "masked", "--speculate", "2"], ["at temperature 0", "leave out --speculate"]),
        (["sample", "--checkpoint", "masked", "--speculate", "-1"], ["--speculate must be from 0"]),
        (["sample", "--checkpoint", "masked", "--speculate", "2", "--n_samples", "2"], ["leave out --n_samples"]),
        (["train", "--network", "causal", "--complementary"], ["leave out --complementary"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_said_in_one_sentence(
    llada: RunCommand, world: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(world)
    assert_one_sentence(llada(*arguments), *words)
    assert not (world / "x.nonsense").exists()


def test_ways_that_change_no_text_write_the_same_one(llada: RunCommand, world: Path) -> None:
    """A cache that is refreshed at every step, and speculation."""
    command = ["sample", "--checkpoint", world / "masked", "--policy", "confidence", "--temperature", "0", "--json"]
    blocks = ["--block_length", "6"]
    plain = content_of(llada(*command, *blocks))
    for cache in ("prefix", "dual"):
        cached = content_of(llada(*command, *blocks, "--cache", cache, "--cache_refresh", "1"))
        assert (cached["samples"], cached["nfe"]) == (plain["samples"], plain["nfe"])
    guessed = content_of(llada(*command, *blocks, "--speculate", "3"))
    assert guessed["samples"] == plain["samples"]
    assert guessed["nfe"] < plain["nfe"]


def test_broken_dialogues_are_left_out_and_counted_where_that_is_asked_for(llada, world: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """What is measured is the same as without them: one is not a dialogue, one has a character that is not known."""
    good = [json.dumps({"prompt": "a", "answer": answer}) for answer in "bcd"]
    bad = [json.dumps({"text": "a"}), json.dumps({"prompt": "a", "answer": "\u4e16"})]
    (tmp_path / "good.jsonl").write_text("\n".join(good), encoding="utf-8")
    (tmp_path / "some.jsonl").write_text("\n".join([bad[0], *good, bad[1]]), encoding="utf-8")
    command = ["evaluate", "--checkpoint", world / "answering", "--json", *FP32, "--chat"]
    expected = content_of(llada(*command, tmp_path / "good.jsonl"))
    refused = llada(*command, tmp_path / "some.jsonl")
    assert_one_sentence(refused, "Line 1 of", "is not a dialogue to learn")
    result = llada(*command, tmp_path / "some.jsonl", "--skip_bad")
    content = content_of(result)
    assert (content["windows"], content["nelbo_nats_per_token"]) == (3, expected["nelbo_nats_per_token"])
    notes = [line for line in result.err.splitlines() if "Line 1" in line or "Line 5" in line]
    assert len(notes) == 2, result.err
    refused = llada("evaluate", "--checkpoint", world / "masked", "--skip_bad", *FP32)
    assert_one_sentence(refused, "--skip_bad is for dialogues")
