"""The config.json of a checkpoint, read into and written from the configuration dataclass of its network.

Each family of published checkpoints has its own keys. They describe more networks than were ever published, so every
key that could ask for another one must hold the published value.
"""

import reprlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

import dacite

from llada.models.encoder import Encoder, EncoderConfig
from llada.models.llada import LLaDA, LLaDAConfig
from llada.models.llada_moe import LLaDAMoE, LLaDAMoEConfig
from llada.models.llama_layers import ILLaDA, ILLaDAConfig
from llada.models.local import Local, LocalConfig
from llada.models.rope_keys import rope_theta

NetworkConfig = LLaDAConfig | EncoderConfig | LocalConfig  # LLaDAConfig's subclasses among them
Network = LLaDA | ILLaDA | LLaDAMoE | Encoder | Local
ConfigClass = type[LLaDAConfig] | type[EncoderConfig] | type[LocalConfig]
Values = tuple[Any, ...]  # all values of a key that describe the published network; the first is written


@dataclass(frozen=True)
class Family:
    """The form of config.json for one kind of network."""

    network: type[Any]
    architectures: tuple[str, ...]
    """Names that are read; the first is written."""
    model_type: str
    names: Mapping[str, str] = field(default_factory=dict)
    """Keys of the fields whose key differs from the field's name."""
    required: Mapping[str, Values] = field(default_factory=dict)
    """Keys whose value is fixed here; if one is missing, the official code assumes another value."""
    optional: Mapping[str, Values] = field(default_factory=dict)
    """The same as `required`, for keys that may be missing."""
    neutral: Mapping[str, Any] = field(default_factory=dict)
    """Keys that the official class reads, without effect on what the network computes."""
    left_out: Mapping[str, Any] = field(default_factory=dict)
    """Values of fields whose keys are missing."""
    derived: Mapping[str, Callable[[Any], Values]] = field(default_factory=dict)
    """Required keys whose values follow from the fields."""
    implied: Mapping[str, Callable[[Any], Values]] = field(default_factory=dict)
    """The same as `derived`, for keys that are not written and may be missing."""
    mask: tuple[str, int] | None = None
    """Name and row of MASK in the published vocabulary, if config.json has no key for it."""
    auto_map: Mapping[str, str] = field(default_factory=dict)
    """Where the transformers library finds the published class (it asks before it runs that code); never run here."""

    stores_tied_head: bool = False
    """Whether the published files store a head although it is tied to the embedding."""
    layer_alone: Callable[[Any, int], Any] | None = None
    """A function from a configuration and the depth of a layer to a network of that one layer; None if all are alike.
    """

    def key_of(self, name: str) -> str:
        return self.names.get(name, name)


CODE_REPOSITORY = "GSAI-ML/LLaDA-8B-Instruct"
LLADA = Family(
    LLaDA,
    architectures=("LLaDAModelLM",),
    model_type="llada",
    required={
        "activation_type": ("silu",),
        "alibi": (False,),
        "attention_dropout": (0.0,),
        "attention_layer_norm": (False,),
        "bias_for_layer_norm": (False,),
        "block_group_size": (1,),
        "block_type": ("llama",),
        "embedding_dropout": (0.0,),
        "include_bias": (False,),
        "include_qkv_bias": (False,),
        "input_emb_norm": (False,),
        "layer_norm_type": ("rms",),
        "layer_norm_with_affine": (True,),
        "multi_query_attention": (None, False),
        "residual_dropout": (0.0,),
        "rope": (True,),
        "rope_full_precision": (True,),
        "scale_logits": (False,),
    },
    neutral={
        "alibi_bias_max": 8.0,
        "attention_layer_norm_with_affine": True,
        "flash_attention": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "mlp_ratio": 4,
        "precision": "amp_bf16",
        "use_cache": False,
    },
    derived={"embedding_size": lambda config: (config.vocab_size, None)},
    auto_map={
        "AutoConfig": f"{CODE_REPOSITORY}--configuration_llada.LLaDAConfig",
        "AutoModel": f"{CODE_REPOSITORY}--modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": f"{CODE_REPOSITORY}--modeling_llada.LLaDAModelLM",
    },
)
LLAMA_NAMES = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "n_kv_heads": "num_key_value_heads",
    "mlp_hidden_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "weight_tying": "tie_word_embeddings",
}
ILLADA = Family(
    ILLaDA,
    architectures=("ILLaDAForCausalLM",),
    model_type="illada",
    names=LLAMA_NAMES,
    optional={
        "attention_bias": (False,),
        "attention_dropout": (0.0,),
        "hidden_act": ("silu",),
        "layer_norm_eps": (None,),  # a number would ask for LayerNorm
        "mlp_bias": (False,),
        "resid_pdrop": (0.0,),
    },
    neutral={"initializer_range": 0.02, "rope_scaling": None, "use_cache": False},
    implied={"head_dim": lambda config: (config.head_dim, None)},
    # transformers leaves out what equals its own default, which is True for a tied head.
    left_out={"weight_tying": True, "eos_token_id": 2},
    mask=("<[MASK]>", 5),
    stores_tied_head=True,
)
LLADA_MOE = Family(
    LLaDAMoE,
    architectures=("LLaDAMoEModel", "LLaDAMoEModelLM"),
    model_type="llada",  # as LLaDA's: the architecture decides
    names={
        **LLAMA_NAMES,
        "mlp_hidden_size": "expert_intermediate_size",
        "n_experts": "num_experts",
        "n_experts_per_token": "num_experts_per_tok",
    },
    required={
        "attention_bias": (False,),
        "moe_router_enable_expert_bias": (False,),
        "partial_rotary_factor": (1,),
        "qk_layernorm": (True,),
        "routed_scaling_factor": (1,),
        "shared_expert_intermediate_size": (None,),
    },
    optional={
        "attention_dropout": (0.0,),
        "clip_qkv": (None,),
        "hidden_act": ("silu",),
        "moe_router_score_function": ("softmax", None),
        "norm_topk_prob": (False, None),
    },
    neutral={
        "dense_intermediate_size": 8192,  # no layer is dense
        "initializer_range": 0.02,
        "output_router_logits": False,
        "rope_scaling": None,
        "router_aux_loss_coef": 0.01,
        "use_cache": False,
    },
    derived={
        "head_dim": lambda config: (config.head_dim,),
        "moe_layer_freq": lambda config: ([1] * config.n_layers,),
    },
    mask=("<|mask|>", 156_895),
)
ENCODER = Family(Encoder, architectures=("LLaDAEncoder",), model_type="llada_encoder", left_out={"is_causal": False})
LOCAL = Family(Local, architectures=("LLaDALocal",), model_type="llada_local", layer_alone=LocalConfig.layer_alone)

FAMILIES: dict[ConfigClass, Family] = {
    LLaDAConfig: LLADA,
    ILLaDAConfig: ILLADA,
    LLaDAMoEConfig: LLADA_MOE,
    EncoderConfig: ENCODER,
    LocalConfig: LOCAL,
}
ARCHITECTURES = {name: config for config, family in FAMILIES.items() for name in family.architectures}


FURTHER_EOS = "further_eos_ids"  # a field without a key of its own: see `_read_ends`


class TiedHead(NamedTuple):
    """The names of two tensors that share their memory."""

    embedding: str
    head: str
    is_stored: bool


def build_network(config: NetworkConfig) -> Network:
    """Build a freshly initialised network of this configuration."""
    network: Network = FAMILIES[type(config)].network(config)
    return network


def layer_alone(config: NetworkConfig, depth: int) -> NetworkConfig:
    """The configuration of a one-layer network whose layer is like layer `depth` of this one, counted from 0."""
    of_family = FAMILIES[type(config)].layer_alone
    alone: NetworkConfig = replace(config, n_layers=1) if of_family is None else of_family(config, depth)
    return alone


def kinds_of_layers(config: NetworkConfig) -> Counter[NetworkConfig]:
    """One-layer networks, one for each kind of layer of a network, with the number of its layers of that kind."""
    if FAMILIES[type(config)].layer_alone is None:
        return Counter({layer_alone(config, 0): config.n_layers})
    return Counter(layer_alone(config, depth) for depth in range(config.n_layers))


def is_causal(config: NetworkConfig) -> bool:
    """Whether predictions at a position see only what comes before it: the network of an autoregressive model."""
    return isinstance(config, EncoderConfig) and config.is_causal


def tied_head(config: NetworkConfig) -> TiedHead | None:
    """The head that a network of this configuration shares with its embedding; None if it has its own."""
    if not isinstance(config, LLaDAConfig) or not config.weight_tying:
        return None
    family = FAMILIES[type(config)]
    return TiedHead(family.network.EMBEDDING_NAME, family.network.HEAD_NAME, family.stores_tied_head)


def mask_name(content: Mapping[str, Any]) -> str | None:
    """The name of MASK in the tokenizer, for a family whose config.json does not give its row; None for others.

    Raises:
        ValueError: the architecture is unknown.
    """
    mask = _family_of(content)[1].mask
    return mask[0] if mask else None


def config_to_json(config: NetworkConfig) -> dict[str, Any]:
    """Return the content of config.json."""
    family = FAMILIES[type(config)]
    values = asdict(config)
    if isinstance(config, LLaDAConfig):  # and its subclasses
        values["n_kv_heads"] = config.kv_heads
        further = values.pop(FURTHER_EOS)
        if further:
            values["eos_token_id"] = [config.eos_token_id, *further]
    if family.mask:
        del values["mask_token_id"]
    return {
        "architectures": [family.architectures[0]],
        **({"auto_map": dict(family.auto_map)} if family.auto_map else {}),
        "model_type": family.model_type,
        **{key: allowed[0] for key, allowed in {**family.required, **family.optional}.items()},
        **family.neutral,
        **{family.key_of(name): value for name, value in values.items()},
        **{key: allowed_for(config)[0] for key, allowed_for in family.derived.items()},
    }


def config_from_json(
    content: Mapping[str, Any], mask_row: int | None = None, eos_id: int | None = None, pad_id: int | None = None
) -> NetworkConfig:
    """Read the configuration that config.json describes.

    Args:
        mask_row: row of MASK, for a family whose config.json does not give it; None takes the published vocabulary's.
        eos_id, pad_id: ids of the tokenizer, for a config.json that says null.

    Raises:
        ValueError: the architecture is unknown, a key is missing, or the network does not support a value.
    """
    config_class, family = _family_of(content)
    keys = {f.name: family.key_of(f.name) for f in fields(config_class)}
    values = {name: content[key] for name, key in keys.items() if key in content and name != FURTHER_EOS}
    for name, value in family.left_out.items():
        values.setdefault(name, value)
    theta = rope_theta(content)
    if theta is not None and "rope_theta" in keys:
        values["rope_theta"] = theta
    if family.mask:
        values["mask_token_id"] = family.mask[1] if mask_row is None else mask_row
    if FURTHER_EOS in keys:
        values[FURTHER_EOS] = ()
        _read_ends(values, eos_id, pad_id)
    fixed = family.required.keys() | family.derived.keys()
    missing = {keys[name] for name in keys.keys() - values.keys()} | (fixed - content.keys())
    if missing:
        raise ValueError(f"config.json lacks {', '.join(sorted(missing))}")
    _check_published({**family.required, **family.optional}, content)
    for f in fields(config_class):
        if isinstance(values[f.name], bool) and f.type is not bool:  # to Python, True is the number 1
            raise ValueError(f"{keys[f.name]} = {values[f.name]!r} is not supported (only a number)")
    try:
        config = dacite.from_dict(config_class, values)
    except dacite.DaciteError as error:
        raise ValueError(str(error)) from error
    following = {**family.derived, **family.implied}
    _check_published({key: allowed_for(config) for key, allowed_for in following.items()}, content)
    return config


def _read_ends(values: dict[str, Any], eos_id: int | None, pad_id: int | None) -> None:
    """Replace a list of EOS ids by its first and the others, and null by the tokenizer's ids."""
    ends = values.get("eos_token_id")
    if isinstance(ends, list):
        if not ends or not all(type(id_) is int and id_ >= 0 for id_ in ends):
            raise ValueError(f"eos_token_id = {reprlib.repr(ends)} is not supported (only token ids)")
        values["eos_token_id"], *others = dict.fromkeys(ends)
        values[FURTHER_EOS] = tuple(others)
    if "eos_token_id" in values and values["eos_token_id"] is None:
        values["eos_token_id"] = eos_id
    if "pad_token_id" in values and values["pad_token_id"] is None:
        values["pad_token_id"] = values.get("eos_token_id") if pad_id is None else pad_id
    for key in ("eos_token_id", "pad_token_id"):
        if key in values and values[key] is None:
            raise ValueError(f"{key} is null, and the tokenizer names none either")


def _family_of(content: Mapping[str, Any]) -> tuple[ConfigClass, Family]:
    names = content.get("architectures") or ["none"]
    if names[0] not in ARCHITECTURES:
        raise ValueError(f"architecture {names[0]!r} is not one of {', '.join(ARCHITECTURES)}")
    config_class = ARCHITECTURES[names[0]]
    return config_class, FAMILIES[config_class]


def _check_published(allowed: Mapping[str, Values], content: Mapping[str, Any]) -> None:
    for key, values in allowed.items():
        if key in content and content[key] not in values:
            given, published = map(reprlib.repr, (content[key], values[0]))  # shortened, where there are many layers
            raise ValueError(f"{key} = {given} is not supported (only {published})")
