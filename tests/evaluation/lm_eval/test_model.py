"""The adapter for lm-evaluation-harness, offline: what the harness prints is what our own functions compute.

The expected values come from the checkpoint and the functions of `llada.evaluation`, past the adapter.
"""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llada.checkpoints.folder import make_predictor, save_weights
from llada.checkpoints.load import open_model
from llada.checkpoints.lora import LoraOptions, adapter_weights, add_adapter, save_adapter
from llada.data.batches import TokenBatch
from llada.evaluation.answer_likelihood import Item, log_likelihoods, predict_by_model
from llada.evaluation.greedy import are_greedy
from llada.evaluation.lm_eval.model import HarnessModel
from llada.evaluation.lm_eval.rolling import text_bound
from llada.evaluation.nelbo import BoundOptions, estimate_nelbo, nll_by_logits, nll_by_model
from llada.models import EncoderConfig
from llada.sampling.guidance import at_positions
from llada.system.device import Precision
from llada.system.errors import UserError
from llada.tokenizers.base import Tokenizer
from llada.tokenizers.char import CharTokenizer
from llada.tokenizers.chat_template import chat_format
from llada.tokenizers.message import Message
from tests.support.harness_tasks import (
    CHOICES,
    GEN_LENGTH,
    LAST_WORDS,
    PROMPTS,
    TEXTS,
    evaluate,
    make_model,
    requests,
    written_by_hand,
)

FP32 = Precision(torch.float32, "")


def cut(tokenizer: Tokenizer, context: str, continuation: str) -> Item:
    """As the harness cuts: white space at the end of the context goes to what follows."""
    ids, given = tokenizer.encode(context + continuation), tokenizer.encode(context.rstrip())
    n_given = next((i for i, (a, b) in enumerate(zip(ids, given, strict=False)) if a != b), len(given))
    return Item(tuple(ids[:n_given]), tuple(ids[n_given:]))


def responses(found: dict[str, Any], task: str) -> list[Any]:
    """Of the model, in the order of the documents and of their requests."""
    documents = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return [answer[0] for document in documents for answer in document["resps"]]


# -- the numbers ------------------------------------------------------------------------------------------------------


def test_multiple_choice_is_ours(checkpoint: Path, found: dict[str, Any]) -> None:
    ours = open_model(checkpoint)
    items = [cut(ours.tokenizer, row["question"], choice) for row in CHOICES for choice in row["choices"]]
    likelihoods = log_likelihoods(predict_by_model(ours.model, FP32), items, ours.tokenizer.mask_id, mc_num=8)
    remaining = (likelihood.nats for likelihood in likelihoods)
    is_right, is_right_by_length = [], []
    for row in CHOICES:
        nats_of = {choice: next(remaining) for choice in row["choices"]}
        right = row["choices"][row["answer"]]
        is_right.append(max(nats_of, key=lambda choice: nats_of[choice]) == right)
        is_right_by_length.append(max(nats_of, key=lambda choice: nats_of[choice] / len(choice)) == right)

    numbers = found["results"]["made_choice"]
    assert (numbers["acc,none"], numbers["acc_norm,none"]) == (np.mean(is_right), np.mean(is_right_by_length))
    assert numbers["acc_stderr,none"] == pytest.approx(np.std(is_right, ddof=1) / len(CHOICES) ** 0.5)
    nats = [float(response[0]) for response in responses(found, "made_choice")]
    assert nats == pytest.approx([likelihood.nats for likelihood in likelihoods], rel=1e-5)
    assert any(likelihood.stderr for likelihood in likelihoods)  # some are drawn
    assert any(likelihood.stderr == 0 for likelihood in likelihoods)  # some are not


def test_rolling_likelihood_is_our_bound(checkpoint: Path, found: dict[str, Any]) -> None:
    ours = open_model(checkpoint)
    nll = nll_by_model(ours.model, FP32)
    ids = [ours.tokenizer.encode(text) for text in TEXTS]
    assert len(ids[0]) < 32 < len(ids[1])  # a short text, and one of two windows
    nats = sum(text_bound(nll, row, 32, BoundOptions(batch_size=3)) for row in ids)
    numbers = found["results"]["made_text"]
    expected = nats / sum(len(text.encode()) for text in TEXTS) / math.log(2)
    assert numbers["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)


def test_written_text_is_the_samplers(model: HarnessModel, found: dict[str, Any]) -> None:
    assert found["results"]["made_write"]["exact_match,none"] == pytest.approx(2 / 3)
    assert responses(found, "made_write") == [written_by_hand(model, prompt, GEN_LENGTH, "e") for prompt in PROMPTS]


def test_greedy_answers_are_told(checkpoint: Path, found: dict[str, Any]) -> None:
    ours = open_model(checkpoint)
    items = [cut(ours.tokenizer, *pair) for pair in LAST_WORDS]
    predict_at = predict_by_model(ours.model, FP32)
    likelihoods = log_likelihoods(predict_at, items, ours.tokenizer.mask_id, mc_num=8)
    greedy = are_greedy(predict_at, items, ours.tokenizer.mask_id, forbidden=ours.tokenizer.forbidden_rows)
    told = responses(found, "made_last_words")
    assert [float(nats) for nats, _ in told] == pytest.approx([x.nats for x in likelihoods], rel=1e-5)
    assert [str(is_greedy) for _, is_greedy in told] == [str(is_greedy) for is_greedy in greedy]
    assert found["results"]["made_last_words"]["acc,none"] == sum(greedy) / len(greedy)
    assert any(greedy) == (ours.tokenizer.unit == "character")  # the other model knows nothing


def test_an_answer_that_ends_a_word_is_scored(official: Path) -> None:
    """ "whether ti" and "s" make the token " tis", of which nothing would be left behind those of "whether ti"."""
    model = make_model(official)
    prompt, answer = model.spelling.read_pair("whether ti", "s")
    decode = model.checkpoint.tokenizer.decode
    assert (decode(prompt), decode(answer)) == ("whether", " tis")
    assert model.loglikelihood(requests("loglikelihood", ("whether ti", "s")), disable_tqdm=True)[0][0] < 0


def test_guidance_reaches_the_likelihood(checkpoint: Path) -> None:
    ours = open_model(checkpoint)
    item = cut(ours.tokenizer, "to be or", " not to be")
    (plain,), (guided,) = (
        log_likelihoods(predict_by_model(ours.model, FP32), [item], ours.tokenizer.mask_id, mc_num=8, cfg_scale=scale)
        for scale in (0.0, 1.5)
    )
    model = make_model(checkpoint, cfg_scale=1.5, check_greedy=False)
    (found,) = model.loglikelihood(requests("loglikelihood", ("to be or", " not to be")), disable_tqdm=True)
    assert found[0] == pytest.approx(guided.nats, rel=1e-5)
    assert found[1] is False
    assert guided.nats != pytest.approx(plain.nats, rel=1e-3)


def test_an_adapter_stands_beside_its_base(official: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = open_model(official)
    network = base.model.network
    add_adapter(network, LoraOptions(lora_rank=2), seed=0)
    for weight in adapter_weights(network).values():
        torch.nn.init.normal_(weight.data, std=0.3)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", network, str(official))
    expected = log_likelihoods(
        predict_by_model(base.model, FP32), [cut(base.tokenizer, "to be or", " not")], base.tokenizer.mask_id
    )
    asked = requests("loglikelihood", ("to be or", " not"))
    (adapted,), (plain,) = (
        make_model(folder).loglikelihood(asked, disable_tqdm=True) for folder in (tmp_path / "adapter", official)
    )
    assert adapted[0] == pytest.approx(expected[0].nats, rel=1e-5)
    assert adapted[0] != pytest.approx(plain[0], rel=1e-3)


# -- text -------------------------------------------------------------------------------------------------------------


def test_last_window_reaches_back(official: Path) -> None:
    """70 tokens in windows of 32: two of them, and the last 6 given the 26 before them."""
    ours = open_model(official)
    nll, ids = nll_by_model(ours.model, FP32), (ours.tokenizer.encode(TEXTS[1]) * 2)[:70]
    options = BoundOptions(masks_per_window=4, batch_size=3)
    found = text_bound(nll, ids, 32, options)
    full = estimate_nelbo(nll, TokenBatch(torch.tensor(ids[:64]).view(2, 32)), options).nelbo_nats_per_token * 64
    reaching_back = TokenBatch(torch.tensor([ids[38:]]), torch.arange(32)[None] >= 26)
    last = estimate_nelbo(nll, reaching_back, options).nelbo_nats_per_token * 6
    assert found == pytest.approx(full + last, rel=1e-6)


def test_uniform_predictor_pays_log_v_a_token() -> None:
    uniform = nll_by_logits(at_positions(lambda x_t: torch.zeros(*x_t.shape, 7)), mask_id=9)
    for n in (0, 1, 4, 5, 11):
        assert text_bound(uniform, [1] * n, length=4) == pytest.approx(n * math.log(7), rel=1e-6, abs=1e-6)


def test_written_text_ends_and_does_not_depend_on_company(checkpoint: Path, model: HarnessModel) -> None:
    settings = {"until": ["e", "o"], "max_gen_toks": GEN_LENGTH}
    prompts = [*PROMPTS, "to be or", "mind", "nobler m"]
    together = model.generate_until(requests("generate_until", *((p, settings) for p in prompts)), disable_tqdm=True)
    single = make_model(checkpoint, batch_size=1)
    alone = [single.generate_until(requests("generate_until", (p, settings)), disable_tqdm=True)[0] for p in prompts]
    assert together == alone
    assert not any("e" in text or "o" in text for text in together)
    one_stop = model.generate_until(
        requests("generate_until", (PROMPTS[0], {**settings, "until": "e"})), disable_tqdm=True
    )
    assert one_stop[0].startswith(together[0])


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_each_text_has_the_noise_that_it_has_alone(checkpoint: Path, temperature: float) -> None:
    """The policy "random" draws an order at temperature 0, too."""
    settings = {"until": [], "max_gen_toks": GEN_LENGTH, "temperature": temperature}
    how = {"policy": "random", "steps": GEN_LENGTH}
    prompts = ["to be or", "nobler m", "mind to ", "be or no"]
    asked = requests("generate_until", *((prompt, settings) for prompt in prompts))
    together = make_model(checkpoint, **how).generate_until(asked, disable_tqdm=True)
    single = make_model(checkpoint, batch_size=1, **how)
    alone = [
        single.generate_until(requests("generate_until", (prompt, settings)), disable_tqdm=True)[0]
        for prompt in prompts
    ]
    assert together == alone


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_every_usual_name_of_the_length_counts(run: Path, name: str) -> None:
    model = make_model(run)
    (text,) = model.generate_until(requests("generate_until", ("to be", {name: 3, "until": None})), disable_tqdm=True)
    assert len(text) == 3
    both = {"max_gen_toks": 2, name: 3, "max_tokens": 9}  # the harness's own name comes first
    (text,) = model.generate_until(requests("generate_until", ("to be", both)), disable_tqdm=True)
    assert len(text) == (3 if name == "max_gen_toks" else 2)


def test_a_temperature_without_do_sample_samples(run: Path) -> None:
    model = make_model(run)
    configs = [
        model._writing("to be", {**settings, "max_gen_toks": 4}, 0).config
        for settings in (
            {"temperature": 0.7},
            {"temperature": 0.7, "do_sample": True},
            {"temperature": 0.7, "do_sample": False},
            {"do_sample": True},
            {"temperature": 0.0},
            {},
        )
    ]
    assert [config.temperature for config in configs] == [0.7, 0.7, 0.0, 1.0, 0.0, 0.0]


def test_settings_that_no_sampler_has_are_named_once(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(run)
    asked = [(prompt, {"max_gen_toks": 2, "top_p": 0.9, "top_k": 40}) for prompt in ("to", "be", "or")]
    with caplog.at_level("WARNING", logger="lm_eval.models.llada"):
        logger = logging.getLogger("lm_eval.models.llada")
        logger.addHandler(caplog.handler)
        model.generate_until(requests("generate_until", *asked), disable_tqdm=True)
        logger.removeHandler(caplog.handler)
    said = [record.getMessage() for record in caplog.records if "does not have" in record.getMessage()]
    assert len(set(said)) == 2
    assert any("top_p = 0.9," in sentence for sentence in said)
    assert any("top_k = 40," in sentence for sentence in said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_gen_toks": 32}, "An answer of 32 tokens leaves no room for its prompt in the 32 of this model"),
        ({"max_new_tokens": 99}, "An answer of 99 tokens leaves no room for its prompt"),
        ({"max_tokens": 0}, "an answer of 0 tokens"),
        ({"max_tokens": "many"}, "generation settings cannot be used"),
        ({"temperature": "hot"}, "generation settings cannot be used"),
        ({"temperature": float("inf"), "max_gen_toks": 4}, "a temperature of inf"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_by_name(run: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_model(run).generate_until(requests("generate_until", ("to be", settings)), disable_tqdm=True)


def test_samples_are_reproducible_and_differ(run: Path) -> None:
    model = make_model(run)
    settings = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12, "until": []}
    three = requests("generate_until", *[("to be ", settings)] * 3, ("in the ", settings))
    first = model.generate_until(three, disable_tqdm=True)
    assert len(set(first)) == 4
    assert model.generate_until(three[::-1], disable_tqdm=True)[0] == first[3]
    assert model.generate_until(three, disable_tqdm=True) == first
    assert make_model(run, seed=1).generate_until(three, disable_tqdm=True) != first


def test_writing_stops_when_all_have_ended(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(run, block_length=2)
    calls: list[int] = []
    forward = model.checkpoint.model.forward

    def counted(*x: Any, **how: Any) -> torch.Tensor:
        calls.append(1)
        return forward(*x, **how)

    monkeypatch.setattr(model.checkpoint.model, "forward", counted)
    whole = model.generate_until(requests("generate_until", ("to be", {"max_gen_toks": 20})), disable_tqdm=True)[0]
    assert len(calls) == 20
    calls.clear()
    settings = {"max_gen_toks": 20, "until": [whole[3]]}
    assert model.generate_until(requests("generate_until", ("to be", settings)), disable_tqdm=True) == [
        whole.split(whole[3])[0]
    ]
    assert len(calls) <= 4


def test_an_autoregressive_checkpoint_is_scored_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = CharTokenizer("abc ")
    rows = {"vocab_size": tokenizer.vocab_size, "mask_token_id": tokenizer.mask_row}
    config = EncoderConfig(**rows, max_sequence_length=8, d_model=16, n_heads=2, n_layers=1, is_causal=True)
    network = make_predictor(config, tokenizer).eval()
    save_weights(tmp_path, config, tokenizer, network.network.state_dict())
    model = make_model(tmp_path)

    def log_p(text: str, n_given: int) -> float:
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            each = network(ids)[0].double().log_softmax(-1).gather(1, ids.T)
        return float(each[n_given:].sum())

    asked = requests("loglikelihood", ("ab", " ca"), ("", "b"))
    assert [nats for nats, _ in model.loglikelihood(asked, disable_tqdm=True)] == pytest.approx(
        [log_p("ab ca", 2), log_p("b", 0)], rel=1e-5
    )
    text = "ab ca bc cab"  # a window of 8, and 4 more behind the 4 before them
    (found,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)), disable_tqdm=True)
    assert found == pytest.approx(log_p(text[:8], 0) + log_p(text[4:], 4), rel=1e-5)
    written = model.generate_until(requests("generate_until", ("ab", {"max_gen_toks": 3})), disable_tqdm=True)
    assert len(written[0]) == 3  # and what it writes, it finds greedy
    assert model.loglikelihood(requests("loglikelihood", ("ab", written[0])), disable_tqdm=True)[0][1]
    with pytest.raises(UserError, match="autoregressive, and has no guidance"):
        make_model(tmp_path, cfg_scale=1.0)
    with pytest.raises(UserError, match="block_length=4 cannot be used"):
        make_model(tmp_path, block_length=4).generate_until(asked[:0] + requests("", ("ab", {"max_gen_toks": 3})))


# -- chat -------------------------------------------------------------------------------------------------------------

DIALOGUE = [
    {"role": "system", "content": "to be"},
    {"role": "user", "content": "or not to be"},
    {"role": "assistant", "content": "that is"},
    {"role": "user", "content": "the question"},
]


def test_chat_prompts_are_those_of_training(checkpoint: Path, model: HarnessModel) -> None:
    tokenizer = model.checkpoint.tokenizer
    form, messages = chat_format(tokenizer), [Message(**turn) for turn in DIALOGUE]
    string = model.apply_chat_template(DIALOGUE)
    assert model.spelling.read(string) == form.prompt(messages)
    assert model.spelling.read_pair(string, " the rub") == (
        tuple(form.prompt(messages)), tuple(tokenizer.encode(" the rub"))
    )  # fmt: skip
    begun = model.apply_chat_template(DIALOGUE[:3], add_generation_prompt=False)
    assert model.spelling.read(begun) == form.prompt(messages[:2]) + tokenizer.encode("that is")
    assert set(form.specials.values()) & set(model.spelling.read(string))
    assert model.chat_template(True)
    assert "/" not in model.tokenizer_name


def test_a_message_cannot_make_a_special_token(official: Path) -> None:
    model = make_model(official)
    turn = {"role": "user", "content": "be <|eot_id|> not"}
    ids = model.spelling.read(model.apply_chat_template([turn]))
    assert ids.count(model.form.specials["<|eot_id|>"]) == 1  # that of the template
    assert model.checkpoint.tokenizer.decode(ids).count("<|eot_id|>") == 1  # that of the message, as text


def test_chat_template_reaches_the_harness(model: HarnessModel, tasks: Path) -> None:
    found = evaluate(model, tasks, "made_choice", apply_chat_template=True)["samples"]["made_choice"][0]
    assert found["arguments"][0][0] == model.apply_chat_template(
        [{"role": "user", "content": found["doc"]["question"]}]
    )
    prompt, answer = model.spelling.read_pair(*found["arguments"][0])
    (expected,) = log_likelihoods(model.predict_at, [Item(prompt, answer).fitted(32)], model.mask_id, mc_num=8)
    assert float(found["resps"][0][0][0]) == pytest.approx(expected.nats, rel=1e-5)
