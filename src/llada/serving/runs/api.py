"""The HTTP interface behind the page of `llada watch`: GET alone, JSON, and the page's own files.

    /                               the page; its scripts and styles lie next to it
    /api/runs                       all runs: how far each is, and the version of its curves
    /api/runs/ID                    settings, trouble, steps with a sample
    /api/runs/ID/curves             ?buckets=400&first=0&last=1000    curves with at most so many points
    /api/runs/ID/samples/STEP       a sample
    /api/compare                    ?run=ID&run=ID    the settings of runs next to each other

A page asks again and again, and sends the ETag of the answer that it has: a server that has nothing new says so in a
few bytes (304). That survives a laptop's sleep and a server's restart, which an open stream does not.
"""

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response

from llada import __version__
from llada.serving import errors
from llada.serving.errors import ApiError
from llada.serving.limits import Limits
from llada.serving.runs.collection import Runs
from llada.serving.runs.run import WatchedRun
from llada.serving.runs.settings import compared
from llada.serving.security import App, BodyLimit, Guard

PAGE = {
    "index.html": "text/html",
    "style.css": "text/css",
    "app.js": "text/javascript",
    "charts.js": "text/javascript",
    "words.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
"""Files of the page, by name, with their types; no other file is served."""
HOST = "127.0.0.1"
MOST_BUCKETS = 2000
MOST_COMPARED = 20
NOT_THERE = "There is no such run here: it may have been moved or removed."

Step = Annotated[float, Query(ge=0, le=2**53)]


def make_app(folders: Sequence[Path]) -> App:
    """Return the application that shows the runs of these folders.

    Raises:
        UserError: a folder is missing, or there is nothing to watch in it.
    """
    runs = Runs(folders)
    app = FastAPI(
        title="llada watch", version=__version__, openapi_url="/docs/openapi.json", docs_url=None, redoc_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    errors.install(app)

    def found(id_: str) -> WatchedRun:
        run = runs.find(id_)
        if run is None:
            raise ApiError(404, NOT_THERE)
        return run

    @app.get("/api/runs")
    def list_runs(request: Request) -> Response:
        """Return all runs."""
        listed = []
        for run in runs.all():
            with run.lock:
                run.refresh()
                listed.append({"name": runs.name_of(run), **run.summary()})
        return answer(request, {"runs": listed})

    @app.get("/api/runs/{run_id}")
    def show_run(request: Request, run_id: str) -> Response:
        """Return what is shown of one run besides its curves."""
        run = found(run_id)
        with run.lock:
            run.refresh()
            return answer(request, {"name": runs.name_of(run), **run.details()})

    @app.get("/api/runs/{run_id}/curves")
    def show_curves(
        request: Request,
        run_id: str,
        buckets: Annotated[int, Query(ge=2, le=MOST_BUCKETS)] = 400,
        first: Step = 0,
        last: Step = 2**53,
    ) -> Response:
        """Return the curves of a run between two steps."""
        run = found(run_id)
        with run.lock:
            run.refresh()
            return answer(request, run.curves_between(buckets, first, last))

    @app.get("/api/runs/{run_id}/samples/{step}")
    def show_sample(request: Request, run_id: str, step: int) -> Response:
        """Return the sample of a step."""
        text = found(run_id).sample(step) if 0 <= step < 2**53 else None
        if text is None:
            raise ApiError(404, "There is no sample of this step.")
        return answer(request, {"step": step, "text": text})

    @app.get("/api/compare")
    def compare(request: Request, run: Annotated[list[str], Query(max_length=MOST_COMPARED)]) -> Response:
        """Return the settings of runs next to each other."""
        return answer(request, {"settings": compared([found(each).settings() for each in run])})

    @app.get("/", include_in_schema=False)
    @app.get("/{name}", include_in_schema=False)
    def page(request: Request, name: str = "index.html") -> Response:
        if name not in PAGE:
            raise ApiError(404, "There is no such page.")
        content = (files(__package__) / "page" / name).read_bytes()
        return tagged(request, content, f"{PAGE[name]}; charset=utf-8")

    return Guard(BodyLimit(app, Limits()), host=HOST)


def answer(request: Request, content: dict[str, Any]) -> Response:
    """Return an object as JSON, or 304 if the page has it already."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate, as JSON may hold in a name, cannot be encoded.
    return tagged(request, text.encode("utf-8", errors="replace"), "application/json")


def tagged(request: Request, content: bytes, media_type: str) -> Response:
    """Return an answer with an ETag, or 304 if the request names that ETag."""
    headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
