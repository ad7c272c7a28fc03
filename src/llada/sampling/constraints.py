"""Tokens that must or must not stand at some positions, named by their texts."""

import json
from collections.abc import Mapping, Sequence

import torch

from llada.models.predictor import PredictAt
from llada.sampling.guidance import Constrained, Predict, TokensAt, constrain
from llada.system.errors import UserError
from llada.tokenizers.base import Tokenizer

TextsAt = Mapping[int, str | Sequence[str]]
"""Texts of one token each by position, from 0; one text or several."""


def tokens_at(texts: TextsAt, tokenizer: Tokenizer) -> TokensAt:
    """The token ids of the texts.

    Raises:
        UserError: a text is not one token of the vocabulary.
    """
    return {
        position: [_token(one, tokenizer) for one in ([allowed] if isinstance(allowed, str) else allowed)]
        for position, allowed in texts.items()
    }


def _token(text: str, tokenizer: Tokenizer) -> int:
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise UserError(f"{text!r} is {len(ids)} tokens of this model, not one: name each position's token by itself.")
    return ids[0]


def constrain_all(
    predict: Predict | PredictAt,
    templates: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    banned: TextsAt | None,
    required: TextsAt | None,
) -> Predict | PredictAt:
    """The predictor with the same constraints for several templates, each of which must allow them.

    Raises:
        UserError: a constraint contradicts a template or another constraint, or names no token.
    """
    if not banned and not required:
        return predict
    never, only = tokens_at(banned or {}, tokenizer), tokens_at(required or {}, tokenizer)
    for template in templates:
        constrain(predict, torch.tensor([list(template)]), tokenizer.mask_id, banned=never, required=only)
    return Constrained(predict, max(map(len, templates)), never, only)


def read_texts_at(content: str, option: str) -> TextsAt:
    """Read constraints from JSON, `{"0": "T", "5": ["a", "e"]}`.

    Raises:
        UserError: it is something else; the sentence names the option.
    """
    try:
        read = json.loads(content)
        return {_position(key): _texts(value) for key, value in read.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f'`{option}` must be JSON of positions and tokens, such as {{"0": "T", "5": ["a", "e"]}}: correct it.'
        ) from error


def _position(key: str) -> int:
    if not key.isdecimal():
        raise ValueError(key)
    return int(key)


def _texts(value: object) -> str | list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise TypeError(value)
    return texts
