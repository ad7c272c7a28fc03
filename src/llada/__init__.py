"""llada-trainer: masked diffusion language models, from Tiny Shakespeare on a laptop to LLaDA-8B.

The public names are loaded when they are first used, so that `llada --help` need not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names once more, for type checkers and editors, which do not see _HOMES
    from llada.checkpoints.folder import Checkpoint as Checkpoint
    from llada.checkpoints.load import load_checkpoint as load_checkpoint
    from llada.evaluation.text_bound import TextBound as TextBound
    from llada.forward_process import NoisyBatch as NoisyBatch
    from llada.forward_process import mask_bernoulli as mask_bernoulli
    from llada.forward_process import mask_exact_count as mask_exact_count
    from llada.model import Model as Model
    from llada.model import Step as Step
    from llada.model import load as load
    from llada.objective import loss_weights as loss_weights
    from llada.objective import masked_nll as masked_nll
    from llada.objective import sequence_bounds as sequence_bounds
    from llada.objective import weighted_loss as weighted_loss
    from llada.sampling.config import SamplerConfig as SamplerConfig
    from llada.sampling.guidance import constrain as constrain
    from llada.sampling.guidance import suppress as suppress
    from llada.sampling.long_text import generate_by_sliding as generate_by_sliding
    from llada.sampling.unmask import Canvas as Canvas
    from llada.sampling.unmask import generate as generate
    from llada.sampling.unmask import infill as infill
    from llada.sampling.unmask import unmask as unmask
    from llada.system.errors import UserError as UserError
    from llada.tokenizers.message import Message as Message

__version__ = "0.1.0"

_HOMES = {
    "llada.checkpoints.folder": ("Checkpoint",),
    "llada.system.errors": ("UserError",),
    "llada.forward_process": ("NoisyBatch", "mask_bernoulli", "mask_exact_count"),
    "llada.checkpoints.load": ("load_checkpoint",),
    "llada.objective": ("loss_weights", "masked_nll", "sequence_bounds", "weighted_loss"),
    "llada.evaluation.text_bound": ("TextBound",),
    "llada.model": ("Model", "Step", "load"),
    "llada.tokenizers.message": ("Message",),
    "llada.sampling.config": ("SamplerConfig",),
    "llada.sampling.guidance": ("constrain", "suppress"),
    "llada.sampling.long_text": ("generate_by_sliding",),
    "llada.sampling.unmask": ("Canvas", "generate", "infill", "unmask"),
}
__all__ = sorted(name for names in _HOMES.values() for name in names)


if not TYPE_CHECKING:  # type checkers see every name above; `__getattr__` would give any other name the type Any

    def __getattr__(name):
        for module, names in _HOMES.items():
            if name in names:
                return getattr(importlib.import_module(module), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
