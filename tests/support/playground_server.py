"""A small server of the playground for its tests: the page's files and the diffusion events of one checkpoint.

Shape letters: B batch (of one), L length, N asked positions, V vocabulary rows.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

import llada
from llada.sampling.batches import unmask_together
from llada.sampling.config import FREE_TEXT
from llada.sampling.policies import entropy
from llada.sampling.template import read_template
from llada.system.errors import UserError

PAGE = Path(llada.__file__).parent / "serving" / "playground"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MIME = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
POLICIES = [
    "left_to_right",
    "random",
    "confidence",
    "margin",
    "entropy",
    "threshold",
    "factor",
    "entropy_bound",
    "runs",
]


def application(model: llada.Model, name: str, fingerprint: str, pause: float = 0.0) -> FastAPI:
    """Serve the page and one model; `pause` is in seconds after each step, so that a test can cancel."""
    app, tokenizer, lock = FastAPI(), model.tokenizer, threading.Lock()
    size = model.checkpoint.config.vocab_size

    def token(id_: int) -> dict[str, Any]:
        return {"id": id_, "text": tokenizer.decode([id_])}

    def alternatives(log_p: torch.Tensor, k: int) -> list[dict[str, Any]]:
        best = log_p.exp().topk(min(k, log_p.shape[-1]))
        return [token(int(i)) | {"p": float(p)} for p, i in zip(best.values, best.indices, strict=True)]

    def events(template: list[int], seed: int, settings: dict[str, Any], k: int) -> Iterator[dict[str, Any]]:
        config = replace(FREE_TEXT, **settings)
        is_open = [id_ == tokenizer.mask_id for id_ in template]
        yield {
            "type": "start",
            "tokens": [None if one else token(id_) for one, id_ in zip(is_open, template, strict=True)],
            "given": [not one for one in is_open], "limit": min(config.steps or sum(is_open), sum(is_open)),
            "seed": seed, "settings": asdict(config), "model": name, "fingerprint": fingerprint,
        }  # fmt: skip
        began, nats, row, nfe = time.perf_counter(), 0.0, list(template), 0
        predict, pad_id = model.checkpoint.predict, tokenizer.pad_id
        states = unmask_together(predict, [template], tokenizer.mask_id, pad_id, config, [seed], model.device)
        for step, (rows, canvas) in enumerate(states, 1):
            row, nfe = list(rows[0]), canvas.nfe
            assert canvas.asked is not None
            assert canvas.revealed is not None
            assert canvas.log_p is not None
            place = {int(at): n for n, at in enumerate(canvas.asked[0].nonzero()[:, 0])}
            revealed = []
            for at in canvas.revealed[0].nonzero()[:, 0].tolist():
                log_p = canvas.log_p[place[at]]
                nats -= float(log_p[row[at]])
                revealed.append(
                    {
                        "at": at,
                        **token(row[at]),
                        "p": float(log_p[row[at]].exp()),
                        "alternatives": alternatives(log_p, k),
                    }
                )
            yield {
                "type": "step", "step": step, "evaluations": nfe, "seconds": time.perf_counter() - began,
                "revealed": revealed, "remasked": [], "entropy": float(entropy(canvas.log_p).mean()),
                "open": row.count(tokenizer.mask_id),
            }  # fmt: skip
            time.sleep(pause)
        is_exact = (config.policy or config.remasking == "random") and config.stable_entropy is None
        yield {
            "type": "end", "text": tokenizer.decode(row), "evaluations": nfe, "seconds": time.perf_counter() - began,
            "nats": nats if is_exact else None, "tokens_written": sum(is_open), "finish_reason": "length",
        }  # fmt: skip

    def template_of(body: dict[str, Any]) -> list[int]:
        if "tokens" in body:
            return [tokenizer.mask_id if id_ is None else int(id_) for id_ in body["tokens"]]
        if "template" in body:
            return read_template(body["template"], tokenizer, model.checkpoint.check_length)
        prompt = tokenizer.encode(body.get("prompt", ""))
        model.checkpoint.check_length(len(prompt) + body["length"])
        return prompt + [tokenizer.mask_id] * body["length"]

    @app.middleware("http")
    async def secure(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    @app.get("/")
    def index() -> Response:
        return FileResponse(PAGE / "index.html", media_type="text/html")

    @app.get("/playground/{file}")
    def static(file: str) -> Response:
        return FileResponse(PAGE / file, media_type=MIME[Path(file).suffix])

    @app.get("/v1/diffusion/model")
    def describe() -> dict[str, Any]:
        return {
            "name": name, "fingerprint": fingerprint, "max_length": model.max_length, "vocabulary_size": size,
            "parameters": sum(weight.numel() for weight in model.network.parameters()), "policies": POLICIES,
            "default_settings": asdict(FREE_TEXT), "is_causal": model.predictor.is_causal,
            "tokens": {tokenizer.decode([id_]): id_ for id_ in range(3, size - 1)} if size <= 4096 else None,
        }  # fmt: skip

    @app.post("/v1/diffusion/tokenize")
    def tokenize(body: dict[str, Any]) -> Any:
        try:
            return {"tokens": [token(id_) for id_ in tokenizer.encode(body["text"])]}
        except UserError as error:
            return JSONResponse({"error": {"message": str(error)}}, 400)

    @app.post("/v1/diffusion")
    def diffuse(body: dict[str, Any]) -> Response:
        try:
            template, settings = template_of(body), body.get("settings", {})
            replace(FREE_TEXT, **settings)
        except (UserError, ValueError, TypeError) as error:
            return JSONResponse({"error": {"message": str(error)}}, 400)

        def stream() -> Iterator[str]:
            steps = events(template, body.get("seed", 0), settings, body.get("alternatives", 5))
            while True:
                with lock:  # of one step: a stream that nobody reads any more keeps nothing
                    event = next(steps, None)
                if event is None:
                    return
                yield f"data: {json.dumps(event)}\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    return app


@contextmanager
def running(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Run a server in a thread, on a free port of this machine, and yield its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
        assert thread.is_alive(), "the server does not start"
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(5)
