"""Networks: they take token rows to logits and know nothing of diffusion, training, files or devices."""

from llada.models.config_json import (
    Network,
    NetworkConfig,
    build_network,
    config_from_json,
    config_to_json,
    is_causal,
    mask_name,
    tied_head,
)
from llada.models.encoder import Encoder, EncoderConfig
from llada.models.llada import LLaDA, LLaDAConfig, RotaryNetwork
from llada.models.llada_moe import LLaDAMoE, LLaDAMoEConfig
from llada.models.llama_layers import ILLaDA, ILLaDAConfig
from llada.models.local import Local, LocalConfig
from llada.models.predictor import MaskPredictor, PredictAt, block_length_of, checkpoint_activations, flat_positions
from llada.models.shapes import expected_shapes, without_values

__all__ = [
    "Encoder",
    "EncoderConfig",
    "ILLaDA",
    "ILLaDAConfig",
    "LLaDA",
    "LLaDAConfig",
    "LLaDAMoE",
    "LLaDAMoEConfig",
    "Local",
    "LocalConfig",
    "MaskPredictor",
    "Network",
    "NetworkConfig",
    "PredictAt",
    "RotaryNetwork",
    "block_length_of",
    "build_network",
    "checkpoint_activations",
    "config_from_json",
    "config_to_json",
    "expected_shapes",
    "flat_positions",
    "is_causal",
    "mask_name",
    "tied_head",
    "without_values",
]
