"""Films as files: the kind by the name's ending, and what cannot be written."""

import os
from pathlib import Path

import pytest

from llada.films.write import KINDS, check_film, write_film
from llada.system.errors import UserError
from tests.support.film_events import HOSTILE, film_of, start, tokens_film


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_written_whole_into_a_new_folder(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "films" / f"film{kind.upper()}"
    write_film(film_of("to be", 2), path)
    first = path.read_bytes()
    write_film(tokens_film(HOSTILE), path)  # takes the place of the older one
    write_film(film_of("to be", 2), path)
    assert path.read_bytes() == first  # the same events are the same film, byte for byte
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    beginnings = {".gif": b"GIF89a", ".html": b"<!doctype html>", ".svg": b"<svg ", ".cast": b'{"version": 2'}
    assert first.startswith(beginnings[kind])


def test_another_ending_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match=r"as film\.mp4: let its name end in \.gif, \.html, \.svg or \.cast\."):
        check_film(Path("film.mp4"))
    with pytest.raises(UserError, match=r"No film can be written as film:"):
        check_film(Path("film"))


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "film.gif").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        check_film(tmp_path / "film.gif")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file: choose another folder"):
        check_film(tmp_path / "file" / "film.gif")
    if os.geteuid():
        (tmp_path / "closed").mkdir(0o500)
        with pytest.raises(UserError, match="cannot be written"):
            check_film(tmp_path / "closed" / "film.gif")


def test_a_text_without_tokens_has_no_film(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to film"):
        write_film([start([])], tmp_path / "film.svg")
