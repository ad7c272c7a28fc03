"""The endpoints of the page: a text whose every step is sent as it happens, and what the model is."""

import secrets
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Response

from llada.sampling.events import error_event
from llada.serving.answer_text import AnswerText
from llada.serving.asking import Texts
from llada.serving.completions import canvas_ids
from llada.serving.engine import Engine
from llada.serving.errors import ApiError
from llada.serving.served import Served
from llada.serving.shapes import DiffusionRequest, TokenizeRequest, settings_of
from llada.serving.streams import EventStream, sse
from llada.serving.writing import Wanted


def diffusion_routes(served: Served, engine: Engine) -> APIRouter:
    """Build the endpoints for a model."""
    router = APIRouter(prefix="/v1/diffusion", tags=["diffusion"])
    description = served.description()

    @router.get("/model")
    async def model() -> dict[str, Any]:
        """Describe the model: its name, its fingerprint, its length, and how it is sampled by default."""
        return description

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """Encode a text, which must not be longer than the model's length."""
        ids = served.encode(body.text, "text")
        if len(ids) > served.max_length:
            raise ApiError(
                400, f"The text has {len(ids)} tokens, and this model takes {served.max_length}: shorten it.",
                param="text", code="context_length_exceeded",
            )  # fmt: skip
        return {"tokens": served.texts.tokens(ids)}

    @router.post("", response_model=None)
    async def diffusion(body: DiffusionRequest) -> Response:
        """Fill in a text, and send every step as it happens; closing the connection cancels it."""
        texts = Texts(engine, [wanted_of(body, served)]).begin()
        return EventStream(_events(texts, served), texts)

    return router


def wanted_of(body: DiffusionRequest, served: Served) -> Wanted:
    """Read a request.

    Raises:
        ApiError: it cannot be met.
    """
    kinds = [name for name in ("prompt", "template", "tokens") if getattr(body, name) is not None]
    if len(kinds) > 1:
        raise ApiError(400, f"'{kinds[0]}' and '{kinds[1]}' exclude each other: send one of them.", param=kinds[1])
    if body.length is not None and kinds not in ([], ["prompt"]):
        raise ApiError(400, f"'length' goes with 'prompt', not with '{kinds[0]}': leave it out.", param="length")
    template = _template(body, served)
    served.check_template(template, kinds[0] if kinds else "length")
    return Wanted(
        template=tuple(template),
        config=served.sampler(settings_of(body.settings or {}, ("settings",))),
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        answer=AnswerText(served.decode, served.mask_id, served.end_ids if kinds in ([], ["prompt"]) else frozenset()),
        banned=tuple(served.checkpoint.tokenizer.forbidden_rows),
        alternatives=body.alternatives,
        shows_steps=True,
        has_events=True,
    )


def _template(body: DiffusionRequest, served: Served) -> list[int]:
    if body.template is not None:
        return served.read_template(body.template, "template")
    if body.tokens is not None:
        return canvas_ids(body.tokens, served)
    prompt = served.encode(body.prompt or "", "prompt")
    length = max(0, served.max_length - len(prompt)) if body.length is None else body.length
    served.check_length(len(prompt) + length, "prompt" if body.length is None else "length")
    return prompt + [served.mask_id] * length


async def _events(texts: Texts, served: Served) -> AsyncIterator[str]:
    """Yield the events of a text."""
    yield sse(texts.start_event(0, served))
    try:
        async for _, item in texts.news():
            if item.event is not None:
                yield sse(item.event)
    except ApiError as error:
        yield sse(error_event(str(error)))
