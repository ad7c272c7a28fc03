"""Answers step by step, and the command that talks."""

import io
import json
from pathlib import Path

import pytest
import torch

from llada.checkpoints.folder import Checkpoint
from llada.checkpoints.load import open_model
from llada.cli import main
from llada.cli.drawing import draw_tokens
from llada.models import LLaDAConfig
from llada.sampling.config import SamplerConfig
from llada.system.errors import UserError
from llada.tokenizers.char import CharTokenizer
from llada.tokenizers.chat_template import PlainFormat, chat_format
from llada.tokenizers.message import Message

TOKENIZER = CharTokenizer("abcdefgh\n")
FORM = PlainFormat(TOKENIZER)
EOS, MASK = TOKENIZER.eos_id, TOKENIZER.mask_id


class Scripted(torch.nn.Module):
    """A model whose likeliest tokens are a script, behind whatever prompt, the first ones being the surest."""

    def __init__(self, script: list[int]) -> None:
        super().__init__()
        self.script = script
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def forward(self, x_t: torch.Tensor) -> torch.Tensor:
        self.seen.append(x_t[0].tolist())
        logits = torch.zeros(*x_t.shape, TOKENIZER.vocab_size)
        first = x_t.shape[1] - len(self.script)
        for i, token in enumerate(self.script):
            logits[0, first + i, token] = 20.0 - i
        return logits


def checkpoint_of(script: list[int], longest: int = 30) -> Checkpoint:
    config = LLaDAConfig(
        d_model=8, n_heads=1, n_layers=1, vocab_size=TOKENIZER.vocab_size, mask_token_id=TOKENIZER.mask_row,
        pad_token_id=0, eos_token_id=EOS, mlp_hidden_size=8, max_sequence_length=longest,
    )  # fmt: skip
    return Checkpoint(Scripted(script), TOKENIZER, config, Path("nowhere"))  # type: ignore[arg-type]


def test_an_answer_appears_step_by_step_and_stops_at_its_end() -> None:
    """Two tokens and EOS are decided after three steps; the other five of the canvas do not matter."""
    a, b = TOKENIZER.encode("ab")
    checkpoint = checkpoint_of([a, b, EOS, a, a, a, a, a])
    states = list(checkpoint.assistant(FORM).answer([Message("user", "cd")], 8, SamplerConfig(steps=8)))
    assert [state.ids[:3] for state in states] == [[a, MASK, MASK], [a, b, MASK], [a, b, EOS]]
    assert [(state.nfe, state.nfe_saved) for state in states] == [(1, 0), (2, 0), (3, 5)]
    assert all(MASK in state.ids for state in states)
    assert checkpoint.model.seen[0] == FORM.prompt([Message("user", "cd")]) + [MASK] * 8  # type: ignore[index]


def test_the_oldest_turns_are_forgotten_when_the_model_is_too_short() -> None:
    a = TOKENIZER.encode("a")[0]
    messages = [Message("user", "abcdefgh"), Message("assistant", "b"), Message("user", "cd")]
    checkpoint = checkpoint_of([a, EOS], longest=8)
    last = list(checkpoint.assistant(FORM).answer(messages, 2, SamplerConfig(steps=2)))[-1]
    assert last.n_forgotten == 2
    assert checkpoint.model.seen[0] == FORM.prompt(messages[2:]) + [MASK] * 2  # type: ignore[index]
    with pytest.raises(UserError, match=r"does not fit the 8 tokens .* with an answer of 5: shorten it"):
        list(checkpoint.assistant(FORM).answer(messages[2:], 5, SamplerConfig()))
    with pytest.raises(UserError, match="leaves no room"):
        list(checkpoint.assistant(FORM).answer(messages, 8, SamplerConfig()))


def test_unfinished_text_is_drawn_in_runs() -> None:
    a, b = TOKENIZER.encode("ab")
    picture = draw_tokens(TOKENIZER, [a, b, MASK, MASK, a])
    assert picture.plain == "ab░░a"
    assert [(span.start, span.end, span.style) for span in picture.spans] == [
        (0, 2, "bold"),
        (2, 4, "dim"),
        (4, 5, "bold"),
    ]


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has hardly learned anything."""
    folder = tmp_path_factory.mktemp("talker")
    lines = [{"prompt": c, "answer": d} for c in "abcd" for d in "abcd"]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = ["--d_model", "16", "--n_layers", "1", "--weight_power", "1", "--steps", "2", "--evaluate_every", "2"]
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--chat", str(folder / "chat.jsonl"), "--output_dir", str(folder / "run"), *flags])
    assert not exit_.value.code
    return folder / "run"


def talk(talker: Path, lines: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    with pytest.raises(SystemExit) as exit_:
        main(["chat", "--checkpoint", str(talker), "--gen_length", "2", *flags])
    return int(exit_.value.code or 0)


def test_lines_are_messages_where_there_is_no_terminal(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(talker, "a\n\nb\n/new\nc\n", monkeypatch) == 0
    assert len(capsys.readouterr().out.split("\n")) == 4  # three answers, maybe empty ones, each on a line
    assert talk(talker, "/help\na\n", monkeypatch) == 0
    said = capsys.readouterr()
    assert len(said.out.split("\n")) == 2  # it is not a message
    assert "/new begins anew, /exit or Ctrl-D leaves" in " ".join(said.err.split())
    assert talk(talker, "a\n/exit\nb\n", monkeypatch) == 0
    assert len(capsys.readouterr().out.split("\n")) == 2


def test_a_message_that_cannot_be_answered_is_told_and_the_next_one_is_answered(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(talker, "é\n\udcff\naaaaaaaaaaaaaaaa\na\n", monkeypatch) == 2
    output = capsys.readouterr()
    assert len(output.out.split("\n")) == 2
    for complaint in ("is not in the vocabulary", "not UTF-8", "does not fit"):
        assert complaint in " ".join(output.err.split())


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--gen_length", "100"], "leaves no room"),
        (["--gen_length", "0"], "--gen_length"),
        (["--temperature", "nan"], "temperature"),
        (["--temperature", "inf"], "temperature"),
        (["--cfg_scale", "-1"], "cfg_scale"),
        (["--block_length", "0"], "--block_length"),
    ],
)
def test_bad_flags_of_chat_are_one_sentence(
    flags: list[str], complaint: str, talker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["chat", "--checkpoint", str(talker), "--prompt", "a", *flags])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert "Traceback" not in error


def test_the_same_seed_gives_the_same_answer(talker: Path) -> None:
    checkpoint = open_model(talker, dtype=None)
    form = chat_format(checkpoint.tokenizer)
    config = SamplerConfig(steps=2, temperature=1.0, remasking="random")
    question = [Message("user", "a")]
    one, other = (
        list(checkpoint.assistant(form).answer(question, 2, config, torch.Generator().manual_seed(4))) for _ in range(2)
    )
    assert one == other
