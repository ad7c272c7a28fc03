"""Rotary positions and ids of the end in config.json, in every layout and in the words of every transformers."""

from typing import Any

import pytest

from llada.models import NetworkConfig, config_from_json, config_to_json
from tests.support.configurations import ODD_ENCODER, ODD_ILLADA, ODD_LLADA, ODD_LOCAL, ODD_MOE

LAYOUTS = {"llada": ODD_LLADA, "illada": ODD_ILLADA, "moe": ODD_MOE, "local": ODD_LOCAL}
all_layouts = pytest.mark.parametrize("config", LAYOUTS.values(), ids=LAYOUTS.keys())
KEYS = ("rope_scaling", "rope_parameters")


def read(config: NetworkConfig, without: tuple[str, ...] = (), **changes: Any) -> NetworkConfig:
    content = {key: value for key, value in config_to_json(config).items() if key not in without}
    return config_from_json({**content, **changes}, mask_row=config.mask_token_id)


@all_layouts
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 8},
        {"rope_type": "default", "type": "linear"},
        {"rope_type": "default", "factor": 4.0},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"full_attention": {"rope_type": "default"}},
        {"rope_type": None, "factor": 2.0},
        {"rope_type": "llama3"},
        {"rope_type": ["default"]},
        "linear",
        [1],
        4.0,
    ],
    ids=str,
)
def test_scaled_positions_are_refused_in_every_layout_under_either_key(
    config: NetworkConfig, key: str, scaling: Any
) -> None:
    if isinstance(scaling, dict):
        scaling = {**scaling, "rope_theta": config_to_json(config)["rope_theta"]}
    with pytest.raises(ValueError, match=f"{key} = .* is not supported"):
        read(config, **{key: scaling})


@all_layouts
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "plain",
    [None, {}, {"rope_type": "default"}, {"type": "default"}, {"rope_type": "default", "factor": 1.0, "beta": None}],
    ids=str,
)
def test_positions_that_are_not_scaled_are_read(config: NetworkConfig, key: str, plain: Any) -> None:
    assert read(config, **{key: plain}) == read(config)


@all_layouts
@pytest.mark.parametrize("key", KEYS)
def test_the_base_is_read_from_either_place_and_must_agree(config: NetworkConfig, key: str) -> None:
    base: dict[str, Any] = {key: {"rope_theta": 7777.0}}
    moved = read(config, ("rope_theta",), **{key: {"rope_type": "default", "rope_theta": 7777.0}})
    assert moved.rope_theta == 7777.0  # type: ignore[union-attr]
    assert read(config, rope_theta=None, **base) == moved
    assert read(config, rope_theta=7777, **base) == moved
    with pytest.raises(ValueError, match=rf"rope_theta = 10000.0 and rope_theta in {key} = 7777.0 disagree"):
        read(config, rope_theta=10000.0, **base)
    with pytest.raises(ValueError, match="lacks rope_theta"):
        read(config, ("rope_theta",), **{key: {"rope_type": "default"}})


def test_the_two_objects_must_agree_too() -> None:
    with pytest.raises(ValueError, match="rope_theta in rope_scaling = 1 and rope_theta in rope_parameters = 2"):
        read(ODD_LLADA, ("rope_theta",), rope_scaling={"rope_theta": 1}, rope_parameters={"rope_theta": 2})


def test_a_network_without_rotary_positions_has_none_to_scale() -> None:
    assert read(ODD_ENCODER, rope_parameters=None) == ODD_ENCODER
    with pytest.raises(ValueError, match="rope_scaling"):
        read(ODD_ENCODER, rope_scaling={"type": "linear", "factor": 2.0})


# -- EOS --------------------------------------------------------------------------------------------------------------

PUBLISHED = pytest.mark.parametrize("config", [ODD_LLADA, ODD_ILLADA, ODD_MOE], ids=["llada", "illada", "moe"])


@PUBLISHED
def test_the_first_of_several_ids_is_eos_and_all_are_kept(config: Any) -> None:
    several = read(config, eos_token_id=[3, 7, 3, 4])
    assert (several.eos_token_id, several.further_eos_ids) == (3, (7, 4))  # type: ignore[union-attr]
    assert config_to_json(several)["eos_token_id"] == [3, 7, 4]
    assert read(several) == several
    assert read(config, eos_token_id=[3]) == read(config, eos_token_id=3)
    assert config_to_json(read(config, eos_token_id=[3]))["eos_token_id"] == 3


@PUBLISHED
@pytest.mark.parametrize("ids", [[], [3, None], ["3"], [True], [-1], [[3]], [3.0]], ids=str)
def test_lists_that_hold_something_else_are_refused(config: Any, ids: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"eos_token_id = .* is not supported"):
        read(config, eos_token_id=ids)


@PUBLISHED
def test_ids_of_no_row_or_of_mask_are_refused(config: Any) -> None:
    with pytest.raises(ValueError, match="eos_token_id names ids beyond the 11 rows"):
        read(config, eos_token_id=[2, 11])
    with pytest.raises(ValueError, match="must not be that of PAD or EOS"):
        read(config, eos_token_id=[2, config.mask_token_id])


@PUBLISHED
def test_null_is_the_tokenizers_own(config: Any) -> None:
    content = {**config_to_json(config), "eos_token_id": None, "pad_token_id": None}
    found = config_from_json(content, config.mask_token_id, eos_id=7, pad_id=3)
    assert (found.eos_token_id, found.pad_token_id) == (7, 3)  # type: ignore[union-attr]
    found = config_from_json(content, config.mask_token_id, eos_id=7)
    assert (found.eos_token_id, found.pad_token_id) == (7, 7)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="eos_token_id is null, and the tokenizer names none either"):
        config_from_json(content, config.mask_token_id)
