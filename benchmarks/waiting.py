"""Operations of a training step on its device, counted one by one, and whether the host ever waits for a result.

    python benchmarks/waiting.py

A step has a host's side and a GPU's side. The tensors of the GPU are put on torch's "meta" device here, which has
shapes and no values, and every operation is counted by where its operands are. One that hands a value of the device to
the host (a number, the places of what is true, a copy back) would make the host wait for a GPU; it is counted, and the
meta device refuses it. No GPU is needed, and this says nothing about its speed.
"""

import dataclasses
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llada.data.corpus import Corpus
from llada.data.prepared import prepare
from llada.system.environment import set_defaults
from llada.training.config import NoiseOptions, TrainConfig
from llada.training.metrics import LossByTime
from llada.training.plan import RunPlan
from llada.training.presets import PRESETS
from llada.training.run_folder import RunFolder
from llada.training.trainer import Trainer

META = torch.device("meta")
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "item", "unique", "equal")


class Journal(TorchDispatchMode):
    """A dispatch mode that counts operations by where their operands are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_device: Counter[str] = Counter()
        self.on_host: Counter[str] = Counter()
        self.copies_to_device = self.waits = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = function.overloadpacket.__name__
        if any(tensor.is_meta for tensor in tensors):
            self.on_device[name] += 1
            is_bool_index = name in ("index", "index_put") and any(tensor.dtype == torch.bool for tensor in tensors[1:])
            self.waits += name in WAITING or is_bool_index
        elif tensors:
            self.on_host[name] += 1
        if name == "_to_copy" and kwargs.get("device") is not None:
            goes_up = kwargs["device"] == META and not tensors[0].is_meta
            self.copies_to_device += goes_up
            self.waits += tensors[0].is_meta and kwargs["device"] != META
        return function(*args, **kwargs)


def trainer_on_meta(config: TrainConfig, folder: Path) -> Trainer:
    text = "".join(map(chr, torch.randint(33, 98, (50_000,), generator=torch.Generator().manual_seed(0)).tolist()))
    data = prepare(Corpus(text, "file", "random"), folder / "data", 4096)
    plan = dataclasses.replace(RunPlan.of(config, data), device=META)
    fused = torch.optim.AdamW

    class Plain(fused):  # type: ignore[misc, valid-type]
        """An AdamW that is not fused: the fused one, a single operation on a GPU, skips steps on this device."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "fused": False})

        def step(self, closure: Any = None) -> None:
            del self.found_inf
            super().step()

    torch.optim.AdamW = Plain  # type: ignore[misc]
    try:
        return Trainer(plan, RunFolder(folder / "run"))
    finally:
        torch.optim.AdamW = fused  # type: ignore[misc]


def main() -> None:
    set_defaults()
    console = Console()
    table = Table(title="Operations of a training step")
    for column in ("preset", "on the device", "copies to it", "on the host", "waits"):
        table.add_column(column, justify="left" if column == "preset" else "right")
    for name in ("laptop", "llada"):
        config = dataclasses.replace(PRESETS[name], compile=False, noise=NoiseOptions(random_length=0.0))
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_on_meta(config, Path(folder))
            by_time = LossByTime(META)
            trainer.train_step(by_time)
            with Journal() as journal:
                trainer.train_step(by_time)
        table.add_row(
            name,
            f"{journal.on_device.total():,}",
            f"{journal.copies_to_device:,}",
            f"{journal.on_host.total():,}",
            f"{journal.waits:,}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
