"""Checks of loading, using, fine-tuning and saving a LLaDA checkpoint, to run and read; pytest collects them too.

    python test_pretrained_model.py                     a small random checkpoint in the official layout, offline
    python test_pretrained_model.py --model_name NAME   a real one: a folder, or a name on the Hugging Face hub

Shape letters: B batch, L length, V vocabulary rows.
"""

import atexit
import functools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import clone  # noqa: F401  for its side effect
from checks import run_checks
from llada.checkpoints.dummy import write_random_checkpoint
from llada.checkpoints.folder import Checkpoint, read_checkpoint, save_weights
from llada.checkpoints.hub import fetch, read_published_config
from llada.cli.options import parse
from llada.costs.activations import TrainingSetting
from llada.costs.memory import inference_memory, stored_weights, training_memory
from llada.costs.parameters import total_parameters
from llada.forward_process import mask_bernoulli
from llada.objective import loss_weights, masked_nll, weighted_loss
from llada.sampling.config import SamplerConfig
from llada.sampling.unmask import infill
from llada.system.device import choose_device, memory_bytes
from llada.system.errors import UserError
from llada.system.format import bytes_in_words
from llada.training.run_memory import TORCH_BYTES

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"
LENGTH = 32


@dataclass
class Options:
    model_name: str | None = None
    """A checkpoint folder or a name on the Hugging Face hub, like GSAI-ML/LLaDA-8B-Instruct; a small random
    checkpoint is made if left out."""


OPTIONS = Options()


@functools.cache
def temporary_folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="llada-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@functools.cache
def checkpoint_folder() -> Path:
    if OPTIONS.model_name is not None:
        return fetch(OPTIONS.model_name, read_published_config(OPTIONS.model_name))
    folder = temporary_folder() / "random"
    write_random_checkpoint(folder, TEXT)
    return folder


@functools.cache
def loaded() -> Checkpoint:
    """Load the checkpoint: a real one in bf16, as it is stored; a random one in fp32."""
    dtype = torch.float32 if OPTIONS.model_name is None else torch.bfloat16
    return read_checkpoint(checkpoint_folder(), choose_device("auto"), dtype)


def text_ids() -> Tensor:
    """Return token ids (1, L) of the text."""
    checkpoint = loaded()
    device = next(checkpoint.model.parameters()).device
    return torch.tensor([checkpoint.tokenizer.encode(TEXT)[:LENGTH]], device=device)


def test_it_loads() -> None:
    checkpoint = loaded()
    n_parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    assert n_parameters == total_parameters(checkpoint.config)
    files = sorted(path.name for path in checkpoint_folder().glob("*.safetensors"))
    print(f"  {n_parameters:,} parameters out of {len(files)} files in {checkpoint_folder()}")


@torch.no_grad()
def test_it_predicts_at_every_position() -> None:
    logits = loaded().model(text_ids())
    assert logits.shape == (*text_ids().shape, loaded().config.vocab_size)
    assert logits.isfinite().all()
    print(f"  ids {tuple(text_ids().shape)} in, logits {tuple(logits.shape)} out")


def test_it_fills_masks_and_keeps_the_rest() -> None:
    checkpoint, ids = loaded(), text_ids()
    template = ids.clone()
    template[0, 4:12] = checkpoint.tokenizer.mask_id
    filled = infill(checkpoint.predict, template, checkpoint.tokenizer.mask_id, SamplerConfig(steps=8))
    assert filled.nfe == 8
    assert not (filled.x_t == checkpoint.tokenizer.mask_id).any()
    assert torch.equal(filled.x_t[0, 12:], ids[0, 12:])
    for word, row in (("given", template), ("filled", filled.x_t)):
        print(f"  {word:6} {checkpoint.tokenizer.decode(row[0].tolist(), mask_symbol='░')!r}")


def test_a_fine_tuning_step_lowers_the_loss() -> None:
    checkpoint = loaded()
    needed = training_memory(checkpoint.config, TrainingSetting(1, LENGTH)).total
    device = choose_device("auto")
    # The model that is loaded already stays, in bf16 if it is a real one.
    if needed + stored_weights(checkpoint.config) + TORCH_BYTES > memory_bytes(device):
        print(f"  left out: all weights in fp32 with AdamW take {bytes_in_words(needed)}")
        return
    model = read_checkpoint(checkpoint_folder(), device, torch.float32).model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 if OPTIONS.model_name is None else 1e-5)
    x_0 = text_ids().cpu()
    noisy = mask_bernoulli(x_0, checkpoint.tokenizer.mask_id, torch.Generator().manual_seed(0)).to(device)

    def loss() -> Tensor:
        nll = masked_nll(model(noisy.x_t, positions=noisy.is_masked), x_0.to(device), noisy)
        return weighted_loss(nll, noisy.at_masked(loss_weights(noisy)))

    before = loss()
    before.backward()
    optimizer.step()
    after = loss().item()
    assert after < before.item()
    print(f"  {before.item():.3f} nats per token before one step of AdamW, {after:.3f} after")


def test_saved_and_loaded_again_it_is_the_same() -> None:
    checkpoint = loaded()
    folder = temporary_folder() / "again"
    folder.mkdir()
    weights = checkpoint.model.network.state_dict()
    save_weights(folder, checkpoint.config, checkpoint.tokenizer, weights)
    again = read_checkpoint(folder, dtype=next(iter(weights.values())).dtype)
    assert again.tokenizer == checkpoint.tokenizer
    for name, tensor in again.model.network.state_dict().items():
        assert torch.equal(tensor, weights[name].cpu())
    print(f"  {len(weights)} tensors equal to the last bit, the tokenizer too")


CHECKS = (
    test_it_loads,
    test_it_predicts_at_every_position,
    test_it_fills_masks_and_keeps_the_rest,
    test_a_fine_tuning_step_lowers_the_loss,
    test_saved_and_loaded_again_it_is_the_same,
)


def announce(name: str) -> None:
    """Report what the real checkpoint takes, before anything is downloaded or loaded.

    Raises:
        UserError: it does not fit into memory at all.
    """
    config = read_published_config(name)
    use, train = inference_memory(config, 1, LENGTH), training_memory(config, TrainingSetting(1, LENGTH)).total
    there = memory_bytes(choose_device("auto"))
    print(f"{name}: {total_parameters(config):,} parameters")
    print(f"  disk: {bytes_in_words(stored_weights(config))} in bf16, and as much again for the saved copy")
    print(f"  memory: {bytes_in_words(use)} to use it, {bytes_in_words(train)} for a step on all weights", flush=True)
    if use > there:
        raise UserError(f"{name} takes {bytes_in_words(use)} and there are {bytes_in_words(there)}: use a GPU.")


def main(arguments: Sequence[str]) -> None:
    global OPTIONS
    try:
        OPTIONS = parse(Options, "test_pretrained_model.py", arguments, str(__doc__), Options())
        if OPTIONS.model_name is not None:
            announce(OPTIONS.model_name)
            checkpoint_folder()
    except UserError as error:
        print(f"test_pretrained_model.py: {error}", file=sys.stderr)
        sys.exit(2)
    run_checks(CHECKS)


if __name__ == "__main__":
    main(sys.argv[1:])
