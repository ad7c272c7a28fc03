"""Cost of opening a checkpoint: seconds and peak memory, compared with transformers for the same tensors.

    python benchmarks/loading.py [--billions 1.2]

The checkpoint is a random one in LLaDA's layout, in bf16. transformers cannot load that without running the code of the
checkpoint, so it gets the same tensors under the names of its own Llama. Each row is a process of its own, whose peak
of resident memory (VmHWM of /proc/self/status, so Linux only) is taken right after loading, and again when every weight
has been read: by a forward pass and then, since that needs few rows of the embedding, by a look at each whole matrix.
Its address space (VmSize) is taken right after loading, too. The memory of a process that only imports the libraries is
subtracted. The files are in the page cache.
"""

import argparse
import datetime
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from llada.checkpoints.dummy import write_random_checkpoint
from llada.checkpoints.folder import CONFIG_FILE, SHARD_BYTES, read_checkpoint
from llada.checkpoints.hub import read_published_config
from llada.checkpoints.safetensors import StoredWeights, save_tensors
from llada.costs.parameters import layer_parameters, total_parameters
from llada.models import LLaDAConfig
from llada.system.device import describe_device
from llada.system.environment import set_defaults
from processes import in_a_process, status_bytes

WIDTH, HIDDEN, HEADS, ROWS = 2048, 5632, 16, 32_000
LIMIT = 1.1  # peak divided by the weights, our own aim
TEXT = "to be or not to be that is the question " * 20
LLAMA_NAMES = {
    "model.transformer.wte": "model.embed_tokens",
    "model.transformer.ln_f": "model.norm",
    "model.transformer.ff_out": "lm_head",
    "model.transformer.blocks": "model.layers",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
    **{f"{part}_proj": f"self_attn.{part}_proj" for part in "qkv"},
}


def memory_in_use() -> dict[str, int]:
    return {"peak": status_bytes("VmHWM"), "space": status_bytes("VmSize")}


def as_llama(name: str) -> str:
    """Translate the name of one of LLaDA's tensors to transformers' Llama."""
    for ours, theirs in LLAMA_NAMES.items():
        if name.startswith(ours + ".") or f".{ours}." in name.removeprefix("model.transformer"):
            name = name.replace(ours, theirs)
    return name


def write_llama(source: Path, folder: Path) -> None:
    """Write the same tensors as a checkpoint of transformers' own Llama."""
    config, stored = read_published_config(str(source)), StoredWeights.of(source)
    assert isinstance(config, LLaDAConfig)
    folder.mkdir()
    tensors = {as_llama(name): stored.tensor(name, torch.device("cpu"), None) for name in stored.entries}
    save_tensors(folder, tensors, SHARD_BYTES)
    content = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp_hidden_size,
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers,
        "num_key_value_heads": config.kv_heads,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": False,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(content))


def measure(how: str, folder: str) -> dict[str, Any]:
    """Measure one way to load, in this process: seconds, and peaks in bytes."""
    ids = torch.arange(8)[None]
    if how.startswith("transformers"):
        from transformers import LlamaForCausalLM

        if how == "transformers, nothing":
            return memory_in_use()
        start = time.perf_counter()
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    else:
        if how == "nothing":
            return memory_in_use()
        start = time.perf_counter()
        model = read_checkpoint(folder, dtype=torch.float32 if how == "fp32" else None).model
    result = {"seconds": time.perf_counter() - start, **memory_in_use()}
    with torch.inference_mode():
        model(ids)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.amax()  # makes no copy
    return {**result, "peak_in_use": status_bytes("VmHWM")}


def write_checkpoint(folder: Path, billions: float) -> int:
    """Write a random checkpoint of about this size; returns its number of parameters."""
    per_layer = 4 * WIDTH**2 + 3 * WIDTH * HIDDEN
    n_layers = max(1, round((billions * 1e9 - 2 * ROWS * WIDTH) / per_layer))
    write_random_checkpoint(
        folder, TEXT, d_model=WIDTH, n_heads=HEADS, n_layers=n_layers, mlp_hidden_size=HIDDEN, vocab_size=ROWS
    )
    config = read_published_config(str(folder))
    assert layer_parameters(config) == n_layers * per_layer
    return total_parameters(config)


def main() -> None:
    set_defaults()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--billions", type=float, default=1.2, help="parameters of the checkpoint")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(**json.loads(options.case))))
        return
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        ours, theirs = Path(name, "llada"), Path(name, "llama")
        with console.status("writing the checkpoints"):
            n_parameters = write_checkpoint(ours, options.billions)
            write_llama(ours, theirs)
        rows = [
            ("llada, bf16 as stored", "stored", ours, "nothing", 2),
            ("llada, to fp32", "fp32", ours, "nothing", 4),
            ("transformers' Llama, bf16", "transformers", theirs, "transformers, nothing", 2),
        ]
        device, billions = describe_device(torch.device("cpu")), f"{n_parameters / 1e9:.2f}B parameters"
        title = f"{datetime.date.today()} · {device} · torch {torch.__version__} · {billions}"
        table = Table(title=title, padding=(0, 1))
        for column in ("", "seconds", "weights MB", "peak MB", "in use MB", "space MB"):
            table.add_column(column, justify="right" if column else "left")
        worst = 0.0
        for label, how, folder, idle, n_bytes in rows:
            with console.status(label):
                baseline, loaded = (
                    in_a_process(__file__, {"how": each, "folder": str(folder)}) for each in (idle, how)
                )
            weights = n_parameters * n_bytes
            peak, in_use = (loaded[key] - baseline["peak"] for key in ("peak", "peak_in_use"))
            space = loaded["space"] - baseline["space"]
            if folder == ours:
                worst = max(worst, peak / weights, in_use / weights)
            cells = [f"{n / 1e6:,.0f}\n{n / weights:.3f}" for n in (peak, in_use, space)]
            table.add_row(label, f"{loaded['seconds']:.2f}", f"{weights / 1e6:,.0f}", *cells)
    console.print(table)
    console.print(f"Ours at most {worst:.3f} times the weights; the aim is {LIMIT}.")
    sys.exit(0 if worst <= LIMIT else 1)


if __name__ == "__main__":
    main()
