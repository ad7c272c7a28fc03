"""The command `llada serve`: a page on which text un-masks itself, and OpenAI's API, for one checkpoint."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from llada.checkpoints.folder import DtypeName, weights_dtype
from llada.checkpoints.load import open_model
from llada.cli import Program
from llada.cli.options import check_positive, parse
from llada.serving.limits import Limits
from llada.serving.listening import Address, listen
from llada.serving.served import Served
from llada.serving.server import log_to_terminal, make_server, serve
from llada.system.device import DeviceName, choose_device
from llada.system.errors import UserError
from llada.system.terminal import say, tell

KEY_VARIABLE = "LLADA_API_KEY"

DESCRIPTION = """Serve a checkpoint: a page on which text un-masks itself, and an API that OpenAI's clients speak.

The server listens on this machine alone unless --host names another address, which needs an API key. Ctrl-C or a
SIGTERM stops it; texts that are being written have --grace seconds to be completed."""


@dataclass(frozen=True)
class ServeOptions:
    checkpoint: str
    """A run folder (its best checkpoint is used), a checkpoint or adapter folder, or a name on the Hugging Face hub."""
    port: int = 8000
    """Port to listen on; 0 takes any that is free."""
    host: str = "127.0.0.1"
    """Address to listen on; another one than this machine's own needs an API key."""
    api_key: str | None = None
    """Key that requests must carry; the environment variable LLADA_API_KEY says it without showing it to others."""
    name: str | None = None
    """Name of the model in requests; if left out, that of its folder or repository."""
    limits: Limits = field(default_factory=Limits)
    device: DeviceName = "auto"
    """Device that computes; "auto" is the GPU if there is one, and the CPU if not."""
    dtype: DtypeName = "auto"
    """Type of the weights in memory; "auto" is the one that they are stored in, with bf16 for fp16."""
    base: str | None = None
    """Base of an adapter, if it is not where the adapter says: a checkpoint folder, or a name on the Hugging Face
    hub."""
    check: bool = False
    """Stop as soon as requests could be answered: whether the checkpoint, the address and the options are good."""


def run(arguments: Sequence[str], program: Program) -> int:
    options = parse(ServeOptions, program.name, arguments, DESCRIPTION)
    limits = options.limits
    check_positive(limits, "batch", "batch_tokens", "texts", "body_bytes", "seconds", "patience")
    if limits.queue < 0 or limits.grace < 0:
        raise UserError("--queue and --grace must be at least 0: correct them.")
    if not 0 <= options.port <= 65535:
        raise UserError(f"--port must be from 0 to 65535, not {options.port}: choose another.")
    address = Address(options.host, options.port, options.api_key or os.environ.get(KEY_VARIABLE) or None)
    with listen(address) as listening:
        device, dtype = choose_device(options.device), weights_dtype(options.dtype)
        checkpoint = open_model(options.checkpoint, device, dtype, options.base)
        served = Served.of(checkpoint, options.checkpoint, options.name)
        server = make_server(served, address, limits)

        def ready() -> None:
            url = address.url(listening.getsockname()[1])
            tell(f"{served.name} is served at {url} (API: {url}/v1). Ctrl-C stops it.")
            if options.check:
                server.end()

        with log_to_terminal():
            serve(server, served, listening, ready)
    say("Stopped; all texts were completed or ended.")
    return 0
