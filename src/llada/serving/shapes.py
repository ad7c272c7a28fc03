"""The bodies of requests: which fields there are, of which types, and within which limits."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from llada.sampling.config import SamplerConfig
from llada.serving.errors import ApiError, of_validation

LARGEST_SEED = 2**63 - 1  # torch's
MOST_TOKENS = 10**6
MOST_STEPS = 10_000
MOST_ALTERNATIVES = 20

Model = TypeVar("Model", bound=BaseModel)
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Count = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Ids = list[Annotated[int, Field(ge=0, le=2**31)]]
Canvas = list[Annotated[int, Field(ge=0, le=2**31)] | None]
StopString = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = StopString | Annotated[list[StopString], Field(max_length=16)]

BOUNDS: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "cfg_scale": (0.0, 100.0),
    "repetition_penalty": (0.01, 100.0),
    "steps": (1, MOST_STEPS),
    "block_length": (1, MOST_TOKENS),
    "top_k": (1, MOST_TOKENS),
}
"""Narrower limits of settings than those of the sampler: numbers beyond them overflow."""


class Strict(BaseModel):
    """A body in which nothing is converted and no field is unknown."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def _settings_model() -> type[BaseModel]:
    hints = get_type_hints(SamplerConfig)
    fields: dict[str, Any] = {}
    for option in dataclasses.fields(SamplerConfig):
        low, high = BOUNDS.get(option.name, (None, None))
        fields[option.name] = (hints[option.name] | None, Field(default=None, ge=low, le=high))
    return create_model("SamplerSettings", __base__=Strict, __doc__="How a text is filled in.", **fields)


SamplerSettings = _settings_model()
"""The fields of `SamplerConfig`, all of which may be left out."""
NULLABLE = frozenset(
    option.name
    for option in dataclasses.fields(SamplerConfig)
    if type(None) in getattr(get_type_hints(SamplerConfig)[option.name], "__args__", ())
)


def settings_of(given: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> dict[str, Any]:
    """Check fields of the sampler, and leave out those that are null and cannot be.

    Raises:
        ApiError: a field is unknown, or has another type or a value out of its range.
    """
    checked = validated(SamplerSettings, given, prefix).model_dump(exclude_unset=True)
    return {name: value for name, value in checked.items() if value is not None or name in NULLABLE}


def validated(model: type[Model], given: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Model:
    """Check fields by a model.

    Raises:
        ApiError: they do not fit; the sentence names the first such field.
    """
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        raise of_validation([{**first, "loc": (*prefix, *first["loc"])}]) from None


# -- OpenAI's ----------------------------------------------------------------------------------------------------------

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "guided_json": (None,),
    "logit_bias": (None, {}),
    "logprob_token_ids": (None, []),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "web_search_options": (None,),
}
"""OpenAI's fields that are not supported, with the values at which they ask for nothing."""
IGNORED = frozenset(
    {
        "chat_template_kwargs", "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
        "return_tokens_as_token_ids", "safety_identifier", "service_tier", "store", "user", "verbosity",
    }
)  # fmt: skip
"""OpenAI's and vLLM's fields that change nothing here."""
WHY: Mapping[str, str] = {
    "response_format": "structured output is not supported, since text is filled in here in any order",
    "guided_json": "structured output is not supported, since text is filled in here in any order",
    "structured_outputs": "structured output is not supported, since text is filled in here in any order",
}


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    include_steps: bool | None = None
    """Whether each step is sent as well, as a chunk without choices and with the field `diffusion`."""


class Asked(BaseModel):
    """The fields that completions and chat have in common; further ones are those of the sampler and vLLM's."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1, le=1000)] | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_steps(self) -> bool:
        return bool(self.stream and self.stream_options and self.stream_options.include_steps)

    @property
    def includes_usage(self) -> bool:
        return bool(self.stream and self.stream_options and self.stream_options.include_usage)


class CompletionRequest(Asked):
    """A text to continue, or a template with gaps to fill in."""

    prompt: Annotated[str | list[str] | Ids | list[Ids], Field(union_mode="left_to_right")] | None = None
    suffix: str | None = None
    """Text behind what is filled in."""
    template: str | None = None
    """Text with `<MASK>` or `<MASK*20>` where tokens are to be filled in, instead of a prompt."""
    tokens: Canvas | None = None
    """Token ids with null where one is to be filled in, instead of a prompt."""
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    echo: bool | None = None


class Part(Strict):
    """A part of a message; only text is taken."""

    type: str
    text: str | None = None

    model_config = ConfigDict(extra="allow")


class ChatMessage(BaseModel):
    """A turn of a dialogue; a name has no place in it, and is not read."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    role: str
    content: str | list[Part] | None = None


class ChatRequest(Asked):
    """A dialogue whose last message is to be answered."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None


class CanvasFields(Strict):
    """Fields for the canvas of an answer, by the names that vLLM gives them (pull request 57250)."""

    diffusion_seed_canvas: Ids | None = None
    """The ids to begin with, in the place of the answer."""
    diffusion_pinned: list[Annotated[int, Field(ge=0, le=MOST_TOKENS)]] | None = None
    """The places of the canvas that stay; if left out, all that are not MASK."""
    diffusion_read_only: bool | None = None
    """Whether the network is evaluated once, and the likeliest token of each open place returned."""
    diffusion_max_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    diffusion_canvas_length: Count | None = None


@dataclasses.dataclass(frozen=True)
class Further:
    """What a request has beyond OpenAI's fields."""

    settings: dict[str, Any]
    """The fields of the sampler."""
    canvas: CanvasFields

    @classmethod
    def of(cls, asked: Asked) -> "Further":
        """Sort the further fields of a request.

        Raises:
            ApiError: one is not supported, or unknown.
        """
        extra = dict(asked.model_extra or {})
        inner = extra.pop("vllm_xargs", None)
        if inner is not None and not isinstance(inner, dict):
            raise ApiError(400, "The field 'vllm_xargs' must be an object: correct it.", param="vllm_xargs")
        extra |= inner or {}
        for name in sorted(extra.keys() & NEUTRAL.keys()):
            if extra[name] not in NEUTRAL[name]:
                why = WHY.get(name, "it is not supported")
                raise ApiError(400, f"The field '{name}' cannot be used ({why}): leave it out.", param=name)
        left = {name: value for name, value in extra.items() if name not in NEUTRAL and name not in IGNORED}
        canvas = {name: left.pop(name) for name in CanvasFields.model_fields if name in left}
        checked = validated(CanvasFields, canvas)
        settings = settings_of(left)
        for name in ("temperature", "top_p"):
            if getattr(asked, name) is not None:
                settings[name] = getattr(asked, name)
        if checked.diffusion_max_steps is not None:
            settings["steps"] = checked.diffusion_max_steps
        return cls(settings, checked)


# -- ours --------------------------------------------------------------------------------------------------------------


class DiffusionRequest(Strict):
    """A text to fill in, of which every step is sent: a prompt, a template or an explicit canvas."""

    prompt: str | None = None
    length: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    """Tokens to write behind the prompt; if left out, the rest of the model's length."""
    template: str | None = None
    tokens: Canvas | None = None
    seed: Seed | None = None
    settings: dict[str, Any] | None = None
    """Fields of the sampler."""
    alternatives: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] = 5


class TokenizeRequest(Strict):
    """A text to encode."""

    text: str
