"""The film as a page: one file that needs nothing else, played by a real browser."""

import json
import re
from pathlib import Path

import pytest

from llada.films.frames import frames_of
from llada.films.html import html
from llada.films.write import write_film
from tests.support.browser import Watched, browser
from tests.support.film_events import HOSTILE, film_of, tokens_film

VERSE = "ROMEO:\nWhat light through yonder window breaks?"


def page_of(events: list[dict[str, object]]) -> str:
    return html(events, frames_of(events)[-1], "confidence", "demo </title><script>alert(1)</script>")


def test_the_events_are_in_the_page_and_cannot_end_their_element() -> None:
    events = tokens_film(HOSTILE)
    page = page_of(events)
    (data,) = re.findall(r'<script type="application/json" id="events">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data) == json.loads(json.dumps(events))
    assert page.count("</script>") == 3  # events, options, player
    assert page.count("<script") == 3
    assert "alert(1)</script>" not in page


def test_the_policy_allows_its_own_style_and_script_alone() -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page_of(film_of(VERSE)))
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/]+=*'; script-src 'sha256-[\w+/]+=*'; base-uri 'none'", policy
    )


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_plays_it_from_a_file(tmp_path: Path, width: int) -> None:
    write_film(film_of(VERSE, 6), tmp_path / "film.html")
    with browser() as opened:
        watched = Watched(opened, viewport={"width": width, "height": 800}, reduced_motion="reduce")
        watched.page.goto((tmp_path / "film.html").as_uri())
        tokens = watched.page.locator(".token")
        assert tokens.count() == len(VERSE)
        assert watched.page.locator(".token.is-masked").count() == 0  # where people prefer less motion, it is finished
        scrubber = watched.page.get_by_role("slider")
        for at in (0, 20, len(VERSE) - 6):
            scrubber.fill(str(at))
            assert watched.page.locator(".token.is-masked").count() == len(VERSE) - 6 - at
        assert watched.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert watched.complaints == []
        assert watched.hosts == {None}  # its own file
        watched.close()


def test_a_browser_shows_hostile_tokens_as_text(tmp_path: Path) -> None:
    write_film(tokens_film([*HOSTILE, "ok"]), tmp_path / "film.html")
    with browser() as opened:
        watched = Watched(opened, reduced_motion="reduce")
        watched.page.on("dialog", lambda dialog: watched.complaints.append(dialog.message))
        watched.page.goto((tmp_path / "film.html").as_uri())
        assert watched.page.locator(".token").count() == len(HOSTILE) + 1
        assert "<script>alert(1)</script>" in watched.page.locator(".player-text").inner_text()
        assert watched.complaints == []
        watched.close()


def test_an_svg_film_moves_in_a_browser_and_stands_still_where_people_prefer_that(tmp_path: Path) -> None:
    write_film(film_of(VERSE, 6), tmp_path / "film.svg")
    (tmp_path / "page.html").write_text('<img src="film.svg">')
    with browser() as opened:
        for motion, moves in (("no-preference", True), ("reduce", False)):
            watched = Watched(opened, reduced_motion=motion)
            watched.page.goto((tmp_path / "film.svg").as_uri())
            assert (watched.page.evaluate("document.getAnimations().length") > 0) is moves
            if moves:
                watched.page.evaluate("document.getAnimations().forEach(one => { one.pause(); one.currentTime = 0; })")
            fills = "[...document.querySelectorAll('tspan')].map(one => getComputedStyle(one).fill)"
            hidden = watched.page.evaluate(fills).count("rgba(0, 0, 0, 0)")
            assert hidden == (len(VERSE) - 6 if moves else 0)
            watched.page.goto((tmp_path / "page.html").as_uri())  # as a README shows it
            assert watched.page.evaluate("document.querySelector('img').naturalWidth") > 400
            assert watched.complaints == []
            watched.close()
