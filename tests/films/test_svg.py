"""The film as an SVG picture: valid, without scripts, readable where nothing moves."""

import re
import xml.etree.ElementTree as ET

import pytest

from llada.films.frames import frames_of
from llada.films.svg import Clock, svg
from tests.support.film_events import HOSTILE, end, film_of, start, step, tokens_film

VERSE = "ROMEO:\nWhat light through yonder window breaks?\nIt is the east, and Juliet is the sun."
NAMESPACE = "{http://www.w3.org/2000/svg}"


def lines_of(picture: ET.Element) -> list[str]:
    """The text of the finished lines."""
    lines = [text for text in picture.iter(f"{NAMESPACE}text") if text.get("class") is None]
    return ["".join(text.itertext()) for text in lines]


def style_of(picture: ET.Element) -> str:
    return picture.find(f"{NAMESPACE}style").text or ""  # type: ignore[union-attr]


def animations_of(element: ET.Element) -> str:
    return element.get("style", "").removeprefix("animation-name:")


def test_its_text_is_the_finished_one_in_lines() -> None:
    picture = ET.fromstring(svg(frames_of(film_of(VERSE, 6)), "confidence"))
    assert [line.rstrip() for line in lines_of(picture)] == VERSE.split("\n")
    assert picture.findtext(f"{NAMESPACE}desc") == VERSE


def test_it_has_no_script_and_loads_nothing() -> None:
    drawn = svg(frames_of(tokens_film(HOSTILE)), "confidence")
    picture = ET.fromstring(drawn)
    assert {element.tag.removeprefix(NAMESPACE) for element in picture.iter()} == {
        "svg", "title", "desc", "style", "rect", "text", "tspan",
    }  # fmt: skip
    assert not re.search(r"url\(|href|@import|on\w+=", re.sub(r"<(title|desc|tspan).*?</\1>", "", drawn))
    assert "</script><script>alert(1)</script>" in "".join(picture.itertext())


@pytest.mark.parametrize("n_steps", [1, 2, 30, 300])
def test_every_animation_has_keyframes_in_order(n_steps: int) -> None:
    picture = ET.fromstring(svg(frames_of(film_of("ab\n" * (n_steps // 3) + "c" * (n_steps % 3))), "age"))
    used = {animations_of(element) for element in picture.iter()} - {""}
    keyframes = dict(re.findall(r"@keyframes (\w+)\{(.*)\}\n", style_of(picture)))
    assert used == set(keyframes)
    for rule in keyframes.values():
        percents = [float(each) for each in re.findall(r"([\d.]+)%\{", rule)]
        assert percents[0] == 0
        assert percents[-1] == 100
        assert percents == sorted(percents)


def test_a_token_appears_when_its_frame_comes() -> None:
    clock = Clock([700, 500, 500, 3000])
    assert clock.moves([(0, "a")]) == ""
    assert clock.moves([(0, "a"), (1, "b")]) == ' style="animation-name:k0"'
    assert clock.moves([(0, "a"), (1, "b"), (2, "a")], fade_ms=0) == ' style="animation-name:k1"'
    assert clock.moves([(0, "a"), (1, "b")]) == ' style="animation-name:k0"'
    # 700 of 4,700 ms are 14.89 %, and 981 ms are 20.87 %.
    assert list(clock.keyframes()) == [
        "@keyframes k0{0%{a}14.89%{a}20.87%{b}100%{b}}",
        "@keyframes k1{0%{a}14.89%{a}14.91%{b}25.53%{b}25.55%{a}100%{a}}",
    ]


def test_what_stood_in_a_place_before_is_seen_only_while_it_stood_there() -> None:
    frames = frames_of([start([None, None]), step(1, {0: "x"}), step(2, {1: "b"}, remasked=[0]), step(3, {0: "a"})])
    picture = ET.fromstring(svg(frames, "confidence"))
    assert lines_of(picture) == ["ab"]
    (gone,) = (text for text in picture.iter(f"{NAMESPACE}text") if text.get("class") == "gone")
    assert "".join(gone.itertext()) == "x"
    assert gone.get("aria-hidden") == "true"
    assert ".gone{opacity:0}" in style_of(picture)


def test_an_unfinished_film_keeps_its_masks() -> None:
    picture = ET.fromstring(svg(frames_of([start([None, None]), step(1, {0: "a"}, p=0.95)]), "confidence"))
    assert [rect.get("class") for rect in picture.iter(f"{NAMESPACE}rect")][1:3] == ["b plain", "b mask"]
    assert lines_of(picture) == ["a"]


def test_wide_characters_have_the_width_of_two_columns() -> None:
    picture = ET.fromstring(svg(frames_of([start([None, None]), step(1, {0: "天", 1: "a"}), end("天a", 1)]), "age"))
    wide, narrow = picture.iter(f"{NAMESPACE}tspan")
    assert (wide.text, wide.get("x"), wide.get("textLength")) == ("天", "16", "16.8")
    assert (narrow.text, narrow.get("x"), narrow.get("textLength")) == ("a", "32.8", None)


def test_a_film_of_256_characters_is_small() -> None:
    text = (VERSE + "\n") * 4
    assert len(svg(frames_of(film_of(text[:256], 6)), "confidence").encode()) < 150_000
    assert len(svg(frames_of(film_of(text[:256], 6)), "age").encode()) < 150_000
