"""OpenAI's client against a live server: what it gets is what `Model` writes, whole or piece by piece."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import OpenAI

from llada.model import Model
from tests.support.servers import LETTERS, LONGEST, Live

SEEDS = range(5)
N = 8
"""Tokens of an answer, where a test says nothing else."""


@pytest.fixture(scope="module")
def client(alive: Live) -> OpenAI:
    return OpenAI(base_url=f"{alive.url}/v1", api_key="none", max_retries=0, timeout=600)


@pytest.fixture(scope="module")
def model(alive: Live) -> Model:
    return Model(alive.served.checkpoint)


def completion(client: OpenAI, **settings: Any) -> Any:
    further = {name: settings.pop(name) for name in list(settings) if name in FURTHER}
    prompt = settings.pop("prompt", "to be" if not {"template", "tokens"} & further.keys() else None)
    return client.completions.create(
        model="toy", prompt=prompt, **{"max_tokens": N, **settings} if prompt is not None else settings,
        extra_body=further,
    )  # fmt: skip


FURTHER = {
    "template", "tokens", "policy", "steps", "remasking", "block_length", "cfg_scale", "remdm_eta",
    "diffusion_seed_canvas",
    "diffusion_pinned", "diffusion_read_only", "diffusion_max_steps", "vllm_xargs",
}  # fmt: skip


def test_models_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").id == "toy"
    with pytest.raises(openai.NotFoundError, match="'toy'"):
        client.models.retrieve("gpt/9")


@pytest.mark.parametrize("settings", [{}, {"policy": "entropy"}, {"remasking": "low_confidence", "temperature": 0.0}])
def test_a_completion_is_what_the_model_writes(client: OpenAI, model: Model, settings: dict[str, Any]) -> None:
    answer = completion(client, seed=5, **settings)
    assert answer.choices[0].text == model.generate("to be", length=N, seed=5, **settings).removeprefix("to be")
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, N, 5 + N)
    assert answer.system_fingerprint == client.completions.create(model="toy", prompt="a").system_fingerprint


def test_several_prompts_and_several_texts_of_each_have_seeds_of_their_own(client: OpenAI, model: Model) -> None:
    answer = completion(client, prompt=["to be", "or"], n=2, seed=3)
    texts = [choice.text for choice in answer.choices]
    expected = [
        model.generate(prompt, length=N, seed=3 + number) for number, prompt in enumerate(["to be"] * 2 + ["or"] * 2)
    ]
    assert texts == [text[len(prompt) :] for text, prompt in zip(expected, ["to be"] * 2 + ["or"] * 2, strict=True)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 7
    assert answer.usage.completion_tokens == 4 * N


def test_a_prompt_of_ids_is_one_of_text(client: OpenAI) -> None:
    ids = LETTERS.encode("to be")
    texts = {completion(client, prompt=prompt, seed=1).choices[0].text for prompt in ("to be", ids, [ids])}
    assert len(texts) == 1


def test_without_a_seed_the_one_that_was_drawn_reproduces_the_text(client: OpenAI) -> None:
    first = completion(client).choices[0]
    assert completion(client, seed=first.diffusion["seed"]).choices[0].text == first.text


def test_templates_and_canvases_are_filled_where_they_are_open(client: OpenAI, model: Model) -> None:
    text = model.infill("to <MASK*6> or <MASK>", seed=2)
    assert completion(client, template="to <MASK*6> or <MASK>", seed=2).choices[0].text == text
    ids = [*LETTERS.encode("to "), *[None] * 6, *LETTERS.encode(" or "), None]
    answer = completion(client, tokens=ids, seed=2)
    assert answer.choices[0].text == text
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 14)


def test_a_suffix_stands_behind_what_is_filled_in(client: OpenAI, model: Model) -> None:
    answer = completion(client, suffix=" end", max_tokens=6, seed=4)
    whole = model.infill("to be<MASK*6> end", seed=4)
    assert "to be" + answer.choices[0].text + " end" == whole


def test_echo_repeats_the_prompt(client: OpenAI) -> None:
    plain, echo = (completion(client, seed=1, echo=echo).choices[0].text for echo in (False, True))
    assert echo == "to be" + plain
    pieces = completion(client, seed=1, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == echo


def test_a_stop_string_ends_a_text_and_is_not_part_of_it(client: OpenAI) -> None:
    whole = completion(client, seed=1, max_tokens=14, policy="left_to_right").choices[0].text
    stop = whole[5:8]
    answer = completion(client, seed=1, max_tokens=14, policy="left_to_right", stop=["zzzz", stop])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == whole.index(stop) + 3
    pieces = list(completion(client, seed=1, max_tokens=14, policy="left_to_right", stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in pieces) == whole[: whole.index(stop)]
    assert pieces[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"policy": "left_to_right"},
        {"policy": "entropy", "n": 2},
        {"steps": 3, "remasking": "low_confidence"},
        {"policy": "random", "steps": 30, "remdm_eta": 0.3},
    ],
)
def test_a_stream_joined_is_the_answer(client: OpenAI, settings: dict[str, Any]) -> None:
    answer = completion(client, seed=7, **settings)
    pieces = list(completion(client, seed=7, stream=True, stream_options={"include_usage": True}, **settings))
    *chunks, last = pieces
    for choice in answer.choices:
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert "".join(piece.text for piece in mine) == choice.text
        assert [piece.finish_reason for piece in mine] == [None] * (len(mine) - 1) + ["length"]
    assert last.choices == []
    assert last.usage == answer.usage
    assert len({chunk.id for chunk in pieces}) == 1


def test_a_stream_has_no_steps_unless_they_are_asked_for(client: OpenAI) -> None:
    plain = list(completion(client, seed=7, stream=True))
    assert all(chunk.choices for chunk in plain)
    assert not any("diffusion" in (chunk.model_extra or {}) for chunk in plain)


def test_steps_are_chunks_without_choices(client: OpenAI) -> None:
    pieces = list(completion(client, seed=7, stream=True, stream_options={"include_steps": True}))
    events = [chunk.model_extra["diffusion"] for chunk in pieces if not chunk.choices]
    assert [event["type"] for event in events] == ["start", *["step"] * N, "end"]
    canvas = [token and token["text"] for token in events[0]["tokens"]]
    assert canvas == [*"to be", *[None] * N]
    for event in events[1:-1]:
        for revealed in event["revealed"]:
            assert canvas[revealed["at"]] is None
            canvas[revealed["at"]] = revealed["text"]
    text = "".join(chunk.choices[0].text for chunk in pieces if chunk.choices)
    assert "".join(filter(None, canvas)) == events[-1]["text"] == "to be" + text


def test_logprobs_are_those_of_the_exact_policy(client: OpenAI) -> None:
    choice = completion(client, seed=3, logprobs=2, policy="random").choices[0]
    found = choice.logprobs
    assert found.source == "exact_policy"
    assert "".join(found.tokens) == choice.text
    assert found.text_offset == list(range(N))
    assert -sum(found.token_logprobs) == pytest.approx(choice.diffusion["nats"], rel=1e-6)
    assert all(len(top) == 2 and max(top.values()) <= 0 for top in found.top_logprobs)
    pieces = completion(client, seed=3, logprobs=2, policy="random", stream=True)
    streamed = [
        value for chunk in pieces for value in (chunk.choices[0].logprobs or found.__class__()).token_logprobs or []
    ]
    assert streamed == found.token_logprobs


def test_ways_to_sample_without_a_likelihood_have_no_logprobs(client: OpenAI) -> None:
    choice = completion(client, seed=3, logprobs=2, remasking="low_confidence").choices[0]
    assert choice.logprobs is None
    assert choice.diffusion["nats"] is None


def test_vllms_names_for_a_canvas(client: OpenAI, alive: Live, model: Model) -> None:
    mask, seed = alive.served.mask_id, LETTERS.encode("abcdef")
    canvas = [*seed[:2], mask, *seed[3:5], mask]
    filled = model.infill("to beab<MASK>de<MASK>", seed=2).removeprefix("to be")
    assert completion(client, diffusion_seed_canvas=canvas, seed=2).choices[0].text == filled
    pinned = completion(client, vllm_xargs={"diffusion_seed_canvas": seed, "diffusion_pinned": [0, 1, 3, 4]}, seed=2)
    assert pinned.choices[0].text == filled
    short = completion(client, diffusion_max_steps=2, seed=2).choices[0]
    assert short.diffusion["evaluations"] == 2


def test_a_canvas_that_is_read_only_has_a_row_for_each_place(client: OpenAI, alive: Live, model: Model) -> None:
    mask = alive.served.mask_id
    canvas = [*LETTERS.encode("ab"), mask, *LETTERS.encode("d"), mask]
    answer = completion(client, diffusion_seed_canvas=canvas, diffusion_read_only=True, logprobs=3)
    found, ids = answer.choices[0].logprobs, model.ids("to beab<MASK>d<MASK>")
    assert answer.choices[0].diffusion["evaluations"] == 1
    assert found.source == "one_evaluation"
    log_p = alive.served.checkpoint.predict(ids)[0].log_softmax(-1)
    assert found.token_logprobs[:2] == [None, None]
    assert found.token_logprobs[2] == pytest.approx(float(log_p[7].max()), abs=1e-5)
    assert found.token_logprobs[4] == pytest.approx(float(log_p[9].max()), abs=1e-5)
    assert len(found.tokens) == 5


DIALOGUE = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "who is there"},
    {"role": "assistant", "content": "no one"},
    {"role": "user", "content": "is it so"},
]


def chat(client: OpenAI, **settings: Any) -> Any:
    messages = settings.pop("messages", DIALOGUE)
    return client.chat.completions.create(model="toy", messages=messages, **{"max_completion_tokens": N, **settings})


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.0}, {"extra_body": {"policy": "entropy"}, "temperature": 1.0}]
)
def test_an_answer_in_a_dialogue_is_what_the_model_says(client: OpenAI, model: Model, settings: dict[str, Any]) -> None:
    answer = chat(client, seed=4, **settings)
    fields = {name: value for name, value in settings.items() if name != "extra_body"} | settings.get("extra_body", {})
    expected = model.chat(DIALOGUE, length=N, seed=4, **fields)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].message.role == "assistant"
    pieces = list(chat(client, seed=4, stream=True, **settings))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == expected
    assert pieces[-1].choices[0].finish_reason == answer.choices[0].finish_reason


def test_an_answer_that_has_its_sign_of_the_end_is_complete(client: OpenAI) -> None:
    """Over seeds: random weights say EOS now and then."""
    settings = {"temperature": 1.0, "max_completion_tokens": 24, "logprobs": True, "extra_body": {"policy": "random"}}
    answer = chat(client, seed=0, n=12, **settings)
    assert {choice.finish_reason for choice in answer.choices} == {"stop", "length"}
    assert sum(len(choice.logprobs.content) for choice in answer.choices) == answer.usage.completion_tokens
    for choice in answer.choices:
        tokens = [entry.token for entry in choice.logprobs.content]
        is_stopped = choice.finish_reason == "stop"
        assert is_stopped == (tokens[-1] == "")  # EOS, which has no text
        assert "" not in tokens[:-1]
        assert "".join(tokens).strip() == choice.message.content


def test_content_may_come_in_parts(client: OpenAI) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "is it"}, {"type": "text", "text": " so"}]}]
    whole = [{"role": "user", "content": "is it so"}]
    first, second = (chat(client, seed=1, messages=messages).choices[0].message.content for messages in (parts, whole))
    assert first == second


def test_logprobs_of_an_answer(client: OpenAI) -> None:
    choice = chat(
        client, seed=1, temperature=1.0, logprobs=True, top_logprobs=2, extra_body={"policy": "random"}
    ).choices[0]
    assert choice.logprobs.source == "exact_policy"
    for entry in choice.logprobs.content:
        assert bytes(entry.bytes).decode() == entry.token
        assert entry.logprob <= 0
        assert [math.exp(one.logprob) for one in entry.top_logprobs] == sorted(
            (math.exp(one.logprob) for one in entry.top_logprobs), reverse=True
        )


def test_many_at_once_get_what_each_gets_alone(client: OpenAI) -> None:
    prompts = ["to be", "or", "not to", "be"]
    alone = [
        completion(client, prompt=prompts[seed % 4], seed=seed, max_tokens=6 + seed).choices[0].text for seed in SEEDS
    ]
    with ThreadPoolExecutor(len(SEEDS)) as pool:
        together = list(
            pool.map(
                lambda seed: (
                    completion(client, prompt=prompts[seed % 4], seed=seed, max_tokens=6 + seed).choices[0].text
                ),
                SEEDS,
            )
        )
    assert together == alone


def test_a_stream_can_be_left(client: OpenAI, alive: Live) -> None:
    engine = alive.server.engine
    stream = completion(client, seed=1, max_tokens=50, stream=True, policy="left_to_right")
    next(iter(stream))
    stream.close()
    while engine.n_active or engine.n_waiting:  # the text is cancelled; a hang would be found by the suite's patience
        pass


@pytest.mark.parametrize(
    ("settings", "param", "words"),
    [
        ({"prompt": "é1"}, "prompt", ["'é'", "'1'"]),
        ({"max_tokens": 100}, "max_tokens", ["105", str(LONGEST)]),
        ({"prompt": "a" * LONGEST, "max_tokens": 1}, "prompt", [str(LONGEST + 1), str(LONGEST)]),
        ({"template": "a<MASK*64>"}, "template", ["65", str(LONGEST)]),
        ({"template": "abc"}, "template", ["nothing to fill in"]),
        ({"template": "a<MASK>", "stop": "b"}, "stop", ["template"]),
        ({"tokens": [3, 9999, None]}, "tokens", ["9999"]),
        ({"prompt": [3, 9999]}, "prompt", ["9999"]),
        ({"policy": "best"}, "policy", ["left_to_right"]),
        ({"steps": 0}, "steps", ["1"]),
        ({"n": 17}, "n", ["16"]),
        ({"temperature": -1.0}, "temperature", ["0"]),
        ({"logit_bias": {"5": 1}}, "logit_bias", ["not supported"]),
        ({"presence_penalty": 0.5}, "presence_penalty", ["not supported"]),
        ({"diffusion_pinned": [0]}, "diffusion_pinned", ["diffusion_seed_canvas"]),
        ({"diffusion_seed_canvas": [3, 126336], "diffusion_pinned": [7]}, "diffusion_pinned", ["7", "0 to 1"]),
        ({"stop": [""]}, "stop", ["1 character"]),
        ({"block_length": "a"}, "block_length", ["integer"]),
    ],
    ids=str,
)
def test_bad_requests_are_sentences_that_name_the_field(
    client: OpenAI, settings: dict[str, Any], param: str, words: list[str]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        completion(client, **settings)
    error = caught.value
    assert error.param == param, error.message
    assert error.type == "invalid_request_error"
    assert isinstance(error.body, dict)
    assert error.body["message"].endswith(".")
    for word in words:
        assert word in error.body["message"]


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "x"}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "A"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a" * 100}]}, "messages"),
        ({"max_completion_tokens": 64}, "messages"),
        ({"top_logprobs": 3}, "top_logprobs"),
    ],
    ids=str,
)
def test_what_a_dialogue_cannot_have_is_a_sentence(client: OpenAI, settings: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **settings)
    assert caught.value.param == param, caught.value.message


def test_another_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'toy'"):
        client.completions.create(model="gpt", prompt="a")


def test_fields_that_ask_for_nothing_are_accepted(client: OpenAI) -> None:
    chat(
        client, n=1, presence_penalty=0, tools=[], tool_choice="none", response_format={"type": "text"}, user="me",
        store=False, metadata={"a": "b"},
    )  # fmt: skip


def test_every_item_of_a_stream_is_a_chunk(alive: Live) -> None:
    body = {"prompt": "to", "max_tokens": 5, "stream": True, "stream_options": {"include_steps": True}}
    with alive.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
        lines = [line for line in answer.iter_lines() if line]
        assert answer.headers["content-type"].startswith("text/event-stream")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        chunk = json.loads(line.removeprefix("data: "))
        assert {"id", "object", "created", "model", "choices"} <= chunk.keys()


def test_at_the_least_temperature_there_is_a_text_is_that_of_temperature_0(client: OpenAI) -> None:
    """Below 1e-38, log-probabilities divided by the temperature overflow."""
    settings: dict[str, Any] = {"seed": 3, "policy": "left_to_right", "logprobs": 0}
    likeliest, cold = (completion(client, temperature=t, **settings).choices[0] for t in (0.0, 5e-324))
    assert cold.text == likeliest.text
    assert cold.diffusion["nats"] == likeliest.diffusion["nats"]
    assert cold.logprobs.token_logprobs == likeliest.logprobs.token_logprobs
