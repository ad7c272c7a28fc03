"""A live server on a free port, for a small model that a test makes."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import torch

from llada.checkpoints.folder import make_predictor, read_checkpoint, save_weights
from llada.models import LLaDAConfig, LocalConfig, NetworkConfig
from llada.serving.limits import Limits
from llada.serving.listening import Address, listen
from llada.serving.served import Served
from llada.serving.server import Server, make_server, serve
from llada.tokenizers.char import CharTokenizer

LETTERS = CharTokenizer("abcdefghijklmnopqrstuvwxyz .\n")
_ROWS: dict[str, Any] = {
    "vocab_size": LETTERS.vocab_size,
    "mask_token_id": LETTERS.mask_row,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
LOCAL = LocalConfig(
    **_ROWS, max_sequence_length=64, d_model=32, n_heads=2, n_layers=3, mlp_hidden_size=64, conv_width=5,
    attention_every=3,
)  # fmt: skip
"""As the preset laptop: the last layer alone attends, so that a cache is used."""
LLADA = LLaDAConfig(**_ROWS, max_sequence_length=64, d_model=32, n_heads=2, n_layers=2, mlp_hidden_size=64)
LONGEST = 64
SCALE = 0.4
KEY = "a key for tests"


def save_toy(folder: Path, config: NetworkConfig = LOCAL) -> Path:
    """Write a checkpoint with random weights, whose predictions differ from place to place."""
    torch.manual_seed(0)
    weights = make_predictor(config, LETTERS).network.state_dict()
    weights = {name: torch.randn(tensor.shape) * SCALE for name, tensor in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder, config, LETTERS, weights)
    return folder


def served_toy(folder: Path, config: NetworkConfig = LOCAL) -> Served:
    """Write a toy and open it to be served."""
    return Served.of(read_checkpoint(save_toy(folder / "toy", config)), str(folder / "toy"))


@dataclass(frozen=True)
class Live:
    """A server that answers."""

    server: Server
    served: Served
    url: str

    def client(self, **settings: object) -> httpx.Client:
        """A client of this server, which waits long: machines of tests are busy."""
        return httpx.Client(base_url=self.url, timeout=600, **settings)  # type: ignore[arg-type]


@contextlib.contextmanager
def live(
    served: Served,
    limits: Limits | None = None,
    api_key: str | None = None,
    change: Callable[[Server], object] = lambda server: None,
) -> Iterator[Live]:
    """Run a server in a thread as long as the context lasts.

    Args:
        change: called with the server before it runs.
    """  # fmt: skip
    address = Address(port=0, api_key=api_key)
    limits = replace(limits or Limits(), grace=0.0)
    listening = listen(address)
    server, is_ready, failed = make_server(served, address, limits), threading.Event(), []
    change(server)

    def run() -> None:
        try:
            serve(server, served, listening, is_ready.set)
        except Exception as error:
            failed.append(error)
            is_ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    is_ready.wait()
    if failed:
        raise failed[0]
    try:
        yield Live(server, served, address.url(listening.getsockname()[1]))
    finally:
        server.end()
        thread.join()
