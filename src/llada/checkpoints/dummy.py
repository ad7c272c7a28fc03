"""Checkpoints with random weights in the public layouts, of any size: for tests, demonstrations and benchmarks.

`random_network` makes such a network directly on its device, where no file is wanted.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Generator, Tensor

from llada.checkpoints.folder import save_weights
from llada.models import ILLaDAConfig, LLaDAConfig, LLaDAMoEConfig, Network, build_network
from llada.system.files import folder_written_whole
from llada.system.literals import check_literal
from llada.tokenizers.bpe import MODEL_FILE, NAMES_FILE, BPETokenizer
from llada.tokenizers.templates import LLADA_MOE_TEMPLATE, LLADA_MOE_TOKENS, LLADA_TEMPLATE, LLADA_TOKENS

Layout = Literal["llada", "illada", "moe"]
SPARE_ROWS = 5  # rows without a token, as in the public checkpoints
NORM_STD = 0.1  # spread around 1, so that a forgotten norm changes results


class Names(NamedTuple):
    """Special tokens of a layout: their official names where those are known."""

    bos: str
    eos: str
    pad: str
    mask: str
    special: tuple[str, ...]
    """All special tokens, in the order of their ids."""
    come_first: bool
    """Whether their ids come before those of the bytes, or after those of the merges."""
    template: str


NAMES = {
    "llada": Names(
        "<|startoftext|>",
        "<|endoftext|>",
        "<|endoftext|>",
        "<|mdm_mask|>",
        ("<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", *LLADA_TOKENS),
        come_first=False,
        template=LLADA_TEMPLATE,
    ),
    "illada": Names(
        "<[BOS]>",
        "<[EOS]>",
        "<[PAD]>",
        "<[MASK]>",
        ("<[BOS]>", "<[PAD]>", "<[EOS]>", "<[UNK]>", "<[SEP]>", "<[MASK]>", *LLADA_TOKENS),
        come_first=True,
        template=LLADA_TEMPLATE,
    ),
    "moe": Names(
        "<|startoftext|>",
        "<|endoftext|>",
        "<|endoftext|>",
        "<|mask|>",
        ("<|startoftext|>", "<|endoftext|>", "<|mask|>", *LLADA_MOE_TOKENS),
        come_first=False,
        template=LLADA_MOE_TEMPLATE,
    ),
}


def write_random_checkpoint(
    folder: Path,
    text: str,
    layout: Layout = "llada",
    d_model: int = 64,
    n_layers: int = 2,
    n_heads: int = 4,
    n_kv_heads: int | None = None,
    mlp_hidden_size: int | None = None,
    n_experts: int = 4,
    n_experts_per_token: int = 2,
    n_tokens: int = 320,
    vocab_size: int | None = None,
    max_sequence_length: int = 256,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int | None = None,
    seed: int = 0,
) -> None:
    """Write a checkpoint with random weights in an official layout: shards with an index, and a byte-level BPE.

    This takes one and a half times the memory of its weights.

    Args:
        text: the tokenizer's merges are learned from it.
        mlp_hidden_size: width of the feed-forward part, or of each expert of "moe"; three times `d_model` if left out.
        n_experts: number of experts, for "moe" only.
        n_tokens: tokens of the tokenizer, at least the 256 bytes, without the special tokens.
        vocab_size: rows of the network; if left out, a few more than tokens, as in the public checkpoints.
        shard_bytes: largest size of a file; half of all weights if left out.
    """
    check_literal("layout", layout, Layout)
    names = NAMES[layout]
    files = _train_tokenizer(text, n_tokens, names)
    tokens = FastTokenizer.from_buffer(files[MODEL_FILE])
    numbers: dict[str, Any] = {
        "d_model": d_model,
        "n_heads": n_heads,
        "n_layers": n_layers,
        "vocab_size": tokens.get_vocab_size() + SPARE_ROWS if vocab_size is None else vocab_size,
        "mask_token_id": tokens.token_to_id(names.mask),
        "pad_token_id": tokens.token_to_id(names.pad),
        "eos_token_id": tokens.token_to_id(names.eos),
        "mlp_hidden_size": 3 * d_model if mlp_hidden_size is None else mlp_hidden_size,
        "max_sequence_length": max_sequence_length,
        "n_kv_heads": n_kv_heads,
    }
    config = _make_config(layout, numbers, n_experts, n_experts_per_token)
    weights = _random_weights(config, dtype, seed)
    total = sum(tensor.nbytes for tensor in weights.values())
    with folder_written_whole(folder) as aside:
        save_weights(
            aside,
            config,
            BPETokenizer(files, vars(config)),
            dict(sorted(weights.items(), key=lambda item: item[0][::-1])),  # out of order, as the public shards are
            total // 2 if shard_bytes is None else shard_bytes,
        )


def _make_config(layout: Layout, numbers: Mapping[str, Any], n_experts: int, n_experts_per_token: int) -> LLaDAConfig:
    """Build the configuration, with the published network's rotary base where that is known."""
    if layout == "moe":
        return LLaDAMoEConfig(
            **numbers, rope_theta=50_000.0, n_experts=n_experts, n_experts_per_token=n_experts_per_token
        )
    if layout == "illada":
        return ILLaDAConfig(**numbers, weight_tying=True)
    return LLaDAConfig(**numbers, rope_theta=500_000.0)


def _random_weights(config: LLaDAConfig, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """Draw tensor by tensor, scaled to keep the size of activations; a whole network in fp32 never exists."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build_network(config).state_dict().items()}
    generator = Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        weights[name] = _scaled(torch.randn(shape, generator=generator)).to(dtype)
    return weights


def random_network(config: LLaDAConfig, device: torch.device | str, dtype: torch.dtype, seed: int = 0) -> Network:
    """Make a network with random weights, drawn on the device itself.

    For LLaDA-8B this takes a GPU a second, where drawing on the host and copying takes minutes. Another device draws
    other numbers.
    """
    with torch.device("meta"):
        network = build_network(config)
    network.to(dtype).to_empty(device=device)
    generator = Generator(device).manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(_scaled(torch.randn(weight.shape, generator=generator, device=device)))
    return network


def _scaled(noise: Tensor) -> Tensor:
    """Turn standard normal numbers, in place, into weights that keep the size of activations."""
    return noise.mul_(noise.shape[1] ** -0.5) if noise.dim() == 2 else noise.mul_(NORM_STD).add_(1)


def _train_tokenizer(text: str, n_tokens: int, names: Names) -> dict[str, bytes]:
    """Train a tokenizer on the text and return the content of its files."""
    model = FastTokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    first = list(names.special) if names.come_first else []
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens + len(first),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=first,
        show_progress=False,
    )
    model.train_from_iterator([text], trainer)
    model.add_special_tokens(list(names.special))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    described = {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": {str(model.token_to_id(name)): {"content": name, **flags} for name in names.special},
        "bos_token": names.bos,
        "chat_template": names.template,
        "clean_up_tokenization_spaces": False,
        "eos_token": names.eos,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 10**30,
        "pad_token": names.pad,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {MODEL_FILE: model.to_str().encode(), NAMES_FILE: json.dumps(described, indent=2).encode()}
