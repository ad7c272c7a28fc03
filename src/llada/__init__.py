"""llada-trainer: masked diffusion language models, from Tiny Shakespeare on a laptop to LLaDA-8B.

The public names are loaded when they are first used, so that `llada --help` need not wait for torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "llada.checkpoint": ("Checkpoint",),
    "llada.errors": ("UserError",),
    "llada.forward_process": ("NoisyBatch", "mask_bernoulli", "mask_exact_count"),
    "llada.opening": ("load_checkpoint",),
    "llada.objective": ("loss_weights", "masked_nll", "sequence_bounds", "weighted_loss"),
    "llada.sampler": ("Canvas", "SamplerConfig", "generate", "infill", "suppress", "unmask"),
}
__all__ = sorted(name for names in _HOMES.values() for name in names)


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
