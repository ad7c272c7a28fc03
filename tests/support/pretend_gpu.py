"""A GPU of Apple's that is none: tensors that say "mps", are kept on the CPU, and refuse what such a GPU cannot do.

It has no fp64, and what is on it does not mix with what is on the CPU, but for scalars, indices and copies. This shows
where our code would go wrong there; not how the real one computes, nor how fast.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

MPS, CPU = torch.device("mps"), torch.device("cpu")
COPIES = ("aten::_to_copy", "aten::copy_", "aten::_local_scalar_dense")
WITH_INDICES = ("aten::index.Tensor", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")


class OnGpu(Tensor):
    """A tensor that says it is on the GPU."""

    inner: Tensor  # type: ignore[assignment]  # over the old name of the dot product

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> "OnGpu":
        if inner.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        made: OnGpu = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device("meta"), requires_grad=requires_grad,  # to torch, which here knows no "mps"
        )  # fmt: skip
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return MPS

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGpu({self.inner})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return compute(function, args, kwargs or {})


def compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do on the CPU what was asked of the GPU, if it could."""
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_gpu = any(isinstance(leaf, OnGpu) for leaf in leaves)
    name = function._schema.name + (f".{function._schema.overload_name}" if function._schema.overload_name else "")
    is_copy = function._schema.name in COPIES
    if on_gpu and not is_copy:
        indices = name in WITH_INDICES or function._schema.name in WITH_INDICES
        elsewhere = [leaf for leaf in leaves if not isinstance(leaf, OnGpu) and leaf.dim() and not indices]
        if elsewhere:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found mps and cpu")
    asked = kwargs.get("device")
    if any(leaf == MPS for leaf in tree_leaves(args) if isinstance(leaf, torch.device)):  # of operators of our own
        args, asked = tree_map(lambda x: CPU if isinstance(x, torch.device) else x, args), MPS
    if on_gpu and asked is not None and torch.device(asked).type == "meta":  # of its own tensors
        asked = MPS
    target = torch.device(asked).type if asked is not None else ("mps" if on_gpu else "cpu")
    inner_args, inner_kwargs = tree_map(lambda x: x.inner if isinstance(x, OnGpu) else x, (args, kwargs))
    if "device" in kwargs:
        inner_kwargs["device"] = CPU
    inner_kwargs = {key: value for key, value in inner_kwargs.items() if key != "pin_memory"}
    if function._schema.name.startswith("aten::_fused_adam"):
        inner_kwargs.pop("found_inf", None)  # which the kernel for Apple's GPUs is given, and does not read
    result = function(*inner_args, **inner_kwargs)
    if target != "mps" or function._schema.name == "aten::_local_scalar_dense":
        return result
    if function._schema.name == "aten::copy_" and not isinstance(args[0], OnGpu):
        return args[0]
    wrapped = tree_map(lambda x: OnGpu(x) if isinstance(x, Tensor) and not isinstance(x, OnGpu) else x, result)
    return return_and_correct_aliasing(function, args, kwargs, wrapped) if on_gpu else wrapped


class Gpu(TorchDispatchMode):
    """Makes what is asked for on "mps", and takes over what is computed there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        leaves = tree_leaves((args, kwargs))
        is_there = asked is not None and torch.device(asked).type == "mps"
        if is_there or any(
            isinstance(leaf, OnGpu) or (isinstance(leaf, torch.device) and leaf == MPS) for leaf in leaves
        ):
            return compute(function, args, kwargs)
        return function(*args, **kwargs)


class Moves(TorchFunctionMode):
    """Moves what is moved to "mps" without asking this build of torch for one, which it has not."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.to:
            tensor, *rest = args
            if rest and isinstance(rest[0], Tensor):
                rest[:1] = [rest[0].device, rest[0].dtype]
            copy = kwargs.pop("copy", False)
            device, dtype, *_ = torch._C._nn._parse_to(*rest, **kwargs)
            device, dtype = device or tensor.device, dtype or tensor.dtype
            if (device.type, dtype) == (tensor.device.type, tensor.dtype) and not copy:
                return tensor
            if "mps" in (device.type, tensor.device.type):
                return torch.ops.aten._to_copy(tensor, dtype=dtype, device=torch.device(device.type))
            kwargs["copy"] = copy
        if function is Tensor.__setitem__ and isinstance(args[0], OnGpu) and not isinstance(args[2], Tensor):
            args = (*args[:2], OnGpu(torch.tensor(args[2], dtype=args[0].dtype)))
        if function is Tensor.tolist and isinstance(args[0], OnGpu):
            return args[0].inner.tolist()
        if function is torch.where and isinstance(
            args[0], OnGpu
        ):  # numbers would be made on the device of torch's word
            dtype = next((arg.dtype for arg in args[1:] if isinstance(arg, Tensor)), torch.float32)
            args = [arg if isinstance(arg, Tensor) else OnGpu(torch.tensor(arg, dtype=dtype)) for arg in args]
        if function is torch.tensor and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return torch.tensor(*args, **kwargs).to(device)
        return function(*args, **kwargs)


@contextmanager
def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with a GPU of Apple's, and no other."""
    nothing: Callable[[], None] = lambda: None  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M9")
    monkeypatch.setattr(torch.mps, "synchronize", nothing)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 5_000_000_000)
    monkeypatch.setattr(torch.mps, "manual_seed", lambda seed: None)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with Gpu(), Moves():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
