"""Environment variables that libraries read, set once by a command before torch is imported.

Importing a module of this package changes nothing there: whoever computes with it as a library decides for themselves.
"""

import io
import os
import sys

# oneDNN and torch each cache up to 1024 compiled kernels for bf16 matmuls on a CPU, one for each shape, of a MB or
# more: like a memory leak in a run whose batches have many lengths. A step needs some dozens. Read at the first matmul.
MATMULS_KEPT = 128
DEFAULTS = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(MATMULS_KEPT),
    "LRU_CACHE_CAPACITY": str(MATMULS_KEPT),
    # How many turns of a loop a thread of GNU's OpenMP looks for work before it sleeps. By default it looks for
    # milliseconds, and takes the core from others meanwhile: of two commands on two cores, each then has a seventh of
    # its speed, and with this about half (docs/EXPERIMENTS.md, 20).
    "GOMP_SPINCOUNT": "1000",
    # Compute on the CPU what Apple's GPUs have no kernel for. Read while torch is imported.
    "PYTORCH_ENABLE_MPS_FALLBACK": "1",
}


def set_defaults() -> None:
    """Set the variables that the environment does not define already."""
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
    """Let standard output escape characters that it cannot show, instead of ending the command.

    A model's text may hold any character, and Windows gives a pipe or a file the 256 characters of its code page.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
