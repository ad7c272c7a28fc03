"""Networks. They map token rows to logits and know nothing of diffusion, training, files or devices."""

from llada.models.configuration import NetworkConfig, build_network, config_from_json, config_to_json
from llada.models.encoder import Encoder, EncoderConfig
from llada.models.llada import LLaDA, LLaDAConfig
from llada.models.predictor import MaskPredictor
from llada.models.recompute import recompute_activations

__all__ = [
    "Encoder",
    "EncoderConfig",
    "LLaDA",
    "LLaDAConfig",
    "MaskPredictor",
    "NetworkConfig",
    "build_network",
    "config_from_json",
    "config_to_json",
    "recompute_activations",
]
