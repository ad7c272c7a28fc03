"""The command `llada size`: parameters, memory, FLOPs and time of a network."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from llada.cli import Program
from llada.cli.options import parse
from llada.cli.size_report import USABLE_FRACTION, SizeOptions, make_report
from llada.system.console import print_rich
from llada.system.format import bytes_in_words, count_in_words, duration_in_words
from llada.system.terminal import tell
from llada.training.presets import PRESETS

DESCRIPTION = """Count the parameters of a network, and what it takes to train and use it: memory, computation, time.

The network is that of the options, or of a checkpoint. The memory is that of tensors; torch takes 0.5 GB more."""

MEMORY_ROWS = {
    "weights": "weights",
    "optimizer": "optimizer state",
    "ema": "moving average",
    "gradients": "gradients",
    "activations": "activations",
    "working": "work on one layer",
    "logits": "logits, if all is masked",
    "update": "work of the optimizer",
}


def run(arguments: Sequence[str], program: Program) -> int:
    default = SizeOptions()
    if program.preset is not None:
        network = PRESETS[program.preset].network
        default = SizeOptions(network.network, dropout=network.dropout)
    options = parse(SizeOptions, program.name, arguments, DESCRIPTION, default)
    report = make_report(options)
    if options.json:
        tell(json.dumps(report))
        return 0
    network = report["network"]
    print_rich(
        f"[bold]{escape(network['name'])}[/bold]: {network['n_layers']} layers of {network['d_model']}, "
        f"{network['n_heads']} heads, {count_in_words(report['parameters']['total'])} parameters"
    )
    tables = [_parameters_table(report), _training_table(report, options), _other_table(report, options)]
    if "fits" in report and report["fits"]["largest_networks"]:
        tables.append(_largest_table(report["fits"]["largest_networks"], options))
    for table in [*tables[:3], _work_table(report, options), *tables[3:]]:
        tell("")
        print_rich(table)
    if "fits" in report:
        tell(f"\n{_verdict(report['fits'], options)}")
    return 0


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2), show_header=any(columns)
    )
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right")
    return table


def _parameters_table(report: dict[str, Any]) -> Table:
    table = _table("Parameters", "", "", "")
    total = report["parameters"]["total"]
    for part, count in report["parameters"].items():
        style = "bold" if part == "total" else None
        table.add_row(part, f"{count:,}", f"{count / total:.1%}", style=style)
    return table


def _training_table(report: dict[str, Any], options: SizeOptions) -> Table:
    optimizer = {"adamw": "AdamW", "muon": "Muon"}[options.optimizer]
    title = (
        f"Training memory: {options.batch_size} x {options.sequence_length:,} tokens at once, "
        f"matmuls in {'bf16' if options.dtype == torch.bfloat16 else 'fp32'}, {optimizer}, {options.kind.upper()}"
    )
    table = _table(title, "", "activations kept", "checkpointed")
    plain, checkpointed = report["training"], report["training_with_activation_checkpointing"]
    for key, label in MEMORY_ROWS.items():
        if plain[key] or checkpointed[key]:
            table.add_row(label, bytes_in_words(plain[key]), bytes_in_words(checkpointed[key]))
    table.add_row("at the peak", bytes_in_words(plain["total"]), bytes_in_words(checkpointed["total"]), style="bold")
    table.caption = "Checkpointed: --activation_checkpointing. Less than the sum: activations go while gradients come."
    table.caption_justify = "left"
    return table


def _other_table(report: dict[str, Any], options: SizeOptions) -> Table:
    lora, sampling = report["lora"], report["sampling"]
    table = _table(f"Fine-tuning and use: 1 sequence of {options.sequence_length:,}", "", "")
    bf16, names = report["bf16"], {"fp32": "moments in fp32", "8bit": "moments in 8 bits"}
    for state, name in names.items():
        table.add_row(f"all weights in bf16, {name}", bytes_in_words(bf16[f"{state}_moments_total"]))
    adapters = f"rank {lora['rank']}, {count_in_words(lora['parameters'])} weights of adapters"
    table.add_row(f"LoRA, {adapters}", bytes_in_words(lora["lora_total"]))
    table.add_row("QLoRA, the same on 4-bit layers", bytes_in_words(lora["qlora_total"]))
    table.add_row("sampling in bf16", bytes_in_words(sampling["bf16_total"]))
    table.add_row("sampling in fp32", bytes_in_words(sampling["fp32_total"]))
    return table


def _work_table(report: dict[str, Any], options: SizeOptions) -> Table:
    work = report["work"]
    table = _table(f"Work: {options.epochs:g} epochs of {options.text_tokens:,} tokens", "", "")
    share = work["of_which_attention"] / work["training_flops_per_token"]
    per_token = f"{work['training_flops_per_token'] / 1e9:,.3g} G, attention {share:.0%}"
    table.add_row("training FLOPs a token", per_token)
    table.add_row("sampling FLOPs a token and step", f"{work['sampling_flops_per_token'] / 1e9:,.3g} G")
    table.add_row("steps", f"{work['steps']:,}")
    table.add_row("tokens", f"{work['tokens']:,}")
    table.add_row("FLOPs", f"{work['training_flops']:.2e}")
    if work["seconds"] is None:
        table.add_row("time", "depends on the device: say its speed by --tflops")
    else:
        origin = "measured on this machine" if work["flops_per_second_measured"] else "as given"
        speed = f"{work['flops_per_second'] / 1e12:,.3g} TFLOP/s"
        table.add_row(f"time at {speed}, {origin}", duration_in_words(work["seconds"]))
    return table


def _largest_table(rungs: list[dict[str, Any]], options: SizeOptions) -> Table:
    title = f"The largest networks that {options.hardware_memory:g} GB can train ({options.network})"
    table = _table(title, "layers x width", "heads", "parameters", "batch", "length", "checkpointed", "memory")
    for rung in rungs:
        table.add_row(
            f"{rung['n_layers']} x {rung['d_model']}",
            str(rung["n_heads"]),
            count_in_words(rung["parameters"]),
            str(rung["batch_size"]),
            f"{rung['sequence_length']:,}",
            "yes" if rung["activation_checkpointing"] else "no",
            bytes_in_words(rung["total"]),
        )
    return table


def _verdict(fits: dict[str, Any], options: SizeOptions) -> str:
    needs = f"{options.name} as asked for takes {bytes_in_words(fits['total'])}"
    have = f"{USABLE_FRACTION:.0%} of {options.hardware_memory:g} GB"
    if fits["fits"]:
        return f"{needs}, which fits into {have}."
    if not fits["ways_to_fit"]:
        return f"{needs}, and no setting makes it fit into {have}: choose a smaller network, or adapters."
    command = "train" if options.checkpoint is None else "finetune"
    ways = []
    for way in fits["ways_to_fit"]:
        facts = [bytes_in_words(way["total"])]
        facts += [] if way["seconds"] is None else [duration_in_words(way["seconds"])]
        ways.append(f"  {' '.join(way['flags'])}  ({', '.join(facts)})")
    return "\n".join([f"{needs}, more than {have}. As flags of `llada {command}`, it fits with any of:", *ways])
