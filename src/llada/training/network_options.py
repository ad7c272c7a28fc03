"""The options of the network that a run builds, and its configuration for a vocabulary."""

from dataclasses import dataclass
from typing import Annotated, Literal

from llada.models import EncoderConfig, LLaDAConfig, LocalConfig, NetworkConfig
from llada.system.errors import UserError
from llada.system.ranges import ABOVE_0, AT_LEAST_1, Checked
from llada.tokenizers.base import Rows

NetworkName = Literal["llada", "local", "encoder", "causal"]


@dataclass(frozen=True)
class NetworkOptions(Checked):
    """The network to build from random weights."""

    network: NetworkName = "llada"
    """Kind of network. "llada": RMSNorm, rotary positions, SwiGLU, stored as an official LLaDA checkpoint. "local":
    embeddings of neighbouring pairs and convolutions with little attention, for short runs. "encoder": learned
    positions, LayerNorm, GELU, dropout. "causal": the encoder with causal attention, an autoregressive model for
    comparison."""
    d_model: int = 128
    """Width of the residual stream."""
    n_heads: int = 2
    """Number of attention heads in each layer."""
    n_layers: int = 4
    """Number of transformer layers."""
    mlp_hidden_size: int | None = None
    """Width of the feed-forward layers; if left out, 8/3 of d_model rounded up to a multiple of 32 for "llada", and
    4 d_model for "local"."""
    rope_theta: Annotated[float, ABOVE_0] = 10_000.0
    """Base of the rotary wavelengths in "llada" and "local"."""
    conv_width: Annotated[int, AT_LEAST_1] = 9
    """Number of tokens that a convolution of "local" covers, an odd number."""
    table_rows: Annotated[int, AT_LEAST_1] = 16_384
    """Greatest number of rows of an embedding of pairs in "local"; 1 turns these embeddings off."""
    attention_every: Annotated[int, AT_LEAST_1] = 5
    """In "local", every so many layers one has attention; the others have only a convolution."""
    dropout: float = 0.0
    """Dropout probability of "encoder" and "causal"; masking already regularizes."""

    def _of_local(self) -> tuple[int, int, int]:
        """Return the settings that only the network "local" has."""
        return self.conv_width, self.table_rows, self.attention_every

    def build_config(self, rows: Rows, max_sequence_length: int) -> NetworkConfig:
        """Return the configuration of this network for a vocabulary.

        Raises:
            UserError: the shape cannot be built, or dropout is set for a network that has none.
        """
        try:
            if self.network in ("encoder", "causal"):
                return EncoderConfig(
                    vocab_size=rows.vocab_size,
                    mask_token_id=rows.mask_row,
                    max_sequence_length=max_sequence_length,
                    d_model=self.d_model,
                    n_heads=self.n_heads,
                    n_layers=self.n_layers,
                    dropout=self.dropout,
                    is_causal=self.network == "causal",
                )
            if self.dropout:
                raise ValueError(
                    f'the {self.network} network has no dropout: leave `dropout` out or choose `network="encoder"`'
                )
            if self.network != "local" and self._of_local() != NetworkOptions()._of_local():
                raise ValueError(
                    "`conv_width`, `table_rows` and `attention_every` are of the local network: leave them out or add "
                    '`network="local"`'
                )
            if self.network == "local":
                return LocalConfig(
                    vocab_size=rows.vocab_size,
                    mask_token_id=rows.mask_row,
                    pad_token_id=rows.pad_id,
                    eos_token_id=rows.eos_id,
                    max_sequence_length=max_sequence_length,
                    d_model=self.d_model,
                    n_heads=self.n_heads,
                    n_layers=self.n_layers,
                    mlp_hidden_size=4 * self.d_model if self.mlp_hidden_size is None else self.mlp_hidden_size,
                    conv_width=self.conv_width,
                    table_rows=self.table_rows,
                    attention_every=self.attention_every,
                    rope_theta=self.rope_theta,
                )
            default_width = -(-self.d_model * 8 // 3 // 32) * 32
            return LLaDAConfig(
                vocab_size=rows.vocab_size,
                mask_token_id=rows.mask_row,
                pad_token_id=rows.pad_id,
                eos_token_id=rows.eos_id,
                d_model=self.d_model,
                n_heads=self.n_heads,
                n_layers=self.n_layers,
                mlp_hidden_size=default_width if self.mlp_hidden_size is None else self.mlp_hidden_size,
                max_sequence_length=max_sequence_length,
                rope_theta=self.rope_theta,
            )
        except ValueError as error:
            raise UserError(f"This network cannot be built: {error}.") from error
