"""Prefix and dual cache for networks of the LLaDA family: keys and values outside of a block are kept (Fast-dLLM).

A sampler fills a block of positions, step after step. At the start of a block all positions are computed, and every
layer's keys and values are kept. In the next steps only the block ("dual"), or the block and what follows it
("prefix"), goes through the layers: it attends to fresh keys and values there and to the kept ones elsewhere (arXiv
2505.22618, section 3.1). This is an approximation: where more than one layer attends, what stands outside of the block
depends on each token in it. With `refresh=1` every step computes all positions, and the numbers are those without a
cache.

The block of a row is found in the calls: it starts at the row's first mask, since a policy may ask in any order, or at
the first position that is asked for, if that is further on than a block, and is over as soon as a position outside of
it is asked for. Whatever else differs from what is kept (another text, other padding, a token that
is masked again) has the row computed anew, so that any calls are answered. Rows are looked up by their tokens, because
a batch may lose the rows that are complete; and the last two batches are kept, because guidance asks about two in turn.

Shape letters: B batch, L length, Q fed positions of a row, N asked positions, R rows of a pass, D width,
K key-value heads, C channels of a head.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from llada.models.asked import Asked, asked_at
from llada.models.documents import one_document
from llada.models.llada import RotaryNetwork
from llada.models.predictor import MaskPredictor

CacheName = Literal["prefix", "dual"]
PADDING = -1  # in the place of a token that nothing attends to
BATCHES_KEPT = 2


@dataclass(frozen=True)
class CacheOptions:
    """The cache of the sampler, which is off by default."""

    cache: CacheName | None = None
    """Keep keys and values outside of the block that is being filled, in networks of the LLaDA family: those before it
    ("prefix"), or those on both sides of it ("dual"). Faster and less exact; it needs blocks."""
    cache_refresh: int | None = None
    """Compute all positions at every so many steps; None is at the start of a block only, 1 is the same as no cache."""

    def __post_init__(self) -> None:
        if self.cache not in (None, "prefix", "dual"):
            raise ValueError(f"cache must be one of prefix, dual, not {self.cache!r}")
        if self.cache_refresh is not None and self.cache_refresh < 1:
            raise ValueError(f"cache_refresh must be at least 1, not {self.cache_refresh}")


NO_CACHE = CacheOptions()


@dataclass
class _Kept:
    """What is known of the rows of a batch since the last pass over all of their positions."""

    computed: Tensor
    """(B, L) token rows of that pass, `PADDING` where there is padding."""
    last: Tensor
    """(B, L) the same for the last call."""
    start: Tensor
    end: Tensor
    """(B,) the block, from its first position to the one after its last."""
    text_end: Tensor
    """(B,) the position after the last one that is not padding."""
    age: Tensor
    """(B,) calls since that pass, itself included."""
    keys: list[Tensor]
    values: list[Tensor]
    """For each layer, (B, L, K, C)."""

    def rows(self, source: Tensor) -> "_Kept":
        """Select rows (R,); itself if they are all, in order."""
        if len(source) == len(self.age) and bool((source == torch.arange(len(source), device=source.device)).all()):
            return self
        return _Kept(
            self.computed[source],
            self.last[source],
            self.start[source],
            self.end[source],
            self.text_end[source],
            self.age[source],
            [part[source] for part in self.keys],
            [part[source] for part in self.values],
        )


@dataclass
class _Pass:
    """One pass through the layers, over all positions of some rows or over the fed ones; see `KeptKeys`."""

    kept: _Kept
    index: Tensor | None
    """(R,) the rows; None is all."""
    fed: Asked | None

    def merged(self, depth: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep those of the fed positions, and return those of all."""
        return self._kept_or_fresh(self.kept.keys, depth, k), self._kept_or_fresh(self.kept.values, depth, v)

    def _kept_or_fresh(self, parts: list[Tensor], depth: int, fresh: Tensor) -> Tensor:
        fresh = fresh.transpose(1, 2)  # (R, Q, K, C)
        if self.fed is None and self.index is None:
            parts[depth : depth + 1] = [fresh]
        elif self.fed is None:
            parts[depth][self.index] = fresh
        else:
            places, length = self.fed.places, parts[depth].shape[1]
            row = torch.arange(len(places), device=places.device) if self.index is None else self.index
            parts[depth].flatten(0, 1)[self.fed.only(places + row[:, None] * length)] = self.fed.only(fresh)
            fresh = parts[depth] if self.index is None else parts[depth][self.index]
        return fresh.transpose(1, 2)


class BlockCachedPredictor:
    """A mask predictor with a prefix or dual cache; the weights must not change while it is in use."""

    takes_positions = gives_new_logits = True

    def __init__(self, model: MaskPredictor, cache: CacheName, block_length: int, refresh: int | None = None) -> None:
        """Wrap a model.

        Args:
            block_length: that of the sampler; a longer one than the sampler's costs time, a shorter one saves nothing.
            refresh: see `CacheOptions.cache_refresh`.

        Raises:
            ValueError: the network is not one of the LLaDA family, or a number is below 1.
        """
        if not isinstance(model.network, RotaryNetwork):
            raise ValueError("the prefix and dual cache are for networks of the LLaDA family")
        if block_length < 1:
            raise ValueError(f"block_length must be at least 1, not {block_length}")
        CacheOptions(cache, refresh)
        self.model, self.network = model, model.network
        self.cache, self.block_length, self.refresh = cache, block_length, refresh
        self.kept: list[_Kept] = []
        """The last batches, the newest last."""

    @torch.no_grad()
    def __call__(self, x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor) -> Tensor:
        """Logits (N, V) at the positions; see `PredictAt`."""
        rows = self.model.checked_rows(x_t)
        if not positions.any():
            return self.model(x_t, attention_mask=attention_mask, positions=positions)
        mask = one_document(attention_mask)
        tokens = rows if mask is None else rows.masked_fill(~mask, PADDING)
        kept, is_valid = self._found(tokens, positions)
        if not bool(is_valid.any()):
            kept = self._started(tokens, positions)
            features = self._features(rows, mask, positions, _Pass(kept, None, None))
        elif bool(is_valid.all()):
            features = self._features(rows, mask, positions, _Pass(kept, None, self._fed(kept)))
        else:
            features = self._mixed(rows, mask, tokens, positions, kept, is_valid)
        kept.last, kept.age = tokens, kept.age + 1
        self.kept = [*self.kept, kept][-BATCHES_KEPT:]
        return self.model.head(features)

    def _found(self, tokens: Tensor, positions: Tensor) -> tuple[_Kept, Tensor]:
        """What is kept of these rows, and which of them it is valid for, (B,) bool; what was found is taken out."""
        candidates = [kept for kept in self.kept if kept.last.shape[1:] == tokens.shape[1:]]
        nothing = self._started(tokens, positions), torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        if not candidates:
            return nothing
        found = [self._looked_up(kept, tokens, positions) for kept in candidates]
        best = max(range(len(found)), key=lambda i: (int(found[i][1].sum()), i))
        if not bool(found[best][1].any()):
            return nothing
        self.kept = [kept for kept in self.kept if kept is not candidates[best]]
        return found[best][0].rows(found[best][2]), found[best][1]

    def _looked_up(self, kept: _Kept, tokens: Tensor, positions: Tensor) -> tuple[_Kept, Tensor, Tensor]:
        """The batch, which rows it is valid for, (B,), and which of its rows is the nearest to each, (B,)."""
        distance = (tokens[:, None] != kept.last[None]).sum(-1) * 2
        n = min(distance.shape)
        distance[range(n), range(n)] -= 1  # in a tie, a row stays where it is
        source = distance.argmin(1)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        is_block = (place >= kept.start[source, None]) & (place < kept.end[source, None])
        is_fed = is_block if self.cache == "dual" else place >= kept.start[source, None]
        is_masked_again = (tokens == self.model.mask_row) & (kept.last[source] != self.model.mask_row)
        is_off = ((tokens != kept.computed[source]) & ~is_fed) | (positions & ~is_block) | is_masked_again
        is_off |= (tokens == PADDING) != (kept.computed[source] == PADDING)
        is_valid = ~is_off.any(1)
        if self.refresh is not None:
            is_valid &= kept.age[source] < self.refresh
        return kept, is_valid, source

    def _started(self, tokens: Tensor, positions: Tensor) -> _Kept:
        """What is kept of rows before the pass over all of their positions, without keys and values."""
        is_text, length = tokens != PADDING, tokens.shape[1]
        start, first_mask = (places.byte().argmax(1) for places in (positions, tokens == self.model.mask_row))
        start = torch.where(start - first_mask < self.block_length, start.minimum(first_mask), start)
        text_end = (is_text * torch.arange(1, length + 1, device=tokens.device)).amax(1)
        end = (start + self.block_length).minimum(text_end).maximum(start + 1)
        return _Kept(tokens, tokens, start, end, text_end.maximum(end), torch.zeros_like(start), [], [])

    def _fed(self, kept: _Kept) -> Asked:
        """The positions that go through the layers, each row's last one several times if others have more."""
        end = kept.end if self.cache == "dual" else kept.text_end
        count = end - kept.start
        step = torch.arange(int(count.max()), device=count.device)
        places = kept.start[:, None] + step.minimum(count[:, None] - 1)
        return Asked(places, (step < count[:, None]).flatten().nonzero()[:, 0])

    def _features(self, rows: Tensor, mask: Tensor | None, positions: Tensor, layers: _Pass) -> Tensor:
        """What goes into the head at the positions of some rows, (N, D)."""
        if layers.fed is not None:
            is_own = torch.zeros(layers.fed.places.numel(), dtype=torch.bool, device=positions.device)
            is_own[layers.fed.flat] = True
            positions = positions.gather(1, layers.fed.places) & is_own.view_as(layers.fed.places)
        asked = asked_at(positions)
        features = self.network.features(rows, mask, asked, layers)
        return features.flatten(0, 1)[positions.flatten()] if asked is None else asked.only(features)

    def _mixed(
        self, rows: Tensor, mask: Tensor | None, tokens: Tensor, positions: Tensor, kept: _Kept, is_valid: Tensor
    ) -> Tensor:
        """Two passes, for the rows of which something is kept and for the others; each row is as it would be alone."""
        started = self._started(tokens, positions)
        for name in ("computed", "start", "end", "text_end", "age"):
            old, new = getattr(kept, name), getattr(started, name)
            setattr(kept, name, torch.where(is_valid.view(-1, *[1] * (old.dim() - 1)), old, new))
        row_of = positions.nonzero()[:, 0]
        parts = []
        for is_partial in (False, True):
            index = (is_valid == is_partial).nonzero()[:, 0]
            some = replace(kept, start=kept.start[index], end=kept.end[index], text_end=kept.text_end[index])
            fed = self._fed(some) if is_partial else None
            mask_here = None if mask is None else mask[index]
            parts.append(self._features(rows[index], mask_here, positions[index], _Pass(kept, index, fed)))
        features = parts[0].new_empty(len(row_of), parts[0].shape[-1])
        features[~is_valid[row_of]], features[is_valid[row_of]] = parts
        return features
