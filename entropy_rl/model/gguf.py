"""GGUF files (llama.cpp) → config, parameters and tokenizer, without torch.

Weights are dequantised to float32, one tensor at a time. llama.cpp stores the rows of Llama's q and k in another
order, for its interleaved RoPE (`LlamaModel.permute` in its convert_hf_to_gguf.py); this module restores the order.

Shapes: D width, N query or key/value heads, h head_dim.
"""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from entropy_rl.model.config import ModelConfig
from entropy_rl.model.foreign import LARGEST, positive, sizes, token_id, whole
from entropy_rl.model.gguf_file import GGUFFile
from entropy_rl.model.gguf_tokenizer import read_tokenizer
from entropy_rl.model.leaves import Shardings, assemble, leaves
from entropy_rl.model.transformer import Params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FAMILIES = ("llama", "qwen2", "qwen3")
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class Metadata:
    """The key-value part of a GGUF file."""

    def __init__(self, file: GGUFFile) -> None:
        self.path, self.fields = file.path, file.fields

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default."""
        return self.fields.get(key, default)

    def need(self, key: str, kind: type = object) -> Any:
        """The value of a key.

        Raises:
            ValueError: If the file has no such key, or its value is of another type.
        """
        if key not in self.fields:
            raise ValueError(f"{self.path}: missing metadata key {key!r}")
        if not isinstance(value := self.fields[key], kind):
            raise ValueError(f"{self.path}: {key} is a {type(value).__name__}; expected a {kind.__name__}")
        return value


def load_gguf(
    path: str | os.PathLike, shardings: Shardings | None = None
) -> tuple[ModelConfig, Params, "PreTrainedTokenizerFast"]:
    """(ModelConfig, params, tokenizer) of a GGUF file.

    Args:
        path: the file.
        shardings: see `leaves.assemble`.

    Raises:
        ValueError: If this is no GGUF file, the architecture or tokenizer is unknown, a value is out of range, or a
            tensor is missing, is not finite, has another shape, or has no place in the model; the message names the
            tensor or key, and the file.
    """
    file = GGUFFile(path)
    meta = Metadata(file)
    cfg = read_config(meta, tied="output.weight" not in file.tensors)
    return cfg, read_params(file, cfg, shardings), read_tokenizer(meta, cfg.vocab_size)


def read_config(meta: Metadata, tied: bool) -> ModelConfig:
    """The ModelConfig of a GGUF file.

    Args:
        meta: the file's metadata.
        tied: the file has no head of its own.

    Raises:
        ValueError: If a key is missing, or the decoder cannot compute the model.
    """
    family = meta.need("general.architecture", str)
    if family not in FAMILIES:
        raise ValueError(f"{meta.path}: unknown architecture {family!r}; expected one of {', '.join(FAMILIES)}")

    def need(key: str) -> Any:
        return meta.need(f"{family}.{key}")

    def get(key: str, default: Any = None) -> Any:
        return meta.get(f"{family}.{key}", default)

    path = meta.path
    d_model, n_heads = (
        whole(path, f"{family}.{key}", need(key), 1, LARGEST[name])
        for name, key in (("d_model", "embedding_length"), ("n_heads", "attention.head_count"))
    )
    given = {
        "vocab_size": ("tokenizer.ggml.tokens", len(meta.need("tokenizer.ggml.tokens", list))),
        "d_model": (f"{family}.embedding_length", d_model),
        "n_layers": (f"{family}.block_count", need("block_count")),
        "n_heads": (f"{family}.attention.head_count", n_heads),
        "n_kv_heads": (f"{family}.attention.head_count_kv", get("attention.head_count_kv", n_heads)),
        "head_dim": (f"{family}.attention.key_length", get("attention.key_length", d_model // n_heads)),
        "d_ff": (f"{family}.feed_forward_length", need("feed_forward_length")),
        "max_positions": (f"{family}.context_length", need("context_length")),
    }
    found: dict[str, Any] = sizes(path, given)
    if (kind := get("rope.scaling.type", "none")) != "none":
        raise ValueError(f"{path}: {family}.rope.scaling.type={kind!r} is not supported; expected 'none'")
    if (turned := get("rope.dimension_count", found["head_dim"])) != found["head_dim"]:
        size = found["head_dim"]
        raise ValueError(f"{path}: {family}.rope.dimension_count={turned!r:.80}; expected the head's size {size}")
    epsilon = "attention.layer_norm_rms_epsilon"
    bos, *stops = (
        None if (i := meta.get(key)) is None else token_id(path, key, i, found["vocab_size"])
        for key in (f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot"))
    )
    return ModelConfig(
        **found,
        family=family,
        rope_theta=positive(path, f"{family}.rope.freq_base", get("rope.freq_base", 10_000.0)),
        # It is stored as float32, in which 1e-5 is 9.99999975e-06: the shortest decimal that rounds to it was meant.
        norm_eps=float(str(np.float32(positive(path, f"{family}.{epsilon}", need(epsilon))))),
        qkv_bias=family == "qwen2",
        qk_norm="head" if family == "qwen3" else None,
        tied=tied,
        bos_id=bos,
        eos_ids=tuple(dict.fromkeys(i for i in stops if i is not None)),
    )


def gguf_name(name: str) -> str:
    """The GGUF name of a Hugging Face tensor.

    Example:
        >>> gguf_name("model.layers.3.self_attn.q_proj.weight")
        'blk.3.attn_q.weight'
    """
    if name in TOP:
        return TOP[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{LAYER[module]}.{kind}"


def unpermute(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """[N·h, D]: in each head, RoPE's pairs are side by side in llama.cpp; Hugging Face has them in the two halves."""
    return rows.reshape(n_heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def read_params(file: GGUFFile, cfg: ModelConfig, shardings: Shardings | None) -> Params:
    """The tree of parameters, dequantised to float32; raises as `load_gguf`."""
    path, expected = file.path, set()
    for leaf in leaves(cfg).values():
        for i in range(cfg.n_layers if "{}" in leaf.name else 1):
            name = gguf_name(leaf.name.format(i))
            if name not in file.tensors:
                raise ValueError(f"{path}: missing tensor {name}, expected {leaf.shape}")
            if (got := file.tensors[name].shape) != leaf.shape:
                raise ValueError(f"{path}: tensor {name} has shape {got}, expected {leaf.shape}")
            expected.add(name)
    for name in file.tensors:
        if name not in expected:
            why = " (Llama-3's RoPE scaling; load the Hugging Face folder)" if name == "rope_freqs.weight" else ""
            raise ValueError(f"{path}: unexpected tensor {name}{why}")

    def read(hf_name: str, shape: tuple[int, ...]) -> np.ndarray:
        value = file.read(gguf_name(hf_name))
        if cfg.family == "llama" and hf_name.endswith(("q_proj.weight", "k_proj.weight")):
            value = unpermute(value, cfg.n_heads if "q_proj" in hf_name else cfg.n_kv_heads)
        return value

    return assemble(cfg, read, shardings)
