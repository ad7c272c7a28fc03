"""What the prefix and dual cache save and cost, on a checkpoint of the LLaDA family.

    python benchmarks/block_cache.py RUN --data_dir DATA [--windows 4] [--texts 2] [--block 32] [--refresh 8]

The second half of each validation window is filled by the policy, one token a step and block after block, after the
first half as the prompt. The table has the exact nats a character of the window's own text under each way to compute
(the difference to no cache with its paired standard error); and of texts that are written at temperature 0 from these
prompts: the share of their characters that are those of the text without a cache, the matmul work of a text, and the
seconds of one text at a time, medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from llada.checkpoints.folder import Checkpoint
from llada.checkpoints.load import open_model
from llada.data.batches import TokenBatch
from llada.data.prepared import PreparedText
from llada.evaluation.exact_likelihood import exact_nll
from llada.evaluation.windows import cut_windows
from llada.models import MaskPredictor, PredictAt
from llada.models.block_cache import BlockCachedPredictor
from llada.sampling.config import SamplerConfig
from llada.sampling.policies import PolicyName, make_policy
from llada.sampling.unmask import infill
from llada.system.device import describe_device

Make = Callable[[MaskPredictor], PredictAt]


def ways(block: int, refreshes: list[int]) -> dict[str, Make]:
    made: dict[str, Make] = {"no cache": lambda model: model}
    for cache in ("prefix", "dual"):
        for refresh in (*refreshes, None):
            name = cache if refresh is None else f"{cache}, every {refresh}"
            made[name] = lambda model, cache=cache, refresh=refresh: BlockCachedPredictor(  # type: ignore[misc]
                model, cache, block, refresh
            )
    return made


def nats_by_blocks(predict: PredictAt, x_0: Tensor, start: int, block: int, mask_id: int, policy: PolicyName) -> Tensor:
    """Exact nats a token of each row (W,), from `start` on, filled block after block."""
    place, total = torch.arange(x_0.shape[1]), torch.zeros(len(x_0), dtype=torch.float64)
    for first in range(start, x_0.shape[1], block):
        ids = torch.where(place < first + block, x_0, mask_id)
        is_block = ((place >= first) & (place < first + block)).expand_as(x_0)
        total += exact_nll(predict, TokenBatch(ids, is_block), mask_id, policy=make_policy(policy)).nll
    return total / (x_0.shape[1] - start)


def written(checkpoint: Checkpoint, make: Make, x_0: Tensor, start: int, config: SamplerConfig) -> tuple[Tensor, float]:
    """Texts (W, L), one after the other, and the seconds of one."""
    seconds, texts, mask_id = [], [], checkpoint.tokenizer.mask_id
    for row in x_0:
        template = torch.where(torch.arange(len(row)) < start, row, mask_id)[None]
        began = time.perf_counter()
        texts.append(infill(make(checkpoint.model), template, mask_id, config).x_t)
        seconds.append(time.perf_counter() - began)
    return torch.cat(texts), statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data_dir", required=True, help="prepared data in the checkpoint's vocabulary")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--refresh", type=int, nargs="*", default=[8])
    parser.add_argument("--policy", default="confidence")
    parser.add_argument("--texts", type=int, default=2)
    options = parser.parse_args()
    checkpoint = open_model(options.checkpoint)
    mask_id, length = checkpoint.tokenizer.mask_id, checkpoint.config.max_sequence_length
    data = PreparedText.open(Path(options.data_dir))
    x_0, start = cut_windows(data.tokens("val"), length, options.windows), length // 2
    config = SamplerConfig(steps=None, temperature=0.0, policy=options.policy, block_length=options.block)
    table = Table("way", "nats", "more than without", "same characters", "GFLOP a text", "s a text")
    plain_nats, plain_texts = torch.tensor([]), torch.tensor([])
    for way, make in ways(options.block, options.refresh).items():
        nats = nats_by_blocks(make(checkpoint.model), x_0, start, options.block, mask_id, options.policy)
        texts, seconds = written(checkpoint, make, x_0[: options.texts], start, config)
        with FlopCounterMode(display=False) as counter:
            written(checkpoint, make, x_0[:1], start, config)
        plain_nats, plain_texts = (plain_nats, plain_texts) if len(plain_nats) else (nats, texts)
        more, same = nats - plain_nats, texts.eq(plain_texts)[:, start:].double().mean()
        error = float(more.std() / len(more) ** 0.5)
        table.add_row(
            way, f"{float(nats.mean()):.4f}", f"{float(more.mean()):+.4f} ± {error:.4f}", f"{100 * float(same):.0f} %",
            f"{counter.get_total_flops() / 1e9:.1f}", f"{seconds:.2f}",
        )  # fmt: skip
    console = Console()
    console.print(f"{options.checkpoint}, {options.windows} windows of {length}, blocks of {options.block}")
    console.print(table)
    console.print(describe_device(torch.device("cpu")))


if __name__ == "__main__":
    main()
