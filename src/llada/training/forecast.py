"""What a run will take, said before its first step: parameters, memory, time; and whether this machine can do it."""

import torch
from rich.console import Console
from rich.table import Table

from llada.errors import UserError
from llada.hardware import describe_device, matmul_flops_per_second, memory_bytes
from llada.models.size import TrainingMemory, count_parameters, training_flops_per_token, training_memory
from llada.training.monitor import format_duration
from llada.training.trainer import Trainer

MATMUL_SHARE = 0.5  # of the speed of large products is reached by a whole step; measured, docs/EXPERIMENTS.md
LONG_RUN_SECONDS = 24 * 3600
ADVICE = "`--preset laptop` trains in about ten minutes on two cores"


def announce(trainer: Trainer, console: Console) -> None:
    """Print what the run is and what it will take.

    Raises:
        UserError: it cannot fit the memory, unless the configuration says `force`.
    """
    config, network = trainer.config, trainer.network_config
    parts = count_parameters(network)
    memory, available = expected_memory(trainer), memory_bytes(trainer.device)
    seconds = expected_seconds(trainer)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row(
        "network", f"{config.network.network}, {network.n_layers} layers of {network.d_model}, {network.n_heads} heads"
    )
    table.add_row(
        "parameters", f"{sum(parts.values()):,} ({', '.join(f'{name} {n:,}' for name, n in parts.items() if n)})"
    )
    table.add_row("text", f"{len(trainer.data.tokens('train')):,} characters, {trainer.data.folder}")
    table.add_row("a step", f"{config.sequences_per_step} sequences of {trainer.length}, {_noise_in_words(trainer)}")
    table.add_row("run", _length_in_words(trainer))
    table.add_row(
        "device",
        f"{describe_device(trainer.device)}, {_dtype_name(trainer.precision.dtype)}: {trainer.precision.reason}",
    )
    table.add_row("memory", f"about {gigabytes(memory.total)} of {gigabytes(available)}")
    table.add_row("time", f"about {format_duration(seconds)}, told better after a few steps" if seconds else "as given")
    table.add_row("folder", str(trainer.folder.path))
    console.print(table)
    if memory.total > available and not config.force:
        raise UserError(_does_not_fit(memory, available))
    if seconds and seconds > LONG_RUN_SECONDS:
        console.print(
            f"This would take about {format_duration(seconds)} here; {ADVICE}.", style="yellow", highlight=False
        )


def expected_memory(trainer: Trainer) -> TrainingMemory:
    """By formula; see `models.size`."""
    config = trainer.config
    return training_memory(
        trainer.network_config,
        tokens=min(config.batch_size, config.sequences_per_step) * trainer.length,
        activation_bytes=trainer.precision.dtype.itemsize,
        optimizer_states=1 if config.optimizer.optimizer == "muon" else 2,
        with_ema=trainer.average is not None,
    )


def expected_seconds(trainer: Trainer) -> float | None:
    """From the FLOPs of the steps to go and the measured speed of products; None if the run has only a time limit."""
    if trainer.total_steps is None:
        return None
    tokens = (trainer.total_steps - trainer.progress.step) * trainer.tokens_per_step
    flops = tokens * training_flops_per_token(trainer.network_config, trainer.length)
    speed = matmul_flops_per_second(trainer.device, trainer.precision.dtype)
    seconds = flops / (MATMUL_SHARE * speed)
    limit = trainer.config.minutes
    return seconds if limit is None else min(seconds, 60 * limit - trainer.progress.seconds)


def gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB"


def _does_not_fit(memory: TrainingMemory, available: int) -> str:
    needs = f"This run needs about {gigabytes(memory.total)} of memory and there are {gigabytes(available)}"
    if memory.fixed > available:
        return f"{needs}: the network itself is too large, choose a smaller one ({ADVICE})."
    return (
        f"{needs}: lower --batch_size (and raise --accumulate as much), shorten the sequences, "
        f"or choose a smaller network ({ADVICE}); --force tries all the same."
    )


def _noise_in_words(trainer: Trainer) -> str:
    noise = trainer.config.noise
    if noise.masking == "bernoulli":
        return "Bernoulli masks"
    return "exact-count masks in complementary pairs" if noise.complementary else "exact-count masks"


def _length_in_words(trainer: Trainer) -> str:
    limits = []
    if trainer.total_steps is not None:
        tokens = trainer.total_steps * trainer.config.distinct_sequences * trainer.length
        epochs = tokens / len(trainer.data.tokens("train"))
        limits.append(f"{trainer.total_steps:,} steps, {epochs:.1f} epochs")
    if trainer.config.minutes is not None:
        limits.append(f"{trainer.config.minutes:g} minutes")
    done = f", from step {trainer.progress.step:,}" if trainer.progress.step else ""
    return " or ".join(limits) + done


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
