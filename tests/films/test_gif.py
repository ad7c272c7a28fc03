"""The film as a GIF, read again."""

from pathlib import Path

from PIL import Image, ImageChops, ImageColor

from llada.films.colours import DARK
from llada.films.frames import frames_of
from llada.films.gif import CELL, LINE, MARGIN, _draw, _font_for, write_gif
from llada.films.layout import lay_out
from llada.films.timing import END_MS, START_MS
from tests.support.film_events import HOSTILE, film_of, start, tokens_film

VERSE = "ROMEO:\nWhat light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n" * 3


def count(image: Image.Image, colour: str) -> int:
    """The number of pixels of a colour."""
    found = image.convert("RGB").getcolors(1 << 20) or []
    return sum(n for n, rgb in found if rgb == ImageColor.getrgb(colour))


def test_a_gif_has_the_frames_in_their_times_and_ends_with_the_text(tmp_path: Path) -> None:
    frames = frames_of(film_of(VERSE, 6), most=12)
    write_gif(frames, "confidence", tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 12  # type: ignore[attr-defined]
        assert film.info["loop"] == 0
        durations, images = [], []
        for number in range(12):
            film.seek(number)
            durations.append(film.info["duration"])
            images.append(film.convert("RGB"))
    assert durations == [START_MS, *[500] * 10, END_MS]
    assert images[0].size == (2 * MARGIN + 52 * CELL, MARGIN + 12 * LINE)
    n_masked = [count(image, DARK.mask) for image in images]
    assert n_masked == sorted(n_masked, reverse=True)
    assert n_masked[0] > 20_000
    assert n_masked[-1] < 1000  # smooth edges of letters
    drawn = _draw(frames[-1], lay_out(frames[-1], 64, by_words=True), "confidence")
    difference = ImageChops.difference(images[-1], drawn).convert("L").tobytes()
    assert max(difference) < 64  # smooth edges have fewer colours, and nothing else differs


def test_a_film_of_256_characters_is_small(tmp_path: Path) -> None:
    write_gif(frames_of(film_of((VERSE * 2)[:256], 6)), "age", tmp_path / "film.gif")
    assert (tmp_path / "film.gif").stat().st_size < 2_000_000


def test_an_accent_is_drawn_onto_its_letter() -> None:
    frames = [frames_of(tokens_film(texts))[-1] for texts in (["e\u0301", "t"], ["\u00e9", "t"])]
    one, other = (_draw(frame, lay_out(frame, 64), "confidence") for frame in frames)
    assert one == other


def test_any_character_can_be_drawn(tmp_path: Path) -> None:
    write_gif(frames_of(tokens_film([*HOSTILE, "天", "地", "e\u0301", "🙂", ""])), "confidence", tmp_path / "film.gif")
    assert Path(str(_font_for("a", 20, False).path)).name == "DejaVuSansMono.ttf"
    assert Path(str(_font_for("a", 20, True).path)).name == "DejaVuSansMono-Bold.ttf"


def test_a_text_that_was_all_given_is_a_picture(tmp_path: Path) -> None:
    write_gif(frames_of([start(["a", "b"])]), "confidence", tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert getattr(film, "n_frames", 1) == 1
