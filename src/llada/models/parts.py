"""How a network names its parts: what a table of sizes counts together, and what adapters are added to."""

from collections.abc import Mapping
from typing import NamedTuple


class Parts(NamedTuple):
    """Regular expressions for the names of a network's modules and parameters."""

    layer: str
    """What stands before the name of a module inside a layer."""
    attention: tuple[str, ...]
    """Whole names, inside a layer, of the linear layers of attention."""
    feed_forward: tuple[str, ...]
    """The same of the feed-forward part, without experts. Adapters are for these and those of attention."""
    others: Mapping[str, str]
    """Names of the other parts, and what is found in the names of their parameters."""

    def adapted(self, attention_only: bool = False) -> tuple[str, ...]:
        """Names, inside a layer, of the linear layers that adapters are added to."""
        return self.attention + (() if attention_only else self.feed_forward)
