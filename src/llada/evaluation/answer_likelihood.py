"""LLaDA's estimate of the conditional log-likelihood of an answer after a prompt, with its standard error.

For an answer of n tokens, of which k are masked, k uniform on 1..n, while the prompt is given,

    log p(answer | prompt) >= - E_k E_masks [ (n/k) * sum of the cross-entropies at the masked tokens ]

(arXiv 2502.09992, eq. 6 and appendix B.5; the published get_log_likelihood.py). Here the counts are uniform, spread
evenly over the draws; the published script rounds half to even, which is not uniform, and misses the expectation, for
answers of 8 tokens by half a nat in batches of 16 draws and by 0.27 in batches of 32 (benchmarks/answers.py). Draws
come in complementary pairs. This does not lower their variance, but makes them less skewed, so that the error estimated
from their scatter is reliable. An answer with fewer different masks than there would be draws is not sampled: every
mask is evaluated once.

Shape letters: B batch, L length, V vocabulary rows, N masked positions, n tokens of an answer, R rows of an answer.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

import torch
from torch import Generator, Tensor

from llada.data.batches import TokenBatch, pad_answers
from llada.forward_process import NoisyBatch, mask_exact_count
from llada.models import MaskPredictor, PredictAt
from llada.objective import masked_nll, sequence_bounds
from llada.sampling.guidance import guide, suppress, takes_positions
from llada.sampling.steps import NOT_FINITE
from llada.system.device import Precision
from llada.system.errors import UserError


@dataclass(frozen=True)
class Item:
    """A prompt, which may be empty, and its answer, as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids of the prompt and the answer."""
        return (*self.prompt, *self.answer)

    @property
    def n_given(self) -> int:
        """Number of tokens of the prompt."""
        return len(self.prompt)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    def fitted(self, longest: int) -> Self:
        """Return the item with the beginning of the prompt left out, if the two do not fit a model's length.

        Raises:
            UserError: the answer alone does not fit.
        """
        room = longest - len(self.answer)
        if room < 0:
            raise UserError(
                f"An answer of {len(self.answer)} tokens is longer than the {longest} of this model: leave it out, or "
                "use a model of more."
            )
        return type(self)(self.prompt[max(0, len(self.prompt) - room) :], self.answer)


@dataclass(frozen=True)
class LogLikelihood:
    """The estimate for an answer, in nats, of a lower bound on log p(answer
    prompt)."""

    nats: float
    stderr: float | None
    """Standard error over the draws, for this model: 0 if every mask was evaluated, None with a single pair of
    draws."""
    rows: int
    """Masked copies that went through the network."""


def predict_by_model(model: MaskPredictor, precision: Precision) -> PredictAt:
    """Make a predictor from a model, whose logits are in fp32 and computed at the asked positions only."""

    @takes_positions
    def predict_at(x_t: Tensor, *, attention_mask: Tensor | None = None, positions: Tensor) -> Tensor:
        with precision.autocast(x_t.device):
            return model(x_t, attention_mask=attention_mask, positions=positions).float()

    return predict_at


# -- likelihood -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def log_likelihoods(
    predict_at: PredictAt,
    items: Sequence[Item],
    mask_id: int,
    *,
    mc_num: int = 128,
    cfg_scale: float = 0.0,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: Callable[[float], None] = lambda fraction_done: None,
) -> list[LogLikelihood]:
    """Estimate the conditional log-likelihood of each item's answer, which depends on item, model and seed only.

    The masks of an item follow from the seed, its prompt and the length of its answer. Neither the batch size, nor
    the other items, nor their order matters (but for the rounding of floating-point sums), and answers of one length to
    one prompt are masked alike, which takes most of the noise out of their comparison.

    Args:
        mc_num: draws for each item (LLaDA's name), even, since they come in complementary pairs. It is also the
            number of masks up to which an answer is not sampled, but evaluated under each of them once.
        cfg_scale: strength of classifier-free guidance by the prompt, which doubles the cost.
        batch_size: rows (an item masked once) that go through the network together.
        on_progress: called with the fraction done after each batch.

    Raises:
        ValueError: `mc_num` is odd, or `batch_size` is below 1.
        UserError: the model gave a non-finite likelihood.
    """
    if mc_num < 2 or mc_num % 2:
        raise ValueError(f"draws come in complementary pairs: take an even mc_num, not {mc_num}")
    check_batch_size(batch_size)
    values: list[list[float]] = [[] for _ in items]
    n_rows, n_done = sum(_n_rows(len(item.answer), mc_num) for item in items), 0
    rows = _masked_rows(items, mc_num, seed)
    while batch := list(islice(rows, batch_size)):
        index = [i for i, _ in batch]
        clean = pad_items([items[i] for i in index], device)
        noisy = mask_answers(clean, torch.cat([is_masked for _, is_masked in batch]), mask_id)
        logits = logits_at(predict_at, clean, noisy.x_t, noisy.is_masked, mask_id, cfg_scale)
        bounds = sequence_bounds(masked_nll(logits, clean.x_0, noisy), noisy)
        for i, value in zip(index, bounds.tolist(), strict=True):
            values[i].append(value)
        n_done += len(batch)
        on_progress(n_done / n_rows)
    results = [
        estimate_from_rows(torch.tensor(v, dtype=torch.float64), len(item.answer), mc_num)
        for v, item in zip(values, items, strict=True)
    ]
    if not all(math.isfinite(result.nats) for result in results):
        raise UserError(NOT_FINITE)
    return results


def all_masks(n: int) -> tuple[Tensor, Tensor]:
    """Every choice of at least one of n tokens, (2^n - 1, n) bool, and its probability under k uniform on 1..n."""
    is_masked = (torch.arange(1, 2**n)[:, None] >> torch.arange(n)) & 1 == 1
    ways = torch.tensor([math.comb(n, k) for k in range(n + 1)], dtype=torch.float64)
    return is_masked, 1 / (n * ways[is_masked.sum(1)])


def _is_enumerated(n: int, mc_num: int) -> bool:
    return n < (mc_num + 1).bit_length()  # 2^n - 1 <= mc_num


def _n_rows(n: int, mc_num: int) -> int:
    return 2**n - 1 if _is_enumerated(n, mc_num) else mc_num


def _masked_rows(items: Sequence[Item], mc_num: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Iterate over each item's number with the masks (n,) bool of its answer, once for each of its rows; long items
    come first, so that rows of similar length go together, and too little memory shows at once."""
    for i in sorted(range(len(items)), key=lambda i: len(items[i]), reverse=True):
        n = len(items[i].answer)
        if _is_enumerated(n, mc_num):
            masks = all_masks(n)[0]
        else:
            answer, no_id = torch.zeros(mc_num, n, dtype=torch.long), 1  # only the positions of the masks are wanted
            masks = mask_exact_count(
                answer, no_id, generator_of(seed, n, items[i].prompt), complementary=True
            ).is_masked
        yield from ((i, is_masked) for is_masked in masks)


def generator_of(seed: int, *key: object) -> Generator:
    """Make a random generator that depends on the seed and the content of the key alone."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def estimate_from_rows(values: Tensor, n: int, mc_num: int) -> LogLikelihood:
    """Estimate the log-likelihood from the bounds (R,) of an answer's rows, in nats per token.

    Draws are stratified, so their plain scatter overstates the error: it includes the differences between strata, which
    do not enter the mean. The squared differences of neighbours include few of them (Wolter, Introduction to Variance
    Estimation, section 8.2, estimator v2). This estimate is as precise as that of two thirds as many independent draws;
    it is widened by the ratio of Student's t to a Gaussian then, so that 1.96 of it cover 95 %.
    """
    if _is_enumerated(n, mc_num):
        return LogLikelihood(-n * float(values @ all_masks(n)[1]), 0.0, len(values))
    pairs = values.view(2, -1).mean(0)  # in the order of their counts
    stderr = None
    if len(pairs) > 1:
        variance = float(pairs.diff().square().sum()) / (2 * len(pairs) * (len(pairs) - 1))
        degrees_of_freedom = 2 / 3 * len(pairs)
        widening = 1 + (1.96**2 + 1) / (4 * degrees_of_freedom)  # the quotient of the quantiles, to first order
        stderr = n * widening * math.sqrt(variance)
    return LogLikelihood(-n * float(pairs.mean()), stderr, len(values))


# -- batches -----------------------------------------------------------------------------------------------------------


def pad_items(items: Sequence[Item], device: torch.device | str) -> TokenBatch:
    """Pad items of unequal length to one batch, whose answers are maskable."""
    return pad_answers(items, pad_id=0).to(device)  # any id works, since no network attends to it


def mask_answers(batch: TokenBatch, masks: Tensor, mask_id: int) -> NoisyBatch:
    """Mask the answers of a batch; `masks` are bool, those of one row after those of the other."""
    is_answer = batch.is_maskable
    is_masked = torch.zeros_like(is_answer).masked_scatter(is_answer, masks.to(is_answer.device))
    n_maskable = is_answer.sum(1, keepdim=True).float()
    p_mask = is_masked.sum(1, keepdim=True) / n_maskable
    x_t, ones = batch.x_0.masked_fill(is_masked, mask_id), torch.ones_like(p_mask)
    return NoisyBatch(x_t, is_masked, p_mask, p_mask[:, 0], n_maskable, ones)


def logits_at(
    predict_at: PredictAt,
    batch: TokenBatch,
    x_t: Tensor,
    positions: Tensor,
    mask_id: int,
    cfg_scale: float,
    forbidden: Sequence[int] = (),
) -> Tensor:
    """Compute logits (N, V) at the positions, guided by the prompt and without the forbidden tokens."""
    if forbidden:
        predict_at = suppress(predict_at, forbidden)
    if cfg_scale:
        predict_at = guide(predict_at, batch.is_given, mask_id, cfg_scale)
    return predict_at(x_t, attention_mask=batch.needed_attention_mask, positions=positions)


def check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
