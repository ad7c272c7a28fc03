"""The forward process q(x_t | x_0): tokens are replaced by MASK, independently of each other and of their neighbours.

Time runs as in LLaDA: t in (0, 1], and **t = 1 is fully masked**. Two ways to draw the masks are here, the published
one (`mask_bernoulli`) and one of lower variance with the same expectation (`mask_exact_count`). Both return a
`NoisyBatch`, which is all that the objective needs to know about them.

A `MaskSchedule` says which part of the tokens is masked at a time t, and a `TimeSampling` how often each t is drawn.
Together they decide which amounts of noise a model sees more often. The expectation of the loss does not change: what
is drawn too often weighs less (`NoisyBatch.importance`). A new one is a class here and a line in `SCHEDULES` or
`TIME_SAMPLINGS`.

Shape letters: B batch, L length.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Generator, Tensor

MIN_MASK_PROBABILITY = 1e-3  # the eps of LLaDA's own GUIDELINES.md, "Pre-training": bounds the weight 1/p by 1000


@dataclass(frozen=True)
class NoisyBatch:
    """A batch after the forward process."""

    x_t: Tensor
    """(B, L) token ids, MASK where `is_masked`."""
    is_masked: Tensor
    """(B, L) bool: the positions whose tokens are to be predicted."""
    p_mask: Tensor
    """(B, 1) fp32: the probability with which each maskable token of the row was masked."""
    t: Tensor
    """(B,) fp32: the time of each row."""
    n_maskable: Tensor
    """(B, 1) fp32: how many tokens of the row could have been masked; L unless some are given."""
    importance: Tensor
    """The frequency with which the bound wants this amount of masks, divided by that with which it is drawn, (B, 1)
    fp32; 1 if all are drawn equally often."""

    def rows(self, index: slice) -> Self:
        """Return consecutive rows of the batch."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def take(self, rows: Tensor) -> Self:
        """Return the rows with the given indices (n,)."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def columns(self, length: int) -> Self:
        """Return the first `length` columns, valid if no position after them is maskable."""
        return replace(self, x_t=self.x_t[:, :length], is_masked=self.is_masked[:, :length])

    def at_masked(self, of_rows: Tensor) -> Tensor:
        """Spread values of the rows (B, 1) over their masked tokens (N,), in row order."""
        return of_rows.expand_as(self.is_masked)[self.is_masked]

    def to(self, device: torch.device) -> Self:
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True)
class Uniforms:
    """The random numbers that a batch is masked by, each uniform on [0, 1)."""

    of_rows: Tensor
    """(B,) fp32, which the time of each row is drawn by."""
    of_tokens: Tensor
    """(B, L) fp32, which decide what of a row is masked."""


@dataclass(frozen=True)
class MaskSchedule(ABC):
    """The part of the tokens that is masked at time t: a function m that rises from m(0) = 0 to m(1) = 1.

    In the papers' letters alpha(t) = 1 - p(t), with p(t) = eps + (1 - eps) m(t). A schedule is m, its slope and its
    inverse, each from a tensor to a tensor of the same shape and dtype. The forward process draws by it, the objective
    takes its weights from what was drawn, and the sampler reveals tokens by it.
    """

    eps: ClassVar[float] = MIN_MASK_PROBABILITY

    @abstractmethod
    def fraction(self, t: Tensor) -> Tensor:
        """m(t), the part that is masked."""

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """The derivative m'(t); -alpha'(t) is (1 - eps) of it."""

    @abstractmethod
    def time_at(self, fraction: Tensor) -> Tensor:
        """The inverse of m: the time at which this part is masked."""

    def p_mask(self, t: Tensor) -> Tensor:
        """The probability p(t) that a token is masked: 1 - alpha(t)."""
        return (1 - self.eps) * self.fraction(t) + self.eps


@dataclass(frozen=True)
class Linear(MaskSchedule):
    """LLaDA's schedule: m(t) = t, and so p(t) = (1 - eps) t + eps (LLaDA's GUIDELINES.md, "Forward process")."""

    def fraction(self, t: Tensor) -> Tensor:
        return t

    def slope(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_at(self, fraction: Tensor) -> Tensor:
        return fraction


@dataclass(frozen=True)
class Cosine(MaskSchedule):
    """m(t) = cos(pi/2 (1 - t)): flat near t = 1, so a sampler reveals few tokens at first and many at the end.

    Source: MaskGIT, arXiv 2202.04200; alpha(t) = 1 - cos(pi/2 (1 - t)) in arXiv 2406.04329. MDLM calls another function
    by this name, alpha(t) = cos(pi/2 t), which is flat at the other end.
    """

    def fraction(self, t: Tensor) -> Tensor:
        return (math.pi / 2 * t).sin()

    def slope(self, t: Tensor) -> Tensor:
        return math.pi / 2 * (math.pi / 2 * (1 - t)).sin()  # a sine has no rounding error below 0 at t = 1

    def time_at(self, fraction: Tensor) -> Tensor:
        return fraction.asin() * (2 / math.pi)


@dataclass(frozen=True)
class Polynomial(MaskSchedule):
    """m(t) = t^power: above 1, little noise comes more often, and a sampler reveals many tokens at first.

    Source: alpha(t) = 1 - t^w in arXiv 2406.04329.
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        if not 0.5 < self.power < math.inf:
            raise ValueError(f"the power of a polynomial schedule must be above 0.5, not {self.power:g}")

    def fraction(self, t: Tensor) -> Tensor:
        return t**self.power

    def slope(self, t: Tensor) -> Tensor:
        # Below a power of 1 the slope has no limit at t = 0, which is drawn once in 2^24 times. From 0.5 down, the
        # square of the weight has no mean: hence the check above.
        return self.power * t.clamp(min=2**-25) ** (self.power - 1)

    def time_at(self, fraction: Tensor) -> Tensor:
        return fraction ** (1 / self.power)


LINEAR = Linear()


@dataclass(frozen=True)
class TimeSampling(ABC):
    """A distribution of the time t, given by its quantiles: t = quantile(u) for u uniform, or stratified, on (0, 1)."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The time below which a fraction u of the draws falls."""

    @abstractmethod
    def cumulative(self, t: Tensor) -> Tensor:
        """The inverse of `quantile`: the fraction of the draws below t."""

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """The derivative of `cumulative`."""


@dataclass(frozen=True)
class Uniform(TimeSampling):
    """All times equally often, as LLaDA does."""

    def quantile(self, u: Tensor) -> Tensor:
        return u

    def cumulative(self, t: Tensor) -> Tensor:
        return t

    def density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Bell(TimeSampling):
    """Times around a center: a normal distribution cut off at 0 and 1, computed in fp64."""

    center: float = 0.5
    width: float = 0.25
    """Standard deviation of the normal distribution before it is cut off."""

    def __post_init__(self) -> None:
        if not (0 <= self.center <= 1 and 0 < self.width < math.inf):
            raise ValueError("the center of a bell must be from 0 to 1, and its width above 0")
        rarest = float(self.density(torch.tensor([0.0, 1.0])).min())
        if rarest < MIN_MASK_PROBABILITY:
            most = 1 / MIN_MASK_PROBABILITY
            raise ValueError(f"a bell of width {self.width:g} makes times so rare that they weigh more than {most:.0f}")

    def quantile(self, u: Tensor) -> Tensor:
        below, inside = self._cut()
        t = self.center + self.width * torch.special.ndtri(below + u.double() * inside)
        return t.clamp(0, 1).to(u.dtype)

    def cumulative(self, t: Tensor) -> Tensor:
        below, inside = self._cut()
        return ((torch.special.ndtr(self._z(t)) - below) / inside).to(t.dtype)

    def density(self, t: Tensor) -> Tensor:
        height = 1 / (self.width * math.sqrt(2 * math.pi) * float(self._cut()[1]))
        return (height * torch.exp(-(self._z(t) ** 2) / 2)).to(t.dtype)

    def _z(self, t: Tensor) -> Tensor:
        return (t.double() - self.center) / self.width

    def _cut(self) -> tuple[Tensor, Tensor]:
        """The mass of the whole normal distribution below t = 0, and that between 0 and 1."""
        below, up_to = torch.special.ndtr(self._z(torch.tensor([0.0, 1.0])))
        return below, up_to - below


UNIFORM = Uniform()
SCHEDULES: dict[str, type[MaskSchedule]] = {"linear": Linear, "cosine": Cosine, "polynomial": Polynomial}
TIME_SAMPLINGS: dict[str, type[TimeSampling]] = {"uniform": Uniform, "bell": Bell}
Named = TypeVar("Named", MaskSchedule, TimeSampling)


def schedule_by_name(name: str) -> MaskSchedule:
    """Return the schedule of this name; its parameters may follow, as in "polynomial:1.5".

    Raises:
        ValueError: the name is unknown, or its parameters cannot be used.
    """
    return _by_name("mask_schedule", name, SCHEDULES)


def time_sampling_by_name(name: str) -> TimeSampling:
    """Return the time sampling of this name; its parameters may follow, as in "bell:0.5:0.2", its center and its width.

    Raises:
        ValueError: the name is unknown, or its parameters cannot be used.
    """
    return _by_name("time_sampling", name, TIME_SAMPLINGS)


def _by_name(argument: str, name: str, kinds: Mapping[str, type[Named]]) -> Named:
    """Build the object that a name and its numbers stand for, as in "name:1:2"."""
    key, *numbers = name.split(":")
    if key not in kinds or len(numbers) > len(fields(kinds[key])):
        choices = ", ".join(_form(known, fields(kinds[known])) for known in kinds)
        raise ValueError(f"{argument} must be one of {choices}, not {name!r}")
    try:
        return kinds[key](*map(float, numbers))
    except ValueError as error:
        raise ValueError(f"{argument} {name!r} cannot be used ({error})") from error


def _form(name: str, parameters: tuple[Field[Any], ...]) -> str:
    return ":".join([name, *(parameter.name.upper() for parameter in parameters)])


def mask_bernoulli(
    x_0: Tensor,
    mask_id: int,
    generator: Generator,
    maskable: Tensor | None = None,
    schedule: MaskSchedule = LINEAR,
    times: TimeSampling = UNIFORM,
) -> NoisyBatch:
    """LLaDA's forward process: t ~ U(0, 1) for each row, then each token masked with probability p(t).

    With another schedule or other times, p is no longer uniform on (eps, 1). Its density at p(t) is that of t divided
    by p'(t), and `importance` is 1 / (1 - eps) divided by it.

    Args:
        x_0: (B, L) clean token ids, on the CPU, where the generator is too.
        mask_id: the id that stands for MASK.
        maskable: (B, L) bool, False where a token is given (a prompt, padding); None means everywhere.
        schedule: p(t).
        times: how often each t is drawn.

    Source: arXiv 2502.09992, eq. 1 and algorithm 1; with `maskable`, algorithm 2.
    """
    uniforms = Uniforms(torch.rand(len(x_0), generator=generator), torch.rand(x_0.shape, generator=generator))
    return mask_bernoulli_by(x_0, mask_id, uniforms, maskable, schedule, times)


def mask_bernoulli_by(
    x_0: Tensor,
    mask_id: int,
    uniforms: Uniforms,
    maskable: Tensor | None = None,
    schedule: MaskSchedule = LINEAR,
    times: TimeSampling = UNIFORM,
) -> NoisyBatch:
    """Do what `mask_bernoulli` does, with given random numbers; what becomes of a row depends on its own alone."""
    t = times.quantile(uniforms.of_rows)
    p_mask = schedule.p_mask(t)[:, None]
    is_masked = uniforms.of_tokens < p_mask
    importance = (schedule.slope(t) / times.density(t))[:, None]
    return _noisy_batch(x_0, mask_id, is_masked, p_mask, t, maskable, importance)


def mask_exact_count(
    x_0: Tensor,
    mask_id: int,
    generator: Generator,
    maskable: Tensor | None = None,
    complementary: bool = False,
    schedule: MaskSchedule = LINEAR,
    times: TimeSampling = UNIFORM,
) -> NoisyBatch:
    """Mask exactly k of a row's n maskable tokens, with k uniform on 1..n and spread evenly over the rows.

    The objective then needs the weight n/k in place of 1/p, and its expectation is the same bound (RADD, arXiv
    2406.03736; LLaDA evaluates by it, arXiv 2502.09992, eq. 6 and appendix B.5). The counts are stratified: row b
    draws from the b-th of B equal slices of 1..n, with one offset shared by all, which takes their variance out of
    the loss.

    The bound wants each count equally often, whatever the schedule: its integral over p of p^(k-1) (1-p)^(n-k) does not
    depend on the path to p. With another schedule or other times, the count k is drawn where m(t) is in
    ((k-1)/n, k/n], and `importance` is 1/n divided by how often that is.

    Args:
        x_0, mask_id, maskable, schedule, times: as in `mask_bernoulli`; every row needs a maskable token.
        complementary: rows b and b + B/2 are taken to be the same sequence, and the second masks exactly what the
            first leaves (arXiv 2505.18883), so that together they predict each token once. The complement of a
            fully masked row is fully masked again, which keeps k uniform.

    Raises:
        ValueError: a row without maskable tokens, or an odd B with `complementary`.
    """
    n_rows = len(x_0) // 2 if complementary else len(x_0)
    if complementary and len(x_0) % 2:
        raise ValueError(f"complementary masks need an even batch, not {len(x_0)}")
    offset = torch.rand((), generator=generator)
    uniforms = Uniforms(
        stratified(torch.arange(n_rows), n_rows, offset), torch.rand((n_rows, x_0.shape[1]), generator=generator)
    )
    is_complement = None
    if complementary:
        uniforms = Uniforms(uniforms.of_rows.repeat(2), uniforms.of_tokens.repeat(2, 1))
        is_complement = torch.arange(2 * n_rows) >= n_rows
    return mask_exact_count_by(x_0, mask_id, uniforms, maskable, is_complement, schedule, times)


def stratified(rows: Tensor, n_rows: int, offset: Tensor) -> Tensor:
    """Return a number in (0, 1) for each of these rows (B,) of a batch of `n_rows`: row b draws from the b-th of as
    many equal slices, at an offset from 0 to 1 that all share."""
    return (rows + offset) / n_rows


def mask_exact_count_by(
    x_0: Tensor,
    mask_id: int,
    uniforms: Uniforms,
    maskable: Tensor | None = None,
    is_complement: Tensor | None = None,
    schedule: MaskSchedule = LINEAR,
    times: TimeSampling = UNIFORM,
) -> NoisyBatch:
    """Do what `mask_exact_count` does, with given random numbers; what becomes of a row depends on its own alone.

    Args:
        is_complement: (B,) bool, the rows that mask what these random numbers leave.

    Raises:
        ValueError: a row without maskable tokens.
    """
    free = torch.ones(x_0.shape, dtype=torch.bool) if maskable is None else maskable
    n_maskable = free.sum(1)
    if n_maskable.numel() and int(n_maskable.min()) == 0:
        raise ValueError("a row has no maskable token")
    fraction = schedule.fraction(times.quantile(uniforms.of_rows))
    count = (1 + (fraction * n_maskable).long()).clamp(max=n_maskable)
    importance = _importance_of_counts(count, n_maskable, schedule, times)
    is_masked = _first_by(uniforms.of_tokens, free, count)
    if is_complement is not None:  # as rare as its counterpart
        must_swap = is_complement & (count < n_maskable)
        is_masked = torch.where(must_swap[:, None], free & ~is_masked, is_masked)
    p_mask = is_masked.sum(1, keepdim=True) / n_maskable[:, None]
    t = schedule.time_at(p_mask[:, 0])
    return _noisy_batch(x_0, mask_id, is_masked, p_mask, t, maskable, importance[:, None])


def _importance_of_counts(count: Tensor, n: Tensor, schedule: MaskSchedule, times: TimeSampling) -> Tensor:
    """Compute 1/n, (B,) fp32, divided by how often the counts (B,) of n (B,) maskable tokens are drawn."""
    fractions = torch.stack((count - 1, count)).double() / n
    below, up_to = times.cumulative(schedule.time_at(fractions))
    return (1 / (n * (up_to - below))).float()


def score_all(x_0: Tensor, maskable: Tensor | None = None) -> NoisyBatch:
    """Add no noise: every maskable token stays in x_t and is scored all the same.

    This is for a causal network, which sees only what comes before a token. The objective is then the mean
    cross-entropy of the next token, that of autoregressive models.

    Args:
        x_0, maskable: as in `mask_bernoulli`.
    """
    is_scored = torch.ones_like(x_0, dtype=torch.bool) if maskable is None else maskable
    ones = torch.ones(len(x_0))
    return NoisyBatch(x_0, is_scored, ones[:, None], ones, is_scored.sum(1, keepdim=True).float(), ones[:, None])


def choose_positions(candidates: Tensor, count: Tensor, generator: Generator) -> Tensor:
    """Choose, for each row, a uniformly random set of `count` (B,) among its `candidates` (B, L) bool; returns (B, L)
    bool."""
    return _first_by(torch.rand(candidates.shape, generator=generator), candidates, count)


def _first_by(score: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """Return which `count` (B,) of the `candidates` (B, L) bool have the lowest scores (B, L) of their row, (B, L)
    bool."""
    order = score.masked_fill(~candidates, torch.inf).argsort(dim=1)
    is_early = torch.arange(score.shape[1]) < count[:, None]
    return torch.zeros_like(candidates).scatter_(1, order, is_early)


def truncate_randomly(x_0: Tensor, generator: Generator, probability: float = 0.01) -> Tensor:
    """Cut the batch, with this probability, to a length uniform on 1..L (LLaDA's GUIDELINES.md, "Pre-training")."""
    if float(torch.rand((), generator=generator)) >= probability:
        return x_0
    return x_0[:, : int(torch.randint(1, x_0.shape[1] + 1, (), generator=generator))]


def _noisy_batch(
    x_0: Tensor,
    mask_id: int,
    is_masked: Tensor,
    p_mask: Tensor,
    t: Tensor,
    maskable: Tensor | None,
    importance: Tensor,
) -> NoisyBatch:
    if maskable is None:
        n_maskable = torch.full((len(x_0), 1), float(x_0.shape[1]))
    else:
        is_masked = is_masked & maskable
        n_maskable = maskable.sum(1, keepdim=True).float()
    return NoisyBatch(x_0.masked_fill(is_masked, mask_id), is_masked, p_mask, t, n_maskable, importance)
