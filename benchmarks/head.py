"""Memory of the head in training: logits of the masked positions some at a time, against all logits at once.

    python benchmarks/head.py [--length 4096] [--width 512] [--layers 2] [--vocab 126464] [--batch 1]

One training step of a network with LLaDA's vocabulary, every position masked, in a process of its own: once as the
trainer does it (`objective.nll_of_features`), once as LLaDA's guidelines write it, with (B, L, V) logits. Printed are
the peaks of resident memory above that of a process that has imported everything and trained something small (VmHWM of
/proc/self/status, so Linux only), the seconds, and how far loss and gradients are apart.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from memory import status_bytes
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from llada.forward_process import NoisyBatch
from llada.hardware import describe_device, give_back_freed_memory
from llada.models import LLaDA, LLaDAConfig, MaskPredictor
from llada.objective import loss_weights, masked_nll, nll_of_features, weighted_loss
from llada.readable import bytes_in_words

MASK_ID = 0
WAYS = ("all at once", "in pieces")


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


def train_step(case: dict[str, Any], way: str) -> tuple[MaskPredictor, float]:
    """One step of AdamW; the model has its gradients still."""
    model = make_model(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    shape = (case["batch"], case["length"])
    x_0 = torch.randint(1, case["vocab"], shape, generator=torch.Generator().manual_seed(1))
    everything, one = torch.ones(shape, dtype=torch.bool), torch.ones(case["batch"], 1)
    noisy = NoisyBatch(torch.full(shape, MASK_ID), everything, one, one[:, 0], one * case["length"])
    if way == "in pieces":
        features = model.features(noisy.x_t, positions=noisy.is_masked)
        nll, _ = nll_of_features(model.network.head, features, x_0[noisy.is_masked], case["vocab"])
    else:
        nll = masked_nll(model(noisy.x_t), x_0, noisy)
    loss = weighted_loss(nll, noisy, loss_weights(noisy))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return model, float(loss.detach())


def measure(case: dict[str, Any]) -> dict[str, Any]:
    give_back_freed_memory()
    train_step({**case, "length": 64, "vocab": 256}, case["way"])
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.perf_counter()
    model, loss = train_step(case, case["way"])
    peak, seconds = status_bytes("VmHWM") - before, time.perf_counter() - start
    parameters = model.named_parameters()
    gradients = {name: weight.grad.contiguous() for name, weight in parameters if weight.grad is not None}
    save_file(gradients, case["gradients"])
    return {"loss": loss, "peak": peak, "seconds": seconds}


def in_a_process(case: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    result: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=126_464)
    parser.add_argument("--batch", type=int, default=1)
    options = vars(parser.parse_args())
    if options["case"]:
        print(json.dumps(measure(json.loads(options["case"]))))
        return
    table = Table("head", "logits", "peak", "of all at once", "seconds", "loss apart", "gradients apart")
    with tempfile.TemporaryDirectory() as folder:
        for tied in (False, True):
            results = []
            for way in WAYS:
                path = str(Path(folder, f"{way}.safetensors"))
                results.append(in_a_process({**options, "tied": tied, "way": way, "gradients": path}))
            whole, pieces = (load_file(Path(folder, f"{way}.safetensors")) for way in WAYS)
            apart = max(float((whole[name] - pieces[name]).abs().max()) for name in whole)
            for way, result in zip(WAYS, results, strict=True):
                table.add_row(
                    "tied" if tied else "its own",
                    way,
                    bytes_in_words(result["peak"]),
                    f"{result['peak'] / results[0]['peak']:.3f}",
                    f"{result['seconds']:.1f}",
                    f"{abs(result['loss'] - results[0]['loss']):.1e}",
                    f"{apart:.1e}",
                )
    console = Console(width=110)
    console.print(
        f"{datetime.date.today()}, {describe_device(torch.device('cpu'))}, torch {torch.__version__}, fp32: a step of "
        f"{options['batch']} x {options['length']} tokens, all masked, {options['layers']} layers of "
        f"{options['width']}, {options['vocab']:,} rows"
    )
    console.print(table)


if __name__ == "__main__":
    main()
