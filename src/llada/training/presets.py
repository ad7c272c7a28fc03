"""The presets: whole configurations by name, which set the defaults of all other flags."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llada.data.prepared import DOCUMENTATION_FOLDER
from llada.sampling.config import FREE_TEXT, SamplerConfig
from llada.training.config import DataOptions, NetworkOptions, NoiseOptions, OptimizerOptions, TrainConfig

# Warm-up, constant, linear to a tenth over the last tenth: LLaDA's fine-tuning (arXiv 2502.09992, section 2.3).
FINE_TUNING = OptimizerOptions(
    optimizer="adamw", learning_rate=2.5e-5, weight_decay=0.1, warmup_steps=50, decay=0.1, final_rate=0.1, ema=0.0
)
PRESETS = {
    # What learns most in some minutes on two cores: docs/EXPERIMENTS.md, 12.
    "laptop": TrainConfig(
        network=NetworkOptions(network="local", d_model=128, n_heads=1, n_layers=5),
        optimizer=OptimizerOptions(learning_rate=0.02, muon_learning_rate=0.012, warmup_steps=30, decay=0.8),
        steps=7500,
        evaluate_every=2000,
    ),
    # The same network for tokens of byte pairs, ten times as large: an hour on one core (docs/small.md). Two thirds of
    # its weights are embeddings of pairs, which are looked up.
    "small": TrainConfig(
        network=NetworkOptions(network="local", d_model=320, n_heads=5, n_layers=6, attention_every=3),
        data=DataOptions(data_dir=(DOCUMENTATION_FOLDER,)),
        optimizer=OptimizerOptions(learning_rate=0.02, muon_learning_rate=0.012, warmup_steps=30, decay=0.8),
        output_dir=Path("runs/small"),
        batch_size=16,
        steps=3000,
        evaluate_every=500,
    ),
    # LLaDA's own network at that size, in the official layout.
    "llada": TrainConfig(output_dir=Path("runs/llada"), evaluate_every=200),
    "tiny": TrainConfig(
        network=NetworkOptions(d_model=64, n_heads=2, n_layers=2),
        data=DataOptions(sequence_length=64),
        output_dir=Path("runs/tiny"),
        batch_size=32,
        steps=200,
        evaluate_every=100,
    ),
    # The yardstick: nanoGPT's recipe for a CPU (its config/train_shakespeare_char.py and README), windows of one given
    # character and 64 that are scored.
    "autoregressive": TrainConfig(
        network=NetworkOptions(network="causal", d_model=128, n_heads=4, n_layers=4),
        data=DataOptions(sequence_length=65),
        noise=NoiseOptions(random_length=0.0),
        optimizer=OptimizerOptions(
            optimizer="adamw",
            learning_rate=1e-3,
            weight_decay=0.1,
            beta2=0.99,
            warmup_steps=100,
            schedule="cosine_after_warmup",
            final_rate=0.1,
            ema=0.0,
        ),
        output_dir=Path("runs/autoregressive"),
        batch_size=12,
        steps=2000,
        evaluate_every=500,
    ),
    # The yardstick of "small": a transformer of the same width and depth, on as many tokens of the same text.
    "small_autoregressive": TrainConfig(
        network=NetworkOptions(network="causal", d_model=320, n_heads=5, n_layers=6),
        data=DataOptions(data_dir=(DOCUMENTATION_FOLDER,)),
        noise=NoiseOptions(random_length=0.0),
        optimizer=OptimizerOptions(warmup_steps=30, decay=0.8),
        output_dir=Path("runs/small_autoregressive"),
        batch_size=16,
        steps=3000,
        evaluate_every=500,
    ),
    "founding": TrainConfig(
        network=NetworkOptions(network="encoder", d_model=768, n_heads=12, n_layers=24, dropout=0.1),
        data=DataOptions(windows="stored"),
        noise=NoiseOptions(masking="bernoulli", weight_power=1.0),
        optimizer=OptimizerOptions(optimizer="adamw", learning_rate=1e-4, weight_decay=0.1, ema=0.0),
        output_dir=Path("runs/founding"),
        batch_size=4,
        epochs=10,
        steps=None,
    ),
    "finetune": TrainConfig(
        base="GSAI-ML/LLaDA-8B-Instruct",
        data=DataOptions(windows="stored"),
        noise=NoiseOptions(masking="bernoulli", weight_power=1.0),
        optimizer=replace(FINE_TUNING, learning_rate=1e-5),  # the rate of the Tiny Shakespeare scripts (shakespeare/)
        output_dir=Path("runs/finetune"),
        batch_size=1,
        epochs=5,
        steps=None,
        activation_checkpointing=True,
    ),
    # As LLaDA-8B-Instruct was made: 3 epochs of answers, 256 a step, 2 of them at a time (arXiv 2502.09992, B.1).
    "sft": TrainConfig(
        base="GSAI-ML/LLaDA-8B-Base",
        noise=NoiseOptions(masking="bernoulli", weight_power=1.0),
        optimizer=FINE_TUNING,
        output_dir=Path("runs/sft"),
        batch_size=2,
        accumulate=128,
        epochs=3,
        steps=None,
        activation_checkpointing=True,
    ),
}

# How texts of a preset's network are drawn best, as `llada frontier` recommended for it: docs/EXPERIMENTS.md, 21.
SAMPLING: Mapping[str, Mapping[str, Any]] = {
    "laptop": {"policy": "entropy_bound", "entropy_bound": 0.03, "order": "left_to_right"},
}


def sampling_of(config: TrainConfig) -> SamplerConfig:
    """How samples of a run are written: as it is sampled by default once it is trained."""
    measured = measured_sampling(config)
    return replace(FREE_TEXT, **measured[0]) if measured else FREE_TEXT


def measured_sampling(config: TrainConfig) -> tuple[Mapping[str, Any], str] | None:
    """The sampling options measured as the best for a run's network, with where; None where none were measured."""
    for name, options in SAMPLING.items():
        if config.network == PRESETS[name].network and config.base is None and config.data.chat is None:
            return options, f"the preset {name}: docs/EXPERIMENTS.md, 21"
    return None
