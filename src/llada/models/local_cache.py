"""What a `Local` network computed, kept while a text is written: only what a new token reaches is computed anew.

Where the last layer alone attends, as in the preset laptop, a layer below it sees `conv_width // 2` tokens to either
side of what the layer before it saw. A token that changes thus changes a few positions of each layer, and their keys
and values; the rest is as it was. This is not an approximation: the numbers are those of the network without a cache,
to the bit where a row of a matmul does not depend on the rows next to it. Whether that is so is tried on this machine.

Shape letters: B batch, L length, D width, H heads, C channels of a head, Q queries of a row, N changed positions,
W width of the convolution.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llada.models.asked import ROWS_ALIKE, Asked, asked_at, round_up
from llada.models.documents import one_document
from llada.models.llada import at_queries, split_heads, turn
from llada.models.local import NEIGHBOURS, Local, LocalLayer, normed
from llada.models.predictor import MaskPredictor

REACH = max(abs(place) for pair in NEIGHBOURS for place in pair)
"""Places to either side of a token in whose embedding it has a part."""
FEWEST = 4 * ROWS_ALIKE
"""Positions of a batch below which nothing is kept."""


@dataclass
class _Kept:
    """The input of the last call, and what each layer made of it."""

    rows: Tensor
    """(B, L) token rows."""
    attention_mask: Tensor | None
    embedded: Tensor
    """The embedded rows, (B, L, D)."""
    streams: list[Tensor]
    """For each layer, the residual stream with its share of the embedding, (B, L, D)."""
    padded: list[Tensor]
    """For each layer, what its convolution reads, (B, L + W - 1, D), zeros beyond the edges."""
    mixed: Tensor
    """(B, L, D) result of the last layer's convolution."""
    keys: Tensor
    values: Tensor
    """(B, H, L, C) of the last layer."""


class CachedPredictor:
    """A mask predictor that is asked about one batch of texts again and again, while few of their tokens change.

    Equal to its model whatever it is asked; the fewer tokens differ from those of the last call, the less it computes.
    The weights must not change while it is in use.
    """

    takes_positions = gives_new_logits = True

    def __init__(self, model: MaskPredictor) -> None:
        assert isinstance(model.network, Local)
        self.model, self.network = model, model.network
        self.kept: _Kept | None = None

    @torch.no_grad()
    def __call__(self, x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor) -> Tensor:
        """Logits (N, V) at the positions; see `PredictAt`."""
        asked = asked_at(positions)
        if x_t.numel() < FEWEST or not positions.any():
            return self.model(x_t, attention_mask=attention_mask, positions=positions)
        rows = self.model.checked_rows(x_t)
        mask = one_document(attention_mask)
        mask = None if mask is None else mask.clone()  # the caller's may change
        kept = self._updated(rows, mask)
        features = self._last_layer(kept, asked)
        return self.model.head(features.flatten(0, 1)[positions.flatten()] if asked is None else asked.only(features))

    def _updated(self, rows: Tensor, mask: Tensor | None) -> _Kept:
        """What is kept, made that of these rows."""
        kept = self.kept
        is_alike = (
            kept is not None and kept.rows.shape == rows.shape and (kept.attention_mask is None) == (mask is None)
        )
        if kept is None or not is_alike:
            kept, changed = self._nothing(rows, mask), torch.ones_like(rows, dtype=torch.bool)
        else:
            changed = rows != kept.rows
            if mask is not None and kept.attention_mask is not None:
                changed = changed | (mask != kept.attention_mask)
        self.kept = None  # until it is whole again
        kept.rows, kept.attention_mask = rows, mask
        if bool(changed.any()):
            self._compute(kept, changed)
        self.kept = kept
        return kept

    def _nothing(self, rows: Tensor, mask: Tensor | None) -> _Kept:
        config, weight = self.network.config, self.network.output.weight
        n_rows, length = rows.shape

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=weight.dtype, device=rows.device)

        n_layers, width = config.n_layers, config.d_model
        longer = length + config.conv_width - 1
        heads = (n_rows, config.n_heads, length, config.head_dim)
        return _Kept(
            rows,
            mask,
            empty(n_rows, length, width),
            [empty(n_rows, length, width) for _ in range(n_layers)],
            [empty(n_rows, longer, width) for _ in range(n_layers)],
            empty(n_rows, length, width),
            empty(*heads),
            empty(*heads),
        )

    def _compute(self, kept: _Kept, changed: Tensor) -> None:
        """Bring what is kept up to date for changed inputs, (B, L) bool."""
        network, reach = self.network, self.network.config.conv_width // 2
        changed = _spread(changed, REACH)
        places = _places(changed)
        x = embedded = network.embed(kept.rows, kept.attention_mask).flatten(0, 1).index_select(0, places)
        _store(kept.embedded, places, embedded)
        for depth, layer in enumerate(network.layers):
            assert isinstance(layer, LocalLayer)
            mask = None if kept.attention_mask is None else kept.attention_mask.flatten()[places]
            x, h = layer.enter(x, kept.embedded.flatten(0, 1).index_select(0, places), mask)
            _store(kept.streams[depth], places, x)
            _store(kept.padded[depth], self._in_padded(places, changed.shape[1]) + reach, h)
            changed = _spread(changed, reach)
            places = _places(changed)
            h = self._near(layer, kept.padded[depth], self._in_padded(places, changed.shape[1]))
            if layer.attends:
                self._keep_keys(kept, layer, places, h)
            else:
                x = kept.streams[depth].flatten(0, 1).index_select(0, places) + layer.feed_forward(h)

    def _in_padded(self, places: Tensor, length: int) -> Tensor:
        """Indices b L + i as those of the first tap in a tensor that is padded to either side."""
        return places + places // length * (self.network.config.conv_width - 1)

    def _near(self, layer: LocalLayer, padded: Tensor, first: Tensor) -> Tensor:
        """`NearMixing` at N places, (N, D), added up in its order."""
        weight, read = layer.near.weight, padded.flatten(0, 1)
        result = read.index_select(0, first) * weight[0]
        for tap in range(1, len(weight)):
            result = result + read.index_select(0, first + tap) * weight[tap]
        return result

    def _keep_keys(self, kept: _Kept, layer: LocalLayer, places: Tensor, h: Tensor) -> None:
        length, n_heads = kept.rows.shape[1], layer.n_heads
        cos, sin = (part[places % length][:, None] for part in self.network.rotary(kept.embedded))
        k, v = (project(h).unflatten(-1, (n_heads, -1)) for project in (layer.k_proj, layer.v_proj))  # (N, H, C)
        b, i = places // length, places % length
        kept.keys[b, :, i] = turn(normed(k), cos, sin)
        kept.values[b, :, i] = layer.mix_values(v, v)
        _store(kept.mixed, places, h)

    def _last_layer(self, kept: _Kept, asked: Asked | None) -> Tensor:
        """Features (B, Q, D) at the asked places, or (B, L, D)."""
        layer = self.network.layers[-1]
        assert isinstance(layer, LocalLayer)
        h, x = (part if asked is None else asked.of(part) for part in (kept.mixed, kept.streams[-1]))
        q = layer.turn_queries(
            split_heads(layer.q_proj(h), layer.n_heads), at_queries(self.network.rotary(kept.embedded), asked)
        )
        return normed(layer.attend_and_feed(x, q, kept.keys, kept.values, kept.attention_mask))


def _spread(changed: Tensor, reach: int) -> Tensor:
    """Positions (B, L) of which one is at most so many places away."""
    return F.max_pool1d(changed.float(), 2 * reach + 1, stride=1, padding=reach) > 0


def _places(changed: Tensor) -> Tensor:
    """Return indices b L + i, (N,), the last one several times, so that N is a multiple of `ROWS_ALIKE`."""
    places = changed.flatten().nonzero()[:, 0]
    return torch.cat((places, places[-1:].expand(round_up(len(places)) - len(places))))


def _store(kept: Tensor, places: Tensor, values: Tensor) -> None:
    kept.flatten(0, 1)[places] = values


def with_cache(model: MaskPredictor) -> MaskPredictor | CachedPredictor:
    """The model with a cache that lives as long as what is returned, where a cache is exact; else the model."""
    network = model.network
    if not isinstance(network, Local) or not _suits(network):
        return model
    config = network.config
    is_exact = _rows_are_independent(config.d_model, config.mlp_hidden_size, torch.get_num_threads())
    return CachedPredictor(model) if is_exact else model


def _suits(network: Local) -> bool:
    """Whether the last layer alone attends, in fp32 on a CPU: elsewhere a cache has not been found faster and exact."""
    config, weight = network.config, network.output.weight
    attending = [depth for depth in range(config.n_layers) if config.attends(depth)]
    is_plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return attending == [config.n_layers - 1] and is_plain


@functools.cache
def _rows_are_independent(width: int, hidden: int, n_threads: int) -> bool:
    """Whether matmuls of these sizes give a row the same numbers among any rows, with so many threads."""
    generator = torch.Generator().manual_seed(0)
    for n_in, n_out in ((width, width), (width, hidden), (hidden, width)):
        x, weight = (torch.randn(n, n_in, generator=generator) for n in (256, n_out))
        together = F.linear(x, weight)
        for n in (*range(ROWS_ALIKE, 16 * ROWS_ALIKE, ROWS_ALIKE), 128):
            if not torch.equal(F.linear(x[3 : 3 + n].contiguous(), weight), together[3 : 3 + n]):
                return False
    return True
