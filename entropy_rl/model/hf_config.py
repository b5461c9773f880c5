"""A Hugging Face folder's config.json and generation_config.json <-> ModelConfig.

A model that this decoder cannot compute is refused here, with the key's name, before any tensor is read.
"""

import json
import os
import pathlib
from typing import Any

from entropy_rl.model.config import ModelConfig, RopeScaling
from entropy_rl.model.foreign import LARGEST, flag, positive, read_json, sizes, token_id, whole

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def read_config(folder: str | os.PathLike) -> ModelConfig:
    """The ModelConfig of a Hugging Face folder, in the layout of transformers 4 or 5.

    The end tokens are those of config.json and generation_config.json together. A key that is absent has the default
    that transformers gives it, and null is as if absent.

    Raises:
        ValueError: If a file or key is missing, the architecture is unknown, a value has another type or is out of
            range, or the model has a feature that the decoder lacks (another type of RoPE, biases outside q, k and v, a
            window on some layers only, an activation other than silu).
    """
    folder = pathlib.Path(folder)
    path = folder / "config.json"
    # null is as if absent, except for a window: Mistral's default is one, and null is none
    raw = {k: v for k, v in read_json(path).items() if v is not None or k == "sliding_window"}
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise ValueError(
            f"{path}: unknown architecture model_type={family!r}; expected one of {', '.join(ARCHITECTURES)}"
        )
    for key in ("attention_bias", "mlp_bias"):
        if flag(path, key, raw.get(key, False)):
            raise ValueError(f"{path}: {key}={raw[key]!r} is not supported; only Qwen2's q, k, v biases are")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{path}: hidden_act={raw['hidden_act']!r} is not supported; expected 'silu'")
    if "quantization_config" in raw:
        raise ValueError(
            f"{path}: quantization_config: quantised checkpoints are read from GGUF only; use the unquantised model"
        )
    found: dict[str, Any] = read_sizes(raw, family, path)
    theta, scaling = read_rope(raw, path)
    generation = folder / "generation_config.json"
    stops = [(path, raw)] + ([(generation, read_json(generation))] if generation.exists() else [])
    vocab_size = found["vocab_size"]
    bos = raw.get("bos_token_id")
    return ModelConfig(
        **found,
        family=family,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=positive(path, "rms_norm_eps", raw.get("rms_norm_eps", 1e-6)),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        sliding_window=read_window(raw, found["n_layers"], path),
        tied=flag(path, "tie_word_embeddings", raw.get("tie_word_embeddings", False)),
        bos_id=None if bos is None else token_id(path, "bos_token_id", bos, vocab_size),
        eos_ids=tuple(dict.fromkeys(i for where, c in stops for i in eos_list(c, where, vocab_size))),
    )


def read_sizes(raw: dict[str, Any], family: str, path: pathlib.Path) -> dict[str, int]:
    """The sizes in a config.json, by the names of `ModelConfig`'s fields.

    Raises:
        ValueError: If one is missing, or is not the size of any model.
    """

    def need(key: str) -> tuple[str, Any]:
        if key not in raw:
            raise ValueError(f"{path}: missing key {key!r}")
        return key, raw[key]

    given = {
        "vocab_size": need("vocab_size"),
        "d_model": need("hidden_size"),
        "n_layers": need("num_hidden_layers"),
        "n_heads": need("num_attention_heads"),
        "d_ff": need("intermediate_size"),
        "max_positions": need("max_position_embeddings"),
    }
    d_model, n_heads = (whole(path, *given[name], 1, LARGEST[name]) for name in ("d_model", "n_heads"))
    # The size of Qwen3's heads does not follow from the other keys.
    derived = need("head_dim") if family == "qwen3" else ("head_dim", raw.get("head_dim", d_model // n_heads))
    return sizes(
        path,
        given | {"head_dim": derived, "n_kv_heads": ("num_key_value_heads", raw.get("num_key_value_heads", n_heads))},
    )


def eos_list(raw: dict[str, Any], path: pathlib.Path, vocab_size: int) -> list[int]:
    """The end tokens that a JSON configuration names.

    Raises:
        ValueError: If one of them is not in the vocabulary.
    """
    ids = raw.get("eos_token_id")
    if ids is None:
        return []
    return [token_id(path, "eos_token_id", i, vocab_size) for i in (ids if isinstance(ids, list) else [ids])]


def read_rope(raw: dict[str, Any], path: pathlib.Path) -> tuple[float, RopeScaling | None]:
    """(theta, scaling), from `rope_parameters` (transformers 5), or from `rope_theta` and `rope_scaling`.

    Raises:
        ValueError: If the decoder does not have this type of RoPE, or if two of these keys disagree.
    """
    thetas: dict[str, float] = {}
    scalings: dict[str, RopeScaling | None] = {}
    if "rope_theta" in raw:
        thetas["rope_theta"] = positive(path, "rope_theta", raw["rope_theta"])
    if (share := raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ValueError(f"{path}: partial_rotary_factor={share!r} is not supported; expected 1.0")
    for key in ("rope_parameters", "rope_scaling"):
        rope = raw.get(key, {})
        if not isinstance(rope, dict):
            raise ValueError(f"{path}: {key}={rope!r:.80}; expected an object or null")
        rope = {k: v for k, v in rope.items() if v is not None}
        if not rope:
            continue
        if any(isinstance(value, dict) for value in rope.values()):
            raise ValueError(f"{path}: {key} differ by layer type ({', '.join(rope)}), which is not supported")
        if (share := rope.get("partial_rotary_factor", 1.0)) != 1.0:
            raise ValueError(f"{path}: {key}.partial_rotary_factor={share!r} is not supported; expected 1.0")
        if "rope_theta" in rope:
            thetas[f"{key}.rope_theta"] = positive(path, f"{key}.rope_theta", rope["rope_theta"])
        if set(rope) != {"rope_theta"}:
            scalings[key] = read_scaling(rope, key, path)
    for found in (thetas, scalings):
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{key}: {value}" for key, value in found.items())
            raise ValueError(f"{path}: these disagree, and only one can be meant: {listed}; remove the wrong one")
    return next(iter(thetas.values()), 10_000.0), next(iter(scalings.values()), None)


def read_scaling(rope: dict[str, Any], key: str, path: pathlib.Path) -> RopeScaling | None:
    """The scaling in `rope_parameters` or `rope_scaling`; None: there is none.

    Raises:
        ValueError: If it is of a type that the decoder does not have, or lacks a number.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("type", kind) != kind:
        raise ValueError(f"{path}: {key} has rope_type={kind!r} and type={rope['type']!r}; remove the wrong one")
    if kind == "default":
        if (factor := rope.get("factor", 1.0)) != 1.0:
            raise ValueError(f"{path}: {key}.factor={factor!r:.80} without a rope_type that reads it")
        return None
    if kind != "llama3":
        raise ValueError(f"{path}: {key}: rope_type={kind!r} is not supported; expected 'default' or 'llama3'")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if missing := [name for name in keys if name not in rope]:
        raise ValueError(f"{path}: {key}: rope_type='llama3' lacks {', '.join(missing)}")
    *factors, original = keys
    factor, low, high = (positive(path, f"{key}.{name}", rope[name]) for name in factors)
    if low == high:
        raise ValueError(f"{path}: {key}: low_freq_factor and high_freq_factor are both {low}; they must differ")
    return RopeScaling(factor, low, high, whole(path, f"{key}.{original}", rope[original], 1, 1 << 31))


def read_window(raw: dict[str, Any], layers: int, path: pathlib.Path) -> int | None:
    """The sliding window of every layer; None: there is none.

    Raises:
        ValueError: If only some layers have a window, or it is not a number of positions.
    """
    window = raw.get("sliding_window", 4096)
    if window is not None:
        window = whole(path, "sliding_window", window, 1, 1 << 31)
    if raw["model_type"] == "mistral":
        return window
    if raw["model_type"] == "llama" or not flag(path, "use_sliding_window", raw.get("use_sliding_window", False)):
        return None
    first = whole(path, "max_window_layers", raw.get("max_window_layers", 28), 0, LARGEST["n_layers"])
    kinds = raw.get("layer_types") or ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise ValueError(f"{path}: layer_types={kinds!r:.80}; expected a list of texts")
    if window is None or set(kinds) == {"full_attention"}:
        return None
    if set(kinds) != {"sliding_attention"}:
        raise ValueError(
            f"{path}: use_sliding_window with both windowed and full layers is not supported; expected "
            f"max_window_layers=0 (all windowed) or {layers} (none), got {first}"
        )
    return window


def write_config(folder: str | os.PathLike, cfg: ModelConfig, dtype: str, pad_id: int | None) -> None:
    """Writes config.json and generation_config.json, in the layout that transformers 4 and 5 both read.

    Args:
        folder: an existing folder.
        cfg: the shape.
        dtype: the tensors' dtype, by numpy's name.
        pad_id: the padding token; None: there is none.

    Raises:
        ValueError: If the family cannot carry the config's features.
    """
    folder = pathlib.Path(folder)
    if cfg.family not in ARCHITECTURES:
        raise ValueError(f"model.family={cfg.family!r}; expected one of {', '.join(ARCHITECTURES)}")
    for name, has, owner in (("qkv_bias", cfg.qkv_bias, "qwen2"), ("qk_norm", cfg.qk_norm, "qwen3")):
        if has != (cfg.family == owner):
            raise ValueError(
                f"model.{name}={has} with model.family={cfg.family!r}: transformers has it for {owner} only"
            )
    if cfg.family == "llama" and cfg.sliding_window is not None:
        raise ValueError(f"model.sliding_window={cfg.sliding_window} with model.family='llama'; expected 'mistral'")
    eos = cfg.eos_ids[0] if len(cfg.eos_ids) == 1 else list(cfg.eos_ids) or None
    tokens = {"bos_token_id": cfg.bos_id, "eos_token_id": eos, "pad_token_id": pad_id}
    raw: dict = {
        "architectures": [ARCHITECTURES[cfg.family]],
        "model_type": cfg.family,
        "torch_dtype": dtype,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.d_ff,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "tie_word_embeddings": cfg.tied,
        "max_position_embeddings": cfg.max_positions,
        **tokens,
    }
    if (s := cfg.rope_scaling) is not None:
        raw["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_max_positions,
        }
    if cfg.family != "llama":
        raw["sliding_window"] = cfg.sliding_window
    if cfg.family in ("qwen2", "qwen3"):
        raw |= {
            "use_sliding_window": cfg.sliding_window is not None,
            "max_window_layers": 0 if cfg.sliding_window is not None else cfg.n_layers,
        }
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    stops = {key: value for key, value in tokens.items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(stops, indent=2) + "\n", encoding="utf-8")
