"""A Hugging Face folder's config.json and generation_config.json <-> ModelConfig.

A model that this decoder cannot compute is refused here, with the key's name, before any tensor is read.
"""

import json
import os
import pathlib
from typing import Any

from entropy_rl.model.config import ModelConfig, RopeScaling

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def read_json(path: pathlib.Path) -> dict:
    """The JSON object in a file.

    Raises:
        ValueError: If the file is absent, broken, or holds something else; the message names it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; a Hugging Face model folder needs it") from None
    except ValueError as e:
        raise ValueError(f"{path}: not JSON: {e}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_config(folder: str | os.PathLike) -> ModelConfig:
    """The ModelConfig of a Hugging Face folder, in the layout of transformers 4 or 5.

    The end tokens are those of config.json and generation_config.json together. A key that is absent has the default
    that transformers gives it.

    Raises:
        ValueError: If a file or key is missing, the architecture is unknown, or the model has a feature that the
            decoder lacks (another type of RoPE, biases outside q, k and v, a window on some layers only, an activation
            other than silu).
    """
    folder = pathlib.Path(folder)
    path = folder / "config.json"
    raw = read_json(path)
    family = raw.get("model_type")
    if family not in ARCHITECTURES:
        raise ValueError(
            f"{path}: unknown architecture model_type={family!r}; expected one of {', '.join(ARCHITECTURES)}"
        )
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key):
            raise ValueError(f"{path}: {key}={raw[key]!r} is not supported; only Qwen2's q, k, v biases are")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{path}: hidden_act={raw['hidden_act']!r} is not supported; expected 'silu'")
    if "quantization_config" in raw:
        raise ValueError(
            f"{path}: quantization_config: quantised checkpoints are read from GGUF only; use the unquantised model"
        )

    def need(key: str) -> Any:
        if raw.get(key) is None:
            raise ValueError(f"{path}: missing key {key!r}")
        return raw[key]

    theta, scaling = read_rope(raw, path)
    d_model, n_heads = need("hidden_size"), need("num_attention_heads")
    # The size of Qwen3's heads does not follow from the other keys.
    head_dim = need("head_dim") if family == "qwen3" else raw.get("head_dim") or d_model // n_heads
    generation = folder / "generation_config.json"
    stops = [raw, read_json(generation)] if generation.exists() else [raw]
    return ModelConfig(
        vocab_size=need("vocab_size"),
        d_model=d_model,
        n_layers=need("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=raw.get("num_key_value_heads") or n_heads,
        head_dim=head_dim,
        d_ff=need("intermediate_size"),
        family=family,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        sliding_window=read_window(raw, path),
        tied=bool(raw.get("tie_word_embeddings", False)),
        max_positions=need("max_position_embeddings"),
        bos_id=raw.get("bos_token_id"),
        eos_ids=tuple(dict.fromkeys(i for c in stops for i in eos_list(c))),
    )


def eos_list(raw: dict) -> list[int]:
    """The end tokens that a JSON configuration names."""
    ids = raw.get("eos_token_id")
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


def read_rope(raw: dict, path: pathlib.Path) -> tuple[float, RopeScaling | None]:
    """(theta, scaling), from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling`.

    Raises:
        ValueError: If the decoder does not have this type of RoPE.
    """
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in rope.values()):
        raise ValueError(f"{path}: rope_parameters differ by layer type ({', '.join(rope)}), which is not supported")
    if (share := rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))) != 1.0:
        raise ValueError(f"{path}: partial_rotary_factor={share} is not supported; expected 1.0")
    theta = float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ValueError(f"{path}: rope_type={kind!r} is not supported; expected 'default' or 'llama3'")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if missing := [key for key in keys if key not in rope]:
        raise ValueError(f"{path}: rope_type='llama3' lacks {', '.join(missing)}")
    factor, low, high, original = (rope[key] for key in keys)
    return theta, RopeScaling(float(factor), float(low), float(high), int(original))


def read_window(raw: dict, path: pathlib.Path) -> int | None:
    """The sliding window of every layer; None: there is none.

    Raises:
        ValueError: If only some layers have a window.
    """
    if raw["model_type"] == "mistral":
        return raw.get("sliding_window", 4096)
    if raw["model_type"] == "llama" or not raw.get("use_sliding_window", False):
        return None
    window, layers = raw.get("sliding_window", 4096), raw["num_hidden_layers"]
    first = raw.get("max_window_layers", 28)
    kinds = set(
        raw.get("layer_types") or ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    )
    if window is None or kinds == {"full_attention"}:
        return None
    if kinds != {"sliding_attention"}:
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
