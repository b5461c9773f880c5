"""GGUF files (llama.cpp) → config, parameters and tokenizer, without torch.

Weights are dequantised to float32, one tensor at a time. llama.cpp keeps the rows of Llama's q and k in another
order, for its interleaved RoPE; they are put back here (`LlamaModel.permute` in its convert_hf_to_gguf.py).

Shapes: D width, N query or key/value heads, h head_dim.
"""

import os
import pathlib
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from entropy_rl.model.config import ModelConfig
from entropy_rl.model.hf import assemble, leaves
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

# How text is cut before the byte-level merges, by `tokenizer.ggml.pre`: a pattern of llama.cpp's llama-vocab.cpp,
# or None for GPT-2's own; and whether every digit is a token of its own.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    "gpt-2": (None, False),
    "smollm": (None, True),
    "llama-bpe": (LLAMA3, False),
    "qwen2": (LLAMA3.replace("{1,3}", ""), False),
}
CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


class Metadata:
    """The key-value part of a GGUF file."""

    def __init__(self, path: pathlib.Path, reader: gguf.GGUFReader):
        self.path, self.fields = path, reader.fields

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default."""
        return self.fields[key].contents() if key in self.fields else default

    def need(self, key: str) -> Any:
        """The value of a key.

        Raises:
            ValueError: The file has no such key.
        """
        if key not in self.fields:
            raise ValueError(f"{self.path}: missing metadata key {key!r}")
        return self.fields[key].contents()


def load_gguf(path: str | os.PathLike, shardings: Any = None) -> tuple[ModelConfig, Params, "PreTrainedTokenizerFast"]:
    """(ModelConfig, params, tokenizer) of a GGUF file.

    Args:
        path: the file.
        shardings: as in `hf.assemble`; None leaves float32 numpy arrays.

    Raises:
        ValueError: no GGUF file, an unknown architecture or tokenizer, a tensor that is missing, has another shape, or
            that the model has no place for. The message names tensor or key, and file.
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
    """ModelConfig from a GGUF file's metadata."""
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
        # Stored as float32, where 1e-5 is 9.99999975e-06; the shortest decimal that rounds to it was meant.
        norm_eps=float(str(np.float32(need("attention.layer_norm_rms_epsilon")))),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied=tied,
        max_positions=need("context_length"),
        bos_id=meta.get("tokenizer.ggml.bos_token_id"),
        eos_ids=tuple(dict.fromkeys(i for i in stops if i is not None)),
    )


def gguf_name(name: str) -> str:
    """The GGUF name of a Hugging Face tensor."""
    if name in TOP:
        return TOP[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{LAYER[module]}.{kind}"


def unpermute(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """[N·h, D] with RoPE's pairs side by side in each head → halves, as Hugging Face has them."""
    return rows.reshape(n_heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def read_params(path: pathlib.Path, tensors: dict[str, Any], cfg: ModelConfig, shardings: Any) -> Params:
    """The tree of parameters, dequantised to float32."""
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
        # GGUF lists the fastest axis first.
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


def read_tokenizer(meta: Metadata) -> "PreTrainedTokenizerFast":
    """A transformers tokenizer from the file's tokens and merges: byte-level BPE only."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    kind, pre = meta.need("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise ValueError(
            f"{meta.path}: tokenizer.ggml.model={kind!r} with tokenizer.ggml.pre={pre!r} is not supported; "
            f"expected 'gpt2' with one of {', '.join(PRE_TOKENIZERS)}"
        )
    tokens, kinds = meta.need("tokenizer.ggml.tokens"), meta.need("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in meta.need("tokenizer.ggml.merges")]
    core = tokenizers.Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=pre == "llama-bpe")
    )
    pattern, digits = PRE_TOKENIZERS[pre]
    steps: list = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    if pre == "qwen2":
        core.normalizer = normalizers.NFC()  # llama.cpp leaves it out; the model was trained with it
    core.add_tokens(
        [
            tokenizers.AddedToken(t, normalized=False, special=k == CONTROL)
            for t, k in zip(tokens, kinds, strict=True)
            if k in (CONTROL, USER_DEFINED)
        ]
    )

    named = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if (i := meta.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            named[f"{role}_token"] = tokens[i]
    named.setdefault("pad_token", named.get("eos_token"))
    if meta.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        bos = named["bos_token"]
        core.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{bos} $A",
                    pair=f"{bos} $A {bos} $B",
                    special_tokens=[(bos, meta.get("tokenizer.ggml.bos_token_id"))],
                ),
            ]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        clean_up_tokenization_spaces=False,
        chat_template=meta.get("tokenizer.chat_template"),
        **named,
    )
