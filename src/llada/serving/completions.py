"""What completions and answers in a dialogue ask the engine for: templates, settings, and what ends a text."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from llada.sampling.batches import seeds_from
from llada.sampling.config import SamplerConfig
from llada.serving.answer_text import AnswerText
from llada.serving.errors import ApiError, bad_request
from llada.serving.limits import Limits
from llada.serving.served import Served
from llada.serving.shapes import Asked, CanvasFields, ChatMessage, ChatRequest, CompletionRequest, Further
from llada.serving.writing import READ_ONLY, Wanted
from llada.system.errors import UserError
from llada.tokenizers.message import Message, check_turns

DEFAULT_LENGTH = 128
"""Tokens of an answer at most, if the request does not say; half of the model's length if that is less."""
ROLES = {"developer": "system"}


@dataclass(frozen=True)
class Canvas:
    """Ids to fill in, and where in them the answer is."""

    template: list[int]
    start: int
    end: int


@dataclass(frozen=True)
class Job:
    """The texts of a request, and what the answer says of them."""

    wanted: list[Wanted]
    n_prompt_tokens: int
    has_logprobs: bool = False
    has_echo: bool = False
    n_forgotten: int = 0
    """Number of messages at the beginning of a dialogue that no longer fitted."""


def completion_job(request: CompletionRequest, served: Served, limits: Limits) -> Job:
    """Read a request for completions.

    Raises:
        ApiError: it cannot be met.
    """
    check_model(request, served)
    check_number(request, limits)
    further = Further.of(request)
    canvases = _canvases(request, further.canvas, served)
    tokenizer = served.checkpoint.tokenizer
    has_gaps = request.template is not None or request.tokens is not None
    if has_gaps and request.stop is not None:
        raise ApiError(400, "A template ends where it ends: leave out 'stop', or send a prompt.", param="stop")
    ends = frozenset() if has_gaps else served.end_ids
    answer = AnswerText(served.decode, served.mask_id, ends, request.stops)
    banned = tuple(tokenizer.forbidden_rows)
    config = served.sampler(further.settings)
    alternatives = request.logprobs or 0
    wanted = _wanted(request, further, canvases, config, answer, banned, alternatives)
    n_prompt = sum(sum(id_ != served.mask_id for id_ in canvas.template) for canvas in canvases)
    return Job(wanted, n_prompt, request.logprobs is not None, bool(request.echo))


def chat_job(request: ChatRequest, served: Served, limits: Limits) -> Job:
    """Read a request for the answer to a dialogue.

    Raises:
        ApiError: it cannot be met.
    """
    check_model(request, served)
    check_number(request, limits)
    further, assistant = Further.of(request), served.assistant
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    if request.max_completion_tokens is not None and request.max_tokens is not None:
        raise ApiError(400, "'max_tokens' is the old name of 'max_completion_tokens': send one.", param="max_tokens")
    length = _answer_length(further.canvas, request.max_completion_tokens or request.max_tokens, served)
    try:
        ids, n_forgotten = served.prompt(dialogue(request.messages), length)
    except UserError as error:
        raise bad_request(error, "messages") from error
    canvas = _behind(ids, further.canvas, length, served)
    served.check_template(canvas.template, "messages")
    answer = AnswerText(served.decode, served.mask_id, assistant.end_ids, request.stops, strips=True)
    config = served.sampler(further.settings, in_dialogue=True)
    alternatives = request.top_logprobs or 0
    banned = assistant.speechless_rows
    wanted = _wanted(request, further, [canvas], config, answer, banned, alternatives)
    return Job(wanted, len(ids), bool(request.logprobs), n_forgotten=n_forgotten)


def check_model(request: Asked, served: Served) -> None:
    """Refuse a request for a model that is not served.

    Raises:
        ApiError: it is one.
    """
    if request.model is not None and request.model != served.name:
        raise ApiError(
            404,
            f"The model {request.model!r} is not served here: ask for {served.name!r}.",
            param="model",
            code="model_not_found",
        )


def check_number(request: Asked, limits: Limits) -> None:
    """Refuse a request for more texts than one may ask for, or than there is ever room for, before any is prepared.

    Raises:
        ApiError: it is one.
    """
    n_texts = (len(_prompts(request)) if isinstance(request, CompletionRequest) else 1) * (request.n or 1)
    most = min(limits.texts, limits.queue + limits.batch)
    if n_texts > most:
        raise ApiError(
            400, f"{n_texts} texts are more than the {most} that one request may ask for: send several.", param="n"
        )


def dialogue(messages: Sequence[ChatMessage]) -> list[Message]:
    """Read the messages of a request.

    Raises:
        ApiError: they are not a dialogue in text.
    """
    read = [
        Message(ROLES.get(message.role, message.role), _text_of(message, number))
        for number, message in enumerate(messages, 1)
    ]
    try:
        check_turns(read)
    except ValueError as error:
        raise ApiError(400, f"These messages are not a dialogue ({error}): correct them.", param="messages") from error
    if read[-1].role != "user":
        raise ApiError(400, "There is no question to answer: let the last message be the user's.", param="messages")
    return read


def _text_of(message: ChatMessage, number: int) -> str:
    if isinstance(message.content, str):
        return message.content
    parts = message.content or []
    for part in parts:
        if part.type != "text" or part.text is None:
            raise ApiError(
                400, f"Message {number} has a part of the type {part.type!r:.60}: send text only.", param="messages"
            )
    if not parts:
        raise ApiError(400, f"Message {number} has no content: send text.", param="messages")
    return "".join(part.text or "" for part in parts)


# -- templates ---------------------------------------------------------------------------------------------------------


def _canvases(request: CompletionRequest, fields: CanvasFields, served: Served) -> list[Canvas]:
    """Return what each prompt of a request is to be filled in.

    Raises:
        ApiError: the fields exclude each other, or a template cannot be filled.
    """
    kinds = [name for name in ("prompt", "template", "tokens") if getattr(request, name) is not None]
    if len(kinds) > 1:
        raise ApiError(400, f"'{kinds[0]}' and '{kinds[1]}' exclude each other: send one of them.", param=kinds[1])
    kind = kinds[0] if kinds else "prompt"
    if kind == "prompt":
        canvases = [_of_prompt(prompt, request, fields, served) for prompt in _prompts(request)]
    else:
        for name in ("suffix", "max_tokens"):
            if getattr(request, name) is not None:
                raise ApiError(400, f"'{kind}' says what is filled in: leave out '{name}'.", param=name)
        if fields.diffusion_seed_canvas is not None:
            raise ApiError(400, f"'{kind}' says what is filled in: leave out 'diffusion_seed_canvas'.", param=kind)
        ids = _of_template(request.template, request.tokens, served)
        canvases = [Canvas(ids, 0, len(ids))]
    for canvas in canvases:
        served.check_template(canvas.template, kind)
    return canvases


def _of_template(template: str | None, tokens: Sequence[int | None] | None, served: Served) -> list[int]:
    if template is not None:
        return served.read_template(template, "template")
    return canvas_ids(tokens or [], served)


def canvas_ids(tokens: Sequence[int | None], served: Served) -> list[int]:
    """Return the ids of an explicit canvas, MASK for null.

    Raises:
        ApiError: an id is not one of a text.
    """
    served.check_ids((id_ for id_ in tokens if id_ is not None), "tokens")
    return [served.mask_id if id_ is None else id_ for id_ in tokens]


def _prompts(request: CompletionRequest) -> list[str | list[int]]:
    prompt = request.prompt
    if prompt is None or isinstance(prompt, str):
        return [prompt or ""]
    if all(isinstance(part, int) for part in prompt) and prompt:
        return [[part for part in prompt if isinstance(part, int)]]
    return [part for part in prompt if not isinstance(part, int)] or [""]


def _of_prompt(prompt: str | list[int], request: CompletionRequest, fields: CanvasFields, served: Served) -> Canvas:
    if isinstance(prompt, str):
        ids = served.encode(prompt, "prompt")
    else:
        ids = prompt
        served.check_ids(ids, "prompt")
    behind = served.encode(request.suffix or "", "suffix")
    room = max(1, served.max_length - len(ids) - len(behind))
    length = _answer_length(fields, request.max_tokens or min(DEFAULT_LENGTH, room), served)
    is_asked_for = request.max_tokens is not None and len(ids) + len(behind) < served.max_length
    served.check_length(len(ids) + length + len(behind), "max_tokens" if is_asked_for else "prompt")
    canvas = _behind(ids, fields, length, served)
    return Canvas(canvas.template + behind, canvas.start, canvas.end)


def _answer_length(fields: CanvasFields, wanted: int | None, served: Served) -> int:
    """Return the number of places of an answer: those of the canvas that is given, or as many as are wanted."""
    seed = fields.diffusion_seed_canvas
    if seed is None:
        for name in ("diffusion_pinned", "diffusion_canvas_length"):
            if getattr(fields, name) is not None:
                raise ApiError(400, f"'{name}' needs 'diffusion_seed_canvas': send both.", param=name)
        return wanted or max(1, min(DEFAULT_LENGTH, served.max_length // 2))
    if fields.diffusion_canvas_length not in (None, len(seed)):
        raise ApiError(
            400,
            f"'diffusion_seed_canvas' has {len(seed)} places, and 'diffusion_canvas_length' says "
            f"{fields.diffusion_canvas_length}: make them equal.",
            param="diffusion_canvas_length",
        )
    return len(seed)


def _behind(ids: list[int], fields: CanvasFields, length: int, served: Served) -> Canvas:
    """Return a prompt with the places of its answer: masks, or the canvas that is given."""
    return Canvas([*ids, *_answer_canvas(fields, length, served)], len(ids), len(ids) + length)


def _answer_canvas(fields: CanvasFields, length: int, served: Served) -> list[int]:
    """Return the ids that an answer begins with, in which all that is not pinned is MASK."""
    mask_id, seed = served.mask_id, fields.diffusion_seed_canvas
    if seed is None:
        return [mask_id] * length
    served.check_ids((id_ for id_ in seed if id_ != mask_id), "diffusion_seed_canvas")
    pinned = set(fields.diffusion_pinned if fields.diffusion_pinned is not None else range(len(seed)))
    beyond = next((place for place in sorted(pinned) if place >= len(seed)), None)
    if beyond is not None:
        raise ApiError(
            400,
            f"'diffusion_pinned' has the place {beyond}, and the canvas has the places 0 to {len(seed) - 1}: correct "
            "it.",
            param="diffusion_pinned",
        )
    return [id_ if place in pinned else mask_id for place, id_ in enumerate(seed)]


def _wanted(
    request: Asked,
    further: Further,
    canvases: Sequence[Canvas],
    config: SamplerConfig,
    answer: AnswerText,
    banned: tuple[int, ...],
    alternatives: int,
) -> list[Wanted]:
    """Return all texts of a request: n of each prompt, each with a seed of its own."""
    is_read_only = bool(further.canvas.diffusion_read_only)
    if is_read_only:  # every place is of interest, also behind what would end an answer
        config, answer = READ_ONLY, AnswerText(answer.decode, answer.mask_id)
    n_texts = len(canvases) * (request.n or 1)
    seeds = seeds_from(secrets.randbelow(2**31) if request.seed is None else request.seed, n_texts)
    return [
        Wanted(
            template=tuple(canvas.template),
            config=config,
            seed=seed,
            answer=answer,
            start=canvas.start,
            end=canvas.end,
            banned=banned,
            alternatives=alternatives,
            shows_steps=bool(request.stream),
            has_events=request.includes_steps,
            is_read_only=is_read_only,
        )
        for canvas, seed in zip((c for c in canvases for _ in range(request.n or 1)), seeds, strict=True)
    ]
