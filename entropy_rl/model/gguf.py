"""GGUF files (llama.cpp) → config, parameters and tokenizer, without torch.

Weights are dequantised to float32, one tensor at a time. llama.cpp stores the rows of Llama's q and k in another
order, for its interleaved RoPE (`LlamaModel.permute` in its convert_hf_to_gguf.py); this module restores the order.

Shapes: D width, N query or key/value heads, h head_dim.
"""

import os
import pathlib
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from entropy_rl.model.config import ModelConfig
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

    def __init__(self, path: pathlib.Path, reader: gguf.GGUFReader) -> None:
        self.path, self.fields = path, reader.fields

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default."""
        return self.fields[key].contents() if key in self.fields else default

    def need(self, key: str) -> Any:
        """The value of a key.

        Raises:
            ValueError: If the file has no such key.
        """
        if key not in self.fields:
            raise ValueError(f"{self.path}: missing metadata key {key!r}")
        return self.fields[key].contents()


def load_gguf(
    path: str | os.PathLike, shardings: Shardings | None = None
) -> tuple[ModelConfig, Params, "PreTrainedTokenizerFast"]:
    """(ModelConfig, params, tokenizer) of a GGUF file.

    Args:
        path: the file.
        shardings: see `leaves.assemble`.

    Raises:
        ValueError: If this is no GGUF file, the architecture or tokenizer is unknown, or a tensor is missing, has
            another shape, or has no place in the model; the message names the tensor or key, and the file.
    """
    path = pathlib.Path(path)
    try:
        reader = gguf.GGUFReader(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (ValueError, IndexError, KeyError) as e:
        raise ValueError(f"{path}: not a GGUF file, or cut short: {e}") from e
    meta = Metadata(path, reader)
    tensors = {t.name: t for t in reader.tensors}
    cfg = read_config(meta, tied="output.weight" not in tensors)
    return cfg, read_params(path, tensors, cfg, shardings), read_tokenizer(meta)


def read_config(meta: Metadata, tied: bool) -> ModelConfig:
    """The ModelConfig of a GGUF file.

    Args:
        meta: the file's metadata.
        tied: the file has no head of its own.

    Raises:
        ValueError: If a key is missing, or the decoder cannot compute the model.
    """
    family = meta.need("general.architecture")
    if family not in FAMILIES:
        raise ValueError(f"{meta.path}: unknown architecture {family!r}; expected one of {', '.join(FAMILIES)}")

    def need(key: str) -> Any:
        return meta.need(f"{family}.{key}")

    def get(key: str, default: Any = None) -> Any:
        return meta.get(f"{family}.{key}", default)

    d_model, n_heads = need("embedding_length"), need("attention.head_count")
    head_dim = get("attention.key_length", d_model // n_heads)
    if (kind := get("rope.scaling.type", "none")) != "none":
        raise ValueError(f"{meta.path}: {family}.rope.scaling.type={kind!r} is not supported; expected 'none'")
    if (turned := get("rope.dimension_count", head_dim)) != head_dim:
        raise ValueError(f"{meta.path}: {family}.rope.dimension_count={turned}; expected the head's size {head_dim}")
    stops = (meta.get("tokenizer.ggml.eos_token_id"), meta.get("tokenizer.ggml.eot_token_id"))
    return ModelConfig(
        vocab_size=len(meta.need("tokenizer.ggml.tokens")),
        d_model=d_model,
        n_layers=need("block_count"),
        n_heads=n_heads,
        n_kv_heads=get("attention.head_count_kv", n_heads),
        head_dim=head_dim,
        d_ff=need("feed_forward_length"),
        family=family,
        rope_theta=get("rope.freq_base", 10_000.0),
        # It is stored as float32, in which 1e-5 is 9.99999975e-06: the shortest decimal that rounds to it was meant.
        norm_eps=float(str(np.float32(need("attention.layer_norm_rms_epsilon")))),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied=tied,
        max_positions=need("context_length"),
        bos_id=meta.get("tokenizer.ggml.bos_token_id"),
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


def read_params(path: pathlib.Path, tensors: dict[str, Any], cfg: ModelConfig, shardings: Shardings | None) -> Params:
    """The tree of parameters, dequantised to float32; raises as `load_gguf`."""
    expected = {gguf_name(leaf.name.format(i)) for leaf in leaves(cfg).values() for i in range(cfg.n_layers)}
    for name in tensors:
        if name not in expected:
            why = " (Llama-3's RoPE scaling; load the Hugging Face folder)" if name == "rope_freqs.weight" else ""
            raise ValueError(f"{path}: unexpected tensor {name}{why}")

    def read(hf_name: str, shape: tuple[int, ...]) -> np.ndarray:
        name = gguf_name(hf_name)
        if name not in tensors:
            raise ValueError(f"{path}: missing tensor {name}, expected {shape}")
        tensor = tensors[name]
        # GGUF lists the axis that varies fastest first.
        if (got := tuple(int(n) for n in reversed(tensor.shape))) != shape:
            raise ValueError(f"{path}: tensor {name} has shape {got}, expected {shape}")
        try:
            value = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32, copy=False)
        except NotImplementedError:
            raise ValueError(
                f"{path}: tensor {name} is {tensor.tensor_type.name}, which cannot be dequantised"
            ) from None
        if cfg.family == "llama" and hf_name.endswith(("q_proj.weight", "k_proj.weight")):
            value = unpermute(value, cfg.n_heads if "q_proj" in hf_name else cfg.n_kv_heads)
        return value

    return assemble(cfg, read, shardings)
