"""A film as one HTML file with the page's player in it: play, scrub, and see what else could have stood there.

It needs no server and loads nothing; its content security policy allows its own style and script alone.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from llada.films.frames import ColourBy, Frame
from llada.films.layout import shown
from llada.system.terminal import visible

LOOP_SECONDS = 3  # of pause before it plays again
_STYLE = """
body { margin: 0; padding: 24px 16px; background: var(--sheet); }
main { max-width: 720px; margin: 0 auto; }
.film-note { margin: 20px 0 0; font: 13px/1.5 var(--sans); color: var(--quiet); }
"""
_MOUNT = """
const read = (id) => JSON.parse(document.getElementById(id).textContent);
mountPlayer(document.getElementById("film"), read("events"), read("options"));
"""


def html(events: Sequence[Mapping[str, Any]], last: Frame, by: ColourBy, title: str) -> str:
    """Return the page.

    Args:
        last: the last frame, whose text is shown where no script runs.
        title: what the window is called, and the line below the film.
    """
    style, script = _player("player.css") + _STYLE, _player("player.js") + _MOUNT
    policy = f"default-src 'none'; style-src {_hash_of(style)}; script-src {_hash_of(script)}; base-uri 'none'"
    options = {"label": "Text", "colour": by, "autoplay": True, "loop": LOOP_SECONDS}
    name, text = escape(visible(title)), escape("".join(map(shown, last.places)))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<title>{name}</title>
<style>{style}</style>
</head>
<body>
<main>
<div id="film"></div>
<noscript><pre>{text}</pre></noscript>
<p class="film-note">{name}</p>
</main>
<script type="application/json" id="events">{_data(list(events))}</script>
<script type="application/json" id="options">{_data(options)}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def _player(name: str) -> str:
    """Return a file of the page's player, which works alone."""
    return files("llada").joinpath("serving", "playground", name).read_text(encoding="utf-8")


def _data(content: object) -> str:
    """Return JSON that cannot end the element that it stands in."""
    return json.dumps(content).replace("<", "\\u003c")


def _hash_of(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
