"""LLaDA-MoE: in each layer a router sends every token to a few of many small feed-forward networks, the experts.

The loss that balances the experts in its pre-training (`router_aux_loss_coef`) is not part of our objective.

Shape letters: B batch, L length, V vocabulary rows, D width, M width of an expert, E experts, k experts of a token,
T tokens of all sequences.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from llada.models.embedding import look_up
from llada.models.llada import LLaDAConfig
from llada.models.llama_layers import DecoderLayer, DecoderNetwork, GatedMLP

MAX_EXPERTS = 1024  # experts of a layer; see `llada.MAX_LAYERS`


@dataclass(frozen=True, kw_only=True)
class LLaDAMoEConfig(LLaDAConfig):
    """LLaDA's configuration with that of the experts; `mlp_hidden_size` is the width of one expert."""

    n_experts: int
    n_experts_per_token: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_experts > MAX_EXPERTS:
            raise ValueError(f"n_experts {self.n_experts} is more than {MAX_EXPERTS}")
        if not 1 <= self.n_experts_per_token <= self.n_experts:
            raise ValueError(f"{self.n_experts_per_token} experts a token are not among {self.n_experts}")


class Experts(nn.Module):
    """The feed-forward part of a layer, from (B, L, D) to (B, L, D)."""

    def __init__(self, config: LLaDAMoEConfig) -> None:
        super().__init__()
        self.n_chosen = config.n_experts_per_token
        self.gate = nn.Linear(config.d_model, config.n_experts, bias=False)
        self.experts = nn.ModuleList(GatedMLP(config.d_model, config.mlp_hidden_size) for _ in range(config.n_experts))

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the experts of each token (T, D), and return their weights and their numbers, both (T, k).

        The weights are softmax probabilities over all experts, in fp32, and thus do not add up to 1.
        """
        shares = self.gate(tokens).softmax(dim=-1, dtype=torch.float32)
        weights, chosen = shares.topk(self.n_chosen, dim=-1)
        return weights.to(tokens.dtype), chosen

    def _n_of_each(self, chosen: Tensor) -> list[int]:
        """Count the tokens of each expert; on fake or meta tensors, which have no values, assume an even spread."""
        n_experts = len(self.experts)
        if chosen.is_meta or isinstance(chosen, FakeTensor):
            return [(chosen.numel() + place) // n_experts for place in range(n_experts)]
        n_of: list[int] = chosen.flatten().bincount(minlength=n_experts).tolist()
        return n_of

    def forward(self, h: Tensor) -> Tensor:
        tokens = h.flatten(0, -2)
        weights, chosen = self.route(tokens)
        order = chosen.flatten().argsort(stable=True)  # (T k), the choices of one expert together
        n_of = self._n_of_each(chosen)
        # An expert that no token chose runs on none, so that its gradient is 0 and not absent.
        parts = torch.split(look_up(tokens, order // self.n_chosen), n_of)
        results = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        weighted = results * weights.flatten()[order, None]
        # Back in the order of the tokens, and summed: unlike `index_add_`, that is the same every time on a GPU, and
        # keeps no copy for the backward pass.
        by_token = weighted[order.argsort()].view(len(tokens), self.n_chosen, -1)
        return by_token.sum(1).to(h.dtype).view_as(h)


class LLaDAMoE(DecoderNetwork):
    """The network of LLaDA-MoE: token rows (B, L) to logits (B, L, V)."""

    PARTS = DecoderNetwork.PARTS._replace(
        feed_forward=(),  # neither the experts nor their router have adapters, as is usual
        others={**DecoderNetwork.PARTS.others, "router": r"mlp\.gate\.", "experts": r"mlp\.experts\."},
    )

    def __init__(self, config: LLaDAMoEConfig) -> None:
        super().__init__(
            config,
            (DecoderLayer(config, depth + 1, Experts(config), norms_heads=True) for depth in range(config.n_layers)),
        )
