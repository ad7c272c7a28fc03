"""AdamW for weights in bf16, with moments in fp32 or in 8 bits: the memory of fine-tuning a large network.

A step of fine-tuning changes a weight by a few parts in 10,000, but bf16 resolves only parts in 256: rounded to the
nearest, most steps would change nothing. So the new weight is computed in fp32 and rounded stochastically: up or down,
with the probabilities that make the rounded weight right on average (arXiv 2010.06192).

Moments in 8 bits are numbers between -1 and 1 on a scale that is fine near zero, times the largest of their block
(arXiv 2110.02861); bitsandbytes has the scale.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from llada.optim.parts import rows_of, whole_shape
from llada.optim.skipping import must_skip, skip_on_device
from llada.system.bitsandbytes import importing_bitsandbytes
from llada.system.errors import UserError
from llada.system.literals import check_literal

StateName = Literal["fp32", "8bit"]

BLOCK = 256  # numbers that share a scale
SMALLEST_QUANTISED = 4096  # below, a tensor's moments weigh nothing, and stay in fp32
AT_ONCE = 2**22  # weights that are updated together, which bounds the fp32 copies
MOMENT_BYTES: dict[StateName, float] = {"fp32": 4.0, "8bit": 1 + 4 / BLOCK}
EPSILON = 1e-8
MOMENTS = ("mean", "square")


class AdamW16(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101) that computes in fp32 whatever its weights and moments are stored in."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        state: StateName = "fp32",
    ) -> None:
        """
        Args:
            state: type of the two moments: 4 bytes each for a weight, or 1 byte and a scale for each 256 weights.

        Raises:
            UserError: 8 bits are asked for, and bitsandbytes is not installed.
        """
        check_literal("state", state, StateName)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self.scales = _Scales() if state == "8bit" else None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if must_skip(self):
            return
        skip = skip_on_device(self)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, skip)

    def _update(self, parameter: Tensor, group: Mapping[str, Any], skip: Tensor | None) -> None:
        """
        Args:
            skip: a boolean scalar on the device, True where weights and moments must stay; the step is counted.
        """
        state = self.state[parameter]
        if not state:
            is_small = parameter.numel() < SMALLEST_QUANTISED
            state["step"] = torch.zeros((), dtype=torch.int64)
            for name in MOMENTS:
                state[name] = _zero_moment(parameter, self.scales if not is_small else None)
        state["step"] += 1
        step, (beta1, beta2) = int(state["step"]), group["betas"]
        weights, gradients = parameter.view(-1), parameter.grad.reshape(-1)  # type: ignore[union-attr]
        is_bf16 = parameter.dtype == torch.bfloat16
        for part, noise in _pieces(parameter, is_bf16):
            gradient = gradients[part].float()
            mean, square = self._read(state["mean"], part, signed=True), self._read(state["square"], part, signed=False)
            new = weights[part].float()
            if skip is not None:  # in fp32, reading does not copy, and the update would write into the originals
                mean, square, new = mean.clone(), square.clone(), new.clone()
            mean.lerp_(gradient, 1 - beta1)
            square.lerp_(gradient.square(), 1 - beta2)
            self._write(state["mean"], part, mean, True, skip)
            self._write(state["square"], part, square, False, skip)
            scale = (square / (1 - beta2**step)).sqrt_().add_(EPSILON)
            new.mul_(1 - group["lr"] * group["weight_decay"])
            new.addcdiv_(mean, scale, value=-group["lr"] / (1 - beta1**step))
            _put(weights, part, round_stochastically(new, noise) if is_bf16 else new, skip)

    def _read(self, moment: dict[str, Tensor], part: slice, signed: bool) -> Tensor:
        if self.scales is None or "numbers" not in moment:
            return moment["fp32"][part]
        return self.scales.read(moment["numbers"][part], moment["largest"][_blocks(part)], signed)

    def _write(self, moment: dict[str, Tensor], part: slice, values: Tensor, signed: bool, skip: Tensor | None) -> None:
        if self.scales is None or "numbers" not in moment:
            _put(moment["fp32"], part, values, skip)
        else:
            numbers, largest = self.scales.write(values, signed)
            _put(moment["numbers"], part, numbers, skip)
            _put(moment["largest"], _blocks(part), largest, skip)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as torch does, but keep the type of the moments, which torch would convert to the weights'.

        Tensors that are on the device of their weights become the optimizer's own.
        """
        super().load_state_dict({**state_dict, "state": {}})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, saved in state_dict["state"].items():
            device = parameters[index].device
            moments = {name: {key: part.to(device) for key, part in saved[name].items()} for name in MOMENTS}
            self.state[parameters[index]] = {"step": saved["step"], **moments}


def _pieces(parameter: Tensor, is_rounded: bool) -> Iterator[tuple[slice, Tensor | None]]:
    """Iterate over what is updated at a time of a parameter's numbers, with the noise to round it with.

    The noise is drawn for all of a parameter of which processes keep a part each, so that its weights are rounded alike
    in any number of processes.
    """
    rows, n_whole = rows_of(parameter), whole_shape(parameter).numel()
    before = 0 if rows is None else rows.first * (n_whole // rows.shape[0])
    for first in range(0, n_whole, AT_ONCE):
        n = min(AT_ONCE, n_whole - first)
        noise = _rounding_noise(torch.Size([n]), parameter.device) if is_rounded else None
        part = slice(max(0, first - before), min(first + n - before, parameter.numel()))
        if part.start < part.stop:
            start = before + part.start - first
            yield part, None if noise is None else noise[start : start + part.stop - part.start]


def _rounding_noise(shape: torch.Size, device: torch.device) -> Tensor:
    return torch.randint(0, 1 << 16, shape, dtype=torch.int32, device=device)


def round_stochastically(values: Tensor, noise: Tensor | None = None) -> Tensor:
    """Round fp32 to bf16 stochastically: up or down, with the probabilities that make the mean equal the value.

    bf16 is the upper half of fp32, so a uniform number is added to the lower half, and its carry decides.

    Args:
        noise: integers below 2**16 in the shape of the values; drawn if left out.
    """
    bits = values.view(torch.int32)
    if noise is None:
        noise = _rounding_noise(bits.shape, bits.device)
    return ((bits + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def _put(target: Tensor, part: slice, values: Tensor, skip: Tensor | None) -> None:
    """Replace a part of a tensor, except where the scalar `skip` on the device is True."""
    target[part] = values if skip is None else torch.where(skip, target[part], values)


def _zero_moment(parameter: Tensor, scales: "_Scales | None") -> dict[str, Tensor]:
    if scales is None:
        return {"fp32": torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)}
    n_blocks = -(-parameter.numel() // BLOCK)
    return {
        "numbers": torch.zeros(parameter.numel(), dtype=torch.uint8, device=parameter.device),
        "largest": torch.zeros(n_blocks, dtype=torch.float32, device=parameter.device),
    }


def _blocks(part: slice) -> slice:
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))


class _Scales:
    """Converts blocks of fp32 values to 8-bit numbers and back, by bitsandbytes."""

    def __init__(self) -> None:
        try:
            with importing_bitsandbytes():
                import bitsandbytes.functional as library
        except ImportError as error:
            raise UserError(
                "Moments in 8 bits need the bitsandbytes package: pip install bitsandbytes, or choose "
                '`optimizer_state="fp32"`.'
            ) from error
        self._library = library
        self._codes: dict[tuple[bool, torch.device], Tensor] = {}

    def _code(self, signed: bool, device: torch.device) -> Tensor:
        """Return the 256 values that 8-bit numbers stand for, moved to a device once."""
        if (signed, device) not in self._codes:
            self._codes[signed, device] = self._library.create_dynamic_map(signed=signed).to(device)
        return self._codes[signed, device]

    def read(self, numbers: Tensor, largest: Tensor, signed: bool) -> Tensor:
        """Return the fp32 values of 8-bit numbers (n,), given the largest absolute value of each block."""
        code = self._code(signed, numbers.device)
        return self._library.dequantize_blockwise(numbers, absmax=largest, code=code, blocksize=BLOCK)

    def write(self, values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
        code = self._code(signed, values.device)
        numbers, state = self._library.quantize_blockwise(values, code=code, blocksize=BLOCK)
        return numbers, state.absmax
