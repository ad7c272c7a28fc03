"""What libraries read from the environment, set once by a command, before torch is imported.

Importing a module of this package changes nothing there: whoever computes with it as a library decides for themselves.
"""

import io
import os
import sys

# For each shape of a bf16 matmul on a CPU, torch makes code, of a MB or more, and keeps that of 1024 shapes, twice: as
# good as a leak, to a run whose batches are of many lengths. A step needs some dozens. Read at the first matmul.
MATMULS_KEPT = 128
DEFAULTS = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(MATMULS_KEPT),
    "LRU_CACHE_CAPACITY": str(MATMULS_KEPT),
    # How long a thread of GNU's OpenMP looks for work before it sleeps, in turns of a loop. By default it looks for
    # milliseconds, and takes the core from others meanwhile: two commands at once on two cores then have a seventh of
    # the speed each, and with this about half (docs/EXPERIMENTS.md, 20).
    "GOMP_SPINCOUNT": "1000",
    # What Apple's GPUs have no kernel for is computed on the CPU. Read while torch is imported.
    "PYTORCH_ENABLE_MPS_FALLBACK": "1",
}


def set_defaults() -> None:
    """Set what the environment does not say already."""
    for name, value in DEFAULTS.items():
        if name != "GOMP_SPINCOUNT" or "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault(name, value)


def open_streams() -> None:
    """Give a command that was started without a standard stream (`2>&-`) one that leads nowhere.

    Its number would else be that of the next file that is opened, into which libraries would then write.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if descriptor == number:
                os.set_inheritable(descriptor, True)
            setattr(sys, name, open(descriptor, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115


def allow_any_text() -> None:
    """Let characters that standard output cannot show be escaped there, instead of ending the command.

    A text of a model may hold any, and Windows gives a pipe or a file the 256 characters of its code page.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
