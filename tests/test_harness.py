"""The adapter for lm-evaluation-harness, offline: what the harness prints is what our own functions compute.

The expected values come from the checkpoint and the functions of `llada.evaluation`, past the adapter.
"""

import json
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import ROOT, code_blocks, commands_of

os.environ["HF_DATASETS_OFFLINE"] = "1"  # read when datasets is imported, which nothing else here does
lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra `eval`)")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from llada.adapters import LoraOptions, adapter_weights, add_adapter, save_adapter  # noqa: E402
from llada.checkpoint import make_predictor, save_weights  # noqa: E402
from llada.cli import Program, harness, main  # noqa: E402
from llada.errors import UserError  # noqa: E402
from llada.evaluation.choices import Question, choice_accuracy  # noqa: E402
from llada.evaluation.conditional import Item, log_likelihoods, predict_by_model  # noqa: E402
from llada.evaluation.greedy import are_greedy  # noqa: E402
from llada.evaluation.harness import HarnessModel  # noqa: E402
from llada.evaluation.nelbo import estimate_nelbo, nll_by_logits, nll_by_model  # noqa: E402
from llada.evaluation.rolling import text_bound  # noqa: E402
from llada.hardware import Precision  # noqa: E402
from llada.models import EncoderConfig  # noqa: E402
from llada.opening import open_model  # noqa: E402
from llada.random_checkpoint import write_random_checkpoint  # noqa: E402
from llada.sampler import SamplerConfig, generate, suppress  # noqa: E402
from llada.text.chat import chat_format  # noqa: E402
from llada.text.dataset import PreparedText  # noqa: E402
from llada.text.dialogues import Message  # noqa: E402
from llada.text.tokenizer import CharTokenizer  # noqa: E402
from llada.text.vocabulary import Tokenizer, speechless_rows  # noqa: E402

FP32 = Precision(torch.float32, "")
CHOICES = [
    {"question": "to be or not ", "choices": ["to be", "nobler in the mind", "the rub"], "answer": 0},
    {"question": "that is the ", "choices": ["mind", "question"], "answer": 1},
    {"question": "in the ", "choices": ["mind to", "question"], "answer": 0},
    {"question": "ay there's ", "choices": ["a", "the rub", "nobler"], "answer": 1},
]
TEXTS = ["whether tis nobler", "to be or not to be that is the question whether tis nobler in the mind to suffer " * 3]
LAST_WORDS = [
    ("to be or", " "),
    ("ay there's the", " y"),
    ("whether ti", "s"),
    ("tis noble", "r"),
    ("to be or not ", "to be"),
]
PROMPTS = ["to be or", "whether ", "in the m"]
GEN_LENGTH = 10
YAML = """\
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
test_split: test
output_type: {kind}
"""


@pytest.fixture(scope="module")
def run(data: PreparedText, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of our own, of single characters, trained for a second."""
    folder = tmp_path_factory.mktemp("harness") / "run"
    flags = (
        "--d_model 32 --n_heads 2 --n_layers 1 --sequence_length 32 --batch_size 16 --steps 150 --evaluate_every 150 "
        "--evaluation_windows 4 --compile False --device cpu --precision fp32"
    )
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--data_dir", str(data.folder), "--output_dir", str(folder), *flags.split()])
    assert not exit_.value.code
    return folder


@pytest.fixture(scope="module")
def official(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaDA's layout, byte-level BPE and chat template; it knows nothing, but has an opinion on everything."""
    folder = tmp_path_factory.mktemp("harness") / "checkpoint"
    write_random_checkpoint(folder, text, d_model=32, max_sequence_length=32, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module", params=["run", "official"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> HarnessModel:
    return make_model(checkpoint)


def make_model(checkpoint: Path, **options: Any) -> HarnessModel:
    return HarnessModel.create_from_arg_obj(
        {"checkpoint": str(checkpoint), "mc_num": 8, "precision": "fp32", **options},
        {"batch_size": 5, "max_batch_size": None, "device": "cpu"},
    )


def written_by_hand(model: HarnessModel, prompt: str, gen_length: int, until: str | None = None) -> str:
    """The sampler's own text, cut at the first sign of its end."""
    tokenizer, form = model.checkpoint.tokenizer, model.form
    predict = suppress(model.checkpoint.model, speechless_rows(tokenizer, form.end_ids))
    ids = torch.tensor([tokenizer.encode(prompt)])
    canvas = generate(predict, ids, gen_length, tokenizer.mask_id, SamplerConfig(steps=gen_length))
    answer = canvas.x_t[0, ids.shape[1] :].tolist()
    end = next((i for i, id_ in enumerate(answer) if id_ in form.end_ids), gen_length)
    text = tokenizer.decode(answer[:end])
    return text.split(until)[0] if until else text


def cut(tokenizer: Tokenizer, context: str, continuation: str) -> Item:
    """As the harness cuts: white space at the end of the context goes to what follows."""
    ids, given = tokenizer.encode(context + continuation), tokenizer.encode(context.rstrip())
    n_given = next((i for i, (a, b) in enumerate(zip(ids, given, strict=False)) if a != b), len(given))
    return Item(tuple(ids[:n_given]), tuple(ids[n_given:]))


@pytest.fixture(scope="module")
def tasks(model: HarnessModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"), model)


def write_tasks(folder: Path, model: HarnessModel) -> Path:
    """Four tasks, one of every kind; what the model writes is the answer to all prompts but the first."""
    written = [written_by_hand(model, prompt, GEN_LENGTH, "e") for prompt in PROMPTS]
    made: dict[str, tuple[str, list[Any], str]] = {
        "made_choice": (
            "multiple_choice",
            CHOICES,
            'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\ntarget_delimiter: ""\n'
            "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
        ),
        "made_text": (
            "loglikelihood_rolling",
            [{"text": text} for text in TEXTS],
            'doc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list: [{metric: bits_per_byte}]\n',
        ),
        "made_write": (
            "generate_until",
            [
                {"prompt": p, "answer": w if i else "else"}
                for i, (p, w) in enumerate(zip(PROMPTS, written, strict=True))
            ],
            'doc_to_text: "{{prompt}}"\ndoc_to_target: "{{answer}}"\nmetric_list: [{metric: exact_match}]\n'
            f"generation_kwargs: {{until: [e], max_gen_toks: {GEN_LENGTH}}}\n",
        ),
        "made_last_words": (
            "loglikelihood",
            [{"prompt": prompt, "words": words} for prompt, words in LAST_WORDS],
            'doc_to_text: "{{prompt}}"\ndoc_to_target: "{{words}}"\ntarget_delimiter: ""\n'
            "metric_list: [{metric: acc}]\n",
        ),
    }
    for task, (kind, documents, rest) in made.items():
        file = folder / f"{task}.jsonl"
        file.write_text("\n".join(map(json.dumps, documents)))
        (folder / f"{task}.yaml").write_text(
            YAML.format(task=task, file=file, kind=kind, cache=folder / "cache") + rest
        )
    return folder


def evaluate(model: HarnessModel, tasks: Path, *names: str, **settings: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(model, tasks=list(names), task_manager=manager, bootstrap_iters=1, **settings)


@pytest.fixture(scope="module")
def found(model: HarnessModel, tasks: Path) -> dict[str, Any]:
    """What the harness finds in all four tasks."""
    return evaluate(model, tasks, "made_choice", "made_text", "made_write", "made_last_words")


def responses(found: dict[str, Any], task: str) -> list[Any]:
    """Of the model, in the order of the documents and of their requests."""
    documents = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return [answer[0] for document in documents for answer in document["resps"]]


# -- the numbers ------------------------------------------------------------------------------------------------------


def test_multiple_choice_is_ours(checkpoint: Path, found: dict[str, Any]) -> None:
    ours = open_model(checkpoint)
    questions = []
    for document in CHOICES:
        pairs = [cut(ours.tokenizer, document["question"], choice) for choice in document["choices"]]
        lengths = tuple(map(len, document["choices"]))
        questions.append(Question(pairs[0].prompt, tuple(p.answer for p in pairs), lengths, document["answer"]))
    items = [item for question in questions for item in question.items]
    likelihoods = log_likelihoods(predict_by_model(ours.model, FP32), items, ours.tokenizer.mask_id, mc_num=8)
    expected = choice_accuracy(questions, likelihoods)

    numbers = found["results"]["made_choice"]
    assert (numbers["acc,none"], numbers["acc_norm,none"]) == (expected.accuracy, expected.accuracy_norm)
    assert numbers["acc_stderr,none"] == pytest.approx(expected.stderr)
    nats = [float(response[0]) for response in responses(found, "made_choice")]
    assert nats == pytest.approx([likelihood.nats for likelihood in likelihoods], rel=1e-5)
    assert any(likelihood.stderr for likelihood in likelihoods)  # some are drawn
    assert any(likelihood.stderr == 0 for likelihood in likelihoods)  # some are not


def test_rolling_likelihood_is_our_bound(checkpoint: Path, found: dict[str, Any]) -> None:
    ours = open_model(checkpoint)
    nll_at = nll_by_model(ours.model, FP32)
    ids = [ours.tokenizer.encode(text) for text in TEXTS]
    assert len(ids[0]) < 32 < len(ids[1])  # a short text, and one of two windows
    nats = sum(text_bound(nll_at, row, ours.tokenizer.mask_id, length=32, batch_size=3) for row in ids)
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
    assert found == (pytest.approx(guided.nats, rel=1e-5), False)
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


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


def test_last_window_reaches_back(official: Path) -> None:
    """70 tokens in windows of 32: two of them, and the last 6 given the 26 before them."""
    ours = open_model(official)
    nll_at, ids = nll_by_model(ours.model, FP32), (ours.tokenizer.encode(TEXTS[1]) * 2)[:70]
    common = {"mask_id": ours.tokenizer.mask_id, "masks_per_window": 4, "batch_size": 3}
    found = text_bound(nll_at, ids, length=32, **common)
    full = estimate_nelbo(nll_at, torch.tensor(ids[:64]).view(2, 32), **common).nelbo_nats_per_token * 64
    maskable = torch.arange(32)[None] >= 26
    last = estimate_nelbo(nll_at, torch.tensor([ids[38:]]), maskable=maskable, **common).nelbo_nats_per_token * 6
    assert found == pytest.approx(full + last, rel=1e-6)


def test_uniform_predictor_pays_log_v_a_token() -> None:
    uniform = nll_by_logits(lambda x_t, is_masked: torch.zeros(int(is_masked.sum()), 7))
    for n in (0, 1, 4, 5, 11):
        assert text_bound(uniform, [1] * n, 9, length=4) == pytest.approx(n * math.log(7), rel=1e-6, abs=1e-6)


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
    calls = []
    forward = model.checkpoint.model.forward
    monkeypatch.setattr(model.checkpoint.model, "forward", lambda x_t: calls.append(1) or forward(x_t))
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


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The command without the harness's own thousands of tasks, whose names take seconds to read."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    monkeypatch.setattr("lm_eval.__main__.setup_logging", lambda: None)  # it would outlive the test
    monkeypatch.setattr(sys, "argv", [])  # the harness reads its arguments there

    return lambda *arguments: harness.run([*arguments, "--device", "cpu"], Program("llada-harness"))


def test_command_prints_the_numbers(
    command: Callable[..., None],
    checkpoint: Path,
    tasks: Path,
    found: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = f"checkpoint={checkpoint},mc_num=8,precision=fp32"
    command("--model_args", options, "--tasks", "made_choice,made_text", "--include_path", str(tasks))
    printed = capsys.readouterr().out
    assert "llada ({'checkpoint':" in printed
    assert "batch_size: 32" in printed
    for task, metric in (("made_choice", "acc"), ("made_choice", "acc_norm"), ("made_text", "bits_per_byte")):
        (line,) = [line for line in printed.splitlines() if re.search(rf"\|{metric} *\|", line)]
        assert float(line.split("|")[7]) == pytest.approx(found["results"][task][f"{metric},none"], abs=5e-4)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--tasks", "made_up"], "Tasks not found: made_up. `llada-harness ls tasks` lists"),
        (["--tasks", "made_text", "--model_args", "checkpoint=nowhere/at/all"], "nowhere/at/all is not there"),
        (
            ["--tasks", "made_text"],
            r'--model_args cannot be used \(missing value for field "checkpoint"\): its keys are',
        ),
        (["--tasks", "made_text", "--model_args", "checkpoint=x,mcnum=8"], r'can not match "mcnum".*mc_num'),
        (["--tasks", "made_text", "--model_args", "checkpoint=x,mc_num=3"], "mc_num=3 is not an even number"),
        (["--tasks", "made_text", "--model_args", "checkpoint=x,mc_num=2.5"], "2.5 is not a whole number"),
        (["--tasks", "made_text", "--model_args", "checkpoint=x,temperature=-1"], "must be numbers from 0 up"),
        (
            ["--tasks", "made_text", "--model_args", "checkpoint=x", "--batch_size", "auto"],
            "auto is not a whole number",
        ),
        (["--tasks", "made_text", "--model_args", "checkpoint=x", "--batch_size", "0"], "batch_size.*at least 1"),
    ],
)
def test_bad_input_is_said_in_a_sentence(
    command: Callable[..., None], tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    (tmp_path / "made_text.yaml").write_text("task: made_text\n")  # nothing of it is read before
    with pytest.raises(UserError, match=complaint):
        command(*arguments, "--include_path", str(tmp_path))


def test_the_documented_task_runs(
    command: Callable[..., None],
    official: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(official)
    (tmp_path / "tasks").mkdir()
    document = ROOT / "docs" / "EVALUATION.md"
    for language, name in (("yaml", "words.yaml"), ("json", "words.jsonl")):
        (content,) = [
            block for block in code_blocks(document, language) if "task: words" in block or "endings" in block
        ]
        (tmp_path / "tasks" / name).write_text(
            content.replace("test: tasks/words.jsonl}", "test: tasks/words.jsonl}, cache_dir: cache")
        )
    (line,) = [line for line in commands_of(document) if line.startswith("llada-harness")]
    command(*line.split()[1:])
    assert "|words|Yaml|none|" in capsys.readouterr().out


def test_what_is_too_long_is_refused_or_cut(model: HarnessModel, caplog: pytest.LogCaptureFixture) -> None:
    words = " ".join(["nobler"] * 40)
    with pytest.raises(UserError, match="longer than the 32 of this model"):
        model.loglikelihood(requests("loglikelihood", ("to be", words)), disable_tqdm=True)
    with pytest.raises(UserError, match="An answer of 33 tokens is longer than the 32 of this model"):
        model.generate_until(requests("generate_until", ("to be", {"max_gen_toks": 33})), disable_tqdm=True)
    assert "left out" not in caplog.text
    long, short = (
        model.loglikelihood(requests("loglikelihood", (context, " the")), disable_tqdm=True)
        for context in (words, "x"[:0])
    )
    assert (
        "1 prompts do not fit the 32 tokens of the model with what follows: their beginnings are left out"
        in caplog.text
    )
    assert long != short
    model.generate_until(requests("generate_until", (words, {"max_gen_toks": 2})), disable_tqdm=True)
    assert caplog.text.count("left out") == 2


def test_a_broken_model_is_named(run: Path) -> None:
    model = make_model(run)
    torch.nn.init.constant_(next(model.checkpoint.model.parameters()), math.nan)
    ways = (
        (model.loglikelihood, ("to be", " or")),
        (model.loglikelihood_rolling, ("to be or not",)),
        (model.generate_until, ("to be", {"max_gen_toks": 4})),
    )
    for ask, arguments in ways:
        with pytest.raises(UserError, match="not finite numbers"):
            ask(requests("", arguments), disable_tqdm=True)


def test_harness_knows_the_model_in_python_and_its_own_still(official: Path) -> None:
    assert get_model("llada") is HarnessModel
    assert get_model("dummy").__module__ == "lm_eval.models.dummy"
    made = HarnessModel.create_from_arg_string(
        f"checkpoint={official},mc_num=8", {"device": "cuda:0", "batch_size": "4"}
    )
    assert (made.options.mc_num, made.options.batch_size) == (8, 4)
    assert made.device.type == ("cuda" if torch.cuda.is_available() else "cpu")  # cuda:0 is the harness's default


def test_harness_remembers_answers(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, cache = write_tasks(tmp_path, make_model(run)), str(tmp_path / "answers")
    first = evaluate(make_model(run), tasks, "made_choice", "made_write", use_cache=cache)
    model = make_model(run)
    monkeypatch.delattr(model.checkpoint.model, "network")
    again = evaluate(model, tasks, "made_choice", "made_write", use_cache=cache)
    for task in ("made_choice", "made_write"):
        assert again["results"][task] == first["results"][task]


def test_without_the_harness_the_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"not installed here \(lm_eval.* pip install lm_eval"):
        harness.run(["--tasks", "x"], Program("llada-harness"))


# -- several processes ------------------------------------------------------------------------------------------------

PROGRAM = """import json, sys
import lm_eval
import torch
from lm_eval.tasks import TaskManager
from llada.evaluation.harness import HarnessModel

checkpoint, tasks, result = sys.argv[1:]
options = {"checkpoint": checkpoint, "mc_num": 8, "precision": "fp32", "batch_size": 5, "device": "cpu"}
model = HarnessModel.create_from_arg_obj(options)
manager = TaskManager(include_path=tasks, include_defaults=False)
names = ["made_choice", "made_text", "made_write"]
found = lm_eval.simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=1)
assert (found is None) == (model.rank != 0)
if found:
    json.dump(found["results"], open(result, "w"))
torch.distributed.destroy_process_group()
"""


def test_two_processes_find_what_one_finds(run: Path, tmp_path: Path) -> None:
    """As torchrun starts them."""
    tasks = write_tasks(tmp_path, make_model(run))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = tmp_path / "results.json"
    there = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", PROGRAM, str(run), str(tasks), str(result)]
    processes = [
        subprocess.Popen(
            command, env={**there, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in processes:
        _, complaints = process.communicate(timeout=120)
        assert process.returncode == 0, complaints
    together = json.loads(result.read_text())
    alone = evaluate(make_model(run), tasks, "made_choice", "made_text", "made_write")["results"]
    for task, numbers in alone.items():
        for name, value in numbers.items():
            if isinstance(value, float):
                assert together[task][name] == pytest.approx(value, rel=1e-6), (task, name)
