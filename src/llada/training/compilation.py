"""The network of a run, compiled for the one shape that nearly every step has, if its compiled code is right.

Compiling takes a good part of a minute, so it is done once, before the first step, and its time is reported. A batch
that is cut to a random length, an evaluation or a sample has another shape, and goes through the network as it is
written instead of being compiled for. Each step runs only code that passed the check: where torch would compile anew,
it takes the network as it is written.

Shape letters: B batch, L length, D width.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llada.models import Network, build_network, config_from_json, config_to_json
from llada.models.asked import Asked
from llada.models.dropout import rows_of
from llada.system.compile import compile_checked
from llada.system.compile_check import Recipe, Subject
from llada.system.device import Precision
from llada.system.toolchains import Toolchain, ToolchainName

GAIN = "1.3 to 2.5 times"
"""Speed of a compiled step, compared with one that is not (docs/EXPERIMENTS.md, 14 and 18)."""


class CompiledFeatures:
    """The features of a network, which for rows of exactly one shape (B, L) without padding are compiled ones: without
    an attention mask, or with the numbers of their documents.

    Not the head: the number of masked tokens, of which alone it makes logits, is another one at every step.
    """

    def __init__(
        self, network: Network, device: torch.device, precision: Precision, drops_by_row: bool = False
    ) -> None:
        """
        Args:
            drops_by_row: whether dropout is drawn by row (models/dropout.py).
        """
        self.network, self.device, self.precision = network, device, precision
        self.drops_by_row = drops_by_row and rows_of(network) is not None
        self.plain: Callable[..., Tensor] = network.features
        self.toolchain: Toolchain | None = None

    def compile(
        self,
        rows: Tensor,
        documents: Tensor | None = None,
        preferred: ToolchainName | None = None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> bool:
        """Compile for rows (B, L) like these, check the code, and use it from now on; False if none is right.

        Args:
            documents: (B, L) numbers of the documents, if attention stays within them.
        """
        start = time.perf_counter()
        arguments: dict[str, Any] = {"rows": rows.tolist(), "bf16": self.precision.dtype == torch.bfloat16}
        arguments |= {"config": config_to_json(self.network.config), "mask_row": self.network.config.mask_token_id}
        arguments["documents"] = None if documents is None else documents.tolist()
        arguments |= {"drops_by_row": True} if self.drops_by_row else {}
        recipe = Recipe("llada.training.compilation:random_subject", arguments)
        subject = features_subject(self.network, rows, documents, self.precision)
        drop_by_row(self.network, rows if self.drops_by_row else None)
        found = compile_checked(subject, recipe, self.device, preferred, say)
        drop_by_row(self.network, None)
        seconds = time.perf_counter() - start
        if found is None:
            say(
                f"No compiler of this machine makes right code, so the run goes on without compiling; compiled, a step "
                f"would be {GAIN} as fast (tried for {seconds:.0f} s; `llada doctor` says more)."
            )
            return False
        self.toolchain = found.toolchain
        self._use(found.function, tuple(rows.shape), None if documents is None else documents.dtype)
        say(f"Compiled by {found.toolchain} in {seconds:.0f} s: {found.finding.reason}.")
        return True

    def _use(self, compiled: Callable[..., Tensor], shape: tuple[int, ...], mask_dtype: torch.dtype | None) -> None:
        network, plain = self.network, self.plain

        def features(rows: Tensor, attention_mask: Tensor | None = None, asked: Asked | None = None) -> Tensor:
            dtype = None if attention_mask is None else attention_mask.dtype
            is_usual = dtype == mask_dtype and asked is None and rows.shape == shape
            if is_usual and network.training and torch.is_grad_enabled():
                # Code that was not checked, because torch finds that something changed, would not be right enough.
                with torch.compiler.set_stance("eager_on_recompile"):
                    return compiled(rows) if attention_mask is None else compiled(rows, attention_mask)
            return plain(rows, attention_mask, asked)

        network.features = features  # type: ignore[method-assign]

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Compute with the network as it is written, for a while."""
        compiled = self.network.features
        self.network.features = self.plain  # type: ignore[method-assign]
        try:
            yield
        finally:
            self.network.features = compiled  # type: ignore[method-assign]

    def stop_using(self) -> None:
        """Go on with the network as it is written."""
        self.network.features = self.plain  # type: ignore[method-assign]


def features_subject(network: Network, rows: Tensor, documents: Tensor | None, precision: Precision) -> Subject:
    """What of a network in training mode is compiled, with rows (B, L), and their documents, to try it on."""
    return Subject(
        network.features,
        (rows,) if documents is None else (rows, documents),
        dict(network.named_parameters()),
        context=lambda: precision.autocast(rows.device),
        autocast=precision.dtype if precision.dtype == torch.bfloat16 else None,
        has_dropout=bool(getattr(network.config, "dropout", 0)),
    )


def drop_by_row(network: Network, rows: Tensor | None) -> None:
    """Give the dropout layers of a network keys for rows (B, L) to try it on; None takes them away again."""
    known = rows_of(network)
    if known is not None:
        seeds = range(0 if rows is None else len(rows))
        known.know(None if rows is None else torch.tensor(seeds, device=rows.device), seeds)


def random_subject(
    config: Mapping[str, Any],
    mask_row: int,
    rows: Sequence[Sequence[int]],
    bf16: bool,
    documents: Sequence[Sequence[int]] | None = None,
    drops_by_row: bool = False,
) -> Subject:
    """The same of a network with random weights, made from what JSON can hold, in a process of its own."""
    torch.manual_seed(0)
    network = build_network(config_from_json(config, mask_row)).train()
    precision = Precision(torch.bfloat16 if bf16 else torch.float32, "as in the run")
    if drops_by_row:
        drop_by_row(network, torch.tensor(rows))
    numbers = None if documents is None else torch.tensor(documents, dtype=torch.int32)
    return features_subject(network, torch.tensor(rows), numbers, precision)
