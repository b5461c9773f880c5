"""A Hugging Face folder's config.json and generation_config.json <-> ModelConfig.

A model that this decoder cannot compute is refused here, with the key's name, before any tensor is read.
"""

import json
import os
import pathlib
from typing import Any

from entropy_rl.model.config import ModelConfig
from entropy_rl.model.families import FAMILIES, check_features, nearest
from entropy_rl.model.foreign import LARGEST, flag, positive, read_json, sizes, token_id, whole
from entropy_rl.model.hf_layers import read_layers, write_layers
from entropy_rl.model.hf_rope import read_rope, write_rope

ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}  # ours -> its name in config.json
# keys of features that the decoder lacks -> the values that do not use them
WITHOUT = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "clip_qkv": None,
}


def read_config(folder: str | os.PathLike) -> ModelConfig:
    """The ModelConfig of a Hugging Face folder, in the layout of transformers 4 or 5.

    The end tokens are those of config.json and generation_config.json together. A key that is absent has the default
    that transformers gives it, and null is as if absent.

    Raises:
        ValueError: If a file or key is missing, the architecture is unknown, a value has another type or is out of
            range, or the model has a feature that the decoder lacks (another type of RoPE, biases outside q, k and v,
            soft caps, images, an activation that is not the family's).
    """
    folder = pathlib.Path(folder)
    path = folder / "config.json"
    # null is as if absent, except for a window: Mistral's default is one, and null is none
    raw = {k: v for k, v in read_json(path).items() if v is not None or k == "sliding_window"}
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        near = nearest(family)
        only = "; of Gemma 3 the models for text alone are" if family == "gemma3" else ""
        raise ValueError(
            f"{path}: unknown architecture model_type={family!r}; expected one of {', '.join(FAMILIES)} "
            f"(the nearest is {near}{only})"
        )
    kind = FAMILIES[family]
    raw = {**kind.absent, **raw}
    for key in ("attention_bias", "mlp_bias"):
        if flag(path, key, raw.get(key, False)):
            raise ValueError(f"{path}: {key}={raw[key]!r} is not supported; only Qwen2's q, k, v biases are")
    for key, off in WITHOUT.items():
        if raw.get(key, off) != off:
            raise ValueError(f"{path}: {key}={raw[key]!r:.80} is not supported; expected {json.dumps(off)}")
    activation = ACTIVATIONS[kind.features.get("activation", "silu")]
    for key in ("hidden_act", "hidden_activation"):
        if raw.get(key, activation) != activation:
            raise ValueError(f"{path}: {key}={raw[key]!r:.80} is not supported; expected {activation!r}")
    if "quantization_config" in raw:
        raise ValueError(
            f"{path}: quantization_config: quantised checkpoints are read from GGUF only; use the unquantised model"
        )
    found: dict[str, Any] = read_sizes(raw, family, path)
    scalar = positive(path, "query_pre_attn_scalar", raw.get("query_pre_attn_scalar", found["head_dim"]))
    generation = folder / "generation_config.json"
    stops = [(path, raw)] + ([(generation, read_json(generation))] if generation.exists() else [])
    vocab_size = found["vocab_size"]
    bos = raw.get("bos_token_id")
    return ModelConfig(
        **found,
        family=family,
        **kind.features,
        **read_rope(raw, kind, path),
        **read_layers(raw, found["n_layers"], path),
        query_scalar=scalar if family == "gemma3_text" and scalar != found["head_dim"] else None,
        norm_eps=positive(path, "rms_norm_eps", raw.get("rms_norm_eps", 1e-6)),
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


def write_config(folder: str | os.PathLike, cfg: ModelConfig, dtype: str, pad_id: int | None) -> None:
    """Writes config.json and generation_config.json, in the layout that transformers 4 and 5 both read.

    Args:
        folder: an existing folder.
        cfg: the shape.
        dtype: the tensors' dtype, by numpy's name.
        pad_id: the padding token; None, or one that the model does not have: it is left out.

    Raises:
        ValueError: If the family cannot carry the config's features.
    """
    folder = pathlib.Path(folder)
    family = check_features(cfg)
    eos = cfg.eos_ids[0] if len(cfg.eos_ids) == 1 else list(cfg.eos_ids) or None
    pad_id = None if pad_id is not None and pad_id >= cfg.vocab_size else pad_id
    tokens = {"bos_token_id": cfg.bos_id, "eos_token_id": eos, "pad_token_id": pad_id}
    raw: dict = {
        "architectures": [family.architecture],
        "model_type": cfg.family,
        "torch_dtype": dtype,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.d_ff,
        "hidden_act": ACTIVATIONS[cfg.activation],
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tied,
        "max_position_embeddings": cfg.max_positions,
        **tokens,
        **write_rope(cfg, family),
        **write_layers(cfg),
    }
    if cfg.family != "gemma3_text" and cfg.query_scalar is not None:
        raise ValueError(f"model.query_scalar={cfg.query_scalar} with model.family={cfg.family!r}; expected None")
    if cfg.family == "gemma3_text":
        scalar = cfg.head_dim if cfg.query_scalar is None else cfg.query_scalar
        raw["hidden_activation"] = raw.pop("hidden_act")
        raw["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    stops = {key: value for key, value in tokens.items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(stops, indent=2) + "\n", encoding="utf-8")
