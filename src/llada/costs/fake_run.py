"""What one layer and the rest of a network take, read off a run of the real modules on fake tensors.

Fake tensors have shapes, types and storages, but no numbers and no memory: a run takes milliseconds at any size. One
layer of each kind is built and run, and all else follows, because costs are linear in layers and in sequences.

The first fake tensor of a process loads torch._dynamo, which takes a second; so does the first optimizer.

Shape letters: B batch, H heads, L length, C channels of a head, D width.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from llada.models.config_json import Network, NetworkConfig, kinds_of_layers
from llada.models.dropout import rows_of
from llada.models.shapes import adaptable, shape_only

# So many tokens that what does not grow with them vanishes next to what does: copies of weights, rotary tables.
TOKENS = 2**30
# A length at which no network holds the scores of all pairs of positions, not even on a CPU.
LONG = 2**14
FLOP_LENGTHS = (2, 4)


@dataclass(frozen=True)
class RunSetting:
    """What a run of a layer depends on in addition to the network."""

    length: int
    bf16: bool = False
    """Whether matmuls run under bf16 autocast."""
    stores_bf16: bool = False
    """Whether the network's weights are in bf16; in fp32 if not."""
    lora_rank: int | None = None
    """Rank of the adapters of a frozen network; None trains all weights."""
    lora_on_attention_only: bool = False
    on_cpu: bool = True
    within_documents: bool = False


@dataclass(frozen=True)
class LayerCosts:
    """Bytes for each sequence, and numbers."""

    kept: float
    """What autograd keeps of the layer's forward pass, its input included."""
    stream: float
    """The layer's input."""
    working: float
    """What else is there at the peak of the layer's backward pass, but for gradients of weights."""
    outside: float
    """What autograd keeps of the network around the layer, the features that the head reads included."""
    dropped_scores: float
    """Attention weights for which a CPU draws noise."""


class Flops(NamedTuple):
    """FLOPs of forward and backward for each token: a constant, and a part that grows with the length."""

    constant: int
    per_length: int


@lru_cache(maxsize=1024)
def layer_costs(config: NetworkConfig, setting: RunSetting) -> LayerCosts:
    """Run a network of one layer, forward and backward.

    A GPU's kernels can only be asked for on a machine that has them. Its attention is fused at every length and keeps
    queries, keys, values, the result, and a sum for each row: what a CPU's fused kernel keeps as well. So a GPU is a
    CPU at a length at which everybody takes that kernel, and a token costs the same at every length; a mask of all
    pairs of positions, which documents need, costs their number, and a second length shows how much.
    """
    if setting.on_cpu:
        return _run_layer(config, setting)
    part = setting.length / LONG
    long = _run_layer(config, replace(setting, length=LONG))
    longer = _run_layer(config, replace(setting, length=2 * LONG)) if setting.within_documents else None

    def at_length(name: str) -> float:
        of_long: float = getattr(long, name)
        of_pairs = 0.0 if longer is None else (getattr(longer, name) - 2 * of_long) / 2
        return part * (of_long - of_pairs) + part**2 * of_pairs

    return LayerCosts(**{field.name: at_length(field.name) for field in fields(LayerCosts)})


def _run_layer(config: NetworkConfig, setting: RunSetting) -> LayerCosts:
    batch = max(1, TOKENS // setting.length)
    with FakeTensorMode(), _Kernels(setting.on_cpu) as kernels:
        network = _build(config, setting)
        weights, dropout_rows, dropped_scores = [*network.parameters()], rows_of(network), 0
        if dropout_rows is not None:
            with torch.no_grad():
                _run_network(network, batch, setting.length, setting.within_documents)
            dropped_scores = kernels.dropped_scores  # by torch's own dropout
            if setting.on_cpu:
                dropout_rows.know(torch.zeros(batch, dtype=torch.int64), [])
        with _autocast(setting), _kept(weights) as whole:
            features, (stream, *others) = _run_network(network, batch, setting.length, setting.within_documents)
        shared = [tensor for tensor in tree_leaves(others) if isinstance(tensor, Tensor)]
        with _Live() as live:
            with _autocast(setting), _kept([*weights, *shared]) as kept:
                result = _first(network.layers[0](stream, *others))
            of_input, inside = kept.pop(_storage(stream), 0), sum(kept.values())
            live.begin(without=result)
            torch.autograd.backward([result], [torch.ones_like(result)])
    return LayerCosts(
        kept=(of_input + inside) / batch,
        stream=stream.nbytes / batch,
        working=(live.peak - inside) / batch,
        outside=(sum(whole.values()) - of_input - inside + features.nbytes) / batch,
        dropped_scores=dropped_scores / batch,
    )


@lru_cache(maxsize=256)
def forward_bytes(config: NetworkConfig, length: int, stores_bf16: bool) -> float:
    """Bytes for each sequence at the peak of a layer's forward pass that no backward pass will follow."""
    setting = RunSetting(length, stores_bf16=stores_bf16)
    batch = max(1, TOKENS // length)
    with FakeTensorMode(), torch.no_grad():
        network = _build(config, setting).eval()
        _, (stream, *others) = _run_network(network, batch, length)
        with _Live() as live:
            network.layers[0](stream, *others)
    return (stream.nbytes + live.peak) / batch


@lru_cache(maxsize=256)
def has_dropout(config: NetworkConfig) -> bool:
    """Whether anything is dropped in training."""
    return rows_of(shape_only(next(iter(kinds_of_layers(config))))) is not None


@lru_cache(maxsize=256)
def network_flops(config: NetworkConfig) -> Flops:
    """FLOPs of the whole network, its head included, as torch counts them at two lengths; a bias is not a matmul.

    With attention in plain matmuls, because the counter does not know a CPU's fused kernel, and because a fused
    kernel's own FLOPs in its backward pass differ from one to the next.
    """
    in_layers = [0] * len(FLOP_LENGTHS)
    for kind, times in kinds_of_layers(replace(config, max_sequence_length=max(FLOP_LENGTHS))).items():
        around, of_layer = _count_flops(kind)
        in_layers = [total + times * flops for total, flops in zip(in_layers, of_layer, strict=True)]
    short, long = (total // length for total, length in zip(in_layers, FLOP_LENGTHS, strict=True))
    per_length = (long - short) // (FLOP_LENGTHS[1] - FLOP_LENGTHS[0])
    return Flops(around + short - per_length * FLOP_LENGTHS[0], per_length)


def _count_flops(config: NetworkConfig) -> tuple[int, list[int]]:
    """FLOPs around the layers for a token, and those of a layer for a sequence of each length."""
    of_layer = []
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        network = _build(config, RunSetting(max(FLOP_LENGTHS)))
        for length in FLOP_LENGTHS:
            _, (stream, *others) = _run_network(network, 1, length)
            with FlopCounterMode(display=False) as counter:
                torch.autograd.backward([_first(network.layers[0](stream, *others)).sum()])
            of_layer.append(counter.get_total_flops())
        del network.layers[0]
        with FlopCounterMode(display=False) as counter:
            torch.autograd.backward([network(torch.zeros(1, length, dtype=torch.int64)).sum()])
    return counter.get_total_flops() // length, of_layer


def _build(config: NetworkConfig, setting: RunSetting) -> Network:
    """The network in training mode with fake weights, in the types that training stores them in."""
    network = shape_only(replace(config, max_sequence_length=setting.length))
    dtype = torch.bfloat16 if setting.stores_bf16 else torch.float32
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            weight = torch.empty(parameter.shape, dtype=dtype)
            setattr(module, name, nn.Parameter(weight, requires_grad=setting.lora_rank is None))
    if setting.lora_rank is not None:
        for name, linear in list(adaptable(network, setting.lora_on_attention_only)):
            network.set_submodule(name, _Adapted(linear, setting.lora_rank))
    return network.train()


class _Adapted(nn.Module):
    """A linear layer with an adapter, computed as by peft, which takes seconds to import and need not be installed.

    A layer in 4 bits keeps no more of its input than a frozen one in bf16 does: nothing.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x)
        return (result + self.up(self.down(x.to(self.down.weight.dtype))) * 2.0).to(result.dtype)


def _run_network(network: Network, batch: int, length: int, within_documents: bool = False) -> tuple[Tensor, list[Any]]:
    """What goes into the head, and what goes into a layer."""
    inputs: list[Any] = []
    hook = network.layers[0].register_forward_pre_hook(lambda _, given: inputs.extend(given))
    documents = torch.ones(batch, length, dtype=torch.int32) if within_documents else None
    features = network.features(torch.zeros(batch, length, dtype=torch.int64), documents)
    hook.remove()
    stream, *others = tree_map_only(Tensor, lambda tensor: tensor.detach().requires_grad_(tensor.requires_grad), inputs)
    # As in all layers but the first, where the stream may be frozen, or something that is kept elsewhere as well.
    return features, [torch.empty_like(stream, requires_grad=torch.is_grad_enabled()), *others]


def _first(result: Any) -> Tensor:
    """The residual stream, which a layer may return with something else behind it."""
    stream: Tensor = result[0] if isinstance(result, tuple) else result
    return stream


def _autocast(setting: RunSetting) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting.bf16)


def _storage(tensor: Tensor) -> int:
    """Return a number that identifies the memory of a tensor as long as it lives."""
    return tensor.untyped_storage()._cdata


@contextmanager
def _kept(known: Sequence[Tensor]) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd saves and that is not among those of `known`."""
    ignored, kept = {_storage(tensor) for tensor in known}, {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in ignored:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # without it, what saves its own result would keep itself

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


class _Live(TorchDispatchMode):
    """Bytes of the storages that operators made and that still exist, now and at the peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        given = {_storage(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor) and _storage(tensor) not in given | self._known:
                self._add(tensor)
        return results

    def begin(self, without: Tensor) -> None:
        """Look for the peak from here on, and forget a tensor that only its observer keeps."""
        self._remove(_storage(without), without.untyped_storage().nbytes())
        self.peak = self.now

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, storage: int, nbytes: int) -> None:
        if storage in self._known:
            self._known.remove(storage)
            self.now -= nbytes


class _Kernels(TorchFunctionMode):
    """Has a GPU's kernels stood in for where dropout makes a CPU take others, and counts what those cost.

    With dropout, a CPU's attention is not fused: it holds the weights of all pairs of positions, and draws a number
    for each. A GPU's draws within the fused kernel. Both keep booleans.
    """

    def __init__(self, on_cpu: bool) -> None:
        super().__init__()
        self.on_cpu, self.dropped_scores = on_cpu, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and kwargs.get("dropout_p", 0.0) > 0:
            q, k = args[:2]  # (B, H, L, C)
            self.dropped_scores += q.shape[:-1].numel() * k.shape[-2]
            kwargs = kwargs if self.on_cpu else {**kwargs, "dropout_p": 0.0}
        if function is F.dropout and kwargs["p"] > 0 and not self.on_cpu:
            return torch.native_dropout(args[0], kwargs["p"], kwargs["training"])[0]
        return function(*args, **kwargs)
