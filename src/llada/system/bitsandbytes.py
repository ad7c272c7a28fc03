"""An import of bitsandbytes that fetches no code."""

import contextlib
import logging
import sys
from collections.abc import Iterator

KERNELS, MISSING = "kernels", object()


@contextlib.contextmanager
def importing_bitsandbytes() -> Iterator[None]:
    """Import bitsandbytes, or what imports it, in this block: nothing is downloaded from the hub, and nothing is
    printed.

    On some CPUs bitsandbytes would download native code and run it where the `kernels` package is installed; without
    that package, it prints a complaint.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    before = sys.modules.get(KERNELS, MISSING)
    sys.modules[KERNELS] = None  # type: ignore[assignment]  # what Python takes for "cannot be imported"
    try:
        yield
    finally:
        if before is MISSING:
            del sys.modules[KERNELS]
        else:
            sys.modules[KERNELS] = before  # type: ignore[assignment]
