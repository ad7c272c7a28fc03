"""Fine-tuning from end to end: on answers, by adapters, in bf16; and the watch over answers."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llada.checkpoints.dummy import write_random_checkpoint
from llada.checkpoints.folder import read_checkpoint
from llada.checkpoints.load import open_model
from llada.checkpoints.lora import LoraOptions, adapter_weights
from llada.checkpoints.quantization import is_quantised
from llada.cli import main
from llada.data.prepared import PreparedText
from llada.data.sft import Answers
from llada.system.errors import UserError
from llada.tokenizers.char import CharTokenizer
from llada.training.answer_check import AnswerCheck, EosShare, check_answers, end_ids_of
from llada.training.build import build_model
from llada.training.config import DataOptions, NoiseOptions, OptimizerOptions, TrainConfig
from llada.training.metrics import LossByTime, read_metrics
from llada.training.plan import RunPlan
from llada.training.presets import PRESETS
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer
from tests.support.runs import run_to
from tests.support.texts import characters_of

LETTERS = "abcdefgh"


def write_words(path: Path, n: int = 60) -> Path:
    """Words to be said backwards."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for _ in range(n):
        length = int(torch.randint(2, 6, (), generator=generator))
        word = "".join(LETTERS[i] for i in torch.randint(0, len(LETTERS), (length,), generator=generator).tolist())
        lines.append(json.dumps({"prompt": word, "answer": word[::-1]}))
    path.write_text("\n".join(dict.fromkeys(lines)) + "\n")
    return path


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_words(tmp_path_factory.mktemp("chat") / "words.jsonl")


@pytest.fixture(scope="module")
def base(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "random"
    write_random_checkpoint(folder, text, max_sequence_length=64)
    return folder


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return int(exit_.value.code or 0)


# --- configuration


def test_presets_are_the_papers_and_the_founding_documents() -> None:
    sft, founding = PRESETS["sft"], PRESETS["finetune"]
    for preset, rate, epochs in ((sft, 2.5e-5, 3), (founding, 1e-5, 5)):
        options = preset.optimizer
        assert (options.optimizer, options.learning_rate, options.weight_decay) == ("adamw", rate, 0.1)
        assert (options.schedule, options.warmup_steps, options.decay, options.final_rate) == ("wsd", 50, 0.1, 0.1)
        assert (preset.epochs, preset.noise.masking, preset.noise.weight_power) == (epochs, "bernoulli", 1.0)
    assert sft.sequences_per_step == 256
    assert sft.batch_size == 2
    assert founding.sequences_per_step == 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"method": "lora"}, "name it by `base`"),
        ({"lora": LoraOptions(lora_rank=4)}, 'add `method="lora"`'),
        ({"data": DataOptions(chat_length=5)}, "`chat_length` is for dialogues: add `chat=FILE`"),
        ({"data": DataOptions(skip_bad=True)}, "`skip_bad` is for dialogues: add `chat=FILE`"),
        ({"data": DataOptions(chat_split="last")}, "`chat_split` is for dialogues: add `chat=FILE`"),
        ({"data": DataOptions(chat=Path("x.jsonl")), "noise": NoiseOptions(weight_power=0.5)}, "add `weight_power=1`"),
        ({"optimizer": OptimizerOptions(optimizer_state="8bit")}, "add `optimizer=adamw`"),
        ({"weights": "bf16"}, 'add `optimizer="adamw"`'),
        ({"weights": "bf16", "optimizer": OptimizerOptions(optimizer="adamw")}, "add `ema=0`"),
        ({"weights": "bf16", "method": "lora", "base": "x"}, "leave out `weights`"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        TrainConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"chat_split_seed": -1}, "`chat_split_seed` must be at least 0"),
        ({"chat_val_share": 0.95}, r"`chat_val_share` must be at most 0\.9, not 0\.95"),
        ({"chat_length": 0}, "`chat_length` must be at least 1"),
    ],
)
def test_numbers_of_dialogues_have_their_ranges(options: dict[str, float], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        DataOptions(chat=Path("x.jsonl"), **options)  # type: ignore[arg-type]


# --- runs


SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "full in bf16 with 8-bit moments": {
        "weights": "bf16",
        "optimizer": OptimizerOptions(
            optimizer="adamw", optimizer_state="8bit", learning_rate=1e-3, warmup_steps=2, ema=0.0
        ),
    },
    "lora": {"method": "lora"},
    "lora with an average": {
        "method": "lora",
        "optimizer": OptimizerOptions(optimizer="adamw", learning_rate=1e-3, warmup_steps=2, ema=0.9),
    },
    "qlora": {"method": "qlora"},
}


def small(base: Path, dialogues: Path, output_dir: Path, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        base=str(base),
        data=DataOptions(chat=dialogues),
        noise=NoiseOptions(masking="bernoulli", weight_power=1.0),
        optimizer=OptimizerOptions(optimizer="adamw", learning_rate=1e-3, warmup_steps=2, ema=0.0),
        output_dir=output_dir,
        batch_size=4,
        accumulate=2,
        steps=6,
        log_every=1,
        evaluate_every=3,
        evaluation_windows=4,
        activation_checkpointing=True,
        device="cpu",
    )
    return replace(config, **changes)


def train(config: TrainConfig, base: Path, resume: bool = False, stop_at: int | None = None) -> Trainer:
    start = read_checkpoint(base)
    data = Answers.load(config.data.chat, start.tokenizer, 64)  # type: ignore[arg-type]
    folder = RunFolder(config.output_dir)
    folder.start(config)
    begins_at = None if resume and config.method == "full" else base
    return run_to(Trainer(RunPlan.of(config, data, start.config), folder, resume, begins_at), stop_at)


def trained(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in trainer.model.parameters() if p.requires_grad])


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    changes: dict[str, Any], base: Path, dialogues: Path, tmp_path: Path
) -> None:
    whole = small(base, dialogues, tmp_path / "whole", **changes)
    parts = replace(whole, output_dir=tmp_path / "parts")
    expected = train(whole, base)
    assert train(parts, base, stop_at=3).progress.step == 3  # asked to stop in the first of two pieces
    resumed = train(RunFolder.read_config(parts.output_dir), base, resume=True)
    assert torch.equal(trained(resumed), trained(expected))
    losses = [
        [row["loss"] for row in read_metrics(config.output_dir / "metrics.jsonl") if "loss" in row]
        for config in (whole, parts)
    ]
    assert losses[0] == losses[1]
    one, other = (open_model(config.output_dir).model.state_dict() for config in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_adapter_run_stores_the_adapter_alone_and_opens_with_its_base(
    base: Path, dialogues: Path, tmp_path: Path
) -> None:
    trainer = train(small(base, dialogues, tmp_path / "run", method="lora", precision="fp32"), base)
    last = tmp_path / "run" / "checkpoints" / "last"
    assert {p.name for p in last.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "training_state.pt",
        "checksums.json",
    }
    opened = open_model(last, dtype=torch.float32)
    x_t = torch.randint(0, 200, (2, 20), generator=torch.Generator().manual_seed(0))
    trainer.model.eval()
    assert torch.allclose(opened.model(x_t), trainer.model(x_t), atol=1e-5)
    assert not torch.allclose(opened.model(x_t), read_checkpoint(base, dtype=torch.float32).model(x_t), atol=1e-3)


def test_metrics_tell_of_answers(base: Path, dialogues: Path, tmp_path: Path) -> None:
    train(small(base, dialogues, tmp_path / "run"), base)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    assert all(row["eos_true"] is None or 0 < row["eos_true"] < 1 for row in steps)
    assert all(0 <= row["eos_predicted"] <= 1 for row in steps if row["eos_predicted"] is not None)
    evaluations = [row for row in rows if "nelbo" in row]
    keys = {"answer_length", "reference_length", "answers_ended", "answers_empty", "answers_exact"}
    assert all(keys <= set(row) for row in evaluations)
    assert "→" in (tmp_path / "run" / "samples" / "step-00000006.txt").read_text()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_base_is_measured_before_the_first_step(method: str, base: Path, dialogues: Path, tmp_path: Path) -> None:
    """By the bound of the checkpoint itself, on the data of all later evaluations; it is never the best of the run."""
    config = small(base, dialogues, tmp_path / "run", method=method, precision="fp32")
    start = read_checkpoint(base, dtype=torch.float32)
    data = Answers.load(dialogues, start.tokenizer, 64)
    own = Trainer(RunPlan.of(config, data, start.config), RunFolder(config.output_dir), start=base)
    own.model.eval()
    bound = own.evaluations.estimate_nelbo().nelbo_nats_per_token
    trainer = train(config, base)
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert (first["step"], first["nelbo"]) == (0, bound)
    assert 0 <= first["answers_ended"] <= 1
    assert "→" in (tmp_path / "run" / "samples" / "step-00000000.txt").read_text()
    assert trainer.progress.best_step > 0


def test_pieces_of_a_step_have_the_loss_of_the_whole(base: Path, dialogues: Path, tmp_path: Path) -> None:
    """Each piece is padded for itself; the sum over them is LLaDA's loss, here computed row by row without padding
    columns that a row does not need."""
    config = small(base, dialogues, tmp_path / "run", precision="fp32")
    start = read_checkpoint(base, dtype=torch.float32)
    data = Answers.load(dialogues, start.tokenizer, 64)
    trainer = Trainer(RunPlan.of(config, data, start.config), RunFolder(config.output_dir), start=base)
    batch, noisy = trainer.steps.make_batch(0)
    expected = 0.0
    for row in range(len(batch.x_0)):
        assert batch.maskable is not None
        end = int(batch.maskable[row].nonzero().max()) + 1
        logits = start.model(noisy.x_t[row : row + 1, :end])[0]
        for i in noisy.is_masked[row].nonzero()[:, 0].tolist():
            nll = -float(logits[i].detach().log_softmax(-1)[batch.x_0[row, i]])
            expected += nll / float(noisy.p_mask[row]) / int(batch.maskable[row].sum())
    done = trainer.train_step(LossByTime(trainer.device))
    ends = [int(batch.maskable[first : first + 4].any(0).nonzero().max()) + 1 for first in (0, 4)]  # type: ignore[index]
    assert done.tokens == 4 * sum(ends) == trainer.progress.tokens
    loss = float(done.loss)
    assert loss == pytest.approx(expected / len(batch.x_0), rel=1e-5)


# --- the watch


def check(lengths: list[int], references: list[int]) -> AnswerCheck:
    n = len(lengths)
    return AnswerCheck(["?"] * n, ["!"] * n, lengths, references, [True] * n, [False] * n)


def test_collapsing_answers_are_told_with_a_remedy() -> None:
    assert check([10, 12, 9], [11, 10, 12]).warning(2, 256) is None
    assert check([3, 3, 3], [11, 10, 12]).warning(2, 256) is None
    short = check([1, 2, 1], [20, 20, 20]).warning(8, 256)
    assert short is not None
    assert "1.3 tokens on average where the dialogues have 20.0" in short
    assert "`batch_size=1` `accumulate=256`" in short
    empty = check([0, 0, 30], [20, 20, 20]).warning(1, 1)
    assert empty is not None
    assert "67% of them empty" in empty
    assert "batch_size" not in empty


def test_share_of_eos_is_counted() -> None:
    share = EosShare(2, torch.device("cpu"))
    share.add(torch.tensor([2, 2, 5, 2]), torch.tensor([2, 4, 5, 6]))
    share.add(torch.tensor([1]), torch.tensor([2]))
    assert share.take() == {"eos_predicted": 3 / 5, "eos_true": 2 / 5}
    assert share.take() == {"eos_predicted": None, "eos_true": None}


# --- commands


def test_characters_learn_to_answer_from_nothing(
    dialogues: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    flags = ["--chat", str(dialogues), "--weight_power", "1", "--steps", "4", "--evaluate_every", "2"]
    assert run(["train", *flags, "--d_model", "32", "--n_layers", "1", "--output_dir", str(folder)]) == 0
    assert "llada chat --checkpoint" in capsys.readouterr().out
    assert isinstance(open_model(folder).tokenizer, CharTokenizer)
    assert run(["chat", "--checkpoint", str(folder), "--prompt", "abc", "--gen_length", "4"]) == 0
    assert set(capsys.readouterr().out.strip()) <= set(LETTERS)


NEW_KEYS = ("chat_split", "chat_split_seed", "chat_last_answer", "chat_keys", "skip_bad")


def test_a_run_from_before_there_were_rules_keeps_its_dialogues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config.json does not name them: the last ones are kept to measure on, and weights are not looked at."""
    rows = [{"prompt": c, "answer": c, "weight": i % 2} for i, c in enumerate("abcdefghij")]
    chat, folder = tmp_path / "chat.jsonl", tmp_path / "run"
    chat.write_text("\n".join(map(json.dumps, rows)))
    flags = ["--chat", str(chat), "--weight_power", "1", "--evaluate_every", "2", "--chat_val_share", "0.2"]
    flags += ["--d_model", "32", "--n_layers", "1", "--output_dir", str(folder)]
    assert run(["train", *flags, "--chat_split", "last", "--chat_keys", "ignore", "--steps", "2"]) == 0
    content = json.loads((folder / "config.json").read_text())
    for key in NEW_KEYS:
        del content["data"][key]
    (folder / "config.json").write_text(json.dumps(content))
    data = RunFolder.read_config(folder).data
    assert [d.messages[0].content for d in data.read_dialogues().val] == ["i", "j"]
    capsys.readouterr()
    assert run(["train", "--resume", str(folder), "--steps", "4"]) == 0
    result = capsys.readouterr()
    assert "Changed since: --steps 2 -> 4" in result.err
    assert result.err.count("Changed since") == 1
    assert "these are not used: weight (10 lines)" in result.err
    again = json.loads((folder / "config.json").read_text())["data"]
    assert (again["chat_split"], again["chat_keys"]) == ("last", "ignore")
    assert run(["evaluate", "--checkpoint", str(folder), "--masks_per_window", "2"]) == 0
    assert "over 2 answers" in capsys.readouterr().out
    assert run(["train", "--resume", str(folder), "--steps", "6", "--chat_split", "shuffled"]) == 2
    assert "changed: training dialogues, validation dialogues" in capsys.readouterr().err


def test_a_new_run_names_its_rules_and_a_text_run_has_none(dialogues: Path) -> None:
    content = TrainConfig(data=DataOptions(chat=dialogues), noise=NoiseOptions(weight_power=1.0)).to_json()
    assert content["data"]["chat_split"] == "shuffled"
    assert TrainConfig.from_json(content).data == DataOptions(chat=dialogues)
    text = TrainConfig().to_json()
    for key in NEW_KEYS:
        del text["data"][key]
    assert TrainConfig.from_json(text) == TrainConfig()
    assert TrainConfig.from_json({"steps": 3}).data == DataOptions()
    with pytest.raises(UserError, match="cannot be used"):
        TrainConfig.from_json({"data": [1]})


def test_dialogues_of_a_pipe_are_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `--chat <(...)`: characters, dialogues and checksum from one reading."""
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "w") as file:
        file.writelines(f"{json.dumps({'prompt': c, 'answer': c, 'id': 1})}\n" for c in LETTERS)
    flags = ["--weight_power", "1", "--steps", "2", "--d_model", "32", "--n_layers", "1"]
    assert run(["train", "--chat", f"/dev/fd/{ours}", *flags, "--output_dir", str(tmp_path / "run")]) == 0
    os.close(ours)
    error = capsys.readouterr().err
    assert "is a pipe, which is read once" in error
    assert "these are not used: id (8 lines)" in error
    assert set(characters_of(open_model(tmp_path / "run").tokenizer)) == {*LETTERS, "\n"}


def test_what_is_left_out_is_said(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By `train` and by `evaluate`, on standard error, once each."""
    lines = [json.dumps({"prompt": "a", "answer": "b", "tools": [1]})] * 4 + ["broken"]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    flags = ["--checkpoint", str(base), "--chat", str(tmp_path / "chat.jsonl")]
    assert run(["finetune", *flags, "--output_dir", str(tmp_path / "run"), "--steps", "1"]) == 2
    assert f"Line 5 of {tmp_path / 'chat.jsonl'} is not valid JSON" in capsys.readouterr().err
    assert run(["finetune", *flags, "--output_dir", str(tmp_path / "run"), "--steps", "1", "--skip_bad"]) == 0
    error = capsys.readouterr().err
    for sentence in ("Skipped 1 of 5 lines", "tools (4 lines)", "1 of the 1 answers to measure on are learned as well"):
        assert error.count(sentence) == 1
    (tmp_path / "chat.jsonl").write_text("\n".join(lines[:4]))
    assert run(["evaluate", *flags, "--masks_per_window", "2"]) == 0
    assert capsys.readouterr().err.count("tools (4 lines)") == 1


@pytest.mark.slow
def test_words_are_said_backwards(tmp_path: Path) -> None:
    """From random weights to more than 95 % of 200 unseen words, each answer ended by EOS, in a minute or two."""
    chat, folder = write_words(tmp_path / "words.jsonl", 4000), tmp_path / "run"
    flags = "--weight_power 1 --optimizer adamw --learning_rate 2e-3 --n_heads 4 --batch_size 64 --steps 600"
    assert run(["train", "--chat", str(chat), *flags.split(), "--output_dir", str(folder)]) == 0
    opened = open_model(folder)
    data = Answers.load(chat, opened.tokenizer, opened.config.max_sequence_length)
    learned = {pair.ids for pair in data.pairs["train"]}
    unseen = [pair for pair in data.pairs["val"] if pair.ids not in learned]
    longest = opened.config.max_sequence_length
    result = check_answers(opened.model, data, unseen, torch.device("cpu"), longest, batch_size=64, at_most=200)
    assert len(result.lengths) == 200
    assert sum(result.is_equal) > 190
    assert sum(result.has_ended) > 190


def test_a_model_of_the_main_job_is_tuned_by_an_adapter_and_chats(
    small_run: TrainConfig, data: PreparedText, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train on a text, fine-tune by LoRA on dialogues, chat, export: each by its command."""
    folder = RunFolder(small_run.output_dir)
    folder.start(small_run)
    run_to(Trainer(RunPlan.of(small_run, data), folder))
    lines = [
        {"prompt": "to be", "answer": "or not"},
        {"prompt": "tis", "answer": "the rub"},
        {"prompt": "is", "answer": "it"},
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tuned = tmp_path / "tuned"
    flags = ["--checkpoint", str(small_run.output_dir), "--chat", str(tmp_path / "chat.jsonl"), "--steps", "4"]
    assert run(["finetune", *flags, "--method", "lora", "--output_dir", str(tuned)]) == 0
    assert run(["chat", "--checkpoint", str(tuned), "--prompt", "to be", "--gen_length", "6"]) == 0
    assert run(["export", "--checkpoint", str(tuned), "--output_dir", str(tmp_path / "merged")]) == 0
    merged, opened = read_checkpoint(tmp_path / "merged"), open_model(tuned)
    x_t = torch.tensor([data.tokenizer.encode("to be or not")])
    assert torch.allclose(merged.model(x_t), opened.model(x_t), atol=1e-5)
    assert run(["export", "--checkpoint", str(tuned), "--output_dir", str(tmp_path / "merged")]) == 2
    assert run(["sample", "--checkpoint", str(tmp_path / "merged"), "--gen_length", "8"]) == 0
    assert run(["finetune", *flags[:1], str(tuned), *flags[2:], "--output_dir", str(tmp_path / "again")]) == 2
    assert "merge it by `llada export` first" in capsys.readouterr().err


def test_bad_input_is_one_sentence_and_writes_nothing(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["finetune", "--preset", "sft", "--checkpoint", str(base)]) == 2
    assert "add --chat FILE.jsonl" in capsys.readouterr().err
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n')
    output = tmp_path / "run"
    common = ["finetune", "--checkpoint", str(base), "--output_dir", str(output)]
    for path, complaint in ((tmp_path / "bad.jsonl", "Line 2 of"), (tmp_path / "nowhere.jsonl", "is missing")):
        capsys.readouterr()
        assert run([*common, "--chat", str(path)]) == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert "Traceback" not in error
        assert not output.exists()


def test_answers_are_evaluated_by_a_command(
    base: Path, dialogues: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of dialogues is measured on those that it keeps for that; any file can be given."""
    train(small(base, dialogues, tmp_path / "run"), base)
    capsys.readouterr()
    common = ["evaluate", "--checkpoint", str(tmp_path / "run"), "--masks_per_window", "2"]
    assert run(common) == 0
    own = capsys.readouterr().out
    n_lines = len(dialogues.read_text().splitlines())
    assert f"over {round(0.1 * n_lines)} answers of {dialogues}" in own
    assert run([*common, "--chat", str(dialogues)]) == 0
    assert f"over {n_lines} answers of {dialogues}" in capsys.readouterr().out
    assert run([*common, "--chat", str(dialogues), "--windows", "3"]) == 0
    assert f"over 3 of {n_lines} answers of {dialogues}" in capsys.readouterr().out
    assert run([*common, "--windows", "1"]) == 0
    assert f"over 1 of {round(0.1 * n_lines)} answers of {dialogues}" in capsys.readouterr().out
    assert run([*common, "--chat", str(dialogues), "--windows", "100000"]) == 0
    assert f"over {n_lines} answers of {dialogues}" in capsys.readouterr().out
    results = []
    for size in ("1", "7"):
        assert run([*common, "--chat", str(dialogues), "--json", "--batch_size", size, "--precision", "fp32"]) == 0
        results.append(json.loads(capsys.readouterr().out)["nelbo_nats_per_token"])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


@pytest.mark.parametrize(
    ("method", "flags", "complaint"),
    [
        ("full", ["--weights", "fp32"], "--weights was bf16, not fp32"),
        ("full", ["--optimizer_state", "fp32"], "--optimizer_state was 8bit, not fp32"),
        ("full", ["--optimizer", "muon"], "--optimizer adamw"),
        ("lora", ["--lora_alpha", "99"], "--lora_alpha was 32, not 99"),
        ("lora", ["--method", "full"], "--method was lora, not full"),
    ],
)
def test_a_run_goes_on_with_what_it_was_started_with(
    method: str,
    flags: list[str],
    complaint: str,
    base: Path,
    dialogues: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    train(
        small(base, dialogues, folder, **SETTINGS["full in bf16 with 8-bit moments" if method == "full" else method]),
        base,
    )
    before = (folder / "config.json").read_bytes()
    assert run(["finetune", "--resume", str(folder), "--steps", "9", *flags]) == 2
    assert complaint in capsys.readouterr().err
    assert (folder / "config.json").read_bytes() == before
    assert run(["finetune", "--resume", str(folder), "--steps", "7"]) == 0


@pytest.mark.parametrize("network", ["llada", "encoder"])
def test_answers_within_a_run_stay_within_the_models_length(network: str, tmp_path: Path) -> None:
    """A long prompt next to a short one with a long answer: learned positions would end in an error."""
    lines = [{"prompt": "a" * 40, "answer": "b"}, {"prompt": "a", "answer": "b" * 40}] * 4
    chat = tmp_path / "uneven.jsonl"
    chat.write_text("\n".join(map(json.dumps, lines)))
    flags = ["--network", network, "--d_model", "16", "--n_layers", "1", "--weight_power", "1", "--steps", "2"]
    more = ["--chat_val", str(chat), "--output_dir", str(tmp_path / "run"), "--evaluate_every", "1"]
    assert run(["train", "--chat", str(chat), *flags, *more]) == 0


def test_an_adapter_outlives_the_run_that_it_stands_on(
    small_run: TrainConfig, data: PreparedText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its base is that checkpoint, wherever it is opened from, and however the run goes on."""
    below = replace(small_run, steps=6)
    folder = RunFolder(below.output_dir)
    folder.start(below)
    run_to(Trainer(RunPlan.of(below, data), folder))
    common = ["--data_dir", str(data.folder), "--windows", "random", "--sequence_length", "24", "--steps", "2"]
    above = ["--checkpoint", str(below.output_dir), "--method", "lora", "--output_dir", str(tmp_path / "above")]
    assert run(["finetune", *common, *above]) == 0
    x_t = torch.tensor([data.tokenizer.encode("to be or not")])
    logits = open_model(tmp_path / "above").model(x_t)
    assert run(["train", "--resume", str(below.output_dir), "--steps", "18"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(open_model(tmp_path / "above").model(x_t), logits)
    assert run(["finetune", "--resume", str(tmp_path / "above"), "--steps", "3"]) == 0


def test_a_qlora_run_is_opened_beside_the_rounded_weights(base: Path, dialogues: Path, tmp_path: Path) -> None:
    """What is measured in the run is what is opened, and what is exported."""
    trainer = train(small(base, dialogues, tmp_path / "run", method="qlora"), base)
    trainer.model.eval()
    x_t = torch.randint(0, 200, (2, 20), generator=torch.Generator().manual_seed(0))
    opened = open_model(tmp_path / "run")
    assert torch.equal(opened.model(x_t), trainer.model(x_t))
    assert run(["export", "--checkpoint", str(tmp_path / "run"), "--output_dir", str(tmp_path / "merged")]) == 0
    merged = read_checkpoint(tmp_path / "merged").model(x_t)
    assert (merged - opened.model(x_t)).norm() < 0.02 * merged.norm()  # both are rounded to bf16 on their way


def test_weights_that_are_not_loaded_are_put_into_four_bits_as_well(
    base: Path, dialogues: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    config = small(base, dialogues, tmp_path / "run", method="qlora")
    start = read_checkpoint(base)
    data = Answers.load(dialogues, start.tokenizer, 64)
    network = build_model(RunPlan.of(config, data, start.config), start=None).network
    assert is_quantised(network)
    assert {weight.dtype for weight in adapter_weights(network).values()} == {torch.float32}


def test_muon_finds_the_layers_of_every_layout(text: str, dialogues: Path, tmp_path: Path) -> None:
    for layout in ("illada", "moe"):
        write_random_checkpoint(tmp_path / layout, text, layout=layout, d_model=16, max_sequence_length=64)
        config = small(tmp_path / layout, dialogues, tmp_path / f"run-{layout}", optimizer=OptimizerOptions(ema=0.0))
        assert train(replace(config, steps=2), tmp_path / layout).progress.step == 2


def test_an_answer_ends_with_any_id_that_the_configuration_names() -> None:
    data = SimpleNamespace(form=SimpleNamespace(end_ids=frozenset({2})))
    for config, expected in ((SimpleNamespace(further_eos_ids=(7, 9)), {2, 7, 9}), (SimpleNamespace(), {2})):
        model = SimpleNamespace(network=SimpleNamespace(config=config))
        assert end_ids_of(model, data) == expected  # type: ignore[arg-type]


def test_an_adapters_run_goes_on_where_it_was_moved_with_its_base(
    small_run: TrainConfig, data: PreparedText, tmp_path: Path
) -> None:
    """Its configuration names the place of before; the adapter's own folder knows the way."""
    below = replace(small_run, steps=6, output_dir=tmp_path / "here" / "below")
    folder = RunFolder(below.output_dir)
    folder.start(below)
    run_to(Trainer(RunPlan.of(below, data), folder))
    common = ["--data_dir", str(data.folder), "--windows", "random", "--sequence_length", "24", "--steps", "2"]
    above = ["--method", "lora", "--output_dir", str(tmp_path / "here" / "above")]
    assert run(["finetune", "--checkpoint", str(below.output_dir), *common, *above]) == 0
    (tmp_path / "here").rename(tmp_path / "there")
    assert run(["finetune", "--resume", str(tmp_path / "there" / "above"), "--steps", "3"]) == 0
    base = RunFolder.read_config(tmp_path / "there" / "above").base
    assert base is not None
    assert Path(base).is_relative_to(tmp_path / "there" / "below")
