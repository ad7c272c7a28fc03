"""Small models and tasks for lm-evaluation-harness, offline; tests that import this are skipped without the harness."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["HF_DATASETS_OFFLINE"] = "1"  # read when datasets is imported, which nothing else here does
lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra `eval`)")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from llada.checkpoints.dummy import write_random_checkpoint  # noqa: E402
from llada.cli import main  # noqa: E402
from llada.data.prepared import PreparedText  # noqa: E402
from llada.evaluation.lm_eval.model import HarnessModel  # noqa: E402
from llada.sampling.config import SamplerConfig  # noqa: E402
from llada.sampling.guidance import suppress  # noqa: E402
from llada.sampling.unmask import generate  # noqa: E402
from llada.tokenizers.base import speechless_rows  # noqa: E402

CHOICES: list[dict[str, Any]] = [
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


def train_run(data: PreparedText, folder: Path) -> Path:
    """A run of our own, of single characters, trained for a second."""
    flags = (
        "--d_model 32 --n_heads 2 --n_layers 1 --sequence_length 32 --batch_size 16 --steps 150 --evaluate_every 150 "
        "--evaluation_windows 4 --compile False --device cpu --precision fp32"
    )
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--data_dir", str(data.folder), "--output_dir", str(folder), *flags.split()])
    assert not exit_.value.code
    return folder


def write_official(text: str, folder: Path) -> Path:
    """LLaDA's layout, byte-level BPE and chat template; it knows nothing, but has an opinion on everything."""
    write_random_checkpoint(folder, text, d_model=32, max_sequence_length=32, dtype=torch.float32)
    return folder


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


def evaluate_all(model: HarnessModel, tasks: Path) -> dict[str, Any]:
    """What the harness finds in all four tasks."""
    return evaluate(model, tasks, "made_choice", "made_text", "made_write", "made_last_words")


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]
