"""Errors of the server: one sentence for people, in OpenAI's shape, without a traceback or a path."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from llada.system.errors import UserError, first_line, respelled

logger = logging.getLogger(__name__)

INVALID, TOO_MANY, BROKEN = "invalid_request_error", "rate_limit_error", "server_error"
FIELDS = {"gen_length": "max_tokens"}
"""Names that options of the library have in a request."""
WORDS = {
    404: "There is nothing at this address: the endpoints are listed at /docs/openapi.json.",
    405: "This address does not take this method: GET and POST are listed at /docs/openapi.json.",
}


class ApiError(Exception):
    """An error that is answered with a status and one sentence."""

    def __init__(
        self,
        status: int,
        sentence: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # `UserError` shows control characters and shortens what is quoted.
        super().__init__(str(UserError(sentence)))
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.status, str(self), self.param, self.code)

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def error_body(status: int, sentence: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Build an error as OpenAI's clients read it."""
    kind = TOO_MANY if status == 429 else BROKEN if status >= 500 else INVALID
    return {"error": {"message": sentence, "type": kind, "param": param, "code": code}}


def bad_request(error: Exception | str, param: str | None = None) -> ApiError:
    """Return the error for bad input, with the library's options by the names that they have in a request."""
    sentence = respelled(str(error), _field, lambda name: f"llada {name}")
    return ApiError(400, sentence, param=param)


def _field(name: str, value: str | None) -> str:
    name = FIELDS.get(name, name)
    return f"'{name}'" if value is None else f"'{name}': {value}"


def unforeseen(error: BaseException) -> ApiError:
    """Return the error for a mistake of ours; what it says goes to the log, and its type to the client."""
    logger.error("An unforeseen error, %s: %s", type(error).__name__, first_line(error))
    return ApiError(500, f"The server failed by an unforeseen error ({type(error).__name__}): please report it.")


def of_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return the error for a body that is not of the declared types: the first thing that is wrong, by its field."""
    # Of the alternatives of a field, the one that got furthest is the one that was meant.
    first = max((error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]), key=lambda e: len(e["loc"]))
    place = [str(part) for part in first["loc"] if part != "body" and not _is_type(part)]
    if first["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON: send one JSON object.")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"There is no field '{'.'.join(place)}': leave it out.", param=place[-1])
    reason = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    reason = reason[:1].lower() + reason[1:]
    if not place:
        if isinstance(first.get("input"), bytes | str):
            return ApiError(400, "The body is not JSON: send it with the header 'Content-Type: application/json'.")
        return ApiError(400, f"The body cannot be used ({reason}): send one JSON object with the fields described.")
    return ApiError(400, f"The field '{'.'.join(place)}' cannot be used ({reason}): correct it.", param=place[0])


def _is_type(part: object) -> bool:
    """Whether a part of a place is not a field, but what pydantic calls one of several types of a field."""
    return isinstance(part, str) and bool(re.search(r"^(str|int|float|bool|nullable)$|[\[(-]", part))


def install(app: FastAPI) -> None:
    """Let the app answer all errors in OpenAI's shape."""

    async def api_error(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def user_error(_request: Request, error: Exception) -> JSONResponse:
        return bad_request(error).response()

    async def invalid(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return of_validation(error.errors()).response()

    async def of_routing(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        sentence = WORDS.get(error.status_code, "The request cannot be read: send one JSON object.")
        return ApiError(error.status_code, sentence, headers=error.headers).response()

    async def broken(_request: Request, error: Exception) -> JSONResponse:
        return unforeseen(error).response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(UserError, user_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_routing)
    app.add_exception_handler(Exception, broken)
