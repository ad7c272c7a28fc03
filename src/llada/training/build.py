"""The model that a run trains: fresh, or a checkpoint, all of it or with an adapter."""

from pathlib import Path

import torch
from torch import Tensor

from llada.checkpoints.fingerprint import FINGERPRINT, keep_fingerprint
from llada.checkpoints.folder import load_weights, make_predictor, read_checkpoint
from llada.checkpoints.lora import add_adapter, load_adapter, quantise
from llada.checkpoints.run_layout import REMEDY
from llada.models import MaskPredictor, checkpoint_activations
from llada.system.checksums import check_whole
from llada.training.gathering import hand_out
from llada.training.group import ALONE, Group
from llada.training.plan import RunPlan
from llada.training.sharding import share_out


def build_model(plan: RunPlan, start: Path | None, last: Path | None = None, group: Group = ALONE) -> MaskPredictor:
    """The model on its device, in training mode, its frozen weights marked as such.

    Args:
        start: checkpoint folder with the weights to start from; random ones if None.
        last: checkpoint of the run that is resumed, None for a new one.
        group: the processes that share the layers out, if they do.
    """
    config = plan.config
    if start is None and last is not None and config.base is not None and config.method == "full":
        start = last  # its own last checkpoint: no random weights are made for nothing
    if plan.is_sharded:
        return _build_shared_out(plan, start, last, group)
    if start is None:
        model = make_predictor(plan.network_config, plan.data.tokenizer)
        if config.method != "qlora":
            model = model.to(plan.device, _stored_type(plan))
    elif config.method == "qlora":
        model = read_checkpoint(start, "cpu", torch.bfloat16).model
    else:
        model = read_checkpoint(start, plan.device, _stored_type(plan)).model
    if config.method == "qlora":  # the device never holds more than the result
        quantise(model.to(torch.bfloat16).network, plan.device)
    model.train()
    if config.method != "full":
        _put_adapter(plan, model, last)
    if config.activation_checkpointing:
        checkpoint_activations(model.network)
    return model.to(plan.device)


def _build_shared_out(plan: RunPlan, start: Path | None, last: Path | None, group: Group) -> MaskPredictor:
    """The model shared out among the processes; of adapters, each has all.

    Each process reads its rows of a checkpoint, which waits for the state of the run if that is resumed. Random weights
    are drawn by process 0, so that they are those of one process alone, and the others get their rows of them.
    """
    config = plan.config
    with torch.device("meta"):
        model = make_predictor(plan.network_config, plan.data.tokenizer).train()
    network = model.to(_stored_type(plan)).network
    if config.method != "full":
        network.requires_grad_(False)
    if config.activation_checkpointing:
        checkpoint_activations(network)
    share_out(network, plan.processes, plan.device, plan.precision.dtype)
    if start is not None and start != last:
        group.together(lambda: _load_own_rows(model, start, group.is_main))
    elif last is None:
        hand_out(group.together(lambda: _draw(plan) if group.is_main else None), network, group)
    if config.method != "full":
        keep_fingerprint(network, FINGERPRINT)  # which process 0 cannot compute alone when it saves
        _put_adapter(plan, model, last)
    return model


def _load_own_rows(model: MaskPredictor, start: Path, is_checking: bool) -> None:
    if is_checking:  # one process does: the others read parts of the files only
        check_whole(start, REMEDY)
    load_weights(model, start)


def _draw(plan: RunPlan) -> dict[str, Tensor]:
    return make_predictor(plan.network_config, plan.data.tokenizer).network.state_dict()


def _put_adapter(plan: RunPlan, model: MaskPredictor, last: Path | None) -> None:
    """A new adapter, or that of the checkpoint that the run goes on from."""
    if last is None:
        add_adapter(model.network, plan.config.lora, plan.config.seed)
    else:
        load_adapter(model.network, last, trainable=True)


def _stored_type(plan: RunPlan) -> torch.dtype:
    """Weights that are trained are in fp32 unless asked for otherwise; frozen ones have the type of the matmuls."""
    if plan.config.method == "full":
        return torch.bfloat16 if plan.config.weights == "bf16" else torch.float32
    return plan.precision.dtype
