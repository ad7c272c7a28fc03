"""The process in which a toolchain is tried: its order comes as a line of JSON, its finding goes out as one."""

import json
import os
import sys
import threading
from dataclasses import asdict

import torch

from llada.system.compile_check import Recipe, compare, compile_function
from llada.system.toolchains import Toolchain, use


def main() -> None:
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    said = order["toolchain"]
    toolchain = Toolchain(**{**said, "replacements": tuple(map(tuple, said["replacements"]))})
    torch.set_num_threads(order["threads"])
    subject = Recipe(**order["recipe"]).make()
    use(toolchain)
    finding = compare(subject, compile_function(subject.function))
    print(json.dumps(asdict(finding)), flush=True)


def _end_with_parent() -> None:
    """The parent keeps our standard input open, and writes nothing more into it."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
