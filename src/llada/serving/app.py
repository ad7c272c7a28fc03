"""The server's application: its endpoints, its page, and what stands before them."""

import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from llada import __version__
from llada.serving import errors
from llada.serving.diffusion_api import diffusion_routes
from llada.serving.engine import Engine
from llada.serving.limits import Limits
from llada.serving.metrics import Counted, Metrics
from llada.serving.openai_api import openai_routes
from llada.serving.security import App, BodyLimit, Guard
from llada.serving.served import Served

PLAYGROUND = Path(__file__).with_name("playground")
OPENAPI = "/docs/openapi.json"
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
REFUSALS = {
    400: "The request cannot be met.", 401: "The API key is missing or wrong.", 403: "Not from there.",
    404: "There is no such model.", 408: "The body came too slowly.", 413: "The body is too large.",
    429: "The queue is full; Retry-After says when there may be room.", 500: "The model is broken.",
    503: "The server is being stopped.", 504: "The text took too long.",
}  # fmt: skip


def build_app(
    served: Served,
    engine: Engine,
    metrics: Metrics,
    limits: Limits,
    *,
    host: str,
    api_key: str | None = None,
) -> App:
    """Build the application for a model, with all that stands before it."""
    app = build_endpoints(served, engine, metrics)
    endpoints = frozenset({"/", *app.openapi()["paths"]})
    return Counted(Guard(BodyLimit(app, limits), host, api_key), metrics, endpoints)


def build_endpoints(served: Served, engine: Engine, metrics: Metrics) -> FastAPI:
    """Build the endpoints alone, without what keeps strangers out."""
    app = FastAPI(
        title="llada serve", version=__version__, openapi_url=OPENAPI, docs_url=None, redoc_url=None,
        description="A masked diffusion language model: OpenAI's API, and every step as it happens.",
        redirect_slashes=False,
    )  # fmt: skip
    errors.install(app)
    app.include_router(openai_routes(served, engine, int(time.time())))
    app.include_router(diffusion_routes(served, engine))

    @app.get("/health", tags=["operation"])
    def health() -> JSONResponse:
        """Say whether texts are taken, how many wait, and whether the files are still those in memory."""
        state, fingerprint = served.on_disk()
        content = {
            "ready": engine.is_ready,
            "queue": engine.n_waiting,
            "active": engine.n_active,
            "model": served.name,
            "fingerprint": served.fingerprint,
            "on_disk": {"state": state, "fingerprint": fingerprint},
        }
        return JSONResponse(content, 200 if engine.is_ready else 503)

    @app.get("/metrics", tags=["operation"])
    def numbers() -> Response:
        """Count requests, texts, tokens and steps, for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    add_page(app, PLAYGROUND)
    _document_errors(app)
    return app


def add_page(app: FastAPI, folder: Path) -> None:
    """Serve the page at / and its files below /playground/, if they are there."""
    if not (folder / "index.html").is_file():
        return

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(folder / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/playground", StaticFiles(directory=folder), name="playground")


def _document_errors(app: FastAPI) -> None:
    """Put the errors as they are into the OpenAPI document, in the place of FastAPI's own for validation."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        content = {"application/json": {"schema": ERROR_SCHEMA}}
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                for status, words in REFUSALS.items():
                    operation["responses"][str(status)] = {"description": words, "content": content}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
