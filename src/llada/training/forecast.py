"""What a run will take, said before its first step: parameters, memory, time; and whether this machine can do it."""

import torch
from rich.console import Console
from rich.table import Table

from llada.errors import UserError
from llada.hardware import describe_device, matmul_flops_per_second, memory_bytes
from llada.models.size import TrainingMemory, count_parameters, training_flops_per_token, training_memory
from llada.training.monitor import format_duration
from llada.training.plan import RunPlan

MATMUL_SHARE = 0.5  # of the speed of large products is reached by a whole step; measured, docs/EXPERIMENTS.md
LONG_RUN_SECONDS = 24 * 3600
ADVICE = "`--preset laptop` trains in about ten minutes on two cores"


def announce(plan: RunPlan, console: Console) -> None:
    """Print what the run is and what it will take.

    Raises:
        UserError: it cannot fit the memory, unless the configuration says `force`.
    """
    config, network = plan.config, plan.network_config
    parts = count_parameters(network)
    memory, available = expected_memory(plan), memory_bytes(plan.device)
    seconds = expected_seconds(plan)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row(
        "network", f"{config.network.network}, {network.n_layers} layers of {network.d_model}, {network.n_heads} heads"
    )
    table.add_row(
        "parameters", f"{sum(parts.values()):,} ({', '.join(f'{name} {n:,}' for name, n in parts.items() if n)})"
    )
    table.add_row("text", f"{len(plan.data.tokens('train')):,} characters, {plan.data.folder}")
    table.add_row("a step", f"{config.sequences_per_step} sequences of {plan.length}, {_noise_in_words(plan)}")
    table.add_row("run", _length_in_words(plan))
    table.add_row(
        "device",
        f"{describe_device(plan.device)}, {_dtype_name(plan.precision.dtype)}: {plan.precision.reason}",
    )
    table.add_row("memory", f"about {readable(memory.total)} beside torch itself, of {readable(available)}")
    table.add_row("time", f"about {format_duration(seconds)}, told better after a few steps" if seconds else "as given")
    table.add_row("folder", str(plan.config.output_dir))
    console.print(table)
    if memory.total > available and not config.force:
        raise UserError(_does_not_fit(memory, available))
    if seconds and seconds > LONG_RUN_SECONDS:
        console.print(
            f"This would take about {format_duration(seconds)} here; {ADVICE}.", style="yellow", highlight=False
        )


def expected_memory(plan: RunPlan) -> TrainingMemory:
    """By formula; see `models.size`."""
    config = plan.config
    return training_memory(
        plan.network_config,
        batch_size=config.batch_size,
        length=plan.length,
        activation_bytes=plan.precision.dtype.itemsize,
        optimizer_states=1 if config.optimizer.optimizer == "muon" else 2,
        with_ema=config.optimizer.ema > 0,
        attention_is_stored=config.network.dropout > 0 and plan.device.type == "cpu",
    )


def expected_seconds(plan: RunPlan) -> float | None:
    """From the FLOPs of the steps and the measured speed of products; None if the run has only a time limit."""
    if plan.total_steps is None:
        return None
    tokens = plan.total_steps * plan.tokens_per_step
    flops = tokens * training_flops_per_token(plan.network_config, plan.length)
    speed = matmul_flops_per_second(plan.device, plan.precision.dtype)
    seconds = flops / (MATMUL_SHARE * speed)
    limit = plan.config.minutes
    return seconds if limit is None else min(seconds, 60 * limit)


def readable(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _does_not_fit(memory: TrainingMemory, available: int) -> str:
    needs = f"This run needs about {readable(memory.total)} of memory and there are {readable(available)}"
    if memory.fixed > available:
        return f"{needs}: the network itself is too large, choose a smaller one ({ADVICE})."
    return (
        f"{needs}: lower --batch_size (and raise --accumulate as much), shorten the sequences, "
        f"or choose a smaller network ({ADVICE}); --force tries all the same."
    )


def _noise_in_words(plan: RunPlan) -> str:
    noise = plan.config.noise
    if noise.masking == "bernoulli":
        return "Bernoulli masks"
    return "exact-count masks in complementary pairs" if noise.complementary else "exact-count masks"


def _length_in_words(plan: RunPlan) -> str:
    limits = []
    if plan.total_steps is not None:
        tokens = plan.total_steps * plan.config.distinct_sequences * plan.length
        epochs = tokens / len(plan.data.tokens("train"))
        limits.append(f"{plan.total_steps:,} steps, {epochs:.1f} epochs")
    if plan.config.minutes is not None:
        limits.append(f"{plan.config.minutes:g} minutes")
    return " or ".join(limits)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
