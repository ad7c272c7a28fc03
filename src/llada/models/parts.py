"""Names of a network's parts: groups for the listing of sizes, and the linear layers that adapters are added to."""

from collections.abc import Mapping
from typing import NamedTuple


class Parts(NamedTuple):
    """Regular expressions for the names of a network's modules and parameters."""

    layer: str
    """The pattern of what precedes the name of a module inside a layer."""
    attention: tuple[str, ...]
    """Full names, inside a layer, of the linear layers of attention."""
    feed_forward: tuple[str, ...]
    """Full names of those of the feed-forward part, without experts; adapters are added to these and to attention's."""
    others: Mapping[str, str]
    """Names of the other parts, each with a pattern found in the names of their parameters."""

    def adapted(self, attention_only: bool = False) -> tuple[str, ...]:
        """Return the names, inside a layer, of the linear layers that adapters are added to."""
        return self.attention + (() if attention_only else self.feed_forward)
