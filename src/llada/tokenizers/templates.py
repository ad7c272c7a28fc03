"""Chat templates of the public checkpoints, in our own words; they render the same as the published ones.

They are written into random checkpoints, and used for a checkpoint that has no template but knows the tokens. Like the
published one, LLaDA's ends in the assistant's header whatever it is asked.
"""

LLADA_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if loop.first -%}{{ bos_token }}{%- endif -%}"
    "{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' ~ message.content | trim ~ '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}"
)
# Its tokens with their ids in the published vocabulary, since the base model's files may not name them all.
LLADA_TOKENS = {"<|start_header_id|>": 126_346, "<|end_header_id|>": 126_347, "<|eot_id|>": 126_348}
LLADA_ROWS = 126_464

LLADA_MOE_TEMPLATE = (
    "{%- set roles = {'system': 'SYSTEM', 'user': 'HUMAN', 'assistant': 'ASSISTANT'} -%}"
    "{%- if not messages or messages[0].role != 'system' -%}"
    "{{- '<role>SYSTEM</role>detailed thinking off<|role_end|>' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<role>' ~ roles[message.role] ~ '</role>' ~ message.content ~ '<|role_end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<role>ASSISTANT</role>' -}}{%- endif -%}"
)
LLADA_MOE_TOKENS = ("<role>", "</role>", "<|role_end|>")
