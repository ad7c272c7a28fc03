"""iLLaDA: LLaDA with Llama's names, grouped key-value heads and a tied head (arXiv 2606.25331)."""

from dataclasses import dataclass

from llada.models.llada import LLaDAConfig
from llada.models.llama_layers import DecoderLayer, DecoderNetwork, GatedMLP


@dataclass(frozen=True)
class ILLaDAConfig(LLaDAConfig):
    """The same numbers as LLaDA's; `configuration.py` knows the keys that they are stored under."""


class ILLaDA(DecoderNetwork):
    """Token rows (B, L) in, logits (B, L, V) out."""

    def __init__(self, config: ILLaDAConfig) -> None:
        super().__init__(
            config,
            (
                DecoderLayer(config, depth + 1, GatedMLP(config.d_model, config.mlp_hidden_size))
                for depth in range(config.n_layers)
            ),
        )
