"""OpenAI's endpoints: models, completions and chat, as whole answers or as streams that only append."""

from typing import Any

from fastapi import APIRouter, Request, Response

from llada.serving.asking import ClientLeftError, Texts, unless_gone
from llada.serving.completions import Job, chat_job, completion_job
from llada.serving.engine import Engine
from llada.serving.errors import ApiError
from llada.serving.openai_answers import ChatShape, Shape
from llada.serving.served import Served
from llada.serving.shapes import Asked, ChatRequest, CompletionRequest
from llada.serving.streams import EventStream, openai_stream

OWNER = "llada-trainer"


def openai_routes(served: Served, engine: Engine, created: int) -> APIRouter:
    """Build the endpoints for a model.

    Args:
        created: the time, in seconds of Unix time, from which the model is served.
    """
    router = APIRouter(prefix="/v1", tags=["OpenAI"])
    model = {"id": served.name, "object": "model", "created": created, "owned_by": OWNER}

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """List the model that is served."""
        return {"object": "list", "data": [model]}

    @router.get("/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """Describe the model that is served."""
        if name != served.name:
            raise ApiError(
                404, f"The model {name!r} is not served here: ask for {served.name!r}.", param="model",
                code="model_not_found",
            )  # fmt: skip
        return model

    @router.post("/completions", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> dict[str, Any] | Response:
        """Continue a prompt, or fill the gaps of a template."""
        job = completion_job(body, served, engine.limits)
        return await _answer(body, request, job, Shape(served, job), engine)

    @router.post("/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> dict[str, Any] | Response:
        """Answer the last message of a dialogue, in the checkpoint's own chat format."""
        job = chat_job(body, served, engine.limits)
        return await _answer(body, request, job, ChatShape(served, job), engine)

    return router


async def _answer(body: Asked, request: Request, job: Job, shape: Shape, engine: Engine) -> dict[str, Any] | Response:
    texts = Texts(engine, job.wanted).begin()
    if body.stream:
        items = openai_stream(texts, shape, has_steps=body.includes_steps, has_usage=body.includes_usage)
        return EventStream(items, texts)
    with texts.held():
        try:
            return shape.answer(await unless_gone(request, texts.outcomes()))
        except ClientLeftError:
            return Response(status_code=499)
