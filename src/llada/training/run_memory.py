"""The memory of a run: what a process needs, what there is, and whether the network has to be shared out for it."""

from collections.abc import Callable
from dataclasses import replace

import torch

from llada.checkpoints.pieces import PIECE
from llada.costs.activations import FP32_BYTES, TrainingSetting
from llada.costs.memory import TrainingMemory, training_memory
from llada.models.head import LOGITS_AT_ONCE
from llada.optim.adamw import MOMENT_BYTES
from llada.system.device import memory_bytes
from llada.training.group import BUCKET, BUCKETS_AT_ONCE
from llada.training.plan import RunPlan

TORCH_BYTES = 500e6  # of a process that has imported torch and multiplied something; measured
PIECES_AT_ONCE = 3  # of tensors that are checked, sent or written: the piece, and what is made of it


def available_bytes(plan: RunPlan) -> int:
    """Return the memory that a process may fill: its device's, or its share of the machine's."""
    there = memory_bytes(plan.device)
    return there // plan.processes_here if plan.device.type == "cpu" else there


def expected_memory(plan: RunPlan) -> TrainingMemory:
    """What a step of the run takes in each process; see `costs.memory`."""
    return training_memory(plan.network_config, setting_of(plan))


def host_memory(plan: RunPlan) -> int:
    """Bytes of the host's memory that a process of a run takes, in addition to torch itself.

    On a CPU, that is the step; or, when a checkpoint is read or written, what is kept from step to step with the
    weights that are put aside while their moving average is measured and saved, and some pieces of tensors: nothing is
    read but a process's own part, and nothing is brought together. With a GPU, those pieces are all.

    Not counted is what process 0 takes in addition: random weights are drawn whole; and a checkpoint is copied, as a
    whole, to be written in the background, if half of the free memory holds it.
    """
    pieces = PIECES_AT_ONCE * PIECE * FP32_BYTES
    if plan.device.type != "cpu":
        return pieces
    memory = expected_memory(plan)
    return max(memory.total, memory.weights + memory.optimizer + 2 * memory.ema + pieces)


def shared_out_if_needed(plan: RunPlan, is_any: Callable[[bool], bool] = bool) -> RunPlan:
    """The plan with the network shared out among the processes, if that is left open and it does not fit otherwise.

    Gradients of what is shared out are accumulated as wholes if that fits: then they are sent once a step.

    Args:
        is_any: whether it is so in any process.
    """
    if plan.config.parallel == "auto" and can_be_shared_out(plan):
        plan = replace(plan, is_sharded=is_any(not fits(plan)))
    if not plan.is_sharded or plan.share.accumulate == 1:
        return plan
    whole = replace(plan, keeps_gradients_whole=True)
    return plan if is_any(not fits(whole)) else whole


def can_be_shared_out(plan: RunPlan) -> bool:
    """Whether there are several processes, and `TrainConfig` would not refuse `parallel="fsdp"` with the rest."""
    config = plan.config
    if plan.processes == 1 or config.compile:
        return False
    return config.method == "lora" or (config.method == "full" and config.optimizer.optimizer_state != "8bit")


def fits(plan: RunPlan) -> bool:
    """Whether a step of the run, and torch itself, fit the memory of a process."""
    return expected_memory(plan).total + TORCH_BYTES <= available_bytes(plan)


def setting_of(plan: RunPlan) -> TrainingSetting:
    """What the formula needs to know of a run."""
    config = plan.config
    return TrainingSetting(
        batch_size=plan.share.batch_size,
        length=plan.length,
        accumulates=plan.share.accumulate > 1,
        processes=plan.processes if plan.is_sharded else 1,
        keeps_gradients_whole=plan.keeps_gradients_whole,
        sent_at_once=BUCKETS_AT_ONCE * BUCKET if plan.processes > 1 else 0,
        optimizer=config.optimizer.optimizer,
        ema=config.optimizer.ema > 0,
        bf16=plan.precision.dtype == torch.bfloat16,
        activation_checkpointing=config.activation_checkpointing,
        on_cpu=plan.device.type == "cpu",
        method=config.method,
        lora_rank=config.lora.lora_rank,
        lora_on_attention_only=config.lora.lora_targets == "attention",
        bf16_weights=config.weights == "bf16",
        moment_bytes=MOMENT_BYTES[config.optimizer.optimizer_state],
        logits_at_once=LOGITS_AT_ONCE,
        within_documents=config.data.within_documents,
    )
