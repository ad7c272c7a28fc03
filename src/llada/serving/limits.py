"""Limits of the server: how much it takes in, how much it computes at once, and how long it waits."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a server takes on; beyond it, requests are refused in one sentence."""

    queue: int = 64
    """Number of texts that may wait; a request that would make it more is refused with 429 and Retry-After."""
    batch: int = 32
    """Number of texts that are written at once, which share each evaluation of the network."""
    batch_tokens: int = 32_768
    """Number of tokens of an evaluation, padding included; a longer text is evaluated by itself."""
    texts: int = 16
    """Number of texts that one request may ask for, `n` times its prompts."""
    body_bytes: int = 1_000_000
    """Size of a request's body in bytes; a larger one is refused with 413."""
    seconds: float = 600.0
    """Time in seconds from a request's arrival until its text must be complete; then it ends with an error."""
    patience: float = 30.0
    """Time in seconds that a client may take to send the head of a request, or its body, or to take a piece of an
    answer."""
    grace: float = 10.0
    """Time in seconds that texts have to be completed after the server was asked to stop."""
