"""The door for Python: the same texts and numbers as the commands', strings in and strings out."""

import dataclasses
import itertools
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import llada as package
from llada.data.prepared import PreparedText
from llada.model import Model, SamplerFields, Step, load
from llada.sampling.config import SamplerConfig
from llada.system.errors import UserError
from llada.tokenizers.message import Message
from llada.training.config import TrainConfig
from tests.support.checkpoints import X_T, adapter_of, save_new, save_small
from tests.support.configurations import TINY_ENCODER, TINY_LLADA, TOKENIZER
from tests.support.runs import train

MASK_ID = TOKENIZER.mask_id


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_small(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder, device="cpu")


def causal(folder: Path) -> Model:
    save_new(folder, dataclasses.replace(TINY_ENCODER, is_causal=True, dropout=0.0))
    return load(folder, device="cpu")


def samples_of(llada: Any, folder: Path, *arguments: object) -> list[str]:
    result = llada("sample", "--checkpoint", folder, "--device", "cpu", "--json", *arguments)
    assert result.code == 0, result.err
    samples: list[str] = json.loads(result.out)["samples"]
    return samples


# -- opening ----------------------------------------------------------------------------------------------------------


def test_it_opens_runs_checkpoints_and_adapters(
    data: PreparedText, small_run: TrainConfig, folder: Path, tmp_path: Path
) -> None:
    train(small_run, data)
    run = package.load(small_run.output_dir, device="cpu")
    assert run.checkpoint.folder == (small_run.output_dir / "checkpoints" / "best").resolve()
    assert run.generate("to be", length=4).startswith("to be")
    model = load(str(folder), device=torch.device("cpu"), dtype=torch.bfloat16)
    assert (model.config.d_model, model.tokenizer, model.max_length) == (TINY_LLADA.d_model, TOKENIZER, 16)
    assert next(model.network.parameters()).dtype == torch.bfloat16
    with pytest.raises(UserError, match="is not an adapter"):
        load(folder, base=folder)

    pytest.importorskip("peft")
    adapter = load(adapter_of(folder, tmp_path / "adapter"), device="cpu")
    assert not torch.equal(adapter.logits(X_T), load(folder, device="cpu").logits(X_T))


# -- writing ----------------------------------------------------------------------------------------------------------


def test_texts_of_a_seed_are_those_of_the_command(llada: Any, folder: Path, model: Model) -> None:
    flags = ["--prompt", "abc", "--gen_length", 6, "--seed", 5]
    assert [model.generate("abc", length=6, seed=5)] == samples_of(llada, folder, *flags)
    assert model.generate(["abc", "abc"], length=6, seed=5) == samples_of(llada, folder, *flags, "--n_samples", 2)
    further = ["--steps", 3, "--block_length", 2, "--cfg_scale", 0.5, "--temperature", 0.7]
    fields: SamplerFields = {"steps": 3, "block_length": 2, "cfg_scale": 0.5, "temperature": 0.7}
    assert [model.generate("abc", length=6, seed=5, **fields)] == samples_of(llada, folder, *flags, *further)
    assert [model.generate()] == samples_of(llada, folder)
    assert len(model.generate()) == 16
    template = "ab<MASK*3>e<MASK>"
    assert [model.infill(template, seed=2)] == samples_of(llada, folder, "--template", template, "--seed", 2)


def test_answers_are_those_of_the_command(llada: Any, folder: Path, model: Model) -> None:
    as_flags: list[object] = ["--temperature", 1, "--seed", 3]
    as_fields: dict[str, Any] = {"temperature": 1.0, "seed": 3}
    for further, fields in (([], {}), (as_flags, as_fields)):
        result = llada("chat", "--checkpoint", folder, "--device", "cpu", "--prompt", "ab", "--gen_length", 6, *further)
        assert result.code == 0, result.err
        assert model.chat("ab", length=6, **fields) == result.out.rstrip("\n")
    turns: list[Message | Mapping[str, str]] = [
        {"role": "user", "content": "a"},
        Message("assistant", "b"),
        {"role": "user", "content": "c"},
    ]
    steps: list[Step] = []
    answer = model.chat(turns, length=4, on_step=steps.append)
    assert steps[-1].text.strip() == answer
    assert len(steps) == steps[-1].nfe


def test_several_texts_are_written_as_they_would_be_alone(model: Model) -> None:
    """At temperature 0, where nothing is drawn; of different lengths, in their order."""
    prompts = ["a", "bcd", "f", ""]
    together = model.generate(prompts, length=5, temperature=0.0, remasking="low_confidence")
    alone = [model.generate(one, length=5, temperature=0.0, remasking="low_confidence") for one in prompts]
    assert together == alone
    assert model.infill(("<MASK>a", "b<MASK>"), temperature=0.0) == [
        model.infill(one, temperature=0.0) for one in ("<MASK>a", "b<MASK>")
    ]
    assert model.generate([], length=5) == []


def test_several_texts_have_the_seeds_that_follow(llada: Any, folder: Path, model: Model) -> None:
    prompts = ["a", "bcd", "", "abcdef"]
    together = model.generate(prompts, length=7, seed=5)
    assert together == [model.generate(one, length=7, seed=5 + i) for i, one in enumerate(prompts)]
    flags = ["--prompt", "abc", "--gen_length", 6]
    assert samples_of(llada, folder, *flags, "--seed", 5, "--n_samples", 2) == [
        *samples_of(llada, folder, *flags, "--seed", 5), *samples_of(llada, folder, *flags, "--seed", 6)
    ]  # fmt: skip
    greatest = 2**63 - 1
    assert model.generate(["a", "a"], length=7, seed=greatest)[1] == model.generate("a", length=7, seed=0)


def test_steps_show_the_text_on_its_way(model: Model) -> None:
    steps: list[Step] = []
    text = model.infill("ab<MASK*4>f", steps=2, on_step=steps.append)
    assert [(step.n_open, step.nfe) for step in steps] == [(2, 1), (0, 2)]
    assert [step.text.count("_") for step in steps] == [2, 0]
    assert all(step.text.startswith("ab") and step.text.endswith("f") for step in steps)
    assert steps[-1].text == text

    several: list[Step] = []  # together, though the gaps are elsewhere
    texts = model.infill(["<MASK>a", "b<MASK*2>"], on_step=several.append)
    assert [(step.n_open, step.nfe) for step in several] == [(1, 1), (0, 2)]
    assert several[0].texts[1].count("_") == 1
    assert list(several[-1].texts) == texts


def test_tokens_can_be_banned_and_required(llada: Any, folder: Path, model: Model) -> None:
    """By their places in the whole text; the command writes the same."""
    required, banned = {2: "a", 4: ["c", "d"]}, {3: [*"abcde"], 5: "a"}
    texts = model.generate(["ab", "f"], length=6, seed=1, required=required, banned=banned)
    assert all(text[2] == "a" and text[4] in "cd" and text[3] == "f" and text[5] != "a" for text in texts)
    flags = ["--required", json.dumps(required), "--banned", json.dumps(banned)]
    assert samples_of(llada, folder, "--prompt", "ab", "--gen_length", 6, "--seed", 1, *flags) == texts[:1]
    assert model.infill("b<MASK*3>", required={0: "b", 1: "e"}).startswith("be")
    refused = llada("sample", "--checkpoint", folder, "--prompt", "ab", "--required", '{"0": "f"}')
    assert refused.code == 2
    assert "has the token 3 at position 0, where another is required" in refused.err


def test_a_text_longer_than_the_model_slides_if_asked_for(llada: Any, folder: Path, model: Model) -> None:
    text = model.generate("ab", length=30, slide=True, seed=3)
    assert len(text) == 32
    assert text.startswith("ab")
    flags = ["--prompt", "ab", "--gen_length", 30, "--slide"]
    assert samples_of(llada, folder, *flags, "--seed", 3, "--n_samples", 2) == [
        text, model.generate("ab", length=30, slide=True, seed=4)
    ]  # fmt: skip
    result = json.loads(llada("sample", "--checkpoint", folder, "--device", "cpu", "--json", *flags).out)
    assert result["nfe"] == 30
    assert model.generate("ab", length=5, slide=True) == model.generate("ab", length=5)
    assert samples_of(llada, folder, "--prompt", "ab", "--gen_length", 5, "--slide") == [model.generate("ab", length=5)]
    without = llada("sample", "--checkpoint", folder, "--device", "cpu", "--gen_length", 30)
    assert without.code == 2
    assert "are more than the 16" in without.err


def test_frames_are_those_of_the_first_text_alone(llada: Any, folder: Path) -> None:
    """The second text needs more steps than the first."""
    policy = ["--policy", "entropy_bound", "--entropy_bound", 1]
    command = ["sample", "--checkpoint", folder, "--device", "cpu", "--frames", 3, *policy]
    alone, together = (llada(*command, "--n_samples", n).out for n in (1, 2))
    assert together.startswith(alone)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--slide"], "--slide is for a prompt: add --gen_length"),
        (["--slide", "--gen_length", 0, "--prompt", 20 * "a"], "--gen_length must be at least 1 with --slide, not 0"),
        (
            ["--slide", "--gen_length", 30, "--frames", 2],
            "leave out --banned, --required, --frames, --watch and --film",
        ),
        (["--required", "[1]"], "--required must be JSON of positions and tokens"),
        (["--banned", '{"-1": "a"}'], "--banned must be JSON of positions and tokens"),
        (["--banned", '{"0": "ab"}'], "'ab' is 2 tokens of this model, not one"),
        (["--required", '{"40": "a"}'], "Position 40 is not among the 16"),
    ],
)
def test_flags_that_cannot_be_are_one_sentence(llada: Any, folder: Path, flags: list[object], said: str) -> None:
    result = llada("sample", "--checkpoint", folder, "--device", "cpu", *flags)
    assert result.code == 2
    assert said in " ".join(result.err.split())
    assert "Traceback" not in result.err


def test_settings_are_those_of_the_sampler(model: Model) -> None:
    """Given fields go before a configuration, and that before the defaults."""
    assert set(typing.get_type_hints(SamplerFields)) == {field.name for field in dataclasses.fields(SamplerConfig)}
    config = SamplerConfig(steps=2, temperature=1.0)
    steps: list[Step] = []
    assert model.generate(length=4, config=config, on_step=steps.append) == model.generate(
        length=4, steps=2, remasking="low_confidence"
    )
    assert len(steps) == 2
    assert model.generate(length=4, config=config, temperature=0.0) == model.generate(
        length=4, config=SamplerConfig(steps=2)
    )


# -- measuring --------------------------------------------------------------------------------------------------------


def enumerated(model: Model, text: str) -> float:
    """E_k[(1/k) sum of cross-entropies] over every count and every set of positions."""
    x_0 = torch.tensor(TOKENIZER.encode(text))
    total = 0.0
    for k in range(1, len(x_0) + 1):
        sets = list(itertools.combinations(range(len(x_0)), k))
        for positions in map(list, sets):
            x_t = x_0.clone()
            x_t[positions] = MASK_ID
            log_p = model.logits(x_t[None])[0].double().log_softmax(-1)
            total -= float(log_p[positions, x_0[positions]].sum()) / k / len(sets) / len(x_0)
    return total


def test_the_bound_of_a_text_is_the_enumerated_one_within_its_error(model: Model) -> None:
    """Over many seeds: the mean is right, and the errors are as large as the estimates scatter."""
    truth = enumerated(model, "abcfd")
    bounds = [model.nelbo("abcfd", masks=64, seed=seed) for seed in range(60)]
    estimates = torch.tensor([bound.nats_per_token for bound in bounds]).double()
    stated = torch.tensor([bound.stderr for bound in bounds]).double().mean()
    assert abs(float(estimates.mean()) - truth) < 4 * float(estimates.std()) / 60**0.5
    assert 0.7 < float(estimates.std() / stated) < 1.3  # 60 seeds know the scatter to a tenth
    bound = bounds[0]
    assert (bound.n_tokens, bound.n_characters, bound.is_exact) == (5, 5, False)
    assert bound.nats == pytest.approx(5 * bound.nats_per_token)
    assert bound.bits_per_character == pytest.approx(bound.nats_per_token / 0.6931472)
    assert str(bound) == f"NELBO {bound.nats_per_token:.4f} ± {bound.stderr:.4f} nats per character"


def test_a_long_text_is_scored_in_pieces(model: Model) -> None:
    """Each character once: 16 and 4 of them."""
    text = "abcdefabcdefabcd" + "fade"
    whole = model.nelbo(text, seed=1)
    first, second = model.nelbo(text[:16], seed=1), model.nelbo(text[16:], seed=2)
    assert whole.nats == pytest.approx(first.nats + second.nats)
    assert whole.stderr * 20 == pytest.approx(((16 * first.stderr) ** 2 + (4 * second.stderr) ** 2) ** 0.5)
    assert model.nelbo([text, "ab"], seed=1) == [whole, model.nelbo("ab", seed=1)]


def test_a_causal_model_has_a_likelihood(tmp_path: Path) -> None:
    model = causal(tmp_path / "causal")
    bound = model.nelbo("abcfd")
    x_0 = torch.tensor([TOKENIZER.encode("abcfd")])
    nll = -model.logits(x_0).log_softmax(-1).gather(-1, x_0[..., None]).mean()
    assert bound.nats_per_token == pytest.approx(float(nll), abs=1e-5)
    assert (bound.stderr, bound.is_exact) == (0.0, True)
    assert str(bound).startswith("NLL ")
    assert len(model.generate("ab", length=4)) == 6
    with pytest.raises(UserError, match="end with its one gap"):
        model.infill("a<MASK>b")


def test_logits_are_those_of_the_predictor(model: Model) -> None:
    ids = model.ids("ab<MASK*2>")
    assert ids.tolist() == [[3, 4, MASK_ID, MASK_ID]]
    assert model.text(ids) == ["ab__"]
    logits = model.logits(ids)
    assert (logits.shape, logits.requires_grad) == ((1, 4, 10), False)
    assert torch.equal(logits, model.predictor(ids))


# -- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: model.generate("ab", length=15), "17 tokens are more than the 16"),
        (lambda model: model.generate("ab", length=-1), "length must be at least 0"),
        (lambda model: model.generate("ab", length=0), "nothing to fill in"),
        (lambda model: model.generate("xyz"), "'x' is not in the vocabulary"),
        (lambda model: model.infill("abc"), "nothing to fill in"),
        (lambda model: model.infill("<MASK*99999999999>"), "are more than the 16"),
        (lambda model: model.generate("ab", required={1: "c"}), "where another is required: put MASK there"),
        (
            lambda model: model.generate("ab", required={2: "c"}, banned={2: "c"}),
            "All tokens required at position 2",
        ),
        (lambda model: model.generate("a", length=30, slide=True, banned={1: "b"}), "leave out one of the two"),
        (
            lambda model: model.generate(20 * "a", length=0, slide=True),
            "length must be at least 1 in a text that slides",
        ),
        (lambda model: model.generate(length=4, steps=0), "steps must be at least 1"),
        (lambda model: model.generate(length=4, step=1), "unexpected keyword argument 'step'"),
        (lambda model: model.nelbo(""), "An empty text has no likelihood"),
        (lambda model: model.chat([{"content": "a"}]), "has no 'role'"),
        (lambda model: model.chat([Message("assistant", "a")]), "are not a dialogue: message 1"),
        (lambda model: model.chat("ab", length=16), "leaves no room for a question"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(call: Any, said: str, model: Model) -> None:
    with pytest.raises(UserError, match=said):
        call(model)


def test_masks_come_in_pairs(model: Model) -> None:
    with pytest.raises(ValueError, match="even number"):
        model.nelbo("ab", masks=7)
