"""The command of the adapter for lm-evaluation-harness: its numbers, one sentence for bad input, several processes."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from llada.cli import Program, harness
from llada.evaluation.lm_eval.model import HarnessModel
from llada.system.errors import UserError
from tests.support.commands import PATIENCE
from tests.support.documents import ROOT, code_blocks, commands_of
from tests.support.harness_tasks import evaluate, make_model, requests, write_tasks
from tests.support.ranks import free_port

# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
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
            r'`model_args` cannot be used \(missing value for field "checkpoint"\): its keys are',
        ),
        (["--tasks", "made_text", "--model_args", "checkpoint=x,mcnum=8"], r'can not match "mcnum".*mc_num'),
        (["--tasks", "made_text", "--model_args", "checkpoint=x,mc_num=3"], "mc_num=3 is not an even number"),
        (["--tasks", "made_text", "--model_args", "checkpoint=x,mc_num=2.5"], "2.5 is not a whole number"),
        (
            ["--tasks", "made_text", "--model_args", "checkpoint=x,temperature=-1"],
            "temperature must be a number from 0 up, not -1",
        ),
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
    with pytest.raises(UserError, match="An answer of 33 tokens leaves no room for its prompt in the 32 of this"):
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
from llada.evaluation.lm_eval.model import HarnessModel

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
    result = tmp_path / "results.json"
    there = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
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
        _, complaints = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, complaints
    together = json.loads(result.read_text())
    alone = evaluate(make_model(run), tasks, "made_choice", "made_text", "made_write")["results"]
    for task, numbers in alone.items():
        for name, value in numbers.items():
            if isinstance(value, float):
                assert together[task][name] == pytest.approx(value, rel=1e-6), (task, name)
