"""Small models of every family, and a tokenizer of 276 tokens, for the tests that read and write weights."""

import dataclasses
import math

import jax
import numpy as np

from entropy_rl.model.config import LinearScaling, Llama3Scaling, ModelConfig, Rope, YarnScaling
from entropy_rl.model.transformer import abstract_params

SCALING = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16)
BASE = ModelConfig(
    vocab_size=300,
    d_model=24,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=6,
    d_ff=40,
    max_positions=64,
    bos_id=1,
    eos_ids=(2, 0),
)
LOCAL = {"sliding_window": 4, "full_layers": (1,), "max_positions": 128}
# Heads of a size other than D / H, windows shorter than the texts, and biases if the family has them.
FAMILIES = {
    "llama": dataclasses.replace(BASE, rope_scaling=SCALING, rope_theta=500.0),
    "mistral": dataclasses.replace(BASE, family="mistral", sliding_window=4, head_dim=8),
    "qwen2": dataclasses.replace(BASE, family="qwen2", qkv_bias=True, norm_eps=1e-6),
    "qwen3": dataclasses.replace(BASE, family="qwen3", qk_norm="head", head_dim=16, norm_eps=1e-6),
    "olmo2": dataclasses.replace(BASE, family="olmo2", norms="after", qk_norm="width", rope_theta=500.0),
    "olmo3": dataclasses.replace(
        BASE,
        family="olmo3",
        norms="after",
        qk_norm="width",
        rope_theta=500.0,
        rope_scaling=YarnScaling(4.0, 32, 1.2, 2.0, 0.5),
        local_rope=Rope(500.0),
        **LOCAL,
    ),
    "gemma3_text": dataclasses.replace(
        BASE,
        family="gemma3_text",
        norms="both",
        norm_offset=True,
        qk_norm="head",
        activation="gelu_tanh",
        scaled_embedding=True,
        query_scalar=12,
        rope_theta=500.0,
        local_rope=Rope(30.0),
        **LOCAL,
    ),
    "smollm3": dataclasses.replace(BASE, family="smollm3", nope_layers=(0, 2), norm_eps=1e-6),
}
# The same families with other features of theirs.
VARIANTS = {
    "llama linear": dataclasses.replace(FAMILIES["llama"], rope_scaling=LinearScaling(2.0)),
    "mistral yarn": dataclasses.replace(
        FAMILIES["mistral"], rope_scaling=YarnScaling(4.0, 16, 0.1 * math.log(4.0) + 1), n_kv_heads=4
    ),
    "qwen2 windows": dataclasses.replace(FAMILIES["qwen2"], sliding_window=5, full_layers=(0, 1)),
    "qwen3 windows": dataclasses.replace(FAMILIES["qwen3"], sliding_window=5),
    "olmo2 groups": dataclasses.replace(FAMILIES["olmo2"], n_kv_heads=1, rope_scaling=LinearScaling(2.0)),
    "olmo3 plain": dataclasses.replace(FAMILIES["olmo3"], rope_scaling=None, local_rope=None, full_layers=(0,)),
    "gemma3_text linear": dataclasses.replace(
        FAMILIES["gemma3_text"], rope_scaling=LinearScaling(8.0), query_scalar=None, head_dim=16, full_layers=(2,)
    ),
    "smollm3 windows": dataclasses.replace(FAMILIES["smollm3"], sliding_window=4, full_layers=(0,)),
}
VARIANTS = {name: dataclasses.replace(cfg, tied=False) for name, cfg in VARIANTS.items()}
ALL = FAMILIES | VARIANTS


def random_params(cfg: ModelConfig, seed: int = 0):
    """Parameters as numpy arrays. No leaf is constant, so that a swapped norm or bias shows."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        noise = rng.standard_normal(x.shape, np.float32)
        if "norm" in path[-1].key:
            return (not cfg.norm_offset) + 0.1 * noise
        return 0.2 * noise

    return jax.tree_util.tree_map_with_path(draw, abstract_params(cfg))


def tiny_tokenizer(pad: bool = True):
    """Byte-level BPE with three special tokens, 256 bytes and a few merges."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["the cat sat on the mat and the hat"] * 4, trainer)
    named = {"pad_token": "<|endoftext|>"} if pad else {}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
        chat_template="{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}",
        **named,
    )


def assert_trees_equal(a, b):
    """The same paths, shapes and bits."""
    jax.tree.map(np.testing.assert_array_equal, a, b)
