"""What a run will take, said before its first step: parameters, memory, time; whether this machine can do it, and why
it may be slow."""

import functools
import os
from collections.abc import Callable
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

from llada.costs.fit import Options, Way, ways_to_fit
from llada.costs.flops import (
    attention_flops_per_token,
    dropped_scores_per_token,
    training_flops_per_token,
    training_seconds,
)
from llada.costs.memory import trained_parameters
from llada.costs.parameters import count_parameters, total_parameters
from llada.data.mixture import Mixture
from llada.data.prepared import PreparedText
from llada.data.sft import Answers
from llada.system.device import describe_device, give_back_freed_memory, known_flops_per_second
from llada.system.errors import UserError
from llada.system.format import bytes_in_words, duration_in_words
from llada.training.config import NoiseOptions
from llada.training.plan import RunPlan, count_steps, sequences_in
from llada.training.run_memory import (
    TORCH_BYTES,
    available_bytes,
    can_be_shared_out,
    expected_memory,
    fits,
    host_memory,
    setting_of,
)

LONG_RUN_SECONDS = 3600  # beyond it, the reasons are reported
VERY_LONG_RUN_SECONDS = 24 * 3600
ADVICE = '`preset="laptop"` trains in about ten minutes on two cores'
HEAP_SLACK = 2.5  # a CPU's heap holds up to so many times what tensors need; benchmarks/memory.py
LARGE_ATTENTION_SHARE = 0.25
SHORT_LENGTH = 1024
WARMUP_PART = 10  # of a run, at most, that is suggested


def announce(plan: RunPlan, console: Console, respell: Callable[[str], str] = str) -> None:
    """Print what the run is and what it will take.

    Args:
        respell: what makes of the names of options what people type.

    Raises:
        UserError: it cannot fit the memory, unless the configuration says `force`.
    """
    config, network = plan.config, plan.network_config
    parts = count_parameters(network)
    memory, available = expected_memory(plan), available_bytes(plan)
    seconds = expected_seconds(plan)
    kind = type(network).__name__.removesuffix("Config")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    heads = f"{network.n_heads} head{'s' if network.n_heads > 1 else ''}"
    table.add_row("network", f"{kind}, {network.n_layers} layers of {network.d_model}, {heads}")
    if config.base is not None:
        table.add_row("starts from", config.base)
        table.add_row("trains", _method_in_words(plan))
    table.add_row(
        "parameters", f"{sum(parts.values()):,} ({', '.join(f'{name} {n:,}' for name, n in parts.items() if n)})"
    )
    for row in _data_in_words(plan):
        table.add_row(*row)
    at_most = "at most " if isinstance(plan.data, Answers) else ""
    step = f"{config.sequences_per_step} sequences of {at_most}{plan.length} tokens, {_noise_in_words(plan)}"
    step += ", attention within documents" if config.data.within_documents else ""
    table.add_row("a step", step)
    if plan.processes > 1 or config.accumulate > 1:
        table.add_row("", f"in {plan.share.in_words}")
    if plan.is_sharded:
        table.add_row("matrices", "shared out, a part of each in each process (FSDP2)")
    table.add_row("run", _length_in_words(plan))
    table.add_row(
        "device",
        f"{describe_device(plan.device)}, {_dtype_name(plan.precision.dtype)}: {plan.precision.reason}",
    )
    needed, there = bytes_in_words(memory.total), bytes_in_words(available)
    each = ", in each process," if plan.processes > 1 else ""
    table.add_row("memory", f"about {needed} for tensors{each} in addition to torch itself, of {there}")
    if plan.processes > 1 and plan.device.type != "cpu":
        table.add_row("", f"about {bytes_in_words(host_memory(plan))} of the host's, in each process")
    duration = (
        "as given"
        if seconds is None
        else f"about {duration_in_words(seconds)}, with a better estimate after a few steps"
    )
    table.add_row("time", duration)
    if plan.processes > 1 and seconds and plan.total_steps:
        table.add_row("speed", f"at most {plan.total_steps * plan.tokens_per_step / seconds:,.0f} tokens a second")
    table.add_row("folder", str(plan.config.output_dir))
    console.print(table)
    check_memory(plan)
    warning = warm_up_warning(plan)
    if warning is not None:
        console.print(respell(warning), style="yellow", highlight=False, markup=False, soft_wrap=True)
    if seconds and seconds > LONG_RUN_SECONDS:
        advice = f"; {ADVICE}" if config.base is None and seconds > VERY_LONG_RUN_SECONDS else ""
        lead = respell(f"{duration_in_words(seconds)} is long{advice}. What costs the time:")
        console.print(lead, style="yellow", highlight=False)
        for reason in reasons_for_slowness(plan):
            console.print(f"  - {respell(reason)}", style="yellow", highlight=False, markup=False)


def warm_up_warning(plan: RunPlan) -> str | None:
    """A run that ends before its learning rate has risen learns next to nothing: what would fit, or None."""
    steps, warmup = plan.total_steps, plan.config.optimizer.warmup_steps
    if steps is None or warmup == 0 or steps > warmup:
        return None
    fitting = [f"`warmup_steps={steps // WARMUP_PART}`"]
    fewer = _steps_by_accumulation(plan)
    if fewer:
        enough = [accumulate for accumulate, n in fewer.items() if n >= WARMUP_PART * warmup]
        least = min(fewer)
        shorter = f"`accumulate={least}` `warmup_steps={min(warmup, fewer[least] // WARMUP_PART)}`"
        fitting.insert(0, f"`accumulate={max(enough)}`" if enough else shorter)
    return (
        f"The run ends inside its warm-up: after {steps:,} of {warmup:,} steps the learning rate has reached "
        f"{steps / warmup:.0%} of its peak at most, and little is learned. Add {' or '.join(fitting)}."
    )


def _steps_by_accumulation(plan: RunPlan) -> dict[int, int]:
    """How long the run would be in steps if it accumulated less: half, a quarter, ..., as far as that changes it.

    The processes have to be able to share such a step equally.
    """
    config, accumulate, found = plan.config, plan.config.accumulate // 2, {}
    while config.epochs is not None and not config.noise.complementary and accumulate >= 1:
        if config.batch_size * accumulate % plan.processes == 0:
            steps = count_steps(replace(config, accumulate=accumulate), plan.data, plan.length)
            found[accumulate] = steps or 1
        accumulate //= 2
    return found


def check_memory(plan: RunPlan) -> None:
    """Refuse a run that cannot fit the memory, and name what would; where it is tight, use it well.

    Raises:
        UserError: it does not fit, and the configuration does not say `force`.
    """
    memory, available = expected_memory(plan), available_bytes(plan)
    if not fits(plan) and not plan.config.force:
        raise UserError(
            f"This run needs about {bytes_in_words(memory.total)} of memory in addition to torch itself and there are "
            f"{bytes_in_words(available)}: {_what_fits(plan, available)} (`force` tries all the same)."
        )
    if plan.device.type == "cpu" and HEAP_SLACK * memory.total + TORCH_BYTES > available:
        give_back_freed_memory()


def out_of_memory(plan: RunPlan, folder: str, has_checkpoint: bool) -> UserError:
    """The end of a run whose memory did not suffice after all, with the settings that would have fitted."""
    memory = expected_memory(plan).total
    # So much could not be allocated, whatever the machine has in total.
    available = min(float(available_bytes(plan)), 0.9 * memory + TORCH_BYTES)
    saved = f"; the last checkpoint is unharmed, `resume={folder}` goes on from it" if has_checkpoint else ""
    return UserError(
        f"The memory did not suffice for this run, which needs about {bytes_in_words(memory)} in addition to torch: "
        f"{_what_fits(plan, available)}{saved}."
    )


def expected_seconds(plan: RunPlan) -> float | None:
    """Return the expected time from the work of the steps and the speed of matmuls; None if only the time limits it."""
    if plan.total_steps is None:
        return None
    seconds = training_seconds(
        plan.network_config,
        plan.length,
        tokens=plan.total_steps * plan.tokens_per_step,
        flops_per_second=_times_as_fast(plan) * known_flops_per_second(plan.device, plan.precision.dtype),
        activation_checkpointing=plan.config.activation_checkpointing,
        on_cpu=plan.device.type == "cpu",
    )
    limit = plan.config.minutes
    return seconds if limit is None else min(seconds, 60 * limit)


def _times_as_fast(plan: RunPlan) -> float:
    """At most how many times as fast as this process all of them are: on a CPU, they share its cores."""
    if plan.device.type != "cpu":
        return plan.processes
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    machines = plan.processes / plan.processes_here
    return machines * min(plan.processes_here, max(1.0, cores / threads))


def reasons_for_slowness(plan: RunPlan) -> list[str]:
    """What costs a run its time, the largest first where it is known, each with the remedy."""
    network, on_cpu = plan.network_config, plan.device.type == "cpu"
    size = f"{total_parameters(network):,} parameters"
    reasons = [f"{size} on a CPU: a GPU, or a smaller network" if on_cpu else size]
    if on_cpu and dropped_scores_per_token(network, plan.length):
        remedy = ": `dropout=0`" if plan.config.base is None else ""
        reasons.append(
            f"dropout on a CPU draws a number for each pair of tokens and keeps attention from being fused{remedy}"
        )
    if plan.precision.dtype == torch.float32:
        reasons.append(f"matmuls in fp32: {plan.precision.reason}")
    attention = attention_flops_per_token(network, plan.length) / training_flops_per_token(network, plan.length)
    if attention > LARGE_ATTENTION_SHARE:
        reasons.append(
            f"attention over {plan.length:,} tokens is {attention:.0%} of the work: `windows=random` "
            f"`sequence_length={min(SHORT_LENGTH, plan.length // 4)}`"
        )
    if plan.config.activation_checkpointing:
        reasons.append("activations are computed twice: `activation_checkpointing=False`, if the memory suffices")
    return reasons


def _what_fits(plan: RunPlan, available: float) -> str:
    ways = ways_to_fit(
        plan.network_config,
        setting_of(plan),
        available - TORCH_BYTES,
        plan.config.sequences_per_step,
        is_fine_tuning=plan.config.base is not None,
        sharing=plan.processes,
        may_be_shared_out=plan.config.parallel == "ddp" and can_be_shared_out(plan),
    )
    if ways:
        speed_of = functools.partial(known_flops_per_second, plan.device)
        fitting = ", or ".join(_way_in_words(plan, way, speed_of) for way in ways)
        return f"it fits with {fitting}" + ("" if plan.config.base else f"; {ADVICE}")
    if plan.config.base is not None:
        return "no setting makes it fit, use a machine with more memory (`llada size` counts what it takes)"
    return f"the network itself is too large, choose a smaller one ({ADVICE})"


def _way_in_words(plan: RunPlan, way: Way, speed_of: Callable[[torch.dtype], float]) -> str:
    """How to ask for it, what it takes, and how long: what fits may be nothing to wait for."""
    facts = [bytes_in_words(way.memory)]
    if plan.total_steps is not None:
        seconds = training_seconds(
            way.config,
            way.setting.length,
            tokens=plan.total_steps * plan.tokens_per_step,
            flops_per_second=_times_as_fast(plan)
            * speed_of(torch.bfloat16 if way.setting.bf16 else plan.precision.dtype),
            activation_checkpointing=way.setting.activation_checkpointing,
            on_cpu=plan.device.type == "cpu",
        )
        facts.append(f"about {duration_in_words(seconds)}")
    return f"{' '.join(options_in_words(way.options, isinstance(plan.data, Answers)))} ({', '.join(facts)})"


def options_in_words(options: Options, is_chat: bool = False) -> list[str]:
    """Options of a training of texts, or of dialogues."""
    words = []
    for name, value in options.items():
        if name == "sequence_length":
            words += [f"`chat_length={value}`"] if is_chat else ["`windows=random`", f"`sequence_length={value}`"]
        else:
            words.append(f"`{name}`" if value is True else f"`{name}={value}`")
    return words


def _method_in_words(plan: RunPlan) -> str:
    """What is trained of the checkpoint."""
    config = plan.config
    if config.method == "full":
        return f"all weights, in {config.weights}"
    rank, kept = (
        config.lora.lora_rank,
        "in 4 bits" if config.method == "qlora" else f"in {_dtype_name(plan.precision.dtype)}",
    )
    n_trained = trained_parameters(plan.network_config, setting_of(plan))
    return f"{n_trained:,} parameters of an adapter of rank {rank}, added to weights that stay frozen, {kept}"


def _data_in_words(plan: RunPlan) -> list[tuple[str, str]]:
    """What it learns from: lines of a name and a description."""
    data = plan.data
    if isinstance(data, PreparedText):
        return [("text", f"{len(data.tokens('train')):,} {data.tokenizer.unit}s, {data.folder}")]
    if isinstance(data, Mixture):
        lines = [_part_in_words(plan, data, number) for number in range(len(data.texts))]
        return list(zip(["mixture", *[""] * len(lines)], lines, strict=False))
    counts = [f"{len(data.pairs['train']):,} answers to learn, {len(data.pairs['val']):,} to measure on"]
    if data.n_shortened:
        counts.append(f"{data.n_shortened:,} without their oldest turns")
    if data.n_left_out:
        counts.append(f"{data.n_left_out:,} left out as too long")
    return [("dialogues", f"{', '.join(counts)}; {data.form.name}; {data.folder}")]


def _part_in_words(plan: RunPlan, data: Mixture, number: int) -> str:
    """What one folder of a mixture is, and how often the run goes through it."""
    text, share = data.texts[number], data.interleaving.shares[number]
    words = f"{data.folders[number]}: {share:.1%} of the sequences, from {len(text.tokens('train')):,} "
    words += f"{data.tokenizer.unit}s"
    if plan.total_steps is None:
        return words
    rows = share * plan.total_steps * plan.config.distinct_sequences
    return f"{words}, {rows / sequences_in(plan.config, text, plan.length):.1f} times"


def _noise_in_words(plan: RunPlan) -> str:
    noise, default = plan.config.noise, NoiseOptions()
    masks = "Bernoulli masks" if noise.masking == "bernoulli" else "exact-count masks"
    if noise.complementary:
        masks += " in complementary pairs"
    if noise.mask_schedule != default.mask_schedule:
        masks += f", {noise.mask_schedule} schedule"
    return masks if noise.time_sampling == default.time_sampling else f"{masks}, {noise.time_sampling} times"


def _length_in_words(plan: RunPlan) -> str:
    limits = []
    if plan.total_steps is not None:
        limits.append(f"{plan.total_steps:,} steps, {plan.epochs:.1f} epochs")
    if plan.config.minutes is not None:
        limits.append(f"{plan.config.minutes:g} minutes")
    return " or ".join(limits)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
