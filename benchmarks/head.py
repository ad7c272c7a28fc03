"""Memory of the head in training: logits of the masked positions some at a time, compared with all logits at once.

    python benchmarks/head.py [--length 4096] [--width 512] [--layers 2] [--vocab 126464] [--batch 1 2] [--share 1.0]

One training step of a network with LLaDA's vocabulary in a process of its own: once as the trainer does it
(`objective.nll_of_features`), once as LLaDA's guidelines write it, with (B, L, V) logits. Printed are the peaks of
resident memory above that of a process that has imported everything and trained something small (VmHWM of
/proc/self/status, so Linux only) and the seconds, with every position masked, since that is when the trainer needs
most; and how far loss and gradients are apart, with half of the positions masked, in shorter rows: of rows that are
MASK alone all keys are equal, and the gradients of queries and keys vanish.
"""

import argparse
import datetime
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from llada.forward_process import NoisyBatch
from llada.models import LLaDA, LLaDAConfig, MaskPredictor
from llada.models.head import LOGITS_AT_ONCE, nll_of_features
from llada.objective import loss_weights, masked_nll, weighted_loss
from llada.system.device import describe_device, give_back_freed_memory
from llada.system.environment import set_defaults
from llada.system.format import bytes_in_words
from processes import begin_peak_anew, in_a_process, status_bytes

MASK_ID = 0
WAYS = ("all at once", "in pieces")
COMPARED = {"batch": 2, "share": 0.5}
COMPARED_LENGTH = 512  # at most


def make_model(case: dict[str, Any]) -> MaskPredictor:
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=case["width"],
        n_heads=case["width"] // 64,
        n_layers=case["layers"],
        vocab_size=case["vocab"],
        mask_token_id=MASK_ID,
        pad_token_id=1,
        eos_token_id=1,
        mlp_hidden_size=3 * case["width"],
        max_sequence_length=case["length"],
        weight_tying=case["tied"],
    )
    return MaskPredictor(LLaDA(config), MASK_ID, MASK_ID)


def make_batch(case: dict[str, Any]) -> tuple[torch.Tensor, NoisyBatch]:
    """Make random tokens (B, L), and the same with MASK at a share of the positions of each row."""
    generator = torch.Generator().manual_seed(1)
    shape, share = (case["batch"], case["length"]), case["share"]
    x_0 = torch.randint(1, case["vocab"], shape, generator=generator)
    is_masked = torch.rand(shape, generator=generator).argsort(1) < round(share * case["length"])
    p_mask = torch.full((case["batch"], 1), share)
    x_t = x_0.masked_fill(is_masked, MASK_ID)
    n_maskable, ones = torch.full_like(p_mask, case["length"]), torch.ones_like(p_mask)
    return x_0, NoisyBatch(x_t, is_masked, p_mask, p_mask[:, 0], n_maskable, ones)


def train_step(case: dict[str, Any], way: str) -> tuple[MaskPredictor, float]:
    """Train one step of AdamW; the model still has its gradients."""
    model = make_model(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x_0, noisy = make_batch(case)
    if way == "in pieces":
        features = model.features(noisy.x_t, positions=noisy.is_masked)
        nll, _ = nll_of_features(model.network.head, features, x_0[noisy.is_masked], case["vocab"])
    else:
        nll = masked_nll(model(noisy.x_t), x_0, noisy)
    loss = weighted_loss(nll, noisy.at_masked(loss_weights(noisy)))
    loss.backward()
    optimizer.step()
    return model, float(loss.detach())


def measure(case: dict[str, Any]) -> dict[str, Any]:
    give_back_freed_memory()
    train_step({**case, "length": 64, "vocab": 256}, case["way"])
    before = status_bytes("VmRSS")
    begin_peak_anew()
    start = time.perf_counter()
    model, loss = train_step(case, case["way"])
    peak, seconds = status_bytes("VmHWM") - before, time.perf_counter() - start
    if "gradients" in case:
        parameters = model.named_parameters()
        gradients = {name: weight.grad.contiguous() for name, weight in parameters if weight.grad is not None}
        save_file(gradients, case["gradients"])
    return {"loss": loss, "peak": peak, "seconds": seconds}


def compare_memory(options: dict[str, Any]) -> Table:
    table = Table("head", "batch", "logits", "peak", "of all at once", "seconds")
    for tied in (False, True):
        for batch in options["batch"]:
            results = [in_a_process(__file__, {**options, "batch": batch, "tied": tied, "way": way}) for way in WAYS]
            for way, result in zip(WAYS, results, strict=True):
                table.add_row(
                    name_of(tied),
                    str(batch),
                    way,
                    bytes_in_words(result["peak"]),
                    f"{result['peak'] / results[0]['peak']:.3f}",
                    f"{result['seconds']:.1f}",
                )
    return table


def compare_gradients(options: dict[str, Any]) -> Table:
    """Compare norms: the difference divided by the norm, for the tensor where that is largest."""
    table = Table("head", "loss apart", "gradients apart", "in")
    for tied in (False, True):
        case = {**compared_case(options), "tied": tied}
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder, f"{way}.safetensors")) for way in WAYS]
            cases = [{**case, "way": way, "gradients": path} for way, path in zip(WAYS, paths, strict=True)]
            whole, pieces = (in_a_process(__file__, each)["loss"] for each in cases)
            ours, others = (load_file(path) for path in paths)
        apart = {name: float((ours[name] - others[name]).norm() / ours[name].norm()) for name in ours}
        worst = max(apart, key=apart.__getitem__)
        table.add_row(name_of(tied), f"{abs(whole - pieces) / whole:.1e}", f"{apart[worst]:.1e}", worst)
    return table


def compared_case(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, **COMPARED, "length": min(options["length"], COMPARED_LENGTH)}


def name_of(tied: bool) -> str:
    return "tied" if tied else "its own"


def main() -> None:
    set_defaults()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=126_464)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--share", type=float, default=1.0, help="of the positions that are masked, for the memory")
    options = vars(parser.parse_args())
    if options["case"]:
        print(json.dumps(measure(json.loads(options["case"]))))
        return
    console = Console(width=110)
    console.print(
        f"{datetime.date.today()}, {describe_device(torch.device('cpu'))}, torch {torch.__version__}, fp32: a step of "
        f"rows of {options['length']} tokens, {options['share']:.0%} masked, {options['layers']} layers of "
        f"{options['width']}, {options['vocab']:,} rows; pieces of {max(1, LOGITS_AT_ONCE // options['vocab'])} tokens"
    )
    console.print(compare_memory(options))
    case = compared_case(options)
    console.print(f"The same with {case['batch']} x {case['length']} tokens, {case['share']:.0%} masked:")
    console.print(compare_gradients(options))


if __name__ == "__main__":
    main()
