"""Patterns of adapters: matched as peft matches them, but never for long."""

import importlib
import json
import logging
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from llada.checkpoints.lora import adapter_weights, load_adapter, save_adapter
from llada.checkpoints.lora_patterns import find_targets
from llada.system.bitsandbytes import importing_bitsandbytes
from llada.system.errors import UserError
from tests.support.configurations import WIDE_ILLADA, WIDE_LLADA, WIDE_MOE
from tests.support.small_adapters import build, draw, logits, peft, stored

pytestmark = pytest.mark.usefixtures("one_thread")

UNSLOTHS = (
    r"(?:.*?(?:self_attn|mlp).*?(?:k_proj|v_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp)\.(?:up_proj))"
)
CONFIGURATIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ends of names": (WIDE_LLADA, {"target_modules": ["q_proj", "blocks.1.v_proj"]}),
    "whole name": (WIDE_LLADA, {"target_modules": ["model.transformer.blocks.0.up_proj"]}),
    "whole name, other layers": (
        WIDE_LLADA,
        {"target_modules": ["model.transformer.blocks.0.up_proj", "q_proj"], "layers_to_transform": [1]},
    ),
    "regex": (WIDE_LLADA, {"target_modules": r".*\.blocks\.\d+\.(q_proj|ff_out)$"}),
    "regex with lookahead": (WIDE_LLADA, {"target_modules": r"^(?!.*blocks\.0).*_proj$"}),
    "unsloth's": (WIDE_ILLADA, {"target_modules": UNSLOTHS}),
    "all-linear": (WIDE_LLADA, {"target_modules": "all-linear"}),
    "all-linear without": (WIDE_ILLADA, {"target_modules": "All-Linear", "exclude_modules": ["lm_head", "o_proj"]}),
    "excluded by regex": (WIDE_LLADA, {"target_modules": ["q_proj", "ff_proj"], "exclude_modules": r".*blocks\.1\..*"}),
    "rslora": (WIDE_LLADA, {"target_modules": ["q_proj"], "use_rslora": True}),
    "ranks": (
        WIDE_LLADA,
        {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"blocks.0.q_proj": 2, "up_.*": 3}},
    ),
    "first pattern counts": (WIDE_LLADA, {"target_modules": ["q_proj"], "rank_pattern": {"0.q_proj": 2, "q_proj": 5}}),
    "alphas": (
        WIDE_LLADA,
        {"target_modules": ["q_proj", "up_proj"], "alpha_pattern": {r"\d\.up_proj": 3, "q_proj": 0.5}},
    ),
    "one layer": (WIDE_LLADA, {"target_modules": ["q_proj"], "layers_to_transform": 1}),
    "layers by pattern": (
        WIDE_ILLADA, {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["layers", "blocks"]}
    ),
    "experts": (WIDE_MOE, {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}),
}  # fmt: skip


@pytest.mark.parametrize(("config", "lora"), CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_targets_are_those_of_peft_bit_for_bit(config: Any, lora: dict[str, Any], tmp_path: Path) -> None:
    model = peft.get_peft_model(build(config), peft.LoraConfig(r=4, lora_alpha=12, **lora))
    draw(weight for weight in model.parameters() if weight.requires_grad)
    model.save_pretrained(str(tmp_path))
    fresh = build(config)
    load_adapter(fresh, tmp_path)
    theirs = {name: weight.shape for name, weight in model.named_parameters() if ".lora_" in name}
    assert len(theirs) == len(adapter_weights(fresh))
    assert torch.equal(logits(fresh), logits(model))
    (tmp_path / "again").mkdir()
    save_adapter(tmp_path / "again", fresh, "base")
    before, after = (
        json.loads((place / "adapter_config.json").read_text()) for place in (tmp_path, tmp_path / "again")
    )
    for key in lora:  # as they were read, not in whole names
        same = sorted(after[key]) == sorted(before[key]) if isinstance(before[key], list) else after[key] == before[key]
        assert same or str(before[key]).lower() == "all-linear"


CATASTROPHIC = r"(([a-z._0-9])+)+!"
ENDLESS = r"(?:.*.*.*.*.*.*.*.*.*.*.*.*)*(\d|\d\d|[0-9]*)*[!?]x"


@pytest.mark.parametrize("pattern", [CATASTROPHIC, ENDLESS, r"(.|a)*(.|b)*(.|c)*(.|d)*!", "a?" * 2000 + "a" * 2000])
@pytest.mark.parametrize(
    "place",
    [
        lambda pattern: {"target_modules": pattern},
        lambda pattern: {"exclude_modules": pattern},
        lambda pattern: {"rank_pattern": {pattern: 4}},
        lambda pattern: {"alpha_pattern": {pattern: 4}},
        lambda pattern: {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": [pattern]},
    ],
    ids=["target", "exclude", "rank", "alpha", "layers"],
)
def test_a_pattern_that_never_ends_ends(pattern: str, place: Any, tmp_path: Path) -> None:
    folder = stored(tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | place(pattern)), encoding="utf-8")
    start = time.monotonic()
    try:
        load_adapter(build(WIDE_LLADA), folder)
    except UserError as error:
        assert str(error).endswith(".")  # noqa: PT017
    assert time.monotonic() - start < 20  # `re` takes years; two seconds are allowed, and the machine may be busy


def test_limits_of_lengths() -> None:
    for values, said in (
        ({"target_modules": [f"x{i}" for i in range(10_001)]}, "target_modules has 10,001 entries"),
        ({"target_modules": "x" * 10_001}, "a pattern of 10,001 characters"),
        ({"target_modules": ["q_proj"], "rank_pattern": {f"x{i}": 1 for i in range(10_001)}}, "rank_pattern has"),
        ({"target_modules": ["nothing"]}, "not found in the base model"),
        ({"target_modules": "["}, "is broken"),
    ):
        with pytest.raises(ValueError, match=said):
            find_targets(build(WIDE_LLADA), peft.LoraConfig(**values))


# -- what bitsandbytes would fetch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_loaded", [False, True])
def test_no_kernel_is_fetched_while_bitsandbytes_is_imported(
    is_loaded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of this name that says when it is asked, and a library that asks as bitsandbytes does."""
    asked = tmp_path / "asked"
    (tmp_path / "kernels.py").write_text(f"def get_kernel(*_, **__):\n    open({str(asked)!r}, 'w')\n")
    (tmp_path / "imports_kernels.py").write_text("from kernels import get_kernel\nget_kernel('native/code')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = ModuleType("kernels")
    if is_loaded:
        monkeypatch.setitem(sys.modules, "kernels", before)
    else:
        monkeypatch.delitem(sys.modules, "kernels", raising=False)
    with importing_bitsandbytes(), pytest.raises(ImportError):
        importlib.import_module("imports_kernels")
    assert not asked.exists()
    assert sys.modules.get("kernels") is (before if is_loaded else None)
    assert "kernels" not in sys.modules or is_loaded
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)
    if not is_loaded:
        importlib.import_module("imports_kernels")  # the probe: outside of the block it is asked
        assert asked.exists()
        del sys.modules["imports_kernels"], sys.modules["kernels"]
