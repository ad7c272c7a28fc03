"""Files of dialogues: the forms in which people have them, and the keys that say what is to be learned."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llada.data.dialogues import DialogueFile, Reading, SplitDialogues, fingerprint, read_dialogues, split_dialogues
from llada.system.errors import UserError
from llada.tokenizers.message import Message
from tests.support.sentences import assert_one_sentence

ASK, SAY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = (Message("user", "q"), Message("assistant", "a"))
BRIEF = Message("system", "s")
OBEY, IGNORE = Reading(), Reading(keys="ignore")


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def read(tmp_path: Path, *rows: object, reading: Reading = OBEY) -> DialogueFile:
    return read_dialogues(write(tmp_path / "chat.jsonl", *rows), reading)


def learned(file: DialogueFile) -> list[list[str]]:
    """The answers that are learned, of each dialogue."""
    return [[d.messages[i].content for i in d.learned] for d in file.dialogues]


# Forms


FORMS: list[tuple[dict[str, Any], tuple[Message, ...]]] = [
    ({"messages": [ASK, SAY]}, PAIR),
    ({"messages": [{"role": "system", "content": "s"}, ASK, SAY]}, (BRIEF, *PAIR)),
    ({"messages": [{"role": "developer", "content": "s"}, ASK, SAY]}, (BRIEF, *PAIR)),
    ({"messages": [{"role": "human", "content": "q"}, {"role": "gpt", "content": "a"}]}, PAIR),
    ({"messages": [ASK, SAY], "system": "s"}, (BRIEF, *PAIR)),
    ({"messages": [{"role": "system", "content": "s"}, ASK, SAY], "system": "s "}, (BRIEF, *PAIR)),
    ({"messages": [ASK, SAY], "system": None, "tools": [], "prompt": "q"}, PAIR),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, PAIR),
    ({"conversations": [{"from": "system", "value": "s"}, {"from": "user", "value": "q"}, SAY]}, (BRIEF, *PAIR)),
    ({"conversations": [ASK, SAY]}, PAIR),
    ({"conversation": [ASK, SAY]}, PAIR),
    ({"prompt": "q", "answer": "a"}, PAIR),
    ({"prompt": "q", "response": "a"}, PAIR),
    ({"prompt": "q", "completion": "a"}, PAIR),
    ({"prompt": "q", "output": "a"}, PAIR),
    ({"prompt": "q", "completion": "a", "response": "a"}, PAIR),
    ({"system": "s", "prompt": "q", "answer": "a"}, (BRIEF, *PAIR)),
    ({"system": None, "prompt": "q", "answer": "a"}, PAIR),
    ({"system": "", "prompt": "q", "answer": "a"}, PAIR),
    ({"prompt": [ASK], "completion": [SAY]}, PAIR),
    ({"prompt": [{"role": "system", "content": "s"}, ASK], "completion": [SAY]}, (BRIEF, *PAIR)),
    ({"prompt": [ASK], "completion": "a"}, PAIR),
    ({"instruction": "q", "output": "a"}, PAIR),
    ({"instruction": "q", "input": "", "output": "a"}, PAIR),
    ({"instruction": "q", "input": "i", "output": "a"}, (Message("user", "q\ni"), PAIR[1])),
    ({"instruction": "q", "context": "i", "response": "a"}, (Message("user", "q\ni"), PAIR[1])),
    ({"instruction": "q", "output": "a", "system": "s", "history": [["b", "c"]]},
     (BRIEF, Message("user", "b"), Message("assistant", "c"), *PAIR)),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, SAY]}, PAIR),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, "r", {"text": "s"}]}, SAY]},
     (Message("user", "qrs"), PAIR[1])),
]  # fmt: skip


@pytest.mark.parametrize(("row", "messages"), FORMS)
def test_every_form_becomes_its_messages(row: dict[str, Any], messages: tuple[Message, ...], tmp_path: Path) -> None:
    file = read(tmp_path, row)
    assert [d.messages for d in file.dialogues] == [messages]
    assert file.notes == []
    assert learned(file) == [[m.content for m in messages if m.role == "assistant"]]


def test_forms_may_be_mixed_and_the_line_of_each_is_known(tmp_path: Path) -> None:
    file = read(tmp_path, FORMS[0][0], "", FORMS[7][0], FORMS[11][0])
    assert [d.number for d in file.dialogues] == [1, 3, 4]
    assert file.dialogues[1].place == f"Line 3 of {tmp_path / 'chat.jsonl'}"


def test_an_array_and_parquet_are_read_as_lines_are(tmp_path: Path) -> None:
    rows = [row for row, _ in FORMS[:3]]
    expected = [messages for _, messages in FORMS[:3]]
    (tmp_path / "chat.json").write_text(json.dumps(rows, indent=1))
    assert [d.messages for d in read_dialogues(tmp_path / "chat.json").dialogues] == expected
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    keys = ("messages", "prompt", "answer")  # columns, of which a row has some
    table = arrow.Table.from_pylist([{key: row.get(key) for key in keys} for row in [*rows, FORMS[11][0]]])
    parquet.write_table(table, tmp_path / "chat.parquet")
    file = read_dialogues(tmp_path / "chat.parquet")
    assert [d.messages for d in file.dialogues] == [*expected, PAIR]
    assert file.dialogues[2].place == f"Row 3 of {tmp_path / 'chat.parquet'}"


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    content = json.dumps(FORMS[0][0]).encode() + b"\n"
    os.write(theirs, content)
    os.close(theirs)
    file = read_dialogues(Path(f"/dev/fd/{ours}"))
    os.close(ours)
    assert [d.messages for d in file.dialogues] == [PAIR]
    assert "is a pipe, which is read once" in file.notes[0]
    (tmp_path / "chat.jsonl").write_bytes(content)
    assert read_dialogues(tmp_path / "chat.jsonl").sha256 == file.sha256


BROKEN: list[tuple[object, str]] = [
    ('{"prompt": "a"', "is not valid JSON"),
    ("[1]", "not a JSON object"),
    ('{"prompt": "\\ud800", "answer": "b"}', "half a character"),
    ({"text": "a"}, "neither"),
    ({"prompt": "a"}, "neither"),
    ({}, "no keys"),
    ({"prompt": 3, "answer": "b"}, 'its "prompt" is not text'),
    ('{"prompt": "a", "answer": NaN}', 'its "answer" is not text'),
    ({"prompt": "a", "answer": " "}, "message 2, an answer, is empty"),
    ({"prompt": [], "completion": []}, "has no answer"),
    ({"messages": "a"}, "is not a list"),
    ({"messages": ["a"]}, "message 1 is not a JSON object"),
    ({"messages": []}, "has no answer"),
    ({"messages": [ASK]}, "has no answer"),
    ({"messages": [{"role": "user"}]}, 'lacks "role" or "content"'),
    ({"messages": [{"role": "user", "content": None}, SAY]}, "content of message 1 is not text"),
    ({"messages": [SAY]}, "where the user has the turn"),
    ({"messages": [{"role": "judge", "content": "a"}]}, "role 'judge'"),
    ({"messages": [{"role": ["user"], "content": "a"}]}, "message 1 has the role"),
    ({"messages": [ASK, ASK]}, "message 2 is of the user, where the assistant"),
    ({"messages": [ASK, {"role": "system", "content": "b"}]}, "message 2 is of the system"),
    ({"messages": [ASK, {"role": "tool", "content": "b"}]}, "role 'tool', that of a tool"),
    ({"messages": [{"role": "system", "content": "t"}, ASK, SAY], "system": "s"}, "two system messages"),
    ({"instruction": "q", "output": "a", "history": "b"}, '"history" is not a list'),
    ({"instruction": "q", "output": "a", "history": [["b"]]}, '"history" is not a list'),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "it is a preference"),
    ({"chosen": [ASK, SAY], "rejected": [ASK, SAY]}, "it is a preference"),
    ({"prompt": "q", "completion": "a", "label": False}, "an unpaired preference"),
    ({"prompt": "q", "completion": "a", "response": "b"}, 'both "response" and "completion"'),
    ('{"prompt": "q", "answer": "a", "answer": "b"}', "the key 'answer' twice"),
    ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "the key 'content' twice"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, SAY]}, "'image_url'"),
    ({"messages": [{"role": "user", "content": [3]}, SAY]}, "a part that is not text"),
]


@pytest.mark.parametrize(("row", "complaint"), BROKEN)
def test_a_broken_line_is_named_by_its_number(row: object, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^Line 2 of .*{complaint}") as caught:
        read(tmp_path, FORMS[0][0], row)
    assert_one_sentence(caught.value)


def test_broken_lines_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    good = [row for row, _ in FORMS]
    broken = [row for row, _ in BROKEN]
    file = read(tmp_path, broken[0], *good[:2], *broken[1:], *good[2:], reading=Reading(skip_bad=True))
    assert [d.messages for d in file.dialogues] == [messages for _, messages in FORMS]
    (note,) = file.notes
    n = len(broken)
    assert note.startswith(f"Skipped {n} of {n + len(good)} lines of {tmp_path / 'chat.jsonl'}; the first: Line 1 of")
    with pytest.raises(UserError, match=r"holds no dialogue that can be learned \(2 are skipped\): Line 1 of"):
        read(tmp_path, *broken[:2], reading=Reading(skip_bad=True))


def test_missing_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        read_dialogues(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match="holds no dialogue"):
        read_dialogues(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_dialogues(tmp_path / "latin.jsonl")


# What is learned


def answer(text: str, **keys: object) -> dict[str, object]:
    return {"role": "assistant", "content": text, **keys}


@pytest.mark.parametrize("key", ["weight", "train", "trainable", "training", "loss"])
@pytest.mark.parametrize(("no", "yes"), [(0, 1), (False, True), (0.0, 1.0)])
def test_an_answer_that_is_not_to_be_learned_is_context_only(key: str, no: object, yes: object, tmp_path: Path) -> None:
    row = {"messages": [ASK, answer("bad", **{key: no}), ASK, answer("good", **{key: yes}), ASK, answer("good too")]}
    file = read(tmp_path, row, row)
    assert learned(file) == [["good", "good too"]] * 2
    assert [m.content for m in file.dialogues[0].messages] == ["q", "bad", "q", "good", "q", "good too"]
    assert file.notes == [f"Answers of {tmp_path / 'chat.jsonl'} that are not learned, as it says: 2."]
    assert learned(read(tmp_path, row, reading=IGNORE)) == [["bad", "good", "good too"]]


def test_two_keys_must_both_allow_it(tmp_path: Path) -> None:
    row = {"messages": [ASK, answer("bad", weight=1, train=False), ASK, answer("good", weight=1, train=True)]}
    assert learned(read(tmp_path, row)) == [["good"]]


@pytest.mark.parametrize("key", ["weight", "train", "trainable"])
def test_a_whole_row_can_be_excluded(key: str, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "answer": "bad", key: 0}, {"prompt": "q", "answer": "a", key: 1}]
    assert learned(read(tmp_path, *rows)) == [["a"]]
    with pytest.raises(UserError, match=r"None of the 1 dialogues of .* has an answer that is to be learned"):
        read(tmp_path, rows[0])


@pytest.mark.parametrize("value", [0.5, 2, -1, "0", "no", [0]])
def test_a_weight_that_cannot_be_obeyed_is_refused(value: object, tmp_path: Path) -> None:
    for row in ({"messages": [ASK, answer("a", weight=value)]}, {"prompt": "q", "answer": "a", "weight": value}):
        with pytest.raises(UserError, match=r'Line 1 of .*the "weight" of .*, neither 0 nor 1'):
            read(tmp_path, row)


def test_of_a_prompt_that_is_a_dialogue_only_the_completion_is_learned(tmp_path: Path) -> None:
    """As TRL has it."""
    row = {"prompt": [ASK, answer("earlier"), ASK], "completion": [answer("a")]}
    assert learned(read(tmp_path, row)) == [["a"]]


def test_the_last_answer_alone_can_be_learned(tmp_path: Path) -> None:
    rows = [
        {"messages": [ASK, answer("b"), ASK, answer("c"), ASK]},
        {"messages": [ASK, answer("d"), ASK, answer("e", weight=0)]},
    ]
    file = read(tmp_path, *rows, reading=Reading(last_answer=True))
    assert learned(file) == [["c"]]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tool_calls", [{"id": "1", "function": {"name": "w"}}]),
        ("function_call", {"name": "w"}),
        ("audio", {"id": "1"}),
        ("training_detail", [{"begin_offset": 0, "end_offset": 1, "train": False}]),
    ],
)
def test_an_answer_of_which_a_part_cannot_be_learned_is_refused(key: str, value: object, tmp_path: Path) -> None:
    row = {"messages": [ASK, answer("Let me look.", **{key: value})]}
    with pytest.raises(UserError, match=f'Line 2 of .*message 2 has "{key}"') as caught:
        read(tmp_path, {"messages": [ASK, answer("a", **{key: None})]}, row)
    assert_one_sentence(caught.value)
    file = read(tmp_path, row, reading=IGNORE)
    assert learned(file) == [["Let me look."]]
    assert f"{key} (1 line)" in file.notes[0]


def test_what_is_not_used_is_counted_once_a_row(tmp_path: Path) -> None:
    row = {
        "id": 7,
        "tools": [{"name": "w"}],
        "messages": [ASK, answer("a", reasoning_content="since"), ASK, answer("b", reasoning_content="since")],
        "source": "",
    }
    file = read(tmp_path, row, row, {"messages": [ASK, answer("a", refusal=None)], "id": 8})
    assert file.notes == [
        f"Of {tmp_path / 'chat.jsonl'}, these are not used: id (3 lines), reasoning_content (2 lines), tools (2 lines)."
    ]
    file = read(tmp_path, row, "[1]", {**row, "score": {"a": 1}, "weight": 5}, reading=Reading(skip_bad=True))
    assert "tools (1 line)" in file.notes[1]
    assert "score" not in file.notes[1]  # of a row that is skipped


def test_many_and_strange_keys_are_shown_in_part(tmp_path: Path) -> None:
    row = {**FORMS[0][0], **{f"key{i}": i + 1 for i in range(20)}, "k" * 1000: 1, "\x1b[2J": 1}
    (note,) = read(tmp_path, row).notes
    assert note.endswith(" and 14 more.")
    assert len(note) < 500
    assert note.isprintable()


def test_what_has_no_answer_or_no_question_is_counted(tmp_path: Path) -> None:
    file = read(tmp_path, {"messages": [SAY, ASK, answer("b"), ASK]})
    assert [m.content for m in file.dialogues[0].messages] == ["q", "b", "q"]
    assert learned(file) == [["b"]]
    assert "a last question without an answer (1 line)" in file.notes[0]
    assert "what the assistant says before the first question (1 line)" in file.notes[0]


def test_a_weight_of_a_question_says_nothing_or_is_counted(tmp_path: Path) -> None:
    silent = read(tmp_path, {"messages": [{**ASK, "weight": 0}, SAY]})
    assert (learned(silent), silent.notes) == ([["a"]], [])
    wanted = read(tmp_path, {"messages": [{**ASK, "train": True}, SAY]})
    assert "train of messages that are not answers (1 line)" in wanted.notes[0]


def test_ignoring_keys_reads_what_was_read_before_they_were_judged(tmp_path: Path) -> None:
    """The first of several answers, the last of two values of a key, an empty system message, none next to messages."""
    file = read(
        tmp_path,
        {"prompt": "q", "completion": "c", "response": "r"},
        '{"prompt": "q", "answer": "first", "answer": "second"}',
        {"system": "", "prompt": "q", "answer": "a"},
        {"messages": [ASK, SAY], "system": "s"},
        reading=IGNORE,
    )
    assert learned(file) == [["r"], ["second"], ["a"], ["a"]]
    assert file.dialogues[2].messages == (Message("system", ""), *PAIR)
    assert file.dialogues[3].messages == PAIR
    for part in ("completion (1 line)", "answer twice (1 line)", "system (1 line)"):
        assert part in file.notes[0]


# Training and validation


def questions(dialogues: list[Any]) -> list[str]:
    return [d.messages[0].content for d in dialogues]


def split(path: Path, **options: Any) -> SplitDialogues:
    return split_dialogues(path, **options)


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    return write(tmp_path / "letters.jsonl", *({"prompt": c, "answer": c} for c in "abcdefghijklmnopqrst"))


def test_what_is_kept_to_measure_on_is_shuffled_by_its_seed(letters: Path) -> None:
    """Of "0/0" to "0/19", those of 16, 10, 4 and 14 have the least hashes by `sha256sum`."""
    parts = {seed: split(letters, validation_share=0.2, seed=seed) for seed in range(3)}
    for part in parts.values():
        assert len(part.val) == 4
        assert sorted(questions(part.train) + questions(part.val)) == list("abcdefghijklmnopqrst")
        assert questions(part.train) == sorted(questions(part.train))  # in the order of the file
    assert questions(split(letters, validation_share=0.2).val) == questions(parts[0].val)
    assert len({tuple(questions(part.val)) for part in parts.values()}) == 3
    assert questions(parts[0].val) == ["e", "k", "o", "q"]


def test_the_last_ones_are_kept_where_the_rule_says_so(letters: Path) -> None:
    part = split(letters, validation_share=0.2, rule="last")
    assert questions(part.val) == list("qrst")
    assert questions(part.train) == list("abcdefghijklmnop")


def test_a_sorted_file_is_measured_on_all_of_it(tmp_path: Path) -> None:
    """Easy ones first: half of those that are kept are hard, within 4 standard deviations (5 each) of chance."""
    rows = [{"prompt": "easy" if i < 1000 else "hard", "answer": str(i)} for i in range(2000)]
    part = split(write(tmp_path / "a.jsonl", *rows), validation_share=0.05)
    assert 30 < questions(part.val).count("hard") < 70


def test_validation_can_be_a_file_of_its_own(letters: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", {"prompt": "z", "answer": "y", "id": 1})
    part = split(letters, validation=other)
    assert (len(part.train), questions(part.val)) == (20, ["z"])
    assert part.text_sha256.split() == [read_dialogues(letters).sha256, read_dialogues(other).sha256]
    assert part.notes == [f"Of {other}, these are not used: id (1 line)."]
    assert part.characters == set("abcdefghijklmnopqrstzy\n")
    with pytest.raises(UserError, match="too short to keep a dialogue for validation"):
        split(other)


def test_fingerprints_tell_texts_order_and_what_is_learned_apart(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}]
    of = [
        fingerprint(read(tmp_path, *changed).dialogues)
        for changed in (
            rows,
            rows[::-1],
            [rows[0], {"prompt": "c", "answer": "e"}],
            [rows[0], {"messages": [{"role": "user", "content": "c"}, answer("d")]}],
            [{"messages": [ASK, answer("a", weight=w), ASK, answer("b")]} for w in (0, 0)],
            [{"messages": [ASK, answer("a", weight=w), ASK, answer("b")]} for w in (0, 1)],
        )
    ]
    assert of[0] == of[3]  # the same in another form
    assert len(set(of)) == 5
