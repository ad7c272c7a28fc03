"""What lossless greedy speculation saves in evaluations, and what it costs or saves in seconds, on this machine.

    python benchmarks/speculation.py RUN [--prompt TEXT] [--length 256] [--policy confidence] [--guesses 1 2 4 8]
        [--device auto] [--repeats 3]

One text at temperature 0, one token a step, with so many guesses for each evaluation; 0 is the plain sampler. The ways
take turns; the seconds are medians. "same" says whether the text is that of the plain sampler.
"""

import argparse
import statistics
import time
from collections.abc import Iterable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from llada.checkpoints.folder import Checkpoint
from llada.checkpoints.load import open_model
from llada.sampling.config import SamplerConfig
from llada.sampling.guidance import suppress
from llada.sampling.speculation import SpeculatedCanvas, speculate
from llada.sampling.unmask import Canvas, unmask
from llada.system.device import choose_device, describe_device


def written(checkpoint: Checkpoint, template: Tensor, config: SamplerConfig, n: int) -> Canvas | SpeculatedCanvas:
    """The last canvas of a text, with n guesses for each evaluation."""
    predict = suppress(checkpoint.model, checkpoint.tokenizer.forbidden_rows)
    mask_id = checkpoint.tokenizer.mask_id
    states: Iterable[Canvas | SpeculatedCanvas] = (
        speculate(predict, template, mask_id, config, n) if n else unmask(predict, template, mask_id, config)
    )
    *_, last = states
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--prompt", default="ROMEO:")
    parser.add_argument("--length", type=int, default=256, help="tokens of the prompt and the text together")
    parser.add_argument("--policy", default="confidence")
    parser.add_argument("--block_length", type=int)
    parser.add_argument("--guesses", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = choose_device(options.device)
    checkpoint = open_model(options.checkpoint, device)
    prompt = checkpoint.tokenizer.encode(options.prompt)
    ids = prompt + [checkpoint.tokenizer.mask_id] * (options.length - len(prompt))
    template = torch.tensor([ids], device=device)
    config = SamplerConfig(steps=None, temperature=0.0, policy=options.policy, block_length=options.block_length)
    ways = [0, *options.guesses]
    seconds: dict[int, list[float]] = {n: [] for n in ways}
    last: dict[int, Canvas | SpeculatedCanvas] = {}
    for _ in range(options.repeats):
        for n in ways:
            start = time.perf_counter()
            last[n] = written(checkpoint, template, config, n)
            last[n].x_t.tolist()  # waits for the device
            seconds[n].append(time.perf_counter() - start)
    table = Table("guesses", "evaluations", "texts evaluated", "s a text", "times the plain seconds", "same")
    plain = statistics.median(seconds[0])
    for n in ways:
        state, median = last[n], statistics.median(seconds[n])
        rows = state.rows if isinstance(state, SpeculatedCanvas) else state.nfe
        is_same = torch.equal(state.x_t, last[0].x_t)
        table.add_row(str(n), str(state.nfe), str(rows), f"{median:.2f}", f"{median / plain:.2f}", str(is_same))
    console = Console()
    console.print(f"{options.checkpoint}, {options.length} tokens, {options.policy}")
    console.print(table)
    console.print(describe_device(device))


if __name__ == "__main__":
    main()
