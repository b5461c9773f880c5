"""The families of models: what each has in common on disk, and the features that its name stands for.

A family is a row of `FAMILIES`, and the decoder knows features only. A new family that is made of these features needs
a row; what differs between models of one family is read in `hf_config.py`, `hf_layers.py` and `hf_rope.py`.
"""

import difflib
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from entropy_rl.model.config import ModelConfig


class Family(NamedTuple):
    """What the models of a family have in common.

    Attributes:
        architecture: the class in transformers.
        features: fields of `ModelConfig` in which the family differs from Llama.
        absent: the defaults that transformers gives keys of config.json, as far as they differ from Llama's.
        theta: RoPE's base by default.
        local_theta: the base by default of layers with a window, if the family's files can give these another RoPE than
            the other layers; 0: the base of those; None: the files have one RoPE only.
    """

    architecture: str
    features: Mapping[str, Any] = types.MappingProxyType({})
    absent: Mapping[str, Any] = types.MappingProxyType({})
    theta: float = 10_000.0
    local_theta: float | None = None


_OLMO = {"norms": "after", "qk_norm": "width"}
_GEMMA = {
    "norms": "both",
    "norm_offset": True,
    "qk_norm": "head",
    "activation": "gelu_tanh",
    "scaled_embedding": True,
}
FAMILIES = {
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family("MistralForCausalLM"),
    "qwen2": Family("Qwen2ForCausalLM", {"qkv_bias": True}),
    "qwen3": Family("Qwen3ForCausalLM", {"qk_norm": "head"}),
    "olmo2": Family("Olmo2ForCausalLM", _OLMO, {"rms_norm_eps": 1e-5}),
    "olmo3": Family("Olmo3ForCausalLM", _OLMO, {"rms_norm_eps": 1e-5}, theta=500_000.0, local_theta=0.0),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _GEMMA,
        {"tie_word_embeddings": True, "head_dim": 256, "num_key_value_heads": 4, "query_pre_attn_scalar": 256},
        theta=1_000_000.0,
        local_theta=10_000.0,
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        absent={"tie_word_embeddings": True, "num_key_value_heads": 4, "sliding_window": None},
        theta=2_000_000.0,
    ),
}
FEATURES = sorted({name for family in FAMILIES.values() for name in family.features})


def nearest(name: object) -> str:
    """The family whose name is most like that of one that is not supported; Llama, if none is like it.

    >>> nearest("gemma2"), nearest("qwen3_moe"), nearest("mamba")
    ('gemma3_text', 'qwen3', 'llama')
    """
    return (difflib.get_close_matches(str(name), FAMILIES, 1, 0.5) or ["llama"])[0]


def check_features(cfg: ModelConfig) -> Family:
    """The family of a shape.

    Raises:
        ValueError: If there is no such family, or if its models have other features.
    """
    if cfg.family not in FAMILIES:
        raise ValueError(f"model.family={cfg.family!r}; expected one of {', '.join(FAMILIES)}")
    family = FAMILIES[cfg.family]
    for name in FEATURES:
        value, default = getattr(cfg, name), ModelConfig.__dataclass_fields__[name].default
        if value != (wanted := family.features.get(name, default)):
            raise ValueError(
                f"model.{name}={value!r} with model.family={cfg.family!r}: its models in transformers have {wanted!r}"
            )
    return family
