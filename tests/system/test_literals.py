"""Options with a fixed list of values are checked where they are constructed, all of them."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import llada
from llada.checkpoints.dummy import write_random_checkpoint
from llada.checkpoints.folder import weights_dtype
from llada.checkpoints.lora import target_pattern
from llada.data.corpus import load_corpus
from llada.forward_process import mask_exact_count
from llada.objective import loss_weights
from llada.optim.adamw import AdamW16
from llada.optim.schedule import learning_rate_factor
from llada.sampling.policies import make_policy
from llada.system.device import choose_device, choose_precision
from llada.system.errors import UserError
from llada.system.literals import _literal_fields, check_literal, check_literals

PARTS = ("sampler", "adapters", "evaluation.harness_options", "random_checkpoint", "checkpoint", "dialogue", "training")


@dataclass(frozen=True)
class Options:
    fruit: Literal["apple", "pear"] = "apple"
    number: Literal[1, 2] | None = None
    name: str = "anything"

    def __post_init__(self) -> None:
        check_literals(self)


def test_what_the_type_lists_is_taken_and_nothing_else() -> None:
    Options("pear", 2, "else")
    with pytest.raises(ValueError, match=r"^fruit must be one of 'apple', 'pear', not 'aple'$"):
        Options("aple")  # type: ignore[arg-type]
    for number in (3, "1", True, [1]):  # True == 1, and is another thing
        with pytest.raises(ValueError, match="number must be one of 1, 2, not"):
            Options(number=number)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="kind must be one of 'a', not 'b'"):
        check_literal("kind", "b", Literal["a"], UserError)


def test_functions_refuse_one_too(text: str, tmp_path: Path) -> None:
    ids = torch.zeros(1, 2, dtype=torch.long)
    noisy = mask_exact_count(ids, 9, torch.Generator())
    calls: dict[str, Callable[[], Any]] = {
        "policy": lambda: make_policy("misspelt"),  # type: ignore[arg-type]
        "layout": lambda: write_random_checkpoint(tmp_path / "x", text, "misspelt"),  # type: ignore[arg-type]
        "dtype": lambda: weights_dtype("misspelt"),  # type: ignore[arg-type]
        "average": lambda: loss_weights(noisy, average="misspelt"),  # type: ignore[arg-type]
        "targets": lambda: target_pattern(None, "misspelt"),  # type: ignore[arg-type]
        "schedule": lambda: learning_rate_factor("misspelt", 0.5, 1, 0, 0.1, 0.0),  # type: ignore[arg-type]
        "source": lambda: load_corpus("misspelt", None, print),  # type: ignore[arg-type]
        "device": lambda: choose_device("misspelt"),  # type: ignore[arg-type]
        "precision": lambda: choose_precision("misspelt", torch.device("cpu")),  # type: ignore[arg-type]
        "state": lambda: AdamW16([], lr=1.0, state="misspelt"),  # type: ignore[arg-type]
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name} must be one of .*, not 'misspelt'$"):
            call()


def dataclasses_with_literals() -> list[type]:
    found = []
    for module in pkgutil.walk_packages(llada.__path__, "llada."):
        if any(module.name.startswith(f"llada.{part}") for part in PARTS):
            loaded = importlib.import_module(module.name)
            mine = [kind for kind in vars(loaded).values() if isinstance(kind, type) and is_dataclass(kind)]
            found += [kind for kind in mine if kind.__module__ == module.name and _literal_fields(kind)]
    return found


@pytest.mark.parametrize("kind", dataclasses_with_literals(), ids=lambda kind: kind.__name__)
def test_every_public_dataclass_refuses_a_misspelt_option(kind: type) -> None:
    needed = {
        field.name: "x" for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING
    }
    for name in _literal_fields(kind):
        with pytest.raises((ValueError, UserError), match=f"{name} must be one of .*, not 'misspelt'"):
            kind(**{**needed, name: "misspelt"})
