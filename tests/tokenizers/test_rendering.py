"""Chat templates give the ids of `apply_chat_template`: the constructs of public templates, in our own words."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llada.checkpoints.dummy import write_random_checkpoint
from llada.checkpoints.folder import read_tokenizer
from llada.system.errors import UserError
from llada.tokenizers.bpe import BPETokenizer
from llada.tokenizers.chat_template import TemplateFormat, chat_format
from llada.tokenizers.message import Message
from llada.tokenizers.rendering import DialogueError
from llada.tokenizers.templates import LLADA_MOE_TEMPLATE, LLADA_TEMPLATE
from tests.support.sentences import assert_one_sentence

TURNS = (
    Message("user", "  What's <b>5 & 6</b>?\n"),
    Message("assistant", 'It is "11" \u2013\n\nsee.'),
    Message("user", "And then <think>?"),
    Message("assistant", "<think>\nhm\n</think>\n\nNothing.  "),
)
SYSTEM = Message("system", "Be brief, \u00e9\u4e16.")

HEADER = "<|start_header_id|>"
TEMPLATES = {
    "LLaDA": LLADA_TEMPLATE,
    "LLaDA-MoE": LLADA_MOE_TEMPLATE,
    "ChatML": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
        "+ '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "system folded into the first question, and a check of turns": """
{%- if messages[0]['role'] == 'system' -%}
    {%- set loop_messages = messages[1:] -%}
    {%- set system_message = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' -%}
{%- else -%}
    {%- set loop_messages = messages -%}{%- set system_message = '' -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {%- if loop.index0 == 0 -%}{%- set content = system_message + message['content'] -%}
        {%- else -%}{%- set content = message['content'] -%}{%- endif -%}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + message['content'].strip() + ' ' + eos_token -}}
    {%- endif -%}
{%- endfor -%}""",
    "date, tools and documents": """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{%- if documents is none and tools is none %}{{- "Today Date: " + date_string + "\\n\\n" }}{%- endif %}
{{- system_message ~ "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim }}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "another name of the assistant": """{{ bos_token }}
{%- if messages and messages[0]['role'] == 'system' -%}{%- set offset = 1 -%}
{%- else -%}{%- set offset = 0 -%}{%- endif -%}
{% for message in messages[offset:] %}
    {%- if (message['role'] == 'assistant') %}{% set role = 'model' %}
    {%- else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}""",
    "thoughts of the last answer": """
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not
           (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}
    {%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- set thoughts = '' %}
        {%- if message.reasoning_content is string %}{%- set thoughts = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or thoughts) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thoughts.strip('\\n')
                + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    "state in a namespace": """{% if not add_generation_prompt is defined %}{%
    set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_first=false, is_tool=false, system_prompt='') -%}
{%- for message in messages %}{%- if message['role'] == 'system' %}
{%- set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}
{{- bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<User>' + message['content']}}{%- endif %}
{%- if message['role'] == 'assistant' and message['content'] is not none %}
{{- '<Assistant>' + message['content'] + eos_token}}{%- endif %}
{%- endfor -%}
{% if add_generation_prompt and not ns.is_tool %}{{'<Assistant>'}}{% endif %}""",
    "a role in a token": (
        "{% for m in messages %}{% if m['content'] %}{{'<|' + m['role'] + '|>' + m['content'] + '<|end|>'}}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "lines of its own": """{% for message in messages %}
    {% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
    {% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
    {% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
    {% endif %}
    {% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
    {% endif %}
{% endfor %}""",
    "macros and filters": """
{%- macro turn(role, text) -%}<|{{ role | upper }}_TOKEN|>{{ text | trim | replace('<b>', '*') }}<|END|>{%- endmacro -%}
{%- set roles = dict(user='user', assistant='chatbot', system='system') -%}
{{- messages | map(attribute='role') | map('title') | join(', ') ~ ';' -}}
{{- messages | selectattr('role', 'equalto', 'user') | list | length -}}
{%- for role, new in roles.items() %}{{ role }}={{ new }} {% endfor -%}
{%- for message in messages %}{{ turn(roles[message.role], message.content) }}{% endfor -%}
{%- if add_generation_prompt %}<|CHATBOT_TOKEN|>{% endif -%}""",
    "what the assistant wrote is marked": """{%- for message in messages -%}
{%- if loop.first -%}{{ bos_token }}{%- endif -%}
{%- if message.role == 'assistant' -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{% generation %}
{{- message.content ~ '<|eot_id|>' -}}{% endgeneration %}
{%- else -%}
{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' ~ message.content ~ '<|eot_id|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
""",
    "marked on lines": """{% for message in messages %}
{% if message.role == 'assistant' %}
    {%- generation -%}
    {{ message.content }}
    {%- endgeneration -%}
{% else %}
{{ message.content }}
{% endif %}
{% endfor %}
{{ '>' if add_generation_prompt }}""",
    "a date": (
        "{{- bos_token -}}{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday is ' ~ strftime_now('%Y-%m-%d') ~ "
        "'.<|eot_id|>' -}}{%- for message in messages -%}{{- '<|start_header_id|>' ~ message.role ~ "
        "'<|end_header_id|>\\n\\n' ~ message.content ~ '<|eot_id|>' -}}{%- endfor -%}"
    ),
    "JSON": """{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' ~ (message.content | tojson) ~ '<|eot_id|>' -}}
{%- endfor -%}
{{- messages[0] | tojson(indent=4) ~ messages[0] | tojson(sort_keys=true, separators=(',', ':')) -}}
{{- messages[0] | tojson(ensure_ascii=true) ~ none | tojson ~ [true, 1.5] | tojson -}}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
""",
    "loop controls": """{% for message in messages %}{% if message.role == 'system' %}{% continue %}{% endif %}
[{{ message.role }}] {{ message.content }}
{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}{{ '[assistant] ' if add_generation_prompt }}""",
    "names that are there, or not": """
{%- for message in messages %}{{ message.content }}{{ sep_token if sep_token is defined }}{% endfor -%}
{{- pad_token }}{{ unk_token is defined }}{{ mask_token is defined }}{{ image_token }}{{ nothing }}
{{- tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ dict.fromkeys(['a'], 1) }}""",
    "plain words": """{% for message in messages %}{%
    if message['role'] == 'user' %}USER: {{ message['content'].strip() }}
{%- elif message['role'] == 'assistant' %} ASSISTANT: {{ message['content'].strip() }}</s>
{%- else %}{{ message['content'] }} {% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}""",
}


@pytest.fixture(scope="module")
def folder(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose files name more tokens than the usual ones."""
    folder = tmp_path_factory.mktemp("rendering") / "random"
    write_random_checkpoint(folder, text, d_model=16, n_layers=1)
    path = folder / "tokenizer_config.json"
    names = json.loads(path.read_text())
    more = {"sep_token": "<|eot_id|>", "mask_token": "<|mdm_mask|>", "image_token": "<|start_header_id|>"}
    path.write_text(json.dumps({**names, **more}))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> BPETokenizer:
    tokenizer = read_tokenizer(folder)
    assert isinstance(tokenizer, BPETokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


def form_of(template: str, tokenizer: BPETokenizer) -> TemplateFormat:
    return TemplateFormat(tokenizer, template, tokenizer.special_tokens)


def as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [vars(message) for message in messages]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("system", [(), (SYSTEM,)], ids=["", "system"])
def test_ids_are_those_of_transformers(
    template: str, system: tuple[Message, ...], tokenizer: BPETokenizer, theirs: Any
) -> None:
    form = form_of(template, tokenizer)
    for n in (1, 3):
        question = (*system, *TURNS[:n])
        ids = theirs.apply_chat_template(
            as_dicts(question), chat_template=template, add_generation_prompt=True, return_dict=False
        )
        assert form.prompt(question) == ids


# Those that show where an answer begins and ends; of the others some change what came before, and some all of it.
LEARNABLE = [name for name in TEMPLATES if name not in ("macros and filters", "marked on lines", "a date", "JSON",
             "loop controls", "names that are there, or not", "a role in a token", "lines of its own")]  # fmt: skip


@pytest.mark.parametrize("name", LEARNABLE)
def test_prompt_and_answer_are_the_whole_of_transformers(name: str, tokenizer: BPETokenizer, theirs: Any) -> None:
    """As text, since prompt and answer are put into tokens apart."""
    form = form_of(TEMPLATES[name], tokenizer)
    for n in (1, 3):
        ids = form.prompt(TURNS[:n]) + form.answer(TURNS[:n], TURNS[n].content)
        whole = theirs.apply_chat_template(as_dicts(TURNS[: n + 1]), chat_template=TEMPLATES[name], tokenize=False)
        header = "<|start_header_id|>assistant<|end_header_id|>\n\n" if name == "LLaDA" else ""
        assert theirs.decode(ids, skip_special_tokens=False) == whole.removesuffix(header)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("LLaDA", {"<|eot_id|>"}),
        ("system folded into the first question, and a check of turns", {"<|endoftext|>"}),
        ("what the assistant wrote is marked", {"<|eot_id|>"}),
        ("date, tools and documents", {"<|eot_id|>"}),
        ("ChatML", set()),  # its tokens are text to this tokenizer
    ],
)
def test_what_stands_behind_an_answer_ends_it(name: str, ends: set[str], tokenizer: BPETokenizer) -> None:
    expected = {tokenizer.eos_id, *(tokenizer.special_tokens[end] for end in ends)}
    assert form_of(TEMPLATES[name], tokenizer).end_ids == expected


def test_the_date_is_that_of_today(tokenizer: BPETokenizer) -> None:
    days = {f"{datetime.datetime.now():%Y-%m-%d}"}
    text = tokenizer.decode(form_of("{{ strftime_now('%Y-%m-%d') }}", tokenizer).prompt(TURNS[:1]))
    assert text in days | {f"{datetime.datetime.now():%Y-%m-%d}"}  # midnight may have come


def test_json_is_written_as_it_is(tokenizer: BPETokenizer) -> None:
    form = form_of("{{ messages[0].content | tojson }}", tokenizer)
    assert tokenizer.decode(form.prompt([Message("user", "<é> & 'x'")])) == "\"<é> & 'x'\""


def test_special_tokens_of_messages_are_text_however_they_lie(folder: Path) -> None:
    """Names that overlap, one within another, and one of a single character."""
    content = json.loads((folder / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first = len(content["model"]["vocab"]) + len(content["added_tokens"])
    names = ("<a>", "a><b", "<<a>>", "\u4e16")
    content["added_tokens"] += [{"id": first + i, "content": name, **flags} for i, name in enumerate(names)]
    files = {"tokenizer.json": json.dumps(content).encode()}
    ids = {"vocab_size": 400, "mask_token_id": first, "pad_token_id": 2, "eos_token_id": 2}
    tokenizer = BPETokenizer(files, ids)
    form = form_of("<<a>>\u4e16{{ messages[0].content }}\u4e16", tokenizer)
    attack = "x<a><b>\u4e16\u4e16<<a>>y\ue000\ue001"
    prompt = form.prompt([Message("user", attack)])
    assert [id_ for id_ in prompt if id_ >= first] == [first + 2, first + 3, first + 3]
    assert prompt[2:-1] == tokenizer.encode(attack)
    assert tokenizer.decode(prompt) == attack
    assert form.prompt([Message("user", "x")]) == [first + 2, first + 3, *tokenizer.encode("x"), first + 3]


def test_a_token_that_the_tokenizer_does_not_know_has_its_row_all_the_same(tokenizer: BPETokenizer) -> None:
    """As those of LLaDA's headers in a base model whose files do not name them."""
    specials = {**tokenizer.special_tokens, "<|new|>": 7}
    form = TemplateFormat(tokenizer, "<|new|>{{ messages[0].content }}<|new|>", specials)
    for text in ("to be", "to <|new|> <|eot_id|> be"):
        assert form.prompt([Message("user", text)]) == [7, *tokenizer.encode(text), 7]


# --- what only training needs


def test_chat_does_not_need_what_training_needs(tokenizer: BPETokenizer) -> None:
    """A prompt that is another one once its answer follows, and a template that takes no answer at all."""
    rewriting = "{{ messages|length }}{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"
    form = form_of(rewriting, tokenizer)
    assert tokenizer.decode(form.prompt(TURNS[2:3])) == "1And then <think>?"
    assert form.end_ids == {tokenizer.eos_id, tokenizer.special_tokens["<|eot_id|>"]}
    with pytest.raises(UserError, match="so that there is no answer to learn: use another template") as caught:
        form.answer(TURNS[2:3], "x")
    assert_one_sentence(caught.value)
    asking = "{% if messages[-1].role != 'user' %}{{ raise_exception('Ask.') }}{% endif %}{{ messages[-1].content }}"
    form = form_of(asking, tokenizer)
    assert tokenizer.decode(form.prompt(TURNS[2:3])) == "And then <think>?"
    assert form.end_ids == {tokenizer.eos_id}
    with pytest.raises(DialogueError, match=r"\(Ask\)"):
        form.answer(TURNS[2:3], "x")


def test_a_template_may_want_a_system_message(tokenizer: BPETokenizer) -> None:
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('No system.') }}{% endif %}x"
    form = form_of(template, tokenizer)
    assert tokenizer.decode(form.prompt([SYSTEM, TURNS[0]])) == "x"
    with pytest.raises(DialogueError, match="No system"):
        form.prompt(TURNS[:1])


def test_a_template_that_begins_the_next_answer_unasked_must_show_its_beginning(tokenizer: BPETokenizer) -> None:
    """LLaDA's does, rendered without a message; this one fails then."""
    template = "{{ messages[0].role.x }}" + LLADA_TEMPLATE
    form = form_of(template, tokenizer)
    assert form.prompt(TURNS[:1]) == chat_format(tokenizer).prompt(TURNS[:1])
    with pytest.raises(UserError, match="does not show where an answer ends"):
        form.answer(TURNS[:1], "x")


def test_a_refusal_can_be_given_the_place_of_its_dialogue(tokenizer: BPETokenizer) -> None:
    """The words are those of the template."""
    template = TEMPLATES["what the assistant wrote is marked"]
    refusing = "{% for m in messages if m.role == 'system' %}{{ raise_exception('No system here.') }}{% endfor %}"
    form = form_of(refusing + template, tokenizer)
    with pytest.raises(DialogueError) as caught:
        form.prompt([SYSTEM, TURNS[0]])
    assert caught.value.reason == "No system here"
    placed = caught.value.at("line 17 of chat.jsonl")
    assert str(placed) == (
        "The chat template of the checkpoint does not take line 17 of chat.jsonl (No system here): change "
        "the dialogue, or use another template."
    )
    assert_one_sentence(placed)


def test_what_a_namespace_or_dict_could_reach_is_refused(tokenizer: BPETokenizer) -> None:
    for escape in ("{% set n = namespace(__class__=1) %}", "{% set n = namespace() %}{% set n.__init__ = 1 %}",
                   "{{ dict.__class__.__mro__ }}", "{{ namespace.__init__.__globals__ }}"):  # fmt: skip
        with pytest.raises(UserError, match="chat template of the checkpoint"):
            form_of(escape, tokenizer)
