"""llada-trainer: masked diffusion language models, from Tiny Shakespeare on a laptop to LLaDA-8B."""

from llada.checkpoint import Checkpoint, load_checkpoint
from llada.errors import UserError
from llada.forward_process import NoisyBatch, mask_bernoulli, mask_exact_count
from llada.objective import loss_weights, masked_nll, sequence_bounds, weighted_loss
from llada.sampler import Canvas, SamplerConfig, generate, infill, unmask

__version__ = "0.1.0"

__all__ = [
    "Canvas",
    "Checkpoint",
    "NoisyBatch",
    "SamplerConfig",
    "UserError",
    "generate",
    "infill",
    "load_checkpoint",
    "loss_weights",
    "mask_bernoulli",
    "mask_exact_count",
    "masked_nll",
    "sequence_bounds",
    "unmask",
    "weighted_loss",
]
